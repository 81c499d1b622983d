"""Labels as columns of a table, each with 0 or 1 for every document: ``id,text,toxic,insult``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from .text import listed

logger = logging.getLogger("labelspace.data")

_WORDS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def bit(value: object) -> bool | None:
    """Whether a value says 1 or 0, also as true and false or as 1.0 and 0.0; None for any other value."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


class BitColumns:
    """The columns of one file that hold only 0 and 1, and of each other column its first value that is neither.

    Args:
        path: the file, for messages.
        others: columns that hold something else: texts and ids, in lower case.
    """

    def __init__(self, path: Path, others: Container[str]):
        self.path = path
        self.values: dict[str, bytearray] = {}
        self.wrong: dict[str, tuple[int, object]] = {}
        self._others = others
        self.columns: list[str] = []

    def add(self, record: Mapping[str, Any], line: int) -> None:
        """Look at the next row."""
        if not self.columns:
            self.columns = list(record)
            self.values = {column: bytearray() for column in record if column and column.lower() not in self._others}
        for column in record.keys() - self.values.keys() - self.wrong.keys():
            if column and column.lower() not in self._others:
                self.wrong[column] = line, record[column]
        for column in list(self.values):
            value = bit(record.get(column))
            if value is None:
                del self.values[column]
                self.wrong[column] = line, record.get(column)
            else:
                self.values[column].append(value)

    def chosen(self, asked: str, knows: Callable[[str], bool] | None) -> list[str]:
        """The columns that are labels: those asked for, or else those that a labels file names, or else all.

        Args:
            asked: the label column that was asked for, or several with commas between.
            knows: tells known labels, if there is a labels file.

        Raises:
            DataError: no such columns, other values than 0 and 1, or columns that may be labels or not.
        """
        every = [*self.values, *self.wrong]
        named = list(dict.fromkeys(part.strip() for part in asked.split(",")))
        known = [column for column in every if knows is not None and knows(column)]
        if asked != "labels":
            unknown = [column for column in named if column not in every]
            if unknown:
                raise DataError(f"there is no label column {unknown[0]!r}, only {listed(self.columns)}", self.path)
            return self._checked(named)
        if known:
            return self._checked(known)
        both = f"there is no label column 'labels', and {listed(self.values)} hold only 0 and 1"
        if not self.values:
            raise DataError(
                f"there is no label column 'labels', only {listed(self.columns)}; set label_column", self.path
            )
        if knows is not None:
            raise DataError(
                f"{both}, but are no labels of the labels file; rename them, or set label_column", self.path
            )
        if self.wrong:
            column, (line, value) = next(iter(self.wrong.items()))
            raise DataError(
                f"{both}, as if each were a label, but {column!r} holds {str(value)[:60]!r}; set label_column to "
                f"{','.join(self.values)!r} if these are the labels, or to the column that holds names of labels",
                self.path,
                line,
            )
        if len(self.values) == 1:
            [column] = self.values
            raise DataError(
                f"there is no label column 'labels', and {column!r} alone holds only 0 and 1; set label_column to "
                f"{column!r} for the labels '0' and '1', or to {column + ',' + column!r} for the one label {column!r}",
                self.path,
            )
        return list(self.values)

    def _checked(self, columns: list[str]) -> list[str]:
        for column in columns:
            if column in self.wrong:
                line, value = self.wrong[column]
                raise DataError(
                    f"the column {column!r} of a label must hold 0 or 1, but holds {str(value)[:60]!r}", self.path, line
                )
        return columns

    def rows(self, columns: Sequence[str]) -> list[list[int]]:
        """The numbers, among these columns, of the labels of each row."""
        cells = zip(*(self.values[column] for column in columns), strict=True)
        return [[number for number, one in enumerate(row) if one] for row in cells]


def choose_columns(
    files: Sequence[BitColumns], asked: str, knows: Callable[[str], bool] | None, path: Path
) -> list[str]:
    """The columns that are labels, the same in every file, which is said.

    Raises:
        DataError: as from `BitColumns.chosen`; or files with other columns.
    """
    columns = files[0].chosen(asked, knows)
    for file in files[1:]:
        other = file.chosen(asked, knows)
        if set(other) != set(columns):
            odd = sorted(set(other) ^ set(columns))
            raise DataError(
                f"the columns of labels differ from those of {files[0].path} ({listed(odd)}); name the same in all "
                "files, and set label_column to them",
                file.path,
            )
    logger.warning(
        "%s: labels are the names of %d columns of 0 and 1: %s; set label_column if they are not",
        *(path, len(columns), listed(columns)),
    )
    return columns
