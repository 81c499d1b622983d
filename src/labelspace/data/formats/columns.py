"""Lines of a document, a label and a number, as judgements and run files have them: columns by name, or by their count.

A first line whose cells name all three is a header, in any order and with other columns between; otherwise it is a line
like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ...errors import DataError
from .cells import number
from .text import listed, plain_lines

DOCUMENT = ("query-id", "qid", "query", "topic", "document-id", "document", "id")
LABEL = ("corpus-id", "doc-id", "docid", "label-id", "label")
NUMBER = ("score", "relevance", "rel")

Places = tuple[int, int, int]
"""Where document, label and number stand in a line."""


def triples(
    lines: Iterable[str],
    path: Path,
    split: Callable[[str], list[str]],
    layouts: Mapping[int, Places],
    wanted: str,
) -> Iterator[tuple[int, str, str, float]]:
    """Line number from 1, document, label and number of each line; empty lines are left out.

    Args:
        lines: as read.
        path: the file, for messages.
        split: makes cells of a line.
        layouts: the places by the count of cells, for files without a header.
        wanted: what a line should hold, for messages.

    Raises:
        DataError: a line with other cells, or a number that is not one.
    """
    first = True
    for line, row in enumerate(plain_lines(lines), start=1):
        if not row.strip():
            continue
        cells = split(row)
        places = layouts.get(len(cells))
        value = None if places is None else number(cells[places[2]].strip())
        named = _named(cells, path, line) if first and value is None else None
        first = False
        if named is not None:
            layouts, wanted = {len(cells): named}, f"{len(cells)} cells, as in the header"
        elif places is None:
            raise DataError(f"expected {wanted}, got {row[:60]!r}", path, line)
        elif value is None:
            raise DataError(f"the score must be a number, got {cells[places[2]].strip()[:60]!r}", path, line)
        else:
            yield line, cells[places[0]], cells[places[1]], value


def _named(cells: list[str], path: Path, line: int) -> Places | None:
    """The places that a header names, or None where it is none."""
    names = [cell.strip().lower().replace("_", "-") for cell in cells]
    found = [[name for name in known if name in names] for known in (DOCUMENT, LABEL, NUMBER)]
    if not all(found):
        return None
    for same in (found[0], found[2]):
        if len(same) > 1:
            raise DataError(f"the header has both {same[0]!r} and {same[1]!r}; keep one of these columns", path, line)
    if len(set(names)) < len(names):
        raise DataError(f"the header has a column twice: {listed(cells)}", path, line)
    document, label, score = (names.index(same[0]) for same in found)
    return document, label, score
