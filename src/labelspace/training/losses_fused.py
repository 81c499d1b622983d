"""The losses from queries and keys, a block of logits at a time.

``linear_loss(form, queries, keys, positives)`` equals ``loss(queries @ keys.T / temperature, positives)`` but never
holds the (B, P) logits. The forward pass goes over blocks of labels and keeps what the form needs of each row, a
logsumexp say; the backward pass makes each block again and turns it into the gradients. Positives are few, so their
part of the gradient is found apart and exactly. ``linear_loss_plain`` is its twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .losses import ClosedForm, Gradient, Op, Reduce, apply, check_pairs, check_range, gather, small_log_sum_exp
from .required_memory import LOGITS_BLOCK_BYTES

ROW_BLOCK = 1024
"""Rows of a block of logits; products of fewer are slower."""
KEPT_PRODUCTS = 224 << 20
"""Bytes of products, or of their exp, that are kept for the backward pass; those of further blocks are made again."""
KEPT_EXPONENT = 32.0
"""Of logits no larger exp is kept instead, and scaled after its products: it is far from the ends of bf16's range."""
LOW_LOGITS = 36.0
"""Largest possible logit up to which products may be made in bf16, which rounds a logit by up to 1/512 of itself. The
gradient is then off by about 0.1%, and by 0.4% at 50, 1.5% at 100 and 2.3% at 225 (raw vectors of length 15), where
the published code takes logits in float32."""
PAIR_BLOCK = 16_384
"""Pairs whose products are computed at a time."""
COMBINE: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add, "max": torch.maximum, "min": torch.minimum, "logsumexp": torch.logaddexp,
}  # fmt: skip
"""How what a form computes of two blocks of labels is combined."""


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
    reduce: Reduce | None = None,
) -> Tensor:
    """The loss of all logits at once: the plain twin of `linear_loss`, with its arguments, result and errors.

    The products are made in ``dtype``, however large logits are.
    """
    keys, hidden, entries = _one_key(queries, keys, hidden, reduce)
    _check(queries, keys, positives, temperature, hidden, weights)
    low = dtype or queries.dtype
    logits = (queries.to(low) @ keys.to(low).T).to(queries.dtype) / temperature
    if hidden is not None:
        logits = logits.index_put((hidden[0], hidden[1]), logits.new_tensor(-torch.inf))
    return apply(form, logits, positives, weights, reduce, entries)


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
    reduce: Reduce | None = None,
) -> Tensor:
    """A loss of ``queries @ keys.T / temperature``, in blocks of labels, so that (B, P) logits are never held.

    Args:
        form: a loss, see `losses.closed_form`.
        queries: (B, D) float32 or float64 document vectors.
        keys: (P, D) label vectors, of the same dtype or bf16.
        positives: (2, M) int64 pairs (row, column).
        temperature: divides the products.
        hidden: (2, H) int64 pairs whose logits are set to -inf.
        weights: (M,) relevance of each positive.
        dtype: type of the products of blocks; None for that of the queries, in which losses always are. A lower one is
            taken only where no logit can be above LOW_LOGITS, as with unit vectors at a temperature of 0.03 or more.
        reduce: combines (B,) tensors over processes of which each has all queries and some of the keys, see
            `losses`; a process without keys takes part too. None for one that has all keys.

    Returns:
        A scalar; gradients flow to queries and keys. Of several processes each gets the loss of all keys, and its own
        part of the gradient of the queries.

    Raises:
        ValueError: shapes or a type that do not fit, pairs outside the logits, a temperature that is not above 0, or a
            positive that is hidden.
    """
    keys, hidden, entries = _one_key(queries, keys, hidden, reduce)
    _check(queries, keys, positives, temperature, hidden, weights)
    if not len(queries):  # nothing to learn from, and no block to look at
        return queries.sum() + 0.0 * keys.sum().to(queries.dtype)
    value: Tensor = _Linear.apply(queries, keys, form, positives, temperature, hidden, weights, dtype, reduce, entries)
    return value


def _one_key(
    queries: Tensor, keys: Tensor, hidden: Tensor | None, reduce: Reduce | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The keys, or a hidden one where this process has none, the hidden pairs, and entries B P of all processes."""
    entries = torch.tensor(float(len(queries) * len(keys))).to(queries)
    if reduce is None:
        return keys, hidden, entries
    if len(queries):
        entries = reduce(entries.expand(len(queries)), "sum")[0]
    if not len(keys):
        rows = torch.arange(len(queries), device=queries.device)
        keys = torch.cat([keys, keys.new_zeros(1, keys.shape[1])])
        hidden = torch.stack([rows, torch.zeros_like(rows)])
    return keys, hidden, entries


def _check(
    queries: Tensor, keys: Tensor, positives: Tensor, temperature: float, hidden: Tensor | None, weights: Tensor | None
) -> None:
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries (B, D) and keys (P, D) do not fit: {tuple(queries.shape)}, {tuple(keys.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature, which divides the products, must be above 0, got {temperature}")
    if queries.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"queries must be float32 or float64, got {queries.dtype}; `dtype` is that of the products")
    shape = (len(queries), len(keys))
    check_pairs(shape, positives, weights)
    if hidden is not None:
        check_range(shape, hidden, "hidden")
        places, hidden_places = (x[0] * len(keys) + x[1] for x in (positives, hidden))
        if bool(torch.isin(places, hidden_places).any()):
            raise ValueError("a positive is hidden; leave masked pairs out of `positives`")


class _Blocks:
    """Makes logits, a block of labels (columns) after the other, into one buffer.

    A block has a number. Products of the first ``kept`` blocks stay in memory between the passes; ``has_products``
    has the numbers of blocks whose products are in memory, ``has_exps`` of those that have exp of the logits there.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        temperature: float,
        positives: Tensor,
        hidden: Tensor | None,
        low: torch.dtype,
        bound: float,
    ):
        self.keys, self.low, self.high = keys, low, queries.dtype
        self.small = bound <= KEPT_EXPONENT
        self.queries = (queries / temperature).to(low)
        self.height = min(ROW_BLOCK, len(queries))
        self.width = min(len(keys), max(1, LOGITS_BLOCK_BYTES // (queries.element_size() * self.height)))
        device = queries.device
        self.keys_low = torch.empty(self.width, keys.shape[1], dtype=low, device=device)
        slot = self.height * self.width
        self.logits = torch.empty(slot, dtype=self.high, device=device) if low != self.high else None
        self.row_blocks = -(-len(queries) // self.height)
        self.count = count = self.row_blocks * -(-len(keys) // self.width)
        keeps = self.logits is not None or self.small  # without a copy, what is made of products overwrites them
        self.kept = min(count, KEPT_PRODUCTS // (slot * low.itemsize)) if keeps else 0
        self.products = torch.empty(self.kept + (self.kept < count), slot, dtype=low, device=device)
        self.has_products: set[int] = set()
        self.has_exps: set[int] = set()
        self.positives, self.hidden = _Places(positives, self), None if hidden is None else _Places(hidden, self)

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of columns, and their keys in the type of the products."""
        for start in range(0, len(self.keys), self.width):
            part = self.keys[start : start + self.width]
            keys = part if part.dtype == self.low else self.keys_low[: len(part)].copy_(part)
            yield slice(start, start + len(part)), keys

    def rows(self) -> Iterator[slice]:
        """Blocks of rows."""
        for start in range(0, len(self.queries), self.height):
            yield slice(start, min(start + self.height, len(self.queries)))

    def number(self, rows: slice, columns: slice) -> int:
        """Number of a block."""
        return columns.start // self.width * self.row_blocks + rows.start // self.height

    def low_block(self, rows: slice, columns: slice) -> Tensor:
        """Memory of the products of a block, (b, c)."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        slot = self.products[min(self.number(rows, columns), self.kept, len(self.products) - 1)]
        return slot[: shape[0] * shape[1]].view(shape)

    def make(self, rows: slice, columns: slice, keys: Tensor, apart: bool) -> Tensor:
        """The logits of a block (b, c); hidden ones, and positives that stand apart, are -inf."""
        block, number = self.low_block(rows, columns), self.number(rows, columns)
        if number not in self.has_products:
            torch.mm(self.queries[rows], keys.T, out=block)
            self.has_exps.discard(number)
            if number < self.kept and self.logits is not None:
                self.has_products.add(number)
        if self.logits is not None:
            block = self.logits[: block.numel()].view(block.shape).copy_(block)
        if self.hidden is not None:
            block.view(-1).index_fill_(0, self.hidden.within(number, rows, columns), -torch.inf)
        if apart:
            block.view(-1).index_fill_(0, self.positives.within(number, rows, columns), -torch.inf)
        return block

    def exp(self, rows: slice, columns: slice, keys: Tensor) -> Tensor:
        """exp of the logits of a block (b, c), in the type of the products; of positives it is anything."""
        block = self.low_block(rows, columns)
        if self.number(rows, columns) in self.has_exps:
            return block
        return block.copy_(self.make(rows, columns, keys, True).exp_())

    def scan(self, find: Callable[[Tensor, slice], Tensor], op: Op, apart: bool, keep: bool) -> Tensor:
        """What a form asks of all logits; exps that it leaves can be kept for the backward pass."""
        combined: list[Tensor] = []
        for columns, keys in self.columns():
            for i, rows in enumerate(self.rows()):
                block, number = self.make(rows, columns, keys, apart), self.number(rows, columns)
                part = find(block, rows)
                if keep and self.small and number < self.kept and find is small_log_sum_exp:
                    if self.logits is not None:
                        self.low_block(rows, columns).copy_(block)
                    self.has_products.discard(number)
                    self.has_exps.add(number)
                if columns.start:
                    combined[i] = COMBINE[op](combined[i], part)
                else:
                    combined.append(part)
        return torch.cat(combined)


class _Places:
    """Pairs (row, column), sorted by block."""

    def __init__(self, pairs: Tensor, blocks: _Blocks):
        block = pairs[1] // blocks.width * blocks.row_blocks + pairs[0] // blocks.height
        order = torch.argsort(block, stable=True)
        self.pairs = pairs[:, order]
        ends = torch.bincount(block, minlength=blocks.count).cumsum(0)
        self.ends = [0, *ends.tolist()]

    def within(self, number: int, rows: slice, columns: slice) -> Tensor:
        """Places of the pairs in a block that is laid out row by row."""
        row, column = self.pairs[:, self.ends[number] : self.ends[number + 1]]
        return (row - rows.start) * (columns.stop - columns.start) + (column - columns.start)


class _Linear(torch.autograd.Function):
    """`linear_loss` of a query at least and a label at least."""

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
        reduce: Reduce | None,
        entries: Tensor,
    ) -> Tensor:
        at_positives = _pair_products(queries, keys, positives).div_(temperature)
        longest = torch.linalg.vector_norm(queries, dim=1).amax()
        longest_key = _largest_norm(keys).to(longest)
        if reduce is not None:  # all processes take the same way
            longest_key = reduce(longest_key[None], "max")[0]
        bound = float(longest * longest_key / temperature) * 1.02  # products in bf16 may round up
        low = dtype if dtype is not None and bound <= LOW_LOGITS else queries.dtype
        blocks = _Blocks(queries, keys, temperature, positives, hidden, low, bound)
        wanted = any(ctx.needs_input_grad[:2])
        pairs = gather(positives, at_positives, weights, len(queries), entries, bound, reduce)

        def scan(find: Callable[[Tensor, slice], Tensor], op: Op) -> Tensor:
            found = blocks.scan(find, op, form.positives_apart, wanted)
            return found if reduce is None else reduce(found, op)

        value, gradient = form.compute(pairs, scan, wanted)
        ctx.save_for_backward(queries, keys)
        ctx.blocks, ctx.gradient, ctx.positives, ctx.temperature = blocks, gradient, positives, temperature
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        queries, keys = ctx.saved_tensors
        gradient: Gradient = ctx.gradient
        for_queries, for_keys = ctx.needs_input_grad[:2]
        grad_queries = torch.zeros_like(queries) if for_queries else None
        grad_keys = torch.empty_like(keys) if for_keys else None
        _blocks_backward(ctx.blocks, gradient, queries, grad_queries, grad_keys, float(grad_output), ctx.temperature)
        ctx.blocks.has_products.clear()  # gradients lie in their memory now
        ctx.blocks.has_exps.clear()
        scale = gradient.positives * (grad_output / ctx.temperature)
        rows, columns = ctx.positives
        for start in range(0, len(rows), PAIR_BLOCK):
            part = slice(start, start + PAIR_BLOCK)
            if grad_queries is not None:
                grad_queries.index_add_(0, rows[part], keys[columns[part]].to(queries.dtype) * scale[part, None])
            if grad_keys is not None:
                grad_keys.index_add_(0, columns[part], (queries[rows[part]] * scale[part, None]).to(keys.dtype))
        return grad_queries, grad_keys, None, None, None, None, None, None, None, None


def _blocks_backward(
    blocks: _Blocks,
    gradient: Gradient,
    queries: Tensor,
    grad_queries: Tensor | None,
    grad_keys: Tensor | None,
    factor: float,
    temperature: float,
) -> None:
    """Add what all logits but those of positives give to the gradients of queries, and set those of keys.

    Of exps that are scaled by row the scale goes to the queries and to the product with the keys, which are small.
    """
    part_queries = torch.empty(blocks.height, queries.shape[1], dtype=blocks.low, device=queries.device)
    part_keys = torch.empty(blocks.width, queries.shape[1], dtype=blocks.low, device=queries.device)
    scale, multiplied = None, blocks.queries
    if blocks.small and gradient.log_scale is not None:
        scale = gradient.log_scale.exp()[:, None]
        multiplied = (queries * (scale / temperature)).to(blocks.low)
    for columns, keys in blocks.columns():
        for rows in blocks.rows():
            if scale is not None:
                block = blocks.exp(rows, columns, keys)
            else:
                block = gradient.block(blocks.make(rows, columns, keys, True), rows)
                if blocks.logits is not None:
                    block = blocks.low_block(rows, columns).copy_(block)
            block.view(-1).index_fill_(0, blocks.positives.within(blocks.number(rows, columns), rows, columns), 0.0)
            if grad_queries is not None:
                part = torch.mm(block, keys, out=part_queries[: len(block)])
                if scale is None:
                    grad_queries[rows].add_(part, alpha=factor / temperature)
                else:
                    grad_queries[rows].addcmul_(part.to(queries.dtype), scale[rows], value=factor / temperature)
            if grad_keys is not None:
                # these queries are divided by the temperature
                part = torch.mm(block.T, multiplied[rows], out=part_keys[: block.shape[1]])
                if rows.start:
                    grad_keys[columns].add_(part, alpha=factor)
                else:
                    grad_keys[columns].copy_(part).mul_(factor)


def _pair_products(queries: Tensor, keys: Tensor, pairs: Tensor) -> Tensor:
    """<query, key> of each pair, (M,), in the type of the queries."""
    products = queries.new_empty(pairs.shape[1])
    for start in range(0, pairs.shape[1], PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        rows, columns = pairs[:, part]
        products[part] = torch.linalg.vecdot(queries[rows], keys[columns].to(queries.dtype))
    return products


def _largest_norm(keys: Tensor) -> Tensor:
    """The largest length of a key."""
    return torch.stack([torch.linalg.vector_norm(part.float(), dim=1).amax() for part in keys.split(PAIR_BLOCK)]).amax()
