"""Truth with sparse features: old and new repository files, PECOS, with texts beside them and without."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import attempt, damage, put, refused, truth

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.describe import describe, render
from labelspace.data.loading import load
from labelspace.data.texts import read_texts
from labelspace.errors import DataError

OLD = {"train": "4 5 3\n0,2 0:0.5 4:1e-3\n 1:1\n1\n\n", "test": "2 5 3\n2 3:1\n0,1 0:-1.5 2:3\n"}
TRUTH = {"train": [{0: 1.0, 2: 1.0}, {}, {1: 1.0}, {}], "test": [{2: 1.0}, {0: 1.0, 1: 1.0}]}
TEXTS = {"train": "one\ntwo\n\nfour\n", "test": "five\nsix\n"}


def matrix(split: str) -> sp.csr_array:
    rows = TRUTH[split]
    dense = np.zeros((len(rows), 3))
    for row, labels in enumerate(rows):
        for label, value in labels.items():
            dense[row, label] = value
    return sp.csr_array(dense)


def write(folder: Path, kind: str) -> Path:
    for split, short in (("train", "trn"), ("test", "tst")):
        rows = len(TRUTH[split])
        if kind == "old":
            put(folder / f"{split}.txt", OLD[split])
        elif kind == "new":
            put(folder / f"{short}_X_Xf.txt", f"{rows} 9\n" + "0:1.0 8:2\n" * rows)
            lines = [" ".join(f"{label}:{value}" for label, value in row.items()) for row in TRUTH[split]]
            put(folder / f"{short}_X_Y.txt", f"{rows} 3\n" + "\n".join(lines) + "\n")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            sp.save_npz(folder / f"X.{short}.npz", sp.csr_matrix(np.eye(rows)))
            sp.save_npz(folder / f"Y.{short}.npz", sp.csr_matrix(matrix(split)))
    return folder


@pytest.mark.parametrize("kind", ["old", "new", "pecos"])
def test_truth_without_texts(tmp_path, caplog, kind):
    data = load(write(tmp_path / "set", kind))
    assert data.options["format"] == "features" and data.options["texts"] == "none"
    assert truth(data.train) == TRUTH["train"] and truth(data.test) == TRUTH["test"]
    assert data.train.texts == [""] * 4 and data.train.ids == ["0", "1", "2", "3"]
    assert list(data.labels.ids) == list(data.labels.texts) == ["0", "1", "2"]
    assert len(data.valid_rows) == 1, "rows are held out although all texts are alike"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "train and test, only features" in messages[1] and "Y.txt" in messages[0]
    assert "4 documents" in render(describe(data))


TEXT_NAMES = {
    "old": ("raw_data/train.raw.txt", "raw_data/test.raw.txt", "raw_data/label_map.txt"),
    "new": ("raw/trn_X.txt", "raw/tst_X.txt", "Z.all.txt"),
    "pecos": ("X.trn.txt.gz", "X.tst.txt.gz", "Z.all.txt"),
}


@pytest.mark.parametrize("kind", ["old", "new", "pecos"])
def test_texts_beside_the_features(tmp_path, kind, caplog):
    folder = write(tmp_path / "set", kind)
    train, test, labels = TEXT_NAMES[kind]
    put(folder / train, TEXTS["train"])
    put(folder / test, TEXTS["test"])
    put(folder / labels, "cats\ndogs\nmice\n")
    put(folder / "filter_labels_test.txt", "1 2\n")
    data = load(folder)
    assert data.options["format"] == "features" and "texts" not in data.options and not caplog.records
    assert data.train.texts == ["one", "two", "", "four"] and data.test.texts == ["five", "six"]
    assert list(data.labels.texts) == ["cats", "dogs", "mice"] and truth(data.train) == TRUTH["train"]
    assert data.test.filter_pairs.tolist() == [[1, 2]]
    put(folder / train, "one\n")
    refused(folder, "4 documents", "1 lines")
    put(folder / train, TEXTS["train"])
    put(folder / labels, "cats\n")
    refused(folder, "3 labels", "1 lines")


def test_one_old_file(tmp_path):
    data = load(put(tmp_path / "eurlex_train.txt.gz", OLD["train"]))
    assert (data.name, data.test, truth(data.train)) == ("eurlex_train", None, TRUTH["train"])


def test_raw_text_is_preferred(tmp_path):
    folder = write(tmp_path / "set", "new")
    put(folder / "trn_X.txt", TEXTS["train"])
    put(folder / "tst_X.txt", TEXTS["test"])
    put(folder / "Y.txt", "a\nb\nc\n")
    assert load(folder).options["format"] == "xc"


def test_missing_rows_at_the_end_are_empty_and_said(tmp_path, caplog):
    path = put(tmp_path / "train.txt", OLD["train"].replace("4 5 3", "6 5 3"))
    assert truth(load(path).train) == [*TRUTH["train"], {}, {}]
    assert "the header says 6 rows, but there are 4" in caplog.text
    put(tmp_path / "train.txt", OLD["train"].replace("4 5 3", "60000000 5 3"))
    refused(path, "60000000 rows", "there are 4", "cut short")


def test_scores_are_measured_but_nothing_is_trained_or_predicted(tmp_path, capsys, toy_folder, tiny_transformer):
    folder = write(tmp_path / "set", "old")
    sp.save_npz(tmp_path / "score.npz", sp.csr_matrix(np.array([[0.1, 0.2, 0.9], [0.9, 0.0, 0.8]])))
    assert main(["evaluate", str(tmp_path / "score.npz"), str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] == 100.0
    with pytest.raises(DataError, match="set: the train documents are features without texts.*trn_X.txt"):
        ls.train(folder, recipe="dexml")
    with pytest.raises(DataError, match="features without texts; name a file of texts"):
        read_texts(folder / "test.txt")
    model = ls.Model.from_encoder(str(tiny_transformer), ["0", "1", "2"], device="cpu")
    model.save(tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model"), str(folder)]) == 1
    error = capsys.readouterr().err
    assert "the test documents are features without texts" in error and "tst_X.txt" in error
    put(folder / "tst_X.txt", TEXTS["test"])
    assert load(folder).options["texts"] == "test"
    assert main(["evaluate", str(tmp_path / "model"), str(folder), "--json"]) == 0
    assert main(["evaluate", str(tmp_path / "model"), str(folder), "--split", "valid"]) == 1
    assert "the valid documents are features" in capsys.readouterr().err


def test_read_texts_still_takes_plain_texts(tmp_path):
    with pytest.raises(DataError, match="features without texts"):
        read_texts(put(tmp_path / "trn_X_Xf.txt", "2 9\n0:1 8:2\n\n"))
    for content in ("2 9\n0:1 and\n", "4 5 3\nfour five three\n", "note: one\n", "see 1:2\n", "12 15\n", "4 5 3\n", ""):
        path = put(tmp_path / "a.txt", content)
        if content:
            assert read_texts(path)[1] == content.splitlines()


@pytest.mark.parametrize(
    ("content", "line", "parts"),
    [
        ("4 5 3\n0 5:1\n", 2, ["feature number 5", "0 to 4"]),
        ("4 5 3\n0 1:1\n3 1:1\n", 3, ["label number 3", "0 to 2"]),
        ("1 5 3\n0 1:1\n1 1:1\n", 3, ["1 rows", "2"]),
        ("4 5 3\n0, 1:1\n", 2, ["'0, 1:1'"]),
        ("4 5 3\na 1:1\n", 2, ["'a 1:1'"]),
        ("4 5 3\n0 1:x\n", 2, ["'0 1:x'"]),
        ("4 5 3\n0 1:1" + "9" * 5000 + ":1\n", 2, ["expected"]),
        ("4 5 3\n" + "9" * 40 + " 1:1\n", 2, ["too large"]),
        ("0,2 1:0.5 5:1\n1 2:1\n", 1, ["LibMultiLabel", "documents features labels"]),
        ("4 5 0\n\n", None, ["no labels"]),
        ("0 5 3\n", None, ["no documents"]),
    ],
)
def test_old_refusals(tmp_path, content, line, parts):
    put(tmp_path / "train.txt", content)
    refused(tmp_path, "train.txt" if line is None else f"train.txt, line {line}", *parts)


def test_both_sides_are_counted(tmp_path):
    folder = write(tmp_path / "new", "new")
    put(folder / "trn_X_Xf.txt", "5 9\n")
    refused(folder, "trn_X_Y.txt, line 1", "4 rows", "trn_X_Xf.txt has 5")
    put(folder / "trn_X_Xf.txt", "x\n")
    refused(folder, "trn_X_Xf.txt, line 1", "'rows columns'")
    folder = write(tmp_path / "pecos", "pecos")
    sp.save_npz(folder / "X.trn.npz", sp.csr_matrix(np.eye(5)))
    refused(folder, "Y.trn.npz", "4 rows", "X.trn.npz has 5")
    put(folder / "X.trn.npz", "x")
    refused(folder, "X.trn.npz", "not a whole")
    (folder / "X.trn.npz").unlink()
    sp.save_npz(folder / "Y.tst.npz", sp.csr_matrix((2, 7)))
    refused(folder, "Y.tst.npz", "7 labels", "Y.trn.npz has 3")
    refused(put(tmp_path / "x" / "a", "").parent, "documents features labels", format="features")


# Any content


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 6)), st.dictionaries(st.integers(0, 9), st.floats(-9, 9))), min_size=1)
)
def test_old_files_are_read_back_exactly(rows):
    lines = []
    for labels, features in rows:
        pairs = " ".join(f"{index}:{value!r}" for index, value in features.items())
        lines.append(",".join(map(str, labels)) + (f" {pairs}" if pairs else ""))
    with tempfile.TemporaryDirectory() as name:
        data = load(put(Path(name, "a.txt"), f"{len(rows)} 10 7\n" + "\n".join(lines) + "\n"))
    assert truth(data.train) == [dict.fromkeys(sorted(set(labels)), 1.0) for labels, _ in rows]
    assert data.train.targets.shape == (len(rows), 7)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([("old", "train.txt"), ("new", "trn_X_Y.txt"), ("new", "trn_X_Xf.txt"), ("pecos", "Y.trn.npz")]),
)
def test_malformed(draw: random.Random, which):
    kind, file = which
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name, "d"), kind)
        path = folder / file
        content = path.read_bytes()
        if draw.random() < 0.2 and path.suffix == ".txt":
            path.unlink()
            (folder / f"{file}.gz").write_bytes(damage(gzip.compress(content), draw))
        else:
            path.write_bytes(damage(content, draw))
        attempt(folder)


@pytest.mark.parametrize("value", ["1.2.3", "..", "1_0", "nan", "inf", "", "\u0661", "1e", "--1"])
def test_values_of_features_are_checked(tmp_path, value):
    old = put(tmp_path / "old/train.txt", f"2 5 3\n0 0:1\n1 1:{value}\n")
    refused(old.parent, "train.txt, line 3: expected 'label,label feature:value")
    put(tmp_path / "new/trn_X_Y.txt", "2 2\n0:1\n1:1\n")
    put(tmp_path / "new/trn_X_Xf.txt", f"2 5\n0:1 3:2\n1:{value}\n")
    refused(tmp_path / "new", "trn_X_Xf.txt, line 3: expected 'feature:value feature:value'")


def test_numbers_and_rows_of_features_are_checked(tmp_path):
    put(tmp_path / "trn_X_Y.txt", "2 2\n0:1\n1:1\n")
    put(tmp_path / "trn_X_Xf.txt", "2 5\n0:1 5:2\n\n")
    refused(tmp_path, "trn_X_Xf.txt, line 2: feature number 5 is not one of 0 to 4")
    put(tmp_path / "trn_X_Xf.txt", "2 5\n0:1\n\n1:1\n")
    refused(tmp_path, "trn_X_Xf.txt, line 4: the header says 2 rows, but there are 3")
    put(tmp_path / "trn_X_Xf.txt", "2 5\n" + "0:+1.e5 1:.5  2:-3\n \n")
    assert len(load(tmp_path).train) == 2
