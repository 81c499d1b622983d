"""Pools: which labels are scored in a step.

A pool is a function of the draws of a batch: ``pool(draws) -> (P,)`` distinct label numbers in order, or None for all
labels. Hard negatives are found with the documents' vectors, so they widen the pool later, within the step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .data.batches import Draws


class AllLabels:
    """Every label in every step (DEXML)."""

    def __call__(self, draws: Draws) -> None:
        """The whole label space.

        Args:
            draws: of the batch.
        """
        return None


class InBatch:
    """Positives of the batch's documents; each is a negative of the documents that do not have it.

    Args:
        positives: how many of a document's positives are drawn into the pool; None for all.
    """

    def __init__(self, positives: int | None = None):
        self.positives = positives

    def __call__(self, draws: Draws) -> npt.NDArray[np.int64]:
        """The distinct labels, in label order.

        Args:
            draws: of the batch.
        """
        return np.unique(draws.labels if self.positives is None else draws.labels[draws.rank < self.positives])


Pool = AllLabels | InBatch
"""The pools that a recipe can be given."""


def make_pool(name: str, positives: int | None = None) -> Pool:
    """A pool by name.

    Args:
        name: ``all``, ``in-batch`` or ``mined``; the last is ``in-batch`` before hard negatives widen it.
        positives: how many of a document's positives are drawn into the pool; None for all.

    Raises:
        ValueError: an unknown name.
    """
    match name:
        case "all":
            return AllLabels()
        case "in-batch" | "mined":
            return InBatch(positives)
    raise ValueError(f"unknown pool {name!r}; choose one of all, in-batch, mined")
