"""Tables with a text and a labels column: CSV, TSV, JSONL and Parquet, one file or a folder of splits.

How labels are written:

- JSONL, and a list column of Parquet: a list of ids or names, or a single one.
- CSV, TSV, and a string column of Parquet: ids or names with a separator between them, found out as `cells` tells.

A column ``relevances`` holds a number above 0 and at most 1 for each label of the row, written in the same way. Without
a text column the text is made of ``title`` and ``content``.
"""

from __future__ import annotations

import itertools
import logging
import re
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError, unit
from ...types import Corpus, Labels
from .bits import BitColumns, choose_columns
from .cells import ANGLES, ENTITY, LISTS, NOTHING, choose_separator, pair, split_labels, split_weighted
from .columns import ID_COLUMNS, RELEVANCES, choose_fields, given_id, record_text
from .corpus import ReadSettings, Records, Splits, build_targets
from .hub import names_beside
from .labels import LabelLookup, collected, parse_list, parse_table
from .parquet import ParquetRows
from .rows import SUFFIXES, read_records, suffix
from .text import MARK, Halves, TextFiles, find_files, is_file, listed, shown_files, text_value
from .vocabulary import read_vocabulary

logger = logging.getLogger("labelspace.data")


SPLIT_STEMS = {"train": ("train",), "test": ("test",), "valid": ("valid", "validation", "dev", "val")}
LOOKED_FOR = "train.csv, .tsv, .jsonl or .parquet (and test, valid, labels), text files plain or .gz"

_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet", re.ASCII)


def _find(folder: Path, stems: Sequence[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The file of a split, or its Parquet shards in order; Parquet files may be in a folder ``data`` as well."""
    found = [[path] for path in find_files(folder, [f"{stem}{kind}" for stem in stems for kind in suffixes])]
    found += [[path] for stem in stems if is_file(path := folder / "data" / f"{stem}.parquet")]
    # As the Hub converts data sets: a folder for each split
    numbered = [_numbered(folder / stem) for stem in stems]
    found += [parts for parts in numbered if parts]
    for place in (folder, folder / "data"):
        shards: dict[tuple[str, int], dict[int, list[Path]]] = {}
        for path in shown_files(place, (".parquet",)) if place.is_dir() else ():
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


def _numbered(folder: Path) -> list[Path]:
    """Parquet files of a folder, if it is there, whose names are numbers."""
    files = shown_files(folder, (".parquet",)) if folder.is_dir() else []
    return [path for path in files if path.stem.isdecimal()]


def sniff(path: Path) -> bool:
    """Whether this is a table or a folder with a table of training documents."""
    return suffix(path) in SUFFIXES if path.is_file() else bool(_find(path, SPLIT_STEMS["train"]))


# One file


class _Numbered(dict[str, int]):
    """Names numbered in the order in which they come."""

    def __missing__(self, name: str) -> int:
        number = self[name] = len(self)
        return number


class _Documents(Records):
    """The documents of one file; their labels are numbers of the names met, or cells that still are to be split."""

    def __init__(self, path: Path, settings: ReadSettings, before: int, as_text: bool):
        super().__init__("document", path, settings.keep_parts, before)
        # Text is split; what JSON and Parquet hold as values is taken as it is.
        self._separator, self._as_text = settings.separator, as_text
        self.columns: list[str] = []  # of the first row
        self.label_columns: set[str] = set()
        self.counts, self.numbers = array("i"), array("i")
        self.names = _Numbered()
        self.relevances: array[float] | None = None
        self.cells: list[str] = []
        self._relevance_cells: list[object] = []
        self._halves = Halves()
        self.nothing: list[str] = []  # cells that hold the text of no value
        self.phrases: list[str] = []  # labels of JSON and Parquet that are one text each
        self.bits: BitColumns | None = None  # where there is no column of labels

    def add_labels(self, value: Any, relevances: object, column: str, line: int) -> None:
        """Labels of the document added last: here alone it is decided whether their cell is split."""
        if self._as_text and self._separator is None:
            # The separator is found out from all cells of all files, so these wait for `split_cells`.
            self.cells.append(value or "")
            self._relevance_cells.append(relevances)
        elif self._separator is not None and (self._as_text or isinstance(value, str)):
            self._add_cell(value or "", relevances, self._separator, line)
        elif value is None or isinstance(value, list):
            self._add_values(value or [], relevances, column, line)
        else:
            if isinstance(value, str):
                self.phrases.append(value.strip())
            one = relevances is not None and not isinstance(relevances, list)
            self._add_values([value], [relevances] if one else relevances, column, line)

    def take_bits(self, columns: Sequence[str]) -> None:
        """Take the names of columns of 0 and 1 as labels; there are no others."""
        assert self.bits is not None
        rows = self.bits.rows(columns)
        self.names = _Numbered({name: number for number, name in enumerate(columns)})
        self.counts, self.numbers = array("i", map(len, rows)), array("i", itertools.chain.from_iterable(rows))
        self.cells, self.bits = [], None

    def split_cells(self, separator: str) -> None:
        """Make numbers of the cells, now that their separator is known."""
        for cell, relevances, line in zip(self.cells, self._relevance_cells, self.lines, strict=False):
            self._add_cell(cell, relevances, separator, line)
        self.cells, self._relevance_cells = [], []
        self._halves.say(self.path)

    def _add_cell(self, cell: str, relevances: object, separator: str, line: int) -> None:
        try:
            if relevances is None or relevances == "":
                names, values = split_labels(cell, separator), None
            else:
                names, values = split_weighted(cell, relevances, separator)
        except ValueError as error:
            raise DataError(str(error), self.path, line) from None
        if separator == LISTS:
            names = list(map(self._halves.mend, names))
        self._add(names, values)

    def _add_values(self, names: list[object], relevances: object, column: str, line: int) -> None:
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
        self._add(labels, values)

    def _add(self, names: list[str], relevances: list[float] | None) -> None:
        if relevances is not None and self.relevances is None:
            self.relevances = array("d", [1.0]) * len(self.numbers)
        if self.relevances is not None:
            self.relevances.extend([1.0] * len(names) if relevances is None else relevances)
        if any(MARK in name for name in names):
            names = [name.replace(MARK, "").strip() for name in names]
            if relevances is not None:
                relevances = [value for name, value in zip(names, relevances, strict=True) if name]
            names = [name for name in names if name]
        if self._as_text and len(names) == 1 and names[0] in NOTHING and relevances is None:
            self.nothing.append(names.pop())
        self.counts.append(len(names))
        self.numbers.extend(map(self.names.__getitem__, names))


def _read_file(files: TextFiles, path: Path, settings: ReadSettings, fields: str, before: int) -> _Documents:
    """Read one file; documents without an id are numbered on from those before."""
    text_column, label_column = settings.text_column, settings.label_column
    kind = suffix(path)
    if kind not in SUFFIXES:
        raise DataError(f"a table must be a file of kind {', '.join(SUFFIXES)}, text files plain or .gz", path)
    text_parts = ("title", "content") if text_column == "text" else ()
    wanted = {text_column, *text_parts, label_column, "label", RELEVANCES, *ID_COLUMNS}

    def chosen(columns: Container[str]) -> str:
        return "label" if label_column == "labels" and "labels" not in columns else label_column

    parquet = ParquetRows(path) if kind == ".parquet" else None
    if parquet is not None and chosen(parquet.columns) not in parquet.columns:
        wanted = set(parquet.columns)  # the labels may be columns
    as_text = kind in (".csv", ".tsv") or (parquet is not None and parquet.holds_text(chosen(parquet.columns)))

    def missing(what: str, record: Iterable[str], line: int | None) -> DataError:
        columns = listed(record if parquet is None else parquet.columns)
        return DataError(f"there is no {what}, only {columns}; set {what.split()[0]}_column", path, line)

    def parse(rows: Iterator[tuple[int, dict[str, Any]]]) -> _Documents:
        documents = _Documents(path, settings, before, as_text)
        documents.bits = BitColumns(path, {text_column.lower(), "title", "content", RELEVANCES, *ID_COLUMNS})
        for line, record in rows:
            if text_column in record:
                text, made_of = text_value(record[text_column], text_column, path, line), None
            elif any(part in record for part in text_parts):
                text, made_of = record_text(record, fields, path, line), record
            else:
                raise missing(f"text column {text_column!r}", record, line)
            documents.add(given_id(record, ID_COLUMNS, path, line), text, line, made_of)
            column = chosen(record)
            documents.columns = documents.columns or list(record)
            if column in record:
                documents.label_columns.add(column)
                documents.bits = None
            elif documents.bits is not None:
                documents.bits.add(record, line)
            documents.add_labels(record.get(column), record.get(RELEVANCES), column, line)
        documents.check()
        return documents

    return read_records(files, path, parse, wanted)


# All of them


def read(path: Path, name: str, settings: ReadSettings) -> Splits:
    """Read a table or a folder of tables, whose labels may be the concepts of a vocabulary."""
    vocabulary = None
    if settings.label_vocabulary is not None:
        vocabulary = read_vocabulary(settings.label_vocabulary, settings, TextFiles(settings.encoding))
        settings = replace(settings, label_fields="auto")  # those given are the vocabulary's
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
        if label_file is not None and vocabulary is not None:
            raise DataError("the labels of this data are in this file already; leave out label_vocabulary", label_file)
    if "train" not in paths:
        raise DataError(f"a table data set needs {LOOKED_FOR}", path)
    splits: dict[str, list[_Documents]] = {}
    for split, parts in paths.items():
        splits[split] = []
        for part in parts:
            before = sum(len(file.ids) for file in splits[split])
            splits[split].append(_read_file(files, part, settings, fields, before))
    if _lacks_labels(splits):
        logger.warning(
            "%s has no labels, so nothing can be measured on it, and it is left out; `labelspace predict` reads it",
            splits.pop("test")[0].path,
        )
    every = [file for parts in splits.values() for file in parts]
    composed_labels = False
    names = _class_names(every) if vocabulary is None else vocabulary.concepts()
    if label_file is not None:
        names, composed_labels = _read_labels(files, label_file, label_fields, settings.keep_parts)
    with_bits = any(file.bits is not None for file in every)
    if with_bits:
        names = _take_bits(every, names, settings.label_column, path)
    separator = settings.separator
    if separator is None:
        separator = _find_separator(every, names, path)
    for file in every:
        file.split_cells(separator or "")
    if not with_bits:
        _read_vectors(every, names, path)
    _warn_of_texts(every, names, path)
    if names is None:
        met = {split: [name for file in parts for name in file.names] for split, parts in splits.items()}
        own = collected(met, path)
        names = LabelLookup(Labels(own, own), range(len(own)), path)

    corpora = {split: _corpus(parts, names) for split, parts in splits.items()}
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
    return Splits(names.labels, corpora, options, vocabulary, names)


def _lacks_labels(splits: dict[str, list[_Documents]]) -> bool:
    """Whether the test documents have columns of the training documents alone, but none that may hold labels."""
    known = set(splits["train"][0].columns)
    return "test" in splits and all(
        not file.label_columns and set(file.columns) < known and not (file.bits and file.bits.values)
        for file in splits["test"]
    )


def _take_bits(files: Sequence[_Documents], names: LabelLookup | None, asked: str, path: Path) -> LabelLookup:
    """The labels of files without a column of labels, whose columns of 0 and 1 are taken as such."""
    bits = [file.bits for file in files if file.bits is not None]
    columns = choose_columns(bits, asked, None if names is None else names.knows, path)
    if len(bits) < len(files):
        other = next(file for file in files if file.bits is None)
        raise DataError(
            f"a column holds the labels here, but columns of 0 and 1 in {bits[0].path}; write all files in one way",
            other.path,
        )
    for file in files:
        file.take_bits(columns)
    return LabelLookup(Labels(columns, columns), range(len(columns)), path) if names is None else names


def _find_separator(files: Sequence[_Documents], names: LabelLookup | None, path: Path) -> str | None:
    """The separator of labels, found out from all cells of all splits and said; None where there are no cells."""
    cells = [stripped for file in files for cell in file.cells if (stripped := cell.strip())]
    if not cells:
        return None
    one_label = all(file.label_columns <= {"label"} for file in files)
    chosen = choose_separator(cells, one_label, None if names is None else names.knows)
    if chosen.guessed and chosen.mark:
        counts = sorted(chosen.cells.items(), key=lambda item: (item[0] != chosen.mark, -item[1]))
        shown = f"it parts {counts[0][1]} of {len(cells)} cells"
        shown += "".join(f", {mark!r} would part {count}" for mark, count in counts[1:])
        logger.warning("%s: labels look separated by %r (%s); set separator if they are not", path, chosen.mark, shown)
    elif chosen.mark not in ("", LISTS, ANGLES):
        logger.info("%s: labels are separated by %r, going by the labels that are known", path, chosen.mark)
    entity = next((match for cell in cells if "&" in cell and (match := ENTITY.search(cell))), None)
    if entity is not None:
        logger.warning(
            "%s: labels hold HTML entities, such as %r in %r, which stay as they are; decode them if they are none",
            *(path, entity[0], entity.string[:60]),
        )
    return chosen.mark


def _warn_of_texts(files: Sequence[_Documents], names: LabelLookup | None, path: Path) -> None:
    """Say it when a text of labels looks like several, or like the text of no value."""
    phrases = [phrase for file in files for phrase in file.phrases if phrase]
    if phrases and names is None:
        chosen = choose_separator(phrases, False, None)
        if chosen.guessed and chosen.mark:
            shown = next(phrase for phrase in phrases if len(split_labels(phrase, chosen.mark)) > 1)
            logger.warning(
                "%s: labels that are one text, such as %r, count as one label; if they are several, give lists, or set "
                "separator to %r",
                *(path, shown[:60], chosen.mark),
            )
    nothing = Counter(cell for file in files for cell in file.nothing)
    if nothing:
        shown = " and ".join(f"{cell!r} ({count} times)" for cell, count in nothing.most_common(3))
        logger.warning("%s: cells of labels hold %s, the text of no value; they count as without a label", path, shown)


def _read_vectors(files: Sequence[_Documents], names: LabelLookup | None, path: Path) -> None:
    """Make labels of vectors of 0 and 1, of which all documents have one, by the order of the labels file.

    Raises:
        DataError: there is no labels file, or one of another number of labels.
    """
    lengths = {count for file in files for count in file.counts}
    if len(lengths) != 1 or min(lengths) < 2 or any(file.names.keys() - {"0", "1"} for file in files):
        return
    width = lengths.pop()
    vectors = [np.asarray(file.numbers).reshape(-1, width) == file.names.get("1", -1) for file in files]
    if names is not None and names.knows("0") and names.knows("1") and not _repeats(vectors):
        return  # these are the names of two labels
    shown = f"the labels of every document are {width} numbers of 0 and 1, as if for each label whether it is right"
    if names is None:
        raise DataError(
            f"{shown}; name the labels in a file labels.txt beside the data, one a line in their order, or give each "
            "document a list of names",
            files[0].path,
            files[0].lines[0],
        )
    if len(names.labels) != width:
        raise DataError(f"{shown}, but the labels file has {len(names.labels)} labels; they must be as many", path)
    logger.info("%s: labels are given by 0 and 1 for each of the %d labels, in the order of their file", path, width)
    for file, vector in zip(files, vectors, strict=True):
        file.counts = array("i", vector.sum(axis=1).tolist())
        file.names = _Numbered({name: number for number, name in enumerate(names.labels.ids)})
        file.numbers = array("i", np.nonzero(vector)[1].tolist())


def _repeats(vectors: Sequence[npt.NDArray[np.bool_]]) -> bool:
    """Whether some document has the same number twice."""
    return any(bool((vector.sum(axis=1) != 1).any()) for vector in vectors) or vectors[0].shape[1] > 2


def _read_labels(files: TextFiles, path: Path, fields: str, keep_parts: bool) -> tuple[LabelLookup, bool]:
    if suffix(path) == ".txt":
        return files.read(path, lambda stream: parse_list(stream, path)), False
    return read_records(files, path, lambda rows: parse_table(rows, path, fields, keep_parts))


def _class_names(files: Sequence[_Documents]) -> LabelLookup | None:
    """The label space in the schema of Parquet files, or beside numbers in other files; they must agree."""
    known: list[str] | None = None
    source = Path()
    for file in files:
        column, place = next(iter(file.label_columns), ""), file.path
        if suffix(place) == ".parquet":
            names = ParquetRows(place).class_names(column)
        elif all(name.isdecimal() for name in (*file.names, *filter(None, file.cells))):
            names, place = names_beside(place, column) or (None, place)
            if names is not None and any(name.isdecimal() for name in names):
                continue  # a number could be meant as a name
        else:
            continue
        if known is None:
            known, source = names, place
        elif names is not None and names != known:
            raise DataError(f"the label names in the schema differ from those of {source}", file.path)
    return None if known is None else LabelLookup(Labels(known, known), range(len(known)), source, bare=True)


def _corpus(files: list[_Documents], names: LabelLookup) -> Corpus:
    """The documents of a split; what was read of its files is used up."""
    first = files[0]
    numbers = np.concatenate([_label_numbers(file, names) for file in files])
    counts = np.concatenate([np.asarray(file.counts) for file in files])
    relevances = None
    if any(file.relevances is not None for file in files):
        relevances = np.concatenate([file.relevances or np.ones(len(file.numbers)) for file in files])
    for file in files[1:]:
        first.extend(file)
    if len(files) > 1:
        _check_unique_over(files, first.ids)
    return first.corpus(build_targets(counts, numbers, relevances, names.width, first.path))


def _check_unique_over(files: Sequence[_Documents], ids: Sequence[str]) -> None:
    """Refuse ids that occur in two files of one split."""
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, tuple[Path, int]] = {}
    places = ((file.path, line) for file in files for line in file.lines)
    for identifier, (path, line) in zip(ids, places, strict=True):
        first_path, first_line = seen.setdefault(identifier, (path, line))
        if first_path != path:
            where = f"{first_path}, {unit(first_path)} {first_line}"
            raise DataError(f"the document id {identifier[:80]!r} was used in {where} already", path, line)


def _label_numbers(file: _Documents, names: LabelLookup) -> npt.NDArray[np.int64]:
    """The label number of each label of each document."""
    found = (names.find(name) for name in file.names)
    number_of = np.fromiter((-1 if number is None else number for number in found), np.int64, len(file.names))
    numbers = np.asarray(file.numbers)
    if (number_of < 0).any():
        met, ends = list(file.names), np.cumsum(file.counts)
        unsure, first = np.unique(numbers[number_of[numbers] < 0], return_index=True)
        places = np.flatnonzero(number_of[numbers] < 0)[first]
        for at in np.argsort(places):
            row = int(np.searchsorted(ends, places[at], side="right"))
            number_of[unsure[at]] = names.number(met[unsure[at]], file.path, file.lines[row])
    return number_of[numbers]
