"""Recipes by name; each is one file with ``train(data, settings, run) -> Model``, see `run`."""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, DataError, SettingsError
from ..training.config import flat, recipe_with, resolve, to_dict
from ..training.settings import Request

if TYPE_CHECKING:
    from ..model.model import Model
    from ..training.checkpoint import Checkpoints, State
    from ..training.settings import RunSettings
    from ..types import Dataset

logger = logging.getLogger(__name__)


def train(
    data: Dataset | str | Path,
    recipe: str | None = None,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: str | Path | None = None,
    started: float | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Model:
    """Train a model.

    Args:
        data: a data set, or a path that `labelspace.load` reads.
        recipe: ``dexml``, ``unidec``, ``raexmc``, or ``auto``, which chooses UniDEC or RAE-XMC with a memory, and the
            main settings, by data, time and device. None takes the first that has the settings given, ``auto`` before
            the others.
        out: folder to write the model to, with ``log.jsonl`` and ``settings.toml``; None writes nothing. It must be
            empty or not be there. While the run lasts, ``OUT.checkpoint`` beside it holds its log and its state.
        overwrite: replace a model that is in ``out``, and drop a run that was stopped there; anything else is refused.
        resume: the ``out`` of a run that was killed or interrupted: go on from its last checkpoint, with its recipe and
            settings. Without ``max_minutes`` the weights end bit-equal to those of an unbroken run on the same machine.
            With ``out`` naming the same folder, a run that has not begun yet begins.
        started: when the work began, by `time.monotonic`; ``max_minutes`` counts from there. None for now.
        preset: run of a paper whose recipe is taken, and whose settings stand below those given; a path is read as it
            says. ``labelspace presets`` lists them.
        settings: any setting of the recipe by name, or whole components such as ``fit=FitSettings(lr=1e-3)``; see
            `labelspace.config`.

    Returns:
        The model with the weights of the best validation nDCG@5.

    Raises:
        SettingsError: an unknown setting or a value out of bounds, or other than that of the run to resume.
        DataError: data that cannot be trained on.
        ResourceError: the run would not fit into memory.
        ModelError: the encoder cannot be opened, or ``out`` is not free.
        CheckpointError: there is no run to resume, its state is damaged, or it was on other data.
        MissingExtraError: an encoder or a tracker whose package is not installed.
    """
    from ..training import distributed

    options: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "started": started, "preset": preset}
    with distributed.group():
        where = resume if out is None else out
        if distributed.size() > 1 and where is None:
            raise SettingsError("several processes train one model, which the first one writes; give out, a folder")
        try:
            return learn(data, recipe, out, **options, **settings)
        except distributed.Left:
            from ..model.model import Model

            assert where is not None
            distributed.wait_for_first()
            return Model.load(Path(where).expanduser())


def learn(
    data: Dataset | str | Path,
    recipe: str | None,
    out: str | Path | None,
    *,
    overwrite: bool,
    resume: str | Path | None,
    started: float | None,
    preset: str | None = None,
    **settings: Any,
) -> Model:
    """What `train` does, in each process of a group that has begun.

    Raises:
        distributed.Left: this process has done its part; the first one goes on alone, and has the model.
    """
    from ..training import distributed

    started = time.monotonic() if started is None else started
    require_place(out, resume, overwrite)
    run, reading = None, {}
    if preset is not None:
        from ..training.presets import read_preset

        paper = read_preset(preset)
        paper.require(recipe)
        recipe, settings = paper.recipe, paper.of_recipe | flat(settings)
        reading = {name: value for name, (value, _) in paper.reading.items()}
    if resume is not None:
        run = unfinished(resume, out, recipe, settings)
        if run is not None:
            recipe, settings, out = run["recipe"], run["settings"], resume
        elif finished(resume):
            from ..model.model import Model

            return Model.load(Path(resume).expanduser())
    settings = flat(settings)
    recipe = recipe or recipe_with(settings)
    resolved = resolve(recipe, settings)
    from ..data.loading import load, require_texts, warn_of_empty
    from ..memory.tune import parse_objective
    from ..training.tracking import require_tracker

    require_tracker(resolved.fit.track)
    parse_objective(resolved.voting.objective)
    if isinstance(data, str | Path):
        data = load(data, **(reading if run is None else run["reading"]), seed=resolved.fit.seed)
    elif "format" not in data.options:  # `load` has said it
        warn_of_empty(data.labels, data.name)
    require_texts(data)
    if resolved.voting.tune_documents is not None and len(data.valid):
        raise SettingsError(
            f"tune_documents: the memory is tuned on the {len(data.valid)} validation documents of {data.name}; "
            "leave it out, or hold out none (--valid-fraction 0)"
        )
    if not len(data.train):
        raise DataError(f"{data.name} has no training documents, only ones to measure on")
    asked = recipe
    if isinstance(resolved, Request):
        recipe, resolved = _chosen(data, resolved, time.monotonic() - started)
    train_by = importlib.import_module(f".{recipe}", __name__).train
    from .run import Run

    if out is None:
        return train_by(data, resolved, Run(started=started))

    from ..model.manifest import require_writable
    from ..training.checkpoint import Checkpoints

    out = Path(out).expanduser().resolve()
    checkpoints = Checkpoints(out)
    distributed.wait_for_all()  # what is there is looked at before the first process writes
    if distributed.first():
        require_writable(out)
        checkpoints.lock()
    try:
        state = None
        if run is not None:
            state = _go_on(checkpoints, run, data)
        elif distributed.first():
            _begin(checkpoints, asked, recipe, resolved, data)
        run_of = Run(started=started, out=out, checkpoints=checkpoints, state=state)
        model: Model = train_by(data, resolved, run_of)
    except distributed.Left:
        raise
    except BaseException:
        _keep_or_clear(checkpoints)
        raise
    if model.info["fit"]["stopped"] == "interrupted":
        _keep_or_clear(checkpoints)
    else:
        checkpoints.clear()
    return model


def _chosen(data: Dataset, request: Request, passed: float) -> tuple[str, RunSettings]:
    """The recipe and the settings that `auto` chooses; of several processes the first one measures."""
    from ..training import distributed
    from .auto import choose

    chosen: RunSettings | Request
    recipe, chosen = choose(data, request, passed) if distributed.first() else ("", request)
    if distributed.size() > 1:
        recipe, values = distributed.from_first((recipe, to_dict(chosen)))
        chosen = resolve(recipe, flat(values))
    assert not isinstance(chosen, Request)
    return recipe, chosen


def require_place(out: str | Path | None, resume: str | Path | None, overwrite: bool) -> None:
    """Refuse to begin a run where a model is, or the state of a run that was stopped; a run to resume may have both.

    Raises:
        ModelError: a model is there, or something else.
        CheckpointError: a run was stopped there.
    """
    if out is None or resume is not None:
        return
    from ..model.manifest import require_free
    from ..training.checkpoint import Checkpoints

    checkpoints = Checkpoints(Path(out).expanduser().resolve())
    if checkpoints.step is not None and not overwrite:
        checkpoints.lock()  # another run that still writes there is told of first
        checkpoints.unlock()
        raise CheckpointError(
            f"a run that writes to {out} was stopped after step {checkpoints.step}; go on with it with --resume {out}, "
            "add --overwrite to drop it, or choose another folder"
        )
    require_free(out, overwrite)


def _begin(checkpoints: Checkpoints, asked: str, recipe: str, settings: RunSettings, data: Dataset) -> None:
    if checkpoints.step:
        logger.warning("an unfinished run (%s, step %d) is dropped", checkpoints.folder, checkpoints.step)
    run = {"asked": asked, "recipe": recipe, "settings": to_dict(settings)}
    checkpoints.begin(run | {"data": _identity(data), "reading": _reading(data)})


def _go_on(checkpoints: Checkpoints, run: dict[str, Any], data: Dataset) -> State | None:
    if run["data"] != _identity(data):
        raise CheckpointError(
            f"the run to resume in {checkpoints.out} was on other data ({run['data']['name']}, or its files have "
            "changed); give the same data and the same reading options"
        )
    state = checkpoints.load(len(data.labels))
    if state is None:
        logger.info("the run was stopped before its first checkpoint; starting from the beginning")
    elif not isinstance(state.record, dict) or "log_bytes" not in state.record:
        raise CheckpointError(f"{checkpoints.folder} holds no whole state; start the run again without --resume")
    return state


def _keep_or_clear(checkpoints: Checkpoints) -> None:
    from ..training import distributed

    if not distributed.first():
        return
    if checkpoints.step is None:
        checkpoints.clear()
    else:
        logger.warning("the state after step %d is kept; go on with --resume %s", checkpoints.step, checkpoints.out)
        checkpoints.unlock()


def recipe_of(resume: str | Path) -> str | None:
    """The recipe of an unfinished run that writes its model to a folder; None where there is none."""
    from ..training.checkpoint import Checkpoints

    run = Checkpoints(Path(resume).expanduser().resolve()).described()
    return None if run is None else str(run["recipe"])


def finished(resume: str | Path) -> bool:
    """Whether a folder holds the model of a run; to be asked when no run is unfinished there."""
    return (Path(resume).expanduser() / "manifest.json").is_file()


def unfinished(
    resume: str | Path, out: str | Path | None, recipe: str | None, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """The description of a run to resume; None where it is finished, or where ``out`` allows it to begin.

    Args:
        resume: folder that the run writes its model to.
        out: the same folder, or None.
        recipe: that was asked for; it must be the run's, or the one that chose it.
        settings: that were given; they must be the run's.

    Raises:
        CheckpointError: there is no such run.
        SettingsError: another folder, recipe or setting than that of the run.
    """
    from ..training.checkpoint import Checkpoints

    folder = Path(resume).expanduser().resolve()
    if out is not None and Path(out).expanduser().resolve() != folder:
        raise SettingsError(f"--resume {resume} goes on in its own folder; leave out --out {out}")
    run = Checkpoints(folder).described()
    if run is None:
        if finished(resume):
            logger.info("the run in %s is finished; there is nothing to resume", resume)
            return None
        if out is None:
            raise CheckpointError(
                f"there is no unfinished run in {resume}: no folder {folder}.checkpoint; name the --out of a run that "
                "was stopped, or give --out too to begin it"
            )
        logger.info("there is no unfinished run in %s yet; starting from the beginning", resume)
        return None
    if recipe not in (None, run["recipe"], run.get("asked")):
        raise SettingsError(f"the run to resume has the recipe {run['recipe']}, not {recipe}")
    recorded = flat(run["settings"])
    for name, value in flat(settings).items():
        if name in recorded and value != recorded[name]:
            raise SettingsError(
                f"{name} is {value!r}, but the run to resume has {recorded[name]!r}; leave it out, or train anew"
            )
    return run | {"settings": recorded}


def _identity(data: Dataset) -> dict[str, Any]:
    from ..data.loading import fingerprint

    rows = hashlib.sha256(data.valid_rows.tobytes()).hexdigest()[:16]
    return {"name": data.name, "fingerprint": fingerprint(data), "valid_rows": rows}


def _reading(data: Dataset) -> dict[str, Any]:
    """Options of `labelspace.load` that read the same data again."""
    from .run import READING

    return {name: data.options[name] for name in READING if data.options.get(name) is not None}
