"""What is trained when no recipe is named: UniDEC or RAE-XMC, with a memory, chosen by data, time and device."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import torch

from ..base.machine import device_of
from ..base.rates import products_per_second
from ..encoders import Encoder, open_encoder
from ..training.batches import usable_rows
from ..training.config import defaults, flat, made
from ..training.settings import FitSettings, MemoryRequest, RaexmcSettings, Request, UnidecSettings
from ..types import Dataset
from .seconds import (
    BOTH_HEADS_PRODUCTS_PER_PAIR,
    COMPANION_SHARE,
    classifier_pass_seconds,
    companion_seconds,
    linear_seconds,
    texts_per_second,
    tuning_seconds,
)
from .unidec import MOST_IN_POOL

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


def choose(data: Dataset, request: Request, passed: float = 0.0) -> tuple[str, UnidecSettings | RaexmcSettings]:
    """The recipe and its settings: what is None in the request is chosen, and what was chosen and why is logged.

    ``passed`` seconds of the time limit are gone.
    """
    asked = flat(request)
    given = {name: value for name, value in asked.items() if value is not None}
    remembers, classifier = request.voting.memory, request.classifier
    documents = len(usable_rows(data.train.targets, data.fit_rows))
    # label texts are documents too
    count = max(1, documents + (len(data.labels) if request.batches.label_documents else 0))
    values = dict(asked)
    values["max_minutes"] = minutes = given.get("max_minutes", MINUTES)
    values["batch_size"] = batch = given.get("batch_size", _batch_size(count))
    device = device_of(request.encoding.device)
    seconds = 60 * minutes - passed
    seconds -= tuning_seconds(request.fit, data) if remembers else 0
    of_linear = linear_seconds(data)
    weighable = remembers and len(data.valid) >= COMPANION_VALID
    values["linear"] = given.get("linear", weighable and of_linear <= LINEAR_SHARE * seconds)
    seconds -= of_linear if values["linear"] else 0.0
    kinds = [data.train.texts, *([data.labels.texts] if request.batches.label_documents else [])]
    rate = texts_per_second(kinds, device, request.encoding)
    fit = dataclasses.replace(request.fit, max_minutes=minutes, batch_size=batch)
    beside = _beside(data, request.voting, fit, max(0.0, seconds), ENCODING * len(data.train) / rate)
    of_labels = LABEL_ENCODINGS * ENCODING * len(data.labels) / rate
    passes = max(0.0, seconds - beside.seconds - of_labels) * rate / count
    if "encoder" not in given:
        least = LEAST_PASSES if beside.companion == "none" else LEAST_BESIDE
        values["encoder"] = "minilm" if passes >= least else "static"
    transformer, rows_pay = not _is_static(values["encoder"]), False
    if transformer:
        values["encoder_weight"] = given.get("encoder_weight", 0.0)
        if values["encoder_weight"] == 0:  # one head, so nothing is gained by layers between it and the encoder
            plain = {"encoder_dim": 0, "classifier_dim": 0, "head_dropout": 0.0, "table_dropout": 0.0}
            if (classifier.table_optimizer, classifier.classifier_labels) == ("adamw", "pool"):
                plain["table_lr"] = 3e-3
            values.update({name: given.get(name, value) for name, value in plain.items()})
        values["companion"], values["documents_by"] = beside.companion, beside.documents_by
    else:
        values["encoder_weight"] = given.get("encoder_weight", 0.5)
        by = values["documents_by"] = given.get("documents_by", "encoder")
        # UniDEC refuses a companion of ``static``, and says why
        values["companion"] = "static" if by == "companion" else given.get("companion", "none")
        products = count * len(data.labels) * BOTH_HEADS_PRODUCTS_PER_PAIR
        against_all = max(0.0, seconds) * products_per_second(device) / products
        rows_pay = documents >= ROWS_FROM * len(data.labels) and against_all >= ROWS_PASSES
        rows_pay &= len(data.labels) <= MOST_IN_POOL
        if request.batches.pool == "auto" and against_all < FEW_PASSES:
            values["pool"] = "some"
        if classifier.classifier_labels == "pool" and classifier.classifier_loss != "bce":
            values["classifier_norm"] = given.get("classifier_norm", "tuned")
    chosen: UnidecSettings | RaexmcSettings
    if transformer or rows_pay or not remembers or _asks_for_heads(asked):
        values["epochs"] = given.get("epochs", _epochs(LEAST_STEPS, batch, count))
        recipe, chosen = "unidec", made(UnidecSettings, values)
    else:  # label texts are no documents here
        values["batch_size"] = batch = given.get("batch_size", _batch_size(documents))
        steps = STATIC_STEPS * math.sqrt(512 / batch)
        values["epochs"] = given.get("epochs", _epochs(steps, batch, max(1, documents)))
        recipe, chosen = "raexmc", _without_heads(asked, values)
    joined = "" if values["companion"] == "none" else f" joined with {values['companion']}"
    joined += ", by which documents vote" if values["documents_by"] == "companion" else ""
    reach = f"about {passes:.1f} passes over {count} texts fit into {minutes:g} minutes on {_named(device)}"
    remembered = " with a memory of the documents" if remembers else ""
    remembered += " and a linear classifier on words" if values["linear"] else ""
    why = "a transformer learns more from each" if transformer else "a bag of token vectors makes more of them"
    if "encoder" in given:
        why = "the encoder was given"
    logger.info(
        "no recipe was named: %s%s with the encoder %s, since %s and %s; at most %d epochs in batches of %d",
        *(recipe, remembered, values["encoder"] + joined, reach, why),
        *(values["epochs"], values["batch_size"]),
    )
    return recipe, chosen


@dataclasses.dataclass(frozen=True)
class _Beside:
    """What is done beside the training of a transformer, as in the settings, and about how long it takes."""

    companion: str
    documents_by: str
    seconds: float


def _beside(data: Dataset, voting: MemoryRequest, fit: FitSettings, seconds: float, encoding: float) -> _Beside:
    """Whether ``static`` is trained beside a transformer, and by whose vectors documents vote.

    The whole run takes ``seconds``, of which the transformer needs ``encoding`` for the vectors of all documents.
    """
    if not voting.memory:
        return _Beside("none", "encoder", 0.0)
    weighable = len(data.valid) >= COMPANION_VALID
    documents_by, companion = voting.documents_by, voting.companion
    if documents_by is None:
        documents_by = "encoder"
        if companion != "none" and (weighable or companion is not None) and encoding > ENCODING_SHARE * seconds:
            documents_by = "companion"
    if companion is None:
        companion = "none"
        passes = COMPANION_SHARE * seconds / classifier_pass_seconds(data)
        plain = companion_seconds("static", data, fit)
        if weighable and len(data.labels) <= MOST_IN_POOL and passes >= CLASSIFIER_PASSES:
            companion = "static-unidec"
        elif documents_by == "companion" or (weighable and plain <= PLAIN_SHARE * seconds):
            companion = "static"
    spent = companion_seconds(companion, data, fit) + encoding * (documents_by == "encoder")
    return _Beside(companion, documents_by, spent)


def _asks_for_heads(asked: dict[str, Any]) -> bool:
    """Whether a setting was given that only UniDEC has."""
    # companion 'none' and documents_by 'encoder' may be given to say that nothing more is wanted
    beside = asked["companion"] not in ("none", None) or asked["documents_by"] == "companion"
    others = {*defaults(RaexmcSettings), "memory", "companion", "documents_by"}
    return beside or any(asked[name] != value for name, value in defaults(Request).items() if name not in others)


def _without_heads(asked: dict[str, Any], chosen: dict[str, Any]) -> RaexmcSettings:
    """RAE-XMC with what was asked for and chosen; its own defaults for the rest."""
    decided = ("encoder", "epochs", "batch_size", "max_minutes", "linear")
    taken = [name for name, value in defaults(Request).items() if name in decided or asked[name] != value]
    return made(RaexmcSettings, {name: chosen[name] for name in taken})


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
