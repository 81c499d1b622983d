"""Several processes train as one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from together import together

import labelspace as ls
from labelspace.training import distributed
from labelspace.training.batches import of_labels
from labelspace.training.config import made
from labelspace.training.optim import RowAdagrad, RowAdamW, cut_rows, join_rows
from labelspace.training.required_memory import Shape, training_bytes
from labelspace.training.settings import DexmlSettings
from labelspace.types import Batch

CLOSE = 1e-4
"""Weights in float32, about 1 in size, after some dozen steps whose sums are made in another order."""


def test_gradients_and_weights_equal_those_of_one_process() -> None:
    together(*((count, case) for case in ("losses", "steps") for count in (1, 2, 3)))


def runs(tiny: Path) -> dict[str, dict[str, Any]]:
    static = {
        "encoder": "static", "base": str(tiny), "precision": "float32", "key_precision": "float32", "device": "cpu",
        "evaluations": 1, "batch_size": 50, "patience": 0, "lr": 0.02, "epochs": 1,
    }  # fmt: skip
    deep = {**static, "encoder": str(tiny), "lr": 3e-3, "dropout": 0.0, "epochs": 1}
    del deep["base"]
    unidec = {"recipe": "unidec", "head_dropout": 0.0, "table_dropout": 0.0}
    return {
        "dexml": {**static, "recipe": "dexml"},
        "dexml-mined": {**static, "recipe": "dexml", "negatives": "mined", "mine_every": 0.3, "memory": True},
        "dexml-deep": {**deep, "recipe": "dexml", "negatives": "in-batch"},
        "raexmc": {**static, "recipe": "raexmc", "num_negatives": 2},
        "raexmc-deep": {**deep, "recipe": "raexmc", "num_negatives": 1},
        "unidec": {**static, **unidec, "memory": True},
        "unidec-some": {**static, **unidec, "pool": "some", "clusters": True, "table_optimizer": "adagrad"},
        "unidec-all": {**static, **unidec, "classifier_labels": "all", "pool": "some"},
        "unidec-deep": {**deep, **unidec, "pool": "some", "directions": "both", "classifier_norm": "tuned"},
    }  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)} {name}": x.float()
        for file in sorted(folder.rglob("*.safetensors"))
        for name, x in load_file(file).items()
    }


def assert_alike(found: Path, expected: Path) -> None:
    a, b = ls.Model.load(found), ls.Model.load(expected)
    assert a.info["metrics"]["validation"] == pytest.approx(b.info["metrics"]["validation"], abs=0.1)
    mine, others = weights(found), weights(expected)
    assert mine.keys() == others.keys()
    for name, x in mine.items():
        torch.testing.assert_close(x, others[name], atol=CLOSE, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_recipes_end_as_with_one_process(toy_folder: Path, tiny_transformer: Path, tmp_path: Path) -> None:
    wanted = runs(tiny_transformer)
    together(*((count, "recipes", toy_folder, tmp_path / str(count), json.dumps(wanted)) for count in (1, 2, 3)))
    for name in wanted:
        for count in (2, 3):
            assert_alike(tmp_path / str(count) / name, tmp_path / "1" / name)
            log = (tmp_path / str(count) / name / "log.jsonl").read_text().splitlines()
            events = [json.loads(line)["event"] for line in log]
            assert events.count("start") == events.count("end") == 1


@pytest.mark.parametrize(
    ("name", "before", "after"), [("unidec", 1, 2), ("unidec", 2, 3), ("unidec-all", 2, 1), ("dexml-mined", 3, 2)]
)
def test_a_run_goes_on_with_more_or_fewer_processes(
    name: str, before: int, after: int, toy_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    settings = {**runs(tiny_transformer)[name], "checkpoint_minutes": 1e-9, "epochs": 1}
    if name == "unidec":
        settings["pool"] = "some"
    out = tmp_path / "run"
    together(
        (1, "recipes", toy_folder, tmp_path, json.dumps({"whole": settings})),
        (before, "stopped", toy_folder, out, 4, json.dumps(settings)),
        (after, "recipes", toy_folder, tmp_path, json.dumps({"run": {"resume": str(out)}})),
    )
    assert_alike(out, tmp_path / "whole")
    assert '"resumed"' in (out / "log.jsonl").read_text()


def test_torchrun_starts_them_again_after_one_was_killed(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    settings = {**runs(tiny_transformer)["unidec"], "checkpoint_minutes": 1e-9}
    together((1, "recipes", toy_folder, tmp_path, json.dumps({"whole": settings})))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    out = tmp_path / "killed"
    together((2, "killed", toy_folder, out, 5, json.dumps(settings)), launcher=launcher)
    assert_alike(out, tmp_path / "whole")
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert "resumed" in events


def test_an_error_of_one_process_is_told_once(toy_folder: Path, tiny_transformer: Path, tmp_path: Path) -> None:
    settings = runs(tiny_transformer)["dexml"]
    together((3, "failing", toy_folder, tmp_path / "run", json.dumps(settings)))
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(3)]
    assert [known for _, known in told].count(False) == 1
    assert ["this row is broken", False] in told and not (tmp_path / "run").exists()
    assert all("another process of this run has ended" in message for message, known in told if known)


def test_other_commands_are_not_one_of_several(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from labelspace.cli.app import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "predict works in one process"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert main(["predict", "nowhere", "text"]) == 2
        error = capsys.readouterr().err
        assert said in error and bool(error) == bool(said)


def test_a_batch_is_cut_by_labels() -> None:
    positives, hidden = np.array([[0, 0, 1], [1, 3, 2]]), np.array([[1], [0]])
    batch = Batch(np.array([7, 9]), np.array([2, 4, 6, 8]), positives, hidden, np.array([1, 2, 3], dtype=np.float32))
    part = of_labels(batch, slice(4, 8))
    assert part.pool is not None and part.hidden is not None and part.weights is not None
    assert part.pool.tolist() == [4, 6] and part.positives.tolist() == [[0, 1], [0, 1]]
    assert part.hidden.shape == (2, 0) and part.weights.tolist() == [1, 3] and part.rows is batch.rows
    every = of_labels(Batch(batch.rows, None, positives), slice(2, 5))
    assert every.pool is not None and every.pool.tolist() == [2, 3, 4]
    assert every.positives.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("kind", [RowAdamW, RowAdagrad])
def test_the_state_of_rows_is_cut_and_joined(kind: type[torch.optim.Optimizer]) -> None:
    table = torch.nn.Parameter(torch.zeros(9, 2))
    optimizer = kind([table])
    for rows in ([7, 1, 4], [1, 8]):
        indices = torch.tensor(rows)[None]
        table.grad = torch.sparse_coo_tensor(indices, torch.randn(len(rows), 2), table.shape, check_invariants=False)
        optimizer.step()
    state = optimizer.state[table]
    joined = join_rows([cut_rows(state, slice(0, 2)), cut_rows(state, slice(2, 3)), cut_rows(state, slice(3, 9))])
    for name, x in state.items():
        if "places" not in state and isinstance(x, torch.Tensor):
            assert torch.equal(joined[name], x)
    if "places" in state:
        assert joined["used"] == state["used"] == 4 and torch.equal(joined["places"] >= 0, state["places"] >= 0)
        touched = torch.tensor([1, 4, 7, 8])
        for name in ("exp_avg", "exp_avg_sq", "last"):
            assert torch.equal(joined[name][joined["places"][touched]], state[name][state["places"][touched]])
    assert joined["step"] == 2


def test_with_one_process_nothing_is_asked() -> None:
    x = torch.ones(3, 2)
    with distributed.group():
        assert distributed.size() == 1 and distributed.first() and distributed.span(5) == slice(0, 5)
        assert distributed.gather(x, 3) is x and distributed.reduce(x, "sum") is x and distributed.reduction() is None
        assert distributed.agree([0.5], [True]) == ([0.5], [True])


def test_the_page_has_the_memory_that_is_foreseen() -> None:
    page = (Path(__file__).parents[2] / "docs" / "processes.md").read_text()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| 1")]
    table += [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| 5")]
    assert len(table) == 4
    dim, settings = 768, made(DexmlSettings, {"batch_size": 4096})
    distilbert = Shape(4 * 66_362_880, dim, 6, dim, 12, 32)
    for size, *figures in table:
        for place, processes in enumerate((1, 2, 8, 16)):
            own = -(-int(size.replace(",", "")) // processes)
            assert float(figures[place]) == pytest.approx(training_bytes(settings, distilbert, own) / 1e9, abs=0.06)
            assert float(figures[place + 4]) == pytest.approx(own * dim * 16 / 1e9, abs=0.06)
