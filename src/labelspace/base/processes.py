"""The processes of a run, as torchrun, accelerate and others that start several tell each by its environment."""

from __future__ import annotations

import os


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def count() -> int:
    """Processes of the run, on all machines."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, from 0."""
    return _number("RANK", 0) if count() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0; the number of its GPU."""
    return _number("LOCAL_RANK", rank()) if count() > 1 else 0


def local_count() -> int:
    """Processes of the run on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", count()))


def attempt() -> int:
    """How often torchrun has started the processes again, after one was lost."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)
