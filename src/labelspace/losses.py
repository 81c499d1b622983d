"""Losses over a pool of labels, as functions of logits and positive pairs (DEXML, Gupta et al., ICLR 2024; UniDEC,
Kharbanda et al., 2024).

Every loss has one signature::

    loss(logits, positives, weights=None, reduce=None) -> scalar

``logits`` is (B, P); ``positives`` is (2, M) int64, row of the batch over column of the pool, each pair once;
``weights`` is (M,) relevances r of the positives. An entry that must not count is ``-inf`` (never a positive).
bf16 and float16 logits are raised to float32, float64 stays. The softmax family divides by R, the number of rows
with a positive, and a row without one adds nothing; ``bce`` divides by B P. The label to document direction is
``loss(logits.T, positives.flip(0))``.

Each gradient is the closed form, found in the same pass as the value; a second derivative is refused.
``reduce(x, op)`` combines a (B,) tensor over the shards of a pool that is split by label, with op one of
``sum``, ``max``, ``min``, ``logsumexp``; a shard passes its own columns and its own positives and gets the
global loss and its own part of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Reduce = Callable[[Tensor, Literal["sum", "max", "min", "logsumexp"]], Tensor]
ValueAndGradient = tuple[Tensor, Tensor | None]


class ValueAndGradientOf(Protocol):
    """Finds the value of a loss and, if wanted, its gradient in the logits, neither recorded by autograd.

    The logits are its own: it may write over them, and the gradient may lie in their memory.
    """

    def __call__(
        self, logits: Tensor, positives: Tensor, weights: Tensor | None, reduce: Reduce | None, gradient: bool
    ) -> ValueAndGradient: ...


@dataclass(frozen=True)
class ClosedForm:
    """A loss in the form that `losses_fused` needs.

    Args:
        compute: value and gradient from logits.
        mean_over: what the value is a mean over: the rows with a positive, or all B P entries.
    """

    compute: ValueAndGradientOf
    mean_over: Literal["rows", "entries"] = "rows"


def softmax(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """Softmax (InfoNCE) over all columns, summed over the positives of a row: paper's equation for the plain loss.

    Positives stand in the denominator and so compete with each other; the optimum gives each 1/m_i.

    Args:
        logits: (B, P) scores divided by the temperature.
        positives: (2, M) int64 pairs (row, column).
        weights: (M,) relevance of each positive, 1 when not given.
        reduce: combines a (B,) tensor over label shards; None for one shard.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, or a positive whose logit is -inf.
    """
    return apply(softmax_closed_form, logits, positives, weights, reduce)


def decoupled_softmax(
    logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None
) -> Tensor:
    """Decoupled softmax: each positive against the negatives of its row only, averaged over the positives.

    DEXML's default loss. A row whose columns are all positive (or -inf) adds 0.

    Args:
        logits: (B, P) scores divided by the temperature.
        positives: (2, M) int64 pairs (row, column).
        weights: (M,) relevance of each positive, 1 when not given; the divisor stays the number of positives.
        reduce: combines a (B,) tensor over label shards; None for one shard.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, or a positive whose logit is -inf.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> round(float(decoupled_softmax(logits, torch.tensor([[0, 0], [0, 1]]))), 4)
        0.2201
    """
    return apply(decoupled_softmax_closed_form, logits, positives, weights, reduce)


def supcon(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """Supervised contrastive loss: softmax over all columns, averaged over the positives of a row (UniDEC).

    It is `softmax` with each positive weighted by 1/m_i, so that a document with many labels counts as one.

    Args:
        logits: (B, P) scores divided by the temperature.
        positives: (2, M) int64 pairs (row, column).
        weights: (M,) relevance of each positive, 1 when not given; the divisor stays the number of positives.
        reduce: combines a (B,) tensor over label shards; None for one shard.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, or a positive whose logit is -inf.
    """
    return apply(supcon_closed_form, logits, positives, weights, reduce)


def balanced(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """Balanced softmax: the negatives and the mean of the positives stand in the denominator (UniDEC).

    ``logD_i = logsumexp_j(s_ij - y_ij log m_i)``, and the loss of a row is logD_i minus the mean of its positives;
    nothing is exponentiated on its own, so logits of any size are safe.

    Args:
        logits: (B, P) scores divided by the temperature.
        positives: (2, M) int64 pairs (row, column).
        weights: (M,) relevance of each positive, 1 when not given; the divisor stays the number of positives.
        reduce: combines a (B,) tensor over label shards; None for one shard.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, or a positive whose logit is -inf.
    """
    return apply(balanced_closed_form, logits, positives, weights, reduce)


def bce(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """One-vs-all binary cross-entropy, averaged over all B P entries.

    Args:
        logits: (B, P) scores divided by the temperature.
        positives: (2, M) int64 pairs (row, column).
        weights: (M,) soft targets in [0, 1] of the positives, 1 when not given.
        reduce: combines a (B,) tensor over label shards; None for one shard.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, or a positive whose logit is -inf.
    """
    return apply(bce_closed_form, logits, positives, weights, reduce)


def soft_top_k(
    logits: Tensor,
    positives: Tensor,
    weights: Tensor | None = None,
    reduce: Reduce | None = None,
    *,
    k: int | Tensor = 5,
    alpha: float = 2.0,
) -> Tensor:
    """SoftTop-k: minus the log of a smooth membership in the row's top k, averaged over the positives.

    ``z_j = sigmoid(alpha (s_j + t))`` with the one t that makes ``sum_j z_j = k``, found by bisection without a
    gradient; the gradient is that of the implicit function.

    Args:
        logits: (B, P) scores divided by the temperature.
        positives: (2, M) int64 pairs (row, column).
        weights: (M,) relevance of each positive, 1 when not given.
        reduce: combines a (B,) tensor over label shards; None for one shard.
        k: the number of places, one for all rows or a (B,) tensor.
        alpha: steepness of the sigmoid.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: k is not between 0 and the number of columns that count, shapes that do not fit, or a positive
            whose logit is -inf.
    """
    return apply(partial(soft_top_k_closed_form, k=k, alpha=alpha), logits, positives, weights, reduce)


def closed_form(name: str, **options: Any) -> ClosedForm:
    """The value-and-gradient form of a loss, by name, as ``losses_fused`` needs it.

    Args:
        name: one of ``softmax``, ``decoupled_softmax``, ``supcon``, ``balanced``, ``bce``, ``soft_top_k``.
        options: ``k``, ``alpha`` and ``clamp`` of ``soft_top_k``.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    forms: dict[str, ValueAndGradientOf] = {
        "softmax": softmax_closed_form,
        "decoupled_softmax": decoupled_softmax_closed_form,
        "supcon": supcon_closed_form,
        "balanced": balanced_closed_form,
        "bce": bce_closed_form,
        "soft_top_k": soft_top_k_closed_form,
    }
    if name not in forms:
        raise ValueError(f"unknown loss {name!r}; choose one of {', '.join(forms)}")
    compute = partial(forms[name], **options) if options else forms[name]
    return ClosedForm(compute, mean_over="entries" if name == "bce" else "rows")


class _Loss(torch.autograd.Function):
    """A scalar whose gradient was computed together with its value."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value_and_gradient: Callable[[Tensor, bool], ValueAndGradient]) -> Tensor:
        raised = logits.clone() if logits.dtype in (torch.float32, torch.float64) else logits.float()
        value, gradient = value_and_gradient(raised, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None


def apply(
    compute: ValueAndGradientOf,
    logits: Tensor,
    positives: Tensor,
    weights: Tensor | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """A loss as a scalar that autograd can differentiate once, from its value-and-gradient form.

    Args:
        compute: value and gradient from logits.
        logits: (B, P), any floating type.
        positives: (2, M) int64 pairs (row, column).
        weights: (M,) relevance of each positive.
        reduce: combines a (B,) tensor over label shards; None for one shard.

    Raises:
        ValueError: shapes that do not fit together.
    """
    check_pairs(logits.shape, positives, weights)

    def value_and_gradient(raised: Tensor, gradient: bool) -> ValueAndGradient:
        return compute(raised, positives, weights, reduce, gradient)

    return _Loss.apply(logits, value_and_gradient)


def check_pairs(shape: torch.Size | tuple[int, ...], positives: Tensor, weights: Tensor | None) -> None:
    """Refuse logits, pairs or weights whose shapes do not fit together.

    Args:
        shape: shape of the logits, (B, P).
        positives: (2, M) int64.
        weights: (M,) or None.

    Raises:
        ValueError: naming the shape that is wrong.
    """
    if len(shape) != 2:
        raise ValueError(f"logits must be (B, P), got {tuple(shape)}")
    if positives.ndim != 2 or positives.shape[0] != 2 or positives.dtype != torch.int64:
        raise ValueError(f"positives must be (2, M) int64, got {tuple(positives.shape)} {positives.dtype}")
    if weights is not None and weights.shape != positives.shape[1:]:
        raise ValueError(f"weights must be ({positives.shape[1]},) like the positives, got {tuple(weights.shape)}")


def _identity(x: Tensor, op: str) -> Tensor:
    return x


def _prepare(
    logits: Tensor, positives: Tensor, weights: Tensor | None, reduce: Reduce | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Reduce]:
    """Rows, columns, logits s and weights r of the positives, positives a row m, divisor R, reduce."""
    rows, columns = positives[0], positives[1]
    s = logits[rows, columns]
    if bool((s == -torch.inf).any()):
        raise ValueError("a positive has the logit -inf; leave masked pairs out of `positives`")
    r = torch.ones_like(s) if weights is None else weights.to(s)
    reduce = reduce or _identity
    m = reduce(_sum_rows(rows, torch.ones_like(s), len(logits)), "sum")
    divisor = (m > 0).sum().clamp(min=1).to(s.dtype)
    return rows, columns, s, r, m.clamp(min=1), divisor, reduce


def _sum_rows(rows: Tensor, values: Tensor, n: int) -> Tensor:
    return values.new_zeros(n).index_add_(0, rows, values)


def _exp_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(x - row maximum) in x's buffer, the row maxima, and the logsumexp of the rows (-inf for none)."""
    top = x.amax(dim=1)
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    e = x.sub_(top[:, None]).exp_()
    return e, top, e.sum(dim=1).log() + top


def softmax_closed_form(
    logits: Tensor, positives: Tensor, weights: Tensor | None, reduce: Reduce | None, gradient: bool
) -> ValueAndGradient:
    """Value and gradient of `softmax`: d/ds_ij = ((sum_p r_ip) pi_ij - r_ij y_ij) / R."""
    rows, columns, s, r, _, divisor, reduce = _prepare(logits, positives, weights, reduce)
    return _softmax(logits, rows, columns, s, r, divisor, reduce, gradient)


def supcon_closed_form(
    logits: Tensor, positives: Tensor, weights: Tensor | None, reduce: Reduce | None, gradient: bool
) -> ValueAndGradient:
    """Value and gradient of `supcon`: d/ds_ij = ((sum_p r_ip) pi_ij - r_ij y_ij) / (m_i R)."""
    rows, columns, s, r, m, divisor, reduce = _prepare(logits, positives, weights, reduce)
    return _softmax(logits, rows, columns, s, r / m[rows], divisor, reduce, gradient)


def balanced_closed_form(
    logits: Tensor, positives: Tensor, weights: Tensor | None, reduce: Reduce | None, gradient: bool
) -> ValueAndGradient:
    """Value and gradient of `balanced`.

    d/ds_ij = ((sum_p r_ip) exp(s_ij - y_ij log m_i - logD_i) - r_ij y_ij) / (m_i R): plain softmax of logits whose
    positives were lowered by log m_i, but the numerator keeps them as they are.
    """
    rows, columns, s, r, m, divisor, reduce = _prepare(logits, positives, weights, reduce)
    logits[rows, columns] = s - m[rows].log()
    return _softmax(logits, rows, columns, s, r / m[rows], divisor, reduce, gradient)


def _softmax(
    logits: Tensor,
    rows: Tensor,
    columns: Tensor,
    s: Tensor,
    r: Tensor,
    divisor: Tensor,
    reduce: Reduce,
    gradient: bool,
) -> ValueAndGradient:
    """Sum over the positives of r (logsumexp of the row - s), over the divisor."""
    n = len(logits)
    e, top, log_z = _exp_rows(logits)
    log_z = reduce(log_z, "logsumexp")
    mass = reduce(_sum_rows(rows, r, n), "sum")
    value = reduce(_sum_rows(rows, r * (log_z[rows] - s), n), "sum").sum() / divisor
    if not gradient:
        return value, None
    scale = torch.where(mass > 0, mass * (top - log_z).exp() / divisor, torch.zeros_like(mass))
    e.mul_(scale[:, None])
    e[rows, columns] -= r / divisor
    return value, e


def decoupled_softmax_closed_form(
    logits: Tensor, positives: Tensor, weights: Tensor | None, reduce: Reduce | None, gradient: bool
) -> ValueAndGradient:
    """Value and gradient of `decoupled_softmax`.

    d/ds_ip = -r_ip a_ip / (m_i R) and d/ds_in = exp(s_in - logZ_i) (sum_p r_ip a_ip) / (m_i R), with logZ over the
    negatives and a_ip = 1 - pi_ip.
    """
    rows, columns, s, r, m, divisor, reduce = _prepare(logits, positives, weights, reduce)
    n = len(logits)
    logits[rows, columns] = -torch.inf
    e, top, log_z = _exp_rows(logits)
    log_z = reduce(log_z, "logsumexp")
    log_all = torch.logaddexp(s, log_z[rows])
    value = reduce(_sum_rows(rows, r * (log_all - s), n) / m, "sum").sum() / divisor
    if not gradient:
        return value, None
    pull = r * (log_z[rows] - log_all).exp() / (m[rows] * divisor)
    push = reduce(_sum_rows(rows, pull, n), "sum")
    scale = torch.where(push > 0, push * (top - log_z).exp(), torch.zeros_like(push))
    e.mul_(scale[:, None])
    e[rows, columns] = -pull
    return value, e


def bce_closed_form(
    logits: Tensor, positives: Tensor, weights: Tensor | None, reduce: Reduce | None, gradient: bool
) -> ValueAndGradient:
    """Value and gradient of `bce`: d/ds_ij = (sigmoid(s_ij) - r_ij y_ij) / (B P)."""
    rows, columns, s, r, _, _, reduce = _prepare(logits, positives, weights, reduce)
    n = len(logits)
    entries = reduce(logits.new_full((n,), float(logits.shape[1])), "sum").sum()
    softplus = torch.logaddexp(logits, torch.zeros((), dtype=logits.dtype, device=logits.device))
    value = reduce(softplus.sum(dim=1) - _sum_rows(rows, r * s, n), "sum").sum() / entries
    if not gradient:
        return value, None
    e = logits.sigmoid_().div_(entries)
    e[rows, columns] -= r / entries
    return value, e


def soft_top_k_closed_form(
    logits: Tensor,
    positives: Tensor,
    weights: Tensor | None,
    reduce: Reduce | None,
    gradient: bool,
    *,
    k: int | Tensor = 5,
    alpha: float = 2.0,
    clamp: bool = False,
) -> ValueAndGradient:
    """Value and gradient of `soft_top_k`, the gradient through log z; ``clamp`` as in `top_k_shift`.

    With q_j = g_j alpha (1 - z_j) and v_j = alpha z_j (1 - z_j): g'_j = q_j - (sum q) v_j / sum v. The ratio
    v_j / sum v is a softmax of log v_j, which stays finite where every z has saturated.
    """
    rows, columns, s, r, m, divisor, reduce = _prepare(logits, positives, weights, reduce)
    n = len(logits)
    shift = top_k_shift(logits, k, alpha, reduce, clamp)
    u = logits.add_(shift[:, None]).mul_(alpha)
    u_positive = u[rows, columns]
    value = (
        reduce(_sum_rows(rows, r * torch.logaddexp(-u_positive, torch.zeros_like(u_positive)), n) / m, "sum").sum()
        / divisor
    )
    if not gradient:
        return value, None
    q = -r / (m[rows] * divisor) * alpha * torch.sigmoid(-u_positive)
    q_sum = reduce(_sum_rows(rows, q, n), "sum")
    a = u.abs_()
    log_v = torch.log1p((-a).exp_()).mul_(-2).sub_(a)  # log z + log(1 - z) = -|u| - 2 log(1 + exp(-|u|))
    e, top, log_sum = _exp_rows(log_v)
    e.mul_((-q_sum * (top - reduce(log_sum, "logsumexp")).exp())[:, None])
    e[rows, columns] += q
    return value, e


@torch.no_grad()
def top_k_shift(
    logits: Tensor, k: int | Tensor, alpha: float, reduce: Reduce | None = None, clamp: bool = False
) -> Tensor:
    """The shift t of every row with ``sum_j sigmoid(alpha (s_j + t)) = k``, by bisection.

    Args:
        logits: (B, P) float32 or float64; columns of -inf do not count.
        k: the number of places, one for all rows or a (B,) tensor.
        alpha: steepness of the sigmoid, above 0.
        reduce: combines a (B,) tensor over label shards; None for one shard.
        clamp: lower k to one less than the columns that count (to a half where only one does) instead of refusing.

    Returns:
        (B,) shifts, after 32 halvings in float32 and 64 in float64.

    Raises:
        ValueError: alpha is not above 0, or k is not strictly between 0 and the number of columns that count.
    """
    reduce = reduce or _identity
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    counts = logits > -torch.inf
    n = reduce(counts.sum(dim=1).to(logits.dtype), "sum")
    places = torch.as_tensor(k, device=logits.device).to(logits.dtype).expand(len(logits))
    if clamp:
        places = torch.minimum(places, torch.maximum(n - 1, n / 2))
    if bool((places <= 0).any()) or bool((places >= n).any()):
        fewest = int(n.min()) if len(n) else 0
        raise ValueError(f"soft top-k needs 0 < k < the number of columns that count ({fewest}), got k = {k}")
    largest = reduce(logits.amax(dim=1), "max")
    smallest = reduce(logits.masked_fill(~counts, torch.inf).amin(dim=1), "min")
    c = (places / (n - places)).log() / alpha
    low, high = c - largest, c - smallest
    for _ in range(64 if logits.dtype == torch.float64 else 32):
        middle = (low + high) / 2
        mass = reduce((logits + middle[:, None]).mul_(alpha).sigmoid_().sum(dim=1), "sum")
        low, high = torch.where(mass < places, middle, low), torch.where(mass < places, high, middle)
    return (low + high) / 2
