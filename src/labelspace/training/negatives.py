"""Hard negatives: labels that the model itself ranks high for a document and that are not among its true ones.

The shortlist of a document is the top of an index of label keys. The keys are those of the last refresh, the query is
the present one, so no document is encoded twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from ..memory.indexes import ExactIndex
from . import distributed

logger = logging.getLogger("labelspace")

QUERY_BLOCK = 512
"""Documents whose shortlists are searched at a time."""
PAIR_BLOCK = 65_536
"""Pairs of document and true label whose scores are computed at a time."""


@dataclass(frozen=True)
class Filter:
    """Which ranks and scores of a shortlist may be drawn; the others may well be true labels that are missing.

    The score of a label is its inner product with the document (the cosine, for unit vectors); the positive score of a
    document is that of its best true label.

    Args:
        range_min: the best candidates that are passed over.
        range_max: length of the shortlist, before anything is passed over.
        max_score: highest score; None for no limit.
        absolute_margin: the score must be lower than the positive score by this much; None for no limit.
        relative_margin: the score must be at most (1 - relative_margin) times the positive score; None for no limit.
    """

    range_min: int = 0
    range_max: int = 100
    max_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None

    def allowed(
        self, scores: npt.NDArray[np.float32], positive: npt.NDArray[np.float32], rank: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which candidates may be drawn.

        Args:
            scores: (B, s) of the candidates, falling.
            positive: (B,) positive score of each document.
            rank: (B, s) rank of each candidate among those that are not true labels, from 0.
        """
        kept = (rank >= self.range_min) & (rank < self.range_max)
        if self.max_score is not None:
            kept &= scores <= self.max_score
        if self.absolute_margin is not None:
            kept &= scores <= positive[:, None] - self.absolute_margin
        if self.relative_margin is not None:
            # a share of a negative score would allow more than the score itself
            share = self.relative_margin * np.where(np.isfinite(positive), np.abs(positive), 0.0)
            kept &= scores <= (positive - share)[:, None]
        return kept


class HardNegatives:
    """Shortlists from an index of label keys, and draws from them; of several processes each has its own labels' keys.

    Args:
        targets: the training truth, (N, L).
        chosen: ranks and scores that may be drawn.
        count: how many to draw a document.
    """

    def __init__(self, targets: sp.csr_array, chosen: Filter, count: int):
        self.targets, self.filter, self.count = targets, chosen, count
        self.index: ExactIndex | None = None
        self._allowed_counts: list[npt.NDArray[np.int64]] | None = None
        """Allowed candidates of documents looked at since the last refresh; None once `outcome` has told them."""

    def refresh(self, keys: Tensor) -> None:
        """From now on search among these vectors (L, D) of all labels, or of a process' own, which have no graph."""
        self.restore({"keys": keys})

    def outcome(self) -> dict[str, float] | None:
        """Figures of the first documents after a refresh, once; warns where most of them have no hard negative.

        Returns:
            ``documents`` looked at, the mean number of ``hard_negatives`` drawn for one, and how many have ``none``;
            or None where there is nothing new.
        """
        new, self._allowed_counts = self._allowed_counts, None
        if not new:
            return None
        counts = np.concatenate(new)
        none = int((counts == 0).sum())
        if 2 * none > len(counts):
            logger.warning(
                "%d of %d documents have no hard negative that range_min, max_score and the margins allow; loosen them",
                none,
                len(counts),
            )
        mean = float(np.minimum(counts, self.count).mean())
        return {"documents": len(counts), "hard_negatives": mean, "none": none}

    def state(self) -> dict[str, Tensor]:
        """The keys, for a checkpoint."""
        return {} if self.index is None else {"keys": self.index.keys}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.index = ExactIndex(state["keys"]) if "keys" in state else None
        self._allowed_counts = []

    def draw(
        self, rows: npt.NDArray[np.int64], queries: Tensor, rng: np.random.Generator
    ) -> list[npt.NDArray[np.int64]]:
        """Draw hard negatives for each document, uniformly from the allowed labels of its shortlist.

        Args:
            rows: (B,) documents.
            queries: (B, D) their present vectors, without a graph.
            rng: source of the draws.

        Returns:
            For each document at most `count` label numbers, none of them true for it; empty before the first refresh.
        """
        if self.index is None:
            return [np.zeros(0, dtype=np.int64)] * len(rows)
        labels, allowed = self._filtered(rows, queries)
        if self._allowed_counts is not None and not self._allowed_counts:
            self._allowed_counts.append(allowed.sum(axis=1))
        # the smallest random numbers among the allowed candidates are a uniform draw without replacement
        lots = np.where(allowed, rng.random(labels.shape), np.inf)
        count = min(self.count, labels.shape[1])
        places = np.argpartition(lots, count - 1, axis=1)[:, :count] if count else np.zeros((len(rows), 0), dtype=int)
        drawn = np.take_along_axis(labels, places, axis=1)
        kept = np.isfinite(np.take_along_axis(lots, places, axis=1))
        return [np.sort(row[own]) for row, own in zip(drawn, kept, strict=True)]

    def _filtered(
        self, rows: npt.NDArray[np.int64], queries: Tensor
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Labels (B, s) of the shortlists, and which of them may be drawn."""
        labels, scores, positive = self.shortlist(rows, queries)
        false = labels >= 0
        return labels, false & self.filter.allowed(scores, positive, np.cumsum(false, axis=1) - 1)

    def candidates(self, rows: npt.NDArray[np.int64], queries: Tensor, count: int) -> npt.NDArray[np.int32]:
        """The best of what may be drawn for each document.

        Args:
            rows: (B,) documents.
            queries: (B, D) their vectors, without a graph.
            count: the most for a document.

        Returns:
            (B, count) label numbers, none of them true for the document, falling in score; -1 after them.
        """
        candidates = np.full((len(rows), count), -1, dtype=np.int32)
        for start in range(0, len(rows), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            labels, allowed = self._filtered(rows[part], queries[part])
            if self._allowed_counts is not None:
                self._allowed_counts.append(allowed.sum(axis=1))
            first = np.argsort(~allowed, axis=1, kind="stable")[:, :count]
            best = np.take_along_axis(np.where(allowed, labels, -1), first, axis=1)
            candidates[part, : best.shape[1]] = best
        return candidates

    def shortlist(
        self, rows: npt.NDArray[np.int64], queries: Tensor
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The best labels of each document, the true ones struck out.

        Args:
            rows: (B,) documents.
            queries: (B, D) their vectors.

        Returns:
            Label numbers (B, s), -1 for a true label; their scores (B, s), falling; the positive score (B,), infinite
            for a document without labels.
        """
        assert self.index is not None, "the keys were refreshed"
        truth = self.targets[rows]
        counts = np.diff(truth.indptr)
        depth = self.filter.range_max + int(counts.max(initial=0))
        own = distributed.span(self.targets.shape[1])
        scores, labels = self.index.search(queries, depth)
        scores, labels = distributed.best(scores, labels + own.start, min(depth, self.targets.shape[1]))

        pair_rows = np.repeat(np.arange(len(rows)), counts)
        n_labels = self.targets.shape[1]
        true = np.isin(labels + n_labels * np.arange(len(rows))[:, None], truth.indices + n_labels * pair_rows)
        device = queries.device
        products = torch.zeros(len(pair_rows))
        for start in range(0, len(pair_rows), PAIR_BLOCK):
            part = slice(start, start + PAIR_BLOCK)
            here = np.flatnonzero((truth.indices[part] >= own.start) & (truth.indices[part] < own.stop)) + start
            places = torch.from_numpy(truth.indices[here].astype(np.int64) - own.start).to(device)
            vectors = queries[torch.from_numpy(pair_rows[here]).to(device)]
            products[here] = (self.index.keys[places].float() * vectors).sum(1).cpu()
        products = distributed.reduce(products, "sum")
        positive = np.full(len(rows), -np.inf, dtype=np.float32)
        np.maximum.at(positive, pair_rows, products.numpy())
        positive[counts == 0] = np.inf
        return np.where(true, -1, labels), scores, positive
