"""Readers: what is accepted, what is refused and where, and what is held out."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import logging
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from labelspace.data.formats.filters import read_pairs
from labelspace.data.loading import fingerprint, load
from labelspace.data.split import hold_out
from labelspace.data.texts import read_texts
from labelspace.errors import DataError, LabelspaceError, SettingsError
from labelspace.types import Dataset

LABELS = [
    {"uid": "c", "title": "cats", "content": "small felines"},
    {"uid": "d", "title": "dogs", "content": ""},
    {"uid": "e", "title": "empty", "content": ""},
]
TRAIN = [
    {"uid": "a1", "title": "My cat", "content": "purrs", "target_ind": [0], "target_rel": [1.0]},
    {"uid": "a2", "title": "Cat and dog", "content": "", "target_ind": [1, 0], "target_rel": [0.5, 1.0]},
    {"uid": "a3", "title": "", "content": "", "target_ind": [], "target_rel": []},
]
TEST = [{"uid": "t1", "title": "A dog", "content": "barks", "target_ind": [1], "target_rel": [1.0]}]


def jsonl(records: list) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_lf(folder: Path, train: list = TRAIN, labels: list = LABELS, test: list | None = TEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lbl.json").write_text(jsonl(labels))
    (folder / "trn.json").write_text(jsonl(train))
    if test is not None:
        (folder / "tst.json").write_text(jsonl(test))
    return folder


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def refused(path: Path, *parts: str, **options) -> str:
    """Load, expect a DataError whose message is one line and has all parts."""
    with pytest.raises(DataError) as caught:
        load(path, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message
    return message


def truth(corpus) -> list[dict[int, float]]:
    return [
        {int(c): float(v) for c, v in zip(row.indices, row.data, strict=True)}
        for row in (corpus.targets[[i]] for i in range(len(corpus)))
    ]


# LF


def test_lf_reads_everything(tmp_path):
    data = load(write_lf(tmp_path / "animals"))
    assert (data.name, list(data.labels.ids)) == ("animals", ["c", "d", "e"])
    assert list(data.labels.texts) == ["cats small felines", "dogs", "empty"]
    assert list(data.train.ids) == ["a1", "a2", "a3"]
    assert list(data.train.texts) == ["My cat purrs", "Cat and dog", ""]
    assert truth(data.train) == [{0: 1.0}, {0: 1.0, 1: 0.5}, {}]
    assert data.train.targets.shape == (3, 3)
    assert data.train.targets.dtype == np.float32
    assert isinstance(data.train.targets, sp.csr_array)
    assert truth(data.test) == [{1: 1.0}]
    assert data.train.filter_pairs is None and data.train.source == tmp_path / "animals" / "trn.json"
    assert len(data.valid) == 1 and data.valid.ids == [data.train.ids[data.valid_rows[0]]]
    assert data.options["format"] == "lf" and data.options["fields"] == "title+content"
    assert data.options["encoding"] == "utf-8" and data.options["seed"] == 0


def test_lf_fields(tmp_path):
    titles = write_lf(tmp_path / "LF-AnimalTitles-3")
    assert list(load(titles).train.texts)[0] == "My cat"
    assert list(load(titles).labels.texts)[0] == "cats"
    both = load(titles, fields="title+content", label_fields="title")
    assert list(both.train.texts)[0] == "My cat purrs" and list(both.labels.texts)[0] == "cats"
    assert (both.options["fields"], both.options["label_fields"]) == ("title+content", "title")
    assert list(load(titles, fields="content").train.texts)[0] == "purrs"
    assert list(load(titles, fields="title+title+content").train.texts)[0] == "My cat My cat purrs"
    with pytest.raises(SettingsError, match="fields must be one of auto, title, content"):
        load(titles, fields="content+title")


def test_raw_files_of_wikipedia(tmp_path):
    folder = tmp_path / "LF-Wikipedia-500K"
    put(folder / "trn.raw.json.gz", jsonl(TRAIN))
    put(folder / "tst.raw.json.gz", jsonl(TEST))
    put(folder / "Yf.txt", "7->Domestic cats\nDogs\n9->Big->Eagles\n")
    data = load(folder)
    assert (list(data.labels.ids), list(data.labels.texts)) == (["0", "1", "2"], ["Domestic cats", "Dogs", "Eagles"])
    assert data.test is not None and data.test.ids == ["t1"]
    assert truth(data.train) == truth(load(write_lf(tmp_path / "same")).train)
    put(folder / "Yf.txt", "")
    refused(folder, "Yf.txt", "has no labels")


def test_lf_gzip_and_missing_keys(tmp_path):
    folder = tmp_path / "d"
    put(folder / "lbl.json.gz", jsonl([{"title": "x"}, {"title": "y"}]))
    put(folder / "trn.json.gz", jsonl([{"title": "a", "target_ind": [1]}, {"title": "b", "content": None}]))
    data = load(folder)
    assert (list(data.labels.ids), list(data.train.ids), data.test) == (["0", "1"], ["0", "1"], None)
    assert truth(data.train) == [{1: 1.0}, {}]


def test_lf_merges_repeated_labels_with_the_best_relevance(tmp_path):
    row = {"title": "a", "target_ind": [2, 0, 2, 2], "target_rel": [0.25, 1, 0.75, 0.5]}
    data = load(write_lf(tmp_path / "d", train=[row, *TRAIN]))
    assert truth(data.train) == [{0: 1.0, 2: 0.75}, {0: 1.0}, {0: 1.0, 1: 0.5}, {}]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"target_ind": [3], "target_rel": [1.0]}, ["label number 3", "0 to 2"]),
        ({"target_ind": [-1], "target_rel": [1.0]}, ["label number -1"]),
        ({"target_ind": [0], "target_rel": [1.5]}, ["relevance 1.5"]),
        ({"target_ind": [0], "target_rel": [0.0]}, ["relevance 0"]),
        ({"target_ind": [0], "target_rel": [float("nan")]}, ["relevance nan"]),
        ({"target_ind": [0, 1], "target_rel": [1.0]}, ["has 2 entries", "has 1"]),
        ({"target_ind": ["0"], "target_rel": [1.0]}, ["target_ind"]),
        ({"target_ind": [10**30], "target_rel": [1.0]}, ["target_ind"]),
        ({"target_ind": 0, "target_rel": 1.0}, ["lists"]),
        ({"uid": "a1", "target_ind": []}, ["'a1'", "line 1"]),
        ({"title": 3, "target_ind": []}, ["'title'"]),
    ],
)
def test_lf_refuses_bad_rows_with_file_and_line(tmp_path, row, parts):
    train = [*TRAIN, {"title": "x", **row}, {"title": "y", "target_ind": [0]}]
    refused(write_lf(tmp_path / "d", train=train), "trn.json, line 4", *parts)


def test_lf_refuses_broken_files(tmp_path):
    folder = write_lf(tmp_path / "d")
    put(folder / "trn.json", jsonl(TRAIN[:1]) + '{"title": \n')
    refused(folder, "trn.json, line 2", "not JSON")
    put(folder / "trn.json", "[" * 100_000)
    refused(folder, "trn.json, line 1", "not JSON")
    put(folder / "trn.json", '["a"]\n')
    refused(folder, "trn.json, line 1", "an array")
    put(folder / "trn.json", jsonl(TRAIN[:1]) + "\n" + jsonl(TRAIN[1:]))
    refused(folder, "trn.json, line 2", "empty line")
    put(folder / "trn.json", "")
    refused(folder, "trn.json", "has no documents")
    put(folder / "trn.json", jsonl([{"title": "a"}]))
    refused(folder, "trn.json", "target_ind")
    put(folder / "trn.json", jsonl([{"name\n": "a"}]))
    refused(folder, "trn.json, line 1", "name")
    write_lf(folder, labels=[LABELS[0], LABELS[1], LABELS[0]])
    refused(folder, "lbl.json, line 3", "label id 'c'", "line 1")
    put(folder / "lbl.json", "\n")
    refused(folder, "has no labels")


def test_gzip_damage_is_one_sentence(tmp_path):
    folder = write_lf(tmp_path / "d")
    (folder / "trn.json").unlink()
    whole = gzip.compress(jsonl(TRAIN * 50).encode())
    for content in (whole[:-10], b"\0 not gzip at all", whole[:20] + b"\0\0\0\0" + whole[24:]):
        (folder / "trn.json.gz").write_bytes(content)
        refused(folder, "trn.json.gz", "damaged or cut short")


def test_half_surrogate_pairs_become_replacement_characters(tmp_path, caplog):
    folder = write_lf(tmp_path / "d")
    put(folder / "tst.json", r'{"title": "a\ud83d\ude00b\ud800c", "target_ind": []}')
    assert load(folder).test.texts[0] == "a\U0001f600b\ufffdc"
    assert "tst.json: 1 halves of surrogate pairs were read as U+FFFD" in caplog.text
    put(
        tmp_path / "a.jsonl",
        r"""{"text": "a", "labels": ["\ud800"]}
{"text": "b", "labels": ["\udc00", "\ud83d\ude00"]}
""",
    )
    assert list(load(tmp_path / "a.jsonl").labels.ids) == ["\ufffd", "\U0001f600"]
    assert "a.jsonl: 2 halves" in caplog.text
    put(
        tmp_path / "a.csv",
        """text,labels
a,"[""\\ud800""]"
b,"[""\\udc00"",""\\ud83d\\ude00""]"
""",
    )
    assert list(load(tmp_path / "a.csv").labels.ids) == ["\ufffd", "\U0001f600"]
    assert "a.csv: 2 halves" in caplog.text
    refused(put(tmp_path / "b.jsonl", r'{"text": "a", "labels": [], "\ud800": 1, "\udc00": 2}'), "line 1", "twice")


def test_encodings_of_half_surrogate_pairs_are_refused(tmp_path):
    path = put(tmp_path / "a.csv", "text,labels\n+2AA-,x\n")
    for encoding in ("utf-7", "unicode_escape", "raw_unicode_escape"):
        with pytest.raises(SettingsError, match="encoding"):
            load(path, encoding=encoding)


# Encodings and line ends


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_encodings(tmp_path, caplog, name):
    content = "text,labels\r\ncaf\u00e9 one,x\r\ntwo,y\r\n"
    for codec, found in (("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("cp1252", "cp1252")):
        caplog.clear()
        data = load(put(tmp_path / codec / name, content.encode(codec)))
        assert list(data.train.texts) == ["caf\u00e9 one", "two"]
        assert list(data.labels.texts) == ["x", "y"]
        assert data.options["encoding"] == found
        warned = [r for r in caplog.records if r.name == "labelspace.data" and r.levelno == logging.WARNING]
        assert [name in r.getMessage() and "Windows-1252" in r.getMessage() for r in warned] == [True] * (
            found == "cp1252"
        )


def test_stated_encoding(tmp_path):
    path = put(tmp_path / "a.csv", "text,labels\ncaf\u00e9,x\n".encode("latin-1"))
    refused(path, "utf-8", encoding="utf-8")
    with pytest.raises(SettingsError, match="nonsense"):
        load(path, encoding="nonsense")
    wide = put(tmp_path / "b.csv", "text,labels\ncaf\u00e9,x\n".encode("utf-16"))
    refused(wide, "UTF-16")
    assert load(wide, encoding="utf-16").train.texts[0] == "caf\u00e9"


def test_only_newlines_end_a_line(tmp_path):
    text = "a\u2028b\x85c\x0bd\x1ee"
    folder = write_lf(tmp_path / "lf", test=None)
    put(folder / "tst.json", json.dumps({"title": text, "target_ind": [0]}, ensure_ascii=False) + "\n")
    assert load(folder).test.texts[0] == text
    for name, content in (("a.csv", f"text,labels\n{text},x\n"), ("a.tsv", f"text\tlabels\n{text}\tx\n")):
        assert list(load(put(tmp_path / name, content)).train.texts) == [text]
    assert read_texts(put(tmp_path / "a.txt", f"{text}\r\n\nlast")) == (["0", "1", "2"], [text, "", "last"])


# Tables


def test_table_file_of_each_kind(tmp_path):
    rows = [('one, "two"\nthree', ["b", "a"]), ("", []), ("four", ["c"])]
    lines = [{"_id": f"r{i}", "text": text, "labels": labels} for i, (text, labels) in enumerate(rows)]
    path = put(tmp_path / "a.csv", 'id,text,labels\nr0,"one, ""two""\nthree",b;a\nr1,"",\nr2,four,c\n')
    for data in (load(path), load(put(tmp_path / "a.jsonl.gz", jsonl(lines)))):
        assert (data.name, data.test) == ("a", None)
        assert list(data.train.ids) == ["r0", "r1", "r2"]
        assert list(data.train.texts) == [text for text, _ in rows]
        assert list(data.labels.ids) == list(data.labels.texts) == ["a", "b", "c"]
        assert truth(data.train) == [{0: 1.0, 1: 1.0}, {}, {2: 1.0}]
        assert len(data.valid_rows) == 1
    assert load(path).options["separator"] == ";"
    assert load(tmp_path / "a.jsonl.gz").options["separator"] is None


def test_csv_line_numbers_count_lines_not_rows(tmp_path):
    refused(put(tmp_path / "a.csv", 'text,labels\n"a\nb",x\nc,x,y\n'), "a.csv, line 4", "3 fields", "2 (")
    refused(put(tmp_path / "b.csv", 'text,labels\na,x\n"never closed,x\n'), "b.csv, line 3", "CSV")
    refused(put(tmp_path / "c.csv", 'id,text,labels\nq,"a\nb",x\nq,c,x\n'), "c.csv, line 4", "'q'", "line 2")


def test_tsv_quotes(tmp_path):
    path = put(tmp_path / "a.tsv", 'text\tlabels\n"Hamlet" and "Lear"\tx\n"a ""b"" c"\ty\n5" disk\tz|x\n')
    data = load(path)
    assert list(data.train.texts) == ['"Hamlet" and "Lear"', 'a "b" c', '5" disk']
    assert truth(data.train) == [{0: 1.0}, {1: 1.0}, {0: 1.0, 2: 1.0}]


def test_csv_with_semicolons_and_other_columns(tmp_path):
    path = put(tmp_path / "a.csv", "name;body;tags\nx;first;p|q\ny;second;q\n")
    refused(path, "'text'", "'name', 'body', 'tags'", "text_column")
    refused(path, "'labels'", "'name', 'body', 'tags'", "label_column", text_column="body")
    data = load(path, text_column="body", label_column="tags")
    assert list(data.train.texts) == ["first", "second"] and list(data.labels.ids) == ["p", "q"]
    refused(put(tmp_path / "b.jsonl", '{"body": "x"}\n'), "b.jsonl, line 1", "'body'", "text_column")


def test_long_csv_field(tmp_path):
    before = csv.field_size_limit()
    assert len(load(put(tmp_path / "a.csv", f"text,labels\n{'x' * 200_000},a\n")).train.texts[0]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("column", "cells", "separator", "expected"),
    [
        ("labels", ["a;b, c", "d|e;a"], ";", [["a", "b, c"], ["a", "d|e"]]),
        ("labels", ["a|b, c", "R&amp;D|a", "x|y"], "|", [["a", "b, c"], ["R&amp;D", "a"], ["x", "y"]]),
        ("labels", ["a, b", "c"], ",", [["a", "b"], ["c"]]),
        ("labels", ["12 45", "7"], " ", [["12", "45"], ["7"]]),
        ("labels", ["http://a/1 http://a/2", ""], " ", [["http://a/1", "http://a/2"], []]),
        ("labels", ["machine learning", "x"], "", [["machine learning"], ["x"]]),
        ("labels", ["['a', 'b;c']", "[]", "['d']"], "[]", [["a", "b;c"], [], ["d"]]),
        ("labels", ['["a", "b"]', "[1]"], "[]", [["a", "b"], ["1"]]),
        ("label", ["Smith, John", "b"], "", [["Smith, John"], ["b"]]),
        ("label", ["a;b", "b"], ";", [["a", "b"], ["b"]]),
    ],
)
def test_separator_is_found(tmp_path, column, cells, separator, expected):
    path = tmp_path / "a.tsv"
    put(path, f"text\t{column}\n" + "".join(f"t{i}\t{cell}\n" for i, cell in enumerate(cells)))
    data = load(path)
    assert data.options["separator"] == separator
    assert [sorted(data.labels.texts[i] for i in row) for row in truth(data.train)] == expected


def test_separator_stated(tmp_path):
    path = put(tmp_path / "a.tsv", "text\tlabels\nt\ta;b / c;d\n")
    assert list(load(path, separator=" / ").labels.ids) == ["a;b", "c;d"]
    assert list(load(path, separator="").labels.ids) == ["a;b / c;d"]
    assert list(load(path).labels.ids) == ["a", "b / c", "d"]
    path = put(tmp_path / "a.jsonl", '{"text": "t", "labels": "a|b"}\n{"text": "u", "labels": 7}\n')
    assert list(load(path).labels.ids) == ["7", "a|b"]
    assert list(load(path, separator="|").labels.ids) == ["7", "a", "b"]


def test_known_labels_decide_the_separator(tmp_path):
    put(tmp_path / "train.csv", 'text,labels\nt,"Smith, John; Doe, Jane"\nu,"Doe, Jane"\n')
    put(tmp_path / "labels.txt", "Smith, John\nDoe, Jane\n")
    data = load(tmp_path)
    assert data.options["separator"] == ";" and truth(data.train) == [{0: 1.0, 1: 1.0}, {1: 1.0}]
    put(tmp_path / "train.csv", 'text,labels\nt,"Smith, John"\nu,"Doe, Jane"\n')
    assert truth(load(tmp_path).train) == [{0: 1.0}, {1: 1.0}]


def test_table_folder_with_labels_file(tmp_path):
    put(tmp_path / "labels.csv", "uri,name\nu:1,cats\nu:2,dogs\nu:3,birds\nu:4,birds\n")
    put(tmp_path / "train.jsonl", jsonl([{"text": "a", "labels": ["u:1", "dogs"]}, {"text": "b", "labels": None}]))
    put(tmp_path / "dev.tsv", "text\tlabels\nc\tcats|u:3\n")
    put(tmp_path / "test.csv.gz", "text,labels\nd,u:2\n")
    data = load(tmp_path)
    assert list(data.labels.ids) == ["u:1", "u:2", "u:3", "u:4"]
    assert list(data.labels.texts) == ["cats", "dogs", "birds", "birds"]
    assert [truth(c) for c in (data.train, data.valid, data.test)] == [[{0: 1, 1: 1}, {}], [{0: 1, 2: 1}], [{1: 1}]]
    assert len(data.valid_rows) == 0 and list(data.fit_rows) == [0, 1]

    put(tmp_path / "test.csv.gz", "text,labels\nd,u:2\ne,dgos\n")
    refused(tmp_path, "test.csv.gz, line 3", "'dgos'", "labels.csv", "'u:2' (dogs)")
    put(tmp_path / "test.csv.gz", "text,labels\nd,birds\n")
    refused(tmp_path, "test.csv.gz, line 2", "'birds'", "lines 4 and 5", "ids")
    put(tmp_path / "labels.csv", "uri,name\nu:1,cats\nu:1,dogs\n")
    refused(tmp_path, "labels.csv, line 3", "'u:1'", "line 2")
    put(tmp_path / "labels.csv", "code,word\nu:1,cats\n")
    refused(tmp_path, "labels.csv, line 2", "'code', 'word'")


def test_bare_label_names_take_row_numbers_too(tmp_path):
    put(tmp_path / "labels.txt", "cats\ndogs\n")
    put(tmp_path / "train.jsonl", jsonl([{"text": "a", "label": 1}, {"text": "b", "label": "cats"}]))
    assert truth(load(tmp_path).train) == [{1: 1.0}, {0: 1.0}]
    put(tmp_path / "train.jsonl", jsonl([{"text": "a", "label": 2}]))
    refused(tmp_path, "line 1", "'2'")
    put(tmp_path / "labels.txt", "10\n1\n0\n")
    put(tmp_path / "train.jsonl", jsonl([{"text": "a", "label": 1}]))
    assert truth(load(tmp_path).train) == [{1: 1.0}]


def test_labels_that_only_test_has_are_counted(tmp_path, caplog):
    put(tmp_path / "train.csv", "text,labels\na,z\nb,m\n")
    put(tmp_path / "test.csv", "text,labels\nc,new\nd,m;also\n")
    data = load(tmp_path)
    assert list(data.labels.ids) == ["m", "z", "also", "new"]
    assert truth(data.test) == [{3: 1.0}, {0: 1.0, 2: 1.0}]
    assert any("2 labels occur in test but not in train" in r.getMessage() for r in caplog.records)


def test_table_refusals(tmp_path):
    refused(put(tmp_path / "a.csv", ""), "has no documents")
    refused(put(tmp_path / "b.csv", "text,labels\n"), "has no documents")
    refused(put(tmp_path / "c.csv", "text,labels\na,\n"), "no document has a label")
    refused(put(tmp_path / "d.jsonl", '{"text": "a", "labels": [1.5]}\n'), "d.jsonl, line 1", "1.5")
    refused(put(tmp_path / "e.jsonl", '{"text": ["a"], "labels": []}\n'), "e.jsonl, line 1", "'text'")
    refused(put(tmp_path / "f.jsonl", '{"text": "a", "labels": [], "id": [1]}\n'), "f.jsonl, line 1", "'id'")
    refused(put(tmp_path / "g.csv", 'text,labels\na,"[a, b"\n'), "expected a list", "g.csv, line 2", separator="[]")
    put(tmp_path / "two" / "train.csv", "text,labels\na,x\n")
    put(tmp_path / "two" / "train.jsonl", "")
    refused(tmp_path / "two", "train.csv and train.jsonl")


def test_nearest_labels_are_found_fast_among_a_million(tmp_path, monkeypatch):
    """Few of them are compared letter by letter."""
    compared: list[int] = []
    real = difflib.get_close_matches

    def counted(word, names, **given):
        compared.append(len(names))
        return real(word, names, **given)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    put(tmp_path / "labels.txt", "".join(f"label number {i:07d}\n" for i in range(1_000_000)))
    put(tmp_path / "train.jsonl", jsonl([{"text": "a", "labels": ["label number 0654321x"]}]))
    refused(tmp_path, "label number 0654321'")
    assert 0 < sum(compared) < 10_000


# XC raw text


def write_xc(folder: Path, raw: str = "") -> Path:
    put(folder / raw / "trn_X.txt", "my cat\n\ncat\u2028dog\n")
    put(folder / raw / "tst_X.txt", "a dog")
    put(folder / raw / "Y.txt", "cats\ndogs\nempty\n")
    sp.save_npz(folder / "Y.trn.npz", sp.csr_matrix(np.array([[1, 0, 0], [0, 0, 0], [1, 0.5, 0]])))
    sp.save_npz(folder / "Y.tst.npz", sp.coo_matrix(np.array([[0, 1, 0]], dtype=np.int64)))
    return folder


@pytest.mark.parametrize("raw", ["", "raw"])
def test_xc_npz(tmp_path, raw):
    data = load(write_xc(tmp_path / "set", raw))
    assert data.options["format"] == "xc"
    assert list(data.train.texts) == ["my cat", "", "cat\u2028dog"] and list(data.train.ids) == ["0", "1", "2"]
    assert list(data.labels.texts) == ["cats", "dogs", "empty"]
    assert truth(data.train) == [{0: 1.0}, {}, {0: 1.0, 1: 0.5}] and truth(data.test) == [{1: 1.0}]
    assert data.test.targets.dtype == np.float32


def test_xc_sparse_text(tmp_path):
    folder = write_xc(tmp_path / "set")
    for name in ("Y.trn.npz", "Y.tst.npz"):
        (folder / name).unlink()
    put(folder / "tst_X_Y.txt", "1 3\n\n")
    put(folder / "trn_X_Y.txt", "3 3\n0:1.0\n\n1:0.5 0:1\n")
    data = load(folder)
    assert truth(data.train) == [{0: 1.0}, {}, {0: 1.0, 1: 0.5}] and truth(data.test) == [{}]
    put(folder / "trn_X_Y.txt", "3 3\n0:1.0\n")
    assert truth(load(folder).train) == [{0: 1.0}, {}, {}]
    for content, line, part in (
        ("3 3\n0:1\n3:1\n", 3, "label number 3"),
        ("3 3\n0:1\n\n\n0:1\n", 5, "3 rows"),
        ("3 3\n0:1:2 3\n", 2, "0:1:2 3"),
        ("3 3\n0:x\n", 2, "0:x"),
        ("3 3\n0:\xa0\n", 2, "0:"),
        ("3 3\n0:1e\n", 2, "0:1e"),
        ("3 3\n0:2\n", 2, "relevance 2"),
        ("0:1\n", 1, "header"),
        ("4 3\n", 1, "trn_X.txt"),
        ("3 4\n", 1, "Y.txt"),
        ("", 1, "header"),
    ):
        put(folder / "trn_X_Y.txt", content)
        refused(folder, f"trn_X_Y.txt, line {line}", part)


def test_xc_refusals(tmp_path):
    folder = write_xc(tmp_path / "set")
    put(folder / "trn_X.txt", "one\ntwo\n")
    refused(folder, "Y.trn.npz", "3 rows", "trn_X.txt", "2 lines")
    write_xc(folder)
    put(folder / "Y.txt", "cats\n")
    refused(folder, "Y.trn.npz", "3 columns", "Y.txt", "1 lines")
    write_xc(folder)
    sp.save_npz(folder / "Y.trn.npz", sp.csr_matrix(np.array([[1, 0, 0], [0, -2, 0], [1, 0.5, 0]])))
    refused(folder, "Y.trn.npz", "relevance -2", "row 1")
    whole = (folder / "Y.trn.npz").read_bytes()
    for content in (whole[:100], b"", b"PK\x03\x04" + b"x" * 50, whole[:-30]):
        put(folder / "Y.trn.npz", content)
        refused(folder, "Y.trn.npz", "SciPy")
    np.savez(folder / "Y.trn.npz", a=np.array([{"pickled": 1}], dtype=object))
    refused(folder, "Y.trn.npz", "SciPy")
    hostile = {"data": np.ones(1), "indices": np.array([99]), "indptr": np.array([0, 1, 1, 1])}
    np.savez(folder / "Y.trn.npz", format=np.array(b"csr"), shape=np.array([3, 3]), **hostile)
    refused(folder, "Y.trn.npz", "SciPy")
    (folder / "Y.trn.npz").unlink()
    refused(folder, "trn_X.txt", "Y.trn.npz")


# Filter pairs


@pytest.mark.parametrize(
    ("train_name", "test_name"),
    [
        ("filter_labels_train.txt", "filter_labels_test.txt"),
        ("trn_filter_labels.txt", "tst_filter_labels.txt"),
        ("raw/filter_labels_train.txt", "raw/filter_labels_text.txt"),
    ],
)
def test_filter_files(tmp_path, train_name, test_name):
    folder = write_lf(tmp_path / "d")
    put(folder / train_name, "0 2\r\n2 1\n")
    put(folder / test_name, "")
    data = load(folder)
    assert data.train.filter_pairs.tolist() == [[0, 2], [2, 1]] and data.train.filter_pairs.dtype == np.int64
    assert data.train.filter_source == folder / train_name
    assert data.test.filter_pairs.shape == (0, 2) and data.test.filter_source == folder / test_name
    held = int(data.valid_rows[0])
    assert data.valid.filter_pairs.tolist() == [[0, label] for row, label in [(0, 2), (2, 1)] if row == held]


def test_filter_refusals(tmp_path):
    path = tmp_path / "pairs.txt"
    for content, line in (("0 0\n3 0\n", 2), ("\n0 5\n", 2), ("0 -1\n", 1), ("0\n", 1), ("0 1 2\n", 1), ("a b\n", 1)):
        put(path, content)
        with pytest.raises(DataError, match=f"pairs.txt, line {line}: "):
            read_pairs(path, (3, 5))
    folder = write_lf(tmp_path / "d")
    put(folder / "tst_filter_labels.txt", "1 0\n")
    refused(folder, "tst_filter_labels.txt, line 1", "1 0")


def test_filter_files_with_tables_and_raw_text(tmp_path):
    put(write_xc(tmp_path / "xc", "raw") / "raw" / "filter_labels_test.txt", "0 2\n")
    assert load(tmp_path / "xc").test.filter_pairs.tolist() == [[0, 2]]
    put(tmp_path / "t" / "train.csv", "text,labels\na,x\n")
    put(tmp_path / "t" / "filter_labels_train.txt", "0 0\n")
    assert load(tmp_path / "t").train.filter_pairs.tolist() == [[0, 0]]


# What is there


def test_missing_and_unknown_paths(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such file or folder")
    put(tmp_path / "d" / "something.xml", "")
    refused(tmp_path / "d", "trn.json", "trn_X.txt", "train.csv", "something.xml")
    refused(tmp_path / "d" / "something.xml", "no table")
    for format in ("lf", "xc", "table"):
        refused(tmp_path / "d", "needs", format=format)
    with pytest.raises(SettingsError, match="lf, .*table"):
        load(tmp_path / "d", format="parquet")


def test_format_can_be_forced(tmp_path):
    folder = write_lf(tmp_path / "d")
    put(folder / "train.csv", "text,labels\na,x\n")
    assert load(folder).options["format"] == "lf"
    assert load(folder, format="table").labels.ids == ["x"]


# Validation


def test_hold_out_size_and_seed():
    texts = [f"text number {i}" for i in range(1000)]
    rows = hold_out(texts, 0.1, 10_000, seed=1)
    assert len(rows) == 100 and rows.dtype == np.int64 and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, hold_out(texts, 0.1, 10_000, seed=1))
    assert not np.array_equal(rows, hold_out(texts, 0.1, 10_000, seed=2))
    assert len(hold_out(texts, 0.1, 7, seed=1)) == 7
    assert len(hold_out(texts, 0.0, 7, seed=1)) == 0
    for n, expected in ((0, 0), (1, 0), (2, 1), (3, 1), (19, 1), (20, 2)):
        assert len(hold_out(texts[:n], 0.1, 10_000, seed=0)) == expected
    for fraction in (-0.1, 1.0):
        with pytest.raises(SettingsError):
            hold_out(texts, fraction, 10, seed=0)


def normalised(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text).split()).casefold()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("aB!_ \n\u00e9", max_size=4), max_size=40),
    st.integers(0, 5),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_equal_texts_stay_on_one_side(texts, seed, fraction):
    # A long common beginning, so that whole texts must be told apart.
    texts = texts + ["long " * 80 + text for text in texts[::2]]
    rows = hold_out(texts, fraction, 1000, seed)
    held = {normalised(texts[row]) for row in rows}
    rest = {normalised(texts[row]) for row in set(range(len(texts))) - set(rows.tolist())}
    assert not held & rest
    if held or rest:
        assert rest
        assert bool(held) == (len(held | rest) > 1)


def test_hold_out_does_not_depend_on_string_hashes():
    code = (
        "from labelspace.data import hold_out; print(hold_out([f'{i % 50} a' for i in range(300)], .2, 99, 3).tolist())"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        outputs.add(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        )
    assert len(outputs) == 1 and len(json.loads(outputs.pop())) == 60


def test_valid_is_a_subset_of_train(tmp_path):
    rows = [{"text": f"t{i // 2}", "labels": [str(i % 7)]} for i in range(200)]
    data = load(put(tmp_path / "a.jsonl", jsonl(rows)), seed=4, valid_fraction=0.2)
    assert len(data.valid) == 40 and len(data.fit_rows) == 160 and len(data.train) == 200
    assert (data.train.targets[data.valid_rows] != data.valid.targets).nnz == 0
    assert data.options["valid_fraction"] == 0.2 and data.options["seed"] == 4
    assert not {data.train.texts[i] for i in data.fit_rows} & set(data.valid.texts)
    one = load(put(tmp_path / "b.csv", "text,labels\na,x\n"))
    assert (len(one.train), len(one.valid), one.valid.targets.shape) == (1, 0, (0, 1))


# Fingerprint


def test_fingerprint_follows_content_only(tmp_path):
    base = fingerprint(load(write_lf(tmp_path / "a")))
    assert len(base) == 64
    assert fingerprint(load(write_lf(tmp_path / "b", test=None), seed=5)) == base
    changed = [{**TRAIN[0], "uid": "other"}, {**TRAIN[0], "title": "other"}, {**TRAIN[0], "target_rel": [0.5]}]
    changed += [{**TRAIN[0], "target_ind": [2]}]
    prints = {fingerprint(load(write_lf(tmp_path / "c", train=[row, *TRAIN[1:]]))) for row in changed}
    prints.add(fingerprint(load(write_lf(tmp_path / "c", labels=[*LABELS[:2], {"uid": "e", "title": "x"}]))))
    assert len(prints | {base}) == 6


def test_fingerprint_sees_where_texts_end(tmp_path):
    one = load(put(tmp_path / "a.csv", "text,labels\nab,x\nc,x\n"))
    two = load(put(tmp_path / "b.csv", "text,labels\na,x\nbc,x\n"))
    assert fingerprint(one) != fingerprint(two)


# Texts to predict


def test_read_texts(tmp_path, monkeypatch):
    assert read_texts(put(tmp_path / "a.txt.gz", "one\r\ntwo")) == (["0", "1"], ["one", "two"])
    assert read_texts(put(tmp_path / "a.csv", "uid,text\nx,one\n,two\n")) == (["x", "1"], ["one", "two"])
    assert read_texts(put(tmp_path / "a.tsv", "body\none\n"), text_column="body") == (["0"], ["one"])
    assert read_texts(put(tmp_path / "a.jsonl", '{"id": 7, "text": "one"}\n')) == (["7"], ["one"])
    lf = put(tmp_path / "tst.json.gz", jsonl(TEST))
    assert read_texts(lf) == (["t1"], ["A dog barks"])
    assert read_texts(lf, fields="title") == (["t1"], ["A dog"])
    assert read_texts(put(tmp_path / "LF-Titles" / "tst.json", jsonl(TEST))) == (["t1"], ["A dog"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("caf\u00e9\n\nlast".encode("latin-1"))))
    assert read_texts("-") == (["0", "1", "2"], ["caf\u00e9", "", "last"])


def test_read_texts_refusals(tmp_path):
    for path, part in (
        (tmp_path / "none.txt", "no such file"),
        (tmp_path, "folder"),
        (put(tmp_path / "a.pdf", "x"), ".txt"),
        (put(tmp_path / "a.txt", ""), "no texts"),
        (put(tmp_path / "a.csv", "body\nx\n"), "'body'"),
        (put(tmp_path / "a.jsonl", '{"body": "x"}\n'), "'body'"),
    ):
        with pytest.raises(DataError, match=part):
            read_texts(path)


# Malformed bytes end in a Dataset or in our error, nothing else


def attempt(path: Path) -> None:
    try:
        assert isinstance(load(path), Dataset)
    except LabelspaceError as error:
        assert "\n" not in str(error)


def damage(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.randrange(4)):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            data[at : at + draw.randrange(1, 9)] = b""
        elif kind == 1:
            data[at:at] = draw.choice(
                [b"\n", b"\r", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b",", b"[", b"-", b"9" * 30]
            )
        elif kind == 2 and at < len(data):
            data[at] = draw.randrange(256)
        else:
            del data[at:]
    return bytes(data)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["trn", "tst", "lbl"]), st.booleans())
def test_malformed_lf(draw, which, zipped):
    with tempfile.TemporaryDirectory() as name:
        folder = write_lf(Path(name, "d"))
        path = folder / f"{which}.json"
        content = path.read_bytes()
        path.unlink()
        if zipped:
            (folder / f"{which}.json.gz").write_bytes(damage(gzip.compress(content), draw))
        else:
            path.write_bytes(damage(content, draw))
        attempt(folder)


TABLES = {
    "csv": 'id,text,labels\n1,"a, ""b""\nc",x;y\n2,d,\n3,caf\u00e9,"[\'x\']"\n',
    "tsv": 'id\ttext\tlabels\n1\ta b\tx|y\n2\t\t\n3\t"caf\u00e9"\tz\n',
    "jsonl": '{"id": 1, "text": "a", "labels": ["x", 2]}\n{"text": "\\ud83d", "labels": null}\n{"text": ""}\n',
}


@settings(max_examples=150, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(TABLES)),
    st.sampled_from(["train", "labels"]),
)
def test_malformed_tables(draw, kind, which):
    with tempfile.TemporaryDirectory() as name:
        contents = {"train": TABLES[kind].encode(), "labels": b"id,name\nx,first\ny,second\nz,third\n2,2\n3,3\n"}
        suffixes = {"train": kind, "labels": "csv"}
        contents[which] = damage(contents[which], draw)
        for stem, content in contents.items():
            Path(name, f"{stem}.{suffixes[stem]}").write_bytes(content)
        attempt(Path(name))
        attempt(Path(name, f"train.{kind}"))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.jsonl.gz"]))
def test_arbitrary_bytes(content, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        attempt(path)
        path.write_bytes(b"text,labels\n" + content)
        attempt(path)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["trn_X.txt", "Y.txt", "Y.trn.npz"]))
def test_malformed_raw_text(draw, which):
    with tempfile.TemporaryDirectory() as name:
        folder = write_xc(Path(name))
        (folder / which).write_bytes(damage((folder / which).read_bytes(), draw))
        attempt(folder)
