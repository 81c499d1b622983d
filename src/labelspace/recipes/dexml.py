"""DEXML: a dual encoder trained against every label at once (Gupta et al., ICLR 2024)."""

from __future__ import annotations

import logging

from torch import Tensor

from ..encoders import Encoder
from ..errors import SettingsError
from ..model.model import Model
from ..training import distributed
from ..training.batches import Batches
from ..training.config import changed
from ..training.loop import readable
from ..training.losses_fused import linear_loss
from ..training.pools import make_pool
from ..training.required_memory import POOL_A_DOCUMENT, training_bytes
from ..training.settings import DexmlSettings
from ..types import Batch, Dataset
from .preparation import (
    encoded_labels,
    fill_in,
    hard_negatives,
    loss_form,
    mined_anew,
    on_device,
    optimizers_of,
    shape_of,
)
from .run import Run, prepare, running
from .seconds import memory_seconds
from .validation import Validation

logger = logging.getLogger(__name__)


def train(data: Dataset, settings: DexmlSettings, run: Run) -> Model:
    """Train a dual encoder: a document's score of a label is the product of their vectors."""
    losses = settings.losses
    if losses.loss == "soft_top_k" and isinstance(losses.k, int) and losses.k >= len(data.labels):
        raise SettingsError(f"k is {losses.k}, but there are {len(data.labels)} labels; soft_top_k needs fewer places")
    start = prepare(data, settings, _decide)
    settings, encoder, batches = start.settings, start.encoder, start.settings.batches
    drawn = None
    if batches.positives == "sample":
        drawn = losses.k if losses.loss == "soft_top_k" and isinstance(losses.k, int) else 1
    plan = Batches(
        start.targets,
        start.rows,
        make_pool(batches.negatives, batches.pool_positives),
        settings.fit.batch_size,
        settings.fit.seed,
        drawn,
        hide=losses.loss != "softmax",
        weighted=batches.weighted,
        uniform=batches.uniform_negatives,
    )
    negatives = hard_negatives(start.targets, settings.mining) if batches.negatives == "mined" else None
    label_keys = encoded_labels(encoder, start.own_labels())
    loss = loss_form(losses.loss, losses)

    def step(batch: Batch) -> Tensor:
        label_keys.forget()
        encoded = start.encode(batch, plan, negatives)
        batch = encoded.batch
        return linear_loss(
            loss,
            encoded.queries,
            encoded.keys,
            on_device(batch.positives, encoder.device),
            temperature=losses.temperature,
            hidden=on_device(batch.hidden, encoder.device),
            weights=on_device(batch.weights, encoder.device),
            dtype=start.low,
            reduce=distributed.reduction(),
        )

    def ending() -> float:
        return memory_seconds(encoder, start.documents, settings, data) if settings.voting.memory else 0.0

    valid = Validation.of(start.data, encoder, label_keys, settings.fit)
    with running(start, run) as loop:
        report = loop.fit(
            encoder,
            step,
            plan,
            optimizers_of(encoder, settings.fit),
            evaluate=None if valid is None else valid.metrics,
            refresh=mined_anew(negatives, label_keys, settings.mining, encoder.device),
            ending=ending,
        )
        model = loop.model("dexml", report, settings.voting.memory)
        if report.metrics:
            logger.info("kept step %d: validation %s", report.best_step, readable(report.metrics))
        return loop.finish(model, settings.voting.memory)


def _decide(settings: DexmlSettings, encoder: Encoder, data: Dataset) -> tuple[DexmlSettings, int, str]:
    """Every setting decided, the bytes that the run takes, and what to change where they are not there."""
    settings, size, negatives = fill_in(settings, encoder), len(data.labels), settings.batches.negatives
    if negatives == "mined" and settings.batches.pool_positives is None:
        settings = changed(settings, pool_positives=1)
    pool = (
        size
        if negatives == "all"
        else min(size, POOL_A_DOCUMENT * settings.fit.batch_size + settings.batches.uniform_negatives)
    )
    mined = distributed.largest_share(size) if negatives == "mined" else 0
    needed = training_bytes(settings, shape_of(encoder), distributed.largest_share(pool), mined)
    needed += 2 * 4 * encoder.dim * len(data.train) if settings.voting.memory else 0
    return settings, needed, "lower --batch-size, --chunk-size or --max-words, or take --negatives in-batch"
