"""Texts tokenised once, cut to length, and kept as memory-mapped arrays in a folder named by a hash of what went in."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..base.files import atomic_folder
from ..base.words import composed
from ..errors import SettingsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

LongDocuments = Literal["head", "head+tail", "chunks"]

BLOCK_TEXTS, BLOCK_CHARACTERS = 8192, 1 << 22
"""Texts, and about how many characters, handed to the tokenizer at a time; it works on them in parallel."""
WINDOW = 1 << 20
"""Characters of one text that are read; what a longer one holds beyond is counted by estimate."""
WINDOW_PER_TOKEN = 16
"""Characters read for each token that may be kept, where that is more."""


@dataclass(frozen=True)
class Limit:
    """How much of a text is kept.

    Args:
        max_tokens: tokens of a chunk, special tokens included.
        long_documents: of a longer text, ``head`` keeps the first tokens; ``head+tail`` the first and the last, three
            to one; ``chunks`` the first ones, in consecutive chunks.
        max_chunks: chunks of a text; 1 unless ``long_documents`` is ``chunks``.
        left: special tokens before each chunk.
        right: special tokens after each chunk.

    Raises:
        SettingsError: an unknown way, or a limit that leaves no room for a text.
    """

    max_tokens: int
    long_documents: LongDocuments = "head"
    max_chunks: int = 1
    left: tuple[int, ...] = ()
    right: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.long_documents not in get_args(LongDocuments):
            known = ", ".join(get_args(LongDocuments))
            raise SettingsError(f"long_documents is {self.long_documents!r}; choose one of: {known}")
        if self.max_chunks < 1:
            raise SettingsError(f"max_chunks must be at least 1, got {self.max_chunks}")
        if self.room < 1:
            special = len(self.left) + len(self.right)
            raise SettingsError(
                f"max_tokens is {self.max_tokens}, of which the encoder's special tokens take {special}; raise it"
            )

    @property
    def room(self) -> int:
        """Tokens of the text in a full chunk."""
        return self.max_tokens - len(self.left) - len(self.right)

    @property
    def capacity(self) -> int:
        """Tokens of a text that are kept at most, special tokens not counted."""
        return self.room * self.max_chunks

    @property
    def tail(self) -> int:
        """How many of those are taken from the end of a longer text."""
        return self.room // 4 if self.long_documents == "head+tail" else 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of n texts, each one chunk or several, laid end to end.

    Args:
        ids: (T,) int32 token ids.
        offsets: (c + 1,) int64; chunk j holds ``ids[offsets[j]:offsets[j + 1]]``.
        texts: (n + 1,) int64; text i has the chunks ``texts[i]`` to ``texts[i + 1]``, one at least. None when each
            chunk is a text.
        full: (n,) int64 tokens of each text before it was cut, special tokens not counted; None when not known.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    texts: npt.NDArray[np.int64] | None = None
    full: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def _bounds(self) -> npt.NDArray[np.int64]:
        return self.offsets if self.texts is None else self.offsets[self.texts]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, all its chunks together, (n,) int64."""
        return np.diff(self._bounds)

    @property
    def chunks(self) -> Tokens:
        """The chunks, each as a text of its own."""
        return self if self.texts is None else Tokens(self.ids, self.offsets)

    @property
    def joined(self) -> Tokens:
        """The texts, the chunks of each run together."""
        return self if self.texts is None else Tokens(self.ids, self._bounds, full=self.full)

    def shares(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The text that each chunk is of, and its share of that text's tokens; both (c,)."""
        counts = np.ones(len(self), dtype=np.int64) if self.texts is None else np.diff(self.texts)
        owners = np.repeat(np.arange(len(self)), counts)
        lengths = np.maximum(1, np.diff(self.offsets))
        return owners, lengths / np.bincount(owners, lengths, minlength=len(self))[owners]

    def take(self, rows: npt.NDArray[np.int64]) -> Tokens:
        """The texts of the given rows (m,), in that order; repeats are allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        full = None if self.full is None else self.full[rows]
        texts, chunks = None, rows
        if self.texts is not None:
            chunks, texts = _runs(self.texts[rows], self.texts[rows + 1])
        places, offsets = _runs(self.offsets[chunks], self.offsets[chunks + 1])
        return Tokens(np.asarray(self.ids[places]), offsets, texts, full)

    def followed_by(self, others: Tokens) -> Tokens:
        """These texts and then others, in memory; both have chunks or neither has."""
        assert (self.texts is None) == (others.texts is None), "both were cut in one way"
        ids = np.concatenate([self.ids, others.ids])
        offsets = np.concatenate([self.offsets, others.offsets[1:] + self.offsets[-1]])
        if self.texts is None or others.texts is None:
            return Tokens(ids, offsets)
        return Tokens(ids, offsets, np.concatenate([self.texts, others.texts[1:] + self.texts[-1]]))


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], limit: Limit, cache: Path | None = None) -> Tokens:
    """Tokenise texts in parallel; with a cache folder, read them back when the same texts were seen before.

    A block of texts is in memory at a time, and the tokens of all go to disk when there is a cache folder.

    Args:
        tokenizer: a tokenizer without truncation and padding.
        texts: n texts.
        limit: what to keep of each.
        cache: folder for memory-mapped arrays; None keeps them in memory.
    """
    if cache is not None:
        folder = cache / "tokens" / _content_hash(tokenizer, texts, limit)
        tokens = _read(folder, len(texts), limit) if folder.is_dir() else None
        if tokens is None:
            try:
                with atomic_folder(folder) as part:
                    _write(part, tokenizer, texts, limit)
                tokens = _read(folder, len(texts), limit)
            except OSError as error:
                logger.warning("the tokens cannot be kept in %s: %s", folder, getattr(error, "reason", error))
        if tokens is not None:
            return tokens
    blocks = [np.zeros(0, dtype=np.int32)]
    index = _tokenize(tokenizer, texts, limit, blocks.append)
    return Tokens(np.concatenate(blocks), *index)


def encoded(
    tokenizer: Tokenizer, texts: Sequence[str], window: int = WINDOW, tail: int = 0
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Token ids of texts, a block of them at a time.

    Args:
        tokenizer: a tokenizer without truncation and padding; its special tokens are left out.
        texts: any number of texts.
        window: characters of a text that are read.
        tail: how many of them are read from the end of a longer text.

    Returns:
        For each block: ids laid end to end, tokens of each text, and tokens if the text were read whole, which is an
        estimate for a text longer than the window.
    """
    assert tokenizer.truncation is None and tokenizer.padding is None
    block: list[str] = []
    longer: dict[int, float] = {}
    characters = 0

    def flush() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        encodings = tokenizer.encode_batch_fast(block, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        full = lengths.copy()
        for place, factor in longer.items():
            full[place] = round(int(full[place]) * factor)
        return np.fromiter(ids, dtype=np.int32, count=int(lengths.sum())), lengths, full

    for text in _by_blocks(texts):
        if len(text) > window:
            longer[len(block)] = len(text) / window
            text = f"{text[: window - tail]} {text[len(text) - tail :]}"
        block.append(text.encode("utf-8", "replace").decode("utf-8"))
        characters += len(text)
        if len(block) == BLOCK_TEXTS or characters >= BLOCK_CHARACTERS:
            yield flush()
            block, longer, characters = [], {}, 0
    if block:
        yield flush()


def _by_blocks(texts: Sequence[str]) -> Iterator[str]:
    """The texts in Unicode's form NFC, asked for in blocks: a sequence may be slow to make them one by one."""
    for start in range(0, len(texts), BLOCK_TEXTS):
        yield from map(composed, texts[start : start + BLOCK_TEXTS])


def frame(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer, without truncation and padding, puts before and after a text."""
    for text in "a1的":
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text, add_special_tokens=True).ids
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()


def cut(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], limit: Limit
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Texts cut to length, in framed chunks.

    Args:
        ids: (T,) token ids of n texts laid end to end, without special tokens.
        lengths: (n,) tokens of each.
        limit: what to keep.

    Returns:
        Token ids laid end to end, tokens of each chunk (c,), and chunks of each text (n,).
    """
    kept = np.minimum(lengths, limit.capacity)
    if kept.sum() < len(ids):
        place, _ = _runs(np.zeros_like(lengths), lengths)
        keep = place < limit.capacity - limit.tail
        if limit.tail:
            keep |= place >= np.repeat(lengths - limit.tail, lengths)
        ids = ids[keep]
    chunks = np.maximum(1, -(-kept // limit.room))
    last = np.cumsum(chunks) - 1
    inner = np.full(chunks.sum(), limit.room, dtype=np.int64)
    inner[last] = kept - limit.room * (chunks - 1)
    if not limit.left and not limit.right:
        return ids, inner, chunks
    framed = inner + len(limit.left) + len(limit.right)
    ends = np.cumsum(framed)
    out = np.empty(framed.sum(), dtype=np.int32)
    of_text = np.ones(len(out), dtype=bool)
    for special, first in ((limit.left, ends - framed), (limit.right, ends - len(limit.right))):
        for i, token in enumerate(special):
            out[first + i], of_text[first + i] = token, False
    out[of_text] = ids
    return out, framed, chunks


def log_cut(what: str, tokens: Tokens, limit: Limit) -> dict[str, float]:
    """Log which share of the tokens is truncated, and of how many texts.

    Args:
        what: whose tokens they are, in the plural.
        tokens: texts that were just tokenised.
        limit: what was kept of them.

    Returns:
        The shares, 0 to 1: ``tokens`` and ``texts``.
    """
    assert tokens.full is not None
    beyond = np.maximum(0, tokens.full - limit.capacity)
    share = float(beyond.sum() / max(1, tokens.full.sum()))
    of_texts = float((beyond > 0).sum() / max(1, len(tokens)))
    how = {
        "head": f"lie beyond max_tokens {limit.max_tokens} and are cut",
        "head+tail": f"do not fit into max_tokens {limit.max_tokens} and are cut from the middle",
        "chunks": f"lie beyond {limit.max_chunks} chunks of max_tokens {limit.max_tokens} and are cut",
    }[limit.long_documents]
    many = "" if tokens.texts is None else f"; {len(tokens.chunks) / max(1, len(tokens)):.2f} chunks a text"
    logger.info("%s: %s of the tokens %s (%s of the texts)%s", what, _percent(share), how, _percent(of_texts), many)
    return {"tokens": round(share, 6), "texts": round(of_texts, 6)}


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "under 0.1%" if share else "0%"


def _runs(
    starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers from each start to its end, laid end to end, and where each run begins (n + 1,)."""
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts), offsets


def _tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], limit: Limit, keep: Callable[[npt.NDArray[np.int32]], object]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]:
    """Hand the token ids over block by block; the other members of `Tokens` are returned."""
    window = max(WINDOW, WINDOW_PER_TOKEN * limit.capacity)
    zero = np.zeros(1, dtype=np.int64)
    chunk_lengths, chunk_counts, full = [zero], [zero], [zero[:0]]
    for ids, lengths, whole in encoded(tokenizer, texts, window, window // 4 if limit.tail else 0):
        kept, framed, chunks = cut(ids, lengths, limit)
        keep(kept)
        chunk_lengths.append(framed)
        full.append(whole)
        if limit.long_documents == "chunks":
            chunk_counts.append(chunks)
    bounds = np.cumsum(np.concatenate(chunk_counts)) if limit.long_documents == "chunks" else None
    return np.cumsum(np.concatenate(chunk_lengths)), bounds, np.concatenate(full)


def _write(folder: Path, tokenizer: Tokenizer, texts: Sequence[str], limit: Limit) -> None:
    """Arrays of texts as .npy files; the ids are written as they come."""
    with (folder / "ids.npy").open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
        begin = file.tell()
        offsets, bounds, full = _tokenize(tokenizer, texts, limit, lambda ids: file.write(ids.data))
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (int(offsets[-1]),)})
        assert file.tell() == begin, "NumPy leaves room for the shape to grow"
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "full.npy", full)
    if bounds is not None:
        np.save(folder / "texts.npy", bounds)


def _read(folder: Path, count: int, limit: Limit) -> Tokens | None:
    """Tokens of so many texts from a folder; None, with a warning, when something is wrong with them."""
    try:
        ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        full = np.load(folder / "full.npy", allow_pickle=False)
        bounds = np.load(folder / "texts.npy", allow_pickle=False) if limit.long_documents == "chunks" else None
        if bounds is not None and bounds[-1] != len(offsets) - 1:
            raise ValueError("chunks and texts differ in number")
        tokens = Tokens(ids, offsets, bounds, full)
        if not len(tokens) == len(full) == count or offsets[-1] != len(ids):
            raise ValueError("the arrays differ in length")
        return tokens
    except (OSError, ValueError, IndexError) as error:
        logger.warning("the token cache %s is damaged (%s); tokenising again", folder, error)
        return None


def _content_hash(tokenizer: Tokenizer, texts: Sequence[str], limit: Limit) -> str:
    digest = hashlib.sha256()
    digest.update(f"tokens 2, {limit}, {len(texts)} texts\0".encode())
    digest.update(tokenizer.to_str().encode())
    for text in _by_blocks(texts):
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[:32]
