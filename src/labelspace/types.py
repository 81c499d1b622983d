"""The few values that travel between modules; shapes are checked where they are made.

Letters used throughout: N documents, L labels, B documents in a batch, P labels in a pool,
M positive pairs in a batch, K keys in a memory, D embedding dimensions, k predictions a document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from .errors import DataError


@dataclass(frozen=True)
class Labels:
    """The label space: stable ids and one text per label, in label number order.

    Args:
        ids: L distinct ids.
        texts: L label texts (names, titles, descriptions).
        parts: what the texts were made of, by name (title, content), where that was asked for.

    Raises:
        DataError: as many texts as ids are needed.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    parts: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.texts):
            raise DataError(f"labels have {len(self.ids)} ids but {len(self.texts)} texts")
        _check_parts(self.parts, len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents with their true labels.

    Args:
        ids: N document ids, as strings.
        texts: N texts.
        targets: the truth, (N, L) CSR float32; values are 1, or a relevance in (0, 1].
        filter_pairs: (n, 2) int64 pairs (document row, label number) that must not be predicted,
            or None when the data set has no filter file.
        source: the file that the documents came from.
        filter_source: the file that the pairs came from.
        parts: what the texts were made of, by name (title, content), where that was asked for.
        unnamed: documents that came without an id; theirs counts rows.

    Raises:
        DataError: ids, texts and rows of truth differ in number.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    targets: sp.csr_array
    filter_pairs: npt.NDArray[np.int64] | None = None
    source: Path | None = None
    filter_source: Path | None = None
    parts: Mapping[str, Sequence[str]] | None = None
    unnamed: int = 0

    def __post_init__(self) -> None:
        if not (len(self.ids) == len(self.texts) == self.targets.shape[0]):
            raise DataError(
                f"a corpus needs as many ids and texts as rows of truth, "
                f"got {len(self.ids)}, {len(self.texts)} and {self.targets.shape[0]}"
            )
        _check_parts(self.parts, len(self.ids))

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, rows: npt.NDArray[np.int64]) -> Corpus:
        """The documents of the given rows, each at most once, in that order; filter pairs follow their documents."""
        pairs = self.filter_pairs
        if pairs is not None:
            place = np.full(len(self), -1, dtype=np.int64)
            place[rows] = np.arange(len(rows))
            kept = pairs[place[pairs[:, 0]] >= 0]
            pairs = np.column_stack([place[kept[:, 0]], kept[:, 1]])
        return Corpus(
            ids=[self.ids[i] for i in rows],
            texts=[self.texts[i] for i in rows],
            targets=sp.csr_array(self.targets[rows]),
            filter_pairs=pairs,
            source=self.source,
            filter_source=self.filter_source,
            parts=self.parts and {name: [part[i] for i in rows] for name, part in self.parts.items()},
        )


def _check_parts(parts: Mapping[str, Sequence[str]] | None, count: int) -> None:
    for name, texts in (parts or {}).items():
        if len(texts) != count:
            raise DataError(f"there are {len(texts)} texts in the part {name!r}, but {count} are needed")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: what was read, where from, and how.

    Args:
        name: the folder's or file's name; chooses the propensity constants.
        labels: the label space.
        train: all training documents, as shipped.
        valid: held-out documents on which every choice is made; a seeded subset of ``train``
            unless the data set ships its own.
        test: test documents, or None; only ``evaluate`` looks at their truth.
        valid_rows: rows of ``train`` that ``valid`` holds (empty when it was shipped apart).
        options: how the files were read (format, fields, separator), as recorded with a model.

    Raises:
        DataError: a split whose truth does not have one column a label.
    """

    name: str
    labels: Labels
    train: Corpus
    valid: Corpus
    test: Corpus | None = None
    valid_rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    options: dict[str, str | int | float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in ("train", "valid", "test"):
            corpus = getattr(self, split)
            if corpus is not None and corpus.targets.shape[1] != len(self.labels):
                raise DataError(
                    f"{split} truth has {corpus.targets.shape[1]} columns but there are {len(self.labels)} labels"
                )

    def renumbered(self, order: npt.NDArray[np.int64]) -> Dataset:
        """The same data with its labels in another order: (L,) the present number of each label to come."""
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))

        def change(corpus: Corpus) -> Corpus:
            old = corpus.targets
            targets = sp.csr_array((old.data, place[old.indices], old.indptr), shape=old.shape, copy=True)
            targets.sort_indices()
            pairs = corpus.filter_pairs
            if pairs is not None:
                pairs = np.column_stack([pairs[:, 0], place[pairs[:, 1]]])
            return replace(corpus, targets=targets, filter_pairs=pairs)

        return replace(
            self,
            labels=Labels([self.labels.ids[i] for i in order], [self.labels.texts[i] for i in order]),
            train=change(self.train),
            valid=change(self.valid),
            test=None if self.test is None else change(self.test),
        )

    @property
    def fit_rows(self) -> npt.NDArray[np.int64]:
        """Rows of ``train`` that fitting may use: (n,) int64, all but ``valid_rows``."""
        keep = np.ones(len(self.train), dtype=bool)
        keep[self.valid_rows] = False
        return np.flatnonzero(keep)


@dataclass(frozen=True, eq=False)
class Batch:
    """One training step's documents and labels.

    Args:
        rows: (B,) int64 rows of the training corpus.
        pool: (P,) int64 distinct label numbers that are scored, or None for all labels in order.
        positives: (2, M) int64 pairs (row of the batch, column of the pool), each pair once.
        hidden: (2, H) int64 pairs, like ``positives``, whose scores must not count.
        weights: (M,) float32 weights of the positives, or None for 1.
        key: seeds of the batch's draws: those of the run, the epoch and the step.
    """

    rows: npt.NDArray[np.int64]
    pool: npt.NDArray[np.int64] | None
    positives: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None
    key: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reason:
    """A key that voted for a predicted label, or the words by which a linear classifier changed the votes.

    Args:
        kind: ``label`` for the label's own key, ``document`` for a document that has the label, ``words`` for a linear
            classifier.
        id: id of the label or document; of words empty.
        text: its text, or the words that said most.
        similarity: inner product of query and key; of words the logarithm of what they multiply the votes by.
        share: what the vote adds to the score, below 0 where words lower it; the shares of a label sum to its score.
    """

    kind: Literal["label", "document", "words"]
    id: str
    text: str
    similarity: float
    share: float


def told_first(reasons: Sequence[Reason], most: int) -> tuple[list[Reason], list[Reason]]:
    """Reasons of a label that are shown, and the keys that are only counted.

    Args:
        reasons: largest share first.
        most: that are shown, at least 1; words are shown beside these wherever they stand.
    """
    words = [reason for reason in reasons[most:] if reason.kind == "words"]
    return [*reasons[:most], *words], [reason for reason in reasons[most:] if reason.kind != "words"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The best labels of each document, best first.

    Args:
        indices: (n, k) int64 label numbers; -1 where a row has fewer than k.
        scores: (n, k) float32 (or float64, if given so) scores, descending; -inf where ``indices`` is -1.
        label_ids: ids of all L labels, if known.
        label_texts: texts of all L labels, if known.
        probabilities: (n, k) float32 in [0, 1], of calibrated scores, not rising; 0 where ``indices`` is -1. None
            if not asked for.
        reasons: for each document and each of its labels, padding apart, the keys that voted for it, the largest share
            first; None if not asked for.

    Raises:
        DataError: arrays of different shapes, indices that are not whole numbers, or values that are no probabilities.
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    label_ids: Sequence[str] | None = None
    label_texts: Sequence[str] | None = None
    probabilities: npt.NDArray[np.float32] | None = None
    reasons: Sequence[Sequence[Sequence[Reason]]] | None = None

    def __post_init__(self) -> None:
        indices = np.asarray(self.indices)
        scores = np.asarray(self.scores)
        if indices.ndim != 2 or indices.shape != scores.shape:
            raise DataError(
                f"predictions need indices and scores of one shape (n, k), got {indices.shape} and {scores.shape}"
            )
        if indices.size and not np.issubdtype(indices.dtype, np.integer):
            raise DataError(f"predicted indices must be whole numbers, got {indices.dtype}")
        object.__setattr__(self, "indices", indices.astype(np.int64, copy=False))
        kept = scores.dtype if scores.dtype == np.float64 else np.float32  # rounding would make ties
        object.__setattr__(self, "scores", scores.astype(kept, copy=False))
        if self.probabilities is not None:
            given = np.asarray(self.probabilities, dtype=np.float32)
            if given.shape != indices.shape or not ((given >= 0) & (given <= 1)).all():
                raise DataError(f"probabilities must be of shape {indices.shape} and from 0 to 1")
            object.__setattr__(self, "probabilities", given)

    def __len__(self) -> int:
        return len(self.indices)

    def named(self, row: int) -> list[tuple[str, str, float]]:
        """One document's labels as (id, text, score), best first, without padding.

        Where there are probabilities they stand in the place of the scores.

        Args:
            row: the document's row.
        """
        values = self.scores if self.probabilities is None else self.probabilities
        return [
            (
                self.label_ids[i] if self.label_ids is not None else str(i),
                self.label_texts[i] if self.label_texts is not None else "",
                float(s),
            )
            for i, s in zip(self.indices[row].tolist(), values[row].tolist(), strict=True)
            if i >= 0
        ]
