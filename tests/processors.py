"""Another processor than this one: torch computes as it would, and is made to tell so.

`ATEN_CPU_CAPABILITY` (``avx2``, or ``default`` for less) chooses the kernels of torch, `ONEDNN_MAX_CPU_ISA` and
`MKL_ENABLE_INSTRUCTIONS` those of the libraries below it.
"""

from __future__ import annotations

import os

LESSER = {
    "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}  # fmt: skip
"""Variables for a processor without AVX512, and for torch without any vector instructions."""


def product_seconds() -> dict[str, float]:
    """Seconds of matrix products as `labelspace.base.rates` measures them, told by the processor and not by a clock."""
    import torch

    def has(*probes: str) -> bool:
        return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)

    low = has("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    lower = has("_is_amx_tile_supported", "_is_vnni_supported")
    second = 4e-3  # of two cores
    return {"float32": second, "bf16": second / 2 if low else 2 * second, "int8": second / 4 if lower else 2 * second}


def pretend() -> None:
    """Let `torch.cpu` tell what was chosen: its probes see the real processor, and fast paths are taken by them."""
    import torch

    if os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default"):
        for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_vnni_supported"):
            if hasattr(torch.cpu, probe):
                setattr(torch.cpu, probe, lambda: False)
