"""DEXML: a dual encoder trained against every label at once (Gupta et al., ICLR 2024)."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import DexmlSettings, to_dict, to_toml
from ..data import fingerprint
from ..data.batches import batches, usable_rows
from ..data.tokens import Tokens
from ..encoders import Encoder, TransformerEncoder, build_static, open_encoder
from ..errors import DataError, SettingsError
from ..estimate import Shape, training_bytes
from ..evaluation import evaluate
from ..gradcache import encode_cached
from ..heads import LabelEncoder
from ..losses import closed_form
from ..losses_fused import linear_loss
from ..machine import bf16_pays, cache_folder, gigabytes, peak_memory, require_memory
from ..memory import Memory
from ..model import Model, require_writable
from ..pools import make_pool
from ..trainer import Log, device_of, fit, readable, stop_signals
from ..types import Batch, Corpus, Dataset, Predictions

logger = logging.getLogger(__name__)

STATIC_MAX_TOKENS, TRANSFORMER_MAX_TOKENS = 256, 128
READING = ("fields", "label_fields", "text_column", "label_column", "separator", "label_vocabulary", "language")
"""How data files are read, as far as the settings file repeats it."""
MIN_VALID = 20
"""Fewer validation documents than this are measured on, but nothing is chosen by them."""


def train(data: Dataset, settings: DexmlSettings, out: Path | None, started: float) -> Model:
    """Train a dual encoder on a data set.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run.
        out: folder to write the model to; None writes nothing.
        started: when the command began, by `time.monotonic`.

    Raises:
        DataError: no document has a label.
        ResourceError: the run would not fit into memory.
    """
    if out is not None:
        out = out.expanduser().resolve()
        require_writable(out)
    rows = usable_rows(data.train.targets, data.fit_rows)
    if not len(rows):
        raise DataError(f"{data.name}: no training document has a label; there is nothing to learn from")
    if settings.loss == "soft_top_k" and settings.k >= len(data.labels):
        raise SettingsError(
            f"k is {settings.k}, but there are {len(data.labels)} labels; soft_top_k needs fewer places"
        )
    torch.manual_seed(settings.seed)

    encoder = make_encoder(data, settings)
    settings = fill_in(settings, encoder)
    needed = training_bytes(settings, shape_of(encoder), len(data.labels))
    logger.info(
        "training needs about %s beside the data (%s used so far)", gigabytes(needed), gigabytes(peak_memory() or 0)
    )
    remedy = "lower --batch-size, --chunk-size or --max-words, or take --negatives in-batch"
    require_memory(needed, "this run", remedy, encoder.device)

    if len(data.valid) < MIN_VALID:
        logger.warning(
            "only %d validation documents: nothing is chosen by them, the last weights count", len(data.valid)
        )
    cache = cache_folder()
    documents = encoder.tokenize(data.train.texts, cache)
    labels = LabelEncoder(encoder, encoder.tokenize(data.labels.texts, cache), settings.chunk_size)
    pool = make_pool(settings.negatives, data.train.targets)
    places: dict[str, Any] = {}
    if settings.loss == "soft_top_k":  # a small pool may have fewer labels than places
        places = {"k": settings.k, "alpha": settings.alpha, "clamp": True}
    loss = closed_form(settings.loss, **places)
    low = torch.bfloat16 if settings.precision == "bf16" else None
    device = encoder.device

    def step(batch: Batch) -> Tensor:
        queries = encode_cached(encoder, documents.take(batch.rows), settings.chunk_size)
        keys = labels(batch.pool)
        positives = torch.from_numpy(batch.positives).to(device)
        hidden = None if batch.hidden is None else torch.from_numpy(batch.hidden).to(device)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights).to(device)
        return linear_loss(
            loss,
            queries,
            keys,
            positives,
            temperature=settings.temperature,
            hidden=hidden,
            weights=weights,
            dtype=low,
        )

    def epoch_batches(epoch: int) -> Iterable[Batch]:
        draw = None if settings.positives == "all" else settings.k if settings.loss == "soft_top_k" else 1
        hide = settings.loss != "softmax"
        return batches(
            data.train.targets, rows, pool, settings.batch_size, settings.seed, epoch, draw, hide, settings.weighted
        )

    log_file = None if out is None else out.with_name(f"{out.name}.log.jsonl")
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
    log = Log(log_file)
    try:
        with stop_signals() as signals:
            log.write(
                event="start", data=data.name, documents=len(rows), labels=len(data.labels), estimated_gb=needed / 1e9
            )
            report = fit(
                step,
                epoch_batches,
                math.ceil(len(rows) / settings.batch_size),
                encoder,
                settings,
                lr=settings.lr or 0.0,
                weight_decay=settings.weight_decay or 0.0,
                row_sparse=encoder.row_sparse,
                evaluate=validation(data, encoder, labels.tokens, settings, cache),
                choose=len(data.valid) >= MIN_VALID,
                log=log,
                started=started,
                signals=signals,
            )
            encoder.precision = "float32"
            keys = torch.from_numpy(encoder.encode(labels.tokens)).to(device)
            info = {
                "recipe": "dexml",
                "config": to_dict(settings),
                "data": {
                    "name": data.name,
                    "fingerprint": fingerprint(data),
                    "documents": len(data.train),
                    "labels": len(data.labels),
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
            model = Model(encoder, Memory.of_labels(keys), data.labels, info)
            if report.metrics:
                logger.info("kept step %d: validation %s", report.best_step, readable(report.metrics))
            log.close()
            if out is not None and log_file is not None:
                how = {k: v for k, v in data.options.items() if k in READING and isinstance(v, str) and v != "[]"}
                records = {
                    "settings.toml": to_toml(settings, "dexml", how),
                    "log.jsonl": log_file.read_text(encoding="utf-8"),
                }
                model.save(out, records)
            return model
    finally:
        log.close()
        if log_file is not None:
            log_file.unlink(missing_ok=True)


def make_encoder(data: Dataset, settings: DexmlSettings) -> Encoder:
    """The encoder that the settings name, on its device.

    Args:
        data: texts from which ``static`` takes its vocabulary and token weights.
        settings: of the run.

    Raises:
        SettingsError: an option that this encoder does not have.
    """
    device = device_of(settings.device)
    options: dict[str, Any] = {
        "pooling": settings.pooling,
        "projection": settings.projection,
        "dropout": settings.dropout,
        "attention": settings.attention,
        "device": str(device),
    }
    if settings.encoder != "static":
        options.update(normalize=settings.normalize, max_tokens=settings.max_tokens)
        encoder = open_encoder(settings.encoder, **options)
        if settings.max_tokens is None and isinstance(encoder, TransformerEncoder):
            encoder.max_tokens = min(encoder.max_tokens, TRANSFORMER_MAX_TOKENS)
        return encoder
    if settings.pooling is not None or settings.projection is not None:
        raise SettingsError("the encoder 'static' has no pooling or projection to set; name a transformer instead")
    if settings.dropout or settings.attention != "auto":
        raise SettingsError("the encoder 'static' has no dropout or attention to set; name a transformer instead")
    base = open_encoder(settings.base, device=str(device))
    if not isinstance(base, TransformerEncoder):
        raise SettingsError(f"base: {settings.base!r} is not a transformer, so no static encoder can be made from it")
    base.precision = "bf16" if bf16_pays(device) else "float32"
    fit_texts = [data.train.texts[i] for i in data.fit_rows]
    encoder = build_static(
        base,
        fit_texts,
        data.labels.texts,
        vocabulary=settings.vocabulary,
        max_words=settings.max_words,
        frequency_weight=settings.frequency_weight,
        max_tokens=settings.max_tokens or STATIC_MAX_TOKENS,
        cache=cache_folder(),
    ).to(device)
    encoder.normalize = settings.normalize
    return encoder


def fill_in(settings: DexmlSettings, encoder: Encoder) -> DexmlSettings:
    """The settings with every automatic value decided, and the encoder set to the chosen precision.

    Args:
        settings: of the run.
        encoder: what will be trained.
    """
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if bf16_pays(encoder.device) else "float32"
    encoder.precision = precision
    static = encoder.row_sparse
    return dataclasses.replace(
        settings,
        device=str(encoder.device),
        precision=precision,
        max_tokens=encoder.max_tokens,
        lr=settings.lr or (3e-3 if static else 1e-4),
        weight_decay=settings.weight_decay if settings.weight_decay is not None else (0.0 if static else 0.01),
    )


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


def validation(
    data: Dataset, encoder: Encoder, label_tokens: Tokens, settings: DexmlSettings, cache: Path
) -> Callable[[], dict[str, float]] | None:
    """A function that evaluates the present weights on validation documents; None where there are none.

    Args:
        data: its ``valid`` part is used, and propensities from all of ``train``.
        encoder: the encoder in training.
        label_tokens: texts of all labels.
        settings: of the run.
        cache: folder of token arrays.
    """
    corpus: Corpus = data.valid
    if not len(corpus) or not corpus.targets.nnz or settings.evaluations == 0:
        return None
    if len(corpus) > settings.valid_documents:
        chosen = np.random.default_rng(settings.seed).choice(len(corpus), settings.valid_documents, replace=False)
        corpus = corpus.rows(np.sort(chosen))
    documents = encoder.tokenize(corpus.texts, cache)
    depth = min(100, len(data.labels))

    def run() -> dict[str, float]:
        keys = torch.from_numpy(encoder.encode(label_tokens)).to(encoder.device)
        queries = torch.from_numpy(encoder.encode(documents)).to(encoder.device)
        if settings.precision == "bf16":
            keys = keys.bfloat16()
        indices, scores = Memory.of_labels(keys).predict(queries, depth)
        predictions = Predictions(indices, scores)
        return evaluate(
            predictions, corpus.targets, data.train.targets, filter_pairs=corpus.filter_pairs, name=data.name
        )

    return run
