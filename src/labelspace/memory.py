"""Keys that vote for labels: what every model answers from.

A query is compared with the keys, and the nearest keys vote. A dual encoder is a memory whose keys are the label
texts, each voting for its own label; training documents that vote for their labels, learned label rows, or several
texts of one label are more keys.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import ModelError
from .indexes import ExactIndex

Scoring = Literal["similarity", "votes"]


class Memory:
    """K keys with their label votes.

    With ``similarity`` a label's score is the best similarity of a key that votes for it; votes are 0 or 1. With
    ``votes`` it is the sum over the nearest ``depth`` keys of softmax(similarity / temperature) times the vote
    (RAE-XMC).

    Args:
        keys: (K, D) float32 or bf16.
        votes: (K, L) sparse votes of the keys, not negative; 0 or 1 with ``similarity``.
        scoring: ``similarity`` or ``votes``.
        temperature: of the softmax over keys, with ``votes``.
        depth: keys that vote for one query, with ``votes``.

    Raises:
        ValueError: votes that do not fit the keys, a negative vote, one that is neither 0 nor 1 with ``similarity``, or
            an unknown scoring.
    """

    def __init__(
        self,
        keys: Tensor,
        votes: sp.csr_array,
        *,
        scoring: Scoring = "similarity",
        temperature: float = 0.05,
        depth: int = 200,
    ):
        if keys.ndim != 2 or keys.shape[0] != votes.shape[0]:
            raise ValueError(f"votes {votes.shape} do not fit keys {tuple(keys.shape)}")
        if scoring not in ("similarity", "votes"):
            raise ValueError(f"unknown scoring {scoring!r}; choose one of similarity, votes")
        self.keys = keys
        self.votes = sp.csr_array(votes, dtype=np.float32, copy=True)
        self.votes.eliminate_zeros()
        if self.votes.nnz and float(self.votes.data.min()) < 0:
            raise ValueError("a vote is negative")
        if scoring == "similarity" and (self.votes.data != 1).any():
            raise ValueError("with the scoring 'similarity' a vote is 0 or 1")
        self.scoring: Scoring = scoring
        self.temperature = temperature
        self.depth = depth
        self.index = ExactIndex(keys)
        per_label = np.bincount(self.votes.indices, minlength=self.votes.shape[1])
        self._keys_per_label = int(per_label.max(initial=0))
        self._one_to_one = self._keys_per_label <= 1 and bool((np.diff(self.votes.indptr) == 1).all())

    @classmethod
    def of_labels(cls, keys: Tensor) -> Memory:
        """A memory of L label texts, key i voting for label i alone.

        Args:
            keys: (L, D) label vectors.
        """
        count = len(keys)
        identity = sp.csr_array(
            (np.ones(count, np.float32), np.arange(count), np.arange(count + 1)), shape=(count, count)
        )
        return cls(keys, identity)

    @property
    def n_labels(self) -> int:
        """L, labels that can be voted for."""
        return int(self.votes.shape[1])

    @property
    def settings(self) -> dict[str, object]:
        """How labels are scored. A calibration holds for these settings alone."""
        return {"scoring": self.scoring, "temperature": self.temperature, "depth": self.depth}

    def predict(
        self, queries: Tensor, k: int, labels: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The best labels of each query.

        Args:
            queries: (n, D) float32, on the device of the keys.
            k: labels a query.
            labels: label numbers to choose from; None for all.

        Returns:
            label numbers (n, k) int64, falling in score and padded with -1, and scores (n, k) float32, padded with
            -inf. Equal scores are ordered by label number; which of several equals falls off at the cut is left open.
        """
        votes, allowed = self.votes, None
        if self.scoring == "similarity" and labels is None and not self._one_to_one:
            allowed = np.flatnonzero(np.diff(votes.indptr))  # keys without a vote must not crowd out the others
        if labels is not None:
            chosen = np.zeros(self.n_labels, dtype=bool)
            chosen[labels] = True
            kept = chosen[self.votes.indices]
            votes = sp.csr_array(
                (self.votes.data[kept], self.votes.indices[kept], _kept_indptr(self.votes.indptr, kept)),
                shape=self.votes.shape,
            )
            if self.scoring == "similarity":
                allowed = np.flatnonzero(np.diff(votes.indptr))
        if self.scoring == "votes":
            depth = max(self.depth, 1)
        else:
            depth = k if self._one_to_one else k * max(1, self._keys_per_label)
        similarities, keys = self.index.search(queries, depth, allowed)
        if self.scoring == "similarity" and self._one_to_one:
            found = votes.indices[votes.indptr[keys]]
            rows = np.repeat(np.arange(len(queries)), keys.shape[1])
            return _best(rows, found.ravel(), similarities.ravel(), len(queries), k)
        return self._vote(similarities, keys, votes, k)

    def _vote(
        self,
        similarities: npt.NDArray[np.float32],
        keys: npt.NDArray[np.int64],
        votes: sp.csr_array,
        k: int,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Gather the votes of the found keys, one entry a (query, label), and keep the best k."""
        n, depth = keys.shape
        if self.scoring == "votes" and depth:
            logits = similarities.astype(np.float64) / self.temperature
            weight = np.exp(logits - logits.max(axis=1, keepdims=True))
            weight /= weight.sum(axis=1, keepdims=True)
        else:
            weight = similarities.astype(np.float64)
        flat = keys.ravel()
        counts = np.diff(votes.indptr)[flat]
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(votes.indptr[flat] - (ends - counts), counts)
        rows = np.repeat(np.repeat(np.arange(n), depth), counts)
        labels = votes.indices[places].astype(np.int64)
        values = np.repeat(weight.ravel(), counts) * votes.data[places]
        order = np.lexsort((labels, rows))
        rows, labels, values = rows[order], labels[order], values[order]
        first = (
            np.flatnonzero(np.r_[True, (rows[1:] != rows[:-1]) | (labels[1:] != labels[:-1])]) if len(rows) else rows
        )
        if not len(rows):
            merged = values
        elif self.scoring == "votes":
            merged = np.add.reduceat(values, first)
        else:
            merged = np.maximum.reduceat(values, first)
        return _best(rows[first], labels[first], merged, n, k)

    def save(self, folder: Path) -> dict[str, object]:
        """Write keys and votes into a folder and return the settings that `load` needs.

        Args:
            folder: an existing folder.
        """
        save_file({"keys": self.keys.detach().cpu().contiguous()}, folder / "keys.safetensors")
        np.savez(folder / "votes.npz", data=self.votes.data, indices=self.votes.indices, indptr=self.votes.indptr)
        return {**self.settings, "labels": self.n_labels}

    @classmethod
    def load(cls, folder: Path, settings: dict[str, object], device: str = "cpu") -> Memory:
        """Read what `save` wrote.

        Args:
            folder: the folder.
            settings: what `save` returned.
            device: where to put the keys.

        Raises:
            ModelError: a file that is missing or damaged, by name.
        """
        try:
            keys = load_file(folder / "keys.safetensors", device=device)["keys"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"{folder / 'keys.safetensors'} is missing or damaged: {error}") from error
        try:
            with np.load(folder / "votes.npz", allow_pickle=False) as arrays:
                votes = sp.csr_array(
                    (arrays["data"], arrays["indices"], arrays["indptr"]),
                    shape=(len(keys), int(settings["labels"])),  # type: ignore[call-overload]
                )
            return cls(
                keys,
                votes,
                scoring=settings["scoring"],  # type: ignore[arg-type]
                temperature=float(settings["temperature"]),  # type: ignore[arg-type]
                depth=int(settings["depth"]),  # type: ignore[call-overload]
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ModelError(f"{folder / 'votes.npz'} is missing or damaged: {error}") from error


def _kept_indptr(indptr: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    running = np.concatenate([[0], np.cumsum(kept)])
    return running[indptr]


def _best(
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.floating],
    n: int,
    k: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k best (label, score) of each row, falling, ties by label; labels are distinct within a row."""
    out_labels = np.full((n, k), -1, dtype=np.int64)
    out_scores = np.full((n, k), -np.inf, dtype=np.float32)
    scores = scores.astype(np.float32)
    order = np.lexsort((labels, -scores, rows))
    rows, labels, scores = rows[order], labels[order], scores[order]
    counts = np.bincount(rows, minlength=n)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    top = rank < k
    out_labels[rows[top], rank[top]] = labels[top]
    out_scores[rows[top], rank[top]] = scores[top]
    return out_labels, out_scores
