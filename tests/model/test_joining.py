"""Joined models against the sum of their parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, VOTES, rounding

import labelspace as ls
from labelspace.cli.app import main
from labelspace.memory.voting import Voting
from labelspace.model.joining import join
from labelspace.model.tuning import set_shares


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


@pytest.fixture(scope="module")
def folders(
    toy_folder: Path, tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory, data: ls.Dataset
) -> list[Path]:
    """A transformer with a memory, and a UniDEC model of another encoder."""
    place = tmp_path_factory.mktemp("join")
    ls.Model.from_encoder(str(tiny_transformer), data, device="cpu").save(place / "memory")
    ls.train(data, recipe="unidec", encoder=str(tiny_transformer), epochs=2, batch_size=16, device="cpu",
             encoder_dim=6, classifier_dim=10, out=place / "heads")  # fmt: skip
    return [place / "memory", place / "heads"]


def opened(folders: list[Path]) -> list[ls.Model]:
    return [ls.Model.load(folder, "cpu") for folder in folders]


def test_a_joined_model_sums_the_similarities_of_its_parts(folders: list[Path], data: ls.Dataset) -> None:
    parts = opened(folders)
    made = join(parts)
    made.memory.voting = Voting(scoring="similarity")
    texts = data.valid.texts[:20]
    expected = sum(0.5 * m.encode(texts).astype(np.float64) @ m.memory.keys.double().numpy().T for m in parts)
    found = made.predict(texts, len(data.labels))
    np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=1), atol=TINY)
    assert made.memory.label_keys.dim == sum(m.memory.label_keys.dim for m in parts)
    assert made.memory.document_keys.dim == parts[0].memory.document_keys.dim
    assert [tower.share for tower in parts[0].towers] == [1.0]  # the parts stay as they were


def test_other_shares_scale_the_label_keys_alone(folders: list[Path], data: ls.Dataset) -> None:
    parts = opened(folders)
    made = join(parts)
    set_shares(made.core, [0.8, 0.2])
    made.memory.voting = Voting(label_depth=30, document_depth=30, weight=0.3, softmax="apart", label_temperature=0.2)
    text = data.valid.texts[0]
    queries = [m.encode([text])[0].astype(np.float64) for m in parts]
    similarities = 0.8 * parts[0].memory.keys.double().numpy() @ queries[0]
    similarities += 0.2 * parts[1].memory.keys.double().numpy() @ queries[1]
    near = np.argsort(-similarities)[:30]
    scores = np.zeros(len(data.labels))
    weights = np.exp(similarities[near] / 0.2)
    scores[near] = 0.7 * weights / weights.sum()
    (segment,) = parts[0].memory.document_keys.segments
    products = segment.keys.double().numpy() @ queries[0]
    near = np.argsort(-products)[:30]
    weights = np.exp(products[near] / 0.05)
    for row, weight in zip(near, weights / weights.sum(), strict=True):
        scores[segment.slots[segment.indptr[row] : segment.indptr[row + 1]]] += 0.3 * weight
    found = made.predict([text], 5)
    np.testing.assert_allclose(found.scores[0], -np.sort(-scores)[:5], atol=VOTES)
    told = made.predict([text], 5, why=True)
    assert told.reasons is not None
    for score, reasons in zip(told.scores[0], told.reasons[0], strict=True):
        assert sum(reason.share for reason in reasons) == pytest.approx(score, abs=rounding(60))


def test_shares_are_chosen_kept_and_chosen_again(folders: list[Path], data: ls.Dataset, tmp_path: Path) -> None:
    parts = opened(folders)
    made = join(parts)
    found = made.tune(data)
    assert found is not None
    shares = [tower.share for tower in made.towers]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
    texts = data.valid.texts[:30]
    alone = [m.predict(texts, 5, left_out=m.held_out(data)) for m in parts]
    best = max(ls.evaluate(x, data.valid.targets[:30])["P@1"] for x in alone)
    both = ls.evaluate(made.predict(texts, 5, left_out=made.held_out(data)), data.valid.targets[:30])["P@1"]
    assert both >= best - 10
    made.save(tmp_path / "joined")
    again = ls.Model.load(tmp_path / "joined", "cpu")
    assert [tower.share for tower in again.towers] == shares
    np.testing.assert_array_equal(again.predict(texts).scores, made.predict(texts).scores)
    before = again.memory.keys.clone()
    again.tune(data)  # from keys that are scaled already
    assert [tower.share for tower in again.towers] == pytest.approx(shares)
    np.testing.assert_allclose(again.memory.keys.numpy(), before.numpy(), atol=rounding(4))
    again.save()
    third = ls.Model.load(tmp_path / "joined", "cpu")
    assert [tower.share for tower in third.towers] == pytest.approx(shares)


def test_a_joined_model_lives(folders: list[Path], data: ls.Dataset, tmp_path: Path) -> None:
    made = join(opened(folders))
    made.tune(data)
    made.add_labels(["quite another thing"], ["new"])
    made.add_documents(["something about quite another thing"], [["new"]], ["d-new"])
    key = made.encode_labels(["quite another thing"])[0]
    np.testing.assert_allclose(made.memory.keys[-1].float().numpy(), key, atol=TINY)
    learned = made.memory.keys[0].clone()
    name = made.labels.ids[0]
    made.rename_labels({name: "wholly other words"})
    place = made.labels.ids.index(name)
    renamed = made.memory.keys[place]
    rows = slice(-10, None)  # of the classifier, which learnt them
    np.testing.assert_allclose(renamed[rows].numpy(), learned[rows].numpy(), atol=rounding(4))
    assert not np.allclose(renamed[:-10].numpy(), learned[:-10].numpy(), atol=1e-3)
    made.save(tmp_path / "m")
    made.remove_labels(["new"])
    made.save()
    again = ls.Model.load(tmp_path / "m", "cpu")
    assert "new" not in again.labels.ids and len(again.labels) == len(data.labels)


def test_the_parts_keep_their_documents_and_files(folders: list[Path], data: ls.Dataset, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folders[0], tmp_path / "a")
    first = ls.Model.load(tmp_path / "a", "cpu")
    first.add_documents(["something else"], [[data.labels.ids[0]]], ["more"])
    first.save()
    first = ls.Model.load(tmp_path / "a", "cpu")
    texts = data.valid.texts[:10]
    before, count = first.predict(texts), first.memory.n_documents
    made = join([first, ls.Model.load(folders[1], "cpu")])
    made.remove_documents(["more", first.memory.document_keys.ids(np.array([0]))[0]])
    made.save(tmp_path / "joined")
    assert made.memory.n_documents == count - 2 and first.memory.n_documents == count
    np.testing.assert_array_equal(first.predict(texts).scores, before.scores)
    first.add_labels(["a label of its own"])
    first.save()
    assert "a label of its own" in ls.Model.load(tmp_path / "a", "cpu").labels.ids


def test_of_equal_shares_the_even_one_is_chosen(folders: list[Path], data: ls.Dataset) -> None:
    made = join([ls.Model.load(folders[0], "cpu") for _ in range(3)])
    made.tune(data)
    assert [tower.share for tower in made.towers] == pytest.approx([1 / 3] * 3, abs=0.05)


def test_models_that_held_out_other_documents_are_told(folders: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    parts = opened(folders)
    join(parts)
    assert "held out other documents" not in caplog.text
    parts[1].info["data"]["options"]["seed"] = 7
    join(parts)
    assert "model 2 held out other documents than the first (seed 7, the first 0)" in caplog.text
    parts[0].info["data"]["fingerprint"], parts[1].info["data"]["fingerprint"] = "one", "other"
    join(parts)
    assert "model 2 was trained on other data" in caplog.text


def test_what_cannot_be_joined(folders: list[Path], data: ls.Dataset, tiny_transformer: Path) -> None:
    parts = opened(folders)
    with pytest.raises(ls.ModelError, match="takes two models or more, got 1"):
        join(parts[:1])
    other = ls.Model.from_encoder(str(tiny_transformer), list(data.labels.ids)[:-1], device="cpu")
    with pytest.raises(ls.ModelError, match="model 2 has other labels than the first"):
        join([parts[0], other])


def test_the_command(folders: list[Path], toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "joined"
    command = ["join", *map(str, folders), "--data", str(toy_folder), "--out", str(out), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["shares"]) == 2 and told["model"] == str(out) and told["voting"]["scoring"] == "votes"
    assert main(["evaluate", str(out), str(toy_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] > 0
    assert main(command) == 1
    assert "holds a model already; add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["join", *map(str, folders), "--data", str(toy_folder), "--out", str(folders[1]), "--overwrite"]) == 2
    assert "is one of the models to join" in capsys.readouterr().err
    assert main(["join", str(folders[0]), "--data", str(toy_folder), "--out", str(out)]) == 2
    assert "two models or more, got 1" in capsys.readouterr().err
    assert main(["join", *map(str, folders), "--out", str(out)]) == 2
    assert "joining needs --data" in capsys.readouterr().err
    for to in ("onnx", "sentence-transformers"):
        assert main(["export", str(out), "--to", to, "--out", str(tmp_path / to)]) == 2
        assert "joined from 2 models" in capsys.readouterr().err
    (out / "manifest.json").write_text((out / "manifest.json").read_text().replace('"shares"', '"shared"'))
    assert main(["predict", str(out), "text"]) == 1
    assert "does not say what encoders it has" in capsys.readouterr().err
