"""The graph index against the exact one."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import labelspace as ls
from labelspace.base.rates import int8_is_exact
from labelspace.base.strings import Strings
from labelspace.cli.app import main
from labelspace.encoders import open_encoder
from labelspace.errors import MissingExtraError, ModelError, SettingsError
from labelspace.memory.explain import explain
from labelspace.memory.graphs import build_graphs
from labelspace.memory.indexes import ExactIndex, HnswIndex
from labelspace.memory.keys import REMOVED, Keys, Segment
from labelspace.memory.memory import Memory
from labelspace.memory.voting import Query, Voting


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


def test_keys_that_int8_would_round_away_are_scanned_as_they_are() -> None:
    g = torch.Generator().manual_seed(0)
    keys, queries = vectors(5000, 32, 0), vectors(40, 32, 1)
    assert (ExactIndex(keys, int8=True)._int8_keys() is not None) is int8_is_exact()
    keys[7] *= 1000
    one, broken = torch.randn(5000, 1, generator=g), vectors(5000, 32, 2)
    broken[3, 0] = torch.nan
    for odd, asked in ((keys, queries), (one, torch.randn(20, 1, generator=g)), (broken, queries)):
        index = ExactIndex(odd, int8=True)
        values, places = index.search(asked, 10)
        truth = ExactIndex(odd, int8=False).search(asked, 10)
        assert index._int8_keys() is None and np.array_equal(places, truth[1])
        np.testing.assert_array_equal(values, truth[0])


def test_searches_that_cannot_be_are_refused_in_words(built: HnswIndex) -> None:
    exact, mask = ExactIndex(built.keys), np.ones(len(built), dtype=bool)
    for index in (exact, built):
        assert index.search(vectors(3, 16, 0)[:0], 5)[1].shape == (0, 5)
        for queries, k in ((vectors(3, 16, 0), -1), (vectors(3, 8, 0), 5)):
            with pytest.raises(ValueError, match="are needed, got"):
                index.search(queries, k)
        for allowed in (mask, np.array([-1, 3])):
            with pytest.raises(ValueError, match="key numbers"):
                index.search(vectors(3, 16, 0), 2, allowed)
    np.testing.assert_array_equal(exact.search(vectors(3, 16, 0).double(), 5)[1], exact.search(vectors(3, 16, 0), 5)[1])


def test_graphs_that_cannot_be_built_are_refused(
    tmp_path: Path, tiny_transformer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ({"links": 1}, {"links": -1}, {"links": 5000}, {"ef_construction": 0}, {"target": 1.5}, {"depth": 0}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            HnswIndex.build(vectors(20, 8, 0), **wrong)  # type: ignore[arg-type]
    ls.Model.from_encoder(str(tiny_transformer), labels=["a", "b", "c"]).save(tmp_path / "m")
    for flags, said in ((["--links", "0"], "links"), (["--seed", "-1"], "--seed"), (["--ef-construction", "0"], "ef_")):
        assert main(["index", str(tmp_path / "m"), "--kind", "hnsw", *flags]) == 2
        assert said in capsys.readouterr().err


def test_tied_keys_are_found_whichever_they_are(caplog: pytest.LogCaptureFixture) -> None:
    keys = vectors(5, 16, 0).repeat_interleave(200, dim=0)
    assert HnswIndex.build(keys, depth=20).recall >= 0.99 and "would help" not in caplog.text


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


def clustered(count: int, d: int = 32, seed: int = 0) -> torch.Tensor:
    """Unit vectors around 40 centres."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(40, d, generator=torch.Generator().manual_seed(99)), dim=1)
    near = centres[torch.randint(0, 40, (count,), generator=g)]
    return torch.nn.functional.normalize(near + torch.randn(count, d, generator=g) / d**0.5, dim=1)


def share(found: np.ndarray, truth: np.ndarray) -> float:
    assert found.shape == truth.shape
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]))


@pytest.mark.parametrize("bits", [torch.float32, torch.bfloat16])
def test_scores_are_float32_products_and_deep_lists_are_exact(bits: torch.dtype) -> None:
    keys, queries = clustered(4000).to(bits), clustered(20, seed=1)
    index = HnswIndex.build(keys, depth=30)
    products = (queries.double() @ keys.double().T).numpy()
    for k in (1, 30, 300):
        values, places = index.search(queries, k)
        np.testing.assert_allclose(values, np.take_along_axis(products, places, 1), atol=1e-5)
        assert (np.diff(values, axis=1) <= 0).all() and all(len(set(row)) == k for row in places.tolist())
        assert share(places, index.exact.search(queries, k)[1]) > 0.93
    assert np.array_equal(index.search(queries, 1100)[1], index.exact.search(queries, 1100)[1])


def made(count: int = 4000, bits: torch.dtype = torch.bfloat16) -> Memory:
    """80 labels, and documents with one or two of them."""
    rng = np.random.default_rng(0)
    labels = Memory.of_labels(clustered(80, seed=5), ls.Labels(*[[f"{kind}{i}" for i in range(80)] for kind in "Ln"]))
    counts = rng.integers(1, 3, count)
    names = Strings.of([f"d{i}" for i in range(count)])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    slots = rng.integers(0, 80, counts.sum()).astype(np.int32)
    segment = Segment(clustered(count).to(bits), indptr, slots, None, names, names)
    return Memory(labels.label_keys, Keys([segment], 32), Voting(label_depth=20, document_depth=40, weight=0.6))


@pytest.mark.parametrize("bits", [torch.float32, torch.bfloat16])
def test_one_query_is_answered_as_among_many(bits: torch.dtype) -> None:
    memory, queries = made(bits=bits), clustered(12, seed=3)
    build_graphs(memory, smallest=50)
    assert [part["kind"] for part in memory.indexes()] == ["hnsw", "hnsw"]
    together = memory.search(Query(queries), 20, 40)
    for row in range(len(queries)):
        alone = memory.search(Query(queries[row : row + 1]), 20, 40)  # label and document keys at the same time
        assert np.array_equal(alone.labels[0], together.labels[row])
        assert np.array_equal(alone.documents[0], together.documents[row])
        np.testing.assert_allclose(alone.label_similarities[0], together.label_similarities[row], atol=1e-6)
        np.testing.assert_allclose(alone.document_similarities[0], together.document_similarities[row], atol=1e-6)


def test_struck_out_and_left_out_keys_are_made_up_for() -> None:
    memory, queries = made(), clustered(25, seed=2)
    rng = np.random.default_rng(1)
    (segment,) = memory.document_keys.segments
    cases: list[Callable[[], np.ndarray]] = []
    for gone in (0.05, 0.4, 0.8):
        mask = rng.random(len(segment)) < gone
        cases.append(lambda mask=mask: memory.document_keys.search(queries, 40, mask)[1])  # type: ignore[misc]
    near = memory.document_keys.search(queries, 200)[1]
    around = np.zeros(len(segment), dtype=bool)
    around[near.ravel()] = True  # everything near is left out
    cases.append(lambda: memory.document_keys.search(queries, 40, around)[1])
    exact = [case() for case in cases]
    build_graphs(memory, smallest=1000)
    assert [part["kind"] for part in memory.indexes()] == ["exact", "hnsw"]
    for case, truth in zip(cases, exact, strict=True):
        assert share(case(), truth) > 0.93
    assert not around[cases[-1]()].any()
    for row in (0, 7, 7, 9):
        segment.remove(row)
    segment.state = np.where(rng.random(len(segment)) < 0.3, REMOVED, segment.state).astype(np.uint8)
    found = memory.document_keys.search(queries, 40)[1]
    assert (found >= 0).all() and (segment.state[found] != REMOVED).all()
    chosen = np.arange(0, 80, 7)
    query = Query(queries, allowed=chosen)
    answer = memory.answer(query, 5)
    numbers = answer.numbers
    reasons = explain(memory, query, numbers, answer.nearest)
    memory.drop_graphs()
    truth_numbers, _ = memory.predict(query, 5)
    assert set(numbers.ravel().tolist()) <= set(chosen.tolist())
    assert share(numbers, truth_numbers) > 0.9 and all(key for row in reasons for key in row)


def test_a_model_ranked_by_similarity_explains_what_its_graph_finds() -> None:
    keys = clustered(3000)
    memory = Memory.of_labels(keys, ls.Labels(*[[f"{i}" for i in range(3000)]] * 2))
    exact, query = memory.predict(Query(clustered(9, seed=3)), 10), Query(clustered(9, seed=3))
    build_graphs(memory, smallest=1)
    answer = memory.answer(query, 10)
    numbers, scores = answer.numbers, answer.scores
    assert memory.indexes()[0]["kind"] == "hnsw" and share(numbers, exact[0]) > 0.9
    for row, reasons in enumerate(explain(memory, query, numbers[:, :4], answer.nearest)):
        assert [key[0].share for key in reasons] == pytest.approx(scores[row, :4].tolist(), abs=1e-6)


@pytest.fixture
def model(tiny_transformer: Path) -> ls.Model:
    encoder = open_encoder(str(tiny_transformer))
    memory = made()
    return ls.Model(encoder, memory, memory.labels)


QUERIES = ["red oak", "a tall fern", "dry moss of old", "wild rose", ""]


def graphs_of(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "memory").iterdir() if p.suffix == ".hnsw")


def test_graphs_are_saved_opened_kept_and_dropped(
    model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("labelspace.memory.keys.SMALL_SEGMENT_KEYS", 1)
    folder = tmp_path / "m"
    model.save(folder)
    before = {p.name for p in (folder / "memory").iterdir()}
    built = model.build_index(smallest=1000)
    model.save()
    assert {p.name for p in (folder / "memory").iterdir()} - before == {"documents-2.hnsw"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "memory/documents-2.hnsw" in manifest["files"] and manifest["history"][-1]["change"] == "index hnsw"
    (noted,) = manifest["memory"]["graphs"].values()
    assert noted == {"file": "documents-2.hnsw", **{name: built[1][name] for name in ("recall", "ef_search", "depth")}}
    assert noted["recall"] >= 0.97 and noted["depth"] == 40
    expected = model.predict(QUERIES, 5)
    again = ls.Model.load(folder, "cpu")
    assert again.memory.indexes() == built
    assert np.array_equal(again.predict(QUERIES, 5).scores, expected.scores)

    again.add_documents(["red oak"], [["L3"]], ["new"])
    again.add_labels(["blue stone"], ["S"])
    again.remove_documents(["d5"])
    again.save()
    kinds = [(part["keys"], part["count"], part["kind"]) for part in again.memory.indexes()]
    assert ("documents", 4000, "hnsw") in kinds and ("documents", 1, "exact") in kinds
    assert graphs_of(folder) == ["documents-2.hnsw"]
    third = ls.Model.load(folder, "cpu")
    assert third.memory.indexes() == again.memory.indexes()
    assert third.predict(["red oak"], 5, why=True).reasons is not None
    model = ls.Model.load(folder, "cpu")
    model.build_index("exact")
    model.save()
    assert graphs_of(folder) == [] and json.loads((folder / "manifest.json").read_text())["memory"]["graphs"] == {}

    whole = ls.Model.load(folder, "cpu")
    whole.compact()
    whole.build_index(smallest=1000)
    whole.save(tmp_path / "copy")
    whole.save(folder)
    for place in (tmp_path / "copy", folder):
        assert graphs_of(place) == ["documents-1.hnsw"]
        same = ls.Model.load(place, "cpu")
        assert np.array_equal(same.predict(QUERIES, 5).scores, whole.predict(QUERIES, 5).scores)
    same.save(tmp_path / "third")  # a mapped graph is written as it is
    assert graphs_of(tmp_path / "third") == ["documents-1.hnsw"]
    same.remove_documents(["d9"])
    with caplog.at_level(logging.WARNING):
        same.compact()
    assert "the graph over 4000 keys is dropped" in caplog.text and "labelspace index MODEL --kind hnsw" in caplog.text
    same.save()
    assert graphs_of(tmp_path / "third") == []


def test_without_the_extra_every_key_is_scanned(
    model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("labelspace.memory.keys.SMALL_SEGMENT_KEYS", 1)
    folder = tmp_path / "m"
    exact = model.predict(QUERIES, 5)
    model.build_index(smallest=50)
    assert [part["kind"] for part in model.memory.indexes()] == ["hnsw", "hnsw"]
    model.save(folder)
    listed = json.loads((folder / "manifest.json").read_text())["memory"]["graphs"]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with caplog.at_level(logging.WARNING):
        plain = ls.Model.load(folder, "cpu")
    (warning,) = [r.getMessage() for r in caplog.records]
    assert "every key is scanned" in warning and "labelspace[ann]" in warning
    assert np.array_equal(plain.predict(QUERIES, 5).scores, exact.scores)
    plain.add_documents(["red oak"], [["L3"]], ["new"])
    plain.save()
    assert json.loads((folder / "manifest.json").read_text())["memory"]["graphs"] == listed
    with pytest.raises(MissingExtraError, match=r"labelspace\[ann\]"):
        plain.build_index()
    plain.save(tmp_path / "other")
    assert graphs_of(tmp_path / "other") == [] and len(graphs_of(folder)) == 2
    monkeypatch.undo()
    assert [part["kind"] for part in ls.Model.load(folder, "cpu").memory.indexes()] == ["hnsw", "hnsw", "exact"]


def test_a_damaged_graph_is_refused_by_name_and_made_again(
    model: ls.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    model.build_index(smallest=1000)
    model.save(folder)
    file = folder / "memory" / "documents-1.hnsw"
    content = file.read_bytes()
    middle = len(content) // 2
    for damaged in (content[:middle], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], None):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        with pytest.raises(ModelError, match="documents-1.hnsw is (damaged|missing).*make it again: labelspace index"):
            ls.Model.load(folder)
        file.write_bytes(content)
    file.unlink()
    assert main(["index", str(folder), "--kind", "hnsw", "--smallest", "1000", "--quiet", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["indexes"]
    assert shown == ls.Model.load(folder, "cpu").memory.indexes() and graphs_of(folder) == ["documents-2.hnsw"]
    assert main(["index", str(folder), "--quiet"]) == 0
    assert f"hnsw, finds {100 * shown[1]['recall']:.1f}% of the 40 nearest" in capsys.readouterr().out
    assert main(["index", str(folder), "--kind", "exact", "--quiet"]) == 0
    assert graphs_of(folder) == []
    assert main(["index", str(folder), "--kind", "hnsw", "--recall", "2"]) == 2
    assert "--recall is a share" in capsys.readouterr().err


def test_recall_can_be_measured_on_given_texts(model: ls.Model) -> None:
    model.build_index(smallest=1000, texts=QUERIES, depth=15, recall=0.9)
    noted = model.memory.indexes()[1]
    queries = torch.from_numpy(model.encode(QUERIES))
    index = model.memory.document_keys.segments[0].index
    assert noted["depth"] == 15
    measured = share(index.search(queries, 15)[1], ExactIndex(index.keys).search(queries, 15)[1])
    assert noted["recall"] == pytest.approx(measured, abs=1e-4)
    for wrong in ({"kind": "flat"}, {"recall": 0.0}, {"depth": 0}):
        with pytest.raises(SettingsError):
            model.build_index(**{"smallest": 1000, **wrong})  # type: ignore[arg-type]
