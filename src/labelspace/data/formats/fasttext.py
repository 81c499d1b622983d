"""fastText's files: a document a line, in which every word that begins with ``__label__`` is a label.

One file is training data; a folder holds ``train.txt``, ``valid.txt`` and ``test.txt``, or ``x.train``, ``x.valid`` and
``x.test``. A label is what follows ``__label__``, a text is all other words.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

from ...errors import DataError
from ...types import Labels
from .corpus import ReadSettings, Records, Splits, build_targets
from .labels import collected
from .rows import SUFFIXES, suffix
from .text import TextFiles, find_files, first_lines, plain_lines, shown_files

STEMS = {"train": ("train",), "test": ("test",), "valid": ("valid", "validation", "dev", "val")}
LOOKED_FOR = "train.txt or x.train (and valid, test) with __label__ before each label"

_LABEL = re.compile(r"(?:(?<=\s)|^)__label__(\S+)\s*")


def sniff(path: Path) -> bool:
    """Whether this is a file of labelled lines, or a folder with one for training."""
    if path.is_dir():
        return bool(_find(path, "train"))
    lines = [line for line in first_lines(path)[0] if line.strip()] if suffix(path) not in SUFFIXES else []
    return 2 * sum(_LABEL.search(line) is not None for line in lines) > len(lines)


def _find(folder: Path, split: str) -> list[Path]:
    found = find_files(folder, [f"{stem}{end}" for stem in STEMS[split] for end in (".txt", ".ft.txt", "")])
    found += [path for stem in STEMS[split] for path in shown_files(folder, (f".{stem}",))]
    return [path for path in found if sniff(path)]


def read(path: Path, name: str, settings: ReadSettings) -> Splits:
    """Read a file, or the files of a folder; labels are the sorted names of train, then those of other parts."""
    files = TextFiles(settings.encoding)
    found = {split: _find(path, split) for split in STEMS} if path.is_dir() else {"train": [path]}
    for paths in found.values():
        if len(paths) > 1:
            raise DataError(f"{paths[0].name} and {paths[1].name} hold the same split; keep one of them", path)
    if not found["train"]:
        raise DataError(f"data of fastText needs {LOOKED_FOR}", path)
    parts = {split: files.read(paths[0], partial(_parse, path=paths[0])) for split, paths in found.items() if paths}
    names = collected({split: met for split, (_, _, met, _) in parts.items()}, path)
    number = {label: row for row, label in enumerate(names)}
    corpora = {}
    for split, (documents, counts, met, labels) in parts.items():
        columns = np.array([number[label] for label in met], dtype=np.int64)[np.asarray(labels)]
        corpora[split] = documents.corpus(build_targets(counts, columns, None, len(names), documents.path))
    return Splits(Labels(names, names), corpora, {"encoding": files.found})


def _parse(stream: TextIO, path: Path) -> tuple[Records, array[int], dict[str, int], array[int]]:
    """The documents of a file, how many labels each has, numbers of the names met, and those of all labels."""
    documents, counts, labels = Records("document", path), array("q"), array("q")
    met: dict[str, int] = {}
    for line, text, own in labelled_lines(stream):
        documents.add(None, text, line)
        counts.append(len(own))
        labels.extend(met.setdefault(label, len(met)) for label in own)
    documents.check()
    return documents, counts, met, labels


def labelled_lines(stream: TextIO) -> Iterator[tuple[int, str, list[str]]]:
    """Line number from 1, text and labels of each line; empty lines are left out."""
    for number, line in enumerate(plain_lines(stream), start=1):
        if line.strip():
            yield number, _LABEL.sub("", line).strip(), _LABEL.findall(line)
