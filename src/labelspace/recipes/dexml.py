"""DEXML: a dual encoder trained against every label at once (Gupta et al., ICLR 2024)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from ..checkpoint import Checkpoints, State
from ..config import DexmlSettings, to_dict, to_toml
from ..data import fingerprint
from ..data.batches import Batches, usable_rows
from ..data.tokens import Tokens, log_cut
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
from ..model import Model
from ..negatives import Filter, HardNegatives
from ..pools import make_pool
from ..trainer import Log, Refresh, device_of, fit, readable, stop_signals
from ..types import Batch, Corpus, Dataset, Labels, Predictions

logger = logging.getLogger(__name__)

STATIC_MAX_TOKENS, TRANSFORMER_MAX_TOKENS = 256, 128
READING = ("fields", "label_fields", "text_column", "label_column", "separator", "label_vocabulary", "language")
"""How data files are read, as far as the settings file repeats it."""
MIN_VALID = 20
"""Fewer validation documents than this are measured on, but nothing is chosen by them."""


def train(
    data: Dataset,
    settings: DexmlSettings,
    out: Path | None,
    started: float,
    checkpoints: Checkpoints | None = None,
    state: State | None = None,
) -> Model:
    """Train a dual encoder on a data set.

    Args:
        data: what to learn from; ``data.valid_rows`` are left out of the fit, the test part is not looked at.
        settings: of the run.
        out: folder to write the model to; None writes nothing.
        started: when the command began, by `time.monotonic`.
        checkpoints: of the run, begun and locked; None keeps none.
        state: of an unfinished run, to go on with.

    Raises:
        DataError: no document has a label.
        ResourceError: the run would not fit into memory.
        CheckpointError: a state that does not fit.
    """
    given = data
    order = by_text(data.labels)
    data = data.renumbered(order)
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
    truncated = {
        "documents": log_cut("documents", documents, encoder.limit),
        "labels": log_cut("labels", labels.tokens, encoder.limit),
    }
    targets = data.train.targets
    if settings.label_documents:
        targets, rows = with_label_documents(targets, rows)
        documents = documents.followed_by(labels.tokens)
    plan = batch_plan(targets, rows, settings)
    negatives = hard_negatives(targets, settings)
    label_keys = LabelKeys(encoder, labels.tokens)
    kept = int(1e9 * settings.activations_gb) // encoder.activation_bytes if encoder.activation_bytes else 0
    places: dict[str, Any] = {}
    if settings.loss == "soft_top_k":  # a small pool may have fewer labels than places
        places = {"k": settings.k, "alpha": settings.alpha, "clamp": True}
    loss = closed_form(settings.loss, **places)
    low = torch.bfloat16 if settings.precision == "bf16" else None
    device = encoder.device

    def step(batch: Batch) -> Tensor:
        label_keys.forget()
        tokens = documents.take(batch.rows)
        queries = encode_cached(encoder, tokens, settings.chunk_size, kept)
        if negatives is not None:
            found = negatives.draw(batch.rows, queries.detach(), np.random.default_rng((*batch.key, 1)))
            batch = plan.widened(batch, np.concatenate(found))
        keys = labels(batch.pool, kept - len(tokens.ids))
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

    refresh = None
    if negatives is not None:
        hard = negatives  # for the type checker
        refresh = Refresh(
            settings.mine_from,
            settings.mine_every,
            run=lambda: hard.refresh(label_keys.now()),
            state=hard.state,
            restore=lambda kept: hard.restore({name: x.to(device) for name, x in kept.items()}),
        )
    log = Log(None if checkpoints is None else checkpoints.log, 0 if state is None else int(state.record["log_bytes"]))
    try:
        with stop_signals() as signals:
            if state is None:
                log.write(
                    event="start",
                    data=data.name,
                    documents=len(rows),
                    labels=len(data.labels),
                    truncated=truncated,
                    estimated_gb=needed / 1e9,
                )
            report = fit(
                step,
                plan.epoch,
                plan.per_epoch,
                encoder,
                settings,
                lr=settings.lr or 0.0,
                weight_decay=settings.weight_decay or 0.0,
                row_sparse=encoder.row_sparse,
                evaluate=validation(data, encoder, label_keys, settings, cache),
                choose=len(data.valid) >= MIN_VALID,
                log=log,
                started=started,
                signals=signals,
                refresh=refresh,
                checkpoints=checkpoints,
                state=state,
            )
            encoder.precision = "float32"
            keys = torch.from_numpy(encoder.encode(labels.tokens)[np.argsort(order)]).to(device)
            info = {
                "recipe": "dexml",
                "config": to_dict(settings),
                "data": {
                    "name": data.name,
                    "fingerprint": fingerprint(given),
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
            model = Model(encoder, Memory.of_labels(keys), given.labels, info)
            if report.metrics:
                logger.info("kept step %d: validation %s", report.best_step, readable(report.metrics))
            log.close()
            if out is not None and checkpoints is not None:
                how = {k: v for k, v in data.options.items() if k in READING and isinstance(v, str) and v != "[]"}
                records = {
                    "settings.toml": to_toml(settings, "dexml", how),
                    "log.jsonl": checkpoints.log.read_text(encoding="utf-8"),
                }
                model.save(out, records)
            return model
    finally:
        log.close()


def by_text(labels: Labels) -> npt.NDArray[np.int64]:
    """Label numbers in the order of texts and ids, in which training has them, so that the given order is no matter.

    Args:
        labels: the label space.
    """
    return np.array(sorted(range(len(labels)), key=lambda i: (labels.texts[i], labels.ids[i])), dtype=np.int64)


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


def batch_plan(targets: sp.csr_array, rows: npt.NDArray[np.int64], settings: DexmlSettings) -> Batches:
    """The batches of a run.

    Args:
        targets: the truth of all documents, (N, L).
        rows: (n,) documents to train on.
        settings: of the run.
    """
    draw = None if settings.positives == "all" else settings.k if settings.loss == "soft_top_k" else 1
    return Batches(
        targets,
        rows,
        make_pool(settings.negatives, settings.pool_positives),
        settings.batch_size,
        settings.seed,
        draw,
        hide=settings.loss != "softmax",
        weighted=settings.weighted,
    )


def hard_negatives(targets: sp.csr_array, settings: DexmlSettings) -> HardNegatives | None:
    """Shortlists as the settings want them; None where none are mined.

    Args:
        targets: the truth of all documents, (N, L).
        settings: of the run.
    """
    if settings.negatives != "mined":
        return None
    chosen = Filter(
        settings.range_min,
        settings.range_max,
        settings.max_score,
        settings.absolute_margin,
        settings.relative_margin,
    )
    return HardNegatives(targets, chosen, settings.num_negatives)


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
        "long_documents": settings.long_documents,
        "max_chunks": settings.max_chunks,
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
        long_documents=settings.long_documents,
        max_chunks=settings.max_chunks,
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
        pool_positives=settings.pool_positives or (1 if settings.negatives == "mined" else None),
        device=str(encoder.device),
        precision=precision,
        max_tokens=encoder.max_tokens,
        lr=settings.lr or (3e-3 if static else default_rate(encoder)),
        weight_decay=settings.weight_decay if settings.weight_decay is not None else (0.0 if static else 0.01),
    )


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


def validation(
    data: Dataset, encoder: Encoder, label_keys: LabelKeys, settings: DexmlSettings, cache: Path
) -> Callable[[], dict[str, float]] | None:
    """A function that evaluates the present weights on validation documents; None where there are none.

    Args:
        data: its ``valid`` part is used, and propensities from all of ``train``.
        encoder: the encoder in training.
        label_keys: vectors of all labels.
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
        queries = torch.from_numpy(encoder.encode(documents)).to(encoder.device)
        indices, scores = Memory.of_labels(label_keys.now()).predict(queries, depth)
        predictions = Predictions(indices, scores)
        return evaluate(
            predictions, corpus.targets, data.train.targets, filter_pairs=corpus.filter_pairs, name=data.name
        )

    return run
