"""What the recipes have in common before and after their loop: encoder, settings, label order, memory, saving."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from .. import encoders
from ..base.machine import device_of
from ..base.rates import bf16_pays
from ..data.loading import fingerprint
from ..encoders import Encoder, TransformerEncoder
from ..encoders.tokens import Tokens
from ..model.model import Model
from ..training.checkpoint import Checkpoints, State
from ..training.config import changed, flat, to_dict, to_toml
from ..training.loop import FitReport, Log, Refresh
from ..training.negatives import Filter, HardNegatives
from ..training.optim import make_optimizers
from ..training.required_memory import Shape
from ..training.settings import EncoderSettings, FitSettings, MiningSettings, RunSettings
from ..training.tracking import Tracker
from ..types import Dataset, Labels
from .seconds import AFTER_GRID_SHARE, documents_precision, linear_seconds, tuned_on, tuning_seconds
from .validation import with_memory

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=RunSettings)

READING = (
    *("fields", "label_fields", "text_column", "label_column", "separator", "label_vocabulary", "language"),
    *("valid_fraction", "valid_max"),
)
"""How data files are read, as far as the settings file repeats it."""


def by_text(labels: Labels) -> npt.NDArray[np.int64]:
    """Label numbers in the order of texts and ids, in which training has them, so that the given order is no matter.

    Args:
        labels: the label space.
    """
    return np.array(sorted(range(len(labels)), key=lambda i: (labels.texts[i], labels.ids[i])), dtype=np.int64)


def make_encoder(data: Dataset, settings: EncoderSettings) -> Encoder:
    """The encoder that the settings name, on its device.

    Args:
        data: texts from which ``static`` takes its vocabulary and token weights.
        settings: of the encoder.

    Raises:
        SettingsError: an option that this encoder does not have.
    """
    names = (
        *("base", "vocabulary", "max_words", "frequency_weight", "normalize", "max_tokens", "long_documents"),
        *("max_chunks", "pooling", "projection", "dropout", "attention"),
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


def fill_in(settings: Settings, encoder: Encoder) -> Settings:
    """The settings with every automatic value decided, and the encoder set to the chosen precision.

    Args:
        settings: of the run.
        encoder: what will be trained.
    """
    precision = settings.encoding.precision
    if precision == "auto":
        precision = "bf16" if bf16_pays(encoder.device) else "float32"
    encoder.precision = precision
    keys = settings.voting.key_precision
    if keys == "auto":
        keys = "bf16" if encoder.device.type == "cpu" and bf16_pays(encoder.device) else "float32"
    static = encoder.row_sparse
    return changed(
        settings,
        device=str(encoder.device),
        precision=precision,
        key_precision=keys,
        max_tokens=encoder.max_tokens,
        lr=settings.fit.lr or (3e-3 if static else default_rate(encoder)),
        weight_decay=settings.fit.weight_decay if settings.fit.weight_decay is not None else (0.0 if static else 0.01),
    )


def optimizers_of(encoder: Encoder, settings: FitSettings) -> list[torch.optim.Optimizer]:
    """The optimisers of an encoder.

    Args:
        encoder: what will be trained.
        settings: of the fit, every value decided.
    """
    table = encoder.token_table if isinstance(encoder, TransformerEncoder) else None
    rate, decay = settings.lr or 0.0, settings.weight_decay or 0.0
    return make_optimizers(encoder, encoder.row_sparse, rate, decay, table, settings.token_lr_factor)


def default_rate(encoder: Encoder) -> float:
    """The learning rate of a transformer: 4e-4 for a width of 384, and less the wider it is.

    Args:
        encoder: what will be trained.
    """
    width = encoder.transformer.config.hidden_size if isinstance(encoder, TransformerEncoder) else encoder.dim
    return float(f"{4e-4 * 384 / max(384, width):.2g}")


def shape_of(encoder: Encoder) -> Shape:
    """What an encoder weighs, for the memory estimate.

    Args:
        encoder: what will be trained.
    """
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


def with_label_documents(
    targets: sp.csr_array, rows: npt.NDArray[np.int64]
) -> tuple[sp.csr_array, npt.NDArray[np.int64]]:
    """The truth with one more document for each label, and the rows to train on with those documents (Renee).

    Args:
        targets: the training truth, (N, L).
        rows: (n,) documents to train on.

    Returns:
        (N + L, L) CSR, and (n + L,) rows.
    """
    n_documents, n_labels = targets.shape
    wider = sp.vstack([targets, sp.eye_array(n_labels, dtype=np.float32)], format="csr")
    return sp.csr_array(wider), np.concatenate([rows, np.arange(n_documents, n_documents + n_labels)])


def hard_negatives(targets: sp.csr_array, settings: MiningSettings) -> HardNegatives:
    """Shortlists as the settings want them.

    Args:
        targets: the truth of all documents, (N, L).
        settings: of the mining.
    """
    chosen = Filter(
        settings.range_min,
        settings.range_max,
        settings.max_score,
        settings.absolute_margin,
        settings.relative_margin,
    )
    return HardNegatives(targets, chosen, settings.num_negatives)


class LabelKeys:
    """The present vectors of all labels, computed once between two steps.

    Args:
        encoder: the encoder in training.
        tokens: texts of all labels.
    """

    def __init__(self, encoder: Encoder, tokens: Tokens):
        self.encoder, self.tokens = encoder, tokens
        self._keys: Tensor | None = None

    def now(self) -> Tensor:
        """(L, D) without a graph; bf16 where training multiplies in it."""
        if self._keys is None:
            keys = torch.from_numpy(self.encoder.encode(self.tokens)).to(self.encoder.device)
            self._keys = keys.bfloat16() if self.encoder.precision == "bf16" else keys
        return self._keys

    def forget(self) -> None:
        """The weights are about to change."""
        self._keys = None


def mined_anew(negatives: HardNegatives, label_keys: LabelKeys, settings: MiningSettings) -> Refresh:
    """How hard negatives are found anew in the course of a run, by the present keys of all labels.

    Args:
        negatives: the shortlists.
        label_keys: of all labels.
        settings: of the mining.
    """
    device = label_keys.encoder.device
    return Refresh(
        settings.mine_from,
        settings.mine_every,
        run=lambda: negatives.refresh(label_keys.now()),
        state=negatives.state,
        restore=lambda kept: negatives.restore({name: x.to(device) for name, x in kept.items()}),
        outcome=negatives.outcome,
    )


def give_memory(
    model: Model, data: Dataset, documents: Tokens, settings: RunSettings, log: Log, started: float
) -> None:
    """Make the training documents keys of a trained model and tune how keys vote, unless the run was interrupted.

    Where tuning takes longer than was foreseen, a time limit ends it with fewer validation documents looked at.

    Args:
        model: what was trained.
        data: as it was given.
        documents: texts of all training documents, in the data's order.
        settings: of the run, every value decided.
        log: of the run.
        started: when the command began, by `time.monotonic`.
    """
    if model.info["fit"]["stopped"] == "interrupted":
        logger.warning(
            "the run was interrupted, so the documents are not made keys; labelspace tune does it, or resume the run"
        )
        return
    assert settings.voting.key_precision != "auto"  # it was decided
    encoder, begun = model.encoder, time.monotonic()
    encoded = encoder.encode(documents, precision=documents_precision(encoder, settings.voting))

    def asked(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        if model.heads is None:
            return encoded[rows]
        return model.heads.queries(torch.from_numpy(encoded[rows]).to(encoder.device)).cpu().numpy()

    vectors = encoded
    if model.heads is not None:
        placed = torch.from_numpy(encoded).to(encoder.device)
        vectors = model.heads.documents(placed).cpu().numpy()
    tuning_from = time.monotonic()
    log.write(event="encoded", documents=len(documents), took=tuning_from - begun)
    count, until = tuned_on(settings.fit, len(data.valid)), None
    if settings.fit.max_minutes is not None:
        until = started + 60 * settings.fit.max_minutes - AFTER_GRID_SHARE * tuning_seconds(count)
        until -= linear_seconds(data, settings.voting.linear)
    tuned = model.tune(
        data,
        objective=settings.voting.objective,
        precision=settings.voting.key_precision,
        vectors=vectors,
        calibrated=False,
        documents=count,
        until=until,
        linear=settings.voting.linear,
        first=asked,
    )
    # what was measured while training was the labels alone, which is not the model that is saved
    metrics = with_memory(model, data, settings.fit) if tuned is None else tuned.metrics
    if metrics:
        model.info["metrics"]["validation"] = metrics
        log.write(event="tuned", took=time.monotonic() - tuning_from, **metrics)


def describe_run(
    recipe: str, settings: RunSettings, data: Dataset, truncated: dict[str, Any], report: FitReport
) -> dict[str, Any]:
    """What made a model, for its manifest.

    Args:
        recipe: its name.
        settings: of the run, every value decided.
        data: as it was given.
        truncated: what `log_cut` found, by kind of text.
        report: of the loop.
    """
    return {
        "recipe": recipe,
        "config": to_dict(settings),
        "data": {
            "name": data.name,
            "fingerprint": fingerprint(data),
            "documents": len(data.train),
            "labels": len(data.labels),
            "truncated": truncated,
            "options": data.options,
        },
        "metrics": {"validation": report.metrics},
        "fit": {
            "steps": report.steps,
            "best_step": report.best_step,
            "stopped": report.stopped,
            "seconds": round(report.seconds, 1),
            "curve": report.curve,
        },
    }


def open_log(checkpoints: Checkpoints | None, state: State | None, settings: RunSettings) -> Log:
    """The log of a run, which goes on where a state has it, and its tracker if one is asked for.

    Args:
        checkpoints: of the run; None keeps no file.
        state: of an unfinished run.
        settings: of the run, every value decided.

    Raises:
        MissingExtraError: the tracker is not installed.
        LabelspaceError: the tracker cannot start.
    """
    tracker = None
    if settings.fit.track is not None:
        tracker = Tracker(settings.fit.track, settings.fit.track_project, flat(settings))
    path = None if checkpoints is None else checkpoints.log
    return Log(path, 0 if state is None else int(state.record["log_bytes"]), tracker)


def save_run(model: Model, out: Path | None, checkpoints: Checkpoints | None, settings: RunSettings) -> None:
    """Write a trained model with the settings and the log of its run.

    Args:
        model: what was trained, its ``info`` as `describe_run` gave it.
        out: the folder; None writes nothing.
        checkpoints: of the run, with its log.
        settings: of the run, every value decided.
    """
    if out is None or checkpoints is None:
        return
    options = model.info["data"]["options"]
    how = {k: v for k, v in options.items() if k in READING and v is not None and v != "[]"}
    records = {
        "settings.toml": to_toml(settings, model.info["recipe"], how),
        "log.jsonl": checkpoints.log.read_text(encoding="utf-8"),
    }
    model.save(out, records)
