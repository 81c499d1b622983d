"""Balanced 2-means against plain NumPy, and what its parts are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

import labelspace.training.clusters
from labelspace.training.batches import halves
from labelspace.training.clusters import balanced_clusters


def unit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vectors_of(count: int, seed: int = 0, dim: int = 6) -> torch.Tensor:
    return torch.from_numpy(unit(np.random.default_rng(seed).normal(size=(count, dim)))).float()


def plain(x: npt.NDArray[np.float64], rows: list[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """One split by loops."""
    c0, c1 = (x[rows[i]] for i in rng.choice(len(rows), 2, replace=False))
    before = -np.inf
    middle = (len(rows) + 1) // 2
    for _ in range(100):
        order = sorted(rows, key=lambda i: float(x[i] @ c1 - x[i] @ c0))
        first, second = order[:middle], order[middle:]
        c0, c1 = (unit(np.mean([x[i] for i in half], axis=0)) for half in (first, second))
        now = (sum(float(x[i] @ c0) for i in first) + sum(float(x[i] @ c1) for i in second)) / len(rows)
        if now - before < 1e-4:
            break
        before = now
    return first, second


@pytest.mark.parametrize("count", [2, 7, 40, 41])
@pytest.mark.parametrize("block", [8, 1000])
def test_a_split_equals_loops(count: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelspace.training.clusters, "ROW_BLOCK", block)
    for seed in range(3):
        x = vectors_of(count, seed)
        found = balanced_clusters(x, 1, np.random.default_rng(seed)).tolist()
        first, second = plain(x.double().numpy(), list(range(count)), np.random.default_rng(seed))
        middle = (count + 1) // 2
        assert set(found[:middle]) == set(first) and set(found[middle:]) == set(second)


@pytest.mark.parametrize(("count", "depth"), [(64, 3), (100, 3), (8, 3), (9, 3), (5, 0)])
def test_every_vector_is_in_one_part_of_equal_size(count: int, depth: int) -> None:
    order = balanced_clusters(vectors_of(count), depth, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(count))
    sizes = [len(halves(order, depth, part)) for part in range(2**depth)]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == count
    with pytest.raises(ValueError, match=r"cannot be cut into 2\^4 parts"):
        balanced_clusters(vectors_of(15), 4, np.random.default_rng(0))


def test_groups_are_found() -> None:
    rng = np.random.default_rng(1)
    centres = unit(rng.normal(size=(4, 16)))
    kinds = np.repeat(np.arange(4), 50)
    x = torch.from_numpy(unit(centres[kinds] + 0.02 * rng.normal(size=(200, 16)))).float()
    order = balanced_clusters(x, 2, np.random.default_rng(0))
    for part in range(4):
        assert len(set(kinds[halves(order, 2, part)].tolist())) == 1
    assert np.array_equal(order, balanced_clusters(x, 2, np.random.default_rng(0)))


def test_equal_vectors_and_bf16_are_fine() -> None:
    order = balanced_clusters(torch.ones(9, 4) / 2, 2, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(9))
    order = balanced_clusters(vectors_of(30).bfloat16(), 2, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(30))
