"""Settings: defaults, bounds, files, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from labelspace.cli.app import main
from labelspace.errors import SettingsError
from labelspace.training.config import RECIPES, components, defaults, flat, made, read_config, resolve, to_dict, to_toml
from labelspace.training.settings import DexmlSettings, FitSettings


def test_defaults_and_given_values() -> None:
    settings = resolve("dexml", {"epochs": 3, "lr": 0.5})
    assert settings.fit.epochs == 3 and settings.fit.lr == 0.5
    assert settings == DexmlSettings(fit=FitSettings(epochs=3, lr=0.5))
    assert resolve("dexml", {"fit": FitSettings(epochs=3, lr=0.5)}) == settings
    assert resolve("dexml", {"fit": {"epochs": 3}, "lr": 0.5}) == settings


@pytest.mark.parametrize("recipe", RECIPES)
def test_names_are_flat_without_a_clash(recipe: str) -> None:
    parts = components(RECIPES[recipe])
    names = [field.name for part in parts.values() for field in dataclasses.fields(part)]
    assert len(names) == len(set(names)) and not set(names) & set(parts)
    settings = resolve(recipe, {})
    assert flat(settings) == defaults(RECIPES[recipe]) == flat(to_dict(settings))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1, got 0"),
        ({"lr": -1.0}, "lr: input should be greater than 0"),
        ({"loss": "hinge"}, "loss: .*decoupled_softmax"),
        ({"warmup": 1.0}, "warmup"),
        ({"lr": float("inf")}, "lr: input should be a finite number"),
        ({"seed": 2**70}, "seed: input should be less than"),
        ({"epochs": "many"}, "epochs: .*integer.*'many'"),
        ({"epochz": 3}, "no setting 'epochz'; did you mean epochs"),
        ({"loss": "bce", "positives": "sample"}, "does not go with the loss 'bce'"),
        ({"k": "positives", "positives": "sample"}, "give a number for k, or take all"),
        ({"tune_documents": 50}, "tune_documents: .*give memory too"),
        ({"k": 0}, "k: input should be greater than or equal to 1, got 0"),
        ({"uniform_negatives": 3}, "uniform_negatives: the negatives 'all' are every label"),
    ],
)
def test_mistakes_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        resolve("dexml", given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_setting_takes_infinity_or_what_is_no_number(recipe: str) -> None:
    hints = {n: kind for part in components(RECIPES[recipe]).values() for n, kind in get_type_hints(part).items()}
    names = [name for name, kind in hints.items() if float in (kind, *get_args(kind))]
    assert {"max_score", "lr", "warmup", "weight_decay", "mine_every", "temperature"} <= set(names)
    for name in names:
        for value in ("nan", "inf", "-inf"):
            with pytest.raises(SettingsError, match=f"{name}: .*{value}"):
                resolve(recipe, {name: float(value)})


def test_unknown_recipe() -> None:
    with pytest.raises(SettingsError, match="unknown recipe 'dxml'; choose one of: auto, dexml"):
        resolve("dxml", {})


@pytest.mark.parametrize("name", ["run.toml", "run.yaml", "run.json", "parts.toml"])
def test_files_are_read(tmp_path: Path, name: str) -> None:
    text = {"run.toml": 'batch-size = 7\nloss = "bce"\n', "run.yaml": "batch_size: 7\nloss: bce\n",
            "parts.toml": '[fit]\nbatch-size = 7\n[losses]\nloss = "bce"\n'}  # fmt: skip
    (tmp_path / name).write_text(text.get(name, '{"batch_size": 7, "loss": "bce"}'))
    assert read_config(tmp_path / name) == {"batch_size": 7, "loss": "bce"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "x = ", "not a valid configuration file"),
        ("a.yaml", "x: [", "not a valid configuration file"),
        ("a.yaml", "- 3", "holds names and values"),
        ("a.toml", "[fits]\nepochs = 3", "'fits' is a table, but settings have no such part; the tables are batches"),
        ("a.toml", "epochs = 3\n[fit]\nepochs = 3", "'epochs' is given twice"),
        ("a.toml", "[fit.epochs]\nx = 3", "'epochs' in 'fit' is a table"),
        ("a.ini", "epochs=3", "ends in .toml, .yaml or .json"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_config(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the configuration file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_config(tmp_path / "empty.yaml") == {}


def test_written_settings_give_the_same_settings(tmp_path: Path) -> None:
    given = {"epochs": 9, "encoder": 'a "quoted" path', "max_minutes": 1.5, "normalize": True}
    settings = made(DexmlSettings, given)
    (tmp_path / "s.toml").write_text(to_toml(settings, "dexml"))
    values = read_config(tmp_path / "s.toml")
    assert values.pop("recipe") == "dexml"
    assert resolve("dexml", values) == settings
    assert to_dict(settings)["encoding"]["projection"] is None


def test_settings_that_are_gone_are_taken_as_they_were_and_refused_otherwise(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "old.toml", tmp_path / "model"
    config.write_text(f'recipe = "unidec"\nadd_bce = 0.0\nepochs = 1\nbase = "{tiny_transformer}"\n')
    command = ["train", str(toy_folder), "--config", str(config), "--out", str(out), "--device", "cpu", "--quiet"]
    assert main(command) == 0 and (out / "manifest.json").exists()
    config.write_text('recipe = "unidec"\nadd_bce = 0.5\n')
    assert main([*command, "--overwrite"]) == 2
    assert "the setting 'add_bce' is gone, since it cost 2.8 points of P@1; leave it out" in capsys.readouterr().err
