"""A data set of any format, written as a folder that reads back the same without a flag.

The folder holds the splits, the labels, filter pairs, and ``labelspace.json``, which says how it is read. Ids, texts,
titles and contents, the truth with its relevances, the pairs, and the order of all of them are kept; so are documents
without labels and labels without documents.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..base.files import atomic_folder
from ..errors import DataError, MissingExtraError, SettingsError
from ..types import Corpus, Dataset, Labels
from .formats.columns import FIELDS, ID_COLUMNS, RELEVANCES, record_text
from .formats.filters import NAMES
from .formats.rows import read_records
from .formats.text import TextFiles, listed
from .loading import RECORD, load

logger = logging.getLogger("labelspace.data")

LF_STEMS = {"train": "trn", "valid": "val", "test": "tst", "labels": "lbl"}
BATCH_ROWS = 10_000
"""Rows of a Parquet file that are written at a time."""

Columns = dict[str, Iterable[Any]]


def convert(src: str | Path | Dataset, dst: str | Path, *, to: str, overwrite: bool = False, **options: Any) -> Dataset:
    """Write a data set as a folder of another format, which ``load`` reads without any option and with the same result.

    Args:
        src: a folder or file that ``load`` reads, or a data set.
        dst: the folder to write; whole or not at all.
        to: ``lf``, ``jsonl``, ``csv`` or ``parquet``.
        overwrite: replace a folder that was written by ``convert`` before.
        options: how to read ``src``, as for ``load``.

    Returns:
        What was written. Its validation set is empty unless one was shipped.

    Raises:
        DataError: ``src`` cannot be read, or ``dst`` is there already.
        SettingsError: an unknown format, or an option out of bounds.
        MissingExtraError: Parquet, but pyarrow is not installed.
    """
    if to not in WRITERS:
        raise SettingsError(f"to must be one of {', '.join(WRITERS)}, got {to!r}")
    folder = Path(dst).expanduser()
    _require_free(folder, overwrite, None if isinstance(src, Dataset) else Path(src).expanduser())
    if to == "parquet":
        _pyarrow()
    if isinstance(src, Dataset):
        if options:
            raise SettingsError(f"{', '.join(options)} say how files are read, but a data set in memory was given")
        data = src
    else:
        data = load(src, keep_parts=True, valid_fraction=0.0, **options)
        _say_what_is_left_out(data)
    _check(data)
    try:
        with atomic_folder(folder) as temporary:
            _write(data, temporary, to)
    except UnicodeEncodeError:
        raise DataError(f"{data.name}: a text holds half of a surrogate pair, which no file can hold") from None
    return data


def _require_free(folder: Path, overwrite: bool, source: Path | None) -> None:
    """Refuse to replace anything but what ``convert`` wrote, and that only if asked to."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise DataError("the folder is there already; choose another one, or add --overwrite", folder)
    if not (folder / RECORD).is_file():
        raise DataError(f"the folder was not written by convert (it has no {RECORD}); choose another one", folder)
    if source is not None and source.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the folder holds {source}, which is to be read; choose another one", folder)


def _say_what_is_left_out(data: Dataset) -> None:
    """Name the columns of the training file that mean nothing here."""
    path, kind = data.train.source, data.options["format"]
    if path is None or kind not in ("lf", "table"):
        return
    known = {"title", "content"}
    if kind == "lf":
        known |= {"uid", "target_ind", "target_rel"}
    else:
        columns = (str(data.options["text_column"]), str(data.options["label_column"]))
        known |= {*columns, "label", RELEVANCES, *ID_COLUMNS}
    first = read_records(TextFiles(), path, lambda rows: next(rows, None))
    others = [column for column in (first[1] if first else {}) if column not in known]
    if others:
        logger.warning("%s: %d columns are not carried over: %s", data.name, len(others), listed(others))


def _check(data: Dataset) -> None:
    """Refuse what no reader would read back."""
    if not len(data.labels):
        raise DataError(f"{data.name} has no labels; there is nothing to write")
    for name in data.labels.ids:
        if not name or name != name.strip():
            raise DataError(f"{data.name}: the label id {name!r} is empty or has blanks around it; change it")
    _check_distinct(data.labels.ids, f"{data.name}: the label id")
    for split, corpus in _splits(data).items():
        if not len(corpus):
            raise DataError(f"{data.name} has no {split} documents; a written data set needs them")
        if not all(map(str.strip, corpus.ids)):
            raise DataError(f"{data.name}: a {split} document has the empty id; give it another one")
        _check_distinct(corpus.ids, f"{data.name}: the {split} document id")
        values = corpus.targets.data
        if not ((values > 0) & (values <= 1)).all():
            raise DataError(f"{data.name}: a {split} relevance is not above 0 and at most 1")


def _check_distinct(ids: Sequence[str], what: str) -> None:
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{what} {twice!r} is there twice")


def _splits(data: Dataset) -> dict[str, Corpus]:
    """The splits that are shipped apart."""
    splits = {"train": data.train}
    if len(data.valid) and not len(data.valid_rows):
        splits["valid"] = data.valid
    if data.test is not None:
        splits["test"] = data.test
    return splits


def _write(data: Dataset, folder: Path, to: str) -> None:
    suffix, write = WRITERS[to]
    splits = _splits(data)
    fields, label_fields = _fields(splits.values()), _fields([data.labels])
    if (fields is None and data.train.parts) or (label_fields is None and data.labels.parts):
        logger.warning("%s: the texts are not those of their titles and contents; only texts are written", data.name)
    weighted = to == "lf" or any((corpus.targets.data != 1).any() for corpus in splits.values())
    stems = LF_STEMS if to == "lf" else {name: name for name in LF_STEMS}

    for split, corpus in splits.items():
        columns: Columns = {"uid" if to == "lf" else "id": corpus.ids}
        columns |= _text_columns(corpus.texts, corpus.parts if fields else None, to)
        numbers = _rows(corpus, corpus.targets.indices)
        if to == "lf":
            columns["target_ind"] = numbers
        else:
            columns["labels"] = ([data.labels.ids[number] for number in row] for row in numbers)
        if weighted:
            relevances = map(_shortest, _rows(corpus, corpus.targets.data))
            columns["target_rel" if to == "lf" else RELEVANCES] = relevances
        write(folder / f"{stems[split]}{suffix}", columns)
        if corpus.filter_pairs is not None and split in NAMES:
            with (folder / NAMES[split][0]).open("w", encoding="utf-8") as stream:
                stream.writelines(f"{row} {label}\n" for row, label in corpus.filter_pairs.tolist())
    columns = {"uid" if to == "lf" else "id": data.labels.ids}
    columns |= _text_columns(data.labels.texts, data.labels.parts if label_fields else None, to)
    if to == "csv" and any(row == tuple(columns) for row in zip(*columns.values(), strict=True)):
        columns["row"] = map(str, range(len(data.labels)))  # a label "id" with the text "text" looks like the header
    write(folder / f"{stems['labels']}{suffix}", columns)

    record = {"labelspace": __version__, "name": data.name, "format": "lf" if to == "lf" else "table"}
    record["fields"], record["label_fields"] = fields or "title+content", label_fields or "title+content"
    if isinstance(texts := data.options.get("texts"), str):
        record["texts"] = texts
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _fields(columns: Iterable[Corpus | Labels]) -> str | None:
    """The fields that all texts with parts are made of, or None where there are none."""
    with_parts = [(column.texts, column.parts) for column in columns if column.parts]
    for fields in ("title+content", *FIELDS):
        if with_parts and all(_are_made_of(fields, texts, parts) for texts, parts in with_parts):
            return fields
    return None


def _are_made_of(fields: str, texts: Sequence[str], parts: Mapping[str, Sequence[str]]) -> bool:
    records = (dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True))
    made = (record_text(record, fields, Path(), 0) for record in records)
    return all(text == own for text, own in zip(texts, made, strict=True))


def _text_columns(texts: Sequence[str], parts: Mapping[str, Sequence[str]] | None, to: str) -> Columns:
    """Title and content where they make the text; else the text, which in LF is a title without content."""
    if parts:
        return {name: parts[name] for name in ("title", "content") if name in parts}
    return {"title": texts, "content": repeat("")} if to == "lf" else {"text": texts}


def _rows(corpus: Corpus, values: Any) -> Iterator[list[Any]]:
    """The entries of each document as lists."""
    ends = corpus.targets.indptr.tolist()
    return (values[start:end].tolist() for start, end in zip(ends, ends[1:], strict=False))


def _shortest(relevances: list[float]) -> list[float]:
    """The same float32 numbers with as few digits as tell them apart."""
    tiny = float(np.finfo(np.float32).tiny)
    return [value if value == 1 or value < tiny else float(str(np.float32(value))) for value in relevances]


# Kinds of files


def _json_rows(path: Path, columns: Columns) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in zip(*columns.values(), strict=False):  # a repeated column has no end
            stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


def _csv_rows(path: Path, columns: Columns) -> None:
    """Every field is quoted, and labels are lists in JSON, so that nothing is to be guessed."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(json.dumps(x, ensure_ascii=False) if isinstance(x, list) else x for x in row)


def _parquet_rows(path: Path, columns: Columns) -> None:
    pa = _pyarrow()
    from pyarrow import parquet

    kinds = {"labels": pa.list_(pa.string()), RELEVANCES: pa.list_(pa.float32())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    rows = zip(*columns.values(), strict=True)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            arrays = [
                pa.array(values, field.type) for values, field in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError("writing Parquet", "pyarrow", "parquet") from None
    return pyarrow


WRITERS: dict[str, tuple[str, Callable[[Path, Columns], None]]] = {
    "lf": (".json", _json_rows),
    "jsonl": (".jsonl", _json_rows),
    "csv": (".csv", _csv_rows),
    "parquet": (".parquet", _parquet_rows),
}
