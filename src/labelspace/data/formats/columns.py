"""Which column holds what: headers, the id and the text of a row, and lines of a document, a label and a number.

Here alone names of columns are matched with a file's header. Two readers look at one themselves: `annif` to recognise
its CSV, and `vocabulary` to pass over it in TSV, where columns have fixed places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError, SettingsError
from .cells import number
from .text import MARK, listed, plain_lines, text_value

ID_COLUMNS = ("id", "uid", "document_id", "_id")
RELEVANCES = "relevances"
LABEL_COLUMNS = ("labels", "label", "subject_uris")
FIELDS = ("title", "content", "title+content", "title+title+content")

# Names in the header of judgements and runs, the preferred one first
DOCUMENT = ("query-id", "qid", "query", "topic", "document-id", "document", "id")
LABEL = ("corpus-id", "doc-id", "docid", "label-id", "label")
NUMBER = ("score", "relevance", "rel")
RANK = ("rank",)

Places = tuple[int, int, int]
"""Where document, label and number stand in a line."""


# Rows by the names in a header


def named_rows(rows: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as (line, column to value); the first one is the header, and may not come again."""
    header: list[str] | None = None
    names: frozenset[str] = frozenset()
    for line, row in rows:
        if header is None:
            header = list(map(_column, row))
            names = frozenset(map(str.casefold, header)) - {""}
            for column in header:
                if column and header.count(column) > 1:
                    raise DataError(f"the header has the column {column[:80]!r} twice; rename one", path, line)
        elif len(row) != len(header):
            message = f"the row has {len(row)} fields, but the header has {len(header)} ({listed(header)})"
            raise DataError(message, path, line)
        elif any(len(cell) < 200 and _column(cell).casefold() in names for cell in row) and _is_header(
            list(map(_column, row)), header
        ):
            raise DataError(
                "the header is repeated here, as if two files were put together; remove this line, and see that the "
                "columns below it are in the order of the first header",
                path,
                line,
            )
        else:
            yield line, dict(zip(header, row, strict=True))


def _column(name: str) -> str:
    """The name of a column as it is matched."""
    return name.replace(MARK, "").strip() if len(name) < 200 else name


def _is_header(row: list[str], header: list[str]) -> bool:
    """Whether a row names the columns once more, in any order and case, or those of its text and labels in place."""
    same = {cell for cell, column in zip(row, header, strict=True) if cell == column}
    return sorted(map(str.casefold, row)) == sorted(map(str.casefold, header)) or (
        "text" in same and not same.isdisjoint(LABEL_COLUMNS)
    )


def given_id(record: Mapping[str, Any], columns: Sequence[str], path: Path, line: int) -> str | None:
    """The id of a record from the first of the id columns that has one, or None; blanks are none."""
    for column in columns:
        value = record.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"{column!r} must be a text or a whole number, but is {str(value)[:60]!r}", path, line)
        return str(value)
    return None


def choose_fields(asked: str, name: str) -> str:
    """The fields asked for, or by "auto" the title alone for a data set with "titles" in its name, and else both."""
    if asked == "auto":
        return "title" if "titles" in name.lower() else "title+content"
    if asked not in FIELDS:
        raise SettingsError(f"fields must be one of auto, {', '.join(FIELDS)}, got {asked!r}")
    return asked


def record_text(record: Mapping[str, Any], fields: str, path: Path, line: int, columns: Sequence[str] = ()) -> str:
    """The text of a record, from the first text column that it has, or else title and content with a blank between.

    Args:
        record: column to value.
        fields: one of `FIELDS`; the parts stand in this order, those that are empty left out.
        path: the file, for messages.
        line: the line, for messages.
        columns: names of text columns, the preferred one first.
    """
    for column in columns:
        if column in record:
            return text_value(record[column], column, path, line)
    if "title" not in record and "content" not in record:
        if columns:
            message = f"there is no text column {columns[0]!r}, only {listed(record)}; set text_column"
            raise DataError(message, path, line)
        raise DataError(f"neither 'title' nor 'content' is there, only {listed(record)}", path, line)
    parts = (text_value(record.get(name), name, path, line) for name in fields.split("+"))
    return " ".join(part for part in parts if part)


# A document, a label and a number


def triples(
    lines: Iterable[str],
    path: Path,
    split: Callable[[str], list[str]],
    layouts: Mapping[int, Places],
    wanted: str,
    may_rank: bool = False,
) -> Iterator[tuple[int, str, str, float]]:
    """Line number from 1, document, label and number of each line of judgements or of a run; empty lines are left out.

    A first line whose cells name all three is a header, in any order and with other columns between; otherwise it is a
    line like any other.

    Args:
        lines: as read.
        path: the file, for messages.
        split: makes cells of a line.
        layouts: the places by the count of cells, for files without a header.
        wanted: what a line should hold, for messages.
        may_rank: a header may name a rank instead of a score; the number is then the rank with a minus.

    Raises:
        DataError: a line with other cells, or a number that is not one.
    """
    first, sign, numbers = True, 1.0, (NUMBER, RANK) if may_rank else (NUMBER,)
    for line, row in enumerate(plain_lines(lines), start=1):
        if not row.strip():
            continue
        cells = split(row)
        places = layouts.get(len(cells))
        value = None if places is None else number(cells[places[2]].strip())
        kind, named = None, None
        if value is None:
            kind, named = next(
                ((kind, at) for kind in numbers if (at := _named_places(cells, kind, path, line))), (kind, None)
            )
        if named is not None and not first:
            raise DataError(
                "the header is repeated here, as if two files were put together; remove this line", path, line
            )
        first = False
        if named is not None:
            layouts, wanted = {len(cells): named}, f"{len(cells)} cells, as in the header"
            sign = -1.0 if kind is RANK else 1.0
        elif places is None:
            raise DataError(f"expected {wanted}, got {row[:60]!r}", path, line)
        elif value is None:
            raise DataError(f"the score must be a number, got {cells[places[2]].strip()[:60]!r}", path, line)
        else:
            yield line, cells[places[0]], cells[places[1]], sign * value


def _named_places(cells: list[str], numbers: Sequence[str], path: Path, line: int) -> Places | None:
    """The places that a header names, or None where the line is none."""
    names = [_column(cell).lower().replace("_", "-") for cell in cells]
    found = [[name for name in known if name in names] for known in (DOCUMENT, LABEL, numbers)]
    if not all(found):
        return None
    for same in (found[0], found[2]):
        if len(same) > 1:
            raise DataError(f"the header has both {same[0]!r} and {same[1]!r}; keep one of these columns", path, line)
    if len(set(names)) < len(names):
        raise DataError(f"the header has a column twice: {listed(cells)}", path, line)
    document, label, score = (names.index(same[0]) for same in found)
    return document, label, score
