"""Records of a run to a tracker (trackio or wandb), beside the log."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import Any

from ..errors import LabelspaceError, MissingExtraError

logger = logging.getLogger(__name__)


class Tracker:
    """A run of a tracker, by the functions ``init``, ``log`` and ``finish`` that trackio and wandb share.

    A tracker that cannot start is an error. One that fails later only causes a warning, since training matters more.

    Args:
        name: ``trackio`` or ``wandb``.
        project: where the run is shown.
        config: settings to show with it.

    Raises:
        MissingExtraError: the package is not installed.
        LabelspaceError: the tracker cannot start.
    """

    def __init__(self, name: str, project: str, config: dict[str, Any]):
        self.name = name
        try:
            self._module: Any = importlib.import_module(name)
        except ImportError:
            raise MissingExtraError(f"--track {name}", name, name) from None
        try:
            self._module.init(project=project, config=config)
        except Exception as error:  # of many types, by package, version and what the network does
            offline = "; WANDB_MODE=offline needs no account and no network" if name == "wandb" else ""
            reason = " ".join(str(error).split())[:300]
            raise LabelspaceError(f"--track {name}: the tracker cannot start ({reason}){offline}") from error

    def write(self, record: dict[str, Any]) -> None:
        """Log the numbers of an entry of ``log.jsonl``, each under the name of its event, at the entry's step."""
        event = record.get("event", "run")
        numbers = {
            f"{event}/{name}": value
            for name, value in record.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        if self._module is None or not numbers:
            return
        step = record.get("step")
        self._call("log", numbers, **({} if step is None else {"step": step}))

    def close(self) -> None:
        """End the run."""
        if self._module is not None:
            self._call("finish")
        self._module = None

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(self._module, name)(*args, **kwargs)
        except Exception as error:
            logger.warning("%s failed (%s); the run goes on without it", self.name, " ".join(str(error).split())[:300])
            self._module = None


def require_tracker(name: str | None) -> None:
    """Refuse a tracker that is not installed, before any work is done.

    Args:
        name: as for `Tracker`; None for no tracker.

    Raises:
        MissingExtraError: the package is not installed.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise MissingExtraError(f"--track {name}", name, name)
