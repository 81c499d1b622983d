"""Parquet: the same tables in columns, label names in the schema, shards, and damage."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from test_formats import jsonl, put, refused, truth

from labelspace.data.formats.parquet import BATCH
from labelspace.data.loading import load
from labelspace.data.texts import read_texts
from labelspace.errors import DataError, MissingExtraError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STRINGS = pa.list_(pa.string())


def write(path: Path, features: dict | None = None, types: dict | None = None, **columns) -> Path:
    """Write columns, perhaps with types and with Hugging Face's features in the schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: pa.array(values, type=(types or {}).get(name)) for name, values in columns.items()})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


def class_label(*names: str) -> dict:
    return {"names": list(names), "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "kind", [STRINGS, pa.large_list(pa.large_string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))]
)
def test_parquet_equals_jsonl(tmp_path, kind):
    rows = [
        {"id": "r0", "text": "one", "labels": ["b", "a"], "relevances": [0.5, 1.0]},
        {"id": "r1", "text": "", "labels": [], "relevances": []},
        {"id": "r2", "text": None, "labels": None, "relevances": None},
        {
            "id": None,
            "text": "caf\u00e9\u2028\nx",
            "labels": ["c", "", "a", "a"],
            "relevances": [0.25, None, 0.5, 0.75],
        },
        {"id": "r4", "text": "five", "labels": ["c"], "relevances": None},
    ]
    path = write(
        tmp_path / "a.parquet", types={"labels": kind}, **{name: [row[name] for row in rows] for name in rows[0]}
    )
    one, two = load(path), load(put(tmp_path / "a.jsonl", jsonl(rows)))
    assert list(one.train.ids) == list(two.train.ids) == ["r0", "r1", "r2", "3", "r4"]
    assert list(one.train.texts) == list(two.train.texts)
    assert list(one.labels.ids) == list(two.labels.ids) == ["a", "b", "c"]
    assert truth(one.train) == truth(two.train) == [{0: 1, 1: 0.5}, {}, {}, {0: 0.75, 2: 0.25}, {2: 1}]
    assert read_texts(path) == (list(two.train.ids), list(two.train.texts))
    assert one.name == "a" and one.train.source == path and one.options["separator"] is None


def test_whole_numbers_and_single_labels(tmp_path):
    path = write(tmp_path / "a.parquet", text=["a", "b"], labels=[[3, 1], [1]])
    assert list(load(path).labels.ids) == ["1", "3"] and truth(load(path).train) == [{0: 1, 1: 1}, {0: 1}]
    path = write(tmp_path / "b.parquet", text=["a", "b"], label=[3, None], relevances=[0.5, None])
    assert list(load(path).labels.ids) == ["3"] and truth(load(path).train) == [{0: 0.5}, {}]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_string_columns_are_split(tmp_path, kind):
    path = write(tmp_path / "a.parquet", types={"labels": kind}, text=["a", "b", "c"], labels=[None, "x;y", "y"])
    assert load(path).options["separator"] == ";" and truth(load(path).train) == [{}, {0: 1, 1: 1}, {1: 1}]
    assert list(load(path, separator="").labels.ids) == ["x;y", "y"]
    path = write(tmp_path / "b.parquet", text=["a", "b"], labels=["x;y", "y"], relevances=[[0.5, 1.0], None])
    assert truth(load(path).train) == truth(load(path, separator=";").train) == [{0: 0.5, 1: 1}, {1: 1}]
    path = write(tmp_path / "c.parquet", text=["a", "b"], labels=["x;y", "y"], relevances=["0.5;1", ""])
    assert truth(load(path).train) == truth(load(path, separator=";").train) == [{0: 0.5, 1: 1}, {1: 1}]
    path = write(tmp_path / "d.parquet", text=["a", "b"], label=["x, y", "z"])
    assert list(load(path).labels.ids) == ["x, y", "z"]


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": class_label("zebra", "ape", "unused"), "_type": "Sequence"},
        {"feature": class_label("zebra", "ape", "unused"), "length": -1, "_type": "List"},
        [class_label("zebra", "ape", "unused")],
    ],
)
def test_class_labels_become_names(tmp_path, feature):
    path = write(tmp_path / "a.parquet", {"labels": feature}, text=["a", "b", "c"], labels=[[1, 0], [1, -1], []])
    data = load(path)
    assert list(data.labels.ids) == list(data.labels.texts) == ["zebra", "ape", "unused"]
    assert truth(data.train) == [{0: 1, 1: 1}, {1: 1}, {}]


def test_a_class_label_may_be_missing(tmp_path):
    path = write(tmp_path / "a.parquet", {"label": class_label("z", "a")}, text=["a", "b"], label=[1, -1])
    assert list(load(path).labels.ids) == ["z", "a"] and truth(load(path).train) == [{1: 1}, {}]


def test_class_labels_of_a_folder(tmp_path):
    feature = {"label": class_label("z", "a")}
    write(tmp_path / "train.parquet", feature, text=["a"], label=[1])
    put(tmp_path / "test.jsonl", jsonl([{"text": "b", "labels": ["z", "a"]}, {"text": "c", "label": 1}]))
    assert truth(load(tmp_path).test) == [{0: 1, 1: 1}, {1: 1}]
    put(tmp_path / "test.jsonl", jsonl([{"text": "b", "labels": ["new"]}]))
    refused(tmp_path, "test.jsonl, line 1", "'new'", "train.parquet", "'z'")
    (tmp_path / "test.jsonl").unlink()
    write(tmp_path / "test.parquet", {"label": class_label("a", "z")}, text=["a"], label=[1])
    refused(tmp_path, "test.parquet", "differ", "train.parquet")
    (tmp_path / "test.parquet").unlink()
    put(tmp_path / "labels.csv", "id,name\nA,a\nB,b\nZ,z\n")
    data = load(tmp_path)
    assert list(data.labels.texts) == ["a", "b", "z"] and truth(data.train) == [{0: 1}]


def test_labels_file_and_title(tmp_path):
    write(tmp_path / "train.parquet", title=["a", "b"], content=["x", None], labels=[["u"], ["down"]])
    write(tmp_path / "labels.parquet", id=["u", "d", "e"], title=["up", "down", "down"], content=["", "", "there"])
    data = load(tmp_path)
    assert list(data.train.texts) == ["a x", "b"] and list(data.labels.texts) == ["up", "down", "down there"]
    assert truth(data.train) == [{0: 1}, {1: 1}]
    write(tmp_path / "labels.parquet", id=["u", "d", "u"], name=["up", "down", "down"])
    refused(tmp_path, "labels.parquet, row 2", "'u'", "row 0")
    write(tmp_path / "labels.parquet", id=["u", "d", "e"], name=["up", "down", "down"])
    refused(tmp_path, "train.parquet, row 1", "'down'", "rows 1 and 2")


def test_rows_are_streamed_across_batches(tmp_path):
    count = 2 * BATCH + 5
    path = write(
        tmp_path / "a.parquet", text=[f"t{i}" for i in range(count)], labels=[[f"l{i % 7}"] for i in range(count)]
    )
    data = load(path)
    assert list(data.train.texts) == [f"t{i}" for i in range(count)]
    assert list(data.train.targets.indices) == [i % 7 for i in range(count)]


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"labels": [["x"], ["y"], [None]]}, ["row 2: ", "None"]),
        (
            {"labels": [["x"], ["y"], ["x"]], "relevances": [[1.0], [0.5, 1.0], None]},
            ["row 1: ", "1 labels", "2 relevances"],
        ),
        ({"labels": [["x"], ["y"], ["x"]], "relevances": [[1.0], [float("nan")], None]}, ["row 1: ", "nan"]),
        ({"labels": [[1.0], [2.0], []]}, ["row 0: ", "1.0"]),
        ({"label": [1.0, None, 2.0]}, ["row 0: ", "1.0"]),
        ({"label": [True, False, True]}, ["row 0: ", "True"]),
        ({"labels": [[{"a": 1}], [], []]}, ["row 0: ", "{'a': 1}"]),
        ({"labels": ["[x", "", ""]}, []),
        ({"labels": [["x"], [], []], "id": ["p", "q", "p"]}, ["row 2: ", "'p'", "row 0 already"]),
        ({"labels": [["x"], [], []], "id": [1.0, 2.0, 3.0]}, ["row 0: ", "'id'"]),
        ({"labels": [["x"], [], []], "text": [b"\xff", b"", b""]}, ["row 0: ", "'text'"]),
        ({"tags": [["x"], [], []]}, ["no label column", "'text', 'tags'"]),
        ({"labels": [[], [], []]}, ["no document has a label"]),
    ],
)
def test_refusals_name_file_and_row(tmp_path, columns, parts):
    path = write(tmp_path / "a.parquet", **{"text": ["a", "b", "c"], **columns})
    if parts:
        refused(path, "a.parquet", *parts)
    else:
        load(path)


def test_more_refusals(tmp_path):
    path = write(tmp_path / "a.parquet", body=["a"], labels=[["x"]])
    refused(path, "a.parquet, row 0: ", "no text column 'text'", "'body', 'labels'", "text_column")
    assert load(path, text_column="body").train.texts == ["a"]
    refused(write(path, body=["a"], tags=[["x"]]), "a.parquet, row 0: ", "'body', 'tags'")
    feature = {"labels": {"feature": class_label("z", "a"), "_type": "Sequence"}}
    refused(write(path, feature, text=["a", "b"], labels=[[1], [2]]), "a.parquet, row 1: ", "label number 2", "0 to 1")
    refused(write(path, feature, text=["a", "b"], labels=[[1], [-2]]), "a.parquet, row 1: ", "label number -2")
    refused(write(path, {"label": class_label("z", "z")}, text=["a"], label=[1]), "a.parquet", "twice")
    refused(write(path, {"label": class_label("z", "")}, text=["a"], label=[1]), "a.parquet", "names of 'label'")
    table = pa.table({"text": ["a"], "labels": [["x"]]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, path)
    refused(path, "a.parquet", "Hugging Face")
    pq.write_table(pa.table([["a"], ["b"], [["x"]]], names=["text", "text", "labels"]), path)
    refused(path, "a.parquet", "'text'", "twice")
    refused(write(path, text=pa.array([], pa.string()), labels=pa.array([], STRINGS)), "has no documents")
    refused(put(tmp_path / "b.parquet.gz", b""), "unpack")


def test_shards(tmp_path):
    for folder in (tmp_path / "top", tmp_path / "below" / "data"):
        write(folder / "train-00000-of-00002.parquet", text=["a", "b"], labels=[["y"], []])
        write(folder / "train-00001-of-00002.parquet", text=["c"], labels=[["x", "y"]])
        write(folder / "test-00000-of-00001-0a1b2c.parquet", text=["d"], labels=[["x"]])
    for folder in (tmp_path / "top", tmp_path / "below"):
        data = load(folder)
        assert list(data.train.texts) == ["a", "b", "c"] and list(data.train.ids) == ["0", "1", "2"]
        assert truth(data.train) == [{1: 1}, {}, {0: 1, 1: 1}] and truth(data.test) == [{0: 1}]
        assert data.options["format"] == "table"


def test_shards_that_do_not_fit(tmp_path):
    first = write(tmp_path / "train-00000-of-00002.parquet", text=["a"], labels=[["y"]], id=["p"])
    refused(tmp_path, "2 shards of train", "number 1")
    second = write(tmp_path / "train-00001-of-00002.parquet", text=["c", "d"], labels=[["x"], []], id=["q", "p"])
    refused(tmp_path, "train-00001-of-00002.parquet, row 1: ", "'p'", "train-00000-of-00002.parquet, row 0")
    write(second, text=["c"], labels=[["x"]], relevances=[[0.5]])
    data = load(tmp_path)
    assert truth(data.train) == [{1: 1}, {0: 0.5}]
    again = write(tmp_path / "train-00001-of-00002-ab.parquet", text=["c"], labels=[["x"]])
    refused(tmp_path, second.name, again.name, "keep one")
    again.unlink()
    put(tmp_path / "train.csv", "text,labels\na,x\n")
    refused(tmp_path, "train.csv", first.name, "keep one")
    (tmp_path / "train.csv").unlink()
    write(tmp_path / "data" / "train.parquet", text=["c"], labels=[["x"]])
    refused(tmp_path, "data/train.parquet", first.name, "keep one")


def test_damage_is_one_sentence(tmp_path):
    path = write(tmp_path / "a.parquet", text=["one", "two"] * 20, labels=[["x"], ["y", "z"]] * 20)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-5], whole[:50], whole[50:], b"text,labels\na,x\n"):
        path.write_bytes(content)
        refused(path, "a.parquet", "not a whole Parquet file")
    draw = random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            found = load(path)
        except Exception as error:
            assert type(error).__name__ == "DataError" and str(path) in str(error) and "\n" not in str(error)
        else:
            assert len(found.train) == len(found.train.ids) == found.train.targets.shape[0]


def test_rows_that_arrow_leaves_out_are_missed(tmp_path):
    columns = {"text": ["a", "b", "c"] * 3, "labels": [["x", "y"], [], ["z"]] * 3}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=4)
    whole, missed = path.read_bytes(), 0
    for at in range(4, len(whole) - 8):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        try:
            assert len(load(path).train) == 9
        except DataError as error:
            missed += "lacks 4 of its 4 rows" in str(error)
    assert missed


def test_reading_needs_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", text=["a"], labels=[["x"]])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"labelspace\[parquet\]"):
        load(path)


def test_pyarrow_is_loaded_for_parquet_alone(tmp_path):
    path = put(tmp_path / "a.csv", "text,labels\na,x\n")
    code = f"import sys, labelspace.data as d; d.load({str(path)!r}); print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
