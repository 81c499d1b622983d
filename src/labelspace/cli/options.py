"""What the commands share: how data files are read, what is printed, data sets matched with a model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from ..errors import DataError, SettingsError

if TYPE_CHECKING:
    from ..model.model import Model
    from ..types import Corpus, Dataset, Labels, Predictions

logger = logging.getLogger("labelspace")


FLAT = Parameter(name="*")
"""Flags of a block of options have the names of its fields."""
Switch = Annotated[bool, Parameter(negative=())]
ModelPath = Annotated[Path, Parameter(help="Folder of a model.")]
DataPath = Annotated[Path, Parameter(help="Folder or file.")]
ReadPath = Annotated[
    Path, Parameter(help="Folder or file; read as the model's training data was unless said otherwise.")
]
Source = Annotated[str, Parameter(allow_leading_hyphen=True)]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.")]
Precision = Annotated[
    Literal["auto", "float32", "bf16"],
    Parameter(help="In which texts are encoded; bf16 is faster on some processors and GPUs, and auto takes it there."),
]
KeyPrecision = Annotated[
    Literal["float32", "bf16"],
    Parameter(
        help="Of document keys where the model has none yet, and of encoding them; bf16 takes half the space, and less "
        "time where the processor or GPU is faster in it."
    ),
]
Objective = Annotated[
    str,
    Parameter(
        help="Metrics apart by commas, whose mean shall be the highest: P, nDCG or PSP at 1, 3 or 5. PSP favours rare "
        "labels."
    ),
]
Tolerance = Annotated[float, Parameter(help="Points of that mean that may be given up for a higher R@100; 0 for none.")]
TextColumn = Annotated[str, Parameter(help="Column of a table that holds the text.")]
AnyOptions = TypeVar("AnyOptions", bound="DataOptions")


@FLAT
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data files are read.

    Args:
        fields: of LF documents: title, content, title+content, title+title+content or auto.
        label_fields: likewise of LF and BEIR labels; of SKOS: preferred+alternative+broader.
        text_column: column of a table that holds the text.
        label_column: column of a table that holds the labels.
        separator: between the labels of a CSV or TSV cell; found out when not given.
        encoding: of text files; UTF-8 or else Windows-1252 when not given.
        format: lf, beir, xc, annif, table, features or fasttext; found out when not given.
        label_vocabulary: file of the labels of an Annif corpus or a table: TSV, CSV or SKOS.
        language: of the labels of a vocabulary; English, or else the most frequent, when not given.
        unknown_labels: what becomes of labels that the labels file or vocabulary does not have: refuse, drop them, or
            add them as labels. When not given, as the model's run had it, or refuse.
    """

    fields: str = "auto"
    label_fields: str = "auto"
    text_column: str = "text"
    label_column: str = "labels"
    separator: str | None = None
    encoding: str | None = None
    format: Literal["lf", "beir", "xc", "annif", "table", "features", "fasttext"] | None = None
    label_vocabulary: Path | None = None
    language: str | None = None
    unknown_labels: Literal["refuse", "drop", "add"] | None = None


@FLAT
@dataclass(frozen=True, kw_only=True)
class SplitOptions(DataOptions):
    """How data files are read, and which training documents are held out for validation.

    Args:
        valid_fraction: share of the training documents that is held out, from 0 to below 1; 0 trains on all of them,
            and then nothing can be chosen by validation. When not given, as the model's run had it, or 0.1. Data with
            validation documents of its own holds out none.
        valid_max: documents that are held out, at most. When not given, as the model's run had it, or 10000.
    """

    valid_fraction: float | None = None
    valid_max: int | None = None


@FLAT
@dataclass(frozen=True, kw_only=True)
class Output:
    """What is printed.

    Args:
        json: print the result as JSON.
        quiet: print no progress.
        debug: print a traceback with an error.
    """

    json: Annotated[bool, Parameter(negative=())] = False
    quiet: Annotated[bool, Parameter(negative=())] = False
    debug: Annotated[bool, Parameter(negative=())] = False


def as_keywords(options: DataOptions) -> dict[str, Any]:
    """Options of `labelspace.load`, those that were not given left to it."""
    values = {name: getattr(options, name) for name in type(options).__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not None}


def load_data(path: Path, options: DataOptions, seed: int = 0) -> Dataset:
    from ..data.loading import load

    data = load(path, **as_keywords(options), seed=seed)
    logger.info("read %s: %d documents, %d labels", data.name, len(data.train), len(data.labels))
    return data


def as_read_for(options: AnyOptions, model: Model) -> tuple[AnyOptions, int]:
    """Options as given, and where none was given, as the model's training data was read; and its seed."""
    recorded = model.info.get("data", {}).get("options", {})
    return as_recorded(options, recorded), int(recorded.get("seed", 0))


def as_recorded(options: AnyOptions, recorded: dict[str, Any]) -> AnyOptions:
    import dataclasses

    default = type(options)()
    changes = {
        name: recorded[name]
        for name in (
            "fields",
            "text_column",
            "label_column",
            "separator",
            "language",
            "unknown_labels",
            "valid_fraction",
            "valid_max",
        )  # label texts come with the model
        if hasattr(options, name)
        and recorded.get(name) is not None
        and getattr(options, name) == getattr(default, name)
    }
    return dataclasses.replace(options, **changes)


def choose_split(data: Dataset, split: str) -> Corpus:
    if split == "auto":
        split = "valid" if data.test is None else "test"
    corpus: Corpus | None = getattr(data, split)
    if corpus is None or not len(corpus):
        raise SettingsError(f"{data.name} has no {split} documents; choose another --split")
    logger.info("measuring on the %d %s documents", len(corpus), split)
    return corpus


def align(
    given: dict[str, Predictions], mine: Labels, theirs: Labels, truths: list[Any]
) -> tuple[dict[str, Predictions], list[Any]]:
    """Predictions in the numbers of the data's labels; labels that only the model has come after those."""
    if list(mine.ids) == list(theirs.ids):
        return given, truths
    from ..labels import numbers_among, widened
    from ..types import Predictions

    number = {name: i for i, name in enumerate(theirs.ids)}
    place = numbers_among(mine.ids, number)
    extra = len(number) - len(theirs)
    unknown = len(theirs) - (len(mine) - extra)
    logger.warning("the model and the data differ in labels: %d only in the model, %d only in the data", extra, unknown)
    if unknown == len(theirs):
        raise DataError("the model and the data have no label id in common; is this the data that the model is for?")
    wide = [widened(truth, len(number)) for truth in truths]
    there = {
        name: Predictions(place[found.indices], found.scores, probabilities=found.probabilities)
        for name, found in given.items()
    }
    return there, wide


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
