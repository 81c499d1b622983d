"""Rows of table files: CSV, TSV, JSONL and Parquet, each row as (line, column to value).

The first line of CSV and TSV names the columns. CSV follows RFC 4180, with the one of "," ";" and tab that is most
frequent in the header; TSV has one row a line, and only a field that is quoted as a whole is unquoted, which may hold
tabs and go on in the next lines.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ...errors import DataError
from .columns import named_rows
from .parquet import ParquetRows
from .text import TextFiles, json_lines, plain_lines, unmarked

T = TypeVar("T")

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

MOST_LINES = 1000
"""Lines that a quoted field of TSV may go on for."""

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_FIELD = re.compile(r'(?:(?<=\t)|^)("(?:[^"]|"")*"(?=\t|\Z)|[^\t]*)', re.DOTALL)
_OPEN = re.compile(r'(?:\t|^)"(?:[^"]|"")*\Z', re.DOTALL)
"""A field that begins with a quote and does not end with one."""


def suffix(path: Path) -> str:
    """The kind of file, ``.gz`` aside, in lower case."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def read_records(
    files: TextFiles,
    path: Path,
    parse: Callable[[Iterator[tuple[int, dict[str, Any]]]], T],
    wanted: Container[str] | None = None,
) -> T:
    """What ``parse`` makes of the rows of a table.

    Args:
        files: opens text files.
        path: the file; its suffix says what it is.
        parse: takes (line number from 1, or row of a Parquet file from 0; column to value); called anew for a second
            encoding.
        wanted: columns that are needed; a Parquet file leaves out the others.
    """
    if suffix(path) != ".parquet":
        return files.read(path, lambda stream: parse(records(stream, path)))
    return parse(ParquetRows(path).records(wanted))


def records(stream: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a text table, whose suffix says of what kind it is; empty lines are no rows."""
    kind = suffix(path)
    if kind in (".jsonl", ".json"):
        return json_lines(stream, path)
    return named_rows(_tsv_rows(stream) if kind == ".tsv" else _csv_rows(stream, path), path)


def _tsv_rows(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    ahead: deque[tuple[int, str]] = deque()
    lines = enumerate(plain_lines(stream), start=1)
    width = 0
    while True:
        number, line = ahead.popleft() if ahead else next(lines, (0, ""))
        if not number:
            return
        if not line:
            continue
        row = line.split("\t")
        if '"' in line and width:
            row = _quoted_row(line, width, ahead, lines) or row
        width = width or len(row)
        yield number, [_unquote(part) for part in row] if '"' in line else row


def _quoted_row(
    line: str, width: int, ahead: deque[tuple[int, str]], lines: Iterator[tuple[int, str]]
) -> list[str] | None:
    """The fields of a row with a quoted field that holds tabs or goes on in the next lines, which are taken; or None.

    A quote that is never closed is a letter: the row must have as many fields as the header, and a line that is a row
    by itself ends the search.
    """
    count = line.count("\t") + 1
    fields = _FIELD.findall(line) if count > width else []
    if len(fields) == width and not _OPEN.search(line):
        return fields
    if not _OPEN.search(line) or width == 1:
        return None
    whole, seen = line, 0
    while seen < MOST_LINES:
        if seen == len(ahead):
            following = next(lines, None)
            if following is None:
                return None
            ahead.append(following)
        text = ahead[seen][1]
        seen += 1
        if text.count("\t") + 1 == width and (count == width or '"' not in text):
            return None
        whole += "\n" + text
        if '"' not in text:
            continue
        fields = _FIELD.findall(whole)
        if len(fields) == width and not _OPEN.search(whole):
            for _ in range(seen):
                ahead.popleft()
            return fields
    return None


def _unquote(part: str) -> str:
    match = _QUOTED.fullmatch(part)
    return match[1].replace('""', '"') if match else part


def _csv_rows(stream: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    lines = unmarked(stream)
    head: list[str] = []
    while not head or head[-1].strip("\r\n") == "" != head[-1]:  # up to the header
        head.append(next(lines, ""))
    delimiter = max(",;\t", key=_QUOTED.sub("", head[-1]).count)
    reader = csv.reader(itertools.chain(head, lines), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        limit = csv.field_size_limit(2**31 - 1)  # process-wide, so set back before anyone else runs
        try:
            row = next(reader, None)
        except csv.Error as error:
            message = f"this is not well-formed CSV ({error}); quotes inside a quoted field must be doubled"
            if "new-line character" in str(error):
                message = (
                    "a carriage return stands within a line; end lines with newlines, and quote fields that hold one"
                )
            raise DataError(message, path, line) from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row
