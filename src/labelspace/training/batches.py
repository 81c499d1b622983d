"""Documents and a pool -> batches with positive pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..evaluation.metrics import binary_truth, membership
from ..types import Batch


def usable_rows(targets: sp.csr_array, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The given rows of the truth (N, L) that have a label; the others teach nothing."""
    return rows[np.diff(targets.indptr)[rows] > 0]


@dataclass(frozen=True, eq=False)
class Draws:
    """The true pairs of a batch's documents in a random order, in which relevant ones tend to come first.

    Args:
        rows: (M,) rows of the batch, sorted.
        labels: (M,) label numbers.
        relevance: (M,) above 0.
        rank: (M,) place of the pair among those of its row, from 0; the first c of a row are a draw of c without
            replacement, in proportion to relevance (Efraimidis and Spirakis, 2006).
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    relevance: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int64]

    @classmethod
    def of(cls, part: sp.csr_array, rng: np.random.Generator) -> Draws:
        """Draw an order of the true pairs (B, L) of a batch's documents."""
        counts = np.diff(part.indptr)
        rows = np.repeat(np.arange(len(counts)), counts)
        keys = np.log(rng.random(len(rows))) / part.data
        order = np.lexsort((-keys, rows))
        rank = np.empty(len(rows), dtype=np.int64)
        rank[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(rows, part.indices.astype(np.int64), part.data, rank)


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a run; order and draws depend on the seed, the epoch and the step alone.

    Args:
        targets: the truth, (N, L).
        rows: (n,) documents to go through in an epoch, each with a label.
        pool: the labels scored for a batch, from its draws; None stands for all.
        batch_size: documents in a batch; the last one may be smaller.
        seed: of the run.
        draw: how many of a document's positives to draw; None for all.
        hide: positives not drawn do not count; otherwise they stay in the denominator.
        weighted: give each positive its relevance as weight.
        uniform: labels drawn uniformly into a pool beside what it has by itself.
    """

    targets: sp.csr_array
    rows: npt.NDArray[np.int64]
    pool: Callable[[Draws], npt.NDArray[np.int64] | None]
    batch_size: int
    seed: int
    draw: int | None = None
    hide: bool = True
    weighted: bool = False
    uniform: int = 0

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``start`` on."""
        order = self.rows[np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))]
        for step in range(start, self.per_epoch):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            key = (self.seed, epoch, step)
            draws = Draws.of(self.targets[chosen], np.random.default_rng(key))
            pool = self.pool(draws)
            yield self._assemble(chosen, None if pool is None else with_uniform(pool, self, key), draws, key)

    def widened(self, batch: Batch, labels: npt.NDArray[np.int64]) -> Batch:
        """A batch of this run with more labels in its pool; a label that is true for a document becomes its positive.

        Args:
            batch: with a pool.
            labels: label numbers to add, repeats allowed.
        """
        assert batch.pool is not None, "a pool of all labels is as wide as can be"
        draws = Draws.of(self.targets[batch.rows], np.random.default_rng(batch.key))
        return self._assemble(batch.rows, np.union1d(batch.pool, labels), draws, batch.key)

    def _assemble(
        self, chosen: npt.NDArray[np.int64], labels: npt.NDArray[np.int64] | None, draws: Draws, key: tuple[int, ...]
    ) -> Batch:
        columns, inside = draws.labels, np.ones(len(draws.labels), dtype=bool)
        if labels is not None:
            columns = np.searchsorted(labels, draws.labels)
            inside = (columns < len(labels)) & (labels[np.minimum(columns, len(labels) - 1)] == draws.labels)
        drawn = inside if self.draw is None else inside & (draws.rank < self.draw)
        pairs = np.vstack([draws.rows, columns])
        hidden = pairs[:, inside & ~drawn] if self.hide and self.draw is not None else None
        return Batch(chosen, labels, pairs[:, drawn], hidden, draws.relevance[drawn] if self.weighted else None, key)


@dataclass(eq=False)
class PickedBatches:
    """The batches of a run whose pools are picked, and whose documents may come in clusters (UniDEC).

    Order and draws depend on the seed, the epoch, the step, and the clusters and shortlists of the last refresh. These
    apply from the next batch on.

    Args:
        targets: the truth, (N, L).
        rows: (n,) documents to go through in an epoch, each with a label.
        pick: the labels scored for a batch, from its draws, its shortlists and a source of random numbers.
        batch_size: documents in a batch; with clusters up to twice as many.
        seed: of the run.
        clustered: cut an epoch into 2^depth batches of equal size, at least ``batch_size``, each of them a cluster
            as soon as there are clusters.
        uniform: as for `Batches`.
    """

    targets: sp.csr_array
    rows: npt.NDArray[np.int64]
    pick: Callable[[Draws, npt.NDArray[np.integer] | None, np.random.Generator], npt.NDArray[np.int64]]
    batch_size: int
    seed: int
    clustered: bool = False
    uniform: int = 0
    shortlists: npt.NDArray[np.int32] | None = None
    """(N, s) hard negatives of each document, -1 for no label."""
    clusters: npt.NDArray[np.int64] | None = None
    """(n,) the documents, cluster by cluster, all clusters of equal size but for one document."""

    @property
    def depth(self) -> int:
        """How often the documents are halved to make clusters."""
        return max(0, (len(self.rows) // self.batch_size).bit_length() - 1)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return 2**self.depth if self.clustered else -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``start`` on."""
        order = self.rows[np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))]
        places = np.random.default_rng([self.seed, epoch, 0, 1]).permutation(self.per_epoch)
        for step in range(start, self.per_epoch):
            if not self.clustered:
                chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            elif self.clusters is None:
                chosen = halves(order, self.depth, step)
            else:
                chosen = halves(self.clusters, self.depth, int(places[step]))
            yield self._assemble(chosen, (self.seed, epoch, step))

    def _assemble(self, chosen: npt.NDArray[np.int64], key: tuple[int, ...]) -> Batch:
        """Positives are all true pairs inside the pool; documents left without one are dropped."""
        rng = np.random.default_rng(key)
        truth = self.targets[chosen]
        draws = Draws.of(truth, rng)
        shortlists = None
        if self.shortlists is not None:
            shortlists = self.shortlists[chosen]
            if shortlists.shape[1]:
                shortlists = np.where(membership(shortlists, binary_truth(truth)), -1, shortlists)
        labels = with_uniform(self.pick(draws, shortlists, rng), self, key)
        columns = np.searchsorted(labels, draws.labels)
        inside = labels[np.minimum(columns, len(labels) - 1)] == draws.labels
        kept, rows = np.unique(draws.rows[inside], return_inverse=True)
        return Batch(chosen[kept], labels, np.vstack([rows, columns[inside]]), key=key)


def with_uniform(
    pool: npt.NDArray[np.int64], plan: Batches | PickedBatches, key: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """The labels of a pool, and those drawn uniformly that the plan adds to every pool; some may be there."""
    if not plan.uniform:
        return pool
    count = plan.targets.shape[1]
    drawn = np.random.default_rng((*key, 3)).choice(count, min(plan.uniform, count), replace=False)
    return np.union1d(pool, drawn)


def of_labels(batch: Batch, labels: slice) -> Batch:
    """The same documents with the labels of a range only; columns are counted from the first of them.

    Args:
        batch: any.
        labels: label numbers from start to stop.
    """
    if batch.pool is None:
        first, last, pool = labels.start, labels.stop, np.arange(labels.start, labels.stop)
    else:
        first, last = np.searchsorted(batch.pool, [labels.start, labels.stop]).tolist()
        pool = batch.pool[first:last]
    inside, hidden = _within(batch.positives, first, last), batch.hidden
    return dataclasses.replace(
        batch,
        pool=pool,
        positives=batch.positives[:, inside] - [[0], [first]],
        hidden=None if hidden is None else hidden[:, _within(hidden, first, last)] - [[0], [first]],
        weights=None if batch.weights is None else batch.weights[inside],
    )


def _within(pairs: npt.NDArray[np.int64], first: int, last: int) -> npt.NDArray[np.bool_]:
    return (pairs[1] >= first) & (pairs[1] < last)


def halves(items: npt.NDArray[np.int64], depth: int, part: int) -> npt.NDArray[np.int64]:
    """One of the 2^depth parts, counted from 0, of items that are halved so often; the first half gets the odd item."""
    for level in reversed(range(depth)):
        middle = -(-len(items) // 2)
        items = items[middle:] if part >> level & 1 else items[:middle]
    return items
