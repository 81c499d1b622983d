"""Checkpoints: the state of a run between two steps, whole on disk or not there.

A run that writes its model to ``DIR`` keeps ``DIR.checkpoint`` beside it until the model is there: ``run.json`` says
what the run is, ``log.jsonl`` what happened, and ``step-N`` holds the state after N steps. A new state gets a new name,
so a kill at any moment leaves the old one or the new one.

Of several processes, which share the folder, the first writes what all have, and process N writes
``process-N.safetensors``: the rows of its own labels. A run may go on with another number of processes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..base.files import atomic_file, atomic_folder, writing
from ..errors import CheckpointError
from . import distributed
from .optim import cut_rows, join_rows

FORMAT_VERSION = 1


@dataclass
class State:
    """The state of a run between two steps.

    Args:
        record: plain values; ``by_label`` names the tensors that have a row a label, or what the names of the state of
            an optimiser begin with, which then ends in a dot; ``optimizers`` has the plain values of such states.
        tensors: by name.
    """

    record: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, which ends in a dot, without it."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def add(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        """Put tensors in under a prefix, which ends in a dot."""
        self.tensors.update({prefix + name: x for name, x in tensors.items()})


class Checkpoints:
    """The checkpoint folder of a run.

    Args:
        out: the folder that the run writes its model to.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.with_name(f"{out.name}.checkpoint")
        self._lock: IO[str] | None = None

    @property
    def log(self) -> Path:
        """The record of the run."""
        return self.folder / "log.jsonl"

    def lock(self) -> None:
        """Keep other runs out for as long as this process lives.

        Raises:
            CheckpointError: another run writes here.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("a")
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise CheckpointError(f"another run is writing to {self.out}; wait for it, or name another --out") from None
        except OSError:  # a file system without locks
            return

    def begin(self, run: dict[str, Any]) -> None:
        """Start anew: drop what another run left, and write recipe, settings and data of this one."""
        self._drop(keep={"lock"})
        with atomic_file(self.folder / "run.json") as path:
            path.write_text(json.dumps({"format_version": FORMAT_VERSION, **run}, indent=2) + "\n", encoding="utf-8")

    def described(self) -> dict[str, Any] | None:
        """What `begin` wrote of the run; None where no run is unfinished.

        Raises:
            CheckpointError: a folder that this version cannot read.
        """
        path = self.folder / "run.json"
        try:
            run: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); start the run again without --resume") from error
        version = run.get("format_version") if isinstance(run, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {version!r}, this labelspace reads {FORMAT_VERSION}; "
                "resume with the version that wrote it, or start the run again"
            )
        return run

    def save(self, step: int, state: State) -> None:
        """Write the state after so many steps and drop the one before.

        Raises:
            CheckpointError: it cannot be written, to a full disk say; the one before stays.
        """
        folder = self.folder / f"step-{step}"
        try:
            if not distributed.from_first(folder.exists()):
                if distributed.first():
                    with atomic_folder(folder) as part:
                        self._save_parts(part, state)
                else:
                    self._save_parts(None, state)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "reason", error)
            raise CheckpointError(f"the state after step {step} cannot be written to {folder} ({reason})") from error
        if distributed.first():
            self._drop(keep={"lock", "run.json", "log.jsonl", folder.name})

    def _save_parts(self, folder: Path | None, state: State) -> None:
        """Write this process' part of a state into the folder that the first process made; only that one knows it."""
        tensors = {name: x.detach().cpu().contiguous() for name, x in state.tensors.items()}
        if distributed.size() == 1:
            assert folder is not None
            self._save_whole(folder, state.record, tensors)
            return
        folder, failure = Path(distributed.from_first(str(folder))), None
        own = {name: x for name, x in tensors.items() if name.startswith("random.") or _is_by_label(name, state.record)}
        try:
            metadata = {"optimizers": json.dumps(state.record["optimizers"])}
            save_file(own, folder / f"process-{distributed.rank()}.safetensors", metadata)
            if distributed.first():
                record = {**state.record, "processes": distributed.size()}
                self._save_whole(folder, record, {name: x for name, x in tensors.items() if name not in own})
        except (OSError, SafetensorError) as error:
            failure = error
        if distributed.agree([], [failure is not None])[1][0]:
            raise failure or OSError("another process could not write its part")

    @staticmethod
    def _save_whole(folder: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        save_file(tensors, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(record), encoding="utf-8")

    @property
    def step(self) -> int | None:
        """Steps of the latest state; None where there is none."""
        steps = self._steps()
        return int(steps[-1].name[5:]) if steps else None

    def load(self, n_labels: int) -> State | None:
        """The latest state, of this process' labels of all; None where the run was stopped before the first one.

        Raises:
            CheckpointError: damaged files, by name.
        """
        steps = self._steps()
        if not steps:
            return None
        folder = steps[-1]
        try:
            record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            stored = load_file(folder / "state.safetensors")
            state = State(record, {name: stored.pop(name).clone() for name in list(stored)})
            if isinstance(record, dict) and (record.get("processes", 1) > 1 or distributed.size() > 1):
                _take_own_rows(state, folder, n_labels)
            return state
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is damaged ({error}); start the run again without --resume") from error

    def clear(self) -> None:
        """Remove the folder; the run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.unlock()

    def unlock(self) -> None:
        """Let other runs in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _drop(self, keep: set[str]) -> None:
        for entry in self.folder.iterdir():
            if entry.name not in keep and entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in keep:
                with contextlib.suppress(OSError):
                    entry.unlink()

    def _steps(self) -> list[Path]:
        """Folders of states, the latest last."""
        if not self.folder.is_dir():
            return []
        steps = [p for p in self.folder.iterdir() if p.name.startswith("step-") and p.name[5:].isdecimal()]
        return sorted(steps, key=lambda p: int(p.name[5:]))


def _is_by_label(name: str, record: dict[str, Any]) -> bool:
    """Whether a tensor has a row a label, or belongs to a state that has."""
    return any(name == other or other.endswith(".") and name.startswith(other) for other in record["by_label"])


def _take_own_rows(state: State, folder: Path, n_labels: int) -> None:
    """Give a state that several processes wrote, or are to go on with, the rows of this process' own labels."""
    record, wrote, now = state.record, state.record.get("processes", 1), distributed.size()
    if "by_label" not in record:
        raise CheckpointError(
            f"{folder} was written by a version that knew of one process only; resume with one, or start the run again"
        )
    own, parts = distributed.span(n_labels), []
    for number in range(wrote):
        start, stop = n_labels * number // wrote, n_labels * (number + 1) // wrote
        rows = slice(max(own.start, start) - start, min(own.stop, stop) - start)
        if rows.start < rows.stop:
            whole = State(dict(record), dict(state.tensors))
            parts.append((rows, whole if wrote == 1 else _part(folder, number)))
    for name in list(state.tensors):
        if name.startswith("random.") or _is_by_label(name, record):
            del state.tensors[name]
    if now == wrote:  # its own draws go on
        state.add("random.", parts[0][1].part("random."))
    for name in record["by_label"]:
        if not name.endswith("."):
            pieces = [part.tensors[name][rows] for rows, part in parts if name in part.tensors]
            if pieces:
                state.tensors[name] = torch.cat(pieces)
            continue
        i, j = map(int, name.split(".")[1:3])
        states = [cut_rows({**part.part(name), **part.record["optimizers"][i][j]}, rows) for rows, part in parts]
        joined = join_rows(states)
        state.add(name, {key: x for key, x in joined.items() if isinstance(x, Tensor)})
        record["optimizers"][i][j] = {key: x for key, x in joined.items() if not isinstance(x, Tensor)}


def _part(folder: Path, number: int) -> State:
    """What one of several processes wrote."""
    with safe_open(folder / f"process-{number}.safetensors", framework="pt") as file:
        return State(
            {"optimizers": json.loads(file.metadata()["optimizers"])},
            {name: file.get_tensor(name) for name in file.keys()},
        )
