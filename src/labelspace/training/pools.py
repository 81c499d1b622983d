"""Pools: which labels are scored in a step.

A pool is a function of the draws of a batch: ``pool(draws) -> (P,)`` distinct label numbers in order, or None for all
labels. DEXML searches hard negatives with the documents' present vectors, so they widen its pool within the step;
`PickSome` draws them from shortlists of the last refresh.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .batches import Draws


class AllLabels:
    """Every label in every step (DEXML)."""

    def __call__(self, draws: Draws) -> None:
        """The whole label space."""
        return None


class InBatch:
    """Positives of the batch's documents; each is a negative of the documents that do not have it.

    Args:
        positives: how many of a document's positives are drawn into the pool; None for all.
    """

    def __init__(self, positives: int | None = None):
        self.positives = positives

    def __call__(self, draws: Draws) -> npt.NDArray[np.int64]:
        """The distinct labels, in label order."""
        return np.unique(draws.labels if self.positives is None else draws.labels[draws.rank < self.positives])


@dataclass(frozen=True)
class PickSome:
    """Some positives of each document, hard negatives, and more positives while there is room (UniDEC).

    It picks at most ``cap`` of the labels of a batch's documents and their shortlists. No step looks at others, so the
    cost does not depend on L.

    Args:
        num_positives: positives drawn for a document; None for all.
        num_negatives: hard negatives drawn for a document.
        cap: the most labels in a pool; None for no limit, so that all hard negatives drawn and all positives come in.
        gap: a pool with this many free places, or fewer, is full.
    """

    num_positives: int | None = 3
    num_negatives: int = 6
    cap: int | None = None
    gap: int = 10

    def __call__(
        self, draws: Draws, shortlists: npt.NDArray[np.integer] | None, rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """The distinct labels, in label order.

        1. Each document draws its positives; the pool is the distinct ones.
        2. If those are more than the cap, the most drawn stay, and the pool is done.
        3. If more than ``gap`` places are free, each document draws hard negatives from its shortlist: without
           replacement, or with it if the shortlist is too short. The most drawn come in, up to the free places.
        4. If more than ``gap`` places are still free, other positives of the documents come in, those first that most
           documents of the batch have.

        Labels drawn equally often are chosen between by lot.

        Args:
            draws: of the batch.
            shortlists: (B, s) hard negatives of each document, -1 for no label; None before the first were made.
            rng: source of the draws of negatives and of the lots.
        """
        drawn = draws.labels if self.num_positives is None else draws.labels[draws.rank < self.num_positives]
        pool, counts = np.unique(drawn, return_counts=True)
        if self.cap is not None and len(pool) > self.cap:
            return np.sort(pool[_most_drawn(counts, self.cap, rng)])
        if shortlists is not None and self._room(pool) > self.gap:
            pool = self._widened(pool, draw_from(shortlists, self.num_negatives, rng), rng)
        if self._room(pool) > self.gap:
            pool = self._widened(pool, draws.labels, rng)
        return pool

    def _room(self, pool: npt.NDArray[np.int64]) -> float:
        return np.inf if self.cap is None else self.cap - len(pool)

    def _widened(
        self, pool: npt.NDArray[np.int64], drawn: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """The pool with the labels that were drawn most often, up to the free places."""
        labels, counts = np.unique(drawn, return_counts=True)
        new = ~np.isin(labels, pool, assume_unique=True)
        labels, counts = labels[new], counts[new]
        return np.union1d(pool, labels[_most_drawn(counts, int(min(len(labels), self._room(pool))), rng)])


def _most_drawn(counts: npt.NDArray[np.int64], number: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Places of the largest counts, equal ones in random order."""
    return np.lexsort((rng.random(len(counts)), -counts))[:number]


def draw_from(shortlists: npt.NDArray[np.integer], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Label numbers (d,) from all rows of shortlists: without replacement, with it where a row has too few.

    Args:
        shortlists: (B, s) label numbers, distinct in a row, -1 for no label; an empty row gives none.
        count: how many to draw from a row.
        rng: source of the draws.
    """
    if not shortlists.size or not count:
        return np.zeros(0, dtype=np.int64)
    filled = shortlists >= 0
    lengths = filled.sum(axis=1)
    width = min(count, shortlists.shape[1])
    enough = lengths >= count
    lots = np.where(filled[enough], rng.random((int(enough.sum()), shortlists.shape[1])), np.inf)
    places = np.argpartition(lots, width - 1, axis=1)[:, :width]
    without = np.take_along_axis(shortlists[enough], places, axis=1) if enough.any() else shortlists[:0]
    short = (lengths > 0) & ~enough
    order = np.argsort(~filled[short], axis=1, kind="stable")
    places = (rng.random((int(short.sum()), count)) * lengths[short, None]).astype(np.int64)
    again = np.take_along_axis(np.take_along_axis(shortlists[short], order, axis=1), places, axis=1)
    return np.concatenate([without.ravel(), again.ravel()]).astype(np.int64)


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
