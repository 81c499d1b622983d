"""Exact inner-product search in parts of the keys: a fast scan finds a shortlist, float32 products order it.

On a CPU most of the time must go into the matrix products, so little may be done with what comes out of them. A part
of the keys that is a fair sample of all tells early what a product must be to be among the best of all: the *bar*. From
then on only the largest product of each group of keys is looked at, and the few groups that beat the bar are read.
"""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from ...base.rates import bf16_pays, int8_is_exact, int8_pays

KEY_BLOCK = 65_536
"""Keys whose products are held at a time where every product is sorted."""
QUERY_BLOCK = 1024
PRODUCTS = 1 << 20
"""Products that a block of queries makes with a part of the keys, at most, in the scan with a bar."""
GROUP_KEYS = 16
"""Keys whose largest product is looked at first, in the scan with a bar."""
INT8_FACTOR = 2
"""So many times larger are parts and groups in int8, whose products take so little time that all else counts."""
BAR_MIN_KEYS = 4096
"""Keys from which on a bar is worth its keeping; of fewer every product is sorted."""
FLOAT32_BLOCK = 16_384
"""Keys in bf16 that are raised to float32 at a time."""
RESCORE_MAX_QUERIES = 16
"""Queries up to which the best keys are scored again in any case: products with so few columns depend in their last
bits on where in memory the keys lie, so that a model that is opened would not answer as the one that was saved."""
INT8_MIN_KEYS = 16_384
"""Keys from which on the int8 scan is worth its copy of the keys."""
INT8_MIN_DIMS = 8
"""Dimensions from which on keys are scanned in int8; products of a single one are wrong in torch 2.13."""
SAMPLED_KEYS, MIN_MEDIAN_STEPS = 1000, 4.0
"""Of so many keys the median length a dimension is looked at, in steps of int8; unit vectors have 20 to 40."""
SETTLE_FACTOR = 4
"""Candidates are merged, and the bar is raised, whenever so many times more keys have been seen."""
GATHER_MAX_PAIRS = 1 << 14
"""Pairs of a query and a key that are scored again one query after another; more are taken in the order of the keys."""
RESCORE_BLOCK = 32
"""Queries, or times 64 keys, scored again at a time."""


class ExactIndex:
    """Inner products with every key.

    Keys in float32 are multiplied in float32. Keys in bf16 are multiplied in bf16 where the processor is faster in it,
    and the best are scored again in float32; elsewhere they are raised to float32, a part at a time. Of very many keys
    a copy in int8 is scanned instead, where the processor multiplies faster in it: each dimension is scaled to the full
    range of int8, the shortlist is longer than asked for, and its order is that of float32 products of the keys as
    given. What the int8 scan can miss are keys within its rounding (about 0.001 of a cosine) of the last one. Keys that
    the scaling would round to little or nothing, a few being far longer than the others, are not copied.

    Args:
        keys: (K, D) float32 or bf16.
        int8: scan a copy in int8, on a CPU, where it is exact enough; None where it pays as well.
    """

    def __init__(self, keys: Tensor, int8: bool | None = None):
        self.keys = keys
        self.int8 = int8
        self._scanned: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int, allowed: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k keys of the largest inner product for each query.

        Never holds more than a block of products.

        Args:
            queries: (n, D) float32, on the device of the keys.
            k: how many keys a query, at most the number searched.
            allowed: key numbers to search among; None for all.

        Returns:
            similarities (n, k) float32 in falling order, ties by key number, and key numbers (n, k) int64. Which of
            several keys tied with the last are given is left open. k shrinks to the number of keys searched.

        Raises:
            ValueError: queries of another width, a negative k, or key numbers that are none.
        """
        if queries.ndim != 2 or queries.shape[1] != self.keys.shape[1] or k < 0:
            raise ValueError(
                f"queries (n, {self.keys.shape[1]}) and k of at least 0 are needed, got {tuple(queries.shape)} and {k}"
            )
        if allowed is not None and (allowed.dtype == bool or (len(allowed) and allowed.min() < 0)):
            raise ValueError("allowed takes key numbers from 0 on, not a mask or numbers from the end")
        queries = queries.float()
        keys = self.keys if allowed is None else self.keys[torch.from_numpy(allowed).to(self.keys.device)]
        k = min(k, len(keys))
        values = np.empty((len(queries), k), dtype=np.float32)
        places = np.empty((len(queries), k), dtype=np.int64)
        if k == 0:
            return values, places
        scanned = self._int8_keys() if allowed is None and 4 * _longer(k) < len(keys) else None
        coarse = scanned is not None or keys.dtype != torch.float32 and bf16_pays(keys.device)
        depth = min(_longer(k), len(keys)) if coarse else k
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            part = queries[block]
            if scanned is not None:
                low, scales = scanned
                shortlist = _scan(_as_int8(part * scales), low, depth)
            else:
                shortlist = _scan(part.to(keys.dtype) if coarse else part, keys, depth)
            best, where = in_order(part, keys, *shortlist, k, coarse or len(part) <= RESCORE_MAX_QUERIES)
            values[block], places[block] = best.cpu().numpy(), where.cpu().numpy()
        return values, places if allowed is None else allowed[places]

    def _int8_keys(self) -> tuple[Tensor, Tensor] | None:
        """What `quantize` gives, made at the first search; None where keys are not scanned in int8."""
        if self.int8 is None:  # asked late, since what pays may have to be measured
            self.int8 = len(self.keys) >= INT8_MIN_KEYS and int8_pays(self.keys.device)
        if self._scanned is None and self.int8:
            self._scanned = quantize(self.keys) if int8_is_exact() else None
            self.int8 = self._scanned is not None
        return self._scanned


def quantize(keys: Tensor) -> tuple[Tensor, Tensor] | None:
    """Keys (K, D) in int8, each dimension scaled to the full range: int8 times the (D,) scales is nearly the key.

    None where half of the keys are shorter than MIN_MEDIAN_STEPS a dimension, a key is not finite, or dimensions are
    below INT8_MIN_DIMS.
    """
    if keys.shape[1] < INT8_MIN_DIMS:
        return None
    largest = torch.zeros(keys.shape[1], device=keys.device)
    for part in keys.split(KEY_BLOCK):
        largest = torch.maximum(largest, part.abs().amax(dim=0).float())
    scales = largest.clamp(min=1e-30) / 127
    sample = keys[:: max(1, len(keys) // SAMPLED_KEYS)].float() / scales
    lengths = sample.square().mean(dim=1).sqrt()
    if not bool(largest.isfinite().all()) or float(lengths.median()) < MIN_MEDIAN_STEPS:
        return None
    low = torch.empty(keys.shape, dtype=torch.int8, device=keys.device)
    for part, into in zip(keys.split(KEY_BLOCK), low.split(KEY_BLOCK), strict=True):
        into.copy_((part.float() / scales).round_())
    return low, scales


def _as_int8(queries: Tensor) -> Tensor:
    """Queries in int8, each scaled to the full range."""
    return (queries / queries.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) * 127).round_().to(torch.int8)


def _longer(k: int) -> int:
    """Length of the shortlist from which the best k are taken."""
    return k + max(k // 8, 24)


def _scan(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k keys by products in the type of the queries; bf16 keys may also meet float32 queries. Products and key
    numbers, (n, k), falling."""
    if keys.device.type != "cpu" or len(keys) < BAR_MIN_KEYS or 4 * k > len(keys):
        return _scan_plain(queries, keys, k)
    n = len(queries)
    if n == 1 and queries.dtype == torch.float32:  # a product with one column reads the keys on one core alone
        queries = queries.repeat(2, 1)
    values, places = _scan_bar(queries, keys, k, guess=True)
    short = (places[:, -1] < 0).nonzero()[:, 0]
    if len(short):
        values[short], places[short] = _scan_bar(queries[short], keys, k, guess=False)
    return values[:n], places[:n]


def _scan_plain(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`_scan` that sorts every product: its plain twin, and what runs on a GPU."""
    best = where = None
    for start in range(0, len(keys), KEY_BLOCK):
        part = keys[start : start + KEY_BLOCK]
        whole = queries.dtype == torch.int8
        products = torch._int_mm(queries, part.T) if whole else (queries @ part.to(queries.dtype).T).float()
        top, row = products.topk(min(k, len(part)), dim=1)
        best = top if best is None else torch.cat([best, top], dim=1)
        where = row if where is None else torch.cat([where, row + start], dim=1)
        if best.shape[1] > k:
            best, order = best.topk(k, dim=1)
            where = where.gather(1, order)
    assert best is not None and where is not None
    return best, where


def _scan_bar(queries: Tensor, keys: Tensor, k: int, guess: bool) -> tuple[Tensor, Tensor]:
    """`_scan` by a bar, on a CPU; products and key numbers, -1 where a guess left fewer than k.

    Part j of p has the keys j, j + p, j + 2 p and so on, so it is a fair sample wherever like keys stand together. With
    ``guess`` the bar of a query is a product a little below what the k-th best of all must be, judging by the keys seen
    so far; without, it is the k-th best of these, which is below the k-th best of all for certain. About one query in a
    thousand is left with too few by the guess, and is scanned again without.

    Most groups of keys have no product above the bar, which the largest of a group tells.
    """
    n, total = len(queries), len(keys)
    by_key = queries.dtype != torch.int8
    wider = 1 if by_key else INT8_FACTOR
    size = wider * GROUP_KEYS
    most = min(wider * PRODUCTS // n, FLOAT32_BLOCK if keys.dtype != queries.dtype else total)
    parts = -(-total // max(size, most))
    many = total // parts // size  # groups of a part
    first = _enough(k, 1 / parts) if guess else k
    if first > many:  # a part holds no shortlist: so many queries, or so deep a search
        return _scan_plain(queries, keys, k)
    products = torch.empty(max(many, parts) * size * n, dtype=queries.dtype if by_key else torch.int32)
    top = _Top(n, torch.float32 if by_key else torch.int32)
    seen, settled = 0, many * size
    for part in range(parts):
        out = _multiply(keys[part : parts * many * size : parts], queries, products)
        groups = out.view(many, size, n) if by_key else out.view(n, many, size)
        largest = groups.amax(dim=1) if by_key else groups.amax(dim=2).T
        if part == 0:
            top.begin(largest.topk(first, dim=0).values[-1])
        if by_key:
            near = _where(largest > top.bar)
            group = near // n
            query = near - group * n
            some = groups[torch.from_numpy(group), :, torch.from_numpy(query)]
        else:
            near = _where(largest.T > top.bar[:, None])
            query = near // many
            group = near - query * many
            some = groups.view(-1, size).index_select(0, torch.from_numpy(near))
        top.add(query, some, part + parts * size * group)
        seen += many * size
        if seen >= SETTLE_FACTOR * settled or top.waiting > PRODUCTS:
            top.settle(_enough(k, seen / total) if guess else k, parts)
            settled = seen
    if top.waiting:
        top.settle(k, parts)
    if seen < total:
        out = _multiply(keys[seen:], queries, products)
        top.add(np.arange(n), out.T if by_key else out, np.full(n, seen))
        top.settle(k, 1)
    return top.values, top.places


def _multiply(keys: Tensor, queries: Tensor, room: Tensor) -> Tensor:
    """Products of some keys (m, D) and queries (n, D), in memory that is given: (m, n), or of int8 (n, m).

    In float32 and bf16 the keys come first: so the largest of a group of keys is found for many queries side by side,
    and a product with few queries reads the keys once, which it does not the other way round. In int8 the products are
    faster the other way round.
    """
    m, n = len(keys), len(queries)
    if queries.dtype == torch.int8:
        return torch._int_mm(queries, keys.T, out=room[: m * n].view(n, m))
    return torch.mm(keys.to(queries.dtype), queries.T, out=room[: m * n].view(m, n))


def _where(marks: Tensor) -> npt.NDArray[np.int64]:
    """Numbers of the True, in one row; NumPy finds them several times faster than torch does."""
    return np.flatnonzero(marks.numpy())


def _enough(k: int, share: float) -> int:
    """How many of the k best keys a fair sample of this share holds, with three standard deviations to spare."""
    return k if share >= 1 else min(k, math.ceil(k * share + 3 * math.sqrt(k * share) + 3))


class _Top:
    """The best of each of n queries so far, in the type of the products, and candidates that beat its bar."""

    bar: Tensor

    def __init__(self, n: int, kind: torch.dtype):
        self.n, self.kind = n, kind
        self.lowest = torch.iinfo(kind).min if kind == torch.int32 else -math.inf
        self.values, self.places = torch.empty(n, 0, dtype=kind), torch.empty(n, 0, dtype=torch.int64)
        self._forget()

    def _forget(self) -> None:
        self._rows: list[npt.NDArray[np.int64]] = []
        self._first: list[npt.NDArray[np.int64]] = []
        self._products: list[Tensor] = []
        self.waiting = 0

    def begin(self, least: Tensor) -> None:
        """Set the bar right below (n,) products, so that these beat it."""
        least = least.to(self.kind)
        below = torch.full_like(least, -math.inf) if self.kind == torch.float32 else least
        self.bar = least - 1 if self.kind == torch.int32 else torch.nextafter(least, below)

    def add(self, rows: npt.NDArray[np.int64], products: Tensor, first: npt.NDArray[np.int64]) -> None:
        """Note products (m, c) of some rows with neighbouring keys, the first of which has the number given."""
        if len(rows):
            self._rows.append(rows)
            self._first.append(first)
            self._products.append(products)
            self.waiting += products.numel()

    def settle(self, keep: int, step: int) -> None:
        """Merge what beats the bar, keep so many of the best, and raise the bar to the last; place -1 where none is.

        ``step`` is the difference between the numbers of neighbouring keys in what was added.
        """
        none = np.zeros(0, dtype=np.int64)
        rows, first = np.concatenate([none, *self._rows]), np.concatenate([none, *self._first])
        products = torch.cat(self._products).to(self.kind) if self._products else torch.zeros(0, 1, dtype=self.kind)
        better = _where(products > self.bar.index_select(0, torch.from_numpy(rows))[:, None])
        which = better // products.shape[1]
        rows = rows[which]
        order = rows.astype(np.int16 if self.n < 1 << 15 else np.int64).argsort(kind="stable")
        rows = rows[order]
        values = torch.from_numpy(products.numpy().reshape(-1)[better[order]])
        places = torch.from_numpy((first[which] + step * (better - which * products.shape[1]))[order])
        counts = np.bincount(rows, minlength=self.n)
        had = self.values.shape[1]
        rank = torch.from_numpy(np.arange(had, had + len(rows)) - (counts.cumsum() - counts)[rows])
        width = max(keep, had + int(counts.max()))
        wide = torch.full((self.n, width), self.lowest, dtype=self.kind)
        where = torch.full((self.n, width), -1, dtype=torch.int64)
        wide[:, :had], where[:, :had] = self.values, self.places
        each = torch.from_numpy(rows)
        wide[each, rank], where[each, rank] = values, places
        self.values, best = wide.topk(keep, dim=1)
        self.places = where.gather(1, best)
        self.bar = torch.maximum(self.bar, self.values[:, -1])
        self._forget()


def in_order(
    queries: Tensor, keys: Tensor, values: Tensor, where: Tensor, k: int, exact: bool
) -> tuple[Tensor, Tensor]:
    """The best k of a shortlist, falling, ties by key number; scored again in float32 where the scan was coarser."""
    if exact:
        by_key = where.numel() > GATHER_MAX_PAIRS and queries.device.type == "cpu"
        values = (_products_by_key if by_key else _products)(queries, keys, where)
    where, order = where.sort(dim=1)
    values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k], where.gather(1, again)[:, :k]


def _products(queries: Tensor, keys: Tensor, where: Tensor) -> Tensor:
    """Inner products in float32 of each query with the keys listed for it, (n, m)."""
    values = torch.empty(where.shape, device=queries.device)
    for start in range(0, len(queries), RESCORE_BLOCK):
        part = slice(start, start + RESCORE_BLOCK)
        near = keys.index_select(0, where[part].reshape(-1)).float().view(*where[part].shape, -1)
        values[part] = torch.bmm(near, queries[part, :, None])[..., 0]
    return values


def _products_by_key(queries: Tensor, keys: Tensor, where: Tensor) -> Tensor:
    """`_products`, reading every key once and in order, while the queries stay in the cache."""
    _settle_sparse()
    pairs = where.numel()
    listed = csr_array(
        (np.arange(pairs), where.reshape(-1).numpy(), np.arange(0, pairs + 1, max(1, where.shape[1]))),
        shape=(len(where), len(keys)),
    ).tocsc()  # a sort by counting
    origin, rows, starts = (torch.from_numpy(part) for part in (listed.data, listed.indices, listed.indptr))
    size, used = len(keys), None
    if keys.dtype != torch.float32:  # they are copied in parts
        size, used = 64 * RESCORE_BLOCK, starts.diff().nonzero()[:, 0]
        starts = torch.cat([starts[:1], starts[1:][used]])
    values = torch.empty(pairs)
    for first in range(0, len(starts) - 1, size):
        at = starts[first : first + size + 1]
        mine = slice(int(at[0]), int(at[-1]))
        part = slice(first, first + size)
        near = keys if used is None else keys.index_select(0, used[part]).float()
        pattern = torch.sparse_csr_tensor(
            at - at[0],
            rows[mine],
            torch.zeros(mine.stop - mine.start),
            (len(near), len(queries)),
            check_invariants=False,
        )
        values[origin[mine]] = torch.sparse.sampled_addmm(pattern, near, queries.T, beta=0.0).values()
    return values.view(where.shape)


@functools.cache
def _settle_sparse() -> None:
    """Take torch's only warning about its sparse tensors, of which nothing but products at given places is used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(
            [0, 0], torch.zeros(0, dtype=torch.int64), torch.zeros(0), (1, 1), check_invariants=False
        )
