"""File formats. Each is a module with three names:

- ``sniff(path)``: whether a file or folder has this format;
- ``read(path, name, settings) -> Splits``: what it holds. The name is that of the data set: it is for messages, and
  where documents have title and content it may choose the fields. Settings that do not concern a format are ignored.
- ``LOOKED_FOR``: what a data set of this format needs, for messages.

Filter pairs, which all formats have in the same files, are added here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...errors import DataError, SettingsError
from . import annif, beir, fasttext, features, lf, table, xc
from .corpus import ReadSettings, Splits
from .filters import with_pairs
from .rows import SUFFIXES
from .text import refuse_broken_link
from .unknown import settle

FORMATS = {"lf": lf, "beir": beir, "xc": xc, "annif": annif, "table": table, "features": features, "fasttext": fasttext}
"""In this order the first that fits is taken."""


def detect(path: Path) -> str:
    """The name of the format that a folder or file has."""
    for name, module in FORMATS.items():
        if module.sniff(path):
            return name
    looked_for = "; ".join(f"{module.LOOKED_FOR} ({name})" for name, module in FORMATS.items())
    if path.is_file():
        kinds = ", ".join(SUFFIXES)
        raise DataError(f"the file is no table; a data set is a {kinds} file, one of fastText, or a folder", path)
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    shown = ", ".join(entries[:10]) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")
    raise DataError(f"no data set was recognised; looked for {looked_for}; the folder holds {shown or 'nothing'}", path)


def read(path: Path, name: str, settings: ReadSettings, format: str | None = None) -> tuple[Splits, str]:
    """Read a data set; the result's second part is the name of its format.

    Args:
        path: a folder or a file.
        name: the data set's name.
        settings: how to read it.
        format: the format's name, or None to find it out.
    """
    if format is not None and format not in FORMATS:
        raise SettingsError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    refuse_broken_link(path)
    if not path.exists():
        raise DataError("there is no such file or folder", path)
    try:
        format = format or detect(path)
        if settings.label_vocabulary is not None and format not in ("table", "annif"):
            raise SettingsError(
                f"label_vocabulary is for tables and Annif corpora; the format {format} has its own labels"
            )
        splits = FORMATS[format].read(path, name, settings)
        choice = settings.unknown_labels
        splits = settle(splits, choice, name)
        corpora = {split: with_pairs(corpus, split, path, choice) for split, corpus in splits.corpora.items()}
        splits = dataclasses.replace(splits, corpora=corpora)
    except PermissionError as error:
        raise DataError(f"the folder cannot be read ({error.strerror})", path) from None
    if choice != "refuse":
        splits.options["unknown_labels"] = choice
    return splits, format
