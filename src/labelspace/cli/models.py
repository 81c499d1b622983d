"""The commands that use a model: ``evaluate``, ``calibrate``, ``predict``, ``export`` and ``report``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..base.checks import require_count, require_probability
from ..errors import DataError, SettingsError
from .options import (
    DataOptions,
    Device,
    ModelPath,
    Output,
    Precision,
    ReadPath,
    Source,
    SplitOptions,
    Switch,
    align,
    as_read_for,
    as_recorded,
    choose_split,
    load_data,
    print_json,
)

if TYPE_CHECKING:
    from ..evaluation.evaluating import Report
    from ..model.model import Model
    from ..types import Corpus, Dataset

logger = logging.getLogger("labelspace")


def evaluate(
    model: Path,
    data: ReadPath,
    *,
    split: Literal["auto", "train", "valid", "test"] = "auto",
    k: int = 100,
    filter: Path | None = None,
    propensity: tuple[float, float] | None = None,
    skip_empty: Switch = False,
    threshold: float | None = None,
    gains: Literal["linear", "exponential", "binary"] = "linear",
    published: Switch = False,
    device: Device = "auto",
    precision: Precision = "float32",
    options: SplitOptions = SplitOptions(),
    output: Output = Output(),
) -> None:
    """Measure a model, or the scores of any tool, on a data set.

    Parameters
    ----------
    model
        Folder of a model, or scores: a score.npz or sparse text with one row a document, or a run file of ids.
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
    gains
        Of nDCG where relevances differ: linear, the relevance itself, as trec_eval has it; exponential, 2 to its power,
        less 1; binary, 1 for any. Judgements of BEIR count as they are written.
    published
        Also print the figures that papers have for the data set, which is known by its name, and what is to be minded.
    """
    from ..data.formats.rows import suffix
    from ..data.loading import require_texts
    from ..data.scores import SUFFIXES, load_scores
    from ..evaluation.evaluating import longest_filter_row, report
    from ..evaluation.published import data_set as known_data_set
    from ..evaluation.render import render, render_published, render_rankings

    require_count("--k", k)
    if threshold is not None:
        require_probability("--threshold", threshold)
    opened: Model | None = None
    seed = 0
    scores = model.is_file() or (not model.is_dir() and suffix(model) in SUFFIXES)
    if not scores:
        from ..model.model import Model

        opened = Model.load(model, device, precision=precision)
        options, seed = as_read_for(options, opened)
    elif threshold is not None:
        raise SettingsError(
            f"--threshold goes with a calibrated model; {model} holds scores, which are no probabilities"
        )
    dataset = load_data(data, options, seed)
    if published:
        known_data_set(dataset.name)
    corpus = choose_split(dataset, split)
    pairs, source = corpus.filter_pairs, corpus.filter_source
    if filter is not None:
        from ..data.formats.filters import read_pairs

        pairs, source = read_pairs(filter, corpus.targets.shape), filter
    targets, train_targets = corpus.targets, dataset.train.targets
    if gains == "exponential":
        targets = targets * float(dataset.options.get("highest_judgement") or 1)
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
        given, (targets, train_targets) = align(given, opened.labels, dataset.labels, [targets, train_targets])
    if len(dataset.train) < 2:
        logger.warning("propensities need at least two training documents; PSP is left out")
        train_targets = None
    results = {
        name: report(
            predictions, targets, train_targets, filter_pairs=pairs, propensity=propensity, skip_empty=skip_empty,
            name=dataset.name, filter_source=None if source is None else str(source),
            threshold=threshold if predictions.probabilities is not None else None, gains=gains,
        )
        for name, predictions in given.items()
    }  # fmt: skip
    result = results["combined"]
    rankings = {name: of.metrics for name, of in results.items()} if len(results) > 1 else {}
    beside = _beside_published(result, dataset, corpus, opened) if published else None
    if output.json:
        more = {"rankings": rankings, "published": beside}
        print_json({**result.as_dict(), **{name: value for name, value in more.items() if value}})
    else:
        print(render(result))
        if rankings:
            print("\n" + render_rankings(rankings))
        if beside is not None:
            print("\n" + render_published(beside))


def _beside_published(result: Report, dataset: Dataset, corpus: Corpus, model: Model | None) -> dict[str, Any]:
    """Figures beside those that are published for the data set."""
    from ..evaluation.published import caveats, table

    split = next(name for name in ("test", "valid", "train") if getattr(dataset, name) is corpus)
    learnt = None if model is None else len(dataset.fit_rows)
    return table(dataset.name, result, caveats(dataset.name, result, split, len(dataset.train), learnt))


def calibrate(
    model: Path,
    data: ReadPath,
    *,
    split: Literal["valid", "train", "test"] = "valid",
    device: Device = "auto",
    options: SplitOptions = SplitOptions(),
    output: Output = Output(),
) -> None:
    """Fit probabilities to the scores of a model on held-out documents, and write them into its folder.

    Parameters
    ----------
    model
        Folder of a model; a calibration that it has is replaced, all else stays.
    split
        Documents to calibrate on. Training documents make probabilities too high; on test documents nothing can be
        measured afterwards.
    """
    from ..evaluation.render import threshold_lines
    from ..model.manifest import require_changeable
    from ..model.model import Model

    require_changeable(model, ", or calibrate a copy of it")
    opened = Model.load(model, device)
    options, seed = as_read_for(options, opened)
    made = opened.calibrate(load_data(data, options, seed), split)
    opened.save_calibration(model)
    if output.json:
        print_json({"model": str(model), "kind": made.kind, "features": list(made.features), **made.fitted})
        return
    fitted = made.fitted
    print(f"{made.name}, fitted on {fitted['pairs']:,} pairs of {fitted['documents']:,} {split} documents")
    print(f"on held-out folds: expected calibration error {fitted['ece']:.4f}, and by threshold")
    print("\n".join(threshold_lines(fitted["thresholds"])))
    print("best F1\n" + threshold_lines([fitted["best_f1"]])[1])


def predict(
    model: ModelPath,
    texts: Source,
    *,
    k: int | None = None,
    threshold: float | None = None,
    probabilities: Switch = False,
    style: Annotated[Literal["table", "jsonl", "tsv"], Parameter(name="--format")] = "table",
    out: Path | None = None,
    labels: Path | None = None,
    text_column: str = "text",
    fields: str = "auto",
    encoding: str | None = None,
    device: Device = "auto",
    precision: Precision = "float32",
    why: Switch = False,
    output: Output = Output(),
) -> None:
    """Predict labels for texts.

    Parameters
    ----------
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
        Of the file; UTF-8 or else Windows-1252 when not given.
    why
        Show for every label which keys voted for it: the three with the largest shares in a table, all of them in
        jsonl and Parquet.
    """
    from ..data.texts import TextSource, read_texts
    from ..model.batch import check_out, predict_blocks, predict_file, write_blocks
    from ..model.model import Model

    style = "jsonl" if output.json else style
    if out is not None:
        check_out(out, texts, why)
    elif why and style == "tsv":
        raise SettingsError("--why cannot be written as tsv; take table or jsonl")
    if k is not None:
        require_count("--k", k)
    if threshold is not None:
        require_probability("--threshold", threshold)
    opened = Model.load(model, device, precision=precision)
    recorded, _ = as_read_for(DataOptions(fields=fields, text_column=text_column), opened)
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
    model: ModelPath,
    *,
    to: Literal["sentence-transformers", "onnx", "keys", "card"],
    out: Path,
    texts: Path | None = None,
    table: Literal["jsonl", "parquet"] = "jsonl",
    overwrite: Switch = False,
    output: Output = Output(),
) -> None:
    """Write a part of a model for other tools: the encoder, as ONNX too, the keys, or a model card.

    Parameters
    ----------
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
    from ..data.texts import read_texts
    from ..export import export as write
    from ..model.model import Model

    opened = Model.load(model, "cpu", graphs=False)
    tried = None if texts is None else read_texts(texts)[1]
    record = write(opened, to, out, texts=tried, table=table, overwrite=overwrite)
    if output.json:
        print_json({"model": str(model), "out": str(out), **record})
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
    device: Device = "auto",
    precision: Precision = "float32",
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
    """
    if out is None and not output.json:
        raise SettingsError("no file to write the page to was given; add --out report.html")
    if out is not None and (out.suffix.lower() not in (".html", ".htm") or out.is_dir()):
        raise SettingsError(f"--out {out}: the page is a file whose name must end in .html")
    if data is None and (split != "auto" or documents is not None):
        raise SettingsError("--split and --documents say what to measure on; add --data DATA")
    from ..base.files import atomic_file
    from ..model.manifest import read_manifest
    from ..report.measuring import measure
    from ..report.page import render

    dataset = None
    if data is not None and runs:
        info = read_manifest(runs[0].expanduser())["info"].get("data", {})
        recorded = info.get("options", {})
        dataset = load_data(data, as_recorded(options, recorded), int(recorded.get("seed", 0)))
    told = measure(runs, dataset, split=split, documents=documents, device=device, precision=precision)
    if out is not None:
        with atomic_file(out) as part:
            part.write_text(render(told), encoding="utf-8", newline="\n")
        logger.info("wrote %s", out)
    if output.json:
        print_json(told)
