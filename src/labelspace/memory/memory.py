"""Keys that vote for labels: what every model answers from.

Keys are of two kinds. A *label key* votes for its own label: its text, or a learned row. A *document key* votes for the
labels of a document. A query is compared with the keys, and the nearest ones vote (RAE-XMC, arXiv 2502.10615): with K
the keys, w = softmax(q K^T / temperature) over those retrieved, and Y the labels of the documents,

    score of label l = weight * sum_i w_i Y_il + (1 - weight) * w_l

With one softmax over the label keys and another over the document keys it is a mixture of a classifier and of nearest
neighbours. A memory of label keys alone, scored by similarity, is a dual encoder.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..base.strings import Strings
from ..errors import MissingExtraError, ModelError
from ..labels import numbers_in
from ..types import Labels, Reason
from .indexes import HnswIndex
from .indexes.faiss import PROBES, load_faiss
from .keys import (
    BoolArray,
    IntArray,
    Keys,
    Segment,
    strings_as_tensors,
    strings_from_tensors,
    warn_of_lost_graphs,
)
from .linear import LinearClassifier
from .voting import LINEAR, SIMILARITY, FloatArray, Found, Votes, Voting, weigh

logger = logging.getLogger(__name__)

VOTE_BLOCK = 512
"""Queries whose votes are gathered at a time."""
TOGETHER = 4
"""Up to so many queries label keys and document keys are searched at the same time, where both have graphs."""
FEW, SORTED = 1000, 16
"""Votes of up to so many voters are sorted, and of more where there are so many times as many labels as voters."""
JUDGED = 100
"""Labels of a query whose votes a linear classifier changes, the best ones; with a larger k as many as that."""
GRAPH_FROM = 10_000
"""Keys of a segment from which on a graph is worth building; of fewer a scan is as fast, and exact."""


class Memory:
    """Label keys and document keys, and how they vote.

    Label *numbers* 0 to L - 1 count the labels that are there; *slots* are the numbers they were given for good.

    Args:
        labels: one key a label that is there; each votes for its slot with 1.
        documents: keys that vote for the slots of their labels; of fewer dimensions than the label keys, they are
            compared with the first columns of a query.
        voting: how keys vote.
        slots: label slots given so far.
        removed: ids that are gone, by kind, each with the `digest` of its text.
        linear: a linear classifier that judges the labels voted for by the words of a text.
    """

    def __init__(
        self,
        labels: Keys,
        documents: Keys | None = None,
        voting: Voting = SIMILARITY,
        slots: int | None = None,
        removed: dict[str, dict[str, bytes]] | None = None,
        linear: LinearClassifier | None = None,
    ):
        self.label_keys = labels
        self.document_keys = Keys([], labels.dim) if documents is None else documents
        self.voting = voting
        self.slots = len(labels) if slots is None else slots
        self.removed = removed if removed is not None else {"labels": {}, "documents": {}}
        self.linear = linear
        self.linear_file: str | None = None
        self._rows: IntArray | None = None
        self.named = True
        self.renumber()

    @classmethod
    def of_labels(cls, keys: Tensor, labels: Labels | None = None) -> Memory:
        """A dual encoder's memory: L label keys, key i of label i.

        Args:
            keys: (L, D) label vectors.
            labels: ids and texts of the labels; without them no reasons can be given, and nothing changed.
        """
        n = len(keys)
        nameless = Strings(np.zeros(0, dtype=np.uint8), np.zeros(n + 1, dtype=np.int64))
        segment = Segment(keys, np.arange(n + 1), np.arange(n, dtype=np.int32), None, nameless, nameless)
        memory = cls(Keys([segment], keys.shape[1]))
        memory.named = False
        if labels is not None:
            memory.name(labels)
        return memory

    def name(self, labels: Labels) -> None:
        """Give the labels of `of_labels` their ids and texts.

        Args:
            labels: as many as there are keys.
        """
        (segment,) = self.label_keys.segments
        segment.ids, segment.texts = Strings.of(labels.ids), Strings.of(labels.texts)
        self.named = True

    def renumber(self) -> None:
        """Number the labels that are there; to be called after a change of the label keys."""
        places = self.label_keys.present()
        _, slots, _ = self.label_keys.votes(places)
        place_of_slot = np.full(self.slots, -1, dtype=np.int64)
        place_of_slot[slots] = places
        self.slot_of = np.flatnonzero(place_of_slot >= 0)
        self.place_of = place_of_slot[self.slot_of]
        self.number_of = np.full(self.slots, -1, dtype=np.int64)
        self.number_of[self.slot_of] = np.arange(len(self.slot_of))
        self._number_of_place = np.full(int(self.label_keys.starts[-1]) + 1, -1, dtype=np.int64)  # the last for -1
        self._number_of_place[places] = self.number_of[slots]
        self._rows = None

    @property
    def n_labels(self) -> int:
        """L, labels that can be voted for."""
        return len(self.slot_of)

    @property
    def n_documents(self) -> int:
        """Documents that are there, those without a label left included."""
        return len(self.document_keys)

    @property
    def n_silent(self) -> int:
        """Documents that are there and vote for nothing, since all their labels were removed."""
        return self.document_keys.silent

    @property
    def keys(self) -> Tensor:
        """(L, D) label keys, in label order."""
        segments = self.label_keys.segments
        if len(segments) == 1 and len(self.place_of) == len(segments[0]) and segments[0].state is None:
            whole = segments[0].keys
        else:
            whole = torch.cat([s.keys for s in segments]) if segments else torch.zeros(0, self.label_keys.dim)
        if len(self.place_of) == len(whole) and bool((self.place_of == np.arange(len(whole))).all()):
            return whole
        return whole[torch.from_numpy(self.place_of).to(whole.device)]

    @property
    def device(self) -> torch.device:
        """Where the keys are."""
        for keys in (self.label_keys, self.document_keys):
            for segment in keys.segments:
                return segment.keys.device
        return torch.device("cpu")

    @property
    def labels(self) -> Labels:
        """Ids and texts of the labels that are there, in the order of their numbers."""
        return Labels(self.label_keys.ids(self.place_of), self.label_keys.texts(self.place_of))

    @property
    def settings(self) -> dict[str, Any]:
        """How labels are scored, by name. A calibration holds for these settings alone."""
        values = dataclasses.asdict(self.voting)
        if not self.judges:
            values = {name: value for name, value in values.items() if name not in LINEAR}
        return values

    @property
    def judges(self) -> bool:
        """Whether a linear classifier changes the votes."""
        return self.linear is not None and self.voting.judged

    def set_linear(self, linear: LinearClassifier | None) -> None:
        """Put another linear classifier beside the keys, or none; it changes no votes before it is weighed.

        Args:
            linear: the classifier.
        """
        self.linear, self.linear_file, self._rows = linear, None, None
        self.voting = dataclasses.replace(self.voting, linear_strength=0.0, linear_base=0.0)

    def features(self, texts: Sequence[str]) -> sp.csr_array | None:
        """What a linear classifier looks at in texts; None where none changes the votes.

        Args:
            texts: n texts.
        """
        return self.linear.features(texts) if self.linear is not None and self.judges else None

    def linear_rows(self, numbers: IntArray) -> IntArray:
        """Rows of the linear classifier for labels.

        Args:
            numbers: label numbers of any shape, -1 for none.

        Returns:
            Rows of the same shape, -1 for labels without one.
        """
        if self._rows is None:
            own = numbers_in(self.labels.ids, () if self.linear is None else self.linear.ids)
            self._rows = np.concatenate([own, [-1]])  # the last for no label
        return self._rows[numbers]

    # Answering

    def search(
        self,
        queries: Tensor,
        label_depth: int,
        document_depth: int,
        labels: IntArray | None = None,
        left_out: BoolArray | None = None,
    ) -> Found:
        """The nearest keys of each query.

        Args:
            queries: (n, D) float32, on the device of the keys.
            label_depth: label keys a query; 0 looks for none.
            document_depth: document keys a query; 0 looks for none.
            labels: label numbers to choose from, as though the others and documents without one of these were not
                there; None for all.
            left_out: (places,) mask of document keys that do not take part.
        """
        skip = None
        if labels is not None:
            chosen = np.zeros(self.slots, dtype=bool)
            chosen[self.slot_of[labels]] = True
            skip = np.ones(int(self.label_keys.starts[-1]), dtype=bool)
            skip[self.place_of[labels]] = False
            if document_depth:
                silent = ~self.document_keys.voters(chosen)
                left_out = silent if left_out is None else left_out | silent
        empty = np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        beside = None
        if label_depth and document_depth and len(queries) <= TOGETHER and self._both_by_graphs():
            beside = _second_thread().submit(self.label_keys.search, queries, label_depth, skip)
        wide = self.document_keys.dim
        own = queries if wide == queries.shape[1] else queries[:, :wide].contiguous()
        documents = self.document_keys.search(own, document_depth, left_out) if document_depth else empty
        if beside is not None:
            values, places = beside.result()
        else:
            values, places = self.label_keys.search(queries, label_depth, skip) if label_depth else empty
        return Found(values, self._number_of_place[places], *documents)

    def _both_by_graphs(self) -> bool:
        kinds = (self.label_keys.segments, self.document_keys.segments)
        return all(any(isinstance(s.index, HnswIndex) for s in segments) for segments in kinds)

    def predict(
        self,
        queries: Tensor,
        k: int,
        labels: IntArray | None = None,
        left_out: BoolArray | None = None,
        features: sp.csr_array | None = None,
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """The best labels of each query.

        Args:
            queries: (n, D) float32, on the device of the keys.
            k: labels a query.
            labels: label numbers to choose from, as though there were no others; None for all.
            left_out: (places,) mask of document keys that do not vote.
            features: of the texts, as `features` gives them; without them a linear classifier does not judge.

        Returns:
            label numbers (n, k) int64, falling in score and padded with -1, and scores (n, k) float32, padded with
            -inf. Equal scores are ordered by label number; which of several equally similar keys is found last is left
            open.
        """
        if self.voting.scoring == "similarity":
            found = self.search(queries, k, 0, labels)
            return _padded(found.labels, found.label_similarities, k)
        found = self.search(queries, *self.voting.depths(), labels, left_out)
        return self._judged(self.rank(found, self.voting, self._depth(k, features), labels), k, features)

    def rank(
        self, found: Found, voting: Voting, k: int, labels: IntArray | None = None
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """The best labels by the votes of the keys found, as `predict` gives them.

        Args:
            found: nearest keys.
            voting: how they vote.
            k: labels a query.
            labels: label numbers to choose from.
        """
        numbers = np.full((len(found), k), -1, dtype=np.int64)
        scores = np.full((len(found), k), -np.inf, dtype=np.float32)
        chosen = self._chosen(labels)
        for start in range(0, len(found), VOTE_BLOCK):
            part = slice(start, start + VOTE_BLOCK)
            numbers[part], scores[part] = _best(*self._sums(found.rows(part), voting, chosen), k)
        return numbers, scores

    def _depth(self, k: int, features: sp.csr_array | None) -> int:
        """How many labels are ranked by votes where k are wanted."""
        return k if features is None or not self.judges else max(k, min(JUDGED, self.n_labels))

    def _judged(
        self, ranked: tuple[IntArray, npt.NDArray[np.float32]], k: int, features: sp.csr_array | None
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """The k best labels after the linear classifier has judged those that were ranked."""
        if features is None or not self.judges:
            return ranked
        numbers, scores = ranked
        return _padded(numbers, scores * self.factors(features, numbers), k)

    def factors(self, features: sp.csr_array, numbers: IntArray) -> npt.NDArray[np.float32]:
        """What a linear classifier multiplies the votes of labels by.

        Args:
            features: (n, F) of the texts.
            numbers: (n, k) label numbers, -1 for none.
        """
        return np.exp(self._exponents(features, self.linear_rows(numbers)))

    def _exponents(self, features: sp.csr_array, rows: IntArray) -> npt.NDArray[np.float32]:
        assert self.linear is not None
        evidence = self.linear.evidence(features, rows)
        return self.linear.exponents(evidence, rows, *(getattr(self.voting, name) for name in LINEAR))

    def predict_among(
        self,
        queries: Tensor,
        k: int,
        labels: IntArray,
        left_out: BoolArray | None = None,
        features: sp.csr_array | None = None,
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """The best of some labels with the scores that they have among all, unlike `predict`.

        Args:
            queries: (n, D) float32, on the device of the keys.
            k: labels a query.
            labels: label numbers to choose from.
            left_out: (places,) mask of document keys that do not vote.
            features: as for `predict`.

        Returns:
            As `predict`; labels that no key votes for are not among them.
        """
        if self.voting.scoring == "similarity":
            return self.predict(queries, k, labels, left_out)
        found = self.search(queries, *self.voting.depths(), None, left_out)
        depth = self._depth(k, features)
        numbers = np.full((len(found), depth), -1, dtype=np.int64)
        scores = np.full((len(found), depth), -np.inf, dtype=np.float32)
        chosen = self._chosen(labels)
        assert chosen is not None
        for start in range(0, len(found), VOTE_BLOCK):
            part = slice(start, start + VOTE_BLOCK)
            indptr, columns, values = self._sums(found.rows(part), self.voting)
            kept = chosen[columns]
            indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
            numbers[part], scores[part] = _best(indptr, columns[kept], values[kept], depth)
        return self._judged((numbers, scores), k, features)

    def _sums(
        self, found: Found, voting: Voting, chosen: BoolArray | None = None
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Scores of the labels voted for as CSR: row pointers, label numbers, sums.

        A sparse product works in arrays of L numbers, which is much for a few queries; theirs are sorted instead.
        """
        voters = found.labels.size + found.documents.size
        if voters > FEW and SORTED * voters > self.n_labels:
            sums = self._cast(found, voting, chosen)[0]
            return sums.indptr, sums.indices, sums.data
        label_weights, document_weights, label_mask, document_mask = weigh(found, voting)
        rows, columns = document_mask.nonzero()
        counts, numbers, values = self.votes_of(found.documents[rows, columns], voting.votes, chosen)
        label_rows, label_columns = label_mask.nonzero()
        pairs = np.concatenate(
            [
                np.repeat(rows, counts) * self.n_labels + numbers,
                label_rows * self.n_labels + found.labels[label_rows, label_columns],
            ]
        )
        votes = np.concatenate(
            [
                np.repeat(voting.weight * document_weights[rows, columns], counts) * values,
                (1 - voting.weight) * label_weights[label_rows, label_columns],
            ]
        )
        order = np.argsort(pairs, kind="stable")
        pairs = pairs[order]
        first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]])[: len(pairs)])
        sums_of = np.add.reduceat(votes[order], first) if len(first) else np.zeros(0)
        met = pairs[first]
        ends = np.searchsorted(met, np.arange(1, len(found) + 1) * self.n_labels)
        return np.concatenate([[0], ends]), met % max(1, self.n_labels), sums_of

    def _chosen(self, labels: IntArray | None) -> BoolArray | None:
        if labels is None:
            return None
        chosen = np.zeros(self.n_labels, dtype=bool)
        chosen[labels] = True
        return chosen

    def _cast(
        self, found: Found, voting: Voting, chosen: BoolArray | None = None
    ) -> tuple[sp.csr_array, sp.csr_array, sp.csr_array]:
        """Count the votes: (n, L) scores = (n, m) weights of m voters times (m, L) votes; no array of n x L."""
        label_weights, document_weights, label_mask, document_mask = weigh(found, voting)
        documents = found.documents[document_mask]
        counts, numbers, values = self.votes_of(documents, voting.votes, chosen)
        own = found.labels[label_mask]
        indptr = np.cumsum(np.concatenate([[0], counts, np.ones(len(own), dtype=np.int64)]))
        votes = _csr(
            np.concatenate([values, np.ones(len(own))]),
            np.concatenate([numbers, own]),
            indptr,
            (len(counts) + len(own), self.n_labels),
        )
        mask = np.concatenate([document_mask, label_mask], axis=1)
        voter = np.zeros(mask.shape, dtype=np.int64)
        voter[:, : document_mask.shape[1]][document_mask] = np.arange(len(counts))
        voter[:, document_mask.shape[1] :][label_mask] = len(counts) + np.arange(len(own))
        weights = np.concatenate([voting.weight * document_weights, (1 - voting.weight) * label_weights], axis=1)
        rows = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
        cast = _csr(weights[mask], voter[mask], rows, (len(found), votes.shape[0]))
        return sp.csr_array(cast @ votes), cast, votes

    def votes_of(
        self, places: IntArray, votes: Votes, chosen: BoolArray | None = None
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Labels that some documents vote for.

        Args:
            places: (m,) places of document keys.
            votes: raw or normalized.
            chosen: (L,) mask of the labels that count; None for all.

        Returns:
            votes a document (m,), and label numbers and values of all of them, end to end.
        """
        counts, slots, given = self.document_keys.votes(places)
        numbers, values = self.number_of[slots], given.astype(np.float64)
        kept = numbers >= 0 if chosen is None else (numbers >= 0) & chosen[numbers]
        if not kept.all():
            running = np.concatenate([[0], np.cumsum(kept)])
            ends = np.concatenate([[0], np.cumsum(counts)])
            counts = np.diff(running[ends])
            numbers, values = numbers[kept], values[kept]
        if votes == "normalized" and len(values):
            rows = np.repeat(np.arange(len(counts)), counts)
            values /= np.bincount(rows, weights=values, minlength=len(counts))[rows]
        return counts, numbers, values

    def explain(
        self,
        queries: Tensor,
        numbers: IntArray,
        labels: IntArray | None = None,
        left_out: BoolArray | None = None,
        features: sp.csr_array | None = None,
    ) -> list[list[list[Reason]]]:
        """Which keys voted for predicted labels, and what each vote was worth.

        Args:
            queries: (n, D) float32, on the device of the keys.
            numbers: (n, k) predicted label numbers, -1 for none.
            labels: as for `predict`.
            left_out: as for `predict`.
            features: as for `predict`; what a linear classifier changed is a reason of its own then, whose share is
                below 0 where it lowered the score.

        Returns:
            For each query and each of its labels the reasons, largest share first; shares sum to the score.
        """
        places: list[tuple[Literal["label", "document"], int]] = []
        entries: list[list[list[tuple[int, float, float]]]] = []
        if self.voting.scoring == "similarity":
            for row, wanted in enumerate(numbers.tolist()):
                own = [int(self.place_of[number]) for number in wanted if number >= 0]
                similarities = self.label_keys.vectors(np.array(own, dtype=np.int64)).float() @ queries[row]
                entries.append([])
                for place, similarity in zip(own, similarities.tolist(), strict=True):
                    entries[-1].append([(len(places), similarity, similarity)])
                    places.append(("label", place))
        else:
            found = self.search(queries, *self.voting.depths(), labels, left_out)
            for start in range(0, len(found), VOTE_BLOCK):
                part = found.rows(slice(start, start + VOTE_BLOCK))
                wanted_part = numbers[start : start + VOTE_BLOCK].tolist()
                entries += self._shares(part, wanted_part, self._chosen(labels), places)
        kinds = {"label": self.label_keys, "document": self.document_keys}
        names: dict[int, tuple[str, str]] = {}
        for kind, keys in kinds.items():
            mine = [i for i, (own, _) in enumerate(places) if own == kind]
            which = np.array([places[i][1] for i in mine], dtype=np.int64)
            names.update(zip(mine, zip(keys.ids(which), keys.texts(which), strict=True), strict=True))
        told = [
            [
                [Reason(places[i][0], *names[i], similarity, share) for i, similarity, share in reasons]
                for reasons in row
            ]
            for row in entries
        ]
        if features is not None and self.judges:
            self._tell_words(told, numbers, features)
        return told

    def _tell_words(self, told: list[list[list[Reason]]], numbers: IntArray, features: sp.csr_array) -> None:
        """Add to reasons what the linear classifier made of the votes."""
        assert self.linear is not None
        rows = self.linear_rows(numbers)
        exponents = self._exponents(features, rows)
        for query, labels in enumerate(told):
            own = sp.csr_array(features[[query]])
            for reasons, place in zip(labels, np.flatnonzero(numbers[query] >= 0).tolist(), strict=True):
                row, votes = int(rows[query, place]), sum(reason.share for reason in reasons)
                if row >= 0:
                    words = ", ".join(self.linear.telling(own, row)) or "none of its words"
                    exponent = float(exponents[query, place])
                    reasons.append(Reason("words", "", words, exponent, votes * math.expm1(exponent)))
                    reasons.sort(key=lambda reason: -reason.share)

    def _shares(
        self,
        found: Found,
        wanted: list[list[int]],
        chosen: BoolArray | None,
        places: list[tuple[Literal["label", "document"], int]],
    ) -> list[list[list[tuple[int, float, float]]]]:
        """Entries (number in `places`, similarity, share) of each wanted label; `places` grows by the voters met."""
        _, cast, votes = self._cast(found, self.voting, chosen)
        *_, label_mask, document_mask = weigh(found, self.voting)
        documents, own = found.documents[document_mask], self.place_of[found.labels[label_mask]]
        similarities = np.concatenate(
            [found.document_similarities[document_mask], found.label_similarities[label_mask]]
        )
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

    # Indexes

    def build_graphs(
        self,
        *,
        recall: float = 0.97,
        smallest: int = GRAPH_FROM,
        depth: int | None = None,
        queries: Tensor | None = None,
        links: int = 24,
        ef_construction: int = 80,
        seed: int = 0,
    ) -> None:
        """Search large segments of keys through graphs (HNSW) from now on; those that have a graph get another.

        Args:
            recall: share of the nearest keys to find, which decides how far a search looks.
            smallest: segments of fewer keys are scanned exactly.
            depth: how many nearest keys the recall is measured on; None for as many as a prediction asks for, and 100
                where labels are ranked by similarity.
            queries: (n, D) float32, texts to measure it with. None for documents drawn from the memory, in the search
                for documents moved by a tenth of their length in a random direction, so that no query is a key.
            links: neighbours of a key in the graph, M.
            ef_construction: candidates looked at for a new key.
            seed: of the draw.

        Raises:
            MissingExtraError: without the extra ``ann``.
            SettingsError: a recall that is no share, or a depth below 1.
        """
        load_faiss()
        depths = (100, 100) if self.voting.scoring == "similarity" else self.voting.depths()
        for keys, own in ((self.label_keys, depths[0]), (self.document_keys, depths[1])):
            given = queries if queries is None else queries[:, : keys.dim].contiguous()
            alike = self.label_keys.dim == self.document_keys.dim
            if given is None and keys is self.label_keys and self.n_documents and alike:
                places = self.document_keys.present()
                drawn = np.random.default_rng(seed).choice(places, min(PROBES, len(places)), replace=False)
                given = self.document_keys.vectors(np.sort(drawn)).float()
            for segment in keys.segments:
                if len(segment) < max(1, smallest):
                    segment.drop_graph()
                    continue
                segment.build_graph(
                    given,
                    target=recall,
                    depth=(own or 100) if depth is None else depth,
                    links=links,
                    ef_construction=ef_construction,
                    seed=seed,
                )

    def drop_graphs(self) -> None:
        """Scan every key from now on."""
        for segment in (*self.label_keys.segments, *self.document_keys.segments):
            segment.drop_graph()

    def indexes(self) -> list[dict[str, Any]]:
        """How each segment is searched: ``keys`` (labels or documents), ``count``, ``kind`` (exact or hnsw), and of a
        graph ``recall``, ``ef_search`` and ``depth``."""
        kinds = (("labels", self.label_keys), ("documents", self.document_keys))
        return [
            {"keys": kind, "count": len(segment), "kind": "exact" if segment.graph is None else "hnsw"}
            | (segment.graph or {})
            for kind, keys in kinds
            for segment in keys.segments
        ]

    # Keeping

    def compacted(self) -> Memory:
        """The same memory in one segment a kind, slots numbered anew; itself where it is like that already."""
        kinds = (self.label_keys, self.document_keys)
        whole = len(self.label_keys.segments) == 1 and len(self.document_keys.segments) <= 1
        if whole and self.slots == self.n_labels and all(s.state is None for keys in kinds for s in keys.segments):
            if bool((self.place_of == np.arange(self.n_labels)).all()):
                return self
        labels = self.labels
        label_keys = self.keys
        named = Memory.of_labels(label_keys, labels)
        if [label_keys is segment.keys for segment in self.label_keys.segments] == [True]:
            named.label_keys.segments[0].take_graph(self.label_keys.segments[0])
        else:
            warn_of_lost_graphs(self.label_keys.segments)
        segments = []
        places = self.document_keys.present()
        if len(places):
            joined = Segment.joined(self.document_keys.segments)
            counts, numbers, values = self.votes_of(places, "raw")
            segments = [
                Segment(
                    joined.keys,
                    np.concatenate([[0], np.cumsum(counts)]),
                    numbers.astype(np.int32),
                    None if (values == 1).all() else values.astype(np.float32),
                    joined.ids,
                    joined.texts,
                    joined.state,
                )
            ]
            segments[0].take_graph(joined)
        documents = Keys(segments, self.document_keys.dim)
        made = Memory(named.label_keys, documents, self.voting, self.n_labels, self.removed, self.linear)
        made.linear_file = self.linear_file
        return made

    def write(self, folder: Path, fresh: int) -> dict[str, Any]:
        """Write what has no file yet, under new names, and say what the memory consists of.

        Args:
            folder: an existing folder.
            fresh: a number for names that no file has.

        Returns:
            What `open` needs; ``files`` are the names of the memory's files.
        """
        entry: dict[str, Any] = {**self.settings, "slots": self.slots, "segments": {}, "changes": None, "graphs": {}}
        if self.document_keys.dim != self.label_keys.dim:
            entry["document_dim"] = self.document_keys.dim
        if self.linear is not None:
            if self.linear_file is None:
                self.linear_file = f"linear-{fresh}.safetensors"
                self.linear.write(folder / self.linear_file)
            entry["linear"] = self.linear_file
        extra: dict[str, Tensor] = {}
        for kind, keys in (("labels", self.label_keys), ("documents", self.document_keys)):
            entry["segments"][kind] = []
            for number, segment in enumerate(keys.segments):
                if segment.file is None:
                    name = f"{kind}-{fresh}{f'-{number}' if number else ''}.safetensors"
                    segment.write(folder / name)
                    segment.file = name
                entry["segments"][kind].append(segment.file)
                if isinstance(segment.index, HnswIndex) and segment.graph_file is None:
                    name = f"{kind}-{fresh}{f'-{number}' if number else ''}.hnsw"
                    segment.index.save(folder / name)
                    segment.graph_file = name
                if segment.graph is not None and segment.graph_file is None:  # the extra is missing
                    warn_of_lost_graphs([segment])
                    segment.drop_graph()
                if segment.graph is not None:
                    entry["graphs"][segment.file] = {"file": segment.graph_file, **segment.graph}
                if segment.state is not None:
                    extra[f"state.{segment.file}"] = torch.from_numpy(segment.state)
            if self.removed[kind]:
                extra.update(strings_as_tensors(f"removed.{kind}", Strings.of(self.removed[kind])))
                digests = np.frombuffer(b"".join(self.removed[kind].values()), dtype=np.uint8)
                extra[f"removed.{kind}.digests"] = torch.from_numpy(digests.copy())
        if extra:
            entry["changes"] = f"changes-{fresh}.safetensors"
            save_file(extra, folder / entry["changes"])
        return entry

    @staticmethod
    def files(entry: dict[str, Any]) -> list[str]:
        """Names of the files of a memory.

        Args:
            entry: what `write` returned.
        """
        names = [*entry["segments"]["labels"], *entry["segments"]["documents"]]
        names += [graph["file"] for graph in entry.get("graphs", {}).values()]
        names += [entry["linear"]] if entry.get("linear") else []
        return names + ([entry["changes"]] if entry["changes"] else [])

    @classmethod
    def open(cls, folder: Path, entry: dict[str, Any], device: str = "cpu") -> Memory:
        """Open what `write` wrote; on a CPU keys and texts are mapped, not read, and so are graphs.

        Without the extra ``ann`` a warning says that graphs are not used.

        Args:
            folder: the folder.
            entry: what `write` returned.
            device: where to put the keys.

        Raises:
            ModelError: a file that is missing or damaged, by name.
        """
        file = folder
        can_search = True
        if entry.get("graphs"):
            try:
                load_faiss()
            except MissingExtraError as error:
                can_search = False
                logger.warning("every key is scanned, since %s", error)
        try:
            voting = Voting(
                **{"softmax": "together", "label_temperature": None}
                | {f.name: entry[f.name] for f in dataclasses.fields(Voting) if f.name in entry}
            )
            kinds = {}
            for kind in ("labels", "documents"):
                segments = []
                for name in entry["segments"][kind]:
                    file = folder / name
                    segments.append(Segment.open(file, device))
                    if int(segments[-1].indptr[-1]) != len(segments[-1].slots):
                        raise ValueError("its votes do not fit together")
                kinds[kind] = segments
            for segment in [*kinds["labels"], *kinds["documents"]]:
                graph = dict(entry.get("graphs", {}).get(segment.file, {}))
                if graph:
                    segment.graph_file, segment.graph = graph.pop("file"), graph
                    file = folder / str(segment.graph_file)
                    if can_search:
                        segment.index = HnswIndex.load(file, segment.keys, graph)
            removed: dict[str, dict[str, bytes]] = {"labels": {}, "documents": {}}
            if entry["changes"]:
                file = folder / entry["changes"]
                extra = load_file(file)
                for segment in [*kinds["labels"], *kinds["documents"]]:
                    if f"state.{segment.file}" in extra:
                        segment.state = extra[f"state.{segment.file}"].numpy().copy()
                        if len(segment.state) != len(segment):
                            raise ValueError(f"it does not fit {segment.file}")
                for kind, ids in removed.items():
                    if f"removed.{kind}.digests" in extra:
                        digests = extra[f"removed.{kind}.digests"].numpy().tobytes()
                        names = strings_from_tensors(f"removed.{kind}", extra)
                        ids.update((name, digests[16 * i : 16 * i + 16]) for i, name in enumerate(names))
            linear = None
            if entry.get("linear"):
                file = folder / entry["linear"]
                linear = LinearClassifier.open(file)
            file = folder
            dim = kinds["labels"][0].keys.shape[1] if kinds["labels"] else 0
            documents = Keys(kinds["documents"], int(entry.get("document_dim", dim)))
            made = cls(Keys(kinds["labels"], dim), documents, voting, int(entry["slots"]), removed, linear)
            made.linear_file = entry.get("linear")
            return made
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
            raise ModelError(f"{file} is missing or damaged: {error}") from error


@functools.cache
def _second_thread() -> ThreadPoolExecutor:
    """For a search of label keys beside one of document keys: a graph uses one processor for one query."""
    return ThreadPoolExecutor(1, thread_name_prefix="labelspace-search")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_second_thread.cache_clear)  # threads do not survive a fork


def _csr(values: FloatArray, indices: IntArray, indptr: IntArray, shape: tuple[int, int]) -> sp.csr_array:
    """CSR with 32-bit numbers where they do; SciPy would copy to make them so."""
    small = max(len(indices), *shape) < 2**31
    kind = np.int32 if small else np.int64
    return sp.csr_array((values, indices.astype(kind, copy=False), indptr.astype(kind, copy=False)), shape=shape)


def _best(indptr: IntArray, columns: IntArray, values: FloatArray, k: int) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """The k largest entries of each CSR row, falling, ties by column; entries are distinct within a row."""
    counts = np.diff(indptr)
    n, widest = len(counts), int(counts.max(initial=0))
    if n == 1 and widest > k:
        own = values.astype(np.float32)
        own_numbers, own = (array[own >= np.partition(own, widest - k)[widest - k]] for array in (columns, own))
        order = np.lexsort((own_numbers, -own))[:k]
        return own_numbers[order][None].astype(np.int64), own[order][None]
    there = np.arange(widest) < counts[:, None]
    scores = np.full((n, widest), -np.inf, dtype=np.float32)
    numbers = np.full((n, widest), -1, dtype=np.int64)
    scores[there], numbers[there] = values, columns
    if widest > k:
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        last = np.take_along_axis(scores, top, axis=1).min(axis=1, keepdims=True)
        tied = np.flatnonzero(((scores >= last) & there).sum(axis=1) > k)  # labels of one document, say
        for row in tied.tolist():
            at = np.flatnonzero(scores[row] >= last[row])
            top[row] = at[np.lexsort((numbers[row, at], -scores[row, at]))[:k]]
        scores, numbers = np.take_along_axis(scores, top, axis=1), np.take_along_axis(numbers, top, axis=1)
    return _padded(numbers, scores, k)


def _padded(numbers: IntArray, scores: npt.NDArray[np.float32], k: int) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """(n, k) in falling order, ties by label number, padded."""
    order = np.lexsort((np.where(numbers < 0, np.iinfo(np.int64).max, numbers), -scores), axis=1)[:, :k]
    out_numbers = np.full((len(numbers), k), -1, dtype=np.int64)
    out_scores = np.full((len(numbers), k), -np.inf, dtype=np.float32)
    width = order.shape[1]
    out_numbers[:, :width] = np.take_along_axis(numbers, order, axis=1)
    out_scores[:, :width] = np.take_along_axis(scores, order, axis=1)
    out_scores[out_numbers < 0] = -np.inf
    return out_numbers, out_scores
