"""What is in a model, and what is wrong with a run of it?"""
