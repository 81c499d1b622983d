"""What a model is made of. Everything that is done with one is a function of this, in the files beside."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..base.machine import require_memory
from ..base.rates import bf16_pays
from ..encoders import Precision
from ..errors import DataError, SettingsError
from ..evaluation.calibration import Calibration
from ..labels import LabelNames
from ..memory.keys import Keys
from ..memory.memory import Memory
from ..types import Labels
from .towers import Tower, Vectors

logger = logging.getLogger(__name__)

ENCODE_BLOCK = 16_384
"""Texts encoded between two steps of a progress bar."""


class Core:
    """Encoders with their heads, a memory of keys, and the labels that these vote for.

    Args:
        towers: encoders with their heads; the first alone makes document keys.
        memory: keys made by them, and their votes.
        labels: the L labels that are voted for.
        info: what made the model: recipe, config, data, metrics; all of it JSON.
        calibration: from scores to probabilities, as it was fitted; `current_calibration` says whether it still holds.

    Attributes:
        history: changes of labels, documents and voting, the oldest first.
        folder: where the model was opened or saved; None for nowhere yet.
        revision: of the folder, as it was opened or saved.
        precision: in which texts are encoded.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        memory: Memory,
        labels: Labels,
        info: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
    ):
        if memory.n_labels != len(labels):
            raise ValueError(f"the memory votes for {memory.n_labels} labels, but {len(labels)} are named")
        self.towers = tuple(towers)
        dim, first = sum(tower.dim for tower in self.towers), self.towers[0].document_dim
        if not memory.document_keys.segments:
            memory.document_keys.dim = first
        for kind, keys, own in (("label", memory.label_keys, dim), ("document", memory.document_keys, first)):
            if keys.dim != own:
                raise ValueError(f"{kind} keys have {keys.dim} dimensions, the encoder {own}")
        self.memory = memory
        if not memory.named:
            memory.name(labels)
        self.labels = labels
        self.info = info or {}
        self.history: list[dict[str, Any]] = []
        self.folder: Path | None = None
        self.revision = 0
        self.calibration = calibration
        self.precision: Precision = "float32"
        self._names: LabelNames | None = None

    def set_precision(self, value: Literal["auto", "float32", "bf16"]) -> None:
        """Encode texts in a precision from now on; ``auto`` is the one that the device is faster in."""
        if value not in ("auto", "float32", "bf16"):
            raise SettingsError(f"unknown precision {value!r}; choose one of auto, float32, bf16")
        if value == "auto":
            value = "bf16" if bf16_pays(self.towers[0].encoder.device) else "float32"
        self.precision = value

    def encode(self, texts: Sequence[str], batch_size: int) -> Vectors:
        """(n, D) queries of checked texts, those of all towers side by side."""
        return _side_by_side([tower.queries(texts, batch_size, self.precision) for tower in self.towers])

    def encode_labels(self, texts: Sequence[str], batch_size: int) -> Vectors:
        """(n, D) keys of labels that are known by their checked texts alone, those of all towers side by side."""
        return _side_by_side([tower.label_keys(texts, batch_size, self.precision) for tower in self.towers])

    def encode_documents(self, texts: Sequence[str], batch_size: int, precision: Precision | None = None) -> Vectors:
        """(n, document_dim) keys of documents, by the first tower; in the precision of the model if none is given."""
        return self.towers[0].document_keys(texts, batch_size, precision or self.precision)

    def encode_many(
        self, encode: Callable[[Sequence[str], int], Vectors], texts: Sequence[str], batch_size: int
    ) -> Vectors:
        """Vectors of many checked texts, with a progress bar."""
        parts = []
        with tqdm(total=len(texts), desc="encoding", unit="text", disable=None) as bar:
            for start in range(0, len(texts), ENCODE_BLOCK):
                parts.append(encode(texts[start : start + ENCODE_BLOCK], batch_size))
                bar.update(len(parts[-1]))
        return np.concatenate(parts) if parts else np.zeros((0, self.memory.document_keys.dim), dtype=np.float32)

    def on_device(self, vectors: Vectors) -> torch.Tensor:
        """Vectors where the memory is."""
        return torch.from_numpy(np.ascontiguousarray(vectors)).to(self.memory.device)

    def label_numbers(self, labels: Iterable[str | int]) -> npt.NDArray[np.int64]:
        """Numbers of labels given by id, by text or by number, see `LabelNames`."""
        if self._names is None:
            self._names = LabelNames(self.labels)
        return self._names(labels)

    def current_calibration(self) -> Calibration | None:
        """From scores to probabilities; None where there is none, or the memory was made to score otherwise since."""
        if self.calibration is None:
            return None
        fitted_on, now = one_line(self.calibration.scoring), one_line(self.memory.settings)
        if fitted_on == now:
            return self.calibration
        logger.warning(
            "the calibration does not count: it was fitted on scores of %s, and the memory now has %s; calibrate again",
            *(fitted_on, now),
        )
        return None

    def labels_changed(self) -> None:
        """Take the labels from the memory, whose label keys were changed."""
        self.memory.renumber()
        self.labels = self.memory.labels
        self._names = None

    def keys_of(self, kind: str) -> Keys:
        """Keys of a kind, ``labels`` or ``documents``."""
        return self.memory.label_keys if kind == "labels" else self.memory.document_keys

    def note(self, change: str, names: Sequence[str] = ()) -> None:
        """Put a change into the history, with the ids that it is about."""
        entry: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "change": change}
        if names:
            entry.update(count=len(names), first=list(names[:3]))
        self.history.append(entry)


def checked_texts(texts: Sequence[str] | str, kind: str) -> list[str]:
    """Texts as a list, a single one too; `DataError` for anything else, which it calls by ``kind``."""
    if isinstance(texts, str):
        return [texts]
    try:
        checked = list(texts)
    except TypeError as error:
        raise DataError(f"a list of {kind}s was expected, got {type(texts).__name__}") from error
    for i, text in enumerate(checked):
        if not isinstance(text, str):
            raise DataError(f"{kind} number {i} is {text!r} ({type(text).__name__}), not a string")
    return checked


def one_line(settings: dict[str, Any]) -> str:
    """Settings in one line, equal for what was read from JSON and what was not."""
    return json.dumps(settings, sort_keys=True)


def require_room(texts: int, k: int) -> None:
    """Refuse predictions (texts, k) that would not fit into memory."""
    require_memory(24 * texts * k, f"{texts} x {k} predictions", "lower k or give fewer texts at a time")


def _side_by_side(parts: list[Vectors]) -> Vectors:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
