"""Every forecast of time, in seconds, and the rates that it is made from.

What consists of matrix products is foreseen from the rate of products that is measured once where it runs; encoding
documents is measured when it is asked for. Other rates are those of one core of an AMD EPYC (Zen 4).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ..base.machine import minilm_folder
from ..base.rates import bf16_pays, products_per_second
from ..encoders import TRANSFORMER_MAX_TOKENS, Encoder, Precision
from ..encoders.tokens import Limit, Tokens, tokenize
from ..memory import linear
from ..memory import tune as tuning
from ..model.tuning import MIN_TUNING
from ..training.batches import usable_rows
from ..training.settings import EncoderSettings, FitSettings, MemorySettings, RunSettings
from ..types import Dataset

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TUNING_SECONDS = 30.0
"""Time kept free for the tuning of the memory when a run must end by the clock; two idle cores take 25."""
AFTER_GRID_SHARE = 0.4
"""Part of it that comes after the grid: depths, the Pareto front, and saving."""
SAMPLED_DOCUMENTS = 512
"""Documents encoded, or read, to foresee how long the memory will take."""
LINEAR_DIM = 384
"""Dimensions of document keys where it is foreseen how long a linear classifier takes."""
COMPANION_PASSES, COMPANION_LEAST_STEPS, COMPANION_MOST_PASSES = 3, 400, 30
"""Passes of a companion over the documents, more where they would make fewer steps, and the most of them."""
STATIC_TEXTS_PER_SECOND = 4000.0
"""Documents that a core learns from in a second, vocabulary and label keys included."""
STATIC_SETUP_SECONDS = 15.0
"""Time before the first step."""
CLASSIFIER_PASSES = 4
"""Passes of a companion with a classifier, unless COMPANION_SHARE of the time is over before."""
CLASSIFIER_PRODUCTS_PER_PAIR = 5.8e3
"""Multiplications of matrix products that training such a classifier on a pair of document and label takes."""
COMPANION_SHARE = 0.2
"""Share of a time limit that a companion may take."""
TRANSFORMER_PRODUCTS_PER_TOKEN = 5.8e7
"""The same for a token of the packaged minilm, forward and backward, about the same in bf16 and in float32."""
BOTH_HEADS_PRODUCTS_PER_PAIR = 7.5e3
"""The same for both heads of ``static`` and a pair of document and label, where all labels are scored."""
CHARACTERS_PER_TOKEN = 4
"""Mean length of a token, where there is no tokenizer to ask."""
COUNTED_TEXTS = 500
"""Texts of a kind whose tokens are counted."""
LINEAR_ENTRIES_PER_SECOND = 2.5e6
"""Entries that a core learns a linear classifier from in a second, all iterations included."""
CHARACTERS_PER_TERM = 5.0
"""Characters of a text for each of its terms: words and pairs of them, those met once left out."""
LINEAR_TERMS_PER_SECOND = 6e5
"""Terms that are read from texts in a second."""
LINEAR_PRODUCTS_PER_SECOND, LINEAR_WEIGHING_SECONDS = 1.2e11, 8.0
"""Products of numbers of keys that a core makes in a second; time to weigh a classifier on validation documents."""


def tuned_on(fit: FitSettings, data: Dataset) -> int:
    """Validation documents that the memory of a run is tuned on."""
    return min(len(data.valid), fit.valid_documents, tuning.DOCUMENTS)


def tuning_seconds(fit: FitSettings, data: Dataset) -> float:
    """How long tuning takes, about."""
    documents = tuned_on(fit, data)
    return TUNING_SECONDS * documents / tuning.DOCUMENTS if documents >= MIN_TUNING else 0.0


def memory_seconds(encoder: Encoder, documents: Tokens, settings: RunSettings, data: Dataset) -> float:
    """How long document keys, tuning and a linear classifier take by the present weights; 0 without a time limit.

    A sample of ``documents``, the texts of all training documents, is encoded to see.
    """
    if settings.fit.max_minutes is None:
        return 0.0
    sample = documents.take(_spread(len(documents), SAMPLED_DOCUMENTS))
    begun = time.monotonic()
    encoder.encode(sample, precision=documents_precision(encoder, settings.voting))
    seconds = time.monotonic() - begun
    share = float(documents.lengths.sum()) / max(1.0, float(sample.lengths.sum()))
    return 1.15 * seconds * share + after_keys_seconds(settings, data)


def after_keys_seconds(settings: RunSettings, data: Dataset) -> float:
    """How long tuning and a linear classifier take once documents are keys, about."""
    return tuning_seconds(settings.fit, data) + (linear_seconds(data) if settings.voting.linear else 0.0)


def linear_seconds(data: Dataset) -> float:
    """How long a linear classifier beside the keys takes, about."""
    if not len(data.train):
        return 0.0
    rows = _spread(len(data.train), SAMPLED_DOCUMENTS)
    characters = float(np.mean([len(data.train.texts[row]) for row in rows.tolist()]))
    return linear_seconds_of(characters, len(data.train), LINEAR_DIM, torch.get_num_threads())


def linear_seconds_of(characters: float, documents: int, dim: int, cores: int) -> float:
    """How long finding neighbours, learning and weighing a linear classifier take, about.

    ``characters`` is the mean length of a document, ``dim`` the dimensions of document keys.
    """
    terms, pairs = characters / CHARACTERS_PER_TERM, min(documents, linear.MOST_SEARCHED) * documents
    each = 2 * linear.NEGATIVES / (LINEAR_ENTRIES_PER_SECOND * max(1, cores)) + 1 / LINEAR_TERMS_PER_SECOND
    searching = pairs * dim / (LINEAR_PRODUCTS_PER_SECOND * max(1, cores))
    return LINEAR_WEIGHING_SECONDS + documents * terms * each + searching


def documents_precision(encoder: Encoder, voting: MemorySettings) -> Precision:
    """In which precision document keys are encoded."""
    return "bf16" if voting.key_precision == "bf16" and bf16_pays(encoder.device) else "float32"


def companion_passes(data: Dataset, batch_size: int) -> int:
    """How many passes over the documents the companion makes."""
    count = max(1, len(usable_rows(data.train.targets, data.fit_rows)))
    return min(COMPANION_MOST_PASSES, max(COMPANION_PASSES, math.ceil(COMPANION_LEAST_STEPS * batch_size / count)))


def companion_seconds(kind: str, data: Dataset, fit: FitSettings) -> float:
    """How long a companion takes, about; ``kind`` is the setting ``companion``."""
    if kind == "none":
        return 0.0
    passes = companion_passes(data, fit.batch_size)
    if kind == "static-unidec":
        learning = max(CLASSIFIER_PASSES, passes) * classifier_pass_seconds(data)
        if fit.max_minutes is not None:
            learning = min(learning, COMPANION_SHARE * 60 * fit.max_minutes)
    else:
        cores = min(torch.get_num_threads(), os.cpu_count() or 1)
        learning = passes * len(data.train) / (STATIC_TEXTS_PER_SECOND * cores)
    return STATIC_SETUP_SECONDS + learning + sharing_seconds(data, fit)


def sharing_seconds(data: Dataset, fit: FitSettings) -> float:
    """How much longer tuning takes for two encoders, whose shares are chosen too: about three times as long in all."""
    return 2 * tuning_seconds(fit, data)


def classifier_pass_seconds(data: Dataset) -> float:
    """How long a pass over the documents takes where all labels are scored."""
    pairs = (len(data.train) + len(data.labels)) * len(data.labels)
    return pairs * CLASSIFIER_PRODUCTS_PER_PAIR / products_per_second(torch.device("cpu"))


def texts_per_second(kinds: Sequence[Sequence[str]], device: torch.device, encoding: EncoderSettings) -> float:
    """How many texts a second the packaged minilm learns from, by the mean length of some in its tokens.

    ``kinds`` are the texts of documents, and those of labels where these are documents too.
    """
    most = encoding.max_tokens or TRANSFORMER_MAX_TOKENS
    limit = Limit(most, encoding.long_documents, encoding.max_chunks if encoding.long_documents == "chunks" else 1)
    tokenizer = _tokenizer()
    means = []
    for texts in kinds:
        sample = [texts[row] for row in _spread(len(texts), min(COUNTED_TEXTS, len(texts))).tolist()]
        if tokenizer is None:
            lengths = np.array([min(limit.capacity, len(text) / CHARACTERS_PER_TOKEN) for text in sample])
        else:
            lengths = tokenize(tokenizer, sample, limit).lengths
        means.append(2 + lengths.mean())
    tokens = np.average(means, weights=[len(texts) for texts in kinds])
    return float(products_per_second(device) / TRANSFORMER_PRODUCTS_PER_TOKEN / tokens)


def _tokenizer() -> Tokenizer | None:
    """That of the packaged minilm; None without the package."""
    from tokenizers import Tokenizer

    folder = minilm_folder()
    if folder is None:
        return None
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _spread(count: int, points: int) -> npt.NDArray[np.int64]:
    """Distinct row numbers, spread evenly over all."""
    return np.unique(np.linspace(0, count - 1, points).astype(np.int64))
