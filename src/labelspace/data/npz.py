"""Sparse matrices from ``.npz`` files, checked before anyone counts on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ..errors import DataError


def read_npz(path: Path) -> sp.csr_array:
    """A sparse matrix that SciPy saved, as CSR float32 with sorted rows; damaged and foreign files are refused.

    Args:
        path: the ``.npz`` file; pickled content is never loaded.
    """
    try:
        with path.open("rb") as file:
            loaded = sp.load_npz(file)
        if hasattr(loaded, "check_format"):
            loaded.check_format(full_check=True)
        if loaded.dtype.kind not in "buif":
            raise ValueError(f"values of type {loaded.dtype}")
        matrix = sp.csr_array(loaded, dtype=np.float32)
        matrix.sort_indices()
    except FileNotFoundError:
        raise DataError("the file does not exist", path) from None
    except Exception as error:  # zip, zlib, header and shape errors of many types: all mean an unusable file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"this is not a whole SciPy sparse matrix ({reason}); fetch or write it again", path) from None
    return matrix
