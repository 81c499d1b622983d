"""Scores to probabilities: fitted, chosen, kept in order, measured, saved, and dropped when the memory changes."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from conftest import TINY, rounding, toy_rows

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.scores import load_scores, save_scores
from labelspace.data.writers import write_jsonl, write_table, write_tsv
from labelspace.evaluation import calibration as calibrate
from labelspace.evaluation import evaluating as evaluation
from labelspace.evaluation.calibration import Calibration


def sample(n: int, seed: int, shape: str = "sigmoid") -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """Falling scores (n, 20), the true probabilities of their pairs, and what happened."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0.0, 0.15, size=(n, 1))
    scores = -np.sort(-rng.uniform(0.2, 0.9, size=(n, 20)) - level, axis=1)
    if shape == "sigmoid":
        truth = 1 / (1 + np.exp(-(9 * scores - 7)))
    elif shape == "shares":  # of votes
        scores = np.exp(12 * (scores - 1))
        truth = scores**0.8 / (scores**0.8 + 0.1)
    elif shape == "steps":
        truth = np.where(scores > 0.8, 0.7, np.where(scores > 0.5, 0.25, 0.02))
    else:  # the score counts by what is best in the document
        truth = 1 / (1 + np.exp(-(12 * (scores - scores[:, :1]) + 0.5)))
    return scores, truth, rng.random(truth.shape) < truth


# Fitting and choosing


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("sigmoid", "logistic: score"),
        ("steps", "isotonic: score"),
        ("relative", "logistic: score, best"),
        ("shares", "logistic: log score"),
    ],
)
def test_the_chosen_one_has_the_shape_of_the_truth(shape: str, wanted: str) -> None:
    scores, _, found = sample(1000, 0, shape)
    made = calibrate.fit(scores, found)
    assert made.name.startswith(wanted)
    assert min(made.fitted["log_loss"], key=made.fitted["log_loss"].get) == made.name
    fresh, truth, happened = sample(2000, 1, shape)
    predicted = made(fresh)
    assert np.abs(predicted - truth).mean() < 0.02
    assert calibrate.calibration_error(predicted[:, :5].ravel(), happened[:, :5].ravel()) < 0.02
    assert made.fitted["ece"] < 0.02
    assert made.fitted["documents"] == 1000 and made.fitted["pairs"] == 20000 and made.fitted["hits"] == found.sum()


def test_held_out_loss_equals_a_loop_over_folds_of_documents() -> None:
    scores, _, found = sample(300, 2)
    made = calibrate.fit(scores, found, folds=3, seed=5)
    fold = np.random.default_rng(5).permutation(300) % 3
    losses = []
    for number in range(3):
        part = calibrate.fit(scores[fold != number], found[fold != number])
        if part.name != "logistic: score":  # refit the candidate itself
            values = scores[fold != number].ravel()[:, None]
            part = next(iter(calibrate._fit(values.repeat(4, axis=1), found[fold != number].ravel(), "linear")))
        assert part.name == "logistic: score"
        for row in np.flatnonzero(fold == number):
            z = part.coefficients[0] * scores[row] + part.intercept
            losses += [
                -math.log(1 / (1 + math.exp(-a))) if b else -math.log(1 / (1 + math.exp(a)))
                for a, b in zip(z, found[row], strict=True)
            ]
    assert made.fitted["log_loss"]["logistic: score"] == pytest.approx(np.mean(losses), abs=1e-6)


@pytest.mark.parametrize("shape", ["sigmoid", "steps", "relative", "shares"])
def test_probabilities_fall_where_scores_do(shape: str) -> None:
    scores, _, found = sample(400, 3, shape)
    values = np.stack([np.broadcast_to(f, scores.shape).ravel() for f in _features(scores)], axis=1)
    made = list(calibrate._fit(values, found.ravel(), "linear"))
    assert {c.name for c in made} >= {"logistic: score", "isotonic: score", "isotonic: score, best"}
    fresh = sample(400, 4, shape)[0]
    for calibration in made:
        predicted = calibration(fresh)
        assert (np.diff(predicted, axis=1) <= 0).all() and ((predicted > 0) & (predicted <= 1)).all()


def _features(scores: npt.NDArray) -> list[npt.NDArray]:
    best = np.array([[max(row)] for row in scores])
    level = np.array([[sum(sorted(row)[-10:]) / 10] for row in scores])
    rank = np.array([[math.log(1 + sum(other > s for other in row)) for s in row] for row in scores])
    return [scores, best, level, rank]


def test_features_equal_plain_loops() -> None:
    scores = sample(30, 5)[0]
    for got, expected in zip(
        calibrate._features(scores, scores, calibrate.FEATURES, "linear"), _features(scores), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-12)
    made = Calibration(
        "logistic", "linear", calibrate.FEATURES, np.array([3.0, -1.0, 0.5, -0.2]), -1.0, np.zeros((2, 0))
    )
    sums = sum(c * f for c, f in zip([3.0, -1.0, 0.5, -0.2], _features(scores), strict=True)) - 1.0
    np.testing.assert_allclose(made(scores), 1 / (1 + np.exp(-sums)), atol=1e-12)
    shares = Calibration("logistic", "log", ("score", "best"), np.array([2.0, -1.0]), 0.5, np.zeros((2, 0)))
    sums = [[2 * math.log(s) - math.log(max(row)) + 0.5 for s in row] for row in np.maximum(scores, 1e-12)]
    np.testing.assert_allclose(shares(scores), 1 / (1 + np.exp(-np.array(sums))), atol=1e-12)
    some = scores[:, [3, 17]]  # only these labels are asked for; the document is judged by all
    np.testing.assert_allclose(made(some, scores), made(scores)[:, [3, 17]], atol=1e-12)


def test_missing_places_and_barred_pairs_are_no_pairs() -> None:
    scores, _, found = sample(500, 6)
    short = scores.copy()
    short[::3, 7:] = -np.inf
    short[5] = -np.inf
    kept = np.ones(found.shape, dtype=bool)
    kept[:, 1] = False
    made = calibrate.fit(short, found, kept)
    there = np.isfinite(short) & kept
    assert made.fitted["pairs"] == there.sum() and made.fitted["documents"] == 499
    flipped = np.where(there, found, ~found)
    again = calibrate.fit(short, flipped, kept)
    assert again.as_dict() == made.as_dict()
    predicted = made(short)
    assert (predicted[~np.isfinite(short)] == 0).all() and (predicted[np.isfinite(short)] > 0).all()
    assert made(np.zeros((0, 20))).shape == (0, 20) and made(np.zeros((2, 0))).shape == (2, 0)


def test_scores_that_say_nothing_or_the_wrong_way_round_still_give_a_rising_function() -> None:
    scores, _, found = sample(400, 7)
    for values, outcomes in ((np.zeros_like(scores), found), (scores, found[:, ::-1])):
        made = calibrate.fit(values, outcomes)
        predicted = made(values)
        assert (np.diff(predicted, axis=1) <= 0).all()
        assert predicted.mean() == pytest.approx(outcomes.mean(), abs=0.05)


@pytest.mark.parametrize("case", ["few", "no hit", "no miss", "nothing predicted"])
def test_too_little_to_calibrate_on_is_refused(case: str) -> None:
    scores, _, found = sample(99 if case == "few" else 200, 8)
    if case == "no hit":
        found[:] = False
    if case == "no miss":
        found[:] = True
    if case == "nothing predicted":
        scores[:] = -np.inf
    with pytest.raises(ls.DataError, match="calibration needs at least 100 documents"):
        calibrate.fit(scores, found)


# Measures


def plain_error(probabilities: npt.NDArray, outcomes: npt.NDArray, bins: int = 15) -> float:
    pairs = sorted(zip(probabilities.tolist(), outcomes.tolist(), strict=True))
    size, more = divmod(len(pairs), bins)
    total, start = 0.0, 0
    for number in range(bins):
        part = pairs[start : start + size + (number < more)]
        start += len(part)
        if part:
            total += abs(sum(p for p, _ in part) - sum(y for _, y in part))
    return total / len(pairs)


@pytest.mark.parametrize("count", [4, 15, 100, 1234])
def test_calibration_error_equals_a_plain_loop(count: int) -> None:
    rng = np.random.default_rng(count)
    probabilities = rng.random(count)
    outcomes = rng.random(count) < probabilities**2
    error = calibrate.calibration_error(probabilities, outcomes)
    assert error == pytest.approx(plain_error(probabilities, outcomes), abs=1e-12)
    table = calibrate.reliability(probabilities, outcomes)
    assert sum(row["pairs"] for row in table) == count and len(table) == min(15, count)
    assert max(row["pairs"] for row in table) - min(row["pairs"] for row in table) <= 1
    assert all(row["low"] <= row["predicted"] <= row["high"] for row in table)


def test_calibration_error_does_not_depend_on_the_order_of_equals() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.choice([0.1, 0.4, 0.8], 500)
    outcomes = rng.random(500) < 0.5
    order = rng.permutation(500)
    first = calibrate.calibration_error(probabilities, outcomes)
    assert calibrate.calibration_error(probabilities[order], outcomes[order]) == pytest.approx(first, abs=1e-12)
    expected = sum((probabilities == p).mean() * abs(p - outcomes[probabilities == p].mean()) for p in (0.1, 0.4, 0.8))
    assert calibrate.calibration_error(probabilities, outcomes, bins=500) == pytest.approx(expected, abs=1e-12)
    assert calibrate.calibration_error(np.zeros(0), np.zeros(0, dtype=bool)) == 0.0


def test_figures_at_thresholds_equal_plain_loops() -> None:
    scores, truth, found = sample(60, 9)
    truth[3, 4:] = 0.0
    found[3, 4:] = False
    positives = int(found.sum()) + 50
    best = (0.0, 0.0)
    for threshold in sorted({0.3, 0.7, *truth[truth > 0].tolist()}):
        given = right = empty = 0
        for row in range(60):
            labels = [place for place in range(20) if truth[row, place] > 0 and truth[row, place] >= threshold]
            given += len(labels)
            right += sum(bool(found[row, place]) for place in labels)
            empty += not labels
        f1 = 2 * right / (given + positives)
        best = max(best, (f1, threshold))
        if threshold in (0.3, 0.7):
            assert calibrate.at_thresholds(truth, found, positives, (threshold,)) == [
                {
                    "threshold": threshold,
                    "precision": pytest.approx(right / given),
                    "recall": pytest.approx(right / positives),
                    "f1": pytest.approx(f1),
                    "labels": pytest.approx(given / 60),
                    "abstained": pytest.approx(empty / 60),
                }
            ]
    assert calibrate.best_threshold(truth, found, positives) == best[1]


# Records


def test_a_calibration_survives_json_and_damage_is_named() -> None:
    scores, _, found = sample(300, 10, "steps")
    made = calibrate.fit(scores, found, scoring={"scoring": "similarity"})
    record = json.loads(json.dumps(made.as_dict()))
    again = Calibration.from_dict(record)
    assert np.array_equal(again(scores), made(scores)) and again.as_dict() == made.as_dict()
    for name, value in [
        ("kind", "magic"),
        ("scale", "cubic"),
        ("features", ["best"]),
        ("coefficients", [-1.0]),
        ("coefficients", "x"),
        ("knots", [[0.0, 0.0], [0.1, 0.2]]),
        ("knots", [[0.0, 1.0], [0.2, 0.1]]),
        ("knots", [[0.0, 1.0], [0.2, 1.1]]),
        ("knots", []),
        ("intercept", float("nan")),
    ]:
        with pytest.raises(ls.ModelError, match="calibration is damaged"):
            Calibration.from_dict({**record, name: value})
    del record["knots"]
    with pytest.raises(ls.ModelError, match="calibration is damaged"):
        Calibration.from_dict(record)


# Models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus, large enough for 130 validation documents, with a test part; one label of three is noise."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    names = [f"{t} {k}" for k in "oak rose wheat moss fern vine".split() for t in "red tall wild dry".split()]
    for split, count, seed in (("train", 1300, 0), ("test", 400, 1)):
        lines = ["text,labels"]
        for text, labels in zip(*toy_rows(count, seed), strict=True):
            shown = [names[i if rng.random() < 0.7 else int(rng.integers(24))] for i in labels]
            lines.append(f"{text},{';'.join(sorted(set(shown)))}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    flags = ["--base", str(tiny_transformer), "--epochs", "2", "--lr", "0.02", "--evaluations", "1", "--device", "cpu"]
    assert main(["train", "--recipe", "dexml", str(folder), "--out", str(out), "--quiet", *flags]) == 0
    return out


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "model"))


def run(capsys: pytest.CaptureFixture[str], *tokens: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(t) for t in tokens])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_training_calibrates_and_saving_keeps_it(trained: Path, folder: Path, tmp_path: Path) -> None:
    model, data = ls.Model.load(trained), ls.load(folder)
    assert model.calibration is not None and data.test is not None
    assert model.calibration.fitted["documents"] == len(data.valid) and model.calibration.fitted["split"] == "valid"
    plain = model.predict(data.test.texts, k=7)
    assert plain.probabilities is None
    pred = model.predict(data.test.texts, k=7, probabilities=True)
    assert np.array_equal(pred.indices, plain.indices) and np.array_equal(pred.scores, plain.scores)
    assert pred.probabilities is not None and pred.probabilities.dtype == np.float32
    assert (np.diff(pred.probabilities, axis=1) <= 0).all()
    wide = model.predict(data.test.texts, k=20).scores
    np.testing.assert_allclose(pred.probabilities, model.calibration(wide)[:, :7], atol=rounding(1))
    found = data.test.targets.toarray()[np.arange(len(data.test))[:, None], pred.indices] > 0
    assert calibrate.calibration_error(pred.probabilities[:, :5].ravel(), found[:, :5].ravel()) < 0.06
    model.save(tmp_path / "again")
    again = ls.Model.load(tmp_path / "again").predict(data.test.texts, k=7, probabilities=True)
    assert np.array_equal(again.probabilities, pred.probabilities)
    assert pred.named(0)[0][2] == pytest.approx(float(pred.probabilities[0, 0]))


def test_a_run_without_calibration_ends_in_the_same_files(
    trained: Path, folder: Path, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "MIN_DOCUMENTS", 10**6)
    model = ls.train(
        ls.load(folder),
        recipe="dexml",
        out=tmp_path / "m",
        base=str(tiny_transformer),
        epochs=2,
        lr=0.02,
        evaluations=1,
        device="cpu",
    )
    assert model.calibration is None
    files = [json.loads((place / "manifest.json").read_text())["files"] for place in (trained, tmp_path / "m")]
    assert files[0] == files[1]


def test_a_threshold_leaves_labels_out_and_may_leave_none(trained: Path, folder: Path) -> None:
    model, data = ls.Model.load(trained), ls.load(folder)
    assert data.test is not None
    texts = data.test.texts[:150]
    every = model.predict(texts, k=24, probabilities=True)
    assert every.probabilities is not None
    for threshold in (0.0, 0.02, float(every.probabilities[:, 0].mean()), 1.0):
        pred = model.predict(texts, threshold=threshold)
        cut = model.predict(texts, k=2, threshold=threshold)
        assert cut.indices.shape == (150, 2)
        assert pred.probabilities is not None and cut.probabilities is not None
        for row in range(150):
            wanted = [
                (int(i), p)
                for i, p in zip(every.indices[row], every.probabilities[row].tolist(), strict=True)
                if p >= np.float32(threshold)
            ]
            assert list(zip(pred.indices[row].tolist(), pred.probabilities[row].tolist(), strict=True)) == wanted + [
                (-1, 0.0)
            ] * (pred.indices.shape[1] - len(wanted))
            assert cut.indices[row].tolist() == ([i for i, _ in wanted] + [-1, -1])[:2]
        assert ((pred.indices < 0) == (pred.scores == -np.inf)).all()
    assert (model.predict(texts, threshold=1.0).indices == -1).all()
    assert model.predict(texts, threshold=0.0).indices.shape == (150, 24)
    assert model.predict([], threshold=0.5).indices.shape == (0, 1)


def test_probabilities_of_some_labels_are_those_among_all(trained: Path, folder: Path) -> None:
    model, data = ls.Model.load(trained), ls.load(folder)
    made = Calibration(
        "logistic",
        "linear",
        calibrate.FEATURES,
        np.array([9.0, -2.0, 1.0, -0.3]),
        -1.0,
        np.zeros((2, 0)),
        {},
        model.memory.settings,
    )
    model.core.calibration = made
    every = model.predict(data.train.texts[:30], k=24, probabilities=True)
    some = model.predict(data.train.texts[:30], k=3, labels=[2, 5, 11], probabilities=True)
    assert every.probabilities is not None and some.probabilities is not None
    for row in range(30):
        among = dict(zip(every.indices[row].tolist(), every.probabilities[row].tolist(), strict=True))
        for label, value in zip(some.indices[row].tolist(), some.probabilities[row].tolist(), strict=True):
            assert value == pytest.approx(among[label], abs=TINY)


def test_uncalibrated_models_and_bad_thresholds_are_refused(
    tiny_transformer: Path, trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ls.Model.from_encoder(str(tiny_transformer), labels=["oak", "rose"], device="cpu")
    for options in ({"threshold": 0.5}, {"probabilities": True}):
        with pytest.raises(ls.ModelError, match="not calibrated.*labelspace calibrate MODEL DATA"):
            model.predict("an oak", **options)
    for threshold in (-0.1, 1.5, float("nan"), "half"):
        with pytest.raises(ls.SettingsError, match="threshold must be a probability"):
            ls.Model.load(trained).predict("an oak", threshold=threshold)
    with pytest.raises(ls.SettingsError, match="unknown split"):
        ls.Model.load(trained).calibrate(ls.load(folder), split="all")
    with pytest.raises(ls.DataError, match="no label id in common"):
        model_of_others = ls.Model.from_encoder(str(tiny_transformer), labels=["x", "y"], device="cpu")
        model_of_others.calibrate(ls.load(folder))
    model.save(tmp_path / "m")
    (tmp_path / "t.txt").write_text("an oak\n")
    code, _, err = run(capsys, "predict", tmp_path / "m", tmp_path / "t.txt", "--threshold", 0.5)
    assert code == 1 and "not calibrated" in err
    assert run(capsys, "predict", tmp_path / "m", tmp_path / "t.txt", "--threshold", 2)[0] == 2
    code, _, err = run(capsys, "evaluate", tmp_path / "s.npz", folder, "--threshold", 0.5)
    assert code == 2 and "scores, which are no probabilities" in err


def test_a_calibration_is_dropped_when_the_memory_scores_otherwise(
    trained: Path, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ls.Model.load(copied)
    assert model.calibration is not None
    model.memory.voting = dataclasses.replace(model.memory.voting, temperature=0.2)
    with caplog.at_level(logging.WARNING, logger="labelspace"):
        assert model.calibration is None
    assert "the calibration does not count" in caplog.text
    with pytest.raises(ls.ModelError, match="not calibrated"):
        model.predict("an oak", threshold=0.5)
    with pytest.raises(ls.ModelError, match="holds another model"):
        model.save_calibration(trained)
    model.save(copied)
    assert "calibration" not in json.loads((copied / "manifest.json").read_text())


def test_documents_of_the_memory_do_not_answer_for_themselves(
    folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    data = ls.load(folder)
    model = ls.train(data, "raexmc", base=str(tiny_transformer), epochs=1, evaluations=1, device="cpu")
    made = model.calibration
    assert made is not None and made.scoring == model.memory.settings and made.fitted["documents"] == len(data.valid)
    left_out = model.held_out(data)
    assert left_out.sum() >= len(data.valid)
    pred = model.predict(data.valid.texts, k=20, left_out=left_out)
    assert model.calibrate(data, predictions=pred).as_dict() == made.as_dict()
    answered = model.calibrate(data, predictions=model.predict(data.valid.texts, k=20)).fitted
    assert answered["pairs"] != made.fitted["pairs"] or answered["log_loss"] != made.fitted["log_loss"]
    model.save(tmp_path / "m")
    assert ls.Model.load(tmp_path / "m").calibration is not None


def test_labels_in_another_order_and_filter_pairs(trained: Path, folder: Path) -> None:
    model, data = ls.Model.load(trained), ls.load(folder)
    expected = model.calibrate(data).as_dict()
    order = np.random.default_rng(0).permutation(len(data.labels))
    assert model.calibrate(data.renumbered(order)).as_dict() == expected
    top = model.predict(data.valid.texts, k=1).indices[:, 0]
    pairs = np.column_stack([np.arange(len(data.valid)), top])
    barred = dataclasses.replace(data, valid=dataclasses.replace(data.valid, filter_pairs=pairs))
    fitted = model.calibrate(barred).fitted
    assert fitted["pairs"] == expected["fitted"]["pairs"] - len(data.valid)
    assert model.calibrate(barred.renumbered(order)).fitted == fitted


def test_the_command_replaces_the_calibration_and_nothing_else(
    copied: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {f: f.read_bytes() for f in copied.rglob("*") if f.is_file()}
    code, out, err = run(capsys, "calibrate", copied, folder, "--split", "test", "--json")
    assert code == 0 and "not held out" in err
    made = json.loads(out)
    assert made["documents"] == 400 and made["split"] == "test" and len(made["thresholds"]) == 10
    after = {f: f.read_bytes() for f in copied.rglob("*") if f.is_file()}
    assert [f.name for f in after if after[f] != before.get(f)] == ["manifest.json"] and after.keys() == before.keys()
    calibration = ls.Model.load(copied).calibration
    assert calibration is not None and calibration.fitted["split"] == "test"
    code, out, _ = run(capsys, "calibrate", copied, folder)
    assert code == 0 and "130 valid documents" in out and "best F1" in out and "documents without" in out
    assert len(json.loads((copied / "manifest.json").read_text())["calibration"]["knots"]) == 2


def test_a_model_with_a_damaged_calibration_opens_without_it_and_is_calibrated_again(
    copied: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["calibration"]["knots"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = run(capsys, "calibrate", copied, folder, "--json")
    assert code == 0 and "the model's calibration is damaged" in err
    assert ls.Model.load(copied).calibration is not None


def test_other_validation_documents_than_the_run_held_out_are_warned_of(
    trained: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ls.Model.load(trained)
    with caplog.at_level(logging.WARNING, logger="labelspace"):
        model.calibrate(ls.load(folder))
        assert "probabilities" not in caplog.text
        model.calibrate(ls.load(folder, seed=1))
        assert "read the data with seed=0" in caplog.text
        model.calibrate(ls.load(folder), split="train")
        assert "which the model knows" in caplog.text


# Reports and output


def test_evaluate_reports_reliability(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "evaluate", trained, folder, "--json", "--k", 20, "--threshold", 0.3)
    assert code == 0
    got = json.loads(out)["calibration"]
    model, data = ls.Model.load(trained), ls.load(folder)
    assert data.test is not None
    pred = model.predict(data.test.texts, k=20, probabilities=True)
    assert pred.probabilities is not None
    truth = data.test.targets.toarray() > 0
    found = truth[np.arange(400)[:, None], pred.indices]
    top = pred.probabilities[:, :5].ravel().astype(np.float64)
    assert got["pairs"] == 2000 and len(got["bins"]) == 15
    assert got["ece"] == pytest.approx(calibrate.calibration_error(top, found[:, :5].ravel()), abs=1e-12)
    assert got["threshold"]["abstained"] == np.mean([max(row) < 0.3 for row in pred.probabilities])
    assert got["threshold"]["recall"] == pytest.approx((found & (pred.probabilities >= 0.3)).sum() / truth.sum())
    assert sum(group["pairs"] for group in got["groups"].values()) == 2000
    code, out, _ = run(capsys, "evaluate", trained, folder)
    assert code == 0 and "expected calibration error" in out and "observed" in out and "precision" not in out


def test_probabilities_follow_their_labels_when_a_report_orders_and_filters() -> None:
    rng = np.random.default_rng(1)
    indices = np.argsort(rng.random((40, 30)), axis=1)[:, :12]
    scores = rng.random((40, 12)).astype(np.float32)
    indices[::4, 9:] = -1
    scores[::4, 9:] = -np.inf
    probabilities = np.where(indices >= 0, scores**2, 0)
    truth = rng.random((40, 30)) < 0.3
    pairs = [(i, int(indices[i, 2])) for i in range(0, 40, 3)]
    pred = ls.Predictions(indices, scores, probabilities=probabilities)
    got = evaluation.report(pred, truth.astype(float), filter_pairs=pairs, threshold=0.25).calibration
    predicted, happened, passed = [], [], []
    for row in range(40):
        left = sorted(
            (-float(s), int(i), float(p))
            for i, s, p in zip(indices[row], scores[row], pred.probabilities[row], strict=True)
            if i >= 0 and (row, i) not in pairs
        )
        predicted += [p for _, _, p in left[:5]]
        happened += [bool(truth[row, i]) for _, i, _ in left[:5]]
        passed.append([bool(truth[row, i]) for _, i, p in left if p >= 0.25])
    assert got is not None and got["pairs"] == len(predicted)
    assert got["ece"] == pytest.approx(plain_error(np.array(predicted), np.array(happened)), abs=1e-6)
    assert got["threshold"]["precision"] == pytest.approx(sum(map(sum, passed)) / sum(map(len, passed)))
    assert evaluation.report(ls.Predictions(indices, scores), truth.astype(float)).calibration is None
    with pytest.raises(ls.SettingsError, match="needs predictions with probabilities"):
        evaluation.report(ls.Predictions(indices, scores), truth.astype(float), threshold=0.5)


PROBABLE = ls.Predictions(
    np.array([[2, 0, 1], [-1, -1, -1]]),
    np.array([[0.75, 0.5, 0.25], [-np.inf] * 3], dtype=np.float32),
    ["c", "d", "e"],
    ["cats", "dogs", "elks"],
    np.array([[0.5, 0.5, 0.125], [0, 0, 0]], dtype=np.float32),
)


def test_writers_give_probabilities_and_empty_rows() -> None:
    stream = io.StringIO()
    write_table(PROBABLE, ["a", "b"], stream)
    assert stream.getvalue().split() == "a 0.5000 elks [e] 0.5000 cats [c] 0.1250 dogs [d] b".split()
    stream = io.StringIO()
    write_jsonl(PROBABLE, ["a", "b"], None, stream)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["labels"][1] == {"id": "c", "text": "cats", "score": 0.5, "probability": 0.5}
    assert second == {"id": "b", "labels": []}
    stream = io.StringIO()
    write_tsv(PROBABLE, ["a", "b"], stream)
    rows = [line.split("\t") for line in stream.getvalue().splitlines()]
    assert rows[0] == ["id", "rank", "label_id", "label", "score", "probability"]
    assert rows[3] == ["a", "3", "d", "dogs", "0.25", "0.125"] and len(rows) == 4


def test_files_of_probabilities_keep_the_order_of_the_scores(tmp_path: Path) -> None:
    save_scores(PROBABLE, 3, tmp_path / "score.npz")
    again = load_scores(tmp_path / "score.npz")
    assert again.indices.tolist() == PROBABLE.indices.tolist()
    np.testing.assert_allclose(again.scores[0], [0.5, 0.5, 0.125], atol=1e-6)
    assert sp.load_npz(tmp_path / "score.npz").nnz == 3
    stream = io.StringIO()
    write_tsv(PROBABLE, ["a", "b"], stream)
    (tmp_path / "run.tsv").write_text(stream.getvalue())
    read = load_scores(tmp_path / "run.tsv", 3, None, ["a", "b"], ["c", "d", "e"])
    assert read.indices.tolist() == PROBABLE.indices.tolist()


def test_predictions_refuse_what_is_no_probability() -> None:
    for values in (np.zeros((2, 2)), np.full((2, 3), 1.5), np.full((2, 3), np.nan)):
        with pytest.raises(ls.DataError, match="probabilities must be"):
            ls.Predictions(PROBABLE.indices, PROBABLE.scores, probabilities=values)
