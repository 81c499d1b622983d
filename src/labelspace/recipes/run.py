"""The one frame of a training run: prepare, the recipe's steps, finish.

Training sees labels sorted by text, so that the order in which they were given is no matter; `Prepared` sorts them, and
`Running.model` puts them back. Nothing else knows of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from ..base.machine import cache_folder, gigabytes, peak_memory, require_memory
from ..encoders import Encoder
from ..encoders.tokens import Tokens, log_cut
from ..errors import DataError
from ..memory.memory import Memory
from ..model.model import Model
from ..training.batches import usable_rows
from ..training.checkpoint import Checkpoints, State
from ..training.label_heads import LabelEncoder, TwoHeads
from ..training.loop import FitReport, Log, Refresh, StopSignals, fit, stop_signals
from ..types import Batch, Dataset
from .preparation import (
    Settings,
    by_text,
    describe_run,
    give_memory,
    make_encoder,
    open_log,
    save_run,
    with_label_documents,
)
from .validation import MIN_VALID, calibrate

logger = logging.getLogger(__name__)


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
class Need:
    """What a run takes beside the data.

    Args:
        needed: bytes.
        remedy: what to change where they are not there.
    """

    needed: int
    remedy: str


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


class Plan(Protocol):
    """The batches of a run, as `training.batches` makes them."""

    @property
    def per_epoch(self) -> int:
        """Batches of a pass over the documents."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """These batches, from one of them on."""


def prepare(
    data: Dataset, settings: Settings, decide: Callable[[Settings, Encoder, int], tuple[Settings, Need]]
) -> Prepared[Settings]:
    """Sort the labels, make the encoder, decide every setting, see that memory is there, cut all texts.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run.
        decide: from settings, encoder and the number of rows that can be learned from to settings without anything
            left open, and what the run takes.

    Raises:
        DataError: no document has a label.
        ResourceError: the run would not fit into memory.
    """
    given, order = data, by_text(data.labels)
    data = data.renumbered(order)
    rows = usable_rows(data.train.targets, data.fit_rows)
    if not len(rows):
        raise DataError(f"{data.name}: no training document has a label; there is nothing to learn from")
    torch.manual_seed(settings.fit.seed)
    encoder = make_encoder(data, settings.encoding)
    settings, need = decide(settings, encoder, len(rows))
    used = gigabytes(peak_memory() or 0)
    logger.info("this run needs about %s beside the data (%s used so far)", gigabytes(need.needed), used)
    require_memory(need.needed, "this run", need.remedy, encoder.device)
    if len(data.valid) < MIN_VALID:
        logger.warning(
            "only %d validation documents: nothing is chosen by them, the last weights count", len(data.valid)
        )
    cache = cache_folder()
    documents = encoder.tokenize(data.train.texts, cache)
    labels = LabelEncoder(encoder, encoder.tokenize(data.labels.texts, cache), settings.encoding.chunk_size)
    truncated = {
        "documents": log_cut("documents", documents, encoder.limit),
        "labels": log_cut("labels", labels.tokens, encoder.limit),
    }
    targets, learned = data.train.targets, documents
    if settings.batches.label_documents:
        targets, rows = with_label_documents(targets, rows)
        learned = documents.followed_by(labels.tokens)
    return Prepared(
        given=given, data=data, order=order, settings=settings, encoder=encoder, documents=documents, labels=labels,
        targets=targets, rows=rows, learned=learned, truncated=truncated, needed=need.needed,
    )  # fmt: skip


@contextlib.contextmanager
def running(start: Prepared[Settings], run: Run) -> Iterator[Running[Settings]]:
    """The log of a run and its signals, from the first step to the saved model.

    Args:
        start: what the recipe starts from.
        run: where it goes.
    """
    log = open_log(run.checkpoints, run.state, start.settings)
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
    """A run between its first step and its end; made by `running`.

    Args:
        start: what the recipe starts from.
        run: where it goes.
        log: of the run.
        signals: that end it.
    """

    def __init__(self, start: Prepared[Settings], run: Run, log: Log, signals: StopSignals):
        self.start: Prepared[Settings] = start
        self.run, self.log, self.signals = run, log, signals

    def fit(
        self,
        module: nn.Module,
        step: Callable[[Batch], Tensor],
        plan: Plan,
        optimizers: list[torch.optim.Optimizer],
        *,
        evaluate: Callable[[], dict[str, float]] | None,
        refresh: Refresh | None,
        ending: Callable[[], float] | None,
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
        )

    def model(self, recipe: str, keys: Tensor, report: FitReport, heads: TwoHeads | None = None) -> Model:
        """The trained model, its labels in the order in which they were given; no documents in its memory yet.

        Args:
            recipe: its name.
            keys: (L, D) of the sorted labels.
            report: of the loop.
            heads: behind the encoder.
        """
        start = self.start
        start.encoder.precision = "float32"  # training is over
        back = torch.from_numpy(np.argsort(start.order)).to(keys.device)
        info = describe_run(recipe, start.settings, start.given, start.truncated, report)
        return Model(start.encoder, Memory.of_labels(keys[back]), start.given.labels, info, heads=heads)

    def finish(self, model: Model, memory: bool, documents: Tokens | None = None) -> Model:
        """Give a model its memory, calibrate and save it.

        Args:
            model: what was trained.
            memory: whether documents become keys.
            documents: texts of all training documents as its first encoder takes them; None for those it began with.
        """
        start, run = self.start, self.run
        if memory:
            texts = start.documents if documents is None else documents
            give_memory(model, start.given, texts, start.settings, self.log, run.started)
        calibrate(model, start.given, start.settings.fit)
        self.log.close()
        save_run(model, run.out, run.checkpoints, start.settings)
        return model
