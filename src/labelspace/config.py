"""Settings of a run: the public names of `training.settings`."""

from .training.settings import (
    DexmlSettings,
    EncoderSettings,
    MiningSettings,
    RaexmcSettings,
    RunSettings,
    UnidecSettings,
)

__all__ = [
    "DexmlSettings",
    "EncoderSettings",
    "MiningSettings",
    "RaexmcSettings",
    "RunSettings",
    "UnidecSettings",
]
