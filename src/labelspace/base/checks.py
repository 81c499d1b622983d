"""Values that are asked for in many places, each refused by one sentence and one type of error."""

from __future__ import annotations

from numbers import Integral, Real

from ..errors import SettingsError

SEEDS = 2**32
"""Seeds are below this, which NumPy and torch both take."""


def require_count(name: str, value: object) -> None:
    """Refuse anything but a whole number of at least 1.

    Args:
        name: of the argument or flag, and where that does not say it what is counted.
        value: as it was given.

    Raises:
        SettingsError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise SettingsError(f"{name} must be a whole number of at least 1, got {value!r}")


def require_probability(name: str, value: object) -> None:
    """Refuse anything but a number from 0 to 1.

    Args:
        name: of the argument or flag.
        value: as it was given.

    Raises:
        SettingsError: it is something else.
    """
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise SettingsError(f"{name} must be a probability from 0 to 1, got {value!r}")


def require_seed(seed: int) -> None:
    """Refuse a seed that NumPy and torch cannot both take.

    Args:
        seed: as it was given.

    Raises:
        SettingsError: it is negative or too large.
    """
    if not 0 <= seed < SEEDS:
        raise SettingsError(f"--seed is a whole number from 0 to {SEEDS - 1}, got {seed}")
