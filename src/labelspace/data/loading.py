"""Data sets from files: texts, truth and label space."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..types import Dataset, Labels
from . import formats
from .formats import features
from .formats.corpus import ReadSettings
from .formats.text import Halves, is_file
from .formats.unknown import UnknownLabels, check_choice
from .split import check_hold_out, hold_out

logger = logging.getLogger("labelspace.data")


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
    unknown_labels: UnknownLabels = "refuse",
    seed: int = 0,
    valid_fraction: float = 0.1,
    valid_max: int = 10_000,
) -> Dataset:
    """Read a data set from a folder or a file; the format is recognised by what is there.

    * ``lf``: a folder with ``trn.json``, ``tst.json``, ``lbl.json``, or ``trn.raw.json``, ``tst.raw.json``, ``Yf.txt``.
    * ``beir``: a folder with ``corpus.jsonl`` (the labels), ``queries.jsonl`` (the documents) and ``qrels/train.tsv``,
      ``dev.tsv``, ``test.tsv``; or as of MS MARCO, ``collection.tsv``, ``queries.train.tsv`` and ``qrels.train.tsv``.
    * ``xc``: a folder with ``trn_X.txt``, ``tst_X.txt``, ``Y.txt`` and the truth as npz or sparse text.
    * ``features``: an old ``train.txt``, or ``trn_X_Y.txt`` or ``Y.trn.npz``, without texts: only the truth.
    * ``annif``: ``train.tsv``, ``.csv``, ``.jsonl`` or a folder ``train`` of documents, as Annif has them (and
      ``test``, ``valid``), or one such file or folder; with a vocabulary beside it or named by ``label_vocabulary``.
    * ``table``: a CSV, TSV or JSONL file with a text and a labels column (all of it is training data), or a folder
      with ``train.*`` and perhaps ``test.*``, ``valid.*`` (or ``dev.*``, ``validation.*``) and ``labels.*``. Without
      a labels file the labels are the sorted names of train, followed by names that only other splits have.

    * ``fasttext``: a file with ``__label__`` before each label of a line, or a folder with ``train.txt`` or ``x.train``
      (and ``valid``, ``test``) of such lines.

    Every file may be gzip. A folder that ``convert`` wrote says in ``labelspace.json`` how it is read. ``train`` is the
    training set as shipped; unless validation documents are shipped, ``valid`` is a seeded part of its rows.

    Args:
        path: the folder or file.
        fields: LF documents: "title", "content", "title+content", "title+title+content", or "auto" (the title alone
            when the data set's name contains "titles", else "title+content").
        label_fields: LF labels, likewise; "auto" takes the fields of the documents. Of a BEIR corpus "auto" is both.
            Of a SKOS vocabulary "preferred" ("auto"), to which "+alternative" and "+broader" may be added.
        text_column: the column of tables that holds the text.
        label_column: the column of tables that holds the labels; ``label`` serves when ``labels`` is missing. Several
            with commas between are labels themselves, which hold 0 or 1; so are all, when there are no others.
        separator: what stands between the labels of a CSV or TSV cell; None finds it out, "" takes a cell as one
            label. Given one, it also splits plain strings of JSONL.
        encoding: the encoding of the text files; None takes UTF-8, with or without BOM, or else Windows-1252.
        format: "lf", "beir", "xc", "annif", "table", "features" or "fasttext", or None to find it out.
        label_vocabulary: the file that holds the labels of an Annif corpus or a table: TSV, CSV or SKOS.
        language: of the labels of a vocabulary; None takes English, or else the most frequent one, and says so.
        keep_parts: keep titles and contents in ``parts`` beside the texts made of them.
        unknown_labels: labels of documents that the labels file, vocabulary or corpus does not have: "refuse" them,
            "drop" them, or "add" them as labels whose texts are their names. The same holds for concepts of a
            vocabulary that are withdrawn, but "refuse" drops them too, as Annif does.
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
        unknown_labels=unknown_labels,
    )
    name = record.get("name", path.resolve().name)
    if path.is_file():
        name = Path(name.removesuffix(".gz")).stem
    name = Halves().mend(name)  # of a folder whose name is not UTF-8
    check_hold_out(valid_fraction, valid_max)
    check_choice(unknown_labels)
    splits, format = formats.read(path, name, settings, format or record.get("format"))
    if "texts" in record:
        splits.options["texts"] = record["texts"]
    warn_of_empty(splits.labels, name)
    train, valid = splits.train, splits.valid
    rows = np.zeros(0, dtype=np.int64)
    if valid is None:
        alike = train.ids if _lacks_texts(splits.options, "train") else train.texts  # without texts all are alike
        rows = hold_out(alike, valid_fraction, valid_max, seed)
        valid = train.rows(rows)
    options: dict[str, str | int | float | None] = {"format": format, **splits.options, "seed": seed}
    options.update(valid_fraction=valid_fraction, valid_max=valid_max)
    return Dataset(name, splits.labels, train, valid, splits.test, rows, options)


def warn_of_empty(labels: Labels, name: str) -> None:
    """Say it if labels have no text to be encoded by."""
    empty = [row for row, text in enumerate(labels.texts) if not text.strip()]
    if empty:
        logger.warning(
            "%s: %d of %d labels have an empty text, which says nothing of them, the first is %r (number %d from 0); "
            "give each a text",
            *(name, len(empty), len(labels), labels.ids[empty[0]][:80], empty[0]),
        )


RECORD = "labelspace.json"
"""In a folder that was written by ``convert``: the data set's name, and how its files are read."""


def _read_record(path: Path) -> dict[str, str]:
    """Name, format, fields, label_fields and texts, as far as the folder has a record of them."""
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if is_file(path) else {}
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"this record cannot be read ({reason}); convert the data again, or delete it", path) from None
    if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
        raise DataError("this record is not one of names and texts; convert the data again, or delete it", path)
    return record


def _lacks_texts(options: Mapping[str, object], split: str) -> bool:
    """Whether the documents of a split came without texts, as features only."""
    texts = options.get("texts")  # "none", or the only split that has them
    return texts is not None and texts != ("train" if split == "valid" else split)


def require_texts(data: Dataset, split: str = "train") -> None:
    """Refuse documents without texts, for whoever needs them.

    Args:
        data: the data set.
        split: "train", "valid" or "test".

    Raises:
        DataError: there are only features.
    """
    if _lacks_texts(data.options, split):
        name = features.TEXTS["test" if split == "test" else "train"][0]
        raise DataError(
            f"{data.name}: the {split} documents are features without texts, and models read texts; "
            f"put these, one a line, into {name} beside them"
        )


def fingerprint(dataset: Dataset) -> str:
    """A SHA-256 over the labels' and training documents' ids and texts and the training truth."""
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
