"""Pairs (document row, label number) that must not be predicted, under all the names their files have."""

from __future__ import annotations

import dataclasses
import re
from array import array
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...types import Corpus
from .text import TextFiles, find_file, plain_lines

NAMES = {
    "train": ("filter_labels_train.txt", "trn_filter_labels.txt"),
    # The last name is a known slip of the pen for the test file.
    "test": ("filter_labels_test.txt", "tst_filter_labels.txt", "filter_labels_text.txt"),
}

_PAIR = re.compile(r"\s*(\d{1,18})\s+(\d{1,18})\s*", re.ASCII)


def read_pairs(path: str | Path, shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Read a filter file: two whole numbers a line, document row and label number; it may be empty.

    Args:
        path: the file.
        shape: (documents, labels), the bounds of the two numbers.

    Returns:
        (n, 2) int64 pairs in file order.
    """
    path = Path(path)

    def parse(stream: TextIO) -> tuple[array[int], array[int]]:
        flat, lines = array("q"), array("q")
        for number, line in enumerate(plain_lines(stream), start=1):
            if not line.strip():
                continue
            match = _PAIR.fullmatch(line)
            if match is None:
                raise DataError(f"expected a document row and a label number, got {line[:60]!r}", path, number)
            flat.extend((int(match[1]), int(match[2])))
            lines.append(number)
        return flat, lines

    flat, lines = TextFiles().read(path, parse)
    pairs = np.asarray(flat, dtype=np.int64).reshape(-1, 2)
    wrong = np.flatnonzero(((pairs < 0) | (pairs >= np.asarray(shape))).any(axis=1))
    if len(wrong):
        row, label = pairs[wrong[0]].tolist()
        raise DataError(
            f"the pair {row} {label} lies outside the {shape[0]} documents and {shape[1]} labels; "
            "is this the filter file of another split?",
            path,
            lines[int(wrong[0])],
        )
    return pairs


def with_pairs(corpus: Corpus, split: str, folder: Path) -> Corpus:
    """Documents with the filter pairs of their split, if the folder, or ``raw`` in it, has a file of them."""
    path = find_file(folder, NAMES.get(split, ()))
    if path is None or not len(corpus):
        return corpus
    return dataclasses.replace(corpus, filter_pairs=read_pairs(path, corpus.targets.shape), filter_source=path)
