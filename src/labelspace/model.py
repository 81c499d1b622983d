"""A trained model: a query encoder and a memory of keys that vote for labels. All that is ever served."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from . import __version__
from .data.tokens import LongDocuments
from .encoders import Encoder, build_static, open_encoder
from .encoders.transformer import TransformerEncoder
from .errors import DataError, ModelError
from .files import atomic_folder
from .heads import RANKINGS, TwoHeads
from .machine import cache_folder, require_memory
from .memory import Memory
from .trainer import device_of
from .types import Labels, Predictions

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "labelspace model", 1
PARTS = ("labels.jsonl", "memory/keys.safetensors", "memory/votes.npz", "encoder/modules.json")
"""Files without which a folder is no model."""
HEADS = "head.safetensors"
"""Weights between the encoder and the memory, of models that have such."""
HASH_UP_TO = 1 << 29
"""Files up to this size are compared by content when a model is opened, larger ones by size."""


class Model:
    """Text -> query vectors -> memory -> predictions.

    Args:
        encoder: makes query vectors.
        memory: keys made by the same encoder, and their votes.
        labels: the L labels that are voted for.
        info: what made the model: recipe, config, data, metrics; all of it JSON.
        heads: what stands between the encoder and the memory; None where the encoder's vectors are the queries.

    Raises:
        ValueError: encoder, memory and labels that do not fit together.
    """

    def __init__(
        self,
        encoder: Encoder,
        memory: Memory,
        labels: Labels,
        info: dict[str, Any] | None = None,
        heads: TwoHeads | None = None,
    ):
        if memory.n_labels != len(labels):
            raise ValueError(f"the memory votes for {memory.n_labels} labels, but {len(labels)} are named")
        dim = encoder.dim if heads is None else sum(heads.widths)
        if memory.keys.shape[1] != dim:
            raise ValueError(f"keys have {memory.keys.shape[1]} dimensions, the encoder {dim}")
        self.encoder = encoder.eval()
        self.heads = None if heads is None else heads.eval()
        self.encoder.precision = "float32"
        self.memory = memory
        self.labels = labels
        self.info = info or {}
        self._numbers: dict[str, list[int]] | None = None

    @classmethod
    def from_encoder(
        cls,
        encoder: str | os.PathLike[str] | Encoder,
        labels: Sequence[str] | Labels,
        *,
        device: str = "auto",
        batch_size: int = 256,
        long_documents: LongDocuments | None = None,
        max_chunks: int | None = None,
    ) -> Model:
        """A model without training: label texts as keys of an encoder that already understands text.

        Args:
            encoder: a name or folder as for training, or an opened encoder; ``static`` is made from minilm.
            labels: label names, or labels with ids.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            batch_size: texts encoded at a time.
            long_documents: ``head``, ``head+tail`` or ``chunks``; None as the encoder has it.
            max_chunks: chunks of a text, with ``chunks``; None as the encoder has it.

        Raises:
            DataError: no labels, or a name that is given twice.
            ModelError: the encoder cannot be opened.
            MissingExtraError: ``minilm`` without its package.
            SettingsError: an unknown way to cut.
        """
        if not isinstance(labels, Labels):
            names = _checked_texts(labels, "label")
            labels = Labels(ids=names, texts=names)
        if not len(labels):
            raise DataError("a model needs at least one label, got none")
        if len(set(labels.ids)) != len(labels):
            seen: set[str] = set()
            twice = next(name for name in labels.ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise DataError(f"the label {twice!r} is given twice; label ids must be distinct")
        place = device_of(device)
        if isinstance(encoder, str | os.PathLike):
            name = encoder = os.fspath(encoder)
            if encoder == "static":
                base = open_encoder("minilm", device=str(place))
                assert isinstance(base, TransformerEncoder)
                encoder = build_static(base, [], labels.texts, cache=cache_folder())
            else:
                encoder = open_encoder(encoder, device=str(place))
        else:
            name = type(encoder).__name__
        encoder = encoder.to(place)
        encoder.long_documents = encoder.long_documents if long_documents is None else long_documents
        encoder.max_chunks = encoder.max_chunks if max_chunks is None else max_chunks
        keys = encoder.encode(encoder.tokenize(labels.texts), batch_size)
        info = {"recipe": "none", "config": {"encoder": name}, "data": {"labels": len(labels)}, "metrics": {}}
        return cls(encoder, Memory.of_labels(torch.from_numpy(keys).to(place)), labels, info)

    def encode(self, texts: Sequence[str] | str, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Query vectors of texts.

        Args:
            texts: n texts; a single string counts as one.
            batch_size: texts encoded at a time.

        Returns:
            (n, D) float32.

        Raises:
            DataError: something that is not a text, by its place.
        """
        checked = _checked_texts(texts, "text")
        vectors = self.encoder.encode(self.encoder.tokenize(checked), batch_size)
        if self.heads is None:
            return vectors
        return self.heads.queries(torch.from_numpy(vectors).to(self.encoder.device)).cpu().numpy()

    def rankings(self, texts: Sequence[str] | str, k: int = 5, batch_size: int = 256) -> dict[str, Predictions]:
        """The best k labels of each text by each ranking of the model, the model's own first.

        A model with two heads ranks by both together (``combined``), by its dual encoder (``encoder``) and by its
        classifier; any other has one ranking, ``combined``.

        Args:
            texts: n texts; a single string counts as one.
            k: labels a text.
            batch_size: texts encoded at a time.

        Raises:
            DataError: something that is not a text, or k below 1.
            ResourceError: n times k predictions would not fit into memory.
        """
        found = {"combined": self.predict(texts, k, batch_size=batch_size)}
        if self.heads is None:
            return found
        queries = torch.from_numpy(self.encode(texts, batch_size)).to(self.memory.keys.device)
        depth = min(k, len(self.labels))
        for ranking in RANKINGS[1:]:
            part = self.heads.columns(ranking)
            indices, scores = Memory(self.memory.keys[:, part], self.memory.votes).predict(queries[:, part], depth)
            found[ranking] = Predictions(indices, scores, self.labels.ids, self.labels.texts)
        return found

    def predict(
        self,
        texts: Sequence[str] | str,
        k: int = 5,
        labels: Iterable[str | int] | None = None,
        batch_size: int = 256,
    ) -> Predictions:
        """The best k labels of each text.

        Args:
            texts: n texts; a single string counts as one.
            k: labels a text.
            labels: ids, names or numbers of the labels to choose from; None for all.
            batch_size: texts encoded at a time.

        Returns:
            Predictions (n, k) with label ids and texts; where fewer than k labels can be given, -1 pads.

        Raises:
            DataError: something that is not a text, k below 1, or an unknown label.
            ResourceError: n times k predictions would not fit into memory.
        """
        checked = _checked_texts(texts, "text")
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise DataError(f"k, the number of labels a text, must be a whole number of at least 1, got {k!r}")
        k = int(k)
        require_memory(
            24 * len(checked) * k, f"{len(checked)} x {k} predictions", "lower k or give fewer texts at a time"
        )
        chosen = None if labels is None else self.label_numbers(labels)
        indices = np.full((len(checked), k), -1, dtype=np.int64)
        scores = np.full((len(checked), k), -np.inf, dtype=np.float32)
        depth = min(k, len(self.labels))
        block = 4096
        for start in range(0, len(checked), block):
            part = slice(start, min(start + block, len(checked)))
            queries = torch.from_numpy(self.encode(checked[part], batch_size)).to(self.memory.keys.device)
            indices[part, :depth], scores[part, :depth] = self.memory.predict(queries, depth, chosen)
        return Predictions(indices, scores, self.labels.ids, self.labels.texts)

    def label_numbers(self, labels: Iterable[str | int]) -> npt.NDArray[np.int64]:
        """Numbers of labels given by id, by text or by number.

        Args:
            labels: ids first, then texts (every label of that text), or whole numbers.

        Raises:
            DataError: no labels, or an unknown one; the nearest known ones are named.
        """
        try:
            labels = [labels] if isinstance(labels, str) else list(labels)
        except TypeError as error:
            raise DataError(f"a list of labels was expected, got {type(labels).__name__}") from error
        if not labels:
            raise DataError("no label to choose from was given; pass labels=None to choose from all")
        if self._numbers is None:
            self._numbers = {}
            for i, text in enumerate(self.labels.texts):
                self._numbers.setdefault(text, []).append(i)
            for i, name in enumerate(self.labels.ids):
                self._numbers[name] = [i]
        numbers: set[int] = set()
        for label in labels:
            if isinstance(label, int | np.integer) and not isinstance(label, bool):
                if not 0 <= label < len(self.labels):
                    raise DataError(f"there is no label number {label}; the model has {len(self.labels)} labels")
                numbers.add(int(label))
            elif isinstance(label, str) and label in self._numbers:
                numbers.update(self._numbers[label])
            else:
                known = list(self._numbers)[:200_000]
                near = difflib.get_close_matches(str(label), known, n=3)
                hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
                raise DataError(f"the model has no label {label!r}{hint}")
        return np.array(sorted(numbers), dtype=np.int64)

    def save(self, path: str | Path, records: dict[str, str] | None = None) -> None:
        """Write the model's folder: whole or not at all; an older model at that place is replaced.

        Args:
            path: the folder.
            records: text files of the run to put beside the model, by name; they may be deleted later.

        Raises:
            ModelError: the folder holds something that is not a model.
        """
        path = Path(path).expanduser()
        require_writable(path)
        with atomic_folder(path) as folder:
            (folder / "encoder").mkdir()
            self.encoder.save(folder / "encoder")
            heads = None if self.heads is None else self.heads.save(folder / HEADS)
            (folder / "memory").mkdir()
            memory = self.memory.save(folder / "memory")
            with (folder / "labels.jsonl").open("w", encoding="utf-8") as file:
                for name, text in zip(self.labels.ids, self.labels.texts, strict=True):
                    file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
            parts = [f for f in sorted(folder.rglob("*")) if f.is_file()]
            for name, text in (records or {}).items():
                (folder / name).write_text(text, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "labelspace_version": __version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "labels": len(self.labels),
                "dimensions": self.encoder.dim,
                "encoder": {
                    "long_documents": self.encoder.long_documents,
                    "max_chunks": self.encoder.max_chunks,
                },
                **({} if heads is None else {"heads": heads}),
                "memory": memory,
                "info": self.info,
                "files": {f.relative_to(folder).as_posix(): _stamp(f) for f in parts},
            }
            (folder / "manifest.json").write_text(
                json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Model:
        """Open a model's folder.

        Args:
            path: the folder.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            ModelError: not a model folder, one of a later version, or a file that is missing or damaged, by name.
        """
        folder = Path(path).expanduser()
        manifest = read_manifest(folder)
        for name, stamp in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                raise ModelError(f"{file} is missing; the model folder is incomplete, copy or train it again")
            if _stamp(file, known=stamp) != stamp:
                raise ModelError(
                    f"{file} is damaged: it is not the file that was saved "
                    f"({file.stat().st_size} bytes, {stamp['bytes']} expected); copy or train the model again"
                )
        place = device_of(device)
        labels = _read_labels(folder / "labels.jsonl", int(manifest["labels"]))
        encoder = open_encoder(str(folder / "encoder"), device=str(place))
        heads = TwoHeads.load(folder / HEADS, manifest["heads"], str(place)) if "heads" in manifest else None
        memory = Memory.load(folder / "memory", manifest["memory"], str(place))
        try:
            return cls(encoder, memory, labels, manifest["info"], heads)
        except ValueError as error:
            raise ModelError(f"{folder}: the parts of the model do not fit together: {error}") from error


def require_writable(path: str | Path) -> None:
    """Refuse to replace anything but a labelspace model or an empty folder.

    Args:
        path: where a model shall be written.

    Raises:
        ModelError: something else is there.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and any(folder.iterdir()) and not _is_model(folder):
        raise ModelError(f"{folder} holds something that is not a labelspace model; choose another folder to write to")
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file; choose a folder to write the model to")
    parent = next(p for p in folder.resolve().parents if p.exists())
    if not parent.is_dir():
        raise ModelError(f"{folder} cannot be made: {parent} is a file; choose another folder to write to")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ModelError(f"{folder} cannot be made: {parent} cannot be written to; choose another folder to write to")


def _is_model(folder: Path) -> bool:
    """Whether a folder's manifest says that it is a labelspace model, of whatever version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a model's folder, without opening the model.

    Args:
        folder: the folder.

    Raises:
        ModelError: not a model folder, a damaged manifest, or one of a later version.
    """
    file = folder / "manifest.json"
    if not folder.exists():
        raise ModelError(f"there is no model at {folder}: no such folder")
    if not file.is_file():
        raise ModelError(f"{folder} is not a labelspace model: it has no manifest.json")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "format_version" not in manifest:
        raise ModelError(f"{folder} is not a labelspace model: its manifest.json is of another kind")
    version = manifest["format_version"]
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{folder} has model format {version}, written by labelspace {manifest.get('labelspace_version', '?')}; "
            f"this is labelspace {__version__}, which reads format {FORMAT_VERSION}; install the other version"
        )
    kinds = {"files": dict, "memory": dict, "info": dict, "dimensions": int, "labels": int}
    # the first folders of this version have no "encoder", and only models with heads have those
    kinds.update({name: dict for name in ("encoder", "heads") if name in manifest})
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise ModelError(f"{file} is damaged: {', '.join(wrong)} missing or of another type than was written")
    lost = [name for name in (*PARTS, *([HEADS] if "heads" in manifest else [])) if name not in manifest["files"]]
    if lost:
        raise ModelError(f"{file} is damaged: it does not list {', '.join(lost)}")
    return manifest


def _read_labels(file: Path, count: int) -> Labels:
    ids, texts = [], []
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                ids.append(str(row["id"]))
                texts.append(str(row["text"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}, line {len(ids) + 1}: damaged: {error}") from error
    if len(ids) != count:
        raise ModelError(f"{file} is damaged: it has {len(ids)} labels, the manifest {count}")
    return Labels(ids, texts)


def _stamp(file: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Size and, up to a limit, SHA-256 of a file; the content of a file of another size is not read."""
    size = file.stat().st_size
    if size > HASH_UP_TO or (known is not None and known.get("bytes") != size):
        return {"bytes": size}
    with file.open("rb") as stream:
        return {"bytes": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _checked_texts(texts: Sequence[str] | str, kind: str) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    try:
        checked = list(texts)
    except TypeError as error:
        raise DataError(f"a list of {kind}s was expected, got {type(texts).__name__}") from error
    for i, text in enumerate(checked):
        if not isinstance(text, str):
            raise DataError(f"{kind} number {i} is {text!r} ({type(text).__name__}), not a string")
    return checked
