"""Sparse matrices from ``.npz`` files, checked before anyone counts on them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import DataError

Array = npt.NDArray[Any]


class _NotReal(Exception):
    """A whole matrix, but not one of real numbers."""


def read_npz(path: Path, wide: bool = False) -> sp.csr_array:
    """A sparse matrix that SciPy saved, as CSR with sorted rows; damaged and foreign files are refused.

    Entries that occur twice stay so: what that means is for the caller to say.

    Args:
        path: the ``.npz`` file; pickled content is never loaded. The four arrays of a CSR matrix without the name of
            the format, as some tools write them, will do.
        wide: keep values that float32 would round as float64, and those of an array that float64 would round as they
            are; otherwise all become float32.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd headers and overflow, both of which end in an error below
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return _to_csr({name: np.asarray(arrays[name]) for name in arrays.files}, wide)
    except FileNotFoundError:
        raise DataError("the file does not exist", path) from None
    except _NotReal as error:
        raise DataError(str(error), path) from None
    except Exception as error:  # zip, zlib, header and shape errors of many types: all mean an unusable file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"this is not a whole SciPy sparse matrix ({reason}); fetch or write it again", path) from None


def _to_csr(arrays: dict[str, Array], wide: bool) -> sp.csr_array:
    kind = arrays["format"].item() if "format" in arrays else "csr"
    kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
    shape, stored = _whole(arrays["shape"]), arrays["data"]
    if shape.shape != (2,):
        raise ValueError("the shape is not two numbers")
    if stored.dtype.kind == "c":
        raise _NotReal(f"the values are complex ({stored.dtype}); real numbers are needed")
    if stored.dtype.kind not in "buif" or stored.ndim != {"bsr": 3, "dia": 2}.get(kind, 1):
        raise ValueError(f"{stored.ndim}-dimensional values of type {stored.dtype}")
    rounds = np.result_type(stored.dtype, np.float32) != np.float32
    data = stored.astype(np.float64 if wide and rounds else np.float32, copy=False)
    if wide and _rounds_in_float64(stored):
        data = stored
    if (np.isinf(data) & np.isfinite(stored)).any():
        raise ValueError("a value is too large")
    n_rows, n_columns = shape.tolist()
    if kind == "csr":
        columns, starts = _compressed(arrays, len(data), n_rows, n_columns)
        data = data[: starts[-1]]
    else:
        rows, columns, data = _entries(arrays, kind, data, n_rows, n_columns)
        order = np.lexsort((columns, rows))
        columns, data = columns[order], data[order]
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    matrix = sp.csr_array((data, columns, starts), shape=(n_rows, n_columns))
    matrix.sort_indices()
    return matrix


def _rounds_in_float64(values: Array) -> bool:
    if values.dtype.kind == "f":
        return values.dtype.itemsize > 8 and bool((values.astype(np.float64) != values).any())
    if values.dtype.kind == "b" or values.dtype.itemsize < 8 or not values.size:
        return False
    return int(values.max()) > 2**53 or int(values.min()) < -(2**53)


def _entries(
    arrays: dict[str, Array], kind: object, data: Array, n_rows: int, n_columns: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array]:
    """Row, column and value of each entry."""
    if kind == "csc":
        rows, starts = _compressed(arrays, len(data), n_columns, n_rows)
        return rows, np.repeat(np.arange(n_columns), np.diff(starts)), data[: starts[-1]]
    if kind == "coo":
        places = arrays["coords"] if "coords" in arrays else np.stack([arrays["row"], arrays["col"]])
        if places.shape != (2, len(data)):
            raise ValueError("not a row and a column for each value")
        return _within(places[0], n_rows), _within(places[1], n_columns), data
    if kind == "bsr":
        height, width = data.shape[1:]
        if n_rows % height or n_columns % width:
            raise ValueError("the blocks do not fit the shape")
        columns, starts = _compressed(arrays, len(data), n_rows // height, n_columns // width)
        rows = np.repeat(np.arange(n_rows // height), np.diff(starts))
        block, row, column = map(np.ravel, np.indices((len(rows), height, width)))
        return rows[block] * height + row, columns[block] * width + column, data[: starts[-1]].ravel()
    if kind == "dia":
        offsets = arrays["offsets"]
        if offsets.dtype.kind not in "iu" or offsets.shape != (len(data),) or len(np.unique(offsets)) < len(data):
            raise ValueError("not an offset for each diagonal")
        diagonal, columns = np.nonzero(data)  # zeros fill its ends, so none of them is an entry
        rows = columns - offsets.astype(np.int64)[diagonal]
        inside = (rows >= 0) & (rows < n_rows) & (columns < n_columns)
        return rows[inside], columns[inside], data[diagonal[inside], columns[inside]]
    raise ValueError(f"its format is {kind!r}, not csr, csc, coo, bsr or dia")


def _compressed(
    arrays: dict[str, Array], n_values: int, n_major: int, n_minor: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Minor numbers of the values, and where each major number's values start."""
    starts = _whole(arrays["indptr"])
    if starts.shape != (n_major + 1,) or starts[0] != 0 or (starts[1:] < starts[:-1]).any() or starts[-1] > n_values:
        raise ValueError("the index pointer does not fit")
    if arrays["indices"].shape != (n_values,):
        raise ValueError("not an index for each value")
    return _within(arrays["indices"][: starts[-1]], n_minor), starts


def _within(numbers: Array, count: int) -> npt.NDArray[np.int64]:
    numbers = _whole(numbers)
    if numbers.size and numbers.max() >= count:
        raise ValueError(f"an index is not one of 0 to {count - 1}")
    return numbers


def _whole(numbers: Array) -> npt.NDArray[np.int64]:
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"whole numbers are needed, not {numbers.dtype}")
    whole = numbers.astype(np.int64, copy=False)
    if (whole < 0).any():
        raise ValueError("a number is negative or too large")
    return whole
