"""What every encoder offers: tokens in, one vector a text out."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import SettingsError
from .tokens import Limit, LongDocuments, Tokens, frame, tokenize

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Precision = Literal["float32", "bf16"]


class Encoder(nn.Module, abc.ABC):
    """A text encoder: ``forward(tokens) -> (n, D)`` float32.

    Attributes:
        dim: dimensions D of a vector.
        tokenizer: a fast tokenizer without truncation and padding.
        special_tokens: whether texts are framed by special tokens.
        max_tokens: tokens at which texts are cut, special tokens included.
        long_documents: what is kept of a longer text: ``head``, ``head+tail`` or ``chunks``, which are encoded one by
            one and pooled.
        max_chunks: chunks of a text, with ``chunks``.
        normalize: whether vectors have unit length.
        row_sparse: the gradient touches only the rows of the tokens met; such an encoder keeps no activations worth
            recomputing.
        precision: of training: ``bf16`` runs `forward` under autocast.
    """

    dim: int
    tokenizer: Tokenizer
    special_tokens: bool
    max_tokens: int
    long_documents: LongDocuments = "head"
    max_chunks: int = 8
    normalize: bool
    row_sparse: bool = False
    precision: Precision = "float32"

    @abc.abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors (n, D) float32 of n texts, with a graph when gradients are on; chunks are pooled."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder of stock modules into an existing, empty folder."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations that a backward pass needs for one token; 0 where there is nothing worth dropping."""
        return 0

    @property
    def limit(self) -> Limit:
        """How much of a text is kept.

        Raises:
            SettingsError: a limit that leaves no room for a text, or an unknown way to cut.
        """
        left, right = frame(self.tokenizer) if self.special_tokens else ((), ())
        max_chunks = self.max_chunks if self.long_documents == "chunks" else 1
        return Limit(self.max_tokens, self.long_documents, max_chunks, left, right)

    def tokenize(self, texts: Sequence[str], cache: Path | None = None) -> Tokens:
        """Tokens of the texts, cut at `limit` and kept in the folder ``cache``; None keeps them in memory only."""
        return tokenize(self.tokenizer, texts, self.limit, cache)

    def parts(self, tokens: Tokens) -> Tokens:
        """What is encoded by itself, as texts: the chunks."""
        return tokens.chunks

    def pool(self, vectors: Tensor, tokens: Tokens) -> Tensor:
        """Vectors of texts from those of their chunks.

        With u_j the vectors of a text's chunks and n_j their tokens, special tokens included, it is
        sum_j n_j u_j / sum_j n_j, scaled to unit length if the encoder's vectors are.

        Args:
            vectors: (c, D), one a chunk.
            tokens: n texts of c chunks.

        Returns:
            (n, D).
        """
        if len(vectors) == len(tokens):
            return vectors
        owners, shares = (torch.from_numpy(x).to(vectors.device) for x in tokens.shares())
        weighted = vectors * shares.to(vectors.dtype)[:, None]
        sums = vectors.new_zeros(len(tokens), vectors.shape[1]).index_add(0, owners, weighted)
        return nn.functional.normalize(sums, dim=1) if self.normalize else sums

    def each(self, parts: Sequence[Tokens]) -> list[Tensor]:
        """Vectors (n_j, D) of several lists of n_j texts, each encoded by itself, with one graph."""
        return [self(part) for part in parts]

    def for_inference(self, precision: Precision, keep: bool) -> contextlib.AbstractContextManager[None]:
        """Weights as inference wants them while the body runs; the arguments are those of `encode`."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def encode(
        self, tokens: Tokens, batch_size: int = 256, *, precision: Precision | None = None, keep: bool = False
    ) -> npt.NDArray[np.float32]:
        """Vectors of many texts, without gradients, dropout off; sorted by length inside, order kept.

        Args:
            tokens: n texts.
            batch_size: texts, or chunks of long ones, encoded at a time.
            precision: ``bf16`` has weights in bf16 (cosines to float32 vectors above 0.999); None that of training.
            keep: keep weights that were laid out anew, or made bf16, for the next call; not while they are trained,
                since fused optimisers change weights without a trace.

        Returns:
            (n, D) float32.

        Raises:
            SettingsError: a batch_size below 1.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise SettingsError(
                f"batch_size, the texts encoded at a time, must be a whole number of at least 1, got {batch_size!r}"
            )
        training = self.training
        self.eval()
        parts = self.parts(tokens)
        order = np.argsort(parts.lengths, kind="stable")
        vectors = torch.zeros(len(tokens), self.dim)
        pooled = len(parts) > len(tokens)
        owners, shares = map(torch.from_numpy, tokens.shares()) if pooled else (None, None)
        try:
            with self.for_inference(precision or self.precision, keep):
                for start in range(0, len(order), batch_size):
                    rows = order[start : start + batch_size]
                    encoded = self(parts.take(rows)).float().cpu()
                    if owners is None or shares is None:
                        vectors[rows] = encoded
                    else:
                        vectors.index_add_(0, owners[rows], encoded * shares[rows, None].float())
        finally:
            self.train(training)
        return (nn.functional.normalize(vectors, dim=1) if pooled and self.normalize else vectors).numpy()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context of a device and precision; off for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
