"""What was tried to make models better at equal time, one thing changed, figures on validation documents.

    python benchmarks/improvements.py averaging DATA --out FILE
    python benchmarks/improvements.py texts DATA --out FILE
    python benchmarks/improvements.py distilling DATA --teacher MODEL --out FILE

``averaging`` trains ``static`` by RAE-XMC and answers from the last weights, and from the mean of those of the second
half of the run, with the rate falling as always and with a rate that stays. ``texts`` puts label texts into a sentence
before an untrained ``minilm`` reads them. ``distilling`` trains ``static`` by DEXML against all labels, once on the
true pairs, and once also on what the label keys of a trained model rank high, weighted by how sure they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from study import machine
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import labelspace as ls
from labelspace.base.files import atomic_file
from labelspace.errors import LabelspaceError
from labelspace.memory.memory import Memory
from labelspace.memory.voting import Query

SHOWN = ("P@1", "P@5", "PSP@5", "R@100")
EVERY = 8
"""Steps between two weights that are averaged."""
SENTENCES = ("{}", "about {}", "A book about {}.", "The subject of this text is {}.")
TAUGHT, LEAST = 10, 0.1
"""Labels of a document that a teacher adds at most, and the least probability of one."""
Row = dict[str, Any]


class Average:
    """The mean of the weights of the second half of a run, which begins where the rate has fallen to half its peak.

    Args:
        constant: let the rate stay at its peak.
    """

    def __init__(self, constant: bool):
        self.constant, self.peak, self.half, self.steps, self.count = constant, 0.0, False, 0, 0
        self.means: dict[Tensor, Tensor] = {}

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """What comes before a step."""
        rate = optimizer.param_groups[0]["lr"]
        self.peak = max(self.peak, rate)
        self.half = rate <= self.peak / 2
        self.steps += 1
        if self.constant:
            optimizer.param_groups[0]["lr"] = self.peak

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """What comes after a step."""
        if not self.half or self.steps % EVERY:
            return
        self.count += 1
        for group in optimizer.param_groups:
            for weight in group["params"]:
                mean = self.means.setdefault(weight, weight.detach().clone())
                mean.lerp_(weight.detach(), 1 / self.count)

    @torch.no_grad()
    def put(self) -> None:
        """Put the means in the place of the weights."""
        if not self.means:
            raise SystemExit("no weights were averaged; the run is too short")
        for weight, mean in self.means.items():
            weight.copy_(mean)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every step of the body."""
        hooks = register_optimizer_step_pre_hook(self.before), register_optimizer_step_post_hook(self.after)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def averaging(data: ls.Dataset, given: argparse.Namespace) -> Iterator[Row]:
    """Rows of the last weights and of their means."""
    for constant in (False, True):
        average, begun = Average(constant), time.monotonic()
        with average.watching():
            model = ls.train(
                data,
                recipe="raexmc",
                encoder="static",
                epochs=given.epochs,
                evaluations=0,
                key_precision="bf16",
                seed=given.seed,
            )
        seconds = time.monotonic() - begun
        kind = "the rate stays" if constant else "the rate falls to 0"
        yield {"what": kind, "seconds": seconds, **model.info["metrics"]["validation"]}
        average.put()
        model = ls.Model.from_encoder(model.encoder, data, precision="bf16")
        yield {
            "what": f"{kind}, mean of the second half",
            "averaged": average.count,
            **model.info["tuning"]["metrics"],
        }


def texts(data: ls.Dataset, given: argparse.Namespace) -> Iterator[Row]:
    """Rows of sentences around label texts."""
    for sentence in SENTENCES:
        labels = ls.Labels(data.labels.ids, [sentence.format(text) for text in data.labels.texts])
        model = ls.Model.from_encoder("minilm", labels)
        yield {"what": sentence, **measured(model, data)}


def measured(model: ls.Model, data: ls.Dataset) -> dict[str, float]:
    """Metrics of validation documents, of a model whose labels are those of the data in their order."""
    found = model.predict(data.valid.texts, k=min(100, len(data.labels)))
    return ls.evaluate(found, data.valid.targets, train_targets=data.train.targets, ks=(1, 5), name=data.name)


def distilling(data: ls.Dataset, given: argparse.Namespace) -> Iterator[Row]:
    """Rows of a student with and without a teacher."""
    begun = time.monotonic()
    taught = dataclasses.replace(data, train=dataclasses.replace(data.train, targets=lessons(data, given.teacher)))
    teaching = time.monotonic() - begun
    for what, learned in {"true pairs": data, "and what the teacher ranks high": taught}.items():
        model = ls.train(
            learned,
            recipe="dexml",
            encoder="static",
            max_minutes=given.minutes,
            epochs=1000,
            patience=0,
            evaluations=1,
            weighted=True,
            seed=given.seed,
        )
        kept = dict(model.info["metrics"]["validation"])
        pairs = int(learned.train.targets.nnz)
        yield {"what": what, "pairs": pairs, "steps": model.info["fit"]["steps"], **kept}
        tuned = model.tune(data, precision="bf16")
        assert tuned is not None
        yield {"what": f"{what}, with a memory", **tuned.metrics}
    yield {"what": "the teacher's rankings of all training documents", "seconds": teaching}


def lessons(data: ls.Dataset, folder: Path) -> sp.csr_array:
    """The truth with labels that a teacher adds to documents that are learned from, relevance at most 1.

    The teacher's label keys vote alone, since a document of its memory would answer for itself. Its softmax over the
    best labels, times the number of true labels, is how sure it is.
    """
    model = ls.Model.load(folder, precision="auto")
    if list(model.labels.ids) != list(data.labels.ids):
        raise SystemExit(f"the labels of {folder} are not those of the data, in their order")
    memory, voting = Memory(model.memory.label_keys, slots=model.memory.slots), model.memory.voting
    temperature = voting.label_temperature or voting.temperature
    truth, parts = sp.csr_array(data.train.targets), []
    for first in range(0, len(data.train), 8192):
        rows = slice(first, min(len(data.train), first + 8192))
        queries = torch.from_numpy(model.encode(data.train.texts[rows])).to(memory.device)
        labels, scores = memory.predict(Query(queries), 5 * TAUGHT)
        sure = np.exp((scores - scores[:, :1]) / temperature)
        sure *= np.diff(truth.indptr)[rows, None] / sure.sum(axis=1, keepdims=True)
        sure = np.where(sure >= LEAST, np.minimum(sure, 1), 0)[:, :TAUGHT]
        row = np.repeat(np.arange(len(sure)), TAUGHT)
        parts.append(sp.csr_array((sure.ravel(), (row, labels[:, :TAUGHT].ravel())), shape=(len(sure), truth.shape[1])))
    added = sp.csr_array(sp.vstack(parts), dtype=np.float32)
    added.eliminate_zeros()
    keep = np.zeros(len(data.train), dtype=np.float32)
    keep[data.fit_rows] = 1
    added = sp.csr_array(sp.diags_array(keep) @ added)
    both = sp.csr_array(truth.maximum(added), dtype=np.float32)
    both.eliminate_zeros()
    both.sort_indices()
    return both


STUDIES: dict[str, Callable[[ls.Dataset, argparse.Namespace], Iterator[Row]]] = {
    "averaging": averaging,
    "texts": texts,
    "distilling": distilling,
}


def main() -> None:
    """Run one study, and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conditions", default="")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.study == "distilling" and given.teacher is None:
        parser.error("distilling needs --teacher, the folder of a trained model of the same labels")
    flags = {"averaging": ["epochs"], "texts": [], "distilling": ["minutes"]}[given.study]
    command = f"python benchmarks/improvements.py {given.study} DATA"
    command += "".join(f" --{name} {getattr(given, name):g}" for name in flags)
    command += " --teacher MODEL" if given.teacher else ""
    data = ls.load(given.data, seed=given.seed)
    told = {
        "command": f"{command} --seed {given.seed}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(given.conditions),
        "data": data.name,
        "validation_documents": len(data.valid),
    }
    rows: list[Row] = []
    for row in STUDIES[given.study](data, given):
        rows.append({name: round(x, 2) if isinstance(x, float) else x for name, x in shown(row).items()})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    with atomic_file(given.out) as file:
        file.write_text(json.dumps({**told, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def shown(row: Row) -> Row:
    """A row with the metrics that are shown."""
    return {name: value for name, value in row.items() if "@" not in name or name in SHOWN}


if __name__ == "__main__":
    try:
        main()
    except LabelspaceError as error:
        sys.exit(str(error))
