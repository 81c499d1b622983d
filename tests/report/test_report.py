"""Reports: figures against the dullest computation, and a page that is whole, valid, and shows text as text."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import labelspace as ls
from labelspace.cli.app import main
from labelspace.evaluation import comparing
from labelspace.report import charts
from labelspace.report.measuring import measure
from labelspace.report.page import render

SVG = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


@pytest.fixture(scope="module")
def runs(toy_folder: Path, tiny_transformer: Path, data: ls.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: ``trained`` by DEXML, and ``memory``, an untrained encoder with documents."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--base", str(tiny_transformer), "--epochs", "6", "--batch-size", "32", "--lr", "0.02", "--quiet"]
    assert (
        main(
            ["train", "--recipe", "dexml", str(toy_folder), "--out", str(folder / "trained"), "--device", "cpu", *flags]
        )
        == 0
    )
    ls.Model.from_encoder(str(tiny_transformer), data, device="cpu").save(folder / "memory")
    return folder


@pytest.fixture(scope="module")
def told(runs: Path, data: ls.Dataset) -> dict[str, Any]:
    return measure([runs / "trained", runs / "memory"], data, draws=200, device="cpu")


def parsed(page: str) -> ElementTree.Element:
    """The page as XML, which it is too; with unique ids, and nothing that is run or fetched."""
    head, _, rest = page.partition("\n")
    assert head == "<!DOCTYPE html>"
    root = ElementTree.fromstring(rest)
    elements = list(root.iter())
    ids = [one.get("id") for one in elements if one.get("id")]
    assert len(ids) == len(set(ids))
    for one in elements:
        name = one.tag.removeprefix(SVG)
        assert name not in ("script", "iframe", "img", "object", "embed", "use", "image", "foreignObject")
        assert not [key for key in one.attrib if key.startswith("on") or key in ("src", "srcset", "style")]
        href = one.get("href", "#")
        assert (href.startswith("#") and (href == "#" or href[1:] in ids)) or href == "data:,"
        for key in ("aria-labelledby", "aria-describedby"):
            assert one.get(key) is None or one.get(key) in ids
    assert "url(" not in page and "@import" not in page and "NaN" not in page and "inf" not in page.split()
    return root


def text_of(root: ElementTree.Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


def test_figures_are_those_of_evaluate_and_compare(told: dict[str, Any], runs: Path, data: ls.Dataset) -> None:
    assert data.test is not None
    preds = {name: ls.Model.load(runs / name, "cpu").predict(data.test.texts, k=25) for name in ("trained", "memory")}
    for run in told["runs"]:
        expected = ls.evaluate(preds[run["name"]], data.test.targets, data.train.targets, name=data.name)
        assert {m: one["value"] for m, one in run["measured"]["metrics"].items()} == pytest.approx(expected)
        assert run["measured"]["counts"]["documents"] == 80
    both = comparing.compare(
        preds["trained"], preds["memory"], data.test.targets, data.train.targets, name=data.name, draws=200
    )
    assert [(pair["a"], pair["b"]) for pair in told["comparisons"]] == [("trained", "memory")]
    for metric, one in told["comparisons"][0]["metrics"].items():
        assert one == pytest.approx(both[metric])


def test_intervals_are_percentiles_of_redrawn_documents() -> None:
    rng = np.random.default_rng(3)
    truth = (rng.random((30, 6)) < 0.4).astype(float)
    indices = np.argsort(rng.random((30, 6)))[:, :2]
    pred = ls.Predictions(indices, np.tile([2.0, 1.0], (30, 1)))
    found = comparing.intervals(pred, sp.csr_array(truth), ks=(2,), draws=50, seed=7)["P@2"]
    hits = [sum(truth[i, j] for j in indices[i]) / 2 for i in range(30)]
    generator = np.random.default_rng(7)
    means = [100 * np.mean([hits[i] for i in generator.integers(30, size=30)]) for _ in range(50)]
    assert found["value"] == pytest.approx(100 * np.mean(hits))
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    with pytest.raises(ls.SettingsError, match="draws"):
        comparing.intervals(pred, truth, draws=0)


def test_mistaken_pairs_are_counted(told: dict[str, Any], runs: Path, data: ls.Dataset) -> None:
    assert data.test is not None
    pred = ls.Model.load(runs / "memory", "cpu").predict(data.test.texts, k=5)
    many: Counter[tuple[str, str]] = Counter()
    for row in range(80):
        true = data.test.targets[[row]].indices.tolist()
        first = int(pred.indices[row, 0])
        if first in true:
            continue
        many.update((data.labels.ids[t], data.labels.ids[first]) for t in true if t not in pred.indices[row])
    shown = told["runs"][1]["measured"]["mistaken"]
    assert 2 <= len(shown) <= 15 and [one["documents"] for one in shown] == sorted(
        (o["documents"] for o in shown), reverse=True
    )
    for one in shown:
        a, b = one["true"]["id"], one["predicted"]["id"]
        assert (many[a, b], many[b, a]) == (one["documents"], one["other_way_round"])
        assert one["of"] == data.test.targets[:, [data.labels.ids.index(a)]].nnz
    assert shown[0]["documents"] == max(many.values())


def test_examples_are_the_best_and_the_worst_and_say_why(told: dict[str, Any], runs: Path, data: ls.Dataset) -> None:
    assert data.test is not None
    pred = ls.Model.load(runs / "memory", "cpu").predict(data.test.texts, k=5)
    values = {}
    for row in range(80):
        true = set(data.test.targets[[row]].indices.tolist())
        gain = sum(1 / np.log2(k + 2) for k, label in enumerate(pred.indices[row].tolist()) if label in true)
        values[data.test.ids[row]] = 100 * gain / sum(1 / np.log2(k + 2) for k in range(min(5, len(true))))
    part = told["runs"][1]["measured"]
    ordered = sorted(values.values())
    assert [one["nDCG@5"] for one in part["best"]] == pytest.approx(ordered[::-1][:3])
    assert [one["nDCG@5"] for one in part["worst"]] == pytest.approx(ordered[:3])
    for one in [*part["best"], *part["worst"]]:
        assert values[one["id"]] == pytest.approx(one["nDCG@5"])
        row = data.test.ids.index(one["id"])
        assert one["text"] == data.test.texts[row]
        true = {data.labels.ids[j] for j in data.test.targets[[row]].indices}
        assert {label["id"] for label in one["true"]} == true
        for label in one["predicted"]:
            assert label["right"] == (label["id"] in true) and 1 <= len(label["why"]) <= min(3, label["keys"])
            if label["keys"] <= 3:
                assert sum(reason["share"] for reason in label["why"]) == pytest.approx(label["score"], abs=1e-4)


def test_the_page_is_whole_and_shows_the_figures(told: dict[str, Any]) -> None:
    page = render(told)
    root = parsed(page)
    charts_there = [one for one in root.iter() if one.get("class") == "chart"]
    assert len(charts_there) >= 7
    for chart in charts_there:
        assert chart.find(f"{SVG}title").text and chart.find(f"{SVG}desc").text  # type: ignore[union-attr]
    said = text_of(root)
    for run in told["runs"]:
        one = run["measured"]["metrics"]["P@1"]
        assert f"{one['value']:.2f} {one['low']:.1f}–{one['high']:.1f}" in said
    names = [one.text for one in root.iter(f"{SVG}h2")]
    assert names[:4] == ["Metrics", "Differences", "Learning curves", "Quality by label frequency"]
    assert {"Labels mistaken for each other", "Best and worst examples", "Data", "Cost"} <= set(names)


def test_without_data_the_page_shows_what_the_folder_records(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    assert main(["report", str(runs / "trained"), "--out", str(out), "--quiet"]) == 0
    root = parsed(out.read_text(encoding="utf-8"))
    info = json.loads((runs / "trained" / "manifest.json").read_text())["info"]
    assert f"P@1 {info['metrics']['validation']['P@1']:.2f}" in text_of(root)
    assert len([one for one in root.iter() if (one.get("class") or "").startswith("m ")]) >= 2 * len(
        info["fit"]["curve"]
    )
    again = tmp_path / "again.html"
    assert main(["report", str(runs / "trained"), "--out", str(again), "--quiet"]) == 0
    assert out.read_bytes() == again.read_bytes()
    told = measure([runs / "trained"])["runs"][0]
    assert told["cost"]["steps"] == info["fit"]["steps"]
    size = sum(file.stat().st_size for file in (runs / "trained").rglob("*") if file.is_file())
    assert told["cost"]["bytes"] == size


def test_validation_documents_do_not_vote_for_themselves(runs: Path, data: ls.Dataset) -> None:
    model = ls.Model.load(runs / "memory", "cpu")
    pred = model.predict(data.valid.texts, k=25, left_out=model.held_out(data))
    expected = ls.evaluate(pred, data.valid.targets, data.train.targets, name=data.name)
    told = measure([runs / "memory"], data, split="valid", draws=2, device="cpu")
    assert told["runs"][0]["measured"]["metrics"]["P@1"]["value"] == pytest.approx(expected["P@1"])
    assert "validation documents" in told["notes"][0]
    assert len(measure([runs / "memory"], data, documents=7, draws=2)["runs"][0]["measured"]["best"]) <= 3


HOSTILE = "<script>alert('1')</script> & \"x\" \x00\x0b\ud800 ]]> <b>\ufffe"


def test_text_stays_text(tiny_transformer: Path, tmp_path: Path) -> None:
    names = [HOSTILE, "red oak", "tall fern"]
    targets = sp.csr_array(np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=np.float32))
    corpus = ls.Corpus(["<i>a</i>", "b", "c\x00", "d"], [HOSTILE + str(i) for i in range(4)], targets)
    data = ls.Dataset("a <data> & set", ls.Labels(["L<0>", "L1", "L2"], names), corpus, corpus, corpus)
    model = ls.Model.from_encoder(
        str(tiny_transformer), ls.Labels(["L<0>", "L1", "own"], ["x", "y", "z"]), device="cpu"
    )
    model.add_documents([HOSTILE], [["L<0>"]])
    folder = tmp_path / "run <&> one"
    model.save(folder)
    told = measure([folder], data, draws=5, device="cpu")
    assert json.loads(json.dumps(told)) == told
    assert (
        told["runs"][0]["measured"]["labels_only_in_model"],
        told["runs"][0]["measured"]["labels_only_in_data"],
    ) == (1, 1)
    page = render(told)
    page.encode("utf-8")
    said = text_of(parsed(page))
    assert "<script>alert('1')</script> & \"x\"" in said and "run <&> one" in said
    assert "<script" not in page


def test_curves_and_logs_may_be_damaged(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(runs / "trained", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["info"]["fit"] = {"curve": [{"step": 0, "seconds": None, "nDCG@5": float("nan")}, "x"], "seconds": None}
    manifest["info"]["metrics"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    kept = [line for line in (folder / "log.jsonl").read_text().splitlines() if '"event": "step"' not in line]
    (folder / "log.jsonl").write_text("\n".join(kept) + "\n")  # how many of these a run writes depends on its time
    with (folder / "log.jsonl").open("a") as log:
        for peak in (1.25, 2.5, 2.0):
            log.write(json.dumps({"event": "step", "peak_memory_gb": peak, "texts_per_second": 100 * peak}) + "\n")
        log.write('{"event": "st\n')
    told = measure([folder, runs / "trained"])
    cost = told["runs"][0]["cost"]
    assert (cost["peak_memory_gb"], cost["texts_per_second"], cost["seconds"]) == (2.5, 200, None)
    said = text_of(parsed(render(told)))
    assert "copy" in said and "2.5 GB" in said


@pytest.mark.parametrize(
    ("tokens", "code", "message"),
    [
        (["trained"], 2, "no file to write the page to was given; add --out report.html"),
        (["--out", "x.html"], 2, "name at least one model folder"),
        (["trained", "--out", "x.txt"], 2, "the page is a file whose name must end in .html"),
        (["nothing", "--out", "x.html"], 1, "there is no model at"),
        (["half", "--out", "x.html"], 1, "is not finished"),
        (["trained", "trained", "--out", "x.html"], 2, "is given twice"),
        (["trained", "--out", "x.html", "--split", "test"], 2, "add --data DATA"),
        (["trained", "--out", "x.html", "--data", "other"], 1, "have no label id in common"),
        (["trained", "--out", "x.html", "--data", "other", "--split", "test"], 2, "has no test documents"),
        (["trained", "--out", "x.html", "--data", "other", "--documents", "0"], 2, "must be at least 1"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(
    tokens: list[str],
    code: int,
    message: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained").symlink_to(runs / "trained")
    (tmp_path / "half.checkpoint").mkdir()
    (tmp_path / "other").mkdir()
    rows = "".join(f'"text {i}",{"ab"[i % 2]}\n' for i in range(40))
    (tmp_path / "other" / "train.csv").write_text("text,labels\n" + rows)
    before = sorted(tmp_path.iterdir())
    assert main(["report", *tokens, "--quiet"]) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("labelspace: ") and not captured.out
    assert len(captured.err.strip().splitlines()) == 1 and sorted(tmp_path.iterdir()) == before


def test_json_prints_what_the_page_shows(runs: Path, toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ["report", str(runs / "memory"), "--data", str(toy_folder), "--documents", "20", "--device", "cpu"]
    assert main([*tokens, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"]["measured"] == 20 and told["data"]["of"] == 80
    assert told["runs"][0]["measured"]["counts"]["documents"] == 20
    assert "20 test documents" in text_of(parsed(render(told)))


def test_ticks_cover_their_range_in_round_steps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = float(rng.normal() * 10.0 ** rng.integers(-3, 6))
        high = low + float(rng.random() * 10.0 ** rng.integers(-3, 6))
        found = charts.ticks(low, high)
        step = found[1] - found[0]
        assert found[0] <= low + 1e-6 * step and found[-1] >= high - 1e-6 * step and 2 <= len(found) <= 9
        assert f"{step:.0e}"[0] in "125" and step == pytest.approx(float(f"{step:.0e}"))


def test_points_and_bars_stand_where_their_values_are() -> None:
    drawn = ElementTree.fromstring(charts.lines("c", "t", "d", ("x", "y"), [[(0, 0), (5, 2), (10, 10)], []]))
    points = [tuple(map(float, p.split(","))) for p in drawn.find("polyline").get("points").split()]  # type: ignore
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=0.01) and (y1 - y0) / (y2 - y0) == pytest.approx(
        0.2, abs=0.01
    )
    assert x2 > x0 and y2 < y0 and len(drawn.findall("circle")) == 3
    drawn = ElementTree.fromstring(
        charts.bars("c", "t", "d", ("x", "y"), ["a", "b"], [[20, 40], [10, 0]], [[(15, 25), None], [None, None]])
    )
    heights = [float(bar.get("height", "")) for bar in drawn.findall("rect")]
    assert np.array(heights) / heights[1] == pytest.approx([0.5, 1, 0.25, 0], abs=0.01)
    assert len(drawn.findall("path")) == 1
    one = ElementTree.fromstring(charts.differences("c", "t", "d", "x", [("a", 2, 1, 3), ("b", -1, -2, 1)]))
    assert [group.get("class") for group in one.findall("g")] == ["up", "none"]


def test_a_chart_alone_is_a_file_with_colours_and_a_legend() -> None:
    drawn = charts.lines("c", "t", "d", ("x", "y"), [[(0, 0), (10, 10)], [(1, 2), (3, 4)]])
    one = ElementTree.fromstring(charts.alone(drawn, ["first", "a < b"]))
    space = "{http://www.w3.org/2000/svg}"
    assert one.tag == f"{space}svg" and "--s1:" in one.findtext(f"{space}style", "")
    told = [group.findtext(f"{space}text") for group in one.findall(f"{space}g")]
    assert told == ["first", "a < b"]
    inside = one.find(f"{space}svg")
    assert inside is not None and len(inside.findall(f"{space}polyline")) == 2
    height, own = (float(part.get("viewBox", "").split()[3]) for part in (one, inside))
    lowest = max(float(g.get("transform", "").split()[1].rstrip(")")) for g in one.findall(f"{space}g"))
    assert own <= lowest and lowest + 12 <= height
    assert float(ElementTree.fromstring(charts.alone(drawn)).get("viewBox", "").split()[3]) == own
