"""Probabilities fitted to the scores of a model, on documents that it was not fitted on."""

from __future__ import annotations

import logging

import numpy as np

from ..data.loading import require_texts
from ..errors import DataError, SettingsError
from ..evaluation import calibration, metrics
from ..evaluation.calibration import Calibration
from ..labels import numbers_in, renumbered_pairs
from ..types import Corpus, Dataset, Predictions
from .core import Core, checked_texts
from .predicting import Wanted, held_out, predict

logger = logging.getLogger(__name__)


def calibrate(core: Core, data: Dataset, split: str, predictions: Predictions | None, batch_size: int) -> Calibration:
    """`Model.calibrate`."""
    if split not in ("valid", "train", "test"):
        raise SettingsError(f"unknown split {split!r}; choose one of valid, train, test")
    corpus: Corpus | None = getattr(data, split)
    if corpus is None or not len(corpus):
        raise DataError(f"{data.name} has no {split} documents to calibrate on")
    require_texts(data, split)
    _warn_of_split(core, data, split)
    truth = metrics.binary_truth(corpus.targets)
    barred = metrics.barred_labels(corpus.filter_pairs, *truth.shape)
    in_model = truth
    if list(data.labels.ids) != list(core.labels.ids):
        number = numbers_in(data.labels.ids, core.labels.ids)
        if (number < 0).all():
            raise DataError(f"{data.name} and the model have no label id in common")
        in_model, barred = (renumbered_pairs(matrix, number, len(core.labels)) for matrix in (truth, barred))
    if predictions is None:
        left_out = held_out(core, data) if core.memory.n_documents and split == "valid" else None
        texts = checked_texts(corpus.texts, "text")
        wanted = Wanted(k=min(calibration.DEPTH, len(core.labels)), left_out=left_out)
        predictions = predict(core, texts, lambda part: core.encode(texts[part], batch_size), wanted)
    elif len(predictions) != len(corpus):
        raise DataError(f"there are {len(predictions)} rows of predictions but {len(corpus)} documents")
    indices, scores = predictions.indices, predictions.scores
    scores, kept = np.where(indices >= 0, scores, -np.inf), ~metrics.membership(indices, barred)
    right, settings = metrics.membership(indices, in_model), core.memory.settings
    fitted = calibration.fit(scores, right, kept, int(truth.nnz), scoring=settings)
    figures = fitted.fitted
    figures.update(data=data.name, split=split)
    core.calibration = fitted
    logger.info(
        "calibrated on %d %s documents: %s; on held-out folds log-loss %.4f, calibration error %.3f, best F1 %.3f "
        "at threshold %.2f",
        *(figures["documents"], split, fitted.name, min(figures["log_loss"].values())),
        *(figures["ece"], figures["best_f1"]["f1"], figures["best_f1"]["threshold"]),
    )
    return fitted


def calibrate_if_possible(core: Core, data: Dataset, predictions: Predictions | None = None) -> None:
    """`Model.calibrate_if_possible`."""
    try:
        calibrate(core, data, "valid", predictions, 256)
    except DataError as error:
        logger.info("the model is not calibrated: %s", error)


def _warn_of_split(core: Core, data: Dataset, split: str) -> None:
    recorded = core.info.get("data", {})
    seed = recorded.get("options", {}).get("seed")
    if split == "train":
        logger.warning("calibrating on training documents, which the model knows: probabilities will be too high")
    elif split == "test":
        logger.warning("calibrating on test documents: what is measured on them afterwards is not held out")
    elif len(data.valid_rows) and recorded.get("name") == data.name and seed not in (None, data.options.get("seed")):
        logger.warning(
            "the model's run held out other documents (seed %s, here %s), so it was trained on some of these: "
            "probabilities will be too high; read the data with seed=%s",
            *(seed, data.options.get("seed"), seed),
        )
