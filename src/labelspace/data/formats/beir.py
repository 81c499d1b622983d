"""Retrieval data in the layout of BEIR: the corpus holds the labels, the queries are the documents.

``corpus.jsonl`` with ``_id``, ``title``, ``text``; ``queries.jsonl`` with ``_id``, ``text``; and for each split a file
``qrels/train.tsv``, ``qrels/dev.tsv``, ``qrels/test.tsv`` with the columns ``query-id``, ``corpus-id``, ``score``, in
this order unless a header names them in another. A score above 0 is a label, its relevance the score in parts of the
highest one; a score of 0 or below is none. A split has the queries that its file names, in the order of
``queries.jsonl``.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from ...errors import DataError, SettingsError
from ...types import Corpus, Labels
from .columns import triples
from .corpus import ReadSettings, Splits, build_targets, check_unique, given_id
from .filters import find_pairs
from .labels import LabelNames
from .lf import FIELDS, record_text
from .text import TextFiles, json_lines, listed, text_value

logger = logging.getLogger("labelspace.data")

SPLITS = {"train": ("train",), "valid": ("dev", "valid", "validation"), "test": ("test",)}
LOOKED_FOR = "corpus.jsonl, queries.jsonl and qrels/train.tsv (and dev, test), plain or .gz"


def _file(folder: Path, *names: str) -> Path | None:
    found = [path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0].name} and {found[1].name} hold the same; keep one of them", folder)
    return found[0] if found else None


def sniff(path: Path) -> bool:
    """Whether the folder holds a corpus and queries.

    Args:
        path: a folder or a file.
    """
    return _file(path, "corpus.jsonl") is not None and _file(path, "queries.jsonl") is not None


def read(folder: Path, name: str, settings: ReadSettings) -> Splits:
    """Read a folder of corpus, queries and judgements.

    Args:
        folder: holds the two files and the folder ``qrels``.
        name: the data set's name, for messages.
        settings: label fields, encoding, and whether to keep the parts of labels.
    """
    files = TextFiles(settings.encoding)
    corpus, queries = _file(folder, "corpus.jsonl"), _file(folder, "queries.jsonl")
    found = {split: _file(folder / "qrels", *(f"{stem}.tsv" for stem in stems)) for split, stems in SPLITS.items()}
    paths = {split: path for split, path in found.items() if path is not None}
    if corpus is None or queries is None or not paths:
        raise DataError(f"BEIR data needs {LOOKED_FOR}", folder)
    fields = "title+content" if settings.label_fields == "auto" else settings.label_fields
    if fields not in FIELDS:
        raise SettingsError(f"label_fields must be one of auto, {', '.join(FIELDS)}, got {settings.label_fields!r}")

    unread: dict[str, None] = {}
    labels, names = files.read(corpus, lambda stream: _read_labels(stream, corpus, fields, settings.keep_parts, unread))
    ids, texts = files.read(queries, lambda stream: _read_queries(stream, queries, unread))
    if unread:
        logger.warning("%s: metadata is not read: %s", name, listed(unread))
    numbers = {identifier: row for row, identifier in enumerate(ids)}
    judged = {
        split: files.read(path, partial(_read_qrels, path=path, numbers=numbers, queries=queries, names=names))
        for split, path in paths.items()
    }
    highest = max(float(scores.max(initial=0)) for _, _, scores in judged.values())
    if any(((scores > 0) & (scores < highest)).any() for _, _, scores in judged.values()):
        logger.info("%s: judgements are graded; the relevance of a label is its score divided by %g", name, highest)

    corpora: dict[str, Corpus] = {}
    seen = np.zeros(len(ids), dtype=bool)
    for split, (asked, wanted, scores) in judged.items():
        rows = np.unique(asked)
        seen[rows] = True
        order = np.argsort(asked, kind="stable")
        order = order[scores[order] > 0]
        counts = np.bincount(np.searchsorted(rows, asked[order]), minlength=len(rows))
        values = np.maximum((scores[order] / (highest or 1.0)).astype(np.float32), np.finfo(np.float32).tiny)
        pairs, source = (None, None) if split == "valid" else find_pairs(folder, split, (len(rows), len(labels)))
        corpora[split] = Corpus(
            ids=[ids[row] for row in rows],
            texts=[texts[row] for row in rows],
            targets=build_targets(counts, wanted[order], values, len(labels), paths[split]),
            filter_pairs=pairs,
            source=paths[split],
            filter_source=source,
        )
    if not seen.all():
        logger.info("%s: %d of %d queries are in no qrels file and left out", name, (~seen).sum(), len(seen))
    if "train" not in corpora:
        logger.warning("%s: there is no qrels/train.tsv, so this data can be measured on, but not trained on", name)
    nothing = Corpus([], [], build_targets([], [], None, len(labels), folder))
    return Splits(
        labels=labels,
        train=corpora.get("train", nothing),
        test=corpora.get("test"),
        valid=corpora.get("valid"),
        options={"label_fields": fields, "encoding": files.found},
    )


def _identifier(record: Mapping[str, object], path: Path, line: int) -> str:
    identifier = (given_id(record, ("_id",), path, line) or "").strip()
    if not identifier:
        raise DataError(f"there is no '_id', only {listed(record)}", path, line)
    return identifier


def _others(record: Mapping[str, object]) -> dict[str, None]:
    """Keys with something in them that is not read."""
    return dict.fromkeys(key for key, value in record.items() if key not in ("_id", "title", "text") and value)


def _read_labels(
    stream: TextIO, path: Path, fields: str, keep_parts: bool, unread: dict[str, None]
) -> tuple[Labels, LabelNames]:
    ids: list[str] = []
    texts: list[str] = []
    lines = array("q")
    parts: dict[str, list[str]] = {"title": [], "content": []}
    for line, record in json_lines(stream, path):
        title, content = (text_value(record.get(column), column, path, line) for column in ("title", "text"))
        if "title" not in record and "text" not in record:
            raise DataError(f"neither 'title' nor 'text' is there, only {listed(record)}", path, line)
        unread.update(_others(record))
        ids.append(_identifier(record, path, line))
        texts.append(record_text({"title": title, "content": content}, fields, path, line))
        lines.append(line)
        if keep_parts:
            parts["title"].append(title)
            parts["content"].append(content)
    if not ids:
        raise DataError("the file has no labels", path)
    check_unique(ids, "label", path, lines)
    return Labels(ids, texts, parts if keep_parts else None), LabelNames(Labels(ids, ids), lines, path)


def _read_queries(stream: TextIO, path: Path, unread: dict[str, None]) -> tuple[list[str], list[str]]:
    ids: list[str] = []
    texts: list[str] = []
    lines = array("q")
    for line, record in json_lines(stream, path):
        if "text" not in record:
            raise DataError(f"there is no 'text', only {listed(record)}", path, line)
        unread.update(_others(record))
        ids.append(_identifier(record, path, line))
        texts.append(text_value(record["text"], "text", path, line))
        lines.append(line)
    check_unique(ids, "query", path, lines)
    return ids, texts


def _read_qrels(
    stream: TextIO, path: Path, numbers: Mapping[str, int], queries: Path, names: LabelNames
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Row of the query, number of the label and score of each line."""
    asked, named, scores = array("q"), array("q"), array("d")
    wanted = "query-id, corpus-id and score with tabs between"
    for line, *cells, value in triples(stream, path, lambda row: row.split("\t"), {3: (0, 1, 2)}, wanted):
        query, label = map(str.strip, cells)
        if query not in numbers:
            raise DataError(f"the query {query[:80]!r} is not in {queries}", path, line)
        asked.append(numbers[query])
        named.append(names.number(label, path, line))
        scores.append(value)
    if not asked:
        raise DataError("the file has no judgements", path)
    return np.asarray(asked), np.asarray(named), np.asarray(scores)
