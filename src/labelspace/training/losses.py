"""Losses over a pool of labels, as functions of logits and positive pairs (DEXML, Gupta et al., ICLR 2024; UniDEC,
Kharbanda et al., 2024).

Every loss has one signature::

    loss(logits, positives, weights=None, reduce=None) -> scalar

``logits`` is (B, P); ``positives`` is (2, M) int64, row of the batch over column of the pool, each pair once;
``weights`` is (M,) relevances r of the positives. An entry that must not count is ``-inf`` (never a positive).
bf16 and float16 logits are raised to float32, float64 stays. The softmax family divides by R, the number of rows
with a positive, and a row without one adds nothing; ``bce`` divides by B P. The label to document direction is
``loss(logits.T, positives.flip(0))``.

A loss is written once, as a form: what it needs of all logits it asks of a scan, block of columns by block, and it
answers with its value, the gradient of a block and the gradient at the positives. So the same arithmetic runs over
logits that are there and over logits that `losses_fused` makes block by block. A second derivative is refused.
``reduce(x, op)`` combines a tensor (B,) or (B, n) over the shards of a pool that is split by label, with op one of
``sum``, ``max``, ``min``, ``logsumexp``; a shard passes its own columns and its own positives and gets the
global loss and its own part of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Op = Literal["sum", "max", "min", "logsumexp"]
Reduce = Callable[[Tensor, Op], Tensor]
Places = int | Tensor | Literal["positives"]
"""Places of `soft_top_k`; ``positives`` are as many for a row as it has positives, at least 1."""
SAFE_EXPONENT = 60.0
"""exp of this, summed over a billion columns, is finite in float32, and exp of minus it is no denormal."""


class Scan(Protocol):
    """Goes over all logits in blocks of columns.

    ``scan(find, op)`` gives ``find(block, rows)`` of every block, combined by ``op``. ``find`` takes logits (b, c) of
    the rows ``rows``, whose memory is its own, and returns (b,) or (b, n); the scan returns as many for all B rows.
    """

    def __call__(self, find: Callable[[Tensor, slice], Tensor], op: Op) -> Tensor: ...


@dataclass(frozen=True)
class Pairs:
    """The positives of a batch, and what is known of all its logits before a scan.

    Args:
        rows: (M,) their rows.
        columns: (M,) their columns.
        logits: (M,) their logits.
        weights: (M,) their relevances r.
        per_row: (B,) m_i, at least 1.
        divisor: R, rows with a positive, at least 1.
        entries: B P of all shards.
        bound: no logit is larger in size, as far as that is known.
        reduce: combines (B,) tensors over label shards.
    """

    rows: Tensor
    columns: Tensor
    logits: Tensor
    weights: Tensor
    per_row: Tensor
    divisor: Tensor
    entries: Tensor
    bound: float
    reduce: Reduce

    def row_sums(self, values: Tensor) -> Tensor:
        """Sums of (M,) values by row, over all shards: (B,)."""
        return self.reduce(_sum_rows(self.rows, values, len(self.per_row)), "sum")


@dataclass(frozen=True)
class Gradient:
    """The gradient of a loss in the logits.

    Args:
        block: logits (b, c) of the rows given -> their gradient, in the same memory; not meant for positives.
        positives: (M,) gradient at the positives.
        log_scale: (B,) where ``block`` is exp(logit + log_scale) by row; else None.
    """

    block: Callable[[Tensor, slice], Tensor]
    positives: Tensor
    log_scale: Tensor | None = None


class Form(Protocol):
    """Computes the value of a loss and, if wanted, its gradient."""

    def __call__(self, pairs: Pairs, scan: Scan, gradient: bool) -> tuple[Tensor, Gradient | None]: ...


@dataclass(frozen=True)
class ClosedForm:
    """A loss that can be computed in blocks.

    Args:
        compute: value and gradient.
        positives_apart: the scan and the blocks leave out positives (their logits are -inf there).
    """

    compute: Form
    positives_apart: bool = False


def softmax(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """Softmax (InfoNCE) over all columns, summed over the positives of a row: the plain loss of DEXML's paper.

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
    return apply(closed_form("softmax"), logits, positives, weights, reduce)


def decoupled_softmax(
    logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None
) -> Tensor:
    """Decoupled softmax: each positive against the negatives of its row only, averaged over the positives.

    DEXML's default loss. A row whose columns are all positive (or -inf) adds 0. Weights do not change the number of
    positives. Arguments, result and errors are those of `softmax`.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> round(float(decoupled_softmax(logits, torch.tensor([[0, 0], [0, 1]]))), 4)
        0.2201
    """
    return apply(closed_form("decoupled_softmax"), logits, positives, weights, reduce)


def supcon(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """Supervised contrastive loss (UniDEC): `softmax`, averaged over the positives of a row.

    So a document with many labels counts as one. Weights do not change m_i. Arguments, result and errors are those of
    `softmax`.
    """
    return apply(closed_form("supcon"), logits, positives, weights, reduce)


def balanced(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """Balanced softmax: the negatives and the mean of the positives stand in the denominator (UniDEC).

    ``logD_i = logsumexp_j(s_ij - y_ij log m_i)``, and the loss of a row is logD_i minus the mean of its positives;
    nothing is exponentiated on its own, so logits of any size are safe. Weights do not change m_i. Arguments, result
    and errors are those of `softmax`.
    """
    return apply(closed_form("balanced"), logits, positives, weights, reduce)


def bce(logits: Tensor, positives: Tensor, weights: Tensor | None = None, reduce: Reduce | None = None) -> Tensor:
    """One-vs-all binary cross-entropy, averaged over all B P entries; weights are soft targets in [0, 1].

    Arguments, result and errors are otherwise those of `softmax`.
    """
    return apply(closed_form("bce"), logits, positives, weights, reduce)


def soft_top_k(
    logits: Tensor,
    positives: Tensor,
    weights: Tensor | None = None,
    reduce: Reduce | None = None,
    *,
    k: Places = 5,
    alpha: float = 2.0,
) -> Tensor:
    """SoftTop-k: minus the log of a smooth membership in the row's top k, averaged over the positives.

    ``z_j = sigmoid(alpha (s_j + t))`` with the one t that makes ``sum_j z_j = k``, found by `find_shift` without a
    gradient; the gradient is that of the implicit function.

    ``k`` is the number of places: one for all rows, a (B,) tensor, or ``positives``, as many as a row has positives.
    ``alpha`` is the steepness of the sigmoid. The other arguments and the result are those of `softmax`.

    Raises:
        ValueError: as for `softmax`, or k is not between 0 and the number of columns that count.
    """
    return apply(closed_form("soft_top_k", k=k, alpha=alpha), logits, positives, weights, reduce)


def closed_form(name: str, **options: Any) -> ClosedForm:
    """A loss by name, in the form that can be computed in blocks.

    Args:
        name: that of a function of this module.
        options: ``k``, ``alpha`` and ``clamp`` of ``soft_top_k``.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    forms: dict[str, Form] = {
        "softmax": softmax_form,
        "decoupled_softmax": decoupled_softmax_form,
        "supcon": supcon_form,
        "balanced": balanced_form,
        "bce": bce_form,
        "soft_top_k": soft_top_k_form,
    }
    if name not in forms:
        raise ValueError(f"unknown loss {name!r}; choose one of {', '.join(forms)}")
    compute = partial(forms[name], **options) if options else forms[name]
    return ClosedForm(compute, positives_apart=name in ("decoupled_softmax", "balanced"))


class _Loss(torch.autograd.Function):
    """A scalar whose gradient is computed together with its value, from logits that are there."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        form: ClosedForm,
        positives: Tensor,
        weights: Tensor | None,
        reduce: Reduce | None,
        entries: Tensor | None,
    ) -> Tensor:
        raised = logits.clone() if logits.dtype in (torch.float32, torch.float64) else logits.float()
        size, reduce = torch.tensor(float(logits.numel())).to(raised), reduce or _identity
        if entries is None:
            entries = reduce(size.expand(len(logits)), "sum")[0] if len(logits) else size
        pairs = gather(positives, raised[positives[0], positives[1]], weights, len(logits), entries, reduce=reduce)
        if form.positives_apart:
            raised[positives[0], positives[1]] = -torch.inf
        every = slice(None)

        def scan(find: Callable[[Tensor, slice], Tensor], op: Op) -> Tensor:
            return reduce(find(raised.clone(), every), op)

        value, gradient = form.compute(pairs, scan, ctx.needs_input_grad[0])
        if gradient is not None:
            whole = gradient.block(raised, every)
            whole[positives[0], positives[1]] = gradient.positives
            ctx.save_for_backward(whole)
        ctx.dtype = logits.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None, None, None, None, None


def apply(
    form: ClosedForm,
    logits: Tensor,
    positives: Tensor,
    weights: Tensor | None = None,
    reduce: Reduce | None = None,
    entries: Tensor | None = None,
) -> Tensor:
    """The loss of a form, from logits of any floating type that are there; autograd can differentiate it once.

    ``entries`` are the logits of all shards, where they are not as many as there are columns. The other arguments, the
    result and the errors are those of `softmax`.
    """
    check_pairs(logits.shape, positives, weights)
    if not len(logits):  # nothing to learn from
        return logits.sum()
    value: Tensor = _Loss.apply(logits, form, positives, weights, reduce, entries)
    return value


def check_pairs(shape: torch.Size | tuple[int, ...], positives: Tensor, weights: Tensor | None) -> None:
    """Refuse positives (2, M) or weights (M,) that do not fit logits of the shape (B, P).

    Raises:
        ValueError: naming the shape that is wrong, or the pair that is outside the logits.
    """
    if len(shape) != 2:
        raise ValueError(f"logits must be (B, P), got {tuple(shape)}")
    if positives.ndim != 2 or positives.shape[0] != 2 or positives.dtype != torch.int64:
        raise ValueError(f"positives must be (2, M) int64, got {tuple(positives.shape)} {positives.dtype}")
    if weights is not None and weights.shape != positives.shape[1:]:
        raise ValueError(f"weights must be ({positives.shape[1]},) like the positives, got {tuple(weights.shape)}")
    if not shape[1]:
        raise ValueError("a loss needs at least one label, got logits without columns")
    check_range(shape, positives, "positives")


def check_range(shape: torch.Size | tuple[int, ...], pairs: Tensor, name: str) -> None:
    """Refuse pairs (2, M) outside logits of the shape (B, P), which indexing would wrap around to others.

    Raises:
        ValueError: naming the pairs, and the first of them that is outside.
    """
    sizes = torch.tensor(shape, device=pairs.device)[:, None]
    outside = ((pairs < 0) | (pairs >= sizes)).any(dim=0)
    if bool(outside.any()):
        row, column = pairs[:, outside.nonzero()[0, 0]].tolist()
        raise ValueError(f"{name} has the pair (row {row}, column {column}), which is outside logits {tuple(shape)}")


def _identity(x: Tensor, op: str) -> Tensor:
    return x


def gather(
    positives: Tensor,
    logits: Tensor,
    weights: Tensor | None,
    n_rows: int,
    entries: Tensor,
    bound: float = math.inf,
    reduce: Reduce | None = None,
) -> Pairs:
    """Make `Pairs` of the positives (2, M) of a batch of ``n_rows`` rows, of their logits (M,) and their relevances.

    The other arguments are those of `Pairs`; without ``weights`` all relevances are 1, without ``reduce`` there is one
    shard.

    Raises:
        ValueError: a positive whose logit is -inf.
    """
    if bool((logits == -torch.inf).any()):
        raise ValueError("a positive has the logit -inf; leave masked pairs out of `positives`")
    reduce = reduce or _identity
    r = torch.ones_like(logits) if weights is None else weights.to(logits)
    m = reduce(_sum_rows(positives[0], torch.ones_like(logits), n_rows), "sum")
    divisor = (m > 0).sum().clamp(min=1).to(logits.dtype)
    return Pairs(positives[0], positives[1], logits, r, m.clamp(min=1), divisor, entries, bound, reduce)


def _sum_rows(rows: Tensor, values: Tensor, n: int) -> Tensor:
    return values.new_zeros(n).index_add_(0, rows, values)


def _log_sum_exp(pairs: Pairs) -> Callable[[Tensor, slice], Tensor]:
    """The logsumexp of the rows of a block; of logits known to be small, without looking for the largest."""
    if pairs.bound <= SAFE_EXPONENT:
        return small_log_sum_exp
    return lambda block, rows: _exp_rows(block)[2]


def small_log_sum_exp(block: Tensor, rows: slice) -> Tensor:
    """The logsumexp of the rows of a block (b, c), whose exp cannot overflow and is left in its memory."""
    return block.exp_().sum(dim=1).log()


def _exp_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(x - row maximum) in x's buffer, the row maxima, and the logsumexp of the rows (-inf for none)."""
    top = x.amax(dim=1)
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    e = x.sub_(top[:, None]).exp_()
    return e, top, e.sum(dim=1).log() + top


def _scaled_exp(block: Tensor, log_scale: Tensor) -> Tensor:
    """exp(block + log_scale) by row, in the block's memory; 0 in rows whose scale is 0."""
    return block.add_(log_scale[:, None]).exp_()


def softmax_form(pairs: Pairs, scan: Scan, gradient: bool) -> tuple[Tensor, Gradient | None]:
    """Value and gradient of `softmax`: d/ds_ij = ((sum_p r_ip) pi_ij - r_ij y_ij) / R."""
    log_z = scan(_log_sum_exp(pairs), "logsumexp")
    return _softmax(pairs, pairs.weights / pairs.divisor, log_z, pairs.logits, gradient)


def supcon_form(pairs: Pairs, scan: Scan, gradient: bool) -> tuple[Tensor, Gradient | None]:
    """Value and gradient of `supcon`: d/ds_ij = ((sum_p r_ip) pi_ij - r_ij y_ij) / (m_i R)."""
    weights = pairs.weights / (pairs.per_row[pairs.rows] * pairs.divisor)
    return _softmax(pairs, weights, scan(_log_sum_exp(pairs), "logsumexp"), pairs.logits, gradient)


def balanced_form(pairs: Pairs, scan: Scan, gradient: bool) -> tuple[Tensor, Gradient | None]:
    """Value and gradient of `balanced`; its scan leaves out positives.

    d/ds_ij = ((sum_p r_ip) exp(s_ij - y_ij log m_i - logD_i) - r_ij y_ij) / (m_i R).
    """
    weights = pairs.weights / (pairs.per_row[pairs.rows] * pairs.divisor)
    lowered = pairs.logits - pairs.per_row[pairs.rows].log()
    of_positives = pairs.reduce(_log_sum_exp_pairs(pairs, lowered), "logsumexp")
    log_d = torch.logaddexp(scan(_log_sum_exp(pairs), "logsumexp"), of_positives)
    return _softmax(pairs, weights, log_d, lowered, gradient)


def _log_sum_exp_pairs(pairs: Pairs, values: Tensor) -> Tensor:
    """The logsumexp of (M,) values by row, of this shard; -inf for none."""
    top = torch.full_like(pairs.per_row, -torch.inf).scatter_reduce(0, pairs.rows, values, "amax")
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    return _sum_rows(pairs.rows, (values - top[pairs.rows]).exp(), len(top)).log() + top


def _softmax(
    pairs: Pairs, weights: Tensor, log_z: Tensor, in_denominator: Tensor, gradient: bool
) -> tuple[Tensor, Gradient | None]:
    """Sum over the positives of weight (log denominator - logit), and its gradient.

    The weights (M,) include the divisor; ``log_z`` (B,) is the log of the denominators, and ``in_denominator`` (M,) the
    exponents with which positives stand in them.
    """
    here = log_z[pairs.rows]
    value = pairs.row_sums(weights * (here - pairs.logits)).sum()
    if not gradient:
        return value, None
    mass = pairs.row_sums(weights)
    log_scale = torch.where(mass > 0, mass.log() - log_z, -torch.inf)
    at_positives = (in_denominator - here).exp() * mass[pairs.rows] - weights
    return value, Gradient(lambda block, rows: _scaled_exp(block, log_scale[rows]), at_positives, log_scale)


def decoupled_softmax_form(pairs: Pairs, scan: Scan, gradient: bool) -> tuple[Tensor, Gradient | None]:
    """Value and gradient of `decoupled_softmax`; its scan leaves out positives.

    d/ds_ip = -r_ip a_ip / (m_i R) and d/ds_in = exp(s_in - logZ_i) (sum_p r_ip a_ip) / (m_i R), with logZ over the
    negatives and a_ip = 1 - pi_ip.
    """
    log_z = scan(_log_sum_exp(pairs), "logsumexp")
    here = log_z[pairs.rows]
    log_all = torch.logaddexp(pairs.logits, here)
    value = (pairs.row_sums(pairs.weights * (log_all - pairs.logits)) / pairs.per_row).sum() / pairs.divisor
    if not gradient:
        return value, None
    pull = pairs.weights * (here - log_all).exp() / (pairs.per_row[pairs.rows] * pairs.divisor)
    push = pairs.row_sums(pull)
    log_scale = torch.where(push > 0, push.log() - log_z, -torch.inf)
    return value, Gradient(lambda block, rows: _scaled_exp(block, log_scale[rows]), -pull, log_scale)


def bce_form(pairs: Pairs, scan: Scan, gradient: bool) -> tuple[Tensor, Gradient | None]:
    """Value and gradient of `bce`: d/ds_ij = (sigmoid(s_ij) - r_ij y_ij) / (B P)."""

    def softplus(block: Tensor, rows: slice) -> Tensor:
        top = block.clamp(min=0).sum(dim=1)
        return block.abs_().neg_().exp_().log1p_().sum(dim=1).add_(top)

    mass = scan(softplus, "sum") - pairs.row_sums(pairs.weights * pairs.logits)
    value = mass.sum() / pairs.entries
    if not gradient:
        return value, None
    at_positives = (pairs.logits.sigmoid() - pairs.weights) / pairs.entries
    return value, Gradient(lambda block, rows: block.sigmoid_().div_(pairs.entries), at_positives)


def soft_top_k_form(
    pairs: Pairs, scan: Scan, gradient: bool, *, k: Places = 5, alpha: float = 2.0, clamp: bool = False
) -> tuple[Tensor, Gradient | None]:
    """Value and gradient of `soft_top_k`, the gradient through log z; ``clamp`` as in `top_k_shift`.

    With q_j = g_j alpha (1 - z_j) and v_j = alpha z_j (1 - z_j): g'_j = q_j - (sum q) v_j / sum v. The ratio
    v_j / sum v is a softmax of log v_j, which stays finite where every z has saturated.
    """
    shift = find_shift(scan, pairs.per_row if isinstance(k, str) else k, alpha, pairs.logits.dtype, clamp)
    u = (pairs.logits + shift[pairs.rows]) * alpha
    lost = pairs.weights * torch.logaddexp(-u, torch.zeros_like(u))
    value = (pairs.row_sums(lost) / pairs.per_row).sum() / pairs.divisor
    if not gradient:
        return value, None

    def log_v(x: Tensor, rows: slice) -> Tensor:  # log z + log(1 - z) = -|u| - 2 log(1 + exp(-|u|))
        a = x.add_(shift[rows, None]).mul_(alpha).abs_()
        return torch.log1p((-a).exp_()).mul_(-2).sub_(a)

    log_sum = scan(lambda block, rows: _exp_rows(log_v(block, rows))[2], "logsumexp")
    q = -pairs.weights / (pairs.per_row[pairs.rows] * pairs.divisor) * alpha * torch.sigmoid(-u)
    log_scale = (-pairs.row_sums(q)).log() - log_sum
    log_v_positive = -u.abs() - 2 * torch.log1p((-u.abs()).exp())
    at_positives = q + (log_v_positive + log_scale[pairs.rows]).exp()
    return value, Gradient(lambda block, rows: _scaled_exp(log_v(block, rows), log_scale[rows]), at_positives)


@torch.no_grad()
def top_k_shift(
    logits: Tensor, k: int | Tensor, alpha: float, reduce: Reduce | None = None, clamp: bool = False
) -> Tensor:
    """The shift t of every row with ``sum_j sigmoid(alpha (s_j + t)) = k``.

    Args:
        logits: (B, P) float32 or float64; columns of -inf do not count.
        k: the number of places, one for all rows or a (B,) tensor.
        alpha: steepness of the sigmoid, above 0.
        reduce: combines a (B,) tensor over label shards; None for one shard.
        clamp: lower k to one less than the columns that count (to a half where only one does) instead of refusing.

    Returns:
        (B,) shifts.

    Raises:
        ValueError: alpha is not above 0, or k is not strictly between 0 and the number of columns that count.
    """
    reduce = reduce or _identity
    return find_shift(lambda find, op: reduce(find(logits.clone(), slice(None)), op), k, alpha, logits.dtype, clamp)


def find_shift(scan: Scan, k: int | Tensor, alpha: float, dtype: torch.dtype, clamp: bool = False) -> Tensor:
    """`top_k_shift` of logits that are scanned: Newton's steps inside a bracket, which is halved where they leave it.

    Arguments and errors are those of `top_k_shift`; ``dtype`` is that of the logits.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    n = scan(lambda block, rows: (block > -torch.inf).sum(dim=1).to(dtype), "sum")
    places = torch.as_tensor(k, device=n.device).to(dtype).expand(len(n))
    if clamp:
        places = torch.minimum(places, torch.maximum(n - 1, n / 2))
    if bool((places <= 0).any()) or bool((places >= n).any()):
        fewest = int(n.min()) if len(n) else 0
        raise ValueError(f"soft top-k needs 0 < k < the number of columns that count ({fewest}), got k = {k}")
    largest = scan(lambda block, rows: block.amax(dim=1), "max")
    smallest = scan(lambda block, rows: block.masked_fill_(block == -torch.inf, torch.inf).amin(dim=1), "min")
    c = (places / (n - places)).log() / alpha
    low, high = c - largest, c - smallest
    shift = (low + high) / 2
    small = 4 * torch.finfo(dtype).eps
    for step in range(120 if dtype == torch.float64 else 60):
        now = shift

        def members(block: Tensor, rows: slice) -> Tensor:
            z = block.add_(now[rows, None]).mul_(alpha).sigmoid_()  # noqa: B023
            total = z.sum(dim=1)
            return torch.stack([total, (total - z.square_().sum(dim=1)) * alpha], dim=1)

        mass, slope = scan(members, "sum").unbind(dim=1)
        low, high = torch.where(mass < places, now, low), torch.where(mass < places, high, now)
        near = ((mass - places).abs() <= small * places) | (high - low <= small * torch.maximum(low.abs(), high.abs()))
        if bool(near.all()):
            break
        newton = now - (mass / places).log() * mass / slope  # of the log: few places are an exponential tail
        inside = (newton > low) & (newton < high) & (step % 3 < 2)
        shift = torch.where(near, now, torch.where(inside, newton, (low + high) / 2))
    return shift
