"""BERT-like transformers without gradients on a CPU: few passes between the products, and little new memory.

The same arithmetic as the transformers library's modules, which the tests compare it with. Query, key and value are
one product, and the addition around a layer is part of the product before it. In bf16 weights are laid out once for
oneDNN, which applies GELU too; PyTorch keeps its operators for its own compiler, and where they are missing
`FastBert.fits` says no and the modules themselves are used. In float32 products are written to memory that is there:
an array of megabytes is new memory each time, and to get it from the system takes as long as the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import products_pay
from .packed import Run

ARCHITECTURES = ("bert", "electra", "roberta", "xlm-roberta", "camembert")
LAYOUT_TOKENS = 4096
"""Tokens of the products that weights are laid out for; other numbers are computed with the same layout."""
WIDE_ROWS = 1024
"""Tokens whose widest vectors, those between the two last products of a layer, exist at a time in float32."""


class FastBert:
    """Hidden states of packed texts.

    Args:
        transformer: a model that `fits`; some of its weights are copied.
        dtype: of the computation, bf16 or float32.
    """

    def __init__(self, transformer: Any, dtype: torch.dtype):
        config = transformer.config
        self.dtype = dtype
        self.heads = int(config.num_attention_heads)
        self.made_of = stamps(transformer)
        inputs = transformer.embeddings
        self.tables = [inputs.word_embeddings.weight.detach(), inputs.position_embeddings.weight.detach()]
        self.first_type = inputs.token_type_embeddings.weight.detach()[0].clone()
        self.norm = _norm(inputs.LayerNorm, torch.float32)
        kind: type[_LowLayer | _PlainLayer] = _LowLayer if dtype == torch.bfloat16 else _PlainLayer
        self.layers = [kind(layer, self.heads) for layer in transformer.encoder.layer]

    @staticmethod
    def fits(transformer: Any, dtype: torch.dtype) -> bool:
        """Whether the class can compute a model of the transformers library in this type."""
        config = transformer.config
        low = dtype == torch.bfloat16
        return (
            config.model_type in ARCHITECTURES
            and config.hidden_act == "gelu"
            and getattr(config, "position_embedding_type", None) in (None, "absolute")
            and not getattr(config, "is_decoder", False)
            and not hasattr(transformer, "embeddings_project")
            and (not low or all(hasattr(torch.ops.mkldnn, x) for x in ("_linear_pointwise", "_reorder_linear_weight")))
            and (not low or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> FastBert:
        return self  # nothing here changes, and a copied model has other weights, for which this is not `current`

    def current(self, transformer: Any) -> bool:
        """Whether the weights of a model are still those that were copied."""
        return self.made_of == stamps(transformer)

    @torch.no_grad()
    def __call__(self, ids: Tensor, positions: Tensor, text_runs: list[Run]) -> Tensor:
        """Hidden states (T, H) after the last layer, of tokens (T,) and their position numbers (T,), both int64."""
        words, places = self.tables
        hidden = F.embedding(ids, words).add_(F.embedding(positions, places)).add_(self.first_type)
        hidden = F.layer_norm(hidden, *self.norm).to(self.dtype)
        room = _Room(hidden, max((layer.widest for layer in self.layers), default=0))
        for layer in self.layers:
            hidden = layer(hidden, text_runs, room)
        return hidden


class _Room:
    """Memory for T tokens of H dimensions that all layers write to, one after the other."""

    def __init__(self, hidden: Tensor, widest: int):
        total, size = hidden.shape
        self.mixed = torch.empty_like(hidden)
        if hidden.dtype == torch.float32:
            self.three, self.sums = torch.empty(total, 3 * size), torch.empty_like(hidden)
            self.wide = torch.empty(min(WIDE_ROWS, total), widest)


class _LowLayer:
    """Attention and the two products after it, in bf16 by oneDNN."""

    def __init__(self, layer: Any, heads: int):
        out = layer.attention.output
        self.heads = heads
        self.into = _packed(*_one_product(layer.attention.self, heads))
        self.out = _packed(out.dense.weight, out.dense.bias)
        self.up = _packed(layer.intermediate.dense.weight, layer.intermediate.dense.bias)
        self.down = _packed(layer.output.dense.weight, layer.output.dense.bias)
        self.norms = [_norm(x, torch.bfloat16) for x in (out.LayerNorm, layer.output.LayerNorm)]
        self.widest = len(layer.intermediate.dense.weight)

    def __call__(self, hidden: Tensor, text_runs: list[Run], room: _Room) -> Tensor:
        ops = torch.ops.mkldnn
        three = ops._linear_pointwise(hidden, *self.into, "none", [], "")
        mixed = _attend(three, text_runs, self.heads, room.mixed)
        hidden = F.layer_norm(ops._linear_pointwise.binary(mixed, hidden, *self.out, "add"), *self.norms[0])
        wide = ops._linear_pointwise(hidden, *self.up, "gelu", [], "none")
        return F.layer_norm(ops._linear_pointwise.binary(wide, hidden, *self.down, "add"), *self.norms[1])


class _PlainLayer:
    """Attention and the two products after it, in float32; of the weights all but three are the model's own."""

    def __init__(self, layer: Any, heads: int):
        out, up, down = layer.attention.output, layer.intermediate.dense, layer.output.dense
        self.heads = heads
        weight, bias = _one_product(layer.attention.self, heads)
        self.into = bias, weight.T
        self.out = out.dense.bias.detach(), out.dense.weight.detach().T
        self.up = up.bias.detach(), up.weight.detach().T
        self.down = down.bias.detach(), down.weight.detach().T
        self.norms = [_norm(x, torch.float32) for x in (out.LayerNorm, layer.output.LayerNorm)]
        self.widest = len(self.up[0])

    def __call__(self, hidden: Tensor, text_runs: list[Run], room: _Room) -> Tensor:
        torch.addmm(self.into[0], hidden, self.into[1], out=room.three)
        mixed = _attend(room.three, text_runs, self.heads, room.mixed)
        bias, weight = self.out
        hidden = F.layer_norm(hidden.add_(bias).addmm_(mixed, weight), *self.norms[0])
        bias, weight = self.down
        torch.add(hidden, bias, out=room.sums)
        for part, sums in zip(hidden.split(WIDE_ROWS), room.sums.split(WIDE_ROWS), strict=True):
            wide = room.wide[: len(part)]
            torch.addmm(self.up[0], part, self.up[1], out=wide)
            sums.addmm_(torch.ops.aten.gelu_(wide), weight)
        return F.layer_norm(room.sums, *self.norms[1])


def _one_product(attention: Any, heads: int) -> tuple[Tensor, Tensor]:
    """Weights (3 H, H) and biases of queries, keys and values, the scale of attention put into those of the queries."""
    scale = (attention.query.weight.shape[0] // heads) ** -0.5
    weights = [attention.query.weight.detach() * scale, attention.key.weight.detach(), attention.value.weight.detach()]
    biases = [attention.query.bias.detach() * scale, attention.key.bias.detach(), attention.value.bias.detach()]
    return torch.cat(weights), torch.cat(biases)


def _attend(three: Tensor, text_runs: list[Run], heads: int, out: Tensor) -> Tensor:
    """Every token attends to its own text; (T, 3 H) queries, keys and values -> (T, H) of the same type, into `out`.

    `packed.run_by_run` does the same with gradients. Without them this is up to a quarter faster: the scale is in the
    weights, all three are copied at once, and the results are written where they belong.
    """
    size = three.shape[1] // 3
    end = 0
    for start, end, length in text_runs:
        parts = three[start:end].view(-1, length, 3, heads, size // heads).permute(2, 0, 3, 1, 4)
        into = out[start:end].view(-1, length, heads, size // heads).permute(0, 2, 1, 3)
        query, key, value = parts.unbind(0)
        if products_pay(length, heads, size // heads, three.device):
            query, key, value = torch.empty(parts.shape).copy_(parts).flatten(1, 2).unbind(0)
            mixed = torch.bmm(torch.softmax(torch.bmm(query, key.transpose(1, 2)), dim=2), value)
            into.copy_(mixed.view(into.shape))
        else:
            into.copy_(F.scaled_dot_product_attention(query, key, value, scale=1.0))
    out[end:] = 0
    return out


def _packed(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    low: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), LAYOUT_TOKENS)
    return low, bias.detach().bfloat16()


def _norm(module: Any, dtype: torch.dtype) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    """What `F.layer_norm` takes beside its input."""
    weight, bias = (x.detach().to(dtype) for x in (module.weight, module.bias))
    return tuple(module.normalized_shape), weight, bias, float(module.eps)


def stamps(transformer: Any) -> list[tuple[int, int]]:
    """A mark that changes with the weights: where they are, and how often they were written to."""
    return [(parameter.data_ptr(), parameter._version) for parameter in transformer.parameters()]
