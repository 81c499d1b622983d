"""A model without training: label texts as keys of an encoder that already understands text."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch

from ..base.machine import device_of
from ..data.loading import warn_of_empty
from ..encoders import Encoder, make_encoder
from ..errors import DataError
from ..memory.memory import Memory
from ..memory.tune import parse_objective
from ..types import Dataset, Labels
from .core import Core, checked_texts
from .towers import Tower
from .tuning import TuneOptions, tune

NamedEncoder = str | os.PathLike[str] | Encoder
Cut = dict[str, Any]
"""How long texts are cut: ``max_tokens``, ``long_documents`` and ``max_chunks``, each None as the encoder has it."""


def of_labels(encoder: NamedEncoder, labels: Sequence[str] | Labels, device: str, batch_size: int, cut: Cut) -> Core:
    """`Model.from_encoder` of labels alone."""
    if not isinstance(labels, Labels):
        names = checked_texts(labels, "label")
        labels = Labels(ids=names, texts=names)
    if not len(labels):
        raise DataError("a model needs at least one label, got none")
    if len(set(labels.ids)) != len(labels):
        seen: set[str] = set()
        twice = next(name for name in labels.ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"the label {twice!r} is given twice; label ids must be distinct")
    warn_of_empty(labels, "the labels")
    place = device_of(device)
    if isinstance(encoder, str | os.PathLike):
        name = os.fspath(encoder)
        encoder = make_encoder(name, [], labels.texts, max_tokens=cut["max_tokens"], device=str(place))
    else:
        name = type(encoder).__name__
    encoder = copy.copy(encoder.to(place))  # the weights are shared; what is set here is of this model alone
    for setting, value in cut.items():
        if value is not None:
            setattr(encoder, setting, value)
    keys = encoder.encode(encoder.tokenize(list(labels.texts)), batch_size, keep=True)
    info = {"recipe": "none", "config": {"encoding": {"encoder": name}}, "data": {"labels": len(labels)}, "metrics": {}}
    return Core([Tower(encoder)], Memory.of_labels(torch.from_numpy(keys).to(place)), labels, info)


def of_data(encoder: NamedEncoder, data: Dataset, device: str, cut: Cut, how: TuneOptions) -> Core:
    """`Model.from_encoder` of a data set, whose training documents are keys as well."""
    parse_objective(how.objective)
    static = isinstance(encoder, str | os.PathLike) and os.fspath(encoder) == "static"
    if static:
        texts: Any = data.train.texts, data.labels.texts
        encoder = make_encoder("static", *texts, rows=data.fit_rows, **cut, device=str(device_of(device)))
    core = of_labels(encoder, data.labels, device, how.batch_size, cut)
    if static:
        core.info["config"] = {"encoding": {"encoder": "static"}}
    core.info["data"].update(name=data.name, documents=len(data.train), options=dict(data.options))
    tune(core, data, how)
    return core
