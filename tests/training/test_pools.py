"""The pool of picked labels, each step against plain enumeration, and the batches made of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from conftest import random_truth

from labelspace.training.batches import Draws, PickedBatches, halves
from labelspace.training.pools import PickSome, draw_from

TRUTH = random_truth(np.random.default_rng(0), 40, 60, density=0.08)
TRUTH = sp.csr_array(TRUTH[np.diff(TRUTH.indptr) > 0])


def draws_of(rows: npt.NDArray[np.int64], seed: int = 0) -> Draws:
    return Draws.of(sp.csr_array(TRUTH[rows]), np.random.default_rng(seed))


def positives(rows: npt.NDArray[np.int64]) -> list[set[int]]:
    dense = TRUTH.toarray()
    return [set(np.flatnonzero(dense[row]).tolist()) for row in rows]


def drawn_of(draws: Draws, row: int, count: int) -> list[int]:
    return [
        label
        for r, label, rank in zip(draws.rows.tolist(), draws.labels.tolist(), draws.rank.tolist(), strict=True)
        if r == row and rank < count
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_positives", [1, 2, 3, None])
def test_each_document_draws_its_positives(seed: int, num_positives: int | None) -> None:
    rows = np.arange(9)
    draws = draws_of(rows, seed)
    pool = PickSome(num_positives, cap=100, gap=1000)(draws, None, np.random.default_rng(seed))
    expected: set[int] = set()
    for i, mine in enumerate(positives(rows)):
        drawn = drawn_of(draws, i, num_positives or 99)
        assert len(drawn) == len(set(drawn)) == min(num_positives or 99, len(mine)) and set(drawn) <= mine
        expected |= set(drawn)
    assert pool.tolist() == sorted(expected)


@pytest.mark.parametrize("cap", [1, 5, 9, 20])
def test_above_the_cap_the_most_drawn_stay(cap: int) -> None:
    rows = np.arange(30)
    draws = draws_of(rows)
    counts = Counter(label for i in range(30) for label in drawn_of(draws, i, 3))
    assert len(counts) > cap
    chosen = set()
    for seed in range(30):
        pool = PickSome(3, cap=cap, gap=0)(draws, np.zeros((30, 5), np.int64), np.random.default_rng(seed)).tolist()
        assert len(set(pool)) == cap and pool == sorted(pool)
        out = max(counts[label] for label in counts if label not in pool)
        assert min(counts[label] for label in pool) >= out
        chosen.add(tuple(pool))
    falling = sorted(counts.values(), reverse=True)
    assert (len(chosen) > 1) == (falling[cap - 1] == falling[cap])  # ties are broken by lot


def test_negatives_come_from_the_shortlists_most_drawn_first() -> None:
    rows = np.arange(12)
    mine = positives(rows)
    rng = np.random.default_rng(3)
    shortlists = np.full((12, 8), -1)
    for i in range(12):
        free = [label for label in rng.permutation(60).tolist() if label not in mine[i]]
        shortlists[i, : i % 9] = free[: i % 9]  # empty, too short, and long enough
    draws = draws_of(rows)
    first = set(PickSome(2, 4, cap=1000, gap=2000)(draws, None, rng).tolist())
    seen = set()
    for seed in range(20):
        pool = PickSome(2, 4, cap=len(first) + 6, gap=5)(draws, shortlists, np.random.default_rng(seed))
        counts = Counter(draw_from(shortlists, 4, np.random.default_rng(seed)).tolist())
        new = set(pool.tolist()) - first
        assert first <= set(pool.tolist()) and len(new) == min(6, len(set(counts) - first))
        assert new <= set(counts)
        left_out = [counts[label] for label in set(counts) - first - new]
        assert min(counts[label] for label in new) >= max(left_out, default=0)
        seen.add(tuple(sorted(new)))
    assert len(seen) > 1


def test_draws_from_shortlists() -> None:
    shortlists = np.array([[5, 6, 7, 8, 9], [1, -1, 2, -1, -1], [-1] * 5, [3, 4, 5, -1, -1]])
    seen = Counter()
    for seed in range(300):
        drawn = draw_from(shortlists, 3, np.random.default_rng(seed)).tolist()
        assert len(drawn) == 9
        long, exact, short = drawn[:3], drawn[3:6], drawn[6:]
        assert len(set(long)) == 3 and set(long) <= {5, 6, 7, 8, 9}
        assert set(exact) == {3, 4, 5}
        assert set(short) <= {1, 2}
        seen.update(("long", x) for x in long)
        seen.update(("short", x) for x in short)
    assert all(abs(seen["long", x] - 180) < 45 for x in (5, 6, 7, 8, 9))
    assert all(abs(seen["short", x] - 450) < 75 for x in (1, 2))
    for nothing in (np.full((3, 0), -1), np.full((3, 4), -1)):
        assert draw_from(nothing, 2, np.random.default_rng(0)).tolist() == []


@pytest.mark.parametrize("room", [3, 11, 500])
def test_what_is_free_is_filled_with_the_positives_that_most_documents_have(room: int) -> None:
    rows = np.arange(25)
    draws = draws_of(rows)
    first = set(PickSome(1, cap=1000, gap=2000)(draws, None, np.random.default_rng(0)).tolist())
    pool = set(PickSome(1, cap=len(first) + room, gap=5)(draws, None, np.random.default_rng(0)).tolist())
    counts = Counter(label for mine in positives(rows) for label in mine)
    new, rest = pool - first, set(counts) - pool
    if room <= 5:  # no more than the gap is free
        assert not new
    else:
        assert len(new) == min(room, len(set(counts) - first))
        assert min(counts[label] for label in new) >= max((counts[label] for label in rest), default=0)


def test_the_gap_is_looked_at_again_after_the_negatives() -> None:
    rows = np.arange(10)
    draws = draws_of(rows)
    first = PickSome(1, cap=1000, gap=2000)(draws, None, np.random.default_rng(0))
    free = [label for label in range(60) if label not in set().union(*positives(rows))]
    shortlists = np.tile(np.array(free[:8]), (10, 1))
    pool = PickSome(1, 8, cap=len(first) + 12, gap=4)(draws, shortlists, np.random.default_rng(0))
    assert set(pool.tolist()) == set(first.tolist()) | set(free[:8])  # 4 places are left, not more than the gap
    pool = PickSome(1, 8, cap=len(first) + 12, gap=3)(draws, shortlists, np.random.default_rng(0))
    assert len(pool) == len(first) + 12


def batches(cap: int | None, **options: object) -> PickedBatches:
    rows = np.arange(TRUTH.shape[0])
    return PickedBatches(TRUTH, rows, PickSome(2, 3, cap, gap=0), 7, seed=5, **options)  # type: ignore[arg-type]


def test_a_shortlist_with_true_labels_gives_none_of_them() -> None:
    dense = TRUTH.toarray()
    plan = PickedBatches(TRUTH, np.arange(TRUTH.shape[0]), PickSome(1, 8, None, gap=0), 1, seed=5)
    free = [int(np.flatnonzero(row == 0)[0]) for row in dense]
    plan.shortlists = np.stack([np.append(np.resize(np.flatnonzero(row), 9), -1) for row in dense]).astype(np.int32)
    plan.shortlists[:, 4] = free
    for batch in plan.epoch(0):
        (row,) = batch.rows.tolist()
        negatives = [label for label in batch.pool.tolist() if not dense[row, label]]  # type: ignore[union-attr]
        assert negatives == [free[row]]


@pytest.mark.parametrize("cap", [2, 5, 20, None])
@pytest.mark.parametrize("clustered", [False, True])
def test_positives_are_the_whole_truth_inside_the_pool_and_bare_documents_are_dropped(
    cap: int | None, clustered: bool
) -> None:
    dense, seen, dropped = TRUTH.toarray(), 0, 0
    plan = batches(cap, clustered=clustered)
    for batch in plan.epoch(2):
        assert batch.pool is not None and len(set(batch.pool.tolist())) == len(batch.pool) <= (cap or 60)
        expected = {
            (i, j) for i, row in enumerate(batch.rows) for j, label in enumerate(batch.pool) if dense[row, label]
        }
        pairs = list(zip(*batch.positives.tolist(), strict=True))
        assert len(pairs) == len(set(pairs)) and set(pairs) == expected
        assert {i for i, _ in pairs} == set(range(len(batch.rows)))
        seen += len(batch.rows)
    dropped = len(plan.rows) - seen
    assert (dropped > 0) == (cap == 2 or cap == 5)


def test_a_negative_of_one_document_is_a_positive_of_its_owner() -> None:
    dense = TRUTH.toarray()
    plan = batches(None)
    plan.pick = PickSome(1, 1, cap=1000, gap=0)
    plan.shortlists = np.zeros((len(plan.rows), 1), np.int32)  # label 0 is drawn for every document
    for batch in plan.epoch(0):
        assert batch.pool is not None and batch.pool[0] == 0
        column = set(batch.positives[0][batch.positives[1] == 0].tolist())
        assert column == set(np.flatnonzero(dense[batch.rows, 0]).tolist())


def test_clusters_are_the_batches_in_an_order_that_changes_with_the_epoch() -> None:
    plan = batches(None, clustered=True)
    count = len(plan.rows)
    assert plan.depth == int(np.log2(count / 7)) and plan.per_epoch == 2**plan.depth
    sizes = [len(batch.rows) for batch in plan.epoch(0)]
    assert sum(sizes) == count and max(sizes) - min(sizes) <= plan.depth and min(sizes) >= 7
    plan.clusters = np.random.default_rng(1).permutation(count)
    parts = [tuple(halves(plan.clusters, plan.depth, i).tolist()) for i in range(plan.per_epoch)]
    assert sum(parts, ()) == tuple(plan.clusters.tolist())
    orders = []
    for epoch in range(4):
        found = [tuple(batch.rows.tolist()) for batch in plan.epoch(epoch)]
        assert sorted(found) == sorted(parts)
        orders.append([parts.index(rows) for rows in found])
    assert len({tuple(order) for order in orders}) > 1
    later = [batch.rows.tolist() for batch in plan.epoch(3, start=2)]
    assert later == [batch.rows.tolist() for batch in plan.epoch(3)][2:]


def test_batches_depend_on_seed_epoch_and_step_alone() -> None:
    def all_of(plan: PickedBatches, epoch: int, start: int = 0) -> list[list[object]]:
        return [[b.rows.tolist(), b.pool.tolist(), b.positives.tolist()] for b in plan.epoch(epoch, start)]  # type: ignore[union-attr]

    for options in ({"clustered": False}, {"clustered": True}):
        assert all_of(batches(9, **options), 1) == all_of(batches(9, **options), 1)
        assert all_of(batches(9, **options), 1)[2:] == all_of(batches(9, **options), 1, 2)
        assert all_of(batches(9, **options), 1) != all_of(batches(9, **options), 2)


def test_the_pool_does_not_depend_on_the_number_of_labels() -> None:
    rows = np.arange(20)
    wide = sp.csr_array((TRUTH.data, TRUTH.indices, TRUTH.indptr), shape=(TRUTH.shape[0], 10**9))
    results = []
    for truth in (TRUTH, wide):
        rng = np.random.default_rng(4)
        draws = Draws.of(sp.csr_array(truth[rows]), rng)
        results.append(PickSome(2, 3, 30, 2)(draws, np.tile(np.arange(5), (20, 1)), rng))
    assert np.array_equal(*results)
