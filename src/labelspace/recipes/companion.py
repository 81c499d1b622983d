"""A second encoder beside a transformer: ``static`` by RAE-XMC or UniDEC in a few passes, joined with the first."""

from __future__ import annotations

import logging
from collections.abc import Callable

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

    Where training the companion is interrupted, or does not fit into memory, the model is given back alone.

    Args:
        model: what was trained, with no documents in its memory yet; its ``info`` is kept.
        data: as it was given.
        settings: of the run, every value decided.
        started: when the command began, by `time.monotonic`; the time limit of the settings holds.
        ending: seconds of work that remain afterwards, as for a model that is not joined.
        unidec: trains a companion with a classifier; handed over, since its module imports this one.
    """
    with_classifier = settings.voting.companion == "static-unidec"
    recipe = "UniDEC" if with_classifier else "RAE-XMC"
    logger.info("beside it, static is trained by %s, and both are joined", recipe)
    run = Run(started=started, ending=lambda: ending() + sharing_seconds(data, settings.fit))
    passes = companion_passes(data, settings.fit.batch_size)
    of_run = flat(settings)
    shared = {name: of_run[name] for name in ("batch_size", "max_minutes", "seed", "device", "precision")}
    shared |= {"encoder": "static", "base": settings.encoding.encoder}
    try:
        if with_classifier:
            # one evaluation chooses the share of its two heads
            looks = {"evaluations": 1, "patience": 0, "valid_documents": settings.fit.valid_documents}
            own = shared | looks | {"epochs": max(CLASSIFIER_PASSES, passes)}
            companion = unidec(data, made(UnidecSettings, own), run)
        else:
            own = shared | {"evaluations": 0, "epochs": passes}
            companion = raexmc.train(data, made(RaexmcSettings, own), run)
    except LabelspaceError as error:  # what was trained so far is worth more
        logger.warning("static cannot be trained here, so the model is not joined with it: %s", error)
        return model
    if companion.info["fit"]["stopped"] == "interrupted":
        logger.warning("static was interrupted, so the model is not joined with it")
        return model
    # documents vote by the vectors of the first encoder
    joined = join([companion, model] if settings.voting.documents_by == "companion" else [model, companion])
    joined.core.info = {**model.info, "companion": {name: companion.info[name] for name in ("recipe", "config", "fit")}}
    return joined
