"""Approximate search through a graph of neighbours (HNSW, Malkov and Yashunin 2016), by the faiss library."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import MissingExtraError, ModelError, SettingsError
from .exact import ExactIndex, in_order

logger = logging.getLogger(__name__)

EF_SEARCH = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Lengths of the candidate list that are tried in turn."""
PROBES = 200
"""Keys whose neighbourhoods are compared with the exact ones when an index is built."""
ADDED_BLOCK = 16_384
"""Keys added between two steps of a progress bar."""
NUMPY_MAX_QUERIES = 4
"""Up to so many queries the best are scored again by NumPy, whose calls cost less than those of torch."""
SCAN_KEYS_PER_CANDIDATE = 64
"""Candidate lists longer than a list of 1,024 and than one in so many keys cost more than looking at every key."""
MIN_LINKS, MOST_LINKS = 2, 1024
"""Neighbours of a key between which a graph can be built: with fewer the library ends the process."""
TIED_SHARE = 1e-6
"""Similarities that differ by so small a part of the largest are rounding."""


class HnswIndex:
    """Inner products with the keys that a graph leads to; the best are scored again in float32.

    Args:
        keys: (K, D) float32 or bf16.
        graph: a faiss index over them, in the same order.
        ef_search: length of the candidate list.
        recall: share of the exact neighbours that it finds, measured when it was built.
        depth: neighbours that this share is of.
    """

    def __init__(self, keys: Tensor, graph: Any, ef_search: int, recall: float, depth: int):
        self.keys, self.graph = keys, graph
        self.ef_search, self.recall, self.depth = ef_search, recall, depth
        self.exact = ExactIndex(keys)

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def build(
        cls,
        keys: Tensor,
        *,
        links: int = 24,
        ef_construction: int = 80,
        target: float = 0.97,
        depth: int = 100,
        queries: Tensor | None = None,
        seed: int = 0,
    ) -> HnswIndex:
        """Build the graph, and choose the shortest candidate list that reaches a recall.

        Args:
            keys: (K, D) float32 or bf16, at least one.
            links: neighbours of a key in the graph, M.
            ef_construction: candidates looked at for a new key.
            target: recall to reach, as far as a list of 1,024 can.
            depth: neighbours a query that the recall is measured on.
            queries: (n, D) float32 to measure it with; None for keys drawn at random, moved by a tenth of their length
                in a random direction.
            seed: of the draw.

        Raises:
            MissingExtraError: without the extra ``ann``.
            SettingsError: no keys, or what `require_graph` refuses.
        """
        if not len(keys):
            raise SettingsError("an index needs at least one key")
        require_graph(links, ef_construction, target, depth)
        faiss = load_faiss()
        graph = faiss.IndexHNSWSQ(keys.shape[1], faiss.ScalarQuantizer.QT_bf16, links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = ef_construction
        graph.is_trained = True  # bf16 has nothing to learn from data
        with tqdm(total=len(keys), desc="building a graph", unit="key", disable=None) as bar:
            for part in keys.split(ADDED_BLOCK):
                graph.add(part.float().cpu().numpy())
                bar.update(len(part))
        if queries is None:
            generator = torch.Generator().manual_seed(seed)
            drawn = keys[torch.randperm(len(keys), generator=generator)[:PROBES].to(keys.device)].float()
            noise = torch.randn(drawn.shape, generator=generator).to(drawn.device)
            length = torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
            queries = drawn + 0.1 * length * torch.nn.functional.normalize(noise, dim=1)
        depth = min(depth, len(keys))
        index = cls(keys, graph, EF_SEARCH[0], 0.0, depth)
        truth, _ = ExactIndex(keys).search(queries, depth)
        least = truth[:, -1:] - TIED_SHARE * np.abs(truth).max()
        for index.ef_search in EF_SEARCH:
            similarities, _ = index.search(queries, depth)
            index.recall = float((similarities >= least).mean())  # a key as near as the last one is as good
            if index.recall >= target:
                break
        logger.info(
            "graph of %d keys: finds %.1f%% of the %d nearest with ef_search %d",
            *(len(keys), 100 * index.recall, depth, index.ef_search),
        )
        if index.recall < target:
            logger.warning(
                "the graph of %d keys finds %.1f%% of the %d nearest, not the %.1f%% asked for; more links would help",
                *(len(keys), 100 * index.recall, depth, 100 * target),
            )
        return index

    @property
    def settings(self) -> dict[str, Any]:
        """What `load` needs beside the graph."""
        return {"ef_search": self.ef_search, "recall": round(self.recall, 4), "depth": self.depth}

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int, allowed: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Nearly the k keys of the largest inner product for each query.

        Args:
            queries: (n, D) float32, on the device of the keys.
            k: how many keys a query, at most the number searched.
            allowed: key numbers to search among, all of them and exactly; None for the graph.

        Returns:
            similarities (n, k) float32 in falling order, ties by key number, and key numbers (n, k) int64. k shrinks to
            the number of keys searched. A query that the graph leads to fewer than k keys is searched exactly, and so
            is every query where k is so large that the graph would be no faster. The candidate list grows with k
            beyond the depth that the recall was measured for.
        """
        k = min(k, len(self.keys))
        length = max(self.ef_search, k, math.ceil(k * self.ef_search / self.depth))
        fits = len(queries) and k > 0 and queries.shape[1] == self.keys.shape[1]  # what does not is refused there
        if allowed is not None or not fits or 4 * k > len(self.keys):
            return self.exact.search(queries, k, allowed)
        if length > max(EF_SEARCH[-1], len(self.keys) // SCAN_KEYS_PER_CANDIDATE):
            return self.exact.search(queries, k)
        search = load_faiss().SearchParametersHNSW(efSearch=length)
        values, numbers = self.graph.search(queries.float().cpu().numpy(), k, params=search)
        astray = numbers.min(axis=1, initial=0) < 0  # the graph led to fewer than k
        # a graph rounds keys, and on some processors queries
        if len(queries) <= NUMPY_MAX_QUERIES and self.keys.device.type == "cpu":
            near = [self._keys_at(np.maximum(row, 0)) for row in numbers]
            values = np.stack([keys @ query for keys, query in zip(near, queries.numpy(), strict=True)])
            order = np.lexsort((numbers, -values), axis=1)
            values, numbers = np.take_along_axis(values, order, 1), np.take_along_axis(numbers, order, 1)
        else:
            where = torch.from_numpy(np.maximum(numbers, 0)).to(self.keys.device)
            best, places = in_order(queries, self.keys, torch.from_numpy(values), where, k, exact=True)
            values, numbers = best.cpu().numpy(), places.cpu().numpy()
        if astray.any():
            rows = torch.from_numpy(np.flatnonzero(astray)).to(queries.device)
            values[astray], numbers[astray] = self.exact.search(queries[rows], k)
        return values, numbers

    def _keys_at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Keys in float32, on a CPU."""
        if self.keys.dtype == torch.float32:
            return np.asarray(self.keys.detach().numpy()[places])
        return self.keys[torch.from_numpy(places)].float().numpy()

    def save(self, file: Path) -> dict[str, Any]:
        """Write the graph, and return the settings that `load` needs.

        Raises:
            ModelError: the file cannot be written.
        """
        try:
            load_faiss().write_index(self.graph, str(file))
        except RuntimeError as error:  # faiss speaks in its own lines of code
            file.unlink(missing_ok=True)
            raise ModelError(f"{file} cannot be written: {str(error).rstrip().rpartition(': ')[2]}") from error
        return self.settings

    @classmethod
    def load(cls, file: Path, keys: Tensor, settings: dict[str, Any]) -> HnswIndex:
        """Open what `save` wrote over keys (K, D); the graph is mapped, not read, where the library can do that.

        Raises:
            MissingExtraError: without the extra ``ann``.
            ModelError: a file that is missing or damaged, or of other keys.
        """
        faiss = load_faiss()
        try:
            graph = faiss.read_index(str(file), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
            index = cls(keys, graph, int(settings["ef_search"]), float(settings["recall"]), int(settings["depth"]))
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{file} is missing or damaged: {' '.join(str(error).split())[:200]}") from error
        if graph.ntotal != len(keys) or graph.d != keys.shape[1]:
            raise ModelError(
                f"{file} is a graph of {graph.ntotal} keys of {graph.d} dimensions, "
                f"but there are {len(keys)} of {keys.shape[1]}; build it again"
            )
        return index


def require_graph(links: int, ef_construction: int, recall: float, depth: int | None) -> None:
    """Refuse settings that no graph can be built with, on which the library would end the process.

    ``depth`` is None where it is decided later.

    Raises:
        SettingsError: naming the setting.
    """
    if not MIN_LINKS <= links <= MOST_LINKS:
        raise SettingsError(f"links, neighbours of a key, must be from {MIN_LINKS} to {MOST_LINKS}, got {links}")
    if ef_construction < 1:
        raise SettingsError(f"ef_construction, the candidates for a new key, must be at least 1, got {ef_construction}")
    if not 0 < recall <= 1:
        raise SettingsError(f"recall, the target of a graph, is above 0 and at most 1, got {recall}")
    if depth is not None and depth < 1:
        raise SettingsError(f"depth, the neighbours that recall is measured on, must be at least 1, got {depth}")


def load_faiss() -> Any:
    """The library, loaded late; on macOS it may not share OpenMP threads with torch.

    Raises:
        MissingExtraError: without the extra ``ann``.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("approximate search", "faiss-cpu", "ann") from error
    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    return faiss
