"""A model's folder: saved whole or not at all, changed by one rename, and loaded."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..base.files import atomic_file, atomic_folder, finish, folder_lock, sync, writing
from ..base.machine import device_of
from ..errors import ModelError
from ..evaluation.calibration import Calibration
from ..memory import storage
from ..memory.memory import Memory
from .core import Core, one_line
from .manifest import (
    FORMAT,
    FORMAT_VERSION,
    checking,
    is_model,
    read_manifest,
    remove_others,
    require_writable,
    save_manifest,
    stamp_of,
)
from .towers import Tower

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds in which loading a folder is tried again while another process changes it."""


def save(core: Core, path: str | Path | None, records: dict[str, str] | None) -> None:
    """`Model.save`."""
    if path is None:
        _save_changes(core)
        return
    path = Path(path).expanduser()
    if core.folder is not None and path.resolve() == core.folder and is_model(path):
        with folder_lock(core.folder):
            _own_manifest(core, core.folder)
    require_writable(path)
    memory = core.memory.compacted()
    with _files_as_before(memory), atomic_folder(path) as folder:
        for segment in memory.segments:
            segment.file = segment.graph_file = None
        memory.linear_file = None
        first, *more = [tower.save(folder, number) for number, tower in enumerate(core.towers, 1)]
        (folder / "memory").mkdir()
        entry = storage.write(memory, folder / "memory", 1)
        files = {f.relative_to(folder).as_posix(): stamp_of(f) for f in sorted(folder.rglob("*")) if f.is_file()}
        for name, text in (records or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "labelspace_version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": 1,
            "dimensions": core.towers[0].encoder.dim,
            **first,
            **({"joined": more} if more else {}),
            **_described(core, entry),
            **_calibration_of(core),
            "files": files,
        }
        save_manifest(folder / "manifest.json", manifest)
    core.memory, core.folder, core.revision = memory, path.resolve(), 1


def _described(core: Core, entry: dict[str, Any]) -> dict[str, Any]:
    """The part of the manifest that changes with the model."""
    return {
        "labels": len(core.labels),
        "documents": core.memory.n_documents,
        "memory": entry,
        **({"shares": [tower.share for tower in core.towers]} if len(core.towers) > 1 else {}),
        "info": core.info,
        "history": core.history,
    }


def _save_changes(core: Core) -> None:
    """Save new files, then the manifest that names them, then remove files that it no longer names."""
    if core.folder is None:
        raise ModelError("the model was not opened from a folder; name one to save it to")
    place = core.folder / "memory"
    with folder_lock(core.folder):
        manifest = _own_manifest(core, core.folder)
        for keys in (core.memory.label_keys, core.memory.document_keys):
            keys.compact()
        core.memory.renumber()
        old = manifest["files"]
        try:
            with _files_as_before(core.memory), writing(core.folder):
                entry = storage.write(core.memory, place, core.revision + 1)
                files = {name: stamp for name, stamp in old.items() if not name.startswith("memory/")}
                for name in storage.files(entry):
                    known = old.get(f"memory/{name}")
                    if known is None:
                        finish(place / name)
                    files[f"memory/{name}"] = known or stamp_of(place / name)
                sync(place)
                manifest.update(_described(core, entry), revision=core.revision + 1, files=files)
                _replace_manifest(core, core.folder / "manifest.json", manifest)
        except BaseException:
            with contextlib.suppress(ModelError):
                if read_manifest(core.folder)["revision"] == core.revision:
                    remove_others(place, old)
            raise
        core.revision += 1
        remove_others(place, files)


def save_calibration(core: Core, path: str | Path) -> None:
    """`Model.save_calibration`."""
    file = Path(path).expanduser() / "manifest.json"
    manifest = read_manifest(file.parent)
    there = {name: manifest["memory"].get(name) for name in core.memory.settings}
    if manifest["labels"] != len(core.labels) or one_line(there) != one_line(core.memory.settings):
        raise ModelError(f"{file.parent} holds another model than the one that was calibrated; save the model there")
    _replace_manifest(core, file, manifest)


def _own_manifest(core: Core, folder: Path) -> dict[str, Any]:
    """The manifest of the folder that a model was loaded from, refused where another has changed it since."""
    manifest = read_manifest(folder)
    if manifest["revision"] != core.revision:
        raise ModelError(f"{folder} was changed by another since it was opened; open it again")
    return manifest


@contextlib.contextmanager
def _files_as_before(memory: Memory) -> Iterator[None]:
    """When saving fails, the parts of a memory lie again in the files in which they lay before."""
    before = [(segment, segment.file, segment.graph_file) for segment in memory.segments]
    linear_file = memory.linear_file
    try:
        yield
    except BaseException:
        for segment, *names in before:
            segment.file, segment.graph_file = names
        memory.linear_file = linear_file
        raise


def _replace_manifest(core: Core, file: Path, manifest: dict[str, Any]) -> None:
    """Replace a manifest by a rename, with the calibration that the model has now."""
    manifest.pop("calibration", None)
    with atomic_file(file) as part:
        save_manifest(part, manifest | _calibration_of(core))


def _calibration_of(core: Core) -> dict[str, Any]:
    calibration = core.current_calibration()
    return {} if calibration is None else {"calibration": calibration.as_dict()}


def load(path: str | Path, device: str, precision: Literal["auto", "float32", "bf16"], graphs: bool) -> Core:
    """`Model.load`."""
    folder = Path(path).expanduser()
    began = time.monotonic()
    manifest = read_manifest(folder)
    while True:
        try:
            core = _load(folder, copy.deepcopy(manifest), device, graphs)
            core.set_precision(precision)
            return core
        except ModelError as error:
            again = read_manifest(folder)
            if again == manifest:
                raise
            if time.monotonic() - began > PATIENCE:
                raise ModelError(
                    f"{folder} could not be opened in {PATIENCE:g} seconds, since another process changes it all "
                    "the time; try again when that is done"
                ) from error
            manifest = again


def _load(folder: Path, manifest: dict[str, Any], device: str, graphs: bool) -> Core:
    """The model that a manifest describes; the manifest is changed."""
    own_graphs = {f"memory/{graph['file']}" for graph in manifest["memory"].get("graphs", {}).values()}
    if not graphs:
        manifest["memory"].pop("graphs", None)
        for name in own_graphs:
            del manifest["files"][name]
    check = checking(folder, manifest["files"], own_graphs)
    place = str(device_of(device))
    mutable = [name for name in manifest["files"] if name.startswith("memory/")]
    check(mutable)  # these first, and loaded at once: other processes may replace them at any time
    memory = storage.open_memory(folder / "memory", manifest["memory"], place)
    check(name for name in manifest["files"] if name not in mutable)
    if memory.n_labels != manifest["labels"]:
        raise ModelError(f"{folder} is damaged: it has {memory.n_labels} labels, its manifest {manifest['labels']}")
    try:
        entries = zip([manifest, *manifest.get("joined", [])], manifest.get("shares", [1.0]), strict=True)
        towers = [Tower.load(folder, n, entry, place, float(share)) for n, (entry, share) in enumerate(entries, 1)]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'manifest.json'} is damaged: it does not say what encoders it has") from error
    calibration = None
    if "calibration" in manifest:
        try:
            calibration = Calibration.from_dict(manifest["calibration"])
        except ModelError as error:  # all else can be used, and the calibration be made again
            logger.warning("%s: %s", folder / "manifest.json", error)
    try:
        core = Core(towers, memory, memory.labels, manifest["info"], calibration)
    except ValueError as error:
        raise ModelError(f"{folder}: the parts of the model do not fit together: {error}") from error
    core.folder, core.revision, core.history = folder.resolve(), manifest["revision"], manifest["history"]
    return core
