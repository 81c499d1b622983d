"""Words and phrases of a corpus, from which the vocabulary of the static encoder is chosen.

Texts are split into words by the tokenizers library, many at a time, and counted as arrays of word numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..base.words import composed
from .tokens import WINDOW

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IntArray = npt.NDArray[np.int64]

MIN_COUNT = 2
"""Words of documents, and label texts of several words, get a token of their own when documents have them this often;
single words of label texts always do."""
PHRASE_WORDS = 6
"""Words of the longest label text that becomes one token."""
PAIR_MIN_COUNT, PAIR_MIN_LIFT = 8, 10.0
"""Neighbours become one token when documents have them this often, and this many times as often as by chance."""
MAX_PAIRS = 3_000_000
"""Pairs met once are forgotten when this many are counted."""
BLOCK_TEXTS = 16_384
"""Texts split at a time."""
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd and without a pattern, so that products spread over all 64 bits."""


@dataclass
class WordCounts:
    """How often words, label texts of several words, and pairs of neighbours stand in documents.

    Args:
        words: W words of documents and labels.
        counts: (W,) how often each stands in documents.
        of_labels: (W,) whether it stands in a label text.
        phrases: label texts of several words, and how often documents have them.
        pairs: (P, 2) numbers of words that stand together in documents.
        pair_counts: (P,) how often.
    """

    words: list[str]
    counts: IntArray
    of_labels: npt.NDArray[np.bool_]
    phrases: dict[str, int]
    pairs: IntArray
    pair_counts: IntArray

    def choose_words(self, pieces: dict[str, int], limit: int) -> list[str]:
        """At most ``limit`` words that are no pieces yet: all of the labels, and the documents' frequent ones."""
        wanted = [
            (-int(self.counts[i]), self.words[i])
            for i in np.flatnonzero(self.of_labels | (self.counts >= MIN_COUNT)).tolist()
            if self.words[i] not in pieces and len(self.words[i]) <= 100
        ]
        return [word for _, word in sorted(wanted)[:limit]]

    def choose_phrases(self, limit: int) -> list[str]:
        """At most ``limit`` phrases: label texts of several words in documents, and pairs far above chance."""
        chosen = {phrase: count for phrase, count in self.phrases.items() if count >= MIN_COUNT}
        first, second = self.counts[self.pairs[:, 0]].astype(float), self.counts[self.pairs[:, 1]].astype(float)
        lift = self.pair_counts * float(self.counts.sum()) / np.maximum(first * second, 1.0)
        for i in np.flatnonzero((self.pair_counts >= PAIR_MIN_COUNT) & (lift >= PAIR_MIN_LIFT)).tolist():
            a, b = self.pairs[i].tolist()
            chosen.setdefault(f"{self.words[a]} {self.words[b]}", int(self.pair_counts[i]))
        return [phrase for _, phrase in sorted((-count, phrase) for phrase, count in chosen.items())[:limit]]


def count_words(tokenizer: Tokenizer, texts: Sequence[str], label_texts: Sequence[str], *, phrases: bool) -> WordCounts:
    """Count words, and phrases if they are wanted.

    Args:
        tokenizer: its normalizer and its way to split words are used.
        texts: documents.
        label_texts: texts of the labels.
        phrases: whether label texts of several words and pairs of neighbours are counted.
    """
    words = _Words(tokenizer, texts, label_texts)
    width = len(words.names)
    plain = np.array([word.isalnum() for word in words.names], dtype=bool)
    joinable = plain & np.array([len(word) > 2 for word in words.names], dtype=bool)
    of_labels = np.zeros(width, dtype=bool)
    named: list[tuple[int, ...]] = []
    for ids, ends in words.split(label_texts):
        of_labels[ids] = True
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            if 1 < end - start <= PHRASE_WORDS and plain[ids[start:end]].all():
                named.append(tuple(ids[start:end].tolist()))
    counters = [_Phrases({x for x in named if len(x) == n}, n) for n in range(2, PHRASE_WORDS + 1)] if phrases else []
    counts = np.zeros(width, dtype=np.int64)
    pairs, pair_counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for ids, ends in words.split(texts):
        counts += np.bincount(ids, minlength=width)
        if not phrases:
            continue
        owner = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        for counter in counters:
            counter.count(ids, owner)
        kept = (owner[1:] == owner[:-1]) & joinable[ids[1:]] & joinable[ids[:-1]]
        new, times = np.unique((ids[:-1] * width + ids[1:])[kept], return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        pair_counts = np.bincount(place, weights=np.concatenate([pair_counts, times]), minlength=len(pairs))
        pair_counts = pair_counts.astype(np.int64)
        if len(pairs) > MAX_PAIRS:
            pairs, pair_counts = pairs[pair_counts > 1], pair_counts[pair_counts > 1]
    spelt = {
        " ".join(words.names[i] for i in row): int(count)
        for counter in counters
        for row, count in zip(counter.rows.tolist(), counter.counts.tolist(), strict=True)
        if count
    }
    two = np.stack([pairs // max(1, width), pairs % max(1, width)], axis=1)
    return WordCounts(words.names, counts, of_labels, spelt, two, pair_counts)


class _Words:
    """Every word of some texts, numbered, and the texts as those numbers."""

    def __init__(self, tokenizer: Tokenizer, *corpora: Sequence[str]):
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        self.splitter = Tokenizer(models.WordLevel())
        if tokenizer.normalizer is not None:
            self.splitter.normalizer = tokenizer.normalizer
        self.splitter.pre_tokenizer = tokenizer.pre_tokenizer or pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=2**31 - 1, min_frequency=0, show_progress=False)
        self.splitter.train_from_iterator(_clean(chain.from_iterable(corpora)), trainer)
        numbered = self.splitter.get_vocab()
        self.names = sorted(numbered, key=numbered.__getitem__)

    def split(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, IntArray]]:
        """Word numbers of a block of texts end to end, and where each text ends."""
        for start in range(0, len(texts), BLOCK_TEXTS):
            encodings = self.splitter.encode_batch_fast(list(_clean(texts[start : start + BLOCK_TEXTS])))
            ends = np.cumsum([len(x) for x in encodings])
            yield np.fromiter(chain.from_iterable(x.ids for x in encodings), dtype=np.int64, count=int(ends[-1])), ends


class _Phrases:
    """Phrases of n words, and how often they were met."""

    def __init__(self, phrases: Iterable[tuple[int, ...]], n: int):
        self.n = n
        rows = np.array(sorted(phrases), dtype=np.int64).reshape(-1, n)
        mixed = _mixed([rows[:, i] for i in range(n)])
        order = np.argsort(mixed, kind="stable")
        self.rows, self.mixed = rows[order], mixed[order]
        self.counts = np.zeros(len(rows), dtype=np.int64)

    def count(self, ids: IntArray, owner: IntArray) -> None:
        """Look for them in texts laid end to end."""
        n = self.n
        if not len(self.rows) or len(ids) < n:
            return
        columns = [ids[i : len(ids) - n + 1 + i] for i in range(n)]
        mixed = _mixed(columns)
        place = np.minimum(np.searchsorted(self.mixed, mixed), len(self.rows) - 1)
        met = np.flatnonzero((self.mixed[place] == mixed) & (owner[: len(mixed)] == owner[n - 1 :]))
        same = (self.rows[place[met]] == np.stack([c[met] for c in columns], axis=1)).all(axis=1)
        self.counts += np.bincount(place[met][same], minlength=len(self.rows))


def _mixed(columns: list[IntArray]) -> npt.NDArray[np.uint64]:
    """A hash of each row, given column by column; different rows nearly always have different ones."""
    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        mixed = (mixed ^ column.astype(np.uint64)) * HASH_FACTOR
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _clean(texts: Iterable[str]) -> Iterator[str]:
    """Texts up to `WINDOW` in Unicode's form NFC, with ? for surrogates, which the tokenizer refuses."""
    return (composed(text[:WINDOW]).encode("utf-8", "replace").decode("utf-8") for text in texts)
