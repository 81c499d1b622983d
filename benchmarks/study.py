"""The study behind docs/results.md: rows that are run, kept as one JSON a run, and rendered.

    python benchmarks/study.py run benchmarks/rows/NAME.toml DATA --out benchmarks/results --work WORK
    python benchmarks/study.py alone DATA --rows NAME NAME ... --out benchmarks/results --work WORK
    python benchmarks/study.py mistakes MODEL DATA --count 100 --seed 0 --out FILE
    python benchmarks/study.py render benchmarks/results --out docs/results.md

A row is a TOML file, see `Row`. `run` starts each of its steps as a process of its own, so that seconds and peak memory
are those of the step, and keeps what was done in WORK: a run that was killed goes on where it was, training included,
and a finished one is not run again. WORK also keeps the models and the 100 best labels of every test document, from
which `alone` tells what each method alone gets right. `render` reads nothing but the JSONs and a template.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labelspace.base.files import atomic_file, atomic_folder
from labelspace.errors import LabelspaceError, SettingsError
from labelspace.training.config import flat

# Nothing heavy is loaded here: a process that is started counts the memory of the one that started it as its own peak.

HERE = Path(__file__).parent
DEPTH = 100
"""Labels kept of a document."""
LABELSPACE = ("train", "tune", "join", "calibrate", "index")
"""Steps that are commands of labelspace."""
CURVE = ("step", "seconds", "P@1", "P@5", "nDCG@5", "PSP@5", "R@100")
"""What is kept of a validation in the course of a run."""
LENGTHS = {"1-4": 1, "5-8": 5, "9-16": 9, "17-64": 17, "65+": 65}
"""Least words of a document, by group."""
SIZES = {"1-2": 1, "3": 3, "4-5": 4, "6-10": 6, "11+": 11}
"""Least true labels of a document, by group."""
SHOWN = ("title", "group", "family", "note", "minutes", "seeds")
"""Keys of a row that say how it is shown, and may change without another run."""
CLASSES = ("missing true label", "near-synonym", "too general or specific", "language", "plainly wrong")
"""What a wrong first label can be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is run, and how it is shown.

    Args:
        title: the name in tables.
        group: ``labelspace``, ``peers`` or ``ablation``.
        family: rows of one family are one line in the charts of quality against time; the title when not given.
        note: what shall be said of it; no figures.
        minutes: the time it was given, if any.
        seeds: one run each.
        steps: labelspace commands with their flags: train, tune, join, calibrate, index, or ``untrained``, an encoder
            and label texts; and perhaps at the end ``evaluate`` with a precision.
        after: the name of another row, whose model of the same seed this one begins with.
        join: names of other rows, whose models of the same seed the step ``join`` makes one of.
        against: the name of another row, with which this one is compared by paired bootstrap.
        peer: a method of ``peers.py``, instead of steps.
        options: of that method.
        requirements: what pip shall put into that method's own environment; empty for this one.
        split: ``test``, or ``valid`` for what is to be chosen.
    """

    title: str
    group: str = "labelspace"
    family: str | None = None
    note: str = ""
    minutes: float | None = None
    seeds: Sequence[int] = (0,)
    steps: Sequence[Sequence[str]] = ()
    after: str | None = None
    join: Sequence[str] = ()
    against: str | None = None
    peer: str | None = None
    options: Sequence[str] = ()
    requirements: Sequence[str] = ()
    split: str = "test"


def read_row(file: Path) -> Row:
    """A row's file, checked.

    Args:
        file: TOML.

    Raises:
        SettingsError: an unknown key, or steps that cannot be run.
    """
    given = tomllib.loads(file.read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(Row)}
    if unknown := sorted(set(given) - known):
        raise SettingsError(f"{file}: a row has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    row = Row(**given)
    if row.group not in ("labelspace", "peers", "ablation") or row.split not in ("test", "valid"):
        raise SettingsError(f"{file}: the group is labelspace, peers or ablation, the split test or valid")
    if bool(row.steps) == bool(row.peer):
        raise SettingsError(f"{file}: a row has either steps or a peer")
    if row.peer and row.split != "test":
        raise SettingsError(f"{file}: a peer is measured on the test part")
    kinds = [step[0] for step in row.steps]
    wrong = [kind for kind in kinds if kind not in (*LABELSPACE, "untrained", "evaluate")]
    if wrong or "evaluate" in kinds[:-1]:
        raise SettingsError(
            f"{file}: steps are {', '.join(LABELSPACE)}, untrained and at the end evaluate, got {kinds}"
        )
    if row.steps and (kinds[0] in ("train", "untrained", "join")) == bool(row.after):
        raise SettingsError(f"{file}: the first step trains or joins, or the row begins after another one")
    if bool(row.join) != ("join" in kinds):
        raise SettingsError(f"{file}: the step join goes with the names of the rows to join")
    return row


# --- running ----------------------------------------------------------------------------------------------------------


def run(given: argparse.Namespace) -> None:
    """Run a row with each of its seeds, as far as that is not done."""
    row, name = read_row(given.row), given.row.stem
    data, work = given.data.expanduser().resolve(), given.work.expanduser().resolve()
    if given.limit:
        data = _limited(data, given.limit, work / f"{data.name}-{given.limit}" / data.name)
    for seed in given.seeds or row.seeds:
        out = given.out / f"{name}-{seed}.json"
        if out.exists() and not given.again:
            before = json.loads(out.read_text(encoding="utf-8"))
            if not _alike(before["config"], _as_json(row), SHOWN):
                raise SettingsError(f"{out} is of another {name}; give --again to run it anew, or rename the row")
            print(f"{out} is there already")
            if before["config"] != _as_json(row):
                _keep(out, {**before, "config": _as_json(row)})
            continue
        folder = work / f"{name}-{seed}"
        if given.again:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        steps = Steps(folder, _as_json(row))
        if row.peer:
            _run_peer(row, seed, data, work, steps, given)
        else:
            _run_steps(row, seed, data, work, steps)
        against = work / f"{row.against}-{seed}" if row.against else None
        if against is not None and not (against / "scores").is_dir():
            raise SettingsError(f"{given.row}: run the row {row.against} first, with seed {seed}")
        flags = ["--against", str(against / "scores")] if against is not None else []
        steps.run(
            "measure", _own("_measure", str(data), str(folder), "--seed", str(seed), "--split", row.split, *flags)
        )
        told = _gathered(row, name, seed, folder, steps, given)
        _keep(out, told)
        shown = told["rankings"]["combined"]["metrics"]
        print(f"{out}: " + ", ".join(f"{metric} {value['value']:.2f}" for metric, value in shown.items()), flush=True)


def _as_json(row: Row) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(row)))


def _alike(one: dict[str, Any], other: dict[str, Any], but: Sequence[str]) -> bool:
    """Whether two rows are the same, some keys apart."""
    return all(one.get(key) == other.get(key) for key in {*one, *other} - set(but))


def _keep(out: Path, told: dict[str, Any]) -> None:
    with atomic_file(out) as part:
        part.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _own(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


class Steps:
    """The steps of a run that are done, kept on disk."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder, self.file = folder, folder / "steps.json"
        kept = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {"config": config}
        if not _alike(kept["config"], config, (*SHOWN, "against")):
            raise SettingsError(f"{folder} holds a run of another row of that name; give --again to run it anew")
        self.done: dict[str, dict[str, Any]] = kept.get("done", {})
        self.begun: dict[str, int] = kept.get("begun", {})
        self.config = config

    def _keep(self) -> None:
        with atomic_file(self.file) as part:
            part.write_text(json.dumps({"config": self.config, "done": self.done, "begun": self.begun}), "utf-8")

    def run(self, name: str, command: list[str], shown: list[str] | None = None) -> None:
        """Start a process and wait for it, if that step is not done; its output goes to a file.

        Args:
            name: of the step; the same step is not run twice, but for ``measure``.
            command: of the process.
            shown: the command as it shall be recorded.
        """
        if name in self.done and name != "measure":
            return
        self.begun[name] = self.begun.get(name, 0) + 1
        self._keep()
        print(f"{name}: {' '.join(shown or command)}", file=sys.stderr, flush=True)
        log = self.folder / f"{name}.log"
        begun = time.monotonic()
        with log.open("ab") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream)
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.terminate()
                raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
            raise SystemExit(f"the step {name} ended with exit code {process.returncode}; {log} ends with\n{last}")
        self.done[name] = {
            "seconds": round(time.monotonic() - begun, 1),
            "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_memory_gb": round(used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, 3),
            "command": " ".join(shown) if shown else None,
            "attempts": self.begun[name],
        }
        self._keep()


def _run_steps(row: Row, seed: int, data: Path, work: Path, steps: Steps) -> None:
    """Training, tuning and all else that makes a model, and its ranking of the documents."""
    model = steps.folder / "model"
    if row.after and not model.exists():
        first = work / f"{row.after}-{seed}" / "model"
        if not first.is_dir():
            raise SettingsError(f"run the row {row.after} first, with seed {seed}: this row begins with its model")
        with atomic_folder(model) as part:
            shutil.copytree(first, part, dirs_exist_ok=True)
    flags: list[str] = []
    for place, (kind, *options) in enumerate(row.steps):
        name = kind if [step[0] for step in row.steps].count(kind) == 1 else f"{kind}-{place}"
        if kind == "evaluate":
            flags = list(options)
        elif kind == "untrained":
            steps.run(name, _own("_untrained", str(data), str(model), *options), ["untrained", *options])
        else:
            labelspace = [sys.executable, "-m", "labelspace", kind]
            parts = [work / f"{other}-{seed}" / "model" for other in row.join]
            if missing := [other for other, part in zip(row.join, parts, strict=True) if not part.is_dir()]:
                raise SettingsError(f"run the row {missing[0]} first, with seed {seed}: its model is joined here")
            joined = [*map(str, parts), "--data", str(data), "--out", str(model)]
            named = {"train": [str(data)], "index": [str(model)], "join": joined}.get(kind, [str(model), str(data)])
            joined = [*(f"MODEL-{other}" for other in row.join), "--data", "DATA", "--out", "MODEL"]
            shown = {"train": ["DATA"], "index": ["MODEL"], "join": joined}.get(kind, ["MODEL", "DATA"])
            if kind == "train":
                named += [*options, "--seed", str(seed), "--out", str(model)]
                shown += [*options, "--seed", str(seed), "--out", "MODEL"]
                begun = (model.with_name("model.checkpoint") / "run.json", model / "manifest.json")
                if any(file.exists() for file in begun):
                    named = [str(data), "--out", str(model), "--resume", str(model)]
            else:
                named, shown = [*named, *options], [*shown, *options]
            steps.run(name, [*labelspace, *named, "--json", "--quiet"], ["labelspace", kind, *shown])
    scores = steps.folder / "scores"
    ranked = ["_rank", str(data), str(model), str(scores), "--split", row.split, "--seed", str(seed), *flags]
    steps.run("evaluate", _own(*ranked), ["labelspace", "evaluate", "MODEL", "DATA", *flags])


def _run_peer(row: Row, seed: int, data: Path, work: Path, steps: Steps, given: argparse.Namespace) -> None:
    """Another method, in an environment of its own."""
    texts = work / f"texts-{data.parent.name if given.limit else data.name}"
    if not texts.is_dir():
        subprocess.run(_own("_texts", str(data), str(texts)), check=True)
    python = given.python
    if python is None and row.requirements:
        python = work / "environments" / str(row.peer) / "bin" / "python"
        made = python.parent.parent / "made"
        if not made.exists():
            subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *row.requirements], check=True)
            made.touch()
    arguments = [str(row.peer), str(texts), str(steps.folder / "scores"), "--seed", str(seed), *row.options]
    shown = ["peers.py", str(row.peer), *row.options, "--seed", str(seed)]
    steps.run("peer", [str(python or sys.executable), str(HERE / "peers.py"), *arguments], shown)
    if (steps.folder / "scores" / "score.npz").exists():
        os.replace(steps.folder / "scores" / "score.npz", steps.folder / "scores" / "combined.npz")


def _gathered(row: Row, name: str, seed: int, folder: Path, steps: Steps, given: argparse.Namespace) -> dict[str, Any]:
    """The JSON of a run."""
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    told: dict[str, Any] = {
        "row": name,
        "config": _as_json(row),
        "seed": seed,
        "command": f"python benchmarks/study.py run benchmarks/rows/{name}.toml DATA",
        "commands": [step["command"] for step in steps.done.values() if step["command"]],
        "date": datetime.now(UTC).date().isoformat(),
        "limit": given.limit,
        "machine": machine(given.conditions),
    }
    seconds = {part: step["seconds"] for part, step in steps.done.items() if part != "measure"}
    memory = {part: step["peak_memory_gb"] for part, step in steps.done.items() if part != "measure"}
    if row.peer:
        inside = json.loads((folder / "scores" / "told.json").read_text(encoding="utf-8"))
        seconds = {part: round(value, 1) for part, value in inside.pop("seconds").items()}
        told["machine"]["threads"] = inside.pop("threads")
        told["settings"], told["versions"] = inside["settings"], inside["versions"]
        ranking = seconds.pop("predict")
        total = sum(seconds.values())
    else:
        ranking = seconds.pop("evaluate")
        total = sum(seconds.values())
        told.update(_recorded(folder / "model"))
        if row.after:
            before = json.loads((given.out / f"{row.after}-{seed}.json").read_text(encoding="utf-8"))
            seconds = {**before["seconds"]["parts"], **seconds}
            total = sum(seconds.values())
            memory = {**before["peak_memory_gb"], **memory}
        for other in row.join:
            before = json.loads((given.out / f"{other}-{seed}.json").read_text(encoding="utf-8"))
            seconds = {**{f"{other}: {part}": value for part, value in before["seconds"]["parts"].items()}, **seconds}
            memory = {**{f"{other}: {part}": value for part, value in before["peak_memory_gb"].items()}, **memory}
            total = sum(seconds.values())
    interrupted = sum(step["attempts"] - 1 for part, step in steps.done.items() if part != "measure")
    told["seconds"] = {"total": round(total, 1), "parts": seconds, "evaluate": ranking, "interrupted": interrupted}
    told["peak_memory_gb"] = memory
    return {**told, **measured}


def _recorded(model: Path) -> dict[str, Any]:
    """What a model's folder tells of its training."""
    manifest = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
    info = manifest["info"]
    curve = []
    log = model / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        record = json.loads(line)
        if record.get("event") == "evaluation":
            curve.append({key: round(record[key], 4) for key in CURVE if key in record})
    fit = info.get("fit") or {}
    tuning = info.get("tuning") or {}
    return {
        "settings": flat(info.get("config") or {}),
        "versions": {"labelspace": manifest["labelspace_version"], **_versions("torch", "numpy")},
        "fit": {key: fit.get(key) for key in ("steps", "best_step", "stopped", "seconds")},
        "voting": tuning.get("voting"),
        "validation": {key: round(v, 4) for key, v in (info.get("metrics", {}).get("validation") or {}).items()},
        "curve": curve,
        "keys": {"labels": manifest["labels"], "documents": manifest["documents"]},
        "size_gb": round(sum(file.stat().st_size for file in model.rglob("*") if file.is_file()) / 1e9, 3),
    }


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def machine(conditions: str = "") -> dict[str, Any]:
    """This machine, as a run records it.

    Args:
        conditions: what else ran, or how much of the machine was given.
    """
    cpu, flags, memory = platform.processor() or platform.machine(), set(), None
    if Path("/proc/cpuinfo").is_file():
        fields = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
        found = {key.strip(): value.strip() for key, value in fields}
        cpu, flags = found.get("model name", cpu), set(found.get("flags", "").split())
    if Path("/proc/meminfo").is_file():
        memory = round(int(Path("/proc/meminfo").read_text().split()[1]) * 1024 / 1e9, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"}),
        "cores": cores,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or cores or 1),
        "memory_gb": memory,
        "system": platform.system(),
        "python": platform.python_version(),
        **_versions("torch"),
        "conditions": conditions,
    }


def _limited(data: Path, count: int, folder: Path) -> Path:
    """The first documents of each part, as LF files."""
    if not folder.is_dir():
        subprocess.run(_own("_head", str(data), str(folder), "--limit", str(count)), check=True)
    return folder


# --- steps that are processes of their own ----------------------------------------------------------------------------


def head(given: argparse.Namespace) -> None:
    """Write the first documents of each part as LF files, for trying things out."""
    import labelspace as ls

    data = ls.load(given.data)
    with atomic_folder(given.folder) as part:
        with (part / "lbl.json").open("w", encoding="utf-8") as file:
            for name, text in zip(data.labels.ids, data.labels.texts, strict=True):
                file.write(json.dumps({"uid": name, "title": text, "content": ""}) + "\n")
        for stem, corpus in (("trn", data.train), ("tst", data.test)):
            if corpus is None:
                continue
            with (part / f"{stem}.json").open("w", encoding="utf-8") as file:
                for row in range(min(given.limit, len(corpus))):
                    true = corpus.targets[[row]].indices.tolist()
                    record = {"uid": corpus.ids[row], "title": corpus.texts[row], "content": "", "target_ind": true}
                    file.write(json.dumps({**record, "target_rel": [1.0] * len(true)}) + "\n")


def texts(given: argparse.Namespace) -> None:
    """Write what other methods read."""
    import scipy.sparse as sp

    import labelspace as ls

    data = ls.load(given.data)
    if data.test is None:
        raise SettingsError(f"{data.name} has no test part")
    with atomic_folder(given.folder) as part:
        for name, lines in (("train", data.train.texts), ("test", data.test.texts), ("labels", data.labels.texts)):
            text = "".join(" ".join(line.split()) + "\n" for line in lines)
            (part / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
        sp.save_npz(part / "Y.trn.npz", data.train.targets)


def untrained(given: argparse.Namespace) -> None:
    """Save an encoder with the label texts as its keys."""
    import labelspace as ls

    data = ls.load(given.data)
    if not given.model.exists():  # else it is there, and was not recorded
        ls.Model.from_encoder(given.encoder, data.labels).save(given.model)


def rank(given: argparse.Namespace) -> None:
    """Write the best labels of each document by each ranking of a model."""
    import labelspace as ls
    from labelspace.data.scores import save_scores
    from labelspace.evaluation.evaluating import longest_filter_row

    model = ls.Model.load(given.model, precision=given.precision)
    data = ls.load(given.data, seed=_seed(model, given.seed))
    if list(model.labels.ids) != list(data.labels.ids):
        raise SettingsError(f"{given.model} has other labels than {data.name}")
    corpus = _corpus(data, given.split)
    voters = model.held_out(data) if given.split == "valid" and model.memory.n_documents else None
    depth = min(DEPTH + longest_filter_row(corpus.filter_pairs), len(data.labels))
    with atomic_folder(given.scores) as part:
        for name, found in model.rankings(corpus.texts, k=depth, left_out=voters).items():
            save_scores(found, len(data.labels), part / f"{name}.npz")


def _seed(model: Any, default: int = 0) -> int:
    """The seed by which the model's validation documents were drawn."""
    return int(model.info.get("data", {}).get("options", {}).get("seed", default))


def _corpus(data: Any, split: str) -> Any:
    corpus = data.test if split == "test" else data.valid
    if corpus is None or not len(corpus):
        raise SettingsError(f"{data.name} has no {split} documents")
    return corpus


def measure(given: argparse.Namespace) -> None:
    """Measure all rankings of a run."""
    import labelspace as ls
    from labelspace import data as reading
    from labelspace.data.scores import load_scores
    from labelspace.evaluation.comparing import compare

    data = ls.load(given.data, seed=given.seed)
    corpus = _corpus(data, given.split)
    rankings = {}
    arguments = {"train_targets": data.train.targets, "filter_pairs": corpus.filter_pairs, "name": data.name}
    own = None
    for file in sorted((given.folder / "scores").glob("*.npz")):
        pred = load_scores(file, len(data.labels), None, corpus.ids)
        own = pred if file.stem == "combined" else own
        rankings[file.stem] = measured(pred, data, corpus, whole=file.stem == "combined")
    told: dict[str, Any] = {
        "data": {
            "name": data.name,
            "fingerprint": reading.fingerprint(data),
            "train": len(data.train),
            given.split: len(corpus),
            "labels": len(data.labels),
        },
        "split": given.split,
        "rankings": dict(sorted(rankings.items(), key=lambda item: (item[0] != "combined", item[0]))),
    }
    if given.against is not None:
        other = load_scores(given.against / "combined.npz", len(data.labels), None, corpus.ids)
        told["against"] = _rounded(compare(other, own, corpus.targets, **arguments))
    with atomic_file(given.folder / "measured.json") as part:
        part.write_text(json.dumps(told), encoding="utf-8")


def measured(pred: Any, data: Any, corpus: Any, whole: bool = True) -> dict[str, Any]:
    """The figures of one ranking.

    Args:
        pred: predictions of the documents.
        data: the data set.
        corpus: the documents.
        whole: with the breakdowns.
    """
    import numpy as np

    from labelspace.evaluation import comparing, metrics
    from labelspace.evaluation import evaluating as evaluation
    from labelspace.types import Predictions

    truth = data.train.targets
    arguments = {"train_targets": truth, "filter_pairs": corpus.filter_pairs, "name": data.name}
    report = evaluation.report(pred, corpus.targets, **arguments)
    limits = comparing.intervals(pred, corpus.targets, **arguments)
    told: dict[str, Any] = {
        "metrics": {
            metric: limits.get(metric, {"value": value, "low": None, "high": None})
            for metric, value in report.metrics.items()
        },
        "counts": report.counts,
        "propensity": report.propensity,
    }
    if whole:
        told["thirds"] = report.groups
        told["frequency"] = evaluation.by_frequency(pred, corpus.targets, truth, filter_pairs=corpus.filter_pairs)
        words = np.array([len(text.split()) for text in corpus.texts])
        sizes = metrics.sizes(metrics.binary_truth(corpus.targets))
        for part, edges, values in (("length", LENGTHS, words), ("labels", SIZES, sizes)):
            group = np.searchsorted(list(edges.values()), values, side="right") - 1
            told[part] = {}
            for number, name in enumerate(edges):
                rows = np.flatnonzero(group == number)
                if len(rows):
                    some = corpus.rows(rows)
                    found = Predictions(pred.indices[rows], pred.scores[rows])
                    values = evaluation.evaluate(
                        found, some.targets, **{**arguments, "filter_pairs": some.filter_pairs}
                    )
                    told[part][name] = {"documents": len(rows), **values}
    return _rounded(told)


def _rounded(value: Any) -> Any:
    """Plain values with few digits."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


# --- what each method alone gets right, and mistakes ------------------------------------------------------------------


def alone(given: argparse.Namespace) -> None:
    """Count what each of several methods gets right, and what none but it does."""
    import numpy as np

    import labelspace as ls
    from labelspace.data.scores import load_scores
    from labelspace.evaluation import metrics
    from labelspace.evaluation.evaluating import ranked

    data = ls.load(given.data)
    corpus = _corpus(data, "test")
    truth = metrics.binary_truth(corpus.targets)
    first, five = [], []
    for name in given.rows:
        pred = load_scores(given.work / f"{name}-0" / "scores" / "combined.npz", len(data.labels), None, corpus.ids)
        indices, hits = ranked(pred, corpus.targets, corpus.filter_pairs)
        first.append(hits[:, 0])
        rows = np.repeat(np.arange(len(corpus)), min(5, hits.shape[1]))[hits[:, :5].ravel()]
        five.append(rows * len(data.labels) + indices[:, :5][hits[:, :5]])
    pairs = np.repeat(np.arange(len(corpus)), np.diff(truth.indptr)) * len(data.labels) + truth.indices
    found = np.array([np.isin(pairs, part) for part in five])
    told = {
        "command": f"python benchmarks/study.py alone DATA --rows {' '.join(given.rows)}",
        "date": datetime.now(UTC).date().isoformat(),
        "rows": given.rows,
        "documents": len(corpus),
        "pairs": len(pairs),
        **{
            part: {
                "each": [100.0 * float(row.mean()) for row in hits],
                "alone": [100.0 * float((row & (hits.sum(axis=0) == 1)).mean()) for row in hits],
                "all": 100.0 * float(hits.all(axis=0).mean()),
                "none": 100.0 * float((~hits.any(axis=0)).mean()),
            }
            for part, hits in (("first", np.array(first)), ("pairs_in_five", found))
        },
    }
    with atomic_file(given.out / "alone.json") as part:
        part.write_text(json.dumps(_rounded(told), indent=1) + "\n", encoding="utf-8")


def mistakes(given: argparse.Namespace) -> None:
    """Draw test documents whose first label is wrong, to be read and classed.

    A reader gives each a ``class`` and a ``reason``, perhaps in ``wrong_truth`` a true label that is evidently wrong,
    and takes the texts out where they may not be passed on.
    """
    import numpy as np

    import labelspace as ls
    from labelspace.evaluation.evaluating import longest_filter_row, ranked

    model = ls.Model.load(given.model, precision=given.precision)
    data = ls.load(given.data, seed=_seed(model))
    corpus = _corpus(data, "test")
    order = np.random.default_rng(given.seed).permutation(len(corpus))
    depth = min(10 + longest_filter_row(corpus.filter_pairs), len(model.labels))
    rows: list[dict[str, Any]] = []
    read = 0

    for start in range(0, len(order), 64):
        if len(rows) == given.count:
            break
        part = corpus.rows(order[start : start + 64])
        indices, hits = ranked(model.predict(part.texts, k=depth), part.targets, part.filter_pairs)
        for i in range(len(part)):
            if len(rows) == given.count:
                break
            read += 1
            true = part.targets[[i]].indices.tolist()
            if true and indices[i, 0] >= 0 and not hits[i, 0]:
                rows.append(
                    {
                        "document": part.ids[i],
                        "text": " ".join(part.texts[i].split()),
                        "predicted": {
                            "id": data.labels.ids[indices[i, 0]],
                            "text": data.labels.texts[indices[i, 0]],
                        },
                        "true": [data.labels.texts[number] for number in true],
                        "others": [data.labels.texts[number] for number in indices[i, 1:5].tolist() if number >= 0],
                        "class": None,
                        "reason": None,
                        "wrong_truth": None,
                    }
                )
    with atomic_file(given.out) as part:
        told = {
            "command": f"python benchmarks/study.py mistakes MODEL DATA --count {given.count} --seed {given.seed}",
            "model": flat(model.info.get("config") or {}),
            "drawn": read,
            "classes": list(CLASSES),
        }
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
        top = json.dumps(told, indent=1, ensure_ascii=False).removesuffix("\n}")
        part.write_text(f'{top},\n "mistakes": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(f"{given.out}: {len(rows)} of {read} documents drawn; give each a class of: {'; '.join(CLASSES)}")


# --- rendering --------------------------------------------------------------------------------------------------------

COLUMNS = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSP@3", "PSP@5", "R@10", "R@100")


class Results:
    """The committed JSONs, and what the template can ask of them."""

    def __init__(self, folder: Path, images: Path):
        self.images: dict[str, str] = {}
        self.place = images
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.others: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.json")):
            told = json.loads(file.read_text(encoding="utf-8"))
            if "row" not in told:
                self.others[file.stem] = told
                continue
            if told["limit"]:
                raise SettingsError(f"{file} was tried on a part of the data, and is no result")
            self.runs.setdefault(told["row"], []).append(told)
        self.runs = dict(sorted(self.runs.items(), key=lambda item: self._order(item[1][0])))

    @staticmethod
    def _order(run: dict[str, Any]) -> tuple[Any, ...]:
        groups = ("labelspace", "peers", "ablation")
        config = run["config"]
        return groups.index(config["group"]), -run["rankings"]["combined"]["metrics"]["P@5"]["value"], run["row"]

    def of(self, *groups: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Rows of groups with their runs."""
        return ((row, runs) for row, runs in self.runs.items() if runs[0]["config"]["group"] in groups)

    def mean(self, row: str, metric: str, ranking: str = "combined") -> float:
        """A metric over the seeds of a row."""
        if row not in self.runs:
            raise SettingsError(f"the template asks for the row {row!r}, which has no results")
        values = [run["rankings"][ranking]["metrics"][metric]["value"] for run in self.runs[row]]
        return sum(values) / len(values)

    def cells(self, row: str, metrics: Sequence[str], ranking: str = "combined") -> list[str]:
        """Metrics over the seeds of a row; nothing where there are too few labels for one."""
        known = self.runs[row][0]["rankings"][ranking]["metrics"]
        return [f"{self.mean(row, metric, ranking):.2f}" if metric in known else "" for metric in metrics]

    # what a template may say, as {{name argument argument}}

    def value(self, row: str, metric: str, ranking: str = "combined") -> str:
        """A metric of a row, in percent."""
        return f"{self.mean(row, metric, ranking):.2f}"

    def difference(self, row: str, other: str, metric: str) -> str:
        """A metric of a row less that of another one."""
        return f"{self.mean(row, metric) - self.mean(other, metric):+.2f}"

    def minutes(self, row: str) -> str:
        """Minutes from reading to saving."""
        if row not in self.runs:
            raise SettingsError(f"the template asks for the row {row!r}, which has no results")
        return _minutes(self.runs[row])

    def table(self, *groups: str) -> str:
        """The figures of all rows of groups."""
        rows = [
            [
                runs[0]["config"]["title"],
                *self.cells(row, COLUMNS),
                _minutes(runs),
                f"{_mean([run['seconds']['evaluate'] for run in runs]) / 60:.1f}",
                f"{max(run_memory(run) for run in runs):.1f}",
                str(len(runs)),
            ]
            for row, runs in self.of(*groups)
        ]
        return _table(["", *COLUMNS, "minutes", "answering", "GB", "seeds"], rows)

    def only(self, *rows: str) -> str:
        """A short table of some rows, in that order; those without results are left out."""
        shown = ("P@1", "P@5", "PSP@5", "R@100")
        found = [
            [
                self.runs[row][0]["config"]["title"],
                *self.cells(row, shown),
                _minutes(self.runs[row]),
                f"{max(run_memory(run) for run in self.runs[row]):.1f}",
                _load(self.runs[row][0]),
            ]
            for row in rows
            if row in self.runs
        ]
        return _table(["", *shown, "minutes", "GB", "on"], found)

    def intervals(self, *groups: str) -> str:
        """The same with intervals, a line for each seed."""
        shown = ("P@1", "P@5", "PSP@5", "R@100")
        rows = []
        for _, runs in self.of(*groups):
            for run in runs:
                found = run["rankings"]["combined"]["metrics"]
                cells = [f"{found[m]['low']:.2f} to {found[m]['high']:.2f}" if m in found else "" for m in shown]
                rows.append([run["config"]["title"], str(run["seed"]), *cells])
        return _table(["", "seed", *shown], rows)

    def breakdown(self, part: str, metric: str, *groups: str) -> str:
        """A metric by label frequency (``frequency``), words (``length``) or true labels (``labels``) of a document."""
        names: dict[str, str] = {}
        for _, runs in self.of(*groups):
            for name, group in runs[0]["rankings"]["combined"][part].items():
                count = group["labels" if part == "frequency" else "documents"]
                names[name] = f"{name} ({count:,})"
        rows = []
        for _, runs in self.of(*groups):
            found = [run["rankings"]["combined"][part] for run in runs]
            cells = [f"{_mean([one[name][metric] for one in found]):.2f}" if name in found[0] else "" for name in names]
            rows.append([runs[0]["config"]["title"], *cells])
        return _table([metric, *names.values()], rows)

    def rankings(self) -> str:
        """All rankings of the models that have several."""
        shown = ("P@1", "P@5", "nDCG@5", "PSP@5", "R@100")
        rows = [
            [runs[0]["config"]["title"], ranking, *self.cells(row, shown, ranking)]
            for row, runs in self.of("labelspace", "ablation")
            if len(runs[0]["rankings"]) > 1
            for ranking in runs[0]["rankings"]
        ]
        return _table(["", "ranking", *shown], rows)

    def ablation(self) -> str:
        """Differences of the rows that were compared with another one."""
        shown = ("P@1", "P@5", "PSP@5", "R@100")
        rows = []
        for _, runs in self.of("labelspace", "ablation"):
            for run in runs:
                if "against" in run:
                    cells = [
                        f"{one['difference']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})" if one else ""
                        for one in (run["against"].get(metric) for metric in shown)
                    ]
                    part = {"valid": "validation", "test": "test"}[run["split"]]
                    other = self.runs.get(run["config"]["against"])
                    named = other[0]["config"]["title"] if other else run["config"]["against"]
                    rows.append([run["config"]["title"], named, part, *cells])
        return _table(["", "compared with", "documents", *shown], rows)

    def notes(self, *groups: str) -> str:
        """The notes of rows, with the command that runs each, and where it ran."""
        lines = []
        for _, runs in self.of(*groups):
            run = runs[0]
            machine, versions = run["machine"], run.get("versions", {})
            kept = ", ".join(f"{name} {version}" for name, version in versions.items())
            bf16 = " (AVX512-BF16)" if "avx512_bf16" in machine["instructions"] else ""
            where = (
                f"{machine['cpu']}{bf16}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}, {_load(run)}"
            )
            lines.append(
                f"- **{run['config']['title']}**: {run['config']['note'].strip()} `{run['command']}` "
                f"({run['date']}; {where}; {kept})"
            )
            if run["commands"] and not run["config"]["peer"]:
                lines += ["", *(f"      {command}" for command in run["commands"]), ""]
        return "\n".join(lines)

    def curves(self, metric: str) -> str:
        """Learning curves on validation documents, as a picture."""
        chosen = [
            (runs[0]["config"]["title"], [(p["seconds"] / 60, p[metric]) for p in runs[0]["curve"] if metric in p])
            for _, runs in self.of("labelspace")
            if runs[0].get("curve") and not runs[0]["config"]["after"]
        ]
        return self._picture(f"curves-{_file(metric)}", f"{metric} on validation documents by minutes", metric, chosen)

    def against_time(self, metric: str) -> str:
        """Quality on test documents against the minutes that a method took, as a picture."""
        families: dict[str, list[tuple[float, float]]] = {}
        for row, runs in self.of("labelspace", "peers"):
            family = runs[0]["config"]["family"] or runs[0]["config"]["title"]
            seconds = _mean([run["seconds"]["total"] for run in runs])
            families.setdefault(family, []).append((seconds / 60, self.mean(row, metric)))
        chosen = [(name, sorted(points)) for name, points in families.items()]
        return self._picture(f"time-{_file(metric)}", f"{metric} on test documents by minutes", metric, chosen)

    def _picture(self, name: str, title: str, metric: str, series: list[tuple[str, list[tuple[float, float]]]]) -> str:
        from labelspace.report import charts

        series = [(told, points) for told, points in series if points]
        if not series:
            return "No run has been recorded for this yet."
        about = "; ".join(f"{told}: {points[-1][1]:.1f} after {points[-1][0]:.0f} minutes" for told, points in series)
        drawn = charts.lines(name, title, about, ("minutes", metric), [points for _, points in series])
        self.images[f"results-{name}.svg"] = charts.alone(drawn, [told for told, _ in series])
        return f"![{title}. {about}]({self.place.name}/results-{name}.svg)"

    def alone(self) -> str:
        """What each of several methods gets right, and none but it."""
        told = self.others.get("alone")
        if told is None:
            return "This has not been counted yet."
        rows = [
            [
                self.runs[row][0]["config"]["title"] if row in self.runs else row,
                *(f"{told[part][kind][i]:.2f}" for part in ("first", "pairs_in_five") for kind in ("each", "alone")),
            ]
            for i, row in enumerate(told["rows"])
        ]
        for kind, name in (("all", "all of them"), ("none", "none of them")):
            rows.append([name, f"{told['first'][kind]:.2f}", "", f"{told['pairs_in_five'][kind]:.2f}", ""])
        header = ["", "first label right", "it alone", "true pairs among the first five", "it alone"]
        return _table(header, rows) + f"\n\n`{told['command']}`"

    def mistakes(self) -> str:
        """How many wrong first labels are of which class."""
        found, drawn, classes = self._classed()
        rows = []
        for kind in classes:
            own = [one for one in found if one["class"] == kind]
            shown = "; ".join(f"{one['predicted']['text']}: {one['reason']}" for one in own[:2])
            rows.append([kind, str(len(own)), shown])
        return _table([f"of {len(found)} wrong first labels", "", "for example"], rows)

    def _classed(self) -> tuple[list[dict[str, Any]], int, list[str]]:
        told = self.others.get("mistakes")
        if told is None:
            raise SettingsError("the template asks for mistakes, but there is no mistakes.json")
        if wrong := [one for one in told["mistakes"] if one["class"] not in told["classes"]]:
            raise SettingsError(f"mistakes.json: document {wrong[0]['document']} has no class")
        return told["mistakes"], told["drawn"], told["classes"]

    def share(self, *classes: str) -> str:
        """Percent of the wrong first labels read that are of some classes."""
        found, _, known = self._classed()
        wanted = [" ".join(classes)] if " ".join(classes) in known else [kind.replace("_", " ") for kind in classes]
        return f"{100 * sum(one['class'] in wanted for one in found) / len(found):.0f}%"

    def ceiling(self, *classes: str) -> str:
        """P@1 among the documents that were drawn, if mistakes of these classes counted as right."""
        found, drawn, _ = self._classed()
        wanted = [kind.replace("_", " ") for kind in classes]
        right = drawn - len(found) + sum(one["class"] in wanted for one in found)
        return f"{100 * right / drawn:.0f}%"

    def wrong_truth(self) -> str:
        """Of how many of the documents read a true label is evidently wrong, and some of these labels."""
        labels = [one["wrong_truth"] for one in self._classed()[0] if one["wrong_truth"]]
        return f"{len(labels)} ({', '.join(labels[:4])} among them)"

    def drawn(self) -> str:
        """How many documents were drawn to find the mistakes."""
        return str(self._classed()[1])

    def data(self) -> str:
        """What was measured on."""
        told = {json.dumps(run["data"], sort_keys=True): run["data"] for runs in self.runs.values() for run in runs}
        sizes = {(one["name"], one["train"], one["labels"]) for one in told.values()}
        if len({one["fingerprint"] for one in told.values()}) > 1:
            raise SettingsError("the runs were made on different data, and do not go into one table")
        tested = max((one.get("test", 0) for one in told.values()), default=0)
        return "".join(
            f"{name}: {train:,} training documents, {tested:,} test documents, {labels:,} labels"
            for name, train, labels in sizes
        )

    def missing(self) -> str:
        """Rows that have no results yet."""
        rows = sorted(file.stem for file in (HERE / "rows").glob("*.toml") if file.stem not in self.runs)
        return "All rows have been run." if not rows else "Not run yet: " + ", ".join(rows) + "."


def run_memory(run: dict[str, Any]) -> float:
    """Largest peak of the steps of a run, in GB."""
    return max(run["peak_memory_gb"].values())


def _load(run: dict[str, Any]) -> str:
    """What a run had of its machine."""
    return run["machine"]["conditions"] or f"{run['machine']['cores']} cores with nothing else running"


def _minutes(runs: list[dict[str, Any]]) -> str:
    return f"{_mean([run['seconds']['total'] for run in runs]) / 60:.1f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _file(metric: str) -> str:
    return metric.lower().replace("@", "-at-")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "No run has been recorded for this yet."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def rendered(results: Path, template: Path, images: Path) -> tuple[str, dict[str, str]]:
    """The page and its pictures by name, from the JSONs and the template alone.

    Args:
        results: folder of the JSONs.
        template: Markdown with ``{{name argument ...}}``.
        images: folder of the pictures, beside the page.

    Raises:
        SettingsError: a template that asks for what is not there.
    """
    found = Results(results, images)
    names = {name for name in vars(Results) if not name.startswith("_")} - {"of", "mean", "cells"}

    def filled(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        if name not in names:
            raise SettingsError(f"{template}: unknown {name!r}; it knows {', '.join(sorted(names))}")
        return getattr(found, name)(*arguments)

    page = re.sub(r"\{\{(.+?)\}\}", filled, template.read_text(encoding="utf-8"))
    return page, found.images


def render(given: argparse.Namespace) -> None:
    """Write the page and its pictures, or a part of another page between two marks."""
    images = given.out.parent / "img"
    page, drawn = rendered(given.results, given.template, images)
    if given.into is not None:
        whole = given.into.read_text(encoding="utf-8")
        parts = re.split(r"(<!-- results -->\n|<!-- end of results -->)", whole)
        if len(parts) != 5:
            raise SettingsError(f"{given.into} needs the two lines <!-- results --> and <!-- end of results --> once")
        with atomic_file(given.into) as part:
            part.write_text("".join([*parts[:2], page, *parts[3:]]), encoding="utf-8", newline="\n")
        return
    for old in images.glob("results-*.svg"):
        if old.name not in drawn:
            old.unlink()
    for name, picture in drawn.items():
        with atomic_file(images / name) as part:
            part.write_text(picture, encoding="utf-8", newline="\n")
    with atomic_file(given.out) as part:
        part.write_text(page, encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what was asked.

    Args:
        arguments: of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    results = Path("benchmarks/results")

    one = commands.add_parser("run", help="run a row, as far as that is not done")
    one.set_defaults(do=run)
    one.add_argument("row", type=Path, help="its TOML file")
    one.add_argument("data", type=Path, help="folder or file of the data")
    one.add_argument("--out", type=Path, default=results, help="where the JSON of each seed goes")
    one.add_argument("--work", type=Path, default=Path("runs/study"), help="models and predictions")
    one.add_argument("--seeds", type=int, nargs="+", help="instead of those of the row")
    one.add_argument("--python", type=Path, help="of a peer's environment; made in WORK when not given")
    one.add_argument("--limit", type=int, help="only so many documents of each part, to try a row out")
    one.add_argument("--conditions", default="", help="what else the machine did, for the record")
    one.add_argument("--again", action="store_true", help="run it anew although it is done")

    one = commands.add_parser("alone", help="what each of several methods alone gets right")
    one.set_defaults(do=alone)
    one.add_argument("data", type=Path)
    one.add_argument("--rows", nargs="+", required=True)
    one.add_argument("--out", type=Path, default=results)
    one.add_argument("--work", type=Path, default=Path("runs/study"))

    one = commands.add_parser("mistakes", help="draw wrong first labels, to be classed by reading")
    one.set_defaults(do=mistakes)
    one.add_argument("model", type=Path)
    one.add_argument("data", type=Path)
    one.add_argument("--count", type=int, default=100)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--precision", default="float32")
    one.add_argument("--out", type=Path, required=True)

    one = commands.add_parser("render", help="write docs/results.md from the JSONs")
    one.set_defaults(do=render)
    one.add_argument("results", type=Path)
    one.add_argument("--out", type=Path, default=Path("docs/results.md"))
    one.add_argument("--template", type=Path, default=HERE / "results.md")
    one.add_argument("--into", type=Path, help="another page: put it between its marks instead of writing --out")

    for name, do, names in (
        ("_head", head, ("data", "folder")),
        ("_texts", texts, ("data", "folder")),
        ("_untrained", untrained, ("data", "model")),
        ("_rank", rank, ("data", "model", "scores")),
        ("_measure", measure, ("data", "folder")),
    ):
        one = commands.add_parser(name)
        one.set_defaults(do=do)
        for argument in names:
            one.add_argument(argument, type=Path)
        one.add_argument("--limit", type=int)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--split", default="test")
        one.add_argument("--encoder", default="minilm")
        one.add_argument("--precision", default="float32")
        one.add_argument("--against", type=Path)
    given = parser.parse_args(arguments)
    try:
        given.do(given)
    except (LabelspaceError, OSError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"study: {error}") from None


if __name__ == "__main__":
    main()
