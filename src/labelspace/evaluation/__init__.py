"""Predictions and truth -> figures, and scores -> probabilities; loads no torch."""

from .comparing import compare
from .evaluating import evaluate, longest_filter_row

__all__ = ["compare", "evaluate", "longest_filter_row"]
