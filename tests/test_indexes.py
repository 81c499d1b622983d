"""The graph index against the exact one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from labelspace.errors import ModelError, SettingsError
from labelspace.indexes import ExactIndex
from labelspace.indexes.faiss import HnswIndex


def vectors(count: int, d: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, d, generator=g), dim=1)


@pytest.fixture(scope="module")
def built() -> HnswIndex:
    return HnswIndex.build(vectors(3000, 16, 0), links=16, ef_construction=40, target=0.99, depth=20)


def test_finds_nearly_what_the_exact_search_finds(built: HnswIndex) -> None:
    queries = vectors(50, 16, 1)
    values, places = built.search(queries, 20)
    exact_values, exact_places = ExactIndex(built.keys).search(queries, 20)
    found = np.mean([np.isin(a, b).mean() for a, b in zip(exact_places, places, strict=True)])
    assert found > 0.95 and built.recall >= 0.99 and built.depth == 20
    np.testing.assert_allclose(values, (queries @ built.keys.T).numpy()[np.arange(50)[:, None], places], atol=1e-6)
    assert (np.diff(values, axis=1) <= 0).all()
    allowed = np.array([5, 9, 100])
    assert np.array_equal(built.search(queries, 2, allowed)[1], ExactIndex(built.keys).search(queries, 2, allowed)[1])


def test_the_measured_recall_is_the_share_of_exact_neighbours() -> None:
    keys, queries = vectors(2000, 12, 3), vectors(30, 12, 4)
    index = HnswIndex.build(keys, links=4, ef_construction=8, target=1.0, depth=10, queries=queries)
    exact, found = ExactIndex(keys).search(queries, 10)[1], index.search(queries, 10)[1]
    hits = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True))
    assert index.recall == pytest.approx(hits / exact.size)


def test_more_keys_wanted_than_there_are(built: HnswIndex) -> None:
    few = HnswIndex.build(vectors(7, 16, 5))
    values, places = few.search(vectors(3, 16, 6), 50)
    assert values.shape == (3, 7) and all(sorted(row) == list(range(7)) for row in places.tolist())


def test_saved_and_loaded(built: HnswIndex, tmp_path: Path) -> None:
    settings = built.save(tmp_path / "index.faiss")
    again = HnswIndex.load(tmp_path / "index.faiss", built.keys, settings)
    queries = vectors(9, 16, 2)
    assert all(np.array_equal(a, b) for a, b in zip(built.search(queries, 5), again.search(queries, 5), strict=True))
    with pytest.raises(ModelError, match="3000 keys of 16 dimensions, but there are 7"):
        HnswIndex.load(tmp_path / "index.faiss", built.keys[:7], settings)
    content = (tmp_path / "index.faiss").read_bytes()
    (tmp_path / "index.faiss").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="index.faiss is missing or damaged"):
        HnswIndex.load(tmp_path / "index.faiss", built.keys, settings)
    with pytest.raises(ModelError, match="missing or damaged"):
        HnswIndex.load(tmp_path / "none.faiss", built.keys, settings)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least one key"):
        HnswIndex.build(torch.zeros(0, 4))
    with pytest.raises(SettingsError, match="target"):
        HnswIndex.build(vectors(5, 4, 0), target=1.5)
