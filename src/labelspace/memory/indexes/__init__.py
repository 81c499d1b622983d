"""Nearest-key search behind one signature; ``exact`` is the oracle for any other."""

from __future__ import annotations

from .exact import ExactIndex
from .faiss import HnswIndex, require_graph

__all__ = ["ExactIndex", "HnswIndex", "require_graph"]
