"""LF data sets of the Extreme Classification Repository: one JSON object a line, labels with text.

``trn.json``, ``tst.json`` and ``lbl.json``, plain or gzip, with ``uid``, ``title``, ``content``, ``target_ind``
(row numbers of ``lbl.json``) and ``target_rel``. There are as many labels as lines of ``lbl.json``. Validation
documents may come apart, in ``val.json``.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import scipy.sparse as sp

from ...errors import DataError, SettingsError
from ...types import Corpus, Labels
from .corpus import ReadSettings, Splits, TextParts, build_targets, check_unique, given_id
from .filters import find_pairs
from .text import TextFiles, json_lines, listed, text_value

FIELDS = ("title", "title+content")
LOOKED_FOR = "trn.json and lbl.json (and tst.json, val.json), plain or .gz"


def _file(folder: Path, stem: str) -> Path | None:
    for path in (folder / f"{stem}.json", folder / f"{stem}.json.gz"):
        if path.is_file():
            return path
    return None


def sniff(path: Path) -> bool:
    """Whether the folder holds LF files.

    Args:
        path: a folder or a file.
    """
    return _file(path, "trn") is not None and _file(path, "lbl") is not None


def choose_fields(asked: str, name: str) -> str:
    """The fields to read; sets with "titles" in their name use the title alone.

    Args:
        asked: "title", "title+content" or "auto".
        name: the data set's name.
    """
    if asked == "auto":
        return "title" if "titles" in name.lower() else "title+content"
    if asked not in FIELDS:
        raise SettingsError(f"fields must be one of auto, {', '.join(FIELDS)}, got {asked!r}")
    return asked


def record_text(record: Mapping[str, Any], fields: str, path: Path, line: int) -> str:
    """The text of one document or label, as written; a blank stands between title and content where both are there.

    Args:
        record: the JSON object.
        fields: "title" or "title+content".
        path: the file, for messages.
        line: the line, for messages.
    """
    if "title" not in record and "content" not in record:
        raise DataError(f"neither 'title' nor 'content' is there, only {listed(record)}", path, line)
    title = text_value(record.get("title"), "title", path, line)
    if fields == "title":
        return title
    content = text_value(record.get("content"), "content", path, line)
    return f"{title} {content}" if title and content else title or content


def read(folder: Path, name: str, settings: ReadSettings) -> Splits:
    """Read an LF folder.

    Args:
        folder: holds trn, lbl and perhaps tst and val.
        name: the data set's name, which chooses the fields when they are "auto".
        settings: fields and encoding.
    """
    train, labels = _file(folder, "trn"), _file(folder, "lbl")
    if train is None or labels is None:
        raise DataError(f"an LF data set needs {LOOKED_FOR}", folder)
    fields = choose_fields(settings.fields, name)
    label_fields = fields if settings.label_fields == "auto" else choose_fields(settings.label_fields, name)
    files = TextFiles(settings.encoding)

    space = files.read(labels, lambda stream: _read_labels(stream, labels, label_fields, settings.keep_parts))
    corpora = {
        split: _read_corpus(files, folder, path, split, fields, len(space), settings.keep_parts)
        for split, path in (("train", train), ("test", _file(folder, "tst")), ("valid", _file(folder, "val")))
        if path is not None
    }
    return Splits(
        labels=space,
        train=corpora["train"],
        test=corpora.get("test"),
        valid=corpora.get("valid"),
        options={"fields": fields, "label_fields": label_fields, "encoding": files.found},
    )


def _check_row(row: int, line: int, path: Path) -> None:
    if line != row + 1:
        raise DataError("an empty line stands between the rows, which would shift their numbers", path, row + 1)


def _read_labels(stream: TextIO, path: Path, fields: str, keep_parts: bool) -> Labels:
    ids: list[str] = []
    texts: list[str] = []
    parts = TextParts()
    for line, record in json_lines(stream, path):
        _check_row(len(ids), line, path)
        ids.append((given_id(record, ("uid",), path, line) or "").strip() or str(len(ids)))
        texts.append(record_text(record, fields, path, line))
        if keep_parts:
            parts.add(record, path, line)
    if not ids:
        raise DataError("the file has no labels", path)
    check_unique(ids, "label", path)
    return Labels(ids, texts, parts.found(len(ids)))


def _read_corpus(
    files: TextFiles, folder: Path, path: Path, split: str, fields: str, n_labels: int, keep_parts: bool
) -> Corpus:
    def parse(stream: TextIO) -> tuple[list[str], list[str], sp.csr_array, dict[str, list[str]] | None, int]:
        ids: list[str] = []
        texts: list[str] = []
        parts, unnamed = TextParts(), 0
        counts, columns, values = array("q"), array("q"), array("d")
        has_targets = False
        for line, record in json_lines(stream, path):
            _check_row(len(ids), line, path)
            identifier = given_id(record, ("uid",), path, line)
            unnamed += identifier is None
            ids.append(identifier or str(len(ids)))
            texts.append(record_text(record, fields, path, line))
            if keep_parts:
                parts.add(record, path, line)
            has_targets = has_targets or "target_ind" in record
            numbers, relevances = record.get("target_ind"), record.get("target_rel")
            if numbers is None:
                numbers = []
            if relevances is None and isinstance(numbers, list):
                relevances = [1.0] * len(numbers)
            if not isinstance(numbers, list) or not isinstance(relevances, list):
                raise DataError("'target_ind' and 'target_rel' must be lists of numbers", path, line)
            if len(numbers) != len(relevances):
                message = f"'target_ind' has {len(numbers)} entries but 'target_rel' has {len(relevances)}"
                raise DataError(message, path, line)
            try:
                if not {int}.issuperset(map(type, numbers)) or not {int, float}.issuperset(map(type, relevances)):
                    raise TypeError("true, false, or no number")
                columns.extend(numbers)
                values.extend(relevances)
            except (TypeError, OverflowError):
                message = f"'target_ind' must hold label numbers from 0 to {n_labels - 1}, 'target_rel' numbers"
                raise DataError(message, path, line) from None
            counts.append(len(numbers))
        if not ids:
            raise DataError("the file has no documents", path)
        if not has_targets:
            raise DataError("no line has 'target_ind', the label numbers of a document", path)
        check_unique(ids, "document", path)
        return ids, texts, build_targets(counts, columns, values, n_labels, path), parts.found(len(ids)), unnamed

    ids, texts, targets, parts, unnamed = files.read(path, parse)
    pairs, source = (None, None) if split == "valid" else find_pairs(folder, split, (len(texts), n_labels))
    return Corpus(
        ids, texts, targets, filter_pairs=pairs, source=path, filter_source=source, parts=parts, unnamed=unnamed
    )
