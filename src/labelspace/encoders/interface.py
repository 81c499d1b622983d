"""What every encoder offers: tokens in, one vector a text out."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..data.tokens import Tokens, tokenize

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Precision = Literal["float32", "bf16"]


class Encoder(nn.Module, abc.ABC):
    """A text encoder: ``forward(tokens) -> (n, D)`` float32.

    Attributes:
        dim: dimensions D of a vector.
        tokenizer: a fast tokenizer; its truncation holds the longest text.
        special_tokens: whether texts are framed by special tokens.
        row_sparse: the gradient touches only the rows of the tokens met; such an encoder keeps no activations worth
            recomputing.
        precision: ``bf16`` runs `forward` under autocast.
    """

    dim: int
    tokenizer: Tokenizer
    special_tokens: bool
    row_sparse: bool = False
    precision: Precision = "float32"

    @abc.abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors of the texts, (n, D) float32, with a graph when gradients are on.

        Args:
            tokens: n texts.
        """

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder made of stock modules.

        Args:
            folder: an existing, empty folder.
        """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations that a backward pass needs for one token; 0 where there is nothing worth dropping."""
        return 0

    @property
    def max_tokens(self) -> int:
        """Tokens at which texts are cut, special tokens included."""
        truncation = self.tokenizer.truncation
        assert truncation is not None, "an encoder's tokenizer cuts its texts"
        return int(truncation["max_length"])

    @max_tokens.setter
    def max_tokens(self, value: int) -> None:
        self.tokenizer.enable_truncation(value)

    def tokenize(self, texts: Sequence[str], cache: Path | None = None) -> Tokens:
        """Tokens of the texts, cut at `max_tokens`.

        Args:
            texts: n texts.
            cache: folder that keeps the tokens; None for memory only.
        """
        return tokenize(self.tokenizer, texts, special_tokens=self.special_tokens, cache=cache)

    @torch.no_grad()
    def encode(self, tokens: Tokens, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Vectors of many texts, without gradients, dropout off; sorted by length inside, order kept.

        Args:
            tokens: n texts.
            batch_size: texts encoded at a time.

        Returns:
            (n, D) float32.
        """
        training = self.training
        self.eval()
        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        order = np.argsort(tokens.lengths, kind="stable")
        try:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                vectors[rows] = self(tokens.take(rows)).float().cpu().numpy()
        finally:
            self.train(training)
        return vectors


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context of a device and precision; off for float32.

    Args:
        device: where the tensors are.
        precision: ``float32`` or ``bf16``.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
