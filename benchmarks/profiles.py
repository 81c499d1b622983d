"""Where the time of each part goes, by kind of operation, in its plain form and in the one that is used.

    python benchmarks/profiles.py [--only train encode static loss search] [--runs 5] [--out FILE.json]
    python benchmarks/profiles.py --table FILE.json

The plain form is what the part was before it was made fast, or what it falls back to: padded texts, PyTorch's
attention and float32 for the transformer; dense gradients and all logits at once for the static encoder; all logits at
once for the loss; float32 products and a top-k over all of them for the search. Each form runs once untimed, then
``--runs`` times by the clock and as often under torch's profiler; the figures are milliseconds a run. Needs the extra
``minilm``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS: dict[str, tuple[str, ...]] = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "_int_mm", "linear", "mkldnn", "onednn", "einsum", "dot"),
    "attention": ("scaled_dot", "_softmax", "softmax", "flash"),
    "GELU": ("gelu",),
    "norms": ("layer_norm", "norm", "vecdot"),
    "exp, log": ("exp", "log"),
    "token vectors": ("embedding", "index_add", "argsort", "unique", "repeat_interleave", "sort"),
    "top-k": ("topk", "max", "nonzero", "masked_select", "gt", "ge"),
    "optimiser": ("adam",),
    "sums, scaling": ("add", "mul", "div", "sub", "sum", "where", "clamp", "neg", "sqrt", "pow", "mean", "square",
                      "sigmoid", "masked", "lerp", "bincount", "cumsum", "rsqrt", "reciprocal", "logical", "bitwise"),
    "copies": ("copy", "cat", "clone", "contiguous", "to", "index", "gather", "take", "select", "stack", "empty",
               "zero", "fill", "resize", "new"),
}  # fmt: skip
"""Kinds of operations by how their names begin, after ``aten::`` and underscores; the first that fits."""
BATCH, LABELS, DIM = 512, 24_524, 384


def kind_of(name: str) -> str:
    """The kind of an operation of the profiler."""
    bare = name.removeprefix("aten::").lstrip("_").lower()
    bare = bare.removeprefix("mkldnn::").removeprefix("_").removeprefix("native_").removeprefix("fused_")
    for kind, starts in KINDS.items():
        if any(bare.startswith(start.lstrip("_")) for start in starts):
            return kind
    return "the rest"


def profiled(run: Callable[[], object], runs: int) -> dict[str, Any]:
    """Milliseconds of one run, whole and by kind."""
    from torch.profiler import ProfilerActivity, profile

    run()
    begun = time.perf_counter()
    for _ in range(runs):
        run()
    whole = 1000 * (time.perf_counter() - begun) / runs
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(runs):
            run()
    parts: dict[str, float] = {}
    for event in found.key_averages():
        kind = kind_of(event.key)
        parts[kind] = parts.get(kind, 0.0) + event.self_cpu_time_total / 1000 / runs
    known = sum(parts.values())
    shares = {kind: ms / known for kind, ms in parts.items()}
    return {"ms": round(whole, 1), "shares": {kind: round(100 * share, 1) for kind, share in shares.items()}}


def train() -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of minilm on 128 pairs: documents of about 22 tokens, labels of 10, negatives of the batch."""
    import torch

    from labelspace.bench import MAX_TOKENS, TRAIN_TEXTS, made_up_texts
    from labelspace.encoders import open_encoder
    from labelspace.encoders.gradcache import encode_both
    from labelspace.recipes.preparation import fill_in, optimizers_of
    from labelspace.training.config import made
    from labelspace.training.losses import closed_form
    from labelspace.training.losses_fused import linear_loss
    from labelspace.training.optim import clip_gradients
    from labelspace.training.settings import DexmlSettings

    documents, labels = made_up_texts(TRAIN_TEXTS, 22, 0), made_up_texts(TRAIN_TEXTS, 10, 1)
    positives = torch.arange(TRAIN_TEXTS).expand(2, -1).contiguous()

    def side(attention: str, precision: str) -> Callable[[], object]:
        encoder = open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS, attention=attention)
        settings = fill_in(made(DexmlSettings, {"encoder": "minilm", "lr": 2e-5, "precision": precision}), encoder)  # type: ignore[arg-type]
        tokens, label_tokens = encoder.tokenize(documents), encoder.tokenize(labels)
        optimizers = optimizers_of(encoder, settings.fit)
        kept = int(1e9 * settings.encoding.activations_gb) // encoder.activation_bytes
        low = torch.bfloat16 if settings.encoding.precision == "bf16" else None

        def step() -> None:
            encoder.train()
            queries, keys = encode_both(encoder, tokens, label_tokens, settings.encoding.chunk_size, kept)
            form = closed_form(settings.losses.loss)
            linear_loss(form, queries, keys, positives, temperature=0.05, dtype=low).backward()
            clip_gradients(encoder.parameters(), settings.fit.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return step

    return side("sdpa", "float32"), side("auto", "auto")


def encode() -> tuple[Callable[[], object], Callable[[], object]]:
    """1,024 texts of about 16 tokens through minilm."""
    from labelspace.base.rates import bf16_pays
    from labelspace.bench import FULL, MAX_TOKENS, made_up_texts
    from labelspace.encoders import open_encoder

    texts = made_up_texts(FULL.texts, 16, 0)
    plain = open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS, attention="sdpa")
    ours = open_encoder("minilm", device="cpu", max_tokens=MAX_TOKENS)
    kind = "bf16" if bf16_pays(ours.device) else "float32"
    tokens = plain.tokenize(texts)
    return lambda: plain.encode(tokens), lambda: ours.encode(tokens, precision=kind, keep=True)


def static() -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of a static encoder of 100,000 tokens on 512 documents of about 20, all 24,524 labels as negatives."""
    import numpy as np
    import torch
    from torch import nn

    from labelspace.base.rates import bf16_pays
    from labelspace.bench import _problem
    from labelspace.training.losses import closed_form
    from labelspace.training.losses_fused import linear_loss, linear_loss_plain
    from labelspace.training.optim import RowAdamW

    rng = np.random.default_rng(0)
    rows = 100_000
    sizes = [np.maximum(1, rng.poisson(mean, n)) for n, mean in ((BATCH, 20), (LABELS, 3))]
    bags = [(torch.from_numpy(np.minimum(rng.zipf(1.2, int(s.sum())), rows) - 1), s) for s in sizes]
    offsets = [torch.from_numpy(np.concatenate([[0], np.cumsum(s)]).astype(np.int64)) for _, s in bags]
    _, _, positives = _problem(LABELS, DIM, BATCH, 0)
    low = torch.bfloat16 if bf16_pays(torch.device("cpu")) else None

    from labelspace.encoders.static import _BagMeans

    def side(plain: bool) -> Callable[[], object]:
        table = nn.Parameter(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(0)))
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([table]) if plain else RowAdamW([table])

        def vectors(place: int) -> torch.Tensor:
            ids = bags[place][0]
            if not plain:
                found: torch.Tensor = _BagMeans.apply(table, ids, offsets[place], True)
                return found
            bag = nn.functional.embedding_bag(ids, table, offsets[place], mode="mean", include_last_offset=True)
            return nn.functional.normalize(bag, dim=1)

        def step() -> None:
            form = closed_form("decoupled_softmax")
            if plain:
                linear_loss_plain(form, vectors(0), vectors(1), positives, temperature=0.05).backward()
            else:
                linear_loss(form, vectors(0), vectors(1), positives, temperature=0.05, dtype=low).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return side(True), side(False)


def loss() -> tuple[Callable[[], object], Callable[[], object]]:
    """Decoupled softmax of 1,024 queries over 131,072 labels, forward and backward."""
    import torch

    from labelspace.base.rates import bf16_pays
    from labelspace.bench import _problem
    from labelspace.training.losses import closed_form
    from labelspace.training.losses_fused import linear_loss, linear_loss_plain

    queries, keys, positives = _problem(131_072, DIM, 1024, 0)
    low = torch.bfloat16 if bf16_pays(torch.device("cpu")) else None

    def side(plain: bool) -> Callable[[], object]:
        def run() -> None:
            queries.grad = keys.grad = None
            form = closed_form("decoupled_softmax")
            if plain:
                linear_loss_plain(form, queries, keys, positives, temperature=0.05).backward()
            else:
                linear_loss(form, queries, keys, positives, temperature=0.05, dtype=low).backward()

        return run

    return side(True), side(False)


def search() -> tuple[Callable[[], object], Callable[[], object]]:
    """1,000 queries, the 100 nearest of 178,000 random keys."""
    from labelspace.bench import DEPTH, KEYS, QUERIES, _unit
    from labelspace.memory.indexes import ExactIndex

    keys, queries = _unit(KEYS, 0), _unit(QUERIES, 1)
    index = ExactIndex(keys)

    def plain() -> None:
        for part in queries.split(250):
            (part @ keys.T).topk(DEPTH, dim=1)

    return plain, lambda: index.search(queries, DEPTH)


PARTS = {"train": train, "encode": encode, "static": static, "loss": loss, "search": search}


def measure(only: list[str], runs: int) -> dict[str, Any]:
    """Profiles of both forms of each part."""
    import gc

    import torch

    from labelspace.base.machine import processor

    record: dict[str, Any] = {
        "command": f"python benchmarks/profiles.py --runs {runs}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parts": {},
    }
    for name in only:
        plain, ours = PARTS[name]()
        record["parts"][name] = {
            "what": " ".join((PARTS[name].__doc__ or "").split()),
            "plain": profiled(plain, runs),
            "used": profiled(ours, runs),
        }
        del plain, ours
        gc.collect()
        print(json.dumps({name: record["parts"][name]}), file=sys.stderr, flush=True)
    return record


def table(record: dict[str, Any]) -> str:
    """The profiles as a Markdown table: milliseconds, and the share of each kind of operation in percent."""
    kinds = [*KINDS, "the rest"]
    lines = ["| part | form | ms | " + " | ".join(kinds) + " |", "| --- " * (len(kinds) + 3) + "|"]
    for name, part in record["parts"].items():
        for form in ("plain", "used"):
            found = part[form]
            shares = [found["shares"].get(kind, 0.0) for kind in kinds]
            cells = [f"{share:.0f}" if share >= 0.5 else "" for share in shares]
            lines.append(f"| {name} | {form} | {found['ms']:,.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print a table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of such a file, and measure nothing")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(given.table.read_text())))
        return
    record = measure(given.only, given.runs)
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
