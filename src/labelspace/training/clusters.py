"""Clusters of equal size: recursive balanced 2-means, for batches of documents that are alike (NGAME, UniDEC)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

MAX_ROUNDS = 100
"""Rounds of a split at most."""
MIN_GAIN = 1e-4
"""A split goes on while the mean cosine with the own centroid grows by this much in a round."""
ROW_BLOCK = 65_536
"""Vectors of a part that are held at a time when it is larger than this; those of a smaller part are gathered once."""


def balanced_clusters(vectors: Tensor, depth: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Halve the vectors ``depth`` times, so that each of the 2^depth parts holds vectors that are alike.

    A part is split by two centroids, at first two of its vectors at random: its vectors are sorted by their cosine with
    the second less that with the first, and cut in half, the first half getting the odd one; the centroids become the
    normalised means; this is repeated (`MAX_ROUNDS`, `MIN_GAIN`). Beside the vectors it holds a block of them, and some
    numbers a vector.

    Args:
        vectors: (n, D) float32 or bf16, unit length.
        depth: halvings; 2^depth must be at most n.
        rng: source of the first centroids.

    Returns:
        (n,) row numbers, part by part; `batches.halves` gives a part.

    Raises:
        ValueError: more parts than vectors.
    """
    if 2**depth > len(vectors):
        raise ValueError(f"{len(vectors)} vectors cannot be cut into 2^{depth} parts")
    parts = [np.arange(len(vectors))]
    for _ in range(depth):
        parts = [half for part in parts for half in _split(vectors, part, rng)]
    return np.concatenate(parts)


def _split(
    vectors: Tensor, part: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    count, middle = len(part), -(-len(part) // 2)
    rows = torch.from_numpy(part).to(vectors.device)
    blocks = [rows[i : i + ROW_BLOCK] for i in range(0, count, ROW_BLOCK)]
    whole = vectors[rows].float() if len(blocks) == 1 else None  # gathered once
    first = rng.choice(count, 2, replace=False)
    centroids = vectors[rows[torch.from_numpy(first).to(rows.device)]].float()
    before = -np.inf
    for _ in range(MAX_ROUNDS):
        toward = centroids[1] - centroids[0]
        if whole is not None:
            lean = whole @ toward
        else:
            lean = torch.cat([vectors[block].float() @ toward for block in blocks])
        order = torch.argsort(lean, stable=True)
        second = torch.zeros(count, device=rows.device)
        second[order[middle:]] = 1
        shares = torch.stack([1 - second, second])
        if whole is not None:  # small parts are many, so the loop would cost time
            sums = shares @ whole
        else:
            sums = torch.zeros_like(centroids)
            for i, block in enumerate(blocks):
                sums += shares[:, i * ROW_BLOCK : (i + 1) * ROW_BLOCK] @ vectors[block].float()
        centroids = normalize(sums, dim=1)
        now = float((sums * centroids).sum()) / count
        if now - before < MIN_GAIN:
            break
        before = now
    sorted_part = part[order.cpu().numpy()]
    return sorted_part[:middle], sorted_part[middle:]
