"""Keys of one kind, with what they vote for: searched, appended to, removed, and kept on disk as they are.

The keys lie in *segments*, each one file. What is added becomes a segment of its own, or is joined with small ones
before it, so that a change never rewrites the bulk; a removed key is only marked until its segment is rewritten. A key
votes for label *slots*: numbers that are given once and never again, whatever is removed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
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
Slots = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float32]
States = npt.NDArray[np.uint8]

VOTES, UNLABELLED, REMOVED = 0, 1, 2
"""States of a key: it votes; it has no label left to vote for; it is removed."""
SMALL_SEGMENT_KEYS = 4096
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
        state: (n,) uint8, one of VOTES, UNLABELLED, REMOVED, or None where every key votes.
        file: name of the file that holds all of it but the state; None where there is none yet.

    Attributes:
        index: how its keys are searched: exactly, or through a graph.
        graph: where there is a graph: its recall, and how deep it looks. It is set without the extra ``ann`` too, when
            nothing can search it.
        graph_file: name of the file that holds the graph; None where there is none yet.
    """

    keys: Tensor
    indptr: IntArray
    slots: Slots
    values: Scores | None
    ids: Strings
    texts: Strings
    state: States | None = None
    file: str | None = None
    index: ExactIndex | HnswIndex = field(init=False, repr=False)
    graph: dict[str, Any] | None = field(init=False, default=None)
    graph_file: str | None = field(init=False, default=None)
    _not_voting: tuple[States, BoolArray, int] | None = field(init=False, repr=False, default=None)

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
    def states(self) -> States:
        """(n,) states, also where every key votes."""
        return np.full(len(self), VOTES, dtype=np.uint8) if self.state is None else self.state

    @property
    def removed(self) -> int:
        """How many keys are removed."""
        return 0 if self.state is None else int((self.state == REMOVED).sum())

    def not_voting(self) -> tuple[BoolArray | None, int]:
        """(n,) mask of the keys that do not vote, None where all do, and how many they are."""
        if self.state is None:
            return None, 0
        if self._not_voting is None or self._not_voting[0] is not self.state:
            mask = self.state != VOTES
            self._not_voting = self.state, mask, int(mask.sum())
        return self._not_voting[1:]

    def remove(self, row: int) -> None:
        """Mark the key of a row as removed."""
        self.state = self.states
        self.state[row] = REMOVED
        self._not_voting = None

    # Searching

    def search(self, queries: Tensor, k: int, left_out: BoolArray | None) -> tuple[Scores, IntArray]:
        """The k best keys that vote and are not ``left_out`` (n,), as `Keys.search` gives them."""
        skip, count = self.not_voting()
        if left_out is not None:
            skip = left_out if skip is None else skip | left_out
            count = int(skip.sum())
        if skip is None or not count:
            return self.index.search(queries, k)
        n, left = len(self), len(self) - count
        if 2 * left < n:
            return self.index.search(queries, k, np.flatnonzero(~skip))
        k = min(k, left)
        depth = min(n, int(1.2 * k * n / left) + 16)
        while True:  # a copy of most keys would cost more than looking a little deeper
            values, rows = self.index.search(queries, depth)
            good = (rows >= 0) & ~skip[rows]
            if depth == n or int(good.sum(axis=1).min(initial=k)) >= k:
                break
            depth = min(n, 2 * depth)
        order = np.argsort(~good, axis=1, kind="stable")[:, :k]
        good, values = np.take_along_axis(good, order, axis=1), np.take_along_axis(values, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
        return np.where(good, values, -np.inf).astype(np.float32), np.where(good, rows, -1)

    def votes(self, rows: IntArray) -> tuple[IntArray, Slots, Scores]:
        """What the keys of some rows vote for, as `Keys.votes` gives it."""
        counts, places = spread(self.indptr, rows)
        values = np.ones(len(places), dtype=np.float32) if self.values is None else self.values[places]
        return counts, self.slots[places], values

    def voters(self, chosen: BoolArray) -> BoolArray:
        """(n,) mask of the keys that vote for one of the ``chosen`` (slots,)."""
        running = np.concatenate([[0], np.cumsum(chosen[self.slots], dtype=np.int64)])
        return np.diff(running[self.indptr]) > 0

    def build_graph(self, **options: Any) -> None:
        """Search through a graph from now on; the options are those of `HnswIndex.build`."""
        self.index = HnswIndex.build(self.keys, **options)
        self.graph, self.graph_file = self.index.settings, None

    def drop_graph(self) -> None:
        """Search exactly from now on."""
        self.index, self.graph, self.graph_file = ExactIndex(self.keys), None, None

    def take_graph(self, other: Segment) -> None:
        """Search as another segment does, which has the same keys in the same order."""
        self.index, self.graph, self.graph_file = other.index, other.graph, other.graph_file

    # Copies

    def replace_keys(self, keys: Tensor) -> None:
        """Take other keys (n, D) with the same votes; a graph is dropped with the old ones."""
        warn_of_dropped_graphs([self])
        self.keys, self.file = keys, None
        self.drop_graph()

    def shared(self) -> Segment:
        """The same keys in a segment of its own, from which others may be removed."""
        state = None if self.state is None else self.state.copy()
        other = Segment(self.keys, self.indptr, self.slots, self.values, self.ids, self.texts, state)
        other.take_graph(self)
        other.graph_file = None
        return other

    def rewritten(self) -> Segment:
        """A copy without the removed keys and without a graph; itself where none is removed."""
        if not self.removed:
            return self
        warn_of_dropped_graphs([self])
        rows = np.flatnonzero(self.state != REMOVED)
        counts, places = spread(self.indptr, rows)
        return Segment(
            self.keys[torch.from_numpy(rows).to(self.keys.device)],
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            self.slots[places],
            None if self.values is None else self.values[places],
            self.ids.take(rows),
            self.texts.take(rows),
            self.states[rows] if self.states[rows].any() else None,
        )

    @classmethod
    def joined(cls, parts: list[Segment]) -> Segment:
        """One segment of several, in order, without the removed keys; only one untouched segment keeps its graph."""
        parts = [part.rewritten() for part in parts]
        if len(parts) == 1:
            return parts[0]
        warn_of_dropped_graphs(parts)
        ends = np.cumsum([0, *(len(p.slots) for p in parts)])
        values = [np.ones(len(p.slots), dtype=np.float32) if p.values is None else p.values for p in parts]
        return cls(
            torch.cat([p.keys for p in parts]),
            np.concatenate([np.zeros(1, np.int64), *(p.indptr[1:] + e for p, e in zip(parts, ends, strict=False))]),
            np.concatenate([p.slots for p in parts]),
            np.concatenate(values) if any(p.values is not None for p in parts) else None,
            Strings.joined([p.ids for p in parts]),
            Strings.joined([p.texts for p in parts]),
            np.concatenate([p.states for p in parts]) if any(p.state is not None for p in parts) else None,
        )

    # Files

    def write(self, path: Path) -> None:
        """Write everything but the state."""
        arrays = {"votes.indptr": self.indptr, "votes.slots": self.slots, "votes.values": self.values}
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items() if array is not None
        }
        strings = strings_as_tensors("ids", self.ids) | strings_as_tensors("texts", self.texts)
        save_file({"keys": self.keys.detach().cpu().contiguous(), **tensors, **strings}, path)

    @classmethod
    def open(cls, path: Path, device: str) -> Segment:
        """What `write` wrote, with the keys on a device; on a CPU it is mapped, not read."""
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
        """Keys that are not removed."""
        return sum(len(s) - s.removed for s in self.segments)

    @property
    def unlabelled(self) -> int:
        """Keys that are not removed, but have no label left."""
        return sum(0 if s.state is None else int((s.state == UNLABELLED).sum()) for s in self.segments)

    def present(self) -> IntArray:
        """Places of the keys that are not removed."""
        if all(s.state is None for s in self.segments):
            return np.arange(self.starts[-1])
        return np.flatnonzero(np.concatenate([s.states for s in self.segments]) != REMOVED)

    # Searching

    def search(self, queries: Tensor, k: int, left_out: BoolArray | None = None) -> tuple[Scores, IntArray]:
        """The k voting keys of the largest inner product for each query.

        Args:
            queries: (n, D) float32, on the device of the keys.
            k: keys a query.
            left_out: (places,) keys that do not take part, beside those that do not vote.

        Returns:
            similarities (n, k) float32, falling, and places (n, k) int64; k shrinks to the keys that take part. -inf
            and -1 where an index finds fewer.
        """
        results = []
        for segment, start in zip(self.segments, self.starts, strict=False):
            skip = None if left_out is None else left_out[start : start + len(segment)]
            values, rows = segment.search(queries, k, skip)
            results.append((values, np.where(rows < 0, -1, rows + start) if start else rows))
        if not results:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        if len(results) == 1:
            return results[0]
        values, places = (np.concatenate(arrays, axis=1) for arrays in zip(*results, strict=True))
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)

    def _parts(self, places: IntArray) -> Iterator[tuple[Segment, IntArray, IntArray]]:
        """Each segment, which of the places lie in it, and their rows in it."""
        owner = np.searchsorted(self.starts, places, side="right") - 1
        for number, (segment, start) in enumerate(zip(self.segments, self.starts, strict=False)):
            mine = np.flatnonzero(owner == number)
            yield segment, mine, places[mine] - start

    def votes(self, places: IntArray) -> tuple[IntArray, Slots, Scores]:
        """Votes a key (m,) of some places (m,), and slots and values of all these votes, end to end."""
        if len(self.segments) == 1:
            return self.segments[0].votes(places)
        counts, parts = np.zeros(len(places), dtype=np.int64), []
        for segment, mine, rows in self._parts(places):
            counts[mine], slots, values = segment.votes(rows)
            parts.append((mine, slots, values))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        slots, values = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=np.float32)
        for mine, part_slots, part_values in parts:
            _, where = spread(indptr, mine)
            slots[where], values[where] = part_slots, part_values
        return counts, slots, values

    def voters(self, chosen: BoolArray) -> BoolArray:
        """(places,) mask of the keys that vote for one of the ``chosen`` (slots,)."""
        return np.concatenate([np.zeros(0, dtype=bool), *(segment.voters(chosen) for segment in self.segments)])

    def vectors(self, places: IntArray) -> Tensor:
        """(m, D) vectors of the keys at some places (m,), in the type of the keys."""
        if not self.segments:
            return torch.zeros(0, self.dim)
        first = self.segments[0].keys
        vectors = torch.empty(len(places), self.dim, dtype=first.dtype, device=first.device)
        for segment, mine, rows in self._parts(places):
            own, into = (torch.from_numpy(numbers).to(first.device) for numbers in (rows, mine))
            vectors[into] = segment.keys[own].to(first.dtype)
        return vectors

    def ids(self, places: IntArray) -> Strings:
        """Ids of the keys at some places."""
        return self._strings("ids", places)

    def texts(self, places: IntArray) -> Strings:
        """Texts of the keys at some places."""
        return self._strings("texts", places)

    def _strings(self, name: str, places: IntArray) -> Strings:
        if len(self.segments) == 1:
            strings: Strings = getattr(self.segments[0], name)
            whole = len(places) == len(strings) and bool((places == np.arange(len(places))).all())
            return strings if whole else strings.take(places)  # a copy would read all that is mapped from the file
        parts = list(self._parts(places))
        if not parts:
            return Strings.of([])
        order = np.concatenate([mine for _, mine, _ in parts])
        return Strings.joined([getattr(s, name).take(rows) for s, _, rows in parts]).take(np.argsort(order))

    # Changing

    def find(self, name: str) -> tuple[Segment, int] | None:
        """Segment and row of a key that is not removed, by its id."""
        if self._rows is None:
            self._rows = {}
            for segment in self.segments:
                self._note_ids(segment)
        return self._rows.get(name)

    def _note_ids(self, segment: Segment) -> None:
        """Let `find` know a segment's keys, where it has been asked before."""
        if self._rows is not None:
            removed = (segment.states == REMOVED).tolist()
            self._rows.update((key, (segment, row)) for row, key in enumerate(segment.ids) if not removed[row])

    def append(self, new: Segment) -> None:
        """Add keys at the end; their ids are not among those present."""
        if not len(new):
            return
        if self.segments and new.keys.dtype != self.segments[0].keys.dtype:
            new.keys = new.keys.to(self.segments[0].keys.dtype)
            new.index = ExactIndex(new.keys)
        parts, size = [new], len(new)
        while self.segments and len(self.segments[-1]) < max(SMALL_SEGMENT_KEYS, 2 * size):
            parts.insert(0, self.segments.pop())
            size += len(parts[0])
        self.segments.append(Segment.joined(parts))
        self._note_ids(self.segments[-1])

    def remove(self, keys: Iterable[tuple[Segment, int]]) -> None:
        """Remove keys, given by segment and row as `find` returns them."""
        for segment, row in keys:
            if self._rows is not None:
                self._rows.pop(segment.ids[row], None)
            segment.remove(row)

    def mark_unlabelled(self, left: BoolArray) -> None:
        """Let keys vote no more that have none of the labels ``left`` (slots,)."""
        for segment in self.segments:
            if not left[segment.slots].all():
                state = segment.states.copy()
                state[(state == VOTES) & ~segment.voters(left)] = UNLABELLED
                segment.state = state if state.any() else None

    def compact(self) -> None:
        """Rewrite the segments of which much is removed."""
        if any(s.removed > REWRITE_SHARE * len(s) for s in self.segments):
            kept = [s.rewritten() if s.removed > REWRITE_SHARE * len(s) else s for s in self.segments]
            self.segments, self._rows = [s for s in kept if len(s)], None


def warn_of_dropped_graphs(parts: Iterable[Segment]) -> None:
    """Say that segments are about to be written anew, and what becomes of their graphs."""
    dropped = [len(part) for part in parts if part.graph is not None]
    if dropped:
        logger.warning(
            "the graph over %d keys is dropped, since these are written anew, and they are scanned exactly; build "
            "another with: labelspace index MODEL --kind hnsw",
            sum(dropped),
        )


def digest(text: str) -> bytes:
    """16 bytes that tell whether an id comes back with the text that it had."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def strings_as_tensors(name: str, strings: Strings) -> dict[str, Tensor]:
    """Strings as two tensors to be saved, whose names begin with the given one."""
    first = strings.offsets[0]
    data = np.array(strings.data[first : strings.offsets[-1]])
    return {f"{name}.bytes": torch.from_numpy(data), f"{name}.offsets": torch.from_numpy(strings.offsets - first)}


def strings_from_tensors(name: str, tensors: dict[str, Tensor]) -> Strings:
    """Strings as `strings_as_tensors` gave them."""
    return Strings(tensors[f"{name}.bytes"].numpy(), tensors[f"{name}.offsets"].numpy())


def spread(indptr: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Entries of some rows of a CSR matrix: how many each row has, and where they are, end to end."""
    first = indptr[rows]
    counts = indptr[rows + 1] - first
    places = np.arange(int(counts.sum())) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    return counts, places
