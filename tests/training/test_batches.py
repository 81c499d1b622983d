"""Batches, pools and drawn positives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from conftest import random_truth

from labelspace.training.batches import Batches, Draws, PickedBatches, usable_rows
from labelspace.training.pools import AllLabels, InBatch, make_pool
from labelspace.types import Batch

TRUTH = random_truth(np.random.default_rng(0), 23, 11)
ROWS = usable_rows(TRUTH, np.arange(23))


def batches(
    targets: sp.csr_array,
    rows: npt.NDArray[np.int64],
    pool: Callable[[Draws], npt.NDArray[np.int64] | None],
    batch_size: int,
    seed: int,
    epoch: int,
    **options: Any,
) -> Iterator[Batch]:
    return Batches(targets, rows, pool, batch_size, seed, **options).epoch(epoch)


def test_every_document_with_a_label_comes_once_an_epoch() -> None:
    dense = TRUTH.toarray()
    assert ROWS.tolist() == [i for i in range(23) if dense[i].any()]
    seen = [batch.rows for batch in batches(TRUTH, ROWS, AllLabels(), 4, seed=1, epoch=0)]
    assert [len(s) for s in seen] == [4] * (len(ROWS) // 4) + ([len(ROWS) % 4] if len(ROWS) % 4 else [])
    assert sorted(np.concatenate(seen).tolist()) == ROWS.tolist()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [i for batch in batches(TRUTH, ROWS, AllLabels(), 4, seed, epoch) for i in batch.rows.tolist()]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


def test_uniform_labels_widen_a_pool_and_may_be_positives() -> None:
    dense = TRUTH.toarray()
    plain = list(batches(TRUTH, ROWS, InBatch(1), 3, seed=0, epoch=0, draw=1))
    wide = list(batches(TRUTH, ROWS, InBatch(1), 3, seed=0, epoch=0, draw=1, uniform=4))
    sizes = []
    for before, after in zip(plain, wide, strict=True):
        assert before.pool is not None and after.pool is not None and after.hidden is not None
        assert set(before.pool.tolist()) <= set(after.pool.tolist())
        sizes.append(len(after.pool) - len(before.pool))
        pairs = np.concatenate([after.positives, after.hidden], axis=1)
        expected = {(i, j) for i, row in enumerate(after.rows) for j, c in enumerate(after.pool) if dense[row, c]}
        assert set(zip(*pairs.tolist(), strict=True)) == expected
    assert 0 < sum(sizes) and max(sizes) <= 4
    every = next(iter(batches(TRUTH, ROWS, InBatch(), 3, seed=0, epoch=0, uniform=99)))
    assert every.pool is not None and every.pool.tolist() == list(range(11))
    picked = PickedBatches(TRUTH, ROWS, lambda draws, short, rng: np.unique(draws.labels[:1]), 3, seed=0, uniform=4)
    for batch in picked.epoch(0):
        assert batch.pool is not None and 4 <= len(batch.pool) <= 5
        pairs = set(zip(*batch.positives.tolist(), strict=True))
        assert pairs == {(i, j) for i, r in enumerate(batch.rows) for j, c in enumerate(batch.pool) if dense[r, c]}


@pytest.mark.parametrize("pool", ["all", "in-batch"])
def test_positives_are_the_truth_inside_the_pool(pool: str) -> None:
    dense = TRUTH.toarray()
    for batch in batches(TRUTH, ROWS, make_pool(pool), 5, seed=0, epoch=3):
        labels = np.arange(11) if batch.pool is None else batch.pool
        assert len(set(labels.tolist())) == len(labels)
        expected = {(i, j) for i, row in enumerate(batch.rows) for j, label in enumerate(labels) if dense[row, label]}
        pairs = list(zip(*batch.positives.tolist(), strict=True))
        assert len(pairs) == len(set(pairs)) and set(pairs) == expected
        if pool == "in-batch":
            assert set(labels.tolist()) == set(np.flatnonzero(dense[batch.rows].any(0)).tolist())


def test_a_pool_may_hold_fewer_labels_than_the_documents() -> None:
    for batch in batches(TRUTH, ROWS, lambda draws: np.array([2, 7]), 50, seed=0, epoch=0, draw=1):
        dense = TRUTH.toarray()[batch.rows][:, [2, 7]]
        assert batch.hidden is not None
        both = np.hstack([batch.positives, batch.hidden])
        assert {(i, j) for i, j in both.T.tolist()} == set(zip(*map(list, np.nonzero(dense)), strict=True))


@pytest.mark.parametrize("draw", [1, 2, 5])
@pytest.mark.parametrize("hide", [True, False])
def test_drawn_positives(draw: int, hide: bool) -> None:
    dense = TRUTH.toarray()
    for batch in batches(TRUTH, ROWS, AllLabels(), 6, seed=0, epoch=0, draw=draw, hide=hide):
        kept = np.bincount(batch.positives[0], minlength=len(batch.rows))
        sizes = dense[batch.rows].sum(1)
        assert kept.tolist() == np.minimum(draw, sizes).tolist()
        if hide:
            assert batch.hidden is not None
            together = {tuple(p) for p in np.hstack([batch.positives, batch.hidden]).T.tolist()}
            assert together == {(i, j) for i, row in enumerate(batch.rows) for j in np.flatnonzero(dense[row]).tolist()}
        else:
            assert batch.hidden is None


def test_weights_follow_their_pairs() -> None:
    relevance = sp.csr_array(TRUTH * np.random.default_rng(1).random(TRUTH.shape).astype(np.float32))
    dense = relevance.toarray()
    for draw in (None, 1):
        for batch in batches(relevance, ROWS, InBatch(), 5, seed=0, epoch=0, draw=draw, weighted=True):
            assert batch.weights is not None and batch.pool is not None
            expected = dense[batch.rows[batch.positives[0]], batch.pool[batch.positives[1]]]
            assert batch.weights.tolist() == expected.tolist()
    assert next(iter(batches(relevance, ROWS, AllLabels(), 5, seed=0, epoch=0))).weights is None


def test_draws_are_in_proportion_to_relevance() -> None:
    part = sp.csr_array(np.tile(np.array([[0.2, 0.8]], np.float32), (30_000, 1)))
    draws = Draws.of(part, np.random.default_rng(0))
    first = (draws.rank == 0).reshape(-1, 2)
    assert (first.sum(1) == 1).all()
    assert first[:, 1].mean() == pytest.approx(0.8, abs=0.02)


def test_unknown_pool() -> None:
    with pytest.raises(ValueError, match="choose one of all, in-batch, mined"):
        make_pool("some")


def test_in_batch_of_documents_without_labels_is_empty() -> None:
    draws = Draws.of(sp.csr_array((3, 4), dtype=np.float32), np.random.default_rng(0))
    assert len(InBatch()(draws)) == 0


def test_fewer_positives_in_the_pool() -> None:
    dense = TRUTH.toarray()
    for batch in Batches(TRUTH, ROWS, InBatch(1), 5, seed=0, draw=1).epoch(0):
        assert batch.pool is not None and len(batch.pool) <= len(batch.rows)
        assert np.bincount(batch.positives[0], minlength=len(batch.rows)).tolist() == [1] * len(batch.rows)
        assert set(batch.pool[batch.positives[1]].tolist()) == set(batch.pool.tolist())
        assert batch.hidden is not None
        both = {tuple(pair) for pair in np.hstack([batch.positives, batch.hidden]).T.tolist()}
        assert both == {
            (i, j) for i, r in enumerate(batch.rows) for j, label in enumerate(batch.pool) if dense[r, label]
        }


def test_an_epoch_can_begin_later() -> None:
    plan = Batches(TRUTH, ROWS, InBatch(2), 4, seed=3, draw=1)
    whole, rest = list(plan.epoch(2)), list(plan.epoch(2, 3))
    assert len(whole) == plan.per_epoch and len(rest) == plan.per_epoch - 3
    for a, b in zip(whole[3:], rest, strict=True):
        for name in ("rows", "pool", "positives", "hidden"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_a_widened_pool_keeps_the_draws_and_the_truth() -> None:
    dense = TRUTH.toarray()
    for draw in (None, 1, 2):
        plan = Batches(TRUTH, ROWS, InBatch(2), 6, seed=0, draw=draw)
        for batch in plan.epoch(1):
            assert batch.pool is not None
            wide = plan.widened(batch, np.array([10, 3, 3, 0]))
            assert wide.pool is not None and wide.pool.tolist() == sorted({*batch.pool.tolist(), 0, 3, 10})
            truth = {(i, j) for i, r in enumerate(batch.rows) for j, label in enumerate(wide.pool) if dense[r, label]}
            found = wide.positives if wide.hidden is None else np.hstack([wide.positives, wide.hidden])
            assert {tuple(pair) for pair in found.T.tolist()} == truth
            before = {(r, batch.pool[c]) for r, c in batch.positives.T.tolist()}
            assert before <= {(r, wide.pool[c]) for r, c in wide.positives.T.tolist()}
