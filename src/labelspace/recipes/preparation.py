"""What the recipes share before and after their loop: encoder, settings, optimisers, hard negatives, memory."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from .. import encoders
from ..base.machine import device_of
from ..base.rates import bf16_pays
from ..data.split import hold_out
from ..encoders import Encoder, TransformerEncoder
from ..encoders.tokens import Tokens
from ..model.model import Model
from ..training.config import changed
from ..training.loop import Log, Refresh
from ..training.losses import ClosedForm, closed_form
from ..training.negatives import Filter, HardNegatives
from ..training.optim import make_optimizers
from ..training.required_memory import Shape
from ..training.settings import DexmlLoss, EncoderSettings, FitSettings, MiningSettings, RunSettings, UnidecLoss
from ..types import Dataset
from .seconds import AFTER_GRID_SHARE, documents_precision, linear_seconds, tuned_on, tuning_seconds
from .validation import LabelKeys, with_memory

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=RunSettings)


def make_encoder(data: Dataset, settings: EncoderSettings) -> Encoder:
    """The encoder that the settings name, on its device; ``static`` takes vocabulary and token weights of the data.

    An option that this encoder does not have is a SettingsError.
    """
    names = (
        *("base", "vocabulary", "max_words", "frequency_weight", "normalize", "max_tokens", "long_documents"),
        *("max_chunks", "pooling", "projection", "dropout", "attention", "clean"),
    )
    encoder = encoders.make_encoder(
        settings.encoder,
        data.train.texts,
        data.labels.texts,
        rows=data.fit_rows,
        **{name: getattr(settings, name) for name in names},
        device=str(device_of(settings.device)),
    )
    if isinstance(encoder, TransformerEncoder) and encoder.own_dropout and settings.dropout == 0:
        logger.info(
            "the encoder was made with a dropout of %g, and is trained without; --dropout own keeps it",
            encoder.own_dropout,
        )
    return encoder


def describe_encoder(settings: EncoderSettings) -> str:
    """What the configuration of the encoder says, in a line; errors are those of `make_encoder` that show by it."""
    return encoders.described(settings.encoder, settings.base, settings.max_tokens)


def fill_in(settings: Settings, encoder: Encoder) -> Settings:
    """The settings with every automatic value decided, and the encoder set to the chosen precision."""
    static, low_pays = encoder.row_sparse, bf16_pays(encoder.device)
    precision, key_precision = settings.encoding.precision, settings.voting.key_precision
    if precision == "auto":
        precision = "bf16" if low_pays else "float32"
    encoder.precision = precision
    if key_precision == "auto":
        key_precision = "bf16" if low_pays and encoder.device.type == "cpu" else "float32"
    return changed(
        settings,
        device=str(encoder.device),
        precision=precision,
        key_precision=key_precision,
        max_tokens=encoder.max_tokens,
        lr=settings.fit.lr or (3e-3 if static else _transformer_rate(encoder)),
        weight_decay=settings.fit.weight_decay if settings.fit.weight_decay is not None else (0.0 if static else 0.01),
    )


def _transformer_rate(encoder: Encoder) -> float:
    """The learning rate of a transformer: 4e-4 for a width of 384, and less the wider it is."""
    width = encoder.transformer.config.hidden_size if isinstance(encoder, TransformerEncoder) else encoder.dim
    return float(f"{4e-4 * 384 / max(384, width):.2g}")


def optimizers_of(encoder: Encoder, settings: FitSettings) -> list[torch.optim.Optimizer]:
    """The optimisers of an encoder; rate and decay are decided."""
    table = encoder.token_table if isinstance(encoder, TransformerEncoder) else None
    rate, decay = settings.lr or 0.0, settings.weight_decay or 0.0
    own = settings.token_lr_factor, settings.token_decay
    return make_optimizers(encoder, encoder.row_sparse, rate, decay, table, *own)


def shape_of(encoder: Encoder) -> Shape:
    """What an encoder weighs, for the memory estimate."""
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    if not isinstance(encoder, TransformerEncoder):
        return Shape(weights, encoder.dim)
    config = encoder.transformer.config
    return Shape(
        weights,
        encoder.dim,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        encoder.max_tokens,
    )


def loss_form(name: str, settings: DexmlLoss | UnidecLoss) -> ClosedForm:
    """A loss by name; ``soft_top_k`` takes fewer places than the settings say where a pool has fewer labels."""
    if name == "soft_top_k":
        return closed_form(name, k=settings.k, alpha=settings.alpha, clamp=True)
    return closed_form(name)


def on_device(values: npt.NDArray[Any] | None, device: torch.device) -> Any:
    """An array of a batch as a tensor, where its vectors are; None stays None."""
    return None if values is None else torch.from_numpy(values).to(device)


def encoded_labels(encoder: Encoder, tokens: Tokens) -> LabelKeys:
    """Label texts by the present weights of the encoder, in bf16 where training multiplies in it."""

    def make() -> Tensor:
        keys = torch.from_numpy(encoder.encode(tokens)).to(encoder.device)
        return keys.bfloat16() if encoder.precision == "bf16" else keys

    return LabelKeys(make)


def hard_negatives(targets: sp.csr_array, settings: MiningSettings) -> HardNegatives:
    """Shortlists for the documents of the truth (N, L), as the settings want them."""
    chosen = Filter(
        settings.range_min,
        settings.range_max,
        settings.max_score,
        settings.absolute_margin,
        settings.relative_margin,
    )
    return HardNegatives(targets, chosen, settings.num_negatives)


def mined_anew(
    negatives: HardNegatives | None, label_keys: LabelKeys, settings: MiningSettings, device: torch.device
) -> Refresh | None:
    """How hard negatives are found anew in the course of a run, by the present keys of all labels; None without any."""
    if negatives is None:
        return None
    return Refresh(
        settings.mine_from,
        settings.mine_every,
        run=lambda: negatives.refresh(label_keys.now()),
        state=negatives.state,
        restore=lambda kept: negatives.restore({name: x.to(device) for name, x in kept.items()}),
        outcome=negatives.outcome,
    )


def tuning_data(data: Dataset, settings: RunSettings) -> Dataset:
    """The data whose validation documents a memory is tuned on: with ``tune_documents``, training documents."""
    most = settings.voting.tune_documents
    if most is None:
        return data
    rows = hold_out(data.train.texts, 0.5, most, settings.fit.seed)
    logger.info("the memory is tuned on %d training documents, which do not vote meanwhile", len(rows))
    return dataclasses.replace(data, valid=data.train.rows(rows), valid_rows=rows)


def give_memory(
    model: Model,
    data: Dataset,
    documents: Tokens,
    settings: RunSettings,
    log: Log,
    started: float,
    encoded: npt.NDArray[np.float32] | None = None,
) -> None:
    """Make the training documents keys of a trained model and tune how keys vote, unless the run was interrupted.

    Where tuning takes longer than was foreseen, a time limit, which counts from ``started``, ends it with fewer
    validation documents looked at. With ``tune_documents`` training documents take their place, and no figure of them
    is kept as one of validation.
    ``encoded`` are the documents' vectors (N, D) where they are there.
    """
    if model.info["fit"]["stopped"] == "interrupted":
        logger.warning(
            "the run was interrupted, so the documents are not made keys; labelspace tune does it, or resume the run"
        )
        return
    assert settings.voting.key_precision != "auto"  # it was decided
    encoder, heads, begun = model.encoder, model.heads, time.monotonic()
    if encoded is None:
        encoded = encoder.encode(documents, precision=documents_precision(encoder, settings.voting))
    keys = encoded
    if heads is not None:
        keys = heads.documents(torch.from_numpy(encoded).to(encoder.device)).cpu().numpy()

    def queries(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        if heads is None:
            return encoded[rows]
        return heads.queries(torch.from_numpy(encoded[rows]).to(encoder.device)).cpu().numpy()

    tuning_from = time.monotonic()
    log.write(event="encoded", documents=len(documents), took=tuning_from - begun)
    until = None
    if settings.fit.max_minutes is not None:
        until = started + 60 * settings.fit.max_minutes - AFTER_GRID_SHARE * tuning_seconds(settings.fit, data)
        until -= linear_seconds(data) if settings.voting.linear else 0.0
    given, data = data, tuning_data(data, settings)
    tuned = model.tune(
        data,
        objective=settings.voting.objective,
        precision=settings.voting.key_precision,
        vectors=keys,
        calibrated=False,
        documents=tuned_on(settings.fit, data) if data is given else len(data.valid),
        until=until,
        linear=settings.voting.linear,
        first=queries,
    )
    # what was measured while training was the labels alone, which is not the model that is saved
    if data is not given:
        if tuned is not None:
            model.info["tuning"]["learnt"] = True
        return
    metrics = with_memory(model, data, settings.fit) if tuned is None else tuned.metrics
    if metrics:
        model.info["metrics"]["validation"] = metrics
        log.write(event="tuned", took=time.monotonic() - tuning_from, **metrics)
