"""Memory of a training run, before it is taken; plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import RunSettings

POOL_A_DOCUMENT = 32
"""Most labels that a document adds to a pool, for the estimate."""
LOGITS_BLOCK_BYTES = 8 << 20
"""Memory of one block of float32 logits; small enough to stay near the processor, large enough for full speed."""


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder.

    Args:
        weight_bytes: all its weights.
        dim: dimensions of a vector.
        layers: of a transformer, 0 otherwise.
        hidden: width of a layer.
        heads: attention heads of a layer.
        max_tokens: longest text.
    """

    weight_bytes: int
    dim: int
    layers: int = 0
    hidden: int = 0
    heads: int = 0
    max_tokens: int = 0


def training_bytes(settings: RunSettings, encoder: Shape, pool: int, kept_keys: int = 0) -> int:
    """Bytes that training takes beside the data.

    They hold weights, their two moments, gradients and the best copy; vectors and gradients of the pool; blocks of
    logits; activations of one chunk, and those that are kept; keys for hard negatives.

    Args:
        settings: of the run.
        encoder: what will be trained.
        pool: P, labels in a step.
        kept_keys: label keys kept between steps, for hard negatives.
    """
    vectors = 4 * encoder.dim * (pool + settings.fit.batch_size) * 5
    block = max(LOGITS_BLOCK_BYTES, 4 * pool)
    tokens = settings.encoding.chunk_size * encoder.max_tokens
    layer = tokens * encoder.hidden * 4 * 20 + tokens * encoder.max_tokens * encoder.heads * 4 * 3
    kept = int(1e9 * settings.encoding.activations_gb) if encoder.layers else 0
    mined = 4 * encoder.dim * kept_keys
    return 5 * encoder.weight_bytes + vectors + mined + 4 * block + encoder.layers * layer + kept
