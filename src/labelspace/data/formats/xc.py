"""Raw text with truth apart: one text a line, and the labels of each row as a sparse matrix.

Texts are ``trn_X.txt``, ``tst_X.txt`` and ``Y.txt`` (labels), also in a folder ``raw``; the truth is ``Y.trn.npz``
or ``trn_X_Y.npz`` (SciPy), or ``trn_X_Y.txt``: a header "rows columns", then ``label:value label:value`` a row.
PECOS's names ``X.trn.txt`` and ``output-items.txt`` are understood as well. Ids are row numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import scipy.sparse as sp

from ...errors import DataError
from ...types import Corpus, Labels
from ..npz import read_npz
from .corpus import ReadSettings, Splits, build_targets, merge_duplicates, wrong_relevances
from .filters import find_pairs
from .sparse import read_sparse_text
from .text import TextFiles, find_file, plain_lines

TEXTS = {"train": ("trn_X.txt", "X.trn.txt"), "test": ("tst_X.txt", "X.tst.txt")}
LABELS = ("Y.txt", "output-items.txt")
TRUTH = {
    "train": ("Y.trn.npz", "trn_X_Y.npz", "trn_X_Y.txt"),
    "test": ("Y.tst.npz", "tst_X_Y.npz", "tst_X_Y.txt"),
}
LOOKED_FOR = "trn_X.txt and Y.txt with Y.trn.npz, trn_X_Y.npz or trn_X_Y.txt (and the same for tst), also under raw/"


def sniff(path: Path) -> bool:
    """Whether the folder holds raw text in this format.

    Args:
        path: a folder or a file.
    """
    return find_file(path, TEXTS["train"]) is not None and find_file(path, LABELS) is not None


def read(folder: Path, name: str, settings: ReadSettings) -> Splits:
    """Read a folder of raw text with sparse truth.

    Args:
        folder: holds the files, the texts perhaps in ``raw``.
        name: the data set's name; unused here.
        settings: the encoding.
    """
    files = TextFiles(settings.encoding)
    label_file = find_file(folder, LABELS)
    if label_file is None:
        raise DataError(f"raw text data needs {LOOKED_FOR}", folder)
    texts = files.read(label_file, lambda stream: list(plain_lines(stream)))
    if not texts:
        raise DataError("the file has no labels", label_file)
    labels = Labels([str(row) for row in range(len(texts))], texts)
    train = _read_corpus(files, folder, "train", labels, label_file)
    if train is None:
        raise DataError(f"raw text data needs {LOOKED_FOR}", folder)
    test = _read_corpus(files, folder, "test", labels, label_file)
    return Splits(labels, train, test, options={"encoding": files.found})


def _read_corpus(files: TextFiles, folder: Path, split: str, labels: Labels, label_file: Path) -> Corpus | None:
    path = find_file(folder, TEXTS[split])
    if path is None:
        return None
    truth = find_file(folder, TRUTH[split])
    if truth is None:
        raise DataError(f"the labels of these texts are missing; one of {', '.join(TRUTH[split])} is needed", path)
    texts = files.read(path, lambda stream: list(plain_lines(stream)))
    if not texts:
        raise DataError("the file has no documents", path)

    def check_shape(rows: int, columns: int) -> None:
        line = None if truth.suffix == ".npz" else 1
        if rows != len(texts):
            raise DataError(f"the truth has {rows} rows, but {path} has {len(texts)} lines", truth, line)
        if columns != len(labels):
            raise DataError(f"the truth has {columns} columns, but {label_file} has {len(labels)} lines", truth, line)

    if truth.suffix == ".npz":
        targets = read_npz_targets(truth)
        check_shape(*cast(tuple[int, int], targets.shape))
    else:
        targets = read_text_targets(truth, files, check_shape)
    pairs, source = find_pairs(folder, split, (len(texts), len(labels)))
    ids = [str(row) for row in range(len(texts))]
    return Corpus(ids, texts, targets, filter_pairs=pairs, source=path, filter_source=source, unnamed=len(ids))


def read_npz_targets(path: Path) -> sp.csr_array:
    """The truth that SciPy saved, checked.

    Args:
        path: the ``.npz`` file.
    """
    matrix = read_npz(path, wide=True)
    matrix.eliminate_zeros()
    wrong = wrong_relevances(matrix.data)
    if len(wrong):
        row = int(np.searchsorted(matrix.indptr, wrong[0], side="right")) - 1
        value, column = float(matrix.data[wrong[0]]), int(matrix.indices[wrong[0]])
        raise DataError(f"relevance {value:g} in row {row}, column {column} is not above 0 and at most 1", path)
    return merge_duplicates(matrix).astype(np.float32)  # SciPy would add up what is there twice


def read_text_targets(path: Path, files: TextFiles, check_shape: Callable[[int, int], None]) -> sp.csr_array:
    """The truth in text form; an empty line is a row without labels, and missing rows at the end are empty.

    Args:
        path: the file.
        files: opens it.
        check_shape: takes rows and columns before the rows are read.
    """
    found = read_sparse_text(path, files, check_shape)
    return build_targets(found.counts, found.columns, found.values, found.shape[1], path, first_line=2)
