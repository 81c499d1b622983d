"""The label space of tables: labels files, and which label a name means."""

from __future__ import annotations

import difflib
import logging
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ...base.words import form
from ...errors import DataError, unit
from ...types import Labels
from .columns import given_id, record_text
from .corpus import Records
from .text import listed, plain_lines, text_value

logger = logging.getLogger("labelspace.data")

ID_COLUMNS = ("id", "uid", "uri")
TEXT_COLUMNS = ("text", "label", "name")


class NoLabelsError(DataError):
    """Documents without any label, and no labels file."""


class LabelLookup:
    """Label ids and texts to label numbers.

    Args:
        labels: the label space.
        lines: the line of each label in its file.
        path: the labels file, or what else the names came from.
        bare: the labels are a list of names, which may be referred to by row number, unless some name is a number.
    """

    def __init__(self, labels: Labels, lines: Sequence[int], path: Path, bare: bool = False):
        self.labels, self._lines, self._path = labels, lines, path
        self._by_id = {identifier: number for number, identifier in enumerate(labels.ids)}
        self._by_text: dict[str, int] = {}
        if labels.texts is not labels.ids:
            for number, text in enumerate(labels.texts):
                self._by_text[text] = number if text not in self._by_text else -1
        self._by_form: dict[str, int] | None = None
        self._row_numbers = bare and not any(name.isdecimal() for name in labels.ids)
        self.unknown: dict[str, tuple[int, Path, int]] = {}
        """Names that no label has: how many were met before, and the file and the line where each was met first."""

    @property
    def source(self) -> Path:
        """Where the labels come from."""
        return self._path

    @property
    def width(self) -> int:
        """One more than the highest number so far."""
        return len(self.labels) + len(self.unknown)

    def find(self, name: str) -> int | None:
        """The number of the label with this id, text, or row number of a bare list.

        It is -1 for a text that several labels have, and None for an unknown name.
        """
        number = self._by_id.get(name)
        if number is None:
            number = self._by_text.get(name)
        if number is None and self._row_numbers and name.isascii() and name.isdecimal():
            # Leading zeros and numbers of thousands of digits are no row numbers.
            row = int(name) if len(name) < 10 else len(self.labels)
            number = row if row < len(self.labels) and str(row) == name else None
        return self._by_forms().get(form(name)) if number is None else number

    def _by_forms(self) -> dict[str, int]:
        """Label numbers by `form`, -1 for one that several labels have; made when a name is not found as it is."""
        if self._by_form is None:
            self._by_form = {}
            for known in (self._by_text, self._by_id):
                for name, number in known.items():
                    other = self._by_form.setdefault(form(name), number)
                    if other != number:
                        self._by_form[form(name)] = -1
        return self._by_form

    def knows(self, name: str) -> bool:
        """Whether some label has this id or text."""
        return self.find(name) is not None

    def number(self, name: str, path: Path, line: int) -> int:
        """The number of a label that is named, as for `find`, in this line of a file; unknown ones come after all.

        Raises:
            DataError: a name that several labels have.
        """
        number = self.find(name)
        if number is None:
            place = self.unknown.setdefault(name, (len(self.unknown), path, line))
            return len(self.labels) + place[0]
        if number < 0:
            both = zip(self.labels.ids, self.labels.texts, strict=True)
            same = [row for row, known in enumerate(both) if form(name) in map(form, known)][:2]
            raise DataError(
                f"label name {name[:80]!r} stands for more than one label of {self._path} "
                f"({unit(self._path)}s {self._lines[same[0]]} and {self._lines[same[1]]}); use ids",
                path,
                line,
            )
        return number

    def refusal(self, references: int, remedy: str = "") -> DataError:
        """The error that so many references name unknown labels, with the nearest known ones of the first.

        Args:
            references: how many.
            remedy: what else the message says.
        """
        name, (_, path, line) = next(iter(self.unknown.items()))
        message = f"label {name[:80]!r} is not in {self._path}; the nearest labels there are {self._nearest(name)}"
        if references > 1:
            places = self.unknown.items()
            others = [f"{name[:80]!r} ({place.name}, {unit(place)} {at})" for name, (_, place, at) in places][1:]
            shown = f", also {', '.join(others[:3])}" if others else ""
            message += f"; in all {references} references name {len(places)} unknown labels{shown}"
        return DataError(message + remedy, path, line)

    def _nearest(self, name: str, most: int = 3) -> str:
        """The ids nearest to a name, compared with at most 2,000 ids and texts that begin or end alike."""
        name = name[:200]
        known = [*self._by_id, *self._by_text]
        if len(known) > 2000:
            known.sort()
            at = bisect_left(known, name)
            candidates = known[max(at - 500, 0) : at + 500]
            known = sorted(text[::-1] for text in known)
            at = bisect_left(known, name[::-1])
            candidates += [text[::-1] for text in known[max(at - 500, 0) : at + 500]]
            known = candidates
        short = {text[:200]: text for text in known}
        found = difflib.get_close_matches(name, short, n=2 * most, cutoff=0.0)
        numbers = dict.fromkeys(self.find(short[text]) for text in found)
        shown = []
        for number in [number for number in numbers if number is not None and number >= 0][:most]:
            identifier, text = self.labels.ids[number], " ".join(self.labels.texts[number].split())
            shown.append(repr(identifier[:80]) + (f" ({text[:80]})" if text != identifier else ""))
        return ", ".join(shown) or "none"


def warn_of_alike(names: Iterable[str], path: Path) -> None:
    """Say once that labels are written alike, but for case, blanks, their Unicode form or signs that are not seen."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(form(name).casefold().split()), []).append(name)
    several = [same for same in alike.values() if len(same) > 1]
    if several:
        shown = " and ".join(shown_name(name, several[0]) for name in several[0][:2])
        logger.warning(
            "%s: %d labels are written like another one, such as %s; they count as different labels",
            *(path, sum(map(len, several)) - len(several), shown),
        )


def shown_name(name: str, others: Sequence[str] = ()) -> str:
    """A name for a message, with its code points beyond ASCII where it looks like one of the others."""
    same = any(other != name and form(other) == form(name) for other in others)
    points = " ".join(f"U+{ord(sign):04X}" for sign in name[:40] if not sign.isascii())
    return f"{name[:80]!r}" + (f" ({points or 'ASCII'})" if same else "")


def collected(splits: Mapping[str, Iterable[str]], path: Path) -> list[str]:
    """The label space of data without a labels file: the names of train in order, then what only others have.

    Raises:
        NoLabelsError: there are none.
    """
    names: list[str] = []
    seen: set[str] = set()
    for split, met in splits.items():
        new = sorted(set(met) - seen)
        if new and split != "train":
            logger.warning(
                "%s: %d labels occur in %s but not in train, such as %r; they count as labels",
                *(path, len(new), split, new[0]),
            )
        names += new
        seen.update(new)
    if not names:
        raise NoLabelsError("no document has a label, and there is no labels file", path)
    warn_of_alike(names, path)
    return names


def parse_list(stream: TextIO, path: Path) -> LabelLookup:
    """A bare list: one name a line, which is id and text."""
    labels = Records("label", path)
    for number, line in enumerate(plain_lines(stream), start=1):
        name = line.strip()
        if name and number > len(labels.ids) + 1:
            raise DataError("the label name is empty", path, len(labels.ids) + 1)
        if name:
            labels.add(name, name, number)
    labels.check()
    return LabelLookup(Labels(labels.ids, labels.ids), labels.lines, path, bare=True)


def parse_table(
    rows: Iterable[tuple[int, dict[str, Any]]], path: Path, fields: str, keep_parts: bool
) -> tuple[LabelLookup, bool]:
    """A table with ids and texts of labels, and whether the texts were made of title and content.

    Args:
        rows: (line, column to value) of each label.
        path: the file, for messages.
        fields: "title" or "title+content", of labels that have these instead of a text.
        keep_parts: keep title and content beside the text.
    """
    labels = Records("label", path, keep_parts)
    with_ids = False
    for line, record in rows:
        id_columns = [column for column in ID_COLUMNS if column in record]
        text_column = next((column for column in TEXT_COLUMNS if column in record), None)
        fallback = text_column or ("title" if "title" in record else None)
        if not labels.ids:
            with_ids = bool(id_columns)
        if fallback is None and not id_columns:
            wanted = f"{', '.join(ID_COLUMNS)} for ids, {', '.join(TEXT_COLUMNS)}, title, content for texts"
            raise DataError(f"there is no known column, only {listed(record)}; use {wanted}", path, line)
        if with_ids != bool(id_columns):
            raise DataError(
                "the label has no id, although others have" if with_ids else "only this label has an id", path, line
            )
        columns = id_columns if with_ids else [fallback] if fallback else []
        identifier = (given_id(record, columns, path, line) or "").strip()
        if not identifier:
            raise DataError("the label has no id", path, line)
        if text_column is None and ("title" in record or "content" in record):
            labels.add(identifier, record_text(record, fields, path, line), line, record)
        else:
            text = identifier if text_column is None else text_value(record[text_column], text_column, path, line)
            labels.add(identifier, text, line)
    labels.check()
    return LabelLookup(Labels(labels.ids, labels.texts, labels.parts), labels.lines, path), labels.composed
