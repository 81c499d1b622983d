"""Sparse matrices as text: a first line "rows columns", then a line ``column:value column:value`` for each row."""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from ...errors import DataError
from .text import TextFiles, plain_lines

logger = logging.getLogger("labelspace.data")

MISSING_MAX_ROWS = 1000
"""So many rows may be missing, or else as many as there are."""

_PAIRS = re.compile(r"\s*(?:\d+:[\d.eE+-]+(?:\s+|$))*", re.ASCII)


@dataclass(frozen=True)
class SparseRows:
    """The entries of a matrix as written: how many each row has, and their columns and values, row after row."""

    counts: array[int]
    columns: array[int]
    values: array[float]
    shape: tuple[int, int]


def header_numbers(line: str, count: int) -> list[int] | None:
    """The whole numbers of a first line, or None where it does not hold just so many."""
    parts = line.split()
    if len(parts) != count or not all(part.isascii() and part.isdecimal() and len(part) < 16 for part in parts):
        return None
    return [int(part) for part in parts]


def read_shape(lines: Iterator[str], path: Path) -> tuple[int, int]:
    """Rows and columns, from the first line, which is taken."""
    header = next(lines, "")
    shape = header_numbers(header, 2)
    if shape is None:
        raise DataError(f"expected a header 'rows columns', got {header.strip()[:60]!r}", path, 1)
    return shape[0], shape[1]


def pad(counts: array[int], n_rows: int, path: Path) -> None:
    """Count rows that are missing at the end as empty, and drop empty ones that are too many.

    Args:
        counts: entries of each row; changed in place.
        n_rows: as many rows as the first line says.
        path: the file, for messages.

    Raises:
        DataError: rows with entries beyond those, or most rows missing.
    """
    if len(counts) > n_rows:
        if any(counts[n_rows:]):
            raise DataError(f"the header says {n_rows} rows, but there are {len(counts)}", path, n_rows + 2)
        del counts[n_rows:]
    missing = n_rows - len(counts)
    if missing > max(len(counts), MISSING_MAX_ROWS):
        raise DataError(f"the header says {n_rows} rows, but there are {len(counts)}; the file is cut short", path)
    if missing > 0:
        logger.warning(
            "%s: the header says %d rows, but there are %d; the others count as empty", path, n_rows, len(counts)
        )
        counts.extend([0] * missing)


def read_sparse_text(path: Path, files: TextFiles, check_shape: Callable[[int, int], None] | None = None) -> SparseRows:
    """Read a matrix; an empty line is a row without entries. ``check_shape`` is called before the rows are read."""

    def parse(stream: TextIO) -> SparseRows:
        lines = plain_lines(stream)
        n_rows, n_columns = read_shape(lines, path)
        if check_shape is not None:
            check_shape(n_rows, n_columns)
        counts, columns, values = array("q"), array("q"), array("d")
        for number, line in enumerate(lines, start=2):
            if not _PAIRS.fullmatch(line):
                raise DataError(f"expected 'label:value label:value', got {line[:60]!r}", path, number)
            parts = line.replace(":", " ").split()
            try:
                columns.extend(map(int, parts[::2]))
                values.extend(map(float, parts[1::2]))
            except (ValueError, OverflowError):
                raise DataError(f"expected 'label:value label:value', got {line[:60]!r}", path, number) from None
            counts.append(len(parts) // 2)
        wrong = np.flatnonzero(~np.isfinite(np.asarray(values)))
        if len(wrong):
            row = int(np.searchsorted(np.cumsum(np.asarray(counts)), wrong[0], side="right"))
            raise DataError(f"the value of label {columns[int(wrong[0])]} is too large", path, row + 2)
        pad(counts, n_rows, path)
        return SparseRows(counts, columns, values, (n_rows, n_columns))

    return files.read(path, parse)
