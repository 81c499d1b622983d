"""The memory against the dense formula."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from labelspace.indexes import ExactIndex
from labelspace.memory import Memory

RNG = np.random.default_rng(0)


def keys_and_queries(count: int, n: int = 9, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(count)
    keys = torch.nn.functional.normalize(torch.randn(count, d, generator=g), dim=1)
    return keys, torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)


@pytest.mark.parametrize("block", [3, 7, 1000])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_exact_search_equals_a_full_sort(block: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.indexes.exact.KEY_BLOCK", block)
    monkeypatch.setattr("labelspace.indexes.exact.QUERY_BLOCK", 4)
    keys, queries = keys_and_queries(23)
    products = (queries.double() @ keys.double().T).numpy()
    for allowed in (None, np.array([2, 3, 11, 20])):
        searched = np.arange(23) if allowed is None else allowed
        depth = min(k, len(searched))
        order = searched[np.argsort(-products[:, searched], axis=1)[:, :depth]]
        values, places = ExactIndex(keys).search(queries, k, allowed)
        assert np.array_equal(places, order)
        np.testing.assert_allclose(values, np.take_along_axis(products, order, 1), atol=1e-6)


def test_bf16_keys_are_scored_again_in_float32() -> None:
    keys, queries = keys_and_queries(50)
    low = keys.bfloat16()
    values, places = ExactIndex(low).search(queries, 5)
    exact = (queries @ low.float().T).numpy()
    np.testing.assert_allclose(values, np.take_along_axis(exact, places, 1), atol=1e-6)
    assert (np.diff(values, axis=1) <= 0).all()


@pytest.mark.parametrize(
    "n, k, d, count", [(1, 10, 20, 9000), (37, 10, 20, 9001), (37, 300, 6, 9000), (700, 3, 33, 17_000)]
)
def test_the_int8_scan_finds_what_the_plain_one_finds(n: int, k: int, d: int, count: int) -> None:
    keys, queries = keys_and_queries(count, n, d)
    keys[::3] *= 0.5  # raw vectors of unlike length
    values, places = ExactIndex(keys, int8=True).search(queries, k)
    plain_values, plain_places = ExactIndex(keys, int8=False).search(queries, k)
    found = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(places, plain_places, strict=True)])
    assert found > 0.999
    np.testing.assert_allclose(values, plain_values, atol=2e-3)
    exact = (queries.double() @ keys.double().T).numpy()
    np.testing.assert_allclose(values, np.take_along_axis(exact, places, 1), atol=1e-6)
    assert (np.diff(values, axis=1) <= 0).all()


def test_the_int8_scan_of_keys_in_rising_order() -> None:
    """Every block beats the bar of the one before."""
    keys, queries = keys_and_queries(30_000, 5, 16)
    keys = keys[(keys @ queries[0]).argsort()]
    values, places = ExactIndex(keys, int8=True).search(queries, 20)
    plain = ExactIndex(keys, int8=False).search(queries, 20)
    np.testing.assert_allclose(values, plain[0], atol=2e-3)
    assert np.mean(places == plain[1]) > 0.95


def test_equal_keys_are_ordered_by_number_in_the_int8_scan() -> None:
    keys = torch.ones(9000, 8)
    keys[[5, 700, 8999]] = 2.0
    values, places = ExactIndex(keys, int8=True).search(torch.ones(2, 8), 3)
    assert places.tolist() == [[5, 700, 8999]] * 2 and (values == 16).all()


def dense(memory: Memory, queries: torch.Tensor, allowed: list[int] | None) -> np.ndarray:
    """Scores (n, L) by the formula, -inf where no retrieved key votes."""
    similarities = (queries @ memory.keys.float().T).double().numpy()
    votes = memory.votes.toarray().astype(np.float64)
    if allowed is not None:
        keep = np.zeros(votes.shape[1], dtype=bool)
        keep[allowed] = True
        votes = votes * keep
    scores = np.full((len(queries), votes.shape[1]), -np.inf)
    for i, row in enumerate(similarities):
        if memory.scoring == "votes":
            near = np.argsort(-row)[: memory.depth]
            weight = np.exp(row[near] / memory.temperature)
            weight /= weight.sum()
            for label in range(votes.shape[1]):
                if votes[near, label].any():
                    scores[i, label] = weight @ votes[near, label]
        else:
            for label in range(votes.shape[1]):
                voters = np.flatnonzero(votes[:, label])
                if len(voters):
                    scores[i, label] = max(row[v] * votes[v, label] for v in voters)
    return scores


@pytest.mark.parametrize("scoring", ["similarity", "votes"])
@pytest.mark.parametrize("allowed", [None, [0, 2, 5]])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_predict_equals_the_dense_formula(scoring: str, allowed: list[int] | None, k: int) -> None:
    keys, queries = keys_and_queries(30)
    votes = sp.random_array((30, 8), density=0.2, rng=np.random.default_rng(1), dtype=np.float32).tocsr()
    if scoring == "similarity":
        votes.data[:] = 1
    assert (np.diff(votes.indptr) == 0).any()  # some keys never vote
    memory = Memory(keys, votes, scoring=scoring, temperature=0.1, depth=10)  # type: ignore[arg-type]
    truth = dense(memory, queries, allowed)
    labels, scores = memory.predict(queries, k, None if allowed is None else np.array(allowed))
    assert labels.shape == scores.shape == (9, k)
    for i in range(9):
        order = [j for j in np.argsort(-truth[i], kind="stable") if truth[i, j] > -np.inf][:k]
        found = [j for j in labels[i].tolist() if j >= 0]
        assert found == order
        np.testing.assert_allclose(scores[i, : len(found)], truth[i, order], atol=1e-6)
        assert (scores[i, len(found) :] == -np.inf).all() and (labels[i, len(found) :] == -1).all()


def test_label_memory_is_a_plain_dual_encoder() -> None:
    keys, queries = keys_and_queries(30)
    labels, scores = Memory.of_labels(keys).predict(queries, 4)
    products = (queries @ keys.T).numpy()
    assert np.array_equal(labels, np.argsort(-products, axis=1)[:, :4])
    np.testing.assert_allclose(scores, np.take_along_axis(products, labels, 1), atol=1e-6)


def test_a_key_without_a_vote_crowds_out_nobody() -> None:
    votes = sp.csr_array(np.array([[0, 0], [0, 0], [0, 1]], dtype=np.float32))
    labels, scores = Memory(torch.eye(3), votes).predict(torch.tensor([[1.0, 0.9, 0.8]]), 1)
    assert labels.tolist() == [[1]] and scores[0, 0] == pytest.approx(0.8)


def test_ties_are_ordered_by_label_number() -> None:
    keys = torch.ones(6, 2)
    labels, _ = Memory.of_labels(keys).predict(torch.ones(1, 2), 6)
    assert labels.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_votes_must_fit() -> None:
    keys, _ = keys_and_queries(3)
    with pytest.raises(ValueError, match="do not fit"):
        Memory(keys, sp.csr_array((2, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="negative"):
        Memory(keys, sp.csr_array(-np.eye(3, dtype=np.float32)))
    with pytest.raises(ValueError, match="0 or 1"):
        Memory(keys, sp.csr_array(0.5 * np.eye(3, dtype=np.float32)))
    with pytest.raises(ValueError, match="unknown scoring 'x'"):
        Memory(keys, sp.csr_array(np.eye(3, dtype=np.float32)), scoring="x")  # type: ignore[arg-type]
