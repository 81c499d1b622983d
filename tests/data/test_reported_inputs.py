"""More inputs of kinds that people reported of other tools: layouts of tables, ids, vocabularies and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import labelspace as ls
from labelspace.data import read_texts
from labelspace.data.edits import read_documents, read_ids
from labelspace.data.edits import read_labels as read_label_edits
from labelspace.data.scores import load_scores
from labelspace.errors import DataError


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def load(path: Path, **options: object) -> ls.Dataset:
    return ls.load(path, valid_fraction=0.0, **options)


def truth(data: ls.Dataset) -> list[set[str]]:
    return [{data.labels.ids[j] for j in data.train.targets[[i]].indices} for i in range(len(data.train))]


# Hidden files and links


def annif(folder: Path) -> Path:
    put(folder / "train/a.txt", "my cat")
    put(folder / "train/a.key", "cats\n")
    put(folder / "vocab.nt", "")
    put(folder / "vocab.tsv", "<http://y/1>\tcats\n")
    (folder / "vocab.nt").unlink()
    return folder


def test_hidden_files_of_a_folder_are_passed_over(tmp_path: Path) -> None:
    folder = annif(tmp_path / "d")
    for name in ("train/._a.txt", "train/.DS_Store", "._vocab.tsv", ".x.nt", ".ipynb_checkpoints/a.txt"):
        put(folder / name, "\0\0\0")
    put(folder / "train/.ipynb_checkpoints/a-checkpoint.txt", "no text")
    data = load(folder)
    assert (list(data.train.ids), list(data.train.texts), truth(data)) == (["a"], ["my cat"], [{"http://y/1"}])
    fast = put(tmp_path / "f/x.train", "__label__a one\n").parent
    put(fast / "._x.train", "__label__b two\n")
    assert list(load(fast).labels.ids) == ["a"]
    old = put(tmp_path / "o/eurlex_train.txt", "1 1 1\n0 0:1\n").parent
    put(old / "._eurlex_train.txt", "2 1 1\n0 0:1\n0 0:1\n")
    assert len(load(old).train) == 1


def test_a_hidden_file_that_is_named_is_read(tmp_path: Path) -> None:
    assert truth(load(put(tmp_path / "._x.tsv", "text\tlabels\na\tb\n"))) == [{"b"}]


def test_a_link_that_leads_nowhere_is_refused_with_its_target(tmp_path: Path) -> None:
    folder = put(tmp_path / "d/train.csv", "text,labels\na,b\n").parent
    gone = r"link to '/nowhere/x', where nothing is"
    for name in ("test.csv", "labels.csv", "dev.jsonl.gz", "labelspace.json"):
        (folder / name).symlink_to("/nowhere/x")
        with pytest.raises(ls.DataError, match=rf"{name}.*{gone}"):
            load(folder)
        (folder / name).unlink()
    (folder / "notes.csv").symlink_to("/nowhere/x")
    assert truth(load(folder)) == [{"b"}]  # nobody asked for this one
    (link := tmp_path / "link.csv").symlink_to("/nowhere/x")
    for reader in (load, read_texts, read_documents, read_ids, read_label_edits):
        with pytest.raises(ls.DataError, match=gone):
            reader(link)
    with pytest.raises(ls.DataError, match=gone):
        load_scores(link, (1, 1))
    with pytest.raises(ls.DataError, match=gone):
        load(annif(tmp_path / "e"), label_vocabulary=link)
    (tmp_path / "e/train/b.txt").symlink_to("/nowhere/x")
    with pytest.raises(ls.DataError, match=rf"b.txt.*{gone}"):
        load(tmp_path / "e")


# Ids


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0"])
def test_blank_ids_beside_given_ones_are_numbered_and_told(
    tmp_path: Path, blank: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("a", "one"), (blank, "two"), (blank, "three"), ("b", "four")]
    csv = "id,text,labels\n" + "".join(f'"{name}",{text},x\n' for name, text in rows)
    records = [{"id": name or None, "text": text, "labels": ["x"]} for name, text in rows]
    sources = [
        (put(tmp_path / "a.csv", csv), "line 3"),
        (put(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in records)), "line 2"),
        (tmp_path / "a.parquet", "row 1"),
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for path, where in sources:
        caplog.clear()
        assert list(load(path).train.ids) == ["a", "1", "2", "b"]
        assert f"2 of 4 documents have no id, the first in {where}" in caplog.text
        caplog.clear()
        assert read_texts(path)[0] == ["a", "1", "2", "b"]
        assert f"2 of 4 texts have no id, the first in {where}" in caplog.text
        with pytest.raises(ls.DataError, match="2 of 4 documents have no id"):
            read_documents(path)
        with pytest.raises(ls.DataError, match="there is no id"):
            read_ids(path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["", " ", "a", "b", "0", "1", "2"]), min_size=1, max_size=5))
def test_no_document_has_a_blank_id_or_that_of_another(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    path = tmp_path_factory.mktemp("ids") / "a.jsonl"
    put(path, "".join(json.dumps({"id": name, "text": "t", "labels": ["x"]}) + "\n" for name in ids))
    expected = [name if name.strip() else str(row) for row, name in enumerate(ids)]
    if len(set(expected)) < len(expected):
        with pytest.raises(ls.DataError, match="was used in line"):
            load(path)
    else:
        assert list(load(path).train.ids) == expected


# Texts of labels


def test_a_label_with_an_empty_text_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = put(tmp_path / "t/train.csv", "text,labels\na,x\n").parent
    put(folder / "labels.csv", 'id,text\nx,one\ny," "\n')
    lf = put(tmp_path / "lf/trn.json", json.dumps({"uid": "d", "title": "a", "target_ind": [0]}) + "\n").parent
    put(lf / "lbl.json", '{"uid": "x", "title": "one"}\n{"uid": "y", "title": "", "content": ""}\n')
    xc = put(tmp_path / "xc/trn_X.txt", "a\n").parent
    put(xc / "Y.txt", "one\n\n")
    put(xc / "trn_X_Y.txt", "1 2\n0:1\n")
    for place, name in ((folder, "y"), (lf, "y"), (xc, "1")):
        caplog.clear()
        load(place)
        assert f"1 of 2 labels have an empty text, which says nothing of them, the first is {name!r}" in caplog.text


def test_an_empty_label_text_in_python_is_told(caplog: pytest.LogCaptureFixture) -> None:
    from labelspace.data.loading import warn_of_empty

    class Stop(Exception):
        pass

    class Encoder:
        def to(self, device: object) -> None:
            raise Stop

    with pytest.raises(Stop):
        ls.Model.from_encoder(Encoder(), ["one", " "])
    assert "the labels: 1 of 2 labels have an empty text" in caplog.text
    caplog.clear()
    warn_of_empty(ls.Labels(["a"], ["b"]), "x")
    assert not caplog.text


def test_an_empty_label_text_of_the_classifier_is_refused() -> None:
    from labelspace.sklearn import LabelSpaceClassifier

    for texts, y in ((["one", " "], [[0, 1], [1, 0]]), ({"a": "one", "b": ""}, [["a"], ["b"]])):
        with pytest.raises(ValueError, match=r"label_texts must say something of each label, but number 1"):
            LabelSpaceClassifier(label_texts=texts).fit(["x", "y"], y)


# BEIR


def test_the_title_of_a_query_is_part_of_its_text(tmp_path: Path) -> None:
    folder = put(tmp_path / "b/corpus.jsonl", '{"_id": "d1", "title": "Cats", "text": "felines"}\n').parent
    queries = [{"_id": "q1", "title": "Purring", "text": "what purrs?"}, {"_id": "q2", "title": "", "text": "who?"}]
    put(folder / "queries.jsonl", "".join(json.dumps(query) + "\n" for query in queries))
    put(folder / "qrels/train.tsv", "q1\td1\t1\nq2\td1\t1\n")
    assert list(load(folder).train.texts) == ["Purring what purrs?", "who?"]
    assert read_texts(folder / "queries.jsonl") == (["q1", "q2"], ["Purring what purrs?", "who?"])


# Labels as columns of 0 and 1

BITS = [("one", {"toxic"}), ("two", set()), ("three", {"toxic", "insult"})]
SPELT = {"digits": ("0", "1"), "words": ("False", "true"), "decimals": ("0.0", "1.0")}


def columns(
    path: Path, spelt: str = "digits", text: str = "text", names: tuple[str, ...] = ("toxic", "insult")
) -> Path:
    no, yes = SPELT[spelt]
    mark = "\t" if path.suffix == ".tsv" else ","
    rows = [["id", text, *names]]
    rows += [[f"d{i}", words, *(yes if n in own else no for n in names)] for i, (words, own) in enumerate(BITS)]
    return put(path, "".join(mark.join(row) + "\n" for row in rows))


def typed(path: Path, no: object, yes: object) -> Path:
    records = [
        {"id": f"d{i}", "text": words, **{name: yes if name in own else no for name in ("toxic", "insult")}}
        for i, (words, own) in enumerate(BITS)
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
        return path
    return put(path, "".join(json.dumps(record) + "\n" for record in records))


def test_columns_of_0_and_1_are_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [columns(tmp_path / f"{spelt}{kind}", spelt) for spelt in SPELT for kind in (".csv", ".tsv")]
    for kind in (".jsonl", ".parquet"):
        paths += [typed(tmp_path / f"a{kind}", 0, 1), typed(tmp_path / f"b{kind}", False, True)]
        paths += [typed(tmp_path / f"c{kind}", 0.0, 1.0), typed(tmp_path / f"d{kind}", "0", "1")]
    for path in paths:
        caplog.clear()
        data = load(path)
        assert (list(data.labels.ids), truth(data)) == (["toxic", "insult"], [own for _, own in BITS]), path
        assert (list(data.train.ids), list(data.train.texts)) == (["d0", "d1", "d2"], ["one", "two", "three"])
        assert "labels are the names of 2 columns of 0 and 1: 'toxic', 'insult'" in caplog.text
    comments = columns(tmp_path / "k.csv", text="comment_text")
    with pytest.raises(ls.DataError, match="no text column 'text'.*set text_column"):
        load(comments)
    assert truth(load(comments, text_column="comment_text")) == [own for _, own in BITS]


def test_a_labels_file_names_the_columns(tmp_path: Path) -> None:
    path = columns(tmp_path / "d/train.csv", names=("toxic", "verified", "insult"))
    columns(tmp_path / "d/test.csv", names=("insult", "toxic"))
    put(path.parent / "labels.csv", "id,text\ni,insult\nt,toxic\nx,never met\n")
    data = load(path.parent)
    assert truth(data) == [{"t"}, set(), {"i", "t"}] and list(data.labels.ids) == ["i", "t", "x"]
    assert data.test is not None and data.test.targets.toarray().tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 0]]
    put(path.parent / "labels.csv", "id,text\ni,other\n")
    with pytest.raises(ls.DataError, match="'toxic', 'verified', 'insult' hold only 0 and 1, but are no labels"):
        load(path.parent)


def test_columns_that_may_be_labels_or_not_are_refused(tmp_path: Path) -> None:
    rows = "text,year,toxic,insult\na,1999,0,1\nb,2001,1,1\n"
    path = put(tmp_path / "a.csv", rows)
    with pytest.raises(
        ls.DataError, match=r"a.csv, line 2: .*'toxic', 'insult' hold only 0 and 1.*'year' holds '1999'"
    ):
        load(path)
    assert truth(load(path, label_column="toxic,insult")) == [{"insult"}, {"toxic", "insult"}]
    assert truth(load(path, label_column="toxic")) == [{"0"}, {"1"}]
    with pytest.raises(ls.DataError, match=r"line 2: the column 'year' of a label must hold 0 or 1, but holds '1999'"):
        load(path, label_column="year,toxic")
    with pytest.raises(ls.DataError, match="no label column 'gone', only 'text', 'year', 'toxic', 'insult'"):
        load(path, label_column="toxic,gone")
    hidden = put(tmp_path / "b.csv", "text,toxic,insult\na,0,1\nb,-1,-1\n")
    with pytest.raises(ls.DataError, match="no label column 'labels', only 'text', 'toxic', 'insult'"):
        load(hidden)
    alone = put(tmp_path / "c.csv", "text,spam\na,0\nb,1\n")
    with pytest.raises(
        ls.DataError, match="'spam' alone holds only 0 and 1; set label_column to 'spam' for the labels"
    ):
        load(alone)
    assert truth(load(alone, label_column="spam,spam")) == [set(), {"spam"}]
    blank = put(tmp_path / "d.jsonl", '{"text": "a", "x": 1, "y": 0}\n{"text": "b", "x": 1}\n')
    with pytest.raises(ls.DataError, match="line 2: .*'x' hold only 0 and 1.*'y' holds 'None'"):
        load(blank)


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    folder = columns(tmp_path / "d/train.csv").parent
    columns(folder / "test.csv", names=("toxic", "threat"))
    with pytest.raises(ls.DataError, match=r"differ from those of .*train.csv \('insult', 'threat'\)"):
        load(folder)
    put(folder / "test.csv", "text,labels\na,toxic\n")
    with pytest.raises(ls.DataError, match="test.csv.*a column holds the labels here, but columns of 0 and 1 in"):
        load(folder)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=1)))
def test_any_columns_of_bits_give_their_matrix(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("bits")
    names = [f"c{i}" for i in range(len(rows[0]))]
    lines = [",".join(["text", *names]), *(",".join(["t", *map(str, row)]) for row in rows)]
    put(folder / "a.csv", "\n".join(lines))
    put(
        folder / "b.jsonl",
        "".join(json.dumps({"text": "t"} | dict(zip(names, row, strict=True))) + "\n" for row in rows),
    )
    for path in sorted(folder.iterdir()):
        assert load(path).train.targets.toarray().tolist() == rows


XL = """
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix skosxl: <http://www.w3.org/2008/05/skos-xl#> .
@prefix : <http://example.org/> .
:a a skos:Concept ; skosxl:prefLabel [ skosxl:literalForm "ash"@en ] ; skosxl:altLabel :a2 .
:a2 skosxl:literalForm "ash tree"@en .
:b a skos:Concept ; skosxl:prefLabel :b1 , [ skosxl:literalForm "Birke"@de ] .
:b1 a skosxl:Label ; skosxl:literalForm "birch"@en .
"""


def vocabulary_of(folder: Path, turtle: str, **options: Any) -> ls.Labels:
    pytest.importorskip("rdflib")
    (folder / "vocab.ttl").write_text(turtle, encoding="utf-8")
    (folder / "train.tsv").write_text("one\t<http://example.org/a>\n", encoding="utf-8")
    return ls.load(folder, valid_fraction=0, **options).labels


def test_labels_of_skos_xl_are_read(tmp_path: Path) -> None:
    labels = vocabulary_of(tmp_path, XL, label_fields="preferred+alternative")
    assert list(labels.texts) == ["ash; ash tree", "birch"]
    assert list(labels.ids) == ["http://example.org/a", "http://example.org/b"]


def concepts(*labels: str) -> str:
    lines = [f":{name} a skos:Concept ; skos:prefLabel {own} ." for name, own in zip("abcd", labels, strict=False)]
    head = "@prefix skos: <http://www.w3.org/2004/02/skos/core#> .\n@prefix : <http://example.org/> .\n"
    return head + "\n".join(lines)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("en", ["colour", "grey", "plain"]),
        (None, ["colour", "grey", "plain"]),
        ("en-US", ["color", "grey", "plain"]),
        ("EN-gb", ["colour", "grey", "plain"]),
    ],
)
def test_a_language_takes_its_regions(tmp_path: Path, asked: str | None, expected: list[str]) -> None:
    turtle = concepts('"colour"@en-GB , "color"@en-US , "Farbe"@de', '"grey"@en', '"plain"@en , "plain-us"@en-AU')
    assert list(vocabulary_of(tmp_path, turtle, language=asked).texts) == expected


def test_only_a_region_serves_for_a_language(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    turtle = concepts('"colour"@en-GB', '"grey"@en-GB')
    assert list(vocabulary_of(tmp_path, turtle, language="en").texts) == ["colour", "grey"]
    assert "the language en is written en-gb here" in caplog.text
    with pytest.raises(DataError, match="no label in the language 'fr'"):
        vocabulary_of(tmp_path, turtle, language="fr")
    (tmp_path / "vocab.ttl").unlink()
    (tmp_path / "vocab.csv").write_text("uri,label_en-GB,label_de\nhttp://example.org/a,colour,Farbe\n")
    assert list(ls.load(tmp_path, valid_fraction=0, language="en").labels.texts) == ["colour"]


def test_two_preferred_labels_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turtle = concepts('"elm"@en , "ash"@en', '"birch"@en')
    assert list(vocabulary_of(tmp_path, turtle).texts) == ["ash", "birch"]
    assert "1 concepts have several preferred labels in one language" in caplog.text
    assert "'ash', not 'elm', for http://example.org/a" in caplog.text


def test_a_quoted_field_of_tsv_goes_over_lines_and_a_lone_quote_is_a_letter(tmp_path: Path) -> None:
    rows = [
        'id\ttext\tlabels',
        '1\t"first line', 'second ""line""', '', 'with\ttab"\ta',
        '2\t"never closed\tb',
        '3\ta "word" inside\tc',
        '4\t"tab\tinside"\td',
        '5\t5" pipe\te',
        '6\t"\tf',
    ]  # fmt: skip
    (tmp_path / "x.tsv").write_text("\n".join(rows) + "\n")
    data = ls.load(tmp_path / "x.tsv", valid_fraction=0).train
    assert list(data.texts) == [
        'first line\nsecond "line"\n\nwith\ttab', '"never closed', 'a "word" inside', "tab\tinside", '5" pipe', '"',
    ]  # fmt: skip
    assert list(data.ids) == list("123456") and data.targets.shape == (6, 6)


def test_a_quote_that_is_never_closed_keeps_all_rows(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('labels\ttext\na\t"open\nb\ttwo\nc\tend"\n')
    assert list(ls.load(tmp_path / "x.tsv", valid_fraction=0).train.texts) == ['"open', "two", 'end"']


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text('a"\n ', max_size=8) | st.text('a"\t ', max_size=8), min_size=1, max_size=5))
def test_what_python_writes_as_tsv_is_read_again(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    import csv

    path = tmp_path_factory.mktemp("tsv") / "x.tsv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", "text", "labels"])
        writer.writerows([f"d{row}", f"t{text}t", "a"] for row, text in enumerate(texts))
    assert list(ls.load(path, valid_fraction=0).train.texts) == [f"t{text}t" for text in texts]


def test_a_second_header_in_other_case_is_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: the header is repeated here"):
        load(put(tmp_path / "x.csv", "text,labels\nx,a\nLabels,TEXT\ny,b\n"))
    assert len(load(put(tmp_path / "y.csv", "text,labels\nx,a\nText,b\n")).train) == 2


def test_empty_sets_beside_lists_hold_no_label(tmp_path: Path) -> None:
    rows = ["x,\"('a', 'b')\"", "y,\"{'c'}\"", "z,set()", "v,frozenset()", "u,"]
    data = load(put(tmp_path / "x.csv", "text,labels\n" + "\n".join(rows) + "\n"))
    assert truth(data) == [{"a", "b"}, {"c"}, set(), set(), set()]
