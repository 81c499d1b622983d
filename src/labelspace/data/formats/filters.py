"""Pairs (document row, label number) that must not be predicted, under all the names their files have."""

from __future__ import annotations

import dataclasses
import logging
import re
from array import array
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...types import Corpus
from .text import TextFiles, find_file, plain_lines

logger = logging.getLogger("labelspace.data")

NAMES = {
    "train": ("filter_labels_train.txt", "trn_filter_labels.txt"),
    # The last name is a known slip of the pen for the test file.
    "test": ("filter_labels_test.txt", "tst_filter_labels.txt", "filter_labels_text.txt"),
}

_PAIR = re.compile(r"\s*(\d{1,18})\s+(\d{1,18})\s*", re.ASCII)


def read_pairs(path: str | Path, shape: tuple[int, int], unknown_labels: str = "refuse") -> npt.NDArray[np.int64]:
    """Read a filter file: two whole numbers a line, document row and label number; it may be empty.

    Args:
        path: the file.
        shape: (documents, labels), the bounds of the two numbers.
        unknown_labels: "drop" leaves out pairs whose label number is beyond the labels; anything else refuses them.

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
    beyond = pairs[:, 1] >= shape[1]
    if unknown_labels == "drop" and beyond.any():
        logger.warning(
            "%s: %d pairs have a label number beyond the %d labels; they are dropped", path, beyond.sum(), shape[1]
        )
        pairs, lines = pairs[~beyond], array("q", np.asarray(lines)[~beyond].tolist())
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


def with_pairs(corpus: Corpus, split: str, folder: Path, unknown_labels: str = "refuse") -> Corpus:
    """Documents with the filter pairs of their split, if the folder, or ``raw`` in it, has a file of them."""
    path = find_file(folder, NAMES.get(split, ()))
    if path is None or not len(corpus):
        return corpus
    pairs = read_pairs(path, corpus.targets.shape, unknown_labels)
    return dataclasses.replace(corpus, filter_pairs=pairs, filter_source=path)
