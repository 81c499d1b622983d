"""What this processor is fast in: measured where it runs, once, and kept in the cache folder."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import LabelspaceError
from .files import atomic_file
from .machine import cache_folder, processor

if TYPE_CHECKING:
    import torch

MIN_SPEEDUP = 1.15
"""Products in a smaller type must be so many times faster to be taken, so that noise does not decide."""


GPU_PRODUCTS_PER_SECOND = 4.2e12
"""What is foreseen of a GPU: forty cores with bf16 products, which is little, so that no run is too long."""
PRODUCT_ROWS, PRODUCT_WIDTH = 1024, 384
"""Rows and dimensions of both sides of the product that is measured."""


def bf16_pays(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in float32 here: measured on a CPU; a GPU needs native bf16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _product_seconds()["float32"] > MIN_SPEEDUP * _product_seconds()["bf16"]


def int8_pays(device: torch.device) -> bool:
    """Whether matrix products in int8 are right, and faster than in float32 and bf16 here; never but on a CPU."""
    if device.type != "cpu" or not int8_is_exact():
        return False
    seconds = _product_seconds()
    return min(seconds["float32"], seconds["bf16"]) > MIN_SPEEDUP * seconds["int8"]


def products_per_second(device: torch.device) -> float:
    """Multiplications with addition that matrix products make in a second, in the faster of float32 and bf16.

    Args:
        device: a CPU with all its threads is measured once and kept in the cache folder; of a GPU it is a guess.
    """
    if device.type != "cpu":
        return GPU_PRODUCTS_PER_SECOND
    seconds = _product_seconds()
    return PRODUCT_ROWS**2 * PRODUCT_WIDTH / min(seconds["float32"], seconds["bf16"])


@functools.cache
def int8_is_exact() -> bool:
    """Whether this processor's int8 products are right over the whole range; some saturate sums of two in 16 bits."""
    import torch

    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (count, 384), generator=g, dtype=torch.int8) for count in (64, 96))
    a[:4], b[:2], b[2:4] = 127, 127, -127
    try:
        return torch.equal(torch._int_mm(a, b.T).double(), a.double() @ b.double().T)
    except RuntimeError:  # this build of torch has none
        return False


@functools.cache
def _product_seconds() -> dict[str, float]:
    """Seconds of a product of two (1024, 384) matrices in float32, bf16 and int8; infinite where there is none.

    A processor may have instructions for a type and be slow in it, or have none and be fast enough, and a user may
    have told the libraries to leave some alone; so what is faster is measured.
    """
    import torch

    def measure() -> dict[str, float]:
        g = torch.Generator().manual_seed(0)
        a, b = (torch.randn(PRODUCT_ROWS, PRODUCT_WIDTH, generator=g) for _ in range(2))
        a16, b16 = a.bfloat16(), b.bfloat16()
        a8, b8 = ((x * 30).clamp(-127, 127).to(torch.int8) for x in (a, b))
        products = {"float32": lambda: a @ b.T, "bf16": lambda: a16 @ b16.T, "int8": lambda: torch._int_mm(a8, b8.T)}
        seconds = dict.fromkeys(products, math.inf)
        for _ in range(4):
            for name, product in products.items():
                begun = time.perf_counter()
                with contextlib.suppress(RuntimeError):  # this build of torch has none
                    product()
                    seconds[name] = min(seconds[name], time.perf_counter() - begun)
        return seconds

    return measured_once("products", measure)


def measured_once(name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Figures by name that were measured of this machine before, or else are measured and kept in the cache folder.

    They are measured anew for another processor, another build of torch, and other limits on its instructions.
    """
    import torch

    limits = [f"{v}={os.environ[v]}" for v in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS") if v in os.environ]
    kind = ", ".join([processor(), torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}", *limits])
    path, entry = cache_folder() / "machine.json", f"{name}: {kind}"
    known: dict[str, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        known = dict(json.loads(path.read_text(encoding="utf-8")))
        return {figure: float(value) for figure, value in known[entry].items()}
    figures = measure()
    with contextlib.suppress(LabelspaceError, OSError), atomic_file(path) as temporary:
        temporary.write_text(json.dumps({**known, entry: figures}, indent=1), encoding="utf-8")
    return figures
