"""Predictions to readable text, JSONL and TSV."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import DataError, MissingExtraError
from ..types import Predictions, Reason, told_first

SHOWN_REASONS = 3
"""Reasons that are shown for a label in a table, at least."""
SHOWN_CHARACTERS = 70
"""Of a key's text that are shown there."""


def write_table(predictions: Predictions, ids: Sequence[str], stream: TextIO) -> None:
    """Write names and scores for reading: a document's id, then a line per label, and below it its main reasons.

    Where there are probabilities they are shown instead of the scores.

    Args:
        predictions: n rows.
        ids: n document ids.
        stream: open text.
    """
    _check_rows(predictions, ids)
    for row, identifier in enumerate(ids):
        _write(stream, f"{_one_line(identifier)}\n")
        for rank, (label_id, text, score) in enumerate(predictions.named(row)):
            name = _one_line(text)
            shown = f"{name}  [{_one_line(label_id)}]" if name and name != label_id else _one_line(label_id)
            _write(stream, f"  {score:8.4f}  {shown}\n")
            if predictions.reasons is not None:
                _write_reasons(predictions.reasons[row][rank], stream)


def _write_reasons(reasons: Sequence[Reason], stream: TextIO) -> None:
    shown, rest = told_first(reasons, SHOWN_REASONS)
    for reason in shown:
        text = textwrap.shorten(reason.text, SHOWN_CHARACTERS, placeholder="...")
        where = f"{reason.kind} {_one_line(reason.id)}, similarity {reason.similarity:.3f}"
        if reason.kind == "words":
            where = f"words, times {math.exp(reason.similarity):.3f}"
        _write(stream, f"            {reason.share:8.4f}  {text}  ({where})\n")
    if rest:
        stream.write(
            f"            {sum(r.share for r in rest):8.4f}  {len(rest)} more key{'s' if len(rest) > 1 else ''}\n"
        )


def write_jsonl(predictions: Predictions, ids: Sequence[str], texts: Sequence[str] | None, stream: TextIO) -> None:
    """Write one object a line: id, text (if given), and labels with id, text and score, best first.

    Where there are probabilities, each label has its ``probability`` too. Where there are reasons, ``why`` holds those
    of each label: kind, id, text, similarity and share of every key.

    Args:
        predictions: n rows.
        ids: n document ids.
        texts: n texts, or None to leave them out.
        stream: open text.
    """
    for record in _records(predictions, ids, texts):
        try:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        except UnicodeEncodeError:
            stream.write(json.dumps(record) + "\n")


def _records(predictions: Predictions, ids: Sequence[str], texts: Sequence[str] | None) -> Iterator[dict[str, object]]:
    """One object a document, as JSONL and Parquet have them."""
    _check_rows(predictions, ids)
    if texts is not None:
        _check_rows(predictions, texts)
    for row, identifier in enumerate(ids):
        record: dict[str, object] = {"id": identifier}
        if texts is not None:
            record["text"] = texts[row]
        names = ("id", "text", "score", "probability")
        labels = [dict(zip(names, entry, strict=False)) for entry in _entries(predictions, row)]
        if predictions.reasons is not None:
            for label, reasons in zip(labels, predictions.reasons[row], strict=True):
                label["why"] = [dataclasses.asdict(reason) for reason in reasons]
        record["labels"] = labels
        yield record


class ParquetPredictions:
    """A Parquet file of predictions, written a block at a time.

    Columns are id, text and labels, a list of id, text and score, and where asked for probability and why, as in JSONL.

    Args:
        path: the file.
        probabilities: whether predictions hold probabilities.
        why: whether they hold reasons.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path, *, probabilities: bool = False, why: bool = False):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingExtraError("writing a Parquet file", "pyarrow", "parquet") from None
        names, numbers = [(name, pa.string()) for name in ("id", "text")], [("score", pa.float64())]
        label = names + numbers + ([("probability", pa.float64())] if probabilities else [])
        if why:
            reason = [("kind", pa.string()), *names, ("similarity", pa.float64()), ("share", pa.float64())]
            label.append(("why", pa.list_(pa.struct(reason))))
        self._schema: Any = pa.schema([*names, ("labels", pa.list_(pa.struct(label)))])
        self._table: Any = pa.Table
        self._file: Any = pq.ParquetWriter(path, self._schema)

    def write(self, predictions: Predictions, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Add a block.

        Args:
            predictions: n rows.
            ids: n document ids.
            texts: n texts.
        """
        self._file.write_table(self._table.from_pylist(list(_records(predictions, ids, texts)), self._schema))

    def close(self) -> None:
        """Write what ends the file."""
        self._file.close()


def write_tsv(predictions: Predictions, ids: Sequence[str], stream: TextIO, header: bool = True) -> None:
    """Write a line per label with the columns id, rank, label_id, label, score; tabs in texts of labels become spaces.

    Where there are probabilities they are one more column, ``probability``. `load_scores` reads it back.

    Args:
        predictions: n rows.
        ids: n document ids.
        stream: open text.
        header: whether the first line names the columns.

    Raises:
        DataError: an id with a tab or a line end in it.
    """
    _check_rows(predictions, ids)
    more = "" if predictions.probabilities is None else "\tprobability"
    for identifier in ids:
        _check_id(identifier, "document")
    if header:
        stream.write(f"id\trank\tlabel_id\tlabel\tscore{more}\n")
    for row, identifier in enumerate(ids):
        for rank, (label_id, text, *numbers) in enumerate(_entries(predictions, row), start=1):
            _check_id(label_id, "label")
            cells = (identifier, rank, label_id, _one_line(text), *numbers)
            _write(stream, "\t".join(map(str, cells)) + "\n")


def _check_id(identifier: str, what: str) -> None:
    if any(mark in identifier for mark in "\t\n\r"):
        raise DataError(f"the {what} id {identifier[:80]!r} has a tab or a line end, which TSV cannot hold; take jsonl")


def _write(stream: TextIO, line: str) -> None:
    """Write a line; what the stream's encoding cannot hold becomes a question mark."""
    try:
        stream.write(line)
    except UnicodeEncodeError:
        encoding = stream.encoding or "utf-8"
        whole = line.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        stream.write(whole.encode(encoding, "replace").decode(encoding))


def _entries(predictions: Predictions, row: int) -> Iterator[tuple[Any, ...]]:
    """Id, text and score of each label of a row, and its probability if there is one."""
    kept = predictions.indices[row] >= 0
    arrays = [predictions.scores] + ([] if predictions.probabilities is None else [predictions.probabilities])
    numbers = zip(*(array[row][kept].tolist() for array in arrays), strict=True)
    for (label_id, text, _), values in zip(predictions.named(row), numbers, strict=True):
        yield label_id, text, *map(_rounded, values)


def _check_rows(predictions: Predictions, values: Sequence[str]) -> None:
    if len(predictions) != len(values):
        raise DataError(f"there are {len(predictions)} rows of predictions but {len(values)} documents")


def _one_line(text: str) -> str:
    return " ".join(text.split()) if any(mark in text for mark in "\t\n\r") else text


def _rounded(score: float) -> float:
    """As many digits as float32 is sure of; not a number and infinity have no JSON spelling."""
    if not np.isfinite(score):
        raise DataError(f"a score is {score}, which cannot be written")
    return float(f"{score:.6g}")
