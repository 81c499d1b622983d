"""What must stay as it is when code moves: written once by ``python tests/golden_files.py``, held by test_golden.py.

``golden/model`` was saved by the code as it stood before the modules went into folders, and is never written again: a
model folder must open years later. ``golden/public.txt`` and ``golden/flags.txt`` change with a wanted change of the
public names, signatures and flags; run this file then, and read the difference before it is committed. Weights and
predictions depend in their last bits on the processor and on torch, so ``golden/bits.json`` has an entry for each
machine that this was run on, and elsewhere those tests are skipped. A move is proved by running this file before it,
and the tests after it, on one machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch

import labelspace as ls

GOLDEN = Path(__file__).parent / "golden"
MODEL, PUBLIC, FLAGS, BITS = (GOLDEN / name for name in ("model", "public.txt", "flags.txt", "bits.json"))
TEXTS = ("a tall red oak", "wild fern of the old guide", "dry moss and dry wheat", "blue stone", "rose", "")
COMMON: dict[str, Any] = {
    "encoder": "static", "epochs": 3, "batch_size": 32, "lr": 0.02, "precision": "float32", "device": "cpu",
    "evaluations": 1,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "dexml": COMMON,
    "unidec": COMMON | {"table_lr": 0.02, "evaluations": 3},
    "raexmc": COMMON | {"evaluations": 3},
    "dexml-transformer": COMMON | {"lr": 1e-3, "epochs": 1, "negatives": "mined", "num_negatives": 2},
    "unidec-transformer": COMMON | {"lr": 1e-3, "epochs": 1},
    "raexmc-transformer": COMMON | {"lr": 1e-3, "epochs": 1},
}
"""Toy runs: their settings; the encoder is static where its name does not say otherwise."""
REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "api.rst"
COMMANDS: list[list[str]] = [
    *([name] for name in ("quickstart", "info", "convert", "evaluate", "calibrate", "predict", "report", "export")),
    *(["train", "--recipe", recipe] for recipe in ("auto", "dexml", "unidec", "raexmc")),
    *([name] for name in ("presets", "bench", "tune", "join", "index", "compact", "serve")),
    *(["documents", verb] for verb in ("add", "remove", "list")),
    *(["labels", verb] for verb in ("add", "rename", "remove", "list")),
]


def machine() -> str:
    """What the last bits of a sum depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    parts = [known.get(name, "?") for name in ("model name", "cpu family", "model", "stepping")]
    return ", ".join([*parts, torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}"])


def public() -> str:
    """Names that users may import, with their signatures, a line each."""
    lines = [f"labelspace.{name}" for name in ls.__all__]
    for kind, name in re.findall(r"^\.\. auto(\w+):: (\S+)", REFERENCE.read_text(), re.MULTILINE):
        if kind == "module":
            module = importlib.import_module(name)
            listed = getattr(module, "__all__", None) or [
                x for x, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
            ]
            for part in listed:
                if not part.startswith("_"):
                    lines += _described(f"{name}.{part}", getattr(module, part))
        else:
            lines += _described(name, _found(name))
    return "\n".join(sorted(lines)) + "\n"


def _found(name: str) -> Any:
    for cut in range(name.count("."), 0, -1):
        parts = name.split(".")
        with contextlib.suppress(ImportError):
            value: Any = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                value = getattr(value, part)
            return value
    raise ImportError(name)


def _described(name: str, value: Any) -> Iterator[str]:
    if not callable(value):
        return
    yield f"{name}{_signature(value)}"
    if inspect.isclass(value):
        for part in dir(value):
            inner = inspect.getattr_static(value, part)
            if part.startswith("_") or not any(part in vars(base) for base in value.__mro__ if _ours(base)):
                continue
            if isinstance(inner, property):
                yield f"{name}.{part}: property"
            elif callable(getattr(value, part, None)):
                yield f"{name}.{part}{_signature(getattr(value, part))}"


def _ours(kind: type) -> bool:
    return kind.__module__.startswith("labelspace")


def _signature(value: Any) -> str:
    """Without the modules that types live in, which may move."""
    try:
        text = str(inspect.signature(value))
    except ValueError:
        return "(...)"
    return re.sub(r"\b[A-Za-z_][\w.]*\.(?=\w)", "", text) if "labelspace" in text else text


def flags() -> str:
    """Flags of every command: names, default, and what may be chosen, a line each, sorted."""
    from labelspace.cli.app import _app

    lines = []
    for command in COMMANDS:
        app = _app(command[2] if len(command) > 2 else "auto")
        for name in command[:1] if "--recipe" in command else command:
            app = app[name]
        for argument in app.assemble_argument_collection(parse_docstring=True):
            default = argument.field_info.default
            if argument.show and not dataclasses.is_dataclass(default):
                shown = "required" if argument.required else f"= {default!r}"
                choices = " | ".join(sorted(map(str, _choices(argument.hint))))
                lines.append(" ".join([*command, "/".join(argument.names), shown, choices]).strip())
    return "\n".join(sorted(lines)) + "\n"


def _choices(hint: Any) -> set[Any]:
    parts = get_args(hint)
    return set(parts) if get_origin(hint) is Literal else set().union(*map(_choices, parts)) if parts else set()


def trained(name: str, data: ls.Dataset, tiny: Path, **others: Any) -> ls.Model:
    """The model of a toy run.

    Args:
        name: in `RUNS`.
        data: the toy corpus.
        tiny: folder of the tiny transformer.
        others: further settings.
    """
    settings = RUNS[name] | others
    if name.endswith("-transformer"):
        settings["encoder"] = str(tiny)
    else:
        settings["base"] = str(tiny)
    torch.manual_seed(0)
    return ls.train(data, recipe=name.partition("-")[0], **settings)


def digest(model: ls.Model) -> str:
    """SHA-256 over all weights and keys of a model, and over what it predicts."""
    found = hashlib.sha256()
    for tower in model.towers:
        for name, value in sorted(tower.encoder.state_dict().items()):
            found.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    found.update(answers(model).encode())
    return found.hexdigest()


def answers(model: ls.Model) -> str:
    """Predictions to the last bit, as text."""
    pred = model.predict([text for text in TEXTS if text], k=5)
    scores = np.ascontiguousarray(pred.scores, dtype=np.float32).view(np.uint32)
    return json.dumps([np.asarray(pred.indices).tolist(), scores.tolist()])


def write(folder: Path) -> None:
    """Write what is not there, and what a wanted change has changed.

    Args:
        folder: one that holds ``toy``, the corpus, and ``tiny``, the transformer.
    """
    data = ls.load(folder / "toy")
    if not MODEL.exists():
        half = ls.load(folder / "toy", valid_fraction=0.5)
        model = trained("unidec", half, folder / "tiny", epochs=1)
        model.tune(half, linear=True)
        model.calibrate(half)
        model.save(MODEL)
    PUBLIC.write_text(public())
    FLAGS.write_text(flags())
    known = json.loads(BITS.read_text()) if BITS.exists() else {}
    known[machine()] = {
        "opened": answers(ls.Model.load(MODEL)),
        "trained": {name: digest(trained(name, data, folder / "tiny")) for name in RUNS},
    }
    BITS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    from conftest import make_tiny_transformer, make_toy_folder
    from processors import product_seconds

    from labelspace.base.rates import measured_once

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        os.environ["LABELSPACE_CACHE"] = str(Path(made) / "cache")
        measured_once("products", product_seconds)
        for name in ("toy", "made"):
            (Path(made) / name).mkdir()
        make_toy_folder(Path(made) / "toy")
        shutil.copytree(make_tiny_transformer(Path(made) / "made"), Path(made) / "tiny")
        os.chdir(made)  # so that no file names this machine's folders
        write(Path())
