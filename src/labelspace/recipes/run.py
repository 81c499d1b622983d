"""The one frame of a training run: prepare, the recipe's steps, finish.

A recipe is a module with ``train(data, settings, run) -> Model``. It learns from ``data`` without its ``valid_rows``,
and does not look at the test part. ``run`` says where the run goes, and since when it lasts. Every recipe raises
DataError where no document has a label, SettingsError for settings that do not go together, ResourceError where the run
would not fit into memory, and CheckpointError for a state that does not fit.

Training sees labels sorted by text, so that the order in which they were given is no matter; `prepare` sorts them, and
`Running.model` puts them back. Nothing else knows of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from ..base.machine import cache_folder, gigabytes, peak_memory, require_memory
from ..data.loading import fingerprint
from ..encoders import Encoder
from ..encoders.gradcache import encode_both, encode_cached
from ..encoders.tokens import Tokens, log_cut
from ..errors import DataError, SettingsError
from ..memory.memory import Memory
from ..model.model import Model
from ..training import distributed
from ..training.batches import Batches, PickedBatches, of_labels, usable_rows
from ..training.checkpoint import Checkpoints, State
from ..training.config import changed, flat, to_dict, to_toml
from ..training.label_heads import LabelEncoder, TwoHeads
from ..training.loop import FitReport, Log, Refresh, StopSignals, fit, stop_signals
from ..training.negatives import HardNegatives
from ..training.tracking import Tracker
from ..types import Batch, Dataset
from .preparation import Settings, give_memory, make_encoder
from .seconds import documents_precision
from .validation import MIN_VALID, calibrate, own_texts

logger = logging.getLogger(__name__)

READING = (
    *("fields", "label_fields", "text_column", "label_column", "separator", "label_vocabulary", "language"),
    "unknown_labels",
    *("valid_fraction", "valid_max"),
)
"""How data files are read, as far as the settings file repeats it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run goes, where it comes from, and when it began.

    Args:
        started: when the command began, by `time.monotonic`; a time limit counts from there.
        out: folder to write the model to; None writes nothing.
        checkpoints: of the run, begun and locked; None keeps none.
        state: of an unfinished run, to go on with.
        ending: given, the model stays without documents, uncalibrated and unsaved, and a time limit leaves room for so
            many seconds of what the caller does with it.
    """

    started: float
    out: Path | None = None
    checkpoints: Checkpoints | None = None
    state: State | None = None
    ending: Callable[[], float] | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared(Generic[Settings]):
    """What a recipe starts from.

    Args:
        given: the data set as it was given.
        data: the same, its labels sorted by text.
        order: (L,) the given number of each sorted label.
        settings: of the run, every value decided.
        encoder: what is trained, on its device.
        documents: texts of all training documents.
        labels: makes vectors of the sorted labels.
        targets: (N, L) truth of what is learned from, or (N + L, L) with a document for each label.
        rows: (n,) what is learned from.
        learned: texts of all rows of `targets`.
        truncated: what was cut of the texts, for the record.
        needed: bytes that the run was foreseen to take.
    """

    given: Dataset
    data: Dataset
    order: npt.NDArray[np.int64]
    settings: Settings
    encoder: Encoder
    documents: Tokens
    labels: LabelEncoder
    targets: sp.csr_array
    rows: npt.NDArray[np.int64]
    learned: Tokens
    truncated: dict[str, Any]
    needed: int

    @property
    def own(self) -> slice:
        """The numbers of the sorted labels that this process has; with one process all of them."""
        return distributed.span(len(self.order))

    def own_labels(self) -> Tokens:
        """Texts of these labels."""
        return own_texts(self.labels.tokens)

    def tokens_of(self, batch: Batch) -> Tokens:
        """Texts of the documents of a batch that this process encodes."""
        return self.learned.take(distributed.share(batch.rows))

    @property
    def kept_tokens(self) -> int:
        """Tokens whose activations there is room for, see ``activations_gb``; 0 for an encoder that keeps none."""
        each = self.encoder.activation_bytes
        return int(1e9 * self.settings.encoding.activations_gb) // each if each else 0

    @property
    def low(self) -> torch.dtype | None:
        """The type of products in the loss where it is not float32."""
        return torch.bfloat16 if self.settings.encoding.precision == "bf16" else None

    @property
    def enough_valid(self) -> bool:
        """Whether there are validation documents enough to choose by."""
        return len(self.data.valid) >= MIN_VALID

    def encode(self, batch: Batch, plan: Batches, negatives: HardNegatives | None) -> Encoded:
        """Vectors of a batch's documents and of its pool, which hard negatives widen if there are any."""
        tokens, chunk_size, count = self.tokens_of(batch), self.settings.encoding.chunk_size, len(batch.rows)
        if negatives is None:
            batch = self.with_own_labels(batch)
            labels = self.labels.tokens if batch.pool is None else self.labels.tokens.take(batch.pool)
            own, keys = encode_both(self.encoder, tokens, labels, chunk_size, self.kept_tokens)
            return Encoded(batch, distributed.gather(own, count), keys, own)
        own = encode_cached(self.encoder, tokens, chunk_size, self.kept_tokens)
        queries = distributed.gather(own, count)
        drawn = negatives.draw(batch.rows, queries.detach(), np.random.default_rng((*batch.key, 1)))
        batch = self.with_own_labels(plan.widened(batch, np.concatenate(drawn)))
        return Encoded(batch, queries, self.labels(batch.pool, self.kept_tokens - len(tokens.ids)), own)

    def with_own_labels(self, batch: Batch) -> Batch:
        """The batch with the labels of its pool that this process has."""
        return batch if distributed.size() == 1 else of_labels(batch, self.own)


@dataclass(frozen=True)
class Encoded:
    """A batch and its vectors, with a graph.

    Args:
        batch: with the labels of its pool that this process has.
        queries: (B, D) vectors of all its documents.
        keys: (P, D) of the labels of the pool.
        own: (b, D) of the documents that this process encoded; with one process the queries.
    """

    batch: Batch
    queries: Tensor
    keys: Tensor
    own: Tensor


def prepare(
    data: Dataset, settings: Settings, decide: Callable[[Settings, Encoder, Dataset], tuple[Settings, int, str]]
) -> Prepared[Settings]:
    """Sort the labels, make the encoder, decide every setting, see that memory is there, cut all texts.

    ``decide`` returns the settings with nothing left open, the bytes that the run takes beside the data, and what to
    change where they are not there.
    """
    given, texts, ids = data, data.labels.texts, data.labels.ids
    order = np.array(sorted(range(len(texts)), key=lambda label: (texts[label], ids[label])), dtype=np.int64)
    data = data.renumbered(order)
    rows = usable_rows(data.train.targets, data.fit_rows)
    if not len(rows):
        raise DataError(f"{data.name}: no training document has a label; there is nothing to learn from")
    if distributed.size() > len(texts):
        raise SettingsError(f"{distributed.size()} processes cannot share {len(texts)} labels; start fewer")
    torch.manual_seed(settings.fit.seed)
    encoder = make_encoder(data, settings.encoding)
    settings, needed, remedy = decide(settings, encoder, data)
    measured = {name: value for name, value in flat(settings).items() if name in ("precision", "key_precision")}
    settings = changed(settings, **distributed.from_first(measured))  # each may have found another to pay
    encoder.precision = "bf16" if settings.encoding.precision == "bf16" else "float32"
    used = gigabytes(peak_memory() or 0)
    logger.info("this run needs about %s beside the data (%s used so far)", gigabytes(needed), used)
    require_memory(needed, "this run", remedy, encoder.device)
    if len(data.valid) < MIN_VALID:
        logger.warning(
            "only %d validation documents: nothing is chosen by them, the last weights count", len(data.valid)
        )
    cache = cache_folder()
    with distributed.first_alone():
        documents = encoder.tokenize(data.train.texts, cache)
        labels = LabelEncoder(encoder, encoder.tokenize(data.labels.texts, cache), settings.encoding.chunk_size)
    truncated = {
        "documents": log_cut("documents", documents, encoder.limit),
        "labels": log_cut("labels", labels.tokens, encoder.limit),
    }
    targets, learned = data.train.targets, documents
    if settings.batches.label_documents:  # one more document for each label, after the others (Renee)
        size = len(data.labels)
        rows = np.concatenate([rows, len(documents) + np.arange(size)])
        targets = sp.csr_array(sp.vstack([targets, sp.eye_array(size, dtype=np.float32)], format="csr"))
        learned = documents.followed_by(labels.tokens)
    return Prepared(
        given=given, data=data, order=order, settings=settings, encoder=encoder, documents=documents, labels=labels,
        targets=targets, rows=rows, learned=learned, truncated=truncated, needed=needed,
    )  # fmt: skip


@contextlib.contextmanager
def running(start: Prepared[Settings], run: Run) -> Iterator[Running[Settings]]:
    """The log of a run, its tracker and its signals, from the first step to the saved model."""
    chosen, tracker, path, logged = start.settings.fit, None, None, 0
    if chosen.track is not None and distributed.first():
        tracker = Tracker(chosen.track, chosen.track_project, flat(start.settings))
    if run.checkpoints is not None and distributed.first():
        path = run.checkpoints.log
    if run.state is not None:
        logged = int(run.state.record["log_bytes"])
    log = Log(path, logged, tracker)
    try:
        with stop_signals() as signals:
            if run.state is None:
                log.write(
                    event="start",
                    data=start.data.name,
                    documents=len(start.rows),
                    labels=len(start.data.labels),
                    truncated=start.truncated,
                    estimated_gb=start.needed / 1e9,
                )
            yield Running(start, run, log, signals)
    finally:
        log.close()


class Running(Generic[Settings]):
    """A run between its first step and its end; made by `running`."""

    def __init__(self, start: Prepared[Settings], run: Run, log: Log, signals: StopSignals):
        self.start: Prepared[Settings] = start
        self.run, self.log, self.signals = run, log, signals
        self.encoded: npt.NDArray[np.float32] | None = None
        """Vectors of all training documents, where several processes made them."""

    def fit(
        self,
        module: nn.Module,
        step: Callable[[Batch], Tensor],
        plan: Batches | PickedBatches,
        optimizers: list[torch.optim.Optimizer],
        *,
        evaluate: Callable[[], dict[str, float]] | None,
        refresh: Refresh | None,
        ending: Callable[[], float],
        own: Sequence[nn.Parameter] = (),
    ) -> FitReport:
        """Train to the end, by the loop that all recipes have.

        Args:
            module: what is trained.
            step: from a batch to its loss, with a graph.
            plan: the batches.
            optimizers: of the module.
            evaluate: metrics on validation documents; None where there are none.
            refresh: what is made anew between steps.
            ending: seconds of what comes after the last step.
            own: parameters that have a row for each label of this process alone.
        """
        return fit(
            step,
            plan.epoch,
            plan.per_epoch,
            module,
            optimizers,
            self.start.settings.fit,
            evaluate=evaluate,
            choose=self.start.enough_valid,
            log=self.log,
            started=self.run.started,
            signals=self.signals,
            refresh=refresh,
            checkpoints=self.run.checkpoints,
            state=self.run.state,
            ending=self.run.ending or ending,
            own=own,
        )

    def model(
        self,
        recipe: str,
        report: FitReport,
        memory: bool,
        keys: Tensor | None = None,
        heads: TwoHeads | None = None,
    ) -> Model:
        """The trained model, its labels in the order in which they were given; no documents in its memory yet.

        Of several processes only the first goes on from here.

        Args:
            recipe: that trained it.
            report: of its training.
            memory: whether documents become keys by its encoder.
            keys: (L, D) of the sorted labels, of several processes its own; None for their encoded texts.
            heads: behind the encoder.

        Raises:
            distributed.Left: in all processes but the first.
        """
        start, encoder, given = self.start, self.start.encoder, self.start.given
        encoder.precision = "float32"  # training is over
        if keys is None:
            keys = torch.from_numpy(encoder.encode(start.own_labels(), precision="float32")).to(encoder.device)
        if distributed.size() > 1:
            keys = distributed.gather_to_first(keys, len(start.order)).to(keys.device)
            if memory and report.stopped != "interrupted":
                precision = documents_precision(encoder, start.settings.voting)
                own = torch.from_numpy(encoder.encode(own_texts(start.documents), precision=precision))
                self.encoded = distributed.gather_to_first(own, len(start.documents)).numpy()
            is_first = distributed.first()
            distributed.leave()
            if not is_first:
                raise distributed.Left
        back = torch.from_numpy(np.argsort(start.order)).to(keys.device)
        info = {
            "recipe": recipe,
            "config": to_dict(start.settings),
            "data": {
                "name": given.name,
                "fingerprint": fingerprint(given),
                "documents": len(given.train),
                "labels": len(given.labels),
                "truncated": start.truncated,
                "options": given.options,
            },
            "metrics": {"validation": report.metrics},
            "fit": {
                "steps": report.steps,
                "best_step": report.best_step,
                "stopped": report.stopped,
                "seconds": round(report.seconds, 1),
                "curve": report.curve,
            },
        }
        return Model(encoder, Memory.of_labels(keys[back]), given.labels, info, heads=heads)

    def finish(self, model: Model, memory: bool, documents: Tokens | None = None) -> Model:
        """Give a model its memory if documents become keys, calibrate it, and save it with its settings and its log.

        ``documents`` are texts of all training documents as its first encoder takes them; None for those of `start`.
        """
        start, run = self.start, self.run
        if memory:
            texts = start.documents if documents is None else documents
            give_memory(model, start.given, texts, start.settings, self.log, run.started, self.encoded)
        calibrate(model, start.given, start.settings.fit)
        self.log.close()
        if run.out is not None and run.checkpoints is not None:
            options = model.info["data"]["options"].items()
            reading = {name: value for name, value in options if name in READING and value not in (None, "[]")}
            records = {
                "settings.toml": to_toml(start.settings, model.info["recipe"], reading),
                "log.jsonl": run.checkpoints.log.read_text(encoding="utf-8"),
            }
            model.save(run.out, records)
        return model
