"""Predictions for a file of any length, a block of documents at a time, in memory that does not grow with it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ..base.files import atomic_file
from ..data import writers
from ..data.scores import save_scores
from ..data.texts import TextSource
from ..errors import SettingsError
from ..types import Predictions
from .model import Model

BLOCK = 4096
"""Documents predicted at a time: as many as `Model.predict` looks at at once, so that blocks change nothing."""
SUFFIXES = (".jsonl", ".parquet", ".tsv", ".txt", ".npz")

Block = tuple[list[str], list[str], Predictions]


def predict_blocks(
    model: Model, source: TextSource, *, block: int = BLOCK, progress: bool = False, **options: Any
) -> Generator[Block, None, None]:
    """Predictions for the documents of a source, in their order.

    Args:
        model: predicts.
        source: documents.
        block: documents at a time.
        progress: show a progress bar on standard error, where that is a terminal.
        options: of `Model.predict`: k, labels, threshold, probabilities, why.

    Returns:
        Ids, texts and predictions of each block.

    Raises:
        DataError: as from `TextSource`, before the first block, or from `Model.predict`.
        ModelError: as from `Model.predict`.
    """
    with tqdm(total=len(source), desc="predicting", unit="text", disable=None if progress else True) as bar:
        for ids, texts in source.blocks(block):
            yield ids, texts, model.predict(texts, **options)
            bar.update(len(ids))


def predict_file(
    model: Model,
    texts: str | Path,
    out: str | Path,
    *,
    text_column: str = "text",
    fields: str = "auto",
    encoding: str | None = None,
    block: int = BLOCK,
    progress: bool = False,
    **options: Any,
) -> int:
    """Predict labels for a file of texts and write them, whole or not at all.

    JSONL, Parquet, TSV and tables are written as blocks are predicted; the rows of ``.npz`` are gathered, 12 bytes a
    label that is predicted.

    Args:
        model: predicts.
        texts: file of texts, or "-" for standard input, as for `labelspace.data.TextSource`.
        out: file to write: .jsonl, .parquet, .tsv, .txt (a table to read) or .npz (sparse scores).
        text_column: as for `labelspace.data.TextSource`, and so are the next two.
        fields: of LF json.
        encoding: of the file; None finds it out.
        block: documents at a time.
        progress: show a progress bar on standard error, where that is a terminal.
        options: of `Model.predict`: k, labels, threshold, probabilities, why.

    Returns:
        The number of documents.

    Raises:
        SettingsError: as from `check_out`.
        DataError: a row that cannot be read, with file and line; nothing is written.
        ModelError: probabilities of a model that is not calibrated.
        MissingExtraError: Parquet without its package.
    """
    out = Path(out).expanduser()
    check_out(out, str(texts), bool(options.get("why")))
    with TextSource(texts, text_column=text_column, fields=fields, encoding=encoding) as source:
        blocks = predict_blocks(model, source, block=block, progress=progress, **options)
        with contextlib.closing(blocks):
            if out.suffix == ".npz":
                save_scores(joined([predictions for _, _, predictions in blocks]), len(model.labels), out)
            elif out.suffix == ".parquet":
                probable, why = options.get("probabilities") or options.get("threshold") is not None, options.get("why")
                with atomic_file(out) as part:
                    parquet = writers.ParquetPredictions(part, probabilities=bool(probable), why=bool(why))
                    with contextlib.closing(parquet):
                        for ids, rows, predictions in blocks:
                            parquet.write(predictions, ids, rows)
            else:
                with atomic_file(out) as part, part.open("w", encoding="utf-8") as stream:
                    write_blocks(blocks, "table" if out.suffix == ".txt" else out.suffix[1:], stream)
        return len(source)


def check_out(out: Path, texts: str, why: bool) -> None:
    """Refuse a file that cannot be written as asked.

    Args:
        out: the file to write.
        texts: the file of texts, or "-".
        why: whether reasons are asked for.

    Raises:
        SettingsError: an unknown suffix, one without a place for reasons, or the file of texts itself.
    """
    if out.suffix not in SUFFIXES:
        raise SettingsError(f"--out {out}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if why and out.suffix in (".tsv", ".npz"):
        raise SettingsError(f"--why cannot be written as {out.suffix[1:]}; take table, jsonl or parquet")
    if out.exists() and texts != "-" and Path(texts).exists() and out.samefile(texts):
        raise SettingsError(f"--out {out} is the file of texts itself; choose another name")


def write_blocks(blocks: Iterable[Block], style: str, stream: TextIO) -> None:
    """Write predictions as they come.

    Args:
        blocks: from `predict_blocks`.
        style: ``jsonl``, ``tsv`` or ``table``.
        stream: open text.
    """
    for number, (ids, texts, predictions) in enumerate(blocks):
        if style == "jsonl":
            writers.write_jsonl(predictions, ids, texts, stream)
        elif style == "tsv":
            writers.write_tsv(predictions, ids, stream, header=number == 0)
        else:
            writers.write_table(predictions, ids, stream)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of blocks, at least one, as those of one, padded to the widest."""
    width = max(part.indices.shape[1] for part in parts)

    def stacked(name: str, fill: float) -> Any:
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            return None
        return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=fill) for a in arrays])

    first, probabilities = parts[0], stacked("probabilities", 0)
    indices, scores = stacked("indices", -1), stacked("scores", -np.inf)
    return Predictions(indices, scores, first.label_ids, first.label_texts, probabilities=probabilities)
