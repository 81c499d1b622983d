"""The memory against the dense formula."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from labelspace.base.rates import int8_is_exact
from labelspace.base.strings import Strings
from labelspace.errors import ModelError
from labelspace.memory import storage
from labelspace.memory.explain import explain
from labelspace.memory.indexes import ExactIndex, exact
from labelspace.memory.keys import REMOVED, Keys, Segment
from labelspace.memory.memory import Memory
from labelspace.memory.voting import Query, Voting
from labelspace.types import Labels

RNG = np.random.default_rng(0)


def keys_and_queries(count: int, n: int = 9, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(count)
    keys = torch.nn.functional.normalize(torch.randn(count, d, generator=g), dim=1)
    return keys, torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)


@pytest.mark.parametrize("block", [3, 7, 1000])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_exact_search_equals_a_full_sort(block: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.memory.indexes.exact.KEY_BLOCK", block)
    monkeypatch.setattr("labelspace.memory.indexes.exact.QUERY_BLOCK", 4)
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


def index_of(kind: str, keys: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> ExactIndex:
    """An index that scans keys in one of the ways, whatever is fast on this processor."""
    if kind == "int8" and not int8_is_exact():
        pytest.skip("this processor's int8 products are wrong, so none are taken")
    monkeypatch.setattr(exact, "bf16_pays", lambda device: kind == "bf16")
    return ExactIndex(keys.bfloat16() if kind.startswith("bf16") else keys, int8=kind == "int8")


def check_found(index: ExactIndex, queries: torch.Tensor, k: int, missed: float) -> None:
    """Against every product in float64: what is found, but for keys that are as near as rounding tells, and scores."""
    values, places = index.search(queries, k)
    products = (queries.double() @ index.keys.double().T).numpy()
    best = -np.sort(-products, axis=1)[:, :k]
    found = np.take_along_axis(products, places, 1)
    lengths = (queries.double().norm(dim=1)[:, None] * index.keys.double().norm(dim=1)).numpy()
    eps = queries.shape[1] * np.finfo(np.float32).eps * np.take_along_axis(lengths, places, 1)
    assert (np.abs(values - found) <= eps).all()  # scores are float32 products, whatever was scanned
    assert (np.diff(values, axis=1) <= 0).all()
    assert all(len(set(row.tolist())) == k for row in places)
    assert (found >= best[:, -1:] - eps).mean() >= 1 - missed  # nothing better was passed over


SCANS = ["float32", "bf16", "bf16 raised", "int8"]
MISSED = {"int8": 1e-3}
"""Share of the keys that a scan may miss: int8 rounds by about 0.001 of a cosine, and bf16 is looked at deeper."""


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("products", [exact.PRODUCTS, 40_000])  # one part of the keys, or many
@pytest.mark.parametrize(
    "n, k, d, count",
    [(1, 10, 20, 9000), (37, 10, 20, 9001), (37, 300, 6, 9000), (700, 3, 33, 17_000), (16, 1, 8, 4096)],
)
def test_the_scan_with_a_bar_finds_the_nearest_keys(
    n: int, k: int, d: int, count: int, products: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "PRODUCTS", products)
    keys, queries = keys_and_queries(count, n, d)
    keys[::3] *= 0.5  # raw vectors of unlike length
    check_found(index_of(kind, keys, monkeypatch), queries, k, MISSED.get(kind, 0.0))


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("k", [5, 120])
@pytest.mark.parametrize("order", ["rising", "falling", "first good", "first bad"])
def test_the_order_of_keys_does_not_mislead_the_bar(
    order: str, k: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in order of nearness, or those looked at first the best of all or the worst: some are scanned again."""
    monkeypatch.setattr(exact, "PRODUCTS", 1 << 20)
    again: list[bool] = []
    scan = exact._scan_bar
    monkeypatch.setattr(exact, "_scan_bar", lambda *a, guess: again.append(not guess) or scan(*a, guess=guess))
    keys, queries = keys_and_queries(30_000, 300, 16)
    wider = exact.INT8_FACTOR if kind == "int8" else 1
    first = torch.arange(0, 30_000, -(-30_000 // (wider * (1 << 20) // 300)))  # the first part
    if order in ("rising", "falling"):
        keys = keys[(keys @ queries[0]).argsort(descending=order == "falling")]
    else:
        keys[first] *= 3 if order == "first good" else 0.1
    check_found(index_of(kind, keys, monkeypatch), queries, k, MISSED.get(kind, 0.0))
    assert again[0] is False and (order != "first good" or k == 5 or again[1:2] == [True])


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("n", [1, 40])
def test_equal_keys_are_ordered_by_number(n: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.ones(9000, 8)
    keys[[5, 700, 8999]] = 2.0
    index = index_of(kind, keys, monkeypatch)
    values, places = index.search(torch.ones(n, 8), 3)
    assert places.tolist() == [[5, 700, 8999]] * n and (values == 16).all()
    values, places = index.search(torch.ones(n, 8), 5)  # many tie for the last places
    assert (values == [16, 16, 16, 8, 8]).all() and all(len(set(row)) == 5 for row in places.tolist())
    values, places = index.search(torch.zeros(n, 8), 5)  # a text of unknown words
    assert (values == 0).all() and all(len(set(row)) == 5 for row in places.tolist())


def test_few_queries_are_answered_alike_wherever_keys_lie_in_memory() -> None:
    """A model's keys are in fresh memory before it is saved, and mapped from a file when it is opened."""
    keys, queries = keys_and_queries(6000, 3, 24)
    room = torch.empty(keys.numel() + 16)
    expected = ExactIndex(keys, int8=False).search(queries, 9)
    for offset in (1, 2, 5, 8):
        moved = room[offset : offset + keys.numel()].view(keys.shape).copy_(keys)
        for a, b in zip(ExactIndex(moved, int8=False).search(queries, 9), expected, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("bits", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("listed", [1500, 4000])
def test_shortlists_scored_by_key_equal_those_scored_by_query(bits: torch.dtype, listed: int) -> None:
    keys, queries = keys_and_queries(5000, 90, 24)
    where = torch.randint(0, listed, (90, 77), generator=torch.Generator().manual_seed(3))  # some keys not at all
    by_query = exact._products(queries, keys.to(bits), where)
    torch.testing.assert_close(exact._products_by_key(queries, keys.to(bits), where), by_query, atol=1e-5, rtol=0)
    expected = torch.einsum("nd,nmd->nm", queries.double(), keys.to(bits).double()[where])
    torch.testing.assert_close(by_query.double(), expected, atol=1e-5, rtol=0)


N, L = 40, 12
VOTINGS = [
    Voting(search="joint", depth=10, temperature=0.1, weight=0.3),
    Voting(search="joint", depth=1, temperature=0.02, weight=0.5),
    Voting(search="joint", depth=500, temperature=0.05, weight=0.9, votes="normalized"),
    Voting(label_depth=3, document_depth=7, temperature=0.07, weight=0.6),
    Voting(label_depth=12, document_depth=40, temperature=0.2, weight=0.2, votes="normalized"),
    Voting(label_depth=6, document_depth=9, temperature=0.06, label_temperature=0.15, weight=0.4),
    Voting(label_depth=12, document_depth=9, temperature=0.06, label_temperature=0.2, weight=0.3, softmax="apart"),
    Voting(search="joint", depth=8, weight=0.5, softmax="apart", votes="normalized"),
    Voting(label_depth=5, weight=0.0),
    Voting(document_depth=5, weight=1.0),
    Voting(search="joint", depth=8, weight=1.0),
    Voting(search="joint", depth=8, weight=1.0, softmax="apart"),
    Voting(scoring="similarity"),
]


def names(kind: str, count: int) -> tuple[Strings, Strings]:
    return Strings.of([f"{kind}{i}" for i in range(count)]), Strings.of([f"the {kind} {i}" for i in range(count)])


def segment(keys: torch.Tensor, targets: np.ndarray, first: int = 0) -> Segment:
    sparse = sp.csr_array(targets)
    ids, texts = (list(x)[first:] for x in names("d", first + len(keys)))
    values = None if (sparse.data == 1).all() else sparse.data.astype(np.float32)
    return Segment(
        keys,
        sparse.indptr.astype(np.int64),
        sparse.indices.astype(np.int32),
        values,
        Strings.of(ids),
        Strings.of(texts),
    )


def truth(relevance: bool = False) -> np.ndarray:
    rng = np.random.default_rng(1)
    targets = (rng.random((N, L)) < 0.25).astype(np.float32)
    targets[np.arange(N), np.arange(N) % L] = 1
    return targets * rng.choice([0.25, 0.5, 1.0], targets.shape).astype(np.float32) if relevance else targets


def make(targets: np.ndarray, parts: int = 1, bits: torch.dtype = torch.float32) -> tuple[Memory, torch.Tensor]:
    keys, queries = keys_and_queries(N + L)
    memory = Memory.of_labels(keys[:L], Labels(*names("L", L)))
    bounds = np.linspace(0, N, parts + 1).astype(int)
    segments = [
        segment(keys[L + a : L + b].to(bits), targets[a:b], a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return Memory(memory.label_keys, Keys(segments, 6)), queries


def dense(
    memory: Memory, targets: np.ndarray, query: torch.Tensor, allowed: list[int] | None, gone: tuple[int, ...] = ()
) -> dict[int, float]:
    """Scores by label, by the formula, with plain loops in float64."""
    voting = memory.voting
    q = query.double().numpy()
    chosen = list(range(L)) if allowed is None else allowed
    labels = [(float(memory.keys[j].double().numpy() @ q), "label", j) for j in chosen]
    documents = []
    vectors = torch.cat([s.keys for s in memory.document_keys.segments]).double().numpy()
    for i in range(N):
        if i not in gone and any(targets[i, j] for j in chosen):
            documents.append((float(vectors[i] @ q), "document", i))
    labels, documents = sorted(labels, reverse=True), sorted(documents, reverse=True)
    if voting.scoring == "similarity":
        return {j: similarity for similarity, _, j in labels}
    if voting.weight == 0:
        documents = []
    if voting.weight == 1 and voting.search == "two-sided":
        labels = []
    if voting.search == "joint":
        near = sorted(labels + documents, reverse=True)[: voting.depth]
    else:
        near = labels[: voting.label_depth] + documents[: voting.document_depth]
    taus = {"document": voting.temperature, "label": voting.label_temperature or voting.temperature}
    sums = {kind: sum(np.exp(s / taus[kind]) for s, own, _ in near if own == kind) for kind in taus}
    if voting.softmax == "together":
        sums = dict.fromkeys(taus, sum(sums.values()))
    scores: dict[int, float] = {}
    for s, kind, i in near:
        w = np.exp(s / taus[kind]) / sums[kind]
        if kind == "label" and voting.weight < 1:
            scores[i] = scores.get(i, 0.0) + (1 - voting.weight) * w
        elif kind == "document":
            own = [j for j in chosen if targets[i, j]]
            share = sum(float(targets[i, j]) for j in own) if voting.votes == "normalized" else 1.0
            for j in own:
                scores[j] = scores.get(j, 0.0) + voting.weight * w * float(targets[i, j]) / share
    return scores


def check(memory: Memory, targets: np.ndarray, queries: torch.Tensor, k: int, allowed: list[int] | None = None) -> None:
    numbers, scores = memory.predict(Query(queries, allowed=None if allowed is None else np.array(allowed)), k)
    assert numbers.shape == scores.shape == (len(queries), k)
    for i, query in enumerate(queries):
        expected = dense(memory, targets, query, allowed)
        order = sorted(expected, key=lambda j: (-np.float32(expected[j]), j))[:k]
        found = [j for j in numbers[i].tolist() if j >= 0]
        assert found == order
        np.testing.assert_allclose(scores[i, : len(found)], [expected[j] for j in order], atol=1e-6)
        assert (scores[i, len(found) :] == -np.inf).all() and (numbers[i, len(found) :] == -1).all()


@pytest.mark.parametrize("voting", VOTINGS)
@pytest.mark.parametrize("allowed", [None, [0, 2, 5]])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_predict_equals_the_dense_formula(voting: Voting, allowed: list[int] | None, k: int) -> None:
    for targets, parts in ((truth(), 1), (truth(relevance=True), 3)):
        memory, queries = make(targets, parts)
        memory.voting = voting
        check(memory, targets, queries, k, allowed)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, queries = make(truth())
    memory.voting = VOTINGS[0]
    numbers, scores = memory.predict(Query(queries), 5)
    monkeypatch.setattr("labelspace.memory.memory.VOTE_BLOCK", 2)
    again, same = memory.predict(Query(queries), 5)
    assert np.array_equal(numbers, again) and np.array_equal(scores, same)


@pytest.mark.parametrize("votes", ["raw", "normalized"])
@pytest.mark.parametrize("allowed", [None, [0, 3, 250, 399]])
def test_sorted_votes_equal_the_sparse_product(
    votes: str, allowed: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few votes are sorted, many are multiplied; both give the same sums."""
    rng = np.random.default_rng(5)
    keys, queries = keys_and_queries(460)
    targets = np.zeros((60, 400), dtype=np.float32)
    targets[rng.integers(0, 60, 200), rng.integers(0, 400, 200)] = rng.choice([0.5, 1.0], 200)
    memory = Memory.of_labels(keys[:400], Labels(*names("L", 400)))
    memory = Memory(memory.label_keys, Keys([segment(keys[400:], targets)], 6))
    voting = Voting(label_depth=9, document_depth=7, weight=0.3, votes=votes)  # type: ignore[arg-type]
    chosen = None
    if allowed is not None:
        chosen = np.zeros(400, dtype=bool)
        chosen[allowed] = True
    for rows in (slice(0, 1), slice(0, 9), slice(0, 0)):
        found = memory.search(Query(queries[rows], allowed=None if allowed is None else np.array(allowed)), 9, 7)
        indptr, columns, sums = memory._sums(found, voting, chosen)
        product = memory.cast(found, voting, chosen)[0]
        product.sort_indices()
        assert np.array_equal(indptr, product.indptr)
        assert np.array_equal(columns, product.indices)
        np.testing.assert_allclose(sums, product.data, rtol=1e-12)
    memory.voting = voting
    by_sorting = memory.predict(Query(queries), 3)
    monkeypatch.setattr("labelspace.memory.memory.SORTED_MAX_VOTERS", 0)
    monkeypatch.setattr("labelspace.memory.memory.SORTED_LABELS_PER_VOTER", 400)
    for a, b in zip(by_sorting, memory.predict(Query(queries), 3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    nobody = memory.predict(Query(queries, left_out=np.ones(60, dtype=bool)), 3)
    assert (nobody[0] >= 0).all()


def test_weight_0_ranks_like_the_dual_encoder_and_1_like_nearest_neighbours() -> None:
    targets = truth()
    memory, queries = make(targets)
    plain = Memory.of_labels(memory.keys).predict(Query(queries), L)[0]
    for search in ("joint", "two-sided"):
        memory.voting = Voting(search=search, weight=0.0, depth=L, label_depth=L)  # type: ignore[arg-type]
        assert np.array_equal(memory.predict(Query(queries), L)[0], plain)
    memory.voting = Voting(weight=1.0, document_depth=1)
    to_documents = queries @ memory.document_keys.segments[0].keys.T
    for row, document in zip(memory.predict(Query(queries), L)[0], to_documents.argmax(1).numpy(), strict=True):
        assert set(row[row >= 0].tolist()) == set(np.flatnonzero(targets[document]).tolist())
    memory.voting = Voting(search="joint", weight=1.0, depth=6)
    both = torch.cat([to_documents, queries @ memory.keys.T], dim=1).topk(6, dim=1).indices
    for row, near in zip(memory.predict(Query(queries), L)[0], both.numpy(), strict=True):
        voted = np.flatnonzero(targets[near[near < N]].any(axis=0))  # label keys took the other places
        assert set(row[row >= 0].tolist()) == set(voted.tolist())


def test_bf16_documents_vote_by_their_rounded_keys() -> None:
    targets = truth()
    memory, queries = make(targets, bits=torch.bfloat16)
    memory.voting = Voting(label_depth=12, document_depth=40, weight=0.5)
    check(memory, targets, queries, 5)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("parts", [1, 4])
def test_removed_and_left_out_keys_do_not_take_part(share: float, parts: int) -> None:
    targets = truth()
    rng = np.random.default_rng(3)
    gone = tuple(np.flatnonzero(rng.random(N) < share).tolist())
    memory, queries = make(targets, parts)
    memory.voting = VOTINGS[0]
    expected = [dense(memory, targets, query, None, gone) for query in queries]
    mask = np.zeros(N, dtype=bool)
    mask[list(gone)] = True
    left_out = memory.predict(Query(queries, left_out=mask), 5)
    for part, start in zip(memory.document_keys.segments, memory.document_keys.starts, strict=False):
        part.state = np.where(mask[start : start + len(part)], REMOVED, 0).astype(np.uint8)
    for numbers, scores in (left_out, memory.predict(Query(queries), 5), memory.compacted().predict(Query(queries), 5)):
        for i, wanted in enumerate(expected):
            order = sorted(wanted, key=lambda j: (-np.float32(wanted[j]), j))[:5]
            assert numbers[i, : len(order)].tolist() == order
            np.testing.assert_allclose(scores[i, : len(order)], [wanted[j] for j in order], atol=1e-6)


@pytest.mark.parametrize("voting", VOTINGS)
def test_shares_sum_to_the_score_and_come_from_the_keys_found(voting: Voting) -> None:
    targets = truth(relevance=True)
    memory, queries = make(targets, 2)
    memory.voting = voting
    query = Query(queries)
    answer = memory.answer(query, 4)
    numbers, scores = answer.numbers, answer.scores
    reasons = explain(memory, query, numbers, answer.nearest)
    every = {("label", f"L{j}"): memory.keys[j] for j in range(L)}
    vectors = torch.cat([s.keys for s in memory.document_keys.segments])
    every |= {("document", f"d{i}"): vectors[i] for i in range(N)}
    for row, own in enumerate(reasons):
        assert len(own) == int((numbers[row] >= 0).sum())
        for rank, keys in enumerate(own):
            assert keys and sum(key.share for key in keys) == pytest.approx(float(scores[row, rank]), abs=1e-6)
            assert [k.share for k in keys] == sorted((k.share for k in keys), reverse=True)
            for key in keys:
                assert key.similarity == pytest.approx(float(every[key.kind, key.id] @ queries[row]), abs=1e-6)
                assert key.text == f"the {key.id[0]} {key.id[1:]}"
                if key.kind == "document":
                    assert targets[int(key.id[1:]), numbers[row, rank]] > 0
                else:
                    assert key.id == f"L{numbers[row, rank]}"


def test_label_memory_is_a_plain_dual_encoder() -> None:
    keys, queries = keys_and_queries(30)
    labels, scores = Memory.of_labels(keys).predict(Query(queries), 4)
    products = (queries @ keys.T).numpy()
    assert np.array_equal(labels, np.argsort(-products, axis=1)[:, :4])
    np.testing.assert_allclose(scores, np.take_along_axis(products, labels, 1), atol=1e-6)


def test_ties_are_ordered_by_label_number() -> None:
    keys = torch.ones(6, 2)
    memory = Memory.of_labels(keys)
    for voting in (memory.voting, Voting(weight=0.0)):
        memory.voting = voting
        assert memory.predict(Query(torch.ones(1, 2)), 6)[0].tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("bits", [torch.float32, torch.bfloat16])
def test_what_is_written_opens_the_same_and_is_mapped(tmp_path: Path, bits: torch.dtype) -> None:
    memory, queries = make(truth(relevance=True), 3, bits)
    memory.voting = VOTINGS[4]
    memory.document_keys.segments[1].state = np.array([REMOVED] + [0] * 12, dtype=np.uint8)
    memory.removed["documents"]["d13"] = b"x" * 16
    entry = storage.write(memory, tmp_path, 7)
    assert sorted(storage.files(entry)) == sorted(p.name for p in tmp_path.iterdir())
    again = storage.open_memory(tmp_path, entry)
    assert again.voting == memory.voting and again.removed == memory.removed
    for a, b in zip(again.predict(Query(queries), 5), memory.predict(Query(queries), 5), strict=True):
        assert np.array_equal(a, b)
    assert list(again.labels.texts) == list(memory.labels.texts)
    assert storage.write(again, tmp_path, 8) == {
        **entry,
        "changes": "changes-8.safetensors",
    }  # only what changed
    (tmp_path / "labels-7.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="labels-7.safetensors is missing or damaged"):
        storage.open_memory(tmp_path, entry)


def test_bad_settings_are_refused() -> None:
    for wrong, message in (
        ({"scoring": "x"}, "unknown scoring 'x'"),
        ({"search": "both"}, "choose one of joint, two-sided"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"weight": 1.5}, "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(Voting(), **wrong)  # type: ignore[arg-type]
    keys, _ = keys_and_queries(3)
    with pytest.raises(ValueError, match="do not fit 2 rows of votes"):
        segment(keys, np.eye(2, dtype=np.float32))


def test_strings_are_a_list_of_strings() -> None:
    given = ["a", "", "snö", "\ud800", "x" * 70, "Ω\n"]
    strings = Strings.of(given)
    assert strings == given and list(strings) == given and strings[-1] == "Ω\n" and strings[1:3] == ["", "snö"]
    assert strings.take(np.array([5, 0, 0, 2])) == ["Ω\n", "a", "a", "snö"]
    assert Strings.joined([strings, Strings.of([]), strings.take(np.array([2]))]) == [*given, "snö"]
    assert strings != given[:-1] and len(Strings.of([])) == 0
    with pytest.raises(IndexError):
        strings[6]
