"""RAE-XMC: answers from labels and training documents (arXiv 2502.10615).

One encoder makes vectors of documents and labels. Training pulls a document to one of its labels and pushes it from
hard negative labels and from the other documents of the batch; the memory then holds both kinds, and its voting is
tuned.
"""

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
from ..model.model import Model
from ..training.batches import Batches
from ..training.config import changed
from ..training.loop import FitReport, Refresh, readable
from ..training.losses import ClosedForm, closed_form
from ..training.losses_fused import linear_loss
from ..training.pools import InBatch
from ..training.required_memory import POOL_A_DOCUMENT, training_bytes
from ..training.settings import RaexmcSettings
from ..types import Batch, Dataset
from .preparation import LabelKeys, fill_in, hard_negatives, mined_anew, optimizers_of, shape_of
from .run import Need, Prepared, Run, prepare, running
from .seconds import memory_seconds
from .validation import Validation

logger = logging.getLogger(__name__)

STATIC_RATE = 1e-3
"""Learning rate of ``static``; at higher rates it soon knows its training documents too well."""


def train(data: Dataset, settings: RaexmcSettings, run: Run) -> Model:
    """Train an encoder, give it a memory of the training documents, and tune that.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run; with 0 epochs the encoder stays as it is.
        run: where it goes, and since when it lasts.

    Raises:
        DataError: no document has a label.
        SettingsError: an unknown objective.
        ResourceError: the run would not fit into memory.
        CheckpointError: a state that does not fit.
    """
    size = len(data.labels)

    def decide(settings: RaexmcSettings, encoder: Encoder, _: int) -> tuple[RaexmcSettings, Need]:
        if encoder.row_sparse:
            settings = changed(settings, lr=settings.fit.lr or STATIC_RATE)
        settings = fill_in(settings, encoder)
        pool = min(size, POOL_A_DOCUMENT * settings.fit.batch_size) + settings.fit.batch_size
        needed = training_bytes(settings, shape_of(encoder), pool, size) if settings.fit.epochs else 0
        needed += 2 * 4 * encoder.dim * len(data.train)
        return settings, Need(needed=needed, remedy="lower --batch-size, --chunk-size or --max-words")

    start = prepare(data, settings, decide)
    settings, encoder = start.settings, start.encoder
    with running(start, run) as loop:
        report = FitReport()
        if settings.fit.epochs:
            contrast_of = _Contrast(start)
            valid = Validation.of(start.data, encoder, contrast_of.label_keys, settings.fit)
            report = loop.fit(
                encoder,
                contrast_of.step,
                contrast_of.plan,
                optimizers_of(encoder, settings.fit),
                evaluate=None if valid is None else valid.metrics,
                refresh=contrast_of.refresh(),
                ending=lambda: memory_seconds(encoder, start.documents, settings, data),
            )
        keys = torch.from_numpy(encoder.encode(start.labels.tokens, precision="float32")).to(encoder.device)
        model = loop.model("raexmc", keys, report)
        if report.metrics:
            logger.info("kept step %d: validation of the labels alone %s", report.best_step, readable(report.metrics))
        return model if run.ending is not None else loop.finish(model, memory=True)


class _Contrast:
    """What a step needs: batches, label vectors, hard negatives."""

    def __init__(self, start: Prepared[RaexmcSettings]):
        settings = start.settings
        self.start, self.encoder, self.labels, self.settings = start, start.encoder, start.labels, settings
        self.negatives = hard_negatives(start.targets, settings.mining)
        self.label_keys = LabelKeys(start.encoder, start.labels.tokens)
        drawn = settings.batches.positives or None
        self.plan = Batches(
            start.targets, start.rows, InBatch(drawn), settings.fit.batch_size, settings.fit.seed, drawn
        )
        self.kept = start.kept_tokens
        self.loss = closed_form("decoupled_softmax")

    def step(self, batch: Batch) -> Tensor:
        """The loss of a batch, with a graph.

        Args:
            batch: as `Batches` gives it; hard negatives widen its pool.
        """
        self.label_keys.forget()
        tokens = self.start.learned.take(batch.rows)
        if self.settings.mining.num_negatives:
            queries = encode_cached(self.encoder, tokens, self.settings.encoding.chunk_size, self.kept)
            found = self.negatives.draw(batch.rows, queries.detach(), np.random.default_rng((*batch.key, 1)))
            batch = self.plan.widened(batch, np.concatenate(found))
            keys = self.labels(batch.pool, self.kept - len(tokens.ids))
        else:
            assert batch.pool is not None
            own = self.labels.tokens.take(batch.pool)
            queries, keys = encode_both(self.encoder, tokens, own, self.settings.encoding.chunk_size, self.kept)
        related = related_pairs(sp.csr_array(self.start.targets[batch.rows]))
        return contrast(
            self.loss,
            queries,
            keys,
            _tensor(batch.positives, queries),
            _tensor(batch.hidden, queries),
            _tensor(related, queries),
            temperature=self.settings.losses.temperature,
            dtype=self.start.low,
        )

    def refresh(self) -> Refresh | None:
        """How hard negatives are found anew; None where there are none."""
        if not self.settings.mining.num_negatives:
            return None
        return mined_anew(self.negatives, self.label_keys, self.settings.mining)


def related_pairs(targets: sp.csr_array) -> npt.NDArray[np.int64]:
    """Pairs of documents that share a label, by the full truth: Y Y^T > 0, each document with itself too.

    Args:
        targets: (B, L) truth of the batch.

    Returns:
        (2, r) int64, both rows of the batch.
    """
    ones = sp.csr_array((np.ones(targets.nnz, dtype=np.int64), targets.indices, targets.indptr), shape=targets.shape)
    shared = sp.coo_array(ones @ ones.T)
    own = np.arange(targets.shape[0])
    flat = np.unique(np.concatenate([shared.row.astype(np.int64) * len(own) + shared.col, own * (len(own) + 1)]))
    return np.vstack(np.divmod(flat, max(1, len(own))))


def contrast(
    loss: ClosedForm,
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    hidden: Tensor | None,
    related: Tensor,
    *,
    temperature: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """RAE-XMC's loss on the columns [labels of the pool | documents of the batch].

    L_i = -log e^s(i,p) / ( e^s(i,p) + sum_n e^s(i,n) + sum_k e^s(i,k) ), n over the labels of the pool that are not
    true for i, k over the documents that share no label with it; with several positives the mean over them. Gradients
    flow into both documents of a pair.

    Args:
        loss: closed form of the decoupled softmax.
        queries: (B, D) document vectors.
        keys: (P, D) label vectors.
        positives: (2, M) int64 pairs (row, column of the pool).
        hidden: (2, H) int64 true pairs that were not drawn.
        related: (2, r) int64 pairs of documents that share a label, each document with itself too.
        temperature: divides the products.
        dtype: of the products; None keeps that of the queries.
    """
    shifted = torch.stack([related[0], related[1] + len(keys)])
    masked = shifted if hidden is None else torch.cat([hidden, shifted], dim=1)
    columns = torch.cat([keys, queries])
    return linear_loss(loss, queries, columns, positives, temperature=temperature, hidden=masked, dtype=dtype)


def _tensor(pairs: npt.NDArray[np.int64] | None, like: Tensor) -> Any:
    return None if pairs is None else torch.from_numpy(pairs).to(like.device)
