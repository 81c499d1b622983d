"""The command line: results on standard output, one message on standard error, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from snippets import Runner

import labelspace as ls
from labelspace.cli.app import main


@pytest.fixture(scope="module")
def trained(toy_folder: Path, tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "model"
    flags = ["--base", str(tiny_transformer), "--epochs", "12", "--batch-size", "32", "--lr", "0.02", "--quiet"]
    assert main(["train", str(toy_folder), "--recipe", "dexml", "--out", str(out), "--device", "cpu", *flags]) == 0
    return out


def run(capsys: pytest.CaptureFixture[str], *tokens: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(t) for t in tokens])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_evaluate_prints_json(trained: Path, toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "evaluate", trained, toy_folder, "--json", "--k", 25)
    assert code == 0
    result = json.loads(out)
    data, model = ls.load(toy_folder), ls.Model.load(trained)
    assert data.test is not None
    pred = model.predict(data.test.texts, k=25)
    assert result["metrics"] == ls.evaluate(pred, data.test.targets, data.train.targets)
    assert result["metrics"]["P@1"] >= 90 and result["counts"]["documents"] == 80
    code, out, _ = run(capsys, "eval", trained, toy_folder, "--split", "valid", "--propensity", 0.6, 2.6)
    assert code == 0 and "P@1" in out and "0.6" in out and "2.6" in out


def test_predictions_written_by_one_command_are_read_by_another(
    trained: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "score.npz"
    assert run(capsys, "predict", trained, toy_folder / "tst.json", "--k", 25, "--out", scores)[0] == 0
    assert sp.load_npz(scores).shape == (80, 25)
    _, direct, _ = run(capsys, "evaluate", trained, toy_folder, "--json", "--k", 25)
    _, through_file, _ = run(capsys, "evaluate", scores, toy_folder, "--json")
    assert json.loads(direct)["metrics"] == pytest.approx(json.loads(through_file)["metrics"])


def test_scores_are_cut_at_k_and_must_have_the_labels_of_the_data(
    trained: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "predict", trained, toy_folder / "tst.json", "--k", 25, "--out", tmp_path / "score.npz")
    _, cut, _ = run(capsys, "evaluate", tmp_path / "score.npz", toy_folder, "--json", "--k", 5)
    _, direct, _ = run(capsys, "evaluate", trained, toy_folder, "--json", "--k", 5)
    assert json.loads(cut)["metrics"] == pytest.approx(json.loads(direct)["metrics"])
    sp.save_npz(tmp_path / "other.npz", sp.csr_matrix((80, 7)))
    code, _, err = run(capsys, "evaluate", tmp_path / "other.npz", toy_folder)
    assert code == 1 and "it scores 7 labels, but the data has 25" in err


def test_predict_prints_names(
    trained: Path, forked: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a red oak\nguide of the wild rose\n")
    code, out, _ = run(capsys, "predict", trained, file, "--k", 2)
    assert code == 0 and "red oak" in out and "wild rose" in out
    code, out, _ = run(capsys, "suggest", trained, file, "--k", 2, "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 2 and "red oak" in json.dumps(rows[0]) and "L0" in json.dumps(rows[0])
    code, out, _ = run(capsys, "predict", trained, file, "--k", 1, "--format", "tsv")
    assert code == 0 and any("\tred oak" in line for line in out.splitlines())
    piped = subprocess.run(
        [forked.tool("labelspace"), "predict", str(trained), "-", "--k", "1"],
        input="tall fern\n", capture_output=True, text=True, check=True, env=forked.environment,
    )  # fmt: skip
    assert "tall fern" in piped.stdout
    (tmp_path / "few.txt").write_text("dry moss\nL3\n")
    code, out, _ = run(capsys, "predict", trained, file, "--labels", tmp_path / "few.txt", "--format", "tsv")
    assert "dry moss" in out and "red oak\n" not in out.replace("a red oak", "")


def test_restricted_to_nothing_known(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("x\n")
    (tmp_path / "few.txt").write_text("no such label\n")
    code, _, err = run(capsys, "predict", trained, tmp_path / "t.txt", "--labels", tmp_path / "few.txt")
    assert code == 1 and "no label 'no such label'" in err


def test_info(toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", toy_folder)
    assert code == 0 and "300 documents" in out and "25" in out
    code, out, _ = run(capsys, "info", toy_folder, "--json")
    report = json.loads(out)
    sizes = np.diff(ls.load(toy_folder).train.targets.indptr)
    assert report["train"]["documents"] == 300 and report["valid"]["documents"] == 30
    assert report["train"]["labels_per_document"] == pytest.approx(sizes.mean(), abs=1e-3)
    assert report["label_frequency"]["unseen_in_train"] == 1
    assert sum(report["label_frequency"][g] for g in ("head", "torso", "tail", "unseen_in_train")) == 25


def test_settings_come_from_flag_then_environment_then_file_then_default(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text('recipe = "dexml"\nepochs = 3\nlr = 0.1\nbatch-size = 7\nseparator = ";"\n')
    monkeypatch.setenv("LABELSPACE_EPOCHS", "4")
    monkeypatch.setenv("LABELSPACE_LR", "0.2")
    code, out, _ = run(capsys, "train", toy_folder, "--config", tmp_path / "run.toml", "--lr", 0.3, "--dry-run")
    assert code == 0
    (tmp_path / "again.toml").write_text(out)
    lines = out.splitlines()
    assert {"epochs = 4", "lr = 0.3", "batch_size = 7", "warmup = 0.1"} <= set(lines)
    monkeypatch.delenv("LABELSPACE_EPOCHS")
    monkeypatch.delenv("LABELSPACE_LR")
    assert run(capsys, "train", toy_folder, "--config", tmp_path / "again.toml", "--dry-run")[1] == out


@pytest.mark.parametrize(
    ("tokens", "code", "message"),
    [
        (["train", "--recipe", "dexml", "nowhere", "--out", "x"], 1, "nowhere"),
        (["train", "--recipe", "dexml", "."], 2, "add --out DIR"),
        (
            ["train", "--recipe", "dexml", ".", "--epochs", "0", "--out", "x"],
            2,
            "epochs: input should be greater than or equal to 1",
        ),
        (["train", "--recipe", "dexml", ".", "--epochz", "3"], 2, "--epochz"),
        (["train", ".", "--config", "none.toml"], 2, "none.toml"),
        (["predict", "nowhere", "-"], 1, "no such folder"),
        (["predict", "nowhere", "-", "--k", "0"], 2, "--k must be a whole number of at least 1"),
        (["predict", "nowhere", "-", "--k", "2.5"], 2, "--k is a whole number, got 2.5"),
        (["train", "--recipe", "dexml", ".", "--seed", "1.5", "--out", "x"], 2, "--seed is a whole number, got 1.5"),
        (["train", ".", "--max-words", "inf", "--out", "x"], 2, "--max-words is a whole number, got inf"),
        (["predict", "nowhere", "-", "--out", "x.doc"], 2, "must end in"),
        (["evaluate", "nowhere", "nowhere"], 1, "no such folder"),
        (["juggle"], 2, "juggle"),
    ],
)
def test_mistakes_end_in_one_message(
    tokens: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *tokens)
    assert (found, out) == (code, "")
    assert message in err and "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("labelspace: ")] == [err.splitlines()[-1]]
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_made_is_refused_early(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run(capsys, "train", toy_folder, "--out", tmp_path / "file" / "a" / "b")
    assert code == 1 and "file is a file; choose another folder" in err


def test_predict_does_not_overwrite_its_input(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text("red oak\n")
    code, _, err = run(capsys, "predict", trained, tmp_path / "t.txt", "--out", tmp_path / "t.txt")
    assert code == 2 and "is the file of texts itself" in err
    assert (tmp_path / "t.txt").read_text() == "red oak\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], "train needs DATA, which is missing; see"),
        (["train", "--resume", "there"], "train needs DATA, which is missing; see"),
        (["labels", "remove", "there"], "labels remove needs FILE, which is missing; see"),
        (["train", "there", "--epochs"], "--epochs requires an argument; see"),
    ],
)
def test_missing_arguments_are_named(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2 and expected in err


def test_unknown_environment_variables_are_named(
    toy_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELSPACE_EPOCS", "3")
    code, out, err = run(capsys, "train", toy_folder, "--recipe", "dexml", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["fit"]["epochs"] == 5 and "LABELSPACE_EPOCS" in err
    monkeypatch.delenv("LABELSPACE_EPOCS")
    assert "LABELSPACE" not in run(capsys, "train", toy_folder, "--dry-run")[2]


def test_a_dry_run_opens_data_and_the_encoder(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "train", toy_folder, "--encoder", tiny_transformer, "--dry-run")
    assert code == 0 and "300 documents, 25 labels" in err and "bert of 2 layers, width 32, 40 positions" in err
    code, out, err = run(capsys, "train", toy_folder, "--base", tiny_transformer, "--recipe", "dexml", "--dry-run")
    assert code == 0 and "static, of the tokens of" in err
    for wrong, message in (
        ([tmp_path / "no"], "there is no such file or folder"),
        ([toy_folder, "--encoder", tiny_transformer, "--max-tokens", 41], "but the encoder has 40 positions"),
        ([toy_folder, "--encoder", tmp_path], "has neither modules.json nor config.json"),
    ):
        code, out, err = run(capsys, "train", *wrong, "--dry-run")
        assert code in (1, 2) and out == "" and message in err
    (tmp_path / "config.json").write_text("{")
    code, out, err = run(capsys, "train", toy_folder, "--encoder", tmp_path, "--dry-run")
    assert code == 1 and out == "" and "cannot open the encoder" in err


def test_other_folders_are_not_overwritten(toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", toy_folder, "--out", toy_folder)
    assert code == 1 and "not a labelspace model" in err


def test_data_of_other_labels_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.csv").write_text("text,labels\na red oak,apples\nwild rose,pears\n")
    code, _, err = run(capsys, "evaluate", trained, tmp_path)
    assert code == 1 and "no label id in common" in err


def test_labels_are_matched_by_id_when_the_data_orders_them_otherwise(
    trained: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (toy_folder / "lbl.json").read_text().splitlines()]
    for name in ("trn", "tst"):
        documents = [json.loads(line) for line in (toy_folder / f"{name}.json").read_text().splitlines()]
        for document in documents:
            document["target_ind"] = sorted(24 - i for i in document["target_ind"])
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (tmp_path / "lbl.json").write_text("".join(json.dumps(r) + "\n" for r in rows[::-1]))
    _, out, err = run(capsys, "evaluate", trained, tmp_path, "--json", "--k", 25)
    _, expected, _ = run(capsys, "evaluate", trained, toy_folder, "--json", "--k", 25)
    assert json.loads(out)["metrics"] == json.loads(expected)["metrics"]


def test_ctrl_c_leaves_a_usable_model(toy_folder: Path, tiny_transformer: Path, forked: Runner, tmp_path: Path) -> None:
    command = [
        forked.tool("labelspace"),
        "train",
        str(toy_folder),
        "--recipe",
        "dexml",
        "--out",
        str(tmp_path / "m"),
    ]
    flags = ["--base", str(tiny_transformer), "--epochs", "100000", "--patience", "0", "--device", "cpu"]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, env=forked.environment)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 0"):
            break
    log, latest = tmp_path / "m.checkpoint" / "log.jsonl", time.monotonic() + 120
    while '"event": "step"' not in log.read_text() and time.monotonic() < latest:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0, rest
    assert "interrupted at step" in rest and "Traceback" not in rest
    assert "go on with --resume" in rest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.checkpoint"]
    model = ls.Model.load(tmp_path / "m")
    assert model.info["fit"]["stopped"] == "interrupted" and model.info["fit"]["best_step"] > 0
    assert model.predict("a red oak").indices.shape == (1, 5)


def test_sigterm_leaves_nothing_half_written(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-m", "labelspace", "predict", str(trained), "-", "--out", str(tmp_path / "out.jsonl")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "scratch")},
    )  # fmt: skip
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write("a red oak\n" * 10_000)
    process.stdin.flush()
    latest = time.monotonic() + 120
    while not list((tmp_path / "scratch").iterdir()) and process.poll() is None and time.monotonic() < latest:
        time.sleep(0.1)
    assert list((tmp_path / "scratch").iterdir()), "it waits for the rest of the texts"
    process.terminate()
    process.stdin.close()  # a read that began as the signal came is over, and the signal is seen before all else
    assert process.wait(300) == 143
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert [p.name for p in tmp_path.iterdir()] == ["scratch"] and not list((tmp_path / "scratch").iterdir())


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "--recipe", "dexml", "--help")
    assert code == 0 and "--temperature" in out and "[default: 0.05]" in out and "--max-minutes" in out
