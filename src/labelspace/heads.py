"""Heads: label numbers -> label vectors (P, D)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .data.tokens import Tokens
from .encoders.interface import Encoder
from .gradcache import encode_cached


class LabelEncoder:
    """The dual encoder's head: a label's vector is its text, encoded.

    Args:
        encoder: the encoder, shared with the documents.
        tokens: texts of all L labels.
        chunk_size: texts of full length encoded at a time.
    """

    def __init__(self, encoder: Encoder, tokens: Tokens, chunk_size: int):
        self.encoder, self.tokens, self.chunk_size = encoder, tokens, chunk_size

    def __call__(self, pool: npt.NDArray[np.int64] | None, kept_tokens: int = 0) -> Tensor:
        """Vectors of the labels of a pool, with a graph.

        Args:
            pool: (P,) label numbers; None for all.
            kept_tokens: tokens whose activations may stay in memory.

        Returns:
            (P, D) float32.
        """
        tokens = self.tokens if pool is None else self.tokens.take(pool)
        return encode_cached(self.encoder, tokens, self.chunk_size, kept_tokens)
