"""Tiny files in exactly the layouts of public data: each is read, trained on, measured, predicted and converted.

All hold the same documents. What a layout cannot say differs, and stands in its `Layout`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.texts import read_texts

LABELS = ["oak trees", "wild roses", "ferns", "mosses", "stones"]
"""The last is in no document, and only a file of labels or a vocabulary knows of it."""
WORDS = ["oak acorn bark", "rose thorn petal", "fern frond spore", "moss cushion damp"]


def documents(count: int, start: int) -> list[tuple[str, list[int]]]:
    """Texts and numbers of their labels; every third has two."""
    rows = []
    for i in range(start, start + count):
        own = [i % 4] if i % 3 else [i % 4, (i + 1) % 4]
        rows.append((f"{' and '.join(WORDS[n] for n in own)} note {'abcdefghijklmnopqrstuvwxyz'[i]}", own))
    return rows


PARTS = {"train": documents(12, 0), "test": documents(4, 12), "valid": documents(4, 16)}
URIS = [f"http://example.org/y/{number}" for number in range(5)]


def put(path: Path, content: str) -> None:
    """Write a file, as gzip where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def put_lines(path: Path, lines: list[str]) -> None:
    put(path, "".join(f"{line}\n" for line in lines))


def put_json(path: Path, rows: list[dict[str, Any]]) -> None:
    put_lines(path, list(map(json.dumps, rows)))


@dataclass(frozen=True)
class Layout:
    """Files of a layout, and what is read of them.

    Args:
        write: makes them in a folder, and gives the path to load.
        flags: that say how the data is read.
        parts: that it has; without "valid" a part of train is held out.
        labels: texts of those that the documents name 0 to 4.
        refused: what is said where nothing can be trained.
        texts: flags of predict.
    """

    write: Callable[[Path], Path]
    flags: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("train", "test")
    labels: Sequence[str] = tuple(LABELS)
    refused: str = ""
    texts: tuple[str, ...] = ()


# Annif


def put_vocabulary(path: Path) -> None:
    pairs = list(zip(URIS, LABELS, strict=True))
    match path.name.removesuffix(".gz").rpartition(".")[2]:
        case "tsv":
            put_lines(path, [f"<{uri}>\t{label}" for uri, label in pairs])
        case "csv":
            rows = (f"{uri},{i}.1,{label},fi {label}" for i, (uri, label) in enumerate(pairs))
            put_lines(path, ["uri,notation,label_en,label_fi", *rows])
        case "ttl":
            rows = (f'<{uri}> a skos:Concept ; skos:prefLabel "{label}"@en, "fi {label}"@fi .' for uri, label in pairs)
            put_lines(path, ["@prefix skos: <http://www.w3.org/2004/02/skos/core#> .", *rows])
        case "rdf":
            concept = '<skos:Concept rdf:about="{}"><skos:prefLabel xml:lang="en">{}</skos:prefLabel></skos:Concept>'
            head = (
                '<?xml version="1.0" encoding="utf-8"?>\n<rdf:RDF xmlns:skos="http://www.w3.org/2004/02/skos/core#" '
                'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            )
            put_lines(path, [head, *(concept.format(*pair) for pair in pairs), "</rdf:RDF>"])


def annif_documents(subjects: str, vocabulary: str) -> Callable[[Path], Path]:
    """A folder ``docs`` with a folder for each part, as Annif's tutorial has them."""

    def write(folder: Path) -> Path:
        for part, stem in (("train", "train"), ("valid", "validate"), ("test", "test")):
            for i, (text, own) in enumerate(PARTS[part]):
                put(folder / "docs" / stem / f"{i:02}.txt", f"{text}\n")
                lines = [f"<{URIS[n]}>\t{LABELS[n]}" if subjects == "tsv" else LABELS[n] for n in own]
                put_lines(folder / "docs" / stem / f"{i:02}.{subjects}", lines)
        put_vocabulary(folder / "docs" / vocabulary)
        return folder / "docs"

    return write


def annif_short(kind: str, vocabulary: str) -> Callable[[Path], Path]:
    """Short texts, a file for each part."""

    def write(folder: Path) -> Path:
        for part, rows in PARTS.items():
            uris = [(text, " ".join(f"<{URIS[n]}>" for n in own)) for text, own in rows]
            lines = [f"{text}\t{cell}" for text, cell in uris]
            if ".csv" in kind:
                lines = ["document_id,text,subject_uris", *(f'd{i},"{t}",{cell}' for i, (t, cell) in enumerate(uris))]
            put_lines(folder / f"{part}{kind}", lines)
        put_vocabulary(folder / vocabulary)
        return folder

    return write


# Retrieval


def beir(folder: Path) -> Path:
    rows = [{"_id": f"l{i}", "title": name, "text": f"about {name}", "metadata": {}} for i, name in enumerate(LABELS)]
    put_json(folder / "corpus.jsonl", rows)
    number = 0
    queries: list[dict[str, Any]] = []
    for part, stem in (("train", "train"), ("valid", "dev"), ("test", "test")):
        judged = ["query-id\tcorpus-id\tscore"]
        for text, own in PARTS[part]:
            queries.append({"_id": f"q{number}", "text": text, "metadata": {"url": "x"}})
            judged += [f"q{number}\tl{n}\t1" for n in own]
            number += 1
        put_lines(folder / "qrels" / f"{stem}.tsv", judged)
    put_json(folder / "queries.jsonl", queries)
    return folder


def marco(folder: Path) -> Path:
    put_lines(folder / "collection.tsv", [f"{i}\t{name}" for i, name in enumerate(LABELS)])
    number = 100
    for part, stem in (("train", "train"), ("valid", "dev.small")):
        queries, judged = [], []
        for text, own in PARTS[part]:
            queries.append(f"{number}\t{text}")
            judged += [f"{number}\t0\t{n}\t1" for n in own]
            number += 1
        put_lines(folder / f"queries.{stem}.tsv", queries)
        put_lines(folder / f"qrels.{stem}.tsv", judged)
    put_lines(folder / "queries.eval.small.tsv", ["900\tnot judged"])
    return folder


# The Extreme Classification Repository


def lf(folder: Path) -> Path:
    folder = folder / "LF-AmazonTitles-131K"
    for part, stem in (("train", "trn"), ("test", "tst")):
        rows = [
            {"uid": f"B{i:03}", "title": text, "content": "", "target_ind": own, "target_rel": [1.0] * len(own)}
            for i, (text, own) in enumerate(PARTS[part])
        ]
        put_json(folder / f"{stem}.json.gz", rows)
    rows = [{"uid": f"L{i}", "title": name, "content": ""} for i, name in enumerate(LABELS)]
    put_json(folder / "lbl.json.gz", rows)
    put_filters(folder)
    return folder


def lf_raw(folder: Path) -> Path:
    """LF-Wikipedia-500K, whose labels stand in a file of names."""
    for part, stem in (("train", "trn"), ("test", "tst")):
        rows = [
            {"uid": f"{i}", "title": text, "content": "", "target_ind": own}
            for i, (text, own) in enumerate(PARTS[part])
        ]
        put_json(folder / f"{stem}.raw.json.gz", rows)
    put_lines(folder / "Yf.txt", [f"{i}->{name}" for i, name in enumerate(LABELS)])
    put_filters(folder)
    return folder


def put_filters(folder: Path) -> None:
    put_lines(folder / "filter_labels_train.txt", ["0 4", "3 2"])
    put_lines(folder / "filter_labels_test.txt", ["1 4"])


def truth(part: str) -> sp.csr_array:
    matrix = sp.lil_array((len(PARTS[part]), len(LABELS)), dtype=np.float32)
    for row, (_, own) in enumerate(PARTS[part]):
        matrix[row, own] = 1
    return matrix.tocsr()


def put_raw(folder: Path) -> None:
    for part, stem in (("train", "trn"), ("test", "tst")):
        put_lines(folder / f"{stem}_X.txt", [text for text, _ in PARTS[part]])
    put_lines(folder / "Y.txt", LABELS)


def dexml_raw(folder: Path) -> Path:
    put_raw(folder / "raw")
    for part, stem in (("train", "trn"), ("test", "tst")):
        sp.save_npz(folder / f"Y.{stem}.npz", sp.csr_matrix(truth(part)))
    put_filters(folder)
    return folder


def repository_text(folder: Path) -> Path:
    """Features and truth apart, with raw texts, as the repository's newer archives."""
    put_raw(folder / "raw_data")
    for part, stem in (("train", "trn"), ("test", "tst")):
        rows = PARTS[part]
        put_lines(folder / f"{stem}_X_Xf.txt", [f"{len(rows)} 9", *("0:0.5 8:1" for _ in rows)])
        lines = [" ".join(f"{n}:1" for n in own) for _, own in rows]
        put_lines(folder / f"{stem}_X_Y.txt", [f"{len(rows)} 5", *lines])
    put_filters(folder)
    return folder


def bag_of_words(train: str, test: str, header: bool = True) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for part, name in (("train", train), ("test", test)):
            lines = [f"{','.join(map(str, own))} 0:0.5 {8 - own[0]}:1" for _, own in PARTS[part]]
            put_lines(folder / name, [f"{len(lines)} 9 5", *lines] if header else lines)
        return folder

    return write


# Tables


def hub(names_in: str, feature: str = "sequence", folders: str = "data") -> Callable[[Path], Path]:
    """Parquet files as the Hub shows them, with the names of labels in one of the places where it keeps them."""

    def write(folder: Path) -> Path:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        used = LABELS[:4]
        for part, stem, shards in (("train", "train", 2), ("valid", "validation", 1), ("test", "test", 1)):
            rows = PARTS[part]
            for shard in range(shards):
                own = rows[shard::shards] if shards == 1 else rows[6 * shard : 6 * shard + 6]
                table = pa.table({
                    "text": [text for text, _ in own],
                    "labels": pa.array([numbers for _, numbers in own], pa.list_(pa.int64())),
                })  # fmt: skip
                if names_in == "schema":
                    inner = {"names": used, "_type": "ClassLabel"}
                    features = {"text": {"dtype": "string", "_type": "Value"},
                                "labels": {"feature": inner, "_type": "List"}}  # fmt: skip
                    said = json.dumps({"info": {"features": features}})
                    table = table.replace_schema_metadata({"huggingface": said})
                name = f"data/{stem}-{shard:05}-of-{shards:05}" if folders == "data" else f"{stem}/{shard:04}"
                path = folder / f"{name}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, path)
        if names_in == "README.md":
            listed = "".join(f"          '{i}': {name}\n" for i, name in enumerate(used))
            put(folder / "README.md",
                "---\nlicense: mit\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: labels\n"
                f"    {feature}:\n      class_label:\n        names:\n{listed}  splits:\n  - name: train\n"
                "    num_examples: 12\n---\n\n# Plants\n")  # fmt: skip
        if names_in == "dataset_infos.json":
            inner = {"num_classes": 4, "names": used, "id": None, "_type": "ClassLabel"}
            features = {"labels": {"feature": inner, "length": -1, "id": None, "_type": "Sequence"}}
            put(folder / names_in, json.dumps({"default": {"description": "", "features": features}}))
        return folder

    return write


COLUMNS = ["oak_trees", "wild_roses", "ferns", "mosses"]


def one_hot(folder: Path) -> Path:
    """The toxic comments of Kaggle, with other names; those of test.csv were given apart, and later."""
    rows = [
        f'{i:016x},"{text}",{",".join(str(int(n in own)) for n in range(4))}'
        for i, (text, own) in enumerate(PARTS["train"])
    ]
    put_lines(folder / "train.csv", [f"id,comment_text,{','.join(COLUMNS)}", *rows])
    put_lines(folder / "test.csv", ["id,comment_text", '00,"not labelled"'])
    put_lines(folder / "test_labels.csv", [f"id,{','.join(COLUMNS)}", "00,-1,-1,-1,-1"])
    return folder


ARXIV = ["math.CO", "hep-ph", "cs.LG", "astro-ph.GA"]


def arxiv(folder: Path) -> Path:
    rows = [
        {
            "id": f"0704.{i:04}", "submitter": "A B", "authors": "A B and C D", "title": f"note {i}\n  of plants",
            "comments": None, "journal-ref": None, "doi": None, "report-no": None,
            "categories": " ".join(ARXIV[n] for n in own), "license": None, "abstract": f"  {text}\n",
            "versions": [{"version": "v1", "created": "Mon, 2 Apr 2007 19:18:42 GMT"}], "update_date": "2008-11-26",
            "authors_parsed": [["B", "A", ""]],
        }
        for i, (text, own) in enumerate(PARTS["train"])
    ]  # fmt: skip
    put_json(folder / "arxiv-metadata-oai-snapshot.json", rows)
    return folder / "arxiv-metadata-oai-snapshot.json"


TAGS = ["c#", ".net-3.5", "c++", "node.js"]


def stack_lists(folder: Path) -> Path:
    rows = [
        {"Id": i, "Title": text, "Body": "<p>x</p>", "Tags": [TAGS[n] for n in own]}
        for i, (text, own) in enumerate(PARTS["train"])
    ]
    put_json(folder / "questions.jsonl", rows)
    return folder / "questions.jsonl"


def stack_csv(mark: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rows = []
        for i, (text, own) in enumerate(PARTS["train"]):
            tags = "".join(f"<{TAGS[n]}>" for n in own) if mark == "<>" else mark.join(TAGS[n] for n in own)
            rows.append(f'"{i}","{text}","<p>x</p>","{tags}"')
        put_lines(folder / "Train.csv", ['"Id","Title","Body","Tags"', *rows])
        return folder / "Train.csv"

    return write


SLUGS = ["oak-trees", "wild-roses", "ferns", "mosses"]


def fasttext(*names: str) -> Callable[[Path], Path]:
    """A labelled line a document; with one name a file, else a folder."""

    def write(folder: Path) -> Path:
        for part, name in zip(("train", "valid", "test"), names, strict=False):
            put_lines(folder / name, [
                f"{' '.join(f'__label__{SLUGS[n]}' for n in own)} {text}" for text, own in PARTS[part]
            ])  # fmt: skip
        return folder if len(names) > 1 else folder / names[0]

    return write


ALL = ("train", "valid", "test")
NO_TEXTS = "features without texts"
TITLE, COMMENT = ("--text-column", "Title"), ("--text-column", "comment_text")
LAYOUTS = {
    "annif documents, key, ttl": Layout(annif_documents("key", "vocab.ttl"), parts=ALL),
    "annif documents, tsv, rdf": Layout(annif_documents("tsv", "vocab.rdf"), parts=ALL),
    "annif tsv, vocab.tsv": Layout(annif_short(".tsv", "vocab.tsv"), parts=ALL),
    "annif tsv.gz, vocab.csv": Layout(annif_short(".tsv.gz", "vocab.csv"), parts=ALL),
    "annif csv, vocab.ttl": Layout(annif_short(".csv", "plants-skos.ttl"), parts=ALL),
    "annif csv.gz, vocab.tsv.gz": Layout(annif_short(".csv.gz", "vocab.tsv.gz"), parts=ALL),
    "beir": Layout(beir, parts=ALL, labels=[f"{name} about {name}" for name in LABELS]),
    "ms marco": Layout(marco, parts=("train", "valid")),
    "lf": Layout(lf),
    "lf, raw names": Layout(lf_raw),
    "dexml raw": Layout(dexml_raw),
    "repository, texts": Layout(repository_text),
    "repository, old": Layout(bag_of_words("train.txt", "test.txt"), labels="01234", refused=NO_TEXTS),
    "repository, older": Layout(bag_of_words("eurlex_train.txt", "eurlex_test.txt"), labels="01234", refused=NO_TEXTS),
    "svmlight": Layout(bag_of_words("train.txt", "test.txt", header=False), refused="the first line must be"),
    "hub, schema": Layout(hub("schema"), parts=ALL, labels=LABELS[:4]),
    "hub, readme": Layout(hub("README.md"), parts=ALL, labels=LABELS[:4]),
    "hub, readme of lists": Layout(hub("README.md", "list"), parts=ALL, labels=LABELS[:4]),
    "hub, dataset_infos": Layout(hub("dataset_infos.json"), parts=ALL, labels=LABELS[:4]),
    "hub, converted": Layout(hub("schema", folders="splits"), parts=ALL, labels=LABELS[:4]),
    "arxiv": Layout(
        arxiv, ("--text-column", "abstract", "--label-column", "categories", "--separator", " "), ("train",), ARXIV,
        texts=("--text-column", "abstract"),
    ),
    "stack overflow, lists": Layout(
        stack_lists, (*TITLE, "--label-column", "Tags"), ("train",), TAGS, texts=TITLE
    ),
    "stack overflow, blanks": Layout(
        stack_csv(" "), (*TITLE, "--label-column", "Tags", "--separator", " "), ("train",), TAGS,
        texts=TITLE,
    ),
    "stack overflow, angles": Layout(
        stack_csv("<>"), (*TITLE, "--label-column", "Tags"), ("train",), TAGS,
        texts=TITLE,
    ),
    "fasttext file": Layout(fasttext("cooking.stackexchange.txt"), parts=("train",), labels=SLUGS),
    "fasttext parts": Layout(fasttext("cooking.train", "cooking.valid"), parts=("train", "valid"), labels=SLUGS),
    "fasttext folder": Layout(fasttext("train.txt", "valid.txt", "test.txt"), parts=ALL, labels=SLUGS),
    "kaggle one-hot": Layout(one_hot, COMMENT, ("train",), COLUMNS, texts=COMMENT),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_goes_all_the_way(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS[name]
    path, out = layout.write(tmp_path / "in"), tmp_path / "model"
    train = [
        "train",
        str(path),
        "--recipe",
        "dexml",
        "--encoder",
        "static",
        "--epochs",
        "2",
        "--out",
        str(out),
        "--quiet",
    ]
    if layout.refused:
        assert main([*train, *layout.flags]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert layout.refused in said and not out.exists()
        if "first line" in said:
            return
    options: Any = {flag[2:].replace("-", "_"): value for flag, value in zip(*[iter(layout.flags)] * 2, strict=True)}
    data = ls.load(path, **options)
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    for part, corpus in parts.items():
        if part not in layout.parts:
            assert corpus is None if part == "test" else len(data.valid_rows) == len(corpus)
            continue
        assert corpus is not None and len(corpus) == len(PARTS[part])
        assert sorted(data.labels.texts) == sorted(layout.labels) and corpus.targets.shape[1] == len(layout.labels)
        rows = corpus.targets.toarray()
        named = [{data.labels.texts[n] for n in np.flatnonzero(row)} for row in rows]
        assert named == [{layout.labels[n] for n in own} for _, own in PARTS[part]]
        if not layout.refused:
            assert [text.strip() for text in corpus.texts] == [text for text, _ in PARTS[part]]
    assert main(["info", str(path), *layout.flags, "--json"]) == 0
    capsys.readouterr()
    assert main(["convert", str(path), str(tmp_path / "again"), "--to", "jsonl", *layout.flags, "--quiet"]) == 0
    again = ls.load(tmp_path / "again")
    assert list(again.labels.texts) == list(data.labels.texts) and (again.train.targets != data.train.targets).nnz == 0
    assert len(again.train) == 12 and (again.test is None) == ("test" not in layout.parts)
    if layout.refused:
        return
    assert main([*train, *layout.flags]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), str(path), "--json", "--quiet"]) == 0
    measured = json.loads(capsys.readouterr().out)
    measured_on = 4 if "test" in layout.parts else len(data.valid)
    assert measured["counts"]["documents"] == measured_on
    assert measured["counts"]["labels"] == len(layout.labels)
    assert 0 <= measured["metrics"]["P@1"] <= 100
    source = tmp_path / "texts.txt" if path.is_dir() or path.suffix == ".txt" else path
    if source != path:
        put_lines(source, [text for text, _ in PARTS["test"]])
    assert main(["predict", str(out), str(source), "--k", "2", "--format", "jsonl", "--quiet",
                 *(layout.texts if source == path else ())]) == 0  # fmt: skip
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert len(lines) == (12 if source == path else 4) and all(len(line["labels"]) == 2 for line in lines)
    assert {label["id"] for line in lines for label in line["labels"]} <= set(data.labels.ids)


def test_test_documents_without_labels_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ls.load(one_hot(tmp_path / "toxic"), text_column="comment_text")
    assert data.test is None and "test.csv has no labels, so nothing can be measured on it" in caplog.text
    put_lines(tmp_path / "train.csv", ["text,labels", "a,x", "b,y"])
    put_lines(tmp_path / "test.csv", ["text", "a"])
    assert ls.load(tmp_path).test is None
    put_lines(tmp_path / "test.csv", ["text,tags", "a,x"])  # another name than in train
    with pytest.raises(ls.DataError, match=r"test\.csv: there is no label column 'labels', only 'text', 'tags'"):
        ls.load(tmp_path)
    put_lines(tmp_path / "test.csv", ["text,labels", "a,x"])
    put_lines(tmp_path / "train.csv", ["text", "a"])
    with pytest.raises(ls.DataError, match=r"train\.csv: there is no label column"):
        ls.load(tmp_path)


def test_judgements_of_mteb_are_json(tmp_path: Path) -> None:
    beir(tmp_path)
    plain = ls.load(tmp_path)
    for path in (tmp_path / "qrels").glob("*.tsv"):
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        path.unlink()
        put_json(path.with_suffix(".jsonl"), [{"query-id": q, "corpus-id": d, "score": int(s)} for q, d, s in rows])
    data = ls.load(tmp_path)
    for one, other in ((data.train, plain.train), (data.valid, plain.valid), (data.test, plain.test)):
        assert list(one.ids) == list(other.ids) and (one.targets != other.targets).nnz == 0
    put_lines(tmp_path / "qrels" / "test.jsonl", ['{"query-id": "q1", "corpus-id": "l1", "score": "1"}'])
    with pytest.raises(
        ls.DataError, match=r"test\.jsonl, line 1: expected 'query-id', 'corpus-id' and a number 'score'"
    ):
        ls.load(tmp_path)


def test_runs_of_ms_marco_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = marco(tmp_path / "marco")
    data = ls.load(folder)
    assert list(data.valid.ids) == ["112", "113", "114", "115"] and list(data.labels.ids) == ["0", "1", "2", "3", "4"]
    ranked = [[*own, *(n for n in range(5) if n not in own)] for _, own in PARTS["valid"]]
    lines = [f"{112 + i}\t{n}\t{rank}" for i, row in enumerate(ranked) for rank, n in enumerate(row, start=1)]
    put_lines(tmp_path / "run.dev.small.tsv", lines)
    flags = ["--split", "valid", "--json", "--quiet"]
    assert main(["evaluate", str(tmp_path / "run.dev.small.tsv"), str(folder), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["P@1"] == 100 and found["metrics"]["nDCG@5"] == 100 and found["counts"]["depth"] == 5
    put_lines(folder / "queries.train.tsv", ["100\tx"])
    with pytest.raises(
        ls.DataError, match=r"qrels\.train\.tsv, line 3: the query '101' is not in .*queries\.train\.tsv"
    ):
        ls.load(folder)
    (folder / "queries.train.tsv").unlink()
    with pytest.raises(ls.DataError, match=r"collection\.tsv, queries\.train\.tsv and qrels\.train\.tsv"):
        ls.load(folder)
    put_lines(folder / "collection.tsv", ["no tab"])
    put_lines(folder / "queries.tsv", ["100\tx"])
    with pytest.raises(ls.DataError, match="line 1: expected the id of a label, a tab and its text"):
        ls.load(folder)


def test_texts_of_public_layouts_are_predicted_without_their_labels_and_ids(tmp_path: Path) -> None:
    fasttext("cooking.valid")(tmp_path)
    marco(tmp_path)
    texts = [text for text, _ in PARTS["train"]]
    assert read_texts(tmp_path / "cooking.valid") == ([str(i) for i in range(12)], texts)
    assert read_texts(tmp_path / "queries.train.tsv") == ([str(100 + i) for i in range(12)], texts)
    put_lines(tmp_path / "a.tsv", ["7\tone", "8\ttwo\tthree"])  # the text is all that follows the id
    assert read_texts(tmp_path / "a.tsv") == (["7", "8"], ["one", "two\tthree"])
    names = [f"{i:0300}" for i in range(1000)]  # so that the first 64 KB end within an id
    put_lines(tmp_path / "a.tsv", [f"{name}\tx" for name in names])
    assert read_texts(tmp_path / "a.tsv")[0] == names
    put_lines(tmp_path / "b.tsv", ["id\ttext", "8\ttwo"])
    assert read_texts(tmp_path / "b.tsv") == (["8"], ["two"])


def test_labels_of_fasttext_stand_anywhere_in_a_line(tmp_path: Path) -> None:
    put_lines(
        tmp_path / "a.txt", ["__label__b x __label__a y", "no label", "", "__label__c", "x__label__d \t__label__a"]
    )
    data = ls.load(tmp_path / "a.txt")
    assert list(data.train.texts) == ["x y", "no label", "", "x__label__d"] and list(data.labels.ids) == ["a", "b", "c"]
    assert data.train.targets.toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert data.options["format"] == "fasttext"
    put_lines(tmp_path / "b.txt", ["no label", "here"])
    with pytest.raises(ls.DataError, match="the file is no table"):
        ls.load(tmp_path / "b.txt")
    with pytest.raises(ls.DataError, match="no document has a label"):
        ls.load(tmp_path / "b.txt", format="fasttext")
    for folder, names, said in (
        ("c", ["train.txt", "x.train"], "hold the same split"),
        ("d", ["x.valid"], "no data set was"),
    ):
        for name in names:
            put_lines(tmp_path / folder / name, ["__label__a x"])
        with pytest.raises(ls.DataError, match=said):
            ls.load(tmp_path / folder)


INFOS = '{"a": {"features": {"labels": {"_type": "ClassLabel", "names": %s}}}}'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("README.md", "---\ndataset_info:\n  features: class_label\n---\n", "cannot be read from the head of this"),
        ("README.md", "---\n: [class_label\n---\n", "cannot be read from the head of this card"),
        ("dataset_infos.json", "[", "cannot be read here"),
        ("dataset_infos.json", INFOS % "[1]", "no list of names"),
        ("dataset_infos.json", INFOS % '["x"]', "not one of 0 to 0"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_read_beside_parquet_files_are_told(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    hub("nowhere")(tmp_path)
    assert list(ls.load(tmp_path).labels.texts) == ["0", "1", "2", "3"]
    put(tmp_path / name, content)
    with pytest.raises(ls.DataError, match=said):
        ls.load(tmp_path)


def test_one_label_a_document_may_have_its_names_in_the_card(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": ["a", "b", "c", "d"], "label": pa.array([1, 0, -1, 1], pa.int8())})
    pq.write_table(table, tmp_path / "train.parquet")
    put(tmp_path / "README.md", "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n"
        "        names:\n          '0': neg\n          '1': pos\n          '2': both\n---\n")  # fmt: skip
    data = ls.load(tmp_path)
    assert list(data.labels.ids) == ["neg", "pos", "both"]
    assert data.train.targets.toarray().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    (tmp_path / "train.parquet").unlink()
    for name, lines in (("train.jsonl", ['{"text": "a", "label": 1}', '{"text": "b", "label": 0}']),
                        ("train.csv", ["text,label", "a,1", "b,0"])):  # fmt: skip
        put_lines(tmp_path / name, lines)
        data = ls.load(tmp_path)
        assert list(data.labels.ids) == ["neg", "pos", "both"]
        assert data.train.targets.toarray().tolist() == [[0, 1, 0], [1, 0, 0]]
        (tmp_path / name).unlink()
    put_lines(tmp_path / "train.csv", ["text,label", "a,1", "b,7"])
    with pytest.raises(ls.DataError, match=r"line 3: label '7' is not in .*README\.md"):
        ls.load(tmp_path)
    put(tmp_path / "README.md", (tmp_path / "README.md").read_text().replace("neg", "1"))
    assert list(ls.load(tmp_path).labels.ids) == ["1", "7"]


def test_of_several_configurations_that_of_the_folder_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub("nowhere")(tmp_path / "simplified")
    (tmp_path / "simplified" / "data").rename(tmp_path / "simple")
    head = "---\ndataset_info:\n"
    for config, names in (("simple", ["no", "yes", "1e3", "~"]), ("other", ["a", "b", "c", "d"])):
        listed = "".join(f"          '{i}': {name}\n" for i, name in enumerate(names))
        feature = f"  features:\n  - name: labels\n    sequence:\n      class_label:\n        names:\n{listed}"
        head += f"- config_name: {config}\n{feature}"
    put(tmp_path / "README.md", head + "---\n")
    assert list(ls.load(tmp_path / "simple").labels.texts) == ["no", "yes", "1e3", "~"]
    (tmp_path / "simple").rename(tmp_path / "third")
    assert list(ls.load(tmp_path / "third").labels.texts) == ["0", "1", "2", "3"]
    assert "names the labels of" in caplog.text and "in 2 ways" in caplog.text


def test_tags_in_angles_are_parted_where_all_are_such(tmp_path: Path) -> None:
    for cells, names in (
        (["<c#><.net-3.5>", "<c#>", ""], {"c#", ".net-3.5"}),
        (["<a><b>", "c"], {"<a><b>", "c"}),
        (["<a>", "<b>"], {"<a>", "<b>"}),
    ):
        put_lines(tmp_path / "a.csv", ["text,labels", *(f"t,{cell}" for cell in cells)])
        assert set(ls.load(tmp_path / "a.csv").labels.ids) == names
    with pytest.raises(ls.DataError, match="line 3: expected tags in angles"):
        ls.load(put_tags(tmp_path), separator="<>")


def put_tags(folder: Path) -> Path:
    put_lines(folder / "b.csv", ["text,labels", "t,<a><b>", "t,a b"])
    return folder / "b.csv"
