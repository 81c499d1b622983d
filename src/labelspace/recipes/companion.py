"""A second encoder beside a transformer: ``static`` by RAE-XMC in a few passes, joined with what was trained."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import torch

from ..config import RaexmcSettings, UnidecSettings
from ..data.batches import usable_rows
from ..errors import LabelspaceError
from ..joining import join
from ..model import Model
from ..types import Dataset
from .preparation import tuned_on, tuning_seconds
from .raexmc import train

logger = logging.getLogger(__name__)

PASSES, LEAST_STEPS, MOST_PASSES = 3, 400, 30
"""Passes over the documents, more where they would make fewer steps, and the most of them."""
TEXTS_PER_SECOND = 4000.0
"""What a core makes of the documents in a pass, vocabulary and label keys included."""
SETTING_UP = 15.0
"""Seconds before the first step."""


def with_companion(
    model: Model, data: Dataset, settings: UnidecSettings, started: float, ending: Callable[[], float]
) -> Model:
    """The model joined with a static encoder trained on the same documents; shares are equal until it is tuned.

    Where that is interrupted, or does not fit into memory, the model is given back alone.

    Args:
        model: what was trained, with no documents in its memory yet; its ``info`` is kept.
        data: as it was given.
        settings: of the run, every value decided.
        started: when the command began, by `time.monotonic`; the time limit of the settings holds.
        ending: seconds of work that remain afterwards.
    """
    logger.info("beside it, static is trained by RAE-XMC, and both are joined")
    own = RaexmcSettings(
        encoder="static",
        base=settings.encoder,
        epochs=passes(data, settings.batch_size),
        batch_size=settings.batch_size,
        max_minutes=settings.max_minutes,
        evaluations=0,
        seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
    )
    try:
        other = train(data, own, None, started, ending=ending)
    except LabelspaceError as error:  # what was trained so far is worth more
        logger.warning("static cannot be trained here, so the model is not joined with it: %s", error)
        return model
    if other.info["fit"]["stopped"] == "interrupted":
        logger.warning("static was interrupted, so the model is not joined with it")
        return model
    made = join([model, other])
    made.info = {**model.info, "companion": {name: other.info[name] for name in ("recipe", "config", "fit")}}
    return made


def passes(data: Dataset, batch_size: int) -> int:
    """How many passes over the documents the companion makes.

    Args:
        data: what it learns from.
        batch_size: documents in a step.
    """
    count = max(1, len(usable_rows(data.train.targets, data.fit_rows)))
    return min(MOST_PASSES, max(PASSES, math.ceil(LEAST_STEPS * batch_size / count)))


def companion_seconds(data: Dataset, settings: UnidecSettings, batch_size: int) -> float:
    """How long the companion takes, about.

    Args:
        data: what it learns from.
        settings: of the run.
        batch_size: documents in a step.
    """
    cores = min(torch.get_num_threads(), os.cpu_count() or 1)
    learning = passes(data, batch_size) * len(data.train) / (TEXTS_PER_SECOND * cores)
    return SETTING_UP + learning + tuning_seconds(tuned_on(settings, len(data.valid)))  # shares are tuned too
