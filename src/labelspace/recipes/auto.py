"""What is trained when no recipe is named: UniDEC with a memory, its main settings chosen by data and device."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch

from ..config import AutoSettings, UnidecSettings, to_dict
from ..data.batches import usable_rows
from ..encoders import Encoder, open_encoder
from ..machine import bf16_pays
from ..trainer import device_of
from ..types import Dataset

logger = logging.getLogger(__name__)

MINUTES = 60.0
"""Time limit where none is given."""
TOKENS_PER_SECOND = 1800.0
"""What a core with bf16 products trains of the packaged minilm, forward and backward; without them half of it."""
GPU_FACTOR = 40.0
"""So many cores is a GPU worth."""
TOKENS_A_WORD, MOST_TOKENS = 1.4, 128
"""Of a transformer, and where texts are cut."""
LEAST_PASSES = 0.5
"""With fewer passes over the documents a transformer is behind ``static``."""
PASSES, LEAST_STEPS, MOST_EPOCHS = 4, 400, 30
"""Passes where there are many documents; more of them where they would make fewer steps than that."""
STEPS_A_PASS = 60
"""Batches are as large as leaves so many steps in a pass, from 32 to 512."""
SAMPLE = 500
"""Texts of a kind whose words are counted."""


def choose(data: Dataset, settings: AutoSettings) -> tuple[str, UnidecSettings]:
    """The recipe and its settings; what was chosen and why is logged.

    Args:
        data: what to learn from.
        settings: those given; what is None in them is chosen.
    """
    documents = len(usable_rows(data.train.targets, data.fit_rows))
    count = max(1, documents + (len(data.labels) if settings.label_documents else 0))  # label texts are documents too
    values: dict[str, Any] = to_dict(settings)
    given = {name: value for name, value in values.items() if value is not None}
    values["max_minutes"] = minutes = given.get("max_minutes", MINUTES)
    values["batch_size"] = batch = given.get("batch_size", _batch_size(count))
    if "epochs" not in given:
        wanted = max(PASSES, math.ceil(LEAST_STEPS * batch / count))
        values["epochs"] = min(MOST_EPOCHS, wanted)
    device = device_of(settings.device)
    passes = 60 * minutes * _texts_per_second(data, device, settings.label_documents) / count
    if "encoder" not in given:
        values["encoder"] = "minilm" if passes >= LEAST_PASSES else "static"
    transformer = not _is_static(values["encoder"])
    if transformer:
        values["encoder_weight"] = given.get("encoder_weight", 0.0)
        if values["encoder_weight"] == 0:  # one head, so nothing is gained by layers between it and the encoder
            plain = {"encoder_dim": 0, "classifier_dim": 0, "head_dropout": 0.0, "table_dropout": 0.0, "table_lr": 3e-3}
            values.update({name: given.get(name, value) for name, value in plain.items()})
    else:
        values["encoder_weight"] = given.get("encoder_weight", 0.5)
    if device.type == "cpu" and bf16_pays(device) and settings.key_precision == "float32":
        values["key_precision"] = "bf16"
    chosen = UnidecSettings(**values)
    reach = f"about {passes:.1f} passes over {count} texts fit into {minutes:g} minutes on {_named(device)}"
    why = "a transformer learns more from each" if transformer else "a bag of token vectors makes more of them"
    if "encoder" in given:
        why = "the encoder was given"
    logger.info(
        "no recipe was named: unidec%s with the encoder %s, since %s and %s; at most %d epochs in batches of %d",
        *(" with a memory of the documents" if chosen.memory else "", chosen.encoder, reach, why),
        *(chosen.epochs, chosen.batch_size),
    )
    return "unidec", chosen


def _batch_size(count: int) -> int:
    """A power of two from 32 to 512 that leaves STEPS_A_PASS steps in a pass, if one does."""
    return int(min(512, max(32, 2 ** int(math.log2(max(1, count / STEPS_A_PASS))))))


def _texts_per_second(data: Dataset, device: torch.device, label_documents: bool) -> float:
    """How many documents a second the packaged minilm learns from, by their mean length."""
    kinds = [data.train.texts, *([data.labels.texts] if label_documents else [])]
    means = []
    for texts in kinds:
        rows = np.unique(np.linspace(0, len(texts) - 1, min(SAMPLE, len(texts))).astype(np.int64))
        words = np.array([len(texts[row].split()) for row in rows.tolist()])
        means.append(np.minimum(MOST_TOKENS, 2 + TOKENS_A_WORD * words).mean())
    tokens = np.average(means, weights=[len(texts) for texts in kinds])
    if device.type != "cpu":
        return float(GPU_FACTOR * TOKENS_PER_SECOND / tokens)
    rate = TOKENS_PER_SECOND if bf16_pays(device) else TOKENS_PER_SECOND / 2
    return float(torch.get_num_threads() * rate / tokens)


def _is_static(name: str) -> bool:
    """Whether an encoder is a bag of token vectors; folders are opened to see."""
    if name in ("static", "minilm"):
        return name == "static"
    encoder: Encoder = open_encoder(name)
    return encoder.row_sparse


def _named(device: torch.device) -> str:
    return f"{torch.get_num_threads()} cores" if device.type == "cpu" else f"a device of the kind {device.type}"
