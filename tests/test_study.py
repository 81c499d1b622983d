"""The study: a row from end to end on the toy data, and the page of results from the committed JSONs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import labelspace as ls
from labelspace.cli.app import main as labelspace
from labelspace.errors import SettingsError
from labelspace.evaluation import evaluating as evaluation

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


study, peers = module("study"), module("peers")


def command(*arguments: str | Path) -> str:
    """What goes wrong with a command, or nothing."""
    try:
        study.main([str(one) for one in arguments])
    except SystemExit as error:
        return str(error)
    return ""


def here(steps: Any, name: str, whole: list[str], shown: list[str] | None = None) -> None:
    """A step in this process, which is quicker than one of its own."""
    if whole[1] == "-m":
        assert labelspace(whole[3:]) == 0
    else:
        study.main(whole[2:])
    steps.done[name] = {"seconds": 2.0, "peak_memory_gb": 1.0, "command": " ".join(shown or []), "attempts": 1}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_page_is_what_the_committed_jsons_give() -> None:
    page, drawn = study.rendered(BENCHMARKS / "results", BENCHMARKS / "results.md", ROOT / "docs" / "img")
    assert page == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    there = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "img").glob("results-*.svg")}
    assert there == drawn
    for picture in drawn.values():
        ElementTree.fromstring(picture)


def test_the_part_of_the_readme_is_what_the_committed_jsons_give() -> None:
    page, drawn = study.rendered(BENCHMARKS / "results", BENCHMARKS / "readme-table.md", ROOT)
    found = re.findall(r"<!-- results -->\n(.*?)<!-- end of results -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found == [page] and not drawn


def test_no_figure_is_typed_and_no_path_of_a_machine_is_kept() -> None:
    typed = r"\d[.,]\d"
    template = re.sub(r"\{\{.*?\}\}", "", (BENCHMARKS / "results.md").read_text(encoding="utf-8"))
    assert not re.findall(typed, template)
    for file in (BENCHMARKS / "rows").glob("*.toml"):
        row = study.read_row(file)
        assert not re.findall(typed, row.note), file
        for other in (row.after, row.against):
            assert other is None or (BENCHMARKS / "rows" / f"{other}.toml").exists(), file

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for pair in value.items() for inner in pair for text in strings(inner)]
        if isinstance(value, list):
            return [text for inner in value for text in strings(inner)]
        return [value] if isinstance(value, str) else []

    for file in (BENCHMARKS / "results").glob("*.json"):
        for text in strings(json.loads(file.read_text(encoding="utf-8"))):
            assert not re.search(r"(^|[\s=\"'])(/|[A-Z]:\\)\w", text), (file, text)


def test_a_row_runs_from_end_to_end_once(
    tmp_path: Path,
    toy_folder: Path,
    tiny_transformer: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, out, work = tmp_path / "rows", tmp_path / "results", tmp_path / "work"
    rows.mkdir()
    train = ["train", "--recipe", "unidec", "--encoder", str(tiny_transformer), "--epochs", "1", "--lr", "1e-3"]
    first = {"title": "toy", "family": "toys", "steps": [train]}
    second = {"title": "toy, with memory", "after": "toy", "against": "toy", "steps": [["tune"]]}
    for name, row in (("toy", first), ("toy-memory", second)):
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in row.items())
        (rows / f"{name}.toml").write_text(text)
    options = ["--out", out, "--work", work, "--conditions", "a test"]
    assert "run the row toy first" in command("run", rows / "toy-memory.toml", toy_folder, *options)
    assert command("run", rows / "toy.toml", toy_folder, *options) == ""
    with monkeypatch.context() as patch:
        patch.setattr(study.Steps, "run", here)
        assert command("run", rows / "toy-memory.toml", toy_folder, *options) == ""
    told = json.loads((out / "toy-0.json").read_text())
    data = ls.load(toy_folder)
    assert data.test is not None
    model = ls.Model.load(work / "toy-0" / "model")
    pred = model.predict(data.test.texts, k=25)
    expected = evaluation.evaluate(pred, data.test.targets, data.train.targets, name=data.name)
    found = told["rankings"]["combined"]["metrics"]
    assert {name: pair["value"] for name, pair in found.items()} == pytest.approx(expected, abs=2e-4)
    assert all(pair["low"] <= pair["value"] <= pair["high"] for name, pair in found.items() if name != "coverage@5")
    assert list(told["rankings"]) == ["combined", "classifier", "encoder"]
    assert model.heads is not None and set(told["rankings"]["encoder"]) == {"metrics", "counts", "propensity"}
    assert told["machine"]["conditions"] == "a test" and told["machine"]["threads"] == 1
    assert set(told["seconds"]["parts"]) == {"train"} and told["peak_memory_gb"]["train"] > 0.05
    assert told["seconds"]["total"] == told["seconds"]["parts"]["train"] > 0
    assert [point["step"] for point in told["curve"]][0] == 0 and "nDCG@5" in told["curve"][-1]
    assert told["commands"][0].startswith("labelspace train DATA --recipe unidec")
    words = told["rankings"]["combined"]["length"]
    assert sum(group["documents"] for group in words.values()) == len(data.test)
    sizes = np.diff(data.test.targets.indptr)
    rows_of_two = np.flatnonzero(sizes <= 2)
    own = told["rankings"]["combined"]["labels"]["1-2"]
    hits = evaluation.ranked(pred, data.test.targets)[1][rows_of_two, 0]
    assert own["documents"] == len(rows_of_two) and own["P@1"] == pytest.approx(100 * hits.mean(), abs=1e-4)
    frequency = told["rankings"]["combined"]["frequency"]
    assert frequency["unseen"]["labels"] == int((np.bincount(data.train.targets.indices, minlength=25) == 0).sum())

    after = json.loads((out / "toy-memory-0.json").read_text())
    assert set(after["seconds"]["parts"]) == {"train", "tune"} and after["seconds"]["parts"]["tune"] == 2
    assert after["keys"]["documents"] == len(data.train)
    one = after["against"]["P@5"]
    assert one["a"] == pytest.approx(found["P@5"]["value"], abs=2e-4)
    assert one["b"] == pytest.approx(after["rankings"]["combined"]["metrics"]["P@5"]["value"], abs=2e-4)

    before = {file: file.read_bytes() for file in out.iterdir()}
    assert command("run", rows / "toy.toml", toy_folder, *options) == ""
    assert "there already" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    (rows / "toy.toml").write_text((rows / "toy.toml").read_text() + 'note = "new"\n')
    assert command("run", rows / "toy.toml", toy_folder, *options) == ""
    renewed = json.loads((out / "toy-0.json").read_text())
    assert renewed["config"].pop("note") == "new" and told["config"].pop("note") == "" and renewed == told
    (rows / "toy.toml").write_text((rows / "toy.toml").read_text().replace('"1e-3"', '"1e-4"'))
    assert "is of another toy" in command("run", rows / "toy.toml", toy_folder, *options)

    assert command("alone", toy_folder, "--rows", "toy", "toy-memory", "--out", out, "--work", work) == ""
    counted = json.loads((out / "alone.json").read_text())
    assert counted["first"]["each"][0] == pytest.approx(found["P@1"]["value"], abs=1e-3)
    total = counted["first"]["all"] + sum(counted["first"]["alone"]) + counted["first"]["none"]
    assert total == pytest.approx(100, abs=1e-3)

    assert (
        command("mistakes", work / "toy-0" / "model", toy_folder, "--count", "3", "--out", out / "mistakes.json") == ""
    )
    drawn = json.loads((out / "mistakes.json").read_text())
    assert len(drawn["mistakes"]) == 3 and drawn["drawn"] >= 3
    for one in drawn["mistakes"]:
        assert one["text"] and one["predicted"]["text"] not in one["true"]
        one["class"], one["reason"] = "near-synonym", "a | b"
    template = tmp_path / "page.md"
    template.write_text("{{value toy P@1}} {{table labelspace}}\n{{against_time P@1}}\n{{curves nDCG@5}}\n{{alone}}\n")
    (out / "mistakes.json").write_text(json.dumps(drawn))
    assert command("render", out, "--out", tmp_path / "docs" / "page.md", "--template", template) == ""
    page = (tmp_path / "docs" / "page.md").read_text()
    assert page.startswith(f"{found['P@1']['value']:.2f} ") and "| toy, with memory |" in page
    assert len(list((tmp_path / "docs" / "img").glob("results-*.svg"))) == 2
    (tmp_path / "other.md").write_text("a\n<!-- results -->\nold\n<!-- end of results -->\nb\n")
    assert command("render", out, "--into", tmp_path / "other.md", "--template", template) == ""
    assert (tmp_path / "other.md").read_text() == f"a\n<!-- results -->\n{page}<!-- end of results -->\nb\n"
    template.write_text("{{share near-synonym}} {{ceiling near-synonym}} {{mistakes}}")
    assert study.rendered(out, template, tmp_path)[0].startswith("100% 100% |")
    for wrong, said in (("{{value none P@1}}", "has no results"), ("{{_minutes toy}}", "unknown")):
        template.write_text(wrong)
        with pytest.raises(SettingsError, match=said):
            study.rendered(out, template, tmp_path)


def test_an_untrained_encoder_on_validation_documents(tmp_path: Path, toy_folder: Path, tiny_transformer: Path) -> None:
    run, split = tmp_path / "run", ["--split", "valid"]
    assert command("_untrained", toy_folder, run / "model", "--encoder", tiny_transformer) == ""
    assert command("_rank", toy_folder, run / "model", run / "scores", *split) == ""
    assert command("_measure", toy_folder, run, *split, "--against", run / "scores") == ""
    told = json.loads((run / "measured.json").read_text())
    data = ls.load(toy_folder)
    pred = ls.Model.from_encoder(str(tiny_transformer), data.labels).predict(data.valid.texts, k=25)
    expected = evaluation.evaluate(pred, data.valid.targets, data.train.targets, name=data.name)
    found = {name: pair["value"] for name, pair in told["rankings"]["combined"]["metrics"].items()}
    assert found == pytest.approx(expected, abs=2e-4) and told["data"]["valid"] == len(data.valid)
    assert all(pair["difference"] == pair["low"] == pair["high"] == 0 for pair in told["against"].values())


def test_a_killed_training_goes_on(tmp_path: Path, toy_folder: Path) -> None:
    """A step that began before is resumed where a checkpoint is, and steps that are done are not repeated."""
    steps = study.Steps(tmp_path, {"title": "x", "steps": []})
    touch = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'a').write('x')"]
    steps.run("one", touch, ["one"])
    study.Steps(tmp_path, {"title": "y", "steps": []}).run("one", touch, ["one"])
    assert (tmp_path / "ran").read_text() == "x" and steps.done["one"]["seconds"] >= 0
    with pytest.raises(SettingsError, match="another row"):
        study.Steps(tmp_path, {"title": "x", "steps": [["train"]]})
    with pytest.raises(SystemExit, match="exit code 3"):
        steps.run("two", [sys.executable, "-c", "import sys; print('broken'); sys.exit(3)"])
    (tmp_path / "model.checkpoint").mkdir()
    (tmp_path / "model.checkpoint" / "run.json").write_text("{}")
    seen: list[list[str]] = []
    steps.run = lambda name, command, shown=None: seen.append(command)  # type: ignore[method-assign]
    row = study.Row(title="x", steps=[["train", "--lr", "1"]])
    study._run_steps(row, 0, toy_folder, tmp_path, steps)
    assert "--resume" in seen[0] and "--lr" not in seen[0]


def test_a_peer_runs_and_is_measured_alike(tmp_path: Path, toy_folder: Path) -> None:
    row = tmp_path / "toy-knn.toml"
    row.write_text('title = "kNN"\ngroup = "peers"\npeer = "knn"\n')
    assert (
        command("run", row, toy_folder, "--out", tmp_path / "out", "--work", tmp_path / "work", "--limit", "200") == ""
    )
    told = json.loads((tmp_path / "out" / "toy-knn-0.json").read_text())
    assert told["limit"] == 200 and told["data"]["train"] == 200 and told["settings"]["tfidf"]["min_df"] == 2
    assert set(told["seconds"]["parts"]) == {"read", "features", "train"} and told["seconds"]["evaluate"] >= 0
    assert told["rankings"]["combined"]["metrics"]["P@1"]["value"] > 60
    with pytest.raises(SettingsError, match="part of the data"):
        study.Results(tmp_path / "out", tmp_path)


def test_nearest_documents_and_votes_are_those_of_plain_loops() -> None:
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    queries, documents = (sp.csr_matrix(rng.random((n, 8)) * (rng.random((n, 8)) < 0.5)) for n in (5, 30))
    truth = sp.csr_matrix((rng.random((30, 7)) < 0.3).astype(np.float64))
    found = peers._votes(peers._nearest(queries, documents, 10), truth, 4, 2, 7).toarray()
    similar = queries.toarray() @ documents.toarray().T
    for query in range(5):
        expected = np.zeros(7)
        for document in np.argsort(-similar[query])[:4]:
            expected += similar[query, document] ** 2 * truth.toarray()[document]
        assert found[query] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('title = "x"\ncolour = 1\n', "no 'colour'"),
        ('title = "x"\n', "either steps or a peer"),
        ('title = "x"\nsteps = [["tune"]]\n', "first step trains"),
        ('title = "x"\nsteps = [["evaluate"], ["train"]]\n', "steps are"),
        ('title = "x"\ngroup = "y"\npeer = "knn"\n', "the group is"),
        ('title = "x"\nsplit = "valid"\npeer = "knn"\n', "test part"),
    ],
)
def test_rows_that_cannot_be_run_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "row.toml").write_text(text)
    with pytest.raises(SettingsError, match=said):
        study.read_row(tmp_path / "row.toml")
