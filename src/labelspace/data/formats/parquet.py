"""Rows of Parquet files, a batch at a time, with the label names that Hugging Face writes into or beside them."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, MissingExtraError
from .hub import class_names, names_beside
from .text import Halves

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH = 2048
"""Rows that are Python objects at a time."""


class ParquetRows:
    """An open Parquet file.

    Args:
        path: the file.

    Raises:
        DataError: it is not a whole Parquet file, or names a column twice.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path):
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise MissingExtraError("reading a Parquet file", "pyarrow", "parquet") from None
        self._path = path
        if path.suffix == ".gz":
            raise DataError("Parquet files are compressed inside; unpack this one", path)
        try:
            self._file: ParquetFile = ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True)
            self.columns: list[str] = list(self._file.schema_arrow.names)
            metadata: bytes | None = (self._file.schema_arrow.metadata or {}).get(b"huggingface")
        except Exception as error:  # Arrow raises errors of many types for damage
            raise self._damaged(error) from None
        for column in self.columns:
            if self.columns.count(column) > 1:
                raise DataError(f"the column {column[:80]!r} is there twice; rename one", path)
        self._features: dict[str, Any] = {}
        if metadata is not None:
            try:
                self._features = dict(json.loads(metadata)["info"]["features"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(
                    "the schema's Hugging Face metadata cannot be read; write the file again", path
                ) from None

    def _damaged(self, error: Exception) -> DataError:
        if isinstance(error, OSError) and error.strerror:
            return DataError(f"the file cannot be read ({error.strerror})", self._path)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, NotImplementedError):
            return DataError(
                f"pyarrow cannot read this Parquet file ({reason}); write its columns as plain types", self._path
            )
        return DataError(f"this is not a whole Parquet file ({reason}); fetch or write it again", self._path)

    def holds_text(self, column: str) -> bool:
        """Whether a column holds strings."""
        import pyarrow.types as types

        if column not in self.columns:
            return False
        kind = self._file.schema_arrow.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    def class_names(self, column: str) -> list[str] | None:
        """The names behind a column of label numbers (``ClassLabel``), in their order, or None."""
        source = self._path
        try:
            names = class_names(self._features.get(column))
        except ValueError:
            raise DataError(
                f"the names of {column!r} in the Hugging Face metadata are no list of names", source
            ) from None
        if names is None and not self._features and self._holds_numbers(column):
            names, source = names_beside(self._path, column) or (None, source)
        if names is None:
            return None
        names = [Halves().mend(name).strip() for name in names]
        if len(set(names)) < len(names):
            raise DataError(f"a name of {column!r} is twice in the Hugging Face metadata", source)
        return names

    def _holds_numbers(self, column: str) -> bool:
        """Whether a column holds whole numbers, or lists of them."""
        import pyarrow.types as types

        if column not in self.columns:
            return False
        kind = self._file.schema_arrow.field(column).type
        kind = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
        return bool(types.is_integer(kind))

    def records(self, wanted: Container[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows as (row number from 0, column to value), of the wanted columns or all.

        Numbers of ``ClassLabel`` become names, -1 an empty one.
        """
        columns = [column for column in self.columns if wanted is None or column in wanted] or self.columns
        named = {column: names for column in columns if (names := self.class_names(column)) is not None}
        row = 0
        for values in self._batches(columns):
            for cells in zip(*values, strict=True):
                record = dict(zip(columns, cells, strict=True))
                for column, names in named.items():
                    record[column] = self._name(record[column], names, row)
                yield row, record
                row += 1

    def _batches(self, columns: list[str]) -> Iterator[list[list[Any]]]:
        """Values of the columns; no batch spans row groups, which Arrow cannot do for lists of dictionary values."""
        metadata = self._file.metadata
        try:
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if sum(sizes) != metadata.num_rows:
                raise ValueError(f"its row groups have {sum(sizes)} rows, but it says {metadata.num_rows}")
            for group, left in enumerate(sizes if columns else ()):
                for batch in self._file.iter_batches(BATCH, [group], columns, use_threads=False):
                    yield [batch.column(column).to_pylist() for column in columns]
                    left -= batch.num_rows
                if left:  # Arrow skips over some damage without a word
                    raise ValueError(f"row group {group} lacks {left} of its {sizes[group]} rows")
        except Exception as error:
            raise self._damaged(error) from None

    def _name(self, value: Any, names: list[str], row: int) -> Any:
        if isinstance(value, list):
            return [self._name(part, names, row) for part in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if not -1 <= value < len(names):
            raise DataError(f"label number {value} is not one of 0 to {len(names) - 1}", self._path, row)
        return "" if value == -1 else names[value]
