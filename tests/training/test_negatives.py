"""Hard negatives: shortlists without true labels, filters by rank, score and margin, uniform draws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import random_truth
from hypothesis import given, settings
from hypothesis import strategies as st

from labelspace.training.negatives import Filter, HardNegatives

EVERYTHING = Filter(range_max=1000)


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def plain(
    truth: sp.csr_array, rows: list[int], queries: torch.Tensor, keys: torch.Tensor, chosen: Filter
) -> list[set[int]]:
    """The labels that may be drawn, one document at a time."""
    result = []
    for row, query in zip(rows, queries.double(), strict=True):
        scores = (keys.double() @ query).tolist()
        true = set(truth[[row]].indices.tolist())
        best = max((scores[j] for j in true), default=float("inf"))
        others = sorted((j for j in range(len(keys)) if j not in true), key=lambda j: -scores[j])
        kept = set()
        for rank, label in enumerate(others):
            score = scores[label]
            if not chosen.range_min <= rank < chosen.range_max:
                continue
            if chosen.max_score is not None and score > chosen.max_score:
                continue
            if chosen.absolute_margin is not None and score > best - chosen.absolute_margin:
                continue
            if chosen.relative_margin is not None and score > best - chosen.relative_margin * abs(best):
                continue
            kept.add(label)
        result.append(kept)
    return result


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    count=st.integers(1, 9),
    range_min=st.integers(0, 3),
    length=st.integers(1, 12),
    max_score=st.none() | st.floats(-0.5, 0.9),
    absolute_margin=st.none() | st.floats(0, 0.8),
    relative_margin=st.none() | st.floats(0, 0.9),
)
def test_draws_come_from_the_allowed_labels_and_never_from_the_true_ones(
    seed: int,
    density: float,
    count: int,
    range_min: int,
    length: int,
    max_score: float | None,
    absolute_margin: float | None,
    relative_margin: float | None,
) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, 7, 11, density)
    chosen = Filter(range_min, range_min + length, max_score, absolute_margin, relative_margin)
    hard = HardNegatives(truth, chosen, count)
    hard.refresh(vectors(11, seed))
    rows = rng.permutation(7)[:4]
    queries = vectors(4, seed + 1)
    expected = plain(truth, rows.tolist(), queries, vectors(11, seed), chosen)
    for drawn, allowed in zip(hard.draw(rows, queries, rng), expected, strict=True):
        assert len(set(drawn.tolist())) == len(drawn) == min(count, len(allowed))
        assert set(drawn.tolist()) <= allowed
    found = [len(allowed) for allowed in expected]
    mean = sum(min(count, n) for n in found) / 4
    assert hard.outcome() == pytest.approx({"documents": 4, "hard_negatives": mean, "none": found.count(0)})
    hard.draw(rows, queries, rng)
    assert hard.outcome() is None
    hard.refresh(vectors(11, seed))
    listed = hard.candidates(rows, queries, 11)
    assert [set(row[row >= 0].tolist()) for row in listed] == expected
    assert hard.outcome() == pytest.approx({"documents": 4, "hard_negatives": mean, "none": found.count(0)})


def test_every_allowed_label_is_drawn_equally_often() -> None:
    truth = sp.csr_array(np.array([[1, 0, 0, 1, 0, 0]], dtype=np.float32))
    hard = HardNegatives(truth, Filter(1, 4), 2)
    keys = vectors(6, 0)
    hard.refresh(keys)
    rng = np.random.default_rng(0)
    counts = np.zeros(6)
    for _ in range(900):
        counts[hard.draw(np.array([0]), vectors(1, 1), rng)[0]] += 1
    (allowed,) = plain(truth, [0], vectors(1, 1), keys, Filter(1, 4))
    assert set(np.flatnonzero(counts).tolist()) == allowed and len(allowed) == 3
    assert counts[sorted(allowed)] == pytest.approx(600, rel=0.1)


def test_nothing_is_drawn_before_the_first_refresh_and_the_keys_are_the_last_ones() -> None:
    truth = random_truth(np.random.default_rng(0), 5, 8, 0.2)
    hard = HardNegatives(truth, EVERYTHING, 2)
    rng = np.random.default_rng(0)
    assert [len(x) for x in hard.draw(np.arange(3), vectors(3, 0), rng)] == [0, 0, 0]
    assert hard.state() == {}
    hard.refresh(vectors(8, 1).bfloat16())
    again = HardNegatives(truth, EVERYTHING, 2)
    again.restore(hard.state())
    a = hard.draw(np.arange(5), vectors(5, 2), np.random.default_rng(3))
    b = again.draw(np.arange(5), vectors(5, 2), np.random.default_rng(3))
    assert [x.tolist() for x in a] == [x.tolist() for x in b] and all(len(x) == 2 for x in a)
    again.restore({})
    assert len(again.draw(np.arange(1), vectors(1, 0), rng)[0]) == 0
