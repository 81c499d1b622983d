"""Exact inner-product search in blocks of keys: a fast scan finds a shortlist, float32 products order it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
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
RESCORED = 32
"""Queries whose shortlists are scored again at a time."""


class ExactIndex:
    """Inner products with every key.

    Keys in float32 are multiplied in float32; keys in bf16 in bf16, and the best are scored again in float32. Of very
    many keys a copy in int8 is scanned instead, where the processor multiplies faster in it: each dimension is scaled
    to the full range of int8, the shortlist is longer than asked for, and its order is that of float32 products of the
    keys as given. What the scan can miss are keys within its rounding (about 0.001 of a cosine) of the last one.

    Args:
        keys: (K, D) float32 or bf16.
        int8: scan a copy in int8; None where it pays.
    """

    def __init__(self, keys: Tensor, int8: bool | None = None):
        self.keys = keys
        self.int8 = len(keys) >= INT8_FROM and int8_pays(keys.device) if int8 is None else int8
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
            similarities (n, k) float32 in falling order, ties by key number, and key numbers (n, k) int64. k shrinks to
            the number of keys searched.
        """
        keys = self.keys if allowed is None else self.keys[torch.from_numpy(allowed).to(self.keys.device)]
        k = min(k, len(keys))
        values = np.empty((len(queries), k), dtype=np.float32)
        places = np.empty((len(queries), k), dtype=np.int64)
        if k == 0:
            return values, places
        shortlist = _longer(k)
        scan = self.int8 and allowed is None and 4 * shortlist < len(keys)
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            if scan:
                found = _scan_int8(queries[block], *self._int8_keys(), shortlist)
            else:
                found = _scan(queries[block], keys, k)
            exact = scan or keys.dtype != torch.float32
            best, where = in_order(queries[block], keys, *found, k, exact)
            values[block], places[block] = best.cpu().numpy(), where.cpu().numpy()
        return values, places if allowed is None else allowed[places]

    def _int8_keys(self) -> tuple[Tensor, Tensor]:
        """Keys in int8, (K, D), and the scale of each dimension, made at the first search."""
        if self._scanned is None:
            self._scanned = quantize(self.keys)
        return self._scanned


def quantize(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys in int8, each dimension scaled to the full range.

    Args:
        keys: (K, D).

    Returns:
        (K, D) int8, and (D,) float32 scales: key = int8 x scale, nearly.
    """
    largest = torch.zeros(keys.shape[1], device=keys.device)
    for part in keys.split(KEY_BLOCK):
        largest = torch.maximum(largest, part.abs().amax(dim=0).float())
    scales = largest.clamp(min=1e-30) / 127
    low = torch.empty(keys.shape, dtype=torch.int8, device=keys.device)
    for start in range(0, len(keys), KEY_BLOCK):
        part = slice(start, start + KEY_BLOCK)
        low[part] = (keys[part].float() / scales).round_().to(torch.int8)
    return low, scales


def _longer(k: int) -> int:
    """Length of the shortlist from which the best k are taken."""
    return k + max(k // 8, 32)


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
    """The best keys by products of int8: products and numbers, (n, k), falling.

    A product enters only if it beats the k-th best so far. Most groups of keys have none that does, which the largest
    of a group tells; the k-th best is found anew whenever the keys seen have doubled.
    """
    scaled = queries * scales
    low = (scaled / scaled.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) * 127).round_().to(torch.int8)
    n, total = len(queries), len(keys)
    width = min(max(PRODUCTS // max(1, n), 4096), total) // GROUP * GROUP
    if width < max(k, GROUP):
        return _merge_int8(low, keys, k)
    products = torch.empty(n * width, dtype=torch.int32, device=queries.device)
    top = _Top(n, k, queries.device)
    seen, start = 0, 0
    while start < total:
        size = min(width, total - start)
        whole = size // GROUP * GROUP
        out = products[: n * size].view(n, size)
        torch._int_mm(low, keys[start : start + size].T, out=out)
        if top.bar is None:
            value, column = out.topk(k, dim=1)
            top.begin(value, column + start)
            seen = start + size
        else:
            groups = out[:, :whole].unflatten(1, (-1, GROUP)) if whole else None
            if groups is not None:
                row, group = (groups.amax(dim=2) > top.bar[:, None]).nonzero().unbind(1)
                top.add(row, groups[row, group], start + group * GROUP)
            if whole < size:
                row = torch.arange(n, device=out.device)
                top.add(row, out[:, whole:], torch.full_like(row, start + whole))
            if start + size >= 2 * seen or start + size == total or top.waiting > PRODUCTS // 2:
                top.settle()
                seen = start + size
        start += size
    return top.values, top.places


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
    """The k best of each row so far, and candidates that beat the last of them."""

    def __init__(self, n: int, k: int, device: torch.device):
        self.n, self.k, self.device = n, k, device
        self.bar: Tensor | None = None
        self.waiting = 0

    def begin(self, values: Tensor, places: Tensor) -> None:
        """Start from the best of the first block, (n, k) falling."""
        self.values, self.places, self.bar = values, places, values[:, -1]
        self._rows: list[Tensor] = []
        self._values: list[Tensor] = []
        self._places: list[Tensor] = []

    def add(self, rows: Tensor, values: Tensor, first: Tensor) -> None:
        """Note which of some rows' neighbouring products (m, c) beat the bar; the first has the key number given."""
        assert self.bar is not None
        which, column = (values > self.bar[rows, None]).nonzero().unbind(1)
        self._rows.append(rows[which])
        self._values.append(values[which, column])
        self._places.append(first[which] + column)
        self.waiting += len(which)

    def settle(self) -> None:
        """Merge the candidates, and raise the bar."""
        if not self.waiting:
            return
        rows, order = torch.cat(self._rows).sort(stable=True)
        values, places = torch.cat(self._values)[order], torch.cat(self._places)[order]
        counts = torch.bincount(rows, minlength=self.n)
        rank = torch.arange(len(rows), device=self.device) - (counts.cumsum(0) - counts)[rows] + self.k
        width = self.k + int(counts.max())
        wide = torch.full((self.n, width), torch.iinfo(torch.int32).min, dtype=torch.int32, device=self.device)
        where = torch.zeros(self.n, width, dtype=torch.int64, device=self.device)
        wide[:, : self.k], where[:, : self.k] = self.values, self.places
        wide[rows, rank], where[rows, rank] = values, places
        best, order = wide.topk(self.k, dim=1)
        self.begin(best, where.gather(1, order))
        self.waiting = 0


def in_order(
    queries: Tensor, keys: Tensor, values: Tensor, where: Tensor, k: int, exact: bool
) -> tuple[Tensor, Tensor]:
    """The best k of a shortlist, falling, ties by key number; scored again in float32 where the scan was coarser."""
    if exact:
        values = torch.empty(where.shape, device=queries.device)
        for start in range(0, len(queries), RESCORED):
            part = slice(start, start + RESCORED)
            near = keys.index_select(0, where[part].reshape(-1)).float().view(*where[part].shape, -1)
            values[part] = torch.bmm(near, queries[part, :, None])[..., 0]
    where, order = where.sort(dim=1)
    values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k], where.gather(1, again)[:, :k]
