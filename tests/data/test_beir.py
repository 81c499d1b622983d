"""Retrieval data in BEIR's layout: the corpus as labels, the queries as documents, judgements as truth."""

from __future__ import annotations

import gzip
import json
import logging
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import attempt, damage, jsonl, put, refused, truth

import labelspace as ls
from labelspace.data.describe import describe, render
from labelspace.data.loading import fingerprint, load
from labelspace.data.texts import read_texts
from labelspace.errors import DataError, SettingsError

CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "small felines"},
    {"_id": "d2", "title": "", "text": "a text alone", "metadata": {"x": 1}},
    {"_id": "d3", "title": "Title alone", "text": ""},
]
QUERIES = [{"_id": f"q{i}", "text": f"question {i}"} for i in range(5)]
QRELS = {
    "train": [("q2", "d1", 1), ("q0", "d2", 1), ("q0", "d1", 1)],
    "dev": [("q1", "d3", 1)],
    "test": [("q3", "d1", 0), ("q3", "d2", 1)],
}


def qrels(rows: list) -> str:
    return "query-id\tcorpus-id\tscore\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows)


def write_beir(folder: Path, judged: dict | None = None, gz: str = "") -> Path:
    put(folder / f"corpus.jsonl{gz}", jsonl(CORPUS))
    put(folder / f"queries.jsonl{gz}", jsonl(QUERIES))
    for split, rows in (QRELS if judged is None else judged).items():
        put(folder / "qrels" / f"{split}.tsv{gz}", qrels(rows))
    return folder


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_everything_is_read(tmp_path, caplog, gz):
    caplog.set_level(logging.INFO, "labelspace")
    data = load(write_beir(tmp_path / "scifact", gz=gz))
    assert data.options["format"] == "beir" and data.name == "scifact"
    assert list(data.labels.ids) == ["d1", "d2", "d3"]
    assert list(data.labels.texts) == ["Cats small felines", "a text alone", "Title alone"]
    assert (data.train.ids, data.train.texts) == (["q0", "q2"], ["question 0", "question 2"])
    assert (data.valid.ids, data.test.ids) == (["q1"], ["q3"])
    assert truth(data.train) == [{0: 1.0, 1: 1.0}, {0: 1.0}]
    assert truth(data.valid) == [{2: 1.0}] and truth(data.test) == [{1: 1.0}]
    assert len(data.valid_rows) == 0 and data.labels.parts is None and data.train.parts is None
    assert "1 of 5 queries are in no qrels file" in caplog.text and "graded" not in caplog.text


def test_grades_become_relevances_of_one_scale(tmp_path, caplog):
    caplog.set_level(logging.INFO, "labelspace")
    judged = {"train": [("q0", "d1", 1), ("q0", "d2", 2), ("q1", "d3", -1)], "test": [("q3", "d1", 4), ("q3", "d2", 0)]}
    data = load(write_beir(tmp_path / "d", judged))
    assert truth(data.train) == [{0: 0.25, 1: 0.5}, {}] and truth(data.test) == [{0: 1.0}]
    assert "divided by 4" in caplog.text


def test_label_fields_and_parts(tmp_path):
    folder = write_beir(tmp_path / "d")
    assert list(load(folder, label_fields="title").labels.texts) == ["Cats", "", "Title alone"]
    parts = load(folder, keep_parts=True).labels.parts
    assert parts == {"title": ["Cats", "", "Title alone"], "content": ["small felines", "a text alone", ""]}
    with pytest.raises(SettingsError, match="label_fields"):
        load(folder, label_fields="text")


def test_filter_pairs_beside_it(tmp_path):
    folder = write_beir(tmp_path / "d")
    put(folder / "filter_labels_test.txt", "0 2\n")
    assert load(folder).test.filter_pairs.tolist() == [[0, 2]]


def test_queries_are_texts_to_predict(tmp_path):
    assert read_texts(write_beir(tmp_path / "d") / "queries.jsonl")[0] == [f"q{i}" for i in range(5)]


def test_a_test_part_alone_is_measured_on_but_not_trained_on(tmp_path, caplog, capsys):
    folder = write_beir(tmp_path / "d", {"test": QRELS["test"]})
    data = load(folder)
    assert (len(data.train), len(data.valid), len(data.test)) == (0, 0, 1) and "no qrels/train.tsv" in caplog.text
    assert "train           0 documents" in render(describe(data)) and len(fingerprint(data)) == 64
    with pytest.raises(DataError, match="d has no training documents"):
        ls.train(folder, recipe="dexml")
    sp.save_npz(tmp_path / "score.npz", sp.csr_array(np.array([[0.1, 0.9, 0.0]])))
    from labelspace.cli.app import main

    assert main(["evaluate", str(tmp_path / "score.npz"), str(folder), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["P@1"] == 100.0 and "PSP@1" not in metrics


@pytest.mark.parametrize(
    ("name", "content", "line", "parts"),
    [
        ("qrels/train.tsv", qrels([("q0", "d1", 1), ("q9", "d1", 1)]), 3, ["query 'q9'", "queries.jsonl"]),
        ("qrels/train.tsv", qrels([("q0", "d9", 1)]), 2, ["'d9'", "corpus.jsonl", "'d1'"]),
        ("qrels/train.tsv", qrels([("q0", "d1", "high")]), 2, ["score", "'high'"]),
        ("qrels/train.tsv", qrels([("q0", "d1", "nan")]), 2, ["'nan'"]),
        ("qrels/train.tsv", qrels([("q0", "d1", "1e999")]), 2, ["'1e999'"]),
        ("qrels/train.tsv", qrels([("q0", "d1", "1_0")]), 2, ["'1_0'"]),
        ("qrels/train.tsv", qrels([("q0", "d1", "\u0661")]), 2, ["score"]),
        ("qrels/train.tsv", "q0\td1\t1O\nq2\td2\t1\n", 1, ["score", "'1O'"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tO\nq0\td1\t1\n", 1, ["score", "'O'"]),
        ("qrels/train.tsv", "qid\tquery\tcorpus-id\tscore\n", 1, ["both 'qid' and 'query'"]),
        ("qrels/train.tsv", "score\tqid\tcorpus-id\tScore\n", 1, ["twice"]),
        ("qrels/train.tsv", "q0 0 d1 1\n", 1, ["tabs"]),
        ("qrels/train.tsv", qrels([]) + "q0 0 d1 1\n", 2, ["3 cells, as in the header"]),
        ("qrels/train.tsv", qrels([]), None, ["no judgements"]),
        ("corpus.jsonl", jsonl([*CORPUS, CORPUS[1]]), 4, ["'d2'", "line 2"]),
        ("corpus.jsonl", jsonl([{"title": "x"}]), 1, ["'_id'", "'title'"]),
        ("corpus.jsonl", jsonl([{"_id": "x"}]), 1, ["'title'", "'text'"]),
        ("corpus.jsonl", jsonl([{"_id": "x", "title": 1}]), 1, ["'title'"]),
        ("corpus.jsonl", "", None, ["no labels"]),
        ("queries.jsonl", jsonl([{"_id": "q0", "text": "a"}, {"_id": "q0", "text": "b"}]), 2, ["query id 'q0'"]),
        ("queries.jsonl", jsonl([{"_id": "q0"}]), 1, ["'text'"]),
    ],
)
def test_refusals(tmp_path, name, content, line, parts):
    folder = write_beir(tmp_path / "d")
    put(folder / name, content)
    refused(folder, name if line is None else f"{name}, line {line}", *parts)


@pytest.mark.parametrize(
    "content",
    [
        "q2\td1\t1\nq0\td2\t1\nq0\td1\t1\n",
        "corpus-id\tquery-id\tscore\nd1\tq2\t1\nd2\tq0\t1\nd1\tq0\t1\n",
        "\nRelevance\titeration\tqid\tdoc_id\n1\tx\tq2\td1\n1\tx\tq0\td2\n1\t0\tq0\td1\n",
    ],
)
def test_columns_go_by_their_names_or_their_order(tmp_path, content):
    folder = write_beir(tmp_path / "d")
    put(folder / "qrels/train.tsv", content)
    assert load(folder).train.ids == ["q0", "q2"] and truth(load(folder).train) == [{0: 1.0, 1: 1.0}, {0: 1.0}]


def test_missing_judgements_and_double_files(tmp_path):
    folder = write_beir(tmp_path / "d", {})
    refused(folder, "qrels/train.tsv")
    write_beir(folder, gz=".gz")
    refused(folder, "corpus.jsonl and corpus.jsonl.gz")


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_valid_data_is_read_back_exactly(data):
    labels = data.draw(st.lists(st.tuples(IDS, WORDS, WORDS), min_size=1, max_size=5, unique_by=lambda row: row[0]))
    queries = data.draw(st.lists(st.tuples(IDS, WORDS), min_size=1, max_size=5, unique_by=lambda row: row[0]))
    pairs = st.tuples(st.integers(0, len(queries) - 1), st.integers(0, len(labels) - 1))
    judged = {
        split: data.draw(st.dictionaries(pairs, st.integers(0, 3), min_size=1, max_size=6))
        for split in ("train", "dev", "test")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "d")
        put(folder / "corpus.jsonl", jsonl([{"_id": i, "title": a, "text": b} for i, a, b in labels]))
        put(folder / "queries.jsonl", jsonl([{"_id": i, "text": a} for i, a in queries]))
        for split, scores in judged.items():
            rows = [(queries[q][0], labels[d][0], score) for (q, d), score in scores.items()]
            put(folder / "qrels" / f"{split}.tsv", qrels(rows))
        found = load(folder)
    highest = max(max(scores.values()) for scores in judged.values())
    assert list(found.labels.ids) == [row[0] for row in labels]
    assert list(found.labels.texts) == [f"{a} {b}" if a and b else a + b for _, a, b in labels]
    for split, corpus in (("train", found.train), ("dev", found.valid), ("test", found.test)):
        rows = sorted({q for q, _ in judged[split]})
        assert [corpus.ids, corpus.texts] == [[queries[q][column] for q in rows] for column in (0, 1)]
        expected = [{d: s / highest for (q, d), s in sorted(judged[split].items()) if q == row and s} for row in rows]
        assert truth(corpus) == [{d: float(np.float32(value)) for d, value in row.items()} for row in expected]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from(["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"]))
def test_malformed(draw: random.Random, which):
    with tempfile.TemporaryDirectory() as name:
        folder = write_beir(Path(name, "d"))
        path = folder / which
        content = path.read_bytes()
        if draw.random() < 0.2:
            path.unlink()
            (folder / f"{which}.gz").write_bytes(damage(gzip.compress(content), draw))
        else:
            path.write_bytes(damage(content, draw))
        attempt(folder)
