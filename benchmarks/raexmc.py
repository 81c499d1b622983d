"""What RAE-XMC's training is best made of: passes of the static encoder, figures of the memory on validation documents.

    python benchmarks/raexmc.py DATA [--seeds 0] [--only NAME ...] [--out FILE] [-- --lr 0.002 ...]
    python benchmarks/raexmc.py --table FILE

What comes after ``--`` goes to every ``labelspace train``. A line of JSON a run is appended to FILE; runs that are
there already are not run again. Seconds are those of the training steps alone, without reading, memory and tuning.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ablation import Run, asked, missing, train

ONE, ALL = ["--positives", "1"], ["--positives", "0"]
NONE, HARD = ["--num-negatives", "0"], ["--num-negatives", "2", "--mine-from", "0.2"]
VARIANTS: dict[str, list[str]] = {
    "untrained": ["--epochs", "0"],
    "one label drawn, hard negatives": ["--epochs", "2", *ONE, *HARD],
    "one label drawn": ["--epochs", "2", *ONE, *NONE],
    "two labels drawn": ["--epochs", "2", "--positives", "2", *NONE],
    "all labels": ["--epochs", "2", *ALL, *NONE],
    "all labels, hard negatives": ["--epochs", "2", *ALL, *HARD],
    "all labels, batches of 2,048": ["--epochs", "2", "--batch-size", "2048", *ALL, *NONE],
    "all labels, one pass": ["--epochs", "1", *ALL, *NONE],
    "all labels, five passes": ["--epochs", "5", *ALL, *NONE],
    "all labels, twice the rate": ["--epochs", "2", "--lr", "0.003", *ALL, *NONE],
}
GONE = {"all labels, related documents": ["--epochs", "2"]}
"""What was measured once and is no longer a setting."""
SHOWN = ("P@1", "P@5", "nDCG@5", "PSP@5", "R@100")


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/raexmc.jsonl"))
    given, further = asked(parser, VARIANTS, table)
    done: list[Run] = []
    for run, note in missing(given, given.out, done, further=further):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(given.data, "--recipe", "raexmc", "--encoder", "static", "--evaluations", "0"),
                *("--key-precision", "bf16", *VARIANTS[run["name"]], *further),
                *("--seed", str(run["seed"]), "--out", f"{folder}/model"),
            ]
            found = train(command)
        note({"validation": found["validation"], **{k: found["fit"][k] for k in ("steps", "seconds")}})
    print(table(done))


def table(runs: list[Run]) -> str:
    """Runs as a Markdown table, in the order of `VARIANTS`; validation documents, percent."""
    lines = ["| training | passes | steps | seconds | " + " | ".join(SHOWN) + " |", "| --- " * (len(SHOWN) + 4) + "|"]
    known = VARIANTS | GONE
    for run in sorted(runs, key=lambda run: (list(known).index(run["name"]), run["seed"])):
        flags = known[run["name"]]
        cells = [f"`{flags[flags.index('--epochs') + 1]}`", str(run["steps"]), f"{run['seconds']:.0f}"]
        cells += [f"{run['validation'][metric]:.2f}" for metric in SHOWN]
        lines.append(f"| {run['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
