"""RAE-XMC: answers from labels and training documents (arXiv 2502.10615).

One encoder makes vectors of documents and labels. Training pulls a document to one of its labels and pushes it from
hard negative labels and from the other documents of the batch; the memory then holds both kinds, and its voting is
tuned.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from ..encoders import Encoder
from ..model.model import Model
from ..training import distributed
from ..training.batches import Batches
from ..training.config import changed
from ..training.loop import FitReport, readable
from ..training.losses import ClosedForm, closed_form
from ..training.losses_fused import linear_loss
from ..training.pools import InBatch
from ..training.required_memory import POOL_A_DOCUMENT, training_bytes
from ..training.settings import RaexmcSettings
from ..types import Batch, Dataset
from .preparation import encoded_labels, fill_in, hard_negatives, mined_anew, on_device, optimizers_of, shape_of
from .run import Prepared, Run, Running, prepare, running
from .seconds import memory_seconds
from .validation import Validation

logger = logging.getLogger(__name__)

STATIC_RATE = 1e-3
"""Learning rate of ``static``; at higher rates it soon knows its training documents too well."""


def train(data: Dataset, settings: RaexmcSettings, run: Run) -> Model:
    """Train an encoder, unless there are 0 epochs, give it a memory of the training documents, and tune that."""
    start = prepare(data, settings, _decide)
    with running(start, run) as loop:
        report = _fit(start, loop) if start.settings.fit.epochs else FitReport()
        model = loop.model("raexmc", report, memory=run.ending is None)
        if report.metrics:
            logger.info("kept step %d: validation of the labels alone %s", report.best_step, readable(report.metrics))
        return model if run.ending is not None else loop.finish(model, memory=True)


def _fit(start: Prepared[RaexmcSettings], loop: Running[RaexmcSettings]) -> FitReport:
    """Train the encoder."""
    settings, encoder = start.settings, start.encoder
    drawn = settings.batches.positives or None
    cut, uniform = (settings.fit.batch_size, settings.fit.seed), settings.batches.uniform_negatives
    plan = Batches(start.targets, start.rows, InBatch(drawn), *cut, drawn, uniform=uniform)
    negatives = hard_negatives(start.targets, settings.mining) if settings.mining.num_negatives else None
    label_keys = encoded_labels(encoder, start.own_labels())
    loss = closed_form("decoupled_softmax")

    def step(batch: Batch) -> Tensor:
        label_keys.forget()
        encoded = start.encode(batch, plan, negatives)
        batch = encoded.batch
        return contrast(
            loss,
            encoded.queries,
            encoded.keys,
            on_device(batch.positives, encoder.device),
            on_device(batch.hidden, encoder.device),
            on_device(related_pairs(sp.csr_array(start.targets[batch.rows])), encoder.device),
            temperature=settings.losses.temperature,
            dtype=start.low,
            own=encoded.own,
        )

    valid = Validation.of(start.data, encoder, label_keys, settings.fit)
    return loop.fit(
        encoder,
        step,
        plan,
        optimizers_of(encoder, settings.fit),
        evaluate=None if valid is None else valid.metrics,
        refresh=mined_anew(negatives, label_keys, settings.mining, encoder.device),
        ending=lambda: memory_seconds(encoder, start.documents, settings, start.data),
    )


def _decide(settings: RaexmcSettings, encoder: Encoder, data: Dataset) -> tuple[RaexmcSettings, int, str]:
    """Every setting decided, the bytes that the run takes, and what to change where they are not there."""
    if encoder.row_sparse:
        settings = changed(settings, lr=settings.fit.lr or STATIC_RATE)
    settings, size, batch = fill_in(settings, encoder), len(data.labels), settings.fit.batch_size
    pool = min(size, POOL_A_DOCUMENT * batch + settings.batches.uniform_negatives) + batch
    needed = 2 * 4 * encoder.dim * len(data.train)
    if settings.fit.epochs:
        pool, size = distributed.largest_share(pool), distributed.largest_share(size)
        needed += training_bytes(settings, shape_of(encoder), pool, size)
    return settings, needed, "lower --batch-size, --chunk-size or --max-words"


def related_pairs(targets: sp.csr_array) -> npt.NDArray[np.int64]:
    """Pairs of documents that share a label, by the truth (B, L) of a batch: Y Y^T > 0, each document with itself too.

    They are (2, r), both rows of the batch.
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
    own: Tensor | None = None,
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
        own: (b, D) vectors of the documents that this process encoded, whose columns it has; None for all.
    """
    part = distributed.span(len(queries))
    related = related[:, (related[1] >= part.start) & (related[1] < part.stop)]
    # a document's column comes after those of the labels
    masked = torch.stack([related[0], related[1] - part.start + len(keys)])
    if hidden is not None:
        masked = torch.cat([hidden, masked], dim=1)
    columns, reduce = torch.cat([keys, queries if own is None else own]), distributed.reduction()
    return linear_loss(
        loss, queries, columns, positives, temperature=temperature, hidden=masked, dtype=dtype, reduce=reduce
    )
