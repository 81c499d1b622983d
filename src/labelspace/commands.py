"""What the commands do; their flags, defaults and help are their signatures and docstrings.

Heavy libraries are loaded inside the functions.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from .base.machine import command_began
from .errors import DataError, SettingsError
from .training.settings import RECIPES, DexmlSettings, RunSettings, require_seed, resolve, to_dict, to_toml

if TYPE_CHECKING:
    from .model.model import Model
    from .types import Corpus, Dataset, Labels, Predictions

logger = logging.getLogger("labelspace")
AnyOptions = TypeVar("AnyOptions", bound="DataOptions")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data files are read.

    Args:
        fields: of LF documents: title, title+content or auto.
        label_fields: of LF and BEIR labels: title, title+content or auto; of SKOS: preferred+alternative+broader.
        text_column: column of a table that holds the text.
        label_column: column of a table that holds the labels.
        separator: between the labels of a CSV or TSV cell; found out when not given.
        encoding: of text files; UTF-8 or else latin-1 when not given.
        format: lf, beir, xc, annif, table or features; found out when not given.
        label_vocabulary: file of the labels of an Annif corpus or a table: TSV, CSV or SKOS.
        language: of the labels of a vocabulary; English, or else the most frequent, when not given.
    """

    fields: str = "auto"
    label_fields: str = "auto"
    text_column: str = "text"
    label_column: str = "labels"
    separator: str | None = None
    encoding: str | None = None
    format: Literal["lf", "beir", "xc", "annif", "table", "features"] | None = None
    label_vocabulary: Path | None = None
    language: str | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SplitOptions(DataOptions):
    """How data files are read, and which training documents are held out for validation.

    Args:
        valid_fraction: share of the training documents that is held out, from 0 to below 1; 0 trains on all of them,
            and then nothing can be chosen by validation. When not given, as the model's run had it, or 0.1. Data with
            validation documents of its own holds out none.
        valid_max: documents that are held out, at most. When not given, as the model's run had it, or 10000.
    """

    valid_fraction: float | None = None
    valid_max: int | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """What is printed.

    Args:
        json: print the result as JSON.
        quiet: print no progress.
        debug: print a traceback with an error.
    """

    json: Annotated[bool, Parameter(negative=())] = False
    quiet: Annotated[bool, Parameter(negative=())] = False
    debug: Annotated[bool, Parameter(negative=())] = False


def quickstart(
    *,
    out: Path = Path("runs/quickstart"),
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    output: Output = Output(),
) -> None:
    """Train on ICD-10-CM, print metrics before and after, and ten predictions; takes under three minutes.

    Parameters
    ----------
    out
        Folder of the model; that of an earlier quickstart is replaced.
    overwrite
        Replace any other model that is in the folder too.
    seed
        Of the split and of training.
    """
    from .data.describe import describe, render
    from .data.quickstart import icd10cm, made_by_quickstart
    from .evaluation.evaluating import evaluate as measure
    from .model.model import Model
    from .recipes import require_place
    from .recipes import train as run
    from .recipes.preparation import make_encoder

    overwrite = overwrite or made_by_quickstart(out)
    require_place(out, None, overwrite)
    data = icd10cm(seed)
    described = describe(data)
    if not output.json:
        print(render(described) + "\n", flush=True)
    settings: dict[str, Any] = {"epochs": 8, "seed": seed, "max_tokens": 64, "valid_documents": 500, "evaluations": 4}

    test = data.test
    assert test is not None

    def figures(model: Model) -> dict[str, float]:
        pred = model.predict(test.texts, k=100)
        return measure(pred, test.targets, data.train.targets, name=data.name)

    untrained = Model.from_encoder(make_encoder(data, resolve("dexml", settings)), data.labels)
    before = figures(untrained)
    where: dict[str, Any] = {"out": out, "overwrite": overwrite}
    model = run(data, recipe="dexml", **where, started=command_began(), max_minutes=2.3, **settings)
    after = figures(model)
    if output.json:
        _print_json({"data": described, "before": before, "metrics": after, "model": str(out)})
        return
    print(f"metrics on {len(test)} held-out phrases, in percent")
    print(f"{'':<12}{'untrained':>10}{'trained':>10}")
    for name in after:
        print(f"{name:<12}{before[name]:>10.2f}{after[name]:>10.2f}")
    print("\nten held-out phrases (* marks a true code)")
    rows = list(range(0, len(test), max(1, len(test) // 10)))[:10]
    pred = model.predict([test.texts[i] for i in rows], k=3)
    for place, row in enumerate(rows):
        true = {data.labels.ids[j] for j in test.targets[[row]].indices}
        print(f"\n{test.texts[row]}")
        for name, text, score in pred.named(place):
            print(f"  {'*' if name in true else ' '} {score:.2f}  {name:<8} {text}")
    print(f"\nmodel saved in {out}; try: echo 'iron deficiency from blood loss' | labelspace predict {out} -")


def info(data: Path, *, options: SplitOptions = SplitOptions(), output: Output = Output()) -> None:
    """Describe a data set: counts, lengths, label frequencies, and the memory that training would take.

    Parameters
    ----------
    data
        Folder or file.
    """
    from .data.describe import describe, render

    report = describe(_load(data, options))
    if output.json:
        _print_json(report)
    else:
        print(render(report))


def convert(
    src: Path,
    dst: Path,
    *,
    to: Literal["lf", "jsonl", "csv", "parquet"],
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    options: DataOptions = DataOptions(),
    output: Output = Output(),
) -> None:
    """Write a data set in another format, so that reading it again gives the same.

    Parameters
    ----------
    src
        Folder or file.
    dst
        Folder to write, whole or not at all; it is read without any flag.
    to
        lf, jsonl, csv or parquet.
    overwrite
        Replace a folder that was written by this command before.
    """
    from .data.conversion import convert as write

    data = write(src, dst, to=to, overwrite=overwrite, **_as_keywords(options))
    counts = {"train": len(data.train), "valid": len(data.valid), "test": 0 if data.test is None else len(data.test)}
    if output.json:
        _print_json({"data": str(dst), "format": to, "documents": counts, "labels": len(data.labels)})
    else:
        shown = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
        print(f"wrote {dst}: {shown} documents, {len(data.labels)} labels")


def train(
    data: Path,
    *,
    out: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    resume: Path | None = None,
    recipe: Literal["auto", "dexml", "unidec", "raexmc"] | None = None,
    settings: Annotated[RunSettings, Parameter(name="*")] = DexmlSettings(),
    options: SplitOptions = SplitOptions(),
    config: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),
) -> None:
    """Train a model and save it with its log and settings.

    Parameters
    ----------
    data
        Folder or file.
    out
        Folder of the model, empty or not there; needed unless --dry-run or --resume is given.
    overwrite
        Replace a model that is in the folder, and drop a run that was stopped there.
    resume
        Folder of the model of a run that was killed or interrupted: go on with it, with its settings. With --out of the
        same folder a run that has not begun yet begins.
    recipe
        auto, dexml, unidec or raexmc, whose settings these are. When not given, that of the run to resume, or the one
        that has the settings given, auto before the others: it chooses by data and device, and says what and why.
    config
        TOML, YAML or JSON file of settings; flags and environment variables (LABELSPACE_EPOCHS) win over it.
    dry_run
        Print the settings as a configuration file (or as JSON with --json), and stop.
    """
    from .recipes import finished, require_place, unfinished
    from .recipes import train as run

    _warn_of_unknown_variables()
    taken = next(name for name, kind in RECIPES.items() if kind is type(settings))
    if dry_run:
        if output.json:
            _print_json({"recipe": taken, **to_dict(settings)})
        else:
            print(to_toml(settings, taken), end="")
        return
    if out is None and resume is None:
        raise SettingsError("no folder to save the model to was given; add --out DIR")
    require_place(out, resume, overwrite)
    values, seed = to_dict(settings), settings.seed
    if resume is not None:
        plain = to_dict(type(settings)())
        values = {name: value for name, value in values.items() if value != plain[name]}
        found = unfinished(resume, out, recipe, values)
        if found is None and finished(resume):
            if output.json:
                _print_json({"model": str(resume), "fit": None})
            return
        if found is not None:
            seed = found["settings"]["seed"]
            options = _as_recorded(options, found["reading"])
    where: dict[str, Any] = {"out": out, "overwrite": overwrite, "resume": resume}
    model = run(_load(data, options, seed), recipe=taken, **where, started=command_began(), **values)
    out = out or resume
    fitted = model.info["fit"]
    if output.json:
        _print_json({"model": str(out), **model.info["metrics"], "fit": fitted, "config": model.info["config"]})
        return
    metrics = model.info["metrics"]["validation"]
    seconds = time.monotonic() - command_began()
    tuned = model.info.get("tuning")
    if tuned is not None:
        from .memory.tune import render

        print(render(tuned))
    print(f"model saved in {out} ({fitted['stopped']} after {fitted['steps']} steps, {seconds:.0f} s)")
    if metrics:
        print("validation, in percent: " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))


def _train_by(recipe: str) -> Callable[..., None]:
    """The command `train` with the settings of a recipe as its flags."""

    def command(*args: Any, **kwargs: Any) -> None:
        train(*args, **{"settings": kind(), **kwargs})

    kind = RECIPES[recipe]
    signature = inspect.signature(train, eval_str=True)
    own = signature.parameters["settings"].replace(annotation=Annotated[kind, Parameter(name="*")], default=kind())
    parameters = [own if p.name == "settings" else p for p in signature.parameters.values()]
    command.__doc__ = train.__doc__
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


train_auto = _train_by("auto")
train_dexml = _train_by("dexml")
train_raexmc = _train_by("raexmc")
train_unidec = _train_by("unidec")


def evaluate(
    model: Path,
    data: Path,
    *,
    split: Literal["auto", "train", "valid", "test"] = "auto",
    k: int = 100,
    filter: Path | None = None,
    propensity: tuple[float, float] | None = None,
    skip_empty: Annotated[bool, Parameter(negative=())] = False,
    threshold: float | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bf16"] = "float32",
    options: SplitOptions = SplitOptions(),
    output: Output = Output(),
) -> None:
    """Measure a model, or the scores of any tool, on a data set.

    Parameters
    ----------
    model
        Folder of a model, or scores: a score.npz or sparse text with one row a document, or a run file of ids.
    data
        Folder or file; fields, columns and separator are those of the model's training data unless given.
    split
        Documents to measure on; auto is test where there is one, else valid.
    k
        Labels to retrieve for each document.
    filter
        File of (document, label) pairs not to predict; found beside the data when not given.
    propensity
        Constants A B; chosen by the name of the data set when not given.
    skip_empty
        Leave documents without a true label out of every mean.
    threshold
        A probability: also say what is right, found and left without labels when only labels that reach it are given.
    device
        auto, cpu, cuda or mps.
    precision
        In which texts are encoded; bf16 is faster on some processors and GPUs, and auto takes it there.
    """
    from .data.formats.table import suffix
    from .data.loading import require_texts
    from .data.scores import SUFFIXES, load_scores
    from .evaluation.evaluating import longest_filter_row, render, render_rankings, report

    if k < 1:
        raise SettingsError(f"--k must be at least 1, got {k}")
    _check_threshold(threshold)
    opened: Model | None = None
    seed = 0
    scores = model.is_file() or (not model.is_dir() and suffix(model) in SUFFIXES)
    if not scores:
        from .model.model import Model

        opened = Model.load(model, device, precision=precision)
        options, seed = _recorded(options, opened)
    elif threshold is not None:
        raise SettingsError(
            f"--threshold goes with a calibrated model; {model} holds scores, which are no probabilities"
        )
    dataset = _load(data, options, seed)
    corpus = _choose_split(dataset, split)
    pairs, source = corpus.filter_pairs, corpus.filter_source
    if filter is not None:
        from .data.formats.filters import read_pairs

        pairs, source = read_pairs(filter, corpus.targets.shape), filter
    targets, train_targets = corpus.targets, dataset.train.targets
    longest = longest_filter_row(pairs) if pairs is not None else 0
    if opened is None:
        given = {"combined": load_scores(model, len(dataset.labels), k + longest, corpus.ids, dataset.labels.ids)}
    else:
        require_texts(dataset, split if split != "auto" else "valid" if dataset.test is None else "test")
        depth = min(k + longest, len(opened.labels))
        left_out = None
        if opened.memory.n_documents and corpus is dataset.valid:
            left_out = opened.held_out(dataset)
            logger.info("%d documents that are measured on do not vote", int(left_out.sum()))
        elif opened.memory.n_documents and corpus is dataset.train:
            logger.warning("the model's documents vote for themselves here, so these figures say little")
        probable = opened.calibration is not None or threshold is not None
        given = opened.rankings(corpus.texts, k=depth, probabilities=probable, left_out=left_out)
        given, (targets, train_targets) = _align(given, opened.labels, dataset.labels, [targets, train_targets])
    if len(dataset.train) < 2:
        logger.warning("propensities need at least two training documents; PSP is left out")
        train_targets = None
    results = {
        name: report(
            predictions, targets, train_targets, filter_pairs=pairs, propensity=propensity, skip_empty=skip_empty,
            name=dataset.name, filter_source=None if source is None else str(source),
            threshold=threshold if predictions.probabilities is not None else None,
        )
        for name, predictions in given.items()
    }  # fmt: skip
    result = results["combined"]
    rankings = {name: of.metrics for name, of in results.items()} if len(results) > 1 else {}
    if output.json:
        _print_json({**result.as_dict(), **({"rankings": rankings} if rankings else {})})
    else:
        print(render(result))
        if rankings:
            print("\n" + render_rankings(rankings))


def calibrate(
    model: Path,
    data: Path,
    *,
    split: Literal["valid", "train", "test"] = "valid",
    device: str = "auto",
    options: SplitOptions = SplitOptions(),
    output: Output = Output(),
) -> None:
    """Fit probabilities to the scores of a model on held-out documents, and write them into its folder.

    Parameters
    ----------
    model
        Folder of a model; a calibration that it has is replaced, all else stays.
    data
        Folder or file; fields, columns and separator are those of the model's training data unless given.
    split
        Documents to calibrate on. Training documents make probabilities too high; on test documents nothing can be
        measured afterwards.
    device
        auto, cpu, cuda or mps.
    """
    from .evaluation.evaluating import threshold_lines
    from .model.manifest import require_changeable
    from .model.model import Model

    require_changeable(model, ", or calibrate a copy of it")
    opened = Model.load(model, device)
    options, seed = _recorded(options, opened)
    made = opened.calibrate(_load(data, options, seed), split)
    opened.save_calibration(model)
    if output.json:
        _print_json({"model": str(model), "kind": made.kind, "features": list(made.features), **made.fitted})
        return
    fitted = made.fitted
    print(f"{made.name}, fitted on {fitted['pairs']:,} pairs of {fitted['documents']:,} {split} documents")
    print(f"on held-out folds: expected calibration error {fitted['ece']:.4f}, and by threshold")
    print("\n".join(threshold_lines(fitted["thresholds"])))
    print("best F1\n" + threshold_lines([fitted["best_f1"]])[1])


def predict(
    model: Path,
    texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    k: int | None = None,
    threshold: float | None = None,
    probabilities: Annotated[bool, Parameter(negative=())] = False,
    style: Annotated[Literal["table", "jsonl", "tsv"], Parameter(name="--format")] = "table",
    out: Path | None = None,
    labels: Path | None = None,
    text_column: str = "text",
    fields: str = "auto",
    encoding: str | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bf16"] = "float32",
    why: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),
) -> None:
    """Predict labels for texts.

    Parameters
    ----------
    model
        Folder of a model.
    texts
        File of texts (txt, csv, tsv, jsonl, LF json, each perhaps .gz, or Parquet) of any length, or - for one text a
        line from standard input. Every row is checked before the first is predicted.
    k
        Labels a text, at most; 5 when not given, or with --threshold as many as reach it.
    threshold
        Only labels whose probability is at least this, from 0 to 1; a text may get none. For a calibrated model.
    probabilities
        Give probabilities beside the scores, or in their place in tables and .npz. For a calibrated model.
    style
        How to print: table, jsonl or tsv.
    out
        Write here instead of printing, whole or not at all: .jsonl, .parquet, .tsv, .txt (table) or .npz (sparse scores
        of all labels).
    labels
        File with one label id or name a line; only these are predicted.
    text_column
        Column of a table that holds the text; as in the model's training data when not given.
    fields
        Of LF json: title, title+content or auto; as in the model's training data when not given.
    encoding
        Of the file; UTF-8 or else latin-1 when not given.
    device
        auto, cpu, cuda or mps.
    precision
        In which texts are encoded; bf16 is faster on some processors and GPUs, and auto takes it there.
    why
        Show for every label which keys voted for it: the three with the largest shares in a table, all of them in
        jsonl and Parquet.
    """
    from .data.texts import TextSource, read_texts
    from .model.batch import check_out, predict_blocks, predict_file, write_blocks
    from .model.model import Model

    style = "jsonl" if output.json else style
    if out is not None:
        check_out(out, texts, why)
    elif why and style == "tsv":
        raise SettingsError("--why cannot be written as tsv; take table or jsonl")
    if k is not None and k < 1:
        raise SettingsError(f"--k must be at least 1, got {k}")
    _check_threshold(threshold)
    opened = Model.load(model, device, precision=precision)
    recorded, _ = _recorded(DataOptions(fields=fields, text_column=text_column), opened)
    chosen = None
    if labels is not None:
        chosen = [name for name in read_texts(labels)[1] if name.strip()]
        if not chosen:
            raise DataError("there are no labels to choose from; give one id or name a line", labels)
    if k is not None:
        k = min(k, len(opened.labels))  # what lies beyond is not written
    how: dict[str, Any] = {"k": k, "labels": chosen, "threshold": threshold, "probabilities": probabilities, "why": why}
    reading: dict[str, Any] = {"text_column": recorded.text_column, "fields": recorded.fields, "encoding": encoding}
    if out is None:
        with TextSource(texts, **reading) as source:
            write_blocks(predict_blocks(opened, source, **how), style, sys.stdout)
        return
    count = predict_file(opened, texts, out, progress=not output.quiet, **reading, **how)
    logger.info("wrote %s, %d documents", out, count)


def export(
    model: Path,
    *,
    to: Literal["sentence-transformers", "onnx", "keys", "card"],
    out: Path,
    texts: Path | None = None,
    table: Literal["jsonl", "parquet"] = "jsonl",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),
) -> None:
    """Write a part of a model for other tools: the encoder, as ONNX too, the keys, or a model card.

    Parameters
    ----------
    model
        Folder of a model.
    to
        sentence-transformers, onnx, keys or card.
    out
        Folder to write, whole or not at all; for card the file.
    texts
        File of texts on which vectors are compared with the model's before anything is put in place; texts of the
        model's labels and documents when not given.
    table
        How keys write ids and texts: jsonl or parquet.
    overwrite
        Replace what this command wrote there before.
    """
    from .data.texts import read_texts
    from .export import export as write
    from .model.model import Model

    opened = Model.load(model, "cpu", graphs=False)
    tried = None if texts is None else read_texts(texts)[1]
    record = write(opened, to, out, texts=tried, table=table, overwrite=overwrite)
    if output.json:
        _print_json({"model": str(model), "out": str(out), **record})
        return
    checked = ""
    if "smallest_cosine" in record:
        checked = f" ({record['checked_texts']} texts tried, smallest cosine {record['smallest_cosine']:.6f})"
    print(f"wrote {out}{checked}")


def report(
    *runs: Path,
    data: Path | None = None,
    out: Path | None = None,
    split: Literal["auto", "valid", "test"] = "auto",
    documents: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bf16"] = "float32",
    options: SplitOptions = SplitOptions(),
    output: Output = Output(),
) -> None:
    """Write one HTML page about one or several runs: metrics, curves, mistakes, examples with reasons, cost.

    Parameters
    ----------
    runs
        Folders of models; the first is what the others are compared with.
    data
        Folder or file to measure on; read as the training data of the first run was unless said otherwise. Without it
        the page shows what the folders record.
    out
        The page, a name that ends in .html; needed unless --json is given.
    split
        Documents to measure on; auto is test where there is one, else valid.
    documents
        Measure on so many of them at most, drawn by a fixed seed.
    device
        auto, cpu, cuda or mps.
    precision
        In which texts are encoded; bf16 is faster on some processors and GPUs, and auto takes it there.
    """
    if out is None and not output.json:
        raise SettingsError("no file to write the page to was given; add --out report.html")
    if out is not None and (out.suffix.lower() not in (".html", ".htm") or out.is_dir()):
        raise SettingsError(f"--out {out}: the page is a file whose name must end in .html")
    if data is None and (split != "auto" or documents is not None):
        raise SettingsError("--split and --documents say what to measure on; add --data DATA")
    from .base.files import atomic_file
    from .model.manifest import read_manifest
    from .report.measuring import measure
    from .report.page import render

    dataset = None
    if data is not None and runs:
        info = read_manifest(runs[0].expanduser())["info"].get("data", {})
        recorded = info.get("options", {})
        dataset = _load(data, _as_recorded(options, recorded), int(recorded.get("seed", 0)))
    told = measure(runs, dataset, split=split, documents=documents, device=device, precision=precision)
    if out is not None:
        with atomic_file(out) as part:
            part.write_text(render(told), encoding="utf-8", newline="\n")
        logger.info("wrote %s", out)
    if output.json:
        _print_json(told)


def bench(
    *,
    quick: Annotated[bool, Parameter(negative=())] = False,
    only: tuple[Literal["machine", "train", "encode", "loss", "search", "hnsw"], ...] = (),
    seed: int = 0,
    output: Output = Output(),
) -> None:
    """Measure speed on this machine against sentence-transformers, faiss and plain twins, as ratios.

    Parameters
    ----------
    quick
        Smaller sizes and fewer runs: five minutes on two cores without AVX512.
    only
        Parts to measure, beside what the machine can do at all; all when not given.
    seed
        Of the generated texts and vectors.
    """
    require_seed(seed)
    from .bench import PARTS, render
    from .bench import bench as measure

    report = measure(quick=quick, only=tuple(dict.fromkeys(only)) or PARTS, seed=seed)
    if output.json:
        _print_json(report)
    else:
        print(render(report))


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise SettingsError(f"--threshold must be a probability from 0 to 1, got {threshold}")


def _as_keywords(options: DataOptions) -> dict[str, Any]:
    """Options of `labelspace.load`, those that were not given left to it."""
    values = {name: getattr(options, name) for name in type(options).__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not None}


def _load(path: Path, options: DataOptions, seed: int = 0) -> Dataset:
    from .data.loading import load

    data = load(path, **_as_keywords(options), seed=seed)
    logger.info("read %s: %d documents, %d labels", data.name, len(data.train), len(data.labels))
    return data


def _recorded(options: AnyOptions, model: Model) -> tuple[AnyOptions, int]:
    """Options as given, and where none was given, as the model's training data was read; and its seed."""
    recorded = model.info.get("data", {}).get("options", {})
    return _as_recorded(options, recorded), int(recorded.get("seed", 0))


def _as_recorded(options: AnyOptions, recorded: dict[str, Any]) -> AnyOptions:
    import dataclasses

    default = type(options)()
    changes = {
        name: recorded[name]
        for name in (
            "fields",
            "text_column",
            "label_column",
            "separator",
            "language",
            "valid_fraction",
            "valid_max",
        )  # label texts come with the model
        if hasattr(options, name)
        and recorded.get(name) is not None
        and getattr(options, name) == getattr(default, name)
    }
    return dataclasses.replace(options, **changes)


def _choose_split(data: Dataset, split: str) -> Corpus:
    if split == "auto":
        split = "valid" if data.test is None else "test"
    corpus: Corpus | None = getattr(data, split)
    if corpus is None or not len(corpus):
        raise SettingsError(f"{data.name} has no {split} documents; choose another --split")
    logger.info("measuring on the %d %s documents", len(corpus), split)
    return corpus


def _align(
    given: dict[str, Predictions], mine: Labels, theirs: Labels, truths: list[Any]
) -> tuple[dict[str, Predictions], list[Any]]:
    """Predictions in the numbers of the data's labels; labels that only the model has come after those."""
    if list(mine.ids) == list(theirs.ids):
        return given, truths
    from .evaluation.evaluating import numbers_among, widened
    from .types import Predictions

    number = {name: i for i, name in enumerate(theirs.ids)}
    place = numbers_among(mine.ids, number)
    extra = len(number) - len(theirs)
    unknown = len(theirs) - (len(mine) - extra)
    logger.warning("the model and the data differ in labels: %d only in the model, %d only in the data", extra, unknown)
    if unknown == len(theirs):
        raise SettingsError(
            "the model and the data have no label id in common; is this the data that the model is for?"
        )
    wide = [widened(truth, len(number)) for truth in truths]
    there = {
        name: Predictions(place[found.indices], found.scores, probabilities=found.probabilities)
        for name, found in given.items()
    }
    return there, wide


def _warn_of_unknown_variables() -> None:
    """Say when an environment variable looks like a setting and is none."""
    known = {name for kind in RECIPES.values() for name in kind.__dataclass_fields__}
    known |= {*SplitOptions.__dataclass_fields__, *Output.__dataclass_fields__}
    known |= {"cache", "data", "out", "overwrite", "resume", "recipe", "config", "dry_run"}
    for name in sorted(os.environ):
        if name.startswith("LABELSPACE_") and name.removeprefix("LABELSPACE_").lower() not in known:
            logger.warning("the environment variable %s is no setting and is not used", name)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
