"""Several models as one: label keys of all of them side by side, documents that vote by the first (late fusion)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ..errors import ModelError
from ..labels import numbers_in
from ..memory.keys import Keys
from ..memory.memory import Memory
from .model import Model
from .towers import Tower

logger = logging.getLogger(__name__)


def join(models: Sequence[Model]) -> Model:
    """One model that answers from the label keys of several and the documents of the first.

    Queries of the models stand side by side, and so do keys of a label; their product is the sum of the similarities,
    each times the model's share. Documents are compared by the first model alone, so that their keys grow no longer:
    name first the model whose documents vote best, a transformer say. Shares are equal until `Model.tune` chooses them.

    Args:
        models: two or more, of the same labels by id. They are not changed; encoders and large arrays are shared.

    Raises:
        ModelError: fewer than two models, or models of other labels.
    """
    if len(models) < 2:
        raise ModelError(f"joining takes two models or more, got {len(models)}")
    first = models[0]
    towers, keys = [], []
    for number, model in enumerate(models):
        number_in_first = numbers_in(model.labels.ids, first.labels.ids)
        missing = set(first.labels.ids) - set(model.labels.ids)
        if (number_in_first < 0).any() or missing:
            name = next(iter(missing), None) or model.labels.ids[int(number_in_first.argmin())]
            raise ModelError(
                f"model {number + 1} has other labels than the first: {name!r} is in one of them alone; join models "
                "that were trained on the same labels"
            )
        _warn_of_data(first, model, number + 1)
        own = model.memory.keys.float().cpu()
        keys.append(torch.empty_like(own))
        keys[-1][torch.from_numpy(number_in_first)] = own / len(models)
        towers += [Tower(tower.encoder, tower.heads, tower.share / len(models)) for tower in model.towers]
    labels = Memory.of_labels(torch.cat(keys, dim=1).to(first.memory.device), first.labels).label_keys
    kept = [segment.shared() for segment in first.memory.compacted().document_keys.segments]
    documents = Keys(kept, towers[0].document_dim)
    removed = {kind: dict(gone) for kind, gone in first.memory.removed.items()}
    linear = next((model.memory.linear for model in models if model.memory.linear is not None), None)
    memory = Memory(labels, documents, first.memory.voting, removed=removed, linear=linear)
    info = {
        "recipe": "joined",
        "config": {"models": [model.info.get("config", {}) for model in models]},
        "data": first.info.get("data", {}),
        "metrics": {},
    }
    tower, *more = towers
    return Model(tower.encoder, memory, first.labels, info, heads=tower.heads, more=more, share=tower.share)


def _warn_of_data(first: Model, other: Model, number: int) -> None:
    """Warn when a model was trained on documents that the first held out."""
    mine, theirs = (model.info.get("data", {}) for model in (first, other))
    prints = [data.get("fingerprint") for data in (mine, theirs)]
    seeds = [data.get("options", {}).get("seed") for data in (mine, theirs)]
    if None not in prints and prints[0] != prints[1]:
        logger.warning(
            "model %d was trained on other data (%s, the first %s): if documents that shares are chosen on are among "
            "them, the choice will favour it",
            *(number, theirs.get("name"), mine.get("name")),
        )
    elif None not in seeds and seeds[0] != seeds[1]:
        logger.warning(
            "model %d held out other documents than the first (seed %s, the first %s), so it was trained on some that "
            "shares are chosen on, and the choice will favour it; train both with one seed",
            *(number, seeds[1], seeds[0]),
        )
