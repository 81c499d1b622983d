"""Files of what a model is given to add or to remove: documents, labels, ids."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import DataError
from ..types import Corpus, Labels
from .formats import annif
from .formats.columns import ID_COLUMNS, given_id, record_text
from .formats.labels import NoLabelsError
from .formats.rows import SUFFIXES, read_records, suffix
from .formats.text import TextFiles, listed, plain_lines, refuse_broken_link
from .loading import load, require_texts
from .texts import read_texts

logger = logging.getLogger("labelspace.data")

EDIT_ID_COLUMNS = (*ID_COLUMNS, "uri")


def read_documents(path: str | Path, **options: Any) -> tuple[Corpus, Labels]:
    """Documents that shall vote, and the labels that they name.

    Args:
        path: as for `load`; of a folder with several parts the training documents.
        options: as for `load`.

    Raises:
        DataError: as from `load`; a document without a label, unless unknown labels are dropped; or some with and some
            without an id.
    """
    path = Path(path).expanduser()
    try:
        data = load(path, **options, valid_fraction=0)
    except NoLabelsError:
        raise DataError("no document has a label, so none could vote; give each of them a label", path) from None
    require_texts(data)
    corpus = data.train
    unlabelled = np.flatnonzero(np.diff(corpus.targets.indptr) == 0)
    if len(unlabelled) and options.get("unknown_labels") == "drop":
        logger.warning("%s: %d documents have no label and are passed over", path, len(unlabelled))
        corpus = corpus.rows(np.flatnonzero(np.diff(corpus.targets.indptr)))
    elif len(unlabelled):
        first = f"number {unlabelled[0]} (from 0)" if corpus.unnamed else repr(corpus.ids[unlabelled[0]])
        raise DataError(
            f"{len(unlabelled)} of {len(corpus)} documents have no label and could vote for none, "
            f"the first is {first}; leave them out, or give them labels",
            path,
        )
    _all_or_none(corpus.unnamed, len(corpus), "documents", path)
    return corpus, data.labels


def read_labels(path: str | Path, *, text_column: str = "text") -> tuple[list[str] | None, list[str]]:
    """Labels that shall be added or renamed: ids, or None where the file has none, and texts.

    Blanks around ids and plain lines do not count, as in the labels file of a data set.

    Args:
        path: one text a line, or a table with a text column (``label`` and ``name`` serve as well) and perhaps ids
            (``id``, ``uid``, ``uri``, ``document_id`` or ``_id``); "-" for lines of standard input.
        text_column: the column that holds the text.

    Raises:
        DataError: no such file, no labels in it, a row that cannot be read, or some with and some without an id.
    """
    kind = suffix(Path(path))
    if kind not in SUFFIXES or kind == ".tsv" and Path(path).is_file() and annif.sniff(Path(path)):
        lines = [text.strip() for text in read_texts(path)[1]]
        while lines and not lines[-1]:
            lines.pop()
        if not lines:
            raise DataError("there are no labels", _named_path(path))
        return None, lines

    columns = [text_column, *(("label", "name") if text_column == "text" else ())]

    def parse(records: Iterator[tuple[int, dict[str, Any]]]) -> tuple[list[str], list[str]]:
        ids, texts = [], []
        for line, record in records:
            ids.append((given_id(record, EDIT_ID_COLUMNS, place, line) or "").strip())
            texts.append(record_text(record, "title+content", place, line, columns))
        return ids, texts

    place = _existing(path)
    ids, texts = read_records(TextFiles(), place, parse)
    if not texts:
        raise DataError("there are no labels", place)
    unnamed = ids.count("")
    _all_or_none(unnamed, len(texts), "labels", place)
    return None if unnamed else ids, texts


def read_ids(path: str | Path) -> list[str]:
    """Ids of documents or labels that shall be removed.

    Args:
        path: one id a line, blanks around it included; a table with ids, such as JSONL, whose ids may hold line ends;
            or "-" for lines of standard input.

    Raises:
        DataError: no such file, no ids in it, or a row without one.
    """

    def parse(records: Iterator[tuple[int, dict[str, Any]]]) -> list[str]:
        ids = []
        for line, record in records:
            identifier = given_id(record, EDIT_ID_COLUMNS, place, line)
            if identifier is None:
                raise DataError(f"there is no id, only {listed(record)}; name the column of ids id", place, line)
            ids.append(identifier)
        return ids

    def lines(stream: TextIO) -> list[str]:
        return [line for line in plain_lines(stream) if line.strip()]

    files = TextFiles("utf-8")
    if str(path) == "-":
        place = _named_path(path)
        ids = files.read(place, lines, sys.stdin.buffer.read())
    elif suffix(place := _existing(path)) in SUFFIXES:
        ids = read_records(files, place, parse)
    else:
        ids = files.read(place, lines)
    if not ids:
        raise DataError("there are no ids", place)
    return ids


def _existing(path: str | Path) -> Path:
    """A file that exists."""
    place = Path(path).expanduser()
    refuse_broken_link(place)
    if not str(path) or not place.exists():
        raise DataError("there is no such file", place if str(path) else "''")
    if place.is_dir():
        raise DataError("this is a folder; name a file", place)
    return place


def _named_path(path: str | Path) -> Path:
    return Path("standard input" if str(path) == "-" else path)


def _all_or_none(unnamed: int, count: int, kind: str, path: Path) -> None:
    if 0 < unnamed < count:
        raise DataError(f"{unnamed} of {count} {kind} have no id; give an id to all of them or to none", path)
