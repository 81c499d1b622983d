"""A second encoder beside a transformer: ``static`` by RAE-XMC or UniDEC in a few passes, joined with the first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import LabelspaceError
from ..model.joining import join
from ..model.model import Model
from ..training.config import flat, made
from ..training.settings import RaexmcSettings, UnidecSettings
from ..types import Dataset
from . import raexmc
from .run import Run
from .seconds import CLASSIFIER_PASSES, companion_passes, sharing_seconds

logger = logging.getLogger(__name__)


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
        return ending() + sharing_seconds(data, settings.fit)

    run = Run(started=started, ending=remaining)
    try:
        if settings.voting.companion == "static-unidec":
            other = unidec(data, _with_classifier(data, settings), run)
        else:
            other = raexmc.train(data, _in_contrast(data, settings), run)
    except LabelspaceError as error:  # what was trained so far is worth more
        logger.warning("static cannot be trained here, so the model is not joined with it: %s", error)
        return model
    if other.info["fit"]["stopped"] == "interrupted":
        logger.warning("static was interrupted, so the model is not joined with it")
        return model
    joined = join([other, model] if settings.voting.documents_by == "companion" else [model, other])
    joined.core.info = {**model.info, "companion": {name: other.info[name] for name in ("recipe", "config", "fit")}}
    return joined


def _recipe(settings: UnidecSettings) -> str:
    return "UniDEC" if settings.voting.companion == "static-unidec" else "RAE-XMC"


def _alike(settings: UnidecSettings) -> dict[str, Any]:
    """What the companion takes from the run."""
    names, given = ("batch_size", "max_minutes", "seed", "device", "precision"), flat(settings)
    return {"encoder": "static", "base": settings.encoding.encoder, **{name: given[name] for name in names}}


def _in_contrast(data: Dataset, settings: UnidecSettings) -> RaexmcSettings:
    epochs = companion_passes(data, settings.fit.batch_size)
    return made(RaexmcSettings, _alike(settings) | {"epochs": epochs, "evaluations": 0})


def _with_classifier(data: Dataset, settings: UnidecSettings) -> UnidecSettings:
    """One evaluation chooses the share of its two heads."""
    epochs = max(CLASSIFIER_PASSES, companion_passes(data, settings.fit.batch_size))
    own = {"epochs": epochs, "evaluations": 1, "patience": 0, "valid_documents": settings.fit.valid_documents}
    return made(UnidecSettings, _alike(settings) | own)
