"""A model without training: label texts as keys of an encoder that already understands text."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..base.machine import device_of
from ..encoders import Encoder, make_encoder
from ..encoders.tokens import LongDocuments
from ..errors import DataError
from ..memory.memory import Memory
from ..memory.tune import parse_objective
from ..types import Dataset, Labels
from .core import Core, checked_texts
from .towers import Tower
from .tuning import TuneOptions, tune


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How long texts are cut; None as the encoder has it."""

    max_tokens: int | None = None
    long_documents: LongDocuments | None = None
    max_chunks: int | None = None


def of_labels(
    encoder: str | os.PathLike[str] | Encoder, labels: Sequence[str] | Labels, device: str, batch_size: int, cut: Cut
) -> Core:
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
    place = device_of(device)
    if isinstance(encoder, str | os.PathLike):
        name = os.fspath(encoder)
        encoder = make_encoder(name, [], labels.texts, max_tokens=cut.max_tokens, device=str(place))
    else:
        name = type(encoder).__name__
    encoder = encoder.to(place)
    encoder = copy.copy(encoder)  # the weights are shared; what is set here is of this model alone
    encoder.max_tokens = encoder.max_tokens if cut.max_tokens is None else cut.max_tokens
    encoder.long_documents = encoder.long_documents if cut.long_documents is None else cut.long_documents
    encoder.max_chunks = encoder.max_chunks if cut.max_chunks is None else cut.max_chunks
    keys = encoder.encode(encoder.tokenize(list(labels.texts)), batch_size, keep=True)
    info = {"recipe": "none", "config": {"encoding": {"encoder": name}}, "data": {"labels": len(labels)}, "metrics": {}}
    return Core([Tower(encoder)], Memory.of_labels(torch.from_numpy(keys).to(place)), labels, info)


def of_data(encoder: str | os.PathLike[str] | Encoder, data: Dataset, device: str, cut: Cut, how: TuneOptions) -> Core:
    """`Model.from_encoder` of a data set, whose training documents are keys as well."""
    parse_objective(how.objective)
    given: Any = encoder
    if isinstance(encoder, str | os.PathLike) and os.fspath(encoder) == "static":
        texts: Any = data.train.texts, data.labels.texts
        given = make_encoder("static", *texts, rows=data.fit_rows, **vars(cut), device=str(device_of(device)))
    core = of_labels(given, data.labels, device, how.batch_size, cut)
    if given is not encoder:
        core.info["config"] = {"encoding": {"encoder": "static"}}
    core.info["data"].update(name=data.name, documents=len(data.train), options=dict(data.options))
    tune(core, data, how)
    return core
