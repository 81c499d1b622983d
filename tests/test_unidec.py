"""The UniDEC recipe end to end on the toy corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import labelspace as ls


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


@pytest.fixture(scope="module")
def static(tiny_transformer: Path) -> dict[str, Any]:
    return {
        "encoder": "static", "base": str(tiny_transformer), "epochs": 12, "batch_size": 32, "lr": 0.02,
        "table_lr": 0.02, "precision": "float32", "device": "cpu", "evaluations": 2,
    }  # fmt: skip


def scores(model: ls.Model, data: ls.Dataset) -> dict[str, dict[str, float]]:
    assert data.test is not None
    found = model.rankings(data.test.texts, k=10)
    return {name: ls.evaluate(p, data.test.targets, data.train.targets) for name, p in found.items()}


def test_static_learns_the_toy_corpus_and_is_saved_whole(
    data: ls.Dataset, static: dict[str, Any], tmp_path: Path
) -> None:
    model = ls.train(data, recipe="unidec", out=tmp_path / "a", **static)
    found = scores(model, data)
    assert {name: found[name]["P@1"] >= 90 for name in found} == dict.fromkeys(
        ("combined", "encoder", "classifier"), True
    )
    again = ls.Model.load(tmp_path / "a")
    assert scores(again, data) == found
