"""Text files: found by name, decoded, split into lines and JSON objects; every fault becomes a ``DataError``.

Only `TextFiles` decodes what is read; `first_lines` decodes what a format is recognised by.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import logging
import os
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

MARK = "\ufeff"
"""The byte order mark, which is no letter anywhere."""
GZIP = b"\x1f\x8b"
WIDE_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
ARCHIVES = {
    b"PK\x03\x04": "a zip file (such as .xlsx)", b"BZh": "a bzip2 file", b"\xfd7zX": "an xz file",
    b"(\xb5/\xfd": "a zstd file", b"7z\xbc\xaf": "a 7z file", b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an .xls file",
}  # fmt: skip
"""What is often found under the name of a text file, by its first bytes."""
ENCODING_NAMES = {"cp1252": "Windows-1252", "latin-1": "latin-1"}

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

    Without a stated encoding a file is UTF-8 (with or without BOM). A file with other bytes is Windows-1252, or latin-1
    where Windows has no sign for a byte; but it is refused if most of its signs beyond ASCII are UTF-8, since those
    would be read as two or three others each.
    """

    def __init__(self, encoding: str | None = None):
        try:
            name = None if encoding is None else codecs.lookup(encoding).name
            b"".decode(name or "utf-8")
            if name in _LOOSE:
                raise ValueError
        except (LookupError, ValueError):
            raise SettingsError(f"encoding {encoding!r} is not known; use utf-8 or latin-1, for example") from None
        self._tried = (
            ("utf-8-sig", "cp1252", "latin-1") if name is None else ("utf-8-sig" if name == "utf-8" else name,)
        )
        self._stated = name
        self._encodings: dict[Path, str] = {}

    @property
    def found(self) -> str:
        """The encodings met so far, as one string for the record."""
        return " and ".join(sorted({name.removesuffix("-sig") for name in self._encodings.values()}, reverse=True))

    def read(self, path: Path, parse: Callable[[TextIO], T], content: bytes | Path | None = None) -> T:
        """What ``parse`` makes of the text of a file.

        Args:
            path: the file; its first bytes say whether it is gzip.
            parse: takes the open text, whose lines end at newlines only; called anew for a second encoding.
            content: the file's bytes, or a file with them, where they were read already (standard input).
        """
        if content is None and path.exists() and not path.is_file() and not path.is_dir():
            content = path.read_bytes()  # a pipe can be read only once
        for encoding in self._tried:
            try:
                with _open(path, content) as binary, _decoded(binary, encoding) as stream:
                    if self._stated is None:
                        _refuse_other_bytes(binary, path)
                    value = parse(stream)
            except UnicodeError as error:
                if self._stated is None and encoding == self._tried[0]:
                    _refuse_damaged_utf8(path, content)
                if encoding != self._tried[-1]:
                    continue
                raise DataError(
                    f"the text is not {self._stated} ({error.args[-1]}); state another encoding", path
                ) from None
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(f"the gzip file is damaged or cut short ({error}); fetch it again", path) from None
            except OSError as error:
                raise DataError(f"the file cannot be read ({error.strerror or error})", path) from None
            if encoding != self._tried[0]:
                logger.warning("%s is not UTF-8; it was read as %s", path, ENCODING_NAMES[encoding])
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
    """The file's plain bytes, buffered; its first bytes say whether it is gzip, whatever its name."""
    raw: Any
    if isinstance(content, bytes):
        raw = io.BufferedReader(cast(io.RawIOBase, io.BytesIO(content)))
    else:
        raw = (path if content is None else content).open("rb")
    if raw.peek(2)[:2] != GZIP:
        if path.suffix == ".gz" and b"\0" in raw.peek(SAMPLE_BYTES):
            raw.close()
            raise gzip.BadGzipFile("it does not begin like one")
        return cast(io.BufferedReader, raw)
    return io.BufferedReader(cast(io.RawIOBase, _Unzipped(raw)), 1 << 18)


class _Unzipped(gzip.GzipFile):
    """The plain bytes of a gzip file, which is closed with them."""

    def __init__(self, raw: io.BufferedReader):
        self._raw = raw
        super().__init__(fileobj=raw, mode="rb")

    def close(self) -> None:
        super().close()
        self._raw.close()


def _refuse_other_bytes(binary: io.BufferedReader, path: Path) -> None:
    """Refuse what is no text of one byte a letter, going by the first bytes of a file."""
    first = binary.peek(4)[:4]
    for mark, name in WIDE_ENCODINGS.items():  # UTF-32 first, whose mark begins like that of UTF-16
        if first.startswith(mark):
            raise DataError(f"this is {name.upper()}; state encoding={name!r}, or save it as UTF-8", path)
    for mark, name in ARCHIVES.items():
        if first.startswith(mark):
            raise DataError(f"this is {name} and no text; unpack it, or save it as text", path)


def _refuse_damaged_utf8(path: Path, content: bytes | Path | None) -> None:
    """Refuse a file that is not UTF-8 but has more signs that are than bytes that are not, and name the first byte."""
    good, wrong, first = 0, 0, ""
    with _open(path, content) as binary:
        for number, line in enumerate(binary, start=1):
            if line.isascii():
                continue
            text = line.decode("utf-8", "surrogateescape")
            signs = re.findall(r"[^\x00-\x7f]", text)
            bad = [sign for sign in signs if "\udc80" <= sign <= "\udcff"]
            if bad and not first:
                before = text[: text.index(bad[0])].encode("utf-8", "surrogateescape")
                first = f"byte {len(before) + 1} of line {number}, 0x{ord(bad[0]) - 0xDC00:02x},"
            good, wrong = good + len(signs) - len(bad), wrong + len(bad)
    if good > wrong:
        raise DataError(
            f"{first} is not UTF-8, but {good} other signs of this file are; mend the {_count(wrong, 'byte')} that "
            "are not, or state the encoding of the whole file",
            path,
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _decoded(binary: io.BufferedReader, encoding: str) -> TextIO:
    """The text of a file, whose lines end at newlines only, so that a text may hold other line ends."""
    return io.TextIOWrapper(binary, encoding=encoding, newline="\n")


def first_lines(path: Path) -> tuple[list[str], bool]:
    """Lines in the first 64 KB of a file of any kind, and whether the last is only a part of its line.

    A file that cannot be read has one empty line.
    """
    try:
        # Not `_open`, whose large buffer would meet damage that lies behind these bytes.
        with path.open("rb") as raw, _Unzipped(raw) if raw.peek(2)[:2] == GZIP else raw as stream:
            content = stream.read(SAMPLE_BYTES)
    except (OSError, EOFError, zlib.error):
        return [""], False
    return content.decode("utf-8-sig", "replace").split("\n"), len(content) == SAMPLE_BYTES


def plain_lines(stream: Iterable[str]) -> Iterator[str]:
    """Lines without their line end; only a newline, with or without a carriage return before it, ends a line.

    A byte order mark before a line is none of its text: files with one were put together.
    """
    for line in unmarked(stream):
        yield line.removesuffix("\n").removesuffix("\r")


def unmarked(stream: Iterable[str]) -> Iterator[str]:
    """Lines without byte order marks before them, which are left where files were put together."""
    return (line.lstrip(MARK) if line.startswith(MARK) else line for line in stream)


def json_lines(stream: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object a line, as (line number from 1, object); empty lines are left out. The path is for messages."""
    repeated, halves = _RepeatedKey(), Halves()
    decode = json.JSONDecoder(object_pairs_hook=repeated).decode
    for number, line in enumerate(unmarked(stream), start=1):
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


def is_file(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        DataError: there is a symbolic link that leads nowhere.
    """
    refuse_broken_link(path)
    return path.is_file()


def refuse_broken_link(path: Path) -> None:
    """Refuse a symbolic link whose target is not there."""
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"this is a symbolic link to {os.readlink(path)!r}, where nothing is; bring the file there, or remove the "
            "link",
            path,
        )


def shown_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files of a folder with these endings, plain or ``.gz``, sorted; hidden ones, which begin with a dot, are not.

    Raises:
        DataError: one is a symbolic link that leads nowhere.
    """
    names = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return [path for path in names if path.name.lower().removesuffix(".gz").endswith(endings) and is_file(path)]


def find_files(folder: Path, names: Iterable[str], places: Iterable[str] = ("",)) -> list[Path]:
    """Files of these names in a folder or its subfolders ("" for itself), plain or ``.gz``, the preferred one first."""
    names = list(names)
    paths = (folder / place / f"{name}{gz}" for place in places for name in names for gz in ("", ".gz"))
    return [path for path in paths if is_file(path)]


def find_file(folder: Path, names: Iterable[str], places: Iterable[str] = ("", "raw")) -> Path | None:
    """The first of `find_files`, or None."""
    return next(iter(find_files(folder, names, places)), None)
