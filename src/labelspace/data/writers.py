"""Predictions to readable text, JSONL, TSV, and the field's ``score.npz``, which is read back as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import scipy.sparse as sp

from ..errors import DataError
from ..files import atomic_file
from ..types import Predictions
from .npz import read_npz


def write_table(predictions: Predictions, ids: Sequence[str], stream: TextIO) -> None:
    """Write names and scores for reading: a document's id, then a line per label.

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
        record["labels"] = [
            {"id": label_id, "text": text, "score": _rounded(score)} for label_id, text, score in predictions.named(row)
        ]
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_tsv(predictions: Predictions, ids: Sequence[str], stream: TextIO) -> None:
    """Write a line per label with the columns id, rank, label_id, label, score; tabs in names become spaces.

    Args:
        predictions: n rows.
        ids: n document ids.
        stream: open text.
    """
    _check_rows(predictions, ids)
    stream.write("id\trank\tlabel_id\tlabel\tscore\n")
    for row, identifier in enumerate(ids):
        for rank, (label_id, text, score) in enumerate(predictions.named(row), start=1):
            names = "\t".join(map(_one_line, (identifier, str(rank), label_id, text)))
            stream.write(f"{names}\t{_rounded(score)}\n")


def save_scores(predictions: Predictions, n_labels: int, path: str | Path) -> None:
    """Write ``score.npz``: SciPy CSR (n, L) float32 with sorted columns; a score of 0 is an entry like any other.

    Args:
        predictions: n rows; their order is that of descending scores, equal ones by label number.
        n_labels: L.
        path: the file.
    """
    kept = predictions.indices >= 0
    indices = predictions.indices[kept]
    if indices.size and int(indices.max()) >= n_labels:
        raise DataError(f"predicted label number {int(indices.max())} is not one of 0 to {n_labels - 1}")
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    matrix = sp.csr_array((predictions.scores[kept], indices, indptr), shape=(len(predictions), n_labels))
    matrix.sort_indices()
    _check_distinct(matrix, None)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        sp.save_npz(file, matrix, compressed=False)


def load_scores(path: str | Path, n_labels: int | None = None, depth: int | None = None) -> Predictions:
    """Read ``score.npz`` of any tool: rows descending by score, equal scores by label number, padded with -1 and -inf.

    Args:
        path: a SciPy sparse matrix (n, L); stored zeros are predictions.
        n_labels: the L that is expected; None takes any.
        depth: keep at most this many of a row; None keeps all, padded to the longest row.

    Raises:
        DataError: a damaged file, another L than expected, scores that are not numbers, or a label twice in a row.
    """
    path = Path(path)
    matrix = read_npz(path)
    if n_labels is not None and matrix.shape[1] != n_labels:
        raise DataError(f"it scores {matrix.shape[1]} labels, but the data has {n_labels}", path)
    if np.isnan(matrix.data).any():
        raise DataError("some scores are not numbers (NaN)", path)
    _check_distinct(matrix, path)
    counts = np.diff(matrix.indptr).astype(np.int64)
    rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    order = np.lexsort((np.negative(matrix.data), rows))  # stable, so equal scores stay in label order
    places = np.arange(matrix.nnz, dtype=np.int64) - np.repeat(matrix.indptr[:-1].astype(np.int64), counts)
    width = int(counts.max(initial=0))
    if depth is not None and depth < width:
        kept = places < depth
        rows, order, places, width = rows[kept], order[kept], places[kept], depth
    shape = (len(counts), width)
    indices, scores = np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)
    indices[rows, places] = matrix.indices[order]
    scores[rows, places] = matrix.data[order]
    return Predictions(indices, scores)


def _check_rows(predictions: Predictions, values: Sequence[str]) -> None:
    if len(predictions) != len(values):
        raise DataError(f"there are {len(predictions)} rows of predictions but {len(values)} documents")


def _check_distinct(matrix: sp.csr_array, path: Path | None) -> None:
    """Columns must be sorted already."""
    if not matrix.has_canonical_format:
        raise DataError("a row predicts the same label twice", path)


def _one_line(text: str) -> str:
    return " ".join(text.split()) if any(mark in text for mark in "\t\n\r") else text


def _rounded(score: float) -> float:
    """As many digits as float32 is sure of; not a number and infinity have no JSON spelling."""
    if not np.isfinite(score):
        raise DataError(f"a score is {score}, which cannot be written")
    return float(f"{score:.6g}")
