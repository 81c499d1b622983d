"""Every reader against generated files: legal ones come back exactly, damaged ones are refused or read as they stand.

What a damaged file may still mean is told by dull re-readings at the end of this module, which share no code with the
readers.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import gzip
import io
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from labelspace.data.formats.filters import read_pairs
from labelspace.data.loading import load
from labelspace.data.npz import read_npz
from labelspace.data.scores import load_scores
from labelspace.data.texts import read_texts
from labelspace.errors import DataError, LabelspaceError
from labelspace.types import Corpus, Dataset

EXAMPLES = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
DAMAGED = settings(EXAMPLES, max_examples=250)

Rows = list[tuple[str | None, str, dict[str, float]]]

# Legal data: text of all sorts, without half surrogates, which no file can hold, and without a BOM.

ODD = "aZ\u00e9 09,;|\"'[]{}\\:_-/\t\u2028\u2029\x85\x0b\x0c\x1c\x1e\x00\u00a0\uff11\U0001f600"
texts = st.text(
    st.sampled_from(ODD + "\n\r") | st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=12
)
relevances = st.sampled_from([1.0, 0.5, 0.1, 1e-3, 1e-45, float(np.nextafter(1.0, 0.0))])


def one_line(exclude: str = "") -> st.SearchStrategy[str]:
    return texts.map(lambda text: re.sub(f"[\n\r{re.escape(exclude)}]", "", text))


def names(exclude: str = "") -> st.SearchStrategy[str]:
    """Names that survive stripping, without the given marks."""
    return one_line(exclude).map(str.strip).filter(bool)


@st.composite
def data_sets(
    draw: st.DrawFn, text: st.SearchStrategy[str], name: st.SearchStrategy[str]
) -> tuple[list[str], list[Rows]]:
    """Label names, and rows of a training and perhaps a test part."""
    space = draw(st.lists(name, min_size=1, max_size=6, unique=True))
    with_ids = draw(st.booleans())
    row = st.tuples(text, st.dictionaries(st.sampled_from(space), relevances, max_size=4))
    parts = []
    for size in (1, 0):
        rows = draw(st.lists(row, min_size=size, max_size=5))
        ids = [f"d{i}\u00e9" if with_ids else None for i in range(len(rows))]
        parts.append([(identifier, *row) for identifier, row in zip(ids, rows, strict=True)])
    assume(any(labels for _, _, labels in parts[0]))
    return space, parts


@st.composite
def spellings(draw: st.DrawFn) -> Callable[[Path, list[str]], Path]:
    """Writes lines with any line end, BOM, blank lines after, or gzip; returns the path."""
    end, blank = draw(st.sampled_from(["\n", "\r\n"])), draw(st.integers(0, 2))
    bom, last, zipped = (draw(st.booleans()) for _ in range(3))

    def write(path: Path, lines: list[str]) -> Path:
        content = end.join(lines) + end * (blank + (last or blank > 0))
        data = content.encode("utf-8-sig" if bom else "utf-8")
        if zipped:
            path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(data, 1) if zipped else data)
        return path

    return write


def matrix(rows: Rows, space: list[str]) -> np.ndarray:
    dense = np.zeros((len(rows), len(space)), dtype=np.float32)
    for i, (_, _, labels) in enumerate(rows):
        for name, value in labels.items():
            dense[i, space.index(name)] = np.float32(value)
    return dense


def check(corpus: Corpus, rows: Rows, space: list[str]) -> None:
    assert list(corpus.texts) == [text for _, text, _ in rows]
    assert list(corpus.ids) == [str(i) if given is None else given for i, (given, _, _) in enumerate(rows)]
    assert corpus.targets.dtype == np.float32 and corpus.targets.has_canonical_format
    assert np.array_equal(corpus.targets.toarray(), matrix(rows, space))
    assert (corpus.targets.data > 0).all()


def check_without_labels_file(data: Dataset, parts: list[Rows]) -> None:
    met = [sorted({name for _, _, labels in rows for name in labels}) for rows in parts]
    space = met[0] + [name for name in met[1] if name not in met[0]]
    assert list(data.labels.ids) == list(data.labels.texts) == space
    check(data.train, parts[0], space)
    if parts[1]:
        check(data.test, parts[1], space)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def fresh(folder: Path) -> Path:
    """The folder, emptied."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return folder


def json_record(draw: st.DrawFn, row: tuple[str | None, str, dict[str, float]], weighted: bool) -> str:
    identifier, text, labels = row
    listed = [
        int(name) if re.fullmatch(r"0|[1-9]\d{0,5}", name, re.ASCII) and draw(st.booleans()) else name
        for name in labels
    ]
    record = {"text": text, "labels": listed, "other": {"deep": [None, {"labels": 1}]}}
    if identifier is not None:
        record[draw(st.sampled_from(["id", "uid", "document_id", "_id"]))] = identifier
    if weighted:
        record["relevances"] = list(labels.values())
    if not labels and draw(st.booleans()):
        record["labels"] = None
        record.pop("relevances", None)
    items = draw(st.permutations(list(record.items())))
    spaced = (" , ", " : ") if draw(st.booleans()) else (",", ":")
    return json.dumps(dict(items), ensure_ascii=draw(st.booleans()), separators=spaced)


def unweighted(parts: list[Rows]) -> list[Rows]:
    return [[(i, text, dict.fromkeys(labels, 1.0)) for i, text, labels in rows] for rows in parts]


@EXAMPLES
@given(st.data(), data_sets(texts, names()), spellings(), st.booleans())
def test_jsonl_comes_back(folder, data, made, write, weighted):
    space, parts = made
    parts = parts if weighted else unweighted(parts)
    for stem, rows in zip(("train", "test"), parts, strict=True):
        if rows:
            write(
                fresh(folder) / "train.jsonl" if stem == "train" else folder / "test.jsonl",
                [json_record(data.draw, row, weighted) for row in rows],
            )
    check_without_labels_file(load(folder), parts)
    write(folder / "labels.jsonl", [json.dumps({"name": name, "id": f"L{i}"}) for i, name in enumerate(space)])
    read = load(folder)
    assert list(read.labels.ids) == [f"L{i}" for i in range(len(space))] and list(read.labels.texts) == space
    check(read.train, parts[0], space)


MARKS = {
    ";": ";",
    "|": "|",
    ",": ",",
    " ": " \t\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
    "[]": "",
    "": "",
}


def in_cell(values: list[str], separator: str) -> str:
    if separator == "[]":
        return json.dumps(values, ensure_ascii=False)
    return (separator or ";").join(values)


@st.composite
def cell_sets(draw: st.DrawFn, text: st.SearchStrategy[str], tabs: str) -> tuple[str, list[str], list[Rows]]:
    """A separator, and a data set that it can tell apart."""
    separator = draw(st.sampled_from(sorted(MARKS)))
    exclude = MARKS[separator]
    name = names(tabs).map(lambda text: re.sub(f"[{exclude}]", "", text).strip() if exclude else text).filter(bool)
    space, parts = draw(data_sets(text, name))
    if separator == "":
        parts = [[(i, text, dict(list(labels.items())[:1])) for i, text, labels in rows] for rows in parts]
    return separator, space, parts


def table_rows(parts: Rows, separator: str, weighted: bool) -> list[list[str]]:
    with_ids = any(identifier is not None for identifier, _, _ in parts)
    header = ["id"] * with_ids + ["text", "labels"] + ["relevances"] * weighted
    rows = [
        [str(i)] * with_ids + [text, in_cell(list(labels), separator)]
        + [in_cell([repr(v) for v in labels.values()], separator).replace('"', "")] * weighted
        for i, text, labels in parts
    ]  # fmt: skip
    return [header, *rows]


@EXAMPLES
@given(st.data(), cell_sets(texts, ""), spellings(), st.booleans())
def test_csv_comes_back(folder, data, made, write, weighted):
    separator, space, parts = made
    parts = parts if weighted else unweighted(parts)
    fresh(folder)
    dialect = {
        "delimiter": data.draw(st.sampled_from(",;\t")),
        "quoting": data.draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])),
        "lineterminator": "\r\n\0\0end",  # all of whose characters are quoted
    }
    for stem, rows in zip(("train", "test"), parts, strict=True):
        if rows:
            stream = io.StringIO(newline="")
            csv.writer(stream, **dialect).writerows(table_rows(rows, separator, weighted))
            write(folder / f"{stem}.csv", stream.getvalue().removesuffix("\r\n\0\0end").split("\r\n\0\0end"))
    read = load(folder, separator=separator)
    assert read.options["separator"] == separator
    check_without_labels_file(read, parts)


def tsv_field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if text.startswith('"') and text.endswith('"') else text


@EXAMPLES
@given(cell_sets(one_line("\t"), "\t"), spellings(), st.booleans())
def test_tsv_comes_back(folder, made, write, weighted):
    separator, space, parts = made
    parts = parts if weighted else unweighted(parts)
    fresh(folder)
    for stem, rows in zip(("train", "test"), parts, strict=True):
        if rows:
            table = table_rows(rows, separator, weighted)
            write(folder / f"{stem}.tsv", ["\t".join(map(tsv_field, row)) for row in table])
    check_without_labels_file(load(folder, separator=separator), parts)


@EXAMPLES
@given(cell_sets(one_line("\t"), "\t"), spellings())
def test_the_separator_is_found_with_a_labels_file(folder, made, write):
    separator, space, parts = made
    parts = unweighted(parts)
    assume(not any(mark in name for name in space for mark in ";|, []"))
    write(
        fresh(folder) / "train.tsv", ["\t".join(map(tsv_field, row)) for row in table_rows(parts[0], separator, False)]
    )
    write(folder / "labels.txt", space)
    read = load(folder)
    assert list(read.labels.ids) == space
    check(read.train, parts[0], space)


@EXAMPLES
@given(data_sets(texts, names()), st.booleans(), st.booleans())
def test_parquet_comes_back(folder, made, weighted, sharded):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    space, parts = made
    parts = parts if weighted else unweighted(parts)
    fresh(folder)

    def write(path: Path, rows: Rows) -> None:
        columns = {
            "id": pa.array([i for i, _, _ in rows], pa.string()),
            "text": pa.array([text for _, text, _ in rows], pa.string()),
            "labels": pa.array([list(labels) for _, _, labels in rows], pa.list_(pa.string())),
        }
        if weighted:
            columns["relevances"] = pa.array([list(labels.values()) for _, _, labels in rows], pa.list_(pa.float64()))
        pq.write_table(pa.table(columns), path, row_group_size=2)

    if sharded:
        write(folder / "train-00000-of-00002.parquet", parts[0][:1])
        write(folder / "train-00001-of-00002.parquet", parts[0][1:])
        assume(len(parts[0]) > 1)
    else:
        write(folder / "train.parquet", parts[0])
    check_without_labels_file(load(folder), [parts[0], []])
    pq.write_table(pa.table({"uid": [f"L{i}" for i in range(len(space))], "text": space}), folder / "labels.parquet")
    read = load(folder)
    assert list(read.labels.texts) == space
    check(read.train, parts[0], space)


@EXAMPLES
@given(st.data(), data_sets(texts.map(str.strip), texts.map(str.strip)), spellings(), st.booleans())
def test_lf_comes_back(folder, data, made, write, weighted):
    space, parts = made
    parts = parts if weighted else unweighted(parts)
    fresh(folder)
    write(
        folder / "lbl.json",
        [
            json.dumps({"title": name, "uid": f"L{i}"}, ensure_ascii=data.draw(st.booleans()))
            for i, name in enumerate(space)
        ],
    )
    for stem, rows in zip(("trn", "tst"), parts, strict=True):
        if rows:
            records = []
            for i, (identifier, text, labels) in enumerate(rows):
                record = {"content": "", "target_ind": [space.index(name) for name in labels], "title": text}
                record |= {"uid": identifier} if identifier is not None else {}
                record |= {"target_rel": list(labels.values())} if weighted or i == 0 else {}
                records.append(json.dumps(record, ensure_ascii=data.draw(st.booleans())))
            write(folder / f"{stem}.json", records)
    read = load(folder)
    assert list(read.labels.ids) == [f"L{i}" for i in range(len(space))] and list(read.labels.texts) == space
    check(read.train, parts[0], space)
    if parts[1]:
        check(read.test, parts[1], space)


def plain(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return text.map(lambda text: text.rstrip("\r"))


@EXAMPLES
@given(st.data(), data_sets(plain(one_line()), plain(one_line())), spellings(), st.sampled_from(["", "raw"]))
def test_xc_comes_back(folder, data, made, write, raw):
    space, parts = made
    fresh(folder)
    (folder / raw).mkdir(exist_ok=True)
    assume(all(rows[-1][1] for rows in parts if rows) and space[-1])  # a last line that is empty is none
    write_text = lambda path, lines: path.write_bytes("\n".join(lines).encode() + b"\n")  # noqa: E731
    write_text(folder / raw / "Y.txt", space)
    for stem, rows in zip(("trn", "tst"), parts, strict=True):
        if not rows:
            continue
        write_text(folder / raw / f"{stem}_X.txt", [text for _, text, _ in rows])
        entries = [[(space.index(name), value) for name, value in labels.items()] for _, _, labels in rows]
        if data.draw(st.booleans()):
            lines = [" ".join(f"{label}:{value!r}" for label, value in row) for row in entries]
            while lines and not lines[-1] and data.draw(st.booleans()):
                lines.pop()
            write(folder / f"{stem}_X_Y.txt", [f"{len(rows)} {len(space)}", *lines])
        else:
            at = [(i, label, value) for i, row in enumerate(entries) for label, value in row] or [(0, 0, 0.0)]
            at += at[: data.draw(st.integers(0, 2))]  # the same again counts once
            rows_, columns, values = (np.array(part) for part in zip(*data.draw(st.permutations(at)), strict=True))
            save_sparse(
                folder / f"Y.{'trn' if stem == 'trn' else 'tst'}.npz",
                rows_,
                columns,
                values,
                (len(rows), len(space)),
                data.draw(st.sampled_from(["coo", "csr", "csc"])),
            )
    read = load(folder)
    assert list(read.labels.texts) == space and list(read.labels.ids) == [str(i) for i in range(len(space))]
    for corpus, rows in zip((read.train, read.test), parts, strict=True):
        if rows:
            check(corpus, [(None, text, labels) for _, text, labels in rows], space)


def save_sparse(path: Path, rows, columns, values, shape: tuple[int, int], kind: str) -> None:
    """A SciPy file with its entries in the order given, repeats included."""
    if kind == "coo":
        np.savez(path, format=b"coo", shape=shape, data=values, row=rows, col=columns)
        return
    major, minor = (rows, columns) if kind == "csr" else (columns, rows)
    order = np.argsort(major, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=shape[kind == "csc"]))])
    np.savez(path, format=kind.encode(), shape=shape, data=values[order], indices=minor[order], indptr=starts)


@EXAMPLES
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=6),
    spellings(),
    st.sampled_from([" ", "\t", "  "]),
)
def test_filter_pairs_come_back(folder, pairs, write, gap):
    path = write(fresh(folder) / "filter_labels_test.txt", [f"{row}{gap}{label}" for row, label in pairs])
    assert read_pairs(path, (6, 4)).tolist() == [list(pair) for pair in pairs]


@EXAMPLES
@given(st.lists(plain(one_line()), min_size=1, max_size=5), spellings())
def test_plain_texts_come_back(folder, lines, write):
    assume(any(lines) and lines[-1])
    path = write(fresh(folder) / "a.txt", lines)
    ids, found = read_texts(path)
    while found[-1] == "":
        found.pop()
    assert found == lines and ids[: len(found)] == [str(i) for i in range(len(lines))]


@EXAMPLES
@given(st.lists(texts, min_size=1, max_size=5), st.sampled_from(["csv", "jsonl"]), spellings(), st.booleans())
def test_texts_of_tables_come_back(folder, lines, kind, write, with_ids):
    fresh(folder)
    ids = [f"i{i}" if with_ids else str(i) for i in range(len(lines))]
    if kind == "jsonl":
        records = [{"text": text} | ({"_id": i} if with_ids else {}) for i, text in zip(ids, lines, strict=True)]
        path = write(folder / "a.jsonl", list(map(json.dumps, records)))
    else:
        quoted = ['"' + text.replace('"', '""') + '"' for text in lines]
        rows = [f"{i},{text}" if with_ids else text for i, text in zip(ids, quoted, strict=True)]
        path = write(folder / "a.csv", ["id,text" if with_ids else "text", *rows])
    assert read_texts(path) == (ids, lines)


@EXAMPLES
@given(st.lists(st.text("a\u00e9\u00fc\x85;", min_size=1, max_size=5), min_size=1, max_size=4))
def test_latin_1_is_read_where_it_is_not_utf_8(folder, lines):
    data = "\n".join(["text,label", *(f'"{line}",x' for line in lines)]).encode("latin-1")
    try:
        data.decode()
    except UnicodeDecodeError:
        path = fresh(folder) / "a.csv"
        path.write_bytes(data)
        read = load(path)
        expected = [line.replace("\x85", "\u2026") for line in lines]  # as Windows has it
        assert list(read.train.texts) == expected and read.options["encoding"] == "cp1252"


# Damage

TOKENS = [
    b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b'"', b"'", b",", b";", b"\t", b"[", b"]", b"{}",
    b"[[", b"\\", b"\\u", b"\xe2\x80\xa8", b"\xc2\x85", b"\xef\xbc\x91", b"-", b"0", b" ", b":", b"9" * 30,
    b"1e400", b"1_000",
]  # fmt: skip
VALUES = [
    b"NaN", b"-1", b"-0", b"1e400", b"1e3", b"3.0", b"true", b"null", b"1_000", b"99999999999999999999", b"0.5",
    b"2", b'"1"', b"[[0]]", b'{"a":1,"a":2}', b"\xef\xbc\x91", b"Infinity", b"01", b"+1", b"1e-50", b"[]", b'""',
    b"0" * 5000, b"0",
]  # fmt: skip
_VALUE = re.compile(rb"-?\d+(?:\.\d+)?|\"[^\"\n]*\"|\[[^\]\n]*\]|null")
_KEY = re.compile(rb"\"[a-z_]+\": [^,}]+, ")


def damage(content: bytes, draw: random.Random) -> bytes:
    """One to three random injuries."""
    data = content
    for _ in range(draw.randrange(1, 4)):
        at, kind = draw.randrange(len(data) + 1), draw.randrange(10)
        lines = data.split(b"\n")
        one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + draw.randrange(1, 9) :]
        elif kind in (2, 3):
            data = data[:at] + draw.choice(TOKENS) + data[at:]
        elif kind == 4:
            data = data[:at]
        elif kind == 5:
            data = b"\n".join([*lines[:one], lines[other], *lines[one:]])
        elif kind == 6:
            lines[one], lines[other] = lines[other], lines[one]
            data = b"\n".join(lines)
        elif kind == 7:
            found = list(_KEY.finditer(data)) or list(re.finditer(rb"[a-z]+[,\t]", data))
            if found:
                match = draw.choice(found)
                data = data[: match.end()] + match[0] + data[match.end() :]
        else:
            found = list(_VALUE.finditer(data))
            if found:
                match = draw.choice(found)
                data = data[: match.start()] + draw.choice(VALUES) + data[match.end() :]
    return data


WHOLE_FILE = (
    "has no documents", "has no labels", "is not utf-8", "UTF-16", "damaged or cut short", "no label column",
    "no document has", "'target_ind', the label numbers", "SciPy", "Parquet file", "the truth has", "in row",
    "and no text", "is not UTF-8, but", "is there twice", "Hugging Face", "there are no texts",
)  # fmt: skip


def outcome(path: Path, read: Callable[[], object]) -> object:
    """What was read, or None after an error that names a file, and its line where one is at fault, in one sentence."""
    try:
        return read()
    except LabelspaceError as error:
        message = str(error)
        assert isinstance(error, DataError), message
        assert str(path) in message and "\n" not in message and len(message) < 1000
        assert error.line is not None or any(part in message for part in WHOLE_FILE), message
        return None


def check_shapes(data: Dataset) -> None:
    for corpus in (data.train, data.valid, data.test):
        if corpus is not None:
            assert corpus.targets.shape == (len(corpus), len(data.labels)) and len(corpus.ids) == len(corpus)
            assert corpus.targets.has_canonical_format
            assert ((corpus.targets.data > 0) & (corpus.targets.data <= 1)).all()
            assert len(set(corpus.ids)) == len(corpus.ids)
    assert len(set(data.labels.ids)) == len(data.labels)


def named(corpus: Corpus, labels: list[str]) -> list[dict[str, float]]:
    csr = corpus.targets
    return [
        {labels[i]: float(v) for i, v in zip(csr.indices[a:b], csr.data[a:b], strict=True)}
        for a, b in zip(csr.indptr[:-1], csr.indptr[1:], strict=True)
    ]


def best(pairs: list[tuple[str, float]]) -> dict[str, float]:
    """Each name with its highest relevance, in float32; names are stripped, and empty ones left out."""
    found: dict[str, float] = {}
    for name, value in pairs:
        name = name.strip().replace("\ufeff", "")
        if name.strip():
            found[name.strip()] = max(found.get(name.strip(), 0.0), float(np.float32(value)))
    return found


def decoded(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for encoding in ("utf-8", "cp1252", "latin-1"):
        with contextlib.suppress(UnicodeDecodeError):
            return "\n".join(line.lstrip("\ufeff") for line in data.decode(encoding).split("\n"))
    raise AssertionError("latin-1 reads all bytes")


def json_rows(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in decoded(path).split("\n") if line.strip()]
    for line in decoded(path).split("\n"):
        objects: list = []
        json.loads(line if line.strip() else "0", object_pairs_hook=objects.append)
        keys = [key for key, _ in objects[-1]] if objects else []
        assert len(set(keys)) == len(keys), "a key that is there twice"
    return json.loads(
        json.dumps(rows, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def checked_name(value: object) -> str:
    assert type(value) in (str, int)
    return str(value)


def checked_value(value: object) -> float:
    assert type(value) in (int, float) and 0 < value <= 1
    return float(value)


def dull_jsonl(path: Path, separator: str | None) -> list[tuple[str, dict[str, float]]]:
    found = []
    for row in json_rows(path):
        text = row["text"] if "text" in row else f"{row.get('title') or ''} {row.get('content') or ''}".strip()
        value = row.get("labels", row.get("label")) if "labels" not in row else row["labels"]
        value = [] if value is None else value if isinstance(value, list) else [value]
        weights = row.get("relevances")
        weights = [1] * len(value) if weights is None else weights if isinstance(weights, list) else [weights]
        assert len(weights) == len(value)
        pairs = [(checked_name(n), checked_value(w)) for n, w in zip(value, weights, strict=True) if str(n).strip()]
        found.append((text or "", best(pairs)))
    return found


def dull_cells(rows: list[list[str]], separator: str) -> list[tuple[str, dict[str, float]]]:
    header = [column.replace("\ufeff", "").strip() for column in rows[0]]
    assert len({column for column in header if column}) == len([column for column in header if column])
    found = []
    for row in rows[1:]:
        assert len(row) == len(header)
        record = dict(zip(header, row, strict=True))
        text = record["text"] if "text" in record else f"{record.get('title', '')} {record.get('content', '')}".strip()
        cell = record.get("labels", record.get("label"))
        if separator == "[]":
            value = [] if not cell.strip() else listed(cell.strip())
            parts = [checked_name(part) for part in value]
        elif separator == " ":
            parts = cell.split()
        else:
            parts = [part.strip() for part in (cell.split(separator) if separator else [cell])]
        weights = [1.0] * len(parts)
        if record.get("relevances"):
            cells = (
                json.loads(record["relevances"]) if separator == "[]" else record["relevances"].split(separator or None)
            )
            weights = [checked_value(float(part)) for part in cells if str(part).strip()]
            parts = [part for part in parts if part]
        found.append((text, best(list(zip(parts, weights, strict=True)))))
    return found


def listed(cell: str) -> list:
    try:
        return json.loads(cell)
    except ValueError:
        return ast.literal_eval(cell)


def dull_csv(path: Path, separator: str) -> list[tuple[str, dict[str, float]]]:
    text = decoded(path)
    first = re.sub(r'"[^"]*"', "", text.split("\n")[0])
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    return dull_cells([row for row in rows if row], separator)


def dull_tsv(path: Path, separator: str) -> list[tuple[str, dict[str, float]]]:
    rows = []
    for line in decoded(path).split("\n"):
        line = line[:-1] if line.endswith("\r") else line
        if line:
            rows.append([])
            for part in line.split("\t"):
                inner = part[1:-1].replace('""', "") if len(part) > 1 and part[0] == part[-1] == '"' else '"'
                rows[-1].append(part if '"' in inner else part[1:-1].replace('""', '"'))
    return dull_cells(rows, separator)


DULL = {"jsonl": dull_jsonl, "csv": dull_csv, "tsv": dull_tsv}

TABLES = {
    "csv": 'id,text,labels,relevances\n1,"a, ""b""\nc",x;y,0.5;1\n2,d,,\n3,caf\u00e9,2;"z",1;0.25\n4,e,x;x,0.5;1\n',
    "tsv": 'id\ttext\tlabels\trelevances\n1\ta b\tx|y\t0.5|1\n2\t\t\t\n3\t"caf\u00e9"\tz\t1\n4\te\t2|x\t\n',
    "jsonl": '{"id": 1, "text": "a", "labels": ["x", 2], "relevances": [0.5, 1]}\n'
    '{"id": 2, "text": "\\ud83d", "labels": null}\n{"id": 3, "text": "", "labels": ["y", "y"], "extra": {"a": [1]}}\n'
    '{"id": 4, "title": "t", "content": "c", "labels": "z"}\n',
    "lists": "text,labels\na,\"['x', 'y']\"\nb,[]\nc,\"[\"\"z\"\", 2]\"\n",
}  # fmt: skip
LABELS = {"csv": "id,name\nx,first\ny,second\nz,third\n2,two\n3,three\n", "txt": "x\ny\nz\n2\n3\n"}


@DAMAGED
@given(st.integers(0, 2**32), st.sampled_from(sorted(TABLES)))
def test_damaged_tables(folder, seed, which):
    draw = random.Random(seed)
    kind = "csv" if which == "lists" else which
    path = fresh(folder) / f"train.{kind}"
    path.write_bytes(damage(TABLES[which].encode(), draw))
    data = outcome(path, lambda: load(path))
    if data is None:
        return
    check_shapes(data)
    expected = DULL[kind](path, data.options["separator"] or "")
    assert list(data.train.texts) == [text for text, _ in expected]
    assert named(data.train, data.labels.ids) == [labels for _, labels in expected]
    assert list(data.labels.ids) == sorted({name for _, labels in expected for name in labels})


@DAMAGED
@given(st.integers(0, 2**32), st.sampled_from(sorted(TABLES)), st.sampled_from(sorted(LABELS)))
def test_damaged_labels_files(folder, seed, which, kind):
    draw = random.Random(seed)
    table = fresh(folder) / f"train.{'csv' if which == 'lists' else which}"
    table.write_bytes(TABLES[which].encode())
    path = folder / f"labels.{kind}"
    path.write_bytes(damage(LABELS[kind].encode(), draw))
    data = outcome(folder, lambda: load(folder))
    if data is None:
        return
    check_shapes(data)
    if kind == "txt":
        expected = [(line.strip(), line.strip()) for line in decoded(path).split("\n")]
        while expected[-1][0] == "":
            expected.pop()
    else:
        delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", decoded(path).split("\n")[0]).count)
        rows = [r for r in csv.reader(io.StringIO(decoded(path), newline="\n"), delimiter=delimiter, strict=True) if r]
        header = [column.replace("\ufeff", "").strip() for column in rows[0]]
        records = [dict(zip(header, row, strict=True)) for row in rows[1:]]
        expected = [(r.get("id", r.get("name")).strip(), r.get("name", r.get("id")).strip()) for r in records]
    expected = [(name.replace("\ufeff", ""), text.replace("\ufeff", "")) for name, text in expected]
    assert list(zip(data.labels.ids, data.labels.texts, strict=True)) == expected
    plain = load(table)
    meant = {name: i for i, (_, name) in reversed(list(enumerate(expected)))} | {
        name: i for i, (name, _) in enumerate(expected)
    }
    for mine, theirs in zip(named(data.train, range(len(expected))), named(plain.train, plain.labels.ids), strict=True):
        numbers = [meant.get(name, int(name) if name.isdecimal() else -1) for name in theirs]
        assert set(mine) == set(numbers)


LF = {
    "lbl": '{"uid": "c", "title": "cats", "content": "small"}\n{"uid": "d", "title": "dogs"}\n'
    '{"uid": "e", "title": ""}\n',
    "trn": '{"uid": "1", "title": "a", "content": "b", "target_ind": [0, 2], "target_rel": [1.0, 0.5]}\n'
    '{"uid": "2", "title": "caf\u00e9", "target_ind": []}\n'
    '{"uid": "3", "title": "", "target_ind": [1, 1], "target_rel": [0.5, 1]}\n',
}  # fmt: skip


@DAMAGED
@given(st.integers(0, 2**32), st.sampled_from(["lbl", "trn"]), st.booleans())
def test_damaged_lf(folder, seed, which, zipped):
    draw = random.Random(seed)
    fresh(folder)
    for stem, content in LF.items():
        data = content.encode()
        data = damage(data, draw) if stem == which else data
        name = f"{stem}.json" + ".gz" * (zipped and stem == which)
        data = gzip.compress(data, 1) if name.endswith(".gz") else data
        (folder / name).write_bytes(damage(data, draw) if name.endswith(".gz") and draw.random() < 0.2 else data)
    data = outcome(folder, lambda: load(folder))
    if data is None:
        return
    check_shapes(data)
    labels, train = (json_rows(next(folder.glob(f"{stem}.json*"))) for stem in ("lbl", "trn"))

    def text(row: dict) -> str:
        return f"{row.get('title') or ''} {row.get('content') or ''}".strip()

    assert list(data.labels.texts) == list(map(text, labels)) and list(data.train.texts) == list(map(text, train))
    assert list(data.labels.ids) == [str(row.get("uid") or i) for i, row in enumerate(labels)]
    for mine, row in zip(named(data.train, list(range(len(labels)))), train, strict=True):
        numbers, values = row.get("target_ind") or [], row.get("target_rel")
        assert all(type(number) is int for number in numbers)
        values = [1] * len(numbers) if values is None else values
        assert mine == {
            n: max(float(np.float32(checked_value(v))) for m, v in zip(numbers, values, strict=True) if m == n)
            for n in numbers
        }


@DAMAGED
@given(st.integers(0, 2**32), st.sampled_from(["trn_X.txt", "Y.txt", "trn_X_Y.txt", "filter_labels_train.txt"]))
def test_damaged_raw_text(folder, seed, which):
    contents = {
        "trn_X.txt": "my cat\n\ncaf\u00e9\n",
        "Y.txt": "cats\ndogs\nempty\n",
        "trn_X_Y.txt": "3 3\n0:1.0 2:0.5\n\n1:0.5 1:1\n",
    }
    contents["filter_labels_train.txt"] = "0 2\n2 1\n"
    fresh(folder)
    for name, content in contents.items():
        (folder / name).write_bytes(
            damage(content.encode(), random.Random(seed)) if name == which else content.encode()
        )
    data = outcome(folder, lambda: load(folder))
    if data is None:
        return
    check_shapes(data)

    def lines(name: str) -> list[str]:
        found = decoded(folder / name).split("\n")
        return [line[:-1] if line.endswith("\r") else line for line in (found[:-1] if found[-1] == "" else found)]

    assert list(data.train.texts) == lines("trn_X.txt") and list(data.labels.texts) == lines("Y.txt")
    header, *rows = lines("trn_X_Y.txt")
    assert [int(part) for part in header.split()] == list(data.train.targets.shape)
    assert all(part.isascii() for part in header.split())
    rows += [""] * (len(data.train) - len(rows))
    for mine, row in zip(named(data.train, list(range(len(data.labels)))), rows[: len(data.train)], strict=True):
        pairs = [part.split(":") for part in row.split()]
        assert row.isascii() and "_" not in row
        assert mine == {
            n: max(float(np.float32(v)) for m, v in pairs if int(m) == n) for n in {int(m) for m, _ in pairs}
        }
    pairs = [[int(part) for part in line.split()] for line in lines("filter_labels_train.txt") if line.strip()]
    assert data.train.filter_pairs.tolist() == pairs
    assert decoded(folder / "filter_labels_train.txt").isascii() and "_" not in decoded(
        folder / "filter_labels_train.txt"
    )


@DAMAGED
@given(st.integers(0, 2**32), st.sampled_from(["csr", "csc", "coo"]), st.booleans())
def test_damaged_npz(folder, seed, kind, inner):
    draw = random.Random(seed)
    fresh(folder)
    (folder / "trn_X.txt").write_text("a\nb\nc\n")
    (folder / "Y.txt").write_text("x\ny\n")
    path = folder / "Y.trn.npz"
    save_sparse(path, np.array([0, 2, 1, 2]), np.array([1, 0, 1, 1]), np.array([1.0, 0.5, 0.25, 1.0]), (3, 2), kind)
    if inner:  # well-formed arrays with wrong values
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        name = draw.choice([name for name in found if name != "format"])
        array = found[name].astype(draw.choice([np.int64, np.int32, np.float64, np.uint64, bool]))
        odd = [-1, 3, 10**6, 2**40, 2**63, 0, 1e300, float("nan"), 0.5, 1]
        with np.errstate(all="ignore"):
            array.flat[draw.randrange(array.size)] = np.array(draw.choice(odd)).astype(array.dtype)
        found[name] = draw.choice([array, array, array[:-1], array.reshape(1, -1), np.append(array, array[-1])])
        np.savez(path, **found)
    else:
        path.write_bytes(damage(path.read_bytes(), draw))
    data = outcome(path, lambda: load(folder))
    if data is None:
        return
    check_shapes(data)
    expected = [{} for _ in range(3)]
    for row, column, value in dull_npz(path):
        if value:
            expected[row][column] = max(expected[row].get(column, 0.0), float(np.float32(value)))
    assert named(data.train, [0, 1]) == expected


def dull_npz(path: Path) -> list[tuple[int, int, float]]:
    with np.load(path) as arrays:
        values = arrays["data"].tolist()
        if "row" in arrays:
            return list(zip(arrays["row"].tolist(), arrays["col"].tolist(), values, strict=True))
        minor, starts, found = arrays["indices"].tolist(), arrays["indptr"].tolist(), []
        for major in range(len(starts) - 1):
            for at in range(starts[major], starts[major + 1]):
                found.append((major, minor[at], values[at]))
        return found if arrays["format"].item() == b"csr" else [(row, column, v) for column, row, v in found]


def test_npz_entries_are_never_summed(tmp_path):
    rows, columns, values = np.array([0, 0, 1]), np.array([1, 1, 0]), np.array([0.25, 0.5, 1.0])
    for kind in ("coo", "csr", "csc"):
        path = tmp_path / f"{kind}.npz"
        save_sparse(path, rows, columns, values, (2, 2), kind)
        assert sorted(read_npz(path).data.tolist()) == [0.25, 0.5, 1.0]
        with pytest.raises(DataError, match="same label twice"):
            load_scores(path)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, np.bool_])
def test_npz_of_any_format_and_type(tmp_path, kind, number):
    dense = np.kron(np.array([[0, 1, 3], [2, 0, 0]]), np.array([[1, 0], [1, 1]])).astype(number)
    stored = np.float32 if number == np.float16 else number
    for array in (sp.csr_array, sp.csr_matrix):
        matrix = array(dense.astype(stored))
        sp.save_npz(tmp_path / "a.npz", matrix.tobsr((2, 2)) if kind == "bsr" else matrix.asformat(kind))
        with np.load(tmp_path / "a.npz") as arrays:
            found = dict(arrays)
        found["data"] = found["data"].astype(number)
        for leave_out in ({"format"} if kind == "csr" else set(), set()):
            np.savez(tmp_path / "a.npz", **{name: part for name, part in found.items() if name not in leave_out})
            for wide in (False, True):
                read = read_npz(tmp_path / "a.npz", wide)
                assert np.array_equal(read.toarray(), dense) and read.has_canonical_format
                assert read.dtype == (np.float64 if wide and number in (np.float64, np.int64) else np.float32)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"indptr": np.array([0, 5, 0])}, "index pointer"),
        ({"indptr": np.array([0, 1, 2**63], dtype=np.uint64)}, "too large"),
        ({"indptr": np.array([0, -1, 2])}, "negative"),
        ({"indptr": np.array([0, 1, 3])}, "index pointer"),
        ({"indptr": np.array([0, 2])}, "index pointer"),
        ({"indices": np.array([0.0, 1.5])}, "whole numbers"),
        ({"indices": np.array([0, 2**32])}, "0 to 1"),
        ({"indices": np.array([True, False])}, "whole numbers"),
        ({"shape": np.array([2, 2, 1])}, "shape"),
        ({"shape": np.array([2.0, 2.0])}, "whole numbers"),
        ({"data": np.array([1 + 0j, 1])}, "complex"),
        ({"data": np.array([1e300, 1.0])}, "relevance 1e+300"),
        ({"data": np.array([1e-50, 1.0])}, "relevance 1e-50"),
        ({"data": np.array([1 + 1e-12, 1.0])}, "relevance 1"),
        ({"format": np.array(b"dok")}, "'dok'"),
        ({"format": np.array(b"dia")}, "1-dimensional"),
        ({"format": np.array(b"dia"), "data": np.ones((2, 2)), "offsets": np.array([0, 0])}, "diagonal"),
        ({"format": np.array(b"dia"), "data": np.ones((2, 2)), "offsets": np.array([0.5, 0])}, "diagonal"),
        ({"format": np.array(b"bsr"), "data": np.ones((2, 3, 1))}, "blocks"),
        ({"format": np.array(b"bsr"), "data": np.ones((2, 0, 1))}, "SciPy"),
        ({"format": np.array(b"bsr")}, "1-dimensional"),
    ],
)
def test_npz_refusals(tmp_path, changes, part):
    (tmp_path / "trn_X.txt").write_text("a\nb\n")
    (tmp_path / "Y.txt").write_text("x\ny\n")
    good = {"format": np.array(b"csr"), "shape": np.array([2, 2]), "data": np.ones(2)}
    np.savez(tmp_path / "Y.trn.npz", **(good | {"indices": np.array([0, 1]), "indptr": np.array([0, 1, 2])} | changes))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert "Y.trn.npz" in str(caught.value) and part in str(caught.value)


@settings(DAMAGED, max_examples=120)
@given(st.integers(0, 2**32), st.booleans())
def test_damaged_parquet(folder, seed, checked):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "text": ["a", "b", "c"] * 3,
        "labels": [["x", "y"], [], ["z"]] * 3,
        "relevances": [[0.5, 1.0], [], None] * 3,
    }
    path = fresh(folder) / "train.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=4, write_page_checksum=checked)
    path.write_bytes(damage(path.read_bytes(), random.Random(seed)))
    data = outcome(path, lambda: load(path))
    if data is None:
        return
    check_shapes(data)
    rows = pq.read_table(path).to_pylist()
    assert list(data.train.texts) == [row["text"] or "" for row in rows]
    for mine, row in zip(named(data.train, data.labels.ids), rows, strict=True):
        labels = row["labels"] or []
        assert mine == best(list(zip(labels, row.get("relevances") or [1] * len(labels), strict=True)))


@DAMAGED
@given(st.integers(0, 2**32), st.sampled_from(["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.txt.gz"]))
def test_damaged_texts(folder, seed, name):
    draw = random.Random(seed)
    contents = {"txt": "one\n\ncaf\u00e9\n", "csv": 'id,text\n1,"a\nb"\n2,c\n', "tsv": "id\ttext\n1\ta\n2\tc\n"}
    contents["jsonl"] = '{"id": "1", "text": "a"}\n{"id": 2, "title": "c", "content": null}\n'
    data = damage(contents[name.removesuffix(".gz")[2:]].encode(), draw)
    path = fresh(folder) / name
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    found = outcome(path, lambda: read_texts(path))
    if found is None:
        return
    ids, texts = found
    assert len(ids) == len(texts) > 0
    if ".txt" in name:
        lines = decoded(path).split("\n")
        expected = lines[:-1] if lines[-1] == "" else lines
        assert texts == [line[:-1] if line.endswith("\r") else line for line in expected]
    elif name == "a.jsonl":
        assert texts == [text for text, _ in dull_jsonl(path, None)]


@DAMAGED
@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz"]))
def test_arbitrary_bytes_are_refused_or_read(folder, content, kind):
    path = fresh(folder) / f"a.{kind}"
    for data in (content, b"text,labels\n" + content, b'{"text": "a", "labels": ["x"]}\n' + content):
        path.write_bytes(gzip.compress(data, 1) if kind.endswith(".gz") and data != content else data)
        found = outcome(path, lambda: load(path))
        if found is not None:
            check_shapes(found)
