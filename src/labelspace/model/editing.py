"""Documents and labels added, renamed and removed; nothing is trained."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from ..base.machine import require_memory
from ..base.rates import bf16_pays
from ..base.strings import Strings
from ..encoders import Precision
from ..errors import DataError, SettingsError
from ..memory.graphs import build_graphs
from ..memory.indexes import require_graph
from ..memory.keys import Segment, digest
from .core import Core, checked_texts
from .towers import Vectors

logger = logging.getLogger(__name__)

Key = tuple[Segment, int]
"""A segment and the row of a key in it."""
COMPARED_MAX_IDS = 50_000
"""Ids that an unknown one is compared with to name the nearest."""


def add_documents(
    core: Core, texts: Sequence[str], labels: Sequence[Iterable[str | int]], ids: Sequence[str] | None,
    relevances: Sequence[Sequence[float]] | None, replace: bool, batch_size: int,
) -> list[str]:  # fmt: skip
    """`Model.add_documents`."""
    texts = checked_texts(texts, "document")
    for what, values in (("labels", labels), ("relevances", relevances)):
        if values is not None and len(values) != len(texts):
            raise DataError(f"there are {len(texts)} documents, but {what} of {len(values)}")
    names = _new_ids(core, "documents", texts, ids)
    replaced = check_new(core, "documents", names, texts, replace)
    rows = []
    for row, (name, own) in enumerate(zip(names, labels, strict=True)):
        chosen = [own] if isinstance(own, str | int | np.integer) else _listed(own, "labels")
        if not chosen:
            raise DataError(f"the document {name!r} has no label, so it could vote for none; leave it out")
        shares = [1.0] * len(chosen) if relevances is None else _listed(relevances[row], "relevances")
        rows.append(_relevances(core, name, chosen, shares))
    numbers = np.array([number for row in rows for number in row], dtype=np.int64)
    votes = np.array([value for row in rows for value in row.values()], dtype=np.float32)
    indptr = np.cumsum([0, *map(len, rows)])
    targets = sp.csr_array((votes, numbers, indptr), shape=(len(texts), len(core.labels)))
    segment = document_segment(core, names, texts, targets, "float32", batch_size)
    core.memory.document_keys.remove(replaced)
    core.memory.document_keys.append(segment)
    if core.memory.voting.scoring == "similarity":
        core.memory.voting = dataclasses.replace(core.memory.voting, scoring="votes")
        if "tuning" not in core.info:
            logger.info("documents vote from now on, by untuned settings; choose better ones with: labelspace tune")
    core.note("add documents", names)
    return names


def _relevances(core: Core, name: str, labels: Sequence[str | int], shares: Sequence[float]) -> dict[int, float]:
    """Relevance by label number, rising; of a label that is given twice the highest counts."""
    if len(shares) != len(labels):
        raise DataError(f"the document {name!r} has {len(labels)} labels, but relevances of {len(shares)}")
    numbers = core.label_numbers(labels).tolist()
    if all(share == 1 for share in shares):
        return dict.fromkeys(numbers, 1.0)
    relevances = dict.fromkeys(numbers, 0.0)
    for label, share in zip(labels, shares, strict=True):
        if isinstance(share, bool) or not isinstance(share, int | float | np.number) or not 0 < share <= 1:
            raise DataError(f"the relevance {share!r} of the document {name!r} is not above 0 and at most 1")
        for number in core.label_numbers([label]).tolist():
            relevances[number] = max(relevances[number], float(share))
    return relevances


def remove_documents(core: Core, ids: Iterable[str]) -> None:
    """`Model.remove_documents`."""
    _remove(core, "documents", _find(core, "documents", ids))
    _rank_without_voters(core)


def _rank_without_voters(core: Core) -> None:
    """Rank labels by similarity again when no document is left that votes."""
    memory = core.memory
    if memory.n_documents == memory.n_unlabelled and memory.voting.scoring == "votes":
        memory.voting = dataclasses.replace(memory.voting, scoring="similarity")


def add_labels(core: Core, texts: Sequence[str], ids: Sequence[str] | None, batch_size: int) -> list[str]:
    """`Model.add_labels`."""
    texts = checked_texts(texts, "label")
    names = _new_ids(core, "labels", texts, texts if ids is None else ids)
    check_new(core, "labels", names, texts, replace=False)
    keys = core.on_device(core.encode_labels(texts, batch_size))
    slots = core.memory.slots + np.arange(len(texts), dtype=np.int32)
    core.memory.slots += len(texts)
    _add_label_keys(core, names, texts, keys, slots)
    core.note("add labels", names)
    return list(names)


def rename_labels(core: Core, texts: Mapping[str, str], batch_size: int) -> None:
    """`Model.rename_labels`."""
    names = list(texts)
    new = checked_texts([texts[name] for name in names], "label")
    _require_spoken("labels", names, new)
    old = _find(core, "labels", names)
    slots = np.array([s.slots[s.indptr[row]] for s, row in old], dtype=np.int32)
    old_texts = [s.texts[row] for s, row in old]
    old_keys = torch.stack([s.keys[row] for s, row in old]) if old else torch.zeros(0, core.memory.label_keys.dim)
    ends = itertools.accumulate((tower.dim for tower in core.towers), initial=0)
    keys = [
        tower.renamed(old_keys[:, a:b], old_texts, new, batch_size, core.precision)
        for tower, (a, b) in zip(core.towers, itertools.pairwise(ends), strict=True)
    ]
    core.memory.label_keys.remove(old)
    _add_label_keys(core, names, new, torch.cat(keys, dim=1), slots)
    core.note("rename labels", names)


def remove_labels(core: Core, ids: Iterable[str]) -> None:
    """`Model.remove_labels`."""
    removed = _find(core, "labels", ids)
    if len(removed) == len(core.labels):
        raise DataError("a model needs at least one label, so not all can be removed")
    _remove(core, "labels", removed)
    core.labels_changed()
    before = core.memory.n_unlabelled
    core.memory.document_keys.mark_unlabelled(core.memory.number_of >= 0)
    if core.memory.n_unlabelled > before:
        logger.warning(
            "%d documents have no label left and vote for nothing; remove them, or give them labels with: "
            "labelspace documents add --replace",
            core.memory.n_unlabelled - before,
        )
    _rank_without_voters(core)


def document_segment(
    core: Core, ids: Sequence[str], texts: Sequence[str], targets: sp.csr_array, precision: Precision, batch_size: int,
    vectors: Vectors | None = None,
) -> Segment:  # fmt: skip
    """New document keys, not yet in the memory, by given vectors or by encoding the texts."""
    segments = core.memory.document_keys.segments
    if segments:  # keys of a kind are all alike
        precision = "bf16" if segments[0].keys.dtype == torch.bfloat16 else "float32"
    if vectors is None:
        low: Precision | None = "bf16" if precision == "bf16" and bf16_pays(core.towers[0].encoder.device) else None
        vectors = core.encode_many(lambda some, size: core.encode_documents(some, size, low), texts, batch_size)
    keys = core.on_device(vectors)
    return Segment(
        keys.bfloat16() if precision == "bf16" else keys,
        targets.indptr.astype(np.int64),
        core.memory.slot_of[targets.indices].astype(np.int32),
        None if (targets.data == 1).all() else targets.data.astype(np.float32),
        Strings.of(ids),
        Strings.of(texts),
    )


def _add_label_keys(
    core: Core, ids: Sequence[str], texts: Sequence[str], keys: torch.Tensor, slots: npt.NDArray[np.int32]
) -> None:
    """Let keys vote for label slots, a key a slot."""
    segment = Segment(keys, np.arange(len(ids) + 1), slots, None, Strings.of(ids), Strings.of(texts))
    core.memory.label_keys.append(segment)
    core.labels_changed()


def _new_ids(core: Core, kind: str, texts: Sequence[str], ids: Sequence[str] | None) -> list[str]:
    """Checked ids of checked texts, or new ones that no document ever had."""
    if ids is not None:
        names = [ids] if isinstance(ids, str) else checked_texts(ids, "id")
        if len(names) != len(texts):
            raise DataError(f"there are {len(names)} ids for {len(texts)} {kind}")
        _require_spoken(kind, range(len(texts)) if ids is texts else names, texts)
        keys, removed = core.keys_of(kind), core.memory.removed[kind]
        for name in names:  # those of training may be of any kind, and so may come back
            wrong = _cannot_be_named(name)
            if wrong and keys.find(name) is None and name not in removed:
                raise DataError(f"the {kind[:-1]} id {name!r} {wrong}, so that no line could name it; take another")
        return names
    _require_spoken(kind, range(len(texts)), texts)
    keys, removed = core.memory.document_keys, core.memory.removed["documents"]
    made = (f"added-{number}" for number in itertools.count(len(keys) + len(removed) + 1))
    free = (name for name in made if name not in removed and keys.find(name) is None)
    return list(itertools.islice(free, len(texts)))


def check_new(core: Core, kind: str, ids: Sequence[str], texts: Sequence[str], replace: bool) -> list[Key]:
    """Refuse ids that cannot be added; those to be replaced are returned."""
    keys, removed = core.keys_of(kind), core.memory.removed[kind]
    replaced, seen = [], set()
    for name, text in zip(ids, texts, strict=True):
        if name in seen:
            raise DataError(f"the {kind[:-1]} {name!r} is given twice")
        seen.add(name)
        key = keys.find(name)
        if key is not None:
            if not replace:
                hint = "; remove it, or ask to replace it" if kind == "documents" else "; rename it instead"
                raise DataError(f"the model has a {kind[:-1]} {name!r} already{hint}")
            replaced.append(key)
        elif name in removed and removed[name] != digest(text):
            raise DataError(
                f"{name!r} was the id of a {kind[:-1]} with another text, which was removed; take another id"
            )
    return replaced


def _find(core: Core, kind: str, ids: Iterable[str]) -> list[Key]:
    """Keys by id, refusing what is not there."""
    keys, found = core.keys_of(kind), {}
    for name in [ids] if isinstance(ids, str) else ids:
        key = keys.find(name)
        if name in found:
            raise DataError(f"the {kind[:-1]} {name!r} is given twice")
        if key is None:
            known = (other for s in keys.segments for other in s.ids if keys.find(other) is not None)
            near = difflib.get_close_matches(str(name), itertools.islice(known, COMPARED_MAX_IDS), n=3)
            hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
            raise DataError(f"the {kind[:-1]} {name!r} is not in the model{hint}")
        found[name] = key
    return list(found.values())


def _remove(core: Core, kind: str, keys: list[Key]) -> None:
    """Remove keys, and keep their ids from coming back as others."""
    names = [segment.ids[row] for segment, row in keys]
    digests = (digest(segment.texts[row]) for segment, row in keys)
    core.memory.removed[kind].update(zip(names, digests, strict=True))
    core.keys_of(kind).remove(keys)
    core.note(f"remove {kind}", names)


def compact(core: Core) -> None:
    """`Model.compact`."""
    core.memory = core.memory.compacted()
    core.note("compact")


def build_index(
    core: Core, kind: str, texts: Sequence[str] | None, batch_size: int, graph: dict[str, Any]
) -> list[dict[str, Any]]:
    """`Model.build_index`; ``graph`` holds its other arguments by name."""
    if kind not in ("hnsw", "exact"):
        raise SettingsError(f"unknown kind {kind!r} of index; choose one of hnsw, exact")
    require_graph(graph["links"], graph["ef_construction"], graph["recall"], graph["depth"])
    if kind == "exact":
        core.memory.drop_graphs()
    else:
        large = [segment for segment in core.memory.segments if len(segment) >= graph["smallest"]]
        needed = sum(len(segment) * (2 * segment.keys.shape[1] + 10 * graph["links"]) for segment in large)
        require_memory(needed, "the graphs", "lower links, or take an encoder of a smaller width")
        queries = None
        if texts is not None:
            queries = core.on_device(core.encode(checked_texts(texts, "text"), batch_size))
        build_graphs(core.memory, queries=queries, **graph)
    core.note(f"index {kind}")
    return core.memory.indexes()


def _require_spoken(kind: str, names: Iterable[str | int], texts: Sequence[str]) -> None:
    """Refuse empty texts."""
    for name, text in zip(names, texts, strict=True):
        if not text.strip():
            which = f"number {name} (from 0)" if isinstance(name, int) else repr(name)
            raise DataError(f"the {kind[:-1]} {which} has an empty text; give it one, or leave it out")


def _cannot_be_named(name: str) -> str | None:
    """What keeps an id from standing on a line of its own."""
    if not name.strip():
        return "is empty"
    if name != name.strip():
        return "has blanks around it"
    if any(unicodedata.category(mark) in ("Cc", "Cs", "Zl", "Zp") for mark in name):
        return "holds a line end, a tab or another control character"
    return None


def _listed(values: Any, what: str) -> list[Any]:
    try:
        return list(values)
    except TypeError as error:
        raise DataError(f"a list of {what} was expected for each document, got {type(values).__name__}") from error
