"""Settings from keywords, flags and files, and back.

The names of settings are flat as keywords and flags; files and saved records have a table for each component, and flat
ones are read too.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..errors import SettingsError
from .settings import DexmlSettings, RaexmcSettings, Request, RunSettings, UnidecSettings

AnySettings = TypeVar("AnySettings", bound="RunSettings | Request")

RECIPES: dict[str, type[RunSettings | Request]] = {
    "auto": Request,
    "dexml": DexmlSettings,
    "unidec": UnidecSettings,
    "raexmc": RaexmcSettings,
}
"""What is given for each recipe: its settings, or a request for ``auto``."""


def components(kind: type[AnySettings]) -> dict[str, type]:
    """Components of the settings of a recipe: name in Python and in files, and class."""
    return {field.name: type(field.default) for field in dataclasses.fields(kind)}


def defaults(kind: type[AnySettings]) -> dict[str, Any]:
    """All settings of a recipe by their flat names, with their defaults."""
    return {field.name: field.default for part in components(kind).values() for field in dataclasses.fields(part)}


KNOWN: frozenset[str] = frozenset(name for kind in RECIPES.values() for name in defaults(kind))
"""Names of all settings of all recipes."""
COMPONENTS = frozenset(name for kind in RECIPES.values() for name in components(kind))
"""Names of all components of all recipes, which are tables in files."""
GONE: dict[str, tuple[Any, str]] = {
    "add_bce": (0.0, "it cost 2.8 points of P@1"),
    "refresh_steps": (50, "negatives 'stale' were level with 'mined' after thirty minutes"),
    "related_documents": ("hidden", "related documents as positives made no difference"),
    "shared_negatives": (True, "no measurement showed a gain of a document's own negatives alone"),
}
"""Settings that measured as nothing or worse: the value that they had, which a record may still hold, and why."""


def recipe_with(names: Iterable[str]) -> str:
    """The recipe that is meant when none is named: auto, or the first of the others that has all settings given."""
    return next((recipe for recipe, kind in RECIPES.items() if set(names) <= defaults(kind).keys()), "auto")


def resolve(recipe: str, given: dict[str, Any], source: str = "") -> RunSettings | Request:
    """The settings of a recipe with values, by flat name or by component and name, put over its defaults.

    ``source`` is where they came from, for error messages. An unknown recipe or name, or a value out of bounds, is a
    SettingsError of one sentence.
    """
    if recipe not in RECIPES:
        raise SettingsError(f"unknown recipe {recipe!r}; choose one of: {', '.join(RECIPES)}")
    where = f"{source}: " if source else ""
    known, values = defaults(RECIPES[recipe]), {}
    for name, value in flat(given).items():
        if name in GONE and value != GONE[name][0]:
            raise SettingsError(f"{where}the setting {name!r} is gone, since {GONE[name][1]}; leave it out")
        if name not in known and name not in GONE:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the settings are {', '.join(known)}"
            raise SettingsError(f"{where}the recipe {recipe} has no setting {name!r}; {hint}")
        if name not in GONE:
            values[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return made(RECIPES[recipe], values)
    except ValidationError as error:
        raise SettingsError(where + in_one_sentence(error)) from error


def made(kind: type[AnySettings], values: dict[str, Any]) -> AnySettings:
    """Settings with values by flat name put over the defaults; names that this class does not have are passed over."""
    known = defaults(kind)
    return changed(kind(), **{name: value for name, value in values.items() if name in known})


def changed(settings: AnySettings, **values: Any) -> AnySettings:
    """The settings with some replaced, by flat name; a value out of bounds is pydantic's ValidationError."""
    parts = {}
    for name in components(type(settings)):
        part = getattr(settings, name)
        own = {field.name for field in dataclasses.fields(part)} & values.keys()
        if own:
            parts[name] = dataclasses.replace(part, **{field: values[field] for field in own})
    return dataclasses.replace(settings, **parts)


def flat(settings: Any) -> dict[str, Any]:
    """All settings by their flat names, as plain values.

    They come from a run, or from values by name, some of which may be whole components; a saved record is either.
    """
    values: dict[str, Any] = {}
    for name, value in (settings if isinstance(settings, dict) else vars(settings)).items():
        whole = name in COMPONENTS and (isinstance(value, dict) or dataclasses.is_dataclass(value))
        values.update((value if isinstance(value, dict) else vars(value)) if whole else {name: value})
    return values


def in_one_sentence(error: ValidationError) -> str:
    """The first complaint of pydantic in our words: setting, what is wrong, what was given."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    name = next((part for part in first["loc"] if part in KNOWN), None)
    if name is None:  # a check of several settings, which names them
        return message
    return f"{name}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def to_dict(settings: RunSettings | Request) -> dict[str, dict[str, Any]]:
    """All settings by component and name, as plain values."""
    return dataclasses.asdict(settings)


def to_toml(settings: RunSettings | Request, recipe: str, data: dict[str, Any] | None = None) -> str:
    """A configuration file that gives these settings back, and how data files were read; unset ones are left out."""
    lines: list[str] = []
    for table, values in {"": {"recipe": recipe, **(data or {})}, **to_dict(settings)}.items():
        lines += ["", f"[{table}]"] if table else []
        lines += [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in values.items() if v is not None]
    return "\n".join(lines) + "\n"


def read_config(path: str | Path) -> dict[str, Any]:
    """Values by flat name from a TOML, YAML or JSON file, with or without tables of components.

    A file that cannot be read, does not hold settings, or gives one of them twice, is a SettingsError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        match path.suffix.lower():
            case ".toml":
                values: Any = tomllib.loads(text)
            case ".yaml" | ".yml":
                import yaml

                try:
                    values = yaml.safe_load(text)
                except yaml.YAMLError as error:
                    raise ValueError(" ".join(str(error).split())) from error
            case ".json":
                values = json.loads(text)
            case suffix:
                raise SettingsError(f"{path}: a configuration file ends in .toml, .yaml or .json, not {suffix!r}")
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the configuration file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not a valid configuration file: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: a configuration file holds names and values, this one a {type(values).__name__}")
    flat_values: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name not in COMPONENTS:
            raise SettingsError(
                f"{path}: {name!r} is a table, but settings have no such part; the tables are "
                f"{', '.join(sorted(COMPONENTS))}, and entries may stand at the top level too"
            )
        for key, entry in (value if isinstance(value, dict) else {name: value}).items():
            key = str(key).replace("-", "_")
            if isinstance(entry, dict):
                raise SettingsError(f"{path}: {key!r} in {name!r} is a table, where a value is wanted")
            if key in flat_values:
                raise SettingsError(f"{path}: {key!r} is given twice; leave one of them out")
            flat_values[key] = entry
    return flat_values
