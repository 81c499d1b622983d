"""A trained model: a query encoder and a memory of keys that vote for labels. All that is ever served."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import itertools
import json
import logging
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from tqdm import tqdm

from .. import __version__
from ..base.files import atomic_file, atomic_folder, finish, folder_lock, sync, writing
from ..base.machine import require_memory
from ..base.rates import bf16_pays
from ..base.strings import Strings
from ..data.loading import require_texts
from ..data.split import first_words, plain_words
from ..encoders import Encoder, Precision, make_encoder
from ..encoders.tokens import LongDocuments
from ..errors import DataError, ModelError, SettingsError
from ..evaluation import calibration as calibrate
from ..evaluation import metrics
from ..evaluation.calibration import Calibration
from ..evaluation.metrics import label_counts, propensity_constants, weights_of_counts
from ..memory import linear
from ..memory.indexes import require_graph
from ..memory.keys import Keys, Segment, digest
from ..memory.linear import LinearClassifier
from ..memory.memory import GRAPH_FROM, LINEAR, Found, Memory, Voting
from ..memory.tune import (
    DEFAULT_OBJECTIVE,
    DOCUMENTS,
    LEAST_GAIN,
    TOLERANCE,
    Grid,
    Tuned,
    best_shares,
    described,
    parse_objective,
    tune,
    tune_linear,
)
from ..training.label_heads import RANKINGS, TwoHeads
from ..training.loop import device_of
from ..types import Corpus, Dataset, Labels, Predictions, Reason
from .manifest import (
    FORMAT,
    FORMAT_VERSION,
    checking,
    is_model,
    read_manifest,
    remove_others,
    require_writable,
    stamp_of,
    write_manifest,
)
from .towers import Tower

logger = logging.getLogger(__name__)

MIN_TUNING = 20
"""With fewer validation documents than this nothing is tuned."""
PATIENCE = 5.0
"""Seconds in which opening a folder is tried again while another process changes it."""
LATE = 30.0
"""Seconds after the end of tuning by which a linear classifier may begin."""
ENCODE_BLOCK = 16_384
"""Texts encoded between two steps of a progress bar."""
QUERY_BLOCK = 4096
"""Texts encoded and answered at a time."""


class Model:
    """Text -> query vectors -> memory -> predictions.

    Args:
        encoder: makes query vectors.
        memory: keys made by the same encoder, and their votes.
        labels: the L labels that are voted for.
        info: what made the model: recipe, config, data, metrics; all of it JSON.
        calibration: from scores to probabilities.
        heads: what stands between the encoder and the memory; None where the encoder's vectors are the queries.
        more: further towers of a model that was joined from several: their queries and label keys stand beside those
            of the first, which alone makes document keys.
        share: of the first tower in the label keys.

    Attributes:
        towers: all encoders with their heads, the first first.
        precision: in which texts are encoded: ``float32``, or ``bf16``, which is faster where the processor or GPU
            multiplies faster in it; cosines to the float32 vectors are above 0.999. ``auto`` chooses by the device.
            Not saved: a model opens in float32.
        history: changes of labels, documents and voting, the oldest first.
        folder: where the model was opened or saved; None for nowhere yet.

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
        more: Sequence[Tower] = (),
        share: float = 1.0,
    ):
        if memory.n_labels != len(labels):
            raise ValueError(f"the memory votes for {memory.n_labels} labels, but {len(labels)} are named")
        self.towers = (Tower(encoder, heads, share), *more)
        dim, first = sum(tower.dim for tower in self.towers), self.towers[0].document_dim
        if not memory.document_keys.segments:
            memory.document_keys.dim = first
        for kind, keys, own in (("label", memory.label_keys, dim), ("document", memory.document_keys, first)):
            if keys.dim != own:
                raise ValueError(f"{kind} keys have {keys.dim} dimensions, the encoder {own}")
        self.memory = memory
        if not memory.named:
            memory.name(labels)
        self.labels = labels
        self.info = info or {}
        self.history: list[dict[str, Any]] = []
        self.folder: Path | None = None
        self._revision = 0
        self._calibration = calibration
        self._numbers: dict[str, list[int]] | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder, of the first tower."""
        return self.towers[0].encoder

    @property
    def heads(self) -> TwoHeads | None:
        """The heads behind the encoder, of the first tower."""
        return self.towers[0].heads

    @property
    def precision(self) -> Precision:
        """In which texts are encoded, ``float32`` or ``bf16``."""
        return self.encoder.precision

    @precision.setter
    def precision(self, value: Literal["auto", "float32", "bf16"]) -> None:
        if value not in ("auto", "float32", "bf16"):
            raise SettingsError(f"unknown precision {value!r}; choose one of auto, float32, bf16")
        if value == "auto":
            value = "bf16" if bf16_pays(self.encoder.device) else "float32"
        for tower in self.towers:
            tower.encoder.precision, tower.encoder.keeps_weights = value, True

    @classmethod
    def from_encoder(
        cls,
        encoder: str | os.PathLike[str] | Encoder,
        labels: Sequence[str] | Labels | Dataset,
        *,
        device: str = "auto",
        batch_size: int = 256,
        max_tokens: int | None = None,
        long_documents: LongDocuments | None = None,
        max_chunks: int | None = None,
        objective: str = DEFAULT_OBJECTIVE,
        precision: Precision = "float32",
    ) -> Model:
        """A model without training: label texts as keys of an encoder that already understands text.

        With a data set its training documents are keys as well, how keys vote is tuned on its validation documents, and
        the model is calibrated on them, see `tune`. The vectors are those of `train` with the recipe ``raexmc`` and no
        epochs.

        Args:
            encoder: a name or folder as for training, or an opened encoder; ``static`` is made from minilm and the
                texts of the labels, and with a data set of its documents too, those held out for validation aside.
            labels: label names, labels with ids, or a data set.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            batch_size: texts encoded at a time.
            max_tokens: cut texts here; None as an opened encoder has it, and by name as in training: at 256 for
                ``static``, and for a transformer at 128 or what it can take if that is less.
            long_documents: ``head``, ``head+tail`` or ``chunks``; None as the encoder has it.
            max_chunks: chunks of a text, with ``chunks``; None as the encoder has it.
            objective: with a data set, as for `tune`.
            precision: with a data set, of the document keys and of encoding them, as for `tune`.

        Raises:
            DataError: no labels, or a name that is given twice.
            ModelError: the encoder cannot be opened.
            MissingExtraError: ``minilm`` without its package.
            SettingsError: an unknown way to cut, or an unknown objective.
            ResourceError: the document keys would not fit into memory.
        """
        if isinstance(labels, Dataset):
            parse_objective(objective)
            options: dict[str, Any] = {"device": device, "batch_size": batch_size, "max_tokens": max_tokens}
            options |= {"long_documents": long_documents, "max_chunks": max_chunks}
            given = encoder
            if isinstance(encoder, str | os.PathLike) and os.fspath(encoder) == "static":
                texts = labels.train.texts, labels.labels.texts
                cut = {name: options[name] for name in ("max_tokens", "long_documents", "max_chunks")}
                given = make_encoder("static", *texts, rows=labels.fit_rows, **cut, device=str(device_of(device)))
            model = cls.from_encoder(given, labels.labels, **options)
            if given is not encoder:
                model.info["config"]["encoder"] = "static"
            model.info["data"].update(name=labels.name, documents=len(labels.train), options=dict(labels.options))
            model.tune(labels, objective=objective, precision=precision, batch_size=batch_size)
            return model
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
            name = os.fspath(encoder)
            encoder = make_encoder(name, [], labels.texts, max_tokens=max_tokens, device=str(place))
        else:
            name = type(encoder).__name__
        encoder = encoder.to(place)
        encoder.keeps_weights = True
        encoder.max_tokens = encoder.max_tokens if max_tokens is None else max_tokens
        encoder.long_documents = encoder.long_documents if long_documents is None else long_documents
        encoder.max_chunks = encoder.max_chunks if max_chunks is None else max_chunks
        keys = encoder.encode(encoder.tokenize(list(labels.texts)), batch_size)
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
        return _beside([tower.queries(checked, batch_size) for tower in self.towers])

    def rankings(
        self,
        texts: Sequence[str] | str,
        k: int = 5,
        batch_size: int = 256,
        *,
        probabilities: bool = False,
        left_out: npt.NDArray[np.bool_] | None = None,
    ) -> dict[str, Predictions]:
        """The best k labels of each text by each ranking of the model, the model's own first.

        A model with two heads ranks by both together (``combined``), and by the label keys of its dual encoder
        (``encoder``) and of its classifier alone; any other has one ranking, ``combined``.

        Args:
            texts: n texts; a single string counts as one.
            k: labels a text.
            batch_size: texts encoded at a time.
            probabilities: whether the predictions of the first ranking hold probabilities, see `calibrate`.
            left_out: as for `predict`, in the first ranking.

        Raises:
            DataError: something that is not a text, or k below 1.
            ModelError: probabilities of a model that is not calibrated.
            ResourceError: n times k predictions would not fit into memory.
        """
        if self.heads is None or len(self.towers) > 1:
            first = self.predict(texts, k, batch_size=batch_size, probabilities=probabilities, left_out=left_out)
            return {"combined": first}
        checked, heads, keys = _checked_texts(texts, "text"), self.heads, self.memory.keys
        parts = {name: Memory.of_labels(keys[:, heads.columns(name)]) for name in RANKINGS[1:]}
        others: dict[str, list[tuple[npt.NDArray[Any], ...]]] = {name: [] for name in parts}

        def encode(part: slice) -> npt.NDArray[np.float32]:
            vectors = self.encode(checked[part], batch_size)
            queries = torch.from_numpy(vectors).to(keys.device)
            for name, memory in parts.items():
                indices, scores = memory.predict(queries[:, heads.columns(name)], min(k, len(self.labels)))
                others[name].append((indices, scores / np.float32(heads.weight(name))))
            return vectors

        found = {"combined": self._predict(checked, encode, k, probabilities=probabilities, left_out=left_out)}
        none = np.zeros((0, min(k, len(self.labels))))
        for name, blocks in others.items():
            blocks = blocks or [(none.astype(np.int64), none.astype(np.float32))]
            indices, scores = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
            wide = ((0, 0), (0, k - indices.shape[1]))
            indices, scores = np.pad(indices, wide, constant_values=-1), np.pad(scores, wide, constant_values=-np.inf)
            found[name] = Predictions(indices, scores, self.labels.ids, self.labels.texts)
        return found

    def encode_labels(self, texts: Sequence[str] | str, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Keys of labels that are known by their texts alone.

        Args:
            texts: n label texts.
            batch_size: texts encoded at a time.

        Returns:
            (n, D) float32; with heads, the classifier's row is made from the text too.
        """
        checked = _checked_texts(texts, "text")
        return _beside([tower.label_keys(checked, batch_size) for tower in self.towers])

    def encode_documents(self, texts: Sequence[str] | str, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Keys of documents.

        Args:
            texts: n texts.
            batch_size: texts encoded at a time.

        Returns:
            (n, D) float32.
        """
        return self.towers[0].document_keys(_checked_texts(texts, "text"), batch_size)

    def predict(
        self,
        texts: Sequence[str] | str,
        k: int | None = None,
        labels: Iterable[str | int] | None = None,
        batch_size: int = 256,
        *,
        threshold: float | None = None,
        probabilities: bool = False,
        why: bool = False,
        left_out: npt.NDArray[np.bool_] | None = None,
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
            why: whether the predictions hold reasons: for every label the keys that voted for it.
            left_out: (places,) mask of document keys that do not vote, as `held_out` gives it.

        Returns:
            Predictions (n, k) with label ids and texts; where fewer than k labels can be given, -1 pads.

        Raises:
            DataError: something that is not a text, k below 1, a threshold that is no probability, an unknown label, or
                a mask of another length.
            SettingsError: a batch_size below 1.
            ModelError: probabilities of a model that is not calibrated.
            ResourceError: n times k predictions would not fit into memory.
        """
        checked = _checked_texts(texts, "text")
        return self._predict(
            checked, lambda part: self.encode(checked[part], batch_size), k, labels,
            threshold=threshold, probabilities=probabilities, why=why, left_out=left_out,
        )  # fmt: skip

    def _predict(
        self,
        texts: Sequence[str],
        encode: Callable[[slice], npt.NDArray[np.float32]],
        k: int | None,
        labels: Iterable[str | int] | None = None,
        *,
        threshold: float | None = None,
        probabilities: bool = False,
        why: bool = False,
        left_out: npt.NDArray[np.bool_] | None = None,
    ) -> Predictions:
        """`predict` for checked texts, a slice of which is encoded at a time, each once."""
        left_out = self._checked_mask(left_out)
        if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
            raise DataError(f"k, the number of labels a text, must be a whole number of at least 1, got {k!r}")
        if threshold is not None or probabilities:
            return self._predict_probable(texts, encode, k, labels, threshold, why, left_out)
        k, count = 5 if k is None else int(k), len(texts)
        _require_room(count, k)
        chosen = None if labels is None else self.label_numbers(labels)
        indices = np.full((count, k), -1, dtype=np.int64)
        scores = np.full((count, k), -np.inf, dtype=np.float32)
        depth = min(k, len(self.labels))
        reasons: list[list[list[Reason]]] | None = [] if why else None
        for start in range(0, count, QUERY_BLOCK):
            part = slice(start, min(start + QUERY_BLOCK, count))
            queries = torch.from_numpy(encode(part)).to(self.memory.device)
            words = self.memory.features(texts[part])
            indices[part, :depth], scores[part, :depth] = self.memory.predict(queries, depth, chosen, left_out, words)
            if reasons is not None:
                reasons += self.memory.explain(queries, indices[part, :depth], chosen, left_out, words)
        return Predictions(indices, scores, self.labels.ids, self.labels.texts, reasons=reasons)

    def _checked_mask(self, left_out: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
        """A mask of document keys, refused where it is of other keys."""
        if left_out is None:
            return None
        mask, places = np.asarray(left_out), int(self.memory.document_keys.starts[-1])
        if mask.dtype != bool or mask.shape != (places,):
            raise DataError(
                f"left_out must be a mask of {places} True or False, one for each document key, got "
                f"{mask.dtype} of shape {mask.shape}; take that of held_out, anew after every change of the documents"
            )
        return mask

    def with_weight(self, weight: float) -> Model:
        """The same model with another weight of the documents' votes; keys are shared, nothing is copied.

        It is for predictions: it has no calibration, since that holds for the model's own weight alone, and what is
        changed in one of the two may not be seen by the other.

        Args:
            weight: 0 lets the label keys vote alone, 1 the documents.

        Raises:
            DataError: a weight out of bounds, or a model without documents.
        """
        if self.memory.voting.scoring == "similarity":
            raise DataError("this model has no documents that vote, so their votes can have no weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float | np.number) or not 0 <= weight <= 1:
            raise DataError(f"weight, of the documents' votes, must be from 0 to 1, got {weight!r}")
        other = copy.copy(self)
        other.memory = copy.copy(self.memory)
        other.memory.voting = dataclasses.replace(self.memory.voting, weight=float(weight))
        other._calibration = None
        return other

    def _predict_probable(
        self,
        texts: Sequence[str],
        encode: Callable[[slice], npt.NDArray[np.float32]],
        k: int | None,
        labels: Iterable[str | int] | None,
        threshold: float | None,
        why: bool,
        left_out: npt.NDArray[np.bool_] | None,
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
        parts, asked, count = [], [], len(texts)
        for start in range(0, count, QUERY_BLOCK):
            part = slice(start, min(start + QUERY_BLOCK, count))
            queries = torch.from_numpy(encode(part)).to(self.memory.device)
            words = self.memory.features(texts[part])
            asked.append((queries, words))
            depth = calibrate.DEPTH if k is None else int(k)
            while True:
                _require_room(count, depth)
                found, scores, probable = self._probable(
                    queries, min(depth, len(self.labels)), chosen, calibration, left_out, words
                )
                passed = (found >= 0) & (probable >= (threshold or 0))
                if k is not None or depth >= len(self.labels) or not passed[:, -1].any():
                    break
                depth *= 4  # more labels pass than were looked at
            parts.append(
                (np.where(passed, found, -1), np.where(passed, scores, -np.inf), np.where(passed, probable, 0))
            )
        widest = max((int((found >= 0).sum(axis=1).max()) for found, _, _ in parts), default=0)
        shape = (count, max(1, widest) if k is None else int(k))
        indices = np.full(shape, -1, dtype=np.int64)
        whole: list[npt.NDArray[Any]] = [indices, np.full(shape, -np.inf, np.float32), np.zeros(shape, np.float32)]
        for number, arrays in enumerate(parts):
            rows = slice(QUERY_BLOCK * number, QUERY_BLOCK * number + len(arrays[0]))
            for array, into in zip(arrays, whole, strict=True):
                into[rows, : array.shape[1]] = array[:, : shape[1]]
        reasons: list[list[list[Reason]]] | None = [] if why else None
        if reasons is not None:
            for number, (queries, words) in enumerate(asked):
                numbers = indices[QUERY_BLOCK * number : QUERY_BLOCK * number + len(queries)]
                reasons += self.memory.explain(queries, numbers, None, left_out, words)  # all labels took part
        ids, names = self.labels.ids, self.labels.texts
        return Predictions(indices, whole[1], ids, names, probabilities=whole[2], reasons=reasons)

    def _probable(
        self,
        queries: torch.Tensor,
        depth: int,
        chosen: npt.NDArray[np.int64] | None,
        calibration: Calibration,
        left_out: npt.NDArray[np.bool_] | None,
        words: sp.csr_array | None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The best labels of queries, their scores and probabilities, (n, depth) each."""
        around = min(calibrate.DEPTH, len(self.labels))
        if chosen is None:
            found, scores = self.memory.predict(queries, max(depth, around), None, left_out, words)
            ranking = scores
        else:  # what the document is like is judged by all labels, as when the calibration was fitted
            found, scores = self.memory.predict_among(queries, depth, chosen, left_out, words)
            ranking = scores
            if calibration.looks_around:
                ranking = self.memory.predict(queries, around, None, left_out, words)[1]
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
            predictions: for those documents, in the label numbers of this model and at least 20 deep; None predicts
                them, and lets validation documents that the memory holds not vote.
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
        barred = metrics.barred_labels(corpus.filter_pairs, *truth.shape)
        here = truth
        if list(data.labels.ids) != list(self.labels.ids):
            number = {name: i for i, name in enumerate(self.labels.ids)}
            place = np.array([number.get(name, -1) for name in data.labels.ids], dtype=np.int64)
            if (place < 0).all():
                raise DataError(f"{data.name} and the model have no label id in common")
            here, barred = (_renumbered(matrix, place, len(self.labels)) for matrix in (truth, barred))
        if predictions is None:
            left_out = self.held_out(data) if self.memory.n_documents and split == "valid" else None
            depth = min(calibrate.DEPTH, len(self.labels))
            predictions = self.predict(corpus.texts, depth, batch_size=batch_size, left_out=left_out)
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

    def calibrate_if_possible(self, data: Dataset, predictions: Predictions | None = None) -> None:
        """`calibrate` on validation documents, or a line in the log that says why not.

        Args:
            data: as for `calibrate`.
            predictions: as for `calibrate`.
        """
        try:
            self.calibrate(data, predictions=predictions)
        except DataError as error:
            logger.info("the model is not calibrated: %s", error)

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

    # Documents and labels

    def add_documents(
        self,
        texts: Sequence[str],
        labels: Sequence[Iterable[str | int]],
        ids: Sequence[str] | None = None,
        *,
        relevances: Sequence[Sequence[float]] | None = None,
        replace: bool = False,
        batch_size: int = 256,
    ) -> list[str]:
        """Let documents vote for their labels from now on; nothing is trained.

        Args:
            texts: n texts, none empty.
            labels: for each document its labels, by id, text or number; at least one.
            ids: n ids, without blanks around them, line ends or tabs; None makes new ones.
            relevances: for each document a number above 0 and at most 1 for each of its labels; None for 1.
            replace: documents that are there already take the new text and labels; otherwise they are refused.
            batch_size: texts encoded at a time.

        Returns:
            The ids.

        Raises:
            DataError: an unknown label, a document without one, an empty text, an id that no line could hold, one that
                is there already, is given twice, or was that of a document with another text, or a relevance out of
                bounds.
        """
        texts = _checked_texts(texts, "document")
        for what, given in (("labels", labels), ("relevances", relevances)):
            if given is not None and len(given) != len(texts):
                raise DataError(f"there are {len(texts)} documents, but {what} of {len(given)}")
        names = self._new_ids("documents", texts, ids)
        there = self._check_new("documents", names, texts, replace)
        rows = []
        for row, (name, chosen) in enumerate(zip(names, labels, strict=True)):
            wanted = [chosen] if isinstance(chosen, str | int | np.integer) else _listed(chosen, "labels")
            if not wanted:
                raise DataError(f"the document {name!r} has no label, so it could vote for none; leave it out")
            shares = [1.0] * len(wanted) if relevances is None else _listed(relevances[row], "relevances")
            rows.append(self._relevances(name, wanted, shares))
        columns = [number for row in rows for number in row]
        targets = sp.csr_array(
            (
                np.array([value for row in rows for value in row.values()], dtype=np.float32),
                np.array(columns, dtype=np.int64),
                np.cumsum([0, *map(len, rows)]),
            ),
            shape=(len(texts), len(self.labels)),
        )
        segment = self._document_segment(names, texts, targets, "float32", batch_size)
        self.memory.document_keys.remove(there)
        self.memory.document_keys.append(segment)
        if self.memory.voting.scoring == "similarity":
            self.memory.voting = dataclasses.replace(self.memory.voting, scoring="votes")
            if "tuning" not in self.info:
                logger.info("documents vote from now on, by untuned settings; choose better ones with: labelspace tune")
        self._note("add documents", names)
        return names

    def _relevances(self, name: str, labels: Sequence[str | int], shares: Sequence[float]) -> dict[int, float]:
        """Relevance by label number, rising; of a label that is given twice the highest counts."""
        if len(shares) != len(labels):
            raise DataError(f"the document {name!r} has {len(labels)} labels, but relevances of {len(shares)}")
        numbers = self.label_numbers(labels).tolist()
        if all(share == 1 for share in shares):
            return dict.fromkeys(numbers, 1.0)
        found = dict.fromkeys(numbers, 0.0)
        for label, share in zip(labels, shares, strict=True):
            if isinstance(share, bool) or not isinstance(share, int | float | np.number) or not 0 < share <= 1:
                raise DataError(f"the relevance {share!r} of the document {name!r} is not above 0 and at most 1")
            for number in self.label_numbers([label]).tolist():
                found[number] = max(found[number], float(share))
        return found

    def remove_documents(self, ids: Iterable[str]) -> None:
        """Let documents vote no more.

        Args:
            ids: of the documents. They may come back later with the text that they have, but not with another.

        Raises:
            DataError: an unknown id, or one that is given twice.
        """
        found = self._find("documents", ids)
        self._forget("documents", found)
        self._without_documents()

    def _without_documents(self) -> None:
        """Labels are ranked by similarity again when the last document that votes is gone."""
        memory = self.memory
        if memory.n_documents == memory.n_silent and memory.voting.scoring == "votes":
            memory.voting = dataclasses.replace(memory.voting, scoring="similarity")

    def add_labels(self, texts: Sequence[str], ids: Sequence[str] | None = None, *, batch_size: int = 256) -> list[str]:
        """Add labels that are predicted from their texts at once, and from documents when these are added.

        Args:
            texts: n label texts, none empty.
            ids: n ids, without blanks around them, line ends or tabs; None takes the texts.
            batch_size: texts encoded at a time.

        Returns:
            The ids.

        Raises:
            DataError: an empty text, an id that no line could hold, one that is there already, is given twice, or was
                that of a label with another text.
        """
        texts = _checked_texts(texts, "label")
        names = self._new_ids("labels", texts, texts if ids is None else ids)
        self._check_new("labels", names, texts, replace=False)
        keys = self._as_keys(self.encode_labels(texts, batch_size))
        slots = self.memory.slots + np.arange(len(texts), dtype=np.int32)
        self._add_label_keys(names, texts, keys, slots)
        self.memory.slots += len(texts)
        self._labels_changed()
        self._note("add labels", names)
        return list(names)

    def rename_labels(self, texts: Mapping[str, str], *, batch_size: int = 256) -> None:
        """Give labels new texts; ids, and the documents that vote for them, stay.

        Args:
            texts: new texts by label id, none empty.
            batch_size: texts encoded at a time.

        Raises:
            DataError: an unknown label id, or an empty text.
        """
        names = list(texts)
        new = _checked_texts([texts[name] for name in names], "label")
        _require_spoken("labels", names, new)
        found = self._find("labels", names)
        slots = np.array([s.slots[s.indptr[row]] for s, row in found], dtype=np.int32)
        old = [s.keys[row] for s, row in found]
        keys = self._renamed_keys(
            torch.stack(old) if old else torch.zeros(0, self.memory.label_keys.dim),
            [s.texts[row] for s, row in found],
            new,
            batch_size,
        )
        self.memory.label_keys.remove(found)
        self._add_label_keys(names, new, keys, slots)
        self._labels_changed()
        self._note("rename labels", names)

    def remove_labels(self, ids: Iterable[str]) -> None:
        """Take labels away; documents that have no other label vote no more.

        These stay, and are listed without labels, until they are removed, or get labels by `add_documents` with
        ``replace`` or by `tune` on data that has some for them.

        Args:
            ids: of the labels. They may come back later with the text that they have, but not with another.

        Raises:
            DataError: an unknown id, one that is given twice, or all labels.
        """
        found = self._find("labels", ids)
        if len(found) == len(self.labels):
            raise DataError("a model needs at least one label, so not all can be removed")
        self._forget("labels", found)
        self._labels_changed()
        before = self.memory.n_silent
        self.memory.document_keys.silence(self.memory.number_of >= 0)
        if self.memory.n_silent > before:
            logger.warning(
                "%d documents have no label left and vote for nothing; remove them, or give them labels with: "
                "labelspace documents add --replace",
                self.memory.n_silent - before,
            )
        self._without_documents()

    def tune(
        self,
        data: Dataset,
        *,
        objective: str = DEFAULT_OBJECTIVE,
        grid: Grid | None = None,
        tolerance: float = TOLERANCE,
        precision: Precision = "float32",
        batch_size: int = 256,
        vectors: npt.NDArray[np.float32] | None = None,
        calibrated: bool = True,
        documents: int = DOCUMENTS,
        until: float | None = None,
        linear: bool | None = None,
        first: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]] | None = None,
    ) -> Tuned | None:
        """Make the training documents of a data set keys, as far as they are not, and choose how keys vote.

        The choice is made on validation documents, which are left out while it is made, with all documents of the same
        text; afterwards every training document votes. Scores are calibrated anew on the same documents.

        Args:
            data: its labels are matched by id. It should be read with the seed of the training run, so that documents
                are held out that the encoder was not trained on.
            objective: names of metrics apart by commas, the mean of which shall be the highest: P, nDCG or PSP at 1, 3
                or 5. PSP in it favours rare labels.
            grid: what to try; None tries everything. Where nothing can be tried, settings with one value hold all the
                same, and the others stay as they were.
            tolerance: points of that mean that may be given up for a higher R@100; 0 for none.
            precision: of document keys, where there are none yet: ``float32``, or ``bf16`` in half the space. Documents
                whose keys are kept in bf16 are encoded in it too, where the device is faster in it.
            batch_size: texts encoded at a time.
            vectors: (N, D) keys of the training documents, if they are known; None encodes them.
            calibrated: calibrate on the same validation documents, if there are at least 100.
            documents: validation documents to choose by, at most; of more, some are drawn.
            until: when, by `time.monotonic`, no more of them are looked at, though some hundreds are in any case.
            linear: learn a linear classifier beside the keys, which judges what they found by the words of a text, see
                `labelspace.memory.linear`; kept where it adds to the objective. None keeps one that is there and weighs
                it anew, False drops it.
            first: from rows of the training documents to their queries (n, D) of the first tower, if they are known;
                None encodes them for a linear classifier.

        Returns:
            What was tried and chosen; None where there are too few validation documents to choose by.

        Raises:
            DataError: no texts, or no label in common.
            SettingsError: an unknown objective.
            ResourceError: the document keys would not fit into memory.
        """
        parse_objective(objective)
        if not 0 <= tolerance <= 100:
            raise SettingsError(f"tolerance must be from 0 to 100 points, got {tolerance}")
        require_texts(data)
        place = self._numbers_in(data.labels)
        self._remember(data, place, precision, batch_size, vectors)
        valid, rows = data.valid, np.arange(len(data.valid))
        if len(rows) > documents:
            rows = np.sort(np.random.default_rng(0).choice(len(rows), documents, replace=False))
        if len(rows) < MIN_TUNING or not valid.targets[rows].nnz:
            dropped = linear is False and self.memory.linear is not None
            if dropped:
                self.memory.set_linear(None)
            voting = self.memory.voting
            settled = (grid or Grid()).settled(Voting() if voting.scoring == "similarity" else voting)
            moved = settled != voting and bool(self.memory.n_documents or settled != Voting())
            if moved:
                self.memory.voting = settled
            if moved or dropped:
                self.info.pop("tuning", None)
                self._note("tune", [])
            logger.warning(
                "only %d validation documents with labels, and tuning needs %d: keys vote by %s; "
                "tune --like MODEL takes over what was chosen for another model",
                *(len(rows) if valid.targets[rows].nnz else 0, MIN_TUNING, described(self.memory.voting)),
            )
            if linear:
                logger.warning("no linear classifier is learned, since how much it counts is tuned")
            return None
        valid = valid.rows(rows)
        texts = list(valid.texts)
        queries = torch.from_numpy(self._encode_many(self.encode, texts, batch_size)).to(self.memory.device)
        counts = label_counts(data.train.targets)
        own = np.zeros(len(self.labels), dtype=np.int64)
        own[place[place >= 0]] = counts[place >= 0]
        weights = weights_of_counts(own, len(data.train), *propensity_constants(data.name))
        left_out = self.held_out(data)
        truth = _targets_in(valid.targets, place, len(self.labels))
        barred = metrics.barred_labels(valid.filter_pairs, *valid.targets.shape)
        barred = _renumbered(barred, place, len(self.labels))
        options: dict[str, Any] = {"left_out": left_out, "barred": barred, "objective": objective}
        if len(self.towers) > 1:
            dims, shares = [tower.dim for tower in self.towers], [tower.share for tower in self.towers]
            self._share(best_shares(self.memory, queries, dims, shares, truth, weights, **options))
        found = tune(self.memory, queries, truth, weights, grid=grid, tolerance=tolerance, until=until, **options)
        self.memory.voting = found.voting
        if linear and until is not None and time.monotonic() > until + LATE:
            logger.warning("no time is left for a linear classifier; labelspace tune --linear learns one later")
            linear = False
        if linear is not None:
            made = self._learned_linear(data, place, left_out, batch_size, first) if linear else None
            self.memory.set_linear(made)
        if self.memory.linear is not None:
            found = self._weighed_linear(found, queries, texts, truth, weights, options)
        self.info["tuning"] = found.as_dict()
        self._note("tune", [])
        if calibrated:
            depth = min(calibrate.DEPTH, len(self.labels))
            words = self.memory.features(texts)
            best = Predictions(*self.memory.predict(queries, depth, left_out=left_out, features=words))
            self.calibrate_if_possible(dataclasses.replace(data, valid=valid), best)
        return found

    def vote_like(
        self, other: Model, data: Dataset, *, precision: Precision = "float32", batch_size: int = 256
    ) -> None:
        """Make the training documents of a data set keys, and let keys vote as was chosen for another model.

        For a last training on all documents, with nothing held out to choose by: a training with the same settings that
        held some out tells how keys should vote. Its linear classifier is learned again from all documents, and its
        calibration is taken over.

        Args:
            other: a tuned model.
            data: as for `tune`; its validation documents are not looked at.
            precision: as for `tune`.
            batch_size: texts encoded at a time.

        Raises:
            DataError: no texts, or no label in common.
            ModelError: keys of the other model do not vote, or it is joined of other encoders.
            ResourceError: the document keys would not fit into memory.
        """
        if other.memory.voting.scoring == "similarity":
            raise ModelError(f"the keys of {other.folder or 'the other model'} do not vote; tune it first")
        if len(other.towers) != len(self.towers):
            raise ModelError(
                f"{other.folder or 'the other model'} has {len(other.towers)} encoders and this model "
                f"{len(self.towers)}, so it cannot vote like that one"
            )
        require_texts(data)
        place = self._numbers_in(data.labels)
        self._remember(data, place, precision, batch_size, None)
        if len(self.towers) > 1:
            self._share([tower.share for tower in other.towers])
        made = None
        if other.memory.linear is not None:
            made = self._learned_linear(data, place, None, batch_size, None)
        self.memory.set_linear(made)
        self.memory.voting = other.memory.voting
        self._calibration = other.calibration
        self.info.pop("tuning", None)
        self._note("tune", [])

    def _weighed_linear(
        self,
        found: Tuned,
        queries: torch.Tensor,
        texts: Sequence[str],
        truth: sp.csr_array,
        weights: npt.NDArray[np.float64],
        options: dict[str, Any],
    ) -> Tuned:
        """Choose by how much the linear classifier counts, or drop it; what was tuned, with the metrics of that."""
        objective = options["objective"]
        voting, metrics, gain = tune_linear(self.memory, queries, texts, truth, weights, **options)
        if gain < LEAST_GAIN:
            logger.info("the linear classifier adds %.2f points of %s, and is left out", gain, objective)
            self.memory.set_linear(None)
            return found
        self.memory.voting = voting
        logger.info(
            "the linear classifier adds %.2f points of %s: %s",
            gain,
            objective,
            ", ".join(f"{name} {getattr(voting, name):g}" for name in LINEAR),
        )
        return dataclasses.replace(found, voting=voting, value=found.value + gain, metrics=metrics)

    def _learned_linear(
        self,
        data: Dataset,
        place: npt.NDArray[np.int64],
        left_out: npt.NDArray[np.bool_] | None,
        batch_size: int,
        first: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]] | None,
    ) -> LinearClassifier | None:
        """A linear classifier of the training documents, those held out for validation aside."""
        targets = _targets_in(data.train.targets, place, len(self.labels))
        rows = data.fit_rows[np.diff(targets.indptr)[data.fit_rows] > 0]
        texts = [data.train.texts[row] for row in rows.tolist()]
        confused = self._confused(data, rows, texts, left_out, batch_size, first)
        logger.info("a linear classifier is learned from %d documents", len(rows))
        return linear.fit(
            texts, sp.csr_array(targets[rows]), confused, self.labels.ids, threads=torch.get_num_threads()
        )

    def _confused(
        self,
        data: Dataset,
        rows: npt.NDArray[np.int64],
        texts: Sequence[str],
        left_out: npt.NDArray[np.bool_] | None,
        batch_size: int,
        first: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]] | None,
    ) -> npt.NDArray[np.int64]:
        """The labels that the neighbours of training documents vote for, themselves aside; -1 for none."""
        keys = self.memory.document_keys
        out = np.full((len(rows), linear.NEGATIVES), -1, dtype=np.int64)
        some = np.arange(len(rows))
        if len(some) > linear.MOST_SEARCHED:
            some = np.sort(np.random.default_rng(0).choice(len(some), linear.MOST_SEARCHED, replace=False))
        names = _distinct(data.train.ids)
        starts = {id(segment): int(start) for segment, start in zip(keys.segments, keys.starts, strict=False)}
        voting = Voting(weight=1.0, document_depth=linear.NEIGHBOURS, temperature=0.1)
        for start in range(0, len(some), QUERY_BLOCK):
            part = some[start : start + QUERY_BLOCK]
            if first is None:
                made = self.towers[0].queries([texts[i] for i in part.tolist()], batch_size)
            else:
                made = first(rows[part])
            own = np.full(len(part), -1, dtype=np.int64)
            for i, row in enumerate(rows[part].tolist()):
                at = keys.find(names[row])
                if at is not None:
                    own[i] = starts[id(at[0])] + at[1]
            queries = torch.from_numpy(np.ascontiguousarray(made[:, : keys.dim])).to(self.memory.device)
            similarities, places = keys.search(queries, linear.NEIGHBOURS, left_out)
            itself = places == own[:, None]
            places, similarities = np.where(itself, -1, places), np.where(itself, -np.inf, similarities)
            none = np.empty((len(part), 0))
            found = Found(none.astype(np.float32), none.astype(np.int64), similarities, places)
            out[part] = self.memory.rank(found, voting, linear.NEGATIVES)[0]
        return out

    def _share(self, shares: Sequence[float]) -> None:
        """Let towers count in the label keys by other shares."""
        factors = [
            torch.full((tower.dim,), share / tower.share) for tower, share in zip(self.towers, shares, strict=True)
        ]
        scale = torch.cat(factors).to(self.memory.device)
        for segment in self.memory.label_keys.segments:
            segment.replace_keys((segment.keys.float() * scale).to(segment.keys.dtype))
        for tower, share in zip(self.towers, shares, strict=True):
            tower.share = float(share)
        logger.info("shares of the encoders in the label keys: %s", ", ".join(f"{share:.2f}" for share in shares))

    def held_out(self, data: Dataset) -> npt.NDArray[np.bool_]:
        """Document keys that must not vote when validation documents are measured: these themselves, and equal texts.

        Args:
            data: its ``valid`` part counts.

        Returns:
            (places,) mask, for ``left_out`` of the memory.
        """
        keys = self.memory.document_keys
        names = _distinct(data.train.ids)
        own = {names[i] for i in data.valid_rows.tolist()}
        starts = {first_words(text) for text in data.valid.texts}
        texts = {plain_words(text) for text in data.valid.texts}
        left_out = np.zeros(int(keys.starts[-1]), dtype=bool)
        for segment, start in zip(keys.segments, keys.starts, strict=False):
            for row, (name, text) in enumerate(zip(segment.ids, segment.texts, strict=True)):
                if name in own or (first_words(text) in starts and plain_words(text) in texts):
                    left_out[start + row] = True
        return left_out

    def _remember(
        self,
        data: Dataset,
        place: npt.NDArray[np.int64],
        precision: Precision,
        batch_size: int,
        vectors: npt.NDArray[np.float32] | None,
    ) -> None:
        """Make those training documents keys that are not, and have a label of this model."""
        targets = _targets_in(data.train.targets, place, len(self.labels))
        names = _distinct(data.train.ids)
        fresh = np.diff(targets.indptr) > 0
        gone, changed = 0, []
        for row in np.flatnonzero(fresh).tolist():
            there = self.memory.document_keys.find(names[row])
            if there is None:
                removed = self.memory.removed["documents"].get(names[row]) == digest(data.train.texts[row])
                gone, fresh[row] = gone + removed, not removed
                continue
            segment, at = there
            if segment.texts[at] != data.train.texts[row]:
                raise DataError(
                    f"the training document {names[row]!r} has the id of a document of the model with another text "
                    f"({_shortened(segment.texts[at])!r}, here {_shortened(data.train.texts[row])!r}); give the data "
                    "ids of their own, or remove those documents from the model first"
                )
            votes = slice(segment.indptr[at], segment.indptr[at + 1])
            kept = self.memory.number_of[segment.slots[votes]]
            own = targets.indices[targets.indptr[row] : targets.indptr[row + 1]]
            if set(kept[kept >= 0].tolist()) == set(own.tolist()):
                fresh[row] = False
            else:
                changed.append(there)
        if gone:
            logger.warning("%d training documents were removed from the model and stay removed", gone)
        rows = np.flatnonzero(fresh)
        if not len(rows):
            return
        if changed:
            logger.warning("%d documents of the model have other labels in the data, and take these", len(changed))
        needed = 2 * 4 * len(rows) * self.memory.document_keys.dim
        require_memory(
            needed, f"keys of {len(rows)} documents", "give fewer documents, or an encoder of a smaller width"
        )
        chosen = vectors if vectors is None else vectors[rows]
        texts = [data.train.texts[i] for i in rows.tolist()]
        self._check_new("documents", [names[i] for i in rows], texts, replace=True)
        logger.info("%d training documents become keys", len(rows))
        segment = self._document_segment(
            [names[i] for i in rows], texts, sp.csr_array(targets[rows]), precision, batch_size, chosen
        )
        self.memory.document_keys.remove(changed)
        self.memory.document_keys.append(segment)
        self._note("add documents", [names[i] for i in rows])

    def _document_segment(
        self,
        names: Sequence[str],
        texts: Sequence[str],
        targets: sp.csr_array,
        precision: Precision,
        batch_size: int,
        vectors: npt.NDArray[np.float32] | None = None,
    ) -> Segment:
        there = self.memory.document_keys.segments
        if there:  # keys of a kind are all alike
            precision = "bf16" if there[0].keys.dtype == torch.bfloat16 else "float32"
        if vectors is None:
            before = self.encoder.precision  # of the one tower that documents pass
            if precision == "bf16" and bf16_pays(self.encoder.device):
                self.encoder.precision = "bf16"
            try:
                vectors = self._encode_many(self.encode_documents, texts, batch_size)
            finally:
                self.encoder.precision = before
        keys = self._as_keys(vectors)
        return Segment(
            keys.bfloat16() if precision == "bf16" else keys,
            targets.indptr.astype(np.int64),
            self.memory.slot_of[targets.indices].astype(np.int32),
            None if (targets.data == 1).all() else targets.data.astype(np.float32),
            Strings.of(names),
            Strings.of(texts),
        )

    def _as_keys(self, vectors: npt.NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(vectors)).to(self.memory.device)

    def _encode_many(
        self, encode: Callable[[Sequence[str], int], npt.NDArray[np.float32]], texts: Sequence[str], batch_size: int
    ) -> npt.NDArray[np.float32]:
        """Vectors of many texts, with a progress bar."""
        parts = []
        with tqdm(total=len(texts), desc="encoding", unit="text", disable=None) as bar:
            for start in range(0, len(texts), ENCODE_BLOCK):
                parts.append(encode(texts[start : start + ENCODE_BLOCK], batch_size))
                bar.update(len(parts[-1]))
        return np.concatenate(parts) if parts else np.zeros((0, self.memory.document_keys.dim), dtype=np.float32)

    def _renamed_keys(self, old: torch.Tensor, before: list[str], texts: list[str], batch_size: int) -> torch.Tensor:
        """Keys of labels under their new texts; what a classifier learned of a label stays.

        Args:
            old: (n, D) keys that they have.
            before: n texts that they have.
            texts: n new texts.
            batch_size: texts encoded at a time.
        """
        ends = np.cumsum([0, *(tower.dim for tower in self.towers)]).tolist()
        parts = [old[:, a:b] for a, b in itertools.pairwise(ends)]
        pairs = zip(self.towers, parts, strict=True)
        return torch.cat([tower.renamed(part, before, texts, batch_size) for tower, part in pairs], dim=1)

    def _add_label_keys(
        self, names: Sequence[str], texts: Sequence[str], keys: torch.Tensor, slots: npt.NDArray[np.int32]
    ) -> None:
        segment = Segment(keys, np.arange(len(names) + 1), slots, None, Strings.of(names), Strings.of(texts))
        self.memory.label_keys.append(segment)

    def _labels_changed(self) -> None:
        self.memory.renumber()
        self.labels = self.memory.labels
        self._numbers = None

    def _numbers_in(self, labels: Labels) -> npt.NDArray[np.int64]:
        """This model's numbers of another list of labels, by id; -1 for none."""
        if list(labels.ids) == list(self.labels.ids):
            return np.arange(len(labels))
        number = {name: i for i, name in enumerate(self.labels.ids)}
        place = np.array([number.get(name, -1) for name in labels.ids], dtype=np.int64)
        if (place < 0).all():
            raise DataError(
                "the model and the data have no label id in common; is this the data that the model is for?"
            )
        if (place < 0).any():
            logger.warning("%d labels of the data are unknown to the model and are left out", int((place < 0).sum()))
        return place

    def _new_ids(self, kind: str, texts: Sequence[str], ids: Sequence[str] | None) -> list[str]:
        """Checked ids of checked texts, or new ones that no document ever had."""
        if ids is not None:
            names = [ids] if isinstance(ids, str) else _checked_texts(ids, "id")
            if len(names) != len(texts):
                raise DataError(f"there are {len(names)} ids for {len(texts)} {kind}")
            _require_spoken(kind, range(len(texts)) if ids is texts else names, texts)
            held, gone = self._keys_of(kind), self.memory.removed[kind]
            for name in names:  # those of training may be of any kind, and so may come back
                wrong = _cannot_be_named(name)
                if wrong and held.find(name) is None and name not in gone:
                    raise DataError(f"the {kind[:-1]} id {name!r} {wrong}, so that no line could name it; take another")
            return names
        _require_spoken(kind, range(len(texts)), texts)
        keys, gone = self.memory.document_keys, self.memory.removed["documents"]
        names, number = [], len(keys) + len(gone)
        while len(names) < len(texts):
            number += 1
            name = f"added-{number}"
            if name not in gone and keys.find(name) is None:
                names.append(name)
        return names

    def _check_new(
        self, kind: str, names: Sequence[str], texts: Sequence[str], replace: bool
    ) -> list[tuple[Segment, int]]:
        """Refuse ids that cannot be added; those to be replaced are returned."""
        keys, gone = self._keys_of(kind), self.memory.removed[kind]
        there, seen = [], set()
        for name, text in zip(names, texts, strict=True):
            if name in seen:
                raise DataError(f"the {kind[:-1]} {name!r} is given twice")
            seen.add(name)
            found = keys.find(name)
            if found is not None:
                if not replace:
                    hint = "; remove it, or ask to replace it" if kind == "documents" else "; rename it instead"
                    raise DataError(f"the model has a {kind[:-1]} {name!r} already{hint}")
                there.append(found)
            elif name in gone and gone[name] != digest(text):
                raise DataError(
                    f"{name!r} was the id of a {kind[:-1]} with another text, which was removed; take another id"
                )
        return there

    def _keys_of(self, kind: str) -> Keys:
        return self.memory.label_keys if kind == "labels" else self.memory.document_keys

    def _find(self, kind: str, ids: Iterable[str]) -> list[tuple[Segment, int]]:
        """Keys by id, refusing what is not there."""
        names = [ids] if isinstance(ids, str) else list(ids)
        keys, found, seen = self._keys_of(kind), [], set()
        for name in names:
            at = keys.find(name)
            if at is None or name in seen:
                there = (key for s in keys.segments for key in s.ids if keys.find(key) is not None)
                known = itertools.islice(there, 50_000)
                near = difflib.get_close_matches(str(name), known, n=3) if at is None else []
                hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
                what = "is given twice" if name in seen else f"is not in the model{hint}"
                raise DataError(f"the {kind[:-1]} {name!r} {what}")
            seen.add(name)
            found.append(at)
        return found

    def _forget(self, kind: str, found: list[tuple[Segment, int]]) -> None:
        """Strike keys out and keep their ids from coming back as others."""
        names = [segment.ids[row] for segment, row in found]
        for name, (segment, row) in zip(names, found, strict=True):
            self.memory.removed[kind][name] = digest(segment.texts[row])
        self._keys_of(kind).remove(found)
        self._note(f"remove {kind}", names)

    def _note(self, change: str, names: Sequence[str]) -> None:
        """Put a change into the history."""
        entry: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "change": change}
        if names:
            entry.update(count=len(names), first=list(names[:3]))
        self.history.append(entry)

    def compact(self) -> None:
        """Rewrite the memory as one segment a kind, without what was removed; predictions stay as they are, but
        labels of equal scores may change places.
        """
        self.memory = self.memory.compacted()
        self._note("compact", [])

    def build_index(
        self,
        kind: Literal["hnsw", "exact"] = "hnsw",
        *,
        recall: float = 0.97,
        smallest: int = GRAPH_FROM,
        depth: int | None = None,
        texts: Sequence[str] | None = None,
        links: int = 24,
        ef_construction: int = 80,
        seed: int = 0,
        batch_size: int = 256,
    ) -> list[dict[str, Any]]:
        """Choose how keys are searched: every key is scanned, or large segments of keys through a graph.

        A graph (HNSW, Malkov and Yashunin 2016) finds most of the nearest keys in a fraction of the time. It is saved
        with the model. Keys that are added later are scanned; where a segment is written anew, as by `compact`, its
        graph is dropped and a warning says so.

        Args:
            kind: ``hnsw`` or ``exact``.
            recall: share of the nearest keys that a graph shall find; how far it looks is chosen by that.
            smallest: segments of fewer keys are scanned all the same: that is as fast.
            depth: how many nearest keys the recall is measured on; None for as many as a prediction asks for.
            texts: to measure the recall with; None for documents of the memory, or labels where it has none, moved a
                little.
            links: neighbours of a key in the graph: more find more and take more space.
            ef_construction: candidates looked at for a new key: more make a better graph more slowly.
            seed: of the draw of documents.
            batch_size: texts encoded at a time.

        Returns:
            How each segment is searched, see `Memory.indexes`.

        Raises:
            MissingExtraError: without the extra ``ann``.
            SettingsError: an unknown kind, a recall that is no share, or links, candidates or a depth out of range.
            ResourceError: the graphs would not fit into memory.
        """
        if kind not in ("hnsw", "exact"):
            raise SettingsError(f"unknown kind {kind!r} of index; choose one of hnsw, exact")
        require_graph(links, ef_construction, recall, depth)
        if kind == "exact":
            self.memory.drop_graphs()
        else:
            segments = (*self.memory.label_keys.segments, *self.memory.document_keys.segments)
            needed = sum(len(s) * (2 * s.keys.shape[1] + 10 * links) for s in segments if len(s) >= smallest)
            require_memory(needed, "the graphs", "lower links, or take an encoder of a smaller width")
            queries = None
            if texts is not None:
                queries = torch.from_numpy(self.encode(texts, batch_size)).to(self.memory.device)
            self.memory.build_graphs(
                recall=recall, smallest=smallest, depth=depth, queries=queries, links=links,
                ef_construction=ef_construction, seed=seed,
            )  # fmt: skip
        self._note(f"index {kind}", [])
        return self.memory.indexes()

    # Folders

    def save(self, path: str | Path | None = None, records: dict[str, str] | None = None) -> None:
        """Write the model's folder, whole or not at all.

        Without a path only what changed since the model was opened or saved is written there: a kill at any moment
        leaves the old state or the new one. With a path all of it is written; an older model at that place is replaced.

        Args:
            path: the folder; None for the one that the model was opened from or saved to.
            records: text files of the run to put beside the model, by name; they may be deleted later.

        Raises:
            ModelError: the folder holds something that is not a model, or the model there was changed by another.
        """
        if path is None:
            self._save_changes()
            return
        path = Path(path).expanduser()
        if self.folder is not None and path.resolve() == self.folder and is_model(path):
            with folder_lock(self.folder):
                if read_manifest(self.folder)["revision"] != self._revision:
                    raise ModelError(f"{self.folder} was changed by another since it was opened; open it again")
        require_writable(path)
        memory = self.memory.compacted()
        for segment in (*memory.label_keys.segments, *memory.document_keys.segments):
            segment.file = segment.graph_file = None
        memory.linear_file = None
        with atomic_folder(path) as folder:
            first, *more = [tower.save(folder, number) for number, tower in enumerate(self.towers, 1)]
            joined = {"joined": more} if more else {}
            (folder / "memory").mkdir()
            entry = memory.write(folder / "memory", 1)
            parts = [f for f in sorted(folder.rglob("*")) if f.is_file()]
            for name, text in (records or {}).items():
                (folder / name).write_text(text, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "labelspace_version": __version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "revision": 1,
                "dimensions": self.encoder.dim,
                **first,
                **joined,
                **self._described(entry),
                **({} if self.calibration is None else {"calibration": self.calibration.as_dict()}),
                "files": {f.relative_to(folder).as_posix(): stamp_of(f) for f in parts},
            }
            write_manifest(folder / "manifest.json", manifest)
        self.memory, self.folder, self._revision = memory, path.resolve(), 1

    def _described(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The part of the manifest that changes with the model."""
        return {
            "labels": len(self.labels),
            "documents": self.memory.n_documents,
            "memory": entry,
            **({"shares": [tower.share for tower in self.towers]} if len(self.towers) > 1 else {}),
            "info": self.info,
            "history": self.history,
        }

    def _save_changes(self) -> None:
        """Write new files, then the manifest that names them, then remove files that it no longer names."""
        if self.folder is None:
            raise ModelError("the model was not opened from a folder; name one to save it to")
        place = self.folder / "memory"
        with folder_lock(self.folder):
            manifest = read_manifest(self.folder)
            if manifest["revision"] != self._revision:
                raise ModelError(f"{self.folder} was changed by another since it was opened; open it again")
            for keys in (self.memory.label_keys, self.memory.document_keys):
                keys.compact(everything=False)
            self.memory.renumber()
            segments = (*self.memory.label_keys.segments, *self.memory.document_keys.segments)
            before = [(segment, segment.file, segment.graph_file) for segment in segments]
            linear_before = self.memory.linear_file
            old = manifest["files"]
            try:
                with writing(self.folder):
                    entry = self.memory.write(place, self._revision + 1)
                    files = {name: stamp for name, stamp in old.items() if not name.startswith("memory/")}
                    for name in Memory.files(entry):
                        known = old.get(f"memory/{name}")
                        if known is None:
                            finish(place / name)
                        files[f"memory/{name}"] = known or stamp_of(place / name)
                    sync(place)
                    manifest.update(self._described(entry), revision=self._revision + 1, files=files)
                    manifest.pop("calibration", None)
                    if self.calibration is not None:
                        manifest["calibration"] = self.calibration.as_dict()
                    with atomic_file(self.folder / "manifest.json") as part:
                        write_manifest(part, manifest)
            except BaseException:
                for segment, *names in before:
                    segment.file, segment.graph_file = names
                self.memory.linear_file = linear_before
                with contextlib.suppress(ModelError):
                    if read_manifest(self.folder)["revision"] == self._revision:
                        remove_others(place, old)
                raise
            self._revision += 1
            remove_others(place, files)

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
            write_manifest(part, manifest)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        *,
        precision: Literal["auto", "float32", "bf16"] = "float32",
        graphs: bool = True,
    ) -> Model:
        """Open a model's folder.

        Args:
            path: the folder.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            precision: in which texts are encoded, see the attribute. In float32 a text's vector does not depend on the
                texts beside it beyond rounding.
            graphs: whether to search through the graphs that it has, see `build_index`; without them every key is
                scanned, and what is saved afterwards has none.

        Raises:
            ModelError: not a model folder, one of another format version, a file that is missing or damaged, by name,
                or a folder that another process changes without a pause.
            SettingsError: an unknown precision.
        """
        folder = Path(path).expanduser()
        began = time.monotonic()
        manifest = read_manifest(folder)
        while True:
            try:
                model = cls._open(folder, copy.deepcopy(manifest), device, graphs)
                break
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
        model.precision = precision
        return model

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any], device: str, graphs: bool) -> Model:
        own_graphs = {f"memory/{graph['file']}" for graph in manifest["memory"].get("graphs", {}).values()}
        if not graphs:
            manifest["memory"].pop("graphs", None)
            for name in own_graphs:
                del manifest["files"][name]
        check = checking(folder, manifest["files"], own_graphs)
        place = device_of(device)
        mutable = [name for name in manifest["files"] if name.startswith("memory/")]
        check(mutable)  # these first, and opened at once: other processes may replace them at any time
        memory = Memory.open(folder / "memory", manifest["memory"], str(place))
        check(name for name in manifest["files"] if name not in mutable)
        labels = memory.labels
        if len(labels) != manifest["labels"]:
            raise ModelError(f"{folder} is damaged: it has {len(labels)} labels, its manifest {manifest['labels']}")
        try:
            entries = zip([manifest, *manifest.get("joined", [])], manifest.get("shares", [1.0]), strict=True)
            first, *more = [
                Tower.load(folder, n, entry, str(place), float(share)) for n, (entry, share) in enumerate(entries, 1)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder / 'manifest.json'} is damaged: it does not say what encoders it has") from error
        calibration = None
        if "calibration" in manifest:
            try:
                calibration = Calibration.from_dict(manifest["calibration"])
            except ModelError as error:  # all else can be used, and the calibration be made again
                logger.warning("%s: %s", folder / "manifest.json", error)
        try:
            options: dict[str, Any] = {"heads": first.heads, "more": more, "share": first.share}
            model = cls(first.encoder, memory, labels, manifest["info"], calibration, **options)
        except ValueError as error:
            raise ModelError(f"{folder}: the parts of the model do not fit together: {error}") from error
        model.folder, model._revision, model.history = folder.resolve(), manifest["revision"], manifest["history"]
        return model


def _targets_in(targets: sp.csr_array, place: npt.NDArray[np.int64], n_labels: int) -> sp.csr_array:
    """The truth in other label numbers; labels without one are left out, and so are values of 0."""
    columns = place[targets.indices]
    kept = (columns >= 0) & (targets.data > 0)
    running = np.concatenate([[0], np.cumsum(kept)])
    parts = (targets.data[kept], columns[kept], running[targets.indptr])
    return sp.csr_array(parts, shape=(targets.shape[0], n_labels))


def _distinct(ids: Sequence[str]) -> list[str]:
    """Ids, those met before with a number behind them."""
    counts: Counter[str] = Counter()
    names = []
    taken = set(ids)
    for name in ids:
        counts[name] += 1
        while counts[name] > 1 and f"{name}#{counts[name]}" in taken:
            counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return names


def _require_spoken(kind: str, names: Iterable[str | int], texts: Sequence[str]) -> None:
    """Refuse empty texts."""
    for name, text in zip(names, texts, strict=True):
        if not text.strip():
            which = f"number {name} (from 0)" if isinstance(name, int) else repr(name)
            raise DataError(f"the {kind[:-1]} {which} has an empty text; give it one, or leave it out")


def _cannot_be_named(name: str) -> str | None:
    """What keeps an id from standing on a line of its own."""
    if not name.strip():
        return "is empty"
    if name != name.strip():
        return "has blanks around it"
    if any(unicodedata.category(mark) in ("Cc", "Cs", "Zl", "Zp") for mark in name):
        return "holds a line end, a tab or another control character"
    return None


def _listed(values: Any, what: str) -> list[Any]:
    try:
        return list(values)
    except TypeError as error:
        raise DataError(f"a list of {what} was expected for each document, got {type(values).__name__}") from error


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


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


def _beside(parts: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Vectors of several towers side by side."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
