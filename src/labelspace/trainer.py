"""The loop: step, clip, update, log, evaluate, keep the best, stop."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .config import FitSettings
from .errors import LabelspaceError
from .machine import peak_memory
from .optim import clip_gradients, make_optimizers
from .types import Batch

logger = logging.getLogger(__name__)

SELECT_BY = "nDCG@5"
LOG_SECONDS = 2.0
SAVING_SECONDS = 10.0
"""Time kept free for saving when a run must end by the clock; evaluation time is added to it."""
EVALUATION_SHARE = 0.15
"""When a run must end by the clock, evaluations after the first take about this share of it, one at least."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or a termination signal)."""


@dataclass
class FitReport:
    """What happened in a run.

    Args:
        steps: optimiser steps taken.
        seconds: of the loop.
        stopped: why it ended.
        best_step: the step whose weights were kept.
        metrics: validation metrics of the kept weights, empty without validation.
        curve: every evaluation, the untrained one first.
    """

    steps: int = 0
    seconds: float = 0.0
    stopped: Literal["finished", "early", "time", "interrupted"] = "finished"
    best_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


class Log:
    """A file of JSON lines, flushed line by line.

    Args:
        path: the file; None writes nothing.
    """

    def __init__(self, path: Path | None):
        self._file = None if path is None else path.open("w", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one record.

        Args:
            values: its entries; numbers are rounded to six digits.
        """
        if self._file is not None:
            short = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
            self._file.write(json.dumps(short) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Schedule:
    """Progress of a run, by steps and by the clock, and the learning rate that follows from it.

    Args:
        settings: epochs, rate, warm-up and time limit.
        total_steps: steps of the whole run.
        started: when the command began, by `time.monotonic`.
    """

    def __init__(self, settings: FitSettings, total_steps: int, started: float):
        self.warmup, self.total_steps = settings.warmup, max(1, total_steps)
        self.begun = time.monotonic()
        self.deadline = None if settings.max_minutes is None else started + 60 * settings.max_minutes
        self.reserve = SAVING_SECONDS
        self.step_seconds = self.evaluation_seconds = 0.0
        self.last_look = True

    def progress(self, step: int) -> float:
        """Share of the run that is over, 0 to 1, the further one of steps and time; 1 when no step fits any more.

        Args:
            step: steps taken.
        """
        share = step / self.total_steps
        if self.deadline is not None:
            if time.monotonic() + self.step_seconds > self.deadline - self.reserve:
                return 1.0
            span = max(1e-9, self.deadline - self.reserve - self.begun)
            share = max(share, (time.monotonic() - self.begun) / span)
        return min(1.0, share)

    def plan_end(self, evaluation_seconds: float) -> None:
        """Keep time free for the end: the keys in float32, saving, and a last evaluation unless time is short.

        Args:
            evaluation_seconds: what an evaluation takes.
        """
        first, self.evaluation_seconds = self.evaluation_seconds == 0, evaluation_seconds
        if first and self.deadline is not None:
            self.last_look = 10 * evaluation_seconds < self.deadline - time.monotonic()
        self.reserve = SAVING_SECONDS + (2.5 if self.last_look else 1.5) * evaluation_seconds

    def affordable(self, evaluations: int) -> int:
        """How many evaluations to make: those asked for, or fewer when the clock would be eaten by them.

        Args:
            evaluations: how many were asked for.
        """
        if self.deadline is None or self.evaluation_seconds <= 0:
            return evaluations
        left = self.deadline - self.reserve - time.monotonic()
        return max(1, min(evaluations, int(EVALUATION_SHARE * left / self.evaluation_seconds)))

    def factor(self, progress: float) -> float:
        """Factor of the learning rate: a linear rise during the warm-up, a linear fall to 0 after it.

        Args:
            progress: share of the run that is over.
        """
        if progress < self.warmup:
            return min(1.0, max(progress, 1 / self.total_steps) / self.warmup)
        return (1 - progress) / (1 - self.warmup)


def fit(
    step: Callable[[Batch], Tensor],
    epoch_batches: Callable[[int], Iterable[Batch]],
    steps_per_epoch: int,
    module: nn.Module,
    settings: FitSettings,
    *,
    lr: float,
    weight_decay: float,
    row_sparse: bool,
    evaluate: Callable[[], dict[str, float]] | None,
    choose: bool = True,
    log: Log,
    started: float,
    signals: StopSignals,
) -> FitReport:
    """Train a module and leave it with the weights of the best validation nDCG@5, or the last ones.

    Ctrl-C or a termination signal ends the loop at once; the best weights are kept all the same.

    Args:
        step: a batch -> its loss, with a graph.
        epoch_batches: number of an epoch -> its batches.
        steps_per_epoch: how many those are.
        module: what is trained.
        settings: of the run.
        lr: highest learning rate.
        weight_decay: of matrices.
        row_sparse: the module's gradients are sparse in rows.
        evaluate: validation metrics of the present weights; None keeps the last weights.
        choose: keep the weights of the best evaluation, and stop when none is better for long; otherwise evaluations
            are only reported and the last weights are kept.
        log: where records go.
        started: when the command began, by `time.monotonic`.
        signals: stop signals; held when the loop is over.

    Raises:
        LabelspaceError: the loss is no longer a finite number.
    """
    optimizers = make_optimizers(module, row_sparse, lr, weight_decay)
    total = settings.epochs * steps_per_epoch
    schedule = Schedule(settings, total, started)
    report, best = FitReport(), _Best(module)
    parameters = list(module.parameters())
    bad_evaluations, evaluated_at, progress = 0, -1, 0.0

    def look() -> None:
        nonlocal evaluated_at
        if evaluate is None or evaluated_at == report.steps:
            return
        begun = time.monotonic()
        metrics = evaluate()
        seconds = time.monotonic() - begun
        with signals.deferred():
            evaluated_at = report.steps
            record(metrics, seconds)

    def record(metrics: dict[str, float], seconds: float) -> None:
        nonlocal bad_evaluations
        schedule.plan_end(seconds)
        report.curve.append({"step": report.steps, "seconds": time.monotonic() - started, **metrics})
        log.write(event="evaluation", **report.curve[-1])
        logger.info("step %d of %d: validation %s", report.steps, total, readable(metrics))
        if not choose:
            report.metrics = metrics
        elif best.offer(metrics.get(SELECT_BY, 0.0), report.steps):
            report.metrics, bad_evaluations = metrics, 0
        elif progress >= settings.warmup:
            bad_evaluations += 1

    with tqdm(total=total, desc="training", unit="step", disable=None) as bar:
        try:
            look()
            due = _evaluation_points(schedule.affordable(settings.evaluations))
            next_due = next(due)
            last_log, texts, loss_sum, loss_count = time.monotonic(), 0, 0.0, 0
            schedule.begun = time.monotonic()
            for epoch in range(settings.epochs):
                for batch in epoch_batches(epoch):
                    progress = schedule.progress(report.steps)
                    if progress >= 1:
                        report.stopped = "time"
                        raise _Done
                    rate, begun = lr * schedule.factor(progress), time.monotonic()
                    module.train()
                    loss = step(batch)
                    loss.backward()
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise LabelspaceError(
                            f"the loss is {value} at step {report.steps + 1}; lower --lr (now {lr:g}), "
                            "raise --temperature, or train with --precision float32"
                        )
                    norm = clip_gradients(parameters, settings.max_grad_norm)
                    with signals.deferred():
                        for optimizer in optimizers:
                            for group in optimizer.param_groups:
                                group["lr"] = rate
                            optimizer.step()
                            optimizer.zero_grad(set_to_none=True)
                        report.steps += 1
                    bar.update()
                    texts, loss_sum, loss_count = texts + len(batch.rows), loss_sum + value, loss_count + 1
                    now = time.monotonic()
                    schedule.step_seconds = now - begun
                    if now - last_log >= LOG_SECONDS or report.steps == total:
                        bar.set_postfix(loss=f"{loss_sum / loss_count:.3f}")
                        log.write(
                            event="step", step=report.steps, epoch=epoch, loss=loss_sum / loss_count, lr=rate,
                            grad_norm=norm, texts_per_second=texts / max(now - last_log, 1e-9),
                            peak_memory_gb=(peak_memory() or 0) / 1e9, seconds=now - started,
                        )  # fmt: skip
                        last_log, texts, loss_sum, loss_count = now, 0, 0.0, 0
                    if schedule.progress(report.steps) >= next_due and report.steps < total:
                        look()
                        last_log, texts = time.monotonic(), 0
                        while next_due <= schedule.progress(report.steps):
                            next_due = next(due)
                        if settings.patience and bad_evaluations >= settings.patience:
                            report.stopped = "early"
                            raise _Done
            look()
        except _Done:
            if report.steps == 0:
                logger.warning("the time limit left no time for a single step; the model is untrained")
            elif report.stopped == "time" and schedule.last_look:
                with contextlib.suppress(Interrupted):
                    look()
        except KeyboardInterrupt:
            signals.hold()
            report.stopped = "interrupted"
            logger.warning("interrupted at step %d of %d; saving the best weights so far", report.steps, total)
        signals.hold()
    report.seconds = time.monotonic() - schedule.begun
    # weights trained since a lone look at the untrained ones are the better guess
    if evaluate is None or not choose or (evaluated_at == 0 and report.steps > 0):
        report.best_step = report.steps
        if evaluated_at != report.steps:
            report.metrics = {}
    else:
        best.restore()
        report.best_step = best.step
    log.write(event="end", step=report.steps, stopped=report.stopped, best_step=report.best_step)
    return report


def readable(metrics: dict[str, float]) -> str:
    """The main figures of an evaluation in one line.

    Args:
        metrics: percent by name.
    """
    wanted = ("P@1", "P@5", "nDCG@5", "PSP@5", "R@100")
    return ", ".join(f"{name} {metrics[name]:.2f}" for name in wanted if name in metrics)


class _Done(Exception):
    """The loop is over before its last step."""


class _Best:
    """A copy of the weights of the best evaluation."""

    def __init__(self, module: nn.Module):
        self.module, self.step, self.score = module, 0, -math.inf
        self.weights: dict[str, Tensor] = {}

    def offer(self, score: float, step: int) -> bool:
        """Keep the present weights if their score is the highest so far."""
        if score <= self.score:
            return False
        self.score, self.step = score, step
        if not self.weights:
            self.weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        else:
            for name, value in self.module.state_dict().items():
                self.weights[name].copy_(value)
        return True

    def restore(self) -> None:
        """Put the kept weights back."""
        if self.weights:
            self.module.load_state_dict(self.weights)


def _evaluation_points(count: int) -> Iterator[float]:
    """Progress at which to evaluate, the end excluded, then infinity for ever."""
    for i in range(1, count):
        yield i / count
    while True:
        yield math.inf


class StopSignals:
    """Raises `Interrupted` once when a stop signal comes, but not inside `deferred` and not after `hold`."""

    def __init__(self) -> None:
        self.held, self.pending = False, False

    def handle(self, number: int, frame: Any) -> None:
        """What a signal calls.

        Args:
            number: of the signal.
            frame: where it came.
        """
        if self.held:
            self.pending = True
        else:
            self.held = True
            raise Interrupted

    def hold(self) -> None:
        """Let everything from here on end; later signals are only noted."""
        self.held = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the body end before a stop signal takes effect."""
        before, self.held = self.held, True
        try:
            yield
        finally:
            self.held = before
        if self.pending and not before:
            self.pending, self.held = False, True
            raise Interrupted


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Turn Ctrl-C and termination into `Interrupted` while the body runs, in the main thread only."""
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    old = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def device_of(name: str) -> torch.device:
    """A device by name.

    Args:
        name: ``auto``, or a name that torch knows.

    Raises:
        LabelspaceError: a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LabelspaceError(f"the device {name!r} cannot be used here; choose auto, cpu, cuda or mps") from error
    return device
