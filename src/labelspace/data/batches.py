"""Documents and a pool -> batches with positive pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..types import Batch


def usable_rows(targets: sp.csr_array, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The given rows that have a label; the others teach nothing.

    Args:
        targets: the truth, (N, L).
        rows: (n,) row numbers.
    """
    return rows[np.diff(targets.indptr)[rows] > 0]


def batches(
    targets: sp.csr_array,
    rows: npt.NDArray[np.int64],
    pool: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64] | None],
    batch_size: int,
    seed: int,
    epoch: int,
    draw: int | None = None,
    hide: bool = True,
    weighted: bool = False,
) -> Iterator[Batch]:
    """One epoch's batches, in an order that depends on the seed and the epoch alone.

    Args:
        targets: the truth, (N, L).
        rows: (n,) documents to go through, each with a label.
        pool: the labels scored for a batch's documents; None stands for all.
        batch_size: documents in a batch; the last one may be smaller.
        seed: of the run.
        epoch: number of the epoch.
        draw: how many of a document's positives to draw; None for all.
        hide: positives not drawn do not count; otherwise they stay in the denominator.
        weighted: give each positive its relevance as weight.
    """
    order = rows[np.random.default_rng([seed, epoch]).permutation(len(rows))]
    for step, start in enumerate(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        part = targets[chosen]
        pairs = np.vstack([np.repeat(np.arange(len(chosen)), np.diff(part.indptr)), part.indices]).astype(np.int64)
        labels = pool(chosen)
        if labels is not None:
            place = np.searchsorted(labels, pairs[1])
            inside = (place < len(labels)) & (labels[np.minimum(place, len(labels) - 1)] == pairs[1])
            pairs = np.vstack([pairs[0][inside], place[inside]])
        else:
            inside = slice(None)
        relevance = part.data[inside]
        if draw is None:
            yield Batch(chosen, labels, pairs, weights=relevance if weighted else None)
            continue
        rng = np.random.default_rng([seed, epoch, step])
        drawn = draw_positives(pairs[0], relevance, draw, rng)
        weights = relevance[drawn] if weighted else None
        yield Batch(chosen, labels, pairs[:, drawn], hidden=pairs[:, ~drawn] if hide else None, weights=weights)


def draw_positives(
    rows: npt.NDArray[np.int64], relevance: npt.NDArray[np.float32], count: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which positives to keep: min(count, all) of each row, without replacement, in proportion to relevance.

    Args:
        rows: (M,) row of each positive, sorted.
        relevance: (M,) above 0.
        count: how many a row.
        rng: source of the draws.

    Returns:
        (M,) bool.
    """
    keys = np.log(rng.random(len(rows))) / relevance  # the largest keys are such a draw (Efraimidis and Spirakis, 2006)
    order = np.lexsort((-keys, rows))
    counts = np.bincount(rows)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = np.zeros(len(rows), dtype=bool)
    drawn[order[rank < count]] = True
    return drawn
