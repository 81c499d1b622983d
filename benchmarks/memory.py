"""Studies of the memory: labels added by text alone, documents added, time to open.

    python benchmarks/memory.py labels DATA --encoder static --recipe dexml --epochs 5
    python benchmarks/memory.py documents DATA --encoder minilm

``labels`` holds a fifth of the labels out of training, adds them afterwards by their texts, and measures P@1 on the
documents of a split that have one of them, beside the untrained encoder. ``documents`` adds 10,000 documents to the
others and times that against encoding them alone, and then opens the memory again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import labelspace as ls


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["labels", "documents"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="static")
    parser.add_argument("--recipe", default="dexml", choices=["dexml", "raexmc"])
    parser.add_argument("--negatives", choices=["all", "in-batch", "mined"])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--tune", action="store_true", help="give a DEXML model a memory of the documents too")
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = study_labels(options) if options.study == "labels" else study_documents(options)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
