"""What is trained when no recipe is named."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import labelspace as ls
from labelspace.base.rates import products_per_second
from labelspace.cli.app import main
from labelspace.recipes.auto import FEW_PASSES, LEAST_PASSES, choose
from labelspace.recipes.seconds import BOTH_HEADS_PRODUCTS_PER_PAIR, TUNING_SECONDS, texts_per_second
from labelspace.training.config import defaults, flat, made, recipe_with
from labelspace.training.settings import EncoderSettings, RaexmcSettings, Request


def answered(data: ls.Dataset, **given: Any) -> tuple[str, Any]:
    """The recipe that is chosen, and its settings by flat name."""
    recipe, settings = choose(data, made(Request, given))
    return recipe, SimpleNamespace(**flat(settings))


def corpus(count: int, words: int, labels: int = 50) -> ls.Dataset:
    """As many documents of as many words."""
    texts = [" ".join(["word"] * words)] * count
    targets = sp.csr_array((np.ones(count, np.float32), np.arange(count) % labels, np.arange(count + 1)),
                           shape=(count, labels))  # fmt: skip
    names = [f"label {i}" for i in range(labels)]
    train = ls.Corpus([str(i) for i in range(count)], texts, targets)
    return ls.Dataset("made", ls.Labels(names, names), train, train.rows(np.zeros(0, np.int64)), None,
                      np.zeros(0, np.int64))  # fmt: skip


@pytest.mark.parametrize(
    "given, recipe",
    [
        ((), "auto"),
        (("epochs", "encoder", "memory"), "auto"),
        (("encoder_weight", "pool"), "auto"),
        (("negatives", "epochs"), "dexml"),
        (("loss",), "dexml"),
        (("negatives", "cap"), "auto"),  # no recipe has both
    ],
)
def test_settings_choose_the_recipe(given: tuple[str, ...], recipe: str) -> None:
    assert recipe_with(given) == recipe


def test_the_encoder_follows_from_the_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "labelspace")
    short = corpus(2000, 5)
    recipe, chosen = answered(short, device="cpu")
    assert recipe == "unidec" and chosen.encoder == "minilm" and chosen.encoder_weight == 0 and chosen.memory
    assert chosen.max_minutes == 60 and chosen.encoder_dim == chosen.classifier_dim == 0
    assert "no recipe was named: unidec with a memory of the documents with the encoder minilm" in caplog.text
    assert answered(short, device="cpu", max_minutes=0.01)[1].encoder == "static"
    long = corpus(2000, 500)
    rate = texts_per_second([long.train.texts, long.labels.texts], torch.device("cpu"), EncoderSettings())
    limit = LEAST_PASSES * 2050 / rate / 60
    assert answered(long, device="cpu", max_minutes=limit)[1].encoder == "static"
    assert answered(long, device="cpu", max_minutes=5 * limit)[1].encoder == "minilm"
    recipe, static = answered(short, device="cpu", encoder="static", classifier_labels="all")
    assert recipe == "unidec" and static.encoder_weight == 0.5 and static.encoder_dim is None


def test_static_with_a_memory_is_raexmc_unless_heads_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "labelspace")
    data = corpus(2000, 5, labels=1000)
    given: dict[str, Any] = {"device": "cpu", "encoder": "static", "max_minutes": 3.0, "temperature": 0.03, "seed": 4}
    recipe, chosen = answered(data, **given)
    assert recipe == "raexmc" and not hasattr(chosen, "encoder_dim") and "raexmc with a memory" in caplog.text
    assert {name: getattr(chosen, name) for name in given} == given
    own = SimpleNamespace(**defaults(RaexmcSettings))
    assert (chosen.range_max, chosen.mine_every, chosen.num_negatives) == (own.range_max, own.mine_every, 0)
    assert chosen.label_documents == own.label_documents and chosen.epochs == 30 and chosen.batch_size == 32
    assert answered(data, **given, num_negatives=1)[1].num_negatives == 1
    for asked in ({"pool": "all"}, {"memory": False}, {"encoder_weight": 0.5}, {"table_lr": 1e-3}):
        assert answered(data, **given, **asked)[0] == "unidec"  # type: ignore[arg-type]


def test_static_learns_rows_where_labels_have_documents_and_there_is_time() -> None:
    def chosen(data: ls.Dataset, **more: Any) -> tuple[str, Any]:
        return answered(data, **{"device": "cpu", "encoder": "static", "max_minutes": 3.0, **more})

    recipe, settings = chosen(corpus(2000, 5, labels=600))
    assert (recipe, settings.memory, settings.classifier_norm) == ("unidec", True, "tuned")
    assert chosen(corpus(2000, 5, labels=600), classifier_norm="both")[1].classifier_norm == "both"
    assert chosen(corpus(2000, 5, labels=700))[0] == "raexmc"
    assert chosen(corpus(40_000, 5, labels=10_000), max_minutes=0.05)[0] == "raexmc"


def test_batches_and_passes_follow_from_the_texts() -> None:
    few = answered(corpus(100, 5), device="cpu")[1]
    many = answered(corpus(40_000, 5), device="cpu")[1]
    assert few.batch_size == 32 and few.epochs == 30
    assert many.batch_size == 512 and many.epochs == 6
    assert 32 <= answered(corpus(9000, 5), device="cpu")[1].batch_size <= 256


def test_what_is_given_stays() -> None:
    given = {"encoder": "static", "epochs": 3, "batch_size": 17, "encoder_weight": 0.3, "memory": False, "seed": 5,
             "max_minutes": 2.0, "classifier_dim": 8}  # fmt: skip
    chosen = answered(corpus(300, 4), device="cpu", **given)[1]
    assert {name: getattr(chosen, name) for name in given} == given


def test_what_is_given_wins_over_what_would_be_chosen() -> None:
    plain = answered(corpus(300, 4), device="cpu", encoder="minilm")[1]
    assert plain.table_lr == 3e-3
    for given in ({"table_optimizer": "adagrad"}, {"classifier_labels": "all"}):
        assert answered(corpus(300, 4), device="cpu", encoder="minilm", **given)[1].table_lr is None  # type: ignore[arg-type]
    assert answered(corpus(300, 4), device="cpu", key_precision="float32")[1].key_precision == "float32"


def test_static_without_time_for_all_labels_picks_a_pool() -> None:
    data = corpus(4000, 5, labels=500)
    own = {"device": "cpu", "encoder": "static", "memory": False}
    a_minute = 60 * products_per_second(torch.device("cpu")) / BOTH_HEADS_PRODUCTS_PER_PAIR
    passes = a_minute / (4500 * 500)  # label texts included
    for factor, pool in ((1.1, "auto"), (0.9, "some")):
        chosen = answered(data, max_minutes=factor * FEW_PASSES / passes, **own)[1]  # type: ignore[arg-type]
        assert chosen.pool == pool and not chosen.clusters
    given = answered(data, max_minutes=1e-4, pool="all", **own)[1]  # type: ignore[arg-type]
    assert given.pool == "all"


def test_texts_without_blanks_are_long_all_the_same() -> None:
    data = corpus(2000, 5)
    english, chinese, device = [data.train.texts, data.labels.texts], [["书" * 200] * 2000], torch.device("cpu")
    for settings in (EncoderSettings(), EncoderSettings(long_documents="chunks")):
        assert texts_per_second(english, device, settings) > 10 * texts_per_second(chinese, device, settings)
    short = EncoderSettings(max_tokens=16)
    assert texts_per_second(chinese, device, short) > 5 * texts_per_second(chinese, device, EncoderSettings())


def test_the_memory_takes_its_part_of_the_time() -> None:
    """What is left for training decides, not the whole limit."""
    data = corpus(3000, 5)
    valid = dataclasses.replace(data, valid=data.train, valid_rows=np.zeros(0, np.int64))
    minutes = 1.05 * TUNING_SECONDS / 60
    for memory, encoder in ((True, "static"), (False, "minilm")):
        assert answered(valid, max_minutes=minutes, memory=memory, device="cpu")[1].encoder == encoder


def test_a_short_limit_still_trains_where_little_is_tuned(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    model = ls.train(toy_folder, out=out, encoder=str(tiny_transformer), max_minutes=0.2, device="cpu")
    assert model.info["fit"]["steps"] > 0 and model.memory.n_documents == 300


def test_a_job_that_names_auto_goes_on_by_its_own_command(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import labelspace.training.loop as trainer

    out = tmp_path / "run"
    flags = ["train", str(toy_folder), "--recipe", "auto", "--encoder", str(tiny_transformer), "--epochs", "2",
             "--device", "cpu", "--quiet", "--checkpoint-minutes", "0"]  # fmt: skip
    real, seen = trainer.clip_gradients, []

    def clip(*args: Any) -> float:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trainer, "clip_gradients", clip)
    command = [*flags, "--out", str(out), "--resume", str(out)]
    main(command)
    stopped = ls.Model.load(out)
    assert stopped.info["fit"]["stopped"] == "interrupted"
    assert stopped.memory.n_documents == 0  # ends at once: no document is encoded for the memory
    assert main(command) == 0
    model = ls.Model.load(out)
    assert model.info["fit"]["stopped"] == "finished" and model.memory.n_documents == 300


def test_only_variables_of_labelspace_are_settings(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOSS", "softmax")
    assert main(["train", str(toy_folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith('recipe = "auto"\n')
    monkeypatch.setenv("LABELSPACE_LOSS", "softmax")
    assert main(["train", str(toy_folder), "--dry-run"]) == 0
    assert 'recipe = "dexml"' in (out := capsys.readouterr().out) and 'loss = "softmax"' in out
    monkeypatch.delenv("LABELSPACE_LOSS")
    (tmp_path / "c.toml").write_text("epochs = 0\npositives = 3\n")
    config = ["train", str(toy_folder), "--config", str(tmp_path / "c.toml"), "--recipe"]
    assert main([*config, "raexmc", "--dry-run"]) == 0
    assert "epochs = 0\n" in capsys.readouterr().out
    assert main([*config, "dexml", "--dry-run"]) == 2
    assert "c.toml: " in capsys.readouterr().err


def test_a_run_without_a_recipe(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--encoder", str(tiny_transformer), "--epochs", "15", "--lr", "3e-3", "--device", "cpu", "--out", str(out)]
    assert main(["train", str(toy_folder), *flags, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["losses"]["encoder_weight"] == 0 and told["validation"]["P@1"] > 60
    model = ls.Model.load(out)
    assert model.info["recipe"] == "unidec" and model.memory.n_documents == 300
    assert model.heads is not None and model.heads.alike
    assert model.memory.document_keys.dim == model.encoder.dim < model.memory.label_keys.dim
    settings = (out / "settings.toml").read_text()
    assert 'recipe = "unidec"' in settings and "memory = true" in settings
    model.add_labels(["something new"])
    assert "something new" in [model.predict(["something new"], 3).named(0)[i][1] for i in range(3)]
    again = ls.train(toy_folder, out=tmp_path / "again", memory=False, **{
        "encoder": str(tiny_transformer), "epochs": 1, "device": "cpu"})  # fmt: skip
    assert again.memory.n_documents == 0
    assert main(["train", str(toy_folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith('recipe = "auto"\n')
    assert main(["train", str(toy_folder), "--negatives", "mined", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith('recipe = "dexml"\n')
