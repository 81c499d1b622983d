"""Writers, and files that are whole or absent."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest

from labelspace.base.files import atomic_file, atomic_folder
from labelspace.data.writers import write_jsonl, write_table, write_tsv
from labelspace.errors import DataError, LabelspaceError
from labelspace.types import Predictions

NAMED = Predictions(
    indices=np.array([[2, 0], [1, -1], [-1, -1]]),
    scores=np.array([[0.75, 0.125], [-0.5, -np.inf], [-np.inf, -np.inf]], dtype=np.float32),
    label_ids=["c", "d", "e"],
    label_texts=["cats", "big\tdogs", "\u00e9lan"],
)
IDS = ["doc 1", "doc 2", "doc 3"]


def test_write_table():
    stream = io.StringIO()
    write_table(NAMED, IDS, stream)
    assert stream.getvalue().splitlines() == [
        "doc 1",
        "    0.7500  \u00e9lan  [e]",
        "    0.1250  cats  [c]",
        "doc 2",
        "   -0.5000  big dogs  [d]",
        "doc 3",
    ]


def test_write_table_without_names():
    stream = io.StringIO()
    write_table(Predictions(NAMED.indices, NAMED.scores), IDS, stream)
    assert stream.getvalue().splitlines()[1] == "    0.7500  2"


def test_write_jsonl():
    stream = io.StringIO()
    write_jsonl(NAMED, IDS, ["x\ny", "", "z"], stream)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["id"] for record in records] == IDS
    assert [record["text"] for record in records] == ["x\ny", "", "z"]
    assert records[0]["labels"][0] == {"id": "e", "text": "\u00e9lan", "score": 0.75}
    assert [len(record["labels"]) for record in records] == [2, 1, 0]
    assert "\u00e9lan" in stream.getvalue()
    stream = io.StringIO()
    write_jsonl(NAMED, IDS, None, stream)
    assert set(json.loads(stream.getvalue().splitlines()[0])) == {"id", "labels"}


def test_write_tsv():
    stream = io.StringIO()
    write_tsv(NAMED, IDS, stream)
    rows = [line.split("\t") for line in stream.getvalue().splitlines()]
    assert rows == [
        ["id", "rank", "label_id", "label", "score"],
        ["doc 1", "1", "e", "\u00e9lan", "0.75"],
        ["doc 1", "2", "c", "cats", "0.125"],
        ["doc 2", "1", "d", "big dogs", "-0.5"],
    ]


def test_no_text_stops_a_writer():
    odd = Predictions(np.array([[0]]), np.array([[0.5]]), ["\u00e9"], ["\ud83d\ude00 \ud800"])
    for encoding, expected in (("utf-8", "\U0001f600 \ufffd"), ("ascii", "? ?")):
        for write in (write_table, write_tsv):
            stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
            write(odd, ["\u00e9"], stream)
            stream.seek(0)
            assert expected in stream.read()
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        write_jsonl(odd, ["\u00e9"], None, stream)
        stream.seek(0)
        record = json.loads(stream.read())
        assert record["id"] == record["labels"][0]["id"] == "\u00e9"
        assert record["labels"][0]["text"] == "\U0001f600 \ud800"


def test_writers_refuse_rows_that_do_not_match():
    for write in (
        lambda: write_table(NAMED, IDS[:2], io.StringIO()),
        lambda: write_tsv(NAMED, IDS[:2], io.StringIO()),
        lambda: write_jsonl(NAMED, IDS, ["x"], io.StringIO()),
    ):
        with pytest.raises(DataError, match="3 rows"):
            write()


# Whole or absent


def test_atomic_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "one"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    with pytest.raises(LabelspaceError, match="is a folder"), atomic_file(tmp_path):
        pass


def test_atomic_folder(tmp_path):
    path = tmp_path / "new" / "model"
    for content in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / content).write_text(content)
        assert [entry.name for entry in (path / "sub").iterdir()] == [content]
    with pytest.raises(KeyError), atomic_folder(path) as temporary:
        (temporary / "half").write_text("")
        raise KeyError
    assert [entry.name for entry in path.iterdir()] == ["sub"]
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]


def test_atomic_folder_keeps_the_old_one_when_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "old").write_text("")
    rename = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (_ for _ in ()).throw(OSError("no")) if "writing" in str(a) else rename(a, b)
    )
    with pytest.raises(OSError, match="no"), atomic_folder(path) as temporary:
        (temporary / "new").write_text("")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"] and (path / "old").exists()


def test_atomic_folder_refuses_a_file(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(LabelspaceError, match="file of that name"), atomic_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model").read_text() == "mine"
