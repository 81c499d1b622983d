"""Pools: which labels are scored in a step.

A pool is a function of a batch's documents: ``pool(rows) -> (P,)`` distinct label numbers, or None for all labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp


class AllLabels:
    """Every label in every step (DEXML)."""

    def __call__(self, rows: npt.NDArray[np.int64]) -> None:
        """The whole label space.

        Args:
            rows: (B,) documents of the batch.
        """
        return None


class InBatch:
    """The positives of the batch's documents; each is a negative of the documents that do not have it.

    Args:
        targets: the training truth, (N, L).
    """

    def __init__(self, targets: sp.csr_array):
        self.targets = targets

    def __call__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The distinct labels of the documents, in label order.

        Args:
            rows: (B,) documents of the batch.
        """
        return np.unique(self.targets[rows].indices).astype(np.int64)


Pool = AllLabels | InBatch
"""The pools that a recipe can be given."""


def make_pool(name: str, targets: sp.csr_array) -> Pool:
    """A pool by name.

    Args:
        name: ``all`` or ``in-batch``.
        targets: the training truth, (N, L).

    Raises:
        ValueError: an unknown name.
    """
    match name:
        case "all":
            return AllLabels()
        case "in-batch":
            return InBatch(targets)
    raise ValueError(f"unknown pool {name!r}; choose one of all, in-batch")
