"""First vectors of tokens: each is run through a transformer by itself, once.

They are kept in the cache folder, with what else the static encoder takes from the transformer, so that it is opened
only for tokens that were not seen before.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..base.files import atomic_folder
from .tokens import Limit, Tokens, cut, frame
from .transformer import TransformerEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 1024
"""Tokens run through the transformer at a time."""


@dataclass(frozen=True)
class TokenVectors:
    """What a static encoder takes from a transformer.

    Args:
        tokenizer: the transformer's.
        max_tokens: longest text that it takes.
        dim: of its vectors.
        weights: a digest of everything that the vectors depend on.
        transformer: gives the transformer itself.
    """

    tokenizer: Tokenizer
    max_tokens: int
    dim: int
    weights: str
    transformer: Callable[[], TransformerEncoder]

    @classmethod
    def of(cls, base: TransformerEncoder) -> TokenVectors:
        """Of an opened transformer, which is left as it is."""
        described = f"token vectors 1, {base.max_tokens}, {base.precision}, {base.tokenizer.to_str()}\0"
        weights = hashlib.sha256(described.encode())
        for name, value in sorted(base.state_dict().items()):
            weights.update(name.encode())
            weights.update(value.cpu().contiguous().view(torch.uint8).numpy().data)
        return cls(base.tokenizer, base.max_tokens, base.dim, weights.hexdigest(), lambda: base)

    @classmethod
    def known(cls, folder: Path, opened: Callable[[], TransformerEncoder], cache: Path, how: str) -> TokenVectors:
        """Of a folder whose transformer is not opened if the cache knows it.

        Args:
            folder: of the transformer; the contents of its files tell one from another.
            opened: opens it, ready to encode.
            cache: folder of what is known.
            how: what else the vectors depend on, the precision say.
        """
        key = hashlib.sha256(f"transformer 1, {how}\0".encode())
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            key.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            with open(path, "rb") as file:
                key.update(hashlib.file_digest(file, "sha256").digest())
        kept = cache / "static" / key.hexdigest()[:32]
        transformer = functools.cache(opened)
        if kept.is_dir():
            from tokenizers import Tokenizer

            try:
                entry = json.loads((kept / "transformer.json").read_text(encoding="utf-8"))
                tokenizer = Tokenizer.from_file(str(kept / "tokenizer.json"))
                return cls(tokenizer, int(entry["max_tokens"]), int(entry["dim"]), str(entry["weights"]), transformer)
            except Exception as error:  # tokenizers raises Exception itself
                logger.warning("the cache %s is damaged (%s); opening the transformer again", kept, error)
        new = cls.of(transformer())
        try:
            with atomic_folder(kept) as part:
                new.tokenizer.save(str(part / "tokenizer.json"))
                entry = {"max_tokens": new.max_tokens, "dim": new.dim, "weights": new.weights}
                (part / "transformer.json").write_text(json.dumps(entry), encoding="utf-8")
        except OSError as error:
            logger.debug("%s cannot be kept: %s", kept, error)
        return new

    def table(self, added: Sequence[str], cache: Path | None) -> npt.NDArray[np.float32]:
        """Vectors (V + added, D) of every token and of added texts, each run through the transformer by itself.

        The folder ``cache`` keeps them, the transformer's own tokens apart from the added ones, so that another corpus
        finds them; None keeps nothing.
        """
        own = [[i] for i in range(self.tokenizer.get_vocab_size(with_added_tokens=True))]
        others = [e.ids for e in self.tokenizer.encode_batch_fast(list(added), add_special_tokens=False)]
        return np.concatenate([self._of(ids, cache) for ids in (own, others)])

    def _of(self, inner: list[list[int]], cache: Path | None) -> npt.NDArray[np.float32]:
        """Vectors of texts given as token ids without special tokens, from the cache if they are there."""
        bare = np.fromiter(chain.from_iterable(inner), dtype=np.int32)
        limit = Limit(self.max_tokens, "head", 1, *frame(self.tokenizer))
        ids, lengths, _ = cut(bare, np.array([len(x) for x in inner], dtype=np.int64), limit)
        tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        key = hashlib.sha256(self.weights.encode() + tokens.ids.tobytes() + tokens.offsets.tobytes()).hexdigest()[:32]
        folder = None if cache is None else cache / "static" / key
        if folder is not None and folder.is_dir():
            try:
                vectors = np.load(folder / "vectors.npy", allow_pickle=False)
                if vectors.shape == (len(tokens), self.dim):
                    return vectors
            except (OSError, ValueError) as error:
                logger.warning("the cache %s is damaged (%s); computing again", folder, error)

        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        order = np.argsort(tokens.lengths, kind="stable")
        if len(tokens) > 4 * BLOCK_TOKENS:
            logger.info("running %d tokens of the vocabulary through the transformer", len(tokens))
        for start in tqdm(range(0, len(order), BLOCK_TOKENS), desc="token vectors", disable=None, leave=False):
            rows = order[start : start + BLOCK_TOKENS]
            vectors[rows] = self.transformer().encode(tokens.take(rows), batch_size=BLOCK_TOKENS)
        if folder is not None:
            try:
                with atomic_folder(folder) as part:
                    np.save(part / "vectors.npy", vectors)
            except OSError as error:
                logger.warning("the token vectors cannot be kept in %s: %s", folder, getattr(error, "reason", error))
        return vectors
