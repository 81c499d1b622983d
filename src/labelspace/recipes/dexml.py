"""DEXML: a dual encoder trained against every label at once (Gupta et al., ICLR 2024)."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from ..base.machine import cache_folder, gigabytes, peak_memory, require_memory
from ..encoders.gradcache import encode_both, encode_cached
from ..encoders.tokens import log_cut
from ..errors import DataError, SettingsError
from ..memory.memory import Memory
from ..model.model import Model
from ..training.batches import Batches, usable_rows
from ..training.checkpoint import Checkpoints, State
from ..training.estimate import POOL_A_DOCUMENT, training_bytes
from ..training.label_heads import LabelEncoder
from ..training.loop import Refresh, fit, readable, stop_signals
from ..training.losses import closed_form
from ..training.losses_fused import linear_loss
from ..training.pools import make_pool
from ..training.settings import DexmlSettings
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


def train(
    data: Dataset,
    settings: DexmlSettings,
    out: Path | None,
    started: float,
    checkpoints: Checkpoints | None = None,
    state: State | None = None,
) -> Model:
    """Train a dual encoder on a data set.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run.
        out: folder to write the model to; None writes nothing.
        started: when the command began, by `time.monotonic`.
        checkpoints: of the run, begun and locked; None keeps none.
        state: of an unfinished run, to go on with.

    Raises:
        DataError: no document has a label.
        ResourceError: the run would not fit into memory.
        CheckpointError: a state that does not fit.
    """
    given = data
    order = by_text(data.labels)
    data = data.renumbered(order)
    rows = usable_rows(data.train.targets, data.fit_rows)
    if not len(rows):
        raise DataError(f"{data.name}: no training document has a label; there is nothing to learn from")
    if settings.loss == "soft_top_k" and settings.k >= len(data.labels):
        raise SettingsError(
            f"k is {settings.k}, but there are {len(data.labels)} labels; soft_top_k needs fewer places"
        )
    torch.manual_seed(settings.seed)

    encoder = make_encoder(data, settings)
    settings = fill_in(settings, encoder)
    searched = settings.negatives == "mined"
    if searched and settings.pool_positives is None:
        settings = dataclasses.replace(settings, pool_positives=1)
    size = len(data.labels)
    pool = size if settings.negatives == "all" else min(size, POOL_A_DOCUMENT * settings.batch_size)
    needed = training_bytes(settings, shape_of(encoder), pool, size if searched else 0)
    if settings.memory:
        needed += 2 * 4 * encoder.dim * len(data.train)
    logger.info(
        "training needs about %s beside the data (%s used so far)", gigabytes(needed), gigabytes(peak_memory() or 0)
    )
    remedy = "lower --batch-size, --chunk-size or --max-words, or take --negatives in-batch"
    require_memory(needed, "this run", remedy, encoder.device)

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
    targets = data.train.targets
    texts = documents
    if settings.label_documents:
        targets, rows = with_label_documents(targets, rows)
        documents = documents.followed_by(labels.tokens)
    plan = batch_plan(targets, rows, settings)
    negatives = hard_negatives(targets, settings) if searched else None
    label_keys = LabelKeys(encoder, labels.tokens)
    kept = int(1e9 * settings.activations_gb) // encoder.activation_bytes if encoder.activation_bytes else 0
    places: dict[str, Any] = {}
    if settings.loss == "soft_top_k":  # a small pool may have fewer labels than places
        places = {"k": settings.k, "alpha": settings.alpha, "clamp": True}
    loss = closed_form(settings.loss, **places)
    low = torch.bfloat16 if settings.precision == "bf16" else None
    device = encoder.device

    def step(batch: Batch) -> Tensor:
        label_keys.forget()
        tokens = documents.take(batch.rows)
        if negatives is None:
            own = labels.tokens if batch.pool is None else labels.tokens.take(batch.pool)
            queries, keys = encode_both(encoder, tokens, own, settings.chunk_size, kept)
        else:
            queries = encode_cached(encoder, tokens, settings.chunk_size, kept)
            found = negatives.draw(batch.rows, queries.detach(), np.random.default_rng((*batch.key, 1)))
            batch = plan.widened(batch, np.concatenate(found))
            keys = labels(batch.pool, kept - len(tokens.ids))
        positives = torch.from_numpy(batch.positives).to(device)
        hidden = None if batch.hidden is None else torch.from_numpy(batch.hidden).to(device)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights).to(device)
        return linear_loss(
            loss,
            queries,
            keys,
            positives,
            temperature=settings.temperature,
            hidden=hidden,
            weights=weights,
            dtype=low,
        )

    refresh = None
    if negatives is not None:
        hard = negatives  # for the type checker
        refresh = Refresh(
            settings.mine_from,
            settings.mine_every,
            run=lambda: hard.refresh(label_keys.now()),
            state=hard.state,
            restore=lambda kept: hard.restore({name: x.to(device) for name, x in kept.items()}),
            outcome=hard.outcome,
        )
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
            report = fit(
                step,
                plan.epoch,
                plan.per_epoch,
                encoder,
                optimizers_of(encoder, settings),
                settings,
                evaluate=validation(data, encoder, label_keys, settings, cache),
                choose=len(data.valid) >= MIN_VALID,
                log=log,
                started=started,
                signals=signals,
                refresh=refresh,
                checkpoints=checkpoints,
                state=state,
                ending=(lambda: memory_seconds(encoder, texts, settings, data)) if settings.memory else None,
            )
            encoder.precision = "float32"
            keys = torch.from_numpy(encoder.encode(labels.tokens)[np.argsort(order)]).to(device)
            info = describe_run("dexml", settings, given, truncated, report)
            model = Model(encoder, Memory.of_labels(keys), given.labels, info)
            if report.metrics:
                logger.info("kept step %d: validation %s", report.best_step, readable(report.metrics))
            if settings.memory:
                give_memory(model, given, texts, settings, log, started)
            calibrate(model, given, settings)
            log.close()
            save_run(model, out, checkpoints, settings)
            return model
    finally:
        log.close()


def batch_plan(targets: sp.csr_array, rows: npt.NDArray[np.int64], settings: DexmlSettings) -> Batches:
    """The batches of a run.

    Args:
        targets: the truth of all documents, (N, L).
        rows: (n,) documents to train on.
        settings: of the run.
    """
    draw = None if settings.positives == "all" else settings.k if settings.loss == "soft_top_k" else 1
    return Batches(
        targets,
        rows,
        make_pool(settings.negatives, settings.pool_positives),
        settings.batch_size,
        settings.seed,
        draw,
        hide=settings.loss != "softmax",
        weighted=settings.weighted,
    )
