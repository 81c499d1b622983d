"""The commands that train: ``quickstart``, ``train``, and ``bench``, which measures speed."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..base.checks import require_seed
from ..base.machine import command_began
from ..errors import SettingsError
from ..training.config import KNOWN, RECIPES, components, defaults, flat, made, to_dict, to_toml
from ..training.settings import DexmlSettings, RaexmcSettings, Request, RunSettings, UnidecSettings
from .options import FLAT, DataPath, Output, SplitOptions, Switch, as_recorded, load_data, print_json

if TYPE_CHECKING:
    from ..model.model import Model
    from ..types import Dataset

logger = logging.getLogger("labelspace")


def quickstart(
    *,
    out: Path = Path("runs/quickstart"),
    overwrite: Switch = False,
    seed: int = 0,
    output: Output = Output(),
) -> None:
    """Train on ICD-10-CM, print metrics before and after, and ten predictions; takes under three minutes.

    Parameters
    ----------
    out
        Folder of the model; that of an earlier quickstart is replaced.
    overwrite
        Replace any other model that is in the folder too.
    seed
        Of the split and of training.
    """
    from ..data.describe import describe, render
    from ..data.quickstart import icd10cm, made_by_quickstart
    from ..evaluation.evaluating import evaluate as measure
    from ..model.model import Model
    from ..recipes import require_place
    from ..recipes import train as run
    from ..recipes.preparation import make_encoder

    overwrite = overwrite or made_by_quickstart(out)
    require_place(out, None, overwrite)
    data = icd10cm(seed)
    described = describe(data)
    if not output.json:
        print(render(described) + "\n", flush=True)
    settings: dict[str, Any] = {"epochs": 8, "seed": seed, "max_tokens": 64, "valid_documents": 500, "evaluations": 4}

    test = data.test
    assert test is not None

    def figures(model: Model) -> dict[str, float]:
        pred = model.predict(test.texts, k=100)
        return measure(pred, test.targets, data.train.targets, name=data.name)

    untrained = Model.from_encoder(make_encoder(data, made(DexmlSettings, settings).encoding), data.labels)
    before = figures(untrained)
    where: dict[str, Any] = {"out": out, "overwrite": overwrite}
    model = run(data, recipe="dexml", **where, started=command_began(), max_minutes=2.3, **settings)
    after = figures(model)
    if output.json:
        print_json({"data": described, "before": before, "metrics": after, "model": str(out)})
        return
    print(f"metrics on {len(test)} held-out phrases, in percent")
    print(f"{'':<12}{'untrained':>10}{'trained':>10}")
    for name in after:
        print(f"{name:<12}{before[name]:>10.2f}{after[name]:>10.2f}")
    print("\nten held-out phrases (* marks a true code)")
    rows = list(range(0, len(test), max(1, len(test) // 10)))[:10]
    pred = model.predict([test.texts[i] for i in rows], k=3)
    for place, row in enumerate(rows):
        true = {data.labels.ids[j] for j in test.targets[[row]].indices}
        print(f"\n{test.texts[row]}")
        for name, text, score in pred.named(place):
            print(f"  {'*' if name in true else ' '} {score:.2f}  {name:<8} {text}")
    print(f"\nmodel saved in {out}; try: echo 'iron deficiency from blood loss' | labelspace predict {out} -")


for _component in {part for kind in RECIPES.values() for part in components(kind).values()}:
    FLAT(_component)  # flags do not name the component that they belong to


@FLAT
@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where a run goes, where its settings come from, how its data is read, and what is printed.

    Args:
        out: folder of the model, empty or not there; needed unless --dry-run or --resume is given.
        overwrite: replace a model that is in the folder, and drop a run that was stopped there.
        resume: folder of the model of a run that was killed or interrupted: go on with it, with its settings. With
            --out of the same folder a run that has not begun yet begins.
        recipe: auto, dexml, unidec or raexmc, whose settings these are. When not given, that of the run to resume, or
            the one that has the settings given, auto before the others: it chooses by data and device, and says what
            and why.
        config: TOML, YAML or JSON file of settings; flags and environment variables (LABELSPACE_EPOCHS) win over it.
        preset: run of a paper, whose settings stand below all others; ``labelspace presets`` lists them.
        dry_run: open the data and the encoder's configuration, print the settings as a configuration file (or as JSON
            with --json), and stop.
    """

    out: Path | None = None
    overwrite: Switch = False
    resume: Path | None = None
    recipe: Literal["auto", "dexml", "unidec", "raexmc"] | None = None
    config: Path | None = None
    preset: str | None = None
    dry_run: Switch = False
    reading: SplitOptions = SplitOptions()
    output: Output = Output()


NO_OPTIONS = TrainOptions()


def train_auto(
    data: DataPath, *, settings: Annotated[Request, FLAT] = Request(), options: TrainOptions = NO_OPTIONS
) -> None:
    _train("auto", data, settings, options)


def train_dexml(
    data: DataPath, *, settings: Annotated[DexmlSettings, FLAT] = DexmlSettings(), options: TrainOptions = NO_OPTIONS
) -> None:
    _train("dexml", data, settings, options)


def train_raexmc(
    data: DataPath, *, settings: Annotated[RaexmcSettings, FLAT] = RaexmcSettings(), options: TrainOptions = NO_OPTIONS
) -> None:
    _train("raexmc", data, settings, options)


def train_unidec(
    data: DataPath, *, settings: Annotated[UnidecSettings, FLAT] = UnidecSettings(), options: TrainOptions = NO_OPTIONS
) -> None:
    _train("unidec", data, settings, options)


def _train(recipe: str, data: Path, settings: RunSettings | Request, options: TrainOptions) -> None:
    """Train a model and save it with its log and settings; the flags are the settings of the recipe.

    Of several processes the first one says what came of it.
    """
    _warn_of_unknown_variables()
    if options.dry_run:
        _open_for_looking(data, settings, options)
        if options.output.json:
            print_json({"recipe": recipe, **to_dict(settings)})
        else:
            print(to_toml(settings, recipe), end="")
        return
    if options.out is None and options.resume is None:
        raise SettingsError("no folder to save the model to was given; add --out DIR")
    from ..training.distributed import Left, group

    with group(), contextlib.suppress(Left):
        _train_together(recipe, data, settings, options)


def _train_together(recipe: str, data: Path, settings: RunSettings | Request, options: TrainOptions) -> None:
    """What each process of a run does."""
    from ..recipes import finished, learn, require_place, unfinished

    out, resume, reading = options.out, options.resume, options.reading
    require_place(out, resume, options.overwrite)
    values, seed = flat(settings), settings.fit.seed
    if resume is not None:
        plain = defaults(type(settings))
        values = {name: value for name, value in values.items() if value != plain[name]}
        stopped = unfinished(resume, out, options.recipe, values)
        if stopped is None and finished(resume):
            if options.output.json:
                print_json({"model": str(resume), "fit": None})
            return
        if stopped is not None:
            seed = stopped["settings"]["seed"]
            reading = as_recorded(reading, stopped["reading"])
    where: dict[str, Any] = {"overwrite": options.overwrite, "resume": resume, "started": command_began()}
    dataset = load_data(data, reading, seed)
    _compare_with_preset(options.preset, dataset)
    model = learn(dataset, recipe, out, **where, **values)
    out = out or resume
    fitted = model.info["fit"]
    if options.output.json:
        print_json({"model": str(out), **model.info["metrics"], "fit": fitted, "config": model.info["config"]})
        return
    metrics = model.info["metrics"]["validation"]
    seconds = time.monotonic() - command_began()
    tuned = model.info.get("tuning")
    if tuned is not None:
        from ..memory.tune import render

        print(render(tuned))
    print(f"model saved in {out} ({fitted['stopped']} after {fitted['steps']} steps, {seconds:.0f} s)")
    if metrics:
        print("validation, in percent: " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))


def _open_for_looking(data: Path, settings: RunSettings | Request, options: TrainOptions) -> None:
    """Open what a run would open first, the data and the encoder's configuration, and say what they are."""
    from ..recipes.preparation import describe_encoder

    dataset = load_data(data, options.reading, settings.fit.seed)
    _compare_with_preset(options.preset, dataset)
    if settings.encoding.encoder is not None:  # else it is chosen
        logger.info("the encoder is %s", describe_encoder(settings.encoding))


def _compare_with_preset(name: str | None, data: Dataset) -> None:
    """Warn where data is not that of a preset."""
    if name is not None:
        from ..training.presets import read_preset

        filtered = data.test is not None and data.test.filter_pairs is not None
        for sentence in read_preset(name).differences(len(data.train), len(data.labels), filtered):
            logger.warning("%s", sentence)


def presets(name: str | None = None, *, output: Output = Output()) -> None:
    """List the papers' runs that train --preset takes, with expected figures and costs, or show one with its sources.

    Parameters
    ----------
    name
        Of a preset.
    """
    from ..training.presets import as_dict, listed, preset_names, read_preset, shown

    if name is None:
        runs = [read_preset(one) for one in preset_names()]
        print_json([as_dict(run) for run in runs]) if output.json else print(listed(runs))
    else:
        run = read_preset(name)
        print_json(as_dict(run)) if output.json else print(shown(run))


def bench(
    *,
    quick: Switch = False,
    only: tuple[Literal["machine", "train", "encode", "loss", "search", "hnsw"], ...] = (),
    seed: int = 0,
    output: Output = Output(),
) -> None:
    """Measure speed on this machine against sentence-transformers, faiss and plain twins, as ratios.

    Parameters
    ----------
    quick
        Smaller sizes and fewer runs: five minutes on two cores without AVX512.
    only
        Parts to measure, beside what the machine can do at all; all when not given.
    seed
        Of the generated texts and vectors.
    """
    require_seed(seed)
    from ..bench import PARTS, render
    from ..bench import bench as measure

    report = measure(quick=quick, only=tuple(dict.fromkeys(only)) or PARTS, seed=seed)
    if output.json:
        print_json(report)
    else:
        print(render(report))


def _warn_of_unknown_variables() -> None:
    """Say when an environment variable looks like a setting and is none."""
    blocks = (TrainOptions, SplitOptions, Output)
    known = KNOWN | {"cache", "data"} | {field.name for block in blocks for field in fields(block)}
    for name in sorted(os.environ):
        if name.startswith("LABELSPACE_") and name.removeprefix("LABELSPACE_").lower() not in known:
            logger.warning("the environment variable %s is no setting and is not used", name)
