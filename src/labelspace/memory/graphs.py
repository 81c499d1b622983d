"""Graphs over the keys of a memory, with queries to measure their recall by."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .indexes.faiss import PROBES, load_faiss
from .memory import GRAPH_FROM, Memory


def build_graphs(
    memory: Memory,
    *,
    recall: float = 0.97,
    smallest: int = GRAPH_FROM,
    depth: int | None = None,
    queries: Tensor | None = None,
    links: int = 24,
    ef_construction: int = 80,
    seed: int = 0,
) -> None:
    """Search large segments of keys through graphs (HNSW) from now on; those that have a graph get another.

    Args:
        memory: whose keys are searched.
        recall: share of the nearest keys to find, which decides how far a search looks.
        smallest: segments of fewer keys are scanned exactly.
        depth: nearest keys that the recall is measured on; None for as many as a prediction asks for, and 100 where
            labels are ranked by similarity.
        queries: (n, D) float32, texts to measure it with. None for documents drawn from the memory; to search for
            documents, each is moved by a tenth of its length in a random direction, so that no query is a key.
        links: neighbours of a key in the graph, M.
        ef_construction: candidates looked at for a new key.
        seed: of the draw.

    Raises:
        MissingExtraError: without the extra ``ann``.
        SettingsError: a recall that is no share, or a depth below 1.
    """
    load_faiss()
    depths = (100, 100) if memory.voting.scoring == "similarity" else memory.voting.depths()
    for keys, own in ((memory.label_keys, depths[0]), (memory.document_keys, depths[1])):
        probes = None if queries is None else queries[:, : keys.dim].contiguous()
        alike = memory.label_keys.dim == memory.document_keys.dim
        if probes is None and keys is memory.label_keys and memory.n_documents and alike:
            places = memory.document_keys.present()
            drawn = np.random.default_rng(seed).choice(places, min(PROBES, len(places)), replace=False)
            probes = memory.document_keys.vectors(np.sort(drawn)).float()
        options = {"target": recall, "links": links, "ef_construction": ef_construction, "seed": seed}
        for segment in keys.segments:
            if len(segment) < max(1, smallest):
                segment.drop_graph()
            else:
                segment.build_graph(queries=probes, depth=(own or 100) if depth is None else depth, **options)
