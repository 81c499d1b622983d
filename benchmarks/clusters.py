"""Balanced clusters of many documents: seconds, memory beside the vectors, and how alike the documents of a part are.

    python benchmarks/clusters.py [--documents 1000000] [--dim 384] [--batch-size 512] [--dtype bf16]

The vectors are made around a thousand random centres, with noise of the same length. One line of JSON is printed; the
cosine is that of two random documents of one part, and of two random documents at all.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from labelspace.base.machine import peak_memory
from labelspace.training.batches import halves
from labelspace.training.clusters import balanced_clusters


def main() -> None:
    """Make vectors, cluster them, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
    given = parser.parse_args()
    g = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if given.dtype == "bf16" else torch.float32
    centres = torch.nn.functional.normalize(torch.randn(1000, given.dim, generator=g), dim=1)
    vectors = torch.empty(given.documents, given.dim, dtype=dtype)
    for rows in torch.arange(given.documents).split(65_536):
        noise = torch.nn.functional.normalize(torch.randn(len(rows), given.dim, generator=g), dim=1)
        near = centres[torch.randint(0, len(centres), (len(rows),), generator=g)]
        vectors[rows] = torch.nn.functional.normalize(near + noise, dim=1).to(dtype)
    before = peak_memory() or 0
    depth = int(np.log2(given.documents / given.batch_size))
    begun = time.perf_counter()
    order = balanced_clusters(vectors, depth, np.random.default_rng(0))
    seconds = time.perf_counter() - begun
    after = peak_memory() or 0
    sizes = np.array([len(halves(order, depth, part)) for part in range(2**depth)])
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    rng = np.random.default_rng(1)
    parts = rng.integers(0, 2**depth, 10_000)
    pairs = np.stack([order[rng.integers(bounds[parts], bounds[parts + 1])] for _ in range(2)])
    others = rng.integers(0, given.documents, pairs.shape)
    alike, chance = (
        float((vectors[torch.from_numpy(p[0])].float() * vectors[torch.from_numpy(p[1])].float()).sum(dim=1).mean())
        for p in (pairs, others)
    )
    figures = {
        "documents": given.documents, "dim": given.dim, "dtype": given.dtype, "parts": 2**depth,
        "smallest": int(sizes.min()), "largest": int(sizes.max()), "seconds": round(seconds, 1),
        "vectors_gb": round(vectors.nbytes / 1e9, 2), "beside_gb": round((after - before) / 1e9, 2),
        "cosine_in_part": round(alike, 3), "cosine_at_random": round(chance, 3),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
