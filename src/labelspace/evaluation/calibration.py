"""Scores -> probabilities, fitted on held-out documents; NumPy, SciPy and scikit-learn only, the last imported late.

A probability is that of a (document, label) pair to be true. Every calibration rises with the score within a document,
so the ranking stays. What the whole ranking of a document looks like may move all its probabilities: a best score that
is low, or many labels near it, make each of them less likely.

    z = a score + b best + c level + d rank + e        a > 0, d <= 0
    logistic   1 / (1 + exp(-z))                       Platt (1999)
    isotonic   a rising function of z, in pieces       Zadrozny and Elkan (2002)

*best* is the highest score of the document, *level* the mean of its ten highest, *rank* the logarithm of the place.
Where all scores are positive, as sums of votes are, their logarithms may stand for them. Which of them count, and which
function, is chosen by the log-loss on held-out folds of documents.

Letters: n documents, d ranked places per document.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ModelError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

DEPTH = 20
"""Places of a document that a calibration is fitted on, and that the probability of a pair depends on."""
LEVEL = 10
TOP, BINS = 5, 15
"""Places of a document and bins of equal mass over which the calibration error is measured."""
MIN_DOCUMENTS, MIN_MIXED = 100, 10
"""Least documents to calibrate on, and least of them with a hit and with a miss."""
FOLDS = 5
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEATURES = ("score", "best", "level", "rank")
LEAST_SCORE = 1e-12
"""With logarithms, what is lower counts as this."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A rising function from the scores of a document to probabilities.

    Args:
        kind: ``logistic`` or ``isotonic``.
        scale: of scores: ``linear`` or ``log``.
        features: a beginning of ``score, best, level, rank``.
        coefficients: (f,) float64, one a feature; that of the score is positive, that of the rank not.
        intercept: added to their sum.
        knots: of ``isotonic``: (2, m) float64, sums rising and their probabilities, joined by straight lines.
        fitted: on what and how well: counts, log-loss of every candidate, calibration error and precision, recall and
            F1 by threshold, all on held-out folds; JSON.
        scoring: how the memory scored when this was fitted.

    Raises:
        ValueError: parts that do not make a rising function.
    """

    kind: Literal["logistic", "isotonic"]
    scale: Literal["linear", "log"]
    features: tuple[str, ...]
    coefficients: FloatArray
    intercept: float
    knots: FloatArray
    fitted: dict[str, Any] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("logistic", "isotonic") or self.scale not in ("linear", "log") or not self.features:
            raise ValueError(f"unknown calibration {self.kind!r}, {self.scale!r}")
        if self.features != FEATURES[: len(self.features)] or self.coefficients.shape != (len(self.features),):
            raise ValueError(f"a calibration looks at {', '.join(FEATURES)} in this order, got {self.features}")
        if not (np.isfinite(self.coefficients).all() and np.isfinite(self.intercept)):
            raise ValueError("a coefficient is not finite")
        if self.coefficients[0] <= 0 or (self.coefficients[FEATURES.index("rank") :] > 0).any():
            raise ValueError("the coefficients do not rise with the score")
        sums, values = self.knots if self.knots.shape[:1] == (2,) else (np.zeros(0), np.ones(1))
        if sums.shape != values.shape or (self.kind == "isotonic") != bool(len(sums)):
            raise ValueError(f"knots of shape {self.knots.shape} do not fit {self.kind}")
        if not np.isfinite(self.knots).all() or (np.diff(sums) <= 0).any() or (np.diff(values) < 0).any():
            raise ValueError("the knots do not rise")
        if len(values) and not 0 <= values[0] <= values[-1] <= 1:
            raise ValueError("a knot's value is no probability")

    @property
    def name(self) -> str:
        """Kind and features in words."""
        log = "log " if self.scale == "log" else ""
        return f"{self.kind}: {', '.join(name if name == 'rank' else log + name for name in self.features)}"

    @property
    def looks_around(self) -> bool:
        """Whether the probability of a pair depends on other labels of the document too."""
        return len(self.features) > 1

    def __call__(self, scores: npt.ArrayLike, ranking: npt.ArrayLike | None = None) -> FloatArray:
        """Probabilities of pairs, falling along a row where the scores do.

        Args:
            scores: (n, d) scores; -inf at places without a label.
            ranking: (n, r) the highest scores of the same documents among all labels, falling, -inf where there are
                fewer; the first ``DEPTH`` count. None when ``scores`` are those.

        Returns:
            (n, d) float64; 0 at places without a label.
        """
        scores = np.asarray(scores, dtype=np.float64)
        ranking = scores if ranking is None else np.asarray(ranking, dtype=np.float64)
        sums = np.full(scores.shape, self.intercept)
        values = _features(scores, ranking, self.features, self.scale)
        for value, coefficient in zip(values, self.coefficients, strict=True):
            sums += coefficient * value
        filled = np.isfinite(scores)
        return np.where(filled, self._rising(np.where(filled, sums, 0.0)), 0.0)

    def _rising(self, sums: FloatArray) -> FloatArray:
        """Probabilities of the sums z."""
        return _sigmoid(sums) if self.kind == "logistic" else np.interp(sums, *self.knots)

    def as_dict(self) -> dict[str, Any]:
        """The calibration as plain dicts, strings and numbers."""
        arrays = {"coefficients": self.coefficients.tolist(), "knots": self.knots.tolist()}
        return dataclasses.asdict(self) | arrays | {"features": list(self.features)}

    @classmethod
    def from_dict(cls, record: Any) -> Calibration:
        """What `as_dict` gave.

        Args:
            record: as read from JSON.

        Raises:
            ModelError: a damaged record.
        """
        try:
            return cls(
                kind=record["kind"],
                scale=record["scale"],
                features=tuple(record["features"]),
                coefficients=np.array(record["coefficients"], dtype=np.float64),
                intercept=float(record["intercept"]),
                knots=np.array(record["knots"], dtype=np.float64).reshape(2, -1),
                fitted=dict(record["fitted"]),
                scoring=dict(record["scoring"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's calibration is damaged: {error}; calibrate it again") from error


def _sigmoid(sums: FloatArray) -> FloatArray:
    small = np.exp(-np.abs(sums))
    return np.where(sums >= 0, 1.0, small) / (1.0 + small)


def _features(scores: FloatArray, ranking: FloatArray, names: tuple[str, ...], scale: str) -> list[FloatArray]:
    """One array a feature, (n, d) or (n, 1)."""
    ranking = ranking[:, :DEPTH]
    filled = np.isfinite(ranking)
    scores = np.where(np.isfinite(scores), scores, 0.0)
    scaled, others = scores, np.where(filled, ranking, 0.0)
    if scale == "log":
        scaled = np.log(np.maximum(scores, LEAST_SCORE))
        others = np.where(filled, np.log(np.maximum(others, LEAST_SCORE)), 0.0)
    features = []
    for name in names:
        if name == "score":
            features.append(scaled)
        elif name == "best":
            features.append(others[:, :1] if others.shape[1] else np.zeros((len(others), 1)))
        elif name == "level":
            total = others[:, :LEVEL].sum(axis=1, keepdims=True)
            features.append(total / np.maximum(1, filled[:, :LEVEL].sum(axis=1, keepdims=True)))
        else:
            above = np.zeros(scores.shape)
            reached = scores + 1e-6 + 1e-5 * np.abs(scores)  # two searches round a score differently
            for place in range(ranking.shape[1]):
                above += ranking[:, place, None] > reached
            features.append(np.log1p(above))
    return features


def fit(
    scores: npt.ArrayLike,
    found: BoolArray,
    kept: BoolArray | None = None,
    positives: int | None = None,
    *,
    scoring: dict[str, Any] | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> Calibration:
    """Fit every candidate, choose by log-loss on held-out folds of documents, and fit the chosen one on all.

    A document's pairs are all in one fold, since they are not independent. What ``fitted`` says of the chosen one is
    measured on the pairs of each fold by the fit on the other folds.

    Args:
        scores: (n, d) scores of the best labels of each document, falling, -inf where there are fewer; the first
            ``DEPTH`` count.
        found: (n, d) whether the label at that place is true.
        kept: (n, d) False where a pair must not count (filter pairs); None for all.
        positives: true pairs of the documents, predicted or not, for recall; None for those that are predicted.
        scoring: how the scores were made; kept with the calibration.
        folds: of the cross-validation.
        seed: of the folds.

    Raises:
        DataError: too few documents, or too few with a hit or with a miss, to fit anything.
    """
    scores = np.asarray(scores, dtype=np.float64)[:, :DEPTH]
    found = found[:, :DEPTH]
    counted = np.isfinite(scores) if kept is None else np.isfinite(scores) & kept[:, :DEPTH]
    used = int(counted.any(axis=1).sum())
    hit, missed = (int((counted & (found == value)).any(axis=1).sum()) for value in (True, False))
    if used < MIN_DOCUMENTS or min(hit, missed) < MIN_MIXED:
        raise DataError(
            f"calibration needs at least {MIN_DOCUMENTS} documents with predictions, {MIN_MIXED} of them with a right "
            f"and {MIN_MIXED} with a wrong one; there are {used}, {hit} and {missed}"
        )
    positive = (scores[np.isfinite(scores)] > 0).all()
    scales: list[Literal["linear", "log"]] = ["linear", "log"] if positive else ["linear"]
    values = {}
    for scale in scales:
        features = _features(scores, scores, FEATURES, scale)
        values[scale] = np.stack([np.broadcast_to(feature, scores.shape)[counted] for feature in features], axis=1)
    outcomes = found[counted]
    fold = np.random.default_rng(seed).permutation(len(scores))[np.nonzero(counted)[0]] % folds
    held_out: dict[str, FloatArray] = {}
    for number in range(folds):
        inside = fold != number
        for scale in scales:
            for candidate in _fit(values[scale][inside], outcomes[inside], scale):
                guesses = held_out.setdefault(candidate.name, np.full(len(outcomes), np.nan))
                others = values[scale][~inside][:, : len(candidate.features)]
                guesses[~inside] = candidate._rising(candidate.intercept + others @ candidate.coefficients)
    losses = {name: log_loss(guesses, outcomes) for name, guesses in held_out.items() if not np.isnan(guesses).any()}
    fits = (candidate for scale in scales for candidate in _fit(values[scale], outcomes, scale))
    chosen = min(fits, key=lambda candidate: losses.get(candidate.name, np.inf))  # of equals the first and simplest
    probabilities = np.zeros(scores.shape)
    probabilities[counted] = held_out[chosen.name]
    top, right = counted & (np.cumsum(counted, axis=1) <= TOP), found & counted
    total = int(outcomes.sum()) if positives is None else positives
    best = best_threshold(probabilities, right, total)
    fitted = {
        "documents": used,
        "pairs": len(outcomes),
        "hits": int(outcomes.sum()),
        "folds": folds,
        "log_loss": losses,
        "ece": calibration_error(probabilities[top], found[top]),
        "thresholds": at_thresholds(probabilities, right, total, THRESHOLDS),
        "best_f1": at_thresholds(probabilities, right, total, (best,))[0],
    }
    return dataclasses.replace(chosen, fitted=fitted, scoring=scoring or {})


def _fit(values: FloatArray, outcomes: BoolArray, scale: Literal["linear", "log"]) -> Iterator[Calibration]:
    """Every candidate fitted on pairs, but for those that would not rise with the score."""
    for count in range(1, len(FEATURES) + 1):
        part, features = values[:, :count], FEATURES[:count]
        line = None if outcomes.all() or not outcomes.any() else _regress(part, outcomes)
        if line is not None and (line[0][0] <= 0 or (line[0][FEATURES.index("rank") :] > 0).any()):
            line = None
        if line is not None:
            yield Calibration("logistic", scale, features, *line, np.zeros((2, 0)))
        elif count == 1:
            line = np.ones(1), 0.0
        if line is not None:
            yield Calibration("isotonic", scale, features, *line, _isotonic(line[1] + part @ line[0], outcomes))


def _isotonic(sums: FloatArray, outcomes: BoolArray) -> FloatArray:
    """Knots of the rising function of least squares; shares that n pairs cannot tell from 0 or 1 are not given."""
    from sklearn.isotonic import IsotonicRegression

    steps = IsotonicRegression(increasing=True).fit(sums, outcomes.astype(np.float64))
    at, height = (np.asarray(a, dtype=np.float64) for a in (steps.X_thresholds_, steps.y_thresholds_))
    first = np.concatenate([[True], np.diff(at) > 0])
    least = 1.0 / (len(outcomes) + 2)
    return np.stack([at[first], np.clip(np.maximum.accumulate(height)[first], least, 1.0 - least)])


def _regress(values: FloatArray, outcomes: BoolArray) -> tuple[FloatArray, float]:
    """Logistic regression, all but free: the penalty keeps coefficients finite where classes can be separated."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=1e4, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((values - mean) / scale, outcomes)
    coefficients = model.coef_[0] / scale
    return coefficients, float(model.intercept_[0] - coefficients @ mean)


# --- measures -----------------------------------------------------------------------------------------------------


def log_loss(probabilities: FloatArray, outcomes: BoolArray) -> float:
    """Mean of -log of the probability of what happened.

    Args:
        probabilities: (m,) in (0, 1); 0 and 1 count as the nearest double inside.
        outcomes: (m,) what happened.
    """
    right = np.where(outcomes, probabilities, 1.0 - probabilities)
    return float(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean())


def reliability(
    probabilities: npt.NDArray[np.floating[Any]], outcomes: BoolArray, bins: int = BINS
) -> list[dict[str, float]]:
    """Pairs sorted by probability and cut into bins of equal mass.

    Pairs of equal probability share their outcomes evenly, so the order of the pairs is no matter.

    Args:
        probabilities: (m,) predicted.
        outcomes: (m,) whether the pair is true.
        bins: how many; fewer when there are fewer pairs.

    Returns:
        For each bin ``pairs``, ``low`` and ``high`` (its range), ``predicted`` (mean probability) and ``observed``
        (share of true pairs).
    """
    order = np.argsort(probabilities, kind="stable")
    predicted, happened = probabilities[order].astype(np.float64), outcomes[order].astype(np.float64)
    if not len(predicted):
        return []
    starts = np.flatnonzero(np.concatenate([[True], np.diff(predicted) > 0]))
    counts = np.diff(np.append(starts, len(predicted)))
    happened = np.repeat(np.add.reduceat(happened, starts) / counts, counts)
    parts = np.array_split(np.arange(len(predicted)), min(bins, len(predicted)))
    return [
        {
            "pairs": len(part),
            "low": float(predicted[part[0]]),
            "high": float(predicted[part[-1]]),
            "predicted": float(predicted[part].mean()),
            "observed": float(happened[part].mean()),
        }
        for part in parts
    ]


def calibration_error(probabilities: npt.NDArray[np.floating[Any]], outcomes: BoolArray, bins: int = BINS) -> float:
    """Expected calibration error: mean over pairs of ``|mean probability - share of true pairs|`` of the pair's bin.

    Bins of equal mass (Nguyen and O'Connor, 2015), see `reliability`.

    Args:
        probabilities: (m,) predicted.
        outcomes: (m,) whether the pair is true.
        bins: how many.

    Returns:
        From 0 to 1; 0 without pairs.
    """
    table = reliability(probabilities, outcomes, bins)
    total = sum(row["pairs"] for row in table)
    return sum(row["pairs"] * abs(row["predicted"] - row["observed"]) for row in table) / max(1, total)


def at_thresholds(
    probabilities: npt.NDArray[np.floating[Any]], found: BoolArray, positives: int, thresholds: tuple[float, ...]
) -> list[dict[str, float]]:
    """What is predicted when only labels count whose probability reaches a threshold.

    Args:
        probabilities: (n, d), 0 at places that do not count.
        found: (n, d) whether the label there is true.
        positives: true pairs of the documents, predicted or not.
        thresholds: probabilities.

    Returns:
        For each ``threshold``: ``precision``, ``recall`` and ``f1`` over all pairs, from 0 to 1, 0 where undefined;
        ``labels``, the mean number a document; ``abstained``, the share of documents without any.
    """
    result = []
    for threshold in thresholds:
        passed = (probabilities >= threshold) & (probabilities > 0)
        predicted, right = int(passed.sum()), int((passed & found).sum())
        result.append(
            {
                "threshold": float(threshold),
                "precision": right / max(1, predicted),
                "recall": right / max(1, positives),
                "f1": 2 * right / max(1, predicted + positives),
                "labels": predicted / max(1, len(passed)),
                "abstained": float((~passed.any(axis=1)).mean()) if len(passed) else 0.0,
            }
        )
    return result


def best_threshold(probabilities: npt.NDArray[np.floating[Any]], found: BoolArray, positives: int) -> float:
    """The threshold of the best F1 over all pairs; of equals the highest.

    Args:
        probabilities: (n, d), 0 at places that do not count; one at least does.
        found: (n, d) whether the label there is true.
        positives: true pairs of the documents, predicted or not.
    """
    counted = probabilities > 0
    order = np.argsort(-probabilities[counted], kind="stable")
    falling, right = probabilities[counted][order], np.cumsum(found[counted][order])
    f1 = 2 * right / (np.arange(1, len(right) + 1) + positives)
    f1[:-1][falling[1:] == falling[:-1]] = -1.0  # a threshold takes all equals or none
    return float(falling[int(np.argmax(f1))])
