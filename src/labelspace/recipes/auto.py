"""What is trained when no recipe is named: UniDEC or RAE-XMC, with a memory, chosen by data, time and device."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from ..base.machine import device_of
from ..encoders import Encoder, open_encoder
from ..training.batches import usable_rows
from ..training.settings import AutoSettings, RaexmcSettings, UnidecSettings, to_dict
from ..types import Dataset
from .seconds import (
    BOTH_HEADS_PAIRS_PER_SECOND,
    COMPANION_SHARE,
    GPU_FACTOR,
    classifier_pass_seconds,
    companion_seconds,
    linear_seconds,
    texts_per_second,
    tuned_on,
    tuning_seconds,
)
from .unidec import MOST_IN_POOL

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

MINUTES = 60.0
"""Time limit where none is given."""
ENCODING = 0.25
"""What encoding a document takes, as a part of learning from it."""
LABEL_ENCODINGS = 3
"""A transformer encodes all label texts before the first step, and for two evaluations at least."""
LEAST_PASSES, LEAST_BESIDE = 0.35, 0.1
"""With fewer passes over the documents, as they are foreseen, a transformer is behind ``static``; with fewer of the
second, one that is joined with ``static``."""
COMPANION_VALID = 500
"""``static`` joins a transformer, and a linear classifier the keys, where so many validation documents tell how much
they should count."""
PLAIN_SHARE = 1 / 3
"""Without a classifier it does so where it takes at most this share of the time."""
CLASSIFIER_PASSES = 2.0
"""With time for fewer passes against all labels, what joins it has no classifier."""
ENCODING_SHARE = 0.3
"""Where encoding all documents would take a transformer more than this share of the time, they vote by ``static``."""
LINEAR_SHARE = 1 / 5
"""A linear classifier on words is learned where it takes at most this share of the time."""
FEW_PASSES = 2.0
"""With fewer passes against all labels, more of them on picked pools teach ``static`` more."""
ROWS_FROM, ROWS_PASSES = 3, 1.5
"""With so many documents a label, and time for so many passes against all labels, learned rows of labels and a memory
are worth more to ``static`` than what RAE-XMC makes of the time."""
PASSES, LEAST_STEPS, MOST_EPOCHS = 4, 400, 30
"""Passes where there are many documents; more of them where they would make fewer steps than UniDEC's least."""
STATIC_STEPS = 1000
"""Steps of 512 documents that RAE-XMC with ``static`` makes at least; of smaller batches more, by the root."""
STEPS_A_PASS = 60
"""Batches are as large as leaves so many steps in a pass, from 32 to 512."""


def choose(data: Dataset, settings: AutoSettings, passed: float = 0.0) -> tuple[str, UnidecSettings | RaexmcSettings]:
    """The recipe and its settings; what was chosen and why is logged.

    Args:
        data: what to learn from.
        settings: those given; what is None in them is chosen.
        passed: seconds of the time limit that are gone.
    """
    documents = len(usable_rows(data.train.targets, data.fit_rows))
    count = max(1, documents + (len(data.labels) if settings.label_documents else 0))  # label texts are documents too
    values: dict[str, Any] = to_dict(settings)
    given = {name: value for name, value in values.items() if value is not None}
    values["max_minutes"] = minutes = given.get("max_minutes", MINUTES)
    values["batch_size"] = batch = given.get("batch_size", _batch_size(count))
    device = device_of(settings.device)
    seconds = 60 * minutes - passed - (tuning_seconds(tuned_on(settings, len(data.valid))) if settings.memory else 0)
    words = linear_seconds(data)
    told = settings.memory and len(data.valid) >= COMPANION_VALID
    values["linear"] = given.get("linear", told and words <= LINEAR_SHARE * seconds)
    seconds -= words if values["linear"] else 0.0
    rate = texts_per_second(data, device, settings)
    limited = dataclasses.replace(settings, max_minutes=minutes)
    plan = _beside(data, limited, max(0.0, seconds), ENCODING * len(data.train) / rate, batch)
    labels = LABEL_ENCODINGS * ENCODING * len(data.labels) / rate
    passes = max(0.0, seconds - plan.seconds - labels) * rate / count
    if "encoder" not in given:
        least = LEAST_PASSES if plan.companion == "none" else LEAST_BESIDE
        values["encoder"] = "minilm" if passes >= least else "static"
    transformer = not _is_static(values["encoder"])
    if transformer:
        values["encoder_weight"] = given.get("encoder_weight", 0.0)
        if values["encoder_weight"] == 0:  # one head, so nothing is gained by layers between it and the encoder
            plain = {"encoder_dim": 0, "classifier_dim": 0, "head_dropout": 0.0, "table_dropout": 0.0}
            if (settings.table_optimizer, settings.classifier_labels) == ("adamw", "pool"):
                plain["table_lr"] = 3e-3
            values.update({name: given.get(name, value) for name, value in plain.items()})
        values["companion"], values["documents_by"] = plan.companion, plan.documents_by
    else:
        values["encoder_weight"] = given.get("encoder_weight", 0.5)
        by = values["documents_by"] = given.get("documents_by", "encoder")
        values["companion"] = "static" if by == "companion" else given.get("companion", "none")  # is refused there
        cores = torch.get_num_threads() if device.type == "cpu" else GPU_FACTOR
        against_all = max(0.0, seconds) * cores * BOTH_HEADS_PAIRS_PER_SECOND / (count * len(data.labels))
        rows_pay = documents >= ROWS_FROM * len(data.labels) and against_all >= ROWS_PASSES
        rows_pay &= len(data.labels) <= MOST_IN_POOL
        if settings.pool == "auto" and against_all < FEW_PASSES:
            values["pool"] = "some"
        if settings.classifier_labels == "pool" and settings.classifier_loss != "bce":
            values["classifier_norm"] = given.get("classifier_norm", "tuned")
    chosen: UnidecSettings | RaexmcSettings
    if transformer or rows_pay or not settings.memory or _asks_for_heads(settings):
        values["epochs"] = given.get("epochs", _epochs(LEAST_STEPS, batch, count))
        recipe, chosen = "unidec", UnidecSettings(**values)
    else:  # label texts are no documents here
        values["batch_size"] = batch = given.get("batch_size", _batch_size(documents))
        steps = STATIC_STEPS * math.sqrt(512 / batch)
        values["epochs"] = given.get("epochs", _epochs(steps, batch, max(1, documents)))
        recipe, chosen = "raexmc", _without_heads(settings, values)
    joined = "" if values["companion"] == "none" else f" joined with {values['companion']}"
    joined += ", by which documents vote" if values["documents_by"] == "companion" else ""
    reach = f"about {passes:.1f} passes over {count} texts fit into {minutes:g} minutes on {_named(device)}"
    remembered = " with a memory of the documents" if settings.memory else ""
    remembered += " and a linear classifier on words" if values["linear"] else ""
    why = "a transformer learns more from each" if transformer else "a bag of token vectors makes more of them"
    if "encoder" in given:
        why = "the encoder was given"
    logger.info(
        "no recipe was named: %s%s with the encoder %s, since %s and %s; at most %d epochs in batches of %d",
        *(recipe, remembered, chosen.encoder + joined, reach, why),
        *(chosen.epochs, chosen.batch_size),
    )
    return recipe, chosen


@dataclasses.dataclass(frozen=True)
class _Beside:
    """What is done beside the training of a transformer.

    Args:
        companion: as in the settings.
        documents_by: as in the settings.
        seconds: that it takes, about.
    """

    companion: str
    documents_by: str
    seconds: float


def _beside(data: Dataset, settings: AutoSettings, seconds: float, encoding: float, batch: int) -> _Beside:
    """Whether ``static`` is trained beside a transformer, and by whose vectors documents vote.

    Args:
        data: what to learn from.
        settings: those given.
        seconds: of the whole run.
        encoding: seconds that the transformer needs for the vectors of all documents.
        batch: documents in a step.
    """
    if not settings.memory:
        return _Beside("none", "encoder", 0.0)
    told = len(data.valid) >= COMPANION_VALID
    documents_by, companion = settings.documents_by, settings.companion
    if documents_by is None:
        documents_by = "encoder"
        if companion != "none" and (told or companion is not None) and encoding > ENCODING_SHARE * seconds:
            documents_by = "companion"
    if companion is None:
        companion = "none"
        passes = COMPANION_SHARE * seconds / classifier_pass_seconds(data)
        plain = companion_seconds(data, settings, batch, "static")
        if told and len(data.labels) <= MOST_IN_POOL and passes >= CLASSIFIER_PASSES:
            companion = "static-unidec"
        elif documents_by == "companion" or (told and plain <= PLAIN_SHARE * seconds):
            companion = "static"
    spent = companion_seconds(data, settings, batch, companion) + encoding * (documents_by == "encoder")
    return _Beside(companion, documents_by, spent)


def _asks_for_heads(settings: AutoSettings) -> bool:
    """Whether a setting was given that only UniDEC has."""
    known = {field.name for field in dataclasses.fields(RaexmcSettings)}
    other = ("memory", "companion", "documents_by")  # which may be given to say that nothing more is wanted
    own = [field for field in dataclasses.fields(AutoSettings) if field.name not in known and field.name not in other]
    beside = settings.companion not in ("none", None) or settings.documents_by == "companion"
    return beside or any(getattr(settings, field.name) != field.default for field in own)


def _without_heads(settings: AutoSettings, chosen: dict[str, Any]) -> RaexmcSettings:
    """RAE-XMC with what was given and chosen; its own defaults for the rest."""
    own = {field.name for field in dataclasses.fields(RaexmcSettings)}
    defaults = {field.name: field.default for field in dataclasses.fields(AutoSettings)}
    decided = ("encoder", "epochs", "batch_size", "max_minutes", "linear")
    taken = [name for name in own & defaults.keys() if name in decided or getattr(settings, name) != defaults[name]]
    return RaexmcSettings(**{name: chosen[name] for name in taken})


def _batch_size(count: int) -> int:
    """A power of two from 32 to 512 that leaves STEPS_A_PASS steps in a pass, if one does."""
    return int(min(512, max(32, 2 ** int(math.log2(max(1, count / STEPS_A_PASS))))))


def _epochs(steps: float, batch: int, count: int) -> int:
    """Passes over count texts that make so many steps at least, from PASSES to MOST_EPOCHS."""
    return min(MOST_EPOCHS, max(PASSES, math.ceil(steps * batch / count)))


def _is_static(name: str) -> bool:
    """Whether an encoder is a bag of token vectors; folders are opened to see."""
    if name in ("static", "minilm"):
        return name == "static"
    encoder: Encoder = open_encoder(name)
    return encoder.row_sparse


def _named(device: torch.device) -> str:
    return f"{torch.get_num_threads()} cores" if device.type == "cpu" else f"a device of the kind {device.type}"
