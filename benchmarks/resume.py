"""Kill training at random moments, resume it, and compare the final weights with those of one unbroken run.

    python benchmarks/resume.py DATA [--kills 3] [--encoders static FOLDER] [--seed 0] [-- OPTIONS OF TRAIN]

Every run is a ``labelspace train`` of its own. Prints one line for each encoder and each way of taking negatives, and
ends with exit code 1 when any weight differs by a bit.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPARED = ("encoder/**/*.safetensors", "memory/labels-1.safetensors")


def command(data: Path, out: Path, resume: bool, options: list[str]) -> list[str]:
    """The command line of a run."""
    where = ["--resume", str(out)] if resume else ["--out", str(out)]
    return [sys.executable, "-m", "labelspace", "train", str(data), *where, "--quiet", *([] if resume else options)]


def digests(model: Path) -> dict[str, str]:
    """Hashes of the weights of a model."""
    files = sorted(p for pattern in COMPARED for p in model.glob(pattern))
    return {str(p.relative_to(model)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def broken_run(data: Path, out: Path, options: list[str], kills: int, seconds: float, rng: random.Random) -> list[str]:
    """Run, kill with SIGKILL at random moments, resume; returns what was seen at each kill."""
    seen, resume = [], False
    while True:
        process = subprocess.Popen(command(data, out, resume, options), stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(0.1, 0.6) * seconds if len(seen) < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            folder = out.with_name(f"{out.name}.checkpoint")
            steps = [p.name for p in folder.glob("step-*")] or ["no checkpoint"]
            seen.append(steps[0])
            resume = (folder / "run.json").exists()
            continue
        if process.returncode:
            raise SystemExit(f"a run ended with exit code {process.returncode}")
        return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--encoders", nargs="+", default=["static"])
    parser.add_argument("--seed", type=int, default=0)
    mine, _, others = (" ".join(["", *sys.argv[1:], ""])).partition(" -- ")
    given = parser.parse_args(mine.split())
    rng, different = random.Random(given.seed), False
    with tempfile.TemporaryDirectory() as scratch:
        for encoder in given.encoders:
            for negatives in ("all", "mined"):
                options = ["--encoder", encoder, "--negatives", negatives, "--checkpoint-minutes", "0.001"]
                options += others.split()
                whole, broken = Path(scratch, "whole"), Path(scratch, "broken")
                for folder in (whole, broken):
                    shutil.rmtree(folder, ignore_errors=True)
                begun = time.monotonic()
                subprocess.run(command(given.data, whole, False, options), check=True, stdout=subprocess.DEVNULL)
                seconds = time.monotonic() - begun
                seen = broken_run(given.data, broken, options, given.kills, seconds, rng)
                equal = digests(whole) == digests(broken)
                different |= not equal
                verdict = "bit-equal" if equal else "DIFFERENT"
                print(f"{encoder}, {negatives}: {verdict}; {seconds:.0f} s unbroken; killed after {', '.join(seen)}")
    raise SystemExit(different)


if __name__ == "__main__":
    main()
