"""UniDEC with a static encoder beside its transformer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import labelspace as ls
from labelspace.recipes import raexmc, seconds
from labelspace.recipes.auto import COMPANION_VALID, ENCODING, ENCODING_SHARE, choose
from labelspace.recipes.seconds import texts_per_second
from labelspace.training.config import flat, made
from labelspace.training.settings import EncoderSettings, FitSettings, Request


def answered(data: ls.Dataset, **given: Any) -> tuple[str, Any]:
    """The recipe that is chosen, and its settings by flat name."""
    recipe, settings = choose(data, made(Request, given))
    return recipe, SimpleNamespace(**flat(settings))


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
    assert model.info["companion"]["config"]["encoding"]["base"] == str(tiny_transformer)
    assert model.memory.n_documents == len(data.train) and "tuning" in model.info and model.calibration is not None
    assert sum(tower.share for tower in model.towers) == pytest.approx(1)
    assert data.test is not None
    found = model.predict(data.test.texts)
    assert ls.evaluate(found, data.test.targets, ks=(1,))["P@1"] > 85
    assert model.info["metrics"]["validation"]["P@1"] > 85  # of both together, not of the transformer
    again = ls.Model.load(tmp_path / "model", "cpu")
    np.testing.assert_allclose(again.predict(data.test.texts).scores, found.scores, atol=1e-6)


def test_documents_vote_by_the_companion(data: ls.Dataset, tiny_transformer: Path, tmp_path: Path) -> None:
    model = ls.train(data, out=tmp_path / "model", documents_by="companion", **options(tiny_transformer))
    assert [tower.encoder.row_sparse for tower in model.towers] == [True, False]
    assert model.info["recipe"] == "unidec" and model.info["config"]["voting"]["documents_by"] == "companion"
    alone = ls.train(data, recipe="raexmc", encoder="static", base=str(tiny_transformer), evaluations=0, device="cpu",
                     epochs=seconds.COMPANION_MOST_PASSES, batch_size=16)  # fmt: skip
    assert model.memory.document_keys.dim == alone.memory.document_keys.dim
    (mine,), (own,) = model.memory.document_keys.segments, alone.memory.document_keys.segments
    np.testing.assert_allclose(mine.keys.float().numpy(), own.keys.float().numpy(), atol=1e-2)
    assert data.test is not None
    found = model.predict(data.test.texts)
    assert ls.evaluate(found, data.test.targets, ks=(1,))["P@1"] > 85
    again = ls.Model.load(tmp_path / "model", "cpu")
    np.testing.assert_allclose(again.predict(data.test.texts).scores, found.scores, atol=1e-6)


def test_the_companion_may_have_a_classifier(data: ls.Dataset, tiny_transformer: Path, tmp_path: Path) -> None:
    model = ls.train(data, out=tmp_path / "model", **options(tiny_transformer, companion="static-unidec"))
    assert [tower.encoder.row_sparse for tower in model.towers] == [False, True]
    assert model.info["companion"]["recipe"] == "unidec" and model.towers[1].heads is not None
    alone = ls.train(data, recipe="unidec", encoder="static", base=str(tiny_transformer), evaluations=1, patience=0,
                     device="cpu", epochs=seconds.COMPANION_MOST_PASSES, batch_size=16)  # fmt: skip
    dim, share = alone.memory.label_keys.dim, model.towers[1].share
    np.testing.assert_allclose(model.memory.keys[:, -dim:].numpy() / share, alone.memory.keys.numpy(), atol=1e-4)
    assert model.memory.n_documents == len(data.train) and model.calibration is not None
    assert data.test is not None
    found = model.predict(data.test.texts)
    assert ls.evaluate(found, data.test.targets, ks=(1,))["P@1"] > 85
    np.testing.assert_allclose(
        ls.Model.load(tmp_path / "model", "cpu").predict(data.test.texts).scores, found.scores, atol=1e-6
    )


def test_the_static_part_is_that_of_raexmc(data: ls.Dataset, tiny_transformer: Path) -> None:
    assert seconds.companion_passes(data, 16) == seconds.COMPANION_MOST_PASSES  # the toy is small
    alone = ls.train(data, recipe="raexmc", encoder="static", base=str(tiny_transformer), evaluations=0, device="cpu",
                     epochs=seconds.COMPANION_MOST_PASSES, batch_size=16)  # fmt: skip
    model = ls.train(data, **options(tiny_transformer))
    dim, share = alone.memory.label_keys.dim, model.towers[1].share
    np.testing.assert_allclose(
        model.memory.keys[:, -dim:].numpy() / share, alone.memory.keys.numpy(), atol=1e-4
    )  # nothing of the documents' vote, and nothing that the transformer's run drew before


def test_interrupted_the_transformer_stays_alone(
    data: ls.Dataset, tiny_transformer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(*given: Any, **more: Any) -> ls.Model:
        model = train(*given, **more)
        model.info["fit"]["stopped"] = "interrupted"
        return model

    train = raexmc.train
    monkeypatch.setattr(raexmc, "train", stopped)
    model = ls.train(data, **options(tiny_transformer, epochs=1))
    assert len(model.towers) == 1 and "companion" not in model.info and "static was interrupted" in caplog.text
    assert model.memory.n_documents == len(data.train)


def test_a_time_limit_leaves_room_for_it(data: ls.Dataset) -> None:
    fit = FitSettings(batch_size=512)
    few = seconds.companion_seconds("static", data, fit)
    assert few > seconds.STATIC_SETUP_SECONDS
    many = dataclasses.replace(data, train=data.train.rows(np.tile(np.arange(len(data.train)), 200)))
    assert seconds.companion_seconds("static", many, fit) > few
    assert seconds.companion_seconds("none", many, fit) == 0
    needed = seconds.companion_seconds("static-unidec", many, fit)
    assert needed > seconds.STATIC_SETUP_SECONDS + seconds.CLASSIFIER_PASSES * seconds.classifier_pass_seconds(many)
    limited = dataclasses.replace(fit, max_minutes=needed / 60)
    assert seconds.companion_seconds("static-unidec", many, limited) < seconds.STATIC_SETUP_SECONDS + 0.3 * needed


def test_without_a_recipe_it_goes_with_a_transformer_where_there_is_time(
    data: ls.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.tile(np.arange(len(data.valid)), 1 + COMPANION_VALID // len(data.valid))
    valid = dataclasses.replace(data, valid=data.valid.rows(rows))
    plain = {"device": "cpu", "encoder": "minilm"}

    def chosen(given: ls.Dataset, **more: Any) -> Any:
        return answered(given, **{**plain, **more})[1]

    assert chosen(valid).companion == "static-unidec" and chosen(valid).documents_by == "encoder"
    monkeypatch.setattr("labelspace.recipes.auto.classifier_pass_seconds", lambda data: 1e4)
    assert chosen(valid).companion == "static"
    assert chosen(valid, max_minutes=0.8).companion == "none"  # it would take more than a third
    assert chosen(valid, max_minutes=0.8, documents_by="companion").companion == "static"
    assert chosen(data).companion == "none"  # too few to tell its share
    assert chosen(valid, memory=False).companion == "none"
    assert (
        chosen(valid, companion="none").companion == "none" and chosen(data, companion="static").companion == "static"
    )
    static = answered(valid, device="cpu", encoder="static", companion="none", max_minutes=0.01)
    assert static[0] == "raexmc" and not hasattr(static[1], "encoder_dim")


def test_without_a_recipe_documents_vote_by_it_where_encoding_them_takes_long(data: ls.Dataset) -> None:
    rows = np.tile(np.arange(len(data.valid)), 1 + COMPANION_VALID // len(data.valid))
    many = np.tile(np.arange(len(data.train)), 100)
    none = np.zeros(0, dtype=np.int64)
    large = dataclasses.replace(data, train=data.train.rows(many), valid_rows=none, valid=data.valid.rows(rows))

    def chosen(**more: Any) -> Any:
        return answered(large, device="cpu", **more)[1]

    kinds = [large.train.texts, large.labels.texts]
    encoding = ENCODING * len(many) / texts_per_second(kinds, torch.device("cpu"), EncoderSettings()) / 60
    minutes = encoding / ENCODING_SHARE
    assert chosen(max_minutes=1.5 * minutes).documents_by == "encoder"
    short = chosen(max_minutes=0.8 * minutes)
    assert (short.encoder, short.documents_by) == ("minilm", "companion") and short.companion != "none"
    alone = chosen(max_minutes=0.8 * minutes, companion="none", encoder="minilm")
    assert (alone.documents_by, alone.companion) == ("encoder", "none")


def test_what_it_does_not_go_with(data: ls.Dataset, tiny_transformer: Path) -> None:
    with pytest.raises(ls.SettingsError, match="companion.*memory"):
        ls.train(data, **options(tiny_transformer, memory=False))
    with pytest.raises(ls.SettingsError, match="documents_by.*there is no companion"):
        ls.train(data, **options(tiny_transformer, companion="none", documents_by="companion"))
    with pytest.raises(ls.SettingsError, match="documents_by.*in a memory alone"):
        ls.train(data, device="cpu", memory=False, documents_by="companion")
    with pytest.raises(ls.SettingsError, match="companion 'static' goes with a transformer"):
        ls.train(data, encoder="static", base=str(tiny_transformer), device="cpu", documents_by="companion")
    with pytest.raises(ls.SettingsError, match="companion 'static' goes with a transformer"):
        ls.train(data, **{**options(tiny_transformer), "encoder": "static", "base": str(tiny_transformer)})
