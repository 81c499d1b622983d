"""The commands for data sets: ``info`` and ``convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .options import DataOptions, DataPath, Output, SplitOptions, Switch, as_keywords, load_data, print_json


def info(data: DataPath, *, options: SplitOptions = SplitOptions(), output: Output = Output()) -> None:
    """Describe a data set: counts, lengths, label frequencies, and the memory that training would take."""
    from ..data.describe import describe, render

    report = describe(load_data(data, options))
    if output.json:
        print_json(report)
    else:
        print(render(report))


def convert(
    src: Path,
    dst: Path,
    *,
    to: Literal["lf", "jsonl", "csv", "parquet"],
    overwrite: Switch = False,
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
    from ..data.conversion import convert as write

    data = write(src, dst, to=to, overwrite=overwrite, **as_keywords(options))
    counts = {"train": len(data.train), "valid": len(data.valid), "test": 0 if data.test is None else len(data.test)}
    if output.json:
        print_json({"data": str(dst), "format": to, "documents": counts, "labels": len(data.labels)})
    else:
        shown = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
        print(f"wrote {dst}: {shown} documents, {len(data.labels)} labels")
