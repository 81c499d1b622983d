"""The losses from queries and keys, a few rows of logits at a time.

``linear_loss(form, queries, keys, positives)`` equals ``loss(queries @ keys.T / temperature, positives)`` but never
holds the (B, P) logits: value and gradients of a block of rows are found together, the block is dropped, and
only the (B, D) and (P, D) gradients are kept for the backward pass. ``linear_loss_plain`` is its twin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .estimate import LOGITS_BLOCK_BYTES
from .losses import ClosedForm, apply, check_pairs


def linear_loss_plain(
    form: ClosedForm,
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    hidden: Tensor | None = None,
    weights: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The loss of all logits at once: the plain twin of `linear_loss`.

    Args:
        form: a loss in value-and-gradient form.
        queries: (B, D) float32 or float64.
        keys: (P, D) of the same dtype.
        positives: (2, M) int64 pairs (row, column).
        temperature: divides the products.
        hidden: (2, H) int64 pairs whose logits are set to -inf.
        weights: (M,) relevance of each positive.
        dtype: type of the matrix products; None for that of the queries.

    Returns:
        A scalar; gradients flow to queries and keys.
    """
    low = dtype or queries.dtype
    logits = (queries.to(low) @ keys.to(low).T).to(queries.dtype) / temperature
    if hidden is not None:
        logits = logits.index_put((hidden[0], hidden[1]), logits.new_tensor(-torch.inf))

    return apply(form.compute, logits, positives, weights)


def linear_loss(
    form: ClosedForm,
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    hidden: Tensor | None = None,
    weights: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A loss of ``queries @ keys.T / temperature``, in blocks of rows.

    Args:
        form: a loss in value-and-gradient form, see `losses.closed_form`.
        queries: (B, D) float32 or float64 document vectors.
        keys: (P, D) label vectors of the same dtype.
        positives: (2, M) int64 pairs (row, column).
        temperature: divides the products.
        hidden: (2, H) int64 pairs whose logits are set to -inf.
        weights: (M,) relevance of each positive.
        dtype: type of the three matrix products; None for that of the queries. Logits and losses stay in that of
            the queries.

    Returns:
        A scalar; gradients flow to queries and keys.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries (B, D) and keys (P, D) do not fit: {tuple(queries.shape)}, {tuple(keys.shape)}")
    check_pairs((len(queries), len(keys)), positives, weights)
    return _Linear.apply(queries, keys, form, positives, temperature, hidden, weights, dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        form: ClosedForm,
        positives: Tensor,
        temperature: float,
        hidden: Tensor | None,
        weights: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        batch, pool = len(queries), len(keys)
        low = dtype or queries.dtype
        queries_low, keys_low = queries.to(low), keys.to(low)
        wanted = any(ctx.needs_input_grad[:2])
        grad_queries = torch.empty_like(queries) if wanted else None
        grad_keys = torch.zeros_like(keys) if wanted else None
        block = max(1, min(batch, LOGITS_BLOCK_BYTES // (4 * max(1, pool))))

        order = torch.argsort(positives[0], stable=True)
        positives = positives[:, order]
        weights = weights if weights is None else weights[order]
        if hidden is not None:
            hidden = hidden[:, torch.argsort(hidden[0], stable=True)]
        counts = torch.bincount(positives[0], minlength=batch)
        rows_with_positive = (counts > 0).sum().clamp(min=1)
        total = torch.zeros((), dtype=queries.dtype, device=queries.device)

        for start in range(0, batch, block):
            stop = min(start + block, batch)
            part, part_weights = _slice_pairs(positives, start, stop, weights)
            logits = (queries_low[start:stop] @ keys_low.T).to(queries.dtype).div_(temperature)
            if hidden is not None:
                masked, _ = _slice_pairs(hidden, start, stop, None)
                logits[masked[0], masked[1]] = -torch.inf
            value, gradient = form.compute(logits, part, part_weights, None, wanted)
            if form.mean_over == "entries":
                share = torch.tensor((stop - start) / batch, dtype=queries.dtype, device=queries.device)
            else:
                share = (counts[start:stop] > 0).sum().to(queries.dtype) / rows_with_positive
            total += value * share
            if gradient is not None:
                assert grad_queries is not None and grad_keys is not None
                scaled = gradient.mul_(share / temperature).to(low)
                grad_queries[start:stop] = (scaled @ keys_low).to(queries.dtype)
                grad_keys += (scaled.T @ queries_low[start:stop]).to(keys.dtype)
        if wanted:
            ctx.save_for_backward(grad_queries, grad_keys)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        grad_queries, grad_keys = ctx.saved_tensors
        return grad_queries * grad_output, grad_keys * grad_output, None, None, None, None, None, None


def _slice_pairs(pairs: Tensor, start: int, stop: int, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The pairs whose row is in [start, stop), rows counted from start; pairs are sorted by row."""
    bounds = torch.tensor([start, stop], device=pairs.device)
    first, last = torch.searchsorted(pairs[0].contiguous(), bounds).tolist()
    part = pairs[:, first:last].clone()
    part[0] -= start
    return part, None if weights is None else weights[first:last]
