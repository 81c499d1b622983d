"""Predictions and truth -> metrics, a report, or the comparison of two predictions; no torch.

The order of work is always the same: check the predictions, order them (score descending, then label number,
empty places last), delete the filter pairs so that later labels move up, drop documents without a true label if
asked to, and count hits.

>>> from labelspace.types import Predictions
>>> pred = Predictions(indices=np.array([[2, 1], [0, 1]]), scores=np.array([[0.9, 0.1], [0.8, 0.7]]))
>>> {metric: round(value, 2) for metric, value in evaluate(pred, [[1, 0, 1], [0, 1, 0]], ks=(1, 2)).items()}
{'P@1': 50.0, 'P@2': 50.0, 'nDCG@1': 50.0, 'nDCG@2': 62.2}
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import DataError, SettingsError
from . import calibration as calibrate
from . import metrics
from .metrics import Gains

Propensity = tuple[float, float] | npt.NDArray[np.floating[Any]] | None


class Ranked(Protocol):
    """Anything with predicted label numbers and their scores, such as ``Predictions``."""

    @property
    def indices(self) -> Any:
        """(n, d) label numbers; -1 for an empty place."""

    @property
    def scores(self) -> Any:
        """(n, d) scores, the higher the better."""


@dataclass(frozen=True, eq=False)
class Report:
    """An evaluation with everything needed to read its figures; ``as_dict`` fits JSON.

    Args:
        name: the data set's name, if given.
        metrics: percent by metric, as ``evaluate`` returns them.
        groups: per frequency group of labels (head, torso, tail, unseen): ``labels``; ``train_pairs``;
            ``positives``, the true pairs; for each k ``P@k share``, the percent that its hits add to P@k (the groups'
            shares add up to P@k), and ``recall@k``, its hits in percent of its positives. Empty without train truth.
        counts: ``documents`` (that the means run over), ``without_label`` (documents of the truth without a label),
            ``labels``, ``positives``, ``depth`` (predicted places per document), ``filtered`` (predictions deleted by
            the filter), ``short`` (documents with fewer labels left than the largest of ``ks`` asks for).
        propensity: ``a``, ``b`` and ``source`` of the label weights (a and b None if the weights were given), or None
            when there are no propensity-scored metrics.
        filter: the file of the pairs, "given pairs" if no file was named, or "none".
        skip_empty: whether documents without a true label were left out.
        calibration: for predictions with probabilities, over the first ``top`` places of each document that the filter
            left: ``pairs``; ``ece``, the expected calibration error from 0 to 1; ``bins`` of equal mass, see
            `calibrate.reliability`; ``groups``, per frequency group ``pairs``, ``predicted``, ``observed`` and ``ece``;
            and ``threshold``, see `calibrate.at_thresholds`, over all places, or None when none was asked for. None
            without probabilities.
        gains: what nDCG counts relevances as; ``binary`` where they do not differ.
    """

    name: str | None
    metrics: dict[str, float]
    groups: dict[str, dict[str, float]]
    counts: dict[str, int]
    propensity: dict[str, float | str | None] | None
    filter: str
    skip_empty: bool
    calibration: dict[str, Any] | None = None
    gains: Gains = "binary"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain dicts, strings and numbers."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class _Scored:
    """Predictions met with the truth: what all metrics are computed from."""

    indices: npt.NDArray[np.int64]  # (n, d) ordered, filtered
    found: npt.NDArray[np.bool_]  # (n, d)
    truth: sp.csr_array  # (n, L)
    sizes: npt.NDArray[np.int64]  # (n,)
    gained: npt.NDArray[np.float64] | None  # (n, at most the largest k that is weighted)
    best: npt.NDArray[np.float64] | None
    graded: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None  # gains of hits, and the largest
    empty: int  # documents without a true label, before any was left out
    filtered: int
    probabilities: npt.NDArray[np.floating[Any]] | None  # (n, d), 0 at empty places

    def terms(self, metric: str, k: int) -> metrics.Terms:
        """What each document adds to a metric."""
        if metric == "P":
            return metrics.precision(self.found, k)
        if metric == "nDCG":
            return metrics.ndcg(self.found, self.sizes, k, self.graded)
        if metric == "R":
            return metrics.recall(self.found, self.sizes, k)
        if metric == "MRR":
            return metrics.reciprocal_rank(self.found, k)
        assert self.gained is not None and self.best is not None
        if metric == "PSP":
            return metrics.psp(self.gained, self.best, k)
        assert metric == "PSnDCG"
        return metrics.psndcg(self.gained, self.best, self.sizes, k)

    def value(self, metric: str, k: int) -> float:
        """A metric in percent."""
        if metric == "coverage":
            return metrics.coverage(self.indices, self.found, self.truth, k)
        return metrics.percent(self.terms(metric, k))


def longest_filter_row(filter_pairs: npt.ArrayLike | None) -> int:
    """How many labels the filter can take from one document at most: predict this many more than are needed.

    Args:
        filter_pairs: (n, 2) whole numbers (document row, label number), or None.

    >>> longest_filter_row([[0, 5], [3, 1], [3, 2]])
    2
    """
    pairs = metrics.checked_pairs(filter_pairs)
    if not len(pairs):
        return 0
    return int(np.unique(np.unique(pairs, axis=0)[:, 0], return_counts=True)[1].max())


def _ordered(indices: npt.NDArray[np.int64], scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """Label numbers by score descending, then label number, empty places last; only unordered rows are sorted."""
    result = indices
    for rows in metrics.row_blocks(*indices.shape):
        label, score = indices[rows], scores[rows]
        empty = label < 0
        if np.isnan(score).any() and np.isnan(score[~empty]).any():
            row = rows.start + int(np.flatnonzero((np.isnan(score) & ~empty).any(axis=1))[0])
            raise DataError(f"document row {row} has a score that is not a number (NaN); scores must be comparable")
        falls = (score[:, :-1] > score[:, 1:]) | ((score[:, :-1] == score[:, 1:]) & (label[:, :-1] < label[:, 1:]))
        right = empty[:, 1:] | (~empty[:, :-1] & falls)
        wrong = np.flatnonzero(~right.all(axis=1))
        if len(wrong):
            order = np.lexsort((label[wrong], -score[wrong], empty[wrong]), axis=1)
            if result is indices:
                result = indices.copy()
            result[rows.start + wrong] = np.take_along_axis(label[wrong], order, axis=1)
    return result


def _moved(
    values: npt.NDArray[np.floating[Any]], before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]
) -> npt.NDArray[np.floating[Any]]:
    """Values of the places that labels had before, at the places that they have after; 0 at empty places."""
    if before is after:
        return np.where(after >= 0, values, 0)
    result = np.zeros_like(values)
    for rows in metrics.row_blocks(*before.shape):
        wide = np.int64(1 + max(before[rows].max(initial=0), 0))
        offsets = np.arange(len(before[rows]), dtype=np.int64)[:, None] * wide
        filled = before[rows] >= 0
        keys = (before[rows] + offsets)[filled]
        order = np.argsort(keys)
        left = after[rows] >= 0
        place = order[np.searchsorted(keys, (after[rows] + offsets)[left], sorter=order)]
        result[rows][left] = values[rows][filled][place]
    return result


def _label_weights(
    n_labels: int, train_targets: Any, propensity: Propensity, name: str | None
) -> tuple[npt.NDArray[np.float64] | None, dict[str, float | str | None] | None]:
    """Weights of the labels and where they come from; None and None without propensity-scored metrics."""
    if isinstance(propensity, np.ndarray):
        weights = propensity.astype(np.float64)
        if weights.shape != (n_labels,):
            raise DataError(f"propensity weights must have shape ({n_labels},), one per label, got {weights.shape}")
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise DataError("propensity weights must be finite and not negative")
        return weights, {"a": None, "b": None, "source": "given weights"}
    if propensity is None:
        (a, b), source = metrics.propensity_constants(name), "default" if name is None else f"data set name {name}"
    else:
        try:
            a, b = (float(value) for value in propensity)
        except (TypeError, ValueError):
            raise SettingsError(
                f"propensity must be two constants (a, b) or a NumPy array of one weight per label, got {propensity!r}"
            ) from None
        source = "given constants"
    if train_targets is None:
        if propensity is not None:
            raise SettingsError("propensity constants need train_targets, whose label counts they turn into weights")
        return None, None
    return metrics.propensity_weights(train_targets, a, b), {"a": a, "b": b, "source": source}


def _checked_ks(ks: Iterable[int]) -> list[int]:
    """Distinct values of k in the given order."""
    try:
        checked = list(dict.fromkeys(operator.index(k) for k in ks))
    except TypeError:
        raise SettingsError(f"ks must be whole numbers such as (1, 3, 5), got {ks!r}") from None
    if not checked or min(checked) < 1:
        raise SettingsError(f"ks must be one or more whole numbers from 1 on, got {ks!r}")
    return checked


def _plan(ks: Sequence[int], *scored: _Scored) -> list[tuple[str, int]]:
    """The metrics to report, in order, as (metric, k); recall and MRR as deep as all predictions go, or labels."""
    depth = min(one.indices.shape[1] for one in scored)
    weighted = scored[0].gained is not None
    plan = [(metric, k) for metric in ("P", "nDCG", *["PSP"] * weighted) for k in ks]
    if 5 in ks or depth >= 5:
        plan += [("PSnDCG", 5)] * weighted + [("coverage", 5)]
    deep = [k for k in (10, 100) if depth >= min(k, scored[0].truth.shape[1])]
    return plan + [("R", k) for k in deep] + [("MRR", k) for k in deep if k == 10]


def _score(
    pred: Ranked,
    targets: Any,
    train_targets: Any,
    filter_pairs: npt.ArrayLike | None,
    weights: npt.NDArray[np.float64] | None,
    deepest: int,
    skip_empty: bool,
    gains: metrics.Gains,
) -> _Scored:
    """Order, filter and count; weights reach down to place ``deepest``."""
    truth = metrics.binary_truth(targets)
    try:
        indices, scores = np.asarray(pred.indices), np.asarray(pred.scores)
    except AttributeError:
        raise DataError(
            f"predictions need indices and scores, as Predictions has them, got {type(pred).__name__}"
        ) from None
    n, n_labels = metrics.shape(truth)
    metrics.check_indices(indices, n_labels)
    if scores.shape != indices.shape:
        raise DataError(f"predictions have indices of shape {indices.shape} but scores of shape {scores.shape}")
    if len(indices) != n:
        raise DataError(f"predictions are for {len(indices)} documents but the truth has {n} rows")
    if train_targets is not None and metrics.shape(train_targets)[1:] != (n_labels,):
        raise DataError(
            f"the truth has {n_labels} labels but the train truth has shape {metrics.shape(train_targets)}; "
            "both need the same label columns"
        )
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    unordered = indices.astype(np.int64, copy=False)
    indices = _ordered(unordered, scores)
    indices, filtered = metrics.without_barred(indices, metrics.barred_labels(filter_pairs, n, n_labels))
    probabilities = getattr(pred, "probabilities", None)
    if probabilities is not None:
        probabilities = _moved(np.asarray(probabilities), unordered, indices)
    label_gains = metrics.label_gains(targets, truth, gains)
    sizes = metrics.sizes(truth)
    empty = int((sizes == 0).sum())
    if skip_empty:
        kept = np.flatnonzero(sizes)
        truth, indices, sizes = sp.csr_array(truth[kept]), indices[kept], sizes[kept]
        probabilities = None if probabilities is None else probabilities[kept]
        label_gains = None if label_gains is None else sp.csr_array(label_gains[kept])
    if not len(indices):
        raise DataError("there is nothing to evaluate: no document" + " has a true label" * (skip_empty and empty > 0))
    found = metrics.membership(indices, truth)
    gained = best = None
    if weights is not None:
        gained = metrics.hit_weights(indices[:, :deepest], found[:, :deepest], weights)
        best = metrics.best_weights(truth, weights, deepest)
    graded = None if label_gains is None else metrics.hit_gains(indices, found, label_gains, deepest)
    return _Scored(indices, found, truth, sizes, gained, best, graded, empty, filtered, probabilities)


def evaluate(
    pred: Ranked,
    targets: Any,
    train_targets: Any = None,
    ks: Sequence[int] = (1, 3, 5),
    filter_pairs: npt.ArrayLike | None = None,
    propensity: Propensity = None,
    skip_empty: bool = False,
    name: str | None = None,
    gains: metrics.Gains = "linear",
) -> dict[str, float]:
    """All metrics of a prediction, in percent.

    Predictions count in the order of score descending, then label number, whatever their order in the array;
    places holding -1 come last and are misses. A k beyond the predicted places is reported too: the missing places
    are misses, so such a P@k is a lower bound. Filter pairs are deleted from the predictions, later labels move up
    (see ``longest_filter_row``), and the truth keeps them. Values are exactly equal after renumbering documents or
    labels, as long as no two scores of a document are equal.

    Args:
        pred: ``Predictions``, or anything with ``indices`` (n, d) whole numbers and ``scores`` (n, d).
        targets: (n, L) truth, any SciPy sparse format or a dense array; any value above 0 is a true label.
        train_targets: (N, L) training truth as shipped, for the propensity-scored metrics; None leaves them out.
        ks: the numbers of places for P, nDCG and PSP.
        filter_pairs: (m, 2) whole numbers (document row, label number) that do not count as predicted, or None.
        propensity: None for the constants that go with ``name``; the constants (a, b), as in
            ``metrics.propensity_weights``; or an (L,) NumPy array of inverse propensities, which needs no train truth.
        skip_empty: leave documents without a true label out of the means; otherwise they count 0.
        name: the data set's name, which chooses the propensity constants, see ``metrics.propensity_constants``.
        gains: of nDCG where relevances differ: ``linear``, the relevance itself, as trec_eval has it; ``exponential``,
            2 to its power, less 1; ``binary``, 1 for any. All other metrics take every relevance above 0 for 1.

    Returns:
        In this order: P@k, nDCG@k, PSP@k (with propensities) for each k; PSnDCG@5 (with propensities) and coverage@5
        if 5 is in ``ks`` or there are 5 predicted places; R@10, R@100 and MRR@10 if there are so many predicted places.

    Raises:
        DataError: if shapes do not fit, a label number or filter pair is out of range, a document predicts a label
            twice, a score is NaN, or no document is left.
        SettingsError: if ``ks`` or ``propensity`` make no sense.
    """
    ks = _checked_ks(ks)
    scored = _evaluated(pred, targets, train_targets, ks, filter_pairs, propensity, skip_empty, name, gains)[0]
    return _values(scored, ks)


def _evaluated(
    pred: Ranked,
    targets: Any,
    train_targets: Any,
    ks: Sequence[int],
    filter_pairs: npt.ArrayLike | None,
    propensity: Propensity,
    skip_empty: bool,
    name: str | None,
    gains: metrics.Gains = "linear",
) -> tuple[_Scored, dict[str, float | str | None] | None]:
    """What ``evaluate``, ``report`` and ``compare`` have in common: the counted hits, and the propensities used."""
    shape = metrics.shape(targets)
    weights, source = _label_weights(shape[1] if len(shape) == 2 else 0, train_targets, propensity, name)
    return _score(pred, targets, train_targets, filter_pairs, weights, max(5, *ks), skip_empty, gains), source


def _values(scored: _Scored, ks: Sequence[int]) -> dict[str, float]:
    return {f"{metric}@{k}": scored.value(metric, k) for metric, k in _plan(ks, scored)}


def report(
    pred: Ranked,
    targets: Any,
    train_targets: Any = None,
    ks: Sequence[int] = (1, 3, 5),
    filter_pairs: npt.ArrayLike | None = None,
    propensity: Propensity = None,
    skip_empty: bool = False,
    name: str | None = None,
    filter_source: str | Path | None = None,
    threshold: float | None = None,
    gains: metrics.Gains = "linear",
) -> Report:
    """The metrics of ``evaluate`` with frequency groups, counts, propensity constants and the filter used.

    All arguments are those of ``evaluate``, where ``train_targets`` decide the frequency groups too, but for
    ``filter_source``, the file of the pairs, which the report names, and ``threshold``, a probability: it tells what is
    predicted when only labels that reach it count.

    Raises:
        DataError: as in ``evaluate``.
        SettingsError: as in ``evaluate``, or if the threshold is no probability, or there are none to compare it with.
    """
    ks = _checked_ks(ks)
    if threshold is not None and getattr(pred, "probabilities", None) is None:
        raise SettingsError("a threshold needs predictions with probabilities, from a calibrated model")
    if threshold is not None and not 0 <= threshold <= 1:
        raise SettingsError(f"the threshold must be a probability from 0 to 1, got {threshold}")
    scored, source = _evaluated(pred, targets, train_targets, ks, filter_pairs, propensity, skip_empty, name, gains)
    groups: dict[str, dict[str, float]] = {}
    if train_targets is not None:
        counts, group_of = metrics.label_counts(train_targets), metrics.frequency_groups(train_targets)
        groups = _by_group(scored, counts, group_of, metrics.GROUPS, ks)
    filter_name = "given pairs" if filter_source is None else str(filter_source)
    return Report(
        name=name,
        metrics=_values(scored, ks),
        groups=groups,
        counts={
            "documents": len(scored.indices),
            "without_label": scored.empty,
            "labels": metrics.shape(scored.truth)[1],
            "positives": int(scored.truth.nnz),
            "depth": scored.indices.shape[1],
            "filtered": scored.filtered,
            "short": int(((scored.indices >= 0).sum(axis=1) < max(ks)).sum()),
        },
        propensity=source,
        filter="none" if filter_pairs is None else filter_name,
        skip_empty=skip_empty,
        calibration=_calibration(scored, train_targets, threshold),
        gains="binary" if scored.graded is None else gains,
    )


def _calibration(scored: _Scored, train_targets: Any, threshold: float | None) -> dict[str, Any] | None:
    """The ``calibration`` of a report."""
    if scored.probabilities is None:
        return None
    labels = scored.indices[:, : calibrate.TOP]
    filled = labels >= 0
    predicted, hits = scored.probabilities[:, : calibrate.TOP][filled], scored.found[:, : calibrate.TOP][filled]
    groups = {}
    if train_targets is not None:
        group_of = metrics.frequency_groups(train_targets)[labels[filled]]
        for number, group in enumerate(metrics.GROUPS):
            own = group_of == number
            if own.any():
                groups[group] = {
                    "pairs": int(own.sum()),
                    "predicted": float(predicted[own].mean()),
                    "observed": float(hits[own].mean()),
                    "ece": calibrate.calibration_error(predicted[own], hits[own]),
                }
    row = None
    if threshold is not None:
        row = calibrate.at_thresholds(scored.probabilities, scored.found, int(scored.truth.nnz), (threshold,))[0]
    return {
        "top": calibrate.TOP,
        "pairs": len(predicted),
        "ece": calibrate.calibration_error(predicted, hits),
        "bins": calibrate.reliability(predicted, hits),
        "groups": groups,
        "threshold": row,
    }


def _by_group(
    scored: _Scored, counts: npt.NDArray[np.int64], group_of: npt.NDArray[Any], names: Sequence[str], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """The ``groups`` of a report, from the (L,) training documents and group numbers of the labels."""
    n, depth = scored.indices.shape
    positives = np.bincount(group_of[scored.truth.indices], minlength=len(names)).tolist()
    result: dict[str, dict[str, float]] = {}
    for number, group in enumerate(names):
        own = group_of == number
        pairs = int(counts[own].sum())
        result[group] = {"labels": int(own.sum()), "train_pairs": pairs, "positives": positives[number]}
    for k in [*ks, *(k for k in (10, 100) if depth >= k and k not in ks)]:
        reached = scored.indices[:, :k][scored.found[:, :k]]
        hits = np.bincount(group_of[reached], minlength=len(names)).tolist()
        for number, group in enumerate(names):
            if k in ks:
                result[group][f"P@{k} share"] = 100.0 * (hits[number] / (k * n))
            result[group][f"recall@{k}"] = 100.0 * (hits[number] / positives[number]) if positives[number] else 0.0
    return result


def by_frequency(
    pred: Ranked,
    targets: Any,
    train_targets: Any,
    edges: Sequence[int] = (1, 6, 31),
    ks: Sequence[int] = (1, 3, 5),
    filter_pairs: npt.ArrayLike | None = None,
) -> dict[str, dict[str, float]]:
    """The ``groups`` of a report for labels with so many training documents, instead of thirds of the pairs.

    All arguments but ``edges`` are those of ``evaluate``. Edges are rising whole numbers from 1 on, the least training
    documents of each group but the first, which has the labels with fewer.

    Returns:
        For each group, named "unseen", "1-5", "6-30" and "31+" with the edges as they are, what `Report.groups` holds.

    Raises:
        DataError: as in ``evaluate``.
        SettingsError: as in ``evaluate``, or edges that do not rise.

    >>> from labelspace.types import Predictions
    >>> pred = Predictions(indices=np.array([[1, 0]]), scores=np.array([[0.9, 0.1]]))
    >>> groups = by_frequency(pred, [[1, 1]], [[1, 0], [1, 0]], ks=(1,))
    >>> {name: (row["labels"], row["recall@1"]) for name, row in groups.items() if row["labels"]}
    {'unseen': (1, 100.0), '1-5': (1, 0.0)}
    """
    ks = _checked_ks(ks)
    starts = [0, *edges]
    if any(low >= high for low, high in itertools.pairwise(starts)):
        raise SettingsError(f"edges must be whole numbers that rise from 1 on, got {edges!r}")
    names = [
        f"{low}+" if high is None else "unseen" if high == 1 else f"{low}" if high == low + 1 else f"{low}-{high - 1}"
        for low, high in zip(starts, [*edges, None], strict=True)
    ]
    counts = metrics.label_counts(train_targets)
    scored = _score(pred, targets, train_targets, filter_pairs, None, 5, False, "binary")
    return _by_group(scored, counts, np.searchsorted(starts, counts, side="right") - 1, names, ks)


def ranked(
    pred: Ranked, targets: Any, filter_pairs: npt.ArrayLike | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Predictions in the order in which they are counted, and which of them are true; arguments as in ``evaluate``.

    Returns:
        (n, d) label numbers by score descending without the filter pairs, -1 at empty places; (n, d) hits.

    Raises:
        DataError: as in ``evaluate``.
    """
    scored = _score(pred, targets, None, filter_pairs, None, 5, False, "binary")
    return scored.indices, scored.found
