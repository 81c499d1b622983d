"""A trained model: a query encoder and a memory of keys that vote for labels. All that is ever served.

`Model` is the public face. What it does is in the files beside, as functions of its `Core`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..encoders import Encoder, Precision
from ..encoders.tokens import LongDocuments
from ..evaluation.calibration import Calibration
from ..memory.grid import Grid
from ..memory.memory import GRAPH_FROM, Memory
from ..memory.tune import DEFAULT_OBJECTIVE, DOCUMENTS, TOLERANCE, Tuned
from ..training.label_heads import TwoHeads
from ..types import Dataset, Labels, Predictions
from . import calibrating, editing, folder, predicting, tuning, zero_shot
from .core import Core, checked_texts
from .predicting import Wanted
from .towers import Tower


class Model:
    """Text -> query vectors -> memory -> predictions.

    Args:
        encoder: makes query vectors.
        memory: keys made by the same encoder, and their votes.
        labels: the L labels that are voted for.
        info: what made the model: recipe, config, data, metrics; all of it JSON.
        calibration: from scores to probabilities.
        heads: between the encoder and the memory; None where the encoder's vectors are the queries.
        more: further towers of a joined model, whose queries and label keys stand beside those of the first. The first
            alone makes document keys.
        share: of the first tower in the label keys.

    Attributes:
        precision: in which texts are encoded: ``float32``, or ``bf16``, which is faster on some processors and GPUs;
            cosines to the float32 vectors are above 0.999. ``auto`` chooses by the device. It is not saved.

    Raises:
        ValueError: encoder, memory and labels that do not fit together.
    """

    def __init__(
        self, encoder: Encoder, memory: Memory, labels: Labels, info: dict[str, Any] | None = None,
        calibration: Calibration | None = None, heads: TwoHeads | None = None, more: Sequence[Tower] = (),
        share: float = 1.0,
    ):  # fmt: skip
        self.core = Core((Tower(encoder, heads, share), *more), memory, labels, info, calibration)

    @classmethod
    def _of(cls, core: Core) -> Model:
        model = cls.__new__(cls)
        model.core = core
        return model

    def __copy__(self) -> Model:
        return self._of(copy.copy(self.core))  # with a folder and labels of its own

    @property
    def towers(self) -> tuple[Tower, ...]:
        """All encoders with their heads, the first first."""
        return self.core.towers

    @property
    def memory(self) -> Memory:
        """The keys and how they vote."""
        return self.core.memory

    @property
    def labels(self) -> Labels:
        """The labels that are voted for."""
        return self.core.labels

    @property
    def info(self) -> dict[str, Any]:
        """What made the model; it may be added to."""
        return self.core.info

    @property
    def history(self) -> list[dict[str, Any]]:
        """Changes of labels, documents and voting, the oldest first."""
        return self.core.history

    @property
    def folder(self) -> Path | None:
        """Where the model was loaded or saved; None for nowhere yet."""
        return self.core.folder

    @property
    def encoder(self) -> Encoder:
        """The encoder, of the first tower."""
        return self.core.towers[0].encoder

    @property
    def heads(self) -> TwoHeads | None:
        """The heads behind the encoder, of the first tower."""
        return self.core.towers[0].heads

    @property
    def calibration(self) -> Calibration | None:
        """From scores to probabilities; None before `calibrate`, and after the memory was made to score otherwise."""
        return self.core.current_calibration()

    @property
    def precision(self) -> Precision:
        """In which texts are encoded, ``float32`` or ``bf16``."""
        return self.core.precision

    @precision.setter
    def precision(self, value: Literal["auto", "float32", "bf16"]) -> None:
        self.core.set_precision(value)

    @classmethod
    def from_encoder(
        cls, encoder: str | os.PathLike[str] | Encoder, labels: Sequence[str] | Labels | Dataset, *,
        device: str = "auto", batch_size: int = 256, max_tokens: int | None = None,
        long_documents: LongDocuments | None = None, max_chunks: int | None = None,
        objective: str = DEFAULT_OBJECTIVE, precision: Precision = "float32",
    ) -> Model:  # fmt: skip
        """A model without training: label texts as keys of an encoder that already understands text.

        With a data set its training documents are keys too, and keys vote as tuned and calibrated on its validation
        documents. The vectors are those of the recipe ``raexmc`` with no epochs.

        Args:
            encoder: a name or folder as for training, or an opened encoder; ``static`` is made from minilm and the
                texts of labels and documents, those held out for validation aside.
            labels: label names, labels with ids, or a data set.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            batch_size: texts encoded at a time.
            max_tokens: cut texts here; None as an opened encoder has it, and by name as in training.
            long_documents: ``head``, ``head+tail`` or ``chunks``; None as the encoder has it.
            max_chunks: chunks of a text, with ``chunks``; None as the encoder has it.
            objective: with a data set, as for `tune`.
            precision: with a data set, as for `tune`.

        Raises:
            DataError: no labels, or a name that is given twice.
            ModelError: the encoder cannot be opened.
            MissingExtraError: ``minilm`` without its package.
            SettingsError: an unknown way to cut, or an unknown objective.
            ResourceError: the document keys would not fit into memory.
        """
        cut = {"max_tokens": max_tokens, "long_documents": long_documents, "max_chunks": max_chunks}
        if isinstance(labels, Dataset):
            how = tuning.TuneOptions(objective=objective, precision=precision, batch_size=batch_size)
            return cls._of(zero_shot.of_data(encoder, labels, device, cut, how))
        return cls._of(zero_shot.of_labels(encoder, labels, device, batch_size, cut))

    def encode(self, texts: Sequence[str] | str, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Query vectors (n, D) float32 of texts; a single string counts as one.

        Raises:
            DataError: something that is not a text, by its place.
        """
        return self.core.encode(checked_texts(texts, "text"), batch_size)

    def encode_labels(self, texts: Sequence[str] | str, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Keys (n, D) float32 of labels known by their texts alone; so are the rows of a classifier."""
        return self.core.encode_labels(checked_texts(texts, "text"), batch_size)

    def encode_documents(self, texts: Sequence[str] | str, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Keys (n, D) float32 of documents."""
        return self.core.encode_documents(checked_texts(texts, "text"), batch_size)

    def predict(
        self, texts: Sequence[str] | str, k: int | None = None, labels: Iterable[str | int] | None = None,
        batch_size: int = 256, *, threshold: float | None = None, probabilities: bool = False, why: bool = False,
        left_out: npt.NDArray[np.bool_] | None = None,
    ) -> Predictions:  # fmt: skip
        """The best k labels of each text.

        Args:
            texts: n texts; a single string counts as one.
            k: labels a text, at most; None is 5, or with a threshold as many as pass it.
            labels: ids, names or numbers of the labels to choose from; None for all.
            batch_size: texts encoded at a time.
            threshold: only labels of at least this probability, from 0 to 1; a text may get none.
            probabilities: whether to give probabilities, as with a threshold, see `calibrate`.
            why: whether to give reasons: for every label the keys that voted for it.
            left_out: (places,) mask of document keys that do not vote, as `held_out` gives it.

        Returns:
            Predictions (n, k) with label ids and texts; where fewer than k labels can be given, -1 pads.

        Raises:
            DataError: something that is not a text, an unknown label, or a mask of another length.
            SettingsError: k, a threshold or a batch_size out of bounds.
            ModelError: probabilities of a model that is not calibrated.
            ResourceError: n times k predictions would not fit into memory.
        """
        checked = checked_texts(texts, "text")
        wanted = Wanted(k, labels, threshold, probabilities, why, left_out)
        return predicting.predict(self.core, checked, lambda part: self.encode(checked[part], batch_size), wanted)

    def rankings(
        self, texts: Sequence[str] | str, k: int = 5, batch_size: int = 256, *, probabilities: bool = False,
        left_out: npt.NDArray[np.bool_] | None = None,
    ) -> dict[str, Predictions]:  # fmt: skip
        """The best k labels of each text by each ranking of the model, the model's own first.

        A model with two heads ranks by both together (``combined``), by its dual encoder (``encoder``) and by its
        ``classifier``; any other has ``combined`` only. Arguments and errors are those of `predict`;
        ``probabilities`` and ``left_out`` hold for the first ranking.
        """
        checked = checked_texts(texts, "text")
        wanted = Wanted(k=k, probabilities=probabilities, left_out=left_out)
        return predicting.rankings(self.core, checked, lambda part: self.encode(checked[part], batch_size), wanted)

    def with_weight(self, weight: float) -> Model:
        """The same model with another weight of the documents' votes, for predictions; nothing is copied.

        It is not calibrated, and a change of one of the two may not be seen by the other.

        Args:
            weight: 0 lets the label keys vote alone, 1 the documents.

        Raises:
            DataError: a weight out of bounds, or a model without documents.
        """
        return self._of(predicting.with_weight(self.core, weight))

    def label_numbers(self, labels: Iterable[str | int]) -> npt.NDArray[np.int64]:
        """Numbers of labels given by id, by text (every label of that text), or by number.

        Raises:
            DataError: no labels, or an unknown one; the nearest known ones are named.
        """
        return self.core.label_numbers(labels)

    def held_out(self, data: Dataset) -> npt.NDArray[np.bool_]:
        """A mask (places,) of document keys that are validation documents of a data set, or equal to one."""
        return predicting.held_out(self.core, data)

    def calibrate(
        self, data: Dataset, split: str = "valid", *, predictions: Predictions | None = None, batch_size: int = 256
    ) -> Calibration:
        """Fit probabilities to the scores, on documents that the model was not fitted on.

        The model keeps the calibration; its ``fitted`` says how good it was on held-out folds.

        Args:
            data: read with the seed of the training run, so that the same documents are held out; labels match by id.
            split: ``valid``, ``train``, which makes probabilities too high, or ``test``, which then measures nothing.
            predictions: of these documents, at least 20 deep; None predicts without votes of validation documents.
            batch_size: texts encoded at a time.

        Raises:
            DataError: no texts, no label in common, or too few documents to calibrate on.
            SettingsError: an unknown split.
        """
        return calibrating.calibrate(self.core, data, split, predictions, batch_size)

    def calibrate_if_possible(self, data: Dataset, predictions: Predictions | None = None) -> None:
        """`calibrate` on validation documents, or a line in the log that says why not."""
        calibrating.calibrate_if_possible(self.core, data, predictions)

    def tune(
        self, data: Dataset, *, objective: str = DEFAULT_OBJECTIVE, grid: Grid | None = None,
        tolerance: float = TOLERANCE, precision: Precision = "float32", batch_size: int = 256,
        vectors: npt.NDArray[np.float32] | None = None, calibrated: bool = True, documents: int = DOCUMENTS,
        until: float | None = None, linear: bool | None = None,
        first: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]] | None = None,
    ) -> Tuned | None:  # fmt: skip
        """Make the training documents of a data set keys, as far as they are not, and choose how keys vote.

        It is chosen on validation documents. While it is, they and equal texts do not vote; afterwards all do. Scores
        are calibrated anew on the same documents.

        Args:
            data: read with the seed of the training run, so that the same documents are held out; labels match by id.
            objective: metrics apart by commas, whose mean shall be the highest: P, nDCG or PSP at 1, 3 or 5.
            grid: what to try; None tries everything. What has one value holds even where nothing can be tried.
            tolerance: points of that mean that may be given up for a higher R@100; 0 for none.
            precision: of new document keys, and of encoding them where the device is faster in it.
            batch_size: texts encoded at a time.
            vectors: (N, D) keys of the training documents; None encodes them.
            calibrated: calibrate on the same validation documents, if there are at least 100.
            documents: validation documents to choose by, at most; of more, some are drawn.
            until: when, by `time.monotonic`, no more of them are looked at, though some hundreds are in any case.
            linear: learn a linear classifier on words; None weighs one that is there anew, False drops it.
            first: from rows of the training documents to their queries (n, D) of the first tower; None encodes them.

        Returns:
            What was tried and chosen; None where there are too few validation documents to choose by.

        Raises:
            DataError: no texts, or no label in common.
            SettingsError: an unknown objective.
            ResourceError: the document keys would not fit into memory.
        """
        how = tuning.TuneOptions(
            objective=objective, grid=grid, tolerance=tolerance, precision=precision, batch_size=batch_size,
            vectors=vectors, calibrated=calibrated, documents=documents, until=until, linear=linear, first=first,
        )  # fmt: skip
        return tuning.tune(self.core, data, how)

    def vote_like(
        self, other: Model, data: Dataset, *, precision: Precision = "float32", batch_size: int = 256
    ) -> None:
        """Make the training documents of a data set keys, and let keys vote as was chosen for another model.

        For a last training on all documents: one of the same settings that held some out says how keys vote. Its linear
        classifier is learned again from all documents, its calibration is taken over, and validation documents are not
        looked at; else as for `tune`.

        Raises:
            DataError: no texts, or no label in common.
            ModelError: keys of the other model do not vote, or it has other labels or encoders.
            ResourceError: the document keys would not fit into memory.
        """
        how = tuning.TuneOptions(precision=precision, batch_size=batch_size)
        tuning.vote_like(self.core, other.core, data, how)

    def add_documents(
        self, texts: Sequence[str], labels: Sequence[Iterable[str | int]], ids: Sequence[str] | None = None, *,
        relevances: Sequence[Sequence[float]] | None = None, replace: bool = False, batch_size: int = 256,
    ) -> list[str]:  # fmt: skip
        """Let documents vote for their labels from now on; nothing is trained. Returns their ids.

        Args:
            texts: n texts, none empty.
            labels: for each document its labels, by id, text or number; at least one.
            ids: n ids, without blanks around them, line ends or tabs; None makes new ones.
            relevances: for each label of each document a number above 0 and at most 1; None for 1.
            replace: documents that are there already take the new text and labels, instead of being refused.
            batch_size: texts encoded at a time.

        Raises:
            DataError: an unknown label, a document without one, an empty text, a relevance out of bounds, or an id that
                no line could hold, is there already, is given twice, or was that of another document.
        """
        return editing.add_documents(self.core, texts, labels, ids, relevances, replace, batch_size)

    def remove_documents(self, ids: Iterable[str]) -> None:
        """Let documents vote no more. They may come back later with the text that they have, but not with another.

        Raises:
            DataError: an unknown id, or one that is given twice.
        """
        editing.remove_documents(self.core, ids)

    def add_labels(self, texts: Sequence[str], ids: Sequence[str] | None = None, *, batch_size: int = 256) -> list[str]:
        """Add labels that are predicted from their texts at once, and from documents when these are added.

        Args:
            texts: n label texts, none empty.
            ids: n ids, which are returned, as for `add_documents`; None takes the texts.
            batch_size: texts encoded at a time.

        Raises:
            DataError: an empty text, or an id that `add_documents` would refuse.
        """
        return editing.add_labels(self.core, texts, ids, batch_size)

    def rename_labels(self, texts: Mapping[str, str], *, batch_size: int = 256) -> None:
        """Give labels new texts, by id; ids, and the documents that vote for them, stay.

        Raises:
            DataError: an unknown label id, or an empty text.
        """
        editing.rename_labels(self.core, texts, batch_size)

    def remove_labels(self, ids: Iterable[str]) -> None:
        """Take labels away. They may come back later with the text that they have, but not with another.

        Documents that have no other label vote no more. They stay, listed without labels, until they are removed or get
        labels by `add_documents` with ``replace`` or by `tune`.

        Raises:
            DataError: an unknown id, one that is given twice, or all labels.
        """
        editing.remove_labels(self.core, ids)

    def compact(self) -> None:
        """Rewrite the memory without what was removed; in predictions only labels of equal scores may change places."""
        editing.compact(self.core)

    def build_index(
        self, kind: Literal["hnsw", "exact"] = "hnsw", *, recall: float = 0.97, smallest: int = GRAPH_FROM,
        depth: int | None = None, texts: Sequence[str] | None = None, links: int = 24, ef_construction: int = 80,
        seed: int = 0, batch_size: int = 256,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Choose how keys are searched: all are scanned, or large segments of them searched through a graph.

        A graph (HNSW, Malkov and Yashunin 2016) finds most of the nearest keys in a fraction of the time. Keys added
        later are scanned, and `compact` drops graphs. Returns how each segment is searched, see `Memory.indexes`.

        Args:
            kind: ``hnsw`` or ``exact``.
            recall: share of the nearest keys that a graph shall find; how far it looks is chosen by that.
            smallest: segments of fewer keys are scanned all the same: that is as fast.
            depth: how many nearest keys the recall is measured on; None for as many as a prediction asks for.
            texts: to measure the recall with; None for documents of the memory, or else labels, moved a little.
            links: neighbours of a key in the graph: more find more and take more space.
            ef_construction: candidates looked at for a new key: more make a better graph more slowly.
            seed: of the draw of documents.
            batch_size: texts encoded at a time.

        Raises:
            MissingExtraError: without the extra ``ann``.
            SettingsError: an unknown kind, or a number out of range.
            ResourceError: the graphs would not fit into memory.
        """
        graph = {"recall": recall, "smallest": smallest, "depth": depth, "links": links, "seed": seed}
        return editing.build_index(self.core, kind, texts, batch_size, graph | {"ef_construction": ef_construction})

    def save(self, path: str | Path | None = None, records: dict[str, str] | None = None) -> None:
        """Save the model in a folder, whole or not at all: a kill leaves the old state or the new one.

        Args:
            path: the folder, where an older model is replaced; None saves what changed in the one that the model was
                loaded from or saved in.
            records: text files of the run to put beside the model, by name; they may be deleted later.

        Raises:
            ModelError: the folder holds something that is not a model, or the model there was changed by another.
        """
        folder.save(self.core, path, records)

    def save_calibration(self, path: str | Path) -> None:
        """Save the calibration in the folder of this model, whose other files stay as they are.

        Raises:
            ModelError: not a model folder, or one of a model with other labels or another memory.
        """
        folder.save_calibration(self.core, path)

    @classmethod
    def load(
        cls, path: str | Path, device: str = "auto", *, precision: Literal["auto", "float32", "bf16"] = "float32",
        graphs: bool = True,
    ) -> Model:  # fmt: skip
        """Load a model from its folder.

        Args:
            path: the folder.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            precision: in which texts are encoded, see the attribute.
            graphs: whether to search through the graphs that it has; what is saved without them has none.

        Raises:
            ModelError: not a model folder, one of another format version, a file that is missing or damaged, or a
                folder that another process changes without a pause.
            SettingsError: an unknown precision.
        """
        return cls._of(folder.load(path, device, precision, graphs))
