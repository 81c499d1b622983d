"""Heads: label numbers -> label vectors (P, D), and the layers between the encoder and the scores (UniDEC)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, normalize

from ..encoders.gradcache import encode_cached
from ..encoders.interface import Encoder
from ..encoders.tokens import Tokens
from ..errors import ModelError
from ..evaluation.metrics import barred_labels, binary_truth, membership
from ..memory.indexes import ExactIndex
from . import distributed
from .optim import BaseOptimizer, round_stochastically

ClassifierNorm = Literal["search", "both", "never", "tuned"]
Ranking = Literal["combined", "encoder", "classifier"]
RANKINGS: tuple[Ranking, ...] = ("combined", "encoder", "classifier")
DRAWN_ROWS = 65_536
"""Rows of a table that are drawn at a time."""
SEARCH_SETTINGS = ("search_weight", "row_length", "row_power")
"""Attributes of `TwoHeads` that are chosen after training, for search."""


class LabelEncoder:
    """The dual encoder's head: a label's vector is its text, encoded as documents are, ``chunk_size`` at a time."""

    def __init__(self, encoder: Encoder, tokens: Tokens, chunk_size: int):
        self.encoder, self.tokens, self.chunk_size = encoder, tokens, chunk_size

    def __call__(self, pool: npt.NDArray[np.int64] | None, kept_tokens: int = 0) -> Tensor:
        """Vectors (P, D) float32 of the labels of a pool (P,), None for all, with a graph.

        Activations of ``kept_tokens`` tokens may stay in memory.
        """
        tokens = self.tokens if pool is None else self.tokens.take(pool)
        return encode_cached(self.encoder, tokens, self.chunk_size, kept_tokens)


class LabelTable(nn.Module):
    """The classifier's head: a label's vector is a row of its own (UniDEC, Renee).

    Only the rows of a pool get a gradient, which is sparse; nothing of the table's size is made in a step.

    Args:
        rows: (L, D) first vectors, float32 or bf16; they become the weights without a copy.
        dropout: share of the entries of the rows used that are set to 0 in training.
    """

    def __init__(self, rows: Tensor, dropout: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(rows)
        self.dropout = dropout

    def forward(self, pool: npt.NDArray[np.int64] | None) -> Tensor:
        """Vectors (P, D) float32 of a pool of distinct, rising label numbers (P,), with a graph.

        None stands for all labels, whose gradient is dense.
        """
        if pool is None:
            rows = _raised(self.weight)
        else:
            rows = _Rows.apply(self.weight, torch.from_numpy(pool).to(self.weight.device))
        return dropout(rows, self.dropout) if self.training and self.dropout else rows


def xavier_rows(count: int, dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The first vectors of a table (L, D), Xavier-uniform; of several processes each gets its own rows."""
    bound, own = (6 / (count + dim)) ** 0.5, distributed.span(count)
    rows = torch.empty(own.stop - own.start, dim, dtype=dtype, device=device)
    for start in range(0, count, DRAWN_ROWS):  # all draw all, so that a row does not depend on the processes
        block = torch.empty(min(DRAWN_ROWS, count - start), dim, dtype=dtype, device=device).uniform_(-bound, bound)
        first, last = max(start, own.start), min(start + len(block), own.stop)
        if first < last:
            rows[first - own.start : last - own.start] = block[first - start : last - start]
    return rows


def _raised(x: Tensor) -> Tensor:
    """float32 of lower types; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


class _Rows(torch.autograd.Function):
    """Rows of a table as float32; the gradient is a coalesced sparse tensor of them."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.dtype = table.shape, table.dtype
        return _raised(table.index_select(0, rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        gradient = torch.sparse_coo_tensor(
            rows[None], grad.to(ctx.dtype), ctx.shape, is_coalesced=True, check_invariants=False
        )
        return gradient, None


class OneVsAll(LabelTable):
    """A label table trained against all labels at once by one-vs-all BCE (Renee, ELMO).

    The gradients are the closed form ``G = sigmoid(Z) - Y``, ``dE = G W``, ``dW = G^T E`` of logits Z, found for a
    chunk of labels at a time; autograd sees only dE, and `OneVsAllSGD` finds dW when it updates the weights.

    Args:
        rows: (L, D) first vectors, float32 or bf16; they become the weights without a copy.
        scale: factor from products of queries and rows to logits.
        chunk: labels whose logits are held at a time.
    """

    def __init__(self, rows: Tensor, *, scale: float = 1.0, chunk: int = 16_384):
        super().__init__(rows)
        self.scale, self.chunk = scale, chunk
        self.pending: tuple[Tensor, Tensor] | None = None
        """Queries and positives of the last loss, until the weights are updated for it."""

    def loss(self, queries: Tensor, positives: Tensor) -> Tensor:
        """BCE summed over documents (B, D) and labels; its gradient in the queries uses the weights as they are now.

        Positives are (2, M) pairs (row of the batch, label number), in any order.
        """
        positives = positives[:, torch.argsort(positives[1])]
        self.pending = (queries.detach(), positives)
        value: Tensor = _OneVsAll.apply(queries, self, positives)
        return distributed.total(value)

    def chunks(self, queries: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Labels of each chunk, their rows in the type of the products, and logits (B, c) that may be overwritten."""
        low = torch.bfloat16 if self.weight.dtype == torch.bfloat16 else queries.dtype
        scaled = (queries * self.scale).to(low)
        for start in range(0, len(self.weight), self.chunk):
            rows = self.weight.detach()[start : start + self.chunk].to(scaled.dtype)
            yield slice(start, start + len(rows)), rows, (scaled @ rows.T).to(queries.dtype)


def _positives_within(positives: Tensor, labels: slice) -> tuple[Tensor, Tensor]:
    """Rows, and columns counted from the chunk's first label, of the pairs (2, M), sorted by label, that are in it."""
    bounds = torch.tensor([labels.start, labels.stop], device=positives.device)
    first, last = torch.searchsorted(positives[1].contiguous(), bounds).tolist()
    return positives[0, first:last], positives[1, first:last] - labels.start


class _OneVsAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, head: OneVsAll, positives: Tensor) -> Tensor:
        gradient = torch.zeros_like(queries)
        value = torch.zeros((), dtype=torch.float64, device=queries.device)
        for labels, rows, logits in head.chunks(queries):
            where = _positives_within(positives, labels)
            value -= logits[where].sum()
            value += logits.clamp(min=0).sum() + logits.abs().neg_().exp_().log1p_().sum()
            g = logits.sigmoid_()
            g[where] -= 1
            gradient += (g.to(rows.dtype) @ rows).to(queries.dtype)
        ctx.save_for_backward(gradient.mul_(head.scale))
        return value.to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


class OneVsAllSGD(BaseOptimizer):
    """Updates the weights of a `OneVsAll` head chunk by chunk: ``W -= lr (G^T E + decay W)``.

    The gradient is that of the sum over documents and labels, as published rates assume. bf16 weights are rounded
    stochastically, seeded by the step; there is no master copy.

    Args:
        head: its last loss is learnt from.
        lr: learning rate.
        weight_decay: decay of the weights.
        momentum: of the gradient, a buffer as large as the weights; 0 for none.
        seed: of the rounding.
    """

    def __init__(
        self, head: OneVsAll, lr: float = 0.05, weight_decay: float = 0.0, momentum: float = 0.0, seed: int = 0
    ):
        super().__init__([head.weight], {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "seed": seed})
        self.head = head

    def advance(self) -> None:
        """Update all rows by the last loss, once."""
        if self.head.pending is None:
            return
        (queries, positives), self.head.pending = self.head.pending, None
        group, weight = self.param_groups[0], self.head.weight
        state = self.state[weight]
        state["step"] = state.get("step", 0) + 1
        if group["momentum"] and "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        generator = torch.Generator(weight.device).manual_seed((group["seed"] * 1_000_003 + state["step"]) % 2**63)
        for labels, rows, logits in self.head.chunks(queries):
            g = logits.sigmoid_()
            g[_positives_within(positives, labels)] -= 1
            change = (g.to(rows.dtype).T @ queries.to(rows.dtype)).to(queries.dtype).mul_(self.head.scale)
            old = weight[labels].to(change.dtype)
            change.add_(old, alpha=group["weight_decay"])
            if group["momentum"]:
                change = state["momentum"][labels].mul_(group["momentum"]).add_(change)
            new = old.add_(change, alpha=-group["lr"])
            weight[labels] = round_stochastically(new, generator) if weight.dtype == torch.bfloat16 else new

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the last loss."""
        super().zero_grad(set_to_none)
        self.head.pending = None


class TwoHeads(nn.Module):
    """The dual encoder's and the classifier's head behind one encoder (UniDEC).

    With e the encoder's vector of a text, documents and labels have ``g_D = unit(dropout(tanh(linear(e))))``, and
    documents also ``g_C = dropout(linear(e))``, to be multiplied with the rows W of a label table.

    Args:
        dim: D, dimensions of e.
        encoder_dim: dimensions of g_D; 0 leaves linear layer and tanh out, so that g_D is e, unit length.
        classifier_dim: dimensions of g_C; 0 leaves the linear layer out, so that g_C is e.
        dropout: of both heads.
        identity: linear layers begin as the identity (as rows of an orthogonal matrix where they change the
            dimensions), so that training starts from the encoder's own geometry; otherwise Xavier-uniform.
        classifier_norm: g_C and W are scaled to unit length in ``search`` only, in ``both`` search and training, or
            ``never``; ``tuned`` as in search, but that rows keep their length to the power ``row_power``.
        unit: the encoder's vectors have unit length already.

    Attributes:
        search_weight: s, the share of the dual encoder in the score of both: 2 (1 - s) g_C W + 2 s g_D(x) g_D(l).
        row_length: of the rows W of labels that have none of their own, where they are ``never`` scaled; their mean.
        row_power: p of ``tuned``: in search rows are (|W| / row_length)^p long, so that 0 ranks as ``search`` does, by
            direction alone, and 1 by the products that were trained, in which frequent labels may have longer rows.
    """

    search_weight: float = 0.5
    row_length: float = 1.0
    row_power: float = 0.0

    def __init__(
        self,
        dim: int,
        encoder_dim: int = 0,
        classifier_dim: int = 0,
        *,
        dropout: float = 0.0,
        identity: bool = True,
        classifier_norm: ClassifierNorm = "search",
        unit: bool = False,
    ):
        super().__init__()
        self.dim, self.encoder_dim, self.classifier_dim = dim, encoder_dim, classifier_dim
        self.dropout, self.classifier_norm, self.unit = dropout, classifier_norm, unit
        self.encoder = _linear(dim, encoder_dim, identity) if encoder_dim else None
        self.classifier = _linear(dim, classifier_dim, identity) if classifier_dim else None

    @property
    def widths(self) -> tuple[int, int]:
        """Dimensions of g_D and of g_C."""
        return self.encoder_dim or self.dim, self.classifier_dim or self.dim

    def dual(self, vectors: Tensor) -> Tensor:
        """g_D of documents or labels, for training and search, from the encoder's vectors (n, D)."""
        if self.encoder is not None:
            vectors = torch.tanh(self.encoder(vectors))
        elif self.unit and not (self.training and self.dropout):
            return vectors
        return normalize(self._dropped(vectors), dim=1)

    def _dropped(self, vectors: Tensor) -> Tensor:
        return dropout(vectors, self.dropout) if self.training and self.dropout else vectors

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """As in search, whatever the module does at present."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def document(self, vectors: Tensor) -> Tensor:
        """g_C of documents, for training, from the encoder's vectors (n, D)."""
        if self.classifier is not None:
            vectors = self.classifier(vectors)
        vectors = self._dropped(vectors)
        return normalize(vectors, dim=1) if self.classifier_norm == "both" else vectors

    def label(self, rows: Tensor) -> Tensor:
        """Rows (P, d_C) of the label table, for training."""
        return normalize(rows, dim=1) if self.classifier_norm == "both" else rows

    @property
    def alike(self) -> bool:
        """Whether g_D and g_C of a document are one vector, so that its key in a memory need not hold it twice."""
        return self.encoder is None and self.classifier is None and (self.unit or self.classifier_norm != "never")

    @property
    def document_dim(self) -> int:
        """Dimensions of the keys of documents: the first columns of `queries`."""
        return self.widths[0] if self.alike else sum(self.widths)

    @torch.no_grad()
    def queries(self, vectors: Tensor) -> Tensor:
        """Queries (n, d_D + d_C) float32 of documents: [g_D; g_C], g_C of unit length unless it is ``never`` scaled."""
        with self.without_dropout():
            dual, classifier = self.dual(vectors), self.document(vectors)
        if self.classifier_norm != "never":
            classifier = normalize(classifier, dim=1)
        return torch.cat([dual, classifier], dim=1)

    def documents(self, vectors: Tensor) -> Tensor:
        """Keys (n, document_dim) float32 of documents, from the encoder's vectors (n, D)."""
        return self.queries(vectors)[:, : self.document_dim]

    @torch.no_grad()
    def keys(self, vectors: Tensor, rows: Tensor | None) -> Tensor:
        """Keys (n, d_D + d_C) float32 of labels: [2 s g_D; 2 (1 - s) W], W as long as `classifier_norm` says.

        ``vectors`` (n, D) are the encoder's of their texts. Labels without rows (n, d_C) of the table take g_C of them.
        """
        with self.without_dropout():
            dual = self.dual(vectors)
            rows = self.row_length * normalize(self.document(vectors), dim=1) if rows is None else rows.float()
        if self.classifier_norm == "tuned" and self.row_power:
            lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).div_(self.row_length)
            rows = normalize(rows, dim=1) * lengths.pow_(self.row_power)
        elif self.classifier_norm != "never":
            rows = normalize(rows, dim=1)
        if self.search_weight != 0.5:
            dual, rows = 2 * self.search_weight * dual, 2 * (1 - self.search_weight) * rows
        return torch.cat([dual, rows], dim=1)

    def weight(self, ranking: Ranking) -> float:
        """Factor of the label keys of a ranking: 2 s, 2 (1 - s), or 1 for both together."""
        s = self.search_weight
        return {"combined": 1.0, "encoder": 2 * s, "classifier": 2 * (1 - s)}[ranking]

    def columns(self, ranking: Ranking) -> slice:
        """Columns of queries and keys that a ranking multiplies."""
        first = self.widths[0]
        return {"combined": slice(None), "encoder": slice(first), "classifier": slice(first, None)}[ranking]

    def save(self, file: Path) -> dict[str, Any]:
        """Write the weights to a safetensors file and return the settings that `load` needs."""
        save_file({name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}, file)
        names = ("dim", "encoder_dim", "classifier_dim", "classifier_norm", "unit", *SEARCH_SETTINGS)
        return {"kind": "two heads", **{name: getattr(self, name) for name in names}}

    @classmethod
    def load(cls, file: Path, settings: dict[str, Any], device: str = "cpu") -> TwoHeads:
        """Read what `save` wrote; a damaged file, or heads of another kind, is a ModelError."""
        if settings.get("kind") != "two heads":
            raise ModelError(f"{file} holds heads of the unknown kind {settings.get('kind')!r}")
        try:
            heads = cls(
                int(settings["dim"]),
                int(settings["encoder_dim"]),
                int(settings["classifier_dim"]),
                classifier_norm=settings["classifier_norm"],
                unit=bool(settings.get("unit", False)),
            )
            for name in SEARCH_SETTINGS:
                setattr(heads, name, float(settings.get(name, getattr(cls, name))))
            heads.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{file} is missing or damaged: {' '.join(str(error).split())[:300]}") from error
        return heads.to(device).eval()


SEARCH_WEIGHTS = tuple(n / 20 for n in range(1, 20))
"""Shares of the dual encoder that are tried."""
SEARCHED_LABELS = 50
"""Best labels of each head that are scored with every share."""


def best_search_weight(
    queries: Tensor,
    keys: Tensor,
    first: int,
    targets: sp.csr_array,
    filter_pairs: npt.NDArray[np.int64] | None = None,
) -> float:
    """The share s of the dual encoder whose ranking has the highest nDCG@5; of several the one nearest to a half.

    For every share the labels that either head ranks among its best are scored anew, and no others.

    Args:
        queries: (n, d_D + d_C) of documents, not weighted.
        keys: (L, d_D + d_C) of labels; of several processes each has its own labels'.
        first: d_D, columns of the dual encoder.
        targets: (n, L) truth.
        filter_pairs: (M, 2) pairs of document and label that no ranking may show.
    """
    targets = binary_truth(targets)
    barred = barred_labels(filter_pairs, *targets.shape)
    among = SEARCHED_LABELS + int(np.diff(barred.indptr).max(initial=0))
    parts = [(queries[:, p].contiguous(), keys[:, p].contiguous()) for p in (slice(first), slice(first, None))]
    own, among, best_labels = distributed.span(targets.shape[1]), min(among, targets.shape[1]), []
    for q, k in parts:
        similarities, labels = ExactIndex(k).search(q, min(among, len(k)))
        best_labels.append(distributed.best(similarities, labels + own.start, among)[1])
    gains = np.zeros(len(SEARCH_WEIGHTS))
    discounts = 1 / np.log2(np.arange(2, 7))
    for start in range(0, len(queries), 512):
        rows = slice(start, start + 512)
        labels = np.sort(np.concatenate([x[rows] for x in best_labels], axis=1), axis=1)
        again = np.concatenate([np.zeros((len(labels), 1), dtype=bool), labels[:, 1:] == labels[:, :-1]], axis=1)
        again |= membership(labels, barred[rows])
        here = (labels >= own.start) & (labels < own.stop)
        where = torch.from_numpy(np.where(here, labels - own.start, 0)).to(keys.device)
        scores = []
        for q, k in parts:
            products = torch.bmm(k[where].float(), q[rows, :, None])[..., 0].cpu()
            scores.append(distributed.reduce(products * torch.from_numpy(here), "sum").numpy())
        true = membership(labels, targets[rows])
        ideal = np.cumsum(discounts)[np.clip(np.diff(targets[rows].indptr), 1, 5) - 1]
        for i, share in enumerate(SEARCH_WEIGHTS):
            both = np.where(again, -np.inf, share * scores[0] + (1 - share) * scores[1])
            top = np.argsort(-both, axis=1, kind="stable")[:, :5]
            hits = np.take_along_axis(true, top, axis=1)
            gains[i] += float((hits @ discounts[: hits.shape[1]] / ideal).sum())
    best = np.flatnonzero(gains >= gains.max() - 1e-9)
    return SEARCH_WEIGHTS[int(best[np.abs(best - len(SEARCH_WEIGHTS) // 2).argmin()])]


def _linear(dim: int, out: int, identity: bool) -> nn.Linear:
    """A layer that begins as the identity, as far as its sizes allow, or at random."""
    layer = nn.Linear(dim, out)
    nn.init.zeros_(layer.bias)
    if not identity:
        nn.init.xavier_uniform_(layer.weight)
    elif out == dim:
        nn.init.eye_(layer.weight)
    else:
        nn.init.orthogonal_(layer.weight)
    return layer
