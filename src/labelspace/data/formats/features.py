"""Truth that comes with sparse features instead of texts; the features are counted and checked, but not kept.

- The old files of the Extreme Classification Repository, ``train.txt`` and ``test.txt``, or ``x_train.txt`` and
  ``x_test.txt`` (``eurlex_train.txt``): a first line "documents
  features labels", then ``l1,l2 f:v f:v`` for each document, from 0 on; a row that starts with a blank has no labels.
- Its newer files: ``trn_X_Xf.txt`` with the features and ``trn_X_Y.txt`` with the truth, each with a first line "rows
  columns"; also as ``.npz``.
- PECOS: ``X.trn.npz`` and ``Y.trn.npz``.

Texts are read where they lie beside them, one a line, perhaps in ``raw`` or ``raw_data``. Where documents have none,
only the truth can be used: to measure scores, or to convert it.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np
import scipy.sparse as sp

from ...base.machine import require_memory
from ...errors import DataError
from ...types import Corpus, Labels
from . import xc
from .cells import DECIMAL
from .corpus import ReadSettings, Splits, build_targets
from .sparse import header_numbers, pad, read_shape
from .text import TextFiles, find_file, first_lines, plain_lines, shown_files

logger = logging.getLogger("labelspace.data")

OLD = {"train": "train.txt", "test": "test.txt"}
FEATURES = {
    "train": ("trn_X_Xf.txt", "X.trn.npz", "trn_X_Xf.npz"),
    "test": ("tst_X_Xf.txt", "X.tst.npz", "tst_X_Xf.npz"),
}
TEXTS = {
    "train": ("trn_X.txt", "X.trn.txt", "train.raw.txt", "train_raw_texts.txt"),
    "test": ("tst_X.txt", "X.tst.txt", "test.raw.txt", "test_raw_texts.txt"),
}
LABELS = ("Y.txt", "output-items.txt", "Z.all.txt", "label_map.txt")
PLACES = ("", "raw", "raw_data")
LOOKED_FOR = (
    "train.txt with a first line 'documents features labels', trn_X_Y.txt, or Y.trn.npz (and the same for test)"
)

_PAIR = rf"\d+:[+-]?{DECIMAL}"
_PAIRS = rf"{_PAIR}(?:\s+{_PAIR})*"
_ROW = re.compile(rf"(\d+(?:,\d+)*)?(?:(?:^|\s+)({_PAIRS}))?\s*", re.ASCII)
_FEATURES = re.compile(rf"\s*(?:{_PAIRS})?\s*", re.ASCII)
_INDEX = re.compile(r"(\d+):", re.ASCII)


def _find(folder: Path, names: Iterable[str]) -> Path | None:
    return find_file(folder, names, PLACES)


def _find_old(folder: Path) -> dict[str, Path]:
    """The old files of training and test documents, if the first are there."""
    train = _find(folder, [OLD["train"]])
    if train is not None:
        test = _find(folder, [OLD["test"]])
    else:
        ending = f"_{OLD['train']}"
        named = [path for path in shown_files(folder, (ending,)) if _kind(path)]
        if len(named) > 1:
            raise DataError(f"{named[0].name} and {named[1].name} hold the same split; keep one of them", folder)
        train = named[0] if named else None
        test = None if train is None else _find(folder, [f"{train.name.partition(ending)[0]}_{OLD['test']}"])
    return {split: path for split, path in (("train", train), ("test", test)) if path is not None}


def sniff(path: Path) -> bool:
    """Whether this is an old file of features, or a folder with such files or with truth as a sparse matrix."""
    if path.is_file():
        return path.name.removesuffix(".gz").endswith(".txt") and _kind(path) != ""
    if _find(path, xc.TRUTH["train"]) is not None:
        return True
    old = _find_old(path).get("train")
    return old is not None and _kind(old) != ""


def _kind(path: Path) -> str:
    """What a text file may hold: "features", only a "header" of features, or neither ("")."""
    lines, _ = first_lines(path)
    if header_numbers(lines[0], 3) is not None:
        return "features" if any(":" in line for line in lines[1:]) else "header"
    if header_numbers(lines[0], 2) is not None:
        rows = [line for line in lines[1:-1] if line.strip()]
        return "features" if rows and all(":" in line and _ROW.fullmatch(line) for line in rows) else ""
    return "features" if ":" in lines[0] and _ROW.fullmatch(lines[0]) else ""


def is_features(path: Path) -> bool:
    """Whether a text file holds sparse features with labels; its first line may be missing."""
    return _kind(path) == "features"


def read(path: Path, name: str, settings: ReadSettings) -> Splits:
    """Read truth, and the texts where there are any; without, they are empty."""
    files = TextFiles(settings.encoding)
    truth: dict[str, tuple[Path, sp.csr_array]] = {}
    if path.is_file():
        truth["train"] = path, _read_old(files, path)
    else:
        old = _find_old(path)
        for split in OLD:
            if (file := _find(path, xc.TRUTH[split])) is not None:
                truth[split] = file, _read_truth(files, file, _find(path, FEATURES[split]))
            elif split in old:
                truth[split] = old[split], _read_old(files, old[split])
    if "train" not in truth:
        raise DataError(f"features with truth need {LOOKED_FOR}", path)
    for file, targets in truth.values():
        if not targets.shape[0]:
            raise DataError("there are no documents", file)
    source, matrix = truth["train"]
    n_labels = matrix.shape[1]
    if "test" in truth and truth["test"][1].shape[1] != n_labels:
        message = f"there are {truth['test'][1].shape[1]} labels, but {source} has {n_labels}"
        raise DataError(message, truth["test"][0])
    labels = _read_labels(files, path, source, n_labels)
    corpora, with_texts = {}, []
    for split, (file, targets) in truth.items():
        count = targets.shape[0]
        texts = _read_lines(files, path, TEXTS[split], count, "documents", file)
        if texts is not None:
            with_texts.append(split)
        ids = [str(row) for row in range(count)]
        corpora[split] = Corpus(ids, texts or [""] * count, targets, source=file, unnamed=count)
    options: dict[str, str | int | None] = {"encoding": files.found}
    if len(with_texts) < len(corpora):
        options["texts"] = with_texts[0] if with_texts else "none"
        missing = " and ".join(split for split in corpora if split not in with_texts)
        logger.warning("%s: there are no texts of %s, only features; only the truth is read", name, missing)
    return Splits(labels, corpora, options)


def _read_truth(files: TextFiles, path: Path, features: Path | None) -> sp.csr_array:
    """The truth of its own file, with as many rows as the features have, if they are there."""
    rows = None if features is None else _rows_of(files, features)

    def check_shape(n: int, n_labels: int) -> None:
        if rows is not None and n != rows:
            line = None if path.suffix == ".npz" else 1
            raise DataError(f"the truth has {n} rows, but {features} has {rows}", path, line)

    return xc.read_targets(path, files, check_shape)


def _rows_of(files: TextFiles, path: Path) -> int:
    """How many rows a file of features says it has; of text, once its lines are checked."""
    if path.suffix == ".npz":
        try:
            with np.load(path) as arrays:  # loads no pickle
                return int(arrays["shape"][0])
        except Exception as error:  # zip, header and shape errors of many types: all mean an unusable file
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DataError(f"this is not a whole SciPy sparse matrix ({reason}); fetch it again", path) from None

    def check(stream: TextIO) -> int:
        lines = plain_lines(stream)
        n_rows, n_columns = read_shape(lines, path)
        counts = array("q")
        for line, row in enumerate(lines, start=2):
            if _FEATURES.fullmatch(row) is None:
                raise DataError(f"expected 'feature:value feature:value', got {row[:60]!r}", path, line)
            counts.append(_check_features(row, n_columns, path, line))
        pad(counts, n_rows, path)
        return n_rows

    return files.read(path, check)


def _check_features(features: str, n_features: int, path: Path, line: int) -> int:
    """How many features of a row there are, whose numbers must be below the number of all."""
    indices = _INDEX.findall(features)
    try:
        highest = max(map(int, indices), default=-1)
    except ValueError:  # thousands of digits
        raise DataError(f"a number is too large in {features[:60]!r}", path, line) from None
    if highest >= n_features:
        raise DataError(f"feature number {highest} is not one of 0 to {n_features - 1}", path, line)
    return len(indices)


def _read_old(files: TextFiles, path: Path) -> sp.csr_array:
    def parse(stream: TextIO) -> sp.csr_array:
        lines = plain_lines(stream)
        first = next(lines, "")
        header = header_numbers(first, 3)
        if header is None and ":" in first and _ROW.fullmatch(first):
            raise DataError(
                "the first line must be 'documents features labels', but is a document, as LibMultiLabel writes them; "
                "put that line in front, and count labels and features from 0",
                path,
                1,
            )
        if header is None:
            raise DataError(f"expected a first line 'documents features labels', got {first.strip()[:60]!r}", path, 1)
        n_rows, n_features, n_labels = header
        counts, columns = array("q"), array("q")
        for number, line in enumerate(lines, start=2):
            row = _ROW.fullmatch(line)
            if row is None:
                raise DataError(f"expected 'label,label feature:value feature:value', got {line[:60]!r}", path, number)
            try:
                new = array("q", map(int, row[1].split(","))) if row[1] else array("q")
            except (ValueError, OverflowError):
                raise DataError(f"a number is too large in {line[:60]!r}", path, number) from None
            _check_features(row[2] or "", n_features, path, number)
            columns.extend(new)
            counts.append(len(new))
        pad(counts, n_rows, path)
        return build_targets(counts, columns, None, n_labels, path, first_line=2)

    return files.read(path, parse)


def _read_labels(files: TextFiles, path: Path, source: Path, n_labels: int) -> Labels:
    if n_labels == 0:
        raise DataError("there are no labels", source)
    require_memory(100 * n_labels, f"the {n_labels} labels of {source}", "check its first line")
    ids = [str(row) for row in range(n_labels)]
    texts = _read_lines(files, path, LABELS, n_labels, "labels", source)
    if texts is None:
        logger.warning("%s: there are no texts of labels (Y.txt, one a line); their numbers stand for them", path)
    return Labels(ids, texts or ids)


def _read_lines(
    files: TextFiles, folder: Path, names: Iterable[str], count: int, what: str, source: Path
) -> list[str] | None:
    """The texts, one a line, of the rows or columns of a truth, if the folder has them."""
    file = _find(folder, names)
    if file is None:
        return None
    texts = files.lines(file)
    if len(texts) != count:
        raise DataError(f"there are {count} {what}, but {file} has {len(texts)} lines", source)
    return texts
