"""A second encoder beside a transformer: ``static`` by RAE-XMC or UniDEC in a few passes, joined with the first."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from ..errors import LabelspaceError
from ..model.joining import join
from ..model.model import Model
from ..training.batches import usable_rows
from ..training.settings import RaexmcSettings, UnidecSettings
from ..types import Dataset
from . import raexmc
from .preparation import tuned_on, tuning_seconds
from .run import Run

logger = logging.getLogger(__name__)

PASSES, LEAST_STEPS, MOST_PASSES = 3, 400, 30
"""Passes over the documents, more where they would make fewer steps, and the most of them."""
TEXTS_PER_SECOND = 4000.0
"""What a core makes of the documents in a pass, vocabulary and label keys included."""
SETTING_UP = 15.0
"""Seconds before the first step."""
CLASSIFIER_PASSES = 4
"""Passes with a classifier, unless COMPANION_SHARE of the time is over before."""
PAIRS_PER_SECOND = 18e6
"""Pairs of document and label that a core trains such a classifier on."""
COMPANION_SHARE = 0.2
"""Share of a time limit that a companion may take."""


def with_companion(
    model: Model,
    data: Dataset,
    settings: UnidecSettings,
    started: float,
    ending: Callable[[], float],
    unidec: Callable[[Dataset, UnidecSettings, Run], Model],
) -> Model:
    """The model joined with a static encoder trained on the same documents; shares are equal until it is tuned.

    Its first encoder, whose vectors documents vote by, is the companion where the settings say so. Where its training
    is interrupted, or does not fit into memory, the model is given back alone.

    Args:
        model: what was trained, with no documents in its memory yet; its ``info`` is kept.
        data: as it was given.
        settings: of the run, every value decided.
        started: when the command began, by `time.monotonic`; the time limit of the settings holds.
        ending: seconds of work that remain afterwards, as for a model that is not joined.
        unidec: trains what has a classifier.
    """
    logger.info("beside it, static is trained by %s, and both are joined", _recipe(settings))

    def remaining() -> float:
        return ending() + sharing_seconds(data, settings)

    run = Run(started=started, ending=remaining)
    try:
        if settings.companion == "static-unidec":
            other = unidec(data, _with_classifier(data, settings), run)
        else:
            other = raexmc.train(data, _in_contrast(data, settings), run)
    except LabelspaceError as error:  # what was trained so far is worth more
        logger.warning("static cannot be trained here, so the model is not joined with it: %s", error)
        return model
    if other.info["fit"]["stopped"] == "interrupted":
        logger.warning("static was interrupted, so the model is not joined with it")
        return model
    made = join([other, model] if settings.documents_by == "companion" else [model, other])
    made.core.info = {**model.info, "companion": {name: other.info[name] for name in ("recipe", "config", "fit")}}
    return made


def _recipe(settings: UnidecSettings) -> str:
    return "UniDEC" if settings.companion == "static-unidec" else "RAE-XMC"


def _alike(settings: UnidecSettings) -> dict[str, Any]:
    """What the companion takes from the run."""
    names = ("batch_size", "max_minutes", "seed", "device", "precision")
    return {"encoder": "static", "base": settings.encoder, **{name: getattr(settings, name) for name in names}}


def _in_contrast(data: Dataset, settings: UnidecSettings) -> RaexmcSettings:
    return RaexmcSettings(**_alike(settings), epochs=passes(data, settings.batch_size), evaluations=0)


def _with_classifier(data: Dataset, settings: UnidecSettings) -> UnidecSettings:
    """One evaluation chooses the share of its two heads."""
    epochs = max(CLASSIFIER_PASSES, passes(data, settings.batch_size))
    return UnidecSettings(
        **_alike(settings), epochs=epochs, evaluations=1, patience=0, valid_documents=settings.valid_documents
    )


def passes(data: Dataset, batch_size: int) -> int:
    """How many passes over the documents the companion makes.

    Args:
        data: what it learns from.
        batch_size: documents in a step.
    """
    count = max(1, len(usable_rows(data.train.targets, data.fit_rows)))
    return min(MOST_PASSES, max(PASSES, math.ceil(LEAST_STEPS * batch_size / count)))


def companion_seconds(data: Dataset, settings: UnidecSettings, batch_size: int, kind: str | None = None) -> float:
    """How long the companion takes, about.

    Args:
        data: what it learns from.
        settings: of the run.
        batch_size: documents in a step.
        kind: the companion; that of the settings when not given.
    """
    kind, count = kind or settings.companion, passes(data, batch_size)
    if kind == "none":
        return 0.0
    if kind == "static-unidec":
        learning = max(CLASSIFIER_PASSES, count) * classifier_pass_seconds(data)
        if settings.max_minutes is not None:
            learning = min(learning, COMPANION_SHARE * 60 * settings.max_minutes)
    else:
        learning = count * len(data.train) / (TEXTS_PER_SECOND * _cores())
    return SETTING_UP + learning + sharing_seconds(data, settings)


def sharing_seconds(data: Dataset, settings: UnidecSettings) -> float:
    """How much longer tuning takes for two encoders, whose shares are chosen too: about three times as long in all.

    Args:
        data: what it is tuned on.
        settings: of the run.
    """
    return 2 * tuning_seconds(tuned_on(settings, len(data.valid)))


def classifier_pass_seconds(data: Dataset) -> float:
    """How long a pass over the documents takes where all labels are scored.

    Args:
        data: what is learnt from.
    """
    return (len(data.train) + len(data.labels)) * len(data.labels) / (PAIRS_PER_SECOND * _cores())


def _cores() -> int:
    return min(torch.get_num_threads(), os.cpu_count() or 1)
