"""Every error that labelspace raises on purpose::

    LabelspaceError            one clear sentence: what was asked, what is wrong, what to do
    |-- DataError              a file or an array that cannot be read as asked (names file and line)
    |-- SettingsError          an unknown setting, or a value out of bounds
    |-- ModelError             a model folder that is foreign, damaged or of another version
    |-- CheckpointError        an unfinished run that cannot be gone on with
    |-- WriteError             a file or folder that cannot be written: a full disk, say; an OSError too
    |-- MissingExtraError      an optional package that is not installed (names the extra)
    `-- ResourceError          more memory than there is, said before it is taken

Errors of the caller's own code (a wrong shape passed to a loss, say) are plain ``ValueError``.
"""

from __future__ import annotations

from pathlib import Path


def unit(path: str | Path) -> str:
    """What the records of a file are counted in: rows of a Parquet file, lines of any other."""
    return "row" if str(path).lower().endswith(".parquet") else "line"


class LabelspaceError(Exception):
    """Base of all errors meant for a user; the command line prints them without a traceback."""


class DataError(LabelspaceError):
    """Input that cannot be read as asked.

    Args:
        message: one sentence: what is wrong and what to do.
        path: the file, put in front of the message.
        line: the line in that file, counted from 1; in a Parquet file the row, counted from 0.
    """

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None):
        self.path, self.line = path, line
        where = "" if path is None else f"{path}: " if line is None else f"{path}, {unit(path)} {line}: "
        super().__init__(where + message)


class SettingsError(LabelspaceError):
    """A setting that does not exist or a value that it cannot take."""


class ModelError(LabelspaceError):
    """A model folder that cannot be opened: not one, damaged, or written by another version."""


class CheckpointError(LabelspaceError):
    """An unfinished run that cannot be gone on with: damaged, of another version, or on other data or settings."""


class WriteError(LabelspaceError, OSError):
    """A file or folder cannot be written.

    Args:
        path: what was to be written.
        reason: what the system says.
        advice: what to do.
    """

    def __init__(self, path: str | Path, reason: str, advice: str):
        self.path, self.reason = path, reason
        super().__init__(f"cannot write {path}: {reason}; {advice}")


class MissingExtraError(LabelspaceError):
    """An optional package is not installed.

    Args:
        purpose: what was asked for.
        package: the package that is missing.
        extra: the extra of labelspace that brings it.
    """

    def __init__(self, purpose: str, package: str, extra: str):
        self.package, self.extra = package, extra
        super().__init__(f"{purpose} needs the package {package}; install it with: pip install 'labelspace[{extra}]'")


class ResourceError(LabelspaceError):
    """The work would take more memory than there is."""
