"""Exact inner-product search in blocks of keys: a fast scan finds a shortlist, float32 products order it."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from ..machine import int8_pays

KEY_BLOCK = 65_536
QUERY_BLOCK = 1024
PRODUCTS = 4 << 20
"""Products that a block of queries makes with a block of keys, at most, in the int8 scan."""
GROUP = 32
"""Neighbouring keys whose largest product is looked at first, in the int8 scan."""
INT8_FROM = 16_384
"""Keys from which on the int8 scan is worth its copy of the keys."""
INT8_DIMS = 8
"""Dimensions from which on keys are scanned in int8; products of a single one are wrong in torch 2.13."""
SAMPLE, COARSE = 1000, 4.0
"""Of so many keys the median length a dimension is looked at, in steps of int8; unit vectors have 20 to 40."""
SETTLED = 4
"""Candidates of the int8 scan are merged whenever so many times more keys have been seen."""
GATHERED = 1 << 14
"""Pairs of a query and a key that are scored again one query after another; more are taken in the order of the keys."""
RESCORED = 32
"""Queries, or times 64 keys, scored again at a time."""


class ExactIndex:
    """Inner products with every key.

    Keys in float32 are multiplied in float32; keys in bf16 in bf16, and the best are scored again in float32. Of very
    many keys a copy in int8 is scanned instead, where the processor multiplies faster in it: each dimension is scaled
    to the full range of int8, the shortlist is longer than asked for, and its order is that of float32 products of the
    keys as given. What the scan can miss are keys within its rounding (about 0.001 of a cosine) of the last one. Keys
    that the scaling would round to little or nothing, a few being far longer than the others, are not copied.

    Args:
        keys: (K, D) float32 or bf16.
        int8: scan a copy in int8, on a CPU, where it is exact enough; None where it pays as well.
    """

    def __init__(self, keys: Tensor, int8: bool | None = None):
        self.keys = keys
        self.int8 = len(keys) >= INT8_FROM and int8_pays(keys.device) if int8 is None else int8
        self._scanned: tuple[Tensor, Tensor, int] | None = None

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
        shortlist = _longer(k)
        scanned = self._int8_keys() if allowed is None and 4 * shortlist < len(keys) else None
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            if scanned is not None:
                low, scales, step = scanned
                best, rows = _scan_int8(queries[block], low, scales, shortlist)
                found = best, rows * step % len(keys)
            else:
                found = _scan(queries[block], keys, k)
            exact = scanned is not None or keys.dtype != torch.float32
            best, where = in_order(queries[block], keys, *found, k, exact)
            values[block], places[block] = best.cpu().numpy(), where.cpu().numpy()
        return values, places if allowed is None else allowed[places]

    def _int8_keys(self) -> tuple[Tensor, Tensor, int] | None:
        """What `quantize` gives, made at the first search; None where keys are not scanned in int8."""
        if self._scanned is None and self.int8:
            self._scanned = quantize(self.keys)
            self.int8 = self._scanned is not None
        return self._scanned


def quantize(keys: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """Keys in int8, each dimension scaled to the full range, mixed so that the first rows are a fair sample.

    Args:
        keys: (K, D).

    Returns:
        (K, D) int8, (D,) float32 scales, and a step: row i x scales is nearly key i x step modulo K. None where half of
        the keys are shorter than COARSE roundings a dimension, a key is not finite, or dimensions are below INT8_DIMS.
    """
    if keys.shape[1] < INT8_DIMS:
        return None
    largest = torch.zeros(keys.shape[1], device=keys.device)
    for part in keys.split(KEY_BLOCK):
        largest = torch.maximum(largest, part.abs().amax(dim=0).float())
    scales = largest.clamp(min=1e-30) / 127
    sample = keys[:: max(1, len(keys) // SAMPLE)].float() / scales
    lengths = sample.square().mean(dim=1).sqrt()
    if not bool(largest.isfinite().all()) or float(lengths.median()) < COARSE:
        return None
    count = len(keys)
    step = max(1, round(count * 0.6180339887498949))
    while math.gcd(step, count) != 1:
        step += 1
    back = pow(step, -1, count)
    low = torch.empty(keys.shape, dtype=torch.int8, device=keys.device)
    for start in range(0, count, KEY_BLOCK):
        part = keys[start : start + KEY_BLOCK]
        rows = torch.arange(start, start + len(part), device=keys.device) * back % count
        low[rows] = (part.float() / scales).round_().to(torch.int8)
    return low, scales, step


def _longer(k: int) -> int:
    """Length of the shortlist from which the best k are taken."""
    return k + max(k // 8, 24)


def _scan(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best keys by products in the type of the keys: similarities and numbers, (n, k), falling."""
    best = torch.empty(len(queries), 0, device=queries.device)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    low = queries.to(keys.dtype)
    if keys.dtype != torch.float32:
        k = min(_longer(k), len(keys))
    for start in range(0, len(keys), KEY_BLOCK):
        part = keys[start : start + KEY_BLOCK]
        top, column = (low @ part.T).float().topk(min(k, len(part)), dim=1)
        best, where = torch.cat([best, top], dim=1), torch.cat([where, column + start], dim=1)
        if best.shape[1] > k:
            best, order = best.topk(k, dim=1)
            where = where.gather(1, order)
    return best, where


def _scan_int8(queries: Tensor, keys: Tensor, scales: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best keys by products of int8: products and rows of the copy, (n, k), falling.

    The copy is mixed, so the rows seen first are a fair sample, and a product a little below what the k-th best of all
    must be is known early. Only products above this bar are kept. Queries that keep fewer than k, about one in a
    thousand, are scanned again with the k-th best so far as their bar, which misses nothing.
    """
    scaled = queries * scales
    low = (scaled / scaled.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) * 127).round_().to(torch.int8)
    values, rows = _above_bar(low, keys, k, guess=True)
    short = (rows[:, -1] < 0).nonzero()[:, 0]
    if len(short):
        values[short], rows[short] = _above_bar(low[short], keys, k, guess=False)
    return values, rows


def _above_bar(low: Tensor, keys: Tensor, k: int, guess: bool) -> tuple[Tensor, Tensor]:
    """Products that enter the k best of each query so far, or probably of all keys; row -1 where there are fewer.

    Most groups of keys have none, which the largest of a group tells.
    """
    n, total = len(low), len(keys)
    width = min(max(PRODUCTS // max(1, n), 4096), total) // GROUP * GROUP
    first = _enough(k, width / total) if guess else k
    if first > width // GROUP:
        return _merge_int8(low, keys, k)
    products = torch.empty(n * width, dtype=torch.int32)
    top = _Top(n)
    settled = 0
    for start in range(0, total, width):
        size = min(width, total - start)
        end, whole = start + size, size // GROUP * GROUP
        out = products[: n * size].view(n, size)
        torch._int_mm(low, keys[start:end].T, out=out)
        if whole:
            groups = out[:, :whole].reshape(-1, GROUP)
            largest = groups.amax(dim=1).view(n, -1)
            if start == 0:
                top.bar = largest.topk(first, dim=1).values[:, -1] - 1
                settled = end
            near = _where(largest > top.bar[:, None])
            row, group = np.divmod(near, whole // GROUP)
            top.add(row, groups.index_select(0, torch.from_numpy(near)), start + group * GROUP)
        if whole < size:
            row = np.arange(n)
            top.add(row, out[:, whole:], np.full_like(row, start + whole))
        if end >= SETTLED * settled or end == total or top.waiting > PRODUCTS // 2:
            top.settle(_enough(k, end / total) if guess else k)
            settled = end
    return top.values, top.places


def _where(marks: Tensor) -> npt.NDArray[np.int64]:
    """Numbers of the True, in one row; NumPy finds them several times faster than torch does."""
    return np.flatnonzero(marks.numpy())


def _enough(k: int, share: float) -> int:
    """How many of the k best keys a fair sample of this share holds, with three standard deviations to spare."""
    return k if share >= 1 else min(k, math.ceil(k * share + 3 * math.sqrt(k * share) + 3))


def _merge_int8(low: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`_scan_int8` for so many queries or so deep a search that a block of products holds no shortlist."""
    best = torch.empty(len(low), 0, dtype=torch.int32, device=low.device)
    where = torch.empty(len(low), 0, dtype=torch.int64, device=low.device)
    for start in range(0, len(keys), KEY_BLOCK):
        part = keys[start : start + KEY_BLOCK]
        top, column = torch._int_mm(low, part.T).topk(min(k, len(part)), dim=1)
        best, where = torch.cat([best, top], dim=1), torch.cat([where, column + start], dim=1)
        if best.shape[1] > k:
            best, order = best.topk(k, dim=1)
            where = where.gather(1, order)
    return best, where


class _Top:
    """The best of each query so far, and candidates that beat its bar, which is set before the first are added."""

    bar: Tensor

    def __init__(self, n: int):
        self.n = n
        self.values, self.places = torch.empty(n, 0, dtype=torch.int32), torch.empty(n, 0, dtype=torch.int64)
        self._forget()

    def _forget(self) -> None:
        self._rows = [np.zeros(0, dtype=np.int64)]
        self._values = [np.zeros(0, dtype=np.int32)]
        self._places = [np.zeros(0, dtype=np.int64)]
        self.waiting = 0

    def add(self, rows: npt.NDArray[np.int64], values: Tensor, first: npt.NDArray[np.int64]) -> None:
        """Note which of some rows' neighbouring products (m, c) beat the bar; the first has the key number given."""
        found = _where(values > self.bar[torch.from_numpy(rows), None])
        which, column = np.divmod(found, values.shape[1])
        self._rows.append(rows[which])
        self._values.append(values.numpy()[which, column])
        self._places.append(first[which] + column)
        self.waiting += len(which)

    def settle(self, keep: int) -> None:
        """Merge the candidates, keep so many of the best, and raise the bar to the last; place -1 where none is."""
        rows = np.concatenate(self._rows)
        order = rows.astype(np.int16 if self.n < 1 << 15 else np.int64).argsort(kind="stable")
        rows = rows[order]
        values = torch.from_numpy(np.concatenate(self._values)[order])
        places = torch.from_numpy(np.concatenate(self._places)[order])
        counts = np.bincount(rows, minlength=self.n)
        had = self.values.shape[1]
        rank = torch.from_numpy(np.arange(had, had + len(rows)) - (counts.cumsum() - counts)[rows])
        width = max(keep, had + int(counts.max()))
        wide = torch.full((self.n, width), torch.iinfo(torch.int32).min, dtype=torch.int32)
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
        by_key = where.numel() > GATHERED and queries.device.type == "cpu"
        values = (_products_by_key if by_key else _products)(queries, keys, where)
    where, order = where.sort(dim=1)
    values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k], where.gather(1, again)[:, :k]


def _products(queries: Tensor, keys: Tensor, where: Tensor) -> Tensor:
    """Inner products in float32 of each query with the keys listed for it, (n, m)."""
    values = torch.empty(where.shape, device=queries.device)
    for start in range(0, len(queries), RESCORED):
        part = slice(start, start + RESCORED)
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
        size, used = 64 * RESCORED, starts.diff().nonzero()[:, 0]
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
