"""Very many strings laid end to end, so that millions open at once and only those that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

BLOCK_STRINGS = 1 << 16
"""Strings decoded, or copied, at a time."""


class Strings(Sequence[str]):
    """n strings in UTF-8, perhaps memory-mapped; equal to any sequence of the same strings.

    Args:
        data: (bytes,) uint8 of all strings, end to end.
        offsets: (n + 1,) int64; string i is ``data[offsets[i]:offsets[i + 1]]``.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]):
        self.data, self.offsets = data, offsets

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """Lay strings end to end; half of a surrogate pair is kept as it is."""
        if isinstance(strings, Strings):
            return strings
        encoded = [s.encode("utf-8", "surrogatepass") for s in strings]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    @classmethod
    def joined(cls, parts: Sequence[Strings]) -> Strings:
        """Several lists as one, in order; none is changed."""
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum([0, *(int(p.offsets[-1] - p.offsets[0]) for p in parts)])
        offsets = [p.offsets[1:] - p.offsets[0] + end for p, end in zip(parts, ends, strict=False)]
        data = [p.data[p.offsets[0] : p.offsets[-1]] for p in parts]
        return cls(np.concatenate([np.zeros(0, np.uint8), *data]), np.concatenate([np.zeros(1, np.int64), *offsets]))

    def take(self, rows: npt.NDArray[np.int64]) -> Strings:
        """The strings of some rows, repeats allowed, copied."""
        # Of few rows only their own offsets are read, since all of them may be a large file.
        many = len(rows) * 4 > len(self)
        lengths = np.diff(self.offsets)[rows] if many else self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        data = np.empty(int(offsets[-1]), dtype=np.uint8)
        for start in range(0, len(rows), BLOCK_STRINGS):
            block = slice(start, start + BLOCK_STRINGS)
            shift = np.repeat(self.offsets[rows[block]] - offsets[:-1][block], lengths[block])
            first, last = int(offsets[start]), int(offsets[min(start + BLOCK_STRINGS, len(rows))])
            data[first:last] = self.data[np.arange(first, last) + shift]
        return Strings(data, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        row = place + len(self) if place < 0 else place
        if not 0 <= row < len(self):
            raise IndexError(f"there is no string number {place} among {len(self)}")
        raw = self.data[int(self.offsets[row]) : int(self.offsets[row + 1])]
        return raw.tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK_STRINGS):
            offsets = self.offsets[start : start + BLOCK_STRINGS + 1].tolist()
            raw = self.data[offsets[0] : offsets[-1]].tobytes()
            first = offsets[0]
            for a, b in zip(offsets[:-1], offsets[1:], strict=True):
                yield raw[a - first : b - first].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return (
                np.array_equal(np.diff(self.offsets), np.diff(other.offsets))
                and self.data[self.offsets[0] : self.offsets[-1]].tobytes()
                == other.data[other.offsets[0] : other.offsets[-1]].tobytes()
            )
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented
