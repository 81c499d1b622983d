"""Memory figures and refusals."""

from __future__ import annotations

import pytest
import torch

from labelspace.base import machine
from labelspace.errors import LabelspaceError, ResourceError, SettingsError
from labelspace.training.config import made
from labelspace.training.required_memory import Shape, training_bytes
from labelspace.training.settings import DexmlSettings


def test_figures_are_plausible() -> None:
    free, peak = machine.available_memory(), machine.peak_memory()
    assert free is None or 10_000_000 < free < 1 << 50
    assert peak is None or 10_000_000 < peak < 1 << 50
    assert machine.gigabytes(2_500_000_000) == "2.5 GB" and machine.gigabytes(1_500_000) == "1.5 MB"


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 1_000_000_000)
    machine.require_memory(900_000_000, "it", "do less")
    with pytest.raises(ResourceError, match=r"it would take about 2.0 GB of memory, and 1.0 GB are available; do less"):
        machine.require_memory(2_000_000_000, "it", "do less")
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    machine.require_memory(1 << 60, "it", "do less")


def test_the_estimate_grows_with_what_is_asked() -> None:
    static = Shape(weight_bytes=50_000_000, dim=384)
    small = training_bytes(DexmlSettings(), static, 25_000)
    assert 5 * static.weight_bytes < small < training_bytes(DexmlSettings(), static, 1_000_000)
    assert small < training_bytes(DexmlSettings(), static, 25_000, kept_keys=25_000) < 2 * small
    transformer = Shape(weight_bytes=90_000_000, dim=384, layers=6, hidden=384, heads=12, max_tokens=128)
    one, four = (training_bytes(made(DexmlSettings, {"chunk_size": c}), transformer, 1000) for c in (64, 256))
    assert one < four


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELSPACE_CACHE", "/somewhere")
    assert str(machine.cache_folder()) == "/somewhere"
    monkeypatch.delenv("LABELSPACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/else")
    assert str(machine.cache_folder()) == "/else/labelspace"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.device_of("cpu").type == "cpu"
    with pytest.raises(SettingsError, match="there is no device 'abacus'; choose auto, cpu, cuda or mps"):
        machine.device_of("abacus")
    missing = "cuda" if not torch.cuda.is_available() else "xpu"
    with pytest.raises(LabelspaceError, match=f"the device '{missing}' cannot be used here"):
        machine.device_of(missing)
