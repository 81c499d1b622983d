"""Texts laid end to end through a transformer: no padding is computed, and texts of one length share their attention.

Linear layers, norms and activations see one row a token. Attention sees each run of neighbours of equal length as one
batch, so texts sorted by length need few products and no mask. Matrix products in bf16 prepare a kernel for each new
shape, so the number of rows is rounded up, and the small products of attention, whose shapes are many, are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tokens import Tokens
from .attention import by_products, products_pay

NAME = "labelspace_packed"
PLACED = {"bert": False, "distilbert": False, "electra": False, "roberta": True, "xlm-roberta": True, "camembert": True}
"""Architectures that know places by position numbers alone; whether those start after the padding number."""
POOLINGS = ("mean", "cls")

ROUND_FROM, ROUND_TO = 512, 256
"""From so many tokens on their number is rounded up to a multiple, by tokens that no text has."""

Run = tuple[int, int, int]
"""First token, first token after it, and length of each text of a run of texts of equal length."""


def register() -> None:
    """Make the attention known to transformers by `NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)


def runs(lengths: list[int]) -> list[Run]:
    """Runs of neighbouring texts of equal length, from the tokens of each text."""
    text_runs, start = [], 0
    for length, same in groupby(lengths):
        end = start + length * sum(1 for _ in same)
        if length:
            text_runs.append((start, end, length))
        start = end
    return text_runs


def inputs(tokens: Tokens, first_position: int) -> dict[str, Any]:
    """Keyword arguments of the transformer: ids and positions (1, T), and the runs.

    Args:
        tokens: n texts, best sorted by length.
        first_position: position number of a text's first token.
    """
    lengths = tokens.lengths
    count = len(tokens.ids)
    size = count if count < ROUND_FROM else -(-count // ROUND_TO) * ROUND_TO
    ids, places = np.zeros(size, dtype=np.int64), np.full(size, first_position)
    ids[:count] = tokens.ids
    places[:count] += np.arange(count) - np.repeat(tokens.offsets[:-1], lengths)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(places)[None],
        "text_runs": runs(lengths.tolist()),
    }


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    text_runs: list[Run],
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Every token attends to the tokens of its own text; called by the transformers library.

    Args:
        module: the layer, not used.
        query: (1, heads, T, d).
        key: (1, heads, T, d).
        value: (1, heads, T, d).
        attention_mask: not used: runs take its place.
        text_runs: which tokens belong together.
        scaling: of the products; None for 1 / sqrt(d).
        dropout: of the attention weights.
        others: not used.

    Returns:
        (1, T, heads, d), and None for the attention weights.
    """
    heads, _, width = query.shape[1:]
    scaling = width**-0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        if not dropout and all(products_pay(length, heads, width, query.device) for _, _, length in text_runs):
            return _Products.apply(query, key, value, tuple(text_runs), scaling), None
        return run_by_run(query, key, value, text_runs, scaling, dropout), None


def run_by_run(
    query: Tensor, key: Tensor, value: Tensor, text_runs: list[Run], scaling: float, dropout: float
) -> Tensor:
    """`attention` of one run after the other, in float32, by what is faster for its length: (1, T, heads, d)."""
    heads, size, width = query.shape[1:]
    parts = []
    of_runs = zip(*(_split(x[0], text_runs, 1) for x in (query, key, value)), strict=True)
    for (start, end, length), run in zip(text_runs, of_runs, strict=True):
        q, k, v = (x.unflatten(1, (-1, length)).to(torch.float32, memory_format=torch.contiguous_format) for x in run)
        if products_pay(length, heads, width, query.device):
            mixed = by_products(q, k, v, scaling, dropout)
        else:
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        parts.append(mixed.to(query.dtype).permute(1, 2, 0, 3).reshape(end - start, heads, width))
    rest = size - sum(len(part) for part in parts)
    if rest:
        parts.append(query.new_zeros(rest, heads, width))
    return torch.cat(parts)[None]


class _Products(torch.autograd.Function):
    """`run_by_run` where products pay for every run, without dropout.

    All runs are laid out and put back at once, and results are written where they belong, so that of the small steps of
    each run only the products and the softmax are left.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, text_runs: tuple[Run, ...], scaling: float
    ) -> Tensor:
        heads, size, width = query.shape[1:]
        order, inverse = (x.to(query.device) for x in _places(text_runs, heads, size))
        queries, keys, values = (
            x[0].transpose(0, 1).reshape(-1, width).index_select(0, order).float() for x in (query, key, value)
        )
        weights = queries.new_empty(sum(heads * (end - start) * length for start, end, length in text_runs))
        mixed = _room(queries, text_runs, heads)
        for q, k, v, out, w in _of_runs(text_runs, heads, weights, queries, keys, values, mixed):
            torch.baddbmm(w, q, k.transpose(1, 2), beta=0, alpha=scaling, out=w)
            torch.softmax(w, 2, out=w)
            torch.bmm(w, v, out=out)
        ctx.text_runs, ctx.scaling = text_runs, scaling
        ctx.save_for_backward(queries, keys, values, weights, order, inverse)
        return mixed.to(query.dtype).index_select(0, inverse).view(1, size, heads, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, weights, order, inverse = ctx.saved_tensors
        heads, width = gradient.shape[2:]
        mixed = gradient.reshape(-1, width).index_select(0, order).float()
        gradients = [_room(mixed, ctx.text_runs, heads) for _ in range(3)]
        for q, k, v, out, of_q, of_k, of_v, w in _of_runs(
            ctx.text_runs, heads, weights, queries, keys, values, mixed, *gradients
        ):
            torch.bmm(w.transpose(1, 2), out, out=of_v)
            of_products = torch._softmax_backward_data(torch.bmm(out, v.transpose(1, 2)), w, 2, w.dtype)
            torch.baddbmm(of_q, of_products, k, beta=0, alpha=ctx.scaling, out=of_q)
            torch.baddbmm(of_k, of_products.transpose(1, 2), q, beta=0, alpha=ctx.scaling, out=of_k)
        shape = (1, -1, heads, width)
        restored = (x.to(gradient.dtype).index_select(0, inverse).view(shape).transpose(1, 2) for x in gradients)
        return (*restored, None, None)


@functools.lru_cache(maxsize=4)  # every layer asks for the same
def _places(text_runs: tuple[Run, ...], heads: int, size: int) -> tuple[Tensor, Tensor]:
    """The order of rows (token, head) that lays out each run as (text, head, token), and its inverse; int64."""
    rows = np.arange(size * heads)
    for start, end, length in text_runs:
        part = rows[start * heads : end * heads]
        part[:] = part.reshape(-1, length, heads).transpose(0, 2, 1).reshape(-1)
    inverse = np.empty_like(rows)
    inverse[rows] = np.arange(len(rows))
    return torch.from_numpy(rows), torch.from_numpy(inverse)


def _room(like: Tensor, text_runs: tuple[Run, ...], heads: int) -> Tensor:
    """Memory for results of all runs; zeros behind them, for tokens that no text has."""
    room = torch.empty_like(like)
    room[heads * max((end for _, end, _ in text_runs), default=0) :] = 0
    return room


def _of_runs(
    text_runs: tuple[Run, ...], heads: int, weights: Tensor, *laid_out: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Each run's part of everything laid out, (n * heads, length, d), and its weights, (n * heads, length, length)."""
    begin = 0
    for start, end, length in text_runs:
        rows = slice(start * heads, end * heads)
        stop = begin + heads * (end - start) * length
        yield (
            *(x[rows].unflatten(0, (-1, length)) for x in laid_out),
            weights[begin:stop].view(-1, length, length),
        )
        begin = stop


def pool(hidden: Tensor, text_runs: list[Run], mode: str) -> Tensor:
    """Vectors (n, H) float32 of texts from those of their tokens (T, H); mode is ``mean`` or ``cls``.

    Every text must have a token.
    """
    parts = []
    for (_, _, length), run in zip(text_runs, _split(hidden, text_runs, 0), strict=True):
        texts = run.unflatten(0, (-1, length)).float()
        parts.append(texts.mean(1) if mode == "mean" else texts[:, 0])
    return torch.cat(parts)


def _split(tokens: Tensor, text_runs: list[Run], dim: int) -> list[Tensor]:
    """The tokens of each run. Slices would each give a gradient as large as the whole, and these would be added up."""
    sizes = [end - start for start, end, _ in text_runs]
    rest = tokens.shape[dim] - sum(sizes)
    return list(tokens.split([*sizes, rest], dim=dim))[: len(sizes)]
