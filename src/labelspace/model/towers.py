"""Towers: an encoder and the heads behind it, from texts to what a memory is asked with and what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..encoders import Encoder, Precision, open_encoder
from ..training.label_heads import TwoHeads

Vectors = npt.NDArray[np.float32]


class Tower:
    """One encoder, and the heads behind it where it has such.

    Its methods take n texts, how many of them are encoded at a time, and in which precision.

    Args:
        encoder: of texts.
        heads: behind it; None where the encoder's vectors are queries and keys.
        share: label keys are multiplied by it, which matters where those of several towers stand side by side.
    """

    def __init__(self, encoder: Encoder, heads: TwoHeads | None = None, share: float = 1.0):
        self.encoder = encoder.eval()
        self.heads = None if heads is None else heads.eval()
        self.share = share

    @property
    def dim(self) -> int:
        """D, dimensions of queries and keys."""
        return self.encoder.dim if self.heads is None else sum(self.heads.widths)

    @property
    def document_dim(self) -> int:
        """Dimensions of document keys, which are compared with the first columns of a query."""
        return self.encoder.dim if self.heads is None else self.heads.document_dim

    def queries(self, texts: Sequence[str], batch_size: int = 256, precision: Precision = "float32") -> Vectors:
        """(n, D) queries of documents."""
        return self._vectors(texts, batch_size, precision, TwoHeads.queries)

    def document_keys(self, texts: Sequence[str], batch_size: int = 256, precision: Precision = "float32") -> Vectors:
        """(n, document_dim) keys of documents."""
        return self._vectors(texts, batch_size, precision, TwoHeads.documents)

    def label_keys(self, texts: Sequence[str], batch_size: int = 256, precision: Precision = "float32") -> Vectors:
        """(n, D) keys, times the share, of labels known by their texts alone; so is the row of a classifier."""
        vectors = self._vectors(texts, batch_size, precision, lambda heads, vectors: heads.keys(vectors, None))
        return vectors if self.share == 1 else np.float32(self.share) * vectors

    def renamed(
        self, old: Tensor, before: Sequence[str], texts: Sequence[str], batch_size: int, precision: Precision
    ) -> Tensor:
        """(n, D) keys of labels whose keys were ``old`` under the texts ``before``; what a classifier learned stays."""
        keys = torch.from_numpy(self.label_keys(texts, batch_size, precision)).to(old.device)
        if self.heads is not None and texts:
            part = self.heads.columns("classifier")
            from_text = torch.from_numpy(self.label_keys(before, batch_size, precision)).to(old.device)[:, part]
            rows = old[:, part].to(keys)
            learned = (rows - from_text).norm(dim=1) > 0.01 * from_text.norm(dim=1)  # others were made from the text
            keys[:, part] = torch.where(learned[:, None], rows, keys[:, part])
        return keys

    def _vectors(
        self, texts: Sequence[str], batch_size: int, precision: Precision, head: Callable[[TwoHeads, Tensor], Tensor]
    ) -> Vectors:
        """What the encoder makes of texts, and a method of the heads of that, where there are heads."""
        tokens = self.encoder.tokenize(texts)
        vectors = self.encoder.encode(tokens, batch_size, precision=precision, keep=True)  # training is over
        if self.heads is None:
            return vectors
        return head(self.heads, torch.from_numpy(vectors).to(self.encoder.device)).cpu().numpy()

    def save(self, folder: Path, number: int) -> dict[str, Any]:
        """Save encoder and heads as tower ``number``, from 1, of a model's folder; returns what `load` needs."""
        place, heads = names(number)
        (folder / place).mkdir()
        self.encoder.save(folder / place)
        cut = {"long_documents": self.encoder.long_documents, "max_chunks": self.encoder.max_chunks}
        return {"encoder": cut} | ({} if self.heads is None else {"heads": self.heads.save(folder / heads)})

    @classmethod
    def load(cls, folder: Path, number: int, entry: dict[str, Any], device: str, share: float) -> Tower:
        """Load what `save` saved and described by ``entry``.

        Raises:
            ModelError: a file that is damaged, or heads of another kind.
        """
        place, heads = names(number)
        encoder = open_encoder(str(folder / place), device=device)
        if number > 1:  # `open_encoder` looks up how the first one cuts texts
            cut = entry.get("encoder") or {}
            encoder.long_documents, encoder.max_chunks = cut["long_documents"], cut["max_chunks"]
        loaded = TwoHeads.load(folder / heads, entry["heads"], device) if "heads" in entry else None
        return cls(encoder, loaded, share)


def names(number: int) -> tuple[str, str]:
    """The folder of an encoder and the file of its heads, of the tower ``number``, from 1."""
    more = "" if number == 1 else f"-{number}"
    return f"encoder{more}", f"head{more}.safetensors"
