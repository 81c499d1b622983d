"""Recipes by name; each is one file with ``train(data, settings, ...) -> Model``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import resolve
from ..errors import DataError

if TYPE_CHECKING:
    from ..model import Model
    from ..types import Dataset


def train(
    data: Dataset | str | Path,
    recipe: str = "dexml",
    out: str | Path | None = None,
    *,
    started: float | None = None,
    **settings: Any,
) -> Model:
    """Train a model.

    Args:
        data: a data set, or a path that `labelspace.load` reads.
        recipe: ``dexml``.
        out: folder to write the model to, together with ``log.jsonl`` and ``settings.toml``; None writes nothing.
            A model that is there is replaced, anything else is refused.
        started: when the work began, by `time.monotonic`; ``max_minutes`` counts from there. None for now.
        settings: any setting of the recipe by name, see `labelspace.config`.

    Returns:
        The model with the weights of the best validation nDCG@5.

    Raises:
        SettingsError: an unknown setting or a value out of bounds.
        DataError: data that cannot be trained on.
        ResourceError: the run would not fit into memory.
        ModelError: the encoder cannot be opened, or ``out`` holds something that is not a model.
        MissingExtraError: an encoder whose package is not installed.
    """
    started = time.monotonic() if started is None else started
    resolved = resolve(recipe, settings)
    from ..data import load, require_texts

    if isinstance(data, str | Path):
        data = load(data, seed=resolved.seed)
    require_texts(data)
    if not len(data.train):
        raise DataError(f"{data.name} has no training documents, only ones to measure on")
    from . import dexml

    return dexml.train(data, resolved, None if out is None else Path(out), started)
