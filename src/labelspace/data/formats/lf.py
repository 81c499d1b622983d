"""LF data sets of the Extreme Classification Repository: one JSON object a line, labels with text.

``trn.json``, ``tst.json`` and ``lbl.json``, plain or gzip, with ``uid``, ``title``, ``content``, ``target_ind``
(row numbers of ``lbl.json``) and ``target_rel``. There are as many labels as lines of ``lbl.json``. Validation
documents may come apart, in ``val.json``. LF-Wikipedia-500K names its raw texts ``trn.raw.json`` and ``tst.raw.json``,
and has ``Yf.txt`` for ``lbl.json``: a label a line, whose text is what stands after the last ``->``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ...errors import DataError
from ...types import Corpus, Labels
from .columns import choose_fields, given_id, record_text
from .corpus import ReadSettings, Records, Splits, build_targets
from .text import TextFiles, find_file, json_lines, plain_lines
from .unknown import within

LOOKED_FOR = "trn.json and lbl.json (and tst.json, val.json), or trn.raw.json and Yf.txt, plain or .gz"
NAMED = "Yf.txt"


def _file(folder: Path, stem: str) -> Path | None:
    names = [f"{stem}.json", NAMED if stem == "lbl" else f"{stem}.raw.json"]
    return find_file(folder, names, places=[""])


def sniff(path: Path) -> bool:
    """Whether the folder holds LF files."""
    return _file(path, "trn") is not None and _file(path, "lbl") is not None


def read(folder: Path, name: str, settings: ReadSettings) -> Splits:
    """Read an LF folder; its name chooses the fields when they are "auto"."""
    train, labels = _file(folder, "trn"), _file(folder, "lbl")
    if train is None or labels is None:
        raise DataError(f"an LF data set needs {LOOKED_FOR}", folder)
    fields = choose_fields(settings.fields, name)
    label_fields = fields if settings.label_fields == "auto" else choose_fields(settings.label_fields, name)
    files = TextFiles(settings.encoding)

    space = files.read(labels, lambda stream: _read_labels(stream, labels, label_fields, settings.keep_parts))
    parse = partial(_read_corpus, fields=fields, n_labels=len(space), settings=settings)
    paths = {"train": train, "test": _file(folder, "tst"), "valid": _file(folder, "val")}
    corpora = {split: files.read(path, partial(parse, path=path)) for split, path in paths.items() if path is not None}
    return Splits(space, corpora, {"fields": fields, "label_fields": label_fields, "encoding": files.found})


def _records(stream: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a file, whose numbers are the numbers of documents or labels."""
    for row, (line, record) in enumerate(json_lines(stream, path)):
        if line != row + 1:
            raise DataError("an empty line stands between the rows, which would shift their numbers", path, row + 1)
        yield line, record


def _read_labels(stream: TextIO, path: Path, fields: str, keep_parts: bool) -> Labels:
    if path.name.startswith(NAMED):
        texts = [line.rpartition("->")[2].strip() for line in plain_lines(stream)]
        if not texts:
            raise DataError("the file has no labels", path)
        return Labels([str(row) for row in range(len(texts))], texts)
    labels = Records("label", path, keep_parts)
    for line, record in _records(stream, path):
        identifier = (given_id(record, ("uid",), path, line) or "").strip()
        labels.add(identifier or None, record_text(record, fields, path, line), line, record)
    labels.check()
    return Labels(labels.ids, labels.texts, labels.parts)


def _read_corpus(stream: TextIO, path: Path, fields: str, n_labels: int, settings: ReadSettings) -> Corpus:
    documents = Records("document", path, settings.keep_parts)
    counts, columns, values = array("q"), array("q"), array("d")
    has_targets = False
    for line, record in _records(stream, path):
        identifier = given_id(record, ("uid",), path, line)
        documents.add(identifier, record_text(record, fields, path, line), line, record)
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
    if documents.ids and not has_targets:
        raise DataError("no line has 'target_ind', the label numbers of a document", path)
    documents.check()
    entries = within(counts, columns, values, n_labels, settings.unknown_labels, path)
    return documents.corpus(build_targets(*entries, n_labels, path))
