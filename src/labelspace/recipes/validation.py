"""What validation documents say of a run: metrics of the present weights and of the model, and its calibration.

Nothing here changes what is measured; `choosing` does.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..base.machine import cache_folder
from ..encoders import Encoder
from ..evaluation.evaluating import evaluate, longest_filter_row
from ..memory.memory import Memory
from ..memory.voting import Query
from ..model.model import Model
from ..training.label_heads import RANKINGS, TwoHeads
from ..training.settings import FitSettings
from ..types import Corpus, Dataset, Predictions

logger = logging.getLogger(__name__)

MIN_VALID = 20
"""Fewer validation documents than this are measured on, but nothing is chosen by them."""


class Keys(Protocol):
    """Where validation finds the present keys of all labels."""

    def now(self) -> Tensor:
        """(L, D) without a graph."""

    def forget(self) -> None:
        """They are to be made anew."""


class Validation:
    """The validation documents that a run looks at.

    Args:
        data: its ``valid`` part is used, and propensities from all of ``train``.
        encoder: in training.
        label_keys: of all labels.
        fit: settings of the run.
    """

    def __init__(self, data: Dataset, encoder: Encoder, label_keys: Keys, fit: FitSettings):
        self.data, self.encoder, self.label_keys = data, encoder, label_keys
        self.corpus = looked_at(data.valid, fit)
        self.documents = encoder.tokenize(self.corpus.texts, cache_folder())
        self.longest = longest_filter_row(self.corpus.filter_pairs)
        self.size = len(data.labels)

    @classmethod
    def of(cls, data: Dataset, encoder: Encoder, label_keys: Keys, fit: FitSettings) -> Validation | None:
        """The documents, or None where there are none with a label or the run looks at none."""
        if not len(data.valid) or not data.valid.targets.nnz or fit.evaluations == 0:
            return None
        return cls(data, encoder, label_keys, fit)

    def vectors(self) -> Tensor:
        """(n, D) of the documents by the present weights, on the encoder's device."""
        return torch.from_numpy(self.encoder.encode(self.documents)).to(self.encoder.device)

    def best(self, queries: Tensor, keys: Tensor, k: int) -> Predictions:
        """The k best labels of the documents by the product of vectors, and as many more as may be filtered.

        Args:
            queries: (n, D).
            keys: (L, D).
            k: labels a document.
        """
        return Predictions(*Memory.of_labels(keys).predict(Query(queries), min(k + self.longest, self.size)))

    def metrics(self) -> dict[str, float]:
        """Metrics of the present weights."""
        return _metrics(self.best(self.vectors(), self.label_keys.now(), 100), self.corpus, self.data)

    def of_rankings(self, queries: Tensor, keys: Tensor, heads: TwoHeads) -> dict[str, float]:
        """Metrics of both heads together, and of each alone under names like ``classifier P@1``.

        Args:
            queries: (n, d_D + d_C).
            keys: (L, d_D + d_C).
            heads: whose columns these are.
        """
        metrics: dict[str, float] = {}
        for ranking in RANKINGS:
            columns = heads.columns(ranking)
            before = "" if ranking == "combined" else f"{ranking} "
            own = _metrics(self.best(queries[:, columns], keys[:, columns], 100), self.corpus, self.data)
            metrics.update({before + name: value for name, value in own.items()})
        return metrics


def _metrics(predictions: Predictions, corpus: Corpus, data: Dataset) -> dict[str, float]:
    """Metrics of predictions for validation documents, propensities from all training documents."""
    return evaluate(predictions, corpus.targets, data.train.targets, filter_pairs=corpus.filter_pairs, name=data.name)


def looked_at(corpus: Corpus, fit: FitSettings) -> Corpus:
    """The validation documents that a run looks at.

    Args:
        corpus: all of them.
        fit: settings of the run.
    """
    if len(corpus) <= fit.valid_documents:
        return corpus
    chosen = np.random.default_rng(fit.seed).choice(len(corpus), fit.valid_documents, replace=False)
    return corpus.rows(np.sort(chosen))


def with_memory(model: Model, data: Dataset, fit: FitSettings) -> dict[str, float]:
    """Metrics of a model on the validation documents that its run looks at, which do not vote; {} without such.

    Args:
        model: with document keys.
        data: as it was given.
        fit: settings of the run.
    """
    corpus = looked_at(data.valid, fit)
    if not len(corpus) or not corpus.targets.nnz:
        return {}
    depth = min(100 + longest_filter_row(corpus.filter_pairs), len(data.labels))
    return _metrics(model.predict(corpus.texts, depth, left_out=model.held_out(data)), corpus, data)


def calibrate(model: Model, data: Dataset, fit: FitSettings) -> None:
    """Calibrate a trained model on the validation documents that its run looked at, or say why it is not.

    Args:
        model: what was trained; nothing but its calibration changes.
        data: as it was given.
        fit: settings of the run.
    """
    if fit.evaluations == 0 or model.info["fit"]["stopped"] == "interrupted":
        logger.info("the model is not calibrated; labelspace calibrate does it")
        return
    model.calibrate_if_possible(dataclasses.replace(data, valid=looked_at(data.valid, fit)))
