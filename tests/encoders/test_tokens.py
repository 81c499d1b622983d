"""Tokens: exact ids for every way to cut, block by block, from the cache and from a dull loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import labelspace.encoders.tokens as module
from labelspace.encoders.tokens import Limit, Tokens, cut, encoded, frame, log_cut, tokenize
from labelspace.errors import SettingsError

CLS, SEP = 100, 101


@pytest.fixture(scope="module")
def numbers() -> Tokenizer:
    """Words are the numbers 0 to 99, each its own id; [CLS] text [SEP]."""
    vocabulary = {str(i): i for i in range(100)} | {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": 102}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return tokenizer


def text(count: int) -> str:
    return " ".join(str(i) for i in range(count))


def lists(tokens: Tokens) -> list[list[int]]:
    """The ids of every chunk."""
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


def framed(*ids: int) -> list[int]:
    return [CLS, *ids, SEP]


def limit(max_tokens: int, way: str = "head", max_chunks: int = 1, special: bool = True) -> Limit:
    left, right = ((CLS,), (SEP,)) if special else ((), ())
    return Limit(max_tokens, way, max_chunks, left, right)  # type: ignore[arg-type]


def test_the_frame_is_found(numbers: Tokenizer) -> None:
    assert frame(numbers) == ((CLS,), (SEP,))
    bare = Tokenizer.from_str(numbers.to_str())
    bare.post_processor = processors.Sequence([])
    assert frame(bare) == ((), ())


# lengths: empty, short, exactly at the limit of 8 (6 words and the frame), one above, longer
TEXTS = [text(0), text(3), text(6), text(7), text(15)]
HEAD = [framed(), framed(0, 1, 2), framed(*range(6)), framed(*range(6)), framed(*range(6))]


def test_head_keeps_the_first_tokens(numbers: Tokenizer) -> None:
    tokens = tokenize(numbers, TEXTS, limit(8))
    assert tokens.texts is None and len(tokens) == 5
    assert lists(tokens) == HEAD
    assert tokens.lengths.tolist() == [2, 5, 8, 8, 8]
    assert tokens.full is not None and tokens.full.tolist() == [0, 3, 6, 7, 15]
    bare = tokenize(numbers, TEXTS, limit(6, special=False))
    assert lists(bare) == [[], [0, 1, 2], [*range(6)], [*range(6)], [*range(6)]]


def test_head_and_tail_are_three_to_one(numbers: Tokenizer) -> None:
    tokens = tokenize(numbers, TEXTS, limit(8, "head+tail"))  # room for 6: 5 and 1
    assert lists(tokens) == [*HEAD[:3], framed(0, 1, 2, 3, 4, 6), framed(0, 1, 2, 3, 4, 14)]
    assert tokens.lengths.tolist() == [2, 5, 8, 8, 8]
    for room, tail in ((1, 0), (3, 0), (4, 1), (7, 1), (8, 2), (100, 25)):
        one = tokenize(numbers, [text(100) + " 7"], limit(room, "head+tail", special=False))
        words = [*range(100), 7]
        assert lists(one) == [words[: room - tail] + words[len(words) - tail :]]


def test_chunks_follow_each_other(numbers: Tokenizer) -> None:
    tokens = tokenize(numbers, [*TEXTS, text(18), text(19), text(60)], limit(8, "chunks", 3))
    first, second, third = framed(*range(6)), framed(*range(6, 12)), framed(*range(12, 18))
    assert tokens.texts is not None and tokens.texts.tolist() == [0, 1, 2, 3, 5, 8, 11, 14, 17]
    assert lists(tokens) == [
        framed(), framed(0, 1, 2), first, first, framed(6), first, second, framed(12, 13, 14),
        first, second, third, first, second, third, first, second, third,
    ]  # fmt: skip
    assert len(tokens) == 8 and tokens.lengths.tolist() == [2, 5, 8, 11, 21, 24, 24, 24]
    assert tokens.full is not None and tokens.full.tolist() == [0, 3, 6, 7, 15, 18, 19, 60]
    assert len(tokens.chunks) == 17 and tokens.chunks.lengths[[3, 4]].tolist() == [8, 3]
    bare = tokenize(numbers, TEXTS, limit(6, "chunks", 2, special=False))
    assert lists(bare)[3:] == [[*range(6)], [6], [*range(6)], [*range(6, 12)]]
    assert lists(bare.joined) == lists(tokenize(numbers, TEXTS, limit(12, special=False)))


@given(
    lengths=st.lists(st.integers(0, 30), max_size=8), max_tokens=st.integers(3, 12), max_chunks=st.integers(1, 4),
    way=st.sampled_from(["head", "head+tail", "chunks"]), special=st.booleans(),
)  # fmt: skip
def test_cutting_equals_a_dull_loop(
    lengths: list[int], max_tokens: int, max_chunks: int, way: str, special: bool
) -> None:
    how = limit(max_tokens, way, max_chunks if way == "chunks" else 1, special)
    left, right, room = list(how.left), list(how.right), max_tokens - 2 * special
    chunks, counts, given = [], [], []
    for i, length in enumerate(lengths):
        ids = [1000 * i + j for j in range(length)]
        given += ids
        if way == "chunks":
            mine = [ids[s : s + room] for s in range(0, length, room)][:max_chunks] or [[]]
        elif way == "head+tail" and length > room:
            mine = [ids[: math.ceil(3 * room / 4)] + ids[length - math.floor(room / 4) :]]
        else:
            mine = [ids[:room]]
        chunks += [left + chunk + right for chunk in mine]
        counts.append(len(mine))
    found, sizes, per_text = cut(np.array(given, dtype=np.int32), np.array(lengths, dtype=np.int64), how)
    assert found.tolist() == [i for chunk in chunks for i in chunk]
    assert sizes.tolist() == [len(chunk) for chunk in chunks]
    assert per_text.tolist() == counts


def test_head_equals_the_truncation_of_the_tokenizer(numbers: Tokenizer) -> None:
    stock = Tokenizer.from_str(numbers.to_str())
    for size in (3, 8, 17, 40):
        stock.enable_truncation(size)
        assert lists(tokenize(numbers, TEXTS, limit(size))) == [e.ids for e in stock.encode_batch(TEXTS)]


WAYS = [limit(8), limit(8, "head+tail"), limit(8, "chunks", 3), limit(6, special=False)]


@pytest.mark.parametrize("how", WAYS)
def test_a_cache_hit_equals_a_fresh_tokenisation(
    numbers: Tokenizer, how: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TEXTS * 4
    fresh = tokenize(numbers, texts, how)
    monkeypatch.setattr(module, "BLOCK_TEXTS", 3)
    written = tokenize(numbers, texts, how, tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_tokenize", never)
        hit = tokenize(numbers, texts, how, tmp_path)
    for tokens in (written, hit):
        assert isinstance(tokens.ids, np.memmap) and tokens.ids.dtype == np.int32
        for name in ("ids", "offsets", "texts", "full"):
            mine, other = getattr(fresh, name), getattr(tokens, name)
            assert (mine is None) == (other is None)
            if mine is not None:
                assert mine.dtype == other.dtype and np.array_equal(mine, other)
    (folder,) = (tmp_path / "tokens").iterdir()
    assert np.array_equal(np.load(folder / "ids.npy"), fresh.ids)


def test_every_way_and_every_change_has_its_own_place(numbers: Tokenizer, tmp_path: Path) -> None:
    for how in [*WAYS, limit(9), limit(8, "chunks", 2)]:
        tokenize(numbers, TEXTS, how, tmp_path)
    tokenize(numbers, [*TEXTS[:-1], "1 2"], limit(8), tmp_path)
    tokenize(numbers, ["1", "2 3"], limit(8), tmp_path)
    tokenize(numbers, ["1 2", " 3"], limit(8), tmp_path)
    assert len(list((tmp_path / "tokens").iterdir())) == 9


def test_a_damaged_cache_is_mended(numbers: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    how = limit(8, "chunks", 3)
    fresh = tokenize(numbers, TEXTS, how)
    tokenize(numbers, TEXTS, how, tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    for name in ("ids.npy", "offsets.npy", "texts.npy", "full.npy"):
        content = (folder / name).read_bytes()
        for damaged in (b"damaged", content[:-4], None):
            if damaged is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(damaged)
            caplog.clear()
            assert lists(tokenize(numbers, TEXTS, how, tmp_path)) == lists(fresh)
            assert "tokenising again" in caplog.text
            caplog.clear()
            assert lists(tokenize(numbers, TEXTS, how, tmp_path)) == lists(fresh)
            assert not caplog.text
        np.save(folder / name, np.zeros(3, dtype=np.int64))
        assert lists(tokenize(numbers, TEXTS, how, tmp_path)) == lists(fresh)


def test_a_cache_that_cannot_be_written_is_said_and_not_needed(
    numbers: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokens").write_text("a file in the way")
    assert lists(tokenize(numbers, TEXTS, limit(8), tmp_path)) == HEAD
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("texts", [[], ["", ""]])
@pytest.mark.parametrize("how", WAYS)
def test_nothing_to_tokenise(numbers: Tokenizer, texts: list[str], how: Limit, tmp_path: Path) -> None:
    for cache in (None, tmp_path, tmp_path):
        tokens = tokenize(numbers, texts, how, cache)
        assert len(tokens) == len(texts) and len(tokens.chunks) == len(texts)
        assert len(tokens.ids) == len(texts) * (len(how.left) + len(how.right))
        assert log_cut("texts", tokens, how) == {"tokens": 0, "texts": 0}


class Lazy(Sequence[str]):
    """Texts that exist only while a block of them is asked for."""

    def __init__(self, count: int, block: int):
        self.count, self.block = count, block

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part):  # type: ignore[no-untyped-def]
        assert isinstance(part, slice), "one by one"
        rows = range(*part.indices(self.count))
        assert len(rows) <= self.block
        return [text(i % 9) for i in rows]


@pytest.mark.parametrize("characters", [1, 30, 10**6])
def test_texts_are_read_block_by_block(
    numbers: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    expected = tokenize(numbers, [text(i % 9) for i in range(50)], limit(8))
    monkeypatch.setattr(module, "BLOCK_TEXTS", 7)
    monkeypatch.setattr(module, "BLOCK_CHARACTERS", characters)
    tokens = tokenize(numbers, Lazy(50, 7), limit(8), tmp_path)
    assert lists(tokens) == lists(expected)
    sizes = [len(lengths) for _, lengths, _ in encoded(numbers, Lazy(50, 7))]
    assert sum(sizes) == 50 and max(sizes) == {1: 2, 30: 7, 10**6: 7}[characters]


def test_texts_longer_than_the_window_are_estimated(numbers: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 40)
    monkeypatch.setattr(module, "WINDOW_PER_TOKEN", 1)
    long = "1 " * 50 + "2 " * 100  # 300 characters of 150 tokens
    head = tokenize(numbers, ["3", long, "4"], limit(8))
    assert lists(head) == [framed(3), framed(1, 1, 1, 1, 1, 1), framed(4)]
    assert head.full is not None and head.full.tolist() == [1, 150, 1]
    tail = tokenize(numbers, ["3", long, "4"], limit(18, "head+tail"))
    assert lists(tail)[1] == framed(*[1] * 12, *[2] * 4)
    assert tail.full is not None and tail.full.tolist() == [1, 150, 1]
    monkeypatch.setattr(module, "WINDOW_PER_TOKEN", 16)  # wide enough for the chunks
    chunks = tokenize(numbers, [long], limit(12, "chunks", 15))
    assert chunks.ids.tolist().count(2) == 100 and len(chunks.chunks) == 15


def test_odd_texts(numbers: Tokenizer) -> None:
    assert lists(tokenize(numbers, ["1 \ud800 2", "\x00", "1\u20282"], limit(8)))[0] == framed(1, 102, 2)


def test_rows_are_taken_with_their_chunks(numbers: Tokenizer) -> None:
    tokens = tokenize(numbers, TEXTS, limit(8, "chunks", 3))
    taken = tokens.take(np.array([4, 0, 3, 4]))
    assert taken.texts is not None and taken.texts.tolist() == [0, 3, 4, 6, 9]
    expected = lists(tokens)
    assert lists(taken) == [*expected[5:8], expected[0], *expected[3:5], *expected[5:8]]
    assert taken.full is not None and taken.full.tolist() == [15, 0, 7, 15]
    plain = Tokens(np.arange(10, dtype=np.int32), np.array([0, 3, 3, 7, 10]))
    taken = plain.take(np.array([3, 1, 0, 3]))
    assert taken.ids.tolist() == [7, 8, 9, 0, 1, 2, 7, 8, 9] and taken.texts is None
    assert taken.lengths.tolist() == [3, 0, 3, 3]
    assert len(plain.take(np.zeros(0, dtype=np.int64))) == len(tokens.take(np.zeros(0, dtype=np.int64))) == 0


def test_shares_are_of_the_tokens(numbers: Tokenizer) -> None:
    tokens = tokenize(numbers, [text(15), "", text(7)], limit(8, "chunks", 3))
    owners, shares = tokens.shares()
    assert owners.tolist() == [0, 0, 0, 1, 2, 2]
    np.testing.assert_allclose(shares, [8 / 21, 8 / 21, 5 / 21, 1, 8 / 11, 3 / 11])
    owners, shares = Tokens(np.arange(3, dtype=np.int32), np.array([0, 0, 3])).shares()
    assert owners.tolist() == [0, 1] and shares.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        # 0 + 3 + 6 + 7 + 15 tokens, of which 1 and 9 are beyond 6
        (limit(8), "documents: 32.3% of the tokens lie beyond max_tokens 8 and are cut (40.0% of the texts)"),
        (
            limit(8, "head+tail"),
            "documents: 32.3% of the tokens do not fit into max_tokens 8 and are cut from the middle "
            "(40.0% of the texts)",
        ),
        (
            limit(8, "chunks", 2),
            "documents: 9.7% of the tokens lie beyond 2 chunks of max_tokens 8 and are cut (20.0% of the texts); "
            "1.40 chunks a text",
        ),
        (limit(40), "documents: 0% of the tokens lie beyond max_tokens 40 and are cut (0% of the texts)"),
        (limit(14, special=False), "documents: 3.2% of the tokens lie beyond max_tokens 14 and are cut (20.0% of the"),
    ],
)
def test_the_share_that_is_cut_is_said(
    numbers: Tokenizer, how: Limit, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tokens = tokenize(numbers, TEXTS, how)
    shares = log_cut("documents", tokens, how)
    assert message in caplog.text
    lost = [max(0, n - how.capacity) for n in (0, 3, 6, 7, 15)]
    assert shares == {"tokens": round(sum(lost) / 31, 6), "texts": sum(n > 0 for n in lost) / 5}
    special = (len(how.left) + len(how.right)) * len(tokens.chunks)
    assert len(tokens.ids) - special == 31 - sum(lost)


def test_a_small_share_is_not_called_none(numbers: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokens = tokenize(numbers, [text(6)] * 3000 + [text(7)], limit(8))
    assert log_cut("labels", tokens, limit(8)) == {"tokens": round(1 / 18007, 6), "texts": round(1 / 3001, 6)}
    assert "labels: under 0.1% of the tokens" in caplog.text and "(under 0.1% of the texts)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, "tail"), "long_documents is 'tail'; choose one of: head, head.tail, chunks"),
        ((8, "chunks", 0), "max_chunks must be at least 1, got 0"),
        ((2, "head", 1, (CLS,), (SEP,)), "max_tokens is 2, of which the encoder's special tokens take 2; raise it"),
    ],
)
def test_limits_that_cannot_be_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Limit(*arguments)  # type: ignore[arg-type]
