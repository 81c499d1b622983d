"""Ablation of UniDEC at equal time: one run a setting, figures of the three rankings on validation documents.

    python benchmarks/unidec.py DATA [--minutes 5] [--seeds 0] [--only NAME ...] [--out FOLDER] [-- --lr 0.002 ...]
    python benchmarks/unidec.py --table FOLDER/results.jsonl

What comes after ``--`` goes to every ``labelspace train``. ``dexml`` is the dual encoder alone by the other recipe.
A line of JSON a run is appended to FOLDER/results.jsonl, and a table is printed at the end. Runs that are there already
are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ablation import Run, asked, missing, train

SOME = ["--pool", "some"]
VARIANTS: dict[str, list[str]] = {
    "dexml": ["--recipe", "dexml"],
    "defaults": [],
    "all labels": ["--pool", "all"],
    "some labels, clusters": [*SOME, "--clusters"],
    "some labels, no clusters": [*SOME, "--no-clusters"],
    "all positives, no clusters": [*SOME, "--no-clusters", "--num-positives", "0"],
    "one positive, no filling": [*SOME, "--no-clusters", "--num-positives", "1", "--gap", "1000000000"],
    "16 negatives, cap 16 B": [*SOME, "--no-clusters", "--num-negatives", "16", "--range-max", "100", "--cap", "8192"],
    "supcon": ["--encoder-loss", "supcon", "--classifier-loss", "supcon"],
    "balanced": ["--encoder-loss", "balanced", "--classifier-loss", "balanced"],
    "classifier bce": ["--classifier-loss", "bce"],
    "encoder alone": ["--encoder-weight", "1"],
    "classifier alone": ["--encoder-weight", "0"],
    "lambda 0.3": ["--encoder-weight", "0.3"],
    "lambda 0.7": ["--encoder-weight", "0.7"],
    "documents to labels alone": ["--directions", "none"],
    "norm both": ["--classifier-norm", "both"],
    "norm never": ["--classifier-norm", "never"],
    "table rate 6e-3": ["--table-lr", "0.006"],
    "table rate 1e-3": ["--table-lr", "0.001"],
    "table at random": ["--table-init", "random"],
    "adagrad": ["--table-optimizer", "adagrad", "--table-lr", "0.01"],
    "bf16 table": ["--table-dtype", "bf16"],
    "no label documents": ["--no-label-documents"],
}
GONE = {"classifier with bce added": ["--add-bce", "1"]}
"""What was measured once and is no longer a setting."""
SHOWN = ("P@1", "P@5", "PSP@5", "R@100")


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/unidec"))
    given, further = asked(parser, VARIANTS, table)
    done: list[Run] = []
    for run, note in missing(given, given.out / "results.jsonl", done, minutes=given.minutes, further=further):
        flags = VARIANTS[run["name"]]
        recipe = [] if "--recipe" in flags else ["--recipe", "unidec"]
        command = [
            *(given.data, *recipe, *flags, *further, "--seed", str(run["seed"])),
            *("--max-minutes", str(given.minutes), "--epochs", "1000", "--patience", "0"),
            *("--out", str(given.out / "model"), "--overwrite"),
        ]
        found = train(command)
        log = [json.loads(line) for line in (given.out / "model" / "log.jsonl").read_text().splitlines()]
        memory = max((r["peak_memory_gb"] for r in log if r["event"] == "step"), default=float("nan"))
        rankings = found.get("rankings") or {"combined": found["validation"]}
        fit = {k: found["fit"][k] for k in ("steps", "best_step", "seconds")}
        note({"rankings": rankings, **fit, "peak_memory_gb": memory})
    print(table(done))


def table(runs: list[Run]) -> str:
    """Runs as a Markdown table, in the order of `VARIANTS`; validation documents, percent."""
    names = ("combined", "encoder", "classifier")
    shown = [f"{ranking} {metric}" for ranking in names for metric in (SHOWN if ranking == "combined" else SHOWN[:1])]
    lines = ["| run | flags | seed | steps | " + " | ".join(shown) + " |", "| --- " * (len(shown) + 4) + "|"]
    known = VARIANTS | GONE
    for run in sorted(runs, key=lambda run: (list(known).index(run["name"]), run["seed"])):
        flags = " ".join(known[run["name"]]).replace("--recipe dexml", "")
        cells = [
            f"{run['rankings'][ranking][metric]:.2f}" if ranking in run["rankings"] else ""
            for ranking in names
            for metric in (SHOWN if ranking == "combined" else SHOWN[:1])
        ]
        code = f"`{flags}`" if flags else ""
        lines.append(f"| {run['name']} | {code} | {run['seed']} | {run['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
