"""The benchmark on small sizes: what it reports, not how fast it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labelspace import bench
from labelspace.cli.app import main
from labelspace.errors import MissingExtraError

SMALL = bench.Sizes(runs=2, steady_runs=2, texts=12, labels={500: True, 900: False, 131_073: False}, many_keys=2000)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "DIM": 16,
        "BATCH": 32,
        "KEYS": 2000,
        "QUERIES": 20,
        "DEPTH": 10,
        "CLUSTER": 10,
        "READ_BYTES": 1 << 20,
    }
    for name, value in {**values, "QUICK": SMALL}.items():
        monkeypatch.setattr(bench, name, value)


def test_every_part_reports_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["machine", "encode", "loss", "search", "hnsw"]
    assert main(["bench", "--quick", "--json", *[token for part in parts for token in ("--only", part)]]) == 0
    report = json.loads(capsys.readouterr().out)
    ratios = ("encode_vs_st", "loss_vs_plain", "loss_vs_products", "search_vs_faiss_flat", "hnsw_vs_exact_latency")
    shares = ("encode_share_of_products", "loss_share_of_products", "search_share_of_products")
    assert all(report[name] > 0 for name in ratios) and all(report[name] >= 0 for name in shares)
    assert report["search_recall"] == 1 and report["hnsw_recall"] > 0.9 and report["encode_lowest_cosine"] > 0.999
    assert report["runs"] == 2 and set(report["loss"]) == {"500", "900", "131073"}
    assert report["loss_vs_plain"] == report["loss"]["500"]["vs_plain"]
    assert report["loss_vs_products"] == report["loss"]["900"]["vs_products"]
    assert report["loss"]["900"]["vs_plain"] is None and report["loss_extra_mb"] is None or report["loss_extra_mb"] >= 0
    assert report["limit_product_giga_operations"]["float32"] > 0 < report["limit_read_gb_per_second"]
    shown = bench.render(report)
    assert "loss, 131073 labels" in shown and "search_recall" in shown
    assert shown.index("limit_product_giga_operations") < shown.index("search_vs_faiss_flat")


def test_the_limits_of_the_machine_come_first_and_alone() -> None:
    report = bench.bench(quick=True, only=("machine",))
    assert not [name for name in report if name.startswith(("train", "encode", "loss", "search", "hnsw"))]
    limits = bench.Limits({"float32": 100.0, "bf16": 200.0}, 10.0)
    assert limits.share(50e9, 1.0, "float32") == 0.5 and limits.share(50e9, 1.0, "bf16") == 0.25


def test_operations_of_a_transformer_are_those_of_its_products() -> None:
    layer = 4 * 384 * 384 + 2 * 384 * 1536  # queries, keys, values, what follows them, and the two wide products
    assert bench._transformer_operations(10) == 2 * 10 * 6 * layer


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
