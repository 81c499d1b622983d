"""Data sets from files: texts, truth and label space, a held-out part for choices, and texts to predict."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DataError, SettingsError
from ..types import Corpus, Dataset, Labels
from . import formats
from .formats import annif, features, lf, table
from .formats.corpus import ReadSettings, given_id
from .formats.parquet import ParquetRows
from .formats.text import Halves, TextFiles, listed, plain_lines, text_value

T = TypeVar("T")

__all__ = [
    "TextSource", "fingerprint", "hold_out", "load", "read_documents", "read_ids", "read_labels", "read_texts",
    "require_texts",
]  # fmt: skip


def load(
    path: str | Path,
    *,
    fields: str = "auto",
    label_fields: str = "auto",
    text_column: str = "text",
    label_column: str = "labels",
    separator: str | None = None,
    encoding: str | None = None,
    format: str | None = None,
    label_vocabulary: str | Path | None = None,
    language: str | None = None,
    keep_parts: bool = False,
    seed: int = 0,
    valid_fraction: float = 0.1,
    valid_max: int = 10_000,
) -> Dataset:
    """Read a data set from a folder or a file; the format is recognised by what is there.

    * ``lf``: a folder with ``trn.json``, ``tst.json``, ``lbl.json``.
    * ``beir``: a folder with ``corpus.jsonl`` (the labels), ``queries.jsonl`` (the documents) and ``qrels/train.tsv``,
      ``dev.tsv``, ``test.tsv``.
    * ``xc``: a folder with ``trn_X.txt``, ``tst_X.txt``, ``Y.txt`` and the truth as npz or sparse text.
    * ``features``: an old ``train.txt``, or ``trn_X_Y.txt`` or ``Y.trn.npz``, without texts: only the truth.
    * ``annif``: ``train.tsv``, ``.csv``, ``.jsonl`` or a folder ``train`` of documents, as Annif has them (and
      ``test``, ``valid``), or one such file or folder; with a vocabulary beside it or named by ``label_vocabulary``.
    * ``table``: a CSV, TSV or JSONL file with a text and a labels column (all of it is training data), or a folder
      with ``train.*`` and perhaps ``test.*``, ``valid.*`` (or ``dev.*``, ``validation.*``) and ``labels.*``. Without
      a labels file the labels are the sorted names of train, followed by names that only other splits have.

    Every file may be gzip. A folder that ``convert`` wrote says in ``labelspace.json`` how it is read. ``train`` is the
    training set as shipped; unless validation documents are shipped, ``valid`` is a seeded part of its rows.

    Args:
        path: the folder or file.
        fields: LF documents: "title", "title+content", or "auto" (the title alone when the data set's name contains
            "titles", else both).
        label_fields: LF labels, likewise; "auto" takes the fields of the documents. Of a BEIR corpus "auto" is both.
            Of a SKOS vocabulary "preferred" ("auto"), to which "+alternative" and "+broader" may be added.
        text_column: the column of tables that holds the text.
        label_column: the column of tables that holds the labels; ``label`` serves when ``labels`` is missing.
        separator: what stands between the labels of a CSV or TSV cell; None finds it out, "" takes a cell as one
            label. Given one, it also splits plain strings of JSONL.
        encoding: the encoding of the text files; None takes UTF-8, with or without BOM, or else latin-1.
        format: "lf", "beir", "xc", "annif", "table" or "features", or None to find it out.
        label_vocabulary: the file that holds the labels of an Annif corpus or a table: TSV, CSV or SKOS.
        language: of the labels of a vocabulary; None takes English, or else the most frequent one, and says so.
        keep_parts: keep titles and contents in ``parts`` beside the texts made of them.
        seed: draws the validation rows.
        valid_fraction: the share of the training documents to hold out, from 0 to below 1.
        valid_max: the most documents to hold out.

    Raises:
        DataError: nothing recognised at the path, or a file that cannot be read as asked, with file and line.
        SettingsError: an option out of bounds.
    """
    path = Path(path).expanduser()
    record = _read_record(path / RECORD)
    settings = ReadSettings(
        fields=record.get("fields", fields) if fields == "auto" else fields,
        label_fields=record.get("label_fields", label_fields) if label_fields == "auto" else label_fields,
        text_column=text_column,
        label_column=label_column,
        separator=separator,
        encoding=encoding,
        label_vocabulary=None if label_vocabulary is None else Path(label_vocabulary).expanduser(),
        language=language,
        keep_parts=keep_parts,
    )
    name = record.get("name", path.resolve().name)
    if path.is_file():
        name = Path(name.removesuffix(".gz")).stem
    name = Halves().mend(name)  # of a folder whose name is not UTF-8
    _check_hold_out(valid_fraction, valid_max)
    splits, format = formats.read(path, name, settings, format or record.get("format"))
    if "texts" in record:
        splits.options["texts"] = record["texts"]
    rows = np.zeros(0, dtype=np.int64)
    valid = splits.valid
    if valid is None:
        train = splits.train
        alike = train.ids if lacks_texts(splits.options, "train") else train.texts
        rows = hold_out(alike, valid_fraction, valid_max, seed)
        valid = splits.train.rows(rows)
    options: dict[str, str | int | float | None] = {"format": format, **splits.options, "seed": seed}
    options.update(valid_fraction=valid_fraction, valid_max=valid_max)
    return Dataset(name, splits.labels, splits.train, valid, splits.test, rows, options)


RECORD = "labelspace.json"
"""In a folder that was written by ``convert``: the data set's name, and how its files are read."""


def _read_record(path: Path) -> dict[str, str]:
    """Name, format, fields, label_fields and texts, as far as the folder has a record of them."""
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"this record cannot be read ({reason}); convert the data again, or delete it", path) from None
    if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
        raise DataError("this record is not one of names and texts; convert the data again, or delete it", path)
    return record


def lacks_texts(options: Mapping[str, object], split: str) -> bool:
    """Whether the documents of a split came without texts, as features only.

    Args:
        options: how the data set was read; ``texts`` is "none", or the only split that has them.
        split: "train", "valid" or "test".
    """
    texts = options.get("texts")
    return texts is not None and texts != ("train" if split == "valid" else split)


def require_texts(data: Dataset, split: str = "train") -> None:
    """Refuse documents without texts, for whoever needs them.

    Args:
        data: the data set.
        split: "train", "valid" or "test".

    Raises:
        DataError: there are only features.
    """
    if lacks_texts(data.options, split):
        name = features.TEXTS["test" if split == "test" else "train"][0]
        raise DataError(
            f"{data.name}: the {split} documents are features without texts, and models read texts; "
            f"put these, one a line, into {name} beside them"
        )


# Validation

_GAPS = re.compile(r"[\W_]+")
_FIRST_WORDS = 16


def _check_hold_out(fraction: float, maximum: int) -> None:
    if not 0 <= fraction < 1:
        raise SettingsError(f"valid_fraction must be from 0 to below 1, got {fraction}")
    if maximum < 0:
        raise SettingsError(f"valid_max must not be negative, got {maximum}")


def hold_out(texts: Sequence[str], fraction: float, maximum: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw documents to hold out: (v,) sorted rows, v at most min(fraction of N, maximum), but at least 1 if N > 1.

    Texts that are equal but for case, punctuation and white space go together. They are drawn in whole
    groups; a group that no longer fits is passed over. Where none fits, the smallest is drawn all the same, unless all
    texts are one group.

    Args:
        texts: N texts.
        fraction: the share to hold out, from 0 (none) to below 1.
        maximum: the most rows to hold out.
        seed: decides the draw.
    """
    _check_hold_out(fraction, maximum)
    if fraction == 0 or maximum == 0 or len(texts) < 2:
        return np.zeros(0, dtype=np.int64)
    target = max(1, min(int(fraction * len(texts)), maximum))

    # Groups are named by their first row. Few texts share their first words, so only those are compared in full.
    starts = np.fromiter((hash(first_words(text)) for text in texts), dtype=np.int64, count=len(texts))
    _, first, inverse, counts = np.unique(starts, return_index=True, return_inverse=True, return_counts=True)
    group = first[inverse]
    seen: dict[bytes, int] = {}
    for row in np.flatnonzero(counts[inverse] > 1).tolist():
        words = plain_words(texts[row]).encode("utf-8", "surrogatepass")
        group[row] = seen.setdefault(hashlib.blake2b(words, digest_size=16).digest(), row)
    groups, inverse, sizes = np.unique(group, return_inverse=True, return_counts=True)

    order = np.random.default_rng(seed).permutation(len(groups))
    drawn, total = np.zeros(len(groups), dtype=bool), 0
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if total + size <= target:
            drawn[number] = True
            total += size
            if total == target:
                break
    if total == 0 and len(groups) > 1:
        drawn[order[np.argmin(sizes[order])]] = True
    return np.flatnonzero(drawn[inverse])


def plain_words(text: str) -> str:
    """A text without case, punctuation and extra white space; of texts where this is equal, all are held out or none.

    Args:
        text: any.
    """
    return " ".join(_GAPS.split(text)).strip().casefold()


def first_words(text: str) -> str:
    """The beginning of `plain_words`, which is found faster.

    Args:
        text: any.
    """
    words = _GAPS.split(text, maxsplit=_FIRST_WORDS + 1)
    start = not words[0]
    return " ".join(words[start : start + _FIRST_WORDS]).strip().casefold()


# Fingerprint


def fingerprint(dataset: Dataset) -> str:
    """A SHA-256 over the labels' and training documents' ids and texts and the training truth.

    Args:
        dataset: what was read.
    """
    digest = hashlib.sha256()
    for strings in (dataset.labels.ids, dataset.labels.texts, dataset.train.ids, dataset.train.texts):
        digest.update(len(strings).to_bytes(8, "little"))
        for start in range(0, len(strings), 10_000):
            chunk = strings[start : start + 10_000]
            digest.update(np.fromiter(map(len, chunk), dtype="<i8", count=len(chunk)).tobytes())
            digest.update("".join(chunk).encode("utf-8", "surrogatepass"))
    targets = dataset.train.targets
    if not targets.has_sorted_indices:
        targets = targets.sorted_indices()
    digest.update(np.asarray(targets.shape, dtype="<i8").tobytes())
    for array, kind in ((targets.indptr, "<i8"), (targets.indices, "<i8"), (targets.data, "<f4")):
        digest.update(array.astype(kind).tobytes())
    return digest.hexdigest()


# Texts to predict


class TextSource:
    """Documents to predict, read a block at a time; every row is checked before the first is given.

    Standard input and ``.txt`` files (or files without a suffix) hold one text a line; CSV, TSV and JSONL have a text
    column and perhaps one of ids (``id``, ``uid``, ``document_id`` or ``_id``), and so has Parquet. Without the text
    column they may have ``title`` and ``content`` instead. Annif's TSV has no header, the text comes first. All but
    Parquet may be gzip. Documents without ids are numbered from 0. What can be read only once, standard input or a
    pipe, is kept in a temporary file; `close` removes it.

    Attributes:
        unnamed: documents without an id of their own, as far as they were read.

    Args:
        path: the file, or "-" for standard input.
        text_column: the column that holds the text.
        fields: for ``title`` and ``content``: "title", "title+content", or "auto" (the title alone when the names of
            file or folder contain "titles").
        encoding: the encoding; None takes UTF-8, with or without BOM, or else latin-1.

    Raises:
        DataError: no such file, or one that does not hold texts.
    """

    def __init__(
        self, path: str | Path, *, text_column: str = "text", fields: str = "auto", encoding: str | None = None
    ):
        self._files = TextFiles(encoding)
        self._kept: Path | None = None
        self._count: int | None = None
        self.unnamed = 0
        self._text_column = text_column
        piped = str(path) == "-"
        self._path = path = Path("standard input") if piped else Path(path)
        self._kind = kind = table.suffix(path)
        if not piped:
            if not path.exists():
                raise DataError("there is no such file", path)
            if path.is_dir():
                raise DataError("this is a folder; name a file of texts", path)
            if kind not in (*table.SUFFIXES, ".txt", ""):
                raise DataError(
                    f"texts come from .txt, {', '.join(table.SUFFIXES)}, text files plain or .gz, or '-'", path
                )
        self._fields = lf.choose_fields(fields, "/".join(path.resolve().parts[-2:]))
        once = piped or not path.is_file()
        self._short = kind == ".tsv" and not once and annif.sniff(path)
        if kind == ".txt" and not once and features.is_features(path):
            raise DataError("these are features without texts; name a file of texts, one a line", path)
        if once:
            descriptor, name = tempfile.mkstemp(prefix="labelspace-")
            self._kept = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as kept:
                    if piped:
                        shutil.copyfileobj(sys.stdin.buffer, kept)
                    else:
                        with path.open("rb") as pipe:
                            shutil.copyfileobj(pipe, kept)
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
        return self._count

    def read(self) -> tuple[list[str], list[str]]:
        """All ids and texts, in one pass."""
        pairs = self._whole(list)
        if not pairs:
            raise DataError("there are no texts", self._path)
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
            rows = self._named(ParquetRows(self._place).records())
        else:
            rows = self._files.again(self._path, self._rows, self._kept)
        while block := list(itertools.islice(rows, size)):
            yield [name for name, _ in block], [text for _, text in block]

    @property
    def _place(self) -> Path:
        return self._path if self._kept is None else self._kept

    def _numbered(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        for row, text in enumerate(texts):
            self.unnamed = row + 1
            yield str(row), text

    def _whole(self, parse: Callable[[Iterator[tuple[str, str]]], T]) -> T:
        if self._kind == ".parquet":
            return parse(self._named(ParquetRows(self._place).records()))
        return self._files.read(self._path, lambda stream: parse(self._rows(stream)), self._kept)

    def _rows(self, stream: TextIO) -> Iterator[tuple[str, str]]:
        """Id and text of every document of a text file."""
        if self._short:
            return self._numbered(text for _, _, text, _ in annif.short_texts(stream, self._path, {}))
        if self._kind in table.SUFFIXES:
            return self._named(table.records(stream, self._path))
        return self._numbered(plain_lines(stream))

    def _named(self, records: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
        self.unnamed = 0
        for row, (line, record) in enumerate(records):
            identifier = given_id(record, table.ID_COLUMNS, self._path, line)
            self.unnamed += identifier is None
            yield identifier or str(row), self._text(record, line)

    def _text(self, record: dict[str, Any], line: int) -> str:
        column, path = self._text_column, self._path
        if column in record:
            return text_value(record[column], column, path, line)
        if "title" in record or "content" in record:
            return lf.record_text(record, self._fields, path, line)
        raise DataError(f"there is no text column {column!r}, only {listed(record)}; set text_column", path, line)


def read_texts(
    path: str | Path, *, text_column: str = "text", fields: str = "auto", encoding: str | None = None
) -> tuple[list[str], list[str]]:
    """Read documents to predict, as (ids, texts), all at once; `TextSource` reads them in blocks.

    Args:
        path: the file, or "-" for standard input.
        text_column: the column that holds the text.
        fields: as for `TextSource`.
        encoding: the encoding; None takes UTF-8, with or without BOM, or else latin-1.

    Raises:
        DataError: no such file, no texts in it, or a row that cannot be read, with file and line.
    """
    with TextSource(path, text_column=text_column, fields=fields, encoding=encoding) as source:
        return source.read()


# What changes a model


def read_documents(path: str | Path, **options: Any) -> tuple[Corpus, Labels]:
    """Documents that shall vote, and the labels that they name.

    Args:
        path: as for `load`; of a folder with several parts the training documents.
        options: as for `load`.

    Raises:
        DataError: as from `load`; a document without a label, or some with and some without an id.
    """
    path = Path(path).expanduser()
    try:
        data = load(path, **options, valid_fraction=0)
    except table.NoLabelsError:
        raise DataError("no document has a label, so none could vote; give each of them a label", path) from None
    require_texts(data)
    corpus = data.train
    silent = np.flatnonzero(np.diff(corpus.targets.indptr) == 0)
    if len(silent):
        first = f"number {silent[0]} (from 0)" if corpus.unnamed else repr(corpus.ids[silent[0]])
        raise DataError(
            f"{len(silent)} of {len(corpus)} documents have no label and could vote for none, the first is {first}; "
            "leave them out, or give them labels",
            path,
        )
    _all_or_none(corpus.unnamed, len(corpus), "documents", path)
    return corpus, data.labels


def read_labels(path: str | Path, *, text_column: str = "text") -> tuple[list[str] | None, list[str]]:
    """Labels that shall be added or renamed: ids, or None where the file has none, and texts.

    Blanks around ids and plain lines do not count, as in the labels file of a data set.

    Args:
        path: one text a line, or a table with a text column (``label`` and ``name`` serve as well) and perhaps ids
            (``id``, ``uid``, ``uri``, ``document_id`` or ``_id``); "-" for lines of standard input.
        text_column: the column that holds the text.

    Raises:
        DataError: no such file, no labels in it, a row that cannot be read, or some with and some without an id.
    """
    kind = table.suffix(Path(path))
    if kind not in table.SUFFIXES or kind == ".tsv" and Path(path).is_file() and annif.sniff(Path(path)):
        lines = [text.strip() for text in read_texts(path)[1]]
        while lines and not lines[-1]:
            lines.pop()
        if not lines:
            raise DataError("there are no labels", _named_path(path))
        return None, lines

    def parse(records: Iterator[tuple[int, dict[str, Any]]]) -> tuple[list[str], list[str], int]:
        ids, texts, unnamed = [], [], 0
        for line, record in records:
            found = (given_id(record, (*table.ID_COLUMNS, "uri"), place, line) or "").strip()
            unnamed += not found
            ids.append(found)
            wanted = (text_column, *(("label", "name") if text_column == "text" else ()))
            column = next((name for name in wanted if name in record), None)
            if column is not None:
                texts.append(text_value(record[column], column, place, line))
            elif "title" in record or "content" in record:
                texts.append(lf.record_text(record, "title+content", place, line))
            else:
                message = f"there is no text column {text_column!r}, only {listed(record)}; set text_column"
                raise DataError(message, place, line)
        return ids, texts, unnamed

    place = _there(path)
    ids, texts, unnamed = table.read_records(TextFiles(), place, parse)
    if not texts:
        raise DataError("there are no labels", place)
    _all_or_none(unnamed, len(texts), "labels", place)
    return None if unnamed else ids, texts


def read_ids(path: str | Path) -> list[str]:
    """Ids of documents or labels that shall be removed.

    Args:
        path: one id a line, blanks around it included; a table with ids, such as JSONL, whose ids may hold line ends;
            or "-" for lines of standard input.

    Raises:
        DataError: no such file, no ids in it, or a row without one.
    """

    def parse(records: Iterator[tuple[int, dict[str, Any]]]) -> list[str]:
        ids = []
        for line, record in records:
            found = given_id(record, (*table.ID_COLUMNS, "uri"), place, line)
            if found is None:
                raise DataError(f"there is no id, only {listed(record)}; name the column of ids id", place, line)
            ids.append(found)
        return ids

    def lines(stream: TextIO) -> list[str]:
        return [line for line in plain_lines(stream) if line.strip()]

    files = TextFiles("utf-8")
    if str(path) == "-":
        place = _named_path(path)
        ids = files.read(place, lines, sys.stdin.buffer.read())
    elif table.suffix(place := _there(path)) in table.SUFFIXES:
        ids = table.read_records(files, place, parse)
    else:
        ids = files.read(place, lines)
    if not ids:
        raise DataError("there are no ids", place)
    return ids


def _there(path: str | Path) -> Path:
    """A file that exists."""
    place = Path(path).expanduser()
    if not str(path) or not place.exists():
        raise DataError("there is no such file", place if str(path) else "''")
    if place.is_dir():
        raise DataError("this is a folder; name a file", place)
    return place


def _named_path(path: str | Path) -> Path:
    return Path("standard input" if str(path) == "-" else path)


def _all_or_none(unnamed: int, count: int, kind: str, path: Path) -> None:
    if 0 < unnamed < count:
        raise DataError(f"{unnamed} of {count} {kind} have no id; give an id to all of them or to none", path)
