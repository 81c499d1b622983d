"""File formats: each module has ``sniff(path)``, ``read(path, name, settings)`` and ``LOOKED_FOR``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...errors import DataError, SettingsError
from . import annif, beir, features, lf, table, xc
from .corpus import ReadSettings, Splits
from .text import TextFiles
from .vocabulary import read_vocabulary

FORMATS = {"lf": lf, "beir": beir, "xc": xc, "annif": annif, "table": table, "features": features}
"""In this order the first that fits is taken."""


def detect(path: Path) -> str:
    """The name of the format that a folder or file has.

    Args:
        path: what to look at.
    """
    for name, module in FORMATS.items():
        if module.sniff(path):
            return name
    looked_for = "; ".join(f"{module.LOOKED_FOR} ({name})" for name, module in FORMATS.items())
    if path.is_file():
        raise DataError(f"the file is no table; a data set is a {', '.join(table.SUFFIXES)} file or a folder", path)
    there = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
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
    if not path.exists():
        raise DataError("there is no such file or folder", path)
    try:
        format = format or detect(path)
        if settings.label_vocabulary is not None and format == "table":
            return _read_with_vocabulary(path, name, settings), format
        if settings.label_vocabulary is not None and format != "annif":
            raise SettingsError(
                f"label_vocabulary is for tables and Annif corpora; the format {format} has its own labels"
            )
        return FORMATS[format].read(path, name, settings), format
    except PermissionError as error:
        raise DataError(f"the folder cannot be read ({error.strerror})", path) from None


def _read_with_vocabulary(path: Path, name: str, settings: ReadSettings) -> Splits:
    """A table whose labels are the concepts of a vocabulary."""
    assert settings.label_vocabulary is not None
    vocabulary = read_vocabulary(settings.label_vocabulary, settings, TextFiles(settings.encoding))
    own = dataclasses.replace(settings, label_fields="auto")  # those given are the vocabulary's
    splits = table.read(path, name, own, vocabulary.concepts())
    return vocabulary.without_withdrawn(splits, name)
