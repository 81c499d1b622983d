"""Towers: an encoder and the heads behind it, from texts to what a memory is asked with and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..encoders import Encoder, Precision, open_encoder
from ..encoders.tokens import Tokens
from ..training.label_heads import TwoHeads

FloatArray = npt.NDArray[np.float32]


class Tower:
    """One encoder, and the heads behind it where it has such.

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

    def queries(self, texts: Sequence[str], batch_size: int = 256, precision: Precision = "float32") -> FloatArray:
        """What documents ask with.

        Args:
            texts: n texts.
            batch_size: texts encoded at a time.
            precision: of encoding.

        Returns:
            (n, D) float32.
        """
        vectors = self._vectors(texts, batch_size, precision)
        return vectors if self.heads is None else self._found(self.heads.queries(self._placed(vectors)))

    def document_keys(
        self, texts: Sequence[str], batch_size: int = 256, precision: Precision = "float32"
    ) -> FloatArray:
        """Keys of documents.

        Args:
            texts: n texts.
            batch_size: texts encoded at a time.
            precision: of encoding.

        Returns:
            (n, document_dim) float32.
        """
        vectors = self._vectors(texts, batch_size, precision)
        return vectors if self.heads is None else self._found(self.heads.documents(self._placed(vectors)))

    def label_keys(self, texts: Sequence[str], batch_size: int = 256, precision: Precision = "float32") -> FloatArray:
        """Keys of labels that are known by their texts alone.

        Args:
            texts: n label texts.
            batch_size: texts encoded at a time.
            precision: of encoding.

        Returns:
            (n, D) float32, times the share; with heads, the classifier's row is made from the text too.
        """
        vectors = self._vectors(texts, batch_size, precision)
        if self.heads is not None:
            vectors = self._found(self.heads.keys(self._placed(vectors), None))
        return vectors if self.share == 1 else np.float32(self.share) * vectors

    def renamed(
        self,
        old: Tensor,
        before: Sequence[str],
        texts: Sequence[str],
        batch_size: int = 256,
        precision: Precision = "float32",
    ) -> Tensor:
        """Keys of labels under new texts; what a classifier learned of a label stays.

        Args:
            old: (n, D) keys that they have.
            before: n texts that they have.
            texts: n new texts.
            batch_size: texts encoded at a time.
            precision: of encoding.

        Returns:
            (n, D) float32.
        """
        keys = torch.from_numpy(self.label_keys(texts, batch_size, precision)).to(old.device)
        if self.heads is not None and texts:
            part = self.heads.columns("classifier")
            made = torch.from_numpy(self.label_keys(before, batch_size, precision)).to(old.device)[:, part]
            rows = old[:, part].to(keys)
            learned = (rows - made).norm(dim=1) > 0.01 * made.norm(dim=1)  # others were made from the text
            keys[:, part] = torch.where(learned[:, None], rows, keys[:, part])
        return keys

    def _vectors(self, texts: Sequence[str], batch_size: int, precision: Precision) -> FloatArray:
        tokens: Tokens = self.encoder.tokenize(texts)
        return self.encoder.encode(tokens, batch_size, precision=precision, keep=True)  # training is over

    def _placed(self, vectors: FloatArray) -> Tensor:
        return torch.from_numpy(vectors).to(self.encoder.device)

    def _found(self, vectors: Tensor) -> FloatArray:
        return vectors.cpu().numpy()

    # Folders

    def save(self, folder: Path, number: int) -> dict[str, Any]:
        """Write the encoder's folder and the heads' file, and say what `load` needs.

        Args:
            folder: of the model.
            number: of the tower, from 1.
        """
        place, heads = names(number)
        (folder / place).mkdir()
        self.encoder.save(folder / place)
        cut = {"long_documents": self.encoder.long_documents, "max_chunks": self.encoder.max_chunks}
        return {"encoder": cut} | ({} if self.heads is None else {"heads": self.heads.save(folder / heads)})

    @classmethod
    def load(cls, folder: Path, number: int, entry: dict[str, Any], device: str, share: float = 1.0) -> Tower:
        """Read what `save` wrote.

        Args:
            folder: of the model.
            number: of the tower, from 1.
            entry: what `save` returned; without ``encoder`` long texts are cut at their head.
            device: where to put the weights.
            share: of its label keys.

        Raises:
            ModelError: a file that is damaged, or heads of another kind.
        """
        place, heads = names(number)
        cut = entry.get("encoder") or {}
        encoder = open_encoder(str(folder / place), device=device)
        if number > 1:
            encoder.long_documents, encoder.max_chunks = cut["long_documents"], cut["max_chunks"]
        loaded = TwoHeads.load(folder / heads, entry["heads"], device) if "heads" in entry else None
        return cls(encoder, loaded, share)


def names(number: int) -> tuple[str, str]:
    """The folder of a tower's encoder and the file of its heads.

    Args:
        number: from 1.
    """
    more = "" if number == 1 else f"-{number}"
    return f"encoder{more}", f"head{more}.safetensors"
