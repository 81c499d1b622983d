"""Predictions to readable text, JSONL and TSV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from ..errors import DataError
from ..types import Predictions


def write_table(predictions: Predictions, ids: Sequence[str], stream: TextIO) -> None:
    """Write names and scores for reading: a document's id, then a line per label.

    Where there are probabilities they are shown instead of the scores.

    Args:
        predictions: n rows.
        ids: n document ids.
        stream: open text.
    """
    _check_rows(predictions, ids)
    for row, identifier in enumerate(ids):
        stream.write(f"{_one_line(identifier)}\n")
        for label_id, text, score in predictions.named(row):
            name = _one_line(text)
            shown = f"{name}  [{_one_line(label_id)}]" if name and name != label_id else _one_line(label_id)
            stream.write(f"  {score:8.4f}  {shown}\n")


def write_jsonl(predictions: Predictions, ids: Sequence[str], texts: Sequence[str] | None, stream: TextIO) -> None:
    """Write one object a line: id, text (if given), and labels with id, text and score, best first.

    Where there are probabilities, each label has its ``probability`` too.

    Args:
        predictions: n rows.
        ids: n document ids.
        texts: n texts, or None to leave them out.
        stream: open text.
    """
    _check_rows(predictions, ids)
    if texts is not None:
        _check_rows(predictions, texts)
    for row, identifier in enumerate(ids):
        record: dict[str, object] = {"id": identifier}
        if texts is not None:
            record["text"] = texts[row]
        names = ("id", "text", "score", "probability")
        record["labels"] = [dict(zip(names, entry, strict=False)) for entry in _entries(predictions, row)]
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_tsv(predictions: Predictions, ids: Sequence[str], stream: TextIO) -> None:
    """Write a line per label with the columns id, rank, label_id, label, score; tabs in names become spaces.

    Where there are probabilities they are one more column, ``probability``.

    Args:
        predictions: n rows.
        ids: n document ids.
        stream: open text.
    """
    _check_rows(predictions, ids)
    more = "" if predictions.probabilities is None else "\tprobability"
    stream.write(f"id\trank\tlabel_id\tlabel\tscore{more}\n")
    for row, identifier in enumerate(ids):
        for rank, (label_id, text, *numbers) in enumerate(_entries(predictions, row), start=1):
            names = map(_one_line, (identifier, str(rank), label_id, text))
            stream.write("\t".join([*names, *map(str, numbers)]) + "\n")


def _entries(predictions: Predictions, row: int) -> Iterator[tuple[Any, ...]]:
    """Id, text and score of each label of a row, and its probability if there is one."""
    there = predictions.indices[row] >= 0
    arrays = [predictions.scores] + ([] if predictions.probabilities is None else [predictions.probabilities])
    numbers = zip(*(array[row][there].tolist() for array in arrays), strict=True)
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
