"""Keys of one kind, with what they vote for: searched, appended to, struck out, and kept on disk as they are.

The keys lie in *segments*, each one file. What is added becomes a segment of its own, or is joined with small ones
before it, so that a change never rewrites the bulk; what is removed is struck out until its segment is rewritten. A key
votes for label *slots*: numbers that are given once and never again, whatever is removed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..base.strings import Strings
from .indexes import ExactIndex, HnswIndex

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

VOTES, SILENT, REMOVED = 0, 1, 2
"""States of a key: it votes; it has no label left to vote for; it is gone."""
SMALL = 4096
"""Segments of fewer keys are always joined with what comes after them."""
REWRITE_SHARE = 0.25
"""A segment is rewritten when more than this share of it is removed."""


@dataclass(eq=False)
class Segment:
    """n keys that lie together.

    Args:
        keys: (n, D) float32 or bf16, perhaps memory-mapped.
        indptr: (n + 1,) int64; key i votes for ``slots[indptr[i]:indptr[i + 1]]``.
        slots: (m,) label slots.
        values: (m,) float32 votes, or None for 1 each.
        ids: n ids.
        texts: n texts.
        state: (n,) uint8, one of VOTES, SILENT, REMOVED, or None where every key votes.
        file: name of the file that holds all of it but the state; None where there is none yet.

    Attributes:
        index: how its keys are searched: exactly, or through a graph.
        graph: where there is a graph: its recall, and how deep it looks. It is there without the extra ``ann`` too,
            when nothing can search it.
        graph_file: name of the file that holds the graph; None where there is none yet.
    """

    keys: Tensor
    indptr: IntArray
    slots: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32] | None
    ids: Strings
    texts: Strings
    state: npt.NDArray[np.uint8] | None = None
    file: str | None = None
    index: ExactIndex | HnswIndex = field(init=False, repr=False)
    graph: dict[str, Any] | None = field(init=False, default=None)
    graph_file: str | None = field(init=False, default=None)
    _struck: tuple[npt.NDArray[np.uint8], BoolArray, int] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        n = len(self.keys)
        if self.keys.ndim != 2 or len(self.indptr) != n + 1 or len(self.ids) != n or len(self.texts) != n:
            raise ValueError(
                f"{tuple(self.keys.shape)} keys do not fit {len(self.indptr) - 1} rows of votes, "
                f"{len(self.ids)} ids and {len(self.texts)} texts"
            )
        self.index = ExactIndex(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def removed(self) -> int:
        """Keys that are gone."""
        return 0 if self.state is None else int((self.state == REMOVED).sum())

    @property
    def struck(self) -> tuple[BoolArray | None, int]:
        """(n,) keys that do not vote, or None where all do, and how many they are."""
        if self.state is None:
            return None, 0
        if self._struck is None or self._struck[0] is not self.state:
            mask = self.state != VOTES
            self._struck = self.state, mask, int(mask.sum())
        return self._struck[1:] if self._struck[2] else (None, 0)

    def strike(self, row: int) -> None:
        """Let a key be gone.

        Args:
            row: which.
        """
        if self.state is None:
            self.state = np.zeros(len(self), dtype=np.uint8)
        self.state[row] = REMOVED
        self._struck = None

    def build_graph(self, queries: Tensor | None = None, **options: Any) -> None:
        """Search through a graph from now on.

        Args:
            queries: (m, D) float32 that its recall is measured with; None for some of the keys, moved.
            options: as for `HnswIndex.build`.
        """
        self.index = HnswIndex.build(self.keys, queries=queries, **options)
        self.graph, self.graph_file = self.index.settings, None

    def drop_graph(self) -> None:
        """Search exactly from now on."""
        self.index, self.graph, self.graph_file = ExactIndex(self.keys), None, None

    def replace_keys(self, keys: Tensor) -> None:
        """Take other keys of the same votes; a graph is lost with the old ones.

        Args:
            keys: (n, D).
        """
        warn_of_lost_graphs([self])
        self.keys, self.file = keys, None
        self.drop_graph()

    def take_graph(self, other: Segment) -> None:
        """Search as another segment of the same keys does.

        Args:
            other: a segment with these keys, in this order.
        """
        self.index, self.graph, self.graph_file = other.index, other.graph, other.graph_file

    def shared(self) -> Segment:
        """The same keys in a segment of its own, from which others may be gone."""
        state = None if self.state is None else self.state.copy()
        other = Segment(self.keys, self.indptr, self.slots, self.values, self.ids, self.texts, state)
        other.take_graph(self)
        other.graph_file = None
        return other

    def take(self, rows: IntArray) -> Segment:
        """Some rows as a segment of their own, copied.

        Args:
            rows: (r,) rows.
        """
        counts, places = spread(self.indptr, rows)
        return Segment(
            self.keys[torch.from_numpy(rows).to(self.keys.device)],
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            self.slots[places],
            None if self.values is None else self.values[places],
            self.ids.take(rows),
            self.texts.take(rows),
            None if self.state is None or not self.state[rows].any() else self.state[rows],
        )

    def rewritten(self) -> Segment:
        """Without the keys that are gone; a graph is lost with them."""
        if not self.removed:
            return self
        warn_of_lost_graphs([self])
        return self.take(np.flatnonzero(self.state != REMOVED))

    @classmethod
    def joined(cls, parts: list[Segment]) -> Segment:
        """Several segments as one; what is gone is left out, and graphs are lost unless it is one untouched segment.

        Args:
            parts: in order, one at least.
        """
        parts = [part.rewritten() for part in parts]
        if len(parts) == 1:
            return parts[0]
        warn_of_lost_graphs(parts)
        ends = np.cumsum([0, *(len(p.slots) for p in parts)])
        weighted = any(p.values is not None for p in parts)
        states = any(p.state is not None for p in parts)
        return cls(
            torch.cat([p.keys for p in parts]),
            np.concatenate([np.zeros(1, np.int64), *(p.indptr[1:] + e for p, e in zip(parts, ends, strict=False))]),
            np.concatenate([p.slots for p in parts]),
            np.concatenate([_or(p.values, len(p.slots), 1, np.float32) for p in parts]) if weighted else None,
            Strings.joined([p.ids for p in parts]),
            Strings.joined([p.texts for p in parts]),
            np.concatenate([_or(p.state, len(p), VOTES, np.uint8) for p in parts]) if states else None,
        )

    def write(self, path: Path) -> None:
        """Write everything but the state.

        Args:
            path: the file.
        """
        tensors = {
            "keys": self.keys.detach().cpu().contiguous(),
            "votes.indptr": torch.from_numpy(np.ascontiguousarray(self.indptr)),
            "votes.slots": torch.from_numpy(np.ascontiguousarray(self.slots)),
        }
        if self.values is not None:
            tensors["votes.values"] = torch.from_numpy(np.ascontiguousarray(self.values))
        for name, strings in (("ids", self.ids), ("texts", self.texts)):
            tensors.update(strings_as_tensors(name, strings))
        save_file(tensors, path)

    @classmethod
    def open(cls, path: Path, device: str) -> Segment:
        """What `write` wrote; on a CPU it is mapped, not read.

        Args:
            path: the file.
            device: where to put the keys.
        """
        tensors = load_file(path)
        return cls(
            tensors["keys"].to(device),
            tensors["votes.indptr"].numpy(),
            tensors["votes.slots"].numpy(),
            tensors["votes.values"].numpy() if "votes.values" in tensors else None,
            strings_from_tensors("ids", tensors),
            strings_from_tensors("texts", tensors),
            file=path.name,
        )


class Keys:
    """Keys of one kind, in segments; *places* count through all of them.

    Args:
        segments: in order.
        dim: dimensions D of a key.
    """

    def __init__(self, segments: Iterable[Segment], dim: int):
        self.segments = list(segments)
        self.dim = dim
        self._rows: dict[str, tuple[Segment, int]] | None = None

    @property
    def starts(self) -> IntArray:
        """(segments + 1,) place at which each segment begins, and the number of places."""
        return np.cumsum([0, *(len(s) for s in self.segments)])

    def __len__(self) -> int:
        """Keys that are not gone."""
        return sum(len(s) - s.removed for s in self.segments)

    @property
    def silent(self) -> int:
        """Keys that are not gone, but have no label left."""
        return sum(0 if s.state is None else int((s.state == SILENT).sum()) for s in self.segments)

    @property
    def state(self) -> npt.NDArray[np.uint8] | None:
        """(places,) state of every key, or None where every key votes."""
        if all(s.state is None for s in self.segments):
            return None
        return np.concatenate([_or(s.state, len(s), VOTES, np.uint8) for s in self.segments])

    def present(self) -> IntArray:
        """Places of the keys that are not gone."""
        state = self.state
        return np.arange(self.starts[-1]) if state is None else np.flatnonzero(state != REMOVED)

    # Searching

    def search(
        self, queries: Tensor, k: int, left_out: BoolArray | None = None
    ) -> tuple[npt.NDArray[np.float32], IntArray]:
        """The k voting keys of the largest inner product for each query.

        Args:
            queries: (n, D) float32, on the device of the keys.
            k: keys a query.
            left_out: (places,) keys that do not take part, beside those that do not vote.

        Returns:
            similarities (n, k) float32, falling, and places (n, k) int64; k shrinks to the keys that take part. -inf
            and -1 where an index finds fewer.
        """
        found = []
        for segment, start in zip(self.segments, self.starts, strict=False):
            skip, count = segment.struck
            if left_out is not None:
                part = left_out[start : start + len(segment)]
                skip = part if skip is None else skip | part
                count = int(skip.sum())
            values, rows = _search(segment, queries, k, skip if count else None, count)
            found.append((values, np.where(rows < 0, -1, rows + start) if start else rows))
        if not found:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        if len(found) == 1:
            return found[0]
        values, places = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)

    def votes(self, places: IntArray) -> tuple[IntArray, npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """What some keys vote for.

        Args:
            places: (m,) places.

        Returns:
            votes a key (m,), and slots and values of all of them, end to end.
        """
        if len(self.segments) == 1:
            return _votes(self.segments[0], places)
        owner = np.searchsorted(self.starts, places, side="right") - 1
        counts = np.zeros(len(places), dtype=np.int64)
        parts = []
        for number, (segment, start) in enumerate(zip(self.segments, self.starts, strict=False)):
            mine = np.flatnonzero(owner == number)
            counts[mine], slots, values = _votes(segment, places[mine] - start)
            parts.append((mine, slots, values))
        ends = np.cumsum(counts)
        slots = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int32)
        values = np.empty(len(slots), dtype=np.float32)
        for mine, part_slots, part_values in parts:
            _, where = spread(np.concatenate([[0], ends]), mine)
            slots[where], values[where] = part_slots, part_values
        return counts, slots, values

    def voters(self, chosen: BoolArray) -> BoolArray:
        """Which keys vote for one of some slots.

        Args:
            chosen: (slots,) mask.

        Returns:
            (places,) mask.
        """
        masks = [np.zeros(0, dtype=bool)]
        for segment in self.segments:
            running = np.concatenate([[0], np.cumsum(chosen[segment.slots], dtype=np.int64)])
            masks.append(np.diff(running[segment.indptr]) > 0)
        return np.concatenate(masks)

    def vectors(self, places: IntArray) -> Tensor:
        """Vectors of some keys.

        Args:
            places: (m,) places.

        Returns:
            (m, D) in the type of the keys.
        """
        if not self.segments:
            return torch.zeros(0, self.dim)
        owner = np.searchsorted(self.starts, places, side="right") - 1
        first = self.segments[0].keys
        found = torch.empty(len(places), self.dim, dtype=first.dtype, device=first.device)
        for number, (segment, start) in enumerate(zip(self.segments, self.starts, strict=False)):
            mine = np.flatnonzero(owner == number)
            rows = torch.from_numpy(places[mine] - start).to(first.device)
            found[torch.from_numpy(mine).to(first.device)] = segment.keys[rows].to(first.dtype)
        return found

    def ids(self, places: IntArray) -> Strings:
        """Ids of some keys.

        Args:
            places: (m,) places.
        """
        return self._strings("ids", places)

    def texts(self, places: IntArray) -> Strings:
        """Texts of some keys.

        Args:
            places: (m,) places.
        """
        return self._strings("texts", places)

    def _strings(self, name: str, places: IntArray) -> Strings:
        if len(self.segments) == 1:
            strings: Strings = getattr(self.segments[0], name)
            whole = len(places) == len(strings) and bool((places == np.arange(len(places))).all())
            return strings if whole else strings.take(places)
        owner = np.searchsorted(self.starts, places, side="right") - 1
        order = np.argsort(owner, kind="stable")
        parts = [
            getattr(s, name).take(places[order][owner[order] == i] - start)
            for i, (s, start) in enumerate(zip(self.segments, self.starts, strict=False))
        ]
        return Strings.joined(parts).take(np.argsort(order, kind="stable")) if parts else Strings.of([])

    # Changing

    def find(self, name: str) -> tuple[Segment, int] | None:
        """Segment and row of a key that is not gone, by its id.

        Args:
            name: the id.
        """
        if self._rows is None:
            self._rows = {}
            for segment in self.segments:
                gone = None if segment.state is None else (segment.state == REMOVED).tolist()
                for row, key in enumerate(segment.ids):
                    if gone is None or not gone[row]:
                        self._rows[key] = (segment, row)
        return self._rows.get(name)

    def append(self, new: Segment) -> None:
        """Add keys at the end.

        Args:
            new: the keys; their ids are not among those present.
        """
        if not len(new):
            return
        if self.segments and new.keys.dtype != self.segments[0].keys.dtype:
            new.keys = new.keys.to(self.segments[0].keys.dtype)
            new.index = ExactIndex(new.keys)
        parts, size = [new], len(new)
        while self.segments and len(self.segments[-1]) < max(SMALL, 2 * size):
            parts.insert(0, self.segments.pop())
            size += len(parts[0])
        joined = Segment.joined(parts)
        self.segments.append(joined)
        if self._rows is not None:
            gone = None if joined.state is None else (joined.state == REMOVED).tolist()
            for row, key in enumerate(joined.ids):
                if gone is None or not gone[row]:
                    self._rows[key] = (joined, row)

    def remove(self, found: Iterable[tuple[Segment, int]]) -> None:
        """Strike keys out.

        Args:
            found: segments and rows, as `find` gives them.
        """
        for segment, row in found:
            if self._rows is not None:
                self._rows.pop(segment.ids[row], None)
            segment.strike(row)

    def silence(self, left: BoolArray) -> None:
        """Let keys without a label that is left vote no more.

        Args:
            left: (slots,) labels that are left.
        """
        for segment, start in zip(self.segments, self.starts, strict=False):
            if bool(left[segment.slots].all()):
                continue
            votes = self.voters(left)[start : start + len(segment)] if len(self.segments) == 1 else None
            if votes is None:
                votes = Keys([segment], self.dim).voters(left)
            state = _or(segment.state, len(segment), VOTES, np.uint8).copy()
            state[(state == VOTES) & ~votes] = SILENT
            segment.state = state if state.any() else None

    def compact(self, everything: bool) -> None:
        """Rewrite segments of which much is gone, or all of them as one.

        Args:
            everything: make one segment, nothing in it gone.
        """
        if everything and (len(self.segments) > 1 or any(s.removed for s in self.segments)):
            self.segments, self._rows = [Segment.joined(self.segments)], None
        elif any(s.removed > REWRITE_SHARE * len(s) for s in self.segments):
            kept = [s.rewritten() if s.removed > REWRITE_SHARE * len(s) else s for s in self.segments]
            self.segments, self._rows = [s for s in kept if len(s)], None


def warn_of_lost_graphs(parts: Iterable[Segment]) -> None:
    """Say that segments are about to be written anew, and what becomes of their graphs.

    Args:
        parts: the segments.
    """
    lost = [len(part) for part in parts if part.graph is not None]
    if lost:
        logger.warning(
            "the graph over %d keys is dropped, since these are written anew, and they are scanned exactly; build "
            "another with: labelspace index MODEL --kind hnsw",
            sum(lost),
        )


def digest(text: str) -> bytes:
    """16 bytes that tell whether an id comes back with the text that it had.

    Args:
        text: any.
    """
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def strings_as_tensors(name: str, strings: Strings) -> dict[str, Tensor]:
    """Strings to be saved.

    Args:
        name: of the list.
        strings: the list.
    """
    first = strings.offsets[0]
    data = np.array(strings.data[first : strings.offsets[-1]])
    return {f"{name}.bytes": torch.from_numpy(data), f"{name}.offsets": torch.from_numpy(strings.offsets - first)}


def strings_from_tensors(name: str, tensors: dict[str, Tensor]) -> Strings:
    """Strings as `strings_as_tensors` gave them.

    Args:
        name: of the list.
        tensors: by name.
    """
    return Strings(tensors[f"{name}.bytes"].numpy(), tensors[f"{name}.offsets"].numpy())


def spread(indptr: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Entries of some rows of a CSR matrix: how many each row has, and where they are, end to end.

    Args:
        indptr: (n + 1,).
        rows: (m,) rows.
    """
    first = indptr[rows]
    counts = indptr[rows + 1] - first
    ends = np.cumsum(counts)
    places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(first - (ends - counts), counts)
    return counts, places


def _votes(segment: Segment, rows: IntArray) -> tuple[IntArray, npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    counts, places = spread(segment.indptr, rows)
    return (
        counts,
        segment.slots[places],
        _or(segment.values, 0, 1, np.float32)[places]
        if (segment.values is not None)
        else np.ones(len(places), dtype=np.float32),
    )


def _search(
    segment: Segment, queries: Tensor, k: int, skip: BoolArray | None, count: int
) -> tuple[npt.NDArray[np.float32], IntArray]:
    """The k best keys of a segment among those not skipped, which are so many."""
    n = len(segment)
    if skip is None:
        return segment.index.search(queries, k)
    left = n - count
    if 2 * left < n:
        return segment.index.search(queries, k, np.flatnonzero(~skip))
    k = min(k, left)
    depth = min(n, int(1.2 * k * n / left) + 16)
    while True:  # a copy of most keys would cost more than looking a little deeper
        values, rows = segment.index.search(queries, depth)
        good = (rows >= 0) & ~skip[rows]
        if depth == n or int(good.sum(axis=1).min(initial=k)) >= k:
            break
        depth = min(n, 2 * depth)
    order = np.argsort(~good, axis=1, kind="stable")[:, :k]
    fits = np.take_along_axis(good, order, axis=1)
    values, rows = np.take_along_axis(values, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return np.where(fits, values, -np.inf).astype(np.float32), np.where(fits, rows, -1)


def _or(array: npt.NDArray | None, size: int, value: float, kind: type) -> npt.NDArray:  # type: ignore[type-arg]
    """An array, or one full of a value where there is none."""
    return np.full(size, value, dtype=kind) if array is None else array
