"""Settings of a run: one flat set of names, the same as keyword, flag, configuration file and saved record."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import SettingsError

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
SEEDS = 2**32
Count = Annotated[int, Field(ge=1)]


def require_seed(seed: int) -> None:
    """Refuse a seed that NumPy and torch cannot both take.

    Args:
        seed: as it was given.

    Raises:
        SettingsError: it is negative or too large.
    """
    if not 0 <= seed < SEEDS:
        raise SettingsError(f"--seed is a whole number from 0 to {SEEDS - 1}, got {seed}")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How texts become vectors.

    Args:
        encoder: ``static``, ``minilm``, a model folder (of labelspace too: a warm start), or a name of the hub.
        base: the transformer from which ``static`` is made.
        vocabulary: of ``static``: ``words`` adds the corpus's whole words to the word pieces of the base, ``phrases``
            also label texts and common pairs of words.
        max_words: of ``static``: at most this many added words, and as many phrases.
        frequency_weight: of ``static``: a of the token weight a / (a + frequency); 0 for equal weights.
        pooling: of a transformer; its own when not given.
        projection: dimensions of a linear layer added to a transformer; none when not given.
        normalize: unit vectors; raw ones want a temperature near 1.
        dropout: of a transformer's hidden and attention layers in training; ``own`` keeps the pretrained model's, most
            often 0.1, as the papers train. In runs of some hundred steps 0 is as good.
        attention: of a transformer; ``packed`` lays texts end to end and computes no padding; ``auto`` is packed on a
            CPU where the architecture allows it, or else eager for training on short texts there, sdpa elsewhere. Up
            to which length of text eager attention is faster is measured once.
        max_tokens: texts are cut here; when not given, 256 for ``static``, and 128 for a transformer or what it can
            take if that is less.
        long_documents: what is kept of a longer text: ``head`` the first tokens; ``head+tail`` the first and the last,
            three to one; ``chunks`` up to ``max_chunks`` times ``max_tokens``, encoded apart, their vectors averaged.
        max_chunks: chunks of a text, with ``chunks``.
        chunk_size: texts of full length (or chunks of long ones) encoded at a time in training; of shorter ones as many
            more.
        activations_gb: memory for activations of a transformer; what does not fit is computed again in the backward
            pass, which costs a third more time.
        device: ``auto`` is cuda or mps where there is one, else cpu.
        precision: of training; ``auto`` is bf16 where the device multiplies faster in it.
    """

    encoder: str = "static"
    base: str = "minilm"
    vocabulary: Literal["phrases", "words", "pieces"] = "phrases"
    max_words: Annotated[int, Field(ge=0)] = 100_000
    frequency_weight: NotNegative = 1e-4
    pooling: Literal["mean", "cls"] | None = None
    projection: Count | None = None
    normalize: bool = True
    dropout: Probability | Literal["own"] = 0.0
    attention: Literal["auto", "packed", "eager", "sdpa"] = "auto"
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    long_documents: Literal["head", "head+tail", "chunks"] = "head"
    max_chunks: Count = 8
    chunk_size: Count = 8
    activations_gb: NotNegative = 4.0
    device: str = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast a model is fitted.

    Args:
        epochs: passes over the training documents.
        batch_size: documents in a step.
        lr: highest learning rate; when not given, 3e-3 for ``static``, and for a transformer 4e-4 times 384 / width,
            4e-4 at most.
        token_lr_factor: of a transformer: the rate of its token table, as a multiple of ``lr``; rare words are met
            seldom in a short run.
        weight_decay: 0 for ``static`` and 0.01 for a transformer when not given; never on biases and norms.
        warmup: share of the run in which the rate rises; it falls linearly to 0 afterwards.
        max_grad_norm: gradients are scaled down to this norm; 0 for no limit.
        max_minutes: end within this time, reading and saving included; the rate follows the clock.
        evaluations: how often a run looks at the validation documents, the end included.
        valid_documents: how many validation documents are looked at, also by the tuning of a memory, where it is 3,000
            at most.
        checkpoint_minutes: write the state of the run, from which --resume goes on, so often; 0 for never.
        patience: stop after this many evaluations without a better nDCG@5; 0 for never.
        seed: of every random choice.
        track: send the records of ``log.jsonl`` to ``trackio`` or ``wandb`` as well.
        track_project: the project there.
    """

    epochs: Count = 5
    batch_size: Count = 512
    lr: Positive | None = None
    token_lr_factor: Positive = 5.0
    weight_decay: NotNegative | None = None
    warmup: Probability = 0.1
    max_grad_norm: NotNegative = 1.0
    max_minutes: Positive | None = None
    evaluations: Annotated[int, Field(ge=0)] = 8
    valid_documents: Count = 5000
    checkpoint_minutes: NotNegative = 5.0
    patience: Annotated[int, Field(ge=0)] = 4
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    track: Literal["trackio", "wandb"] | None = None
    track_project: str = "labelspace"


@dataclass(frozen=True, kw_only=True)
class RunSettings(EncoderSettings, FitSettings):
    """What every recipe has: an encoder, and how it is fitted."""


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """How hard negatives are found.

    Args:
        num_negatives: hard negatives drawn for a document in a step.
        mine_from: share of the run after which the first shortlists are made.
        mine_every: share of the run after which they are made anew.
        range_min: best labels of a shortlist that are passed over.
        range_max: length of a shortlist.
        max_score: highest similarity of a hard negative; no limit when not given.
        absolute_margin: a hard negative is less similar than the document's best label by this much; no
            limit when not given.
        relative_margin: the same as a share of the similarity of that label; no limit when not given.
    """

    num_negatives: Count = 2
    mine_from: Probability = 0.1
    mine_every: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.15
    range_min: Annotated[int, Field(ge=0)] = 0
    range_max: Count = 100
    max_score: Finite | None = None
    absolute_margin: NotNegative | None = None
    relative_margin: NotNegative | None = None

    def __post_init__(self) -> None:
        if self.range_min >= self.range_max:
            raise ValueError(f"range_min: {self.range_min} passes over the whole shortlist of {self.range_max}")


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What a memory of training documents is like.

    Args:
        objective: metrics apart by commas, by whose mean the memory is tuned: P, nDCG or PSP at 1, 3 or 5.
        key_precision: of document keys and of encoding them; ``bf16`` takes half the space, and ``auto`` is that on a
            CPU that is faster in it, else ``float32``.
        linear: learn a linear classifier on words beside the keys, which judges what they found; it is kept where it
            ranks validation documents better.
    """

    objective: str = "P@1,P@3,P@5"
    key_precision: Literal["auto", "float32", "bf16"] = "auto"
    linear: bool = False


def _check_linear(settings: DexmlSettings | UnidecSettings) -> None:
    """Refuse a linear classifier where nothing votes."""
    if settings.linear and not settings.memory:
        raise ValueError("linear: it judges what a memory of documents found; give memory too, or leave it out")


@dataclass(frozen=True, kw_only=True)
class DexmlSettings(MiningSettings, MemorySettings, RunSettings):
    """DEXML: one encoder for documents and labels, trained against the labels of a pool.

    Args:
        loss: ``decoupled_softmax``, ``softmax``, ``soft_top_k`` or ``bce``.
        k: places of ``soft_top_k``.
        alpha: steepness of ``soft_top_k``.
        temperature: divides the similarities; 0.05 suits unit vectors, 1 raw ones.
        negatives: ``all`` scores every label in every step, ``in-batch`` the labels of the batch's documents, ``mined``
            also labels that the model itself ranks high for them.
        positives: ``all``, or ``sample`` to draw one of a document's labels a step (k for ``soft_top_k``).
        pool_positives: of all but ``all``: how many of a document's labels are drawn into the pool; when not given, all
            for ``in-batch`` and 1 for the others.
        label_documents: the text of every label is a training document too, with that label alone.
        weighted: weigh each positive by its relevance (``target_rel``) instead of by 1; with ``sample``, on top of the
            draw in proportion to it.
        memory: after training the training documents become keys that vote, as of RAE-XMC, and how keys vote is tuned.
    """

    loss: Literal["decoupled_softmax", "softmax", "soft_top_k", "bce"] = "decoupled_softmax"
    k: Count = 5
    alpha: Positive = 2.0
    temperature: Positive = 0.05
    negatives: Literal["all", "in-batch", "mined"] = "all"
    positives: Literal["all", "sample"] = "all"
    pool_positives: Count | None = None
    label_documents: bool = False
    weighted: bool = False
    memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "bce" and self.positives == "sample":
            raise ValueError("positives: 'sample' does not go with the loss 'bce', which needs every positive")
        _check_linear(self)


Loss = Literal["decoupled_softmax", "softmax", "supcon", "balanced", "soft_top_k", "bce"]


@dataclass(frozen=True, kw_only=True)
class UnidecSettings(MiningSettings, MemorySettings, RunSettings):
    """UniDEC: a dual encoder and a classifier behind one encoder, trained together on a picked pool of labels.

    Args:
        encoder_loss: of the dual encoder: ``decoupled_softmax``, ``softmax``, ``supcon``, ``balanced``, ``soft_top_k``
            or ``bce``.
        classifier_loss: of the classifier, one of the same.
        classifier_labels: ``pool`` trains the label table on the labels of the pool; ``all`` by one-vs-all BCE on every
            label in every step, a chunk of labels at a time (Renee, ELMO), by stochastic gradient descent.
        directions: which heads also learn from labels to documents, with half the weight of their loss.
        encoder_weight: share of the dual encoder in the loss, lambda in the paper; the classifier has the rest.
        k: places of ``soft_top_k``.
        alpha: steepness of ``soft_top_k``.
        temperature: divides the scores of both heads; the paper multiplies by 18.
        num_positives: labels of a document drawn into the pool; 0 for all.
        num_negatives: hard negatives drawn for a document.
        cap: most labels in a pool; 8 times the batch size when not given.
        gap: no more is added to a pool once so few places are left.
        pool: ``some`` picks labels as described; ``all`` scores every label in every step; ``auto`` is ``all`` for
            up to 65,536 labels with ``static`` or an encoder weight of 0, else ``some``.
        clusters: make each batch of documents that are alike, once hard negatives are made, as the paper does.
        encoder_dim: of the dual encoder's vectors; 0 for those of the encoder itself; 0 for ``static`` and 384 for a
            transformer when not given.
        classifier_dim: of the label table and the classifier's vectors of documents; as for encoder_dim.
        identity: heads begin as the identity, instead of at random.
        table_init: ``labels`` begins the label table with the vectors of the label texts, ``random`` at random; random
            for one-vs-all when not given.
        head_dropout: of the heads' vectors of texts; 0 for ``static`` and 0.1 for a transformer when not given.
        table_dropout: of the rows of the label table; as for head_dropout.
        classifier_norm: where vectors and rows of the classifier are scaled to unit length: in ``search``, in ``both``
            search and training, or ``never``; ``tuned`` as in search, but rows keep as much of their length as ranks
            validation documents best, which counts where few labels are very frequent; when not given, ``never`` after
            one-vs-all or ``bce``, else ``search``.
        search_weight: share of the dual encoder in the score of both heads; chosen on the validation documents when not
            given.
        head_lr: learning rate of the heads; twice that of the encoder when not given.
        table_lr: learning rate of the label table; when not given, 3e-3 for ``static`` and 1e-3 for a transformer, 0.01
            with ``adagrad``, and 1e-3 for one-vs-all.
        table_momentum: of one-vs-all: of the gradient, which takes four bytes a weight.
        table_optimizer: ``adamw``, or ``adagrad``, which needs next to no memory beside the table.
        table_dtype: ``float32``, or ``bf16`` rounded stochastically.
        label_documents: the text of every label is a training document too, with that label alone.
        memory: after training the training documents become keys that vote, as of RAE-XMC, and how keys vote is tuned.
        companion: ``static`` trains a bag of token vectors by RAE-XMC too, in a few passes, and joins the model with it
            before it is tuned; ``static-unidec`` one with a classifier of its own, which takes longer and adds more;
            for a transformer with a memory.
        documents_by: whose vectors the training documents vote by: the ``encoder``, which has to encode all of them
            once more, or its ``companion``, which does that in seconds.
    """

    encoder_loss: Loss = "decoupled_softmax"
    classifier_loss: Loss = "decoupled_softmax"
    classifier_labels: Literal["pool", "all"] = "pool"
    directions: Literal["none", "encoder", "classifier", "both"] = "encoder"
    encoder_weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    k: Count = 5
    alpha: Positive = 2.0
    temperature: Positive = 0.0556
    num_positives: Annotated[int, Field(ge=0)] = 3
    num_negatives: Count = 6
    range_max: Count = 30
    cap: Count | None = None
    gap: Annotated[int, Field(ge=0)] = 10
    pool: Literal["auto", "some", "all"] = "auto"
    clusters: bool = False
    mine_every: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.2
    encoder_dim: Annotated[int, Field(ge=0)] | None = None
    classifier_dim: Annotated[int, Field(ge=0)] | None = None
    identity: bool = True
    table_init: Literal["labels", "random"] | None = None
    head_dropout: Probability | None = None
    table_dropout: Probability | None = None
    classifier_norm: Literal["search", "both", "never", "tuned"] | None = None
    search_weight: Annotated[float, Field(ge=0.05, le=0.95, allow_inf_nan=False)] | None = None
    head_lr: Positive | None = None
    table_lr: Positive | None = None
    table_momentum: Probability = 0.0
    table_optimizer: Literal["adamw", "adagrad"] = "adamw"
    table_dtype: Literal["float32", "bf16"] = "float32"
    label_documents: bool = True
    memory: bool = False
    companion: Literal["none", "static", "static-unidec"] = "none"
    documents_by: Literal["encoder", "companion"] = "encoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier_labels == "all" and self.classifier_norm == "both":
            raise ValueError("classifier_norm: 'both' does not go with classifier_labels 'all'; take search or never")
        unused = [("table_dropout", self.table_dropout),
                  ("table_optimizer", self.table_optimizer != "adamw"),
                  ("classifier_loss", self.classifier_loss not in ("decoupled_softmax", "bce"))]  # fmt: skip
        for name, given in unused:
            if self.classifier_labels == "all" and given:
                raise ValueError(
                    f"{name}: it does nothing with classifier_labels 'all', which is one-vs-all BCE with its own "
                    "descent; leave it out"
                )
        if self.classifier_labels == "pool" and self.table_momentum:
            raise ValueError("table_momentum: it is for classifier_labels 'all', which descends along all gradients")
        if self.companion not in ("none", None) and not self.memory:
            raise ValueError(
                f"companion: {self.companion!r} shares the memory of the model; give memory too, or leave it out"
            )
        if self.documents_by == "companion" and self.companion == "none":
            raise ValueError("documents_by: there is no companion; give companion 'static' too, or leave it out")
        if self.documents_by == "companion" and not self.memory:
            raise ValueError("documents_by: documents vote in a memory alone; give memory too, or leave it out")
        _check_linear(self)


@dataclass(frozen=True, kw_only=True)
class RaexmcSettings(MiningSettings, MemorySettings, RunSettings):
    """RAE-XMC: one encoder for documents and labels, and a memory of both that answers.

    Args:
        epochs: passes over the training documents; 0 for no training, the memory and its tuning only.
        temperature: divides the similarities in training; that of the memory is tuned.
        positives: labels of a document that are drawn as positives in a step; 0 for all.
        num_negatives: hard negatives drawn for a document in a step; they cost more than they bring.
        range_max: length of a shortlist.
        label_documents: in training the text of every label is a document too, with that label alone.
    """

    epochs: Annotated[int, Field(ge=0)] = 5
    temperature: Positive = 0.04
    positives: Annotated[int, Field(ge=0)] = 0
    num_negatives: Annotated[int, Field(ge=0)] = 0
    range_max: Count = 50
    label_documents: bool = False


@dataclass(frozen=True, kw_only=True)
class AutoSettings(UnidecSettings):
    """What is taken when no recipe is named: UniDEC with a memory, its main settings chosen by data and device.

    ``static`` with a memory is trained by RAE-XMC instead, unless a setting is given that only UniDEC has.

    Args:
        encoder: as for every recipe; when not given, ``minilm``, or ``static`` where the time allows a transformer less
            than a third of a pass over the documents, or than a tenth where ``static`` is joined with it.
        epochs: passes over the training documents; chosen when not given.
        batch_size: documents in a step; 32 to 512, by the number of documents, when not given.
        encoder_weight: share of the dual encoder in the loss; when not given, 0 for a transformer, 0.5 for ``static``.
        pool: as for UniDEC; ``auto`` is ``some`` too where ``static`` has no time for two passes against all labels.
        max_minutes: end within this time, reading and saving included; 60 when not given.
        memory: after training the training documents become keys that vote, and how keys vote is tuned.
        companion: as for UniDEC; when not given, ``static-unidec`` beside a transformer where two passes of it take at
            most a fifth of the time, else ``static`` where that takes at most a third, and 500 validation documents
            tell how much it should count.
        documents_by: as for UniDEC; when not given, the ``companion`` where encoding the documents would take the
            transformer more than three tenths of the time.
        linear: as for UniDEC; when not given, where it takes at most a fifth of the time, and 500 validation
            documents tell how much it should count.
    """

    encoder: str | None = None  # type: ignore[assignment]
    epochs: Count | None = None  # type: ignore[assignment]
    batch_size: Count | None = None  # type: ignore[assignment]
    encoder_weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None  # type: ignore[assignment]
    memory: bool = True
    companion: Literal["none", "static", "static-unidec"] | None = None  # type: ignore[assignment]
    documents_by: Literal["encoder", "companion"] | None = None  # type: ignore[assignment]
    linear: bool | None = None  # type: ignore[assignment]


Remembering = DexmlSettings | UnidecSettings | RaexmcSettings
"""Settings of a run that may have a memory."""

RECIPES: dict[str, type[RunSettings]] = {
    "auto": AutoSettings,
    "dexml": DexmlSettings,
    "unidec": UnidecSettings,
    "raexmc": RaexmcSettings,
}


GONE: dict[str, tuple[Any, str]] = {
    "add_bce": (0.0, "it cost 2.8 points of P@1"),
    "refresh_steps": (50, "negatives 'stale' were level with 'mined' after thirty minutes"),
    "related_documents": ("hidden", "related documents as positives made no difference"),
    "shared_negatives": (True, "no measurement showed a gain of a document's own negatives alone"),
}
"""Settings that measured as nothing or worse: the value that they had, which a record may still hold, and why."""


def recipe_with(names: Iterable[str]) -> str:
    """The recipe that is meant when none is named: auto, or the first of the others that has all settings given.

    Args:
        names: of settings that were given.
    """
    for recipe, kind in RECIPES.items():
        if set(names) <= {f.name for f in dataclasses.fields(kind)}:
            return recipe
    return "auto"


def resolve(recipe: str, given: dict[str, Any], source: str = "") -> RunSettings:
    """The settings of a recipe with the given values put over its defaults.

    Args:
        recipe: ``auto``, ``dexml``, ``unidec`` or ``raexmc``.
        given: values by name.
        source: where they came from, for error messages.

    Raises:
        SettingsError: an unknown recipe or name, or a value out of bounds, one sentence.
    """
    if recipe not in RECIPES:
        raise SettingsError(f"unknown recipe {recipe!r}; choose one of: {', '.join(RECIPES)}")
    kind = RECIPES[recipe]
    where = f"{source}: " if source else ""
    known = [f.name for f in dataclasses.fields(kind)]
    given = {name: value for name, value in given.items() if name not in GONE or value != GONE[name][0]}
    for name in given:
        if name in GONE:
            raise SettingsError(f"{where}the setting {name!r} is gone, since {GONE[name][1]}; leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the settings are {', '.join(known)}"
            raise SettingsError(f"{where}the recipe {recipe} has no setting {name!r}; {hint}")
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}
    try:
        return kind(**given)
    except ValidationError as error:
        raise SettingsError(where + in_one_sentence(error)) from error


def in_one_sentence(error: ValidationError) -> str:
    """The first complaint of pydantic in our words: setting, what is wrong, what was given.

    Args:
        error: what was raised.
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    names = [str(part) for part in first["loc"] if isinstance(part, str)]
    if not names:
        return message
    return f"{names[0]}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def to_dict(settings: RunSettings) -> dict[str, Any]:
    """All settings by name, as plain values.

    Args:
        settings: settings of a run.
    """
    return dataclasses.asdict(settings)


def to_toml(settings: RunSettings, recipe: str, data: dict[str, Any] | None = None) -> str:
    """A configuration file that gives these settings back; unset ones are left out.

    Args:
        settings: settings of a run.
        recipe: name of the recipe.
        data: how the data files were read, to go with them.
    """
    lines = [f'recipe = "{recipe}"']
    for name, value in {**(data or {}), **to_dict(settings)}.items():
        if value is not None:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def read_config(path: str | Path) -> dict[str, Any]:
    """Values by name from a TOML, YAML or JSON file.

    Args:
        path: the file; its suffix says which.

    Raises:
        SettingsError: a file that cannot be read, or is not a flat table of settings.
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
    for name, value in values.items():
        if isinstance(value, dict):
            raise SettingsError(
                f"{path}: settings are flat, but {name!r} is a table; write its entries at the top level"
            )
    return {str(name).replace("-", "_"): value for name, value in values.items()}
