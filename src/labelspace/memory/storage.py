"""The files of a memory: written once under new names, and opened by mapping them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..base.strings import Strings
from ..errors import MissingExtraError, ModelError
from .indexes import HnswIndex
from .indexes.faiss import load_faiss
from .keys import Keys, Segment, strings_as_tensors, strings_from_tensors, warn_of_dropped_graphs
from .linear import LinearClassifier
from .memory import Memory
from .voting import Voting

logger = logging.getLogger(__name__)


def write(memory: Memory, folder: Path, fresh: int) -> dict[str, Any]:
    """Write what has no file yet, under new names, and say what the memory consists of.

    Args:
        memory: what is written; it is told the names of its files.
        folder: an existing folder.
        fresh: a number for names that no file has.

    Returns:
        What `open` needs; ``files`` are the names of the memory's files.
    """
    entry: dict[str, Any] = {**memory.settings, "slots": memory.slots, "segments": {}, "changes": None, "graphs": {}}
    if memory.document_keys.dim != memory.label_keys.dim:
        entry["document_dim"] = memory.document_keys.dim
    if memory.linear is not None:
        if memory.linear_file is None:
            memory.linear_file = f"linear-{fresh}.safetensors"
            memory.linear.write(folder / memory.linear_file)
        entry["linear"] = memory.linear_file
    extra: dict[str, Tensor] = {}
    for kind, keys in (("labels", memory.label_keys), ("documents", memory.document_keys)):
        entry["segments"][kind] = []
        for number, segment in enumerate(keys.segments):
            stem = f"{kind}-{fresh}-{number}" if number else f"{kind}-{fresh}"
            if segment.file is None:
                segment.write(folder / f"{stem}.safetensors")
                segment.file = f"{stem}.safetensors"
            entry["segments"][kind].append(segment.file)
            if isinstance(segment.index, HnswIndex) and segment.graph_file is None:
                segment.index.save(folder / f"{stem}.hnsw")
                segment.graph_file = f"{stem}.hnsw"
            if segment.graph is not None and segment.graph_file is None:  # the extra is missing
                warn_of_dropped_graphs([segment])
                segment.drop_graph()
            if segment.graph is not None:
                entry["graphs"][segment.file] = {"file": segment.graph_file, **segment.graph}
            if segment.state is not None:
                extra[f"state.{segment.file}"] = torch.from_numpy(segment.state)
        if memory.removed[kind]:
            extra.update(strings_as_tensors(f"removed.{kind}", Strings.of(memory.removed[kind])))
            digests = np.frombuffer(b"".join(memory.removed[kind].values()), dtype=np.uint8)
            extra[f"removed.{kind}.digests"] = torch.from_numpy(digests.copy())
    if extra:
        entry["changes"] = f"changes-{fresh}.safetensors"
        save_file(extra, folder / entry["changes"])
    return entry


def files(entry: dict[str, Any]) -> list[str]:
    """Names of the files of a memory, from what `write` returned."""
    names = [*entry["segments"]["labels"], *entry["segments"]["documents"]]
    names += [graph["file"] for graph in entry.get("graphs", {}).values()]
    names += [entry["linear"]] if entry.get("linear") else []
    return names + ([entry["changes"]] if entry["changes"] else [])


def open_memory(folder: Path, entry: dict[str, Any], device: str = "cpu") -> Memory:
    """Open what `write` wrote; on a CPU keys and texts are mapped, not read, and so are graphs.

    Without the extra ``ann`` a warning says that graphs are not used.

    Args:
        folder: the folder.
        entry: what `write` returned.
        device: where to put the keys.

    Raises:
        ModelError: a file that is missing or damaged, by name.
    """
    file, can_search = folder, True
    if entry.get("graphs"):
        try:
            load_faiss()
        except MissingExtraError as error:
            can_search = False
            logger.warning("every key is scanned, since %s", error)
    try:
        voting = Voting(
            **{"softmax": "together", "label_temperature": None}
            | {f.name: entry[f.name] for f in dataclasses.fields(Voting) if f.name in entry}
        )
        kinds: dict[str, list[Segment]] = {"labels": [], "documents": []}
        for kind, segments in kinds.items():
            for name in entry["segments"][kind]:
                file = folder / name
                segments.append(Segment.open(file, device))
                if int(segments[-1].indptr[-1]) != len(segments[-1].slots):
                    raise ValueError("its votes do not fit together")
        both = [*kinds["labels"], *kinds["documents"]]
        for segment in both:
            graph = dict(entry.get("graphs", {}).get(segment.file, {}))
            if graph:
                segment.graph_file, segment.graph = graph.pop("file"), graph
                file = folder / str(segment.graph_file)
                if can_search:
                    segment.index = HnswIndex.load(file, segment.keys, graph)
        removed: dict[str, dict[str, bytes]] = {"labels": {}, "documents": {}}
        if entry["changes"]:
            file = folder / entry["changes"]
            extra = load_file(file)
            for segment in both:
                if f"state.{segment.file}" in extra:
                    segment.state = extra[f"state.{segment.file}"].numpy().copy()
                    if len(segment.state) != len(segment):
                        raise ValueError(f"it does not fit {segment.file}")
            for kind, ids in removed.items():
                if f"removed.{kind}.digests" in extra:
                    digests = extra[f"removed.{kind}.digests"].numpy().tobytes()
                    names = strings_from_tensors(f"removed.{kind}", extra)
                    ids.update((name, digests[16 * i : 16 * i + 16]) for i, name in enumerate(names))
        linear = None
        if entry.get("linear"):
            file = folder / entry["linear"]
            linear = LinearClassifier.open(file)
        file = folder
        dim = kinds["labels"][0].keys.shape[1] if kinds["labels"] else 0
        documents = Keys(kinds["documents"], int(entry.get("document_dim", dim)))
        memory = Memory(Keys(kinds["labels"], dim), documents, voting, int(entry["slots"]), removed, linear)
        memory.linear_file = entry.get("linear")
        return memory
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"{file} is missing or damaged: {error}") from error
