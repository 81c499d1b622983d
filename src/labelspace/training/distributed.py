"""Several processes that train one model: what they ask each other; the only file that knows of a process group.

Process r owns a contiguous range of the labels (`span` of L) and a slice of the documents of each global batch (`span`
of B). It encodes both; vectors of documents are gathered, vectors of labels never travel. With one process everything
here returns what it was given, and nothing of torch.distributed is loaded.

The processes are those that torchrun, ``accelerate launch`` or a cluster's launcher started (`base.processes`). All run
the same command. Each call here that talks is a meeting: all processes come to it in the same order.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..base import processes
from ..errors import LabelspaceError, SettingsError
from .losses import Op, Reduce

PATIENCE = timedelta(hours=24)
"""How long a process waits for another. One that has ended is noticed at once; one that works alone may need hours."""
GOING = timedelta(minutes=1)
"""How long the first process waits at the end until the others need it no more."""

_store: Any = None
"""Where the processes of the group leave short messages; None outside of a group, and with one process."""
_meeting: Any = None
"""Where the processes of all groups meet, once they have."""
_groups = 0
"""Groups so far."""


class Left(Exception):
    """This process has done its part of a run; the first one goes on alone."""


class ProcessLost(LabelspaceError):
    """Another process of the run has ended."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run has ended, so this one ends too; its own message says why; go on "
            "from the last checkpoint with --resume"
        )


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Be one of the processes that the launcher started, while the body runs; nothing with one process.

    An error of the body is told by the process that meets it first: it gets the attribute ``told``, whether this
    process is to tell it.

    Raises:
        SettingsError: the launcher does not say where the processes meet.
    """
    global _store, _meeting, _groups
    if processes.count() == 1 or _store is not None:
        yield
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        _meeting = _meeting or next(iter(rendezvous("env://", timeout=PATIENCE)))[0]
    except ValueError as error:
        raise SettingsError(
            f"WORLD_SIZE is {processes.count()}, so this is one of several processes, but {error}; start it with "
            "torchrun, or unset WORLD_SIZE"
        ) from error
    # a further training, or attempt after a lost process, must not find the words of the one before
    _groups += 1
    _store = PrefixStore(f"labelspace {processes.attempt()} {_groups}", _meeting)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(processes.local_rank() % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=_store, rank=processes.rank(), world_size=processes.count(), timeout=PATIENCE,
    )  # fmt: skip
    try:
        yield
        tell_finished()
    except Left:
        raise
    except BaseException as error:
        told = isinstance(error, ProcessLost)  # the first process, where the words are left, has ended before
        with contextlib.suppress(RuntimeError):
            told = _store.add("errors", 1) > 1
        error.told = told  # type: ignore[attr-defined]
        raise
    finally:
        leave()
        if processes.rank():
            with contextlib.suppress(RuntimeError):
                _store.set(f"gone {processes.rank()}", "1")
        _store = None


def leave() -> None:
    """Meet no more: work that one process does alone must not keep the others waiting."""
    import torch.distributed as dist

    if _store is not None and dist.is_initialized():
        dist.destroy_process_group()


def tell_finished() -> None:
    """Let those go on who `wait_for_first`; the place where all meet may end with this process, so it goes last."""
    if _store is not None and processes.rank() == 0:
        _store.set("finished", "1")
        with contextlib.suppress(RuntimeError):
            _store.wait([f"gone {rank}" for rank in range(1, processes.count())], GOING)


def wait_for_first() -> None:
    """Wait until the first process is through, however long that takes."""
    if _store is not None:
        with _talking():
            _store.wait(["finished"], PATIENCE)


def size() -> int:
    """Processes of the group."""
    if _store is None:
        return 1
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the group."""
    if size() == 1:
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def first() -> bool:
    """Whether this process logs, writes and shows progress."""
    return rank() == 0


def span(count: int, of: int | None = None) -> slice:
    """The part of ``count`` things that a process owns; parts differ by one thing at most."""
    number, processes_ = rank() if of is None else of, size()
    return slice(count * number // processes_, count * (number + 1) // processes_)


def largest_share(count: int) -> int:
    """The most of ``count`` things that a process owns."""
    return -(-count // size())


def share(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """This process' part of row numbers."""
    return rows[span(len(rows))]


def _lengths(count: int) -> list[int]:
    parts = [span(count, of) for of in range(size())]
    return [part.stop - part.start for part in parts]


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Turn what torch raises when a process is gone into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost from error


def _device() -> torch.device:
    """Where short messages are made."""
    return torch.device("cpu")


def from_first(value: Any) -> Any:
    """A value that JSON can hold, as the first process has it."""
    if size() == 1:
        return value
    import torch.distributed as dist

    text = json.dumps(value).encode() if first() else b""
    length = torch.tensor([len(text)], device=_device())
    with _talking():
        dist.broadcast(length, 0)
        buffer = torch.frombuffer(bytearray(text or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(buffer, 0)
    return json.loads(buffer.numpy().tobytes())


def wait_for_all() -> None:
    """Meet."""
    if size() > 1:
        import torch.distributed as dist

        with _talking():
            dist.all_reduce(torch.zeros(1, device=_device()))


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Run the body in the first process, then in the others, which may find what it left in a cache."""
    if not first():
        wait_for_all()
    try:
        yield
    finally:
        if first():
            wait_for_all()


def agree(values: Sequence[float], flags: Sequence[bool] = ()) -> tuple[list[float], list[bool]]:
    """Numbers as the first process has them, and for each flag whether any process has it set."""
    if size() == 1:
        return list(values), list(flags)
    own = [value if first() else 0.0 for value in values]
    together = _all_reduce(torch.tensor([*own, *map(float, flags)], dtype=torch.float64, device=_device()), "sum")
    numbers = together.tolist()
    return numbers[: len(values)], [number > 0 for number in numbers[len(values) :]]


def _all_reduce(x: Tensor, op: Op) -> Tensor:
    """Combine a tensor over the processes, in place."""
    import torch.distributed as dist

    kinds = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
    with _talking():
        dist.all_reduce(x, kinds[op])
    return x


@torch.no_grad()
def reduce(x: Tensor, op: Op) -> Tensor:
    """Combine a tensor over the processes, as losses ask for it, see `losses.Reduce`."""
    if size() == 1:
        return x
    if op != "logsumexp":
        return _all_reduce(x.clone(), op)
    top = _all_reduce(x.clone(), "max")
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    return _all_reduce((x - top).exp(), "sum").log() + top


def reduction() -> Reduce | None:
    """`reduce` for a loss whose keys several processes share; None with one process."""
    return None if size() == 1 else reduce


def total(x: Tensor) -> Tensor:
    """The sum of a scalar over the processes, whose gradient goes into this process' own part alone."""
    return x if size() == 1 else x + (reduce(x.detach(), "sum") - x.detach())


def mean(x: Tensor) -> Tensor:
    """The mean of (n,) numbers of all processes."""
    if size() == 1:
        return x.mean()
    summed, count = reduce(torch.stack([x.sum(dtype=torch.float64), x.new_tensor(len(x), dtype=torch.float64)]), "sum")
    return summed / count


def mean_of_rows(x: Tensor, rows: int) -> Tensor:
    """The mean of a scalar that each process has as the mean of so many rows of its own; no row gives 0 or NaN.

    Its gradient goes into this process' own part alone.
    """
    if size() == 1:
        return x
    every = reduce(torch.tensor([rows], dtype=torch.float64), "sum")
    return total(x * (rows / max(1.0, float(every))) if rows else torch.zeros_like(x))


class _Gather(torch.autograd.Function):
    """Rows of all processes; a process gets the sum of what all found as the gradient of its rows.

    torch's own differentiable gatherings are deprecated, or take rows of equal number only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.part = span(count)
        return gather_parts(x, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad.contiguous().clone(), "sum")[ctx.part], None


def gather(x: Tensor, count: int) -> Tensor:
    """Vectors (count, D) of all processes from this one's `span` of them, with a graph."""
    if size() == 1:
        return x
    vectors: Tensor = _Gather.apply(x, count)
    return vectors


@torch.no_grad()
def gather_parts(x: Tensor, count: int) -> Tensor:
    """Rows (count, ...) of all processes from this one's `span` of them, without a graph."""
    if size() == 1:
        return x
    return _gather_lengths(x, _lengths(count))


def _gather_lengths(x: Tensor, lengths: list[int]) -> Tensor:
    import torch.distributed as dist

    padded = x.new_zeros(max(lengths), *x.shape[1:])  # gloo wants parts of one size
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    with _talking():
        dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


@torch.no_grad()
def gather_to_first(x: Tensor, count: int) -> Tensor:
    """Rows (count, ...) of all processes in the first one, on the host; the others get their own back."""
    if size() == 1:
        return x
    import torch.distributed as dist

    x = x.cpu().contiguous()
    if not first():
        with _talking():
            dist.send(x, 0)
        return x
    whole = x.new_empty(count, *x.shape[1:])
    for of in range(size()):
        if of:
            with _talking():
                dist.recv(whole[span(count, of)], of)
        else:
            whole[span(count, 0)] = x
    return whole


def best(
    scores: npt.NDArray[np.float32], numbers: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The best of all processes for each query, in falling order, equal ones by number.

    Args:
        scores: (n, k) of this process' best, falling; k may differ between processes.
        numbers: (n, k) of what they belong to, higher in each further process.
        count: how many to keep, if all have so many together.
    """
    if size() == 1:
        return scores, numbers
    width = int(reduce(torch.tensor([scores.shape[1]]), "max"))
    padding = ((0, 0), (0, width - scores.shape[1]))
    own_scores = torch.from_numpy(np.pad(scores, padding, constant_values=-np.inf))
    own_numbers = torch.from_numpy(np.pad(numbers, padding, constant_values=-1))
    every = [_gather_lengths(x, [len(x)] * size()) for x in (own_scores, own_numbers)]
    shape = (size(), len(scores), width)
    side_by_side = [x.view(shape).transpose(0, 1).reshape(len(scores), -1).numpy() for x in every]
    order = np.argsort(-side_by_side[0], axis=1, kind="stable")
    there = int((side_by_side[1][0] >= 0).sum()) if len(scores) else 0
    order = order[:, : min(count, there)]
    return np.take_along_axis(side_by_side[0], order, axis=1), np.take_along_axis(side_by_side[1], order, axis=1)


@torch.no_grad()
def begin(module: nn.Module, own: Iterable[Tensor], seed: int) -> None:
    """Start from the weights of the first process, own rows apart, and draw dropout of one's own."""
    if size() == 1:
        return
    import torch.distributed as dist

    mine = {id(parameter) for parameter in own}
    for value in [*module.parameters(), *module.buffers()]:
        if id(value) not in mine:
            with _talking():
                dist.broadcast(value.data, 0)
    seed_draws(seed)


def seed_draws(seed: int) -> None:
    """Draw dropout as no other process does."""
    if size() > 1:
        torch.manual_seed((seed * 1_000_003 + 1 + rank()) % 2**63)


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients of parameters over the processes; one that no process has stays None."""
    if size() == 1:
        return
    parameters = list(parameters)
    found = torch.tensor([[p.grad is not None, p.grad is not None and p.grad.is_sparse] for p in parameters])
    there, sparse = _all_reduce(found.float(), "max").bool().T.tolist()
    dense: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter, has, of_rows in zip(parameters, there, sparse, strict=True):
        if has and of_rows:
            parameter.grad = _sum_rows(parameter)
        elif has:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dense.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
    for gradients in dense.values():
        flat = _all_reduce(torch.cat([x.reshape(-1) for x in gradients]), "sum")
        for gradient, summed in zip(gradients, flat.split([x.numel() for x in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _sum_rows(parameter: Tensor) -> Tensor:
    """The sum of gradients that are sparse in rows: the rows of all processes are united, then summed."""
    gradient = None if parameter.grad is None else parameter.grad.coalesce()
    rows = torch.zeros(0, dtype=torch.int64, device=parameter.device) if gradient is None else gradient.indices()[0]
    lengths = torch.zeros(size(), dtype=torch.int64)
    lengths[rank()] = len(rows)
    union = torch.unique(_gather_lengths(rows, _all_reduce(lengths, "sum").tolist()))
    values = parameter.new_zeros(len(union), *parameter.shape[1:])
    if gradient is not None:
        values[torch.searchsorted(union, rows)] = gradient.values()
    return torch.sparse_coo_tensor(
        union[None], _all_reduce(values, "sum"), parameter.shape, is_coalesced=True, check_invariants=False
    )


def sum_squares(own: float) -> float:
    """The sum over the processes of a number that each has of its own rows."""
    return own if size() == 1 else float(reduce(torch.tensor([own], dtype=torch.float64), "sum"))
