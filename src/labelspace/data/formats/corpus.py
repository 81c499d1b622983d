"""What every format reader takes and gives, and the checks that all of them share."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ...errors import DataError, unit
from ...types import Corpus, Labels
from .text import MARK, text_value

if TYPE_CHECKING:
    from .labels import LabelLookup
    from .vocabulary import Vocabulary


logger = logging.getLogger("labelspace.data")


@dataclass(frozen=True)
class ReadSettings:
    """How files are to be read; each format uses what concerns it.

    Args:
        fields: document fields of LF files, and of tables without a text column: one of `columns.FIELDS`, or "auto".
        label_fields: label fields, likewise; "auto" takes those of the documents.
        text_column: the column of tables that holds the text.
        label_column: the column of tables that holds the labels.
        separator: what stands between the labels of a CSV or TSV cell; None finds it out, "" never splits.
        encoding: the encoding of all text files, or None to find it out.
        label_vocabulary: the file that holds the labels, for formats that have them apart.
        language: of the labels of a vocabulary; None chooses one.
        keep_parts: keep title and content beside the text made of them.
        unknown_labels: how labels are treated that the label space does not have, see `unknown`.
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
    unknown_labels: str = "refuse"


@dataclass(frozen=True)
class Splits:
    """What a format reader found.

    Args:
        labels: the label space.
        corpora: the documents of "train", and of "test" and "valid" where they are shipped.
        options: how the files were read.
        vocabulary: where the labels come from, if apart from the data; then they are all its concepts.
        lookup: that gave the label numbers, unknown names included, see `unknown.settle`; None where there are none.
    """

    labels: Labels
    corpora: Mapping[str, Corpus]
    options: dict[str, str | int | None] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    lookup: LabelLookup | None = None

    @property
    def train(self) -> Corpus:
        """The training documents."""
        return self.corpora["train"]

    @property
    def test(self) -> Corpus | None:
        """The test documents, if there are any."""
        return self.corpora.get("test")

    @property
    def valid(self) -> Corpus | None:
        """The validation documents, if they are shipped apart."""
        return self.corpora.get("valid")


class Records:
    """Ids and texts of the documents, or labels, of a file as they are read; those without an id are numbered.

    Args:
        kind: what they are, for messages.
        path: the file.
        keep_parts: keep titles and contents beside the texts made of them.
        before: the number of the first; those of earlier files may stand before it.
    """

    def __init__(self, kind: str, path: Path, keep_parts: bool = False, before: int = 0):
        self.kind, self.path = kind, path
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.lines = array("q")
        self.unnamed = 0
        self._first_unnamed: int | None = None
        self.composed = False
        self._keep_parts, self._before = keep_parts, before
        self._parts: dict[str, list[str]] = {"title": [], "content": []}
        self._columns: set[str] = set()

    def add(self, identifier: str | None, text: str, line: int, made_of: Mapping[str, Any] | None = None) -> None:
        """Add the next record.

        Args:
            identifier: its id, or None.
            text: its text.
            line: where it stands.
            made_of: what has the title and content that the text is made of, or None.
        """
        if self.kind == "label" and (MARK in text or MARK in (identifier or "")):
            identifier, text = (identifier or "").replace(MARK, "") or None, text.replace(MARK, "")
        if identifier is None:
            self.unnamed += 1
            self._first_unnamed = self._first_unnamed or line
        self.ids.append(identifier or str(self._before + len(self.ids)))
        self.texts.append(text)
        self.lines.append(line)
        if made_of is None:
            return
        self.composed = True
        if self._keep_parts:
            for name, texts in self._parts.items():
                texts.append(text_value(made_of.get(name), name, self.path, line))
            self._columns.update(made_of.keys() & self._parts.keys())

    def extend(self, other: Records) -> None:
        """Put the records of another file behind these; their lines are not kept."""
        self.ids += other.ids
        self.texts += other.texts
        self.unnamed += other.unnamed
        for name, texts in self._parts.items():
            texts += other._parts[name]
        self._columns |= other._columns

    def check(self) -> None:
        """Refuse a file without records, and one with an id twice; say it if only some have an id."""
        if not self.ids:
            raise DataError(f"the file has no {self.kind}s", self.path)
        if 0 < self.unnamed < len(self.ids):
            logger.warning(
                "%s: %d of %d %ss have no id, the first in %s %s; their numbers from 0 stand for it",
                *(self.path, self.unnamed, len(self.ids), self.kind, unit(self.path), self._first_unnamed),
            )
        check_unique(self.ids, self.kind, self.path, self.lines)

    @property
    def parts(self) -> dict[str, list[str]] | None:
        """The titles and contents that occurred, or None where not all texts were made of them."""
        whole = {name: texts for name, texts in self._parts.items() if len(texts) == len(self.ids)}
        return {name: texts for name, texts in whole.items() if name in self._columns} or None

    def corpus(self, targets: sp.csr_array) -> Corpus:
        """Documents with their truth (N, L)."""
        return Corpus(self.ids, self.texts, targets, source=self.path, parts=self.parts, unnamed=self.unnamed)


def check_unique(ids: Sequence[str], what: str, path: Path, lines: Sequence[int]) -> None:
    """Refuse ids that occur twice, naming both lines; ``what`` they are ids of is for the message."""
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for identifier, line in zip(ids, lines, strict=True):
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

    def line_of(entry: np.intp) -> int:
        return int(np.searchsorted(indptr, entry, side="right")) - 1 + first_line

    wrong = np.flatnonzero((indices < 0) | (indices >= n_labels))
    if len(wrong):
        message = f"label number {indices[wrong[0]]} is not one of 0 to {n_labels - 1}"
        raise DataError(message, path, line_of(wrong[0]))
    wrong = wrong_relevances(given)
    if len(wrong):
        value, label = float(given[wrong[0]]), indices[wrong[0]]
        message = f"relevance {value:g} of label {label} is not above 0 and at most 1"
        raise DataError(message, path, line_of(wrong[0]))
    data = given.astype(np.float32, copy=False)
    targets = sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_labels))
    merged = merge_duplicates(targets)
    twice = len(indices) - merged.nnz
    if twice:
        rows = np.diff(indptr) > np.diff(merged.indptr)
        logger.warning(
            "%s: %d labels are given again in the same document, first in document %d (from 0); they count once",
            *(path, twice, int(np.flatnonzero(rows)[0])),
        )
    return merged


def wrong_relevances(values: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """Places of values that are not above 0, in float32 too, and at most 1."""
    return np.flatnonzero(~((values <= 1) & (np.minimum(values, 1).astype(np.float32) > 0)))


def merge_duplicates(matrix: sp.csr_array) -> sp.csr_array:
    """Sorted rows without repeated columns, of which the largest value stays; the matrix may be changed in place."""
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
