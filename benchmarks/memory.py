"""Studies of the memory: labels added by text alone, documents added, time to open.

    python benchmarks/memory.py labels DATA --encoder static --recipe dexml --epochs 5
    python benchmarks/memory.py documents DATA --encoder minilm

``labels`` holds a fifth of the labels out of training, adds them afterwards by their texts, and measures P@1 on the
documents of a split that have one of them, beside the untrained encoder. ``documents`` adds 10,000 documents to the
others and times that against encoding them alone, and then opens the memory again. ``latency`` times one query at a
time, encoder apart, over a model's memory or over 178,000 generated keys: one read of the keys, the whole answer by an
exact scan, and by graphs, with the share of the nearest keys that these find.

    python benchmarks/memory.py latency [MODEL]

``intervals`` measures what the memory of a tuned model adds to its label keys alone, on the test part: P@1, P@5, R@100
with 95% intervals of the differences by paired bootstrap.

    python benchmarks/memory.py intervals MODEL DATA
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

import labelspace as ls
from labelspace.base.strings import Strings
from labelspace.evaluation.comparing import compare
from labelspace.memory.graphs import build_graphs
from labelspace.memory.keys import Keys, Segment
from labelspace.memory.memory import Memory
from labelspace.memory.storage import open_memory
from labelspace.memory.voting import Query, Voting

CLUSTER = 100
"""Generated keys around one centre."""


def without(data: ls.Dataset, kept: np.ndarray) -> ls.Dataset:
    """The data set with some labels only."""

    def change(corpus: ls.Corpus) -> ls.Corpus:
        return dataclasses.replace(corpus, targets=sp.csr_array(corpus.targets[:, kept]), filter_pairs=None)

    labels = ls.Labels([data.labels.ids[i] for i in kept.tolist()], [data.labels.texts[i] for i in kept.tolist()])
    return dataclasses.replace(
        data,
        labels=labels,
        train=change(data.train),
        valid=change(data.valid),
        test=None if data.test is None else change(data.test),
    )


def precision(model: ls.Model, texts: list[str], truth: sp.csr_array, ids: list[str]) -> float:
    """P@1 in percent; labels are matched by id."""
    number = {name: i for i, name in enumerate(ids)}
    best = model.predict(texts, k=1)
    true = [number[best.named(row)[0][0]] in truth.indices[truth.indptr[row] : truth.indptr[row + 1]]
            for row in range(len(texts))]  # fmt: skip
    return 100 * float(np.mean(true))


def study_labels(options: argparse.Namespace) -> dict[str, float]:
    data = ls.load(options.data)
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(data.labels))
    gone, kept = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
    reduced = without(data, kept)
    settings = {"encoder": options.encoder, "epochs": options.epochs, "seed": options.seed}
    if options.minutes:
        settings["max_minutes"] = options.minutes
    if options.negatives and options.recipe == "dexml":
        settings["negatives"] = options.negatives
    model = ls.train(reduced, recipe=options.recipe, **settings)
    if options.recipe == "dexml" and options.tune:
        model.tune(reduced)
    corpus = data.test if data.test is not None and options.split == "test" else data.valid
    model.add_labels([data.labels.texts[i] for i in gone.tolist()], [data.labels.ids[i] for i in gone.tolist()])
    rows = np.flatnonzero(np.asarray(corpus.targets[:, gone].sum(axis=1)).ravel() > 0)
    texts, truth = [corpus.texts[i] for i in rows.tolist()], sp.csr_array(corpus.targets[rows])
    untrained = ls.Model.from_encoder(options.encoder, data.labels)
    ids = list(data.labels.ids)
    return {
        "documents": len(rows),
        "P@1 untrained": precision(untrained, texts, truth, ids),
        "P@1 trained, labels added": precision(model, texts, truth, ids),
    }


def study_documents(options: argparse.Namespace) -> dict[str, float]:
    data = ls.load(options.data, valid_fraction=0)
    names = list(data.labels.ids)
    rows = np.flatnonzero(np.diff(data.train.targets.indptr) > 0)
    first, last = rows[: -options.count], rows[-options.count :]
    corpus = data.train

    def labels(chosen: np.ndarray) -> list[list[str]]:
        part = corpus.targets[chosen]
        return [[names[j] for j in part.indices[a:b]] for a, b in zip(part.indptr, part.indptr[1:], strict=False)]

    model = ls.Model.from_encoder(options.encoder, data.labels)
    model.add_documents([corpus.texts[i] for i in first.tolist()], labels(first), [f"d{i}" for i in first.tolist()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.save(path)
        texts, own, ids = [corpus.texts[i] for i in last.tolist()], labels(last), [f"d{i}" for i in last.tolist()]
        model = ls.Model.load(path)
        begun = time.monotonic()
        model.encode_documents(texts)
        encoding = time.monotonic() - begun
        begun = time.monotonic()
        model.add_documents(texts, own, ids)
        model.save()
        adding = time.monotonic() - begun
        begun = time.monotonic()
        manifest = json.loads((path / "manifest.json").read_text())
        type(model.memory).open(path / "memory", manifest["memory"])
        opening = time.monotonic() - begun
    return {"there before": len(first), "encoding alone": encoding, "adding": adding, "opening the memory": opening}


def generated(options: argparse.Namespace) -> tuple[Memory, torch.Tensor]:
    """A memory of bf16 keys in clusters, an eighth of them labels, and queries from the same clusters."""
    g = torch.Generator().manual_seed(options.seed)
    centres = torch.nn.functional.normalize(torch.randn(options.keys // CLUSTER, options.dim, generator=g), dim=1)

    def draw(count: int) -> torch.Tensor:
        near = centres[torch.randint(0, len(centres), (count,), generator=g)]
        noise = torch.randn(count, options.dim, generator=g) / options.dim**0.5
        return torch.nn.functional.normalize(near + noise, dim=1)

    n_labels = options.keys // 8
    count = options.keys - n_labels
    rng = np.random.default_rng(options.seed)
    counts = rng.integers(1, 8, count)
    slots = (n_labels * rng.random(counts.sum()) ** 3).astype(np.int32)
    labels = Memory.of_labels(draw(n_labels).bfloat16(), ls.Labels(*[[f"L{i}" for i in range(n_labels)]] * 2))
    names = Strings.of([f"d{i}" for i in range(count)])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    documents = Segment(draw(count).bfloat16(), indptr, slots, None, names, names)
    return Memory(labels.label_keys, Keys([documents], options.dim), Voting()), draw(options.queries)


def of_model(options: argparse.Namespace) -> tuple[Memory, torch.Tensor]:
    """The memory of a model with its keys in bf16, and some of its documents as queries, moved a little."""
    folder = options.model
    entry = json.loads((folder / "manifest.json").read_text())["memory"]
    memory = open_memory(folder / "memory", {**entry, "graphs": {}})
    for keys in (memory.label_keys, memory.document_keys):
        for segment in keys.segments:
            segment.keys = segment.keys.bfloat16()
            segment.drop_graph()
    source = memory.document_keys if memory.n_documents else memory.label_keys
    places = np.random.default_rng(options.seed).choice(source.present(), options.queries)
    drawn = source.vectors(places).float()
    noise = torch.nn.functional.normalize(torch.randn(drawn.shape, generator=torch.manual_seed(options.seed)), dim=1)
    return memory, torch.nn.functional.normalize(drawn + options.noise * noise, dim=1)


def median_ms(work: Callable[[int], object], count: int) -> float:
    """Median time of a call in milliseconds, after a few calls that do not count."""
    times = []
    for i in range(count + 3):
        begun = time.perf_counter()
        work(i)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times[3:])


def study_latency(options: argparse.Namespace) -> dict[str, float]:
    memory, queries = generated(options) if options.model is None else of_model(options)
    segments = [*memory.label_keys.segments, *memory.document_keys.segments]
    raw = [segment.keys.contiguous().view(torch.int64) for segment in segments]

    def answer(i: int) -> object:
        row = i % len(queries)
        return memory.predict(Query(queries[row : row + 1]), 5)

    depths = (100, 0) if memory.voting.scoring == "similarity" else memory.voting.depths()
    best: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        best[name] = min(value, best.get(name, value))

    for _ in range(options.tries):
        note("one read of the keys, ms", median_ms(lambda i: [part.amax() for part in raw], 15))
        note("flat, ms", median_ms(answer, 30))
    flat_labels = memory.predict(Query(queries), 5)[0]
    flat = memory.search(Query(queries), *depths)
    begun = time.perf_counter()
    build_graphs(memory, recall=options.recall)
    built = time.perf_counter() - begun
    graphs = [segment for segment in segments if segment.graph is not None]
    arrays = queries.numpy()
    for _ in range(options.tries):
        note("graphs, ms", median_ms(answer, 200))
        alone = 0.0
        for segment in graphs:
            depth = depths[0] if segment in memory.label_keys.segments else depths[1]
            find = segment.index.graph.search
            segment.index.graph.hnsw.efSearch = max(segment.index.ef_search, depth)
            alone += median_ms(lambda i, f=find, k=depth: f(arrays[i % len(arrays)][None], k), 200)
        note("of this faiss alone, ms", alone)
    near = memory.search(Query(queries), *depths)
    pairs = [(flat.labels, near.labels), (flat.documents, near.documents)]
    found = [len(set(a.tolist()) & set(b.tolist())) for x, y in pairs for a, b in zip(x, y, strict=True)]
    again = memory.predict(Query(queries), 5)[0]
    same = [len(set(a) & set(b)) / 5 for a, b in zip(flat_labels.tolist(), again.tolist(), strict=True)]
    return {
        "keys": sum(len(segment) for segment in segments),
        "threads": torch.get_num_threads(),
        **best,
        "flat by reads": best["flat, ms"] / best["one read of the keys, ms"],
        "graphs by flat": best["graphs, ms"] / best["flat, ms"],
        "nearest keys found": sum(found) / sum(x.size for x, _ in pairs),
        "same five labels": float(np.mean(same)),
        **{f"ef_search, {len(segment):,} keys": segment.graph["ef_search"] for segment in graphs},
        "building, s": built,
    }


def study_intervals(options: argparse.Namespace) -> dict[str, float]:
    model = ls.Model.load(options.model, precision="auto")
    data = ls.load(options.data)
    if data.test is None or list(data.labels.ids) != list(model.labels.ids):
        raise SystemExit("the data needs a test part and the labels of the model, in their order")
    queries = torch.from_numpy(model.encode(data.test.texts)).to(model.memory.device)
    whole = model.memory
    labels = Memory(whole.label_keys, slots=whole.slots)
    depth = min(100, whole.n_labels)
    both = [ls.Predictions(*memory.predict(Query(queries), depth)) for memory in (labels, whole)]
    found = compare(*both, data.test.targets, None, ks=(1, 5), filter_pairs=data.test.filter_pairs, name=data.name)
    return {
        f"{name}, {part}": found[name][kind]
        for name in ("P@1", "P@5", "R@100")
        for part, kind in {"labels": "a", "memory": "b", "more": "difference", "low": "low", "high": "high"}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["labels", "documents", "latency", "intervals"])
    parser.add_argument("paths", type=Path, nargs="*", help="DATA, [MODEL] or MODEL DATA")
    parser.add_argument("--encoder", default="static")
    parser.add_argument("--recipe", default="dexml", choices=["dexml", "raexmc"])
    parser.add_argument("--negatives", choices=["all", "in-batch", "mined"])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--tune", action="store_true", help="give a DEXML model a memory of the documents too")
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keys", type=int, default=178_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.5, help="how far queries drawn from a model's keys are moved")
    parser.add_argument("--recall", type=float, default=0.97)
    parser.add_argument("--tries", type=int, default=3, help="the best of so many medians is taken")
    options = parser.parse_args()
    wanted = {"latency": ("model",), "intervals": ("model", "data")}.get(options.study, ("data",))
    if len(options.paths) != len(wanted) and (options.paths or options.study != "latency"):
        parser.error(f"{options.study} takes {' '.join(name.upper() for name in wanted)}")
    options.model = options.data = None
    for name, path in zip(wanted, options.paths, strict=False):
        setattr(options, name, path)
    studies = {"labels": study_labels, "documents": study_documents}
    studies |= {"latency": study_latency, "intervals": study_intervals}
    found = studies[options.study](options)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
