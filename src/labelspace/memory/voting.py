"""How keys vote: the settings, the nearest keys of a query, and the weights of their votes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from torch import Tensor

from .keys import BoolArray, IntArray

Scoring = Literal["similarity", "votes"]
Search = Literal["joint", "two-sided"]
Votes = Literal["raw", "normalized"]
Softmax = Literal["together", "apart"]
FloatArray = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]
LINEAR = ("linear_strength", "linear_prior", "linear_base")
"""What `Voting` says of a linear classifier."""


@dataclass(frozen=True, kw_only=True)
class Voting:
    """How keys vote.

    Args:
        scoring: ``similarity`` gives a label the similarity of its own key (a dual encoder); ``votes`` counts votes.
        search: ``joint`` lets the ``depth`` nearest keys of both kinds vote; ``two-sided`` the nearest ``label_depth``
            label keys and the nearest ``document_depth`` document keys (ViXML, arXiv 2511.13189).
        depth: keys that vote for one query, in a joint search.
        label_depth: label keys that vote for one query, in a two-sided search.
        document_depth: document keys that vote for one query, in a two-sided search.
        temperature: of the softmax over the keys found.
        label_temperature: of the label keys, where it is another one; None for the same.
        softmax: ``together`` over all keys found, so that near documents take weight from the labels and the other way
            round (RAE-XMC); ``apart`` over each kind, so that the shares of the kinds are fixed.
        weight: of the votes of documents, 0 to 1; the label keys have the rest. A kind whose votes weigh nothing is not
            searched: 0 ranks like the dual encoder, 1 like nearest neighbours. In a joint search with 1 label keys
            take places among the ``depth`` nearest all the same, as in the paper, so fewer documents vote.
        votes: ``raw`` gives each label of a document its whole weight; ``normalized`` shares it between them.
        linear_strength: by how much the evidence of a linear classifier beside the keys changes the votes, see
            `labelspace.memory.linear`; 0 leaves them as they are.
        linear_prior: documents with which a label's evidence counts half as much.
        linear_base: by how much it counts how often a label was true where neighbours had it.

    Raises:
        ValueError: a value out of bounds.
    """

    scoring: Scoring = "votes"
    search: Search = "two-sided"
    depth: int = 200
    label_depth: int = 100
    document_depth: int = 100
    temperature: float = 0.05
    weight: float = 0.2
    votes: Votes = "raw"
    softmax: Softmax = "together"
    label_temperature: float | None = None
    linear_strength: float = 0.0
    linear_prior: float = 50.0
    linear_base: float = 0.0

    def __post_init__(self) -> None:
        choices = {"scoring": Scoring, "search": Search, "votes": Votes, "softmax": Softmax}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(get_args(kind))}")
        for name in ("depth", "label_depth", "document_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a number above 0, got {self.temperature}")
        if self.label_temperature is not None and not 0 < self.label_temperature < math.inf:
            raise ValueError(f"label_temperature must be a number above 0, got {self.label_temperature}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, got {self.weight}")
        for name in LINEAR:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {getattr(self, name)}")

    @property
    def judged(self) -> bool:
        """Whether a linear classifier, where there is one, changes the votes."""
        return self.scoring == "votes" and (self.linear_strength > 0 or self.linear_base > 0)

    def depths(self) -> tuple[int, int]:
        """Label keys and document keys to look for."""
        sides = (self.label_depth, self.document_depth) if self.search == "two-sided" else (self.depth, self.depth)
        unsearched = self.weight == 1 and self.search == "two-sided"
        return 0 if unsearched else sides[0], 0 if self.weight == 0 else sides[1]


SIMILARITY = Voting(scoring="similarity")


@dataclass(frozen=True, eq=False)
class Query:
    """What is asked of a memory, of n texts at a time.

    Args:
        vectors: (n, D) float32, on the device of the keys.
        words: (n, F) what a linear classifier looks at in the texts, see `Memory.ask`; None where none reranks.
        allowed: label numbers to choose from, as though the others and documents without one of these were not there;
            None for all.
        left_out: (places,) mask of document keys that do not take part; None for none.
    """

    vectors: Tensor
    words: sp.csr_array | None = None
    allowed: IntArray | None = None
    left_out: BoolArray | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a memory answers.

    Args:
        numbers: (n, k) int64 label numbers, falling in score, -1 for none.
        scores: (n, k) float32, -inf for none.
        nearest: the keys that voted, for whoever wants reasons.
    """

    numbers: IntArray
    scores: Scores
    nearest: Nearest


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest keys of n queries, the two kinds apart; falling in similarity, -inf and -1 for none.

    Args:
        label_similarities: (n, a) float32.
        labels: (n, a) label numbers of the label keys.
        document_similarities: (n, c) float32.
        documents: (n, c) places of the document keys.
    """

    label_similarities: Scores
    labels: IntArray
    document_similarities: Scores
    documents: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: slice) -> Nearest:
        """Some queries."""
        return Nearest(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


def weigh(nearest: Nearest, voting: Voting) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray]:
    """Softmax weights of the nearest keys, which are at least as deep as the voting asks, and which keys vote.

    Returns:
        weights of label keys (n, a) and of document keys (n, c), before the weight of the kinds, and masks of the same
        shapes. The weights of a row sum to 1, with a softmax ``apart`` those of each kind.
    """
    a = nearest.labels.shape[1]
    parts = [nearest.label_similarities, nearest.document_similarities]
    similarities = np.concatenate(parts, axis=1).astype(np.float64)
    wanted = np.concatenate([nearest.labels, nearest.documents], axis=1) >= 0
    label_depth, document_depth = voting.depths()
    columns = np.arange(similarities.shape[1])
    wanted &= np.where(columns < a, columns < label_depth, columns - a < document_depth)
    if voting.search == "joint" and similarities.shape[1] > voting.depth:
        order = np.argsort(np.where(wanted, -similarities, np.inf), axis=1, kind="stable")
        first = np.zeros(similarities.shape, dtype=bool)
        np.put_along_axis(first, order[:, : voting.depth], True, axis=1)
        wanted &= first
    temperatures = np.where(columns < a, voting.label_temperature or voting.temperature, voting.temperature)
    weights = np.where(wanted, similarities / temperatures, -np.inf)
    for part in (slice(None),) if voting.softmax == "together" else (slice(a), slice(a, None)):
        top = weights[:, part].max(axis=1, keepdims=True, initial=-np.inf)
        own = np.exp(weights[:, part] - np.where(np.isfinite(top), top, 0.0))
        sums = own.sum(axis=1, keepdims=True)
        weights[:, part] = own / np.where(sums > 0, sums, 1.0)
    if voting.weight == 1:  # label keys took places, and vote for nothing
        wanted[:, :a] = False
    return weights[:, :a], weights[:, a:], wanted[:, :a], wanted[:, a:]
