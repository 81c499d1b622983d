"""The benchmark on small sizes: what it reports, not how fast it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labelspace import bench
from labelspace.cli import main
from labelspace.errors import MissingExtraError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"DIM": 16, "BATCH": 32, "KEYS": 2000, "QUERIES": 20, "DEPTH": 10}
    values |= {
        "MANY_KEYS": 2000,
        "CLUSTER": 10,
        "ENCODE_TEXTS": 12,
        "STEADY_RUNS": 4,
        "LABELS": {500: True, 131_072: True, 140_000: False},
    }
    for name, value in values.items():
        monkeypatch.setattr(bench, name, value)


def test_every_part_reports_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["machine", "encode", "loss", "search", "hnsw"]
    assert main(["bench", "--quick", "--json", *[token for part in parts for token in ("--only", part)]]) == 0
    report = json.loads(capsys.readouterr().out)
    ratios = ("encode_vs_st", "encode_vs_st_bf16", "loss_vs_plain", "loss_vs_products", "search_vs_faiss_flat")
    assert all(report[name] > 0 for name in (*ratios, "hnsw_vs_exact_latency", "copy_gb_per_second"))
    assert report["search_recall"] == 1 and report["hnsw_recall"] > 0.9 and report["encode_lowest_cosine"] > 0.999
    assert report["runs"] == 3 and set(report["loss"]) == {"500", "131072", "140000"}
    assert (
        report["loss_vs_plain"] == report["loss"]["131072"]["vs_plain"] and report["loss"]["140000"]["vs_plain"] is None
    )
    assert report["product_tera_operations"]["float32"] > 0
    shown = bench.render(report)
    assert "loss, 140000 labels" in shown and "search_recall" in shown


def test_texts_have_the_length_asked_for() -> None:
    texts = bench.made_up_texts(3000, 16, 0)
    assert texts == bench.made_up_texts(3000, 16, 0) != bench.made_up_texts(3000, 16, 1)
    assert sum(len(text.split()) + 2 for text in texts) / 3000 == pytest.approx(16, rel=0.03)


def test_sides_take_turns() -> None:
    seen: list[str] = []
    seconds = bench.Runs(2).in_turn(lambda: seen.append("a"), lambda: seen.append("b"))
    assert seen == ["a", "b"] * 3 and len(seconds) == 2


def test_what_is_missing_is_named_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name in ("accelerate", "faiss") else object())
    monkeypatch.setattr(bench, "machine", lambda *_: pytest.fail("measured"))
    for part in ("train", "search", "hnsw"):
        with pytest.raises(MissingExtraError, match=rf"part '{part}'.*labelspace\[bench\]"):
            bench.bench(quick=True, only=("machine", part))


def test_seeds_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("-1", "99999999999999999999"):
        assert main(["bench", "--only", "machine", "--seed", seed]) == 2 and "--seed" in capsys.readouterr().err


def test_steps_of_the_trainer_are_timed() -> None:
    pytest.importorskip("datasets")
    documents, labels = bench.made_up_texts(4, 8, 0), bench.made_up_texts(4, 6, 1)
    for steps in (bench._our_steps(documents, labels), bench._their_steps(documents, labels)):
        assert 0 < steps() < 60
