"""Sparse matrices from ``.npz`` files, checked before anyone counts on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp

from ..errors import DataError


def read_npz(path: Path, wide: bool = False) -> sp.csr_array:
    """A sparse matrix that SciPy saved, as CSR with sorted rows; damaged and foreign files are refused.

    Args:
        path: the ``.npz`` file; pickled content is never loaded. The four arrays of a CSR matrix without the name of
            the format, as some tools write them, will do.
        wide: keep values that float32 would round as float64; otherwise all become float32.
    """
    try:
        with path.open("rb") as file:
            loaded = _load(file)
        if hasattr(loaded, "check_format"):
            loaded.check_format(full_check=True)
        if loaded.dtype.kind not in "buif":
            raise ValueError(f"values of type {loaded.dtype}")
        rounds = np.result_type(loaded.dtype, np.float32) != np.float32
        matrix = sp.csr_array(loaded, dtype=np.float64 if wide and rounds else np.float32)
        if matrix.nnz < loaded.nnz:
            raise ValueError("an entry is there twice")
        matrix.sort_indices()
    except FileNotFoundError:
        raise DataError("the file does not exist", path) from None
    except Exception as error:  # zip, zlib, header and shape errors of many types: all mean an unusable file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"this is not a whole SciPy sparse matrix ({reason}); fetch or write it again", path) from None
    return matrix


def _load(file: BinaryIO) -> Any:
    arrays = np.load(file, allow_pickle=False)
    with arrays:
        if "format" not in arrays.files and {"data", "indices", "indptr", "shape"} <= set(arrays.files):
            data = arrays["data"]
            data = data.astype(np.float32) if data.dtype == np.float16 else data  # which SciPy does not know
            return sp.csr_array((data, arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"].tolist()))
    file.seek(0)
    return sp.load_npz(file)
