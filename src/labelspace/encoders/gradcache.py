"""Gradient caching: encode more texts than fit, and train on all of them (Gao et al., 2021; DEXML).

The texts are encoded in chunks. Activations of the first chunks stay in memory, as far as there is room for them; those
of the others are dropped and computed again in the backward pass. So memory is bounded, and the gradient is that of all
texts at once, dropout included.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .interface import Encoder
from .tokens import Tokens


def encode_cached(encoder: Encoder, tokens: Tokens, chunk_size: int, kept_tokens: int = 0) -> Tensor:
    """Vectors (n, D) float32 of n texts, with a graph that keeps the activations of few.

    Texts are sorted by length inside, so a chunk has little padding or none; a row-sparse encoder is run in one go.

    Args:
        encoder: the encoder.
        tokens: n texts.
        chunk_size: texts of full length in a chunk; of shorter ones as many more as have their tokens.
        kept_tokens: tokens whose activations may stay in memory.
    """
    if encoder.row_sparse or len(tokens) == 0:
        return encoder(tokens)
    if tokens.texts is not None:
        return encoder.pool(encode_cached(encoder, tokens.chunks, chunk_size, kept_tokens), tokens)
    order = np.argsort(tokens.lengths, kind="stable")
    # the parameter tells checkpoint which device's random state to keep
    anchor = next(encoder.parameters())

    def encode(_: Tensor, part: Tokens) -> Tensor:
        return encoder(part)

    parts = [tokens.take(order[rows]) for rows in chunks(tokens.lengths[order], chunk_size * encoder.max_tokens)]
    kept = int(np.searchsorted(np.cumsum([len(part.ids) for part in parts]), kept_tokens, side="right"))
    vectors = encoder.each(parts[:kept])
    vectors += [checkpoint(encode, anchor, part, use_reentrant=False) for part in parts[kept:]]
    places = torch.from_numpy(np.argsort(order, kind="stable")).to(encoder.device)
    return torch.cat(vectors).index_select(0, places)


def encode_both(
    encoder: Encoder, documents: Tokens, labels: Tokens, chunk_size: int, kept_tokens: int = 0
) -> tuple[Tensor, Tensor]:
    """Vectors (n, D) of n documents and (m, D) of m labels, by `encode_cached`.

    They are encoded together, so that the weights get their gradients in fewer passes.
    """
    if encoder.row_sparse or (documents.texts is None) != (labels.texts is None):
        first = encode_cached(encoder, documents, chunk_size, kept_tokens)
        return first, encode_cached(encoder, labels, chunk_size, kept_tokens - len(documents.ids))
    both = encode_cached(encoder, documents.followed_by(labels), chunk_size, kept_tokens)
    return both[: len(documents)], both[len(documents) :]


def chunks(lengths: npt.NDArray[np.int64], max_tokens: int) -> list[slice]:
    """Cut texts of given lengths (n,) into consecutive chunks of at most so many tokens, but one text at least."""
    ends = np.cumsum(lengths)
    cuts = [0]
    while cuts[-1] < len(lengths):
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, before + max_tokens, side="right"))))
    return [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
