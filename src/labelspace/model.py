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
import scipy.sparse as sp
import torch

from . import __version__, calibrate, metrics
from .calibrate import Calibration
from .data import require_texts
from .data.tokens import LongDocuments
from .encoders import Encoder, build_static, open_encoder
from .encoders.transformer import TransformerEncoder
from .errors import DataError, ModelError, SettingsError
from .files import atomic_file, atomic_folder
from .heads import RANKINGS, TwoHeads
from .machine import cache_folder, require_memory
from .memory import Memory
from .trainer import device_of
from .types import Corpus, Dataset, Labels, Predictions

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
        calibration: from scores to probabilities.
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
        calibration: Calibration | None = None,
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
        self._calibration = calibration
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

    def rankings(
        self, texts: Sequence[str] | str, k: int = 5, batch_size: int = 256, *, probabilities: bool = False
    ) -> dict[str, Predictions]:
        """The best k labels of each text by each ranking of the model, the model's own first.

        A model with two heads ranks by both together (``combined``), by its dual encoder (``encoder``) and by its
        classifier; any other has one ranking, ``combined``.

        Args:
            texts: n texts; a single string counts as one.
            k: labels a text.
            batch_size: texts encoded at a time.
            probabilities: whether the predictions of the first ranking hold probabilities, see `calibrate`.

        Raises:
            DataError: something that is not a text, or k below 1.
            ModelError: probabilities of a model that is not calibrated.
            ResourceError: n times k predictions would not fit into memory.
        """
        found = {"combined": self.predict(texts, k, batch_size=batch_size, probabilities=probabilities)}
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
        k: int | None = None,
        labels: Iterable[str | int] | None = None,
        batch_size: int = 256,
        *,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> Predictions:
        """The best k labels of each text.

        Args:
            texts: n texts; a single string counts as one.
            k: labels a text, at most; None is 5, or with a threshold as many as pass it.
            labels: ids, names or numbers of the labels to choose from; None for all.
            batch_size: texts encoded at a time.
            threshold: only labels whose probability is at least this, from 0 to 1; a text may get none. The predictions
                hold the probabilities too.
            probabilities: whether the predictions hold probabilities, see `calibrate`.

        Returns:
            Predictions (n, k) with label ids and texts; where fewer than k labels can be given, -1 pads.

        Raises:
            DataError: something that is not a text, k below 1, a threshold that is no probability, or an unknown label.
            ModelError: probabilities of a model that is not calibrated.
            ResourceError: n times k predictions would not fit into memory.
        """
        checked = _checked_texts(texts, "text")
        if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
            raise DataError(f"k, the number of labels a text, must be a whole number of at least 1, got {k!r}")
        if threshold is not None or probabilities:
            return self._predict_probable(checked, k, labels, batch_size, threshold)
        k = 5 if k is None else int(k)
        _require_room(len(checked), k)
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

    def _predict_probable(
        self,
        texts: list[str],
        k: int | None,
        labels: Iterable[str | int] | None,
        batch_size: int,
        threshold: float | None,
    ) -> Predictions:
        """`predict` with probabilities, and those below a threshold left out."""
        calibration = self.calibration
        if calibration is None:
            raise ModelError(
                "this model is not calibrated, so its scores are no probabilities and no threshold holds for them; "
                "calibrate it on held-out documents: labelspace calibrate MODEL DATA, or Model.calibrate"
            )
        if threshold is not None and not (isinstance(threshold, int | float | np.number) and 0 <= threshold <= 1):
            raise DataError(f"threshold must be a probability from 0 to 1, got {threshold!r}")
        if k is None and threshold is None:
            k = 5
        chosen = None if labels is None else self.label_numbers(labels)
        parts = []
        for start in range(0, len(texts), 4096):
            part = texts[start : start + 4096]
            queries = torch.from_numpy(self.encode(part, batch_size)).to(self.memory.keys.device)
            depth = calibrate.DEPTH if k is None else int(k)
            while True:
                _require_room(len(texts), depth)
                found, scores, probable = self._probable(queries, min(depth, len(self.labels)), chosen, calibration)
                passed = (found >= 0) & (probable >= (threshold or 0))
                if k is not None or depth >= len(self.labels) or not passed[:, -1].any():
                    break
                depth *= 4  # more labels pass than were looked at
            parts.append(
                (np.where(passed, found, -1), np.where(passed, scores, -np.inf), np.where(passed, probable, 0))
            )
        widest = max((int((found >= 0).sum(axis=1).max()) for found, _, _ in parts), default=0)
        shape = (len(texts), max(1, widest) if k is None else int(k))
        indices = np.full(shape, -1, dtype=np.int64)
        whole: list[npt.NDArray[Any]] = [indices, np.full(shape, -np.inf, np.float32), np.zeros(shape, np.float32)]
        for number, arrays in enumerate(parts):
            rows = slice(4096 * number, 4096 * number + len(arrays[0]))
            for array, into in zip(arrays, whole, strict=True):
                into[rows, : array.shape[1]] = array[:, : shape[1]]
        return Predictions(indices, whole[1], self.labels.ids, self.labels.texts, whole[2])

    def _probable(
        self, queries: torch.Tensor, depth: int, chosen: npt.NDArray[np.int64] | None, calibration: Calibration
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The best labels of queries, their scores and probabilities, (n, depth) each."""
        around = min(calibrate.DEPTH, len(self.labels))
        if chosen is None:
            found, scores = self.memory.predict(queries, max(depth, around))
            ranking = scores
        else:  # what the document is like is judged by all labels, as when the calibration was fitted
            found, scores = self.memory.predict(queries, depth, chosen)
            ranking = self.memory.predict(queries, around)[1] if calibration.looks_around else scores
        found, scores = found[:, :depth], scores[:, :depth]
        probable = np.zeros(scores.shape, dtype=np.float32)
        for rows in metrics.row_blocks(*scores.shape):
            probable[rows] = calibration(scores[rows], ranking[rows])
        return found, scores, probable

    @property
    def calibration(self) -> Calibration | None:
        """From scores to probabilities; None before `calibrate`, and after the memory was made to score otherwise."""
        made = self._calibration
        if made is not None and _plain(made.scoring) != _plain(self.memory.settings):
            logger.warning(
                "the calibration is dropped: it was fitted on scores of %s, and the memory now has %s; calibrate again",
                _plain(made.scoring),
                _plain(self.memory.settings),
            )
            self._calibration = made = None
        return made

    def calibrate(
        self,
        data: Dataset,
        split: str = "valid",
        *,
        predictions: Predictions | None = None,
        batch_size: int = 256,
    ) -> Calibration:
        """Fit probabilities to the scores, on documents that the model was not fitted on, and keep them with the model.

        Args:
            data: its labels are matched by id. It should be read with the seed of the training run, so that the same
                documents are held out.
            split: ``valid``, ``train`` or ``test``. Documents of the training make probabilities that are too high; on
                documents of the test nothing can be measured afterwards.
            predictions: for those documents, in the label numbers of this model and at least 20 deep, where its memory
                holds the documents themselves; None predicts them.
            batch_size: texts encoded at a time.

        Returns:
            The calibration; ``fitted`` tells how well it did on held-out folds.

        Raises:
            DataError: no texts, no label in common, or too few documents to calibrate on.
            SettingsError: an unknown split.
        """
        if split not in ("valid", "train", "test"):
            raise SettingsError(f"unknown split {split!r}; choose one of valid, train, test")
        corpus: Corpus | None = getattr(data, split)
        if corpus is None or not len(corpus):
            raise DataError(f"{data.name} has no {split} documents to calibrate on")
        require_texts(data, split)
        self._warn_of_split(data, split)
        truth = metrics.binary_truth(corpus.targets)
        pairs = np.zeros((0, 2), dtype=np.int64) if corpus.filter_pairs is None else corpus.filter_pairs
        marks = sp.coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=truth.shape)
        if list(data.labels.ids) != list(self.labels.ids):
            number = {name: i for i, name in enumerate(self.labels.ids)}
            place = np.array([number.get(name, -1) for name in data.labels.ids], dtype=np.int64)
            if (place < 0).all():
                raise DataError(f"{data.name} and the model have no label id in common")
            here, barred = (_renumbered(matrix, place, len(self.labels)) for matrix in (truth, marks))
        else:
            here, barred = truth, metrics.binary_truth(marks)
        if predictions is None:
            predictions = self.predict(corpus.texts, min(calibrate.DEPTH, len(self.labels)), batch_size=batch_size)
        elif len(predictions) != len(corpus):
            raise DataError(f"there are {len(predictions)} rows of predictions but {len(corpus)} documents")
        indices, scores = predictions.indices, predictions.scores
        made = calibrate.fit(
            np.where(indices >= 0, scores, -np.inf),
            metrics.membership(indices, here),
            ~metrics.membership(indices, barred),
            int(truth.nnz),
            scoring=self.memory.settings,
        )
        made.fitted.update(data=data.name, split=split)
        self._calibration = made
        best = made.fitted["best_f1"]
        logger.info(
            "calibrated on %d %s documents: %s; on held-out folds log-loss %.4f, calibration error %.3f, best F1 %.3f "
            "at threshold %.2f",
            *(made.fitted["documents"], split, made.name, min(made.fitted["log_loss"].values())),
            *(made.fitted["ece"], best["f1"], best["threshold"]),
        )
        return made

    def _warn_of_split(self, data: Dataset, split: str) -> None:
        recorded = self.info.get("data", {})
        seed = recorded.get("options", {}).get("seed")
        if split == "train":
            logger.warning("calibrating on training documents, which the model knows: probabilities will be too high")
        elif split == "test":
            logger.warning("calibrating on test documents: what is measured on them afterwards is not held out")
        elif (
            len(data.valid_rows) and recorded.get("name") == data.name and seed not in (None, data.options.get("seed"))
        ):
            logger.warning(
                "the model's run held out other documents (seed %s, here %s), so it was trained on some of these: "
                "probabilities will be too high; read the data with seed=%s",
                *(seed, data.options.get("seed"), seed),
            )

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
                **({} if self.calibration is None else {"calibration": self.calibration.as_dict()}),
                "files": {f.relative_to(folder).as_posix(): _stamp(f) for f in parts},
            }
            (folder / "manifest.json").write_text(
                json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )

    def save_calibration(self, path: str | Path) -> None:
        """Write the calibration into the folder of this model, whose other files stay as they are.

        Args:
            path: the folder.

        Raises:
            ModelError: not a model folder, or one of a model with other labels or another memory.
        """
        file = Path(path).expanduser() / "manifest.json"
        manifest = read_manifest(file.parent)
        there = {name: manifest["memory"].get(name) for name in self.memory.settings}
        if manifest["labels"] != len(self.labels) or _plain(there) != _plain(self.memory.settings):
            raise ModelError(
                f"{file.parent} holds another model than the one that was calibrated; save the model there"
            )
        manifest.pop("calibration", None)
        if self.calibration is not None:
            manifest["calibration"] = self.calibration.as_dict()
        with atomic_file(file) as part:
            part.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

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
        calibration = None
        if "calibration" in manifest:
            try:
                calibration = Calibration.from_dict(manifest["calibration"])
            except ModelError as error:  # all else can be used, and the calibration be made again
                logger.warning("%s: %s", folder / "manifest.json", error)
        try:
            return cls(encoder, memory, labels, manifest["info"], calibration, heads)
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


def _plain(settings: dict[str, Any]) -> str:
    """Settings in one line, equal for what was read from JSON and what was not."""
    return json.dumps(settings, sort_keys=True)


def _renumbered(pairs: sp.sparray, place: npt.NDArray[np.int64], n_labels: int) -> sp.csr_array:
    """(document, label) pairs in other label numbers; those of labels without one are left out."""
    found = sp.coo_array(pairs)
    labels = place[found.col]
    kept = labels >= 0
    ones = np.ones(int(kept.sum()), dtype=bool)
    return metrics.binary_truth(sp.coo_array((ones, (found.row[kept], labels[kept])), shape=(pairs.shape[0], n_labels)))


def _require_room(texts: int, k: int) -> None:
    require_memory(24 * texts * k, f"{texts} x {k} predictions", "lower k or give fewer texts at a time")


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
