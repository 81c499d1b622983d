"""Inputs of kinds that people reported of other tools: each gives the right value, or one sentence on what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import labelspace as ls
from labelspace.data.formats.cells import choose_separator, split_labels
from labelspace.data.scores import load_scores

BOM = "\ufeff"


def read(path: Path, content: str | bytes, **options: str) -> ls.Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return ls.load(path if path.stem not in ("train", "labels") else path.parent, valid_fraction=0.0, **options)


def truth(data: ls.Dataset) -> list[set[str]]:
    return [{data.labels.ids[j] for j in data.train.targets[[i]].indices} for i in range(len(data.train))]


# Labels as vectors of 0 and 1


def vectors(path: Path, kind: str, rows: list[list[int]]) -> Path:
    path.mkdir()
    file = path / f"train.{kind.partition('-')[0]}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": [f"text {i}" for i in range(len(rows))], "labels": rows}), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"text": f"text {i}", "labels": r}) + "\n" for i, r in enumerate(rows)))
    else:
        mark = {"csv-list": None, "csv-blanks": " ", "csv-semicolons": ";"}[kind]
        cells = [json.dumps(row) if mark is None else mark.join(map(str, row)) for row in rows]
        file.write_text("text,labels\n" + "".join(f'text {i},"{cell}"\n' for i, cell in enumerate(cells)))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv-list", "csv-blanks", "csv-semicolons"])
def test_vectors_are_read_by_the_labels_file_or_refused(tmp_path: Path, kind: str) -> None:
    folder = vectors(tmp_path / "d", kind, [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(ls.DataError, match="4 numbers of 0 and 1.*labels.txt beside the data"):
        ls.load(folder)
    (folder / "labels.txt").write_text("cars\nfood\nsoup\nmoss\n")
    data = ls.load(folder, valid_fraction=0.0)
    assert list(data.labels.ids) == ["cars", "food", "soup", "moss"]
    assert truth(data) == [{"food", "soup"}, {"cars"}, set()]
    (folder / "labels.txt").write_text("cars\nfood\nsoup\n")
    with pytest.raises(ls.DataError, match="but the labels file has 3 labels"):
        ls.load(folder)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=2)))
def test_no_vector_becomes_labels_in_silence(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]) -> None:
    folder = vectors(tmp_path_factory.mktemp("v") / "d", "jsonl", rows)
    with pytest.raises(ls.DataError, match="numbers of 0 and 1"):
        ls.load(folder)
    names = [f"label {i}" for i in range(len(rows[0]))]
    (folder / "labels.txt").write_text("\n".join(names))
    expected = [{name for name, one in zip(names, row, strict=True) if one} for row in rows]
    assert truth(ls.load(folder, valid_fraction=0.0)) == expected


def test_labels_that_are_called_0_and_1_stay(tmp_path: Path) -> None:
    data = read(tmp_path / "a.jsonl", '{"text": "a", "labels": [0]}\n{"text": "b", "labels": [0, 1]}\n')
    assert truth(data) == [{"0"}, {"0", "1"}]
    assert truth(read(tmp_path / "b.csv", "text,label\na,0\nb,1\n")) == [{"0"}, {"1"}]


def test_a_label_twice_in_a_row_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = read(tmp_path / "a.jsonl", '{"text": "a", "labels": ["x"]}\n{"text": "b", "labels": ["x", "y", "x"]}\n')
    assert truth(data) == [{"x"}, {"x", "y"}]
    assert "1 labels are given again in the same document, first in document 1" in caplog.text


# Separators


def test_a_rare_mark_does_not_turn_a_column_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "".join(f'note {i},"food,soup"\n' for i in range(20))
    for odd in ("B&amp;B,hotels", "caf&#233;,food", "see; also,food", "food||soup,hotels"):
        caplog.clear()
        data = read(tmp_path / "a.csv", f'text,labels\n{rows}last,"{odd}"\n')
        assert truth(data)[0] == {"food", "soup"}
        assert "labels look separated by ',' (it parts 21 of 21 cells" in caplog.text
        if "&" in odd:
            assert truth(data)[-1] == set(odd.split(",")) and f"{odd.split(';')[0].split(',')[0]}" in caplog.text
            assert "HTML entities" in caplog.text
        else:
            assert "would part 1)" in caplog.text


def test_names_with_commas_keep_them_where_semicolons_are_rare(tmp_path: Path) -> None:
    people = ["Curie, Marie", "Noether, Emmy", "Meitner, Lise"]
    rows = [f'"{people[i % 3]}"' for i in range(30)] + ['"Curie, Marie; Meitner, Lise"', '"Noether, Emmy;Curie, Marie"']
    data = read(tmp_path / "a.csv", "text,labels\n" + "".join(f"t{i},{row}\n" for i, row in enumerate(rows)))
    assert set(data.labels.ids) == set(people) and truth(data)[-1] == {"Noether, Emmy", "Curie, Marie"}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.sampled_from(["oak", "elm", "B&amp;B", "AT&T", "&lt;x&gt;", "a b"]), min_size=2, max_size=4),
             min_size=3, max_size=20),
    st.sampled_from([";", "|", ","]),
)  # fmt: skip
def test_entities_are_never_split(rows: list[list[str]], mark: str) -> None:
    cells = [mark.join(row) for row in rows]
    assert choose_separator(cells, False, None).mark == mark
    assert [split_labels(cell, mark) for cell in cells] == rows


@pytest.mark.parametrize(
    ("cells", "mark"),
    [(["A01.1 B02", "I10"], " "), (["#oak #elm", "#moss"], " "), (["__label__a __label__b", "__label__c"], " "),
     (["cs.LG stat.ML", "math.OC"], " "), (["a\nb", "c"], "\n"), (["('a', 'b')", "('c',)"], "[]"),
     (["{'a', 'b'}", "set()", "{'c'}"], "[]"),
     (["red oak", "elm tree"], ""), (["soup of the day", "e.g. moss"], "")],
)  # fmt: skip
def test_what_stands_between_labels(cells: list[str], mark: str) -> None:
    assert choose_separator(cells, False, None).mark == mark


def test_tuples_sets_and_texts_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "a,\"('food', 'soup')\"\nb,\"('cars',)\"\nc,()\n"
    assert truth(read(tmp_path / "a.csv", f"text,labels\n{rows}")) == [{"food", "soup"}, {"cars"}, set()]
    data = read(tmp_path / "b.csv", "text,labels\na,food;soup\nb,nan\nc,None\nd,<NA>\ne,nan\n")
    assert truth(data) == [{"food", "soup"}, set(), set(), set(), set()]
    assert "'nan' (2 times) and 'None' (1 times) and '<NA>' (1 times), the text of no value" in caplog.text


def test_a_text_of_several_labels_in_jsonl_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = '{"text": "a", "labels": "food;soup"}\n{"text": "b", "labels": "food"}\n'
    assert truth(read(tmp_path / "a.jsonl", lines)) == [{"food;soup"}, {"food"}]
    assert (
        "such as 'food;soup', count as one label; if they are several, give lists, or set separator to ';'"
        in caplog.text
    )
    assert truth(read(tmp_path / "a.jsonl", lines, separator=";")) == [{"food", "soup"}, {"food"}]


# Files put together


@pytest.mark.parametrize(
    "second", ["text,labels", BOM + "text,labels", " text , labels", "labels,text", '"text","labels"']
)
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_header_in_the_middle_is_named(tmp_path: Path, second: str, kind: str) -> None:
    content = f"{BOM}text,labels\ngood soup,food\n{second}\nfast car,cars\n"
    with pytest.raises(ls.DataError, match="line 3: the header is repeated here") as caught:
        read(tmp_path / f"a.{kind}", content if kind == "csv" else content.replace(",", "\t"))
    assert caught.value.line == 3


def test_marks_before_lines_and_in_labels_are_no_letters(tmp_path: Path) -> None:
    data = read(tmp_path / "a.csv", f"text,{BOM}labels\ngood soup,food\n{BOM}fast car,{BOM}cars\n")
    assert list(data.train.texts) == ["good soup", "fast car"] and truth(data) == [{"food"}, {"cars"}]
    lines = '{"text": "a", "labels": ["x"]}\n' + BOM + '{"text": "b", "labels": ["y' + BOM + '"]}\n'
    assert truth(read(tmp_path / "a.jsonl", lines)) == [{"x"}, {"y"}]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "labels.txt").write_text(f"{BOM}cars\n{BOM}food\n", encoding="utf-8")
    assert truth(read(tmp_path / "d" / "train.csv", "text,labels\na,food\nb,cars\n")) == [{"food"}, {"cars"}]


def test_empty_lines_before_a_header_do_not_choose_the_delimiter(tmp_path: Path) -> None:
    assert truth(read(tmp_path / "a.csv", "\n\r\ntext;labels\na;x|y\nb;x\n")) == [{"x", "y"}, {"x"}]
    with pytest.raises(ls.DataError, match="no documents"):
        read(tmp_path / "b.csv", "\n\n")


# Runs


IDS, LABEL_IDS = ["q1", "q2"], ["d1", "d2", "d3"]


def test_ranks_are_no_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run(content: str) -> list[list[int]]:
        path = tmp_path / "run.tsv"
        path.write_text(content)
        return load_scores(path, 3, None, IDS, LABEL_IDS).indices.tolist()

    expected = [[2, 0], [1, 2]]
    assert run("q1\td3\t1\nq1\td1\t2\nq2\td2\t1\nq2\td3\t2\n") == expected  # MS MARCO
    assert "it was taken for the rank" in caplog.text
    assert run("q1\td3\t0\nq2\td2\t0\nq1\td1\t1\nq2\td3\t1\n") == expected
    assert run("qid\tdocid\trank\nq1\td1\t2\nq1\td3\t1\nq2\td2\t1\nq2\td3\t2\n") == expected
    assert run("q1\td3\t1\t17.5\nq1\td1\t2\t12\nq2\td2\t1\t3.5\nq2\td3\t2\t-1\n") == expected  # ColBERT
    caplog.clear()
    assert run("q1\td3\t2\nq1\td1\t1\nq2\td2\t2\nq2\td3\t1\n") == expected  # scores that fall
    assert run("q1\td1\t0.5\nq1\td3\t0.75\nq2\td2\t2\nq2\td3\t1\n") == expected
    assert run("qid\tdocid\tscore\nq1\td1\t1\nq1\td3\t2\nq2\td3\t1\nq2\td2\t2\n") == expected
    assert "rank" not in caplog.text
    with pytest.raises(ls.DataError, match="may be the rank or the score; name the columns in a header"):
        run("q1\td1\t2\nq1\td3\t1\nq2\td2\t1\nq2\td3\t2\n")


# Encodings


def test_one_bad_byte_is_named_where_the_rest_is_utf_8(tmp_path: Path) -> None:
    good = "".join(f"Käse und Brötchen {i},Lebensmittel\n" for i in range(9)).encode()
    for bad in (b"stra\xdfe,Verkehr\n", b"\x80,Verkehr\n"):
        with pytest.raises(
            ls.DataError, match=r"line 11, 0x(df|80), is not UTF-8, but 18 other signs of this file are"
        ):
            read(tmp_path / "a.csv", b"text,labels\n" + good + bad)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.text("äöüéñß", min_size=1, max_size=8), min_size=2, max_size=9), st.data())
def test_a_bad_byte_never_turns_the_others_over(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    lines = ["text,labels", *(f"a {text},x" for text in texts)]
    content = bytearray("\n".join(lines).encode())
    places = [i for i, byte in enumerate(content) if byte >= 0x80]
    content[data.draw(st.sampled_from(places))] = 0xFF
    path = tmp_path_factory.mktemp("e") / "a.csv"
    if sum(map(len, texts)) <= 4:
        return  # too few others to tell
    with pytest.raises(ls.DataError, match="is not UTF-8"):
        read(path, bytes(content))


def test_windows_signs_are_read_as_windows_has_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = "text,labels\na “quoted” price of 5 €,children’s books\nx,Größe\n"
    data = read(tmp_path / "a.csv", content.encode("cp1252"))
    assert data.train.texts[0] == "a “quoted” price of 5 €" and set(data.labels.ids) == {"Größe", "children’s books"}
    assert "a.csv is not UTF-8; it was read as Windows-1252" in caplog.text
    assert read(tmp_path / "b.csv", b"text,labels\n\x81\xe4,x\n").train.texts[0] == "\x81ä"  # no sign of Windows


def test_the_first_bytes_count_and_not_the_name(tmp_path: Path) -> None:
    content = "text,labels\ncafé one,x\ntwo,y\n"
    assert read(tmp_path / "a.csv", gzip.compress(content.encode())).train.texts[0] == "café one"
    assert read(tmp_path / "b.csv.gz", content).train.texts[0] == "café one"
    for encoding in ("utf-16", "utf-32"):
        with pytest.raises(ls.DataError, match=f"this is {encoding.upper()}; state encoding='{encoding}'"):
            read(tmp_path / "c.csv", content.encode(encoding))
        assert read(tmp_path / "c.csv", content.encode(encoding), encoding=encoding).train.texts[0] == "café one"
    with pytest.raises(ls.DataError, match="this is a zip file .* and no text; unpack it"):
        read(tmp_path / "d.csv", b"PK\x03\x04" + b"\0" * 40)


# Names that look alike


def test_forms_of_unicode_name_the_same_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "labels.csv").write_text("id,text\nb,Bücher\nf,food\n", encoding="utf-8")
    decomposed = "Bu\u0308cher"
    data = read(tmp_path / "d" / "train.csv", f"text,labels\na,{decomposed}\nb,food\u200b\n")
    assert truth(data) == [{"b"}, {"f"}]
    (tmp_path / "d" / "labels.csv").write_text("id,text\nb,Bücher\nc,Bücher\u200b\n", encoding="utf-8")
    with pytest.raises(ls.DataError, match="stands for more than one label of .* \\(lines 2 and 3\\); use ids"):
        ls.load(tmp_path / "d")
    data = read(tmp_path / "e.csv", f"text,label\na,Bücher\nb,{decomposed}\nc,Food\nd,food\n")
    assert len(data.labels) == 4
    assert "2 labels are written like another one, such as " in caplog.text and "U+0308" in caplog.text


# Standard output


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_what_is_written_to_a_file_is_utf_8(tmp_path: Path, encoding: str, tiny_transformer: Path) -> None:
    model = ls.Model.from_encoder(str(tiny_transformer), labels=["Łódź", "日本"], device="cpu")
    model.save(tmp_path / "m")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "labelspace"]
    listed = subprocess.run([*command, "labels", "list", str(tmp_path / "m")], capture_output=True, env=environment)
    assert listed.returncode == 0 and listed.stdout.decode().split() == ["Łódź", "Łódź", "日本", "日本"]
    asked = [*command, "predict", str(tmp_path / "m"), "-", "--k", "2", "--format", "tsv", "--device", "cpu"]
    answered = subprocess.run(asked, input=b"boats\n", capture_output=True, env=environment)
    assert answered.returncode == 0 and {"Łódź", "日本"} <= set(answered.stdout.decode().split())
    assert np.all([b"?" not in answered.stdout])


# Forms of Unicode in texts


@pytest.mark.parametrize(
    "text",
    ["हिन्दी साहित्य", "বাংলা কবিতা", "தமிழ் இலக்கியம்", "తెలుగు కవిత", "שָׁלוֹם עוֹלָם", "tiếng Việt", "ภาษาไทย", "中文书", "Bücher"],
)  # fmt: skip
def test_both_forms_of_a_text_get_the_same_answers(text: str, tiny_transformer: Path) -> None:
    model = ls.Model.from_encoder(str(tiny_transformer), labels=["oak", "moss", text], device="cpu")
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    first, second = model.predict([composed], k=3), model.predict([decomposed], k=3)
    assert first.indices.tolist() == second.indices.tolist() and (first.scores == second.scores).all()
