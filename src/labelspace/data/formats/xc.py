"""Raw text with truth apart: one text a line, and the labels of each row as a sparse matrix.

Texts are ``trn_X.txt``, ``tst_X.txt`` and ``Y.txt`` (labels), also in a folder ``raw``; the truth is ``Y.trn.npz``
or ``trn_X_Y.npz`` (SciPy), or ``trn_X_Y.txt``: a header "rows columns", then ``label:value label:value`` a row.
PECOS's names ``X.trn.txt`` and ``output-items.txt`` are understood as well. Ids are row numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import scipy.sparse as sp

from ...errors import DataError
from ...types import Corpus, Labels
from ..npz import read_npz
from .corpus import ReadSettings, Splits, build_targets, merge_duplicates, wrong_relevances
from .sparse import read_sparse_text
from .text import TextFiles, find_file
from .unknown import within

TEXTS = {"train": ("trn_X.txt", "X.trn.txt"), "test": ("tst_X.txt", "X.tst.txt")}
LABELS = ("Y.txt", "output-items.txt")
TRUTH = {
    "train": ("Y.trn.npz", "trn_X_Y.npz", "trn_X_Y.txt"),
    "test": ("Y.tst.npz", "tst_X_Y.npz", "tst_X_Y.txt"),
}
LOOKED_FOR = "trn_X.txt and Y.txt with Y.trn.npz, trn_X_Y.npz or trn_X_Y.txt (and the same for tst), also under raw/"


def sniff(path: Path) -> bool:
    """Whether the folder holds raw text in this format."""
    return find_file(path, TEXTS["train"]) is not None and find_file(path, LABELS) is not None


def read(folder: Path, name: str, settings: ReadSettings) -> Splits:
    """Read a folder of raw text with sparse truth."""
    files = TextFiles(settings.encoding)
    label_file = find_file(folder, LABELS)
    if label_file is None or find_file(folder, TEXTS["train"]) is None:
        raise DataError(f"raw text data needs {LOOKED_FOR}", folder)
    texts = files.lines(label_file)
    if not texts:
        raise DataError("the file has no labels", label_file)
    labels = Labels([str(row) for row in range(len(texts))], texts)
    paths = {split: find_file(folder, names) for split, names in TEXTS.items()}
    corpora = {
        split: _read_corpus(files, folder, path, TRUTH[split], labels, label_file, settings.unknown_labels)
        for split, path in paths.items()
        if path is not None
    }
    return Splits(labels, corpora, {"encoding": files.found})


def _read_corpus(
    files: TextFiles,
    folder: Path,
    path: Path,
    truth_names: Sequence[str],
    labels: Labels,
    label_file: Path,
    choice: str,
) -> Corpus:
    truth = find_file(folder, truth_names)
    if truth is None:
        raise DataError(f"the labels of these texts are missing; one of {', '.join(truth_names)} is needed", path)
    texts = files.lines(path)
    if not texts:
        raise DataError("the file has no documents", path)

    def check_shape(rows: int, columns: int) -> None:
        line = None if truth.suffix == ".npz" else 1
        if rows != len(texts):
            raise DataError(f"the truth has {rows} rows, but {path} has {len(texts)} lines", truth, line)
        if columns < len(labels) or columns > len(labels) and choice != "drop":
            raise DataError(f"the truth has {columns} columns, but {label_file} has {len(labels)} lines", truth, line)

    targets = read_targets(truth, files, check_shape)
    if targets.shape[1] > len(labels):
        own, numbers, values = within(
            np.diff(targets.indptr), targets.indices, targets.data, len(labels), choice, truth
        )
        targets = build_targets(own, numbers, values, len(labels), truth)
    return Corpus([str(row) for row in range(len(texts))], texts, targets, source=path, unnamed=len(texts))


def read_targets(path: Path, files: TextFiles, check_shape: Callable[[int, int], None]) -> sp.csr_array:
    """The truth as SciPy saved it, or as text; ``check_shape`` is called with rows and columns."""
    if path.suffix != ".npz":
        rows = read_sparse_text(path, files, check_shape)
        return build_targets(rows.counts, rows.columns, rows.values, rows.shape[1], path, first_line=2)
    matrix = read_npz(path, wide=True)
    matrix.eliminate_zeros()
    wrong = wrong_relevances(matrix.data)
    if len(wrong):
        row = int(np.searchsorted(matrix.indptr, wrong[0], side="right")) - 1
        value, column = float(matrix.data[wrong[0]]), int(matrix.indices[wrong[0]])
        raise DataError(f"relevance {value:g} in row {row}, column {column} is not above 0 and at most 1", path)
    check_shape(*cast(tuple[int, int], matrix.shape))
    return merge_duplicates(matrix).astype(np.float32)  # SciPy would add up what is there twice
