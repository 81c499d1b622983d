"""Labels and relevances within one cell of a table: what stands between them, and which relevance is whose.

The separator of labels, unless one is stated, is found out from all cells: cells that mostly are ``[...]`` are lists;
with a labels file, the separator under which most parts are known labels; else ";" or "|", whichever is in more cells;
else "," (only in a column of several labels, so not in ``label``); else a space, when the parts are all whole numbers
or URIs; else a cell is one label. Relevances are separated like the labels of their row.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Sequence
from math import inf, isfinite

LISTS = "[]"

_NUMBER_OR_URI = re.compile(r"\d+|<?[A-Za-z][\w+.-]*:\S+", re.ASCII)
DECIMAL = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
"""A number without a sign, as every file of text spells it."""

_DECIMAL = re.compile(DECIMAL, re.ASCII)
_SIGNED = re.compile(f"[+-]?{DECIMAL}", re.ASCII)
_ZERO = 2.0**-150  # and what is below are 0 in float32
_ITEM = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|-?(?:0|[1-9][0-9]*+))"""
_PYTHON_LIST = re.compile(rf"\[\s*(?:{_ITEM}\s*(?:,\s*{_ITEM}\s*)*+,?\s*)?\]", re.DOTALL | re.ASCII)
_PYTHON_ITEM = re.compile(_ITEM, re.DOTALL)


def choose_separator(cells: Sequence[str], one_label: bool, knows: Callable[[str], bool] | None) -> tuple[str, bool]:
    """Find out what stands between the labels of a cell, by the rules at the top of this module.

    Args:
        cells: all cells that are not empty, stripped.
        one_label: whether the column's name speaks of a single label.
        knows: tells known labels, if there is a labels file.

    Returns:
        The separator ("" for one label a cell, "[]" for lists), and whether it is a guess.
    """
    if 2 * sum(cell.startswith("[") and cell.endswith("]") for cell in cells) > len(cells):
        return LISTS, False
    telling = [cell for cell in cells if any(mark in cell for mark in ";|, ")]
    if knows is not None:
        sample = telling[:10_000]
        shares = {mark: _known_share(sample, mark, knows) for mark in ("", ";", "|", ",", " ")}
        best = max(shares, key=shares.__getitem__)
        if shares[best] > 0:
            return best, False
    counts = {mark: sum(mark in cell for cell in telling) for mark in (";", "|")}
    mark = max(counts, key=counts.__getitem__)
    if counts[mark]:
        return mark, True
    if not one_label and any("," in cell for cell in telling):
        return ",", True
    if telling and all(_NUMBER_OR_URI.fullmatch(part) for cell in telling for part in cell.split()):
        return " ", True
    return "", True


def _known_share(cells: Sequence[str], separator: str, knows: Callable[[str], bool]) -> float:
    parts = [part for cell in cells for part in split_labels(cell, separator)]
    return sum(map(knows, parts)) / len(parts) if parts else 0.0


def number(text: str) -> float | None:
    """A decimal number in ASCII digits, or None; so are spellings of infinity, of no number, and what is too large.

    Args:
        text: as written, without blanks around it.
    """
    value = float(text) if _SIGNED.fullmatch(text) else inf
    return value if isfinite(value) else None


def split_labels(cell: str, separator: str) -> list[str]:
    """The labels of one cell, stripped, without empty ones.

    Args:
        cell: the cell.
        separator: what stands between labels; "" for one label a cell, "[]" for a list.

    Raises:
        ValueError: when the cell is not a list of names or whole numbers although it should be.
    """
    return [part for part in _split(cell, separator) if part]


def _split(cell: str, separator: str) -> list[str]:
    """The parts of a cell, stripped; empty ones keep their place, save those behind the last separator."""
    if separator == LISTS:
        return [part.strip() for part in _list_of_names(cell.strip())] if cell.strip() else []
    if separator == "":
        parts = [cell]
    elif separator.isspace():
        parts = cell.split() if separator == " " else cell.split(separator)
    else:
        parts = cell.split(separator)
    parts = [part.strip() for part in parts]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _list_of_names(cell: str) -> list[str]:
    """A list as JSON or as Python writes it."""
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = _python_list(cell)
    if not isinstance(found, list) or any(isinstance(part, bool) or not isinstance(part, str | int) for part in found):
        raise ValueError(f"expected a list of labels, got {cell[:60]!r}")
    return [str(part) for part in found]


def _python_list(cell: str) -> list[str | int] | None:
    """The strings and whole numbers between ``[`` and ``]``, or None; neighbours without a comma are not joined."""
    if not _PYTHON_LIST.fullmatch(cell):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown escape stays as it is written
            return [ast.literal_eval(item) for item in _PYTHON_ITEM.findall(cell)]
    except (SyntaxError, ValueError, MemoryError):
        return None


def split_weighted(cell: str, relevances: object, separator: str) -> tuple[list[str], list[float]]:
    """The labels of one cell with their relevances.

    Args:
        cell: the labels.
        relevances: a cell of numbers with the same separator, or a list of numbers.
        separator: as in `split_labels`.

    Raises:
        ValueError: not a relevance for each label, or one that is not a number above 0 and at most 1.
    """
    if not isinstance(relevances, str):
        return pair(_split(cell, separator), relevances)
    if separator == LISTS:
        try:
            numbers = json.loads(relevances)
        except (ValueError, RecursionError):
            numbers = None
        if not isinstance(numbers, list):
            raise ValueError(f"expected a list of relevances, got {relevances[:60]!r}")
        return pair(_split(cell, separator), numbers)
    parts = _split(relevances, separator)
    return pair(
        _split(cell, separator),
        [(float(part) if _DECIMAL.fullmatch(part) else part) if part else None for part in parts],
    )


def pair(names: Sequence[str], relevances: object) -> tuple[list[str], list[float]]:
    """Labels and their relevances, without the places where both are empty.

    Args:
        names: labels, "" for none.
        relevances: a list of as many numbers above 0 and at most 1, or None where there is no label.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(relevances, list):
        raise ValueError(f"relevances must be a list of numbers, not {str(relevances)[:60]!r}")
    if len(names) != len(relevances):
        raise ValueError(f"there are {len(names)} labels but {len(relevances)} relevances")
    kept, values = [], []
    for name, value in zip(names, relevances, strict=True):
        if not name and value is None:
            continue
        if not name:
            raise ValueError(f"relevance {str(value)[:60]} has no label")
        if type(value) not in (int, float) or not _ZERO < value <= 1:
            shown = repr(value[:60]) if isinstance(value, str) else str(value)[:60]
            raise ValueError(f"relevance {shown} of label {name[:80]!r} is not a number above 0 and at most 1")
        kept.append(name)
        values.append(float(value))
    return kept, values
