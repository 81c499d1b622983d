"""A scikit-learn classifier: texts in, labels out, with everything that works on scikit-learn's estimators."""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .base.machine import require_memory
from .data.split import hold_out
from .errors import SettingsError
from .evaluation import metrics
from .model.model import Model
from .recipes import train
from .types import Corpus, Dataset, Labels, Predictions

logger = logging.getLogger(__name__)

__all__ = ["LabelSpaceClassifier"]

Kind = Literal["single", "lists", "dense", "sparse"]
PROBABLE_LABELS = 100
"""Labels of a row of sparse probabilities."""
BLOCK_CELLS = 1 << 22
"""Predictions made at a time where a score of every label is wanted."""
MOST_HELD_OUT = 10_000


def _is_calibrated(estimator: LabelSpaceClassifier) -> bool:
    """Whether there are probabilities, or may be after `fit`."""
    if hasattr(estimator, "model_") and estimator.model_.calibration is None:
        raise AttributeError(
            "there are no probabilities: the model is not calibrated, for which fit must hold out at least 100 texts; "
            "raise validation_fraction, or use decision_function"
        )
    return True


class LabelSpaceClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Train a labelspace model on texts, as a scikit-learn estimator.

    ``X`` is a list, array or Series of n texts. ``y`` may be

    * an indicator matrix (n, L) of zeros and ones, dense or sparse, as `MultiLabelBinarizer` makes it, or its rows as
      lists,
    * n lists, tuples or sets of labels, which are strings or whole numbers,
    * n labels, one a text.

    `predict` answers in the same form. Nothing of the size texts x labels is made unless it is asked for: with a dense
    ``y``, by `decision_function`, and by `predict_proba` of a dense ``y`` or one label a text; it is refused where it
    would not fit.

    Args:
        recipe: ``dexml``, ``unidec`` or ``raexmc``.
        encoder: ``static``, ``minilm``, or any that `labelspace.train` takes.
        epochs: passes over the training texts; 0 with ``raexmc`` for a memory without training.
        batch_size: texts in a step.
        lr: highest learning rate; None for the recipe's.
        max_minutes: end `fit` within this time; None for no limit.
        settings: further settings of the recipe by name, see `labelspace.training.settings`.
        label_texts: texts of the labels. With an indicator matrix one for each column, else a mapping of labels to
            texts, whose labels can be predicted even if no training text has them. None takes the labels themselves.
        k: labels that `predict` gives a text, at most.
        threshold: `predict` gives the labels, of the best k, whose probability is at least this; None gives the best k.
        validation_fraction: share of the training texts that is held out, for the choice of the best weights and for
            probabilities. At least 100 texts must be held out for the latter.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        random_state: a seed, a generator, or None for a seed of chance.

    Attributes:
        model_: the `labelspace.Model`; ``model_.save(folder)`` keeps it for every other use.
        classes_: the L labels: as in ``y``, sorted; of an indicator matrix the names of a frame's columns, else their
            numbers.
    """

    def __init__(
        self,
        *,
        recipe: str = "dexml",
        encoder: str = "static",
        epochs: int = 5,
        batch_size: int = 512,
        lr: float | None = None,
        max_minutes: float | None = None,
        settings: Mapping[str, Any] | None = None,
        label_texts: Sequence[str] | Mapping[Any, str] | None = None,
        k: int = 5,
        threshold: float | None = None,
        validation_fraction: float = 0.1,
        device: str = "auto",
        random_state: Any = None,
    ):
        self.recipe = recipe
        self.encoder = encoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.max_minutes = max_minutes
        self.settings = settings
        self.label_texts = label_texts
        self.k = k
        self.threshold = threshold
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """What goes in and out: a 1-D array of strings; one label or several."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.target_tags.one_d_labels = tags.target_tags.two_d_labels = True
        tags.classifier_tags.multi_label = True
        tags.non_deterministic = self.max_minutes is not None
        return tags

    def fit(self, X: Any, y: Any) -> LabelSpaceClassifier:
        """Train.

        Args:
            X: n texts.
            y: their labels, in one of the forms above.

        Raises:
            ValueError: texts or labels of another form, or not as many of one as of the other.
            SettingsError: an unknown setting, or a value out of bounds.
            DataError: texts that cannot be trained on.
            ResourceError: the run would not fit into memory.
        """
        texts = _texts(X)
        kind, truth = _target(y)
        _require_equal(texts, truth)
        classes, names = self._label_space(kind, truth, getattr(y, "columns", None))
        targets = _matrix(truth, classes)
        labels = Labels([str(label) for label in classes.tolist()], names)
        if len(set(labels.ids)) < len(labels):
            raise ValueError("two labels are spelt alike as text, such as 1 and '1'; use one type of label")
        if kind != "single" and self.threshold is None and self.k >= len(labels):
            logger.warning(
                "k is %d and there are %d labels, so every text will get all of them; set a lower k, or a threshold",
                *(self.k, len(labels)),
            )
        corpus = Corpus([str(row) for row in range(len(texts))], texts, targets)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))  # which refuses what is no state at all
        if isinstance(self.random_state, int | np.integer):
            seed = int(self.random_state)
        rows = hold_out(texts, self.validation_fraction, MOST_HELD_OUT, seed)
        options: dict[str, str | int | float | None] = {"format": "scikit-learn", "seed": seed}
        options.update(valid_fraction=self.validation_fraction, valid_max=MOST_HELD_OUT)
        data = Dataset("texts", labels, corpus, corpus.rows(rows), None, rows, options)
        self.model_: Model = train(data, self.recipe, **self._settings(), seed=seed)
        self.classes_: npt.NDArray[Any] = classes
        self._kind: Kind = kind
        return self

    def _settings(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("encoder", "epochs", "batch_size", "lr", "max_minutes", "device")}
        more = dict(self.settings or {})
        twice = [name for name in (*own, "seed") if name in more]
        if twice:
            raise SettingsError(
                f"settings names {', '.join(twice)}, which the estimator has as parameters "
                "(seed as random_state); set those"
            )
        return own | more

    def _label_space(self, kind: Kind, truth: Any, columns: Any = None) -> tuple[npt.NDArray[Any], list[str]]:
        """The labels, and a text for each; a frame of zeros and ones has them as names of its columns."""
        texts = self.label_texts
        if kind in ("dense", "sparse"):
            count = truth.shape[1]
            labels = np.arange(count) if columns is None else np.array(list(columns), dtype=object)
            names = [str(label) for label in labels] if texts is None else _texts(texts, "label_texts")
            if len(names) != count:
                raise ValueError(f"label_texts has {len(names)} texts, but y has {count} columns")
            return labels, names
        if texts is not None and not isinstance(texts, Mapping):
            raise ValueError("label_texts must be a mapping of labels to texts where y is no indicator matrix")
        texts = {} if texts is None else texts
        classes = _sorted_labels({*(label for row in truth for label in row), *texts})
        if not len(classes):
            raise ValueError("y has no label at all")
        return classes, _texts([texts.get(label, str(label)) for label in classes.tolist()], "label_texts")

    # Answers

    def predict(self, X: Any) -> Any:
        """The labels of texts: the best ``k``, or those of them that reach ``threshold``.

        Args:
            X: n texts.

        Returns:
            In the form of the ``y`` of `fit`: (n,) one label a text, always the best; n lists of labels, best first;
            or an indicator matrix (n, L), int64, dense or CSR.

        Raises:
            NotFittedError: before `fit`.
            ModelError: a threshold, but the model is not calibrated.
            ResourceError: a dense matrix would not fit into memory.
        """
        texts = self._checked(X)
        if self._kind == "single":
            return self.classes_[self._predicted(texts, 1).indices[:, 0]]
        indices = self._predicted(texts, self.k, threshold=self.threshold).indices
        if self._kind == "lists":
            names = self.classes_.tolist()
            return [[names[i] for i in row if i >= 0] for row in indices.tolist()]
        matrix = self._sparse(indices, np.broadcast_to(1, indices.shape), np.int64)
        if self._kind == "sparse":
            return matrix
        self._require_dense(len(texts))
        return matrix.toarray()

    @available_if(_is_calibrated)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Probabilities of labels, as calibrated on the texts that `fit` held out.

        It is there only if `fit` could calibrate, for which at least 100 texts must be held out.

        Args:
            X: n texts.

        Returns:
            (n, L) float64. CSR with the best 100 labels of each text where ``y`` was sparse or lists, else an array of
            all. Where ``y`` had one label a text, rows sum to 1.

        Raises:
            NotFittedError: before `fit`.
            AttributeError: the model is not calibrated.
            ResourceError: a dense matrix would not fit into memory.
        """
        texts = self._checked(X)
        if self._kind in ("sparse", "lists"):
            pred = self._predicted(texts, PROBABLE_LABELS, probabilities=True)
            assert pred.probabilities is not None
            return self._sparse(pred.indices, pred.probabilities, np.float64)
        values = self._dense(texts, probabilities=True)
        if self._kind == "single":
            sums = values.sum(axis=1, keepdims=True)
            values = np.where(sums > 0, values / np.where(sums > 0, sums, 1), 1 / values.shape[1])
        return values

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Scores of all labels.

        Args:
            X: n texts.

        Returns:
            (n, L) float64; labels that no key votes for have 0. Where ``y`` had one label a text and there are two
            labels, (n,): how far the second is ahead of the first.

        Raises:
            NotFittedError: before `fit`.
            ResourceError: the matrix would not fit into memory.
        """
        scores = self._dense(self._checked(X))
        return scores[:, 1] - scores[:, 0] if self._kind == "single" and scores.shape[1] == 2 else scores

    def score(self, X: Any, y: Any) -> float:
        """How good the answers are, from 0 to 1.

        Args:
            X: n texts.
            y: their labels, in any of the forms.

        Returns:
            nDCG@5, by which `fit` chooses its weights too; accuracy where the ``y`` of `fit` had one label a text.

        Raises:
            NotFittedError: before `fit`.
            ValueError: labels of another form, or another number of them.
        """
        texts = self._checked(X)
        kind, truth = _target(y)
        _require_equal(texts, truth)
        if kind in ("dense", "sparse"):
            if truth.shape[1] != len(self.classes_):
                raise ValueError(f"y has {truth.shape[1]} columns, but {len(self.classes_)} labels were fitted")
        else:  # labels that were never seen count, as columns that nothing can hit
            known = self.classes_.tolist()
            new = {label for row in truth for label in row}.difference(known)
            truth = _matrix(truth, [*known, *new])
        hits = metrics.hits(self._predicted(texts, 1 if self._kind == "single" else 5).indices, truth)
        if self._kind == "single":
            return float(hits.mean())
        return metrics.percent(metrics.ndcg(hits, metrics.sizes(metrics.binary_truth(truth)), 5)) / 100

    def _checked(self, X: Any) -> list[str]:
        check_is_fitted(self, "model_")
        return _texts(X)

    def _predicted(self, texts: list[str], k: int, **options: Any) -> Predictions:
        return self.model_.predict(texts, min(k, len(self.classes_)), **options)

    def _sparse(self, indices: npt.NDArray[np.int64], values: npt.NDArray[Any], dtype: Any) -> sp.csr_array:
        """Values of predicted labels as CSR (n, L), padding apart."""
        there = indices >= 0
        entries = values[there], (np.repeat(np.arange(len(indices)), there.sum(axis=1)), indices[there])
        return sp.csr_array(sp.coo_array(entries, shape=(len(indices), len(self.classes_)), dtype=dtype))

    def _require_dense(self, rows: int) -> None:
        wanted = f"a dense matrix of {rows} texts x {len(self.classes_)} labels"
        require_memory(8 * rows * len(self.classes_), wanted, "give fewer texts at a time, or fit with a sparse y")

    def _dense(self, texts: list[str], probabilities: bool = False) -> npt.NDArray[np.float64]:
        self._require_dense(len(texts))
        whole = np.zeros((len(texts), len(self.classes_)))
        block = max(1, BLOCK_CELLS // len(self.classes_))
        for start in range(0, len(texts), block):
            part = texts[start : start + block]
            pred = self._predicted(part, len(self.classes_), probabilities=probabilities)
            values = pred.probabilities if probabilities else pred.scores
            assert values is not None
            rows, places = np.nonzero(pred.indices >= 0)
            whole[start + rows, pred.indices[rows, places]] = values[rows, places]
        return whole

    # Copies

    def __getstate__(self) -> dict[str, Any]:
        """The parameters, and of a fitted estimator the files of its model's folder."""
        state: dict[str, Any] = dict(super().__getstate__())
        model = state.pop("model_", None)
        if model is not None:
            state["_files"] = _files_of(model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the parameters, and open the model from its files, in a folder that lives as long as the model."""
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            folder = Path(tempfile.mkdtemp(prefix="labelspace-"))
            try:
                for name, content in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
                self.model_ = Model.load(folder, self.device)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            weakref.finalize(self.model_, shutil.rmtree, folder, ignore_errors=True)
            self.model_.core.folder = None  # nothing is to be saved there


def _files_of(model: Model) -> dict[str, bytes]:
    """The files of a model's folder, which is written for that and removed; the model stays as it is."""
    segments = (*model.memory.label_keys.segments, *model.memory.document_keys.segments)
    before = [(segment, segment.file, segment.graph_file) for segment in segments]
    linear_file = model.memory.linear_file
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "model")
            copy.copy(model).save(folder)
            files = (file for file in sorted(folder.rglob("*")) if file.is_file())
            return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    finally:
        for segment, *names in before:
            segment.file, segment.graph_file = names
        model.memory.linear_file = linear_file


def _texts(X: Any, name: str = "X") -> list[str]:
    """n strings from whatever holds them in one dimension."""
    if isinstance(X, str | bytes):
        raise ValueError(f"{name} must be a list or array of texts, got a single one; put it into a list")
    if sp.issparse(X):
        raise ValueError(f"{name} must be texts, got a sparse matrix")
    shape = getattr(X, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ValueError(f"{name} must be texts in one dimension, got shape {tuple(shape)}; choose one column")
    try:
        texts = list(X)
    except TypeError:
        raise ValueError(f"{name} must be a list or array of texts, got {type(X).__name__}") from None
    if not texts and name == "X":
        raise ValueError("X has no texts (0 samples), and at least one is needed")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name} must hold texts, but number {row} is {text!r} ({type(text).__name__})")
        if name == "label_texts" and not text.strip():
            raise ValueError(f"label_texts must say something of each label, but number {row} (from 0) is empty")
    return list(map(str, texts))


def _target(y: Any) -> tuple[Kind, Any]:
    """The form of the truth, and it as CSR float32 or as one list of labels a text."""
    if y is None:
        raise ValueError("LabelSpaceClassifier requires y to be passed, but the target y is None")
    if isinstance(y, str | bytes):
        raise ValueError("y must be labels of many texts, got a single string")
    if sp.issparse(y):
        return "sparse", _indicator(sp.csr_array(y))
    array = y if isinstance(y, np.ndarray) else np.asarray(y) if hasattr(y, "__array__") else None
    if array is not None and array.ndim == 2 and array.shape[1] == 1:
        array = column_or_1d(array, warn=True)
    if array is not None and array.ndim != 1:
        if array.ndim != 2:
            raise ValueError(f"y must be labels or an indicator matrix (n, L), got shape {array.shape}")
        if array.dtype.kind == "O":  # a table whose columns are of several types
            with contextlib.suppress(TypeError, ValueError):
                array = array.astype(np.float64)
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"an indicator matrix y holds zeros and ones, got {array.dtype}; give several labels a text as lists"
            )
        if not np.isfinite(array).all():
            raise ValueError("y contains NaN or infinity")
        return "dense", _indicator(sp.csr_array(array))
    try:
        rows = list(y) if array is None else array.tolist()
    except TypeError:
        raise ValueError(f"y must be labels or an indicator matrix, got {type(y).__name__}") from None
    several = [isinstance(row, list | tuple | set | frozenset | np.ndarray) for row in rows]
    if any(several) and not all(several):
        row = several.index(not several[0])
        raise ValueError(
            f"y must hold one label a text or a list of labels for each, and number {row} is unlike the 1st"
        )
    if any(several) and _are_bits(rows):
        return "dense", _indicator(sp.csr_array(np.array([list(row) for row in rows])))
    kind: Kind = "lists" if any(several) else "single"
    return kind, [[_label(label, i) for label in (row if kind == "lists" else [row])] for i, row in enumerate(rows)]


def _are_bits(rows: list[Any]) -> bool:
    """Whether lists are rows of an indicator matrix: zeros and ones, some repeated, as no labels are.

    Rows of two that repeat nothing are bits too: as labels each would be both.
    """
    if any(isinstance(row, set | frozenset) or len(row) != len(rows[0]) for row in rows):
        return False
    repeated = any(len(set(row)) < len(row) for row in map(list, rows))
    return (repeated or len(rows[0]) == 2) and all(
        isinstance(v, int | np.integer) and v in (0, 1) for row in rows for v in row
    )


def _indicator(matrix: sp.csr_array) -> sp.csr_array:
    matrix = matrix.astype(np.float32)
    matrix.sum_duplicates()
    if ((matrix.data != 0) & (matrix.data != 1)).any():
        raise ValueError("an indicator matrix y holds zeros and ones, and this one has other values")
    matrix.eliminate_zeros()
    return matrix


def _label(label: Any, row: int) -> str | int:
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
        return int(label)
    if not isinstance(label, str | int):
        unknown = "Unknown label type: " if isinstance(label, float) else ""  # scikit-learn's own checks look for it
        raise ValueError(f"{unknown}labels are strings or whole numbers, but y has {label!r} in row {row}")
    return label


def _sorted_labels(labels: set[Any]) -> npt.NDArray[Any]:
    """Distinct labels in order; strings as objects, since NumPy's own drop what follows a NUL."""
    if len({isinstance(label, str) for label in labels}) > 1:
        raise ValueError("labels must be all strings or all whole numbers, and y mixes them")
    return np.array(sorted(labels), dtype=object if any(isinstance(label, str) for label in labels) else None)


def _matrix(truth: Any, classes: Any) -> sp.csr_array:
    """The truth as CSR (n, L) float32."""
    if sp.issparse(truth):
        return truth
    number = {label: i for i, label in enumerate(classes if isinstance(classes, list) else classes.tolist())}
    columns = [sorted({number[label] for label in row}) for row in truth]
    indptr = np.cumsum([0, *map(len, columns)])
    flat = np.array([i for row in columns for i in row], dtype=np.int64)
    return sp.csr_array((np.ones(len(flat), dtype=np.float32), flat, indptr), shape=(len(truth), len(number)))


def _require_equal(texts: list[str], truth: Any) -> None:
    count = truth.shape[0] if sp.issparse(truth) else len(truth)
    if count != len(texts):
        raise ValueError(f"X has {len(texts)} texts, but y has {count} rows")
