"""Scores of any tool: matrices as npz and text, run files; ``score.npz`` both ways."""

from __future__ import annotations

import gzip
import io
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from test_beir import write_beir
from test_formats import damage, put

from labelspace.cli.app import main
from labelspace.data.scores import load_scores, save_scores
from labelspace.data.writers import write_tsv
from labelspace.errors import DataError, LabelspaceError
from labelspace.types import Predictions


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_scores_survive(data):
    n, n_labels, k = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    rows = []
    for _ in range(n):
        numbers = data.draw(st.lists(st.integers(0, n_labels - 1), unique=True, max_size=k))
        # Few distinct values, so that ties and exact zeros are common.
        rows.append(sorted((-data.draw(st.sampled_from([0.0, 0.5, -0.5, 1.0])), i) for i in numbers))
    width = max(map(len, rows), default=0)
    indices, scores = np.full((n, width), -1), np.full((n, width), -np.inf, dtype=np.float32)
    for row, entries in enumerate(rows):
        for place, (negated, number) in enumerate(entries):
            indices[row, place], scores[row, place] = number, -negated
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "score.npz")
        save_scores(Predictions(indices, scores), n_labels, path)
        matrix = sp.load_npz(path)
        loaded = load_scores(path)
    assert matrix.shape == (n, n_labels) and matrix.dtype == np.float32 and matrix.format == "csr"
    assert matrix.nnz == sum(map(len, rows)) and matrix.has_canonical_format
    assert np.array_equal(loaded.indices, indices) and np.array_equal(loaded.scores, scores)


def test_scores_of_other_tools(tmp_path):
    unsorted = sp.csr_matrix((np.array([0.1, 0.9, 0.0]), np.array([3, 1, 2]), np.array([0, 3, 3])), shape=(2, 5))
    sp.save_npz(tmp_path / "a.npz", unsorted)
    loaded = load_scores(tmp_path / "a.npz")
    assert loaded.indices.tolist() == [[1, 3, 2], [-1, -1, -1]]
    assert loaded.scores[0].tolist() == pytest.approx([0.9, 0.1, 0.0]) and np.isneginf(loaded.scores[1]).all()


def test_score_refusals(tmp_path):
    ones = np.ones((1, 2), dtype=np.float32)
    with pytest.raises(DataError, match="7 is not one of 0 to 4"):
        save_scores(Predictions(np.array([[0, 7]]), ones), 5, tmp_path / "a.npz")
    with pytest.raises(DataError, match="same label twice"):
        save_scores(Predictions(np.array([[3, 3]]), ones), 5, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
    twice = sp.csr_matrix((np.ones(2), np.array([1, 1]), np.array([0, 2])), shape=(1, 5))
    sp.save_npz(tmp_path / "b.npz", twice)
    with pytest.raises(DataError, match=r"b\.npz: row 0 \(from 0\) predicts the same label twice, number 1"):
        load_scores(tmp_path / "b.npz")
    for value in (np.nan, np.inf, -np.inf):
        for dtype in (np.float16, np.float64):
            parts = {"indices": np.array([1]), "indptr": np.array([0, 0, 1]), "shape": np.array([2, 2])}
            np.savez(tmp_path / "c.npz", data=np.array([value], dtype=dtype), **parts)
            with pytest.raises(DataError, match=rf"a score is {value} \(row 1 \(from 0\), label 1\)"):
                load_scores(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:80])
    with pytest.raises(DataError, match=r"d\.npz"):
        load_scores(tmp_path / "d.npz")
    with pytest.raises(DataError, match="does not exist"):
        load_scores(tmp_path / "e.npz")


def test_any_file_name_is_kept(tmp_path):
    save_scores(Predictions(np.array([[0]]), np.array([[1.0]])), 1, tmp_path / "scores")
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("number", [np.float32, np.float64, np.int8, np.int64, np.uint16, np.bool_])
def test_any_format_and_type_of_numbers(tmp_path, kind, number):
    dense = np.array([[0, 1, 3], [2, 0, 0]])
    for array in (sp.csr_array, sp.csr_matrix):
        sp.save_npz(tmp_path / "a.npz", array(dense.astype(number)).asformat(kind))
        loaded = load_scores(tmp_path / "a.npz")
        expected = [[2, 1], [0, -1]] if number is not np.bool_ else [[1, 2], [0, -1]]
        assert loaded.indices.tolist() == expected


def test_stored_zeros_of_blocks_are_scores(tmp_path):
    blocks = sp.bsr_array((np.array([[[0.0, -1.0], [0.0, 0.0]]]), [1], [0, 1]), shape=(2, 4))
    sp.save_npz(tmp_path / "a.npz", blocks)
    assert load_scores(tmp_path / "a.npz").indices.tolist() == [[2, 3], [2, 3]]


def test_diagonals(tmp_path):
    for shape in ((3, 4), (4, 3)):
        dense = np.zeros(shape)
        for row in range(shape[0]):
            for column in {row - 2, row, row + 1} & set(range(shape[1])):
                dense[row, column] = 1 + row + 10 * column
        sp.save_npz(tmp_path / "a.npz", sp.dia_array(dense))
        expected = [sorted(np.flatnonzero(row).tolist(), key=lambda j: -row[j]) for row in dense]
        found = load_scores(tmp_path / "a.npz").indices
        assert [[j for j in row if j >= 0] for row in found.tolist()] == expected


@pytest.mark.parametrize("number", [np.int64, np.uint64, np.longdouble])
def test_values_beyond_float64_keep_their_order(tmp_path, caplog, number):
    values = np.array([2**60, 2**60 + 2, 2**60 + 1, 3, 2**60 + 1], dtype=number)
    if number == np.longdouble and float(values[0]) == values[1]:
        pytest.skip("long double is float64 here")
    np.savez(tmp_path / "a.npz", data=values, indices=np.arange(5), indptr=np.array([0, 5]), shape=np.array([1, 5]))
    found = load_scores(tmp_path / "a.npz")
    assert found.indices.tolist() == [[1, 2, 4, 0, 3]] and "ranks stand for them" in caplog.text
    assert found.scores[0, 0] > found.scores[0, 1] == found.scores[0, 2] > found.scores[0, 3] > found.scores[0, 4]


def test_complex_numbers_are_refused(tmp_path):
    sp.save_npz(tmp_path / "a.npz", sp.csr_array(np.array([[1j, 2]])))
    with pytest.raises(DataError, match=r"a\.npz: the values are complex \(complex128\); real numbers are needed"):
        load_scores(tmp_path / "a.npz")


def test_double_precision_decides_the_order(tmp_path):
    scores = np.array([[1.0 - 2e-12, 1.0 - 1e-12]])
    assert np.float32(scores[0, 0]) == np.float32(scores[0, 1])
    sp.save_npz(tmp_path / "a.npz", sp.csr_matrix(scores))
    assert load_scores(tmp_path / "a.npz").indices.tolist() == [[1, 0]]


def test_the_arrays_alone_will_do(tmp_path):
    parts = {"data": np.array([0.5, 0.75]), "indices": np.array([2, 0]), "indptr": np.array([0, 2, 2])}
    np.savez_compressed(tmp_path / "a.npz", shape=np.array([2, 3]), **parts)
    assert load_scores(tmp_path / "a.npz").indices.tolist() == [[0, 2], [-1, -1]]
    np.savez(tmp_path / "a.npz", shape=np.array([2, 3]), **{**parts, "data": parts["data"].astype(np.float16)})
    assert load_scores(tmp_path / "a.npz").scores.tolist() == [[0.75, 0.5], [-np.inf, -np.inf]]
    np.savez(tmp_path / "a.npz", shape=np.array([2, 2]), **parts)
    with pytest.raises(DataError, match=r"a\.npz"):
        load_scores(tmp_path / "a.npz")
    sp.save_npz(tmp_path / "b.npz", sp.coo_array((np.ones(2), ([0, 0], [1, 1])), shape=(1, 2)))
    with pytest.raises(DataError, match="twice"):
        load_scores(tmp_path / "b.npz")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_sparse_text(tmp_path, name):
    path = put(tmp_path / name, "3 5\n3:0.25 1:-1.5e-1 0:0\n\n4:2\n")
    loaded = load_scores(path, n_labels=5, ids=["a", "b", "c"])
    assert loaded.indices.tolist() == [[3, 0, 1], [-1, -1, -1], [4, -1, -1]]
    assert loaded.scores[0].tolist() == [0.25, 0.0, -0.15]
    for content, message in (
        ("1 5\n0:1 5:1\n", "line 2: label number 5 is not one of 0 to 4"),
        ("3 5\n0:1\n\n0:1 0:2\n", "line 4: row 2 .* the same label twice, number 0"),
        ("2 5\n0:1\n1:1 2:1e999\n", "line 3: the value of label 2 is too large"),
        ("1 5\n0:inf\n", "line 2: expected 'label:value"),
        ("1 5\n0:x\n", "line 2: expected 'label:value"),
        ("1 5\n0:1\n0:1\n", "1 rows, but there are 2"),
        ("x\n", "line 1: expected a first line 'rows columns'"),
    ):
        with pytest.raises(DataError, match=message):
            load_scores(put(path, content))


def test_other_documents_or_labels_are_refused(tmp_path):
    sp.save_npz(tmp_path / "a.npz", sp.csr_matrix((2, 5)))
    with pytest.raises(DataError, match=r"a\.npz: it scores 5 labels, but the data has 4"):
        load_scores(tmp_path / "a.npz", n_labels=4)
    with pytest.raises(DataError, match=r"a\.npz: it has scores of 2 documents, but there are 3"):
        load_scores(tmp_path / "a.npz", n_labels=5, ids=["a", "b", "c"])


# Run files

IDS, LABEL_IDS = ["q 1", "q2", "q3"], ["d1", "d2", "d3"]


def run(path: Path, **options) -> list[list[int]]:
    return load_scores(path, 3, ids=IDS, label_ids=LABEL_IDS, **options).indices.tolist()


def test_run_files(tmp_path, caplog):
    three = "q2\td3\t0.5\nq 1\td1\t1\n\nq2\td1\t2e0\n"
    expected = [[0, -1], [0, 2], [-1, -1]]
    assert run(put(tmp_path / "a.tsv", three)) == expected
    assert "1 of 3 documents have no scores" in caplog.text
    assert run(put(tmp_path / "a.run.gz", "query-id\tcorpus-id\tscore\n" + three)) == expected
    trec = "q2 Q0 d3 2 0.5 mine\nq2 Q0 d1 1 2 mine\nq9 Q0 d9 1 1 mine\n"
    assert run(put(tmp_path / "a.txt", trec)) == [[-1, -1], [0, 2], [-1, -1]]
    assert "1 documents are not measured on, such as 'q9'" in caplog.text
    assert run(put(tmp_path / "a.trec", "q 1\tQ0\td2\t1\t-3\tx\n")) == [[1], [-1], [-1]]
    assert run(put(tmp_path / "a.tsv", three), depth=1) == [[0], [0], [-1]]


def test_the_header_of_a_run_file_gives_the_order(tmp_path):
    ids = ["0", "1", "2"]
    for content in (
        "label\tdocument\tscore\n1\t0\t1\n2\t0\t2\n",
        "score qid Q0 doc_id\n1 0 x 1\n2 0 x 2\n",
        "0\t1\t1\n0\t2\t2.5\n",
        "rank qid docid\n2 0 1\n1 0 2\n",
    ):
        found = load_scores(put(tmp_path / "a.tsv", content), 3, None, ids, ids)
        assert found.indices.tolist() == [[2, 1], [-1, -1], [-1, -1]]


def test_ids_survive_tsv(tmp_path):
    ids = ["a", " a", "a ", "\u2028", '"q"', "x", " ", "x\x0by"]
    label_ids = ["l", " l", 'l"']
    whole = Predictions(np.array([[0, 1, 2]] * 8), np.array([[0.9, 0.5, 0.1]] * 8), label_ids, ["t\tt", "\n", ""])
    with (tmp_path / "p.tsv").open("w", encoding="utf-8") as stream:
        write_tsv(whole, ids, stream)
    found = load_scores(tmp_path / "p.tsv", 3, None, ids, label_ids)
    assert found.indices.tolist() == whole.indices.tolist()
    for wrong in ("a\tb", "a\nb", "a\r"):
        with pytest.raises(DataError, match="the document id .* has a tab or a line end"):
            write_tsv(whole, [*ids[:-1], wrong], io.StringIO())
        with pytest.raises(DataError, match="the label id .* has a tab or a line end"):
            write_tsv(Predictions(whole.indices, whole.scores, ["l", "m", wrong], ["", "", ""]), ids, io.StringIO())


def test_predictions_written_as_tsv_are_read(tmp_path):
    predictions = Predictions(
        np.array([[2, 0], [1, -1], [0, 2]]),
        np.array([[3.0, 1.0], [2.0, -np.inf], [1.0, 0.5]]),
        LABEL_IDS,
        ["a\tb", "", "c"],
    )
    with (tmp_path / "p.tsv").open("w") as stream:
        write_tsv(predictions, IDS, stream)
    assert run(tmp_path / "p.tsv") == predictions.indices.tolist()


def test_run_refusals(tmp_path):
    for content, message in (
        ("q2\td1\n", "line 1: expected document, label and score"),
        ("q2\td1\t1\nq2\td2\thigh\n", "line 2: the score must be a number, got 'high'"),
        ("q2\td9\t1\n", "line 1: label 'd9' is not in the data; the nearest"),
        ("q2\td1\t1\nq3\td1\t1\nq2\td1\t2\n", "line 3: document 'q2' has the same label twice: 'd1' is in line 1"),
        ("q2\td1\tnan\n", "line 1: the score must be a number, got 'nan'"),
        ("q2\td1\t0.9.\nq2\td2\t1\n", "line 1: the score must be a number, got '0.9.'"),
        ("q2\td1\t1\nq2\td2\t1e999\n", "line 2: the score must be a number, got '1e999'"),
        ("q2\td1\t1_0\n", "line 1: the score must be a number, got '1_0'"),
        ("q2\td1\t\u0661\n", "line 1: the score must be a number"),
        ("q2\td1\tinf\n", "line 1: the score must be a number, got 'inf'"),
        ("q2 \td1\t1\n", "none of its documents"),
        ("q7\td1\t1\n", "none of its documents \\('q7'\\) is one to measure on \\('q 1'"),
        ("", "none of its documents"),
    ):
        with pytest.raises(DataError, match=message):
            run(put(tmp_path / "a.tsv", content))


def test_runs_are_measured(tmp_path, capsys):
    folder = write_beir(tmp_path / "d", {"test": [("q0", "d1", 1), ("q3", "d2", 2), ("q3", "d3", 1)]})
    put(tmp_path / "a.run", "q3 Q0 d2 1 9 x\nq3 Q0 d1 2 8 x\nq0 Q0 d3 1 1 x\n")
    assert main(["evaluate", str(tmp_path / "a.run"), str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] == 50.0
    put(tmp_path / "a.pdf", "x")
    assert main(["evaluate", str(tmp_path / "a.pdf"), str(folder)]) == 1
    assert (
        "scores are read from .npz, .txt, .tsv, .run, .trec (text also .gz), not from '.pdf'" in capsys.readouterr().err
    )
    assert main(["evaluate", str(tmp_path / "none.npz"), str(folder)]) == 1
    assert "none.npz: the file does not exist" in capsys.readouterr().err


# Any content


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.dictionaries(st.integers(0, 6), st.floats(-4, 4, width=32), max_size=4), max_size=5))
def test_all_kinds_agree(rows):
    with tempfile.TemporaryDirectory() as name:
        text = "".join(" ".join(f"{label}:{score!r}" for label, score in row.items()) + "\n" for row in rows)
        put(Path(name, "a.txt"), f"{len(rows)} 7\n{text}")
        flat = [(i, label, score) for i, row in enumerate(rows) for label, score in row.items()]
        matrix = sp.coo_array(
            ([score for _, _, score in flat], ([i for i, _, _ in flat], [label for _, label, _ in flat])),
            shape=(len(rows), 7), dtype=np.float64,
        )  # fmt: skip
        sp.save_npz(Path(name, "a.npz"), matrix)
        put(Path(name, "a.run"), "".join(f"{i} L{label} {score!r}\n" for i, label, score in flat[::-1]))
        ids, label_ids = [str(i) for i in range(len(rows))], [f"L{i}" for i in range(7)]
        found = [load_scores(Path(name, "a.txt")), load_scores(Path(name, "a.npz"))]
        found += [load_scores(Path(name, "a.run"), 7, None, ids, label_ids)] if flat else []
    for i, row in enumerate(rows):
        expected = sorted(row, key=lambda label: (-row[label], label))
        for predictions in found:
            kept = predictions.indices[i] >= 0
            assert predictions.indices[i][kept].tolist() == expected
            assert predictions.scores[i][kept].tolist() == [row[label] for label in expected]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from(["a.txt", "a.npz", "a.tsv", "a.trec"]))
def test_malformed(draw: random.Random, which):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, which)
        contents = {"a.txt": "3 3\n2:0.5 0:1\n\n1:1\n", "a.tsv": "q2\td3\t0.5\n", "a.trec": "q3 Q0 d3 2 0.5 x\n" * 2}
        if which == "a.npz":
            sp.save_npz(path, sp.csr_matrix(np.array([[0.5, 0, 2], [0, 0, 0], [1, 3, 0]])))
            content = path.read_bytes()
        else:
            content = contents[which].encode()
        path.write_bytes(damage(content, draw))
        zipped = Path(name, f"{which}.gz")
        zipped.write_bytes(damage(gzip.compress(content), draw))
        for file in (path, zipped):
            try:
                assert load_scores(file, 3, 5, IDS, LABEL_IDS).indices.shape[0] == 3
            except LabelspaceError as error:
                assert "\n" not in str(error)
