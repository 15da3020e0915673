"""How a run speaks to the person who started it."""

import os
import sys


class PreflightError(Exception):
    """Something the user can put right: one sentence, shown without a traceback."""


def is_first_process() -> bool:
    """Whether this is rank 0, told before torch.distributed is up."""
    ranks = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return next((os.environ[name] for name in ranks if name in os.environ), "0") == "0"


def say(sentence: str) -> None:
    """Prints a line, once in a distributed run."""
    if is_first_process():
        print(sentence, flush=True)


def warn(sentence: str) -> None:
    """Prints a line on stderr, once in a distributed run."""
    if is_first_process():
        sys.stdout.flush()
        print(sentence, file=sys.stderr, flush=True)
