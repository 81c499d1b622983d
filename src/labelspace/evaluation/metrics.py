"""Ranking metrics of extreme classification, as functions of hits; NumPy and SciPy only.

Every metric that is a mean or a ratio over documents is a pair of arrays, :class:`Terms`: what each document
adds to the numerator and to the denominator. :func:`percent` makes one number of them and
:func:`paired_bootstrap` an interval, so no arithmetic exists twice.

Values are exactly equal after renumbering documents or labels: sums over ranks run from the first place on, and
sums over documents are correctly rounded whatever their order. Nothing of size documents x labels is allocated.

Letters: n documents, L labels, d predicted places per document (the depth), k places that a metric looks at.
Places beyond the depth, and places holding -1, are misses.

>>> truth = binary_truth([[1, 0, 1], [0, 1, 0]])
>>> found = hits(np.array([[2, 1], [0, 1]]), truth)
>>> found.tolist()
[[True, False], [False, True]]
>>> percent(precision(found, 2))
50.0
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import DataError, SettingsError

GROUPS = ("head", "torso", "tail", "unseen")
"""Names of the frequency groups, by the numbers that :func:`frequency_groups` gives."""

_BLOCK = 1 << 20  # predicted places looked at in one go: bounds temporary memory, changes no result

_WIKIPEDIA = re.compile(r"wiki[-_ ]?(pedia|titles|see[-_ ]?also|lshtc|hierarchy|(?!10(?!\d))\d)")
"""Names of Wikipedia's data sets. Wiki10-31K is none of them: published work counts it among all else."""

FloatArray = npt.NDArray[np.float64]
Gains = Literal["linear", "exponential", "binary"]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Terms(NamedTuple):
    """What each document adds to a metric; the metric is sum(numerators) / sum(denominators).

    Args:
        numerators: (n,) float64.
        denominators: (n,) float64; of the truth alone, so equal for all predictions of one truth.
    """

    numerators: FloatArray
    denominators: FloatArray


# --- truth and hits ---------------------------------------------------------------------------------------------


def shape(targets: Any) -> tuple[int, ...]:
    """Documents and labels of a truth, (n, L).

    Args:
        targets: SciPy sparse matrix or array, or a dense array.
    """
    return tuple(targets.shape) if sp.issparse(targets) else np.shape(targets)


def binary_truth(targets: Any) -> sp.csr_array:
    """The truth as sorted label lists: every stored value above 0 is relevant, weights and zeros are dropped.

    Args:
        targets: (n, L) SciPy sparse matrix or array of any format, or a dense array; it is not changed.

    Returns:
        (n, L) CSR of bool, label numbers of a row ascending and distinct.

    Raises:
        DataError: if the truth is not a two-dimensional array of numbers, or holds NaN.
    """
    if not sp.issparse(targets):
        targets = np.asarray(targets)
    if targets.ndim != 2 or targets.dtype.kind not in "buif":
        raise DataError(
            f"the truth must be an array of numbers of shape (documents, labels), "
            f"got shape {tuple(targets.shape)} of {targets.dtype}"
        )
    matrix = sp.csr_array(targets)
    n, n_labels = shape(matrix)
    if matrix.dtype.kind == "f" and np.isnan(matrix.data).any():
        raise DataError("the truth holds NaN; give 1 or a relevance above 0 for a true label")
    relevant = matrix.data > 0
    keys = np.repeat(np.arange(n, dtype=np.int64) * n_labels, np.diff(matrix.indptr)) + matrix.indices
    keys = keys[relevant]
    if (np.diff(keys) <= 0).any():  # unsorted label lists, or a pair stored twice
        keys = np.unique(keys)
    indptr = np.searchsorted(keys, np.arange(n + 1, dtype=np.int64) * n_labels)
    labels = keys - np.repeat(np.arange(n, dtype=np.int64) * n_labels, np.diff(indptr))
    return sp.csr_array((np.ones(len(keys), dtype=bool), labels, indptr), shape=(n, n_labels))


def checked_pairs(filter_pairs: npt.ArrayLike | None) -> IntArray:
    """Filter pairs as (m, 2) int64; nothing, in whatever shape, is (0, 2).

    Args:
        filter_pairs: (m, 2) whole numbers (document row, label number), or None.

    Raises:
        DataError: another shape, or numbers that are not whole.
    """
    pairs = np.asarray([] if filter_pairs is None else filter_pairs)
    if not pairs.size:
        return np.zeros((0, 2), dtype=np.int64)
    if pairs.shape == (2,):
        pairs = pairs[None]
    if np.issubdtype(pairs.dtype, np.floating) and (pairs == np.floor(pairs)).all():
        pairs = pairs.astype(np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise DataError(
            f"filter pairs must be whole numbers of shape (n, 2), document row and label number, "
            f"got shape {pairs.shape} of {pairs.dtype}"
        )
    return pairs.astype(np.int64, copy=False)


def barred_labels(filter_pairs: npt.ArrayLike | None, n: int, n_labels: int) -> sp.csr_array:
    """The labels that must not be predicted for each document: everything that honours filter pairs asks this.

    Args:
        filter_pairs: (m, 2) whole numbers (document row, label number), or None.
        n: documents.
        n_labels: labels.

    Returns:
        (n, n_labels) CSR of bool, as :func:`binary_truth` gives it.

    Raises:
        DataError: no pairs of whole numbers, or a pair outside the truth.

    >>> barred_labels([[0, 1], [2, 0]], 3, 2).toarray().tolist()
    [[False, True], [False, False], [True, False]]
    """
    pairs = checked_pairs(filter_pairs)
    outside = (pairs < 0) | (pairs >= (n, n_labels))
    if outside.any():
        row, label = pairs[outside.any(axis=1)][0].tolist()
        raise DataError(
            f"filter pair ({row}, {label}) lies outside the truth of {n} documents and {n_labels} labels; "
            "the filter file of another split?"
        )
    return binary_truth(sp.coo_array((np.ones(len(pairs), dtype=np.int64), tuple(pairs.T)), shape=(n, n_labels)))


def without_barred(indices: IntArray, barred: sp.csr_array) -> tuple[IntArray, int]:
    """Predictions without the labels that must not be predicted; later labels move up.

    Args:
        indices: (n, d) label numbers in the order of the ranking, -1 for none.
        barred: (n, L) as :func:`barred_labels` gives it.

    Returns:
        (n, d) label numbers, filled up with -1, and how many were deleted. Without a hit the array itself.
    """
    if not barred.nnz:
        return indices, 0
    drop = membership(indices, barred)
    rows = np.flatnonzero(drop.any(axis=1))
    if not len(rows):
        return indices, 0
    changed = np.where(drop[rows], -1, indices[rows])
    result = indices.copy()
    result[rows] = np.take_along_axis(changed, np.argsort(changed < 0, axis=1, kind="stable"), axis=1)
    return result, int(drop.sum())


def sizes(truth: sp.csr_array) -> IntArray:
    """Number of true labels of each document, (n,) int64.

    Args:
        truth: (n, L) as :func:`binary_truth` gives it.
    """
    return np.diff(truth.indptr).astype(np.int64)


def label_counts(targets: Any) -> IntArray:
    """Number of documents of each label, (L,) int64.

    Args:
        targets: (n, L) truth, as for :func:`binary_truth`.
    """
    truth = binary_truth(targets)
    return np.bincount(truth.indices, minlength=shape(truth)[1]).astype(np.int64)


def row_blocks(n: int, depth: int) -> Iterator[slice]:
    """Slices of rows that hold about ``_BLOCK`` places each.

    Args:
        n: number of rows.
        depth: places in a row.
    """
    step = max(1, _BLOCK // max(1, depth))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def check_indices(indices: npt.NDArray[Any], n_labels: int) -> None:
    """Refuse predictions that cannot be counted.

    Args:
        indices: (n, d) predicted label numbers; -1 is an empty place.
        n_labels: L.

    Raises:
        DataError: if the array is not two-dimensional and of whole numbers, if a number is below -1 or not below L,
            or if a document holds the same label twice (it would count twice).
    """
    if indices.ndim != 2 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
        raise DataError(
            f"predicted indices must be whole numbers of shape (documents, places), "
            f"got shape {indices.shape} of {indices.dtype}"
        )
    if not indices.size:
        return
    if indices.max() >= n_labels or indices.min() < -1:
        row, place = np.argwhere((indices >= n_labels) | (indices < -1))[0].tolist()
        raise DataError(
            f"document row {row} predicts label number {indices[row, place]}, but the truth has {n_labels} labels "
            f"(0 to {n_labels - 1}; -1 for an empty place)"
        )
    for rows in row_blocks(*indices.shape):
        ordered = np.sort(indices[rows], axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if twice.any():
            row, place = np.argwhere(twice)[0].tolist()
            raise DataError(
                f"document row {rows.start + row} predicts label number {ordered[row, place]} more than once; "
                "give each label of a document once"
            )


def membership(indices: npt.NDArray[Any], pairs: sp.csr_array) -> BoolArray:
    """Which predicted places hold one of the given (document, label) pairs; checks nothing.

    Args:
        indices: (n, d) label numbers from -1 to L - 1.
        pairs: (n, L) as :func:`binary_truth` gives it.

    Returns:
        (n, d) bool; False where ``indices`` is -1.
    """
    n, depth = indices.shape
    n_labels = shape(pairs)[1]
    inside = np.zeros((n, depth), dtype=bool)
    counts = sizes(pairs)
    for rows in row_blocks(n, depth):
        first, last = pairs.indptr[rows.start], pairs.indptr[rows.stop]
        if first == last or not depth:
            continue
        offsets = np.arange(rows.stop - rows.start, dtype=np.int64) * n_labels
        keys = np.repeat(offsets, counts[rows]) + pairs.indices[first:last]
        wanted = indices[rows] + offsets[:, None]
        place = np.searchsorted(keys, wanted)
        place[place == len(keys)] = 0
        # An empty place of row i reads as the last label of row i - 1, hence the second condition.
        inside[rows] = (keys[place] == wanted) & (indices[rows] >= 0)
    return inside


def hits(indices: npt.NDArray[Any], targets: Any) -> BoolArray:
    """Which predicted places hold a true label.

    Args:
        indices: (n, d) whole numbers, best first; -1 is an empty place, and a miss.
        targets: (n, L) truth, as for :func:`binary_truth`.

    Returns:
        (n, d) bool.

    Raises:
        DataError: if the numbers of documents differ, or as in :func:`check_indices`.

    >>> hits(np.array([[0, 1, -1], [1, -1, -1]]), [[0, 1], [1, 0]]).tolist()
    [[False, True, False], [False, False, False]]
    """
    truth = binary_truth(targets)
    indices = np.asarray(indices)
    n, n_labels = shape(truth)
    check_indices(indices, n_labels)
    if len(indices) != n:
        raise DataError(f"predictions are for {len(indices)} documents but the truth has {n} rows")
    return membership(indices.astype(np.int64, copy=False), truth)


# --- metrics ----------------------------------------------------------------------------------------------------


def percent(terms: Terms) -> float:
    """The metric in percent: 100 times sum of numerators over sum of denominators; 0 if the latter is 0.

    The sums are correctly rounded, so the order of the documents has no influence on any bit.

    Args:
        terms: what each document adds.
    """
    whole = math.fsum(terms.denominators.tolist())
    return 100.0 * (math.fsum(terms.numerators.tolist()) / whole) if whole > 0 else 0.0


def _discounts(k: int) -> list[float]:
    """1 / log2(rank + 1) of ranks 1 to k."""
    return [1.0 / math.log2(rank + 1) for rank in range(1, k + 1)]


def _ideal_gain(counts: IntArray, k: int) -> FloatArray:
    """I(k): the largest sum of discounts that a document with so many true labels can reach."""
    return np.cumsum([0.0, *_discounts(k)])[np.minimum(counts, k)]


def _sum_places(values: npt.NDArray[Any], factors: list[float]) -> FloatArray:
    """Sum over places of value times factor, added from the first place on for every document alike."""
    total = np.zeros(len(values))
    for place, factor in zip(range(values.shape[1]), factors, strict=False):
        total += factor * values[:, place]
    return total


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Elementwise quotient, 0 where ``below`` is 0."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def precision(found: BoolArray, k: int) -> Terms:
    """P@k: hits among the first k places, divided by k.

    Args:
        found: (n, d) from :func:`hits`.
        k: places that count; those beyond d are misses.
    """
    return Terms(found[:, :k].sum(axis=1, dtype=np.float64), np.full(len(found), float(k)))


def recall(found: BoolArray, counts: IntArray, k: int) -> Terms:
    """R@k: hits among the first k places, divided by the number of true labels; 0 for a document without any.

    Args:
        found: (n, d) from :func:`hits`.
        counts: (n,) true labels of each document, from :func:`sizes`.
        k: places that count.
    """
    return Terms(_ratio(found[:, :k].sum(axis=1, dtype=np.float64), counts.astype(np.float64)), np.ones(len(found)))


def ndcg(found: BoolArray, counts: IntArray, k: int, graded: tuple[FloatArray, FloatArray] | None = None) -> Terms:
    """nDCG@k: sum of 1/log2(rank + 1) over hits, divided by the largest such sum that the document allows.

    Args:
        found: (n, d) from :func:`hits`.
        counts: (n,) true labels of each document, from :func:`sizes`.
        k: places that count.
        graded: where gains are not all alike, (n, at least k) those of the hits and (n, at least k) the largest of each
            document, descending; the discounts are multiplied by them (Järvelin and Kekäläinen, 2002).
    """
    if graded is not None:
        gained, best = graded
        return Terms(_ratio(_sum_places(gained, _discounts(k)), _sum_places(best, _discounts(k))), np.ones(len(found)))
    return Terms(_ratio(_sum_places(found, _discounts(k)), _ideal_gain(counts, k)), np.ones(len(found)))


def reciprocal_rank(found: BoolArray, k: int) -> Terms:
    """MRR@k: 1 / rank of the first hit among the first k places, 0 without one.

    Args:
        found: (n, d) from :func:`hits`.
        k: places that count.
    """
    near = found[:, :k]
    rank = near.argmax(axis=1) + 1.0 if near.shape[1] else np.ones(len(found))
    return Terms(np.where(near.any(axis=1), 1 / rank, 0.0), np.ones(len(found)))


def label_gains(targets: Any, truth: sp.csr_array, gains: Gains) -> sp.csr_array | None:
    """The gain of each true label of each document, (n, L) CSR of float64 with the places of ``truth``.

    Args:
        targets: (n, L) relevances, as for :func:`binary_truth`.
        truth: what that makes of them.
        gains: ``linear``, a relevance r itself, as trec_eval has it; ``exponential``, 2^r - 1; ``binary``, 1.

    Returns:
        None where all gains are 1, or any other one number, which makes no difference.
    """
    matrix = sp.csr_array(targets if sp.issparse(targets) else np.asarray(targets))
    right = matrix.data > 0
    if gains == "binary" or not right.any() or matrix.data[right].min() == matrix.data[right].max():
        return None
    values = np.zeros(truth.nnz)
    places = np.searchsorted(_flat(truth), _flat(matrix)[right])
    np.maximum.at(values, places, matrix.data[right].astype(np.float64))  # of a pair stored twice the better one
    values = np.exp2(values) - 1 if gains == "exponential" else values
    return sp.csr_array((values, truth.indices, truth.indptr), shape=truth.shape)


def hit_gains(
    indices: npt.NDArray[Any], found: BoolArray, gains: sp.csr_array, k: int
) -> tuple[FloatArray, FloatArray]:
    """Gains of the first k predicted labels, 0 for a miss, and the k largest of each document; both (n, k) float64.

    Args:
        indices: (n, d) predicted label numbers.
        found: (n, d) from :func:`hits`.
        gains: (n, L) from :func:`label_gains`.
        k: places.
    """
    rows, places = np.nonzero(found[:, :k])
    gained = np.zeros((len(found), k))
    wanted = rows.astype(np.int64) * gains.shape[1] + indices[rows, places]
    gained[rows, places] = gains.data[np.searchsorted(_flat(gains), wanted)]
    return gained, _largest(gains, gains.data, k)


def _flat(matrix: sp.csr_array) -> IntArray:
    """row * L + label of each entry."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows * matrix.shape[1] + matrix.indices


def hit_weights(indices: npt.NDArray[Any], found: BoolArray, weights: FloatArray) -> FloatArray:
    """Weight of the label at each place if it is a hit, else 0; (n, d) float64.

    Args:
        indices: (n, d) predicted label numbers.
        found: (n, d) from :func:`hits`.
        weights: (L,) weights of the labels, from :func:`propensity_weights`.
    """
    gained = np.zeros(found.shape)
    gained[found] = weights[indices[found]]
    return gained


def best_weights(truth: sp.csr_array, weights: FloatArray, k: int) -> FloatArray:
    """The k largest weights among each document's true labels, descending, filled up with 0; (n, k) float64.

    Args:
        truth: (n, L) as :func:`binary_truth` gives it.
        weights: (L,) weights of the labels.
        k: places.
    """
    return _largest(truth, weights[truth.indices], k)


def _largest(truth: sp.csr_array, own: FloatArray, k: int) -> FloatArray:
    """The k largest of the values ``own`` of each document's true labels, descending, filled up with 0."""
    counts = sizes(truth)
    rows = np.repeat(np.arange(len(counts)), counts)
    own = own[np.lexsort((-own, rows))]
    place = np.arange(len(own)) - np.repeat(truth.indptr[:-1], counts)
    best = np.zeros((len(counts), k))
    best[rows[place < k], place[place < k]] = own[place < k]
    return best


def psp(gained: FloatArray, best: FloatArray, k: int) -> Terms:
    """PSP@k, propensity-scored precision: weights of the hits over the best attainable (Jain et al., KDD 2016).

    The value is a ratio of sums over documents, never above 100, and 100 for a perfect prediction.

    Args:
        gained: (n, d) from :func:`hit_weights`.
        best: (n, at least k) from :func:`best_weights`.
        k: places that count.
    """
    ones = [1.0] * k
    # Hits are added from the heaviest on, like the best: equal sets of weights then give bit-equal sums.
    heaviest_first = -np.sort(-gained[:, :k], axis=1)
    return Terms(_sum_places(heaviest_first, ones), _sum_places(best, ones))


def psndcg(gained: FloatArray, best: FloatArray, counts: IntArray, k: int) -> Terms:
    """PSnDCG@k: weights of the hits, discounted by 1/log2(rank + 1), over those of the best order; a ratio of sums.

    Both are divided by the document's ideal unweighted gain first, as Jain et al. (KDD 2016) do.

    Args:
        gained: (n, d) from :func:`hit_weights`.
        best: (n, at least k) from :func:`best_weights`.
        counts: (n,) true labels of each document, from :func:`sizes`.
        k: places that count.
    """
    discounts, ideal = _discounts(k), _ideal_gain(counts, k)
    return Terms(_ratio(_sum_places(gained, discounts), ideal), _ratio(_sum_places(best, discounts), ideal))


def coverage(indices: npt.NDArray[Any], found: BoolArray, truth: sp.csr_array, k: int) -> float:
    """Coverage@k in percent: labels hit at least once among the first k places, over labels with a true document.

    Args:
        indices: (n, d) predicted label numbers.
        found: (n, d) from :func:`hits`.
        truth: (n, L) as :func:`binary_truth` gives it.
        k: places that count.
    """
    possible = len(np.unique(truth.indices))
    reached = len(np.unique(indices[:, :k][found[:, :k]]))
    return 100.0 * (reached / possible) if possible else 0.0


# --- propensities and groups ------------------------------------------------------------------------------------


def propensity_constants(name: str | None = None) -> tuple[float, float]:
    """The constants (a, b) of the propensity model that the field uses for a data set (Jain et al., KDD 2016).

    Published work on LF-WikiSeeAlso-320K uses two different pairs; here it counts as Wikipedia.

    Args:
        name: the data set's name, in any case, or None when it has none.

    Returns:
        (0.5, 0.4) for Wikipedia's data sets (Wikipedia, WikiTitles, WikiSeeAlso, WikiLSHTC, WikiHierarchy, and those
        named by a size, such as Wiki-500K), (0.6, 2.6) for Amazon's, (0.55, 1.5) for all else, Wiki10-31K included.
        Whoever reports a figure states the pair.

    >>> propensity_constants("LF-AmazonTitles-131K"), propensity_constants("Wiki-500K")
    ((0.6, 2.6), (0.5, 0.4))
    """
    lower = (name or "").lower()
    if _WIKIPEDIA.search(lower):
        return 0.5, 0.4
    return (0.6, 2.6) if "amazon" in lower else (0.55, 1.5)


def propensity_weights(train_targets: Any, a: float = 0.55, b: float = 1.5) -> FloatArray:
    """Inverse propensities 1 + (ln N - 1) (b + 1)^a (n_l + b)^-a of all labels (Jain et al., KDD 2016).

    N and n_l, the documents of label l, are those of the training truth as shipped, never of the test truth.

    Args:
        train_targets: (N, L) training truth, as for :func:`binary_truth`.
        a: exponent of the model.
        b: offset of the model, in documents.

    Returns:
        (L,) float64.

    Raises:
        SettingsError: if the weights are not finite and positive: a or b is out of range, or N is 0 or 1.
    """
    return weights_of_counts(label_counts(train_targets), shape(train_targets)[0], a, b)


def weights_of_counts(counts: IntArray, n: int, a: float, b: float) -> FloatArray:
    """`propensity_weights` from the number of documents of each label.

    Args:
        counts: (L,) training documents of each label.
        n: training documents.
        a: exponent of the model.
        b: offset of the model, in documents.

    Returns:
        (L,) float64.

    Raises:
        SettingsError: if the weights are not finite and positive.
    """
    # Once per distinct count, so that a label's weight cannot depend on its number.
    values, inverse = np.unique(counts, return_inverse=True)
    with np.errstate(all="ignore"):
        scale = (np.log(n) - 1.0) * np.power(b + 1.0, a)
        weights = 1.0 + scale * np.power(values + b, -a)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise SettingsError(
            f"propensity constants a = {a}, b = {b} give weights that are not finite and positive for {n} training "
            "documents; use other constants or give the weights themselves"
        )
    return weights[inverse]


def frequency_groups(train_targets: Any) -> npt.NDArray[np.int8]:
    """Head, torso or tail: thirds of the training pairs, most frequent labels first; unseen labels apart.

    Labels with equal counts stay together, in the third that holds the middle of their pairs, so the thirds are as
    equal as whole counts allow; with few distinct counts a group may be empty.

    Args:
        train_targets: (N, L) training truth, as for :func:`binary_truth`.

    Returns:
        (L,) int8: 0 head, 1 torso, 2 tail, 3 never seen, see ``GROUPS``.

    >>> frequency_groups([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]]).tolist()
    [0, 1, 2, 2, 3]
    """
    values, inverse, labels = np.unique(label_counts(train_targets), return_inverse=True, return_counts=True)
    pairs = values * labels
    up_to = pairs[::-1].cumsum()[::-1]  # pairs of the labels at least as frequent
    middle = 2 * up_to - pairs  # twice the middle of the labels of this count
    total = int(pairs.sum())
    group = np.where(3 * middle < 2 * total, 0, np.where(3 * middle < 4 * total, 1, 2))
    group[values == 0] = 3
    return group[inverse].astype(np.int8)


# --- bootstrap --------------------------------------------------------------------------------------------------


def paired_bootstrap(
    numerators_a: FloatArray, numerators_b: FloatArray, denominators: FloatArray, draws: int = 2000, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """95% intervals of the differences, b minus a, between two predictions of the same documents.

    Documents are drawn with replacement, the same draws for both predictions and for all metrics; numerators and
    denominators are redrawn together. Memory grows with n x m only. It covers the choice of test documents, not
    the training seed.

    Args:
        numerators_a: (n, m) numerators of m metrics, see :class:`Terms`, for the first predictions.
        numerators_b: (n, m) the same for the second.
        denominators: (n, m) the denominators, which both share because they share the truth.
        draws: number of draws.
        seed: seed of the draws; draw i takes ``integers(n, size=n)`` as the i-th call of a NumPy generator.

    Returns:
        (m,) 2.5 and (m,) 97.5 percentiles of the difference, in percent. A draw whose denominators are all 0 gives 0.

    Raises:
        ValueError: if the shapes differ or there is no document or no draw.
    """
    shape = np.shape(numerators_a)
    if len(shape) != 2 or not shape == np.shape(numerators_b) == np.shape(denominators) or not shape[0] or draws < 1:
        raise ValueError(
            f"the bootstrap needs three arrays of one shape (documents, metrics) and at least one document and draw, "
            f"got {shape}, {np.shape(numerators_b)}, {np.shape(denominators)} and {draws} draws"
        )
    n, m = shape
    terms = np.concatenate([np.asarray(numerators_b) - numerators_a, denominators], axis=1, dtype=np.float64)
    generator = np.random.default_rng(seed)
    differences = np.zeros((draws, m))
    for draw in range(draws):
        times = np.bincount(generator.integers(n, size=n), minlength=n).astype(np.float64)
        sums = times @ terms
        differences[draw] = 100.0 * _ratio(sums[:m], sums[m:])
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    return low, high
