"""RAE-XMC: the loss against loops in float64, training, and the memory at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import TINY

import labelspace as ls
from labelspace.base.rates import bf16_pays
from labelspace.cli.app import main
from labelspace.recipes.raexmc import contrast, related_pairs
from labelspace.training.losses import closed_form

TAU = 0.3


def batch(seed: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor, np.ndarray]:
    """Truth, document and label vectors, drawn positives; documents share undrawn labels, two are duplicates."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((7, 11)) < 0.3).astype(np.float32)
    truth[:, :2] = 0
    truth[np.arange(7), 2 + np.arange(7)] = 1
    truth[0, 9] = truth[3, 9] = 1  # shared, and drawn for neither
    truth[6] = truth[5]
    documents, labels = torch.from_numpy(rng.normal(size=(7, 4))), torch.from_numpy(rng.normal(size=(11, 4)))
    documents[6] = documents[5]
    drawn = np.array([int(rng.choice([j for j in np.flatnonzero(row) if j != 9])) for row in truth])
    return truth, documents, labels, drawn


def by_loops(
    truth: np.ndarray,
    documents: torch.Tensor,
    labels: torch.Tensor,
    drawn: list[list[int]],
    negatives: list[list[int]],
) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(documents)):
        against = [documents[i] @ labels[j] / TAU for j in negatives[i] if not truth[i, j]]
        positives = [documents[i] @ labels[j] / TAU for j in drawn[i]]
        for k in range(len(documents)):
            if k == i:
                continue
            s = documents[i] @ documents[k] / TAU
            if not any(truth[i, j] and truth[k, j] for j in range(truth.shape[1])):
                against.append(s)
        mean = torch.zeros((), dtype=torch.float64)
        for p in positives:
            mean = mean - (p - torch.logsumexp(torch.stack([p, *against]), 0)) / len(positives)
        total = total + mean
    return total / len(documents)


def test_related_documents_are_those_that_share_any_label() -> None:
    truth, *_ = batch(0)
    truth[4] = 0  # a document without labels is still its own
    found = {(int(i), int(k)) for i, k in related_pairs(sp.csr_array(truth)).T}
    expected = {(i, k) for i in range(7) for k in range(7) if i == k or (truth[i] * truth[k]).any()}
    assert found == expected and (0, 3) in found and (5, 6) in found


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_loops(seed: int, several: bool) -> None:
    truth, documents, labels, one = batch(seed)
    drawn = [np.flatnonzero(row).tolist() if several else [int(j)] for row, j in zip(truth, one, strict=True)]
    pool = np.unique(np.concatenate([*drawn, [0, 9]]))  # a mined negative of all, and an undrawn label of two
    rows, columns = truth[:, pool].nonzero()
    chosen = np.array([pool[c] in drawn[r] for r, c in zip(rows, columns, strict=True)])
    pairs = torch.from_numpy(np.vstack([rows, columns]))
    x, y = documents.clone().requires_grad_(), labels.clone().requires_grad_()
    expected = by_loops(truth, x, y, drawn, [pool.tolist()] * 7)
    expected.backward()
    a, b = documents.clone().requires_grad_(), labels.clone().requires_grad_()
    loss = contrast(
        closed_form("decoupled_softmax"),
        a,
        b[torch.from_numpy(pool)],
        pairs[:, chosen],
        pairs[:, ~chosen],
        torch.from_numpy(related_pairs(sp.csr_array(truth))),
        temperature=TAU,
    )
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-10)
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(a.grad, x.grad, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(b.grad, y.grad, atol=1e-12, rtol=1e-10)


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


def options(tiny_transformer: Path, **others: Any) -> dict[str, Any]:
    own = {} if "encoder" in others else {"base": str(tiny_transformer)}
    return {"recipe": "raexmc", "lr": 0.03, "batch_size": 50, **own, **others}


def test_training_learns_the_toy_corpus_and_keeps_every_document(
    data: ls.Dataset, tiny_transformer: Path, tmp_path: Path
) -> None:
    model = ls.train(data, out=tmp_path / "run", **options(tiny_transformer, epochs=12, patience=0))
    assert data.test is not None
    found = ls.evaluate(model.predict(data.test.texts), data.test.targets, ks=(1, 3))
    untrained = ls.train(data, **options(tiny_transformer, epochs=0))
    before = ls.evaluate(untrained.predict(data.test.texts), data.test.targets, ks=(1, 3))
    assert found["P@1"] > 95 and found["P@1"] >= before["P@1"]
    assert model.memory.n_documents == untrained.memory.n_documents == len(data.train)
    assert set(model.memory.document_keys.ids(model.memory.document_keys.present())) == set(data.train.ids)
    assert model.memory.voting.scoring == "votes" and model.info["tuning"]["documents"] == len(data.valid)
    again = ls.Model.load(tmp_path / "run")
    assert np.array_equal(again.predict(data.test.texts).scores, model.predict(data.test.texts).scores)
    assert untrained.info["fit"]["steps"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"key_precision": "float32"},
        {"label_documents": True, "positives": 1},
        {"positives": 1, "uniform_negatives": 9},
        {"positives": 0, "key_precision": "bf16", "objective": "PSP@5"},
    ],
)
def test_every_way_to_contrast_learns(data: ls.Dataset, tiny_transformer: Path, settings: dict[str, Any]) -> None:
    model = ls.train(data, **options(tiny_transformer, epochs=6, num_negatives=2, mine_every=0.2, **settings))
    assert data.test is not None
    assert ls.evaluate(model.predict(data.test.texts), data.test.targets, ks=(1,))["P@1"] > 85
    assert model.memory.n_documents == len(data.train)
    bits = model.memory.document_keys.segments[0].keys.dtype
    wanted = settings.get("key_precision", "bf16" if bf16_pays(torch.device("cpu")) else "float32")
    assert bits == getattr(torch, {"bf16": "bfloat16"}.get(wanted, wanted))
    assert model.info["config"]["voting"]["key_precision"] == wanted


def test_without_hard_negatives_texts_are_encoded_together(data: ls.Dataset, tiny_transformer: Path) -> None:
    """Nothing is drawn before the first refresh, which comes after the last step here; documents and labels apart."""
    for encoder in ({}, {"encoder": str(tiny_transformer), "lr": 1e-3}):
        settings = options(tiny_transformer, epochs=2, precision="float32", **encoder)
        together = ls.train(data, **settings)
        apart = ls.train(data, **settings, num_negatives=2, mine_from=0.999)
        torch.testing.assert_close(together.memory.keys, apart.memory.keys, atol=2e-4, rtol=0)
        assert together.info["fit"]["steps"] == apart.info["fit"]["steps"] > 5


def test_renumbering_labels_changes_no_weight(data: ls.Dataset, tiny_transformer: Path) -> None:
    order = np.random.default_rng(1).permutation(len(data.labels))
    settings = options(tiny_transformer, epochs=2, num_negatives=2, mine_every=0.3)
    a, b = ls.train(data, **settings), ls.train(data.renumbered(order), **settings)
    assert torch.equal(b.memory.keys, a.memory.keys[torch.from_numpy(order)])
    assert a.memory.voting == b.memory.voting


def test_from_the_command_line(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    flags = ["--recipe", "raexmc", "--epochs", "0", "--encoder", str(tiny_transformer), "--out", out, "--quiet"]
    assert main(["train", str(toy_folder), *flags]) == 0
    shown = capsys.readouterr().out
    assert "settings that none beats" in shown and "finished after 0 steps" in shown
    assert (
        main(["train", str(toy_folder), "--recipe", "raexmc", "--objective", "P@7", "--out", f"{out}2", "--quiet"]) == 2
    )
    assert "the objective 'P@7'" in capsys.readouterr().err


@pytest.mark.parametrize("encoder", ["static", "transformer"])
def test_a_model_without_training_is_the_same_by_every_way(
    data: ls.Dataset, tiny_transformer: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    """In Python and by the command: one vocabulary, one limit, one set of vectors."""
    monkeypatch.setattr(
        "labelspace.encoders._resolve", lambda name: tiny_transformer if name == "minilm" else Path(name)
    )
    name = encoder if encoder == "static" else str(tiny_transformer)
    order = np.random.default_rng(0).permutation(len(data.labels))
    trained = ls.train(data, recipe="raexmc", encoder=name, epochs=0, device="cpu", key_precision="float32")
    made = ls.Model.from_encoder(name, data, device="cpu")
    other = ls.Model.from_encoder(name, data.renumbered(order), device="cpu")
    assert made.encoder.limit == trained.encoder.limit
    assert made.memory.voting == trained.memory.voting and made.info["config"]["encoding"]["encoder"] == name
    texts = [*data.valid.texts, "old moss of the unmet heath"]
    for model in (made, other):
        np.testing.assert_allclose(model.encode(texts), trained.encode(texts), atol=TINY)
    for mine, theirs in zip(
        (made.memory.label_keys, made.memory.document_keys), (trained.memory.label_keys, trained.memory.document_keys),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(mine.segments[0].keys.numpy(), theirs.segments[0].keys.numpy(), atol=TINY)


def test_a_memory_of_all_documents_is_tuned_on_some_that_do_not_vote(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", "raexmc", "--encoder", "static", "--base", str(tiny_transformer), "--device", "cpu"]
    args = ["train", str(toy_folder), *options, "--epochs", "2", "--tune-documents", "60", "--out", str(tmp_path / "m")]
    assert main(args) == 2
    assert "tune_documents: the memory is tuned on the 30 validation documents" in capsys.readouterr().err
    assert main([*args, "--valid-fraction", "0"]) == 0
    assert "settings on 60 training documents, which the encoder knows" in capsys.readouterr().out
    model, data = ls.Model.load(tmp_path / "m"), ls.load(toy_folder, valid_fraction=0)
    assert model.info["metrics"]["validation"] == {} and model.info["tuning"]["documents"] == 60
    assert model.memory.n_documents == len(data.train) == 300 and model.calibration is None
    half = ls.train(data, recipe="raexmc", encoder="static", base=str(tiny_transformer), epochs=0, tune_documents=900)
    assert half.info["tuning"]["documents"] == 150
    own = np.isclose(half.info["tuning"]["metrics"]["P@1"], 100)  # as it would be if each document voted for itself
    assert not own and half.memory.voting.weight > 0


def test_what_a_run_ends_with_is_measured_on_the_model_that_it_saves(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    data = ls.load(toy_folder, valid_max=10)  # too few to tune by
    options = {"encoder": "static", "base": str(tiny_transformer), "epochs": 1, "device": "cpu"}
    model = ls.train(data, recipe="raexmc", out=tmp_path / "model", **options)
    predictions = model.predict(data.valid.texts, 25, left_out=model.held_out(data))
    expected = ls.evaluate(predictions, data.valid.targets, data.train.targets, name=data.name)
    assert model.memory.n_documents == 300 and model.info["metrics"]["validation"] == expected
