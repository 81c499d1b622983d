"""UniDEC: a dual encoder and a classifier trained together on a picked pool of labels (Kharbanda et al., 2024)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from ..base.machine import cache_folder
from ..encoders import Encoder
from ..encoders.gradcache import encode_cached
from ..encoders.tokens import Tokens
from ..errors import SettingsError
from ..model.model import Model
from ..training import distributed
from ..training.batches import PickedBatches, usable_rows
from ..training.clusters import balanced_clusters
from ..training.config import changed, flat
from ..training.label_heads import RANKINGS, LabelTable, OneVsAll, OneVsAllSGD, TwoHeads, xavier_rows
from ..training.loop import Refresh, readable
from ..training.losses_fused import linear_loss
from ..training.optim import RowAdagrad, RowAdamW, make_optimizers
from ..training.pools import PickSome
from ..training.required_memory import training_bytes
from ..training.settings import UnidecSettings
from ..types import Batch, Dataset
from .choosing import Choice
from .companion import with_companion
from .preparation import fill_in, hard_negatives, loss_form, on_device, optimizers_of, shape_of
from .run import Prepared, Run, prepare, running
from .seconds import after_keys_seconds, companion_seconds, memory_seconds
from .validation import LabelKeys, Validation

logger = logging.getLogger(__name__)

TRANSFORMER_DIM, TRANSFORMER_DECAY, TRANSFORMER_DROPOUT = 384, 0.05, 0.1
MOST_DECAY = 1e-4
"""Of the rows of one-vs-all, which decay in every step, whether they are met or not, at a far higher rate."""
MOST_IN_POOL = 65_536
"""Up to so many labels all of them are scored unless told otherwise, where none is encoded by a transformer."""
ENCODED_BLOCK = 16_384
"""Texts encoded at a time when all are encoded anew."""


class UnidecModule(nn.Module):
    """All that is trained: the encoder of documents and label texts, the heads behind it, and a row a label."""

    def __init__(self, encoder: Encoder, heads: TwoHeads, table: LabelTable):
        super().__init__()
        self.encoder, self.heads, self.table = encoder, heads, table


def train(data: Dataset, settings: UnidecSettings, run: Run) -> Model:
    """Train a dual encoder and a classifier, which share an encoder, on a pool of labels picked for each batch."""
    start = prepare(data, settings, _decide)
    settings, encoder, kept, device = start.settings, start.encoder, start.kept_tokens, start.encoder.device
    module = _untrained(start)
    heads, table, losses = module.heads, module.table, settings.losses
    plan = _batches(start.targets, start.rows, settings)
    renewal = Renewal(module, start, plan)
    search_keys = LabelKeys(lambda: _search_keys(module, start.own_labels()))
    score = PoolLoss(settings, start.low)

    def step(batch: Batch) -> Tensor:
        search_keys.forget()
        assert batch.pool is not None
        count, tokens, targets = len(batch.rows), start.tokens_of(batch), start.targets[batch.rows]
        batch = start.with_own_labels(batch)
        whole = settings.batches.pool == "all" and distributed.size() == 1
        queries = encode_cached(encoder, tokens, settings.encoding.chunk_size, kept)
        positives = on_device(batch.positives, device)
        loss = queries.new_zeros(())
        if losses.encoder_weight > 0:
            keys = heads.dual(start.labels(None if whole else batch.pool, kept - len(tokens.ids)))
            dual = distributed.gather(heads.dual(queries), count)
            loss = loss + losses.encoder_weight * score.encoder(dual, keys, positives)
        if losses.encoder_weight < 1:
            vectors = distributed.gather(heads.document(queries), count)
            if isinstance(table, OneVsAll):
                # rates are those of the sum for the table, but the encoder learns from means
                classified = table.loss(vectors, _true_pairs(targets, start.own).to(device)) / count
            else:
                rows = heads.label(table(None if _all_at_once(settings) else batch.pool - start.own.start))
                classified = score.classifier(vectors, rows, positives)
            loss = loss + (1 - losses.encoder_weight) * classified
        return loss

    def remaining() -> float:
        if settings.voting.documents_by == "companion":
            return after_keys_seconds(settings, data)
        return memory_seconds(encoder, start.documents, settings, data) if settings.voting.memory else 0.0

    beside = companion_seconds(settings.voting.companion, data, settings.fit)
    choice = Choice(
        heads,
        weight=settings.heads.search_weight is None and start.enough_valid,
        power=settings.classifier.classifier_norm == "tuned" and start.enough_valid,
    )
    valid = Validation.of(start.data, encoder, search_keys, settings.fit)

    def evaluate() -> dict[str, float]:
        assert valid is not None
        return valid.of_rankings(*choice.make(valid), heads)

    with running(start, run) as loop:
        report = loop.fit(
            module,
            step,
            plan,
            optimizers(module, settings),
            evaluate=None if valid is None else evaluate,
            refresh=renewal.refresh(),
            ending=lambda: remaining() + beside,
            own=[table.weight],
        )
        search_keys.forget()
        if (choice.weight or choice.power) and valid is not None:
            report = dataclasses.replace(report, metrics=evaluate())
            choice.log()
        encoder.precision = "float32"  # of the keys too
        search_keys.forget()
        remembers = settings.voting.memory and settings.voting.documents_by == "encoder" and run.ending is None
        model = loop.model("unidec", report, remembers, search_keys.now(), heads)
        model.info["metrics"] = _by_ranking(report.metrics)
        if run.ending is not None:
            return model
        if settings.voting.companion != "none" and report.stopped != "interrupted":
            model = with_companion(model, start.given, settings, run.started, remaining, train)
        documents = None
        if settings.voting.memory and model.encoder is not encoder:  # the companion's tokens are in the cache
            documents = model.encoder.tokenize(data.train.texts, cache_folder())
        if report.metrics:
            logger.info("kept step %d: validation %s", report.best_step, readable(report.metrics))
        return loop.finish(model, settings.voting.memory, documents)


def _decide(settings: UnidecSettings, encoder: Encoder, data: Dataset) -> tuple[UnidecSettings, int, str]:
    """Every setting decided, the bytes that the run takes, and what to change where they are not there."""
    if settings.voting.companion != "none" and encoder.row_sparse:
        raise SettingsError(
            f"companion {settings.voting.companion!r} goes with a transformer, and the encoder "
            f"{settings.encoding.encoder!r} is itself a bag of token vectors; leave it out, or choose another encoder"
        )
    settings = _filled_in(settings, encoder, len(data.labels))
    remedy = "lower --batch-size, --cap or --max-words, or take --table-dtype bf16 or --table-optimizer adagrad"
    return settings, _needed_bytes(settings, encoder, data), remedy


def _filled_in(settings: UnidecSettings, encoder: Encoder, size: int) -> UnidecSettings:
    """The settings with every automatic value decided for L labels, and the encoder set to the chosen precision."""
    static = encoder.row_sparse
    if settings.fit.weight_decay is None and not static:
        settings = changed(settings, weight_decay=TRANSFORMER_DECAY)
    settings = fill_in(settings, encoder)
    classifier, pool = settings.classifier, settings.batches.pool
    dim, dropout = (0, 0.0) if static else (TRANSFORMER_DIM, TRANSFORMER_DROPOUT)
    one_vs_all = classifier.classifier_labels == "all"
    if pool == "auto":
        cheap = static or settings.losses.encoder_weight == 0  # no label text passes a transformer in a step
        pool = "all" if cheap and size <= MOST_IN_POOL else "some"
    unscaled = one_vs_all or classifier.classifier_loss == "bce"
    rate = 0.01 if classifier.table_optimizer == "adagrad" else 3e-3 if static else 1e-3
    chosen = {
        "pool": pool,
        "cap": 8 * settings.fit.batch_size,
        "encoder_dim": dim,
        "classifier_dim": dim,
        "table_init": "random" if one_vs_all else "labels",
        "classifier_norm": "never" if unscaled else "search",
        "head_dropout": dropout,
        "table_dropout": None if one_vs_all else dropout,
        "head_lr": 2 * (settings.fit.lr or 0.0),
        "table_lr": 1e-3 if one_vs_all else rate,
    }
    values = flat(settings)
    return changed(settings, **{name: value for name, value in chosen.items() if values[name] in (None, "auto")})


def _needed_bytes(settings: UnidecSettings, encoder: Encoder, data: Dataset) -> int:
    """Bytes that a run takes: of one head, the table and its optimiser, vectors, shortlists, and document keys."""
    size, documents = len(data.labels), len(usable_rows(data.train.targets, data.fit_rows))
    pool = size if settings.batches.pool == "all" else min(size, settings.batches.cap or size)
    dual_width = settings.heads.encoder_dim or encoder.dim
    width = settings.classifier.classifier_dim or encoder.dim
    row = width * (2 if settings.classifier.table_dtype == "bf16" else 4)
    if settings.classifier.classifier_labels == "all":
        state = 4 * width if settings.classifier.table_momentum else 0
    else:
        state = 8 * width if settings.classifier.table_optimizer == "adamw" else 8
    vectors = documents * (dual_width * 2 + 4 * settings.mining.range_max)
    keys = 2 * 4 * (dual_width + width) * len(data.train) if settings.voting.memory else 0
    pool, size = distributed.largest_share(2 * pool), distributed.largest_share(size)
    return training_bytes(settings, shape_of(encoder), pool, size) + size * (2 * row + state) + vectors + keys


def _untrained(start: Prepared[UnidecSettings]) -> UnidecModule:
    """Encoder, heads and label table before the first step."""
    settings, encoder, classifier = start.settings, start.encoder, start.settings.classifier
    heads = TwoHeads(
        encoder.dim,
        settings.heads.encoder_dim or 0,
        classifier.classifier_dim or 0,
        dropout=settings.heads.head_dropout or 0.0,
        identity=settings.heads.identity,
        classifier_norm=classifier.classifier_norm or "search",
        unit=encoder.normalize,
    ).to(encoder.device)
    heads.search_weight = 0.5 if settings.heads.search_weight is None else settings.heads.search_weight
    dtype = torch.bfloat16 if classifier.table_dtype == "bf16" else torch.float32
    if classifier.table_init == "random":
        rows = xavier_rows(len(start.labels.tokens), heads.widths[1], dtype, encoder.device)
    else:
        rows = _rows_of_texts(encoder, heads, start.own_labels(), dtype)
    if classifier.classifier_labels == "all":
        return UnidecModule(encoder, heads, OneVsAll(rows, scale=1 / settings.losses.temperature))
    return UnidecModule(encoder, heads, LabelTable(rows, classifier.table_dropout or 0.0))


@torch.no_grad()
def _rows_of_texts(encoder: Encoder, heads: TwoHeads, labels: Tokens, dtype: torch.dtype) -> Tensor:
    """Rows (L, d_C) of a label table that are the vectors of the label texts, unit length."""
    rows = torch.empty(len(labels), heads.widths[1], dtype=dtype, device=encoder.device)
    with heads.without_dropout():
        for block, vectors in _encoded(encoder, labels):
            rows[block] = nn.functional.normalize(heads.document(vectors), dim=1)
    return rows


@torch.no_grad()
def _search_keys(module: UnidecModule, labels: Tokens) -> Tensor:
    """The present search keys (L, d_D + d_C) of all labels; bf16 where training multiplies in it."""
    encoder, heads, table = module.encoder, module.heads, module.table.weight
    # rows of a label are long, so not all lengths are taken at a time
    lengths = torch.cat([rows.float().norm(dim=1) for rows in table.split(65_536)])
    heads.row_length = float(distributed.mean(lengths))
    dtype = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
    keys = torch.empty(len(labels), sum(heads.widths), dtype=dtype, device=encoder.device)
    for block, vectors in _encoded(encoder, labels):
        keys[block] = heads.keys(vectors, table[block])
    return keys


def _encoded(encoder: Encoder, tokens: Tokens) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of texts, and their vectors without a graph."""
    for start in range(0, len(tokens), ENCODED_BLOCK):
        block = slice(start, min(start + ENCODED_BLOCK, len(tokens)))
        part = tokens.take(np.arange(block.start, block.stop))
        yield block, torch.from_numpy(encoder.encode(part)).to(encoder.device)


def _by_ranking(metrics: dict[str, float]) -> dict[str, Any]:
    """Validation metrics, as `Validation.of_rankings` gives them, with those of each ranking apart."""
    combined = {name: value for name, value in metrics.items() if " " not in name}
    if not combined:
        return {"validation": {}}
    others = {
        ranking: {name.removeprefix(f"{ranking} "): v for name, v in metrics.items() if name.startswith(f"{ranking} ")}
        for ranking in RANKINGS[1:]
    }
    return {"validation": combined, "rankings": {"combined": combined, **others}}


def _true_pairs(targets: sp.csr_array, labels: slice) -> Tensor:
    """True labels (B, L) of a batch's documents that are in a range, as pairs (2, M) int64.

    A pair is a place in the batch and a label number counted from the first of the range.
    """
    places = np.repeat(np.arange(targets.shape[0]), np.diff(targets.indptr))
    inside = (targets.indices >= labels.start) & (targets.indices < labels.stop)
    return torch.from_numpy(np.vstack([places, targets.indices - labels.start])[:, inside].astype(np.int64))


def _batches(targets: sp.csr_array, rows: npt.NDArray[np.int64], settings: UnidecSettings) -> PickedBatches:
    """The batches of a run on the given rows of the truth (N, L)."""
    batches = settings.batches
    cut = settings.fit.batch_size, settings.fit.seed, batches.clusters
    if batches.pool == "all":
        labels = np.arange(targets.shape[1])
        if batches.uniform_negatives:
            raise SettingsError("uniform_negatives: the pool 'all' has every label; leave it out, or take --pool some")
        return PickedBatches(targets, rows, lambda draws, shortlists, rng: labels, *cut)
    pick = PickSome(batches.num_positives or None, settings.mining.num_negatives, batches.cap, batches.gap)
    return PickedBatches(targets, rows, pick, *cut, uniform=batches.uniform_negatives)


class PoolLoss:
    """The losses of the two heads on a pool; products are made in ``dtype``, None for that of the vectors."""

    def __init__(self, settings: UnidecSettings, dtype: torch.dtype | None):
        self.losses, self.dtype = settings.losses, dtype
        self.names = {"encoder": settings.losses.encoder_loss, "classifier": settings.classifier.classifier_loss}
        self.forms = {head: loss_form(name, settings.losses) for head, name in self.names.items()}

    def encoder(self, queries: Tensor, keys: Tensor, positives: Tensor) -> Tensor:
        """Loss of the dual encoder for documents (B, d_D), labels (P, d_D) and pairs (2, M)."""
        return self._loss("encoder", queries, keys, positives)

    def classifier(self, queries: Tensor, keys: Tensor, positives: Tensor) -> Tensor:
        """Loss of the classifier for documents (B, d_C), rows of the table (P, d_C) and pairs (2, M)."""
        return self._loss("classifier", queries, keys, positives)

    def _loss(self, head: str, queries: Tensor, keys: Tensor, positives: Tensor) -> Tensor:
        form = self.forms[head]
        options: dict[str, Any] = {"temperature": self.losses.temperature, "dtype": self.dtype}
        loss = linear_loss(form, queries, keys, positives, **options, reduce=distributed.reduction())
        if self.losses.directions not in (head, "both"):
            return loss
        if self.names[head] != "bce":  # labels without a document add nothing, and need not be looked at
            labels, columns = torch.unique(positives[1], return_inverse=True)
            keys, positives = keys[labels], torch.stack([positives[0], columns])
        return (
            loss + distributed.mean_of_rows(linear_loss(form, keys, queries, positives.flip(0), **options), len(keys))
        ) / 2


class Renewal:
    """What is made anew in the course of a run: shortlists of hard negatives, and clusters of documents.

    Args:
        module: in training.
        start: texts, truth and settings.
        plan: batches, which use what is made here.
    """

    def __init__(self, module: UnidecModule, start: Prepared[UnidecSettings], plan: PickedBatches):
        self.module, self.plan, self.count = module, plan, 0
        self.documents, self.labels, self.settings = start.learned, start.own_labels(), start.settings
        self.negatives = hard_negatives(start.targets, start.settings.mining)

    def refresh(self) -> Refresh | None:
        """When and how it is made; None where nothing is needed."""
        if self.settings.batches.pool != "some" and not self.settings.batches.clusters:
            return None
        mining = self.settings.mining
        return Refresh(mining.mine_from, mining.mine_every, self.run, self.state, self.restore, self.negatives.outcome)

    @torch.no_grad()
    def run(self) -> None:
        """Encode labels and documents, search shortlists, and cluster."""
        plan, rows, width = self.plan, self.plan.rows, self.settings.mining.range_max
        keys = self._dual(self.labels)
        self.negatives.refresh(keys.bfloat16() if self.module.encoder.precision == "bf16" else keys)
        vectors = torch.empty(len(rows), keys.shape[1], dtype=torch.bfloat16, device=keys.device)
        shortlists = np.full((plan.targets.shape[0], width), -1, dtype=np.int32)
        for start in range(0, len(rows), ENCODED_BLOCK):
            part = rows[start : start + ENCODED_BLOCK]
            own = self._dual(self.documents.take(distributed.share(part)))
            queries = distributed.gather_parts(own, len(part))
            vectors[start : start + ENCODED_BLOCK] = queries
            if self.settings.batches.pool == "some":
                shortlists[part] = self.negatives.candidates(part, queries, width)
        self.negatives.index = None
        if self.settings.batches.pool == "some":
            plan.shortlists = shortlists
        if self.settings.batches.clusters:
            rng = np.random.default_rng([self.settings.fit.seed, self.count, 2])
            # the same in all processes, whose products may round differently
            plan.clusters = rows[np.array(distributed.from_first(balanced_clusters(vectors, plan.depth, rng).tolist()))]
        self.count += 1

    def _dual(self, tokens: Tokens) -> Tensor:
        """Vectors of texts by the dual encoder, without dropout."""
        encoder, heads = self.module.encoder, self.module.heads
        with heads.without_dropout():
            return heads.dual(torch.from_numpy(encoder.encode(tokens)).to(encoder.device))

    def state(self) -> dict[str, Tensor]:
        """Shortlists and clusters, for a checkpoint."""
        state = {"count": torch.tensor(self.count)}
        if self.plan.shortlists is not None:
            state["shortlists"] = torch.from_numpy(self.plan.shortlists)
        if self.plan.clusters is not None:
            state["clusters"] = torch.from_numpy(self.plan.clusters)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.count = int(state["count"])
        self.plan.shortlists = state["shortlists"].numpy() if "shortlists" in state else None
        self.plan.clusters = state["clusters"].numpy() if "clusters" in state else None


def _all_at_once(settings: UnidecSettings) -> bool:
    """Whether every row of the table is updated in every step, by torch's AdamW; `RowAdamW` does the same slower."""
    plain = settings.classifier.table_optimizer == "adamw" and settings.classifier.table_dtype == "float32"
    return plain and settings.batches.pool == "all" and settings.classifier.classifier_labels == "pool"


def optimizers(module: UnidecModule, settings: UnidecSettings) -> list[torch.optim.Optimizer]:
    """The optimisers of encoder, heads and table, each parameter in exactly one group."""
    decay, seed = settings.fit.weight_decay or 0.0, settings.fit.seed
    rate, momentum = settings.classifier.table_lr or 0.0, settings.classifier.table_momentum
    heads, table = module.heads, module.table
    of_encoder = optimizers_of(module.encoder, settings.fit)
    of_heads = make_optimizers(heads, False, settings.heads.head_lr or 0.0, decay) if list(heads.parameters()) else []
    of_table: torch.optim.Optimizer
    if isinstance(table, OneVsAll):
        of_table = OneVsAllSGD(table, rate, min(decay, MOST_DECAY), momentum, seed=seed)
    elif _all_at_once(settings):
        fused = table.weight.device.type in ("cpu", "cuda")
        of_table = torch.optim.AdamW(table.parameters(), rate, weight_decay=decay, fused=fused)
    elif settings.classifier.table_optimizer == "adagrad":
        of_table = RowAdagrad(table.parameters(), rate, weight_decay=decay, seed=seed)
    else:
        of_table = RowAdamW(
            table.parameters(),
            rate,
            weight_decay=decay,
            decay_by="touches" if module.encoder.row_sparse else "steps",
            seed=seed,
        )
    return [*of_encoder, *of_heads, of_table]
