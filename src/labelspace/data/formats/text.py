"""Text files: found by name, decoded, split into lines and JSON objects; every fault becomes a ``DataError``.

Only `TextFiles` decodes what is read; `first_lines` decodes what a format is recognised by.
"""

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
from typing import Any, TextIO, TypeVar, cast

from ...errors import DataError, SettingsError

logger = logging.getLogger("labelspace.data")

T = TypeVar("T")

SAMPLE_BYTES = 1 << 16
"""So much of a file is looked at to recognise its format."""

_LOOSE = ("utf-7", "unicode-escape", "unicode_escape", "raw-unicode-escape", "raw_unicode_escape")
"""Encodings that can spell half of a surrogate pair."""
_JSON_KINDS = {str: "a string", list: "an array", bool: "true or false", type(None): "null"}
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
    """Decodes the text files of one data set and remembers which encodings they had.

    Without a stated encoding a file is UTF-8 (with or without BOM), and latin-1 where that fails.
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
        self._encodings: dict[Path, str] = {}

    @property
    def found(self) -> str:
        """The encodings met so far, as one string for the record."""
        return " and ".join(sorted({name.removesuffix("-sig") for name in self._encodings.values()}, reverse=True))

    def read(self, path: Path, parse: Callable[[TextIO], T], content: bytes | Path | None = None) -> T:
        """What ``parse`` makes of the text of a file.

        Args:
            path: the file; its name alone says whether it is gzip.
            parse: takes the open text, whose lines end at newlines only; called anew for a second encoding.
            content: the file's bytes, or a file with them, where they were read already (standard input).
        """
        if content is None and path.exists() and not path.is_file() and not path.is_dir():
            content = path.read_bytes()  # a pipe can be read only once
        for encoding in self._tried:
            try:
                with _open(path, content) as binary, _decoded(binary, encoding) as stream:
                    if self._stated is None and binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                        raise DataError("this is UTF-16; state encoding='utf-16', or save it as UTF-8", path)
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
            self._encodings[path] = encoding
            return value
        raise AssertionError("one encoding is always tried last")

    def lines(self, path: Path) -> list[str]:
        """All lines of a file, without their line ends."""
        return self.read(path, lambda stream: list(plain_lines(stream)))

    def again(
        self, path: Path, rows: Callable[[TextIO], Iterator[T]], content: bytes | Path | None = None
    ) -> Iterator[T]:
        """What ``rows`` gives for the text of a file that `read` has read to its end, as it comes."""
        try:
            with _open(path, content) as binary, _decoded(binary, self._encodings[path]) as stream:
                yield from rows(stream)
        except (UnicodeError, EOFError, zlib.error, OSError) as error:
            raise DataError(f"the file was changed while it was read ({error}); try again", path) from None


def _open(path: Path, content: bytes | Path | None) -> io.BufferedReader:
    """The file's plain bytes, buffered; its name alone says whether it is gzip."""
    if isinstance(content, bytes):
        return io.BufferedReader(cast(io.RawIOBase, io.BytesIO(content)))
    source = path if content is None else content
    if path.suffix == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(source, "rb")), 1 << 18)
    return source.open("rb")


def _decoded(binary: io.BufferedReader, encoding: str) -> TextIO:
    """The text of a file, whose lines end at newlines only, so that a text may hold other line ends."""
    return io.TextIOWrapper(binary, encoding=encoding, newline="\n")


def first_lines(path: Path) -> tuple[list[str], bool]:
    """Lines in the first 64 KB of a file of any kind, and whether the last is only a part of its line.

    A file that cannot be read has one empty line.
    """
    try:
        # Not `_open`, whose large buffer would meet damage that lies behind these bytes.
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(SAMPLE_BYTES)
    except (OSError, EOFError, zlib.error):
        return [""], False
    return content.decode("utf-8-sig", "replace").split("\n"), len(content) == SAMPLE_BYTES


def plain_lines(stream: Iterable[str]) -> Iterator[str]:
    """Lines without their line end; only a newline, with or without a carriage return before it, ends a line."""
    for line in stream:
        yield line.removesuffix("\n").removesuffix("\r")


def json_lines(stream: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object a line, as (line number from 1, object); empty lines are left out. The path is for messages."""
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
            kind = _JSON_KINDS.get(type(record), "a number")
            raise DataError(f"expected one JSON object a line, but this is {kind}", path, number)
        if repeated.name is not None:
            raise DataError(f"the object has the key {repeated.name[:80]!r} twice; keep one", path, number)
        yield number, record
    halves.say(path)


class Halves:
    """Joins surrogate pairs; half a pair, which JSON can spell but no text file can hold, becomes U+FFFD."""

    def __init__(self) -> None:
        self.count = 0

    def mend(self, text: str) -> str:
        """The text without halves of pairs."""
        if text.isascii():
            return str(text)
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self.count += whole.count("\ufffd") - text.count("\ufffd")
        return whole

    def say(self, path: Path) -> None:
        """Warn of what was replaced in a file."""
        if self.count:
            logger.warning("%s: %d halves of surrogate pairs were read as U+FFFD, a character each", path, self.count)


def text_value(value: object, column: str, path: Path, line: int) -> str:
    """A text of a JSON record; null is an empty text. Column, path and line are for messages."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise DataError(f"{column!r} must be a text, but is {str(value)[:60]!r}", path, line)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, quoted, and at most so many of them."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(repr(name[:40]) for name in names[:most]) + more) or "none"


def find_files(folder: Path, names: Iterable[str], places: Iterable[str] = ("",)) -> list[Path]:
    """Files of these names in a folder or its subfolders ("" for itself), plain or ``.gz``, the preferred one first."""
    names = list(names)
    paths = (folder / place / f"{name}{gz}" for place in places for name in names for gz in ("", ".gz"))
    return [path for path in paths if path.is_file()]


def find_file(folder: Path, names: Iterable[str], places: Iterable[str] = ("", "raw")) -> Path | None:
    """The first of `find_files`, or None."""
    return next(iter(find_files(folder, names, places)), None)
