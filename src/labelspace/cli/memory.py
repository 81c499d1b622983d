"""The commands that read and change what a model answers from: ``tune``, ``documents``, ``labels``, ``index``,
``compact``.

Every change is written whole or not at all. Heavy libraries are loaded inside the functions.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..base.checks import require_seed
from ..errors import DataError, SettingsError
from ..labels import LabelNames
from .options import (
    DataOptions,
    Device,
    KeyPrecision,
    ModelPath,
    Objective,
    Output,
    ReadPath,
    Source,
    SplitOptions,
    Switch,
    TextColumn,
    Tolerance,
    as_keywords,
    as_read_for,
    load_data,
    print_json,
)

if TYPE_CHECKING:
    from ..model.model import Model

logger = logging.getLogger("labelspace")


def tune(
    model: ModelPath,
    data: ReadPath,
    *,
    out: Path | None = None,
    overwrite: Switch = False,
    objective: Objective = "P@1,P@3,P@5",
    tolerance: Tolerance = 0.25,
    search: Literal["joint", "two-sided"] | None = None,
    depth: int | None = None,
    label_depth: int | None = None,
    document_depth: int | None = None,
    temperature: float | None = None,
    label_temperature: float | None = None,
    softmax: Literal["together", "apart"] | None = None,
    weight: float | None = None,
    votes: Literal["raw", "normalized"] | None = None,
    precision: KeyPrecision = "float32",
    linear: bool | None = None,
    like: Path | None = None,
    device: Device = "auto",
    options: SplitOptions = SplitOptions(),
    output: Output = Output(),
) -> None:
    """Give a model the training documents of a data set as keys, and choose how keys vote on its validation documents.

    Parameters
    ----------
    out
        Folder to write to, empty or not there; the model's own when not given.
    overwrite
        Replace another model that is in that folder.
    search
        Try only this: joint, or two-sided with a depth for each kind of key.
    depth
        Try only this many nearest keys, in a joint search alone.
    label_depth
        Try only this many nearest label keys, in a two-sided search alone.
    document_depth
        Try only this many nearest documents, in a two-sided search alone.
    temperature
        Try only this temperature of the softmax over keys.
    label_temperature
        Try only this temperature of label keys, and the other one for documents alone.
    softmax
        Try only one softmax over all keys found (together), or one over each kind (apart), in a two-sided search.
    weight
        Try only this weight of the documents' votes, 0 to 1.
    votes
        Try only raw votes, or only normalized ones, which a document shares between its labels.
    linear
        Learn a linear classifier on words beside the keys, which reranks what they found, or drop the one that is
        there; one that is there is weighed anew when not given.
    like
        Folder of another model for the same labels, whose keys vote as was chosen for it: choose nothing, let keys vote
        by its settings and probabilities be made by its calibration. For a last training on all documents
        (--valid-fraction 0), after one of the same recipe that held some out.
    """
    from ..memory.grid import Grid, described
    from ..memory.tune import DEFAULT_OBJECTIVE, TOLERANCE, parse_objective, render
    from ..model.manifest import require_changeable, require_free
    from ..model.model import Model

    parse_objective(objective)
    grid = Grid.fixed(
        search=search, depth=depth, label_depth=label_depth, document_depth=document_depth,
        temperature=temperature, label_temperature=label_temperature, softmax=softmax, weight=weight, votes=votes,
    )  # fmt: skip
    if like is not None and (
        grid != Grid() or linear is not None or (objective, tolerance) != (DEFAULT_OBJECTIVE, TOLERANCE)
    ):
        raise SettingsError(f"--like {like} says how keys vote; leave the other settings of voting out")
    if out is not None and out.expanduser().resolve() != model.expanduser().resolve():
        require_free(out, overwrite)
    else:
        require_changeable(model, ", or name another folder with --out")
    opened = Model.load(model, device)
    options, seed = as_read_for(options, opened)
    found = None
    if like is None:
        found = opened.tune(
            load_data(data, options, seed), objective=objective, grid=grid, tolerance=tolerance, precision=precision,
            linear=linear,
        )  # fmt: skip
    else:
        opened.vote_like(Model.load(like, device), load_data(data, options, seed), precision=precision)
    opened.save(out)
    if output.json:
        made = opened.calibration
        calibration = None if made is None else {"kind": made.kind, "features": list(made.features), **made.fitted}
        tuning = None if found is None else found.as_dict()
        voting = opened.memory.settings
        print_json({"model": str(out or model), "voting": voting, "tuning": tuning, "calibration": calibration})
    elif found is not None:
        print(render(found.as_dict()))
    else:
        print(f"nothing was tuned; keys vote by {described(opened.memory.voting)}")


def join(
    *models: Path,
    data: Path | None = None,
    out: Path | None = None,
    overwrite: Switch = False,
    objective: Objective = "P@1,P@3,P@5",
    tolerance: Tolerance = 0.25,
    precision: KeyPrecision = "float32",
    device: Device = "auto",
    options: SplitOptions = SplitOptions(),
    output: Output = Output(),
) -> None:
    """Make one model of several of the same labels, and choose their shares on validation documents.

    Parameters
    ----------
    models
        Folders of two models or more; the documents of the first vote, so name the one first whose vote best.
    data
        Folder or file that they were trained on; read as the training data of the first was unless said otherwise.
    out
        Folder to write to, empty or not there.
    overwrite
        Replace another model that is in that folder.
    """
    from ..memory.grid import described
    from ..memory.tune import parse_objective, render
    from ..model.joining import join as joined
    from ..model.manifest import require_free
    from ..model.model import Model

    if len(models) < 2:
        raise SettingsError(f"joining takes the folders of two models or more, got {len(models)}")
    if data is None or out is None:
        missing = "--data, the data set that they were trained on" if data is None else "--out, the folder to write to"
        raise SettingsError(f"joining needs {missing}")
    parse_objective(objective)
    if out.expanduser().resolve() in [model.expanduser().resolve() for model in models]:
        raise SettingsError(f"--out {out} is one of the models to join; name another folder")
    require_free(out, overwrite)
    opened = [Model.load(model, device) for model in models]
    options, seed = as_read_for(options, opened[0])
    made = joined(opened)
    found = made.tune(load_data(data, options, seed), objective=objective, tolerance=tolerance, precision=precision)
    made.save(out)
    shares = [round(tower.share, 4) for tower in made.towers]
    if output.json:
        tuning = None if found is None else found.as_dict()
        print_json({"model": str(out), "shares": shares, "voting": made.memory.settings, "tuning": tuning})
        return
    print("shares of the encoders in the label keys: " + ", ".join(f"{share:g}" for share in shares))
    voting = described(made.memory.voting)
    print(f"nothing was tuned; keys vote by {voting}" if found is None else render(found.as_dict()))


def documents_add(
    model: ModelPath,
    file: Path,
    *,
    replace: Switch = False,
    device: Device = "auto",
    options: DataOptions = DataOptions(),
    output: Output = Output(),
) -> None:
    """Let documents vote for their labels from now on, without training.

    Parameters
    ----------
    file
        Documents with labels, in any format that training reads; labels by id or text. Without ids they get new ones.
        Relevances count as in training. With --unknown-labels drop, labels that the model does not have are left out,
        and documents without a label are passed over.
    replace
        Documents that are there already take the new text and labels.
    """
    from ..data.edits import read_documents

    asked, opened = options.unknown_labels, _opened(model, device)
    if asked == "add":
        raise SettingsError(
            "documents add takes no new labels; add them by `labelspace labels add`, or drop unknown ones"
        )
    options, _ = as_read_for(options, opened)
    corpus, labels = read_documents(file, **as_keywords(options))
    bounds = corpus.targets.indptr.tolist()
    found, values = corpus.targets.indices.tolist(), corpus.targets.data.tolist()
    rows = [[labels.ids[j] for j in found[a:b]] for a, b in itertools.pairwise(bounds)]
    relevances = [values[a:b] for a, b in itertools.pairwise(bounds)]
    ids = None if corpus.unnamed else corpus.ids
    texts = corpus.texts
    if asked == "drop":
        kept = _known_labels(rows, relevances, opened, file)
        texts, ids = [texts[row] for row in kept], ids and [ids[row] for row in kept]
        rows, relevances = ([part[row] for row in kept] for part in (rows, relevances))
    added = opened.add_documents(texts, rows, ids, relevances=relevances, replace=replace)
    opened.save()
    _report(opened, model, "added", added, "documents", output)


def _known_labels(rows: list[list[str]], relevances: list[list[float]], model: Model, file: Path) -> list[int]:
    """Take labels that the model does not have out of documents, in place; the rows of those that have others."""
    known = LabelNames(model.labels)
    unknown = Counter(name for names in rows for name in names if known.find(name) is None)
    for names, values in zip(rows, relevances, strict=True):
        kept = [place for place, name in enumerate(names) if known.find(name) is not None]
        names[:], values[:] = [names[place] for place in kept], [values[place] for place in kept]
    if unknown:
        shown = ", ".join(repr(name[:80]) for name in list(unknown)[:3])
        logger.warning(
            "%s: %d references to %d labels that the model does not have, such as %s, are dropped; %d documents have "
            "no other label and are passed over",
            *(file, unknown.total(), len(unknown), shown, rows.count([])),
        )
    if not any(rows):
        raise DataError("no document has a label of the model, so none could vote", file)
    return [row for row, names in enumerate(rows) if names]


def documents_remove(model: ModelPath, file: Source, *, output: Output = Output()) -> None:
    """Let documents vote no more.

    Parameters
    ----------
    file
        File with one document id a line, or a table with the column id (documents list --json writes one); - for lines
        of standard input.
    """
    from ..data.edits import read_ids

    opened, ids = _opened(model), read_ids(file)
    opened.remove_documents(ids)
    opened.save()
    _report(opened, model, "removed", ids, "documents", output)


def documents_list(model: ModelPath, *, output: Output = Output()) -> None:
    """Print id, labels and text of every document, apart by tabs; one without labels, all of which were removed, votes
    for nothing."""
    import json

    memory = _opened(model, change=False).memory
    places = memory.document_keys.present()
    ids, texts = memory.document_keys.ids(places), memory.document_keys.texts(places)
    label_ids = list(memory.labels.ids)
    for start in range(0, len(places), 4096):
        counts, numbers, _ = memory.votes_of(places[start : start + 4096], "raw")
        first = 0
        for row, count in enumerate(counts.tolist(), start=start):
            names = [label_ids[j] for j in numbers[first : first + count]]
            first += count
            if output.json:
                print(json.dumps({"id": ids[row], "labels": names, "text": texts[row]}, ensure_ascii=False))
            else:
                print("\t".join((_one_line(ids[row]), ";".join(names), _one_line(texts[row]))))


def labels_add(
    model: ModelPath,
    file: Source,
    *,
    text_column: TextColumn = "text",
    device: Device = "auto",
    output: Output = Output(),
) -> None:
    """Add labels; they are predicted from their texts at once, and from documents when these are added.

    Parameters
    ----------
    file
        Labels: one text a line, or a table with the columns id and text; - for standard input.
    """
    from ..data.edits import read_labels

    opened = _opened(model, device)
    ids, texts = read_labels(file, text_column=text_column)
    added = opened.add_labels(texts, ids)
    opened.save()
    _report(opened, model, "added", added, "labels", output)


def labels_rename(
    model: ModelPath, file: Source, *, text_column: str = "text", device: Device = "auto", output: Output = Output()
) -> None:
    """Give labels new texts; their ids stay, and so do the documents that vote for them.

    Parameters
    ----------
    file
        Table with the columns id and text.
    text_column
        Column that holds the new text.
    """
    from ..data.edits import read_labels

    opened = _opened(model, device)
    ids, texts = read_labels(file, text_column=text_column)
    if ids is None:
        raise DataError(
            "a new text needs the id of its label, and here are no ids; give a table with the columns id and text", file
        )
    if len(set(ids)) != len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise DataError(f"the label {twice!r} is given twice", file)
    opened.rename_labels(dict(zip(ids, texts, strict=True)))
    opened.save()
    _report(opened, model, "renamed", ids, "labels", output)


def labels_remove(model: ModelPath, file: Source, *, output: Output = Output()) -> None:
    """Take labels away; documents that have no other label vote no more.

    Parameters
    ----------
    file
        File with one label id a line, or a table with the column id; - for lines of standard input.
    """
    from ..data.edits import read_ids

    opened, ids = _opened(model), read_ids(file)
    opened.remove_labels(ids)
    opened.save()
    _report(opened, model, "removed", ids, "labels", output)


def labels_list(model: ModelPath, *, output: Output = Output()) -> None:
    """Print id and text of every label, apart by a tab."""
    import json

    labels = _opened(model, change=False).labels
    for name, text in zip(labels.ids, labels.texts, strict=True):
        if output.json:
            print(json.dumps({"id": name, "text": text}, ensure_ascii=False))
        else:
            print(f"{_one_line(name)}\t{_one_line(text)}")


def index(
    model: ModelPath,
    *,
    kind: Literal["hnsw", "exact"] | None = None,
    recall: float = 0.97,
    smallest: int = 10_000,
    depth: int | None = None,
    texts: Path | None = None,
    links: int = 24,
    ef_construction: int = 80,
    seed: int = 0,
    output: Output = Output(),
) -> None:
    """Choose how the keys of a model are searched, or show how they are.

    Parameters
    ----------
    kind
        hnsw builds graphs that find most of the nearest keys in a fraction of the time; exact removes them, so that
        every key is scanned. When not given nothing is changed.
    recall
        Share of the nearest keys that a graph shall find.
    smallest
        Files of fewer keys are scanned all the same, which is as fast.
    depth
        How many nearest keys the recall is measured on; as many as a prediction asks for when not given.
    texts
        File of texts to measure the recall with; documents of the model, moved a little, when not given.
    links
        Neighbours of a key in the graph; more find more and take more space.
    ef_construction
        Candidates looked at for a new key; more make a better graph more slowly.
    seed
        Of the draw of documents.
    """
    from ..data.texts import read_texts
    from ..model.manifest import require_changeable
    from ..model.model import Model

    if not 0 < recall <= 1:
        raise SettingsError(f"--recall is a share above 0 and at most 1, got {recall}")
    require_seed(seed)
    if kind is not None:
        require_changeable(model, ", or change a copy of it")
    opened = Model.load(model, "cpu", graphs=kind is None)
    if kind is not None:
        lines = None if texts is None else read_texts(texts)[1]
        opened.build_index(
            kind, recall=recall, smallest=smallest, depth=depth, texts=lines, links=links,
            ef_construction=ef_construction, seed=seed,
        )  # fmt: skip
        opened.save()
    found = opened.memory.indexes()
    if output.json:
        print_json({"model": str(model), "indexes": found})
        return
    for part in found:
        shown = f"{part['count']:>12,} {part['keys']:<10} {part['kind']}"
        if part["kind"] == "hnsw":
            shown += (
                f", finds {100 * part['recall']:.1f}% of the {part['depth']} nearest, ef_search {part['ef_search']}"
            )
        print(shown)


def compact(model: ModelPath, *, output: Output = Output()) -> None:
    """Rewrite what a model answers from without what was removed; predictions stay as they are.

    Labels of equal scores may change places."""
    opened = _opened(model, "cpu")
    opened.compact()
    opened.save()
    _report(opened, model, "compacted", [], "keys", output)


def _opened(model: Path, device: str = "cpu", change: bool = True) -> Model:
    """A model that shall be changed, or only looked at."""
    from ..model.manifest import require_changeable
    from ..model.model import Model

    if change:
        require_changeable(model, ", or change a copy of it")
    return Model.load(model, device)


def _one_line(text: str) -> str:
    return " ".join(text.split()) if any(mark in text for mark in "\t\n\r") else text


def _report(opened: Model, model: Path, done: str, ids: Sequence[str], kind: str, output: Output) -> None:
    memory = opened.memory
    counts = {"documents": memory.n_documents, "without_labels": memory.n_unlabelled, "labels": len(opened.labels)}
    if output.json:
        print_json({"model": str(model), done: list(ids), **counts})
    else:
        shown = f"{len(ids)} {kind}" if ids else kind
        silent = f", {memory.n_unlabelled} of them without a label" if memory.n_unlabelled else ""
        print(f"{done} {shown}; {model} has {counts['labels']} labels and {counts['documents']} documents{silent}")
