"""The papers' runs: what their files say, and two steps of each on a small fake of its data set."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import KINDS, NOISE, TRAITS, random_truth
from presets_page import PAGE, page
from together import together

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.formats.filters import NAMES
from labelspace.errors import SettingsError
from labelspace.evaluation.metrics import propensity_constants
from labelspace.evaluation.published import data_sets, published
from labelspace.training.config import flat
from labelspace.training.presets import estimated_cost, preset_names, read_preset

DOCUMENTS, LABELS = 300, 60


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = [*KINDS, *TRAITS, *NOISE]
    return [" ".join(rng.choice(words, 6)) for _ in range(count)]


def truth(count: int, seed: int) -> sp.csr_array:
    """Every document has a label, some have one and some more than SoftTop-5 draws."""
    rng = np.random.default_rng(seed)
    matrix = random_truth(rng, count, LABELS, density=0.05).tolil()
    matrix[np.arange(count), rng.integers(LABELS, size=count)] = 1
    matrix[0, :8] = 1
    return sp.csr_array(matrix, dtype=np.float32)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def fake(name: str, folder: Path) -> Path:
    """A data set of a paper with all its files by their names, and 300 training documents."""
    wanted, root = data_sets()[name], folder / name
    counts = {"trn": DOCUMENTS, "tst": 40, "lbl": LABELS}
    for file in wanted.files:
        stem = file.removeprefix("raw/")[:3]
        if file.endswith(".npz"):
            stem = file.split(".")[1]
            sp.save_npz(root / file, sp.csr_matrix(truth(counts[stem], len(stem))))
        elif file == "Yf.txt":
            write(root / file, "".join(f"{i}->{text}\n" for i, text in enumerate(texts(LABELS, 2))))
        elif file.endswith(".txt"):
            stem = "lbl" if stem.startswith("Y") else stem
            write(root / file, "".join(f"{text}\n" for text in texts(counts[stem], len(stem))))
        else:
            own = truth(counts[stem], 3)
            rows = [{"uid": f"{stem}{i}", "title": text, "content": f"{text}, it's more!"}
                    for i, text in enumerate(texts(counts[stem], 4))]  # fmt: skip
            for i, row in enumerate(rows if stem != "lbl" else []):
                row["target_ind"] = own.indices[own.indptr[i] : own.indptr[i + 1]].tolist()
                row["target_rel"] = [1.0] * len(row["target_ind"])
            write(root / file, "".join(json.dumps(row) + "\n" for row in rows))
    for file in wanted.filters:
        assert file in {*NAMES["train"], *NAMES["test"]}
        write(root / file, "0 1\n2 3\n")
    return root


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("sets"), {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = fake(name, folder)
        return made[name]

    return of


@pytest.fixture(scope="session")
def small_distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT as the hub has it, not a sentence-transformers folder, but of two narrow layers."""
    from transformers import DistilBertConfig, DistilBertModel, DistilBertTokenizerFast

    folder = tmp_path_factory.mktemp("distilbert")
    letters = [f"{p}{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789" for p in ("", "##")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *KINDS, *TRAITS, *NOISE, ",", "!", "'"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    tokenizer = DistilBertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=512)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=2, hidden_dim=48)
    DistilBertModel(config).save_pretrained(folder)
    return folder


def arguments(preset: str, folder: Path, encoder: Path, *more: Any) -> list[str]:
    """Those of ``labelspace train`` by a preset, with a small encoder."""
    args = ["train", folder, "--preset", preset, "--encoder", encoder, "--device", "cpu", *more]
    return [str(arg) for arg in args]


def train(preset: str, folder: Path, encoder: Path, *more: Any) -> int:
    """Run that command."""
    return main(arguments(preset, folder, encoder, *more))


@pytest.mark.parametrize("name", preset_names())
def test_every_setting_has_a_source_and_every_run_is_resolved(name: str) -> None:
    preset = read_preset(name)
    resolved, given = flat(preset.resolved()), {n: v for part in preset.settings.values() for n, (v, _) in part.items()}
    assert {n: resolved[n] for n in given} == given
    for component, setting, _, source in preset.given:
        assert len(source) >= 4, (component, setting)
        if component != "reading":
            assert hasattr(getattr(preset.resolved(), component), setting)
    needed = {"encoder", "pooling", "dropout", "max_grad_norm", "token_lr_factor", "token_decay", "normalize", "epochs",
              "temperature", "max_tokens", "batch_size", "lr", "warmup", "schedule", "valid_fraction"}  # fmt: skip
    assert needed <= preset.values.keys() and {"num_positives", "positives"} & preset.values.keys()
    assert preset.values["dropout"] == 0.1 and preset.values["max_grad_norm"] == 0
    assert preset.values["token_lr_factor"] == 1 and preset.values["token_decay"] is True
    assert propensity_constants(preset.data_set.name) == preset.data_set.propensity
    assert preset.chosen_on_test[0] in ("yes", "not known") and preset.figures_from
    assert 0 < estimated_cost(preset).hours < 10_000 and estimated_cost(preset).gigabytes > 1


@pytest.mark.parametrize("name", preset_names())
def test_a_dry_run_opens_the_data_and_the_encoder(
    name: str, fakes: Callable[[str], Path], small_distilbert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = read_preset(name)
    assert train(name, fakes(preset.data_set.name), small_distilbert, "--dry-run", "--json") == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed.pop("recipe") == preset.recipe
    for component, setting, value, _ in preset.given:
        if component != "reading" and setting != "encoder":
            assert printed[component][setting] == value
    assert f"{DOCUMENTS} documents, {LABELS} labels" in err and "distilbert of 2 layers, width 32" in err
    assert f"for {preset.data_set.name} with {preset.data_set.documents:,} training documents" in err
    assert "is missing" not in err


SHORT = ["--epochs", 1, "--batch-size", 150, "--quiet", "--out"]
"""Two steps."""


def test_two_processes_take_two_steps_of_every_preset(
    fakes: Callable[[str], Path], small_distilbert: Path, tmp_path: Path
) -> None:
    folders = {name: fakes(read_preset(name).data_set.name) for name in preset_names()}
    wanted = [arguments(name, folder, small_distilbert, *SHORT, tmp_path / name) for name, folder in folders.items()]
    together((2, "commands", json.dumps(wanted)))
    for name in folders:
        model = ls.Model.load(tmp_path / name)
        assert model.info["fit"]["steps"] == 2 and model.info["recipe"] == read_preset(name).recipe


@pytest.mark.parametrize("name", preset_names())
def test_two_steps_on_a_fake_of_the_data_set(
    name: str, fakes: Callable[[str], Path], small_distilbert: Path, tmp_path: Path
) -> None:
    preset = read_preset(name)
    assert train(name, fakes(preset.data_set.name), small_distilbert, *SHORT, tmp_path / "run") == 0
    model, values = ls.Model.load(tmp_path / "run"), preset.values
    assert model.info["fit"]["steps"] == 2 and model.info["recipe"] == preset.recipe
    saved = flat(model.info["config"])
    changed = {"encoder", "epochs", "batch_size", *preset.reading}
    assert {n: saved[n] for n in values if n not in changed} == {n: v for n, v in values.items() if n not in changed}
    options = model.info["data"]["options"]
    assert {n: options[n] for n in preset.reading} == {n: v for n, (v, _) in preset.reading.items()}
    assert model.info["metrics"]["validation"] == {}
    assert model.memory.n_documents == (DOCUMENTS if preset.recipe == "raexmc" else 0)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert next(entry for entry in log if entry["event"] == "start")["documents"] == DOCUMENTS


def test_flags_environment_and_files_win_over_a_preset(
    fakes: Callable[[str], Path], small_distilbert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "run.toml").write_text("epochs = 3\nlr = 0.1\nwarmup = 0.3\n")
    monkeypatch.setenv("LABELSPACE_LR", "0.2")
    more = ["--config", tmp_path / "run.toml", "--warmup", 0.4, "--no-token-decay", "--fields", "content", "--dry-run"]
    assert train("dexml-lf-wikipedia-500k", fakes("LF-Wikipedia-500K"), small_distilbert, *more) == 0
    lines = set(capsys.readouterr().out.splitlines())
    assert {"epochs = 3", "lr = 0.2", "warmup = 0.4", "token_decay = false", "temperature = 1.0"} <= lines


def test_presets_in_python(fakes: Callable[[str], Path], small_distilbert: Path) -> None:
    short: dict[str, Any] = {"epochs": 1, "batch_size": 150, "encoder": str(small_distilbert), "device": "cpu"}
    model = ls.train(fakes("LF-Wikipedia-500K"), preset="dexml-lf-wikipedia-500k-mined", lr=1e-3, **short)
    saved, options = flat(model.info["config"]), model.info["data"]["options"]
    assert (saved["lr"], saved["num_negatives"], saved["clean"], saved["seed"]) == (1e-3, 5, "letters", 42)
    assert (options["fields"], options["valid_fraction"]) == ("title+title+content", 0.0)
    with pytest.raises(SettingsError, match="is a run of dexml, not of unidec"):
        ls.train(fakes("EURLex-4K"), "unidec", preset="dexml-eurlex-4k")


def test_what_does_not_fit_is_told(
    toy_folder: Path, small_distilbert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("dexml-eurlex", toy_folder, small_distilbert, "--dry-run") == 2
    assert "there is no preset 'dexml-eurlex'; did you mean dexml-eurlex-4k" in capsys.readouterr().err
    assert train("dexml-eurlex-4k", toy_folder, small_distilbert, "--recipe", "unidec", "--dry-run") == 2
    assert "the preset dexml-eurlex-4k is a run of dexml, not of unidec" in capsys.readouterr().err
    assert train("raexmc-lf-amazontitles-131k", toy_folder, small_distilbert, "--dry-run") == 0
    assert "filter_labels_test.txt is missing" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="labelspace presets lists them"):
        read_preset("qqqq")


def test_figures_stand_beside_those_that_are_published(
    fakes: Callable[[str], Path], small_distilbert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = fakes("LF-AmazonTitles-131K"), tmp_path / "run"
    short = ["--epochs", 1, "--batch-size", 150, "--out", out, "--quiet"]
    assert train("dexml-lf-amazontitles-131k-mined", folder, small_distilbert, *short) == 0
    capsys.readouterr()
    evaluate = ["evaluate", str(out), str(folder), "--published", "--quiet"]
    assert main([*evaluate, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row["figures"] for row in told["published"]["rows"]}
    assert list(rows)[0] == "this" and rows["this"]["PSP@5"] == told["metrics"]["PSP@5"]
    assert rows["DEXML"] == {"P@1": 42.52, "P@5": 20.64} and rows["RAE-XMC"]["R@100"] == 71.94
    (counts, chosen) = told["published"]["caveats"]
    assert "131,073 labels; this one has others" in counts and "DEXML" in chosen
    assert main(evaluate) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("published"))
    assert header.split() == ["published", "P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@100", "from"]
    renee = next(line for line in lines if line.startswith("Renee "))
    assert renee.split() == ["Renee", "46.05", "30.81", "22.04", "39.08", "45.12", "50.48", "-", "Renee"]
    assert f"- {chosen}" in lines
    options = ["--split", "train", "--skip-empty", "--propensity", "0.5", "0.4", "--valid-fraction", "0.2"]
    assert main([*evaluate, *options, "--json"]) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["published"]["caveats"])
    assert "are of train documents" in notes and "a = 0.6, b = 2.6" in notes and "240 of the 300" in notes


def test_what_is_published_is_whole(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_transformer: Path
) -> None:
    for name in data_sets():
        rows = published(name.lower().replace("-", "_"))
        assert rows and len({row.method for row in rows}) == len(rows)
        assert all(0 < value < 100 for row in rows for value in row.figures.values())
    for name in preset_names():  # figures of a preset are those of its row
        preset, own = read_preset(name), {"dexml": "DEXML", "unidec": "UniDEC", "raexmc": "RAE-XMC"}
        kind = {"softmax": "DEXML, softmax", "soft-top-k": "DEXML, SoftTop-5"}
        method = next((kind[end] for end in kind if name.endswith(end)), own[preset.recipe])
        row = next((row for row in published(preset.data_set.name) if row.method == method), None)
        if row is not None and preset.figures:
            assert preset.figures == row.figures
    ls.Model.from_encoder(str(tiny_transformer), ls.load(toy_folder)).save(tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model"), str(toy_folder), "--published"]) == 2
    assert "no figures are published for 'toy" in capsys.readouterr().err


def test_the_page_is_that_of_the_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run tests/presets_page.py and look at the difference"


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in preset_names()) and "P@1 86.78, P@5 60.19, R@100 91.75" in out
    assert main(["presets", "dexml-lf-wikipedia-500k-mined"]) == 0
    out = capsys.readouterr().out
    assert "LF-Wikipedia-500K: 1,813,391 training and 783,743 test documents, 501,070 labels" in out
    assert "num_neg_samples" in out and "chosen on test    yes" in out and "normalize = false" in out
    assert main(["presets", "unidec-lf-amazontitles-1.3m", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["settings"]["fit"]["lr"][0] == 1e-4 and shown["estimated_cost"]["hours"] > 1
    assert main(["presets", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list(preset_names())
    assert main(["presets", "nothing-here"]) == 2
