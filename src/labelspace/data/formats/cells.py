"""Labels and relevances within one cell of a table: what stands between them, and which relevance is whose.

Here alone cells of label names are split.

The separator of labels, unless one is stated, is found out from all cells, by the first of these rules that fits:

- most cells are ``[...]``, or tuples or sets as Python writes them: lists;
- all cells are tags in angles, as Stack Overflow writes them, ``<c++><node.js>``: these;
- there is a labels file: the separator under which most parts are known labels;
- ";", "|", a line end, or in a column of several labels, so not of ``label``, "," is between parts of a cell: the one
  that is so in most cells; but another than "," if a third as many cells have it, or if half of what it parts is met
  elsewhere, since names hold commas. A ";" that ends an HTML entity is none;
- all parts between blanks are whole numbers, URIs, hashtags or codes: a space;
- else a cell is one label.

Relevances are separated like the labels of their row.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite

LISTS, ANGLES = "[]", "<>"
MARKS = (";", "|", "\n", ",")
ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_HELD = "\ue000"  # of the private use area; stands for the ";" of an entity while a cell is split

_CODE = re.compile(
    r"\d+|<?[A-Za-z][\w+.-]*:\S+|#\S+|__label__\S+|[A-Z]\d[0-9A-Z]+(?:\.[0-9A-Z]+)?|[a-z-]+\.[A-Za-z][A-Za-z-]*",
    re.ASCII,
)
"""Whole numbers, URIs, hashtags, labels of fastText, codes of ICD, and categories of arXiv, which hold no blanks."""
EMPTY_SETS = ("set()", "frozenset()")
"""How Python writes sets without anything in them."""
NOTHING = frozenset(["nan", "NaN", "<NA>", "None", "NaT"])
"""What Python writes for no value at all."""
DECIMAL = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
"""A number without a sign, as every file of text spells it."""

_DECIMAL = re.compile(DECIMAL, re.ASCII)
_SIGNED = re.compile(f"[+-]?{DECIMAL}", re.ASCII)
_FLOAT32_ZERO = 2.0**-150  # float32 rounds this and what is below to 0
_ITEM = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|-?(?:0|[1-9][0-9]*+))"""
_PYTHON_LIST = re.compile(rf"[\[({{]\s*(?:{_ITEM}\s*(?:,\s*{_ITEM}\s*)*+,?\s*)?[\])}}]|set\(\)", re.DOTALL | re.ASCII)
_TAGS = re.compile(r"(?:<[^<>\s]+>)*")
_PYTHON_ITEM = re.compile(_ITEM, re.DOTALL)


@dataclass(frozen=True)
class Separator:
    """What stands between the labels of a cell.

    Args:
        mark: "" for one label a cell, "[]" for lists, "<>" for tags in angles.
        guessed: whether another one is possible.
        cells: how many cells each possible mark parts, of a guess.
    """

    mark: str
    guessed: bool = False
    cells: Mapping[str, int] = field(default_factory=dict)


def choose_separator(cells: Sequence[str], one_label: bool, knows: Callable[[str], bool] | None) -> Separator:
    """Find out what stands between the labels of a cell, by the rules at the top of this module.

    Args:
        cells: all cells that are not empty, stripped.
        one_label: whether the column's name speaks of a single label.
        knows: tells known labels, if there is a labels file.
    """
    said = [cell for cell in cells if cell not in NOTHING]
    if 2 * sum(cell[:1] + cell[-1:] in ("[]", "()", "{}") or cell in EMPTY_SETS for cell in said) > len(said):
        return Separator(LISTS)
    if any("><" in cell for cell in cells) and all(map(_TAGS.fullmatch, cells)):
        return Separator(ANGLES)
    telling = [cell for cell in cells if any(mark in cell for mark in ";|, \n")]
    if knows is not None:
        sample = telling[:10_000]
        shares = {mark: _known_share(sample, mark, knows) for mark in ("", *MARKS, " ")}
        best = max(shares, key=shares.__getitem__)
        if shares[best] > 0:
            return Separator(best)
    sample = telling[:: 1 + len(telling) // 100_000]  # enough to weigh by, and not all split three times
    parted = {mark: [parts for cell in sample if len(parts := split_labels(cell, mark)) > 1] for mark in MARKS}
    counts = {
        mark: len(telling) * len(parts) // len(sample)
        for mark, parts in parted.items()
        if parts and not (mark == "," and one_label)
    }
    if counts:
        mark = max(counts, key=counts.__getitem__)  # of equals the first
        if mark == ",":
            rarer = max((other for other in counts if other != ","), key=counts.__getitem__, default=",")
            if 3 * counts[rarer] >= counts[","] or _met_elsewhere(parted[rarer], cells, rarer) >= 0.5:
                mark = rarer
        return Separator(mark, True, counts)
    if telling and all(_CODE.fullmatch(part) for cell in telling for part in cell.split()):
        return Separator(" ", True, {" ": sum(" " in cell for cell in telling)})
    return Separator("", True)


def _met_elsewhere(parted: Sequence[Sequence[str]], cells: Sequence[str], mark: str) -> float:
    """The share of the parts of cells that are a whole cell, or a part of another cell, too."""
    met = Counter(part for parts in parted for part in set(parts))
    met.update(cell for cell in cells if mark not in cell)
    parts = [part for row in parted for part in row]
    return sum(met[part] > 1 for part in parts) / len(parts)


def _known_share(cells: Sequence[str], separator: str, knows: Callable[[str], bool]) -> float:
    parts = [part for cell in cells for part in split_labels(cell, separator)]
    return sum(map(knows, parts)) / len(parts) if parts else 0.0


def number(text: str) -> float | None:
    """A decimal number in ASCII digits, or None; None as well for infinity, no number, and what is too large."""
    value = float(text) if _SIGNED.fullmatch(text) else inf
    return value if isfinite(value) else None


def split_labels(cell: str, separator: str) -> list[str]:
    """The labels of one cell, stripped, without empty ones; the separator is as `choose_separator` gives it.

    Raises:
        ValueError: when the cell is not a list of names or whole numbers although it should be.
    """
    return [part for part in _split(cell, separator) if part]


def _split(cell: str, separator: str) -> list[str]:
    """The parts of a cell, stripped; empty ones keep their place, save those behind the last separator."""
    if separator == LISTS:
        nothing = not cell.strip() or cell.strip() in EMPTY_SETS
        return [] if nothing else [part.strip() for part in _list_of_names(cell.strip())]
    if separator == ANGLES:
        if not _TAGS.fullmatch(cell.strip()):
            raise ValueError(f"expected tags in angles, such as <a><b>, got {cell[:60]!r}")
        return cell.strip()[1:-1].split("><") if cell.strip() else []
    # Any blanks are one separator, so that a cell with two of them in a row has no empty label.
    parts = _parts(cell, separator) if separator else [cell]
    parts = [part.strip() for part in parts]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _parts(cell: str, separator: str) -> list[str]:
    """Parts between separators; the ";" of an HTML entity such as ``&amp;`` is none."""
    if separator == ";" and "&" in cell:
        return [part.replace(_HELD, ";") for part in ENTITY.sub(lambda entity: entity[0][:-1] + _HELD, cell).split(";")]
    return cell.split(None if separator == " " else separator)


def _list_of_names(cell: str) -> list[str]:
    """A list as JSON or as Python writes it."""
    try:
        names = json.loads(cell)
    except (ValueError, RecursionError):
        names = _python_list(cell)
    if not isinstance(names, list) or not {str, int}.issuperset(map(type, names)):
        raise ValueError(f"expected a list of labels, got {cell[:60]!r}")
    return list(map(str, names))


def _python_list(cell: str) -> list[str | int] | None:
    """The strings and whole numbers of a list, tuple or set, or None; neighbours without a comma are not joined."""
    if not _PYTHON_LIST.fullmatch(cell):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown escape stays as it is written
            return [ast.literal_eval(item) for item in _PYTHON_ITEM.findall(cell)]
    except (SyntaxError, ValueError, MemoryError):
        return None


def split_weighted(cell: str, relevances: object, separator: str) -> tuple[list[str], list[float]]:
    """The labels of one cell with their relevances, a cell of numbers with the same separator or a list of numbers.

    Raises:
        ValueError: not a relevance for each label, or one that is not a number above 0 and at most 1.
    """
    numbers = _split_relevances(relevances, separator) if isinstance(relevances, str) else relevances
    return pair(_split(cell, separator), numbers)


def _split_relevances(cell: str, separator: str) -> list[object]:
    """The numbers of a cell; None for an empty part, and what is no number as it is written, for the message."""
    if separator != LISTS:
        parts = _split(cell, separator)
        return [float(part) if _DECIMAL.fullmatch(part) else part or None for part in parts]
    try:
        numbers = json.loads(cell)
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, list):
        raise ValueError(f"expected a list of relevances, got {cell[:60]!r}")
    return numbers


def pair(names: Sequence[str], relevances: object) -> tuple[list[str], list[float]]:
    """Labels, "" for none, and their relevances, None where no label is; places where both are empty are left out.

    Raises:
        ValueError: not as many numbers above 0 and at most 1 as labels.
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
        if type(value) not in (int, float) or not _FLOAT32_ZERO < value <= 1:
            shown = repr(value[:60]) if isinstance(value, str) else str(value)[:60]
            raise ValueError(f"relevance {shown} of label {name[:80]!r} is not a number above 0 and at most 1")
        kept.append(name)
        values.append(float(value))
    return kept, values
