"""Keys that vote for labels: kept, searched, weighed, and tuned."""

from .memory import Memory, Voting

__all__ = ["Memory", "Voting"]
