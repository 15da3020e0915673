"""How are the results of the papers reproduced, and what did they report?"""
