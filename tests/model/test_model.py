"""Models: predictions, saving and loading, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from sentence_transformers import SentenceTransformer

import labelspace as ls
from labelspace.encoders import build_static, open_encoder
from labelspace.memory import storage
from labelspace.memory.memory import Memory
from labelspace.model.core import Core

NAMES = ["red oak", "tall fern", "wild rose", "dry moss"]
TEXTS = ["a red oak", "history of the wild rose", "", "moss"]


@pytest.fixture(scope="module")
def model(tiny_transformer: Path) -> ls.Model:
    return ls.Model.from_encoder(str(tiny_transformer), labels=NAMES, device="cpu")


@pytest.fixture
def saved(model: ls.Model, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_zero_shot_predictions(model: ls.Model) -> None:
    pred = model.predict(TEXTS, k=3)
    assert pred.indices.shape == pred.scores.shape == (4, 3)
    assert pred.indices.dtype == np.int64 and pred.scores.dtype == np.float32
    vectors = model.encode(TEXTS)
    assert vectors.shape == (4, 32) and vectors.dtype == np.float32
    products = vectors @ model.encode(NAMES).T
    assert np.array_equal(pred.indices, np.argsort(-products, axis=1)[:, :3])
    np.testing.assert_allclose(pred.scores, -np.sort(-products, axis=1)[:, :3], atol=TINY)
    best = pred.named(0)[0]
    assert best[0] == best[1] == NAMES[pred.indices[0, 0]]
    assert model.predict("a red oak", k=3).indices.tolist() == pred.indices[:1].tolist()


def test_fewer_labels_than_k_are_padded(model: ls.Model) -> None:
    pred = model.predict(TEXTS, k=7)
    assert pred.indices.shape == (4, 7)
    assert (pred.indices[:, 4:] == -1).all() and (pred.scores[:, 4:] == -np.inf).all()
    assert sorted(pred.indices[0, :4].tolist()) == [0, 1, 2, 3]
    assert len(pred.named(0)) == 4
    assert model.predict([], k=2).indices.shape == (0, 2)


@pytest.mark.parametrize("chosen", [["red oak", "dry moss"], [0, 3], np.array([3, 0])])
def test_candidates_can_be_restricted(model: ls.Model, chosen: list[str]) -> None:
    pred = model.predict(TEXTS, k=3, labels=chosen)
    assert set(pred.indices[:, :2].ravel().tolist()) == {0, 3}
    assert (pred.indices[:, 2] == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "at least 1, got 0"),
        ({"k": 2.5}, "whole number"),
        ({"labels": ["red oka"]}, "no label 'red oka'; the nearest are 'red oak'"),
        ({"labels": [9]}, "no label number 9"),
        ({"labels": []}, "no label to choose from"),
        ({"labels": 3}, "a list of labels was expected, got int"),
        ({"labels": [["red oak"]]}, "no label"),
        ({"texts": ["fine", None]}, "text number 1 is None"),
        ({"texts": 3}, "a list of texts was expected, got int"),
        (
            {"left_out": np.zeros(3, dtype=bool)},
            r"a mask of 0 True or False, .*, got bool of shape \(3,\); take that of",
        ),
        ({"left_out": np.zeros(0)}, "got float64 of shape"),
        ({"batch_size": 0}, "batch_size, .* must be a whole number of at least 1, got 0"),
        ({"batch_size": -1}, "got -1"),
        ({"batch_size": 2.5}, "got 2.5"),
    ],
)
def test_bad_requests_are_refused(model: ls.Model, options: dict[str, object], message: str) -> None:
    with pytest.raises((ls.DataError, ls.SettingsError), match=message):
        model.predict(**{"texts": TEXTS, **options})  # type: ignore[arg-type]


def test_a_huge_k_is_refused_before_memory_is_taken(model: ls.Model) -> None:
    with pytest.raises(ls.ResourceError, match="lower k"):
        model.predict(TEXTS, k=10**13)


def test_bad_label_lists_are_refused(tiny_transformer: Path) -> None:
    with pytest.raises(ls.DataError, match="'a' is given twice"):
        ls.Model.from_encoder(str(tiny_transformer), labels=["a", "b", "a"])
    with pytest.raises(ls.DataError, match="at least one label"):
        ls.Model.from_encoder(str(tiny_transformer), labels=[])
    with pytest.raises(ls.DataError, match="label number 1 is 7"):
        ls.Model.from_encoder(str(tiny_transformer), labels=["a", 7])  # type: ignore[list-item]


def test_loaded_models_predict_bit_equally(model: ls.Model, saved: Path, tmp_path: Path) -> None:
    again = ls.Model.load(saved)
    expected = model.predict(TEXTS, k=4)
    for other in (again, _resaved(again, tmp_path / "b")):
        pred = other.predict(TEXTS, k=4)
        assert np.array_equal(pred.indices, expected.indices)
        assert np.array_equal(pred.scores, expected.scores)
        assert list(pred.label_texts or []) == NAMES
        assert other.info == model.info


@pytest.mark.skipif(os.name == "nt", reason="permissions are of another kind")
def test_who_may_read_the_folder_may_read_its_files(model: ls.Model, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        model.save(tmp_path / "a")
        again = ls.Model.load(tmp_path / "a")
        again.add_labels(["tall ferns"])
        again.save()
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "a").rglob("*") if file.is_file()]
    assert len(files) > 5
    assert {file.stat().st_mode & 0o777 for file in files if file.name != ".lock"} == {0o640}


def _resaved(model: ls.Model, path: Path) -> ls.Model:
    model.save(path)
    return ls.Model.load(path)


def test_saving_replaces_a_model_and_nothing_else(model: ls.Model, saved: Path, tmp_path: Path) -> None:
    smaller = ls.Model(
        model.encoder, Memory.of_labels(model.memory.keys[:2]), ls.Labels(NAMES[:2], NAMES[:2]), {"recipe": "none"}
    )
    smaller.save(saved)
    assert len(ls.Model.load(saved).labels) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("precious")
    (other / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ls.ModelError, match="not a labelspace model; choose another folder"):
        model.save(other)
    with pytest.raises(ls.ModelError, match="is a file"):
        model.save(other / "chapter1.txt")
    assert (other / "chapter1.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    assert len(ls.Model.load(tmp_path / "empty").labels) == 4


def test_a_failed_save_leaves_the_old_model(
    model: ls.Model, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(storage, "write", fail)
        model.save(saved)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert np.array_equal(ls.Model.load(saved).predict(TEXTS).indices, model.predict(TEXTS).indices)


def test_a_later_version_is_refused(saved: Path) -> None:
    file = saved / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "format_version": 9, "labelspace_version": "9.1"}))
    with pytest.raises(ls.ModelError, match="model format 9, written by labelspace 9.1") as caught:
        ls.Model.load(saved)
    assert "\n" not in str(caught.value)


def test_foreign_folders_are_refused(tmp_path: Path, tiny_transformer: Path) -> None:
    with pytest.raises(ls.ModelError, match="no such folder"):
        ls.Model.load(tmp_path / "nowhere")
    with pytest.raises(ls.ModelError, match="has no manifest.json"):
        ls.Model.load(tiny_transformer)
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ls.ModelError, match="of another kind"):
        ls.Model.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ls.ModelError, match=r"manifest.json is damaged"):
        ls.Model.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"labels": "many"},
        {"memory": []},
        {"files": {}},
        {"info": None},
        {"dimensions": "wide"},
        {"encoder": "static"},
        {"files": {"memory/labels-1.safetensors": None}},
        {"files": {"memory/labels-1.safetensors": {"bytes": "97"}}},
        {"joined": [1]},
    ],
)
def test_manifests_of_another_shape_are_refused(saved: Path, change: dict[str, object]) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ls.ModelError, match=r"manifest.json is damaged"):
        ls.Model.load(saved)


def test_a_manifest_nested_too_deep_is_refused(saved: Path) -> None:
    (saved / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ls.ModelError, match=r"manifest.json is damaged"):
        ls.Model.load(saved)


def test_a_model_with_another_one_inside_is_not_replaced(model: ls.Model, saved: Path) -> None:
    model.save(saved / "sub")
    before = files_of(saved)
    with pytest.raises(ls.ModelError, match=r"holds another model, .*sub; move that first"):
        model.save(saved)
    assert files_of(saved) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_not_replaced(model: ls.Model, saved: Path) -> None:
    saved.chmod(0o555)
    try:
        with pytest.raises(ls.ModelError, match="cannot be written to"):
            model.save(saved)
    finally:
        saved.chmod(0o755)


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_every_truncated_changed_or_missing_file_is_refused_by_name(saved: Path) -> None:
    names = files_of(saved)
    assert {"manifest.json", "memory/labels-1.safetensors"} <= set(names)
    assert not [name for name in names if name.endswith((".pkl", ".bin", ".pt"))]
    for name in names:
        file = saved / name
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damaged in (content[:middle], flipped, None):
            if damaged is None:
                file.unlink()
            elif name == "manifest.json" and damaged is flipped:
                continue  # the manifest stamps the others, nothing stamps it
            else:
                file.write_bytes(damaged)
            with pytest.raises(ls.ModelError, match=name.rsplit("/", 1)[-1]) as caught:
                ls.Model.load(saved)
            assert "\n" not in str(caught.value)
            file.write_bytes(content)
    ls.Model.load(saved)


def test_parts_that_do_not_fit_are_refused(model: ls.Model) -> None:
    with pytest.raises(ValueError, match="votes for 4 labels, but 1"):
        ls.Model(model.encoder, model.memory, ls.Labels(["a"], ["a"]))
    with pytest.raises(ValueError, match="3 dimensions, the encoder 32"):
        ls.Model(model.encoder, Memory.of_labels(torch.zeros(1, 3)), ls.Labels(["a"], ["a"]))


def test_a_model_folder_is_an_encoder(saved: Path, model: ls.Model) -> None:
    encoder = open_encoder(str(saved))
    assert np.array_equal(encoder.encode(encoder.tokenize(TEXTS)), model.encode(TEXTS))


LONG = ["wild rose and dry moss, " * 12 + "red oak", "tall fern " * 30, "moss", ""]


def shape_of_cut(way: str) -> dict[str, object]:
    return {"long_documents": way, "max_chunks": 3}


@pytest.mark.parametrize("way", ["head", "head+tail", "chunks"])
@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_saved_models_cut_long_texts_as_before(tiny_transformer: Path, tmp_path: Path, way: str, kind: str) -> None:
    encoder = open_encoder(str(tiny_transformer), max_tokens=12)
    if kind == "static":
        encoder = build_static(encoder, [], NAMES, max_tokens=10)  # type: ignore[arg-type]
    names = [*NAMES, "red " * 40 + "moss"]
    model = ls.Model.from_encoder(encoder, names, device="cpu", **shape_of_cut(way))  # type: ignore[arg-type]
    expected = model.predict(LONG, k=5)
    model.save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["encoder"] == shape_of_cut(way)
    for again in (ls.Model.load(tmp_path / "model"), _resaved(model, tmp_path / "b")):
        pred = again.predict(LONG, k=5)
        assert np.array_equal(pred.indices, expected.indices) and np.array_equal(pred.scores, expected.scores)
        assert again.encoder.limit == model.encoder.limit
    plain = ls.Model.from_encoder(encoder, names, device="cpu", long_documents="head")
    same = np.array_equal(plain.predict(LONG, k=5).scores, expected.scores)
    assert same == (way == "head")
    warm = open_encoder(str(tmp_path / "model"))
    assert (warm.long_documents, warm.max_chunks) == (way, 3)
    warm = open_encoder(str(tmp_path / "model"), long_documents="head", max_chunks=2)
    assert (warm.long_documents, warm.max_chunks) == ("head", 2)
    stock = SentenceTransformer(str(tmp_path / "model" / "encoder"), device="cpu", trust_remote_code=False)
    np.testing.assert_allclose(stock.encode(["moss", ""]), model.encode(["moss", ""]), atol=TINY)


def test_a_manifest_that_tells_no_cut_means_the_head(saved: Path) -> None:
    file = saved / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["encoder"]
    file.write_text(json.dumps(manifest))
    encoder = ls.Model.load(saved).encoder
    assert (encoder.long_documents, encoder.max_chunks) == ("head", 8)
    for wrong in ({"long_documents": "middle"}, {"long_documents": "chunks", "max_chunks": "8"}, {"max_chunks": 0}):
        file.write_text(json.dumps({**manifest, "encoder": wrong}))
        with pytest.raises(ls.ModelError, match="manifest.json is damaged, or of a later version: long documents"):
            ls.Model.load(saved)


def test_an_unknown_cut_is_refused(tiny_transformer: Path) -> None:
    with pytest.raises(ls.SettingsError, match="long_documents is 'tail'"):
        ls.Model.from_encoder(str(tiny_transformer), NAMES, long_documents="tail")  # type: ignore[arg-type]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_texts_are_encoded_in_bf16_where_that_is_asked_for(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ls.Model.load(saved, "cpu")
    exact = model.encode(TEXTS)
    assert model.precision == "float32"
    low = ls.Model.load(saved, "cpu", precision="bf16")
    assert low.precision == "bf16"
    found = low.encode(TEXTS)
    assert found.dtype == np.float32 and cosines(found, exact).min() > 0.999 and not np.array_equal(found, exact)
    assert np.array_equal(low.encode(TEXTS), found)
    kept = [low.encoder._fast, low.encoder._kept_low]
    assert kept != [None, None]  # weights in bf16 are made once
    low.encode(TEXTS)
    assert low.encoder._fast is kept[0] and low.encoder._kept_low is kept[1]
    with torch.no_grad():
        for parameter in low.encoder.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    changed = low.encode(TEXTS)
    low.precision = "float32"
    assert cosines(changed, low.encode(TEXTS)).min() > 0.99 > cosines(changed, found).min()
    for pays in (True, False):
        monkeypatch.setattr("labelspace.model.core.bf16_pays", lambda device, pays=pays: pays)
        assert ls.Model.load(saved, "cpu", precision="auto").precision == ("bf16" if pays else "float32")
    with pytest.raises(ls.SettingsError, match="unknown precision 'half'; choose one of auto, float32, bf16"):
        model.precision = "half"  # type: ignore[assignment]


def test_a_model_in_bf16_is_saved_in_float32(saved: Path, model: ls.Model, tmp_path: Path) -> None:
    low = ls.Model.load(saved, "cpu", precision="bf16")
    low.encode(TEXTS)
    low.save(tmp_path / "again")
    again = ls.Model.load(tmp_path / "again", "cpu")
    assert again.precision == "float32" and np.array_equal(again.encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("pays", [True, False])
def test_documents_kept_in_bf16_are_encoded_in_it_where_it_pays(
    tiny_transformer: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    monkeypatch.setattr("labelspace.model.editing.bf16_pays", lambda device: pays)
    data = ls.load(toy_folder)
    seen = []
    encode = Core.encode_documents

    def spy(core: Core, texts: list[str], batch_size: int, precision: str | None = None) -> np.ndarray:
        seen.append(precision or core.precision)
        return encode(core, texts, batch_size, precision)

    monkeypatch.setattr(Core, "encode_documents", spy)
    model = ls.Model.from_encoder(str(tiny_transformer), data, device="cpu", precision="bf16")
    model.add_documents(["a red oak"], [["L0"]])
    assert set(seen) == {"bf16" if pays else "float32"} and len(seen) == 2 and model.precision == "float32"
    (segment,) = model.memory.document_keys.segments
    assert segment.keys.dtype == torch.bfloat16
    exact = ls.Model.from_encoder(str(tiny_transformer), data, device="cpu")
    assert seen[-1] == "float32"
    there = exact.memory.document_keys.segments[0].keys.numpy()
    assert cosines(segment.keys[: len(there)].float().numpy(), there).min() > 0.999


def test_precision_from_the_command_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelspace.cli.app import main

    (tmp_path / "texts.txt").write_text("red oak\n")
    used = []
    load = ls.Model.load
    monkeypatch.setattr(ls.Model, "load", lambda *a, **k: used.append(k["precision"]) or load(*a, **k))
    shown = {}
    for precision in ("float32", "bf16"):
        assert main(["predict", str(saved), str(tmp_path / "texts.txt"), "--precision", precision, "--json"]) == 0
        shown[precision] = json.loads(capsys.readouterr().out)["labels"][0]
    assert used == ["float32", "bf16"] and shown["bf16"]["id"] == shown["float32"]["id"]
    assert shown["bf16"]["score"] != shown["float32"]["score"]
    assert main(["evaluate", str(saved), str(tmp_path), "--precision", "half"]) == 2
