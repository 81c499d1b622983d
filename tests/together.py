"""What tests run in several processes: ``python together.py '[[COUNT, CASE, ARGUMENT...], ...]'``.

A script of its own, since a process must be forked before torch has threads, and torch takes long to load.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

import labelspace as ls
from labelspace.base import processes
from labelspace.encoders import Encoder
from labelspace.encoders.gradcache import encode_cached
from labelspace.encoders.static import _BagMeans
from labelspace.encoders.tokens import Tokens
from labelspace.recipes.raexmc import contrast, related_pairs
from labelspace.recipes.unidec import PoolLoss
from labelspace.training import distributed, losses_fused
from labelspace.training.batches import of_labels
from labelspace.training.config import made
from labelspace.training.label_heads import LabelTable, OneVsAll, OneVsAllSGD, TwoHeads
from labelspace.training.losses import closed_form
from labelspace.training.losses_fused import linear_loss, linear_loss_plain
from labelspace.training.optim import RowAdagrad, RowAdamW, clip_gradients
from labelspace.training.settings import UnidecSettings
from labelspace.types import Batch

FORMS: dict[str, dict[str, Any]] = {
    "decoupled_softmax": {}, "softmax": {}, "supcon": {}, "balanced": {}, "bce": {}, "soft_top_k": {"k": 3},
}  # fmt: skip
EXACT = 1e-12
VOCABULARY, WIDTH, DIM = 60, 16, 8


def together(*jobs: tuple[int | str | Path, ...], launcher: tuple[str, ...] = ()) -> None:
    """Run cases one after the other, each in so many processes: (count, case, arguments...)."""
    asked = json.dumps([[str(x) for x in job] for job in jobs])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *launcher, __file__, asked]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]


def in_processes(count: int, work: Callable[[], None]) -> int:
    """Run the same in so many forked processes of one group; how many of them failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ.update({name: str(value) for name, value in own.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            code = 0
            try:
                work()
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


class Tiny(Encoder):
    """A deep encoder in float64, with dropout."""

    normalize, special_tokens, max_tokens = True, False, 12

    def __init__(self) -> None:
        super().__init__()
        self.dim = DIM
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, DIM)
        self.double()

    def forward(self, tokens: Tokens) -> Tensor:
        owner = torch.from_numpy(np.repeat(np.arange(len(tokens)), tokens.lengths))
        x = dropout(torch.tanh(self.hidden(self.embedding(torch.from_numpy(tokens.ids.astype("int64"))))), 0.2)
        means = x.new_zeros(len(tokens), WIDTH).index_add(0, owner, x) / torch.from_numpy(tokens.lengths)[:, None]
        return nn.functional.normalize(self.last(means), dim=1)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class Bag(Encoder):
    """A bag of token vectors in float64, whose gradient is sparse."""

    normalize, special_tokens, max_tokens, row_sparse = True, False, 12, True

    def __init__(self) -> None:
        super().__init__()
        self.dim = DIM
        self.table = nn.Parameter(torch.randn(VOCABULARY, DIM, dtype=torch.float64))

    def forward(self, tokens: Tokens) -> Tensor:
        ids, offsets = torch.from_numpy(tokens.ids.astype("int64")), torch.from_numpy(tokens.offsets)
        vectors: Tensor = _BagMeans.apply(self.table, ids, offsets, True)
        return vectors

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def texts(count: int, rng: np.random.Generator) -> Tokens:
    lengths = rng.integers(1, 12, count)
    ids = rng.integers(0, VOCABULARY, lengths.sum()).astype(np.int32)
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def part_of(count: int, rank: int, processes: int) -> slice:
    return slice(count * rank // processes, count * (rank + 1) // processes)


def rows_of(part: slice) -> Any:
    return np.arange(part.start, part.stop)


def close(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found - expected).abs().max()) / max(1e-3, float(expected.abs().max()))
    assert error <= EXACT, f"{what}: {error}"


def dense(x: Tensor) -> Tensor:
    return x.to_dense() if x.is_sparse else x


def losses(count: int) -> None:
    """Each loss with hidden pairs, a document without labels, dropout, and labels that cannot be shared evenly."""
    losses_fused.ROW_BLOCK, losses_fused.LOGITS_BLOCK_BYTES = 8, 8 * 8 * 16  # many blocks
    rng, rank = np.random.default_rng(0), int(os.environ["RANK"])
    documents, labels = texts(23, rng), texts(101, rng)
    truth = rng.random((23, 101)) < 0.04
    truth[np.arange(23), rng.integers(0, 101, 23)] = True
    truth[3] = False
    hidden = (rng.random(truth.shape) < 0.03) & ~truth
    weights = rng.random(int(truth.sum())).astype(np.float32)
    batch = Batch(np.arange(23), None, np.stack(np.nonzero(truth)), np.stack(np.nonzero(hidden)), weights)
    torch.manual_seed(1)
    encoder = Tiny()

    def encoded(of: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(100 + of)
        own, keys = documents.take(rows_of(part_of(23, of, count))), labels.take(rows_of(part_of(101, of, count)))
        return encode_cached(encoder, own, 5), encode_cached(encoder, keys, 7)

    def tensors(of: Batch) -> dict[str, Any]:
        assert of.hidden is not None and of.weights is not None
        pairs, weights = torch.from_numpy(of.hidden), torch.from_numpy(of.weights).double()
        return {"positives": torch.from_numpy(of.positives), "hidden": pairs, "weights": weights, "temperature": 0.05}

    forms = {name: closed_form(name, **options) for name, options in FORMS.items()}
    expected = {}
    for name, form in forms.items():
        every = [torch.cat(x) for x in zip(*map(encoded, range(count)), strict=True)]
        loss = linear_loss_plain(form, *every, **tensors(batch))
        expected[name] = loss.detach(), torch.autograd.grad(loss, list(encoder.parameters()))
    with distributed.group():
        for name, form in forms.items():
            for compute in (linear_loss, linear_loss_plain):
                encoder.zero_grad()
                own, keys = encoded(rank)
                queries, mine = distributed.gather(own, 23), of_labels(batch, distributed.span(101))
                loss = compute(form, queries, keys, **tensors(mine), reduce=distributed.reduction())
                loss.backward()
                distributed.sum_gradients(encoder.parameters())
                close(loss.detach(), expected[name][0], f"{name}, value")
                for parameter, gradient in zip(encoder.parameters(), expected[name][1], strict=True):
                    assert parameter.grad is not None
                    close(parameter.grad, gradient, f"{name}, gradient")


def steps(count: int) -> None:
    """Three steps of UniDEC's two heads in both directions, with RAE-XMC's columns, for encoders and label tables."""
    for make_encoder in (Tiny, Bag):
        for table in ("adamw", "adagrad", "one-vs-all"):
            _steps(count, make_encoder, table)


def _steps(count: int, make_encoder: type[Encoder], kind: str) -> None:
    size, rank = 101, int(os.environ["RANK"])
    rng = np.random.default_rng(0)
    documents, labels = texts(23, rng), texts(size, rng)
    rows = torch.randn(size, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    settings = made(UnidecSettings, {"directions": "both", "temperature": 0.07})
    score, contrasted = PoolLoss(settings, None), closed_form("decoupled_softmax")
    # the second pool has labels of the first process only
    pools = [np.sort(rng.choice(size, 60, replace=False)), np.arange(20), np.sort(rng.choice(size, 40, replace=False))]
    batches = []
    for pool in pools:
        truth = rng.random((23, len(pool))) < 0.05
        truth[np.arange(23), rng.integers(0, len(pool), 23)] = True
        batches.append((truth, Batch(np.arange(23), pool, np.stack(np.nonzero(truth)))))

    def begin(weights: Tensor) -> tuple[nn.ModuleList, list[torch.optim.Optimizer]]:
        torch.manual_seed(1)
        encoder, heads = make_encoder(), TwoHeads(DIM, DIM, DIM, dropout=0.1).double()
        of_encoder = RowAdamW if encoder.row_sparse else torch.optim.AdamW
        optimizers: list[torch.optim.Optimizer] = [
            # AdamW divides by the size of a gradient: of one that is all but 0 it would show the rounding alone
            of_encoder(encoder.parameters(), lr=0.05, eps=1e-3),
            torch.optim.AdamW(heads.parameters(), lr=0.05, eps=1e-3),
        ]  # fmt: skip
        if kind == "one-vs-all":
            head = OneVsAll(weights.clone())
            optimizers.append(OneVsAllSGD(head, momentum=0.9))
        else:
            head = LabelTable(weights.clone(), 0.1)
            by = RowAdamW if kind == "adamw" else RowAdagrad
            optimizers.append(by(head.parameters(), lr=0.05, eps=1e-3))
        return nn.ModuleList([encoder, heads, head]), optimizers

    def encoded(module: nn.ModuleList, step: int, of: int, first: int) -> tuple[Tensor, ...]:
        encoder, heads, head = module
        part, pool = part_of(size, of, count), pools[step]
        pool = pool[(pool >= part.start) & (pool < part.stop)]
        torch.manual_seed(100 * step + of)
        own = encode_cached(encoder, documents.take(rows_of(part_of(23, of, count))), 5)
        keys = encode_cached(encoder, labels.take(pool), 7)
        of_labels = torch.zeros(0, DIM) if kind == "one-vs-all" else head(pool - first)
        return heads.dual(own), heads.document(own), heads.dual(keys), of_labels

    def loss_of(module: nn.ModuleList, batch: Batch, truth: Any, vectors: list[Tensor], own: Tensor) -> Tensor:
        dual, classified, keys, of_labels = vectors
        positives, related = torch.from_numpy(batch.positives), torch.from_numpy(related_pairs(ls_array(truth)))
        loss = score.encoder(dual, keys, positives)
        loss = loss + contrast(contrasted, dual, keys, positives, None, related, temperature=0.1, own=own)
        if kind != "one-vs-all":
            return loss + score.classifier(classified, of_labels, positives)
        part, pool = distributed.span(size), pools[[b is truth for b, _ in batches].index(True)]
        pairs = np.stack([np.nonzero(truth)[0], pool[np.nonzero(truth)[1]]])
        pairs = pairs[:, (pairs[1] >= part.start) & (pairs[1] < part.stop)] - [[0], [part.start]]
        return loss + module[2].loss(classified, torch.from_numpy(pairs)) / 23

    def learn(module: nn.ModuleList, optimizers: list[torch.optim.Optimizer], own: list[Tensor]) -> None:
        distributed.sum_gradients([*module[0].parameters(), *module[1].parameters()])
        clip_gradients(module.parameters(), 5.0, own)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    alone, by = begin(rows)
    for step, (truth, batch) in enumerate(batches):
        parts = zip(*(encoded(alone, step, of, 0) for of in range(count)), strict=True)
        vectors = [torch.cat(x) for x in parts]
        loss_of(alone, batch, truth, vectors, vectors[0]).backward()
        learn(alone, by, [])
    with distributed.group():
        part = distributed.span(size)
        module, by = begin(rows[part])
        for step, (truth, batch) in enumerate(batches):
            own, *others = encoded(module, step, rank, part.start)
            vectors = [distributed.gather(own, 23), distributed.gather(others[0], 23), *others[1:]]
            mine = of_labels(batch, part) if count > 1 else batch
            loss_of(module, mine, truth, vectors, own).backward()
            learn(module, by, [module[2].weight])
        for (name, found), expected in zip(module.named_parameters(), alone.parameters(), strict=True):
            expected = expected[part] if found is module[2].weight else expected
            close(found.detach(), expected.detach(), f"{make_encoder.__name__}, {kind}, {name}")


def ls_array(truth: Any) -> Any:
    import scipy.sparse as sp

    return sp.csr_array(truth.astype(np.float32))


def recipes(count: int, data: str, out: str, runs: str) -> None:
    """Whole trainings, ``runs`` being settings by name as JSON; each model is written to ``OUT/NAME``."""
    for name, settings in json.loads(runs).items():
        model = ls.train(data, out=Path(out) / name, **settings)
        assert model.memory.n_documents >= 0


def commands(count: int, wanted: str) -> None:
    """Commands of the command line, a list of arguments each, as JSON."""
    from labelspace.cli.app import main

    for arguments in json.loads(wanted):
        assert main(arguments) == 0, arguments


def stopped(count: int, data: str, out: str, steps: str, settings: str) -> None:
    """A training in which all processes die after so many steps."""
    from labelspace.training import loop

    clip, seen = loop.clip_gradients, 0

    def dying(*args: Any) -> float:
        nonlocal seen
        seen += 1
        if seen > int(steps):
            os._exit(0)
        return clip(*args)

    loop.clip_gradients = dying
    ls.train(data, out=out, **json.loads(settings))


def killed(count: int, data: str, out: str, steps: str, settings: str) -> None:
    """A training of which the last process is killed after so many steps, in the first attempt."""
    from labelspace.training import loop

    clip, seen = loop.clip_gradients, 0

    def dying(*args: Any) -> float:
        nonlocal seen
        seen += 1
        if seen > int(steps) and processes.attempt() == 0 and processes.rank() == count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return clip(*args)

    loop.clip_gradients = dying
    ls.train(data, out=out, resume=out, **json.loads(settings))


def failing(count: int, data: str, out: str, settings: str) -> None:
    """A training of which the last process meets an error that the others do not."""
    from labelspace.recipes import dexml

    if int(os.environ["RANK"]) == count - 1:
        dexml.linear_loss = lambda *args, **options: (_ for _ in ()).throw(ls.DataError("this row is broken"))
    told = []
    try:
        ls.train(data, out=out, **json.loads(settings))
    except ls.LabelspaceError as error:
        told = [str(error), bool(getattr(error, "told", False))]
    (Path(out).parent / f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


CASES: dict[str, Callable[..., None]] = {
    "losses": losses, "steps": steps, "recipes": recipes, "commands": commands, "stopped": stopped, "killed": killed,
    "failing": failing,
}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = [(int(count), partial(CASES[case], int(count), *rest)) for count, case, *rest in json.loads(sys.argv[1])]
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        for _, work in jobs:
            work()
    else:
        sys.exit(sum(in_processes(count, work) for count, work in jobs))
