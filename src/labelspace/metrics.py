"""The arithmetic of the metrics: the public names of `evaluation.metrics`."""

from .evaluation.metrics import (
    Terms,
    barred_labels,
    best_weights,
    binary_truth,
    check_indices,
    checked_pairs,
    coverage,
    frequency_groups,
    hit_weights,
    hits,
    label_counts,
    membership,
    ndcg,
    paired_bootstrap,
    percent,
    precision,
    propensity_constants,
    propensity_weights,
    psndcg,
    psp,
    recall,
    reciprocal_rank,
    row_blocks,
    shape,
    sizes,
    weights_of_counts,
    without_barred,
)

__all__ = [
    "Terms", "barred_labels", "best_weights", "binary_truth", "check_indices", "checked_pairs", "coverage",
    "frequency_groups", "hit_weights", "hits", "label_counts", "membership", "ndcg", "paired_bootstrap", "percent",
    "precision", "propensity_constants", "propensity_weights", "psndcg", "psp", "recall", "reciprocal_rank",
    "row_blocks", "shape", "sizes", "weights_of_counts", "without_barred",
]  # fmt: skip
