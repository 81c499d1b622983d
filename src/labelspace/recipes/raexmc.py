"""RAE-XMC: answers from labels and training documents (arXiv 2502.10615).

One encoder makes vectors of documents and labels. Training pulls a document to one of its labels and pushes it from
hard negative labels and from the other documents of the batch; the memory then holds both kinds, and its voting is
tuned.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from ..base.machine import cache_folder, gigabytes, peak_memory, require_memory
from ..encoders import Encoder
from ..encoders.gradcache import encode_both, encode_cached
from ..encoders.tokens import Tokens, log_cut
from ..errors import DataError
from ..memory.memory import Memory
from ..model.model import Model
from ..training.batches import Batches, usable_rows
from ..training.checkpoint import Checkpoints, State
from ..training.estimate import POOL_A_DOCUMENT, training_bytes
from ..training.label_heads import LabelEncoder
from ..training.loop import FitReport, Refresh, fit, readable, stop_signals
from ..training.losses import ClosedForm, closed_form
from ..training.losses_fused import linear_loss
from ..training.pools import InBatch
from ..training.settings import RaexmcSettings
from ..types import Batch, Dataset
from .preparation import (
    MIN_VALID,
    LabelKeys,
    by_text,
    calibrate,
    describe_run,
    fill_in,
    give_memory,
    hard_negatives,
    make_encoder,
    memory_seconds,
    open_log,
    optimizers_of,
    save_run,
    shape_of,
    validation,
    with_label_documents,
)

logger = logging.getLogger(__name__)

STATIC_RATE = 1e-3
"""Learning rate of ``static``; at higher rates it soon knows its training documents too well."""


def train(
    data: Dataset,
    settings: RaexmcSettings,
    out: Path | None,
    started: float,
    checkpoints: Checkpoints | None = None,
    state: State | None = None,
    *,
    ending: Callable[[], float] | None = None,
) -> Model:
    """Train an encoder, give it a memory of the training documents, and tune that.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run; with 0 epochs the encoder stays as it is.
        out: folder to write the model to; None writes nothing.
        started: when the command began, by `time.monotonic`.
        checkpoints: of the run, begun and locked; None keeps none.
        state: of an unfinished run, to go on with.
        ending: given, the model stays without documents, uncalibrated and unsaved, and a time limit leaves room for so
            many seconds of what the caller does with it.

    Raises:
        DataError: no document has a label.
        SettingsError: an unknown objective.
        ResourceError: the run would not fit into memory.
        CheckpointError: a state that does not fit.
    """
    given = data
    order = by_text(data.labels)
    data = data.renumbered(order)
    rows = usable_rows(data.train.targets, data.fit_rows)
    if not len(rows):
        raise DataError(f"{data.name}: no training document has a label; there is nothing to learn from")
    torch.manual_seed(settings.seed)

    encoder = make_encoder(data, settings)
    if encoder.row_sparse:
        settings = dataclasses.replace(settings, lr=settings.lr or STATIC_RATE)
    settings = fill_in(settings, encoder)
    size = len(data.labels)
    pool = min(size, POOL_A_DOCUMENT * settings.batch_size) + settings.batch_size
    needed = training_bytes(settings, shape_of(encoder), pool, size) if settings.epochs else 0
    needed += 2 * 4 * encoder.dim * len(data.train)
    logger.info("this run needs about %s beside the data (%s used so far)", gigabytes(needed), gigabytes(_used()))
    require_memory(needed, "this run", "lower --batch-size, --chunk-size or --max-words", encoder.device)
    if len(data.valid) < MIN_VALID:
        logger.warning(
            "only %d validation documents: nothing is chosen by them, the last weights count", len(data.valid)
        )
    cache = cache_folder()
    documents = encoder.tokenize(data.train.texts, cache)
    labels = LabelEncoder(encoder, encoder.tokenize(data.labels.texts, cache), settings.chunk_size)
    truncated = {
        "documents": log_cut("documents", documents, encoder.limit),
        "labels": log_cut("labels", labels.tokens, encoder.limit),
    }
    targets, texts = data.train.targets, documents
    if settings.label_documents:
        targets, rows = with_label_documents(targets, rows)
        texts = documents.followed_by(labels.tokens)
    log = open_log(checkpoints, state, settings)
    try:
        with stop_signals() as signals:
            if state is None:
                log.write(
                    event="start",
                    data=data.name,
                    documents=len(rows),
                    labels=len(data.labels),
                    truncated=truncated,
                    estimated_gb=needed / 1e9,
                )
            report = FitReport()
            if settings.epochs:
                run = _Contrast(targets, rows, encoder, texts, labels, settings)
                report = fit(
                    run.step,
                    run.plan.epoch,
                    run.plan.per_epoch,
                    encoder,
                    optimizers_of(encoder, settings),
                    settings,
                    evaluate=validation(data, encoder, run.label_keys, settings, cache),
                    choose=len(data.valid) >= MIN_VALID,
                    log=log,
                    started=started,
                    signals=signals,
                    refresh=run.refresh(),
                    checkpoints=checkpoints,
                    state=state,
                    ending=ending or (lambda: memory_seconds(encoder, documents, settings, data)),
                )
            encoder.precision = "float32"
            keys = torch.from_numpy(encoder.encode(labels.tokens)[np.argsort(order)]).to(encoder.device)
            info = describe_run("raexmc", settings, given, truncated, report)
            model = Model(encoder, Memory.of_labels(keys), given.labels, info)
            if report.metrics:
                logger.info(
                    "kept step %d: validation of the labels alone %s", report.best_step, readable(report.metrics)
                )
            if ending is not None:
                return model
            give_memory(model, given, documents, settings, log, started)
            calibrate(model, given, settings)
            log.close()
            save_run(model, out, checkpoints, settings)
            return model
    finally:
        log.close()


class _Contrast:
    """What a step needs: batches, label vectors, hard negatives."""

    def __init__(
        self,
        targets: sp.csr_array,
        rows: npt.NDArray[np.int64],
        encoder: Encoder,
        documents: Tokens,
        labels: LabelEncoder,
        settings: RaexmcSettings,
    ):
        self.encoder, self.documents, self.labels, self.settings = encoder, documents, labels, settings
        self.targets = targets
        self.negatives = hard_negatives(self.targets, settings)
        self.label_keys = LabelKeys(encoder, labels.tokens)
        drawn = settings.positives or None
        self.plan = Batches(self.targets, rows, InBatch(drawn), settings.batch_size, settings.seed, drawn)
        self.kept = int(1e9 * settings.activations_gb) // encoder.activation_bytes if encoder.activation_bytes else 0
        self.loss = closed_form("decoupled_softmax")
        self.low = torch.bfloat16 if settings.precision == "bf16" else None

    def step(self, batch: Batch) -> Tensor:
        """The loss of a batch, with a graph.

        Args:
            batch: as `Batches` gives it; hard negatives widen its pool.
        """
        self.label_keys.forget()
        tokens = self.documents.take(batch.rows)
        if self.settings.num_negatives:
            queries = encode_cached(self.encoder, tokens, self.settings.chunk_size, self.kept)
            found = self.negatives.draw(batch.rows, queries.detach(), np.random.default_rng((*batch.key, 1)))
            batch = self.plan.widened(batch, np.concatenate(found))
            keys = self.labels(batch.pool, self.kept - len(tokens.ids))
        else:
            assert batch.pool is not None
            own = self.labels.tokens.take(batch.pool)
            queries, keys = encode_both(self.encoder, tokens, own, self.settings.chunk_size, self.kept)
        related = related_pairs(sp.csr_array(self.targets[batch.rows]))
        return contrast(
            self.loss,
            queries,
            keys,
            _tensor(batch.positives, queries),
            _tensor(batch.hidden, queries),
            _tensor(related, queries),
            temperature=self.settings.temperature,
            dtype=self.low,
        )

    def refresh(self) -> Refresh | None:
        """How hard negatives are found anew; None where there are none."""
        if not self.settings.num_negatives:
            return None
        device = self.encoder.device
        return Refresh(
            self.settings.mine_from,
            self.settings.mine_every,
            run=lambda: self.negatives.refresh(self.label_keys.now()),
            state=self.negatives.state,
            restore=lambda kept: self.negatives.restore({name: x.to(device) for name, x in kept.items()}),
            outcome=self.negatives.outcome,
        )


def related_pairs(targets: sp.csr_array) -> npt.NDArray[np.int64]:
    """Pairs of documents that share a label, by the full truth: Y Y^T > 0, each document with itself too.

    Args:
        targets: (B, L) truth of the batch.

    Returns:
        (2, r) int64, both rows of the batch.
    """
    ones = sp.csr_array((np.ones(targets.nnz, dtype=np.int64), targets.indices, targets.indptr), shape=targets.shape)
    shared = sp.coo_array(ones @ ones.T)
    own = np.arange(targets.shape[0])
    flat = np.unique(np.concatenate([shared.row.astype(np.int64) * len(own) + shared.col, own * (len(own) + 1)]))
    return np.vstack(np.divmod(flat, max(1, len(own))))


def contrast(
    loss: ClosedForm,
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    hidden: Tensor | None,
    related: Tensor,
    *,
    temperature: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """RAE-XMC's loss on the columns [labels of the pool | documents of the batch].

    L_i = -log e^s(i,p) / ( e^s(i,p) + sum_n e^s(i,n) + sum_k e^s(i,k) ), n over the labels of the pool that are not
    true for i, k over the documents that share no label with it; with several positives the mean over them. Gradients
    flow into both documents of a pair.

    Args:
        loss: closed form of the decoupled softmax.
        queries: (B, D) document vectors.
        keys: (P, D) label vectors.
        positives: (2, M) int64 pairs (row, column of the pool).
        hidden: (2, H) int64 true pairs that were not drawn.
        related: (2, r) int64 pairs of documents that share a label, each document with itself too.
        temperature: divides the products.
        dtype: of the products; None keeps that of the queries.
    """
    shifted = torch.stack([related[0], related[1] + len(keys)])
    masked = shifted if hidden is None else torch.cat([hidden, shifted], dim=1)
    columns = torch.cat([keys, queries])
    return linear_loss(loss, queries, columns, positives, temperature=temperature, hidden=masked, dtype=dtype)


def _tensor(pairs: npt.NDArray[np.int64] | None, like: Tensor) -> Any:
    return None if pairs is None else torch.from_numpy(pairs).to(like.device)


def _used() -> int:
    return peak_memory() or 0
