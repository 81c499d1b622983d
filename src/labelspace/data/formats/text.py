"""Text files as they come: gzip or not, UTF-8 or latin-1, any line end; every fault becomes a ``DataError``."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar, cast

from ...errors import DataError, SettingsError

logger = logging.getLogger("labelspace.data")

T = TypeVar("T")

_LOOSE = ("utf-7", "unicode-escape", "unicode_escape", "raw-unicode-escape", "raw_unicode_escape")
"""Encodings that can spell half of a surrogate pair."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class _RepeatedKey:
    """Builds the objects of a JSON line, and notes whether the last one, which is the whole, has a key twice."""

    name: str | None = None

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        self.name = None
        if len(record) != len(pairs):
            self.name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return record


class TextFiles:
    """Reads the text files of one data set and remembers which encodings they had.

    Without a stated encoding a file is UTF-8 (with or without BOM), and latin-1 where that fails.

    Args:
        encoding: the encoding of all files, or None to find it out.
    """

    def __init__(self, encoding: str | None = None):
        try:
            name = None if encoding is None else codecs.lookup(encoding).name
            b"".decode(name or "utf-8")
            if name in _LOOSE:
                raise ValueError
        except (LookupError, ValueError):
            raise SettingsError(f"encoding {encoding!r} is not known; use utf-8 or latin-1, for example") from None
        self._tried = ("utf-8-sig", "latin-1") if name is None else ("utf-8-sig" if name == "utf-8" else name,)
        self._stated = name
        self._found: set[str] = set()
        self._last: dict[Path, str] = {}

    @property
    def found(self) -> str:
        """The encodings met so far, as one string for the record."""
        return " and ".join(sorted(self._found, reverse=True))

    def read(self, path: Path, parse: Callable[[TextIO], T], content: bytes | Path | None = None) -> T:
        """Open a file, hand its text to ``parse``, and return what that returns.

        Args:
            path: the file; its name alone says whether it is gzip.
            parse: takes the open text, whose lines end at newlines only; called anew for a second encoding.
            content: the file's bytes, or a file with them, where they were read already (standard input).
        """
        if content is None and path.exists() and not path.is_file() and not path.is_dir():
            content = path.read_bytes()  # a pipe can be read only once
        for encoding in self._tried:
            try:
                with _open(path, content) as binary:
                    head = cast(io.BufferedReader, binary).peek(2)[:2]
                    if self._stated is None and head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                        raise DataError("this is UTF-16; state encoding='utf-16', or save it as UTF-8", path)
                    with io.TextIOWrapper(binary, encoding=encoding, newline="\n") as stream:
                        value = parse(stream)
            except UnicodeError as error:
                if encoding != self._tried[-1]:
                    continue
                raise DataError(
                    f"the text is not {self._stated} ({error.args[-1]}); state another encoding", path
                ) from None
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(f"the gzip file is damaged or cut short ({error}); fetch it again", path) from None
            except OSError as error:
                raise DataError(f"the file cannot be read ({error.strerror or error})", path) from None
            if encoding == "latin-1" and self._stated is None:
                logger.warning("%s is not UTF-8; it was read as latin-1", path)
            self._found.add("utf-8" if encoding == "utf-8-sig" else encoding)
            self._last[path] = encoding
            return value
        raise AssertionError("one encoding is always tried last")

    def again(
        self, path: Path, rows: Callable[[TextIO], Iterator[T]], content: bytes | Path | None = None
    ) -> Iterator[T]:
        """What ``rows`` gives for the text of a file that `read` has read to its end, as it comes.

        Args:
            path: as for `read`.
            rows: takes the open text.
            content: as for `read`.
        """
        try:
            with _open(path, content) as binary:
                with io.TextIOWrapper(binary, encoding=self._last[path], newline="\n") as stream:
                    yield from rows(stream)
        except (UnicodeError, EOFError, zlib.error, OSError) as error:
            raise DataError(f"the file was changed while it was read ({error}); try again", path) from None


def _open(path: Path, content: bytes | Path | None) -> BinaryIO:
    """The file's plain bytes, buffered; its name alone says whether it is gzip."""
    if isinstance(content, bytes):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, io.BytesIO(content))))
    place = path if content is None else content
    if path.suffix == ".gz":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.open(place, "rb")), 1 << 18))
    return place.open("rb")


def plain_lines(stream: Iterable[str]) -> Iterator[str]:
    """Lines without their line end; only a newline, with or without a carriage return before it, ends a line.

    Args:
        stream: lines as read.
    """
    for line in stream:
        yield line.removesuffix("\n").removesuffix("\r")


def json_lines(stream: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object a line, as (line number from 1, object); empty lines are left out.

    Args:
        stream: lines as read.
        path: the file, for messages.
    """
    repeated, halves = _RepeatedKey(), Halves()
    decode = json.JSONDecoder(object_pairs_hook=repeated).decode
    for number, line in enumerate(stream, start=1):
        if not line or line.isspace():
            continue
        try:
            record = decode(line)
            if "\\u" in line and isinstance(record, dict) and _SURROGATE_ESCAPE.search(line) and not repeated.name:
                record = decode(halves.mend(json.dumps(record, ensure_ascii=False)))
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"expected one JSON object a line, but this line is not JSON ({reason})", path, number
            ) from None
        if not isinstance(record, dict):
            raise DataError(f"expected one JSON object a line, but this is {_kind(record)}", path, number)
        if repeated.name is not None:
            raise DataError(f"the object has the key {repeated.name[:80]!r} twice; keep one", path, number)
        yield number, record
    halves.say(path)


class Halves:
    """Joins surrogate pairs; halves of them, which JSON can spell but no text file can hold, become U+FFFD, counted."""

    def __init__(self) -> None:
        self.count = 0

    def mend(self, text: str) -> str:
        """The text without halves.

        Args:
            text: any string.
        """
        if text.isascii():
            return str(text)
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self.count += whole.count("\ufffd") - text.count("\ufffd")
        return whole

    def say(self, path: Path) -> None:
        """Warn of what was replaced.

        Args:
            path: the file that had it.
        """
        if self.count:
            logger.warning("%s: %d halves of surrogate pairs were read as U+FFFD, a character each", path, self.count)


def _kind(value: object) -> str:
    names: dict[type, str] = {str: "a string", list: "an array", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def text_value(value: object, column: str, path: Path, line: int) -> str:
    """A text of a JSON record; null is an empty text.

    Args:
        value: what the record holds.
        column: its key, for messages.
        path: the file, for messages.
        line: the line, for messages.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise DataError(f"{column!r} must be a text, but is {str(value)[:60]!r}", path, line)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, quoted, and at most so many.

    Args:
        names: column names, say.
        most: how many are spelt out.
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(repr(name[:40]) for name in names[:most]) + more) or "none"


def find_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of the names that exists in the folder or its ``raw`` subfolder, plain or as ``.gz``.

    Args:
        folder: where to look.
        names: file names, the preferred one first.
    """
    for place in (folder, folder / "raw"):
        for name in names:
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    return path
    return None
