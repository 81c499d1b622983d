"""The papers' runs, from the files in ``presets``: settings with their sources, expected figures, and what they cost.

A file has the tables of ``settings.toml``, where each setting is ``[value, where it comes from]``, and a table
``reading`` of how data files are read; what ``based_on`` names stands below it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import SettingsError
from ..evaluation.published import FOLDER, DataSet, data_sets, frozen, toml
from .config import resolve
from .required_memory import Shape, training_bytes
from .settings import DexmlSettings, RaexmcSettings, UnidecSettings

DISTILBERT = Shape(4 * 66_400_000, 768, 6, 768, 12)
BODY = 42_500_000
"""Weights of DistilBERT that each token is multiplied with."""
PASSES = 8
"""Operations of a weight for a token: two forward, four backward, two where activations are made again."""
SPEED = 1e14
"""Operations a second, for the estimate: what a large accelerator keeps up in bf16."""

Given = tuple[Any, str]
"""A value, and where it comes from."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A run of a paper.

    Args:
        name: of its file.
        recipe: whose settings these are.
        paper: that has the run.
        about: what distinguishes the run.
        data_set: that it is for.
        settings: by component and name.
        reading: how data files are read, by option.
        figures: expected on the test documents, in percent; none where none is known.
        figures_from: where those stand.
        chosen_on_test: whether the paper chose them on its test documents.
        cost: what a source says that the run takes; empty where none does.
    """

    name: str
    recipe: str
    paper: str
    about: str
    data_set: DataSet
    settings: dict[str, dict[str, Given]]
    reading: dict[str, Given]
    figures: dict[str, float]
    figures_from: str
    chosen_on_test: Given
    cost: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """All settings and reading options by their flat names."""
        return self.of_recipe | {name: value for name, (value, _) in self.reading.items()}

    @property
    def of_recipe(self) -> dict[str, Any]:
        """The settings alone, by their flat names."""
        return {name: value for part in self.settings.values() for name, (value, _) in part.items()}

    def require(self, recipe: str | None) -> None:
        """Refuse another recipe than that of the run; None is any."""
        if recipe not in (None, self.recipe):
            raise SettingsError(f"the preset {self.name} is a run of {self.recipe}, not of {recipe}")

    @property
    def given(self) -> Iterator[tuple[str, str, Any, str]]:
        """Component, setting, value and source of everything that the file says."""
        for component, part in {**self.settings, "reading": self.reading}.items():
            for name, (value, source) in part.items():
                yield component, name, value, source

    def resolved(self) -> DexmlSettings | UnidecSettings | RaexmcSettings:
        """The settings of the run."""
        settings = resolve(self.recipe, self.of_recipe, self.name)
        assert isinstance(settings, DexmlSettings | UnidecSettings | RaexmcSettings)
        return settings

    def differences(self, documents: int, labels: int, filtered: bool) -> list[str]:
        """In what data differs from that of the paper, a sentence each.

        Args:
            documents: of its training part.
            labels: of it.
            filtered: whether a file of pairs that must not be predicted was found.
        """
        wanted, found = self.data_set, []
        if (documents, labels) != (wanted.documents, wanted.labels):
            found.append(
                f"the preset {self.name} is for {wanted.name} with {wanted.documents:,} training documents and "
                f"{wanted.labels:,} labels; this data has {documents:,} and {labels:,}"
            )
        if wanted.filters and not filtered:
            found.append(f"{wanted.filters[-1]} is missing; without it figures do not compare with those of the paper")
        return found


@cache
def preset_names() -> tuple[str, ...]:
    """Names of all presets."""
    stems = (entry.name.removesuffix(".toml") for entry in FOLDER.iterdir())
    return tuple(sorted(stem for stem in stems if "-" in stem))  # others are what presets are based on


def read_preset(name: str) -> Preset:
    """A preset by name; an unknown name is a SettingsError."""
    if name not in preset_names():
        near = difflib.get_close_matches(name.lower(), preset_names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "labelspace presets lists them"
        raise SettingsError(f"there is no preset {name!r}; {hint}")
    plain: dict[str, Any] = {}
    tables: dict[str, dict[str, Given]] = {}
    base: str | None = name
    while base is not None:
        for key, value in toml(base).items():
            if key == "figures" or not isinstance(value, dict):
                plain.setdefault(key, value)
                continue
            part = tables.setdefault(key, {})
            part.update({name: (entry[0], entry[1]) for name, entry in value.items() if name not in part})
        base = toml(base).get("based_on")
    del plain["based_on"]
    data_set, reading = data_sets()[plain.pop("data_set")], tables.pop("reading")
    return Preset(name=name, data_set=data_set, settings=tables, reading=reading, **frozen(plain))


@dataclass(frozen=True)
class Cost:
    """What a run takes at most, if every text is as long as it may be.

    Args:
        operations: floating-point operations of training.
        hours: these at `SPEED`.
        gigabytes: memory of a process that trains alone, beside the data.
    """

    operations: float
    hours: float
    gigabytes: float


def estimated_cost(preset: Preset) -> Cost:
    """What training by a preset takes at most."""
    settings, data = preset.resolved(), preset.data_set
    size, tokens = settings.fit.batch_size, settings.encoding.max_tokens or 0
    table, mined = 0, 0
    if isinstance(settings, DexmlSettings):
        mined = settings.mining.num_negatives if settings.batches.negatives == "mined" else 0
        pool = size * ((settings.batches.pool_positives or 1) + mined) if mined else data.labels
    elif isinstance(settings, UnidecSettings):
        pool, mined = settings.batches.cap or 8 * size, settings.mining.num_negatives
        table = 4 * 4 * data.labels * (settings.classifier.classifier_dim or 0)
    else:
        mined = settings.mining.num_negatives
        pool = size * ((settings.batches.positives or 1) + mined)
    pool = min(pool, data.labels)
    steps = settings.fit.epochs * -(-data.documents // size)
    operations = float(steps * ((size + pool) * tokens * PASSES * BODY + 6 * size * pool * DISTILBERT.dim))
    shape = dataclasses.replace(DISTILBERT, max_tokens=tokens)
    needed = training_bytes(settings, shape, pool, data.labels if mined else 0) + table
    return Cost(operations, operations / SPEED / 3600, needed / 1e9)


def as_dict(preset: Preset) -> dict[str, Any]:
    """A preset as plain values."""
    return dataclasses.asdict(preset) | {"estimated_cost": dataclasses.asdict(estimated_cost(preset))}


def listed(presets: Iterable[Preset]) -> str:
    """Presets as lines of a table: name, what they are, expected figures and the estimated cost."""
    rows = [("preset", "run", "expected figures", "estimated cost")]
    for preset in presets:
        cost = estimated_cost(preset)
        about = f"{preset.paper.partition(' (')[0]}, {preset.data_set.name}: {preset.about}"
        rows.append((preset.name, about, figures_of(preset), f"{cost.hours:,.0f} h, {cost.gigabytes:.0f} GB"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    return "\n".join([*lines, "", COST_NOTE])


def shown(preset: Preset) -> str:
    """A preset with the source of each of its settings, for reading."""
    data, cost, (chosen, why) = preset.data_set, estimated_cost(preset), preset.chosen_on_test
    lines = [
        f"{preset.name}: {preset.paper}, {preset.about}",
        f"data set          {data.name}: {data.documents:,} training and {data.test_documents:,} test documents, "
        f"{data.labels:,} labels",
        f"files             {', '.join((*data.files, *data.filters))}",
        f"propensity        a = {data.propensity[0]}, b = {data.propensity[1]}",
        f"expected figures  {figures_of(preset)} ({preset.figures_from})",
        f"chosen on test    {chosen}: {why}",
        f"estimated cost    {cost.operations:.1e} operations, {cost.hours:,.0f} h, {cost.gigabytes:.0f} GB",
        *([f"published cost    {preset.cost}"] if preset.cost else []),
        "",
    ]
    entries = [(component, f"{name} = {json.dumps(value)}", source) for component, name, value, source in preset.given]
    wide = max(len(setting) for _, setting, _ in entries)
    lines += [f"{component:<12}{setting.ljust(wide)}  {source}" for component, setting, source in entries]
    return "\n".join([*lines, "", COST_NOTE])


def figures_of(preset: Preset) -> str:
    """The expected figures in a line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in preset.figures.items()) or "none seen"


COST_NOTE = (
    f"Hours are operations at {SPEED:.0e} a second, as if each text had all the tokens that it may have; GB are those\n"
    "of a process that trains alone, beside the data."
)
