"""Files and folders that are whole or absent: written aside, flushed to disk, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import LabelspaceError, WriteError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_RUST = re.compile(r"\(os error (\d+)\)")


def _beside(path: Path, purpose: str) -> Path:
    """A fresh hidden name in the folder of ``path``; the suffix stays, since some writers look at it."""
    return path.with_name(f".{path.stem}.{purpose}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def sync(path: Path) -> None:
    """Flush a file, or a folder's own entries where the platform can do that, to disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    # Windows flushes only what is open for writing; elsewhere reading is enough, also for read-only files.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish(path: Path) -> None:
    """Flush a new file in a folder of ours to disk, and let those read it who may read the folder.

    Some writers keep files to their owner.
    """
    os.chmod(path, path.stat().st_mode | path.parent.stat().st_mode & 0o044)
    sync(path)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Say in one sentence which file or folder could not be written when the body fails at that.

    Failures that have to do with another file are passed on as they are.

    Args:
        path: what is written, under this name or a hidden one beside it.

    Raises:
        WriteError: the disk is full, the folder cannot be written to, or the like.
    """
    try:
        yield
    except LabelspaceError:
        raise
    except Exception as error:
        number, reason = _of_writing(error, Path(path).resolve())
        if not reason:
            raise
        advice = "choose another place"
        if number in _FULL:
            advice = "free some space, or choose another place"
        elif number in _CLOSED:
            advice = "make it writable, or choose another place"
        raise WriteError(path, reason, advice) from error


def _of_writing(error: Exception, path: Path) -> tuple[int | None, str]:
    """Number and text of what the system says of a write; an empty text where the failure is of another kind."""
    rust = _RUST.search(str(error))  # of libraries written in Rust, whose errors are no OSError
    if rust and int(rust[1]) in (*_FULL, *_CLOSED, errno.EIO):
        return int(rust[1]), os.strerror(int(rust[1]))
    elsewhere = (ConnectionError, TimeoutError, InterruptedError, ChildProcessError, BlockingIOError)
    if not isinstance(error, OSError) or type(error).__module__ != "builtins" or isinstance(error, elsewhere):
        return None, ""
    if isinstance(error.filename, str | os.PathLike):
        named = Path(error.filename)
        beside = any(part.parent == path.parent and path.stem in part.name for part in (named, *named.parents))
        if not beside and named not in path.parents:
            return None, ""
    if error.errno is None and "requested and" in str(error):  # NumPy's
        return errno.ENOSPC, "only a part of it could be written"
    return error.errno, error.strerror or str(error)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes ``path`` when the body ends well, and is removed otherwise.

    Args:
        path: the file to write; missing parent folders are made, an old file is replaced.

    Raises:
        WriteError: it cannot be written.
    """
    given, path = path, Path(path).resolve()
    if path.is_dir():
        raise LabelspaceError(f"cannot write the file {given}: it is a folder; choose another name")
    temporary = _beside(path, "writing")
    with writing(given):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder to fill; it becomes ``path`` when the body ends well.

    An old folder at ``path`` is put aside by a rename, and removed only after the new one is in place. When
    the body fails, the temporary folder is removed and the old one stays. Whether the old folder may be replaced
    is for the caller to decide beforehand.

    Args:
        path: the folder to write; missing parent folders are made.

    Raises:
        WriteError: it cannot be written.
    """
    given, path = path, Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise LabelspaceError(f"cannot write the folder {given}: a file of that name exists; choose another name")
    temporary, old = _beside(path, "writing"), _beside(path, "replaced")
    with writing(given):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, files in os.walk(temporary):
                for name in files:
                    finish(Path(folder, name))
                sync(Path(folder))
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                if old.exists():
                    os.replace(old, path)
                raise
            sync(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Keep other processes from changing a folder while the body runs; where there are no locks nothing is kept out.

    Args:
        path: the folder.

    Raises:
        LabelspaceError: another process is changing it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabelspaceError(f"another process is changing {path}; wait for it, then try again") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
