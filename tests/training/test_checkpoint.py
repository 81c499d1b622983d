"""Checkpoints: whole or absent; a run that was killed and resumed ends in the weights of an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import labelspace as ls
from labelspace.cli.app import main
from labelspace.errors import CheckpointError, SettingsError
from labelspace.training.checkpoint import Checkpoints, State


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


class Killed(BaseException):
    """The process is gone."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Callable[[], None]:
    """Let training die inside its step after so many; returns what lets it live again."""
    import labelspace.training.loop as trainer

    real, seen = trainer.clip_gradients, 0

    def clip(*args: Any) -> float:
        nonlocal seen
        seen += 1
        if seen > steps:
            torch.rand(3)  # random numbers drawn in a step that is lost
            raise Killed
        return real(*args)

    monkeypatch.setattr(trainer, "clip_gradients", clip)
    return lambda: monkeypatch.setattr(trainer, "clip_gradients", real)


def weights(model: ls.Model) -> dict[str, torch.Tensor]:
    keys = {f"document keys {i}": s.keys for i, s in enumerate(model.memory.document_keys.segments)}
    return {**model.encoder.state_dict(), "keys": model.memory.keys, **keys}


@pytest.mark.parametrize("negatives", ["all", "mined", "unidec", "raexmc"])
@pytest.mark.parametrize("encoder", ["static", "transformer"])
def test_killed_and_resumed_equals_unbroken(
    data: ls.Dataset, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str,
    negatives: str,
) -> None:  # fmt: skip
    options: dict[str, Any] = {
        "negatives": negatives, "epochs": 3, "batch_size": 40, "evaluations": 5, "mine_every": 0.2, "patience": 0,
        "valid_documents": 20, "checkpoint_minutes": 1e-9,
    }  # fmt: skip
    if negatives == "raexmc":
        del options["negatives"]
        options.update(recipe="raexmc", num_negatives=2)
    if encoder == "static":
        options.update(encoder="static", base=str(tiny_transformer), lr=0.03)
    else:
        options.update(encoder=str(tiny_transformer), lr=3e-3, dropout=0.2)
    if negatives == "unidec":
        del options["negatives"]
        options.update(
            recipe="unidec",
            pool="some",
            clusters=True,
            table_dtype="bf16",
            batch_size=20,
            mine_every=0.13,
            num_negatives=2,
            cap=23,
        )
        options.update({} if encoder == "static" else {"encoder_dim": 8, "classifier_dim": 8})
    unbroken = ls.train(data, out=tmp_path / "whole", **options)
    out = tmp_path / "broken"
    for life, steps in enumerate((4, 0, 7)):
        revive = kill_after(monkeypatch, steps)
        with pytest.raises(Killed):
            ls.train(data, out=out, **options) if life == 0 else ls.train(data, resume=out)
        revive()
        assert Checkpoints(out).step == (4, 4, 11)[life]
        assert not out.exists()
    torch.manual_seed(12345)
    resumed = ls.train(data, resume=out)
    assert unbroken.info["fit"]["steps"] == resumed.info["fit"]["steps"] == (24 if negatives == "unidec" else 21)
    expected = weights(unbroken)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert [e["step"] for e in resumed.info["fit"]["curve"]] == [e["step"] for e in unbroken.info["fit"]["curve"]]
    assert resumed.info["metrics"] == unbroken.info["metrics"]
    assert not Checkpoints(out).folder.exists()
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["event"] == "resumed"] == [4, 11]
    steps = [r["step"] for r in records if r["event"] == "evaluation"]
    assert steps == sorted(set(steps))  # what came after a checkpoint is cut off
    assert [r["event"] for r in records].count("start") == 1


def test_sigkill(toy_folder: Path, tiny_transformer: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "labelspace", "train", str(toy_folder), "--recipe", "dexml", "--quiet"]
    options = ["--base", str(tiny_transformer), "--epochs", "12", "--batch-size", "16", "--patience", "0"]
    options += ["--checkpoint-minutes", "0.005", "--lr", "0.03"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = subprocess.Popen([*command, "--out", str(broken), *options], env=environment)
    limit = time.monotonic() + 60
    while not list(Checkpoints(broken).folder.glob("step-*")) and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not broken.exists()
    torch.set_num_threads(1)
    ls.train(toy_folder, resume=broken)
    assert main([*command[3:], "--out", str(whole), *options]) == 0
    for name in ("memory/labels-1.safetensors", "encoder/model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def small(tiny_transformer: Path, **others: object) -> dict[str, Any]:
    return {
        "recipe": "dexml",
        "base": str(tiny_transformer),
        "epochs": 2,
        "batch_size": 50,
        "checkpoint_minutes": 1e-9,
        **others,
    }


def test_an_interrupted_run_is_saved_and_can_go_on(
    data: ls.Dataset, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import labelspace.training.loop as trainer

    options = small(tiny_transformer, checkpoint_minutes=0)
    expected = weights(ls.train(data, **options))
    real, seen = trainer.clip_gradients, 0

    def clip(*args: Any) -> float:
        nonlocal seen
        seen += 1
        if seen == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trainer, "clip_gradients", clip)
    out = tmp_path / "run"
    model = ls.train(data, out=out, **options)
    assert model.info["fit"]["stopped"] == "interrupted" and model.info["fit"]["steps"] == 5
    assert Checkpoints(out).step == 5 and (out / "manifest.json").exists()
    resumed = ls.train(data, resume=out)
    assert resumed.info["fit"]["stopped"] == "finished"
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_what_cannot_be_resumed_is_refused(
    data: ls.Dataset, toy_folder: Path, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"no unfinished run in .*run: no folder .*run.checkpoint"):
        ls.train(data, resume=out)
    revive = kill_after(monkeypatch, 3)
    with pytest.raises(Killed):
        ls.train(data, out=out, **small(tiny_transformer))
    revive()
    with pytest.raises(SettingsError, match="epochs is 9, but the run to resume has 2; leave it out"):
        ls.train(data, resume=out, epochs=9)
    with pytest.raises(SettingsError, match="goes on in its own folder; leave out --out"):
        ls.train(data, resume=out, out=tmp_path / "other")
    fewer = ls.load(toy_folder, valid_fraction=0.3)
    with pytest.raises(CheckpointError, match="was on other data"):
        ls.train(fewer, resume=out)
    folder = Checkpoints(out).folder
    file = next(folder.glob("step-*")) / "state.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:100])
    with pytest.raises(CheckpointError, match=r"step-3 is damaged .*; start the run again"):
        ls.train(data, resume=out)
    file.write_bytes(good)
    record = file.with_name("state.json").read_text()
    for damaged, message in (("", "is damaged"), ("{}", "no whole state"), ("[]", "no whole state")):
        file.with_name("state.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=message):
            ls.train(data, resume=out)
    file.with_name("state.json").write_text(record)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        ls.train(data, resume=out)
    (folder / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run.json cannot be read"):
        ls.train(data, resume=out)
    (folder / "run.json").write_text(json.dumps(run))
    assert ls.train(data, resume=out, epochs=2).info["fit"]["steps"] == 2 * 6


def test_a_finished_run_and_one_that_has_not_begun(data: ls.Dataset, tiny_transformer: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun = ls.train(data, out=out, resume=out, **small(tiny_transformer))
    assert begun.info["fit"]["steps"] == 12
    again = ls.train(data, resume=out)
    assert torch.equal(again.memory.keys, begun.memory.keys)


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(
    data: ls.Dataset, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        ls.train(data, out=tmp_path / "run", **small(tiny_transformer, checkpoint_minutes=0))
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_to_one_folder(data: ls.Dataset, tiny_transformer: Path, tmp_path: Path) -> None:
    first = Checkpoints(tmp_path / "run")
    first.lock()
    with pytest.raises(CheckpointError, match="another run is writing to"):
        ls.train(data, out=tmp_path / "run", **small(tiny_transformer))
    first.clear()
    ls.train(data, out=tmp_path / "run", **small(tiny_transformer))


def test_a_new_state_replaces_the_old_one(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "run")
    kept.lock()
    kept.begin({"recipe": "none"})
    assert kept.load(1) is None and kept.step is None
    (kept.folder / ".step-3.writing-1-ab").mkdir()  # left by a kill
    for step in (2, 10):
        state = State({"step": step}, {"a.x": torch.full((2,), float(step)), "b.y": torch.arange(3)})
        kept.save(step, state)
    assert sorted(p.name for p in kept.folder.iterdir()) == ["lock", "run.json", "step-10"]
    loaded = kept.load(1)
    assert loaded is not None and loaded.record == {"step": 10}
    assert loaded.part("a.")["x"].tolist() == [10, 10] and loaded.part("b.")["y"].tolist() == [0, 1, 2]
    kept.clear()
    assert not kept.folder.exists()


def test_a_full_disk_stops_no_run(
    data: ls.Dataset, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from safetensors import SafetensorError

    kept = Checkpoints(tmp_path / "kept")
    kept.lock()
    kept.begin({"recipe": "none"})
    kept.save(1, State({"step": 1}, {}))

    def full(*args: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("labelspace.training.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match="the state after step 2 cannot be written .*No space left"):
        kept.save(2, State({"step": 2}, {}))
    assert sorted(p.name for p in kept.folder.iterdir()) == ["lock", "run.json", "step-1"]
    kept.clear()
    model = ls.train(data, out=tmp_path / "run", **small(tiny_transformer))
    assert model.info["fit"]["stopped"] == "finished" and "going on, with the state before it" in caplog.text
    assert (tmp_path / "run" / "manifest.json").is_file()


def test_nothing_is_replaced_unless_that_is_asked_for(
    data: ls.Dataset, toy_folder: Path, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from labelspace.cli.app import main

    out, options = tmp_path / "run", small(tiny_transformer, epochs=1)
    revive = kill_after(monkeypatch, 3)
    with pytest.raises(Killed):
        ls.train(data, out=out, **options)
    revive()
    with pytest.raises(
        CheckpointError, match=r"stopped after step 3; go on with it with --resume .*, add --overwrite to"
    ):
        ls.train(data, out=out, **options)
    assert Checkpoints(out).step == 3
    ls.train(data, out=out, overwrite=True, **options)
    first = (out / "manifest.json").read_text()
    with pytest.raises(
        ls.ModelError, match="run holds a model already; add --overwrite to replace it, or choose another"
    ):
        ls.train("nowhere", out=out, **options)
    flags = ["--base", str(tiny_transformer), "--epochs", "1", "--quiet"]
    assert main(["train", "--recipe", "dexml", str(toy_folder), "--out", str(out), *flags]) == 1
    assert "holds a model already" in capsys.readouterr().err and (out / "manifest.json").read_text() == first
    assert main(["train", "--recipe", "dexml", str(toy_folder), "--out", str(out), "--overwrite", *flags]) == 0
    assert (out / "manifest.json").read_text() != first
    assert main(["train", str(toy_folder), "--resume", str(out), *flags[2:]]) == 0
    assert main(["tune", str(out), str(toy_folder), "--out", str(out), "--quiet"]) == 0
    ls.Model.load(out).save(tmp_path / "other")
    assert main(["tune", str(out), str(toy_folder), "--out", str(tmp_path / "other"), "--quiet"]) == 1
    assert "other holds a model already" in capsys.readouterr().err
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    for command in (["train", "--recipe", "dexml", str(toy_folder)], ["tune", str(out), str(toy_folder)]):
        assert main([*command, "--out", str(tmp_path / "thesis"), "--overwrite", "--quiet"]) == 1
        assert "holds something that is not a labelspace model" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.txt"]
