"""Scores of any tool, as predictions: SciPy's ``score.npz``, which is written too, sparse text, and run files."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..base.files import atomic_file
from ..errors import DataError
from ..types import Labels, Predictions
from .formats.cells import number
from .formats.columns import triples
from .formats.labels import LabelLookup
from .formats.rows import suffix
from .formats.sparse import header_numbers, read_sparse_text
from .formats.text import TextFiles, is_file, plain_lines
from .npz import read_npz

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

logger = logging.getLogger("labelspace.data")

SUFFIXES = (".npz", ".txt", ".tsv", ".run", ".trec")


def save_scores(predictions: Predictions, n_labels: int, path: str | Path) -> None:
    """Write ``score.npz``: SciPy CSR (n, L) float32 with sorted columns; a score of 0 is an entry like any other.

    Where there are probabilities they are written instead of the scores, equal ones of a row apart by the last digit so
    that the file keeps the order.

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
    scores = predictions.scores
    if predictions.probabilities is not None:
        scores = predictions.probabilities.copy()
        for place in range(1, scores.shape[1]):
            scores[:, place] = np.minimum(scores[:, place], np.nextafter(scores[:, place - 1], np.float32(-1)))
    matrix = sp.csr_array((scores[kept], indices, indptr), shape=(len(predictions), n_labels))
    matrix.sort_indices()
    _check_distinct(matrix, None)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        sp.save_npz(file, matrix, compressed=False)


def load_scores(
    path: str | Path,
    n_labels: int | None = None,
    depth: int | None = None,
    ids: Sequence[str] | None = None,
    label_ids: Sequence[str] | None = None,
) -> Predictions:
    """Read the scores of any tool: rows descending by score, equal scores by label number, padded with -1 and -inf.

    A matrix (n, L), whose stored zeros are predictions, is a ``.npz`` of SciPy, of any format and type of real numbers,
    or a text file with a first line "rows columns" and then ``label:score label:score``. Scores that float64 would
    round, such as whole numbers beyond 2^53, become their ranks. Text files may be gzip.

    A run file has a header that names document, label, and score or rank. Without a header it has document, label and
    score in this order, or a rank before the score, or the six columns of TREC, or what ``write_tsv`` writes. Three
    columns whose last counts 1, 2, 3 for every document hold ranks, as runs of MS MARCO do. Any order of lines will do,
    and documents that are not named have no predictions.

    Args:
        path: the file.
        n_labels: the L that is expected; None takes any.
        depth: keep at most this many of a row; None keeps all, padded to the longest row.
        ids: the n ids of the documents that are expected; None takes any number, and no run files.
        label_ids: the L ids that a run file may name.

    Raises:
        DataError: a damaged file, other documents or labels than expected, scores that are not finite numbers, or a
            label twice in a row.
    """
    path = Path(path)
    if not is_file(path):
        raise DataError("the file does not exist", path)
    kind = suffix(path)
    if kind not in (*SUFFIXES, ""):
        raise DataError(f"scores are read from {', '.join(SUFFIXES)} (text also .gz), not from {kind!r}", path)
    if kind == ".npz":
        matrix = read_npz(path, wide=True)
    elif header_numbers(first := TextFiles().read(path, lambda stream: next(plain_lines(stream), "")), 2) is not None:
        matrix = _read_text(path)
    elif ids is not None and label_ids is not None:
        cells = _run_cells(first)
        matrix = _read_run(path, ids, label_ids, nameless=len(cells) == 3 and number(cells[2].strip()) is not None)
    else:
        raise DataError("expected a first line 'rows columns'", path, 1)
    if n_labels is not None and matrix.shape[1] != n_labels:
        raise DataError(f"it scores {matrix.shape[1]} labels, but the data has {n_labels}", path)
    if ids is not None and matrix.shape[0] != len(ids):
        raise DataError(f"it has scores of {matrix.shape[0]} documents, but there are {len(ids)} to measure on", path)
    wrong = np.flatnonzero(~np.isfinite(matrix.data))
    if len(wrong):
        row = int(np.searchsorted(matrix.indptr, wrong[0], side="right")) - 1
        where = f"row {row} (from 0), label {int(matrix.indices[wrong[0]])}"
        raise DataError(f"a score is {float(matrix.data[wrong[0]])} ({where}); scores must be finite numbers", path)
    _check_distinct(matrix, path)
    if matrix.dtype not in (np.float32, np.float64):
        logger.warning("%s: float64 would round its scores (%s), so their ranks stand for them", path, matrix.dtype)
        matrix.data = np.unique(matrix.data, return_inverse=True)[1].astype(np.float64)
    counts = np.diff(matrix.indptr).astype(np.int64)
    rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    order = np.lexsort((np.negative(matrix.data), rows))  # stable, so equal scores stay in label order
    places = np.arange(matrix.nnz, dtype=np.int64) - np.repeat(matrix.indptr[:-1].astype(np.int64), counts)
    width = int(counts.max(initial=0))
    if depth is not None and depth < width:
        kept = places < depth
        rows, order, places, width = rows[kept], order[kept], places[kept], depth
    shape = (len(counts), width)
    indices, scores = np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=matrix.dtype)
    indices[rows, places] = matrix.indices[order]
    scores[rows, places] = matrix.data[order]
    return Predictions(indices, scores)


def _repeated(matrix: sp.csr_array) -> tuple[int, int, int] | None:
    """Place, row and column of the first entry that is there twice, or None; columns must be sorted already."""
    if matrix.has_canonical_format:
        return None
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    same = (rows[1:] == rows[:-1]) & (matrix.indices[1:] == matrix.indices[:-1])
    place = int(np.flatnonzero(same)[0]) + 1
    return place, int(rows[place]), int(matrix.indices[place])


def _check_distinct(matrix: sp.csr_array, path: Path | None) -> None:
    """Columns must be sorted already; of text the first row is in line 2."""
    if (repeated := _repeated(matrix)) is not None:
        _, row, number = repeated
        line = row + 2 if path is not None and suffix(path) != ".npz" else None
        raise DataError(f"row {row} (from 0) predicts the same label twice, number {number}", path, line)


def _read_text(path: Path) -> sp.csr_array:
    rows = read_sparse_text(path, TextFiles())
    indptr = np.concatenate([[0], np.cumsum(np.asarray(rows.counts))])
    columns = np.asarray(rows.columns)
    beyond = np.flatnonzero(columns >= rows.shape[1])
    if len(beyond):
        line = int(np.searchsorted(indptr, beyond[0], side="right")) + 1
        raise DataError(f"label number {columns[beyond[0]]} is not one of 0 to {rows.shape[1] - 1}", path, line)
    matrix = sp.csr_array((np.asarray(rows.values), columns, indptr), shape=rows.shape)
    matrix.sort_indices()
    return matrix


# Run files

LAYOUTS = {
    3: (0, 1, 2),
    4: (0, 1, 3),  # document, label, rank, score
    5: (0, 2, 4),  # id, rank, label_id, label, score
    6: (0, 2, 4),  # document, Q0, label, rank, score, name of the run
}


def _read_run(path: Path, ids: Sequence[str], label_ids: Sequence[str], nameless: bool) -> sp.csr_array:
    """Scores of a run file; ``nameless`` says that it has three columns without a header."""
    numbers = {identifier: row for row, identifier in enumerate(ids)}
    names = LabelLookup(Labels(label_ids, label_ids), range(len(label_ids)), Path("the data"))
    wanted = "document, label and score, or TREC's six columns"

    def parse(stream: TextIO) -> tuple[array[int], array[int], array[float], array[int], set[str]]:
        rows, labels, scores, lines = array("q"), array("q"), array("d"), array("q")
        others: set[str] = set()
        for line, document, label, score in triples(stream, path, _run_cells, LAYOUTS, wanted, may_rank=True):
            if document not in numbers:
                others.add(document)
                continue
            rows.append(numbers[document])
            labels.append(names.number(label, path, line))
            scores.append(score)
            lines.append(line)
        return rows, labels, scores, lines, others

    rows, labels, scores, lines, others = TextFiles().read(path, parse)
    if names.unknown:
        raise names.refusal(sum(label >= len(label_ids) for label in labels))
    if not rows:
        shown = ", ".join(map(repr, sorted(others)[:3])) or "none"
        raise DataError(f"none of its documents ({shown}) is one to measure on ({ids[0]!r}, for example)", path)
    if others:
        logger.warning("%s: %d documents are not measured on, such as %r", path, len(others), min(others))
    missing = len(ids) - len(np.unique(np.asarray(rows)))
    if missing:
        logger.warning(
            "%s: %d of %d documents have no scores and count as without predictions", path, missing, len(ids)
        )
    values = np.asarray(scores)
    if nameless:
        values = _scores_or_ranks(np.asarray(rows), values, path)
    order = np.lexsort((np.asarray(labels), np.asarray(rows)))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(np.asarray(rows), minlength=len(ids)))])
    shape = (len(ids), len(label_ids))
    matrix = sp.csr_array((values[order], np.asarray(labels)[order], indptr), shape=shape)
    if (repeated := _repeated(matrix)) is not None:
        place, row, number = repeated
        first, again = sorted(np.asarray(lines)[order][place - 1 : place + 1].tolist())
        message = f"document {ids[row]!r} has the same label twice: {label_ids[number]!r} is in line {first} already"
        raise DataError(message, path, again)
    return matrix


def _scores_or_ranks(rows: IntArray, numbers: FloatArray, path: Path) -> FloatArray:
    """Scores of lines; numbers that count 1, 2, 3 (or 0, 1, 2) for every document are ranks, and so with a minus.

    Args:
        rows: (n,) documents, in the order of the lines.
        numbers: (n,) the third column.
        path: the file, for messages.

    Raises:
        DataError: they count, but neither up nor down the file, so that both could be meant.
    """
    order = np.argsort(rows, kind="stable")
    starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
    lengths = np.diff(starts, append=len(rows))
    if lengths.max() < 2:
        return numbers
    up = np.arange(len(rows)) - np.repeat(starts, lengths)
    down = np.repeat(lengths, lengths) - 1 - up
    base = numbers.min()
    if base not in (0, 1) or not np.array_equal(numbers[np.lexsort((numbers, rows))] - base, up):
        return numbers
    if np.array_equal(numbers[order] - base, up):
        logger.warning(
            "%s: the third column counts %g, %g and so on for every document, so it was taken for the rank; if it is "
            "the score, name the columns in a header: qid, docid, score",
            *(path, base, base + 1),
        )
        return -numbers
    if np.array_equal(numbers[order] - base, down):
        return numbers
    raise DataError(
        "the third column counts for every document, but not in the order of the lines, so it may be the rank or the "
        "score; name the columns in a header: qid, docid, and rank or score",
        path,
    )


def _run_cells(row: str) -> list[str]:
    """Cells apart by tabs, as they are, or else by blanks."""
    return row.split("\t") if "\t" in row else row.split()
