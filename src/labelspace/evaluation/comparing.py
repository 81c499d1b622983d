"""Two rankings compared document by document, and how sure a figure is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SettingsError
from . import metrics
from .evaluating import Propensity, Ranked, _checked_ks, _evaluated, _plan


def compare(
    pred_a: Ranked,
    pred_b: Ranked,
    targets: Any,
    train_targets: Any = None,
    ks: Sequence[int] = (1, 3, 5),
    filter_pairs: npt.ArrayLike | None = None,
    propensity: Propensity = None,
    skip_empty: bool = False,
    name: str | None = None,
    draws: int = 2000,
    seed: int = 0,
    gains: metrics.Gains = "linear",
) -> dict[str, dict[str, float]]:
    """Differences between two predictions of the same documents, with 95% intervals by paired bootstrap.

    The interval covers the choice of test documents, not the training seed: a difference under 0.3 points needs
    several seeds. Coverage is left out, since drawing documents with replacement loses labels and biases it.
    Metrics at 10 and 100 places appear if both predictions are that deep.

    Args:
        pred_a: the first predictions, say the baseline; as in ``evaluate``.
        pred_b: the second predictions.
        targets: as in ``evaluate``.
        train_targets: as in ``evaluate``.
        ks: as in ``evaluate``.
        filter_pairs: as in ``evaluate``; for both predictions.
        propensity: as in ``evaluate``.
        skip_empty: as in ``evaluate``.
        name: as in ``evaluate``.
        draws: number of bootstrap draws.
        seed: seed of the draws.
        gains: as in ``evaluate``.

    Returns:
        Per metric, in percent: ``a`` and ``b``, the values; ``difference``, b minus a; ``low`` and ``high``, the 2.5
        and 97.5 percentiles of the redrawn difference.

    Raises:
        DataError: as in ``evaluate``.
        SettingsError: as in ``evaluate``, or if ``draws`` is below 1.
    """
    shared = (targets, train_targets, ks, filter_pairs, propensity, skip_empty, name, gains)
    return {
        metric: {"a": a, "b": b, "difference": b - a, "low": low, "high": high}
        for metric, (a, b), low, high in _resampled([pred_a, pred_b], draws, seed, *shared)
    }


def intervals(
    pred: Ranked,
    targets: Any,
    train_targets: Any = None,
    ks: Sequence[int] = (1, 3, 5),
    filter_pairs: npt.ArrayLike | None = None,
    propensity: Propensity = None,
    skip_empty: bool = False,
    name: str | None = None,
    draws: int = 2000,
    seed: int = 0,
    gains: metrics.Gains = "linear",
) -> dict[str, dict[str, float]]:
    """The metrics of ``evaluate`` but coverage, with 95% intervals by bootstrap over documents.

    Two intervals that overlap do not say that two models are alike: ``compare`` them. All arguments are those of
    ``compare``, for one prediction.

    Returns:
        Per metric, in percent: ``value``; ``low`` and ``high``, the 2.5 and 97.5 percentiles of the redrawn metric.

    Raises:
        DataError: as in ``evaluate``.
        SettingsError: as in ``evaluate``, or if ``draws`` is below 1.
    """
    shared = (targets, train_targets, ks, filter_pairs, propensity, skip_empty, name, gains)
    return {
        metric: {"value": value, "low": low, "high": high}
        for metric, (value,), low, high in _resampled([pred], draws, seed, *shared)
    }


def _resampled(
    preds: Sequence[Ranked], draws: int, seed: int, targets: Any, train_targets: Any, ks: Sequence[int], *others: Any
) -> Iterator[tuple[str, list[float], float, float]]:
    """Every metric but coverage, its value for each of one or two predictions, and the interval of the last value, or
    of its difference from the first; ``others`` go to `_evaluated`."""
    ks = _checked_ks(ks)
    if draws < 1:
        raise SettingsError(f"draws must be at least 1, got {draws}")
    scored = [_evaluated(pred, targets, train_targets, ks, *others)[0] for pred in preds]
    plan = [item for item in _plan(ks, *scored) if item[0] != "coverage"]
    terms = [[one.terms(*item) for item in plan] for one in scored]
    numerators = [np.column_stack([term.numerators for term in row]) for row in terms]
    denominators = np.column_stack([term.denominators for term in terms[0]])
    base = numerators[0] if len(preds) > 1 else np.zeros(denominators.shape)
    low, high = metrics.paired_bootstrap(base, numerators[-1], denominators, draws=draws, seed=seed)
    for place, (metric, k) in enumerate(plan):
        yield f"{metric}@{k}", [metrics.percent(row[place]) for row in terms], float(low[place]), float(high[place])
