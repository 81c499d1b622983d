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
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ..base.strings import Strings
from ..labels import numbers_in
from ..types import Labels
from .indexes import HnswIndex
from .keys import BoolArray, IntArray, Keys, Segment, warn_of_dropped_graphs
from .linear import LinearClassifier
from .voting import LINEAR, SIMILARITY, Answer, FloatArray, Nearest, Query, Scores, Votes, Voting, weigh

VOTE_BLOCK = 512
"""Queries whose votes are gathered at a time."""
PARALLEL_SEARCH_MAX_QUERIES = 4
"""Up to so many queries label keys and document keys are searched at the same time, where both have graphs."""
SORTED_MAX_VOTERS, SORTED_LABELS_PER_VOTER = 1000, 16
"""Votes of up to so many voters are sorted, and of more where there are so many times as many labels as voters."""
RERANKED_LABELS = 100
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
        removed: ids of removed keys, by kind, each with the `digest` of its text.
        linear: a linear classifier that reranks the labels voted for by the words of a text.
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
        """A dual encoder's memory: L label keys (L, D), key i of label i.

        Without ``labels``, their ids and texts, no reasons can be given, and nothing changed.
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
        """Give the labels of `of_labels`, as many as there are keys, their ids and texts."""
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
        """Documents, those without a label left included."""
        return len(self.document_keys)

    @property
    def n_unlabelled(self) -> int:
        """Documents that vote for nothing, since all their labels were removed."""
        return self.document_keys.unlabelled

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
    def segments(self) -> list[Segment]:
        """All segments, those of label keys first."""
        return [*self.label_keys.segments, *self.document_keys.segments]

    @property
    def device(self) -> torch.device:
        """Where the keys are."""
        return self.segments[0].keys.device if self.segments else torch.device("cpu")

    @property
    def labels(self) -> Labels:
        """Ids and texts of the labels that are there, in the order of their numbers."""
        return Labels(self.label_keys.ids(self.place_of), self.label_keys.texts(self.place_of))

    @property
    def settings(self) -> dict[str, Any]:
        """How labels are scored, by name. A calibration holds for these settings alone."""
        values = dataclasses.asdict(self.voting)
        return {name: value for name, value in values.items() if self.reranks or name not in LINEAR}

    @property
    def reranks(self) -> bool:
        """Whether a linear classifier changes the votes."""
        return self.linear is not None and self.voting.judged

    def set_linear(self, linear: LinearClassifier | None) -> None:
        """Put another linear classifier beside the keys, or none; it changes no votes before it is weighed."""
        self.linear, self.linear_file, self._rows = linear, None, None
        self.voting = dataclasses.replace(self.voting, linear_strength=0.0, linear_base=0.0)

    def ask(
        self,
        vectors: Tensor,
        texts: Sequence[str],
        *,
        allowed: IntArray | None = None,
        left_out: BoolArray | None = None,
    ) -> Query:
        """A query for n texts and their vectors (n, D), with their words where a linear classifier reranks."""
        words = self.linear.features(texts) if self.linear is not None and self.reranks else None
        return Query(vectors, words, allowed, left_out)

    def linear_rows(self, numbers: IntArray) -> IntArray:
        """Rows of the linear classifier for label numbers of any shape; -1 for labels without one, and for -1."""
        if self._rows is None:
            own = numbers_in(self.labels.ids, () if self.linear is None else self.linear.ids)
            self._rows = np.concatenate([own, [-1]])  # the last for no label
        return self._rows[numbers]

    # Answering

    def search(self, query: Query, label_depth: int, document_depth: int) -> Nearest:
        """The nearest label keys and document keys of each text, as many as the two depths say; 0 looks for none."""
        queries, left_out, skip = query.vectors, query.left_out, None
        if query.allowed is not None:
            chosen = np.zeros(self.slots, dtype=bool)
            chosen[self.slot_of[query.allowed]] = True
            skip = np.ones(int(self.label_keys.starts[-1]), dtype=bool)
            skip[self.place_of[query.allowed]] = False
            if document_depth:
                others = ~self.document_keys.voters(chosen)
                left_out = others if left_out is None else left_out | others
        empty = np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        parallel = None
        if label_depth and document_depth and len(queries) <= PARALLEL_SEARCH_MAX_QUERIES and self._both_by_graphs():
            parallel = _second_thread().submit(self.label_keys.search, queries, label_depth, skip)
        dim = self.document_keys.dim
        own = queries if dim == queries.shape[1] else queries[:, :dim].contiguous()
        documents = self.document_keys.search(own, document_depth, left_out) if document_depth else empty
        if parallel is not None:
            values, places = parallel.result()
        else:
            values, places = self.label_keys.search(queries, label_depth, skip) if label_depth else empty
        return Nearest(values, self._number_of_place[places], *documents)

    def _both_by_graphs(self) -> bool:
        kinds = (self.label_keys.segments, self.document_keys.segments)
        return all(any(isinstance(s.index, HnswIndex) for s in segments) for segments in kinds)

    def predict(self, query: Query, k: int) -> tuple[IntArray, Scores]:
        """The best labels of each text.

        Args:
            query: what is asked.
            k: labels a text.

        Returns:
            label numbers (n, k) int64, falling in score and padded with -1, and scores (n, k) float32, padded with
            -inf. Equal scores are ordered by label number. Which of several equally similar keys is found last is open.

        Raises:
            ValueError: a linear classifier reranks, and the query has no words.
        """
        answer = self.answer(query, k)
        return answer.numbers, answer.scores

    def answer(self, query: Query, k: int, among: IntArray | None = None) -> Answer:
        """`predict`, with the keys that were found.

        Args:
            query: what is asked.
            k: labels a text.
            among: label numbers to give, with the scores that they have among all; labels that no key votes for are
                not among them. The query allows all.
        """
        if self.voting.scoring == "similarity":
            own = query if among is None else dataclasses.replace(query, allowed=among)
            nearest = self.search(own, k, 0)
            return Answer(*_padded(nearest.labels, nearest.label_similarities, k), nearest)
        if self.reranks and query.words is None:
            raise ValueError("a linear classifier reranks by words; make the query with Memory.ask, from the texts")
        nearest = self.search(query, *self.voting.depths())
        if not self.reranks:
            return Answer(*self.rank(nearest, self.voting, k, query.allowed, among), nearest)
        depth = max(k, min(RERANKED_LABELS, self.n_labels))
        numbers, scores = self.rank(nearest, self.voting, depth, query.allowed, among)
        return Answer(*_padded(numbers, scores * self.factors(query.words, numbers), k), nearest)

    def rank(
        self, nearest: Nearest, voting: Voting, k: int, allowed: IntArray | None = None, among: IntArray | None = None
    ) -> tuple[IntArray, Scores]:
        """What `predict` gives from the nearest keys, before a linear classifier reranks it.

        Args:
            nearest: the nearest keys of n texts.
            voting: how they vote.
            k: labels a text.
            allowed: label numbers whose votes count; None for all.
            among: label numbers to give; None for all.
        """
        numbers = np.full((len(nearest), k), -1, dtype=np.int64)
        scores = np.full((len(nearest), k), -np.inf, dtype=np.float32)
        counted, wanted = self.mask_of(allowed), self.mask_of(among)
        for start in range(0, len(nearest), VOTE_BLOCK):
            part = slice(start, start + VOTE_BLOCK)
            indptr, columns, values = self._sums(nearest.rows(part), voting, counted)
            if wanted is not None:
                kept = wanted[columns]
                indptr, columns, values = np.concatenate([[0], np.cumsum(kept)])[indptr], columns[kept], values[kept]
            numbers[part], scores[part] = _best(indptr, columns, values, k)
        return numbers, scores

    def factors(self, features: sp.csr_array, numbers: IntArray) -> Scores:
        """What a linear classifier multiplies the votes of labels (n, k) by; ``features`` (n, F) are of the texts."""
        return np.exp(self.exponents(features, self.linear_rows(numbers)))

    def exponents(self, features: sp.csr_array, rows: IntArray) -> Scores:
        """Logarithms of `factors`, of rows of the linear classifier (n, k), -1 for none."""
        assert self.linear is not None
        evidence = self.linear.evidence(features, rows)
        return self.linear.exponents(evidence, rows, *(getattr(self.voting, name) for name in LINEAR))

    def _sums(
        self, nearest: Nearest, voting: Voting, chosen: BoolArray | None = None
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Scores of the labels voted for as CSR: row pointers, label numbers, sums.

        A sparse product works in arrays of L numbers, which is much for a few queries; theirs are sorted instead.
        """
        voters = nearest.labels.size + nearest.documents.size
        if voters > SORTED_MAX_VOTERS and SORTED_LABELS_PER_VOTER * voters > self.n_labels:
            sums = self.cast(nearest, voting, chosen)[0]
            return sums.indptr, sums.indices, sums.data
        label_weights, document_weights, label_mask, document_mask = weigh(nearest, voting)
        rows, columns = document_mask.nonzero()
        counts, numbers, values = self.votes_of(nearest.documents[rows, columns], voting.votes, chosen)
        label_rows, label_columns = label_mask.nonzero()
        pairs = np.concatenate(
            [
                np.repeat(rows, counts) * self.n_labels + numbers,
                label_rows * self.n_labels + nearest.labels[label_rows, label_columns],
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
        ends = np.searchsorted(met, np.arange(1, len(nearest) + 1) * self.n_labels)
        return np.concatenate([[0], ends]), met % max(1, self.n_labels), sums_of

    def mask_of(self, labels: IntArray | None) -> BoolArray | None:
        """(L,) mask of label numbers; None for all."""
        if labels is None:
            return None
        chosen = np.zeros(self.n_labels, dtype=bool)
        chosen[labels] = True
        return chosen

    def cast(
        self, nearest: Nearest, voting: Voting, chosen: BoolArray | None = None
    ) -> tuple[sp.csr_array, sp.csr_array, sp.csr_array]:
        """Count the votes: (n, L) scores = (n, m) weights of m voters times (m, L) votes; no array of n x L."""
        label_weights, document_weights, label_mask, document_mask = weigh(nearest, voting)
        documents = nearest.documents[document_mask]
        counts, numbers, values = self.votes_of(documents, voting.votes, chosen)
        own = nearest.labels[label_mask]
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
        cast = _csr(weights[mask], voter[mask], rows, (len(nearest), votes.shape[0]))
        return sp.csr_array(cast @ votes), cast, votes

    def votes_of(
        self, places: IntArray, votes: Votes, chosen: BoolArray | None = None
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Labels that the documents at some places (m,) vote for; ``chosen`` (L,) is a mask of the labels that count.

        Returns:
            votes a document (m,), and label numbers and values of all of them, end to end.
        """
        counts, slots, relevances = self.document_keys.votes(places)
        numbers, values = self.number_of[slots], relevances.astype(np.float64)
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

    def drop_graphs(self) -> None:
        """Scan every key from now on."""
        for segment in self.segments:
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
        whole = len(self.label_keys.segments) == 1 and len(self.document_keys.segments) <= 1
        if whole and self.slots == self.n_labels and all(segment.state is None for segment in self.segments):
            if bool((self.place_of == np.arange(self.n_labels)).all()):
                return self
        label_keys = self.keys
        named = Memory.of_labels(label_keys, self.labels)
        if [label_keys is segment.keys for segment in self.label_keys.segments] == [True]:
            named.label_keys.segments[0].take_graph(self.label_keys.segments[0])
        else:
            warn_of_dropped_graphs(self.label_keys.segments)
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
        memory = Memory(named.label_keys, documents, self.voting, self.n_labels, self.removed, self.linear)
        memory.linear_file = self.linear_file
        return memory


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


def _best(indptr: IntArray, columns: IntArray, values: FloatArray, k: int) -> tuple[IntArray, Scores]:
    """The k largest entries of each CSR row, falling, ties by column; entries are distinct within a row."""
    counts = np.diff(indptr)
    n, widest = len(counts), int(counts.max(initial=0))
    if n == 1 and widest > k:
        own = values.astype(np.float32)
        own_numbers, own = (array[own >= np.partition(own, widest - k)[widest - k]] for array in (columns, own))
        order = np.lexsort((own_numbers, -own))[:k]
        return own_numbers[order][None].astype(np.int64), own[order][None]
    filled = np.arange(widest) < counts[:, None]
    scores = np.full((n, widest), -np.inf, dtype=np.float32)
    numbers = np.full((n, widest), -1, dtype=np.int64)
    scores[filled], numbers[filled] = values, columns
    if widest > k:
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        last = np.take_along_axis(scores, top, axis=1).min(axis=1, keepdims=True)
        tied = np.flatnonzero(((scores >= last) & filled).sum(axis=1) > k)  # labels of one document, say
        for row in tied.tolist():
            at = np.flatnonzero(scores[row] >= last[row])
            top[row] = at[np.lexsort((numbers[row, at], -scores[row, at]))[:k]]
        scores, numbers = np.take_along_axis(scores, top, axis=1), np.take_along_axis(numbers, top, axis=1)
    return _padded(numbers, scores, k)


def _padded(numbers: IntArray, scores: Scores, k: int) -> tuple[IntArray, Scores]:
    """(n, k) in falling order, ties by label number, padded."""
    order = np.lexsort((np.where(numbers < 0, np.iinfo(np.int64).max, numbers), -scores), axis=1)[:, :k]
    out_numbers = np.full((len(numbers), k), -1, dtype=np.int64)
    out_scores = np.full((len(numbers), k), -np.inf, dtype=np.float32)
    width = order.shape[1]
    out_numbers[:, :width] = np.take_along_axis(numbers, order, axis=1)
    out_scores[:, :width] = np.take_along_axis(scores, order, axis=1)
    out_scores[out_numbers < 0] = -np.inf
    return out_numbers, out_scores
