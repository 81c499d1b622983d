"""Tuning against trying every setting one by one, and what it must never do."""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import labelspace as ls
from labelspace.base.strings import Strings
from labelspace.cli.app import main
from labelspace.evaluation.metrics import barred_labels, propensity_weights
from labelspace.memory.candidates import METRICS, Goal, beaten
from labelspace.memory.grid import Grid
from labelspace.memory.keys import Keys, Segment
from labelspace.memory.memory import Memory
from labelspace.memory.tune import _near, _values, render, tune
from labelspace.memory.voting import Query, Voting

N, L, V, D = 60, 15, 40, 8


def made(seed: int = 0) -> tuple[Memory, torch.Tensor, sp.csr_array, np.ndarray]:
    """Documents near their labels, and queries near both, with noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(L, D))
    targets = (rng.random((N + V, L)) < 0.12).astype(np.float32)
    targets[np.arange(N + V), rng.integers(0, L, N + V) ** 2 // L] = 1
    vectors = targets @ centres + rng.normal(size=(N + V, D)) * 1.5
    unit = [torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=1) for x in (centres, vectors)]
    labels = Memory.of_labels(unit[0], ls.Labels([f"L{i}" for i in range(L)], [f"label {i}" for i in range(L)]))
    own = sp.csr_array(targets[:N])
    names = Strings.of([f"d{i}" for i in range(N)])
    segment = Segment(unit[1][:N], own.indptr.astype(np.int64), own.indices.astype(np.int32), None, names, names)
    truth = sp.csr_array(targets[N:])
    return Memory(labels.label_keys, Keys([segment], D)), unit[1][N:], truth, propensity_weights(own)


GRID = Grid(
    depths=(3, 10),
    label_depths=(2, 15),
    document_depths=(4, 30),
    temperatures=(0.05, 0.2),
    weights=(0, 0.1, 0.5, 0.9, 1),
)


@pytest.mark.parametrize("objective", ["P@1,P@3,P@5", "PSP@5", "nDCG@3,PSP@1"])
@pytest.mark.parametrize(("block", "filtered"), [(7, True), (1000, True), (1000, False)])
def test_the_choice_equals_trying_every_setting(
    objective: str, block: int, filtered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelspace.memory.tune.BLOCK", block)
    memory, queries, truth, weights = made()
    rng = np.random.default_rng(1)
    pairs = np.argwhere(rng.random(truth.shape) < 0.15) if filtered else np.zeros((0, 2), dtype=np.int64)
    longest = ls.evaluation.longest_filter_row(pairs)
    left_out = np.zeros(N, dtype=bool)
    left_out[:9] = True
    options = {"left_out": left_out, "objective": objective, "grid": GRID, "tolerance": 0, "margin": np.inf}
    options["barred"] = barred_labels(pairs, *truth.shape)
    found = tune(memory, queries, truth, weights, **options)  # type: ignore[arg-type]
    names = objective.split(",")
    tried = {}
    for way in GRID.ways(L, N):
        for weight in GRID.weights:
            if way.search == "joint" and weight == 0 or way.softmax == "apart" and weight in (0, 1):
                continue
            memory.voting = dataclasses.replace(way, weight=float(weight))
            numbers, scores = memory.predict(Query(queries, left_out=left_out), min(L, 100 + longest))
            figures = ls.evaluate(
                ls.Predictions(numbers, scores), truth, None, ks=(1, 3, 5), propensity=weights, filter_pairs=pairs
            )
            tried[memory.voting] = figures
    assert found.tried == len(tried)
    best = max(np.mean([figures[name] for name in names]) for figures in tried.values())
    assert found.value == pytest.approx(best, abs=1e-6)
    for name in METRICS:
        assert found.metrics[name] == tried[found.voting][name]
    good = [v.weight for v, f in tried.items() if np.mean([f[name] for name in names]) > best - 1e-9]
    assert found.voting.weight == min(good)
    p = {v: np.mean([f[f"P@{k}"] for k in (1, 3, 5)]) for v, f in tried.items()}
    psp = {v: np.mean([f[f"PSP@{k}"] for k in (1, 3, 5)]) for v, f in tried.items()}
    for row in found.front:
        mine = np.mean([row[f"P@{k}"] for k in (1, 3, 5)]), np.mean([row[f"PSP@{k}"] for k in (1, 3, 5)])
        assert not any(p[v] > mine[0] + 1e-3 and psp[v] > mine[1] + 1e-3 for v in tried)
    assert found.front[0]["P@1"] >= 0 and "R@10" in found.front[0]
    shown = render(json.loads(json.dumps(found.as_dict())))
    assert shown.count("\n* ") == 1 and f"--weight {found.voting.weight}" in shown


def test_settings_far_behind_are_left_out_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.memory.tune.BLOCK", 10)
    memory, queries, truth, weights = made()
    ways, columns = GRID.ways(L, N), [METRICS.index("nDCG@5")]
    found = memory.search(Query(queries), 15, 60)
    given = memory, found, ways, np.array(GRID.weights, dtype=float), Goal(truth, weights, None), columns
    every, seen = _values(*given)
    assert (every >= 0).all() and seen == len(queries)
    for margin in (0.5, 3.0, 10.0):
        few, _ = _values(*given, margin=margin)
        left = np.flatnonzero(few[:, 0, 0] >= 0)
        assert 0 < len(left) < len(ways) and (np.delete(few, left, axis=0) == -1).all()
        np.testing.assert_allclose(few[left], every[left], rtol=1e-12)
    assert len(left) > 1

    p, psp = (every[:, [METRICS.index(f"{name}@{k}") for k in (1, 3, 5)]].mean(axis=1) for name in ("P", "PSP"))
    aim = every[:, columns[0]]
    for margin in (0.3, 1.0, 4.0):
        expected = [
            any(
                aim[way, w] >= aim.max() - margin
                or not any(
                    x >= p[way, w] + margin and y >= psp[way, w] + margin for x, y in zip(p.flat, psp.flat, strict=True)
                )
                for w in range(p.shape[1])
            )
            for way in range(len(ways))
        ]
        assert _near(every, columns, margin).tolist() == expected
    best, raced = (tune(memory, queries, truth, weights, grid=GRID, tolerance=0, margin=m) for m in (np.inf, 3.0))
    assert best.value - 3.0 <= raced.value <= best.value and raced.tried == best.tried


def test_with_no_time_left_one_block_of_documents_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.memory.tune.BLOCK", 10)
    memory, queries, truth, weights = made()
    late = tune(memory, queries, truth, weights, grid=GRID, tolerance=0, until=time.monotonic() - 1)
    first = tune(memory, queries[:10], sp.csr_array(truth[:10]), weights, grid=GRID, tolerance=0)
    assert (late.documents, late.voting) == (10, first.voting)
    early = tune(memory, queries, truth, weights, grid=GRID, tolerance=0, until=time.monotonic() + 600)
    assert early.documents == len(queries)


def test_a_fixed_setting_is_kept() -> None:
    memory, queries, truth, weights = made()
    found = tune(memory, queries, truth, weights, grid=Grid.fixed(search="joint", temperature=0.03, votes="normalized"))
    assert (found.voting.search, found.voting.temperature, found.voting.votes) == ("joint", 0.03, "normalized")
    only = tune(memory, queries, truth, weights, grid=Grid.fixed(search="joint", weight=1.0, depth=20))
    assert only.voting.weight == 1 and only.tried == 2 * len(Grid().temperatures) and only.metrics["P@1"] >= 0
    apart = tune(memory, queries, truth, weights, grid=Grid.fixed(softmax="apart", label_temperature=0.12)).voting
    assert (apart.search, apart.softmax, apart.label_temperature) == ("two-sided", "apart", 0.12)
    with pytest.raises(ls.SettingsError, match="apart goes with a two-sided search alone"):
        Grid.fixed(softmax="apart", search="joint")
    with pytest.raises(ls.SettingsError, match="weight must be from 0 to 1"):
        Grid.fixed(weight=2.0)
    with pytest.raises(ls.SettingsError, match="'R@7' is not made of known metrics"):
        tune(memory, queries, truth, weights, objective="R@7")


def products_for_products(folder: Path, filtered: bool) -> Path:
    """An LF folder of titles in which every document is a label too, as in LF-AmazonTitles: what is bought with it.

    Such a document's own label is the nearest key, and is never true; the filter file names it.
    """
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("oak", "rose", "wheat", "moss", "fern") for b in "abcdefghijkl"]
    groups = [rng.choice(words, 6, replace=False) for _ in range(40)]
    titles = [" ".join(rng.permutation([*rng.choice(groups[i // 6], 3), *rng.choice(words, 2)])) for i in range(240)]
    folder.mkdir()
    for name in ("trn", "lbl"):
        with (folder / f"{name}.json").open("w") as file:
            for i, title in enumerate(titles):
                others = [j for j in range(i // 6 * 6, i // 6 * 6 + 6) if j != i and rng.random() < 0.7]
                row = {"uid": f"p{i}", "title": title, "content": "", "target_ind": others}
                file.write(
                    json.dumps(row if name == "trn" else {k: row[k] for k in ("uid", "title", "content")}) + "\n"
                )
    if filtered:
        (folder / "filter_labels_train.txt").write_text("".join(f"{i} {i}\n" for i in range(240)))
    return folder


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("filtered", [True, False])
def test_filter_pairs_count_in_tuning_as_in_evaluate(
    filtered: bool, linear: bool, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = products_for_products(tmp_path / "LF-ToyTitles", filtered)
    data = ls.load(place, valid_fraction=0.3)
    assert (data.valid.filter_pairs is not None and len(data.valid.filter_pairs) == len(data.valid)) is filtered
    model = ls.Model.from_encoder(str(tiny_transformer), data.labels, device="cpu")
    found = model.tune(data, tolerance=0, linear=linear or None)
    assert found is not None
    assert not linear or model.memory.linear is not None
    assert model.info["tuning"]["metrics"] == found.metrics
    model.info["data"]["options"] = dict(data.options)
    model.save(tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model"), str(place), "--split", "valid", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["metrics"]
    assert found.metrics == {name: told[name] for name in found.metrics}
    if linear:
        return
    left_out, best = model.held_out(data), 0.0
    for weight in (0, 0.25, 0.5, 0.75, 1):
        for temperature in (0.02, 0.05, 0.1, 0.15):
            for depth in (20, 50):
                model.memory.voting = Voting(
                    weight=weight, temperature=temperature, label_depth=depth, document_depth=depth
                )
                figures = ls.evaluate(
                    model.predict(data.valid.texts, 10, left_out=left_out), data.valid.targets,
                    filter_pairs=data.valid.filter_pairs,
                )  # fmt: skip
                best = max(best, np.mean([figures[f"P@{k}"] for k in (1, 3, 5)]))
    assert found.value >= best - 1e-9


def test_near_the_best_the_deepest_list_wins() -> None:
    memory, queries, truth, weights = made()
    grid = dataclasses.replace(GRID, softmax=("together",))
    best = tune(memory, queries, truth, weights, grid=grid, tolerance=0)
    wide = tune(memory, queries, truth, weights, grid=grid, tolerance=8.0)
    assert best.value >= wide.value >= best.value - 8.0
    assert wide.metrics["R@10"] > best.metrics["R@10"]
    assert render(wide.as_dict()).count("\n* ") == 1


def test_random_vectors_are_tuned_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation document that met itself would be right nearly always."""
    rng = np.random.default_rng(0)
    n, count = 400, 100
    words = [f"w{i}" for i in range(3000)]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(n)]
    texts[7] = texts[390].upper() + "!"  # the same text as a document that is held out
    targets = sp.csr_array(np.eye(count, dtype=np.float32)[rng.integers(0, count, n)])
    rows = np.arange(300, n)
    train = ls.Corpus([f"d{i}" for i in range(n)], texts, targets)
    data = ls.Dataset("random", ls.Labels([f"L{i}" for i in range(count)], [f"label {i}" for i in range(count)]),
                      train, train.rows(rows), None, rows)  # fmt: skip

    def hashed(texts: list[str], batch_size: int, precision: str | None = None) -> np.ndarray:
        vectors = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=32) for text in texts]
        return np.stack([v / np.linalg.norm(v) for v in vectors]).astype(np.float32)

    encoder = torch.nn.Linear(1, 1)
    encoder.dim = 32  # type: ignore[assignment]
    vectors = np.stack([np.random.default_rng(i).normal(size=32) for i in range(count)]).astype(np.float32)
    model = ls.Model(encoder, Memory.of_labels(torch.from_numpy(vectors)), data.labels)  # type: ignore[arg-type]
    monkeypatch.setattr(model.core, "encode", hashed)
    monkeypatch.setattr(model.core, "encode_documents", hashed)
    found = model.tune(data)
    assert found is not None and found.metrics["P@1"] < 8
    mask = model.held_out(data)
    assert mask[300:].all() and mask[7] and mask.sum() == 101
    assert model.memory.n_documents == n  # afterwards every document votes


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_untrained_encoder_with_a_memory_beats_itself(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, precision: str
) -> None:
    data = ls.load(toy_folder)
    assert data.test is not None
    plain = ls.Model.from_encoder(str(tiny_transformer), data.labels, device="cpu")
    model = ls.Model.from_encoder(str(tiny_transformer), data, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert model.memory.n_documents == len(data.train)
    before, after = (ls.evaluate(m.predict(data.test.texts, 5), data.test.targets)["P@1"] for m in (plain, model))
    assert after > before + 10
    model.save(tmp_path / "m")
    again = ls.Model.load(tmp_path / "m")
    assert again.memory.voting == model.memory.voting and again.info["tuning"]["documents"] == len(data.valid)
    assert (
        str(again.memory.document_keys.segments[0].keys.dtype)
        == f"torch.{'bfloat16' if precision == 'bf16' else precision}"
    )
    assert np.array_equal(again.predict(data.test.texts).scores, model.predict(data.test.texts).scores)


def test_a_trained_model_is_tuned_from_the_command_line(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ls.load(toy_folder)
    out = tmp_path / "dexml"
    ls.train(data, recipe="dexml", base=str(tiny_transformer), epochs=2, out=out)
    assert ls.Model.load(out).memory.voting.scoring == "similarity"
    assert main(["tune", str(out), str(toy_folder), "--quiet"]) == 0
    assert "settings that none beats" in capsys.readouterr().out
    tuned = ls.Model.load(out)
    assert tuned.memory.n_documents == 300 and tuned.memory.voting.scoring == "votes"
    other = [
        "tune",
        str(out),
        str(toy_folder),
        "--objective",
        "PSP@5",
        "--weight",
        "0.06",
        "--out",
        str(tmp_path / "b"),
    ]
    assert main([*other, "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tuning"]["voting"]["weight"] == 0.06 and printed["tuning"]["objective"] == "PSP@5"
    assert ls.Model.load(tmp_path / "b").memory.n_documents == 300  # none is there twice
    assert main(["tune", str(out), str(toy_folder), "--objective", "R@1"]) == 2


def test_validation_documents_do_not_vote_when_they_are_measured(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ls.load(toy_folder)
    model = ls.Model.from_encoder(str(tiny_transformer), data, device="cpu")
    model.memory.voting = Voting(weight=1.0, document_depth=1)
    model.save(tmp_path / "m")
    assert main(["evaluate", str(tmp_path / "m"), str(toy_folder), "--split", "valid", "--json"]) == 0
    captured = capsys.readouterr()
    told = int(captured.err.split(" documents that are measured on do not vote")[0].split()[-1])
    assert told == int(model.held_out(data).sum()) >= len(data.valid)
    rows = data.valid_rows
    mine = model.predict(data.valid.texts, 3, why=True)
    assert mine.reasons is not None
    own = [row[0][0].id == data.train.ids[i] for row, i in zip(mine.reasons, rows.tolist(), strict=True)]
    honest = model.predict(data.valid.texts, 3, why=True, left_out=model.held_out(data))
    assert honest.reasons is not None and np.mean(own) > 0.8
    voters = {key.id for row in honest.reasons for label in row for key in label}
    assert not voters & {data.train.ids[i] for i in rows.tolist()}


def test_tuning_calibrates_anew(toy_folder: Path, tiny_transformer: Path, tmp_path: Path) -> None:
    data = ls.load(toy_folder, valid_fraction=0.5)
    model = ls.Model.from_encoder(str(tiny_transformer), data, device="cpu")
    made = model.calibration
    assert made is not None and made.scoring == model.memory.settings
    assert made.fitted["documents"] == len(data.valid) == 150 and made.fitted["split"] == "valid"
    again = model.calibrate(data)  # encodes and searches for itself
    assert again.fitted["pairs"] == made.fitted["pairs"]
    assert again.fitted["log_loss"] == pytest.approx(made.fitted["log_loss"], abs=1e-4)
    model.save(tmp_path / "m")
    opened = ls.Model.load(tmp_path / "m", "cpu")
    assert opened.calibration is not None and opened.calibration.as_dict() == again.as_dict()
    opened.tune(data, objective="PSP@5", grid=Grid.fixed(weight=0.9))
    retuned = opened.calibration
    assert retuned is not None and retuned.scoring == opened.memory.settings != made.scoring
    assert data.test is not None
    pred = opened.predict(data.test.texts, probabilities=True)
    assert pred.probabilities is not None and pred.probabilities.max() <= 1
    targets = data.test.targets.toarray()
    true = float(np.mean(np.take_along_axis(targets, pred.indices, axis=1) > 0))
    assert abs(float(pred.probabilities.mean()) - true) < 0.1
    opened.tune(data, calibrated=False)
    few = ls.load(toy_folder)
    assert len(few.valid) < 100
    assert ls.Model.from_encoder(str(tiny_transformer), few, device="cpu").calibration is None


def test_a_depth_says_how_is_searched() -> None:
    assert Grid.fixed(depth=5).search == ("joint",) and Grid.fixed(document_depth=5).search == ("two-sided",)
    for settings in ({"depth": 5, "search": "two-sided"}, {"label_depth": 5, "search": "joint"},
                     {"depth": 5, "document_depth": 5}):  # fmt: skip
        with pytest.raises(ls.SettingsError, match="one is asked for; leave one of the two out"):
            Grid.fixed(**settings)


def test_fixed_settings_hold_without_validation_documents(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ls.load(toy_folder, valid_fraction=0.02)
    assert len(few.valid) < 20
    model = ls.Model.from_encoder(str(tiny_transformer), few.labels, device="cpu")
    assert model.tune(few) is None and model.memory.voting == Voting() and "tuning" not in model.info
    assert model.tune(few, grid=Grid.fixed(weight=0.4, temperature=0.1)) is None
    assert model.memory.voting == Voting(weight=0.4, temperature=0.1)
    assert model.tune(few, grid=Grid.fixed(depth=30)) is None
    assert model.memory.voting == Voting(weight=0.4, temperature=0.1, search="joint", depth=30)
    assert model.tune(few) is None and model.memory.voting.depth == 30  # what was chosen before stays
    model.save(tmp_path / "m")
    flags = ["--weight", "0.7", "--votes", "normalized"]
    capsys.readouterr()
    (tmp_path / "names.csv").write_text("text,labels\n" + "".join(f"{t},{i}\n" for i, t in zip(
        few.labels.ids, few.labels.texts, strict=True)))  # fmt: skip
    assert main(["tune", str(tmp_path / "m"), str(tmp_path / "names.csv"), *flags]) == 0
    shown = "--search joint --depth 30 --temperature 0.1 --weight 0.7 --votes normalized"
    captured = capsys.readouterr()
    assert f"keys vote by {shown}" in captured.out and "tuning needs 20" in captured.err
    assert ls.Model.load(tmp_path / "m").memory.voting.weight == 0.7
    assert (
        main(["tune", str(tmp_path / "m"), str(tmp_path / "names.csv"), "--depth", "5", "--search", "two-sided"]) == 2
    )
    assert "depth 5 goes with a joint search alone" in capsys.readouterr().err


def test_votes_that_nearly_tie_are_ranked_where_they_count_alone() -> None:
    a, q, weights = np.array([[1e-17, -1e-17, 0.2]]), np.array([[-0.3, 0.3, -0.1]]), np.array([0.0, 0.5, 1.0])
    wanted = [
        [int((w * row_a + (1 - w) * row_q > 0).sum()) for w in weights] for row_a, row_q in zip(a, q, strict=True)
    ]
    assert beaten(a, q, weights).tolist() == wanted == [[1, 2, 2]]


def test_a_last_training_on_all_documents_votes_like_one_that_held_some_out(
    toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", str(toy_folder), "--recipe", "raexmc", "--encoder", str(tiny_transformer), "--epochs", "0"]
    flags = ["--device", "cpu", "--quiet"]
    assert main([*train, *flags, "--linear", "--valid-fraction", "0.4", "--out", str(tmp_path / "first")]) == 0
    first = ls.Model.load(tmp_path / "first")
    assert first.info["data"]["options"]["valid_fraction"] == 0.4 and first.memory.linear is not None
    assert "valid_fraction = 0.4" in (tmp_path / "first" / "settings.toml").read_text()
    assert main([*train, *flags, "--valid-fraction", "0", "--out", str(tmp_path / "last")]) == 0
    last = ls.Model.load(tmp_path / "last")
    assert last.memory.n_documents == first.memory.n_documents == 300 and last.memory.voting == Voting()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "first"), str(toy_folder), "--split", "valid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["documents"] == 120  # as its run held them out
    assert main(["evaluate", str(tmp_path / "last"), str(toy_folder), "--split", "valid"]) == 2
    assert "no valid documents" in capsys.readouterr().err

    like = ["tune", str(tmp_path / "last"), str(toy_folder), "--like", str(tmp_path / "first")]
    for flags_of_voting in (["--weight", "0.3"], ["--objective", "PSP@5"], ["--tolerance", "0"], ["--no-linear"]):
        assert main([*like, *flags_of_voting]) == 2 and "leave the other settings" in capsys.readouterr().err
    assert main(like) == 0
    last = ls.Model.load(tmp_path / "last")
    assert last.memory.voting == first.memory.voting != Voting() and last.memory.reranks
    assert last.calibration is not None and first.calibration is not None
    assert last.calibration.as_dict() == first.calibration.as_dict()
    data = ls.load(toy_folder)
    assert data.test is not None
    a, b = (ls.evaluate(m.predict(data.test.texts, 5), data.test.targets)["P@1"] for m in (first, last))
    assert abs(a - b) < 10
    silent = ls.Model.from_encoder(str(tiny_transformer), data.labels, device="cpu")
    with pytest.raises(ls.ModelError, match="do not vote; tune it first"):
        last.vote_like(silent, data)
    foreign = ls.Labels([f"other {name}" for name in data.labels.ids], data.labels.texts)
    with pytest.raises(ls.ModelError, match="no label id in common"):
        ls.Model.from_encoder(str(tiny_transformer), foreign, device="cpu").vote_like(first, data)


def test_nothing_is_chosen_where_filter_pairs_leave_no_label_right(
    toy_folder: Path, tiny_transformer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ls.load(toy_folder)
    pairs = np.argwhere(data.valid.targets.toarray() > 0)
    barred = dataclasses.replace(data, valid=dataclasses.replace(data.valid, filter_pairs=pairs))
    with caplog.at_level("WARNING"):
        model = ls.Model.from_encoder(str(tiny_transformer), barred, device="cpu")
    assert model.memory.voting == Voting() and model.memory.n_documents == 300
    assert "only 0 validation documents with labels that count" in caplog.text
    one_less = dataclasses.replace(data.valid, filter_pairs=pairs[1:])
    assert model.tune(dataclasses.replace(data, valid=one_less)) is not None


def test_without_a_recipe_nothing_need_be_held_out(toy_folder: Path, tiny_transformer: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    flags = ["--base", str(tiny_transformer), "--encoder", "static", "--epochs", "1", "--device", "cpu", "--quiet"]
    assert main(["train", str(toy_folder), "--valid-fraction", "0", "--out", str(out), *flags]) == 0
    model = ls.Model.load(out)
    assert model.memory.n_documents == 300 and model.predict("a red oak", 1).named(0)
    assert main(["train", str(toy_folder), "--valid-fraction", "1", "--out", str(tmp_path / "n"), *flags]) == 2
