"""Gradient caching: encode more texts than fit, and train on all of them (Gao et al., 2021; DEXML).

The texts are encoded in chunks whose activations are dropped and found again in the backward pass, so the memory is
that of one chunk and the gradient that of the whole, dropout included.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .data.tokens import Tokens
from .encoders.interface import Encoder


def encode_cached(encoder: Encoder, tokens: Tokens, chunk_size: int) -> Tensor:
    """Vectors of all texts with a graph that keeps the activations of none.

    Texts are sorted by length inside, so a chunk carries little padding; a row-sparse encoder is run in one go.

    Args:
        encoder: the encoder.
        tokens: n texts.
        chunk_size: texts, or chunks of long documents, in a chunk.

    Returns:
        (n, D) float32, in the order of the texts.
    """
    if encoder.row_sparse or len(tokens) == 0:
        return encoder(tokens)
    if tokens.texts is not None:
        return encoder.pool(encode_cached(encoder, tokens.chunks, chunk_size), tokens)
    order = np.argsort(tokens.lengths, kind="stable")
    # the parameter tells checkpoint which device's random state to keep
    anchor = next(encoder.parameters())

    def encode(_: Tensor, part: Tokens) -> Tensor:
        return encoder(part)

    parts = [
        checkpoint(encode, anchor, tokens.take(order[start : start + chunk_size]), use_reentrant=False)
        for start in range(0, len(order), chunk_size)
    ]
    places = torch.from_numpy(np.argsort(order, kind="stable")).to(encoder.device)
    return torch.cat(parts).index_select(0, places)
