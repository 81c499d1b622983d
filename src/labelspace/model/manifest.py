"""The manifest of a model's folder: read and checked, written, and what may be written where."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ModelError
from ..memory.storage import files
from .towers import names as tower_files

FORMAT, FORMAT_VERSION = "labelspace model", 3
HASH_UP_TO = 1 << 28
"""Bytes of files that are compared by content when a model is loaded, small files first; the others by size."""
NEEDED_ENTRIES = {
    "files": dict, "memory": dict, "info": dict, "dimensions": int, "labels": int, "history": list, "revision": int,
    "documents": int,
}  # fmt: skip
OTHER_ENTRIES = {"encoder": dict, "heads": dict, "joined": list, "shares": list}
"""Types of entries; without "encoder" texts are cut at their head, and only models with heads have those."""


def require_writable(path: str | Path) -> None:
    """Refuse to save a model in place of anything but a model or an empty folder that can be written to."""
    folder = Path(path).expanduser()
    if folder.is_dir() and any(folder.iterdir()) and not is_model(folder):
        raise ModelError(f"{folder} holds something that is not a labelspace model; choose another folder to write to")
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file; choose a folder to write the model to")
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise ModelError(f"{folder} cannot be written to; make it writable, or choose another folder to write to")
    inside = sorted(file.parent for file in folder.glob("*/manifest.json") if is_model(file.parent))
    if inside:
        raise ModelError(f"{folder} holds another model, {inside[0]}; move that first, or choose another folder")
    parent = next(p for p in folder.resolve().parents if p.exists())
    if not parent.is_dir():
        raise ModelError(f"{folder} cannot be made: {parent} is a file; choose another folder to write to")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ModelError(f"{folder} cannot be made: {parent} cannot be written to; choose another folder to write to")


def require_free(path: str | Path, overwrite: bool = False) -> None:
    """`require_writable`, which refuses a model too where none may be overwritten."""
    require_writable(path)
    if not overwrite and is_model(Path(path).expanduser()):
        raise ModelError(f"{path} holds a model already; add --overwrite to replace it, or choose another folder")


def require_changeable(folder: str | Path, remedy: str = "") -> None:
    """Refuse to change a model's folder that cannot be written to; the error ends with the ``remedy``."""
    place = Path(folder).expanduser()
    read_manifest(place)
    for part in (place, place / "memory"):
        if not os.access(part, os.W_OK | os.X_OK):
            raise ModelError(f"{place} cannot be changed: {part} cannot be written to; make it writable{remedy}")


def is_model(folder: Path) -> bool:
    """Whether a folder's manifest says that it is a labelspace model, of whatever version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a model's folder.

    Raises:
        ModelError: not a model folder, a damaged manifest, or one of another version.
    """
    file = folder / "manifest.json"
    if not folder.exists():
        raise ModelError(f"there is no model at {folder}: no such folder")
    if not file.is_file():
        raise ModelError(f"{folder} is not a labelspace model: it has no manifest.json")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); make it readable") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "format_version" not in manifest:
        raise ModelError(f"{folder} is not a labelspace model: its manifest.json is of another kind")
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{folder} has model format {version}, written by labelspace {manifest.get('labelspace_version', '?')}; "
            f"this is labelspace {__version__}, which reads format {FORMAT_VERSION}; install the other version"
        )
    kinds = NEEDED_ENTRIES | {name: kind for name, kind in OTHER_ENTRIES.items() if name in manifest}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    if "files" not in wrong and not all(
        isinstance(stamp, dict) and isinstance(stamp.get("bytes"), int) for stamp in manifest["files"].values()
    ):
        wrong.append("files")
    if "joined" not in wrong and not all(isinstance(entry, dict) for entry in manifest.get("joined", [])):
        wrong.append("joined")
    if wrong:
        raise ModelError(f"{file} is damaged: {', '.join(wrong)} missing or of another type than was written")
    try:
        own = [f"memory/{name}" for name in files(manifest["memory"])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged: it does not say what the memory consists of") from error
    entries = [manifest, *manifest.get("joined", [])]
    for number, entry in enumerate(entries, 1):
        encoder, heads = tower_files(number)
        own += [f"{encoder}/modules.json", *([heads] if "heads" in entry else [])]
    unlisted = [name for name in own if name not in manifest["files"]]
    if unlisted:
        raise ModelError(f"{file} is damaged: it does not list {', '.join(unlisted)}")
    return manifest


def checking(
    folder: Path, files: Mapping[str, Mapping[str, Any]], graphs: Collection[str]
) -> Callable[[Iterable[str]], None]:
    """A function that refuses files, by name, that are missing or not those of the manifest.

    The smallest are compared by content, the others by size. ``graphs`` are names of files that can be made again.
    """
    small_first = sorted(files.items(), key=lambda item: (item[1]["bytes"], item[0]))
    ends = itertools.accumulate(stamp["bytes"] for _, stamp in small_first)
    stamps = {
        name: dict(stamp) if end <= HASH_UP_TO else {"bytes": stamp["bytes"]}
        for (name, stamp), end in zip(small_first, ends, strict=True)
    }

    def check(names: Iterable[str]) -> None:
        for name in names:
            file, known = folder / name, stamps[name]
            again = f"make it again: labelspace index {folder} --kind hnsw" if name in graphs else ""
            try:
                stamp = stamp_of(file, known=known)
            except OSError as error:
                again = again or "the model folder is incomplete, copy or train it again"
                raise ModelError(f"{file} is missing or cannot be read ({error.strerror}); {again}") from error
            if stamp != known:
                raise ModelError(
                    f"{file} is damaged: it is not the file that was saved ({stamp['bytes']} bytes, "
                    f"{known['bytes']} expected); {again or 'copy or train the model again'}"
                )

    return check


def remove_others(place: Path, files: Iterable[str]) -> None:
    """Remove from the folder of a memory files that its manifest does not name, and what a killed change left."""
    unnamed = [file for file in place.iterdir() if f"memory/{file.name}" not in files]
    for file in (*unnamed, *place.parent.glob(".manifest.writing-*")):
        with contextlib.suppress(OSError):
            file.unlink()


def save_manifest(file: Path, manifest: dict[str, Any]) -> None:
    """Save a manifest in a file that the caller puts in its place."""
    file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def stamp_of(file: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Size and SHA-256 of a file; its content is read only if that says more than the size of ``known``."""
    size = file.stat().st_size
    if known is not None and (known["bytes"] != size or "sha256" not in known) or size > HASH_UP_TO:
        return {"bytes": size}
    with file.open("rb") as stream:
        return {"bytes": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
