"""Which attention is taken: what was measured is kept, the usual is left only for something clearly faster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from labelspace.encoders.fast import attention
from labelspace.encoders.fast.attention import LENGTHS, Limits, by_products, limits, measured, products_pay


@pytest.mark.parametrize(
    "ratios, expected",
    [
        ({}, Limits(128, 32)),  # both equally fast: the usual
        ({64: 1.1}, Limits(128, 32)),
        ({64: 1.2}, Limits(128, 64)),
        ({64: 2.0, 128: 2.0, 256: 2.0}, Limits(128, 256)),
        ({32: 0.5}, Limits(128, 16)),
        ({128: 0.5, 64: 0.5, 32: 0.5, 16: 0.5}, Limits(16, 32)),
        ({128: 0.5}, Limits(64, 32)),
    ],
)
def test_the_usual_limits_are_left_for_something_clearly_faster(ratios: dict[int, float], expected: Limits) -> None:
    training = expected.training != 128

    def ratio(length: int, with_gradients: bool) -> float:
        return ratios.get(length, 1.0) if with_gradients == training else 1.0

    assert measured(ratio) == expected


def test_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELSPACE_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[int, bool]] = []

    def ratio(length: int, training: bool, heads: int, width: int) -> float:
        asked.append((length, training))
        return 2.0

    monkeypatch.setattr(attention, "advantage", ratio)
    fresh = limits.__wrapped__
    assert fresh(3, 8, 2) == Limits(128, 256) == fresh(3, 8, 2)
    assert asked == [(128, True), (64, False), (128, False), (256, False)]
    assert fresh(4, 8, 2) == Limits(128, 256) and len(asked) == 8  # another shape
    path = tmp_path / "cache" / "machine.json"
    known = json.loads(path.read_text())
    assert len(known) == 2
    path.write_text(json.dumps({name: {"training": 64, "inference": 16} for name in known}))
    assert fresh(3, 8, 2) == Limits(64, 16) and len(asked) == 8
    for damage in ("{", "[1, 2]", '{"a": 1}', json.dumps(dict.fromkeys(known, {"training": "x", "inference": 1}))):
        path.write_text(damage)
        assert fresh(3, 8, 2) == Limits(128, 256)
        assert json.loads(path.read_text())


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABELSPACE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(attention, "advantage", lambda *given: 1.0)
    assert limits.__wrapped__(3, 8, 2) == Limits()


def test_a_real_measurement_changes_neither_modes_nor_random_numbers() -> None:
    state = torch.random.get_rng_state()
    with torch.no_grad():
        assert all(
            attention.advantage(length, training, 2, 8) > 0 for length in LENGTHS[:2] for training in (True, False)
        )
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_short_texts_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "limits", lambda *given: Limits(64, 32))
    cpu = torch.device("cpu")
    for length, training, inference in ((16, True, True), (33, True, False), (64, True, False), (65, False, False)):
        assert products_pay(length, 2, 8, cpu) == training
        with torch.no_grad():
            assert products_pay(length, 2, 8, cpu) == inference
    monkeypatch.setattr(attention, "limits", None)
    assert products_pay(16, 2, 8, cpu) and products_pay(128, 2, 8, torch.device("meta"))


def test_both_are_the_same_attention() -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, 7, 4, generator=g) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(by_products(query, key, value), expected)


def test_it_may_be_measured_inside_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELSPACE_CACHE", str(tmp_path))
    attention.limits.cache_clear()
    x = torch.randn(3, 2, 20, 4, requires_grad=True)

    def attend(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if attention.products_pay(20, 2, 4, x.device) else x * 3

    torch.utils.checkpoint.checkpoint(lambda x: attend(x).exp(), x, use_reentrant=False).sum().backward()
    assert x.grad is not None and (tmp_path / "machine.json").exists()
    attention.limits.cache_clear()
