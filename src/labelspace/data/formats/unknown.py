"""References to labels that the label space does not have: gathered while files are read, and settled once at the end.

A reader asks a `LabelLookup` for numbers. An unknown name gets a number after those of all labels, and so does a
withdrawn concept of a vocabulary. `settle` refuses them, leaves them out, or makes labels of them.
"""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ...errors import SettingsError
from ...types import Corpus, Labels
from .corpus import Splits

logger = logging.getLogger("labelspace.data")

UnknownLabels = Literal["refuse", "drop", "add"]
REMEDY = "; --unknown-labels drop leaves such labels out, and add makes labels of them"
Numbers: TypeAlias = "array[Any] | npt.NDArray[Any]"
SHOWN = 3
"""Unknown labels that a message names."""


def check_choice(choice: str) -> None:
    """Refuse what is no way to treat unknown labels."""
    if choice not in get_args(UnknownLabels):
        raise SettingsError(f"unknown_labels must be one of {', '.join(get_args(UnknownLabels))}, got {choice!r}")


def settle(splits: Splits, choice: str, name: str) -> Splits:
    """What was read, with labels of the label space only.

    Args:
        splits: as a reader gives them, with the lookup that it asked.
        choice: ``refuse`` unknown labels, ``drop`` or ``add`` them. A withdrawn concept is dropped unless it is added.
        name: the data set's name, for messages.

    Raises:
        DataError: unknown labels that are refused.
    """
    lookup, vocabulary = splits.lookup, splits.vocabulary
    if lookup is None:
        return splits
    labels = splits.labels if vocabulary is None else vocabulary.labels
    n_labels, n_known = len(labels), len(lookup.labels)
    corpora = [corpus for corpus in splits.corpora.values() if corpus.targets.nnz]
    beyond = [corpus.targets.indices[corpus.targets.indices >= n_labels] for corpus in corpora]
    numbers = np.concatenate([np.zeros(0, dtype=np.int64), *beyond])
    if lookup.unknown and choice == "refuse":
        raise lookup.refusal(int((numbers >= n_known).sum()), REMEDY)
    source = lookup.source
    known = [*lookup.labels.ids, *lookup.unknown]
    withdrawn, unknown = (np.unique(part) for part in (numbers[numbers < n_known], numbers[numbers >= n_known]))
    if choice == "add":
        new = [known[number] for number in (*withdrawn, *unknown)]
        if new:
            logger.warning("%s: %d labels that are not in %s are added, such as %s", name, len(new), source, _some(new))
        labels = _with_names(labels, new)
    else:
        if len(withdrawn):
            logger.warning(
                "%s: %d times a document names a concept without a label in %s, such as %s; these are dropped",
                *(name, int((numbers < n_known).sum()), source, known[withdrawn[0]]),
            )
        if len(unknown):
            had = np.concatenate([np.diff(corpus.targets.indptr) for corpus in corpora])
            lost = np.concatenate([_per_row(corpus.targets, n_known) for corpus in corpora])
            logger.warning(
                "%s: %d references to %d labels that are not in %s, such as %s, are dropped from %d documents, of "
                "which %d have no label left",
                *(name, int(lost.sum()), len(unknown), source, _some([known[number] for number in unknown])),
                *(int((lost > 0).sum()), int(((lost > 0) & (lost == had)).sum())),
            )
    number_of = np.full(len(known), -1, dtype=np.int64)
    number_of[:n_labels] = np.arange(n_labels)
    if choice == "add":
        number_of[np.concatenate([withdrawn, unknown])] = np.arange(n_labels, len(labels))
    corpora_of = {split: _renumbered(corpus, number_of, len(labels)) for split, corpus in splits.corpora.items()}
    options = {**splits.options, **({} if vocabulary is None else vocabulary.options)}
    return Splits(labels, corpora_of, options)


def _per_row(matrix: sp.csr_array, first: int) -> npt.NDArray[np.int64]:
    """How many entries of each row have this column or a higher one."""
    counts = np.concatenate([[0], np.cumsum(matrix.indices >= first)])
    per_row: npt.NDArray[np.int64] = np.diff(counts[matrix.indptr])
    return per_row


def _with_names(labels: Labels, names: Sequence[str]) -> Labels:
    """The labels, and more whose ids and texts are names."""
    parts = labels.parts and {part: [*texts, *([""] * len(names))] for part, texts in labels.parts.items()}
    return Labels([*labels.ids, *names], [*labels.texts, *names], parts) if names else labels


def _renumbered(corpus: Corpus, number_of: npt.NDArray[np.int64], n_labels: int) -> Corpus:
    """The documents with other label numbers; -1 stands for none."""
    matrix = corpus.targets
    columns = number_of[matrix.indices]
    kept = columns >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    targets = sp.csr_array((matrix.data[kept], columns[kept], indptr), shape=(len(corpus), n_labels))
    targets.sort_indices()
    return dataclasses.replace(corpus, targets=targets)


def within(
    counts: Numbers, columns: Numbers, values: Numbers, n_labels: int, choice: str, path: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Label numbers as a file has them, without those beyond the labels if these are dropped; see `build_targets`.

    Raises:
        SettingsError: such numbers are to be added.
    """
    own, numbers, relevances = np.asarray(counts), np.asarray(columns, dtype=np.int64), np.asarray(values)
    beyond = numbers >= n_labels
    if not beyond.any() or choice == "refuse":
        return own, numbers, relevances
    if choice == "add":
        raise SettingsError(
            f"unknown_labels: {path} has the label number {int(numbers.max())}, and there are {n_labels} labels; a "
            "number has no name that could be added, so drop it or mend the labels file"
        )
    rows = np.repeat(np.arange(len(own)), own)
    kept = np.bincount(rows[~beyond], minlength=len(own))
    logger.warning(
        "%s: %d references to label numbers beyond the %d labels, such as %d, are dropped from %d documents, of which "
        "%d have no label left",
        *(path, int(beyond.sum()), n_labels, int(numbers[beyond][0]), len(np.unique(rows[beyond]))),
        int(((kept == 0) & (own > 0)).sum()),
    )
    return kept, numbers[~beyond], relevances[~beyond]


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:80]) for name in names[:SHOWN])
