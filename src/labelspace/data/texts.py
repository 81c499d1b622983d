"""Texts to predict, checked whole, then read in blocks."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ..errors import DataError, unit
from .formats import annif, beir, fasttext, features
from .formats.columns import ID_COLUMNS, choose_fields, given_id, record_text
from .formats.parquet import ParquetRows
from .formats.rows import SUFFIXES, records, suffix
from .formats.text import TextFiles, plain_lines, refuse_broken_link

logger = logging.getLogger("labelspace.data")

T = TypeVar("T")

COPIED_BYTES = 1 << 16
"""Of standard input or a pipe, copied at a time."""


class TextSource:
    """Documents to predict, read a block at a time; every row is checked before the first is given.

    Standard input and ``.txt`` files (or files without a suffix) hold one text a line; CSV, TSV and JSONL have a text
    column and perhaps one of ids (``id``, ``uid``, ``document_id`` or ``_id``), and so has Parquet. Without the text
    column they may have ``title`` and ``content`` instead. TSV without a header is that of Annif, where the text comes
    first, or that of MS MARCO, where a number comes first that is the id. Labels of fastText are left out. All but
    Parquet may be gzip. Documents without ids are numbered from 0. What can be read only once, standard input or a
    pipe, is kept in a temporary file; `close` removes it.

    Attributes:
        unnamed: documents without an id of their own, as far as they were read.

    Args:
        path: the file, or "-" for standard input.
        text_column: the column that holds the text.
        fields: for ``title`` and ``content``: "title", "title+content", or "auto" (the title alone when the names of
            file or folder contain "titles").
        encoding: the encoding; None takes UTF-8, with or without BOM, or else Windows-1252.

    Raises:
        DataError: no such file, or one that does not hold texts.
    """

    def __init__(
        self, path: str | Path, *, text_column: str = "text", fields: str = "auto", encoding: str | None = None
    ):
        self._files = TextFiles(encoding)
        self._kept: Path | None = None
        self._count: int | None = None
        self.unnamed = self._first_unnamed = 0
        self._text_column = text_column
        piped = str(path) == "-"
        self._path = path = Path("standard input") if piped else Path(path)
        self._kind = kind = suffix(path)
        if not piped:
            refuse_broken_link(path)
            if not path.exists():
                raise DataError("there is no such file", path)
            if path.is_dir():
                raise DataError("this is a folder; name a file of texts", path)
            if kind not in (*SUFFIXES, ".txt", "") and not (path.is_file() and fasttext.sniff(path)):
                raise DataError(f"texts come from .txt, {', '.join(SUFFIXES)}, text files plain or .gz, or '-'", path)
        self._fields = choose_fields(fields, "/".join(path.resolve().parts[-2:]))
        once = piped or not path.is_file()
        self._short = kind == ".tsv" and not once and annif.sniff(path)
        self._queries = beir.are_queries(path) and text_column == "text"
        self._numbers = kind == ".tsv" and not once and beir.sniff_texts(path)
        self._labelled = not once and fasttext.sniff(path)
        if kind == ".txt" and not once and features.is_features(path):
            raise DataError("these are features without texts; name a file of texts, one a line", path)
        if once:
            self._keep(piped)

    def _keep(self, piped: bool) -> None:
        """Copy what can be read only once into a temporary file."""
        descriptor, name = tempfile.mkstemp(prefix="labelspace-")
        self._kept = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as kept:
                stream: Any
                with contextlib.nullcontext(sys.stdin.buffer) if piped else self._path.open("rb") as stream:
                    # read1, since read gathers a whole block and passes over a signal that comes meanwhile
                    while block := stream.read1(COPIED_BYTES):
                        kept.write(block)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TextSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._kept is not None:
            self._kept.unlink(missing_ok=True)
            self._kept = None

    def __len__(self) -> int:
        """Documents; the first time they are counted, by a pass that keeps none of them.

        Raises:
            DataError: no texts, or a row that cannot be read, with file and line.
        """
        if self._count is None:
            self._count = self._whole(lambda rows: sum(1 for _ in rows))
            if not self._count:
                raise DataError("there are no texts", self._path)
            self._say_unnamed(self._count)
        return self._count

    def read(self) -> tuple[list[str], list[str]]:
        """All ids and texts, in one pass."""
        pairs = self._whole(list)
        if not pairs:
            raise DataError("there are no texts", self._path)
        self._say_unnamed(len(pairs))
        return [name for name, _ in pairs], [text for _, text in pairs]

    def blocks(self, size: int) -> Iterator[tuple[list[str], list[str]]]:
        """Ids and texts in order, ``size`` at a time; only a block is in memory.

        Args:
            size: documents of a block.

        Raises:
            DataError: as from ``len``, before the first block.
        """
        len(self)
        if self._kind == ".parquet":
            rows = self._parquet_rows()
        else:
            rows = self._files.again(self._path, self._rows, self._kept)
        while block := list(itertools.islice(rows, size)):
            yield [name for name, _ in block], [text for _, text in block]

    def _parquet_rows(self) -> Iterator[tuple[str, str]]:
        return self._named(ParquetRows(self._kept or self._path).records())

    def _say_unnamed(self, count: int) -> None:
        """Say it if only some of the texts have an id."""
        if 0 < self.unnamed < count:
            logger.warning(
                "%s: %d of %d texts have no id, the first in %s %d; their numbers from 0 stand for it",
                *(self._path, self.unnamed, count, unit(self._path), self._first_unnamed),
            )

    def _numbered(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        for row, text in enumerate(texts):
            self.unnamed = row + 1
            yield str(row), text

    def _whole(self, parse: Callable[[Iterator[tuple[str, str]]], T]) -> T:
        if self._kind == ".parquet":
            return parse(self._parquet_rows())
        return self._files.read(self._path, lambda stream: parse(self._rows(stream)), self._kept)

    def _rows(self, stream: TextIO) -> Iterator[tuple[str, str]]:
        """Id and text of every document of a text file."""
        if self._short:
            return self._numbered(text for _, _, text, _ in annif.short_texts(stream, self._path, {}))
        if self._numbers:
            return ((name, text) for _, name, text in beir.texts_with_ids(stream, self._path, "text"))
        if self._labelled:
            return self._numbered(text for _, text, _ in fasttext.labelled_lines(stream))
        if self._kind in SUFFIXES:
            return self._named(records(stream, self._path))
        return self._numbered(plain_lines(stream))

    def _named(self, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
        self.unnamed = 0
        for row, (line, record) in enumerate(rows):
            identifier = given_id(record, ID_COLUMNS, self._path, line)
            if identifier is None:
                self.unnamed += 1
                self._first_unnamed = line if self.unnamed == 1 else self._first_unnamed
            if self._queries and "text" in record:
                yield identifier or str(row), beir.query_text(record, self._path, line)
            else:
                yield identifier or str(row), record_text(record, self._fields, self._path, line, [self._text_column])


def read_texts(
    path: str | Path, *, text_column: str = "text", fields: str = "auto", encoding: str | None = None
) -> tuple[list[str], list[str]]:
    """Read documents to predict, as (ids, texts), all at once; `TextSource` reads them in blocks.

    Args:
        path: the file, or "-" for standard input.
        text_column: the column that holds the text.
        fields: as for `TextSource`.
        encoding: the encoding; None takes UTF-8, with or without BOM, or else Windows-1252.

    Raises:
        DataError: no such file, no texts in it, or a row that cannot be read, with file and line.
    """
    with TextSource(path, text_column=text_column, fields=fields, encoding=encoding) as source:
        return source.read()
