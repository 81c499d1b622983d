"""Exact inner-product search in blocks of keys, with a running top k."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

KEY_BLOCK = 65_536
QUERY_BLOCK = 512


class ExactIndex:
    """Inner products with every key.

    Args:
        keys: (K, D) float32 or bf16; bf16 keys are multiplied in bf16 and the best are scored again in float32.
    """

    def __init__(self, keys: Tensor):
        self.keys = keys

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
            similarities (n, k) float32 in falling order, and key numbers (n, k) int64. k shrinks to the
            number of keys searched.
        """
        keys = self.keys if allowed is None else self.keys[torch.from_numpy(allowed).to(self.keys.device)]
        k = min(k, len(keys))
        values = np.empty((len(queries), k), dtype=np.float32)
        places = np.empty((len(queries), k), dtype=np.int64)
        if k == 0:
            return values, places
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            best, where = self._search_block(queries[block], keys, k)
            values[block], places[block] = best.cpu().numpy(), where.cpu().numpy()
        return values, places if allowed is None else allowed[places]

    @staticmethod
    def _search_block(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
        best = torch.empty(len(queries), 0, device=queries.device)
        where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        low = queries.to(keys.dtype)
        for start in range(0, len(keys), KEY_BLOCK):
            part = keys[start : start + KEY_BLOCK]
            top, column = (low @ part.T).float().topk(min(k, len(part)), dim=1)
            best, where = torch.cat([best, top], dim=1), torch.cat([where, column + start], dim=1)
            if best.shape[1] > k:
                best, order = best.topk(k, dim=1)
                where = where.gather(1, order)
        if keys.dtype != torch.float32:
            best = torch.einsum("nd,nkd->nk", queries, keys[where].float())
        # falling similarity, ties by key number
        where, order = where.sort(dim=1)
        best, again = best.gather(1, order).sort(dim=1, descending=True, stable=True)
        return best, where.gather(1, again)
