"""The DEXML recipe end to end on the toy corpus."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import TINY, Clock

import labelspace as ls
from labelspace.training import loop as trainer


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


@pytest.fixture(scope="module")
def static(tiny_transformer: Path) -> dict[str, Any]:
    return {
        "encoder": "static", "base": str(tiny_transformer), "epochs": 12, "batch_size": 32, "lr": 0.02,
        "precision": "float32", "device": "cpu", "evaluations": 2,
    }  # fmt: skip


def scores(model: ls.Model, data: ls.Dataset) -> dict[str, float]:
    assert data.test is not None
    return ls.evaluate(model.predict(data.test.texts, k=10), data.test.targets, data.train.targets)


def test_static_learns_the_toy_corpus_and_is_saved_whole(
    data: ls.Dataset, static: dict[str, Any], tmp_path: Path
) -> None:
    model = ls.train(data, recipe="dexml", out=tmp_path / "a", **static)
    found = scores(model, data)
    assert found["P@1"] >= 95 and found["nDCG@5"] >= 95
    again = ls.Model.load(tmp_path / "a")
    assert scores(again, data) == found
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "encoder", "log.jsonl", "manifest.json", "memory", "settings.toml",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    events = [json.loads(line)["event"] for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert events[0] == "start" and events[-1] == "end" and {"step", "evaluation"} <= set(events)
    recorded = tomllib.loads((tmp_path / "a" / "settings.toml").read_text())
    assert recorded["fit"]["seed"] == 0 and recorded["recipe"] == "dexml" and recorded["fit"]["lr"] == 0.02
    info = again.info
    assert (
        info["config"]["fit"]["epochs"] == 12
        and info["data"]["documents"] == 300
        and len(info["data"]["fingerprint"]) == 64
    )
    assert info["metrics"]["validation"]["P@1"] > info["fit"]["curve"][0]["P@1"]


def test_runs_repeat_bit_by_bit(data: ls.Dataset, static: dict[str, Any]) -> None:
    one, two, other = (ls.train(data, recipe="dexml", **{**static, "epochs": 2, "seed": seed}) for seed in (3, 3, 4))
    assert torch.equal(one.memory.keys, two.memory.keys)
    assert not torch.equal(one.memory.keys, other.memory.keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "softmax"},
        {"loss": "soft_top_k", "k": 2},
        {"loss": "decoupled_softmax", "positives": "sample"},
        {"loss": "softmax", "positives": "sample"},
        {"loss": "soft_top_k", "k": 2, "positives": "sample"},
        {"negatives": "in-batch"},
        {"negatives": "in-batch", "loss": "soft_top_k", "k": 2, "batch_size": 7},
        {"negatives": "mined"},
        {"negatives": "mined", "pool_positives": 3, "num_negatives": 1},
        {"negatives": "mined", "loss": "soft_top_k", "k": 2},
        {"negatives": "mined", "pool_positives": 1, "positives": "sample", "range_max": 5},
        {"negatives": "mined", "mine_from": 0.0, "relative_margin": 0.05, "range_min": 1},
        {"label_documents": True},
        {"vocabulary": "pieces", "lr": 0.05, "epochs": 30},
        {"vocabulary": "words"},
        {"weight_decay": 0.01},
        {"weighted": True},
        {"precision": "bf16"},
    ],
)
def test_every_way_of_training_learns(data: ls.Dataset, static: dict[str, Any], changes: dict[str, Any]) -> None:
    assert scores(ls.train(data, recipe="dexml", **{**static, **changes}), data)["P@1"] >= 75


def test_batches_with_fewer_labels_than_k(data: ls.Dataset, static: dict[str, Any]) -> None:
    """Two documents have four labels at most, and all of these are among the first five."""
    small = {"negatives": "in-batch", "loss": "soft_top_k", "k": 5, "batch_size": 2, "epochs": 1, "evaluations": 0}
    keys = ls.train(data, recipe="dexml", **{**static, **small}).memory.keys
    assert torch.isfinite(keys).all() and (keys.norm(dim=1) > 0.9).all()


def test_filters_that_leave_no_hard_negative_are_said(
    data: ls.Dataset, static: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mined = {**static, "epochs": 3, "negatives": "mined", "mine_from": 0.0, "mine_every": 0.5}
    for name, changes, mean in (("a", {}, 2.0), ("b", {"max_score": -1.0}, 0.0)):
        caplog.clear()
        ls.train(data, recipe="dexml", **{**mined, **changes}, out=tmp_path / name)
        records = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        found = [record for record in records if record["event"] == "refresh"]
        assert (
            len(found) == 2 and found[0]["step"] == 1 and [record["hard_negatives"] for record in found] == [mean] * 2
        )
        assert [record["none"] for record in found] == [0 if mean else record["documents"] for record in found]
        said = [record for record in caplog.records if "documents have no hard negative" in record.getMessage()]
        assert len(said) == (0 if mean else 2)


def test_bce_runs_and_its_weights_move(data: ls.Dataset, static: dict[str, Any]) -> None:
    short = {**static, "epochs": 1, "evaluations": 0}
    a, b = (
        ls.train(data, recipe="dexml", **short, loss="bce"),
        ls.train(data, recipe="dexml", **{**short, "lr": 1e-9}, loss="bce"),
    )
    assert not torch.allclose(a.memory.keys, b.memory.keys, atol=1e-3)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_transformer_learns(data: ls.Dataset, tiny_transformer: Path, normalize: bool) -> None:
    settings = {"encoder": str(tiny_transformer), "epochs": 12, "batch_size": 32, "lr": 3e-3, "chunk_size": 16}
    if not normalize:
        settings.update(normalize=False, temperature=1.0)
    model = ls.train(data, recipe="dexml", **settings, precision="float32", device="cpu", evaluations=2)  # type: ignore[arg-type]
    assert scores(model, data)["P@1"] >= 80
    lengths = np.linalg.norm(model.memory.keys.numpy(), axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == normalize


@pytest.mark.parametrize("way", ["head", "head+tail", "chunks"])
def test_long_documents(
    data: ls.Dataset, tiny_transformer: Path, way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "labelspace")
    settings = {
        "encoder": str(tiny_transformer), "epochs": 1, "lr": 1e-3, "batch_size": 64, "precision": "float32",
        "device": "cpu", "max_tokens": 7, "long_documents": way, "max_chunks": 2, "evaluations": 1,
    }  # fmt: skip
    model = ls.train(data, recipe="dexml", out=tmp_path / "a", **settings)
    tokenizer = model.encoder.tokenizer
    room = 5 * (2 if way == "chunks" else 1)
    shares = {}
    for what, texts in (("documents", data.train.texts), ("labels", data.labels.texts)):
        lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        beyond = [max(0, n - room) for n in lengths]
        shares[what] = {"tokens": sum(beyond) / sum(lengths), "texts": sum(n > 0 for n in beyond) / len(texts)}
        share = shares[what]["tokens"]
        assert f"{what}: {share:.1%} of the tokens" in caplog.text or (share == 0 and f"{what}: 0% of" in caplog.text)
    assert shares["documents"]["tokens"] > 0.1 and (way == "chunks" or shares["labels"]["tokens"] > 0)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    start = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[0])
    for told in (manifest["info"]["data"]["truncated"], start["truncated"]):
        for what in shares:
            assert told[what] == pytest.approx(shares[what], abs=1e-6)
    assert manifest["encoder"] == {"long_documents": way, "max_chunks": 2}
    assert manifest["info"]["config"]["encoding"]["long_documents"] == way
    again = ls.Model.load(tmp_path / "a")
    assert scores(again, data) == scores(model, data)
    # the keys were made by the same cut as queries are
    np.testing.assert_allclose(again.encode(list(data.labels.texts)), again.memory.keys.numpy(), atol=TINY)


def test_chunk_size_does_not_change_the_result(data: ls.Dataset, tiny_transformer: Path) -> None:
    keys = []
    for chunk_size in (4, 1000):
        settings = {
            "encoder": str(tiny_transformer),
            "epochs": 1,
            "lr": 1e-3,
            "chunk_size": chunk_size,
            "batch_size": 64,
        }
        keys.append(ls.train(data, **settings, precision="float32", device="cpu").memory.keys)  # type: ignore[arg-type]
    torch.testing.assert_close(keys[0], keys[1], rtol=1e-3, atol=1e-3)


def test_a_saved_model_is_a_warm_start(data: ls.Dataset, static: dict[str, Any], tmp_path: Path) -> None:
    first = ls.train(data, recipe="dexml", out=tmp_path / "a", **static)
    options = {**static, "encoder": str(tmp_path / "a"), "epochs": 1, "lr": 1e-6}
    options["encoder"] = tmp_path / "a"
    second = ls.train(data, recipe="dexml", out=tmp_path / "b", **options)
    assert second.encoder.max_tokens == first.encoder.max_tokens == 256
    torch.testing.assert_close(second.memory.keys, first.memory.keys, atol=1e-3, rtol=0)
    assert scores(second, data)["P@1"] >= 95


@pytest.mark.parametrize("negatives", ["all", "mined"])
@pytest.mark.parametrize("positives", ["all", "sample"])
def test_renumbering_labels_changes_no_weight(
    data: ls.Dataset, static: dict[str, Any], negatives: str, positives: str
) -> None:
    order = np.random.default_rng(0).permutation(len(data.labels))
    renumbered = data.renumbered(order)
    assert renumbered.labels.texts[3] == data.labels.texts[order[3]]
    assert (renumbered.train.targets.toarray() == data.train.targets.toarray()[:, order]).all()
    options = {**static, "epochs": 4, "negatives": negatives, "positives": positives}
    a, b = ls.train(data, recipe="dexml", **options), ls.train(renumbered, recipe="dexml", **options)
    assert torch.equal(b.memory.keys, a.memory.keys[torch.from_numpy(order)])
    assert scores(a, data) == pytest.approx(scores(b, renumbered), abs=1e-9)


def test_reordering_documents_changes_nothing(data: ls.Dataset, static: dict[str, Any]) -> None:
    rows = np.random.default_rng(0).permutation(len(data.train))
    one = {**static, "batch_size": 1000, "epochs": 40, "evaluations": 0}
    held = np.argsort(rows)[data.valid_rows]
    shuffled = dataclasses.replace(data, train=data.train.rows(rows), valid_rows=np.sort(held))
    assert scores(ls.train(shuffled, recipe="dexml", **one), shuffled) == pytest.approx(
        scores(ls.train(data, recipe="dexml", **one), data), abs=0.1
    )


def test_the_test_truth_is_never_looked_at(data: ls.Dataset, static: dict[str, Any]) -> None:
    assert data.test is not None
    nothing = sp.csr_array(data.test.targets.shape, dtype=np.float32)
    blind = dataclasses.replace(data, test=dataclasses.replace(data.test, targets=nothing))
    a, b = (
        ls.train(data, recipe="dexml", **{**static, "epochs": 3}),
        ls.train(blind, recipe="dexml", **{**static, "epochs": 3}),
    )
    assert torch.equal(a.memory.keys, b.memory.keys) and a.info["fit"]["best_step"] == b.info["fit"]["best_step"]


def test_held_out_rows_teach_nothing(data: ls.Dataset, static: dict[str, Any]) -> None:
    coo = data.train.targets.tocoo()
    keep = ~np.isin(coo.row, data.valid_rows)
    targets = sp.csr_array((coo.data[keep], (coo.row[keep], coo.col[keep])), shape=coo.shape)
    emptied = dataclasses.replace(data, train=dataclasses.replace(data.train, targets=targets))
    options = {**static, "epochs": 2, "evaluations": 0}
    assert torch.equal(
        ls.train(data, recipe="dexml", **options).memory.keys, ls.train(emptied, recipe="dexml", **options).memory.keys
    )


def test_a_time_limit_covers_the_whole_run(
    data: ls.Dataset, static: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    begun, real = clock.now, trainer.clip_gradients
    monkeypatch.setattr(trainer, "clip_gradients", lambda *given: [clock.go_on(0.1), real(*given)][1])  # in every step
    limits = {"epochs": 100_000, "patience": 0, "max_minutes": 1.25}
    model = ls.train(data, recipe="dexml", **{**static, **limits}, started=begun - 60)  # a minute went by before
    assert 5 < clock.now - begun <= 15
    assert model.info["fit"]["stopped"] == "time"
    assert scores(model, data)["P@1"] >= 75


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochz": 1}, ls.SettingsError, "did you mean epochs"),
        ({"pooling": "cls"}, ls.SettingsError, "no pooling or projection"),
        ({"dropout": 0.1}, ls.SettingsError, "no dropout, attention or cleaning"),
        ({"device": "abacus"}, ls.SettingsError, "there is no device 'abacus'"),
        ({"encoder": "./nowhere"}, ls.ModelError, "no such folder"),
        ({"loss": "soft_top_k", "k": 25}, ls.SettingsError, "k is 25, but there are 25 labels"),
    ],
)
def test_mistakes_end_in_one_sentence(
    data: ls.Dataset, static: dict[str, Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        ls.train(data, recipe="dexml", **{**static, **changes})
    assert "\n" not in str(caught.value)


def test_data_without_labels_and_foreign_folders_are_refused(
    data: ls.Dataset, static: dict[str, Any], tmp_path: Path
) -> None:
    empty = dataclasses.replace(data.train, targets=sp.csr_array(data.train.targets.shape, dtype=np.float32))
    with pytest.raises(ls.DataError, match="no training document has a label"):
        ls.train(dataclasses.replace(data, train=empty), recipe="dexml", **static)
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ls.ModelError, match="not a labelspace model"):
        ls.train(data, recipe="dexml", out=tmp_path, **static)


def test_a_run_that_does_not_fit_is_refused_with_the_number(
    data: ls.Dataset, static: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelspace.base.machine.available_memory", lambda: 10_000_000)
    with pytest.raises(
        ls.ResourceError, match=r"this run would take about .* and 10.0 MB are available; lower --batch"
    ):
        ls.train(data, recipe="dexml", out=tmp_path / "a", **static)
    assert not list(tmp_path.iterdir())


def test_places_and_uniform_negatives_of_a_run(data: ls.Dataset, static: dict[str, Any]) -> None:
    short = {**static, "epochs": 3, "loss": "soft_top_k", "negatives": "in-batch"}
    named = ls.train(data, recipe="dexml", k="positives", **short)
    five = ls.train(data, recipe="dexml", k=5, **short)
    wide = ls.train(data, recipe="dexml", k="positives", uniform_negatives=10, **short)
    keys = [model.memory.keys for model in (named, five, wide)]
    assert not torch.equal(keys[0], keys[1]) and not torch.equal(keys[0], keys[2])
    assert named.info["config"]["losses"]["k"] == "positives"
