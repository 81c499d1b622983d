"""Nearest-key search behind one signature; ``exact`` is the oracle for any other."""

from __future__ import annotations

from .exact import ExactIndex
from .faiss import HnswIndex

__all__ = ["ExactIndex", "HnswIndex"]
