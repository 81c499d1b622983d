"""nDCG with graded gains against scikit-learn, against trec_eval itself and its formula in a loop, and in tuning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from sklearn.metrics import ndcg_score

import labelspace as ls
from labelspace.cli.app import main
from labelspace.evaluation.evaluating import report
from labelspace.types import Predictions


def data(seed: int, n: int = 40, size: int = 12) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Grades 0 to 3, every document with one at least, and scores without ties."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 4, size=(n, size)) * (rng.random((n, size)) < 0.4)
    grades[np.arange(n), rng.integers(0, size, n)] = rng.integers(1, 4, n)
    scores = rng.permuted(np.tile(np.arange(size) / size, (n, 1)), axis=1)
    return grades.astype(np.float64), scores


def ranked(scores: npt.NDArray[np.float64]) -> Predictions:
    order = np.argsort(-scores, axis=1)
    return Predictions(order.astype(np.int64), np.take_along_axis(scores, order, axis=1).astype(np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_gains_are_those_of_scikit_learn(seed: int) -> None:
    grades, scores = data(seed)
    pred = ranked(scores)
    for k in (1, 3, 5):
        found = ls.evaluate(pred, grades, ks=(k,))[f"nDCG@{k}"]
        assert found == pytest.approx(100 * ndcg_score(grades, scores, k=k))
        assert ls.evaluate(pred, sp.csr_array(grades / 3), ks=(k,))[f"nDCG@{k}"] == pytest.approx(found)
        found = ls.evaluate(pred, grades, ks=(k,), gains="exponential")[f"nDCG@{k}"]
        assert found == pytest.approx(100 * ndcg_score(2**grades - 1, scores, k=k))
        found = ls.evaluate(pred, grades, ks=(k,), gains="binary")
        assert found == ls.evaluate(pred, grades > 0, ks=(k,))
    graded, plain = ls.evaluate(pred, grades), ls.evaluate(pred, grades > 0)
    assert {n: v for n, v in graded.items() if "nDCG" not in n} == {n: v for n, v in plain.items() if "nDCG" not in n}
    assert report(pred, grades).gains == "linear" and report(pred, 2 * (grades > 0)).gains == "binary"


@pytest.mark.parametrize("seed", range(5))
def test_gains_are_those_of_trec_eval(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the library and by the command, with documents without a right label and judgements below 0."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    grades, scores = data(seed)
    grades[:4] = 0
    rng = np.random.default_rng(seed)
    judged = np.where((grades == 0) & (rng.random(grades.shape) < 0.2), rng.choice([0, -1], grades.shape), grades)
    qrels = {f"q{i}": {f"d{j}": int(grade) for j, grade in enumerate(row)} for i, row in enumerate(judged)}
    run = {f"q{i}": {f"d{j}": float(score) for j, score in enumerate(row)} for i, row in enumerate(scores)}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.1,3,5"}).evaluate(run)
    wanted = {f"nDCG@{k}": 100 * np.mean([row[f"ndcg_cut_{k}"] for row in found.values()]) for k in (1, 3, 5)}
    assert wanted == pytest.approx({name: ls.evaluate(ranked(scores), grades)[name] for name in wanted})
    for name, rows in (("corpus", [{"_id": f"d{j}", "text": f"{j}"} for j in range(grades.shape[1])]),
                       ("queries", [{"_id": name, "text": name} for name in qrels])):  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels").mkdir()
    lines = "".join(f"{q}\t{d}\t{grade}\n" for q, row in qrels.items() for d, grade in row.items())
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    lines = "".join(f"{q} Q0 {d} 0 {score!r} x\n" for q, row in run.items() for d, score in row.items())
    (tmp_path / "run.trec").write_text(lines)
    assert main(["evaluate", str(tmp_path / "run.trec"), str(tmp_path), "--json", "--quiet"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert wanted == pytest.approx({name: metrics[name] for name in wanted})


def trec_eval(grades: list[float], order: list[int], k: int) -> float:
    """ndcg_cut as trec_eval has it: linear gains, discount log2(rank + 1), ideal of all judged."""
    gain = sum(grades[label] / math.log2(rank + 2) for rank, label in enumerate(order[:k]))
    ideal = sum(g / math.log2(rank + 2) for rank, g in enumerate(sorted(grades, reverse=True)[:k]))
    return gain / ideal if ideal else 0.0


def test_gains_are_those_of_trec_eval_with_filter_and_empty_documents() -> None:
    grades, scores = data(9)
    grades[3] = 0
    pred = ranked(scores)
    pairs = [[row, int(pred.indices[row, 0])] for row in range(0, len(grades), 2)]
    orders = [[j for j in row.tolist() if [i, j] not in pairs] for i, row in enumerate(pred.indices)]
    wanted = np.mean([trec_eval(g, order, 3) for g, order in zip(grades.tolist(), orders, strict=True)])
    assert ls.evaluate(pred, grades, filter_pairs=pairs)["nDCG@3"] == pytest.approx(100 * float(wanted))
    kept = [i for i in range(len(grades)) if i != 3]
    found = ls.evaluate(pred, grades, skip_empty=True)
    assert found["nDCG@5"] == ls.evaluate(Predictions(pred.indices[kept], pred.scores[kept]), grades[kept])["nDCG@5"]


def test_judgements_of_beir_count_as_they_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of the report: trec_eval has 50.0 and 81.0."""
    (tmp_path / "qrels").mkdir()
    texts = [{"_id": f"d{i}", "title": "", "text": f"text {i}"} for i in range(1, 6)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": q}) + "\n" for q in ("q1", "q2")))
    judged = "query-id\tcorpus-id\tscore\nq1\td3\t2\nq1\td1\t1\nq2\td2\t2\nq2\td3\t1\n"
    (tmp_path / "qrels" / "test.tsv").write_text(judged)
    run = tmp_path / "run.trec"
    run.write_text("q1 Q0 d1 1 5 x\nq1 Q0 d2 2 4 x\nq1 Q0 d3 3 3 x\nq2 Q0 d3 1 9 x\nq2 Q0 d2 2 8 x\n")

    def figures(*more: str) -> dict[str, float]:
        assert main(["evaluate", str(run), str(tmp_path), "--split", "test", "--json", *more]) == 0
        metrics: dict[str, float] = json.loads(capsys.readouterr().out)["metrics"]
        return metrics

    linear, grades = figures(), [[1, 0, 2, 0, 0], [0, 2, 1, 0, 0]]
    assert linear["nDCG@1"] == pytest.approx(50) and linear["nDCG@3"] == pytest.approx(81.0, abs=0.01)
    gains = [[2.0**g - 1 if g else 0.0 for g in row] for row in grades]
    wanted = (trec_eval(gains[0], [0, 1, 2], 3) + trec_eval(gains[1], [2, 1], 3)) / 2
    assert figures("--gains", "exponential")["nDCG@3"] == pytest.approx(100 * wanted)
    assert figures("--gains", "binary")["nDCG@1"] == 100 and figures("--gains", "binary")["P@1"] == linear["P@1"] == 100
    assert main(["evaluate", str(run), str(tmp_path), "--split", "test"]) == 0
    assert "linear, of relevances in nDCG; other metrics count each above 0 as 1" in capsys.readouterr().out
