"""Data sets written in other formats: reading them again gives the same, whatever stands in them."""

from __future__ import annotations

import builtins
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from test_annif import CSV
from test_beir import write_beir
from test_features import write as write_features
from test_formats import TEST, jsonl, put, write_lf, write_xc

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.conversion import convert
from labelspace.data.loading import fingerprint, load
from labelspace.errors import DataError, SettingsError
from labelspace.types import Corpus, Dataset, Labels

FORMATS = ["lf", "jsonl", "csv", "parquet"]


def parts(texts, given) -> list[list[str]]:
    """Titles and contents; a text that has none, as LF has it: a title without content."""
    given = given or {"title": texts}
    return [list(given.get(name, [""] * len(texts))) for name in ("title", "content")]


def same(one: Dataset, two: Dataset) -> None:
    """Whether two data sets are equal in all that is carried over."""
    assert one.name == two.name
    assert [list(one.labels.ids), list(one.labels.texts)] == [list(two.labels.ids), list(two.labels.texts)]
    assert parts(one.labels.texts, one.labels.parts) == parts(two.labels.texts, two.labels.parts)
    for split in ("train", "valid", "test"):
        a, b = getattr(one, split), getattr(two, split)
        assert (a is None) == (b is None), split
        if a is None:
            continue
        assert [list(a.ids), list(a.texts)] == [list(b.ids), list(b.texts)], split
        assert parts(a.texts, a.parts) == parts(b.texts, b.parts), split
        assert a.targets.shape == b.targets.shape
        for name in ("indptr", "indices", "data"):
            assert np.array_equal(getattr(a.targets, name), getattr(b.targets, name)), (split, name)
        if a.filter_pairs is None:
            assert b.filter_pairs is None
        else:
            assert a.filter_pairs.tolist() == b.filter_pairs.tolist()
    assert np.array_equal(one.valid_rows, two.valid_rows)
    assert fingerprint(one) == fingerprint(two)


# Any content

TEXTS = st.one_of(
    st.sampled_from(["", " a ", "a\nb\r\nc\r", "\t", '"quoted", "x"', ";", "a;b|c,d e", "\u2028x\x85", "\0", "[1]"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=8),
)
NAMES = st.one_of(
    st.sampled_from(
        ["0", "1", "007", "a;b", "a|b", "a, b", "[x]", '["x"]', "null", "\u00e9 \u2028 x", 'say "x"', "a\nb"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=5)
    .map(str.strip)
    .filter(bool),
)
IDENTIFIERS = st.one_of(NAMES, st.sampled_from([" a", "b\t", "\rc", "\0"]))


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    label_ids = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    n_labels = len(label_ids)
    relevance = st.sampled_from([1.0, 0.5, 0.3, 1e-7, 1e-42]) if draw(st.booleans()) else st.just(1.0)
    fields = draw(st.sampled_from(["text", "title", "title+content"]))

    def texts(count: int) -> tuple[list[str], dict[str, list[str]] | None]:
        first, second = (draw(st.lists(TEXTS, min_size=count, max_size=count)) for _ in range(2))
        if fields == "text":
            return first, None
        made = (
            first
            if fields == "title"
            else [f"{a} {b}" if a and b else a or b for a, b in zip(first, second, strict=True)]
        )
        return made, {"title": first, "content": second}

    def corpus() -> Corpus:
        ids = draw(st.lists(IDENTIFIERS, min_size=1, max_size=5, unique=True))
        cells = st.dictionaries(st.integers(0, n_labels - 1), relevance, max_size=4)
        rows = draw(st.lists(cells, min_size=len(ids), max_size=len(ids)))
        matrix = sp.lil_array((len(ids), n_labels), dtype=np.float32)
        for row, entries in enumerate(rows):
            for label, value in entries.items():
                matrix[row, label] = value
        pairs = st.lists(st.tuples(st.integers(0, len(ids) - 1), st.integers(0, n_labels - 1)), max_size=3)
        found = draw(st.none() | pairs.map(lambda rows: np.array(rows, dtype=np.int64).reshape(-1, 2)))
        made, parts = texts(len(ids))
        return Corpus(ids, made, matrix.tocsr(), filter_pairs=found, parts=parts)

    label_texts, label_parts = texts(n_labels)
    train, test = corpus(), draw(st.none() | st.builds(corpus))
    shipped = draw(st.booleans())
    valid = dataclasses.replace(corpus(), filter_pairs=None) if shipped else train.rows(np.zeros(0, dtype=np.int64))
    name = draw(st.sampled_from(["set", "LF-SomeTitles-5"]))
    return Dataset(name, Labels(label_ids, label_texts, label_parts), train, valid, test)


def reread(folder: Path) -> Dataset:
    return load(folder, keep_parts=True, valid_fraction=0.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(datasets(), st.lists(st.sampled_from(FORMATS), min_size=2, max_size=2))
def test_every_format_gives_the_same_back(data, chain):
    with tempfile.TemporaryDirectory() as name:
        for to in FORMATS:
            convert(data, Path(name, to), to=to)
            same(reread(Path(name, to)), data)
        source: Dataset | Path = data
        for number, to in enumerate(chain):
            target = Path(name, f"chain{number}")
            convert(source, target, to=to)
            same(reread(target), data)
            source = target


# What the readers read


def sources(folder: Path) -> dict[str, tuple[Path, dict]]:
    """A data set of each format, and the options that it is read with."""
    annif = folder / "annif"
    put(annif / "vocab.csv", "uri,label_en,label_fi\nhttp://y/1,cats,kissat\nhttp://y/2,dogs,\nhttp://y/3,,x\n")
    put(annif / "train.csv", CSV)
    put(annif / "validate.tsv", "b\t<http://y/3> <http://y/1>\n")
    tables = folder / "tables"
    put(tables / "train.csv", 'id;text;labels;relevances;year\n a ;one;x|y;0.5|1;1\nb;" two\n";;;2\nc;one;y;0.25;3\n')
    put(tables / "dev.jsonl", '{"title": " t", "content": "", "labels": [2, "y"]}\n')
    put(tables / "labels.tsv", "id\ttext\nx\t ex \ny\t\n2\ttwo\nz\tunused\n")
    put(tables / "filter_labels_train.txt", "0 1\n0 1\n2 0\n")
    put(tables / "filter_labels_test.txt", "")
    put(tables / "test.jsonl", '{"text": "x", "labels": []}\n{"text": "x", "labels": ["z"]}\n')
    records = [
        {"uid": "a1", "title": " My cat", "content": "purrs ", "target_ind": [0, 2], "target_rel": [1.0, 0.3]},
        {"uid": "a2", "title": "", "content": "alone", "target_ind": [], "target_rel": []},
        {"uid": "a3", "title": "Title", "content": "", "target_ind": [1], "target_rel": [0.1]},
    ]
    lf = write_lf(folder / "lf", train=records)
    judged = {"train": [("q0", "d1", 1), ("q1", "d2", 3)], "test": [("q3", "d1", 2)]}
    return {
        "lf": (lf, {}),
        "titles": (lf, {"fields": "title"}),
        "titles and both": (write_lf(folder / "LF-Titles", train=records), {"label_fields": "title+content"}),
        "beir": (write_beir(folder / "beir", judged), {}),
        "xc": (write_xc(folder / "xc"), {}),
        "annif": (annif, {"language": "fi"}),
        "table": (tables, {}),
        "features": (write_features(folder / "features", "old"), {}),
    }  # fmt: skip


KINDS = ["lf", "titles", "titles and both", "beir", "xc", "annif", "table", "features"]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_read_again(tmp_path, kind, to):
    path, options = sources(tmp_path)[kind]
    data = load(path, keep_parts=True, **options)
    convert(path, tmp_path / "out", to=to, **options)
    again = load(tmp_path / "out", keep_parts=True)
    same(again, data)
    assert again.options["format"] == ("lf" if to == "lf" else "table")
    assert again.options.get("texts") == data.options.get("texts")
    assert sorted(entry.name for entry in tmp_path.iterdir() if "out" in entry.name) == ["out"]
    for back in ("lf", "csv"):
        convert(tmp_path / "out", tmp_path / back / "titles", to=back)
        same(load(tmp_path / back / "titles", keep_parts=True), data)


@pytest.mark.parametrize("to", ["jsonl", "csv", "parquet", "lf"])
def test_lf_objects_survive(tmp_path, to):
    folder = sources(tmp_path)["lf"][0]
    convert(folder, tmp_path / "there", to=to)
    convert(tmp_path / "there", tmp_path / "back", to="lf")
    for name in ("trn.json", "tst.json", "lbl.json"):
        before, after = (
            [json.loads(line) for line in (f / name).read_text().splitlines()] for f in (folder, tmp_path / "back")
        )
        assert before == after


def test_csv_is_plain_csv(tmp_path):
    convert(sources(tmp_path)["table"][0], tmp_path / "out", to="csv")
    assert (tmp_path / "out" / "train.csv").read_text() == (
        '"id","text","labels","relevances"\n" a ","one","[""x"", ""y""]","[0.5, 1.0]"\n'
        '"b"," two\n","[]","[]"\n"c","one","[""y""]","[0.25]"\n'
    )
    assert (tmp_path / "out" / "filter_labels_train.txt").read_text() == "0 1\n0 1\n2 0\n"
    assert json.loads((tmp_path / "out" / "labelspace.json").read_text())["name"] == "tables"


def test_the_name_stays_and_with_it_the_propensities(tmp_path):
    convert(write_lf(tmp_path / "LF-AmazonTitles-131K"), tmp_path / "out", to="parquet")
    assert load(tmp_path / "out").name == "LF-AmazonTitles-131K"


def test_what_is_left_out_is_said_once(tmp_path, caplog):
    found = sources(tmp_path)
    convert(found["table"][0], tmp_path / "a", to="lf")
    convert(
        put(tmp_path / "x.jsonl", jsonl([{"text": "a", "labels": ["b"], "year": 1, "who": 2}])),
        tmp_path / "b",
        to="csv",
    )
    convert(found["annif"][0], tmp_path / "c", to="csv")
    put(tmp_path / "d" / "corpus.jsonl", jsonl([{"_id": "d1", "title": "x", "metadata": {"a": 1}}]))
    put(tmp_path / "d" / "queries.jsonl", jsonl([{"_id": "q0", "text": "x", "metadata": {}}]))
    put(tmp_path / "d" / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\nq0\td1\t1\n")
    convert(tmp_path / "d", tmp_path / "e", to="csv")
    messages = [
        r.getMessage() for r in caplog.records if "not carried" in r.getMessage() or "not read" in r.getMessage()
    ]
    assert messages == [
        "tables: 1 columns are not carried over: 'year'",
        "x: 2 columns are not carried over: 'year', 'who'",
        "annif: metadata is not read: 'year'",
        "d: metadata is not read: 'metadata'",
    ]


def test_texts_that_are_not_made_of_their_parts(tmp_path, caplog):
    truth = sp.csr_array(np.ones((1, 1), dtype=np.float32))
    train = Corpus(["a"], ["a text"], truth, parts={"title": ["another"], "content": ["x"]})
    data = Dataset("d", Labels(["l"], ["label"]), train, train.rows(np.zeros(0, dtype=np.int64)))
    convert(data, tmp_path / "out", to="jsonl")
    assert load(tmp_path / "out").train.texts == ["a text"] and "only texts are written" in caplog.text


# Places


def test_a_folder_is_replaced_only_if_it_was_converted(tmp_path):
    source = write_lf(tmp_path / "lf")
    target = tmp_path / "out"
    target.mkdir()
    convert(source, target, to="jsonl")  # an empty folder is free
    with pytest.raises(DataError, match="out: the folder is there already.*--overwrite"):
        convert(source, target, to="csv")
    convert(source, target, to="csv", overwrite=True)
    assert sorted(p.name for p in target.iterdir()) == ["labels.csv", "labelspace.json", "test.csv", "train.csv"]
    with pytest.raises(DataError, match="not written by convert"):
        convert(target, source, to="csv", overwrite=True)
    with pytest.raises(DataError, match="which is to be read"):
        convert(target, target, to="lf", overwrite=True)
    with pytest.raises(DataError, match="which is to be read"):
        convert(target / "train.csv", target, to="lf", overwrite=True)
    put(tmp_path / "file", "x")
    with pytest.raises(ls.LabelspaceError, match="a file of that name exists"):
        convert(source, tmp_path / "file", to="lf")


def test_labels_that_look_like_the_header_come_back(tmp_path):
    row = '{"text": "a", "labels": ["id"]}\n{"text": "b", "labels": ["text"]}\n'
    for name, labels in (
        ("a", [{"id": "id", "text": "text"}, {"id": "text", "text": "id"}, {"id": "row", "text": "row"}]),
        ("b", [{"id": "id", "title": "title", "content": "content"}, {"id": "text", "title": "x", "content": ""}]),
    ):
        put(tmp_path / name / "train.jsonl", row)
        put(tmp_path / name / "labels.jsonl", "".join(json.dumps(label) + "\n" for label in labels))
        for to in FORMATS:
            convert(tmp_path / name, tmp_path / f"{name}.{to}", to=to)
            given, back = (load(path, keep_parts=True).labels for path in (tmp_path / name, tmp_path / f"{name}.{to}"))
            assert (list(given.ids), list(given.texts)) == (list(back.ids), list(back.texts))


def test_nothing_half_done_stays(tmp_path):
    train = Corpus(["a"], ["\ud800"], sp.csr_array(np.ones((1, 1), dtype=np.float32)))
    data = Dataset("d", Labels(["l"], ["label"]), train, train.rows(np.zeros(0, dtype=np.int64)))
    for to in FORMATS:
        with pytest.raises(DataError, match="surrogate"):
            convert(data, tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": Labels([" a"], ["x"])}, "label id ' a'"),
        ({"labels": Labels([""], ["x"])}, "label id ''"),
        ({"labels": Labels(["a", "a"], ["x", "y"]), "two": True}, "label id 'a' is there twice"),
        ({"ids": ["d", "d"]}, "train document id 'd' is there twice"),
        ({"ids": ["", "d"]}, "the empty id"),
        ({"ids": []}, "no train documents"),
        ({"value": 2.0}, "relevance"),
    ],
)
def test_what_could_not_be_read_back_is_refused(tmp_path, change, message):
    ids, columns = change.get("ids", ["d", "e"]), 2 if "two" in change else 1
    train = Corpus(ids, ids, sp.csr_array(np.full((len(ids), columns), change.get("value", 1.0), dtype=np.float32)))
    labels = change.get("labels", Labels(["a"], ["x"]))
    with pytest.raises(DataError, match=message):
        convert(Dataset("s", labels, train, train.rows(np.zeros(0, dtype=np.int64))), tmp_path / "out", to="lf")
    assert not list(tmp_path.iterdir())


def test_a_set_without_training_documents_is_refused(tmp_path):
    folder = write_beir(tmp_path / "d", {"test": [("q3", "d1", 1)]})
    with pytest.raises(DataError, match="no train documents"):
        ls.convert(folder, tmp_path / "out", to="lf")


def test_options_are_checked(tmp_path):
    with pytest.raises(SettingsError, match="lf, jsonl, csv, parquet, got 'xml'"):
        convert(tmp_path, tmp_path / "out", to="xml")
    data = load(write_lf(tmp_path / "lf"))
    with pytest.raises(SettingsError, match="fields say how files are read"):
        convert(data, tmp_path / "out", to="csv", fields="title")


def test_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ls.MissingExtraError, match=r"writing Parquet.*labelspace\[parquet\]"):
        convert(write_lf(tmp_path / "lf"), tmp_path / "out", to="parquet")
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_refused(tmp_path):
    convert(write_lf(tmp_path / "lf"), tmp_path / "out", to="csv")
    for content in ("{", "[]", '{"name": 1}', "[" * 100_000):
        put(tmp_path / "out" / "labelspace.json", content)
        with pytest.raises(DataError, match="labelspace.json: this record"):
            load(tmp_path / "out")


def test_the_command(tmp_path, capsys):
    source = write_lf(tmp_path / "lf", test=TEST)
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "csv", "--fields", "title"]) == 0
    assert "3 train, 1 test documents, 3 labels" in capsys.readouterr().out
    assert load(tmp_path / "out").train.texts[0] == "My cat"
    assert load(tmp_path / "out", fields="title+content").train.texts[0] == "My cat purrs"
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "csv"]) == 1
    assert "the folder is there already" in capsys.readouterr().err
    flags = ["--to", "parquet", "--overwrite", "--json"]
    assert main(["convert", str(source), str(tmp_path / "out"), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == {"train": 3, "valid": 0, "test": 1}
    assert main(["info", str(tmp_path / "out")]) == 0
    assert main(["convert", str(source), str(tmp_path / "x")]) == 2


def test_scores_are_measured_on_converted_truth(tmp_path, capsys):
    folder = write_features(tmp_path / "f", "pecos")
    convert(folder, tmp_path / "out", to="jsonl")
    sp.save_npz(tmp_path / "score.npz", sp.csr_matrix(np.array([[0.1, 0.2, 0.9], [0.9, 0.0, 0.8]])))
    results = []
    for data in (folder, tmp_path / "out"):
        assert main(["evaluate", str(tmp_path / "score.npz"), str(data), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["metrics"])
    assert results[0] == results[1]
    with pytest.raises(DataError, match="features without texts"):
        ls.train(tmp_path / "out", recipe="dexml")
