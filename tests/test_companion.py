"""UniDEC with a static encoder beside its transformer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelspace as ls
from labelspace.config import AutoSettings, RaexmcSettings, UnidecSettings
from labelspace.recipes import companion, raexmc
from labelspace.recipes.auto import COMPANION_VALID, choose


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder, valid_fraction=0.4)


def options(encoder: Path, **more: Any) -> dict[str, Any]:
    return {"recipe": "unidec", "encoder": str(encoder), "epochs": 3, "batch_size": 16, "device": "cpu", "memory": True,
            "encoder_weight": 0.0, "companion": "static", **more}  # fmt: skip


def test_both_encoders_answer(data: ls.Dataset, tiny_transformer: Path, tmp_path: Path) -> None:
    model = ls.train(data, out=tmp_path / "model", **options(tiny_transformer))
    assert [tower.encoder.row_sparse for tower in model.towers] == [False, True]
    assert model.info["recipe"] == "unidec" and model.info["companion"]["recipe"] == "raexmc"
    assert model.info["companion"]["config"]["base"] == str(tiny_transformer)
    assert model.memory.n_documents == len(data.train) and "tuning" in model.info and model.calibration is not None
    assert sum(tower.share for tower in model.towers) == pytest.approx(1)
    assert data.test is not None
    found = model.predict(data.test.texts)
    assert ls.evaluate(found, data.test.targets, ks=(1,))["P@1"] > 85
    assert model.info["metrics"]["validation"]["P@1"] > 85  # of both together, not of the transformer
    again = ls.Model.load(tmp_path / "model", "cpu")
    np.testing.assert_allclose(again.predict(data.test.texts).scores, found.scores, atol=1e-6)


def test_the_static_part_is_that_of_raexmc(data: ls.Dataset, tiny_transformer: Path) -> None:
    assert companion.passes(data, 16) == companion.MOST_PASSES  # the toy is small
    alone = ls.train(data, recipe="raexmc", encoder="static", base=str(tiny_transformer), evaluations=0, device="cpu",
                     epochs=companion.MOST_PASSES, batch_size=16)  # fmt: skip
    model = ls.train(data, **options(tiny_transformer))
    dim, share = alone.memory.label_keys.dim, model.towers[1].share
    np.testing.assert_allclose(
        model.memory.keys[:, -dim:].numpy() / share, alone.memory.keys.numpy(), atol=1e-4
    )  # nothing of the documents' vote, and nothing that the transformer's run drew before


def test_interrupted_the_transformer_stays_alone(
    data: ls.Dataset, tiny_transformer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(*given: Any, **more: Any) -> ls.Model:
        model = raexmc.train(*given, **more)
        model.info["fit"]["stopped"] = "interrupted"
        return model

    monkeypatch.setattr(companion, "train", stopped)
    model = ls.train(data, **options(tiny_transformer, epochs=1))
    assert len(model.towers) == 1 and "companion" not in model.info and "static was interrupted" in caplog.text
    assert model.memory.n_documents == len(data.train)


def test_a_time_limit_leaves_room_for_it(data: ls.Dataset) -> None:
    settings = UnidecSettings(memory=True, companion="static")
    few = companion.companion_seconds(data, settings, 512)
    assert few > companion.SETTING_UP
    many = dataclasses.replace(data, train=data.train.rows(np.tile(np.arange(len(data.train)), 200)))
    assert companion.companion_seconds(many, settings, 512) > few


def test_without_a_recipe_it_goes_with_a_transformer_where_there_is_time(data: ls.Dataset) -> None:
    rows = np.tile(np.arange(len(data.valid)), 1 + COMPANION_VALID // len(data.valid))
    valid = dataclasses.replace(data, valid=data.valid.rows(rows))
    plain = {"device": "cpu", "encoder": "minilm"}

    def chosen(given: ls.Dataset, **more: Any) -> Any:
        return choose(given, AutoSettings(**{**plain, **more}))[1]

    assert chosen(valid).companion == "static"
    assert chosen(valid, max_minutes=2.0).companion == "none"  # it would take more than a tenth
    assert chosen(data).companion == "none"  # too few to tell its share
    assert chosen(valid, memory=False).companion == "none"
    assert (
        chosen(valid, companion="none").companion == "none" and chosen(data, companion="static").companion == "static"
    )
    recipe, static = choose(valid, AutoSettings(device="cpu", encoder="static", companion="none"))
    assert recipe == "raexmc" and isinstance(static, RaexmcSettings)


def test_what_it_does_not_go_with(data: ls.Dataset, tiny_transformer: Path) -> None:
    with pytest.raises(ls.SettingsError, match="companion.*memory"):
        ls.train(data, **options(tiny_transformer, memory=False))
    with pytest.raises(ls.SettingsError, match="companion 'static' goes with a transformer"):
        ls.train(data, **{**options(tiny_transformer), "encoder": "static", "base": str(tiny_transformer)})
