"""Labels that the label space does not have are refused, dropped or added, in every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import labelspace as ls
from labelspace.cli.app import main
from labelspace.errors import DataError, SettingsError
from labelspace.labels import LabelNames

URI = "http://example.org/"
SKOS = """
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix : <http://example.org/> .
:a a skos:Concept ; skos:prefLabel "ash"@en .
:b a skos:Concept ; skos:prefLabel "birch"@en .
:old a skos:Concept ; skos:prefLabel "cedar"@en ; owl:deprecated true .
"""


def csv(folder: Path) -> Path:
    (folder / "labels.txt").write_text("ash\nbirch\n")
    (folder / "train.csv").write_text("text,labels\none,ash;pine\ntwo,birch\nthree,fir\nfour,pine;birch\n")
    return folder


def jsonl(folder: Path) -> Path:
    (folder / "labels.csv").write_text("id,text\nash,ash tree\nbirch,birch tree\n")
    rows = [("one", ["ash", "pine"]), ("two", ["birch"]), ("three", ["fir"]), ("four", ["pine", "birch tree"])]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": t, "labels": y}) + "\n" for t, y in rows))
    return folder


def annif(folder: Path) -> Path:
    pytest.importorskip("rdflib")
    (folder / "vocabulary.ttl").write_text(SKOS)
    rows = [("one", "a pine"), ("two", "b"), ("three", "fir"), ("four", "pine b")]
    (folder / "train.tsv").write_text(
        "".join(f"{text}\t{' '.join(f'<{URI}{name}>' for name in names.split())}\n" for text, names in rows)
    )
    return folder


def annif_documents(folder: Path) -> Path:
    (folder / "vocab.tsv").write_text(f"<{URI}a>\tash\n<{URI}b>\tbirch\n")
    (folder / "train").mkdir()
    for text, names in (("1 one", "ash pine"), ("2 two", "birch"), ("3 three", "fir"), ("4 four", "pine birch")):
        stem, words = text.split()
        (folder / "train" / f"{stem}.txt").write_text(words)
        (folder / "train" / f"{stem}.key").write_text("\n".join(names.split()))
    return folder


def beir(folder: Path) -> Path:
    (folder / "corpus.jsonl").write_text('{"_id": "ash", "text": "ash tree"}\n{"_id": "birch", "text": "birch tree"}\n')
    texts = {"1": "one", "2": "two", "3": "three", "4": "four"}
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items())
    )
    (folder / "qrels").mkdir()
    pairs = [("1", "ash"), ("1", "pine"), ("2", "birch"), ("3", "fir"), ("4", "pine"), ("4", "birch")]
    lines = "".join(f"{query}\t{label}\t1\n" for query, label in pairs)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


READERS = [csv, jsonl, annif, annif_documents, beir]
EXPECTED = [{"ash"}, {"birch"}, set(), {"birch"}]
"""What is left of the four documents."""


def truth(data: ls.Dataset) -> list[set[str]]:
    def named(name: str) -> str:
        short = {URI + "a": "ash", URI + "b": "birch"}
        return short.get(name, name.removeprefix(URI))

    return [{named(data.labels.ids[j]) for j in row.indices} for row in data.train.targets]


@pytest.mark.parametrize("make", READERS)
def test_they_are_refused_all_at_once(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ls.load(make(tmp_path), valid_fraction=0)
    message = str(caught.value)
    assert "pine" in message and "in all 3 references name 2 unknown labels, also" in message and "fir" in message
    assert "--unknown-labels drop leaves such labels out" in message and "\n" not in message


@pytest.mark.parametrize("make", READERS)
def test_they_are_dropped_and_counted(
    make: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ls.load(make(tmp_path), valid_fraction=0, unknown_labels="drop")
    assert truth(data) == EXPECTED and data.train.targets.shape == (4, 2) and len(data.labels) == 2
    assert "3 references to 2 labels that are not in" in caplog.text and "pine" in caplog.text
    assert "are dropped from 3 documents, of which 1 have no label left" in caplog.text
    assert data.options["unknown_labels"] == "drop"


@pytest.mark.parametrize("make", READERS)
def test_they_become_labels(make: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ls.load(make(tmp_path), valid_fraction=0, unknown_labels="add")
    assert truth(data) == [{"ash", "pine"}, {"birch"}, {"fir"}, {"pine", "birch"}]
    assert len(data.labels) == 4 and [name.removeprefix(URI) for name in data.labels.ids[2:]] == ["pine", "fir"]
    assert data.labels.texts[2:] == data.labels.ids[2:] and "2 labels that are not in" in caplog.text


def test_other_parts_have_the_same_labels(tmp_path: Path) -> None:
    csv(tmp_path)
    (tmp_path / "test.csv").write_text("text,labels\nfive,elm;ash\n")
    dropped = ls.load(tmp_path, valid_fraction=0, unknown_labels="drop")
    added = ls.load(tmp_path, valid_fraction=0, unknown_labels="add")
    assert dropped.test is not None and added.test is not None
    assert dropped.test.targets.toarray().tolist() == [[1, 0]]
    assert list(added.labels.ids) == ["ash", "birch", "pine", "fir", "elm"]
    assert added.train.targets.shape == (4, 5) and added.test.targets.toarray().tolist() == [[1, 0, 0, 0, 1]]


def test_withdrawn_concepts_are_dropped_unless_they_are_added(tmp_path: Path, caplog: Any) -> None:
    pytest.importorskip("rdflib")
    (tmp_path / "vocabulary.ttl").write_text(SKOS)
    (tmp_path / "train.tsv").write_text(f"one\t<{URI}a> <{URI}old>\ntwo\t<{URI}old>\n")
    for choice in ("refuse", "drop"):
        data = ls.load(tmp_path, valid_fraction=0, unknown_labels=choice)
        assert truth(data) == [{"ash"}, set()] and "2 times a document names a concept without a label" in caplog.text
    added = ls.load(tmp_path, valid_fraction=0, unknown_labels="add")
    assert truth(added) == [{"ash", "old"}, {"old"}] and list(added.labels.ids)[2:] == [URI + "old"]


def lf(folder: Path) -> Path:
    (folder / "lbl.json").write_text('{"uid": "a", "title": "ash"}\n{"uid": "b", "title": "birch"}\n')
    rows = [("one", [0, 7]), ("two", [1]), ("three", [5]), ("four", [7, 1])]
    (folder / "trn.json").write_text("".join(json.dumps({"title": t, "target_ind": y}) + "\n" for t, y in rows))
    (folder / "filter_labels_train.txt").write_text("0 1\n1 7\n")
    return folder


def test_label_numbers_are_dropped_but_have_no_name_to_be_added_by(tmp_path: Path, caplog: Any) -> None:
    folder = lf(tmp_path)
    with pytest.raises(DataError, match="label number 7 is not one of 0 to 1"):
        ls.load(folder, valid_fraction=0)
    with pytest.raises(SettingsError, match="a number has no name that could be added"):
        ls.load(folder, valid_fraction=0, unknown_labels="add")
    data = ls.load(folder, valid_fraction=0, unknown_labels="drop")
    assert data.train.targets.toarray().tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    assert data.train.filter_pairs is not None and data.train.filter_pairs.tolist() == [[0, 1]]
    assert "3 references to label numbers beyond the 2 labels, such as 7, are dropped from 3 documents" in caplog.text
    assert "1 pairs have a label number beyond the 2 labels" in caplog.text


def test_a_wide_truth_beside_raw_texts_is_cut(tmp_path: Path) -> None:
    (tmp_path / "trn_X.txt").write_text("one\ntwo\n")
    (tmp_path / "Y.txt").write_text("ash\nbirch\n")
    (tmp_path / "trn_X_Y.txt").write_text("2 4\n0:1 3:1\n2:1\n")
    with pytest.raises(DataError, match="the truth has 4 columns"):
        ls.load(tmp_path, format="xc", valid_fraction=0)
    data = ls.load(tmp_path, format="xc", valid_fraction=0, unknown_labels="drop")
    assert data.train.targets.toarray().tolist() == [[1, 0], [0, 0]]


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown_labels must be one of refuse, drop, add, got 'ignore'"):
        ls.load(csv(tmp_path), unknown_labels="ignore")  # type: ignore[arg-type]


def test_commands_take_the_flag_and_models_remember_it(
    tmp_path: Path, tiny_transformer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = csv(tmp_path), str(tmp_path / "model")
    train = ["train", str(folder), "--recipe", "dexml", "--base", str(tiny_transformer), "--epochs", "1", "--quiet"]
    assert main([*train, "--out", out]) == 1 and "unknown labels" in capsys.readouterr().err
    assert main([*train, "--out", out, "--unknown-labels", "drop", "--valid-fraction", "0"]) == 0
    assert list(ls.Model.load(out).labels.ids) == ["ash", "birch"]
    capsys.readouterr()
    assert main(["evaluate", out, str(folder), "--split", "train", "--json"]) == 0
    capsys.readouterr()
    assert main(["evaluate", out, str(folder), "--split", "train", "--unknown-labels", "refuse"]) == 1
    assert "unknown labels" in capsys.readouterr().err
    (tmp_path / "new.csv").write_text("id,text,labels\nx,five,ash;pine\ny,six,fir\nz,seven,birch\n")
    add = ["documents", "add", out, str(tmp_path / "new.csv")]
    assert main(add) == 1 and "no label 'pine'" in capsys.readouterr().err
    assert main([*add, "--unknown-labels", "add"]) == 2 and "labels add" in capsys.readouterr().err
    assert main([*add, "--unknown-labels", "drop"]) == 0
    said = capsys.readouterr().err
    assert "2 references to 2 labels that the model does not have" in said and "1 documents have no other" in said
    memory = ls.Model.load(out).memory
    assert list(memory.document_keys.ids(memory.document_keys.present())) == ["x", "z"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 7), max_size=4, unique=True), min_size=1, max_size=6), st.integers(1, 6))
def test_what_is_known_stays_whatever_dangles(tmp_path_factory: Any, rows: list[list[int]], known: int) -> None:
    folder = tmp_path_factory.mktemp("dangling")
    (folder / "labels.csv").write_text("id,text\n" + "".join(f"L{j},label {j}\n" for j in range(known)))
    lines = [json.dumps({"text": f"t{i}", "labels": [f"L{j}" for j in row]}) for i, row in enumerate(rows)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    dropped = ls.load(folder, valid_fraction=0, unknown_labels="drop").train.targets
    expected = np.zeros((len(rows), 8))
    for i, row in enumerate(rows):
        expected[i, row] = 1
    assert np.array_equal(dropped.toarray(), expected[:, :known])
    added = ls.load(folder, valid_fraction=0, unknown_labels="add")
    columns = [int(name[1:]) for name in added.labels.ids]
    assert np.array_equal(added.train.targets.toarray(), expected[:, columns])
    assert added.train.targets.nnz == expected.sum() and sorted(columns)[:known] == list(range(known))
    if not (expected[:, known:]).any():
        assert list(added.labels.ids) == [f"L{j}" for j in range(known)]


def test_a_model_knows_its_labels_in_every_normal_form() -> None:
    names = LabelNames(ls.Labels(["a", "b"], ["caf\u00e9", "tea"]))
    assert names(["cafe\u0301", "tea\u200b"]).tolist() == [0, 1] and names.find("cafe") is None
    with pytest.raises(DataError, match="no label 'cafe'"):
        names(["cafe"])
