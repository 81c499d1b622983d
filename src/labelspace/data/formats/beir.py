"""Retrieval data in the layout of BEIR, or of MS MARCO: the corpus holds the labels, the queries are the documents.

``corpus.jsonl`` with ``_id``, ``title``, ``text``; ``queries.jsonl`` with the same; and for each split a file
``qrels/train.tsv``, ``qrels/dev.tsv``, ``qrels/test.tsv`` with the columns ``query-id``, ``corpus-id``, ``score``, in
this order unless a header names them in another. A score above 0 is a label, its relevance the score in parts of the
highest one; a score of 0 or below is none. A split has the queries that its file names, in the order of
``queries.jsonl``.

MTEB has the judgements as ``qrels/test.jsonl``, with the same names as keys.

MS MARCO has ``collection.tsv`` and ``queries.train.tsv``, an id, a tab and a text a line, and ``qrels.train.tsv`` with
the four columns of TREC; its validation part is ``dev`` or ``dev.small``.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from ...errors import DataError, SettingsError
from ...types import Corpus, Labels
from .columns import FIELDS, given_id, record_text, triples
from .corpus import ReadSettings, Records, Splits, build_targets, check_unique
from .labels import LabelLookup
from .rows import suffix
from .text import TextFiles, find_files, first_lines, json_lines, listed, plain_lines, text_value

logger = logging.getLogger("labelspace.data")

SPLITS = {"train": ("train",), "valid": ("dev", "dev.small", "valid", "validation"), "test": ("test",)}
PARTS = {"title": "title", "content": "text"}
"""Names of the parts of a label's text here and in the corpus."""
LOOKED_FOR = (
    "corpus.jsonl, queries.jsonl and qrels/train.tsv (and dev, test), or collection.tsv, queries.train.tsv and "
    "qrels.train.tsv, plain or .gz"
)
LAYOUTS = {3: (0, 1, 2), 4: (0, 2, 3)}  # query, label, score; or as TREC has them: query, 0, label, score


def _file(folder: Path, *names: str) -> Path | None:
    found = find_files(folder, names)
    if len(found) > 1:
        raise DataError(f"{found[0].name} and {found[1].name} hold the same; keep one of them", folder)
    return found[0] if found else None


def sniff(path: Path) -> bool:
    """Whether the folder holds a corpus and queries."""
    if _file(path, "corpus.jsonl") is not None:
        return _file(path, "queries.jsonl") is not None
    return _file(path, "collection.tsv") is not None and bool(_judgements(path))


def _judgements(folder: Path) -> dict[str, Path]:
    """The judgements of each split that has some."""
    names = {
        split: [name for stem in stems for name in (f"qrels/{stem}.tsv", f"qrels/{stem}.jsonl", f"qrels.{stem}.tsv")]
        for split, stems in SPLITS.items()
    }
    return {split: path for split in names if (path := _file(folder, *names[split])) is not None}


def read(folder: Path, name: str, settings: ReadSettings) -> Splits:
    """Read a folder of corpus, queries and judgements."""
    files = TextFiles(settings.encoding)
    corpus, queries, paths = _file(folder, "corpus.jsonl"), _file(folder, "queries.jsonl"), _judgements(folder)
    if corpus is None:
        corpus = _file(folder, "collection.tsv")
    asked = {split: file for split, path in paths.items() if (file := queries or _queries_of(path, folder))}
    if corpus is None or not paths or len(asked) < len(paths):
        raise DataError(f"BEIR data needs {LOOKED_FOR}", folder)
    fields = "title+content" if settings.label_fields == "auto" else settings.label_fields
    if fields not in FIELDS:
        raise SettingsError(f"label_fields must be one of auto, {', '.join(FIELDS)}, got {settings.label_fields!r}")

    unread: dict[str, None] = {}
    labels = files.read(corpus, lambda stream: _read_labels(stream, corpus, fields, settings.keep_parts, unread))
    documents = Records("query", corpus)
    row_of: dict[Path, dict[str, int]] = {}
    for path in dict.fromkeys(asked.values()):
        part = files.read(path, partial(_read_queries, path=path, unread=unread))
        row_of[path] = {identifier: row for row, identifier in enumerate(part.ids, start=len(documents.ids))}
        documents.extend(part)
    if unread:
        logger.warning("%s: metadata is not read: %s", name, listed(unread))
    names = LabelLookup(Labels(labels.ids, labels.ids), labels.lines, corpus)
    judged = {
        split: files.read(
            path, partial(_read_qrels, path=path, row_of=row_of[asked[split]], queries=asked[split], names=names)
        )
        for split, path in paths.items()
    }
    highest = max(float(scores.max(initial=0)) for _, _, scores in judged.values())
    if any(((scores > 0) & (scores < highest)).any() for _, _, scores in judged.values()):
        logger.info("%s: judgements are graded; the relevance of a label is its score divided by %g", name, highest)

    n_labels = names.width
    nothing = Corpus([], [], build_targets([], [], None, n_labels, folder))
    corpora = {"train": nothing}
    seen = np.zeros(len(documents.ids), dtype=bool)
    for split, (query_rows, label_numbers, scores) in judged.items():
        rows = np.unique(query_rows)
        seen[rows] = True
        order = np.argsort(query_rows, kind="stable")
        order = order[scores[order] > 0]
        counts = np.bincount(np.searchsorted(rows, query_rows[order]), minlength=len(rows))
        # A relevance that float32 makes 0 would be refused.
        values = np.maximum((scores[order] / (highest or 1.0)).astype(np.float32), np.finfo(np.float32).tiny)
        corpora[split] = Corpus(
            ids=[documents.ids[row] for row in rows],
            texts=[documents.texts[row] for row in rows],
            targets=build_targets(counts, label_numbers[order], values, n_labels, paths[split]),
            source=paths[split],
        )
    if not seen.all():
        logger.info("%s: %d of %d queries are in no qrels file and left out", name, (~seen).sum(), len(seen))
    if corpora["train"] is nothing:
        logger.warning("%s: there is no qrels/train.tsv, so this data can be measured on, but not trained on", name)
    space = Labels(labels.ids, labels.texts, labels.parts)
    options: dict[str, str | int | None] = {
        "label_fields": fields,
        "encoding": files.found,
        "highest_judgement": f"{highest:g}",
    }
    return Splits(space, corpora, options, lookup=names)


def _queries_of(judgements: Path, folder: Path) -> Path | None:
    """The file with the queries that a file of judgements is about."""
    stem = judgements.name.removesuffix(".gz").removesuffix(".tsv").removeprefix("qrels.")
    return _file(folder, f"queries.{stem}.tsv") or _file(folder, "queries.tsv")


def are_queries(path: Path) -> bool:
    """Whether a file, by its name, holds the queries of a folder, whose text begins with their title."""
    return path.name.removesuffix(".gz") == "queries.jsonl"


def sniff_texts(path: Path) -> bool:
    """Whether each line of a file is a number, a tab and a text, so that the first is no header."""
    lines, cut = first_lines(path)
    lines = [line for line in (lines[:-1] if cut else lines) if line.strip()]
    return all(tab and name.isascii() and name.isdecimal() for name, tab, _ in (line.partition("\t") for line in lines))


def texts_with_ids(stream: TextIO, path: Path, kind: str) -> Iterator[tuple[int, str, str]]:
    """Line number from 1, id and text of each line of a file of MS MARCO; empty lines are left out."""
    for line, row in enumerate(plain_lines(stream), start=1):
        identifier, tab, text = row.partition("\t")
        if tab and identifier.strip():
            yield line, identifier.strip(), text
        elif row.strip():
            raise DataError(f"expected the id of a {kind}, a tab and its text, got {row[:60]!r}", path, line)


def _identifier(record: Mapping[str, object], path: Path, line: int) -> str:
    identifier = (given_id(record, ("_id",), path, line) or "").strip()
    if not identifier:
        raise DataError(f"there is no '_id', only {listed(record)}", path, line)
    return identifier


def _others(record: Mapping[str, object]) -> dict[str, None]:
    """Keys with something in them that is not read."""
    return dict.fromkeys(key for key, value in record.items() if key not in ("_id", "title", "text") and value)


def _read_labels(stream: TextIO, path: Path, fields: str, keep_parts: bool, unread: dict[str, None]) -> Records:
    labels = Records("label", path, keep_parts)
    plain = suffix(path) == ".tsv"
    for line, identifier, text in texts_with_ids(stream, path, "label") if plain else ():
        labels.add(identifier, text, line)
    for line, record in () if plain else json_lines(stream, path):
        parts = {name: text_value(record.get(key), key, path, line) for name, key in PARTS.items()}
        if "title" not in record and "text" not in record:
            raise DataError(f"neither 'title' nor 'text' is there, only {listed(record)}", path, line)
        unread.update(_others(record))
        labels.add(_identifier(record, path, line), record_text(parts, fields, path, line), line, parts)
    labels.check()
    return labels


def _read_queries(stream: TextIO, path: Path, unread: dict[str, None]) -> Records:
    queries = Records("query", path)
    plain = suffix(path) == ".tsv"
    for line, identifier, text in texts_with_ids(stream, path, "query") if plain else ():
        queries.add(identifier, text, line)
    for line, record in () if plain else json_lines(stream, path):
        unread.update(_others(record))
        queries.add(_identifier(record, path, line), query_text(record, path, line), line)
    check_unique(queries.ids, "query", path, queries.lines)
    return queries


def _cells(row: str) -> list[str]:
    return row.split("\t")


def _judged(stream: TextIO, path: Path) -> Iterator[tuple[int, str, str, float]]:
    """Line number from 1, query, label and score of each line of JSON, as MTEB has them."""
    for line, record in json_lines(stream, path):
        query, label = (given_id(record, (key,), path, line) for key in ("query-id", "corpus-id"))
        score = record.get("score")
        if query is None or label is None or isinstance(score, bool) or not isinstance(score, int | float):
            raise DataError(f"expected 'query-id', 'corpus-id' and a number 'score', got {listed(record)}", path, line)
        yield line, query, label, score


def query_text(record: Mapping[str, object], path: Path, line: int) -> str:
    """Title and text of a query, as of a label; path and line are for messages."""
    if "text" not in record:
        raise DataError(f"there is no 'text', only {listed(record)}", path, line)
    parts = (text_value(record.get(key), key, path, line) for key in PARTS.values())
    return " ".join(part for part in parts if part)


def _read_qrels(
    stream: TextIO, path: Path, row_of: Mapping[str, int], queries: Path, names: LabelLookup
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Row of the query, number of the label and score of each line."""
    rows, labels, scores = array("q"), array("q"), array("d")
    wanted = "query-id, corpus-id and score with tabs between"
    judged = _judged if suffix(path) == ".jsonl" else partial(triples, split=_cells, layouts=LAYOUTS, wanted=wanted)
    for line, *cells, value in judged(stream, path=path):
        query, label = map(str.strip, cells)
        if query not in row_of:
            raise DataError(f"the query {query[:80]!r} is not in {queries}", path, line)
        rows.append(row_of[query])
        labels.append(names.number(label, path, line))
        scores.append(value)
    if not rows:
        raise DataError("the file has no judgements", path)
    return np.asarray(rows), np.asarray(labels), np.asarray(scores)
