"""The loop: step, clip, update, log, evaluate, keep the best, stop; and its state, so that it can go on later."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..base.files import writing
from ..base.machine import peak_memory
from ..errors import CheckpointError, LabelspaceError
from ..types import Batch
from . import distributed
from .checkpoint import Checkpoints, State
from .optim import clip_gradients
from .settings import FitSettings
from .tracking import Tracker

logger = logging.getLogger(__name__)

SELECT_BY = "nDCG@5"
"""The validation metric by which the best weights are chosen."""
LOG_SECONDS = 2.0
"""Least time between two records of steps."""
SAVING_SECONDS, SAVING_SHARE = 10.0, 0.1
"""Time kept free for saving under a time limit, and its largest share of that limit; evaluations come on top."""
EVALUATION_SHARE = 0.1
"""Under a time limit, evaluations after the first take about this share of it, but there is one at least."""
REFRESH_SHARE = 0.1
"""Under a time limit, refreshes take at most about this share of it."""
COUNTERS = ("bad_evaluations", "evaluated_at", "evaluations", "passed")
"""Attributes of a run that a checkpoint keeps under their own names."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or a termination signal)."""


@dataclass(frozen=True)
class Refresh:
    """Something that is made anew in the course of a run, between two steps, hard negatives say.

    Args:
        first: share of the run after which it is made for the first time.
        every: share of the run between two times.
        run: makes it.
        state: its tensors by name, for a checkpoint.
        restore: puts back what `state` gave.
        outcome: called after the next step: figures for the log, or None.
    """

    first: float
    every: float
    run: Callable[[], None]
    state: Callable[[], dict[str, Tensor]]
    restore: Callable[[dict[str, Tensor]], None]
    outcome: Callable[[], dict[str, float] | None] = lambda: None


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
        keep: bytes of it to go on after; 0 starts it anew.
        tracker: gets every record too.
    """

    def __init__(self, path: Path | None, keep: int = 0, tracker: Tracker | None = None):
        self._file, self._tracker, self._path = None, tracker, path
        if path is not None:
            with writing(path):
                self._file = path.open("r+" if keep and path.exists() else "w", encoding="utf-8")
            self._file.truncate(min(keep, self._file.seek(0, 2)))
            self._file.seek(0, 2)

    def write(self, **values: Any) -> None:
        """Append one record.

        Args:
            values: its entries; numbers are rounded to six digits.
        """
        if self._file is not None and self._path is not None:
            short = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
            with writing(self._path):
                self._file.write(json.dumps(short) + "\n")
                self._file.flush()
        if self._tracker is not None:
            self._tracker.write(values)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return 0 if self._file is None else self._file.tell()

    def close(self) -> None:
        """Close the file, and end the run of the tracker."""
        if self._file is not None and self._path is not None:
            with writing(self._path):
                self._file.close()
        if self._tracker is not None:
            self._tracker.close()


class Schedule:
    """Progress of a run, by steps and by the clock, and the learning rate that follows from it.

    Args:
        settings: rate, warm-up, its fall and the time limit.
        total_steps: steps of the whole run.
        started: when the command began, by `time.monotonic`.
    """

    def __init__(self, settings: FitSettings, total_steps: int, started: float):
        self.warmup, self.total_steps, self.fall = settings.warmup, max(1, total_steps), settings.schedule
        if settings.warmup_steps is not None:
            self.warmup = settings.warmup_steps / self.total_steps
        self.begun = time.monotonic()
        self.deadline = None if settings.max_minutes is None else started + 60 * settings.max_minutes
        saving = SAVING_SECONDS if settings.max_minutes is None else SAVING_SHARE * 60 * settings.max_minutes
        self.saving = self.reserve = min(SAVING_SECONDS, saving)
        self.step_seconds = self.evaluation_seconds = 0.0
        self.last_look = True

    def progress(self, step: int) -> float:
        """Share of the run that is over, by steps or time, whichever is more; 1 when no further step fits."""
        share = step / self.total_steps
        if self.deadline is not None:
            if time.monotonic() + self.step_seconds > self.deadline - self.reserve:
                return 1.0
            span = max(1e-9, self.deadline - self.reserve - self.begun)
            share = max(share, (time.monotonic() - self.begun) / span)
        return min(1.0, share)

    def plan_end(self, ending: float, evaluation_seconds: float = 0.0) -> None:
        """Keep time free for the end: saving, a last evaluation unless time is short, and further work.

        Args:
            ending: seconds of the further work after the loop, such as keys in float32 and calibration.
            evaluation_seconds: of an evaluation; 0 where there was none.
        """
        first = evaluation_seconds > 0 == self.evaluation_seconds
        self.evaluation_seconds = evaluation_seconds
        if first and self.deadline is not None:
            self.last_look = 10 * evaluation_seconds < self.deadline - time.monotonic()
        self.reserve = self.saving + ending + (3.0 if self.last_look else 2.0) * evaluation_seconds

    def affordable(self, evaluations: int) -> int:
        """How many of the evaluations asked for fit into `EVALUATION_SHARE` of the time limit; at least 1."""
        if self.deadline is None or self.evaluation_seconds <= 0:
            return evaluations
        left = self.deadline - self.reserve - time.monotonic()
        return max(1, min(evaluations, int(EVALUATION_SHARE * left / self.evaluation_seconds)))

    def share(self, seconds: float) -> float:
        """The share of the run that so many seconds are; 0 without a time limit."""
        return 0.0 if self.deadline is None else seconds / max(1e-9, self.deadline - self.begun)

    def factor(self, progress: float) -> float:
        """Factor of the learning rate at a share of the run: a linear rise in the warm-up, then the fall to 0."""
        if progress < self.warmup:
            return min(1.0, max(progress, 1 / self.total_steps) / self.warmup)
        left = (1 - progress) / max(1e-9, 1 - self.warmup)
        return left if self.fall == "linear" else (1 - math.cos(math.pi * left)) / 2


def fit(
    step: Callable[[Batch], Tensor],
    epoch_batches: Callable[[int, int], Iterable[Batch]],
    steps_per_epoch: int,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    settings: FitSettings,
    *,
    evaluate: Callable[[], dict[str, float]] | None,
    choose: bool = True,
    log: Log,
    started: float,
    signals: StopSignals,
    refresh: Refresh | None = None,
    checkpoints: Checkpoints | None = None,
    state: State | None = None,
    ending: Callable[[], float] | None = None,
    own: Sequence[nn.Parameter] = (),
) -> FitReport:
    """Train a module and leave it with the weights of the best validation nDCG@5, or the last ones.

    Ctrl-C or a termination signal ends the loop at once; the best weights are kept all the same.

    Args:
        step: a batch -> its loss, with a graph.
        epoch_batches: number of an epoch, and of the batch to begin with -> its batches.
        steps_per_epoch: how many those are.
        module: what is trained.
        optimizers: of all its parameters; the rate of a group is its highest.
        settings: of the run.
        evaluate: validation metrics of the present weights; None keeps the last weights.
        choose: keep the weights of the best evaluation, and stop when none is better for long; otherwise evaluations
            are only reported and the last weights are kept.
        log: where records go.
        started: when the command began, by `time.monotonic`.
        signals: stop signals; held when the loop is over.
        refresh: what is made anew in the course of the run.
        checkpoints: where the state is written now and then, and when the run is interrupted; None for nowhere.
        state: of an unfinished run, to go on with.
        ending: seconds of work after the loop, beside saving, for which a time limit must leave room; called at the
            start and at every evaluation, since the machine is busier at some times.
        own: parameters of which each of several processes has its own labels' rows; the others are the same in all.

    Raises:
        LabelspaceError: the loss is no longer a finite number.
        CheckpointError: a state that does not fit the module.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    highest = [group["lr"] for group in groups]
    total = settings.epochs * steps_per_epoch
    run = _Run(
        module, optimizers, settings, total, choose, evaluate, log, started, signals, refresh, checkpoints, ending, own
    )
    distributed.begin(module, own, settings.seed)
    if state is not None:
        run.restore(state)
    report, schedule = run.report, run.schedule
    parameters, shared = list(module.parameters()), run.shared

    hidden = None if distributed.first() else True
    with tqdm(total=total, initial=report.steps, desc="training", unit="step", disable=hidden) as bar:
        try:
            run.begin()
            last_log, texts, loss_sum, loss_count = time.monotonic(), 0, 0.0, 0
            for epoch in range(report.steps // steps_per_epoch, settings.epochs):
                first = report.steps % steps_per_epoch
                batches = iter(epoch_batches(epoch, first))
                for _ in range(first, steps_per_epoch):
                    if run.between_steps():
                        last_log, texts = time.monotonic(), 0
                    batch = next(batches)  # after a refresh, which may change it
                    factor, begun = schedule.factor(run.progress), time.monotonic()
                    for group, rate in zip(groups, highest, strict=True):
                        group["lr"] = rate * factor
                    module.train()
                    loss = step(batch)
                    loss.backward()
                    distributed.sum_gradients(shared)
                    value = float(loss.detach())
                    _require_finite(value, report.steps + 1, highest[0])
                    norm = clip_gradients(parameters, settings.max_grad_norm, own)
                    with signals.deferred():
                        for optimizer in optimizers:
                            optimizer.step()
                            optimizer.zero_grad(set_to_none=True)
                        report.steps += 1
                        run.random = _random_states()
                        run.log_refresh()
                    bar.update()
                    texts, loss_sum, loss_count = texts + len(batch.rows), loss_sum + value, loss_count + 1
                    now = time.monotonic()
                    schedule.step_seconds = now - begun
                    if now - last_log >= LOG_SECONDS or report.steps == total:
                        bar.set_postfix(loss=f"{loss_sum / loss_count:.3f}")
                        log.write(
                            event="step", step=report.steps, epoch=epoch, loss=loss_sum / loss_count,
                            lr=groups[0]["lr"],
                            grad_norm=norm, texts_per_second=texts / max(now - last_log, 1e-9),
                            peak_memory_gb=(peak_memory() or 0) / 1e9, seconds=now - run.started,
                        )  # fmt: skip
                        last_log, texts, loss_sum, loss_count = now, 0, 0.0, 0
            run.look()
        except _Done as done:
            report.stopped = done.args[0]
            if report.steps == 0:
                logger.warning("the time limit left no time for a single step; the model is untrained")
            elif report.stopped == "time" and distributed.from_first(schedule.last_look):
                with contextlib.suppress(Interrupted):
                    run.look()
        except KeyboardInterrupt:
            signals.hold()
            report.stopped = "interrupted"
            logger.warning("interrupted at step %d of %d; saving the best weights so far", report.steps, total)
            run.save()
        signals.hold()
    run.end()
    return report


def _require_finite(loss: float, step: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise LabelspaceError(
            f"the loss is {loss} at step {step}; lower --lr (now {rate:g}), raise --temperature, or train with "
            "--precision float32"
        )


class _Run:
    """The changing state of a run, and all that happens between two steps."""

    def __init__(
        self,
        module: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        settings: FitSettings,
        total: int,
        choose: bool,
        evaluate: Callable[[], dict[str, float]] | None,
        log: Log,
        started: float,
        signals: StopSignals,
        refresh: Refresh | None,
        checkpoints: Checkpoints | None,
        ending: Callable[[], float] | None,
        own: Sequence[nn.Parameter],
    ):
        self.module, self.optimizers, self.settings, self.total = module, optimizers, settings, total
        self.choose, self.evaluate, self.log, self.started, self.signals = choose, evaluate, log, started, signals
        self.refresh, self.checkpoints = refresh, checkpoints
        self.ending = ending or (lambda: 0.0)
        mine = {id(parameter) for parameter in own}
        self.shared = [parameter for parameter in module.parameters() if id(parameter) not in mine]
        self.own = [name for name, parameter in module.named_parameters() if id(parameter) in mine]
        self.schedule = Schedule(settings, total, started)
        self.report, self.best = FitReport(), _Best(module)
        self.random = _random_states()
        self.progress, self.resumed = 0.0, False
        self.bad_evaluations, self.evaluated_at, self.passed = 0, -1, 0
        self.evaluations = settings.evaluations
        self.refresh_due, self.refreshed = math.inf if refresh is None else refresh.first, False
        self.saved = time.monotonic()

    def begin(self) -> None:
        """Look at the untrained weights, and plan the evaluations."""
        if self.resumed:
            return
        if self.evaluate is None:
            self.schedule.plan_end(self.ending())
        self.look()
        self.evaluations = distributed.from_first(self.schedule.affordable(self.settings.evaluations))
        self.schedule.begun = time.monotonic()

    def between_steps(self) -> bool:
        """Evaluate, refresh and save what is due; whether anything was.

        Raises:
            _Done: the run ends here.
            Interrupted: one of several processes was asked to stop.
        """
        busy = False
        saving = self._agree()
        if self.progress >= 1:
            raise _Done("time")
        if self._evaluation_is_due():
            self.look()
            saving, busy = self._agree(), True
            if self.settings.patience and self.bad_evaluations >= self.settings.patience:
                raise _Done("early")
        if self.refresh is not None and self.progress >= self.refresh_due:
            begun = time.monotonic()
            self.refresh.run()
            with self.signals.deferred():
                self.refreshed = True
                every = max(self.refresh.every, self.schedule.share(time.monotonic() - begun) / REFRESH_SHARE)
                every = distributed.from_first(every)
                while self.refresh_due <= self.progress:
                    self.refresh_due += every
            busy = True
        if saving:
            self.save()
            busy = True
        return busy

    def _agree(self) -> bool:
        """Set the progress of the run, by the first process' clock; whether it is time to save.

        Raises:
            Interrupted: one of several processes was asked to stop.
        """
        minutes = self.settings.checkpoint_minutes
        saving = bool(minutes and time.monotonic() - self.saved > 60 * minutes and distributed.first())
        (self.progress,), (saving, stopped) = distributed.agree(
            [self.schedule.progress(self.report.steps)], [saving, self.signals.pending and distributed.size() > 1]
        )
        if stopped:
            raise Interrupted
        return saving

    def log_refresh(self) -> None:
        """Record what the last refresh brought, after the step that followed it."""
        outcome = self.refresh.outcome() if self.refresh is not None and self.refreshed else None
        self.refreshed = False
        if outcome is not None:
            self.log.write(event="refresh", step=self.report.steps, **outcome)

    def _evaluation_is_due(self) -> bool:
        """Whether one of the points that cut the run into equal parts was passed since the last evaluation."""
        if self.evaluate is None or not self.evaluations or self.evaluated_at == self.report.steps:
            return False
        return math.floor(self.progress * self.evaluations + 1e-9) > self.passed

    def look(self) -> None:
        """Evaluate the present weights, unless that was done."""
        if self.evaluate is None or self.evaluated_at == self.report.steps:
            return
        begun = time.monotonic()
        metrics = distributed.from_first(self.evaluate())
        seconds, ending = time.monotonic() - begun, self.ending()
        with self.signals.deferred():
            self._record(metrics, seconds, ending)

    def _record(self, metrics: dict[str, float], seconds: float, ending: float) -> None:
        report = self.report
        self.evaluated_at = report.steps
        self.passed = math.floor(self.progress * self.evaluations + 1e-9)
        self.schedule.plan_end(ending, seconds)
        report.curve.append({"step": report.steps, "seconds": time.monotonic() - self.started, **metrics})
        self.log.write(event="evaluation", **report.curve[-1])
        logger.info("step %d of %d: validation %s", report.steps, self.total, readable(metrics))
        if not self.choose:
            report.metrics = metrics
        elif self.best.offer(metrics.get(SELECT_BY, 0.0), report.steps):
            report.metrics, self.bad_evaluations = metrics, 0
        elif self.progress >= self.schedule.warmup:
            self.bad_evaluations += 1

    def end(self) -> None:
        """Put the kept weights in place and close the record."""
        report = self.report
        report.seconds = time.monotonic() - self.schedule.begun
        # weights trained since a lone look at the untrained ones are the better guess
        if self.evaluate is None or not self.choose or (self.evaluated_at == 0 and report.steps > 0):
            report.best_step = report.steps
            if self.evaluated_at != report.steps:
                report.metrics = {}
        else:
            self.best.restore()
            report.best_step = self.best.step
        self.log.write(event="end", step=report.steps, stopped=report.stopped, best_step=report.best_step)

    def save(self) -> None:
        """Write the state, if it is to be kept anywhere; a run goes on where that fails."""
        if self.checkpoints is not None:
            try:
                self.checkpoints.save(self.report.steps, self.state())
            except CheckpointError as error:
                logger.warning("%s; going on, with the state before it if there is one", error)
        self.saved = time.monotonic()

    def state(self) -> State:
        """Everything that the next step depends on, as of the last whole one."""
        now = time.monotonic()
        state = State(
            {
                "report": asdict(self.report),
                "best": {"step": self.best.step, "score": self.best.score if self.best.weights else None},
                **{name: getattr(self, name) for name in COUNTERS},
                "refresh_due": self.refresh_due if self.refresh else None,
                "refreshed": self.refreshed,
                "evaluation_seconds": self.schedule.evaluation_seconds,
                "elapsed": now - self.started,
                "loop_seconds": now - self.schedule.begun,
                "log_bytes": self.log.size,
                "threads": torch.get_num_threads(),
                "optimizers": [[] for _ in self.optimizers],
                "by_label": [f"{part}.{name}" for part in ("module", "best") for name in self.own],
            }
        )
        state.add("module.", self.module.state_dict())
        state.add("best.", self.best.weights)
        state.add("random.", self.random)
        if self.refresh is not None:
            state.add("refresh.", self.refresh.state())
            state.record["by_label"].append("refresh.keys")
        shared = {id(parameter) for parameter in self.shared}
        for i, optimizer in enumerate(self.optimizers):
            for j, parameter in enumerate(_parameters(optimizer)):
                if id(parameter) not in shared:
                    state.record["by_label"].append(f"optimizer.{i}.{j}.")
                values = optimizer.state.get(parameter, {})
                state.add(f"optimizer.{i}.{j}.", {k: x for k, x in values.items() if isinstance(x, Tensor)})
                state.record["optimizers"][i].append({k: x for k, x in values.items() if not isinstance(x, Tensor)})
        return state

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go on from a state.

        Raises:
            CheckpointError: it does not fit the module.
        """
        record, now = state.record, time.monotonic()
        try:
            self.module.load_state_dict(state.part("module."))
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint does not fit this encoder ({' '.join(str(error).split())[:300]}); "
                "start the run again without --resume"
            ) from error
        self.best.step, self.best.weights = record["best"]["step"], state.part("best.")
        self.best.score = -math.inf if record["best"]["score"] is None else record["best"]["score"]
        for i, optimizer in enumerate(self.optimizers):
            for j, parameter in enumerate(_parameters(optimizer)):
                tensors = {k: x.to(parameter.device) for k, x in state.part(f"optimizer.{i}.{j}.").items()}
                values = {**tensors, **record["optimizers"][i][j]}
                if values:
                    optimizer.state[parameter] = values
        if self.refresh is not None:
            self.refresh.restore(state.part("refresh."))
            self.refresh_due, self.refreshed = record["refresh_due"], record.get("refreshed", False)
        self.random = state.part("random.")
        if self.random:
            _set_random_states(self.random)
        else:  # the run goes on with another number of processes
            distributed.seed_draws(self.settings.seed + record["report"]["steps"])
            self.random = _random_states()
        vars(self.report).update(record["report"], stopped="finished")
        vars(self).update({name: record[name] for name in COUNTERS})
        self.started = now - record["elapsed"]
        self.schedule = Schedule(self.settings, self.total, self.started)
        self.schedule.begun = now - record["loop_seconds"]
        self.schedule.plan_end(self.ending(), record["evaluation_seconds"])
        self.resumed = True
        if record["threads"] != torch.get_num_threads():
            message = "the run began with %d threads and goes on with %d; sums may round differently"
            logger.warning(message, record["threads"], torch.get_num_threads())
        self.log.write(event="resumed", step=self.report.steps)
        logger.info("going on after step %d of %d", self.report.steps, self.total)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _random_states() -> dict[str, Tensor]:
    """The states of the sources of random numbers: the host's, and that of the device that this process works on."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def readable(metrics: dict[str, float]) -> str:
    """The main metrics of an evaluation, percent by name, in one line."""
    wanted = ("P@1", "P@5", "nDCG@5", "PSP@5", "R@100")
    return ", ".join(f"{name} {metrics[name]:.2f}" for name in wanted if name in metrics)


class _Done(Exception):
    """The loop is over before its last step; the argument says why: ``early`` or ``time``."""


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
        state = self.module.state_dict()
        if not self.weights:
            self.weights = {name: torch.empty_like(value) for name, value in state.items()}
        for name, value in state.items():
            self.weights[name].copy_(value)
        return True

    def restore(self) -> None:
        """Put the kept weights back."""
        if self.weights:
            self.module.load_state_dict(self.weights)


class StopSignals:
    """Raises `Interrupted` once when a stop signal comes, but not inside `deferred` and not after `hold`."""

    def __init__(self) -> None:
        self.held, self.pending = False, False

    def handle(self, number: int, frame: Any) -> None:
        """The handler of a signal, as `signal.signal` wants it; several processes stop together, between two steps."""
        if self.held or distributed.size() > 1:
            self.pending = True
        else:
            self.held = True
            raise Interrupted

    def hold(self) -> None:
        """From here on only note signals, so that everything ends."""
        self.held = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the body end before a stop signal takes effect."""
        before, self.held = self.held, True
        try:
            yield
        finally:
            self.held = before
        if self.pending and not before and distributed.size() == 1:
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
