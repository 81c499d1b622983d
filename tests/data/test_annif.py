"""Corpora as Annif has them: short texts in one file, folders of documents, and their vocabulary."""

from __future__ import annotations

import gzip
import json
import logging
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import attempt, damage, jsonl, put, refused, truth

from labelspace.data.describe import describe, render
from labelspace.data.formats import detect
from labelspace.data.loading import load
from labelspace.data.texts import read_texts

VOCABULARY = "<http://y/1>\tcats\n<http://y/2>\tdogs\t59.1\n<http://y/3>\n<http://y/4>\tblue; birds\n"
TSV = "my cat\t<http://y/1>\n\na dog, a cat\t<http://y/2> http://y/1\nnothing\t\n"
CSV = 'document_id,text,year,subject_uris\nd1,"my cat\nagain",1999,<http://y/1>\nd2,"a dog, a cat",,http://y/2 http://y/1\n'
JSONL = [
    {"document_id": "d1", "text": "my cat", "subjects": [{"uri": "http://y/1"}]},
    {
        "text": "a dog",
        "metadata": {"year": "1999"},
        "subjects": [{"label": "dogs"}, {"uri": "http://y/1", "label": "x"}],
    },
    {"metadata": {"author": "A"}},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "set" / "vocab.tsv", VOCABULARY)
    return tmp_path / "set"


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_tsv(folder, gz):
    put(folder / f"train.tsv{gz}", "\ufeff" + TSV)
    put(folder / f"validate.tsv{gz}", "b\t<http://y/4>\r\n")
    put(folder / "filter_labels_train.txt", "0 1\n")
    data = load(folder)
    assert (data.name, data.options["format"], data.options["encoding"]) == ("set", "annif", "utf-8")
    assert list(data.labels.ids) == ["http://y/1", "http://y/2", "http://y/4"]
    assert list(data.labels.texts) == ["cats", "dogs", "blue; birds"]
    assert (data.train.ids, data.train.texts) == (["0", "1", "2"], ["my cat", "a dog, a cat", "nothing"])
    assert truth(data.train) == [{0: 1.0}, {0: 1.0, 1: 1.0}, {}] and truth(data.valid) == [{2: 1.0}]
    assert data.train.filter_pairs.tolist() == [[0, 1]] and data.test is None and data.valid.texts == ["b"]
    assert data.options["label_vocabulary"] == str(folder / "vocab.tsv")
    assert "3 documents" in render(describe(data))


def test_csv(folder, caplog):
    put(folder / "train.csv", CSV)
    put(folder / "test.csv.gz", "text,subject_uris,genre\nx,http://y/4,y\n")
    data = load(folder)
    assert (data.train.ids, data.train.texts) == (["d1", "d2"], ["my cat\nagain", "a dog, a cat"])
    assert truth(data.train) == [{0: 1.0}, {0: 1.0, 1: 1.0}] and truth(data.test) == [{2: 1.0}]
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warned == ["set: metadata is not read: 'year', 'genre'"]


def test_jsonl(folder, caplog):
    put(folder / "train.jsonl", jsonl(JSONL))
    data = load(folder)
    assert (data.train.ids, data.train.texts) == (["d1", "1", "2"], ["my cat", "a dog", ""])
    assert truth(data.train) == [{0: 1.0}, {0: 1.0, 1: 1.0}, {}]
    assert "'year', 'author'" in caplog.text


def write_documents(folder: Path) -> None:
    put(folder / "a.txt", "\ufeffmy cat\n\tpurrs")
    put(folder / "a.tsv", "<http://y/1>\tcats\n\n<http://y/2>\tanything\n")
    put(folder / "b.txt.gz", "a dog")
    put(folder / "b.key", "dogs\nblue; birds\n")
    put(folder / "c.json", json.dumps(JSONL[1], indent=1))
    put(folder / "d.txt", "nothing")
    put(folder / "notes.md", "x")


def test_folders_of_documents(folder, tmp_path):
    write_documents(folder / "train")
    write_documents(folder / "test")
    for data in (load(folder), load(folder / "train", label_vocabulary=folder / "vocab.tsv")):
        assert data.train.ids == ["a", "b", "c", "d"]
        assert data.train.texts == ["my cat\n\tpurrs", "a dog", "a dog", "nothing"]
        assert truth(data.train) == [{0: 1.0, 1: 1.0}, {1: 1.0, 2: 1.0}, {0: 1.0, 1: 1.0}, {}]
    assert data.test is None and len(load(folder).test) == 4
    write_documents(folder)  # documents and vocabulary side by side
    (folder / "train" / "a.txt").rename(folder / "train" / "e.txt")
    assert load(folder).train.ids == ["b", "c", "d", "e"]


def test_one_file_and_its_vocabulary(folder, tmp_path):
    path = put(tmp_path / "short.tsv.gz", TSV)
    data = load(path, label_vocabulary=folder / "vocab.tsv")
    assert (data.name, len(data.train), len(data.valid_rows)) == ("short", 3, 1)
    refused(path, "short.tsv.gz", "--label-vocabulary")
    assert len(load(put(folder / "short.jsonl", jsonl(JSONL))).train) == 3  # the vocabulary lies beside it
    assert read_texts(path) == (["0", "1", "2"], ["my cat", "a dog, a cat", "nothing"])
    assert read_texts(put(tmp_path / "a.jsonl", jsonl(JSONL[:2])))[0] == ["d1", "1"]


def test_subjects_without_a_label_are_dropped_and_counted_once(folder, caplog):
    put(folder / "train.tsv", TSV + "x\t<http://y/3> <http://y/4>\n")
    put(folder / "test.tsv", "y\t<http://y/3>\n")
    caplog.set_level(logging.INFO, "labelspace")
    data = load(folder)
    assert truth(data.train)[-1] == {2: 1.0} and truth(data.test) == [{}]
    assert data.train.targets.shape == (4, 3) and data.train.targets.has_canonical_format
    dropped = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(dropped) == 1 and "2 times" in dropped[0] and "http://y/3" in dropped[0]
    assert "1 of 4 concepts have no label" in caplog.text


def test_plain_tables_stay_tables(tmp_path):
    for name, content in (
        ("a.tsv", "text\tlabels\nmy cat\t<http://y/1>\n"),
        ("b.tsv", "my text\tmy label\nx\ty\n"),
        ("c.csv", "text,labels\nx,http://y/1\n"),
        ("d.jsonl", jsonl([{"text": "x", "subjects": ["a"]}, {"text": "y", "labels": ["a"]}])),
        ("e.jsonl", "not json\n"),
        ("f.tsv", ""),
        ("g.tsv.gz", b"\x1f\x8b damaged"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert detect(path) == "table", name
        path.rename(put(tmp_path / path.stem / "x", "").with_name("train." + name.partition(".")[2]))
        assert detect(tmp_path / path.stem) == "table", name
    for name, content in (("h.tsv", "\t<u:1>\n"), ("i.tsv", "x\t\ny\t<u:1>\n"), ("j.tsv", "x\thttp://y/1 urn:2\n")):
        assert detect(put(tmp_path / name, content)) == "annif", name


@pytest.mark.parametrize(
    ("name", "content", "where", "parts"),
    [
        ("train.tsv", TSV + "no tab\n", "train.tsv, line 5", ["tab", "'no tab'"]),
        ("train.tsv", TSV + "x\t<http://y/9>\n", "train.tsv, line 5", ["http://y/9", "vocab.tsv", "'http://y/4'"]),
        ("train.csv", CSV.replace("text,", "texts,"), "train.csv, line 2", ["'text'"]),
        ("train.csv", CSV + "d1,x,,\n", "train.csv, line 5", ["'d1'", "line 2"]),
        ("train.csv", "text,subject_uris\n", "train.csv", ["no documents"]),
        ("train.jsonl", jsonl([*JSONL, {"text": "x", "title": "y"}]), "train.jsonl, line 4", ["'title'", "'text'"]),
        ("train.jsonl", jsonl([*JSONL, {"document_id": "x"}]), "train.jsonl, line 4", ["'metadata'"]),
        ("train.jsonl", jsonl([*JSONL, {"text": "x", "metadata": []}][:3] + [{"text": 1}]), "line 4", ["'text'"]),
        ("train.jsonl", jsonl([*JSONL, {"text": "x", "metadata": ["a"]}]), "line 4", ["'metadata'"]),
        ("train.jsonl", jsonl([*JSONL, {"text": "x", "subjects": ["a"]}]), "line 4", ["'subjects'"]),
        ("train.jsonl", jsonl([*JSONL, {"text": "x", "subjects": [{}]}]), "line 4", ["'uri'", "none"]),
        ("train.jsonl", jsonl([*JSONL, {"text": "x", "subjects": [{"uri": "a", "score": 1}]}]), "line 4", ["'score'"]),
        ("train.jsonl", jsonl([*JSONL, {"text": "x", "subjects": [{"label": "mice"}]}]), "line 4", ["'mice'"]),
        ("train/x.key", "cats\nmice\n", "x.key, line 2", ["'mice'"]),
        ("train/x.json", "{", "x.json", ["not JSON"]),
        ("train/x.json", json.dumps({"text": "x", "a": 1, "subjects": [{}]}), "x.json", ["'a'"]),
    ],
)
def test_refusals(folder, name, content, where, parts):
    put(folder / name, content)
    if name == "train/x.key":
        put(folder / "train" / "x.txt", "x")
    message = refused(folder, where, *parts, format="annif")
    assert str(folder) in message


def test_double_files(folder):
    put(folder / "train.tsv", TSV)
    put(folder / "train.csv", CSV)
    refused(folder, "train.tsv and train.csv", format="annif")
    (folder / "train.csv").unlink()
    (folder / "train.tsv").unlink()
    refused(folder, "needs", format="annif")
    write_documents(folder / "train")
    put(folder / "train" / "a.json", "{}")
    refused(folder, "a.json and a.txt")


# Any content

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\ufeff"), max_size=6)
ROWS = st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), ROWS, st.sampled_from(["tsv", "csv", "jsonl", "folder"]))
def test_valid_data_is_read_back_exactly(data, rows, kind):
    texts = [data.draw(PLAIN if kind == "tsv" else WORDS) for _ in rows]
    if kind in ("folder", "csv"):
        texts = [text.replace("\ufeff", "") for text in texts]
    uris = ["http://y/1", "http://y/2", "http://y/4"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "d")
        put(folder / "vocab.tsv", VOCABULARY)
        if kind == "tsv":
            lines = [
                f"{text}\t{' '.join(f'<{uris[i]}>' for i in row)}\n" for text, row in zip(texts, rows, strict=True)
            ]
            put(folder / "train.tsv", "first\t<http://y/1>\n" + "".join(lines))
        elif kind == "csv":
            cells = [[text, " ".join(uris[i] for i in row)] for text, row in zip(texts, rows, strict=True)]
            quoted = ['"' + text.replace('"', '""') + f'",{labels}\n' for text, labels in cells]
            put(folder / "train.csv", "text,subject_uris\n" + "".join(quoted))
        elif kind == "jsonl":
            objects = [
                {"text": text, "subjects": [{"uri": uris[i]} for i in row]}
                for text, row in zip(texts, rows, strict=True)
            ]
            put(folder / "train.jsonl", jsonl([{"text": "first", "subjects": [{"label": "cats"}]}, *objects]))
        else:
            for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
                put(folder / "train" / f"{number}.txt", text)
                put(folder / "train" / f"{number}.tsv", "".join(f"<{uris[i]}>\tx\n" for i in row))
        found = load(folder).train
    start = kind in ("tsv", "jsonl")
    assert found.texts[start:] == texts
    assert truth(found)[start:] == [dict.fromkeys(sorted(set(row)), 1.0) for row in rows]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(
        ["train.tsv", "train.csv", "train.jsonl", "train/c.json", "train/a.tsv", "train/b.key", "vocab.tsv"]
    ),
)
def test_malformed(draw: random.Random, which):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "d")
        put(folder / "vocab.tsv", VOCABULARY)
        if which.startswith("train/"):
            write_documents(folder / "train")
        else:
            put(folder / "train.tsv", TSV)
        contents = {"train.tsv": TSV.encode(), "train.csv": CSV.encode(), "train.jsonl": jsonl(JSONL).encode()}
        if which in contents:
            (folder / "train.tsv").unlink()
            (folder / which).write_bytes(contents[which])
        path = folder / which
        content = path.read_bytes()
        if draw.random() < 0.2:
            path.unlink()
            (path.parent / f"{path.name}.gz").write_bytes(damage(gzip.compress(content), draw))
        else:
            path.write_bytes(damage(content, draw))
        attempt(folder)
