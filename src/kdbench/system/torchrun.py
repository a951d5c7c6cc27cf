"""The environment of a process that torchrun has started. Imports no torch."""

import os

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets."""


def starts_several() -> bool:
    """Return whether this process is one of several that torchrun has started to train together."""
    return all(os.environ.get(name) for name in VARIABLES) and os.environ["WORLD_SIZE"] != "1"
