"""Two rankings compared document by document, and how sure a figure is."""

from __future__ import annotations

from collections.abc import Sequence
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

    Returns:
        Per metric, in percent: ``a`` and ``b``, the values; ``difference``, b minus a; ``low`` and ``high``, the 2.5
        and 97.5 percentiles of the redrawn difference.

    Raises:
        DataError: as in ``evaluate``.
        SettingsError: as in ``evaluate``, or if ``draws`` is below 1.
    """
    ks = _checked_ks(ks)
    if draws < 1:
        raise SettingsError(f"draws must be at least 1, got {draws}")
    both = [
        _evaluated(pred, targets, train_targets, ks, filter_pairs, propensity, skip_empty, name)[0]
        for pred in (pred_a, pred_b)
    ]
    depth = min(scored.indices.shape[1] for scored in both)
    plan = [
        item for item in _plan(ks, depth, both[0].truth.shape[1], both[0].gained is not None) if item[0] != "coverage"
    ]
    terms_a, terms_b = ([scored.terms(*item) for item in plan] for scored in both)
    low, high = metrics.paired_bootstrap(
        np.column_stack([terms.numerators for terms in terms_a]),
        np.column_stack([terms.numerators for terms in terms_b]),
        np.column_stack([terms.denominators for terms in terms_a]),
        draws=draws,
        seed=seed,
    )
    result = {}
    for place, (metric, k) in enumerate(plan):
        a, b = metrics.percent(terms_a[place]), metrics.percent(terms_b[place])
        result[f"{metric}@{k}"] = {
            "a": a,
            "b": b,
            "difference": b - a,
            "low": float(low[place]),
            "high": float(high[place]),
        }
    return result


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
) -> dict[str, dict[str, float]]:
    """The metrics of ``evaluate`` but coverage, with 95% intervals by bootstrap over documents.

    Two intervals that overlap do not say that two models are alike: ``compare`` them.

    Args:
        pred: as in ``evaluate``.
        targets: as in ``evaluate``.
        train_targets: as in ``evaluate``.
        ks: as in ``evaluate``.
        filter_pairs: as in ``evaluate``.
        propensity: as in ``evaluate``.
        skip_empty: as in ``evaluate``.
        name: as in ``evaluate``.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        Per metric, in percent: ``value``; ``low`` and ``high``, the 2.5 and 97.5 percentiles of the redrawn metric.

    Raises:
        DataError: as in ``evaluate``.
        SettingsError: as in ``evaluate``, or if ``draws`` is below 1.
    """
    ks = _checked_ks(ks)
    if draws < 1:
        raise SettingsError(f"draws must be at least 1, got {draws}")
    scored = _evaluated(pred, targets, train_targets, ks, filter_pairs, propensity, skip_empty, name)[0]
    plan = _plan(ks, scored.indices.shape[1], scored.truth.shape[1], scored.gained is not None)
    plan = [item for item in plan if item[0] != "coverage"]
    terms = [scored.terms(*item) for item in plan]
    above, below = (np.column_stack([term[part] for term in terms]) for part in (0, 1))
    low, high = metrics.paired_bootstrap(np.zeros(above.shape), above, below, draws=draws, seed=seed)
    return {
        f"{metric}@{k}": {"value": metrics.percent(terms[i]), "low": float(low[i]), "high": float(high[i])}
        for i, (metric, k) in enumerate(plan)
    }
