"""What is fast is measured where it runs, kept, and measured again where something else may be fast."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from labelspace.base import rates

CPU = torch.device("cpu")


MEASURED = (rates._product_seconds, rates.int8_is_exact)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LABELSPACE_CACHE", str(tmp_path / "cache"))
    for known in MEASURED:
        known.cache_clear()
    yield
    for known in MEASURED:
        known.cache_clear()


@pytest.mark.parametrize(
    ("bf16", "int8", "low", "lower"),
    [(0.5, 0.2, True, True), (0.5, 0.45, True, False), (0.95, 0.9, False, False), (6.0, 9.0, False, False)],
)
def test_what_is_clearly_faster_is_taken(
    bf16: float, int8: float, low: bool, lower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "_product_seconds", lambda: {"float32": 1.0, "bf16": bf16, "int8": int8})
    monkeypatch.setattr(rates, "int8_is_exact", lambda: True)
    assert (rates.bf16_pays(CPU), rates.int8_pays(CPU)) == (low, lower)
    monkeypatch.setattr(rates, "int8_is_exact", lambda: False)
    assert not rates.int8_pays(CPU)
    for other in ("meta", "mps"):
        assert not rates.bf16_pays(torch.device(other)) and not rates.int8_pays(torch.device(other))


def test_products_per_second_are_of_the_faster_type(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16 in (0.01, 9.0):
        monkeypatch.setattr(rates, "_product_seconds", lambda bf16=bf16: {"float32": 0.02, "bf16": bf16, "int8": 1e-9})
        assert rates.products_per_second(CPU) == pytest.approx(1024 * 1024 * 384 / min(0.02, bf16))
    assert rates.products_per_second(torch.device("meta")) == rates.GPU_PRODUCTS_PER_SECOND


def test_it_is_measured_once_and_kept(tmp_path: Path) -> None:
    seconds = rates._product_seconds()
    assert set(seconds) == {"float32", "bf16", "int8"} and 0 < seconds["float32"] < float("inf")
    path = tmp_path / "cache" / "machine.json"
    (entry,) = json.loads(path.read_text())
    path.write_text(json.dumps({entry: {"float32": 3, "bf16": 1, "int8": 2}}))
    rates._product_seconds.cache_clear()
    assert rates.bf16_pays(CPU)


def test_other_limits_and_damage_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure() -> dict[str, float]:
        asked.append(1)
        return {"a": len(asked)}

    assert rates.measured_once("x", measure) == rates.measured_once("x", measure) == {"a": 1}
    assert rates.measured_once("y", measure) == {"a": 2}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert rates.measured_once("x", measure) == {"a": 3}
    path = tmp_path / "cache" / "machine.json"
    assert len(json.loads(path.read_text())) == 3
    for damage in ("{", "[1, 2]", '{"a": 1}'):
        path.write_text(damage)
        assert rates.measured_once("x", measure) == {"a": len(asked)} and json.loads(path.read_text())
    assert len(asked) == 6


def test_wrong_int8_products_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: plain(a, b).clamp(-100_000, 100_000))  # sums that saturate
    assert not rates.int8_is_exact() and not rates.int8_pays(CPU)
    rates.int8_is_exact.cache_clear()

    def missing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch, "_int_mm", missing)
    assert not rates.int8_is_exact() and rates._product_seconds()["int8"] == float("inf")
