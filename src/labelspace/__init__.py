"""Extreme multi-label classification with label text.

A model is a query encoder and a memory of keys that vote for labels. The public names below are loaded on first
use; importing this package loads neither torch nor any other heavy library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import losses
    from .data import load
    from .data.conversion import convert
    from .errors import DataError, LabelspaceError, MissingExtraError, ModelError, ResourceError, SettingsError
    from .evaluation.evaluating import evaluate
    from .model.joining import join
    from .model.model import Model
    from .recipes import train
    from .types import Corpus, Dataset, Labels, Predictions

_NAMES = {
    ".data": ["load"],
    ".data.conversion": ["convert"],
    ".recipes": ["train"],
    ".evaluation": ["evaluate"],
    ".model.joining": ["join"],
    ".model.model": ["Model"],
    ".types": ["Corpus", "Dataset", "Labels", "Predictions"],
    ".errors": ["DataError", "LabelspaceError", "MissingExtraError", "ModelError", "ResourceError", "SettingsError"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Corpus", "DataError", "Dataset", "LabelspaceError", "Labels", "MissingExtraError", "Model", "ModelError",
    "Predictions", "ResourceError", "SettingsError", "__version__", "convert", "evaluate", "join", "load", "losses",
    "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name != "losses" and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .base.machine import ask_for_huge_pages

    ask_for_huge_pages()
    if name == "losses":
        return importlib.import_module(".losses", __name__)
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
