"""What a setting of votes is worth on validation documents: labels that may pass a true one, as lines in the weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..evaluation.evaluating import evaluate
from ..types import Predictions
from .keys import IntArray
from .memory import Memory
from .voting import FloatArray, Nearest, Voting, weigh

KS = (1, 3, 5)
METRICS = tuple(f"{name}@{k}" for name in ("P", "nDCG", "PSP") for k in KS)
TILT = 1e-12
"""Share by which votes count less from label to label, so that of equal scores the first label wins."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What some validation documents should get.

    Args:
        truth: (v, L) their labels.
        label_weights: (L,) inverse propensities.
        barred: (v, L) labels that must not be predicted; None for none.
    """

    truth: sp.csr_array
    label_weights: FloatArray
    barred: sp.csr_array | None

    def rows(self, rows: slice) -> Goal:
        """Some of the documents."""
        barred = None if self.barred is None else sp.csr_array(self.barred[rows])
        return Goal(sp.csr_array(self.truth[rows]), self.label_weights, barred)

    def depth(self, wanted: int) -> int:
        """Labels to rank so that so many are left when those that must not be predicted are deleted."""
        longest = 0 if self.barred is None else int(np.diff(self.barred.indptr).max(initial=0))
        return min(wanted + longest, self.truth.shape[1])

    def measured(self, predictions: Predictions) -> dict[str, float]:
        """METRICS, R@10 and R@100 as far as there are labels, as `labelspace evaluate` gives them."""
        pairs = None if self.barred is None else np.stack(self.barred.nonzero(), axis=1)
        metrics = evaluate(predictions, self.truth, None, KS, filter_pairs=pairs, propensity=self.label_weights)
        return {name: metrics[name] for name in (*METRICS, "R@10", "R@100") if name in metrics}


class Candidates:
    """Labels of some documents that a setting could rank among the best five, and the sums of votes of a setting.

    With A the votes of documents and Q those of label keys, the score is weight A + (1 - weight) Q. Of the labels with
    A alone, and of those with Q alone, only the best five of either can come among the best five, whatever the weight.
    """

    def __init__(self, memory: Memory, nearest: Nearest, goal: Goal):
        truth, label_weights = goal.truth, goal.label_weights
        self.nearest = nearest
        n, a = nearest.labels.shape
        n_labels = memory.n_labels
        keys = np.flatnonzero(nearest.documents >= 0)  # flat (row, rank) of the document keys
        counts, numbers, raw = memory.votes_of(nearest.documents.ravel()[keys], "raw")
        _, _, shared = memory.votes_of(nearest.documents.ravel()[keys], "normalized")
        self.entry_key = np.repeat(keys, counts)
        self.values = {"raw": raw, "normalized": shared}
        entry_pairs = self.entry_key // max(1, nearest.documents.shape[1]) * n_labels + numbers
        key_rows, key_ranks = np.nonzero(nearest.labels >= 0)
        key_pairs = key_rows * n_labels + nearest.labels[key_rows, key_ranks]
        if goal.barred is not None and goal.barred.nnz:  # they vote, but for nothing that is ranked
            barred_rows, columns = goal.barred.nonzero()
            out = barred_rows.astype(np.int64) * n_labels + columns
            allowed = ~np.isin(entry_pairs, out)
            self.entry_key, entry_pairs = self.entry_key[allowed], entry_pairs[allowed]
            self.values = {name: values[allowed] for name, values in self.values.items()}
            allowed = ~np.isin(key_pairs, out)
            key_rows, key_ranks, key_pairs = key_rows[allowed], key_ranks[allowed], key_pairs[allowed]
        self.key_places = key_rows * a + key_ranks
        pairs, inverse = np.unique(np.concatenate([entry_pairs, key_pairs]), return_inverse=True)
        self.entry_pair, self.key_pair = inverse[: len(entry_pairs)], inverse[len(entry_pairs) :]
        self.size = len(pairs)
        has_a, has_q = np.zeros(self.size, dtype=bool), np.zeros(self.size, dtype=bool)
        has_a[self.entry_pair], has_q[self.key_pair] = True, True
        rows = pairs // n_labels
        self.tilt = np.append(1 - TILT * _rank_in_row(rows), 0.0)

        own_q = has_q[self.key_pair] & ~has_a[self.key_pair]  # in falling order within a row
        kept = self.key_pair[own_q][_rank_in_row(key_rows[own_q]) < max(KS)]
        self.either = _table(np.concatenate([np.flatnonzero(has_a & has_q), kept]), rows, n, self.size)
        self.documents_only = _table(np.flatnonzero(has_a & ~has_q), rows, n, self.size)

        true = sp.coo_array(truth)
        wanted = true.row.astype(np.int64) * n_labels + true.col
        at = np.minimum(np.searchsorted(pairs, wanted), max(0, self.size - 1))
        met = pairs[at] == wanted if self.size else np.zeros(len(wanted), dtype=bool)
        self.true_pair, self.true_row = at[met], true.row[met].astype(np.int64)
        sizes = np.bincount(true.row, minlength=n)
        weights = label_weights[true.col]
        ranked = np.lexsort((-weights, true.row))
        place = _rank_in_row(true.row[ranked])
        ideal: dict[int, FloatArray] = {k: _discounts(np.minimum(sizes, k)).astype(np.float64) for k in KS}
        gain = np.asarray(true.data, dtype=np.float64)
        if len(gain) and gain.min() < gain.max():  # as `evaluate` counts relevances
            order = np.lexsort((-gain, true.row))
            at = _rank_in_row(true.row[order])
            parts = gain[order] / np.log2(at + 2)
            ideal = {k: np.asarray(np.bincount(true.row[order], parts * (at < k), n), np.float64) for k in KS}
        else:
            gain = np.ones(len(gain))
        self.true_gain = np.ones((len(METRICS), len(self.true_pair)))
        self.best = np.zeros(len(METRICS))
        for i, name in enumerate(METRICS):
            metric, k = name.split("@")
            if metric == "P":
                self.best[i] = n * int(k)
            elif metric == "nDCG":
                self.best[i] = n
                self.true_gain[i] = gain[met] / ideal[int(k)][self.true_row]
            else:
                self.best[i] = weights[ranked][place < int(k)].sum()
                self.true_gain[i] = weights[met]

    def gains(self, way: Voting, weights: FloatArray) -> FloatArray:
        """What the documents add to each metric, (metrics, weights)."""
        label_weights, document_weights, label_mask, document_mask = weigh(self.nearest, way)
        label_weights, document_weights = label_weights * label_mask, document_weights * document_mask
        q, a = np.zeros(self.size + 1), np.zeros(self.size + 1)
        q[self.key_pair] = label_weights.ravel()[self.key_places]
        cast = document_weights.ravel()[self.entry_key] * self.values[way.votes]
        a[: self.size] = np.bincount(self.entry_pair, weights=cast, minlength=self.size)
        a, q = a * self.tilt, q * self.tilt
        only = a[self.documents_only]
        if only.shape[1] > max(KS):
            only = np.partition(only, only.shape[1] - max(KS), axis=1)[:, -max(KS) :]
        both = self.either
        rivals_a = np.concatenate([a[both], only], axis=1)[self.true_row]
        rivals_q = np.concatenate([q[both], np.zeros_like(only)], axis=1)[self.true_row]
        true_a, true_q = a[self.true_pair], q[self.true_pair]
        above = beaten(rivals_a - true_a[:, None], rivals_q - true_q[:, None], weights)
        scores = weights * true_a[:, None] + (1 - weights) * true_q[:, None]
        above[scores <= 0] = max(KS)  # no key voted for it
        sums = np.zeros((len(METRICS), len(weights)))
        discount = 1 / np.log2(np.arange(2, 3 + max(KS)))
        rank = np.minimum(above, max(KS))
        for i, name in enumerate(METRICS):
            metric, k = name.split("@")
            gain = np.where(np.arange(max(KS) + 1) < int(k), discount if metric == "nDCG" else 1.0, 0.0)
            sums[i] = self.true_gain[i] @ gain[rank]
        return sums


def beaten(a: FloatArray, q: FloatArray, weights: FloatArray) -> IntArray:
    """How many rivals score higher at each weight, (m, w): those with weight a + (1 - weight) q > 0.

    ``a`` and ``q`` (m, r) are how many more votes of documents and of label keys a rival has; ``weights`` (w,) rise.
    """
    m, w = len(a), len(weights)
    rows = np.broadcast_to((w + 1) * np.arange(m)[:, None], a.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        equal = q / (q - a)  # where both score the same
    always = (a > 0) & (q > 0)
    rising = (a > 0) & ~always
    falling = (q > 0) & ~always
    begin = rows[rising] + np.searchsorted(weights, equal[rising], side="right")
    end = rows[falling] + np.searchsorted(weights, equal[falling], side="left")
    size = m * (w + 1)
    change = (np.bincount(begin, minlength=size) - np.bincount(end, minlength=size)).reshape(m, w + 1)
    change[:, 0] += (always | falling).sum(axis=1)
    above = np.cumsum(change, axis=1)[:, :w]
    above[:, weights == 1] = (a > 0).sum(axis=1)[:, None]  # nearly equal votes cross at a weight that rounds to 1
    return above


def _rank_in_row(rows: IntArray) -> IntArray:
    """Place of each entry among those of its row; rows are sorted."""
    counts = np.bincount(rows)
    return np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def _table(pairs: IntArray, rows: IntArray, n: int, filler: int) -> IntArray:
    """Pairs as a table with one row a document, filled up."""
    owner = rows[pairs]
    order = np.argsort(owner, kind="stable")
    rank = _rank_in_row(owner[order])
    table = np.full((n, int(rank.max(initial=-1)) + 1), filler, dtype=np.int64)
    table[owner[order], rank] = pairs[order]
    return table


def _discounts(counts: IntArray) -> FloatArray:
    """Gain of that many hits in the first places; 1 for none, which nothing is divided by."""
    return np.append(1.0, np.cumsum(1 / np.log2(np.arange(2, 2 + max(KS)))))[counts]
