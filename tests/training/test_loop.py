"""The loop: schedule, best weights, stopping by patience, clock and signal."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Clock

from labelspace.errors import LabelspaceError
from labelspace.training.loop import FitReport, Log, Schedule, fit, stop_signals
from labelspace.training.optim import make_optimizers
from labelspace.training.settings import FitSettings
from labelspace.types import Batch


class Toy:
    """A weight that moves by the learning rate at each step, and scripted validation scores."""

    def __init__(self, scores: list[float] | None, tmp_path: Path, **settings: object):
        self.module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.module.weight)
        self.scores = scores
        self.settings = FitSettings(**{"warmup": 0.0, "max_grad_norm": 0.0, **settings})  # type: ignore[arg-type]
        self.file = tmp_path / "log.jsonl"
        self.hook: Callable[[int], None] = lambda step: None
        self.steps = 0
        self.choose = True
        self.weights: list[float] = []

    def step(self, batch: Batch) -> torch.Tensor:
        self.hook(self.steps)
        self.steps += 1
        return self.module.weight.sum()

    def evaluate(self) -> dict[str, float]:
        assert self.scores is not None
        self.weights.append(self.module.weight.item())
        return {"nDCG@5": self.scores[len(self.weights) - 1]}

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for _ in range(start, 10):
            yield Batch(np.arange(4), None, np.zeros((2, 0), dtype=np.int64))

    def fit(self, started: float | None = None) -> FitReport:
        log = Log(self.file)
        try:
            with stop_signals() as signals:
                return fit(
                    self.step, self.batches, 10, self.module, make_optimizers(self.module, False, 0.1, 0.0),
                    self.settings,
                    evaluate=None if self.scores is None else self.evaluate, choose=self.choose, log=log,
                    started=time.monotonic() if started is None else started, signals=signals,
                )  # fmt: skip
        finally:
            log.close()

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


def test_the_best_evaluation_is_kept(tmp_path: Path) -> None:
    toy = Toy([1.0, 2.0, 5.0, 3.0, 4.0], tmp_path, epochs=2, evaluations=4)
    report = toy.fit()
    assert report.stopped == "finished" and report.steps == 20
    assert [c["step"] for c in report.curve] == [0, 5, 10, 15, 20]
    assert report.best_step == 10 and report.metrics == {"nDCG@5": 5.0}
    assert toy.module.weight.item() == toy.weights[2] != toy.weights[4]
    records = toy.records()
    assert [r["step"] for r in records if r["event"] == "evaluation"] == [0, 5, 10, 15, 20]
    assert records[-1] == {"event": "end", "step": 20, "stopped": "finished", "best_step": 10}
    step = next(r for r in records if r["event"] == "step")
    assert {"loss", "lr", "texts_per_second", "peak_memory_gb", "seconds", "epoch"} <= set(step)


def test_patience_stops_early(tmp_path: Path) -> None:
    toy = Toy([1.0, 5.0, 4.0, 4.5, 9.0, 9.0], tmp_path, epochs=2, evaluations=5, patience=2)
    report = toy.fit()
    assert report.stopped == "early" and report.steps == 12 and report.best_step == 4
    assert Toy([1.0, 5.0, 4.0, 4.5, 9.0, 9.0], tmp_path, epochs=2, evaluations=5, patience=0).fit().best_step == 16


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    toy = Toy(None, tmp_path, epochs=1)
    report = toy.fit()
    assert report.best_step == 10 and report.metrics == {} and report.curve == []
    assert toy.module.weight.item() < 0


def test_evaluations_that_choose_nothing(tmp_path: Path) -> None:
    toy = Toy([9.0, 2.0, 1.0], tmp_path, epochs=1, evaluations=2, patience=1)
    toy.choose = False
    report = toy.fit()
    assert report.best_step == 10 and report.metrics == {"nDCG@5": 1.0} and report.stopped == "finished"
    assert toy.module.weight.item() == toy.weights[-1]


def test_the_clock_ends_the_run_and_the_rate_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.training.loop.SAVING_SECONDS", 0.0)
    monkeypatch.setattr("labelspace.training.loop.LOG_SECONDS", 0.0)
    clock = Clock(monkeypatch)
    begun = clock.now
    toy = Toy([1.0] * 300, tmp_path, epochs=1000, max_minutes=0.5 / 60, evaluations=2)
    toy.hook = lambda step: clock.go_on(0.01)
    report = toy.fit()
    assert report.stopped == "time" and 30 < report.steps <= 50
    assert clock.now - begun <= 0.5
    rates = [float(r["lr"]) for r in toy.records() if r["event"] == "step"]  # type: ignore[arg-type]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.02


def test_slow_steps_and_slow_evaluations_keep_to_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.training.loop.SAVING_SECONDS", 0.0)
    clock = Clock(monkeypatch)
    begun = clock.now
    toy = Toy([1.0] * 300, tmp_path, epochs=1000, max_minutes=2.0 / 60, evaluations=50)
    toy.hook = lambda step: clock.go_on(0.3)
    quick = toy.evaluate
    toy.evaluate = lambda: (clock.go_on(0.1), quick())[1]  # type: ignore[method-assign]
    report = toy.fit()
    assert report.stopped == "time" and 2 <= report.steps <= 6
    assert clock.now - begun <= 2.0
    assert len(report.curve) <= 4  # the first, few on the way, the last


def test_a_limit_without_time_for_a_step_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = Toy([1.0], tmp_path, epochs=1, max_minutes=1e-6).fit()
    assert report.steps == 0 and "the model is untrained" in caplog.text


def test_a_signal_leaves_the_best_weights(tmp_path: Path) -> None:
    toy = Toy([1.0, 3.0, 2.0], tmp_path, epochs=2, evaluations=4)
    toy.hook = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 13 else None
    before = signal.getsignal(signal.SIGINT)
    report = toy.fit()
    assert report.stopped == "interrupted" and report.steps == 13
    assert report.best_step == 5 and toy.module.weight.item() == toy.weights[1]
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_before_the_first_trained_evaluation_keeps_what_was_trained(tmp_path: Path) -> None:
    toy = Toy([9.0], tmp_path, epochs=2, evaluations=2)
    toy.hook = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None
    report = toy.fit()
    assert report.stopped == "interrupted" and report.best_step == 4
    assert toy.module.weight.item() < 0


def test_a_signal_inside_an_evaluation_keeps_what_was_trained(tmp_path: Path) -> None:
    toy = Toy([9.0, 1.0], tmp_path, epochs=2, evaluations=4)
    quick = toy.evaluate

    def interrupted() -> dict[str, float]:
        if toy.steps == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return quick()

    toy.evaluate = interrupted  # type: ignore[method-assign]
    report = toy.fit()
    assert report.stopped == "interrupted" and report.best_step == 5
    assert toy.module.weight.item() < 0


def test_a_second_signal_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy([1.0, 3.0, 2.0], tmp_path, epochs=2, evaluations=4)
    toy.hook = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 13 else None
    real = logging.Logger.warning

    def again(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(logging.Logger, "warning", again)
    report = toy.fit()
    assert report.stopped == "interrupted" and report.best_step == 5


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    toy = Toy([1.0], tmp_path, epochs=1)
    torch.nn.init.constant_(toy.module.weight, float("nan"))
    with pytest.raises(LabelspaceError, match="the loss is nan at step 1; lower --lr"):
        toy.fit()


def test_schedule_rises_and_falls() -> None:
    schedule = Schedule(FitSettings(warmup=0.2), 100, time.monotonic())
    assert [round(schedule.factor(schedule.progress(s)), 6) for s in (0, 10, 20, 60, 100)] == [0.05, 0.5, 1, 0.5, 0]
    assert schedule.progress(1000) == 1
    for total in (1, 3, 5, 9, 11):
        short = Schedule(FitSettings(warmup=0.1), total, time.monotonic())
        assert all(0 < short.factor(short.progress(s)) <= 1 for s in range(total))


def test_the_rate_falls_along_a_cosine_after_so_many_steps() -> None:
    schedule = Schedule(FitSettings(warmup_steps=20, schedule="cosine"), 100, time.monotonic())
    expected = [0.05, 0.5, *((1 + math.cos(math.pi * (s - 20) / 80)) / 2 for s in (20, 40, 60, 100))]
    found = [schedule.factor(schedule.progress(s)) for s in (0, 10, 20, 40, 60, 100)]
    assert found == pytest.approx(expected, abs=1e-12)
    at_once = Schedule(FitSettings(warmup_steps=0), 10, time.monotonic())
    assert at_once.factor(at_once.progress(0)) == 1
    only_up = Schedule(FitSettings(warmup_steps=200), 100, time.monotonic())
    assert [only_up.factor(only_up.progress(s)) for s in (20, 99)] == [0.1, 0.495]


def test_work_after_the_loop_is_kept_free() -> None:
    settings, now = FitSettings(max_minutes=10), time.monotonic()
    plain, busy, late = (Schedule(settings, 100, now) for _ in range(3))
    for seconds in (0.0, 7.0):
        plain.plan_end(0.0, seconds)
        busy.plan_end(300.0, seconds)
        assert busy.reserve == plain.reserve + 300
    late.plan_end(601.0)
    assert late.progress(1) == 1.0 > busy.progress(1)
    late.plan_end(300.0, 7.0)
    assert late.progress(1) < 1.0  # the machine was busy when the end was planned first
