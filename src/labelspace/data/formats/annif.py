"""Corpora as Annif has them, with a vocabulary apart: short texts in one file, or a folder of documents.

- ``.tsv``: ``text<TAB><uri> <uri>``, no header.
- ``.csv``: a header with ``text``, ``subject_uris`` (blanks between), perhaps ``document_id``; the rest is metadata.
- ``.jsonl``: ``text``, ``subjects`` (objects with ``uri`` or ``label``), perhaps ``document_id`` and ``metadata``.
- a folder: ``x.txt`` with ``x.tsv`` (``<uri><TAB>label`` lines) or ``x.key`` (a label a line), or ``x.json`` with what
  a line of ``.jsonl`` holds.

Vocabularies are those of `vocabulary`. Metadata is not read, which is said.
"""

from __future__ import annotations

import json
import logging
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ...errors import DataError
from ...types import Corpus
from .cells import split_labels
from .columns import given_id
from .corpus import ReadSettings, Records, Splits, build_targets
from .rows import records, suffix
from .text import TextFiles, find_files, first_lines, json_lines, listed, plain_lines, shown_files, text_value
from .vocabulary import ConceptLookup, find_vocabulary, read_vocabulary

logger = logging.getLogger("labelspace.data")

STEMS = {"train": ("train",), "test": ("test",), "valid": ("valid", "validate", "validation", "dev", "val")}
SUFFIXES = (".tsv", ".csv", ".jsonl")
LOOKED_FOR = "train.tsv, .csv, .jsonl or a folder train as Annif has them (and test, valid), with a vocabulary"
KEYS = {"document_id", "text", "metadata", "subjects"}

_URIS = re.compile(r"\s*(?:<[^<>\s]+>|[A-Za-z][\w+.-]*://[^\s<>]+)(?:\s+(?:<[^<>\s]+>|[A-Za-z][\w+.-]*:[^\s<>]+))*\s*")

Document = tuple[int, str | None, str, list[str]]
"""Line, id, text, and what names the subjects."""


# Recognition


def sniff(path: Path) -> bool:
    """Whether this is a file or a folder of documents as Annif has them, or a folder with such training documents."""
    if path.is_file():
        return suffix(path) in SUFFIXES and _is_short_text(path)
    try:
        train = _find(path, STEMS["train"]) or path
    except DataError:
        return False
    return _is_documents(train) if train.is_dir() else _is_short_text(train)


def _find(folder: Path, stems: Iterable[str]) -> Path | None:
    found = []
    for stem in stems:
        found += find_files(folder, [f"{stem}{kind}" for kind in SUFFIXES])
        found += [folder / stem] if (folder / stem).is_dir() else []
    if len(found) > 1:
        raise DataError(f"{found[0].name} and {found[1].name} hold the same split; keep one of them", folder)
    return found[0] if found else None


def _head(path: Path) -> list[str]:
    """The first whole lines, as far as they can be read."""
    lines, cut = first_lines(path)
    return lines[:-1] if cut else lines


def _is_short_text(path: Path) -> bool:
    lines = [line.rstrip("\r") for line in _head(path) if line.strip()]
    match suffix(path):
        case ".tsv":
            first = [line.split("\t", 1)[1] for line in lines[:1] if "\t" in line]
            # A first line without subjects is no header either, since a column has a name.
            later = lines[1:] if first and not first[0].strip() else []
            return any(_URIS.fullmatch(line.partition("\t")[2]) for line in [*lines[:1], *later])
        case ".csv":
            header = {name.strip(' "') for line in lines[:1] for name in re.split("[,;\t]", line)}
            return {"text", "subject_uris"} <= header
        case _:
            return any(map(_has_subjects, lines))


def _has_subjects(line: str) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    subjects = record.get("subjects") if isinstance(record, dict) else None
    return isinstance(subjects, list) and any(isinstance(subject, dict) for subject in subjects)


def _is_documents(folder: Path) -> bool:
    files = _documents(folder)
    if any(keys is not None for _, keys in files.values()):
        return True
    return any(suffix(path) == ".json" and _has_subjects("\n".join(_head(path))) for path, _ in files.values())


# Reading


def read(path: Path, name: str, settings: ReadSettings) -> Splits:
    """Read documents; their vocabulary, if none is stated, is found beside them."""
    files = TextFiles(settings.encoding)
    paths: dict[str, Path | None] = {"train": path}
    if path.is_dir() and _find(path, STEMS["train"]) is not None:
        paths = {split: _find(path, stems) for split, stems in STEMS.items()}
    elif path.is_dir() and not _documents(path):
        raise DataError(f"a corpus for Annif needs {LOOKED_FOR}", path)
    source = settings.label_vocabulary or find_vocabulary(path if path.is_dir() else path.parent)
    if source is None:
        raise DataError("the vocabulary of these documents is missing; add --label-vocabulary FILE", path)
    vocabulary = read_vocabulary(source, settings, files)
    names = vocabulary.concepts()

    unread: dict[str, None] = {}
    corpora = {
        split: (_read_folder if part.is_dir() else _read_file)(files, part, names, unread)
        for split, part in paths.items()
        if part is not None
    }
    if unread:
        logger.warning("%s: metadata is not read: %s", name, listed(unread))
    return Splits(names.labels, corpora, {"encoding": files.found}, vocabulary, names)


class _Documents(Records):
    """Documents as they are read, with their subjects."""

    def __init__(self, path: Path, names: ConceptLookup):
        super().__init__("document", path)
        self._names = names
        self._counts, self._numbers = array("q"), array("q")

    def add_subjects(self, subjects: Sequence[tuple[int, str]], path: Path) -> None:
        """Add those of the document added last, as (line, name) in a file."""
        self._numbers.extend(self._names.number(name, path, line) for line, name in subjects)
        self._counts.append(len(subjects))

    def checked(self) -> Corpus:
        if not self.ids:
            raise DataError("there are no documents", self.path)
        self.check()
        return self.corpus(build_targets(self._counts, self._numbers, None, self._names.width, self.path))


def _read_file(files: TextFiles, path: Path, names: ConceptLookup, unread: dict[str, None]) -> Corpus:
    def parse(stream: TextIO) -> Corpus:
        documents = _Documents(path, names)
        rows = {".tsv": short_texts, ".csv": _csv, ".jsonl": _jsonl}[suffix(path)]
        for line, identifier, text, subjects in rows(stream, path, unread):
            documents.add(identifier, text, line)
            documents.add_subjects([(line, subject) for subject in subjects], path)
        return documents.checked()

    if suffix(path) not in SUFFIXES:
        raise DataError(f"short texts come from {', '.join(SUFFIXES)}, plain or .gz", path)
    return files.read(path, parse)


def short_texts(stream: TextIO, path: Path, unread: dict[str, None]) -> Iterator[Document]:
    """The documents of a TSV file. There is no metadata, whose names ``unread`` gathers from other kinds."""
    for line, row in enumerate(plain_lines(stream), start=1):
        text, tab, uris = row.partition("\t")
        if not tab and not text.strip():
            continue
        if not tab:
            raise DataError(f"expected a text, a tab and <uri> <uri>, but there is no tab in {row[:60]!r}", path, line)
        yield line, None, text, split_labels(uris, " ")


def _csv(stream: TextIO, path: Path, unread: dict[str, None]) -> Iterator[Document]:
    for line, record in records(stream, path):
        for column in ("text", "subject_uris"):
            if column not in record:
                raise DataError(f"there is no column {column!r}, only {listed(record)}", path, line)
        unread.update(dict.fromkeys(name for name in record if name not in ("text", "subject_uris", "document_id")))
        subjects = split_labels(record["subject_uris"], " ")
        yield line, given_id(record, ("document_id",), path, line), record["text"], subjects


def _jsonl(stream: TextIO, path: Path, unread: dict[str, None]) -> Iterator[Document]:
    for line, record in json_lines(stream, path):
        yield line, *_record(record, path, line, unread)


def _record(
    record: dict[str, Any], path: Path, line: int | None, unread: dict[str, None]
) -> tuple[str | None, str, list[str]]:
    """One document of JSON, checked as Annif does."""
    at = line or 1
    unknown = sorted(set(record) - KEYS)
    if unknown:
        raise DataError(f"a document may have {listed(sorted(KEYS))}, but has {listed(unknown)}", path, line)
    if "text" not in record and "metadata" not in record:
        raise DataError(f"neither 'text' nor 'metadata' is there, only {listed(record)}", path, line)
    metadata, subjects = record.get("metadata") or {}, record.get("subjects") or []
    if not isinstance(metadata, dict):
        raise DataError("'metadata' must be an object of names and texts", path, line)
    unread.update(dict.fromkeys(map(str, metadata)))
    if not isinstance(subjects, list) or not all(isinstance(subject, dict) for subject in subjects):
        raise DataError("'subjects' must be a list of objects with 'uri' or 'label'", path, line)
    names = []
    for subject in subjects:
        if not subject or not set(subject) <= {"uri", "label"}:
            raise DataError(f"a subject must have 'uri' or 'label', but has {listed(subject)}", path, line)
        key = "uri" if "uri" in subject else "label"
        names.append(text_value(subject[key], key, path, at).strip())
    return given_id(record, ("document_id",), path, at), text_value(record.get("text"), "text", path, at), names


def _documents(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """File of text and file of subjects by the documents' names, sorted."""
    documents: dict[str, tuple[Path, Path | None]] = {}
    files = {path.name: path for path in shown_files(folder, (".txt", ".json", ".tsv", ".key"))}
    for name, path in files.items():
        kind = suffix(path)
        if kind not in (".txt", ".json"):
            continue
        stem = name[: name.lower().rindex(kind)]
        if stem in documents:
            raise DataError(f"{documents[stem][0].name} and {name} are the same document; keep one of them", folder)
        names = [f"{stem}{ending}{gz}" for ending in (".tsv", ".key") for gz in ("", ".gz")] if kind == ".txt" else []
        documents[stem] = path, next((files[name] for name in names if name in files), None)
    return documents


def _read_folder(files: TextFiles, folder: Path, names: ConceptLookup, unread: dict[str, None]) -> Corpus:
    documents = _Documents(folder, names)
    for row, (stem, (path, subject_file)) in enumerate(_documents(folder).items()):
        content = files.read(path, lambda stream: stream.read())
        if suffix(path) == ".json":
            identifier, text, subjects = _record(_json_object(content, path), path, None, unread)
            documents.add(identifier or stem, text, row + 1)
            documents.add_subjects([(1, subject) for subject in subjects], path)
            continue
        documents.add(stem, content, row + 1)
        lines = enumerate([] if subject_file is None else files.lines(subject_file), start=1)
        cells = ((line, split_labels(text, "\t")) for line, text in lines)
        documents.add_subjects([(line, cell[0]) for line, cell in cells if cell], subject_file or path)
    return documents.checked()


def _json_object(content: str, path: Path) -> dict[str, Any]:
    try:
        json.loads(content)
        [(_, record)] = json_lines([content.replace("\n", " ").replace("\r", " ")], path)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the file is not JSON ({str(error).partition(chr(10))[0]})", path) from None
    return record
