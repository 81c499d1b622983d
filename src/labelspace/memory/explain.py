"""Reasons: which keys voted for predicted labels, and what each vote was worth."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import scipy.sparse as sp

from ..types import Reason
from .keys import BoolArray, IntArray
from .memory import VOTE_BLOCK, Memory
from .voting import Nearest, Query, weigh

Kind = Literal["label", "document"]
Vote = tuple[Kind, int, float, float]
"""Kind and place of a key, its similarity to the query, and the share of the score that its vote gives."""


def explain(memory: Memory, query: Query, numbers: IntArray, nearest: Nearest) -> list[list[list[Reason]]]:
    """Which keys voted for predicted labels, and what each vote was worth.

    Args:
        memory: that was asked.
        query: what was asked.
        numbers: (n, k) predicted label numbers, -1 for none.
        nearest: the keys that the answer was made of.

    Returns:
        For each text and each of its labels the reasons, largest share first; shares sum to the score. What a linear
        classifier changed is a reason of its own, whose share is below 0 where it lowered the score.
    """
    votes: list[list[list[Vote]]] = []
    if memory.voting.scoring == "similarity":
        for row, labels in enumerate(numbers.tolist()):
            places = [int(memory.place_of[label]) for label in labels if label >= 0]
            similarities = memory.label_keys.vectors(np.array(places, dtype=np.int64)).float() @ query.vectors[row]
            votes.append([[("label", place, s, s)] for place, s in zip(places, similarities.tolist(), strict=True)])
    else:
        for start in range(0, len(nearest), VOTE_BLOCK):
            block = slice(start, start + VOTE_BLOCK)
            votes += _votes(memory, nearest.rows(block), numbers[block].tolist(), memory.mask_of(query.allowed))
    names = {}
    flat = [vote for row in votes for label in row for vote in label]
    for kind, keys in (("label", memory.label_keys), ("document", memory.document_keys)):
        own = np.unique(np.array([place for of, place, *_ in flat if of == kind], dtype=np.int64))
        for place, name, text in zip(own.tolist(), keys.ids(own), keys.texts(own), strict=True):
            names[kind, place] = name, text
    reasons = [
        [[Reason(kind, *names[kind, place], *worth) for kind, place, *worth in label] for label in row] for row in votes
    ]
    if query.words is not None and memory.reranks:
        _add_words(memory, reasons, numbers, query.words)
    return reasons


def _votes(memory: Memory, nearest: Nearest, wanted: list[list[int]], mask: BoolArray | None) -> list[list[list[Vote]]]:
    """The votes for each wanted label of each text, largest share first."""
    _, cast, votes = memory.cast(nearest, memory.voting, mask)
    *_, label_mask, document_mask = weigh(nearest, memory.voting)
    voters: list[tuple[Kind, int]] = [("document", place) for place in nearest.documents[document_mask].tolist()]
    voters += [("label", place) for place in memory.place_of[nearest.labels[label_mask]].tolist()]
    parts = [nearest.document_similarities[document_mask], nearest.label_similarities[label_mask]]
    similarities = np.concatenate(parts)
    result = []
    for row, labels in enumerate(wanted):
        own: dict[int, list[Vote]] = {label: [] for label in labels if label >= 0}
        for entry in range(cast.indptr[row], cast.indptr[row + 1]):
            voter = int(cast.indices[entry])
            for at in range(votes.indptr[voter], votes.indptr[voter + 1]):
                label = int(votes.indices[at])
                if label in own:
                    share = float(cast.data[entry] * votes.data[at])
                    own[label].append((*voters[voter], float(similarities[voter]), share))
        result.append([sorted(own[label], key=lambda vote: -vote[3]) for label in labels if label >= 0])
    return result


def _add_words(memory: Memory, reasons: list[list[list[Reason]]], numbers: IntArray, features: sp.csr_array) -> None:
    """Add to reasons what the linear classifier made of the votes."""
    assert memory.linear is not None
    rows = memory.linear_rows(numbers)
    exponents = memory.exponents(features, rows)
    for query, labels in enumerate(reasons):
        own = sp.csr_array(features[[query]])
        for of_label, place in zip(labels, np.flatnonzero(numbers[query] >= 0).tolist(), strict=True):
            row, votes = int(rows[query, place]), sum(reason.share for reason in of_label)
            if row >= 0:
                words = ", ".join(memory.linear.strongest_terms(own, row)) or "none of its words"
                exponent = float(exponents[query, place])
                of_label.append(Reason("words", "", words, exponent, votes * math.expm1(exponent)))
                of_label.sort(key=lambda reason: -reason.share)
