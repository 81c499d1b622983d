"""The count of words and phrases against plain loops."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from labelspace.encoders import words as counting
from labelspace.encoders.words import MIN_COUNT, PAIR_MIN_COUNT, PAIR_MIN_LIFT, PHRASE_WORDS, count_words


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "red": 1}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def plain(splitter: Tokenizer, texts: list[str], labels: list[str]) -> tuple[Counter, set, Counter, Counter]:
    """Words, words of labels, label texts of several words, and pairs of neighbours, one text after the other."""

    def split(text: str) -> list[str]:
        normal = splitter.normalizer.normalize_str(text)
        return [word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal)]

    words, of_labels, names, met, pairs = Counter(), set(), set(), Counter(), Counter()  # type: ignore[var-annotated]
    for text in labels:
        own = split(text)
        of_labels.update(own)
        if 1 < len(own) <= PHRASE_WORDS and all(word.isalnum() for word in own):
            names.add(tuple(own))
    for text in texts:
        own = split(text)
        words.update(own)
        for n in range(2, PHRASE_WORDS + 1):
            met.update(" ".join(g) for g in zip(*(own[i:] for i in range(n)), strict=False) if tuple(g) in names)
        pairs.update((a, b) for a, b in pairwise(own) if min(len(a), len(b)) > 2 and a.isalnum() and b.isalnum())
    return words, of_labels, met, pairs


def corpus(seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    vocabulary = ["Red", "oak", "é", "tree's", "a", "of", "stone-wall", "x1", "Übung", "...", "日本", "(", "moss"]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(0, 12))) for _ in range(300)]
    labels = [" ".join(rng.choice(vocabulary, rng.integers(1, 8))) for _ in range(80)] + ["red oak", "of red moss", ""]
    return texts + ["ferny glade"] * 9, labels


@pytest.mark.parametrize("block", [7, 100_000])
def test_counts_equal_plain_loops(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BLOCK_TEXTS", block)
    texts, labels = corpus(0)
    words, of_labels, met, pairs = plain(tokenizer(), texts, labels)
    found = count_words(tokenizer(), texts, labels, phrases=True)
    assert {w: n for w, n in zip(found.words, found.counts.tolist(), strict=True) if n} == dict(words)
    assert {found.words[i] for i in np.flatnonzero(found.of_labels)} == of_labels
    assert found.phrases == dict(met) and len(met) > 3
    told = {(found.words[a], found.words[b]): int(n)
            for (a, b), n in zip(found.pairs.tolist(), found.pair_counts, strict=True)}  # fmt: skip
    assert told == dict(pairs)

    pieces = {"red": 1, "oak": 2}
    wanted = [w for w in words.keys() | of_labels if (w in of_labels or words[w] >= MIN_COUNT) and w not in pieces]
    assert found.choose_words(pieces, 5) == sorted(wanted, key=lambda w: (-words[w], w))[:5]
    chosen = {phrase: n for phrase, n in met.items() if n >= MIN_COUNT}
    for (a, b), n in pairs.items():
        if n >= PAIR_MIN_COUNT and n * words.total() / (words[a] * words[b]) >= PAIR_MIN_LIFT:
            chosen.setdefault(f"{a} {b}", n)
    assert found.choose_phrases(1000) == sorted(chosen, key=lambda phrase: (-chosen[phrase], phrase))
    assert "ferny glade" in chosen
    alone = count_words(tokenizer(), texts, labels, phrases=False)
    assert alone.phrases == {} and len(alone.pairs) == 0 and alone.words == found.words


def test_nothing_and_what_is_no_character() -> None:
    found = count_words(tokenizer(), [], [], phrases=True)
    assert found.words == [] and found.choose_words({}, 3) == [] and found.choose_phrases(3) == []
    odd = count_words(tokenizer(), ["red \ud83d oak", ""], [""], phrases=True)
    assert "red" in odd.words and "oak" in odd.words


def test_pairs_met_once_are_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_PAIRS", 3)
    texts, labels = corpus(1)
    found = count_words(tokenizer(), texts, labels, phrases=True)
    assert len(found.pairs) and (found.pair_counts > 1).all()
