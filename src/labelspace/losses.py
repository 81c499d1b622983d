"""Losses by hand: the public names of `training.losses`."""

from .training.losses import (
    ClosedForm,
    Form,
    Gradient,
    Pairs,
    Scan,
    apply,
    balanced,
    balanced_form,
    bce,
    bce_form,
    check_pairs,
    check_range,
    closed_form,
    decoupled_softmax,
    decoupled_softmax_form,
    find_shift,
    gather,
    small_log_sum_exp,
    soft_top_k,
    soft_top_k_form,
    softmax,
    softmax_form,
    supcon,
    supcon_form,
    top_k_shift,
)

__all__ = [
    "ClosedForm", "Form", "Gradient", "Pairs", "Scan", "apply", "balanced", "balanced_form", "bce", "bce_form",
    "check_pairs", "check_range", "closed_form", "decoupled_softmax", "decoupled_softmax_form", "find_shift",
    "gather", "small_log_sum_exp", "soft_top_k", "soft_top_k_form", "softmax", "softmax_form", "supcon",
    "supcon_form", "top_k_shift",
]  # fmt: skip
