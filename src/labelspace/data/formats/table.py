"""Tables with a text and a labels column: CSV, TSV and JSONL, plain or gzip, one file or a folder of splits.

How labels are written:

- JSONL: a list of ids or names, or a single one.
- CSV and TSV: ids or names with a separator between them. Unless one is stated, it is found out from all rows:
  cells that are all ``[...]`` are lists; with a labels file, the separator under which most parts are known labels;
  else ";" or "|", whichever is in more cells; else "," (only in a column of several labels, so not in ``label``);
  else a space, when the parts are all whole numbers or URIs; else a cell is one label.

How CSV and TSV are read: the first line names the columns. CSV follows RFC 4180, with the one of "," ";" and tab
that is most frequent in the header; TSV has one row a line, and only a field that is quoted as a whole is unquoted.
"""

from __future__ import annotations

import ast
import csv
import difflib
import itertools
import json
import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ...errors import DataError
from ...types import Corpus, Labels
from .corpus import ReadSettings, Splits, build_targets, check_unique, given_id
from .filters import find_pairs
from .text import TextFiles, json_lines, listed, plain_lines, text_value, without_lone_surrogates

logger = logging.getLogger("labelspace.data")

ID_COLUMNS = ("id", "uid", "document_id", "_id")
LABEL_ID_COLUMNS = ("id", "uid", "uri")
LABEL_TEXT_COLUMNS = ("text", "label", "name", "title")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
SPLIT_STEMS = {"train": ("train",), "test": ("test",), "valid": ("valid", "validation", "dev", "val")}
LOOKED_FOR = "train.csv, .tsv or .jsonl (and test, valid, labels), plain or .gz"

_LISTS = "[]"
_NUMBER_OR_URI = re.compile(r"\d+|<?[A-Za-z][\w+.-]*:\S+", re.ASCII)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True)
class _Rows:
    """One split as written: cells are strings of CSV and TSV, lists of names from JSONL."""

    path: Path
    ids: list[str]
    texts: list[str]
    cells: list[str | list[str]]
    lines: list[int]
    label_columns: set[str]

    def strings(self) -> Iterator[str]:
        return (cell for cell in self.cells if isinstance(cell, str))


def suffix(path: Path) -> str:
    """The kind of file, ``.gz`` aside, in lower case.

    Args:
        path: the file.
    """
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _find(folder: Path, stems: Iterable[str], suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    names = [f"{stem}{kind}{gz}" for stem in stems for kind in suffixes for gz in ("", ".gz")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0].name} and {found[1].name} hold the same split; keep one of them", folder)
    return found[0] if found else None


def sniff(path: Path) -> bool:
    """Whether this is a table or a folder with a table of training documents.

    Args:
        path: a folder or a file.
    """
    return suffix(path) in SUFFIXES if path.is_file() else _find(path, SPLIT_STEMS["train"]) is not None


def read(path: Path, name: str, settings: ReadSettings) -> Splits:
    """Read a table or a folder of tables.

    Args:
        path: one file, which then is the training set, or a folder.
        name: the data set's name; unused here.
        settings: columns, separator and encoding.
    """
    files = TextFiles(settings.encoding)
    paths: dict[str, Path | None] = {"train": path}
    label_file = None
    if path.is_dir():
        paths = {split: _find(path, stems) for split, stems in SPLIT_STEMS.items()}
        label_file = _find(path, ("labels",), (*SUFFIXES, ".txt"))
    if paths["train"] is None:
        raise DataError(f"a table data set needs {LOOKED_FOR}", path)
    splits = {split: _read_rows(files, file, settings) for split, file in paths.items() if file is not None}
    names = None if label_file is None else _LabelNames(*files.read(label_file, _label_parser(label_file)), label_file)

    separator = settings.separator
    if separator is None:
        cells = [cell.strip() for rows in splits.values() for cell in rows.strings()]
        one_label = all(columns <= {"label"} for columns in (rows.label_columns for rows in splits.values()))
        if any(cells):
            separator, guessed = choose_separator([cell for cell in cells if cell], one_label, names)
            if guessed and separator:
                logger.warning("%s: labels look separated by %r; set separator if they are not", path, separator)
    parts = {split: _split_cells(rows, separator or "") for split, rows in splits.items()}
    if names is None:
        names = _collect_labels(parts, path)

    corpora: dict[str, Corpus] = {}
    for split, rows in splits.items():
        numbers = [
            [names.number(part, rows.path, line) for part in row]
            for row, line in zip(parts[split], rows.lines, strict=True)
        ]
        flat = list(itertools.chain.from_iterable(numbers))
        targets = build_targets([len(row) for row in numbers], flat, None, len(names.labels), rows.path)
        pairs, source = (None, None)
        if path.is_dir() and split != "valid":
            pairs, source = find_pairs(path, split, (len(rows.ids), len(names.labels)))
        corpora[split] = Corpus(rows.ids, rows.texts, targets, pairs, rows.path, source)
    return Splits(
        labels=names.labels,
        train=corpora["train"],
        test=corpora.get("test"),
        valid=corpora.get("valid"),
        options={
            "text_column": settings.text_column,
            "label_column": settings.label_column,
            "separator": separator,
            "encoding": files.found,
        },
    )


# Rows


def records(stream: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table as (line number from 1, column to value); empty lines are no rows.

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
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(itertools.chain([first], stream), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        limit = csv.field_size_limit(2**31 - 1)  # process-wide, so set back before anyone else runs
        try:
            row = next(reader, None)
        except csv.Error as error:
            message = f"this is not well-formed CSV ({error}); quotes inside a quoted field must be doubled"
            raise DataError(message, path, line) from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row


def _named(rows: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] | None = None
    for line, row in rows:
        if header is None:
            header = [column.strip() for column in row]
        elif len(row) != len(header):
            message = f"the row has {len(row)} fields, but the header has {len(header)} ({listed(header)})"
            raise DataError(message, path, line)
        else:
            yield line, dict(zip(header, row, strict=True))


def _read_rows(files: TextFiles, path: Path, settings: ReadSettings) -> _Rows:
    text_column, label_column = settings.text_column, settings.label_column
    if suffix(path) not in SUFFIXES:
        raise DataError(f"a table must be a file of kind {', '.join(SUFFIXES)}, plain or .gz", path)

    def parse(stream: TextIO) -> _Rows:
        rows = _Rows(path, [], [], [], [], set())
        record: dict[str, Any] = {}
        for line, record in records(stream, path):
            if text_column not in record:
                message = f"there is no text column {text_column!r}, only {listed(record)}; set text_column"
                raise DataError(message, path, line)
            column = "label" if label_column == "labels" and "labels" not in record else label_column
            if column in record:
                rows.label_columns.add(column)
            rows.ids.append(given_id(record, ID_COLUMNS, path, line) or str(len(rows.ids)))
            rows.texts.append(text_value(record[text_column], text_column, path, line))
            rows.cells.append(_cell(record.get(column), column, settings.separator, path, line))
            rows.lines.append(line)
        if not rows.ids:
            raise DataError("the file has no documents", path)
        if not rows.label_columns:
            raise DataError(f"there is no label column {label_column!r}, only {listed(record)}; set label_column", path)
        check_unique(rows.ids, "document", path, rows.lines)
        return rows

    return files.read(path, parse)


def _cell(value: object, column: str, separator: str | None, path: Path, line: int) -> str | list[str]:
    """Labels as written: a CSV or TSV cell stays whole, JSONL labels become a list of names."""
    if suffix(path) in (".csv", ".tsv"):
        return str(value or "")
    if value is None:
        return []
    if isinstance(value, str) and separator:
        return value
    names = value if isinstance(value, list) else [value]
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(f"{column!r} must hold names or whole numbers, not {str(name)[:60]!r}", path, line)
    return [str(name).strip() for name in names if name != ""]


# Labels within a cell


def choose_separator(cells: Sequence[str], one_label: bool, names: _LabelNames | None) -> tuple[str, bool]:
    """Find out what stands between the labels of a cell, by the rules at the top of this module.

    Args:
        cells: all cells that are not empty, stripped.
        one_label: whether the column's name speaks of a single label.
        names: the known labels, if there is a labels file.

    Returns:
        The separator ("" for one label a cell, "[]" for lists), and whether it is a guess.
    """
    if cells and all(cell.startswith("[") and cell.endswith("]") for cell in cells):
        return _LISTS, False
    telling = [cell for cell in cells if any(mark in cell for mark in ";|, ")]
    if names is not None:
        sample = telling[:10_000]
        shares = {mark: _known_share(sample, mark, names) for mark in ("", ";", "|", ",", " ")}
        best = max(shares, key=shares.__getitem__)
        if shares[best] > 0:
            return best, False
    counts = {mark: sum(mark in cell for cell in telling) for mark in (";", "|")}
    mark = max(counts, key=counts.__getitem__)
    if counts[mark]:
        return mark, True
    if not one_label and any("," in cell for cell in telling):
        return ",", True
    if telling and all(_NUMBER_OR_URI.fullmatch(part) for cell in cells for part in cell.split()):
        return " ", True
    return "", True


def _known_share(cells: Sequence[str], separator: str, names: _LabelNames) -> float:
    parts = [part for cell in cells for part in split_labels(cell, separator)]
    return sum(map(names.knows, parts)) / len(parts) if parts else 0.0


def split_labels(cell: str, separator: str) -> list[str]:
    """The labels of one CSV or TSV cell, stripped, without empty ones.

    Args:
        cell: the cell.
        separator: what stands between labels; "" for one label a cell, "[]" for a list.

    Raises:
        ValueError: when the cell is not a list of names or numbers although it should be.
    """
    if separator == _LISTS:
        if not cell.strip():
            return []
        parts = _list_of_names(cell.strip())
    elif separator == "":
        parts = [cell]
    elif separator.isspace():
        parts = cell.split() if separator == " " else cell.split(separator)
    else:
        parts = cell.split(separator)
    return [part for part in map(str.strip, parts) if part]


def _list_of_names(cell: str) -> list[str]:
    """A list as JSON or as Python writes it."""
    try:
        try:
            found = json.loads(cell)
        except json.JSONDecodeError:
            found = ast.literal_eval(cell)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, list) or any(isinstance(part, bool) or not isinstance(part, str | int) for part in found):
        raise ValueError("not a list of names")
    return [without_lone_surrogates(str(part)) for part in found]


def _split_cells(rows: _Rows, separator: str) -> list[list[str]]:
    result = []
    for cell, line in zip(rows.cells, rows.lines, strict=True):
        try:
            result.append(cell if isinstance(cell, list) else split_labels(cell, separator))
        except ValueError:
            raise DataError(f"expected a list of labels, got {str(cell)[:60]!r}", rows.path, line) from None
    return result


# The label space


class _LabelNames:
    """Label ids and texts to label numbers.

    Args:
        labels: the label space.
        lines: the line of each label in its file.
        path: the labels file, or the data set where there is none.
    """

    def __init__(self, labels: Labels, lines: Sequence[int], path: Path):
        self.labels, self._lines, self._path = labels, lines, path
        self._by_id = {identifier: number for number, identifier in enumerate(labels.ids)}
        self._by_text: dict[str, int] = {}
        if labels.texts is not labels.ids:
            for number, text in enumerate(labels.texts):
                self._by_text[text] = number if text not in self._by_text else -1
        # A bare list of names may be referred to by row number, unless some name is itself a number.
        is_list = suffix(path) == ".txt"
        self._row_numbers = is_list and not any(name.isdecimal() for name in labels.ids)

    def _number(self, name: str) -> int | None:
        number = self._by_id.get(name)
        if number is None:
            number = self._by_text.get(name)
        if number is None and self._row_numbers and name.isascii() and name.isdecimal():
            # Leading zeros and numbers of thousands of digits are no row numbers.
            row = int(name) if len(name) < 10 else len(self.labels)
            number = row if row < len(self.labels) and str(row) == name else None
        return number

    def knows(self, name: str) -> bool:
        return self._number(name) is not None

    def number(self, name: str, path: Path, line: int) -> int:
        number = self._number(name)
        if number is None:
            raise DataError(
                f"label {name[:80]!r} is not in {self._path}; the nearest labels there are {self._nearest(name)}",
                path,
                line,
            )
        if number < 0:
            same = [row for row, text in enumerate(self.labels.texts) if text == name][:2]
            raise DataError(
                f"label name {name[:80]!r} stands for more than one label of {self._path} "
                f"(lines {self._lines[same[0]]} and {self._lines[same[1]]}); use ids",
                path,
                line,
            )
        return number

    def _nearest(self, name: str, most: int = 3) -> str:
        """The ids nearest to a name, compared with at most 2,000 ids and texts that begin or end alike."""
        name = name[:200]
        known = [*self._by_id, *self._by_text]
        if len(known) > 2000:
            known.sort()
            at = bisect_left(known, name)
            candidates = known[max(at - 500, 0) : at + 500]
            known = sorted(text[::-1] for text in known)
            at = bisect_left(known, name[::-1])
            candidates += [text[::-1] for text in known[max(at - 500, 0) : at + 500]]
            known = candidates
        short = {text[:200]: text for text in known}
        found = difflib.get_close_matches(name, short, n=2 * most, cutoff=0.0)
        numbers = dict.fromkeys(self._number(short[text]) for text in found)
        shown = []
        for number in [number for number in numbers if number is not None and number >= 0][:most]:
            identifier, text = self.labels.ids[number], self.labels.texts[number]
            shown.append(repr(identifier[:80]) + (f" ({text[:80]})" if text != identifier else ""))
        return ", ".join(shown) or "none"


def _collect_labels(parts: dict[str, list[list[str]]], path: Path) -> _LabelNames:
    """The label space of data without a labels file: the names of train in order, then what only others have."""
    seen = set(itertools.chain.from_iterable(parts["train"]))
    names = sorted(seen)
    for split, rows in parts.items():
        new = sorted(set(itertools.chain.from_iterable(rows)) - seen)
        if new:
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
        raise DataError("no document has a label, and there is no labels file", path)
    return _LabelNames(Labels(names, names), range(len(names)), path)


def _label_parser(path: Path) -> Callable[[TextIO], tuple[Labels, list[int]]]:
    """The function that reads a labels file's open text into the label space and the line of each label."""

    def parse(stream: TextIO) -> tuple[Labels, list[int]]:
        ids: list[str] = []
        texts: list[str] = []
        lines: list[int] = []
        if suffix(path) == ".txt":
            for number, line in enumerate(plain_lines(stream), start=1):
                if not line.strip():
                    raise DataError("the label name is empty", path, number)
                ids.append(line.strip())
                lines.append(number)
            texts = ids
        else:
            for number, record in records(stream, path):
                text_columns = [column for column in LABEL_TEXT_COLUMNS if column in record]
                id_columns = [column for column in LABEL_ID_COLUMNS if column in record]
                if not text_columns and not id_columns:
                    wanted = f"{', '.join(LABEL_ID_COLUMNS)} for ids, {', '.join(LABEL_TEXT_COLUMNS)} for texts"
                    raise DataError(f"there is no known column, only {listed(record)}; use {wanted}", path, number)
                identifier = (given_id(record, id_columns or text_columns[:1], path, number) or "").strip()
                if not identifier:
                    raise DataError("the label has no id", path, number)
                text = (
                    text_value(record[text_columns[0]], text_columns[0], path, number) if text_columns else identifier
                )
                ids.append(identifier)
                texts.append(text.strip())
                lines.append(number)
        if not ids:
            raise DataError("the file has no labels", path)
        check_unique(ids, "label", path, lines)
        return Labels(ids, texts), lines

    return parse
