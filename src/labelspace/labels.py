"""Label numbers matched: those of data, of a model, of predictions that others made; and labels asked for by name.

Everything else in the package counts labels by number. Only here are two numberings brought together, by label id.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from .base.words import form
from .errors import DataError
from .evaluation.metrics import binary_truth
from .types import Labels

IntArray = npt.NDArray[np.int64]

COMPARED_MAX_NAMES = 200_000
"""Names that an unknown one is compared with to name the nearest: it takes a second."""


def numbers_in(ids: Sequence[str], known: Sequence[str]) -> IntArray:
    """(n,) numbers of labels in another numbering, -1 for an id that is not there.

    Args:
        ids: n label ids.
        known: ids in the order of the other numbering, each once.
    """
    if list(ids) == list(known):
        return np.arange(len(ids))
    number = {name: i for i, name in enumerate(known)}
    return np.array([number.get(name, -1) for name in ids], dtype=np.int64)


def numbers_among(ids: Sequence[str], number: dict[str, int]) -> IntArray:
    """(L + 1,) numbers of a model's labels among those of the data, so that its predictions can meet the truth.

    The last is -1, so that the number -1 of padding stays -1.

    Args:
        ids: L ids of the model's labels.
        number: numbers by id; ids that are not there get the next ones, and are added.
    """
    return np.array([*(number.setdefault(name, len(number)) for name in ids), -1], dtype=np.int64)


def widened(truth: sp.csr_array, n_labels: int) -> sp.csr_array:
    """A truth with more labels, none of which is true.

    Args:
        truth: (n, L).
        n_labels: how many, at least L.
    """
    return sp.csr_array((truth.data, truth.indices, truth.indptr), shape=(truth.shape[0], n_labels))


def renumbered_pairs(pairs: sp.sparray, number: IntArray, n_labels: int) -> sp.csr_array:
    """(n, n_labels) pairs in another numbering, as 0 and 1; those of labels without a number are left out.

    Args:
        pairs: (n, L), what is not 0 being a pair of document and label.
        number: (L,) numbers, -1 for none.
        n_labels: labels of the other numbering.
    """
    entries = sp.coo_array(pairs)
    labels = number[entries.col]
    kept = labels >= 0
    ones = np.ones(int(kept.sum()), dtype=bool)
    return binary_truth(sp.coo_array((ones, (entries.row[kept], labels[kept])), shape=(pairs.shape[0], n_labels)))


def renumbered_targets(targets: sp.csr_array, number: IntArray, n_labels: int) -> sp.csr_array:
    """(n, n_labels) truth in another numbering, each row in its order; without values of 0 and labels without a number.

    Args:
        targets: (n, L).
        number: (L,) numbers, -1 for none.
        n_labels: labels of the other numbering.
    """
    columns = number[targets.indices]
    kept = (columns >= 0) & (targets.data > 0)
    running = np.concatenate([[0], np.cumsum(kept)])
    parts = (targets.data[kept], columns[kept], running[targets.indptr])
    return sp.csr_array(parts, shape=(targets.shape[0], n_labels))


class LabelNames:
    """Labels by id, by text, or by number, as users name them.

    Args:
        labels: L labels. Of an id that is another label's text, the id counts.
    """

    def __init__(self, labels: Labels):
        self.count = len(labels)
        self._numbers: dict[str, list[int]] = {}
        for i, text in enumerate(labels.texts):
            self._numbers.setdefault(text, []).append(i)
        for i, name in enumerate(labels.ids):
            self._numbers[name] = [i]
        self._forms: dict[str, str] = {}
        """Names by `form`, made when a name is not found as it is."""

    def find(self, name: str) -> list[int] | None:
        """Numbers of the labels with this id or text, in any normal form; None for an unknown name."""
        if name not in self._numbers and not self._forms:
            self._forms = {form(known): known for known in reversed(self._numbers)}
        return self._numbers.get(name) or self._numbers.get(self._forms.get(form(name), ""))

    def __call__(self, labels: Iterable[str | int]) -> IntArray:
        """Numbers of some labels, rising, each once.

        Args:
            labels: ids first, then texts (every label of that text), or whole numbers.

        Raises:
            DataError: no labels, or an unknown one; the nearest known ones are named.
        """
        wanted = _listed(labels)
        if not wanted:
            raise DataError("no label to choose from was given; pass labels=None to choose from all")
        numbers: set[int] = set()
        for label in wanted:
            if isinstance(label, int | np.integer) and not isinstance(label, bool):
                if not 0 <= label < self.count:
                    raise DataError(f"there is no label number {label}; the model has {self.count} labels")
                numbers.add(int(label))
            elif isinstance(label, str) and (found := self.find(label)) is not None:
                numbers.update(found)
            else:
                near = difflib.get_close_matches(str(label), list(self._numbers)[:COMPARED_MAX_NAMES], n=3)
                hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
                said = repr(label) if len(repr(label)) < 200 else f"{repr(label)[:200]}…"
                raise DataError(f"the model has no label {said}{hint}")
        return np.array(sorted(numbers), dtype=np.int64)


def _listed(labels: Any) -> list[Any]:
    try:
        return [labels] if isinstance(labels, str) else list(labels)
    except TypeError as error:
        raise DataError(f"a list of labels was expected, got {type(labels).__name__}") from error
