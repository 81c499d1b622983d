"""Keys that vote for labels: kept, searched, weighed, and tuned."""

from .memory import Memory
from .voting import Voting

__all__ = ["Memory", "Voting"]
