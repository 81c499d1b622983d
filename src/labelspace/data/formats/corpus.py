"""What every format reader takes and gives, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ...errors import DataError, unit
from ...types import Corpus, Labels
from .text import text_value


@dataclass(frozen=True)
class ReadSettings:
    """How files are to be read; each format uses what concerns it.

    Args:
        fields: document fields of LF files, and of tables without a text column: "title", "title+content" or "auto".
        label_fields: label fields, likewise; "auto" takes those of the documents.
        text_column: the column of tables that holds the text.
        label_column: the column of tables that holds the labels.
        separator: what stands between the labels of a CSV or TSV cell; None finds it out, "" never splits.
        encoding: the encoding of all text files, or None to find it out.
        label_vocabulary: the file that holds the labels, for formats that have them apart.
        language: of the labels of a vocabulary; None chooses one.
        keep_parts: keep title and content beside the text made of them.
    """

    fields: str = "auto"
    label_fields: str = "auto"
    text_column: str = "text"
    label_column: str = "labels"
    separator: str | None = None
    encoding: str | None = None
    label_vocabulary: Path | None = None
    language: str | None = None
    keep_parts: bool = False


@dataclass(frozen=True)
class Splits:
    """What a format reader found.

    Args:
        labels: the label space.
        train: the training documents.
        test: the test documents, if there are any.
        valid: validation documents, if they are shipped apart.
        options: how the files were read.
    """

    labels: Labels
    train: Corpus
    test: Corpus | None = None
    valid: Corpus | None = None
    options: dict[str, str | int | None] = field(default_factory=dict)


class TextParts:
    """Titles and contents of a file's records, as they came."""

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {"title": [], "content": []}
        self._met: set[str] = set()

    def add(self, record: Mapping[str, Any], path: Path, line: int) -> None:
        """Keep those of one more record.

        Args:
            record: column to value.
            path: the file, for messages.
            line: the line, for messages.
        """
        for name, texts in self._parts.items():
            texts.append(text_value(record.get(name), name, path, line))
        self._met.update(record.keys() & self._parts.keys())

    def extend(self, other: TextParts) -> None:
        """Put those of another file behind these.

        Args:
            other: what was kept of it.
        """
        for name, texts in self._parts.items():
            texts.extend(other._parts[name])
        self._met |= other._met

    def found(self, count: int) -> dict[str, list[str]] | None:
        """The parts that occurred, or None where not all records had any.

        Args:
            count: how many records there are.
        """
        parts = {name: texts for name, texts in self._parts.items() if name in self._met and len(texts) == count}
        return parts or None


def given_id(record: Mapping[str, Any], columns: Sequence[str], path: Path, line: int) -> str | None:
    """The id of a record from the first id column that it has, or None.

    Args:
        record: column to value.
        columns: names of id columns, the preferred one first.
        path: the file, for messages.
        line: the line, for messages.
    """
    for column in columns:
        value = record.get(column)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"{column!r} must be a text or a whole number, but is {str(value)[:60]!r}", path, line)
        return str(value)
    return None


def check_unique(ids: Sequence[str], what: str, path: Path, lines: Sequence[int] | None = None) -> None:
    """Refuse ids that occur twice, naming both lines.

    Args:
        ids: the ids in file order.
        what: what they are ids of, for the message.
        path: the file, for the message.
        lines: the line of each id; None when row 0 is line 1, and so on.
    """
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for row, identifier in enumerate(ids):
        line = row + 1 if lines is None else lines[row]
        if identifier in first:
            where = f"{unit(path)} {first[identifier]}"
            raise DataError(f"the {what} id {identifier[:80]!r} was used in {where} already", path, line)
        first[identifier] = line


def build_targets(
    counts: Sequence[int] | npt.NDArray[np.int64],
    columns: Sequence[int] | npt.NDArray[np.int64],
    values: Sequence[float] | npt.NDArray[np.floating] | None,
    n_labels: int,
    path: Path,
    first_line: int = 1,
) -> sp.csr_array:
    """The truth (N, L) as CSR float32, checked; a label given twice in a row counts once, with its best relevance.

    Args:
        counts: (N,) entries of each row.
        columns: (n,) label numbers, row after row.
        values: (n,) relevances in (0, 1], or None for 1.
        n_labels: L.
        path: the file, for messages.
        first_line: the line of row 0; each row is one line.
    """
    indptr = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)
    indices = np.asarray(columns, dtype=np.int64)
    given = np.ones(len(indices), dtype=np.float32) if values is None else np.asarray(values)

    wrong = np.flatnonzero((indices < 0) | (indices >= n_labels))
    if len(wrong):
        row = int(np.searchsorted(indptr, wrong[0], side="right")) - 1
        number = int(indices[wrong[0]])
        raise DataError(f"label number {number} is not one of 0 to {n_labels - 1}", path, row + first_line)
    wrong = wrong_relevances(given)
    if len(wrong):
        row = int(np.searchsorted(indptr, wrong[0], side="right")) - 1
        raise DataError(
            f"relevance {float(given[wrong[0]]):g} of label {int(indices[wrong[0]])} is not above 0 and at most 1",
            path,
            row + first_line,
        )
    data = given.astype(np.float32, copy=False)
    return merge_duplicates(sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_labels)))


def wrong_relevances(values: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """Places of values that are not above 0, in float32 too, and at most 1.

    Args:
        values: (n,) relevances.
    """
    return np.flatnonzero(~((values <= 1) & (np.minimum(values, 1).astype(np.float32) > 0)))


def merge_duplicates(matrix: sp.csr_array) -> sp.csr_array:
    """Sorted rows without repeated columns; of repeated ones the largest value stays.

    Args:
        matrix: CSR; may be changed in place.
    """
    matrix.sort_indices()
    if matrix.has_canonical_format:
        return matrix
    n_rows = len(matrix.indptr) - 1
    rows = np.repeat(np.arange(n_rows), np.diff(matrix.indptr))
    new = np.ones(matrix.nnz, dtype=bool)
    new[1:] = (rows[1:] != rows[:-1]) | (matrix.indices[1:] != matrix.indices[:-1])
    starts = np.flatnonzero(new)
    data = np.maximum.reduceat(matrix.data, starts)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[starts], minlength=n_rows))])
    return sp.csr_array((data, matrix.indices[starts], indptr), shape=matrix.shape)
