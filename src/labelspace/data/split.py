"""Which documents are held out for validation; documents of one text stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..base.words import first_words, plain_words
from ..errors import SettingsError


def check_hold_out(fraction: float, maximum: int) -> None:
    """Refuse a share or a number of documents to hold out that is out of bounds."""
    if not 0 <= fraction < 1:
        raise SettingsError(f"valid_fraction must be from 0 to below 1, got {fraction}")
    if maximum < 0:
        raise SettingsError(f"valid_max must not be negative, got {maximum}")


def hold_out(texts: Sequence[str], fraction: float, maximum: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw documents to hold out: (v,) sorted rows, v at most min(fraction of N, maximum), but at least 1 if N > 1.

    Texts that are equal but for case, punctuation and white space go together. They are drawn in whole
    groups; a group that no longer fits is passed over. Where none fits, the smallest is drawn all the same, unless all
    texts are one group.

    Args:
        texts: N texts.
        fraction: the share to hold out, from 0 (none) to below 1.
        maximum: the most rows to hold out.
        seed: decides the draw.
    """
    check_hold_out(fraction, maximum)
    if fraction == 0 or maximum == 0 or len(texts) < 2:
        return np.zeros(0, dtype=np.int64)
    target = max(1, min(int(fraction * len(texts)), maximum))

    # Groups are named by their first row. Few texts share their first words, so only those are compared in full.
    starts = np.fromiter((hash(first_words(text)) for text in texts), dtype=np.int64, count=len(texts))
    _, first, inverse, counts = np.unique(starts, return_index=True, return_inverse=True, return_counts=True)
    group = first[inverse]
    seen: dict[bytes, int] = {}
    for row in np.flatnonzero(counts[inverse] > 1).tolist():
        words = plain_words(texts[row]).encode("utf-8", "surrogatepass")
        group[row] = seen.setdefault(hashlib.blake2b(words, digest_size=16).digest(), row)
    groups, inverse, sizes = np.unique(group, return_inverse=True, return_counts=True)

    order = np.random.default_rng(seed).permutation(len(groups))
    drawn, total = np.zeros(len(groups), dtype=bool), 0
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if total + size <= target:
            drawn[number] = True
            total += size
            if total == target:
                break
    if total == 0 and len(groups) > 1:
        drawn[order[np.argmin(sizes[order])]] = True
    return np.flatnonzero(drawn[inverse])
