"""Tables: relevances, title and content instead of a text, and the parts that are kept for rewriting."""

from __future__ import annotations

import logging

import pytest
from test_formats import jsonl, put, refused, truth, write_lf

from labelspace.data import formats
from labelspace.data.formats.corpus import ReadSettings
from labelspace.data.loading import load
from labelspace.errors import DataError, SettingsError
from labelspace.types import Corpus, Labels

# Relevances


def test_jsonl_relevances(tmp_path):
    rows = [
        {"text": "a", "labels": ["x", "y"], "relevances": [0.5, 1]},
        {"text": "b", "labels": ["y", "", "y"], "relevances": [0.25, None, 0.75]},
        {"text": "c", "labels": ["x"], "relevances": None},
        {"text": "d", "labels": ["z"]},
        {"text": "e", "labels": [], "relevances": []},
        {"text": "f", "labels": "x", "relevances": 0.125},
        {"text": "g", "labels": 7, "relevances": [0.5]},
        {"text": "h", "relevances": None},
    ]
    data = load(put(tmp_path / "a.jsonl", jsonl(rows)))
    assert list(data.labels.ids) == ["7", "x", "y", "z"]
    assert truth(data.train) == [{1: 0.5, 2: 1}, {2: 0.75}, {1: 1}, {3: 1}, {}, {1: 0.125}, {0: 0.5}, {}]


@pytest.mark.parametrize(
    ("header", "rows", "separator", "expected"),
    [
        (
            "text,labels,relevances",
            ["a,x;y,0.5;1", "b,y,", "c,,", "d,x;y;, .25 ;1.e-1;"],
            ";",
            [".5 1", "1", "", ".25 .1"],
        ),
        ("text;labels;relevances", ["a;x|y;0.5|1", "b;y;.75"], "|", [".5 1", ".75"]),
        ("text\tlabels\trelevances", ["a\t1 2\t0.5 1", "b\t2\t1"], " ", [".5 1", "1"]),
        (
            "text\tlabels\trelevances",
            ['a\t["x", "y"]\t[0.5, 1]', "b\t[]\t[]", "c\t['x']\t", 'd\t["x", ""]\t[0.1, null]'],
            "[]",
            [".5 1", "", "1", ".1"],
        ),
        ("text\tlabel\trelevances", ["a\tx\t0.5", "b\ty\t1"], "", [".5", "1"]),
        ("text\tlabels\trelevances", ["a\tx;;y\t0.5;;1"], ";", [".5 1"]),
    ],
)
@pytest.mark.parametrize("stated", [False, True])
def test_text_relevances(tmp_path, header, rows, separator, expected, stated):
    name = "a.tsv" if "\t" in header else "a.csv"
    path = put(tmp_path / name, "\n".join([header, *rows]) + "\n")
    data = load(path, separator=separator if stated else None)
    assert data.options["separator"] == separator
    assert [list(row.values()) for row in truth(data.train)] == [
        pytest.approx([float(value) for value in row.split()]) for row in expected
    ]


@pytest.mark.parametrize(
    ("labels", "relevances", "parts"),
    [
        (["x"], [], ["1 labels", "0 relevances"]),
        (["x", "y"], [1], ["2 labels", "1 relevances"]),
        ([], [1], ["0 labels", "1 relevances"]),
        (["x"], [0], ["relevance 0 of label 'x'"]),
        (["x"], [-0.5], ["relevance -0.5"]),
        (["x"], [1.5], ["relevance 1.5", "at most 1"]),
        (["x"], [1 + 1e-12], ["relevance 1.000000000001"]),
        (["x"], [True], ["relevance True"]),
        (["x"], ["1"], ["relevance '1'"]),
        (["x"], [None], ["relevance None"]),
        (["x"], [[1]], ["relevance [1]"]),
        (["x"], [float("nan")], ["relevance nan"]),
        (["x"], [float("inf")], ["relevance inf"]),
        (["x"], [10**400], ["relevance 1000"]),
        (["x"], [1e-50], ["relevance 1e-50"]),
        (["x", ""], [1, 0.5], ["relevance 0.5 has no label"]),
        (["x"], {"x": 1}, ["list of numbers"]),
        (["x"], "1", ["list of numbers"]),
    ],
)
def test_jsonl_relevance_refusals(tmp_path, labels, relevances, parts):
    rows = [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": labels, "relevances": relevances}]
    refused(put(tmp_path / "a.jsonl", jsonl(rows)), "a.jsonl, line 2: ", *parts)


@pytest.mark.parametrize(
    ("labels", "relevances", "parts"),
    [
        ("x;y", "1", ["2 labels", "1 relevances"]),
        ("x", "1;0.5", ["1 labels", "2 relevances"]),
        ("", "1", ["0 labels", "1 relevances"]),
        ("x;y", "0,5;1", ["'0,5'"]),
        ("x;y", "1;high", ["'high'"]),
        ("x;y", "1_0;1", ["'1_0'"]),
        ("x;y", "\uff11;1", ["relevance"]),
        ("x;y", "nan;1", ["'nan'"]),
        ("x;y", "1;0", ["relevance 0"]),
        ("x;y", "1;1e400", ["relevance inf"]),
        ("x;y", ";1", ["relevance None"]),
        ("x;;y", "1;1;1", ["relevance 1.0 has no label"]),
    ],
)
def test_text_relevance_refusals(tmp_path, labels, relevances, parts):
    path = put(tmp_path / "a.tsv", f'text\tlabels\trelevances\na\tx;y\t1;1\n"b"\t{labels}\t{relevances}\n')
    refused(path, "a.tsv, line 3: ", *parts)
    refused(path, "a.tsv, line 3: ", *parts, separator=";")


def test_lists_need_lists_of_relevances(tmp_path):
    refused(
        put(tmp_path / "a.tsv", 'text\tlabels\trelevances\na\t["x"]\t1;2\n'), "line 2", "list of relevances", "'1;2'"
    )


def test_relevances_meet_a_labels_file(tmp_path):
    put(tmp_path / "labels.csv", "id,name\nu,up\nd,down\n")
    put(
        tmp_path / "train.jsonl", jsonl([{"text": "a", "labels": ["down", "u", "d"], "relevances": [0.5, 0.25, 0.125]}])
    )
    put(tmp_path / "test.csv", "text,labels,relevances\nb,u;d,1;0.5\n")
    data = load(tmp_path)
    assert truth(data.train) == [{0: 0.25, 1: 0.5}] and truth(data.test) == [{0: 1, 1: 0.5}]


# Title and content


def test_title_and_content_serve_as_text(tmp_path, caplog):
    caplog.set_level(logging.INFO, "labelspace.data")
    put(
        tmp_path / "set" / "labels.jsonl",
        jsonl([{"id": "u", "title": "up", "content": "high"}, {"id": "d", "title": "down"}]),
    )
    put(tmp_path / "set" / "train.csv", "title,content,labels\nmy,cat,u\nyour,,d\n")
    put(
        tmp_path / "set" / "test.jsonl",
        jsonl([{"title": "t", "labels": ["d"]}, {"content": "c"}, {"text": "x", "title": "y"}]),
    )
    data = load(tmp_path / "set")
    assert list(data.train.texts) == ["my cat", "your"] and list(data.test.texts) == ["t", "c", "x"]
    assert list(data.labels.texts) == ["up high", "down"]
    assert (data.options["fields"], data.options["label_fields"]) == ("title+content", "title+content")
    assert any("title+content" in record.getMessage() for record in caplog.records)
    data = load(tmp_path / "set", fields="title", label_fields="title+content")
    assert list(data.train.texts) == ["my", "your"] and list(data.labels.texts) == ["up high", "down"]
    assert list(load(tmp_path / "set", fields="title").labels.texts) == ["up", "down"]
    with pytest.raises(SettingsError, match="fields"):
        load(tmp_path / "set", fields="texts")
    refused(tmp_path / "set", "train.csv, line 2", "'body'", "'title', 'content', 'labels'", text_column="body")


def test_titles_in_the_name_choose_the_title(tmp_path):
    path = put(tmp_path / "MyTitles.csv", "title,content,labels\nmy,cat,u\n")
    assert list(load(path).train.texts) == ["my"] and load(path).options["fields"] == "title"
    assert "fields" not in load(put(tmp_path / "a.csv", "text,labels\na,x\n")).options


def test_label_ids_come_from_all_or_none(tmp_path):
    put(tmp_path / "train.jsonl", jsonl([{"text": "a", "labels": ["x"]}]))
    put(tmp_path / "labels.jsonl", jsonl([{"id": "x", "title": "x y"}, {"title": "z"}]))
    refused(tmp_path, "labels.jsonl, line 2", "no id", "others")
    put(tmp_path / "labels.jsonl", jsonl([{"title": "x"}, {"id": "y", "title": "z"}]))
    refused(tmp_path, "labels.jsonl, line 2", "only this label has an id")
    put(tmp_path / "labels.jsonl", jsonl([{"content": "x"}]))
    refused(tmp_path, "labels.jsonl, line 1", "'content'")
    put(tmp_path / "labels.jsonl", jsonl([{"title": "x", "content": "y"}]))
    assert list(load(tmp_path).labels.ids) == ["x"] and list(load(tmp_path).labels.texts) == ["x y"]


# Parts


def splits(path, **settings):
    return formats.read(path, path.name, ReadSettings(keep_parts=True, **settings))[0]


@pytest.mark.parametrize("fields", ["title", "title+content"])
def test_parts_are_kept_when_asked_for(tmp_path, fields):
    lf = write_lf(tmp_path / "lf")
    rows = [{"id": "a", "title": "one", "content": " two", "labels": []}, {"id": "b", "content": "c", "labels": ["x"]}]
    put(tmp_path / "table" / "train.jsonl", jsonl(rows))
    put(tmp_path / "table" / "labels.jsonl", jsonl([{"id": "x", "title": "ex"}]))
    read = splits(lf, fields=fields)
    assert read.train.parts == {"title": ["My cat", "Cat and dog", ""], "content": ["purrs", "", ""]}
    assert read.test.parts == {"title": ["A dog"], "content": ["barks"]}
    assert read.labels.parts == {"title": ["cats", "dogs", "empty"], "content": ["small felines", "", ""]}
    read = splits(tmp_path / "table", fields=fields)
    assert read.train.parts == {"title": ["one", ""], "content": [" two", "c"]}
    assert read.labels.parts == {"title": ["ex"]}
    assert read.train.rows([1]).parts == {"title": [""], "content": ["c"]}
    for path in (lf, tmp_path / "table"):
        plain = formats.read(path, path.name, ReadSettings(fields=fields))[0]
        assert plain.train.parts is None and plain.labels.parts is None and plain.train.rows([0]).parts is None


def test_no_parts_where_the_text_was_one(tmp_path):
    rows = [{"text": "a", "labels": ["x"]}, {"title": "b", "content": "c", "labels": ["x"]}]
    assert splits(put(tmp_path / "a.jsonl", jsonl(rows[:1]))).train.parts is None
    assert splits(put(tmp_path / "b.jsonl", jsonl(rows))).train.parts is None


def test_parts_have_a_text_each():
    targets = splits_targets()
    Corpus(["a"], ["b"], targets, parts={"title": ["t"]})
    with pytest.raises(DataError, match="'title'"):
        Corpus(["a"], ["b"], targets, parts={"title": ["t", "u"]})
    with pytest.raises(DataError, match="'title'"):
        Labels(["a"], ["b"], parts={"title": []})


def splits_targets():
    import scipy.sparse as sp

    return sp.csr_array((1, 1), dtype="float32")


# Headers and keys


def test_repeated_columns_and_keys_are_refused(tmp_path):
    refused(put(tmp_path / "a.csv", "text,labels,text\na,x,b\n"), "a.csv, line 1", "'text'", "twice")
    refused(put(tmp_path / "a.tsv", "\ntext\tlabels\t labels\na\tx\tb\n"), "a.tsv, line 2", "'labels'", "twice")
    assert list(load(put(tmp_path / "b.csv", "text,labels,,\na,x,,\n")).labels.ids) == ["x"]
    put(tmp_path / "c.jsonl", '{"text": "a", "labels": ["x"]}\n{"text": "a", "labels": ["x"], "labels": ["y"]}\n')
    refused(tmp_path / "c.jsonl", "c.jsonl, line 2", "'labels'", "twice")
    put(tmp_path / "d.jsonl", '{"text": "a", "labels": ["x"], "more": {"a": 1, "a": 2}}\n')
    assert list(load(tmp_path / "d.jsonl").train.texts) == ["a"]


def test_the_separator_of_a_csv_is_not_sought_within_quotes(tmp_path):
    data = load(put(tmp_path / "a.csv", '"text";"labels";"notes, remarks, and, so, on"\na;x;\n'))
    assert list(data.train.texts) == ["a"]


def test_a_carriage_return_within_a_line(tmp_path):
    refused(put(tmp_path / "a.csv", "text,labels\na\rb,x\n"), "a.csv, line 2", "carriage return")
    refused(put(tmp_path / "b.csv", "text,labels\ra,x\rb,y\r"), "b.csv, line 1", "carriage return")
    assert list(load(put(tmp_path / "c.csv", 'text,labels\n"a\rb",x\n')).train.texts) == ["a\rb"]


def test_the_header_comes_once(tmp_path):
    refused(put(tmp_path / "a.csv", "text,labels\na,x\ntext,labels\nb,y\n"), "a.csv, line 3", "header is repeated")


def test_a_cell_among_lists_must_be_one(tmp_path):
    path = put(tmp_path / "a.tsv", "text\tlabels\na\t['x', 'y']\nb\tnan\nc\t['y']\n")
    refused(path, "a.tsv, line 3", "list of labels", "'nan'")


def test_neighbouring_strings_are_not_joined(tmp_path):
    refused(put(tmp_path / "a.tsv", "text\tlabels\na\t['x' 'y']\n"), "a.tsv, line 2", "list of labels", "'x' 'y'")
    data = load(put(tmp_path / "b.tsv", "text\tlabels\na\t['x', \"it's\", 'a\\'b', 3, '\\d',]\n"))
    assert set(data.labels.ids) == {"x", "it's", "a'b", "3", "\\d"}


def test_blank_names_are_no_labels(tmp_path):
    data = load(put(tmp_path / "a.jsonl", jsonl([{"text": "a", "labels": ["x", " ", ""]}])))
    assert list(data.labels.ids) == ["x"]


def test_the_separator_is_said_with_a_labels_file_too(tmp_path, caplog):
    caplog.set_level(logging.INFO, "labelspace")
    put(tmp_path / "train.csv", "text,labels\na,x y|z\nb,z\n")
    put(tmp_path / "labels.txt", "x y\nz\n")
    load(tmp_path)
    assert "labels are separated by '|'" in caplog.text
