"""Tables with a text and a labels column: CSV, TSV, JSONL and Parquet, one file or a folder of splits.

How labels are written:

- JSONL, and a list column of Parquet: a list of ids or names, or a single one.
- CSV, TSV, and a string column of Parquet: ids or names with a separator between them, found out as `cells` tells.

A column ``relevances`` holds a number above 0 and at most 1 for each label of the row, written in the same way. Without
a text column the text is made of ``title`` and ``content``.

How CSV and TSV are read: the first line names the columns. CSV follows RFC 4180, with the one of "," ";" and tab
that is most frequent in the header; TSV has one row a line, and only a field that is quoted as a whole is unquoted.
"""

from __future__ import annotations

import csv
import itertools
import logging
import re
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import numpy.typing as npt

from ...errors import DataError, unit
from ...types import Corpus, Labels
from .cells import LISTS, choose_separator, pair, split_labels, split_weighted
from .corpus import ReadSettings, Splits, TextParts, build_targets, check_unique, given_id
from .filters import find_pairs
from .labels import LabelNames, parse_list, parse_table
from .lf import choose_fields, record_text
from .parquet import ParquetRows
from .text import Halves, TextFiles, json_lines, listed, plain_lines, text_value

logger = logging.getLogger("labelspace.data")

T = TypeVar("T")


class NoLabelsError(DataError):
    """Documents without any label, and no labels file."""


ID_COLUMNS = ("id", "uid", "document_id", "_id")
RELEVANCES = "relevances"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SPLIT_STEMS = {"train": ("train",), "test": ("test",), "valid": ("valid", "validation", "dev", "val")}
LOOKED_FOR = "train.csv, .tsv, .jsonl or .parquet (and test, valid, labels), text files plain or .gz"

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet", re.ASCII)


def suffix(path: Path) -> str:
    """The kind of file, ``.gz`` aside, in lower case.

    Args:
        path: the file.
    """
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _find(folder: Path, stems: Sequence[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The file of a split, or its Parquet shards in order; Parquet files may be in a folder ``data`` as well."""
    names = [f"{stem}{kind}{gz}" for stem in stems for kind in suffixes for gz in ("", ".gz")]
    names += [f"data/{stem}.parquet" for stem in stems]
    found = [[folder / name] for name in names if (folder / name).is_file()]
    for place in (folder, folder / "data"):
        shards: dict[tuple[str, int], dict[int, list[Path]]] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            match = _SHARD.fullmatch(path.name)
            if match and match[1] in stems:
                shards.setdefault((match[1], int(match[3])), {}).setdefault(int(match[2]), []).append(path)
        for (stem, total), parts in shards.items():
            missing = next((number for number in range(total) if number not in parts), None)
            if missing is not None:
                raise DataError(f"of {total} shards of {stem}, number {missing} (from 0) is missing", place)
            doubled = next((same for same in parts.values() if len(same) > 1), None)
            found += [[path] for path in doubled] if doubled else [[parts[number][0] for number in sorted(parts)]]
    if len(found) > 1:
        first, second = (files[0].relative_to(folder) for files in found[:2])
        raise DataError(f"{first} and {second} hold the same split; keep one of them", folder)
    return found[0] if found else []


def sniff(path: Path) -> bool:
    """Whether this is a table or a folder with a table of training documents.

    Args:
        path: a folder or a file.
    """
    return suffix(path) in SUFFIXES if path.is_file() else bool(_find(path, SPLIT_STEMS["train"]))


# Rows


def read_records(
    files: TextFiles,
    path: Path,
    parse: Callable[[Iterator[tuple[int, dict[str, Any]]]], T],
    content: bytes | None = None,
    wanted: Container[str] | None = None,
) -> T:
    """Hand the rows of a table to ``parse``, and return what that returns.

    Args:
        files: opens text files.
        path: the file; its suffix says what it is.
        parse: takes (line number from 1, or row of a Parquet file from 0; column to value); called anew for a second
            encoding.
        content: the file's bytes, where they were read already.
        wanted: columns that are needed; a Parquet file leaves out the others.
    """
    if suffix(path) != ".parquet":
        return files.read(path, lambda stream: parse(records(stream, path)), content)
    return parse(ParquetRows(path).records(wanted))


def records(stream: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a text table as (line number from 1, column to value); empty lines are no rows.

    Args:
        stream: the open text.
        path: the file; its suffix says what it is.
    """
    kind = suffix(path)
    if kind in (".jsonl", ".json"):
        return json_lines(stream, path)
    return _named(_tsv_rows(stream) if kind == ".tsv" else _csv_rows(stream, path), path)


def _tsv_rows(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(plain_lines(stream), start=1):
        if line:
            quoted = '"' in line
            yield number, [_unquote(part) if quoted else part for part in line.split("\t")]


def _unquote(part: str) -> str:
    match = _QUOTED.fullmatch(part)
    return match[1].replace('""', '"') if match else part


def _csv_rows(stream: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    first = next(stream, "")
    delimiter = max(",;\t", key=_QUOTED.sub("", first).count)
    reader = csv.reader(itertools.chain([first], stream), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        limit = csv.field_size_limit(2**31 - 1)  # process-wide, so set back before anyone else runs
        try:
            row = next(reader, None)
        except csv.Error as error:
            message = f"this is not well-formed CSV ({error}); quotes inside a quoted field must be doubled"
            if "new-line character" in str(error):
                message = (
                    "a carriage return stands within a line; end lines with newlines, and quote fields that hold one"
                )
            raise DataError(message, path, line) from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row


def _named(rows: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] | None = None
    first: list[str] = []
    for line, row in rows:
        if header is None:
            header, first = [column.strip() for column in row], row
            for column in header:
                if column and header.count(column) > 1:
                    raise DataError(f"the header has the column {column[:80]!r} twice; rename one", path, line)
        elif len(row) != len(header):
            message = f"the row has {len(row)} fields, but the header has {len(header)} ({listed(header)})"
            raise DataError(message, path, line)
        elif row == first:
            raise DataError("the header is repeated here, as if two files were one; remove this line", path, line)
        else:
            yield line, dict(zip(header, row, strict=True))


# One file


class _Numbered(dict[str, int]):
    """Names numbered in the order in which they come."""

    def __missing__(self, name: str) -> int:
        number = self[name] = len(self)
        return number


@dataclass
class _File:
    """The documents of one file: labels as numbers of the names met, or as cells that still are to be split."""

    path: Path
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    parts: TextParts = field(default_factory=TextParts)
    lines: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("i"))
    numbers: array[int] = field(default_factory=lambda: array("i"))
    names: _Numbered = field(default_factory=_Numbered)
    values: array[float] | None = None
    cells: list[str] = field(default_factory=list)
    relevances: list[object] = field(default_factory=list)
    label_columns: set[str] = field(default_factory=set)
    composed: bool = False
    unnamed: int = 0
    halves: Halves = field(default_factory=Halves)

    def add(self, names: list[str], values: list[float] | None = None) -> None:
        """Labels of the next document, with their relevances if it has any."""
        if values is not None and self.values is None:
            self.values = array("d", [1.0]) * len(self.numbers)
        if self.values is not None:
            self.values.extend([1.0] * len(names) if values is None else values)
        self.counts.append(len(names))
        self.numbers.extend(map(self.names.__getitem__, names))

    def add_cell(self, cell: str, relevances: object, separator: str, line: int) -> None:
        """Labels of the next document from text."""
        try:
            if relevances is None or relevances == "":
                names, values = split_labels(cell, separator), None
            else:
                names, values = split_weighted(cell, relevances, separator)
        except ValueError as error:
            raise DataError(str(error), self.path, line) from None
        if separator == LISTS:
            names = list(map(self.halves.mend, names))
        self.add(names, values)

    def add_values(self, names: list[object], relevances: object, column: str, line: int) -> None:
        """Labels of the next document as JSON or Parquet hold them."""
        if not {str, int}.issuperset(map(type, names)):
            wrong = next(name for name in names if type(name) not in (str, int))
            message = f"{column!r} must hold names or whole numbers, not {str(wrong)[:60]!r}"
            raise DataError(message, self.path, line)
        labels = list(map(str.strip, map(str, names)))
        values = None
        if relevances is not None:
            try:
                labels, values = pair(labels, relevances)
            except ValueError as error:
                raise DataError(str(error), self.path, line) from None
        elif "" in labels:
            labels = [label for label in labels if label]
        self.add(labels, values)

    def split_cells(self, separator: str) -> None:
        """Turn cells into numbers."""
        for row, (cell, line) in enumerate(zip(self.cells, self.lines, strict=True)):
            self.add_cell(cell, self.relevances[row] if self.relevances else None, separator, line)
        self.cells, self.relevances = [], []


def _read_file(files: TextFiles, path: Path, settings: ReadSettings, fields: str, before: int) -> _File:
    """Read one file; documents without an id are numbered on from those before."""
    text_column, label_column, separator = settings.text_column, settings.label_column, settings.separator
    kind = suffix(path)
    if kind not in SUFFIXES:
        raise DataError(f"a table must be a file of kind {', '.join(SUFFIXES)}, text files plain or .gz", path)
    text_parts = ("title", "content") if text_column == "text" else ()
    wanted = {text_column, *text_parts, label_column, "label", RELEVANCES, *ID_COLUMNS}

    def chosen(columns: Container[str]) -> str:
        return "label" if label_column == "labels" and "labels" not in columns else label_column

    parquet = ParquetRows(path) if kind == ".parquet" else None
    texts = kind in (".csv", ".tsv") or (parquet is not None and parquet.holds_text(chosen(parquet.columns)))

    def missing(what: str, record: Iterable[str], line: int | None) -> DataError:
        there = listed(record if parquet is None else parquet.columns)
        return DataError(f"there is no {what}, only {there}; set {what.split()[0]}_column", path, line)

    def parse(rows: Iterator[tuple[int, dict[str, Any]]]) -> _File:
        file = _File(path)
        record: dict[str, Any] = {}
        for line, record in rows:
            if text_column in record:
                file.texts.append(text_value(record[text_column], text_column, path, line))
            elif any(part in record for part in text_parts):
                file.composed = True
                file.texts.append(record_text(record, fields, path, line))
                if settings.keep_parts:
                    file.parts.add(record, path, line)
            else:
                raise missing(f"text column {text_column!r}", record, line)
            identifier = given_id(record, ID_COLUMNS, path, line)
            file.unnamed += identifier is None
            file.ids.append(identifier or str(before + len(file.ids)))
            file.lines.append(line)
            column = chosen(record)
            if column in record:
                file.label_columns.add(column)
            value, relevances = record.get(column), record.get(RELEVANCES)
            if texts and separator is None:
                file.cells.append(value or "")
                if RELEVANCES in record:
                    file.relevances.append(relevances)
            elif texts or (separator is not None and isinstance(value, str)):
                file.add_cell(value or "", relevances, separator or "", line)
            elif value is None or isinstance(value, list):
                file.add_values(value or [], relevances, column, line)
            else:
                single = relevances is None or isinstance(relevances, list)
                file.add_values([value], relevances if single else [relevances], column, line)
        if not file.ids:
            raise DataError("the file has no documents", path)
        if not file.label_columns:
            raise missing(f"label column {label_column!r}", record, None)
        check_unique(file.ids, "document", path, file.lines)
        return file

    return read_records(files, path, parse, wanted=wanted)


# All of them


def read(path: Path, name: str, settings: ReadSettings, known: LabelNames | None = None) -> Splits:
    """Read a table or a folder of tables.

    Args:
        path: one file, which then is the training set, or a folder.
        name: the data set's name; chooses the fields when they are "auto".
        settings: columns, fields, separator and encoding.
        known: the labels, where they come from elsewhere than the data.
    """
    fields = choose_fields(settings.fields, name)
    label_fields = fields if settings.label_fields == "auto" else choose_fields(settings.label_fields, name)
    files = TextFiles(settings.encoding)
    paths = {"train": [path]}
    label_file = None
    if path.is_dir():
        paths = {split: found for split, stems in SPLIT_STEMS.items() if (found := _find(path, stems))}
        label_files = _find(path, ("labels",), (*SUFFIXES, ".txt"))
        if len(label_files) > 1:
            raise DataError("the labels are in shards; write them as one file", label_files[1])
        label_file = label_files[0] if label_files else None
        if label_file is not None and known is not None:
            raise DataError("the labels of this data are in this file already; leave out label_vocabulary", label_file)
    if "train" not in paths:
        raise DataError(f"a table data set needs {LOOKED_FOR}", path)
    splits: dict[str, list[_File]] = {}
    for split, parts in paths.items():
        splits[split] = []
        for part in parts:
            before = sum(len(file.ids) for file in splits[split])
            splits[split].append(_read_file(files, part, settings, fields, before))
    every = [file for parts in splits.values() for file in parts]
    composed_labels = False
    names = known or _class_names(every, settings.label_column)
    if label_file is not None:
        names, composed_labels = _read_labels(files, label_file, label_fields, settings.keep_parts)

    separator = settings.separator
    if separator is None:
        cells = [stripped for file in every for cell in file.cells if (stripped := cell.strip())]
        if cells:
            one_label = all(file.label_columns <= {"label"} for file in every)
            knows = None if names is None else names.knows
            separator, guessed = choose_separator(cells, one_label, knows)
            if guessed and separator:
                logger.warning("%s: labels look separated by %r; set separator if they are not", path, separator)
            elif separator and separator != LISTS:
                logger.info("%s: labels are separated by %r, going by the labels that are known", path, separator)
        del cells
    for file in every:
        if file.cells:
            file.split_cells(separator or "")
        file.halves.say(file.path)
    if names is None:
        names = _collect_labels(splits, path)

    corpora = {split: _corpus(path, split, splits.pop(split), names) for split in tuple(splits)}
    options: dict[str, str | int | None] = {
        "text_column": settings.text_column,
        "label_column": settings.label_column,
        "separator": separator,
        "encoding": files.found,
    }
    if any(file.composed for file in every):
        options["fields"] = fields
        logger.info("%s: there is no text column; texts are made of %s", path, fields)
    if composed_labels:
        options["label_fields"] = label_fields
    return Splits(names.labels, corpora["train"], corpora.get("test"), corpora.get("valid"), options)


def _read_labels(files: TextFiles, path: Path, fields: str, keep_parts: bool) -> tuple[LabelNames, bool]:
    if suffix(path) == ".txt":
        return files.read(path, lambda stream: parse_list(stream, path)), False
    return read_records(files, path, lambda rows: parse_table(rows, path, fields, keep_parts))


def _class_names(files: Sequence[_File], label_column: str) -> LabelNames | None:
    """The label space in the schema of Parquet files, which must agree."""
    found: list[str] | None = None
    source = Path()
    for file in files:
        if suffix(file.path) == ".parquet":
            names = ParquetRows(file.path).class_names(next(iter(file.label_columns)))
            if names is None:
                continue
            if found is None:
                found, source = names, file.path
            elif names != found:
                raise DataError(f"the label names in the schema differ from those of {source}", file.path)
    return None if found is None else LabelNames(Labels(found, found), range(len(found)), source, bare=True)


def _collect_labels(splits: dict[str, list[_File]], path: Path) -> LabelNames:
    """The label space of data without a labels file: the names of train in order, then what only others have."""
    names: list[str] = []
    seen: set[str] = set()
    for split, files in splits.items():
        new = sorted(set().union(*(file.names for file in files)) - seen)
        if new and split != "train":
            logger.warning(
                "%s: %d labels occur in %s but not in train, such as %r; they count as labels",
                path,
                len(new),
                split,
                new[0],
            )
        names += new
        seen.update(new)
    if not names:
        raise NoLabelsError("no document has a label, and there is no labels file", path)
    return LabelNames(Labels(names, names), range(len(names)), path)


def _corpus(path: Path, split: str, files: list[_File], names: LabelNames) -> Corpus:
    """The documents of a split; what was read of its files is used up."""
    first = files[0]
    numbers = [_label_numbers(file, names) for file in files]
    weighted = any(file.values is not None for file in files)
    values = [np.ones(len(file.numbers)) if file.values is None else np.asarray(file.values) for file in files]
    counts = np.concatenate([np.asarray(file.counts) for file in files])
    for file in files[1:]:
        first.ids += file.ids
        first.texts += file.texts
        first.parts.extend(file.parts)
    if len(files) > 1:
        _check_unique_over(files, first.ids)
    targets = build_targets(
        counts, np.concatenate(numbers), np.concatenate(values) if weighted else None, len(names.labels), first.path
    )
    pairs, source = (None, None)
    if path.is_dir() and split != "valid":
        pairs, source = find_pairs(path, split, (len(first.ids), len(names.labels)))
    parts = first.parts.found(len(first.ids))
    unnamed = sum(file.unnamed for file in files)
    return Corpus(first.ids, first.texts, targets, pairs, first.path, source, parts, unnamed)


def _check_unique_over(files: Sequence[_File], ids: Sequence[str]) -> None:
    """Refuse ids that occur in two files of one split."""
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, tuple[Path, int]] = {}
    places = ((file.path, line) for file in files for line in file.lines)
    for identifier, (path, line) in zip(ids, places, strict=True):
        other, there = seen.setdefault(identifier, (path, line))
        if other != path:
            message = f"the document id {identifier[:80]!r} was used in {other}, {unit(other)} {there} already"
            raise DataError(message, path, line)


def _label_numbers(file: _File, names: LabelNames) -> npt.NDArray[np.int64]:
    """The label number of each label of each document."""
    found = (names.find(name) for name in file.names)
    lookup = np.fromiter((-1 if number is None else number for number in found), np.int64, len(file.names))
    numbers = np.asarray(file.numbers)
    if (lookup < 0).any():
        at = int(np.flatnonzero(lookup[numbers] < 0)[0])
        row = int(np.searchsorted(np.cumsum(file.counts), at, side="right"))
        names.number(list(file.names)[numbers[at]], file.path, file.lines[row])
    return lookup[numbers]
