"""Texts tokenised once and kept as memory-mapped arrays in a folder named by a hash of what went in."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..files import atomic_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

CHUNK = 8192
"""Texts handed to the tokenizer at a time; it works on them in parallel."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of n texts, laid end to end.

    Args:
        ids: (T,) int32 token ids.
        offsets: (n + 1,) int64; text i holds ``ids[offsets[i]:offsets[i + 1]]``.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, (n,) int64."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Tokens:
        """The texts of the given rows, in that order.

        Args:
            rows: (m,) row numbers, repeats allowed.
        """
        rows = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Tokens(np.asarray(self.ids[places]), offsets)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], *, special_tokens: bool = True, cache: Path | None = None
) -> Tokens:
    """Tokenise texts in parallel; with a cache folder, read them back when the same texts were seen before.

    Args:
        tokenizer: a tokenizer whose truncation is set and whose padding is off.
        texts: n texts.
        special_tokens: put the tokenizer's special tokens around each text.
        cache: folder for memory-mapped arrays; None keeps them in memory.
    """
    if cache is None:
        return _tokenize(tokenizer, texts, special_tokens)
    folder = cache / "tokens" / _content_hash(tokenizer, texts, special_tokens)
    if not folder.is_dir():
        tokens = _tokenize(tokenizer, texts, special_tokens)
        try:
            with atomic_folder(folder) as part:
                np.save(part / "ids.npy", tokens.ids)
                np.save(part / "offsets.npy", tokens.offsets)
        except OSError as error:
            logger.warning("the tokens cannot be kept in %s: %s", folder, error)
            return tokens
    try:
        ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        if len(offsets) == len(texts) + 1 and offsets[-1] == len(ids):
            return Tokens(ids, offsets)
    except (OSError, ValueError) as error:
        logger.warning("the token cache %s is damaged (%s); tokenising again", folder, error)
    return _tokenize(tokenizer, texts, special_tokens)


def _content_hash(tokenizer: Tokenizer, texts: Sequence[str], special_tokens: bool) -> str:
    digest = hashlib.sha256()
    digest.update(f"tokens 1, special {special_tokens}, {len(texts)} texts\0".encode())
    digest.update(tokenizer.to_str().encode())
    for start in range(0, len(texts), CHUNK):
        chunk = [text.encode("utf-8", "surrogatepass") for text in texts[start : start + CHUNK]]
        digest.update(np.array([len(text) for text in chunk], dtype=np.int64).tobytes())
        digest.update(b"".join(chunk))
    return digest.hexdigest()[:32]


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str], special_tokens: bool) -> Tokens:
    parts: list[npt.NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
    lengths = np.zeros(len(texts) + 1, dtype=np.int64)
    for start in range(0, len(texts), CHUNK):
        chunk = [text.encode("utf-8", "replace").decode("utf-8") for text in texts[start : start + CHUNK]]
        encodings = tokenizer.encode_batch_fast(chunk, add_special_tokens=special_tokens)
        for i, encoding in enumerate(encodings, start + 1):
            ids = encoding.ids
            lengths[i] = len(ids)
            parts.append(np.array(ids, dtype=np.int32))
    return Tokens(np.concatenate(parts), np.cumsum(lengths))
