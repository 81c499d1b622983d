"""DEXML: a dual encoder trained against every label at once (Gupta et al., ICLR 2024)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from ..encoders import Encoder
from ..encoders.gradcache import encode_both, encode_cached
from ..errors import SettingsError
from ..model.model import Model
from ..training.batches import Batches
from ..training.config import changed
from ..training.loop import readable
from ..training.losses import closed_form
from ..training.losses_fused import linear_loss
from ..training.pools import make_pool
from ..training.required_memory import POOL_A_DOCUMENT, training_bytes
from ..training.settings import DexmlSettings
from ..types import Batch, Dataset
from .preparation import LabelKeys, fill_in, hard_negatives, mined_anew, optimizers_of, shape_of
from .run import Need, Run, prepare, running
from .seconds import memory_seconds
from .validation import Validation

logger = logging.getLogger(__name__)


def train(data: Dataset, settings: DexmlSettings, run: Run) -> Model:
    """Train a dual encoder on a data set.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run.
        run: where it goes, and since when it lasts.

    Raises:
        DataError: no document has a label.
        SettingsError: more places than labels.
        ResourceError: the run would not fit into memory.
        CheckpointError: a state that does not fit.
    """
    size = len(data.labels)
    if settings.losses.loss == "soft_top_k" and settings.losses.k >= size:
        raise SettingsError(f"k is {settings.losses.k}, but there are {size} labels; soft_top_k needs fewer places")

    def decide(settings: DexmlSettings, encoder: Encoder, _: int) -> tuple[DexmlSettings, Need]:
        settings, mined = fill_in(settings, encoder), settings.batches.negatives == "mined"
        if mined and settings.batches.pool_positives is None:
            settings = changed(settings, pool_positives=1)
        pool = size if settings.batches.negatives == "all" else min(size, POOL_A_DOCUMENT * settings.fit.batch_size)
        needed = training_bytes(settings, shape_of(encoder), pool, size if mined else 0)
        needed += 2 * 4 * encoder.dim * len(data.train) if settings.voting.memory else 0
        return settings, Need(
            needed=needed, remedy="lower --batch-size, --chunk-size or --max-words, or take --negatives in-batch"
        )

    start = prepare(data, settings, decide)
    settings, encoder, labels, kept = start.settings, start.encoder, start.labels, start.kept_tokens
    plan = batch_plan(start.targets, start.rows, settings)
    negatives = hard_negatives(start.targets, settings.mining) if settings.batches.negatives == "mined" else None
    label_keys = LabelKeys(encoder, labels.tokens)
    places: dict[str, Any] = {}
    if settings.losses.loss == "soft_top_k":  # a small pool may have fewer labels than places
        places = {"k": settings.losses.k, "alpha": settings.losses.alpha, "clamp": True}
    loss = closed_form(settings.losses.loss, **places)
    device = encoder.device

    def step(batch: Batch) -> Tensor:
        label_keys.forget()
        tokens = start.learned.take(batch.rows)
        if negatives is None:
            own = labels.tokens if batch.pool is None else labels.tokens.take(batch.pool)
            queries, keys = encode_both(encoder, tokens, own, settings.encoding.chunk_size, kept)
        else:
            queries = encode_cached(encoder, tokens, settings.encoding.chunk_size, kept)
            drawn = negatives.draw(batch.rows, queries.detach(), np.random.default_rng((*batch.key, 1)))
            batch = plan.widened(batch, np.concatenate(drawn))
            keys = labels(batch.pool, kept - len(tokens.ids))
        return linear_loss(
            loss,
            queries,
            keys,
            torch.from_numpy(batch.positives).to(device),
            temperature=settings.losses.temperature,
            hidden=None if batch.hidden is None else torch.from_numpy(batch.hidden).to(device),
            weights=None if batch.weights is None else torch.from_numpy(batch.weights).to(device),
            dtype=start.low,
        )

    valid = Validation.of(start.data, encoder, label_keys, settings.fit)
    with running(start, run) as loop:
        report = loop.fit(
            encoder,
            step,
            plan,
            optimizers_of(encoder, settings.fit),
            evaluate=None if valid is None else valid.metrics,
            refresh=None if negatives is None else mined_anew(negatives, label_keys, settings.mining),
            ending=(lambda: memory_seconds(encoder, start.documents, settings, data))
            if settings.voting.memory
            else None,
        )
        keys = torch.from_numpy(encoder.encode(labels.tokens, precision="float32")).to(device)
        model = loop.model("dexml", keys, report)
        if report.metrics:
            logger.info("kept step %d: validation %s", report.best_step, readable(report.metrics))
        return loop.finish(model, settings.voting.memory)


def batch_plan(targets: sp.csr_array, rows: npt.NDArray[np.int64], settings: DexmlSettings) -> Batches:
    """The batches of a run.

    Args:
        targets: the truth of all documents, (N, L).
        rows: (n,) documents to train on.
        settings: of the run.
    """
    draw = (
        None
        if settings.batches.positives == "all"
        else settings.losses.k
        if settings.losses.loss == "soft_top_k"
        else 1
    )
    return Batches(
        targets,
        rows,
        make_pool(settings.batches.negatives, settings.batches.pool_positives),
        settings.fit.batch_size,
        settings.fit.seed,
        draw,
        hide=settings.losses.loss != "softmax",
        weighted=settings.batches.weighted,
    )
