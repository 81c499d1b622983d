"""Records of a run reach a tracker, which may be missing or fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import labelspace as ls
from labelspace.cli.app import main
from labelspace.errors import LabelspaceError, MissingExtraError

FAKE = """
calls = []
def init(project, config):
    if project == "broken":
        raise RuntimeError("no api key")
    calls.append(("init", project, config))
def log(numbers, step=None):
    if len(calls) > 2 and calls[0][1] == "later":
        raise OSError("the network is gone")
    calls.append(("log", numbers, step))
def finish():
    calls.append(("finish",))
"""


@pytest.fixture(params=["trackio", "wandb"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the tracker's name that writes down how it is called."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / f"{request.param}.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    yield request.param
    sys.modules.pop(request.param, None)


def settings(tiny_transformer: Path) -> dict[str, Any]:
    return {"base": str(tiny_transformer), "epochs": 2, "batch_size": 32, "device": "cpu", "evaluations": 2}


def test_a_tracker_gets_what_the_log_gets(
    tracker: str, toy_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    given = settings(tiny_transformer)
    ls.train(toy_folder, recipe="dexml", out=tmp_path / "model", track=tracker, track_project="plants", **given)
    first, *logged, last = sys.modules[tracker].calls
    assert first[:2] == ("init", "plants") and first[2]["epochs"] == 2 and last == ("finish",)
    records = [json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()]
    expected = []
    for record in records:
        event, step = record.pop("event"), record.pop("step", None)
        numbers = {f"{event}/{name}": value for name, value in record.items() if isinstance(value, int | float)}
        if numbers:
            expected.append((numbers, step))
    assert [step for _, _, step in logged] == [step for _, step in expected]
    for (_, numbers, _), (wanted, _) in zip(logged, expected, strict=True):
        assert numbers == pytest.approx(wanted, rel=1e-5)
    assert {"start/labels", "step/loss", "evaluation/nDCG@5"} <= {name for _, numbers, _ in logged for name in numbers}


def test_a_tracker_that_fails_later_is_given_up(
    tracker: str, toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", str(tiny_transformer), "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
    flags += ["--track", tracker, "--track-project", "later", "--out", str(tmp_path / "model")]
    assert main(["train", "--recipe", "dexml", str(toy_folder), *flags]) == 0
    assert f"{tracker} failed (the network is gone); the run goes on without it" in capsys.readouterr().err
    assert len(sys.modules[tracker].calls) == 3 and (tmp_path / "model" / "manifest.json").exists()


def test_a_tracker_that_cannot_start_is_an_error(
    tracker: str, toy_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    with pytest.raises(LabelspaceError, match=f"--track {tracker}: the tracker cannot start \\(no api key\\)"):
        ls.train(toy_folder, track=tracker, track_project="broken", **settings(tiny_transformer))


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_missing_tracker_is_named_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'labelspace\[{name}\]'"):
        ls.train("no such data", recipe="dexml", track=name)
