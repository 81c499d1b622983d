"""What validation documents say of a run: metrics of the present weights and of the model, and its calibration.

Nothing here changes what is measured; `choosing` does.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..base.machine import cache_folder
from ..encoders import Encoder
from ..encoders.tokens import Tokens
from ..evaluation.evaluating import evaluate, longest_filter_row
from ..memory.memory import Memory
from ..memory.voting import Query
from ..model.model import Model
from ..training import distributed
from ..training.label_heads import RANKINGS, TwoHeads
from ..training.settings import FitSettings
from ..types import Corpus, Dataset, Predictions

logger = logging.getLogger(__name__)

MIN_VALID = 20
"""Fewer validation documents than this are measured on, but nothing is chosen by them."""


class LabelKeys:
    """The present keys of all labels, made once between two steps; of several processes each makes its own labels'.

    Args:
        make: makes them, (L, D) without a graph.
    """

    def __init__(self, make: Callable[[], Tensor]):
        self._make = make
        self._keys: Tensor | None = None

    def now(self) -> Tensor:
        """The keys (L, D) by the present weights."""
        if self._keys is None:
            self._keys = self._make()
        return self._keys

    def forget(self) -> None:
        """The weights are about to change."""
        self._keys = None


class Validation:
    """The validation documents that a run looks at.

    Args:
        data: its ``valid`` part is measured on, with propensities from all of ``train``.
        encoder: in training.
        label_keys: of all labels.
        fit: settings of the run.
    """

    def __init__(self, data: Dataset, encoder: Encoder, label_keys: LabelKeys, fit: FitSettings):
        self.data, self.encoder, self.label_keys = data, encoder, label_keys
        self.corpus = looked_at(data.valid, fit)
        with distributed.first_alone():
            self.documents = encoder.tokenize(self.corpus.texts, cache_folder())
        self.filtered = longest_filter_row(self.corpus.filter_pairs)

    @classmethod
    def of(cls, data: Dataset, encoder: Encoder, label_keys: LabelKeys, fit: FitSettings) -> Validation | None:
        """The documents, or None where there are none with a label or the run looks at none."""
        if not data.valid.targets.nnz or fit.evaluations == 0:
            return None
        return cls(data, encoder, label_keys, fit)

    def vectors(self) -> Tensor:
        """(n, D) of the documents by the present weights, on the encoder's device."""
        own = own_texts(self.documents)
        vectors = torch.from_numpy(self.encoder.encode(own)).to(self.encoder.device)
        return distributed.gather_parts(vectors, len(self.documents))

    def best(self, queries: Tensor, keys: Tensor, k: int) -> Predictions:
        """The k best labels by products of queries (n, D) and keys (L, D), and as many more as may be filtered."""
        depth, size = k + self.filtered, len(self.data.labels)
        labels, scores = Memory.of_labels(keys).predict(Query(queries), min(depth, len(keys)))
        scores, labels = distributed.best(scores, labels + distributed.span(size).start, min(depth, size))
        return Predictions(labels, scores)

    def metrics(self) -> dict[str, float]:
        """Metrics of the present weights."""
        return _metrics(self.best(self.vectors(), self.label_keys.now(), 100), self.corpus, self.data)

    def of_rankings(self, queries: Tensor, keys: Tensor, heads: TwoHeads) -> dict[str, float]:
        """Metrics of both heads together, and of each alone under names like ``classifier P@1``.

        Queries are (n, d_D + d_C), keys (L, d_D + d_C).
        """
        metrics: dict[str, float] = {}
        for ranking in RANKINGS:
            columns = heads.columns(ranking)
            prefix = "" if ranking == "combined" else f"{ranking} "
            own = _metrics(self.best(queries[:, columns], keys[:, columns], 100), self.corpus, self.data)
            metrics.update({prefix + name: value for name, value in own.items()})
        return metrics


def _metrics(predictions: Predictions, corpus: Corpus, data: Dataset) -> dict[str, float]:
    """Metrics of predictions for validation documents, propensities from all training documents."""
    return evaluate(predictions, corpus.targets, data.train.targets, filter_pairs=corpus.filter_pairs, name=data.name)


def own_texts(tokens: Tokens) -> Tokens:
    """This process' part of texts; with one process all of them."""
    return tokens if distributed.size() == 1 else tokens.take(distributed.share(np.arange(len(tokens))))


def looked_at(corpus: Corpus, fit: FitSettings) -> Corpus:
    """Those of all validation documents that a run looks at."""
    if len(corpus) <= fit.valid_documents:
        return corpus
    chosen = np.random.default_rng(fit.seed).choice(len(corpus), fit.valid_documents, replace=False)
    return corpus.rows(np.sort(chosen))


def with_memory(model: Model, data: Dataset, fit: FitSettings) -> dict[str, float]:
    """Metrics of a model on the validation documents that its run looks at, which do not vote; {} without such."""
    corpus = looked_at(data.valid, fit)
    if not corpus.targets.nnz:
        return {}
    depth = min(100 + longest_filter_row(corpus.filter_pairs), len(data.labels))
    return _metrics(model.predict(corpus.texts, depth, left_out=model.held_out(data)), corpus, data)


def calibrate(model: Model, data: Dataset, fit: FitSettings) -> None:
    """Calibrate a trained model on the validation documents that its run looked at, or say why it is not."""
    if fit.evaluations == 0 or model.info["fit"]["stopped"] == "interrupted":
        logger.info("the model is not calibrated; labelspace calibrate does it")
        return
    model.calibrate_if_possible(dataclasses.replace(data, valid=looked_at(data.valid, fit)))
