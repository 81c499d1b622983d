"""UniDEC: a dual encoder and a classifier trained together on a picked pool of labels (Kharbanda et al., 2024)."""

from __future__ import annotations

import dataclasses
import logging
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
from ..training.batches import PickedBatches
from ..training.clusters import balanced_clusters
from ..training.config import changed
from ..training.label_heads import RANKINGS, LabelTable, OneVsAll, OneVsAllSGD, TwoHeads, xavier_rows
from ..training.loop import Refresh, readable
from ..training.losses import ClosedForm, closed_form
from ..training.losses_fused import linear_loss
from ..training.negatives import HardNegatives
from ..training.optim import RowAdagrad, RowAdamW, make_optimizers
from ..training.pools import PickSome
from ..training.required_memory import training_bytes
from ..training.settings import UnidecSettings
from ..types import Batch, Dataset
from .choosing import Choice
from .companion import with_companion
from .preparation import fill_in, hard_negatives, optimizers_of, shape_of
from .run import Need, Prepared, Run, prepare, running
from .seconds import companion_seconds, linear_seconds, memory_seconds, tuned_on, tuning_seconds
from .validation import Validation

logger = logging.getLogger(__name__)

TRANSFORMER_DIM, TRANSFORMER_DECAY, TRANSFORMER_DROPOUT = 384, 0.05, 0.1
MOST_DECAY = 1e-4
"""Of the rows of one-vs-all, which decay in every step, whether they are met or not, at a far higher rate."""
MOST_IN_POOL = 65_536
"""Up to so many labels all of them are scored unless told otherwise, where none is encoded by a transformer."""
DOCUMENT_BLOCK = 16_384
"""Documents encoded at a time when all are encoded anew."""


class UnidecModule(nn.Module):
    """All that is trained.

    Args:
        encoder: of documents and label texts.
        heads: behind it.
        table: a row a label.
    """

    def __init__(self, encoder: Encoder, heads: TwoHeads, table: LabelTable):
        super().__init__()
        self.encoder, self.heads, self.table = encoder, heads, table


def train(data: Dataset, settings: UnidecSettings, run: Run) -> Model:
    """Train a dual encoder and a classifier on a data set.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run.
        run: where it goes, and since when it lasts.

    Raises:
        DataError: no document has a label.
        SettingsError: a static companion of a static encoder.
        ResourceError: the run would not fit into memory.
        CheckpointError: a state that does not fit.
    """
    start = prepare(data, settings, lambda given, encoder, rows: _decide(data, given, encoder, rows))
    settings, encoder, kept, device = start.settings, start.encoder, start.kept_tokens, start.encoder.device
    module = untrained(start)
    heads, table = module.heads, module.table
    plan = batch_plan(start.targets, start.rows, settings)
    negatives = hard_negatives(start.targets, settings.mining)
    renewal = Renewal(module, start.learned, start.labels.tokens, plan, negatives, settings)
    search = SearchKeys(module, start.labels.tokens)
    score = PoolLoss(settings, start.low)

    def step(batch: Batch) -> Tensor:
        search.forget()
        assert batch.pool is not None
        pool = None if settings.batches.pool == "all" else batch.pool
        tokens = start.learned.take(batch.rows)
        queries = encode_cached(encoder, tokens, settings.encoding.chunk_size, kept)
        positives = torch.from_numpy(batch.positives).to(device)
        loss = queries.new_zeros(())
        if settings.losses.encoder_weight > 0:
            keys = heads.dual(start.labels(pool, kept - len(tokens.ids)))
            loss = loss + settings.losses.encoder_weight * score.encoder(heads.dual(queries), keys, positives)
        if settings.losses.encoder_weight < 1:
            vectors = heads.document(queries)
            if isinstance(table, OneVsAll):
                # rates are those of the sum for the table, but the encoder learns from means
                classified = table.loss(vectors, true_pairs(start.targets, batch.rows).to(device)) / len(vectors)
            else:
                classified = score.classifier(
                    vectors, heads.label(table(pool if all_at_once(settings) else batch.pool)), positives
                )
            loss = loss + (1 - settings.losses.encoder_weight) * classified
        return loss

    def remaining() -> float:
        if settings.voting.documents_by == "companion":
            return tuning_seconds(tuned_on(settings.fit, len(data.valid))) + linear_seconds(
                data, settings.voting.linear
            )
        return memory_seconds(encoder, start.documents, settings, data) if settings.voting.memory else 0.0

    beside = companion_seconds(settings.voting.companion, data, settings.fit)
    choosing = settings.heads.search_weight is None and start.enough_valid
    scaling = settings.classifier.classifier_norm == "tuned" and start.enough_valid
    choice, valid = Choice(heads, choosing, scaling), Validation.of(start.data, encoder, search, settings.fit)

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
        )
        search.forget()
        if (choosing or scaling) and valid is not None:
            report = dataclasses.replace(report, metrics=evaluate())
            _tell(heads, choosing, scaling)
        encoder.precision = "float32"  # of the keys too
        search.forget()
        model = loop.model("unidec", search.now(), report, heads)
        model.info["metrics"] = by_ranking(report.metrics)
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


def _decide(data: Dataset, settings: UnidecSettings, encoder: Encoder, rows: int) -> tuple[UnidecSettings, Need]:
    """Every setting decided, and what the run takes."""
    if settings.voting.companion != "none" and encoder.row_sparse:
        raise SettingsError(
            f"companion {settings.voting.companion!r} goes with a transformer, and the encoder "
            f"{settings.encoding.encoder!r} is itself a bag of token vectors; leave it out, or choose another encoder"
        )
    settings = decided(settings, encoder, len(data.labels))
    needed = _needed(settings, encoder, len(data.labels), rows)
    if settings.voting.memory:
        width = (settings.heads.encoder_dim or encoder.dim) + (settings.classifier.classifier_dim or encoder.dim)
        needed += 2 * 4 * width * len(data.train)
    remedy = "lower --batch-size, --cap or --max-words, or take --table-dtype bf16 or --table-optimizer adagrad"
    return settings, Need(needed=needed, remedy=remedy)


def _tell(heads: TwoHeads, choosing: bool, scaling: bool) -> None:
    """Say what validation has chosen of the heads."""
    if choosing:
        share = 100 * heads.search_weight
        logger.info("the dual encoder has %.0f%% of the score of both heads, by validation nDCG@5", share)
    if scaling:
        logger.info("rows keep their length to the power %g, by validation nDCG@5", heads.row_power)


def untrained(start: Prepared[UnidecSettings]) -> UnidecModule:
    """Encoder, heads and label table before the first step.

    Args:
        start: what the recipe starts from.
    """
    settings, encoder = start.settings, start.encoder
    heads = TwoHeads(
        encoder.dim,
        settings.heads.encoder_dim or 0,
        settings.classifier.classifier_dim or 0,
        dropout=settings.heads.head_dropout or 0.0,
        identity=settings.heads.identity,
        classifier_norm=settings.classifier.classifier_norm or "search",
        unit=encoder.normalize,
    ).to(encoder.device)
    heads.search_weight = 0.5 if settings.heads.search_weight is None else settings.heads.search_weight
    first = first_rows(settings, encoder, heads, start.labels.tokens)
    if settings.classifier.classifier_labels == "all":
        return UnidecModule(encoder, heads, OneVsAll(first, scale=1 / settings.losses.temperature))
    return UnidecModule(encoder, heads, LabelTable(first, settings.classifier.table_dropout or 0.0))


def by_ranking(metrics: dict[str, float]) -> dict[str, Any]:
    """Validation metrics with those of each ranking apart.

    Args:
        metrics: as `Validation.of_rankings` gives them.
    """
    combined = {name: value for name, value in metrics.items() if " " not in name}
    if not combined:
        return {"validation": {}}
    others = {
        ranking: {name.removeprefix(f"{ranking} "): v for name, v in metrics.items() if name.startswith(f"{ranking} ")}
        for ranking in RANKINGS[1:]
    }
    return {"validation": combined, "rankings": {"combined": combined, **others}}


def decided(settings: UnidecSettings, encoder: Encoder, size: int) -> UnidecSettings:
    """The settings with every automatic value decided, and the encoder set to the chosen precision.

    Args:
        settings: of the run.
        encoder: what will be trained.
        size: L, labels.
    """
    static = encoder.row_sparse
    if settings.fit.weight_decay is None and not static:
        settings = changed(settings, weight_decay=TRANSFORMER_DECAY)
    settings = fill_in(settings, encoder)
    dim, dropout = (0, 0.0) if static else (TRANSFORMER_DIM, TRANSFORMER_DROPOUT)
    every = settings.classifier.classifier_labels == "all"
    pool = settings.batches.pool
    if pool == "auto":
        cheap = static or settings.losses.encoder_weight == 0  # no label text passes a transformer in a step
        pool = "all" if cheap and size <= MOST_IN_POOL else "some"
    never = every or settings.classifier.classifier_loss == "bce"
    rate = 0.01 if settings.classifier.table_optimizer == "adagrad" else 3e-3 if static else 1e-3
    return changed(
        settings,
        pool=pool,
        cap=settings.batches.cap or 8 * settings.fit.batch_size,
        encoder_dim=dim if settings.heads.encoder_dim is None else settings.heads.encoder_dim,
        classifier_dim=dim if settings.classifier.classifier_dim is None else settings.classifier.classifier_dim,
        table_init=settings.classifier.table_init or ("random" if every else "labels"),
        classifier_norm=settings.classifier.classifier_norm or ("never" if never else "search"),
        head_dropout=dropout if settings.heads.head_dropout is None else settings.heads.head_dropout,
        table_dropout=settings.classifier.table_dropout
        if settings.classifier.table_dropout is not None or every
        else dropout,
        head_lr=settings.heads.head_lr or 2 * (settings.fit.lr or 0.0),
        table_lr=settings.classifier.table_lr or (1e-3 if every else rate),
    )


def _needed(settings: UnidecSettings, encoder: Encoder, size: int, documents: int) -> int:
    """Bytes that training takes beside the data: of one head, the table and its optimiser, vectors, shortlists."""
    pool = size if settings.batches.pool == "all" else min(size, settings.batches.cap or size)
    width = settings.classifier.classifier_dim or encoder.dim
    row = width * (2 if settings.classifier.table_dtype == "bf16" else 4)
    if settings.classifier.classifier_labels == "all":
        state = 4 * width if settings.classifier.table_momentum else 0
    else:
        state = 8 * width if settings.classifier.table_optimizer == "adamw" else 8
    vectors = documents * (settings.heads.encoder_dim or encoder.dim) * 2 + documents * 4 * settings.mining.range_max
    return training_bytes(settings, shape_of(encoder), 2 * pool, size) + size * (2 * row + state) + vectors


def first_rows(settings: UnidecSettings, encoder: Encoder, heads: TwoHeads, labels: Tokens) -> Tensor:
    """What the label table begins with.

    Args:
        settings: of the run.
        encoder: untrained.
        heads: untrained.
        labels: texts of all labels.

    Returns:
        (L, d_C) of the wanted type.
    """
    kind = torch.bfloat16 if settings.classifier.table_dtype == "bf16" else torch.float32
    width = heads.widths[1]
    if settings.classifier.table_init == "random":
        return xavier_rows(len(labels), width, kind, encoder.device)
    rows = torch.empty(len(labels), width, dtype=kind, device=encoder.device)
    heads.eval()
    with torch.no_grad():
        for start in range(0, len(labels), DOCUMENT_BLOCK):
            part = labels.take(np.arange(start, min(start + DOCUMENT_BLOCK, len(labels))))
            vectors = torch.from_numpy(encoder.encode(part)).to(encoder.device)
            rows[start : start + DOCUMENT_BLOCK] = nn.functional.normalize(heads.document(vectors), dim=1)
    heads.train()
    return rows


@torch.no_grad()
def mean_length(table: Tensor) -> float:
    """Mean length of the rows of a table.

    Args:
        table: (L, d_C).
    """
    return float(torch.cat([rows.float().norm(dim=1) for rows in table.split(65_536)]).mean())


def true_pairs(targets: sp.csr_array, rows: npt.NDArray[np.int64]) -> Tensor:
    """All true labels of documents as pairs (place in the batch, label number), (2, M) int64.

    Args:
        targets: the truth of all documents, (N, L).
        rows: (B,) documents.
    """
    part = targets[rows]
    places = np.repeat(np.arange(len(rows)), np.diff(part.indptr))
    return torch.from_numpy(np.vstack([places, part.indices]).astype(np.int64))


def batch_plan(targets: sp.csr_array, rows: npt.NDArray[np.int64], settings: UnidecSettings) -> PickedBatches:
    """The batches of a run.

    Args:
        targets: the truth of all documents, (N, L).
        rows: (n,) documents to train on.
        settings: of the run.
    """
    if settings.batches.pool == "all":
        every = np.arange(targets.shape[1])
        return PickedBatches(
            targets,
            rows,
            lambda draws, shortlists, rng: every,
            settings.fit.batch_size,
            settings.fit.seed,
            settings.batches.clusters,
        )
    pick = PickSome(
        settings.batches.num_positives or None,
        settings.mining.num_negatives,
        settings.batches.cap,
        settings.batches.gap,
    )
    return PickedBatches(targets, rows, pick, settings.fit.batch_size, settings.fit.seed, settings.batches.clusters)


class PoolLoss:
    """The losses of the two heads on a pool.

    Args:
        settings: of the run.
        dtype: of the matrix products; None for that of the vectors.
    """

    def __init__(self, settings: UnidecSettings, dtype: torch.dtype | None):
        self.settings, self.dtype = settings, dtype
        self.bce = closed_form("bce")
        self.of_encoder, self.of_classifier = (
            self._form(x) for x in (settings.losses.encoder_loss, settings.classifier.classifier_loss)
        )

    def _form(self, name: str) -> ClosedForm:
        if name == "bce":
            return self.bce
        if name == "soft_top_k":  # a pool may have fewer labels than places
            return closed_form(name, k=self.settings.losses.k, alpha=self.settings.losses.alpha, clamp=True)
        return closed_form(name)

    def encoder(self, queries: Tensor, keys: Tensor, positives: Tensor) -> Tensor:
        """Loss of the dual encoder.

        Args:
            queries: (B, d_D) documents.
            keys: (P, d_D) labels.
            positives: (2, M) pairs.
        """
        both = self.settings.losses.directions in ("encoder", "both")
        return self._loss(self.of_encoder, queries, keys, positives, both)

    def classifier(self, queries: Tensor, keys: Tensor, positives: Tensor) -> Tensor:
        """Loss of the classifier.

        Args:
            queries: (B, d_C) documents.
            keys: (P, d_C) rows of the table.
            positives: (2, M) pairs.
        """
        both = self.settings.losses.directions in ("classifier", "both")
        loss = self._loss(self.of_classifier, queries, keys, positives, both)
        return loss

    def _loss(self, form: ClosedForm, queries: Tensor, keys: Tensor, positives: Tensor, both: bool) -> Tensor:
        options: dict[str, Any] = {"temperature": self.settings.losses.temperature, "dtype": self.dtype}
        loss = linear_loss(form, queries, keys, positives, **options)
        if both:
            if form is not self.bce:  # labels without a document add nothing, and need not be looked at
                there, columns = torch.unique(positives[1], return_inverse=True)
                keys, positives = keys[there], torch.stack([positives[0], columns])
            loss = (loss + linear_loss(form, keys, queries, positives.flip(0), **options)) / 2
        return loss


class SearchKeys:
    """The present search keys of all labels, computed once between two steps.

    Args:
        module: in training.
        tokens: texts of all labels.
    """

    def __init__(self, module: UnidecModule, tokens: Tokens):
        self.module, self.tokens = module, tokens
        self._keys: Tensor | None = None

    def now(self) -> Tensor:
        """(L, d_D + d_C) without a graph; bf16 where training multiplies in it."""
        if self._keys is None:
            encoder, heads, table = self.module.encoder, self.module.heads, self.module.table.weight
            heads.row_length = mean_length(table)
            kind = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
            keys = torch.empty(len(self.tokens), sum(heads.widths), dtype=kind, device=encoder.device)
            for start in range(0, len(keys), DOCUMENT_BLOCK):
                rows = np.arange(start, min(start + DOCUMENT_BLOCK, len(keys)))
                vectors = torch.from_numpy(encoder.encode(self.tokens.take(rows))).to(encoder.device)
                keys[start : start + len(rows)] = heads.keys(vectors, table.detach()[start : start + len(rows)])
            self._keys = keys
        return self._keys

    def forget(self) -> None:
        """The weights are about to change."""
        self._keys = None


class Renewal:
    """What is made anew in the course of a run: shortlists of hard negatives, and clusters of documents.

    Args:
        module: in training.
        documents: texts of all documents.
        labels: texts of all labels.
        plan: batches, which use what is made here.
        negatives: searches and filters shortlists.
        settings: of the run.
    """

    def __init__(
        self,
        module: UnidecModule,
        documents: Tokens,
        labels: Tokens,
        plan: PickedBatches,
        negatives: HardNegatives,
        settings: UnidecSettings,
    ):
        self.module, self.documents, self.labels, self.plan = module, documents, labels, plan
        self.negatives, self.settings, self.count = negatives, settings, 0

    def refresh(self) -> Refresh | None:
        """When and how it is made; None where nothing is needed."""
        if self.settings.batches.pool != "some" and not self.settings.batches.clusters:
            return None
        every = self.settings.mining.mine_every
        return Refresh(
            self.settings.mining.mine_from, every, self.run, self.state, self.restore, self.negatives.outcome
        )

    @torch.no_grad()
    def run(self) -> None:
        """Encode labels and documents, search shortlists, and cluster."""
        rows, plan, keys = self.plan.rows, self.plan, self._vectors(self.labels)
        self.negatives.refresh(keys)
        vectors = torch.empty(len(rows), keys.shape[1], dtype=torch.bfloat16, device=keys.device)
        shortlists = np.full((self.plan.targets.shape[0], self.settings.mining.range_max), -1, dtype=np.int32)
        for start in range(0, len(rows), DOCUMENT_BLOCK):
            part = rows[start : start + DOCUMENT_BLOCK]
            queries = self._vectors(self.documents.take(part))
            vectors[start : start + DOCUMENT_BLOCK] = queries
            if self.settings.batches.pool == "some":
                shortlists[part] = self.negatives.candidates(part, queries, self.settings.mining.range_max)
        self.negatives.index = None
        if self.settings.batches.pool == "some":
            plan.shortlists = shortlists
        if self.settings.batches.clusters:
            rng = np.random.default_rng([self.settings.fit.seed, self.count, 2])
            plan.clusters = rows[balanced_clusters(vectors, plan.depth, rng)]
        self.count += 1

    def _vectors(self, tokens: Tokens) -> Tensor:
        encoder, heads = self.module.encoder, self.module.heads
        vectors = torch.from_numpy(encoder.encode(tokens)).to(encoder.device)
        training = heads.training
        heads.eval()
        found = heads.dual(vectors)
        heads.train(training)
        return found.bfloat16() if encoder.precision == "bf16" and tokens is self.labels else found

    def state(self) -> dict[str, Tensor]:
        """Shortlists and clusters, for a checkpoint."""
        found = {"count": torch.tensor(self.count)}
        if self.plan.shortlists is not None:
            found["shortlists"] = torch.from_numpy(self.plan.shortlists)
        if self.plan.clusters is not None:
            found["clusters"] = torch.from_numpy(self.plan.clusters)
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave.

        Args:
            state: tensors by name.
        """
        self.count = int(state["count"])
        self.plan.shortlists = state["shortlists"].numpy() if "shortlists" in state else None
        self.plan.clusters = state["clusters"].numpy() if "clusters" in state else None


def all_at_once(settings: UnidecSettings) -> bool:
    """Whether every row of the label table is updated in every step, by torch's AdamW; `RowAdamW` does the same slower.

    Args:
        settings: of the run.
    """
    plain = settings.classifier.table_optimizer == "adamw" and settings.classifier.table_dtype == "float32"
    return plain and settings.batches.pool == "all" and settings.classifier.classifier_labels == "pool"


def optimizers(module: UnidecModule, settings: UnidecSettings) -> list[torch.optim.Optimizer]:
    """The optimisers of encoder, heads and table, each parameter in exactly one group.

    Args:
        module: what is trained.
        settings: of the run, every value decided.
    """
    decay = settings.fit.weight_decay or 0.0
    rate = settings.classifier.table_lr or 0.0
    found = optimizers_of(module.encoder, settings.fit)
    if list(module.heads.parameters()):
        found += make_optimizers(module.heads, False, settings.heads.head_lr or 0.0, decay)
    if isinstance(module.table, OneVsAll):
        found.append(
            OneVsAllSGD(
                module.table, rate, min(decay, MOST_DECAY), settings.classifier.table_momentum, seed=settings.fit.seed
            )
        )
    elif all_at_once(settings):
        fused = module.table.weight.device.type in ("cpu", "cuda")
        found.append(torch.optim.AdamW(module.table.parameters(), rate, weight_decay=decay, fused=fused))
    elif settings.classifier.table_optimizer == "adagrad":
        found.append(RowAdagrad(module.table.parameters(), rate, weight_decay=decay, seed=settings.fit.seed))
    else:
        found.append(
            RowAdamW(
                module.table.parameters(),
                rate,
                weight_decay=decay,
                decay_by="touches" if module.encoder.row_sparse else "steps",
                seed=settings.fit.seed,
            )
        )
    return found
