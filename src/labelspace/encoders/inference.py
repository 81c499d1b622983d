"""BERT-like transformers without gradients on a CPU, in bf16: weights laid out for the products, few passes between.

The same arithmetic as the transformers library's modules, which the tests compare it with. Query, key and value are
one product, GELU and the addition around a layer are part of the product before them, and weights are laid out once for
oneDNN, whose operators PyTorch keeps for its own compiler: where they are missing, `FastBert.fits` says no and the
modules themselves are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import products_pay
from .packed import Run

ARCHITECTURES = ("bert", "electra", "roberta", "xlm-roberta", "camembert")
TOKENS = 4096
"""Rows of the products that weights are laid out for; others are computed with the same layout."""


class FastBert:
    """Hidden states of packed texts.

    Args:
        transformer: a model for which `fits`; its weights are copied.
    """

    def __init__(self, transformer: Any):
        config = transformer.config
        self.heads = int(config.num_attention_heads)
        self.made_of = stamps(transformer)
        own = transformer.embeddings
        self.tables = [own.word_embeddings.weight.detach(), own.position_embeddings.weight.detach()]
        self.first_type = own.token_type_embeddings.weight.detach()[0].clone()
        self.norm = _norm(own.LayerNorm, torch.float32)
        self.layers = [_Layer(layer, self.heads) for layer in transformer.encoder.layer]

    @staticmethod
    def fits(transformer: Any) -> bool:
        """Whether a model is of a kind that this computes.

        Args:
            transformer: of the transformers library.
        """
        config = transformer.config
        return (
            config.model_type in ARCHITECTURES
            and config.hidden_act == "gelu"
            and getattr(config, "position_embedding_type", None) in (None, "absolute")
            and not getattr(config, "is_decoder", False)
            and not hasattr(transformer, "embeddings_project")
            and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> FastBert:
        return self  # nothing here changes, and a copied model has other weights, for which this is not `current`

    def current(self, transformer: Any) -> bool:
        """Whether the weights of a model are still those that were copied.

        Args:
            transformer: the model.
        """
        return self.made_of == stamps(transformer)

    @torch.no_grad()
    def __call__(self, ids: Tensor, positions: Tensor, text_runs: list[Run]) -> Tensor:
        """Hidden states after the last layer.

        Args:
            ids: (T,) int64 tokens.
            positions: (T,) int64 their position numbers.
            text_runs: which tokens belong together.

        Returns:
            (T, H) bf16.
        """
        words, places = self.tables
        hidden = F.embedding(ids, words).add_(F.embedding(positions, places)).add_(self.first_type)
        hidden = F.layer_norm(hidden, *self.norm).bfloat16()
        for layer in self.layers:
            hidden = layer(hidden, text_runs)
        return hidden


class _Layer:
    """Attention and the two products after it."""

    def __init__(self, layer: Any, heads: int):
        own, out = layer.attention.self, layer.attention.output
        self.heads = heads
        width = own.query.weight.shape[0] // heads
        scale = width**-0.5  # of the products of queries and keys, put into the weights
        weights = [own.query.weight.detach() * scale, own.key.weight.detach(), own.value.weight.detach()]
        biases = [own.query.bias.detach() * scale, own.key.bias.detach(), own.value.bias.detach()]
        self.into = _packed(torch.cat(weights), torch.cat(biases))
        self.out = _packed(out.dense.weight, out.dense.bias)
        self.up = _packed(layer.intermediate.dense.weight, layer.intermediate.dense.bias)
        self.down = _packed(layer.output.dense.weight, layer.output.dense.bias)
        self.norms = [_norm(x, torch.bfloat16) for x in (out.LayerNorm, layer.output.LayerNorm)]

    def __call__(self, hidden: Tensor, text_runs: list[Run]) -> Tensor:
        ops = torch.ops.mkldnn
        mixed = _attend(ops._linear_pointwise(hidden, *self.into, "none", [], ""), text_runs, self.heads)
        hidden = F.layer_norm(ops._linear_pointwise.binary(mixed, hidden, *self.out, "add"), *self.norms[0])
        wide = ops._linear_pointwise(hidden, *self.up, "gelu", [], "none")
        return F.layer_norm(ops._linear_pointwise.binary(wide, hidden, *self.down, "add"), *self.norms[1])


def _attend(given: Tensor, text_runs: list[Run], heads: int) -> Tensor:
    """Every token attends to its own text; (T, 3 H) queries, keys and values -> (T, H), both bf16."""
    total, size = len(given), given.shape[1] // 3
    out = torch.empty(total, size, dtype=given.dtype)
    end = 0
    for start, end, length in text_runs:
        parts = given[start:end].view(-1, length, 3, heads, size // heads).permute(2, 0, 3, 1, 4)
        into = out[start:end].view(-1, length, heads, size // heads).permute(0, 2, 1, 3)
        query, key, value = parts.unbind(0)
        if products_pay(length, heads, size // heads, given.device):
            query, key, value = torch.empty(parts.shape).copy_(parts).flatten(1, 2).unbind(0)
            mixed = torch.bmm(torch.softmax(torch.bmm(query, key.transpose(1, 2)), dim=2), value)
            into.copy_(mixed.view(into.shape))
        else:
            into.copy_(F.scaled_dot_product_attention(query, key, value, scale=1.0))
    out[end:] = 0
    return out


def _packed(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    low: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), TOKENS)
    return low, bias.detach().bfloat16()


def _norm(module: Any, dtype: torch.dtype) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    return (
        tuple(module.normalized_shape),
        module.weight.detach().to(dtype),
        module.bias.detach().to(dtype),
        float(module.eps),
    )


def stamps(transformer: Any) -> list[tuple[int, int]]:
    """What tells whether weights have changed: where they are, and how often they were written to.

    Args:
        transformer: of the transformers library.
    """
    return [(parameter.data_ptr(), parameter._version) for parameter in transformer.parameters()]
