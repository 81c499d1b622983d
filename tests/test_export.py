"""What is exported gives the model's vectors, keys and facts; nothing is written that does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, toy_rows

import labelspace as ls
from labelspace.cli.app import main
from labelspace.errors import LabelspaceError, MissingExtraError, SettingsError
from labelspace.export import card, export

TEXTS = toy_rows(40, 7)[0] + ["", "oak", "word " * 100]


@pytest.fixture(scope="module")
def models(toy_folder: Path, tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A static one, a transformer with documents, and one with two heads, as folders."""
    place, data = tmp_path_factory.mktemp("models"), ls.load(toy_folder)
    options = {"epochs": 1, "batch_size": 64, "device": "cpu", "evaluations": 1}
    ls.train(data, recipe="dexml", out=place / "static", base=str(tiny_transformer), **options)
    memory = {**options, "epochs": 0, "key_precision": "float32"}  # exactly what encode gives
    ls.train(data, "raexmc", place / "transformer", encoder=str(tiny_transformer), **memory)
    heads = {"encoder_dim": 16, "classifier_dim": 8}
    ls.train(data, "unidec", place / "heads", encoder=str(tiny_transformer), **heads, **options)
    return {folder.name: folder for folder in place.iterdir()}


def cosines(a: np.ndarray, b: np.ndarray) -> list[float]:
    """One pair of rows at a time; two zero vectors are alike."""
    found = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        size = float(np.sqrt((x * x).sum()) * np.sqrt((y * y).sum()))
        found.append(float((x * y).sum()) / size if size else float((x == y).all()))
    return found


@pytest.mark.parametrize("name", ["static", "transformer"])
def test_the_encoder_opens_in_sentence_transformers(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = ls.Model.load(models[name], "cpu")
    record = export(model, "sentence-transformers", tmp_path / "st")
    assert record["smallest_cosine"] >= 1 - 1e-4 and record["checked_texts"] > 20
    opened = SentenceTransformer(str(tmp_path / "st"), device="cpu", trust_remote_code=False, local_files_only=True)
    assert min(cosines(opened.encode(TEXTS), model.encode(TEXTS))) >= 1 - 1e-4
    assert "SentenceTransformer" in (tmp_path / "st" / "README.md").read_text()
    assert not list((tmp_path / "st").rglob("*.py"))


@pytest.mark.filterwarnings("ignore")  # of the exporter, on its first use
@pytest.mark.parametrize("name", ["static", "transformer", "heads"])
def test_the_graph_gives_the_models_vectors(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    tokenizers = pytest.importorskip("tokenizers")
    model = ls.Model.load(models[name], "cpu")
    before = model.encode(TEXTS)
    record = export(model, "onnx", tmp_path / "onnx")
    assert record["smallest_cosine"] >= 1 - 1e-4 and record["dimensions"] == before.shape[1]
    assert (model.encode(TEXTS) == before).all()
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json"))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    for texts in (TEXTS, TEXTS[:1], TEXTS[-2:]):  # batches and lengths of any size
        found = tokenizer.encode_batch(texts, add_special_tokens=record["special_tokens"])
        feed = {
            "input_ids": np.array([e.ids for e in found]),
            "attention_mask": np.array([e.attention_mask for e in found]),
        }
        vectors = session.run(["sentence_embedding"], feed)[0]
        expected = model.encode(texts)
        assert min(cosines(vectors, expected)) >= 1 - 1e-4
        assert np.abs(vectors - expected).max() < 1e-4
    assert not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_differs_is_not_written(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    import labelspace.export as module

    trace = module._trace

    def wrong(model: ls.Model, file: Path) -> None:
        with torch.no_grad():
            kept = model.encoder.table.clone()
            model.encoder.table += 0.3 * torch.randn_like(kept)
            trace(model, file)
            model.encoder.table.copy_(kept)

    monkeypatch.setattr(module, "_trace", wrong)
    with pytest.raises(LabelspaceError, match="does not give the vectors of the model: cosine"):
        export(ls.Model.load(models["static"], "cpu"), "onnx", tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("table", ["jsonl", "parquet"])
def test_keys_and_their_names(models: dict[str, Path], table: str, tmp_path: Path) -> None:
    model = ls.Model.load(models["transformer"], "cpu")
    out = tmp_path / "keys"
    if table == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    code = main(["export", str(models["transformer"]), "--to", "keys", "--out", str(out), "--table", table, "--quiet"])
    assert code == 0

    def rows(name: str) -> list[dict[str, object]]:
        if table == "parquet":
            return parquet.read_table(out / f"{name}.parquet").to_pylist()
        return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]

    labels, documents = rows("labels"), rows("documents")
    assert [row["id"] for row in labels] == list(model.labels.ids)
    keys, queries = np.load(out / "label_keys.npy"), model.encode([str(row["text"]) for row in labels])
    assert keys.dtype == np.float32 and np.allclose(keys, queries, atol=TINY)
    vectors = np.load(out / "document_keys.npy")
    assert np.allclose(vectors, model.encode([str(row["text"]) for row in documents]), atol=TINY)
    assert len(documents) == 300 == model.memory.n_documents
    texts, truth = toy_rows(300, 0)
    by_id = {f"trn{i}": (text, [f"L{j}" for j in row]) for i, (text, row) in enumerate(zip(texts, truth, strict=True))}
    assert all(by_id[str(row["id"])] == (row["text"], row["labels"]) for row in documents)


def test_the_card_tells_facts_of_the_manifest(models: dict[str, Path], tmp_path: Path) -> None:
    model = ls.Model.load(models["static"], "cpu")
    assert main(["export", str(models["static"]), "--to", "card", "--out", str(tmp_path / "README.md"), "--quiet"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text == card(model) and text.startswith("---\n")
    assert "| recipe | dexml |" in text and "| labels | 25 |" in text and model.info["data"]["fingerprint"] in text
    for name, value in model.info["metrics"]["validation"].items():
        assert f"| {name} | {value:.2f} |" in text
    bare = ls.Model.from_encoder(model.encoder, ["a|b", "c"])
    assert "## Metrics" not in card(bare) and "| labels | 2 |" in card(bare)


def test_places_that_are_taken(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ls.Model.load(models["static"], "cpu")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match="is no export of labelspace"):
            export(model, "keys", tmp_path / "mine", overwrite=overwrite)
    export(model, "keys", tmp_path / "keys")
    with pytest.raises(SettingsError, match="add --overwrite"):
        export(model, "keys", tmp_path / "keys")
    assert export(model, "keys", tmp_path / "keys", overwrite=True)["labels"] == 25
    with pytest.raises(SettingsError, match=r"must end in \.md"):
        export(model, "card", tmp_path / "card.txt")
    with pytest.raises(SettingsError, match="unknown kind"):
        export(model, "other", tmp_path / "x")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"labelspace\[onnx\]"):
        export(model, "onnx", tmp_path / "onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys", "mine"]
