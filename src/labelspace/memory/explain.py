"""Reasons: which keys voted for predicted labels, and what each vote was worth."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import scipy.sparse as sp

from ..types import Reason
from .keys import BoolArray, IntArray
from .memory import VOTE_BLOCK, Memory
from .voting import Found, Query, weigh


def explain(memory: Memory, query: Query, numbers: IntArray, found: Found) -> list[list[list[Reason]]]:
    """Which keys voted for predicted labels, and what each vote was worth.

    Args:
        memory: that was asked.
        query: what was asked.
        numbers: (n, k) predicted label numbers, -1 for none.
        found: the keys that the answer was made of.

    Returns:
        For each text and each of its labels the reasons, largest share first; shares sum to the score. What a linear
        classifier changed is a reason of its own, whose share is below 0 where it lowered the score.
    """
    places: list[tuple[Literal["label", "document"], int]] = []
    entries: list[list[list[tuple[int, float, float]]]] = []
    if memory.voting.scoring == "similarity":
        for row, wanted in enumerate(numbers.tolist()):
            own = [int(memory.place_of[number]) for number in wanted if number >= 0]
            similarities = memory.label_keys.vectors(np.array(own, dtype=np.int64)).float() @ query.vectors[row]
            entries.append([])
            for place, similarity in zip(own, similarities.tolist(), strict=True):
                entries[-1].append([(len(places), similarity, similarity)])
                places.append(("label", place))
    else:
        for start in range(0, len(found), VOTE_BLOCK):
            part = found.rows(slice(start, start + VOTE_BLOCK))
            wanted_part = numbers[start : start + VOTE_BLOCK].tolist()
            entries += _shares(memory, part, wanted_part, memory.mask_of(query.allowed), places)
    kinds = {"label": memory.label_keys, "document": memory.document_keys}
    names: dict[int, tuple[str, str]] = {}
    for kind, keys in kinds.items():
        mine = [i for i, (own, _) in enumerate(places) if own == kind]
        which = np.array([places[i][1] for i in mine], dtype=np.int64)
        names.update(zip(mine, zip(keys.ids(which), keys.texts(which), strict=True), strict=True))
    told = [
        [[Reason(places[i][0], *names[i], similarity, share) for i, similarity, share in reasons] for reasons in row]
        for row in entries
    ]
    if query.words is not None and memory.judges:
        _tell_words(memory, told, numbers, query.words)
    return told


def _tell_words(memory: Memory, told: list[list[list[Reason]]], numbers: IntArray, features: sp.csr_array) -> None:
    """Add to reasons what the linear classifier made of the votes."""
    assert memory.linear is not None
    rows = memory.linear_rows(numbers)
    exponents = memory.exponents(features, rows)
    for query, labels in enumerate(told):
        own = sp.csr_array(features[[query]])
        for reasons, place in zip(labels, np.flatnonzero(numbers[query] >= 0).tolist(), strict=True):
            row, votes = int(rows[query, place]), sum(reason.share for reason in reasons)
            if row >= 0:
                words = ", ".join(memory.linear.telling(own, row)) or "none of its words"
                exponent = float(exponents[query, place])
                reasons.append(Reason("words", "", words, exponent, votes * math.expm1(exponent)))
                reasons.sort(key=lambda reason: -reason.share)


def _shares(
    memory: Memory,
    found: Found,
    wanted: list[list[int]],
    chosen: BoolArray | None,
    places: list[tuple[Literal["label", "document"], int]],
) -> list[list[list[tuple[int, float, float]]]]:
    """Entries (number in `places`, similarity, share) of each wanted label; `places` grows by the voters met."""
    _, cast, votes = memory.cast(found, memory.voting, chosen)
    *_, label_mask, document_mask = weigh(found, memory.voting)
    documents, own = found.documents[document_mask], memory.place_of[found.labels[label_mask]]
    similarities = np.concatenate([found.document_similarities[document_mask], found.label_similarities[label_mask]])
    result = []
    for row, numbers in enumerate(wanted):
        reasons: dict[int, list[tuple[int, float, float]]] = {number: [] for number in numbers if number >= 0}
        for entry in range(cast.indptr[row], cast.indptr[row + 1]):
            voter = int(cast.indices[entry])
            number_of_voter = None
            for at in range(votes.indptr[voter], votes.indptr[voter + 1]):
                if int(votes.indices[at]) in reasons:
                    if number_of_voter is None:
                        number_of_voter = len(places)
                        if voter < len(documents):
                            places.append(("document", int(documents[voter])))
                        else:
                            places.append(("label", int(own[voter - len(documents)])))
                    share = float(cast.data[entry] * votes.data[at])
                    entry_of = (number_of_voter, float(similarities[voter]), share)
                    reasons[int(votes.indices[at])].append(entry_of)
        result.append([sorted(reasons[n], key=lambda reason: (-reason[2], reason[0])) for n in numbers if n >= 0])
    return result
