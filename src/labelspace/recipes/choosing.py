"""What validation documents choose of UniDEC's heads: how long rows stay, and the share of the dual encoder."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..evaluation.evaluating import evaluate
from ..training import distributed
from ..training.label_heads import RANKINGS, TwoHeads, best_search_weight
from .validation import Validation

logger = logging.getLogger(__name__)

ROW_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Powers of the length of a classifier's rows that are tried."""


@dataclass(frozen=True)
class Choice:
    """What is chosen of the heads by nDCG@5.

    Args:
        heads: behind the encoder in training.
        weight: whether their ``search_weight`` is chosen.
        power: whether their ``row_power`` is.
    """

    heads: TwoHeads
    weight: bool
    power: bool

    def make(self, valid: Validation) -> tuple[Tensor, Tensor]:
        """Choose by the present weights; return queries (n, d_D + d_C) and keys (L, d_D + d_C) as they are from now on.

        Label texts are encoded once: rows are scaled in place, and the share is given to the queries instead.
        """
        heads, vectors = self.heads, valid.vectors()
        if self.weight:
            heads.search_weight = 0.5
        if self.power:
            heads.row_power = 1.0
        if self.weight or self.power:
            valid.label_keys.forget()
        keys, queries = valid.label_keys.now(), heads.queries(vectors)
        if self.power:
            self._scale_rows(valid, queries, keys)
        if self.weight:
            corpus, width = valid.corpus, heads.widths[0]
            weight = best_search_weight(queries, keys, width, corpus.targets, corpus.filter_pairs)
            heads.search_weight = distributed.from_first(weight)
            for ranking in RANKINGS[1:]:
                queries[:, heads.columns(ranking)] *= heads.weight(ranking)
            valid.label_keys.forget()  # they are of equal shares
        return queries, keys

    def _scale_rows(self, valid: Validation, queries: Tensor, keys: Tensor) -> None:
        """Choose the power of the lengths of rows, and bring the keys to it."""
        columns, qualities = self.heads.columns("classifier"), []
        rows, corpus = keys[:, columns], valid.corpus
        lengths = torch.linalg.vector_norm(rows.float(), dim=1, keepdim=True) / self.heads.weight("classifier")
        lengths.clamp_(min=1e-12)
        for power in ROW_POWERS:
            best = valid.best(queries[:, columns], (rows * lengths ** (power - 1)).to(rows.dtype), 5)
            metrics = evaluate(best, corpus.targets, ks=(5,), filter_pairs=corpus.filter_pairs)
            qualities.append(metrics["nDCG@5"])
        self.heads.row_power = distributed.from_first(ROW_POWERS[int(np.argmax(qualities))])
        rows.mul_(lengths ** (self.heads.row_power - 1))

    def log(self) -> None:
        """Say what was chosen."""
        if self.weight:
            share = 100 * self.heads.search_weight
            logger.info("the dual encoder has %.0f%% of the score of both heads, by validation nDCG@5", share)
        if self.power:
            logger.info("rows keep their length to the power %g, by validation nDCG@5", self.heads.row_power)
