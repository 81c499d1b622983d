"""Label tables of millions of rows: time of a step by number of labels, and memory once every row was touched.

    python benchmarks/tables.py [--labels 25000 131000 1300000] [--dim 384] [--batch-size 512] [--steps 40]

A step draws a pool from generated truth and shortlists, finds the loss of classifier and pool, clips, and updates the
table with `RowAdagrad` (bf16 weights, stochastic rounding) or `RowAdamW`. Each number of labels runs in a process of
its own. Printed: median processor time of a step (of all threads), and anonymous memory before, at its peak and at the
end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def anonymous_gb() -> float:
    """Anonymous memory of this process, GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / 1e9
    return float("nan")


def measure(labels: int, dim: int, batch_size: int, steps: int, optimizer: str, dtype: str) -> dict[str, float]:
    """One number of labels."""
    import numpy as np
    import scipy.sparse as sp
    import torch

    from labelspace.training.batches import PickedBatches
    from labelspace.training.label_heads import LabelTable, xavier_rows
    from labelspace.training.losses import closed_form
    from labelspace.training.losses_fused import linear_loss
    from labelspace.training.optim import RowAdagrad, RowAdamW, clip_gradients
    from labelspace.training.pools import PickSome

    begin = anonymous_gb()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    documents, each = 100_000, 5
    popularity = rng.zipf(1.3, size=(documents, each)) - 1
    often, rare = popularity % 20_000, rng.integers(0, labels, size=(documents, each))
    numbers = np.where(rng.random((documents, each)) < 0.5, often, rare)
    truth = sp.csr_array(
        (np.ones(documents * each, np.float32), numbers.ravel(), np.arange(0, documents * each + 1, each)),
        shape=(documents, labels),
    )
    truth.sort_indices()
    truth.sum_duplicates()
    truth.data[:] = 1
    plan = PickedBatches(truth, np.arange(documents), PickSome(3, 6, 8 * batch_size, 10), batch_size, seed=0)
    plan.shortlists = rng.integers(0, labels, size=(documents, 30)).astype(np.int32)
    table = LabelTable(xavier_rows(labels, dim, torch.bfloat16 if dtype == "bf16" else torch.float32))
    make = {"adagrad": RowAdagrad, "adamw": RowAdamW}[optimizer]
    update = make(table.parameters(), lr=1e-3)
    form = closed_form("decoupled_softmax")
    vectors = torch.randn(documents, dim)
    torch.nn.functional.normalize(vectors, dim=1, out=vectors)

    for start in range(0, labels, 8192):  # touch every row
        rows = table(np.arange(start, min(start + 8192, labels)))
        (rows * 1e-3).sum().backward()
        update.step()
        update.zero_grad(set_to_none=True)
    touched, peak, times, pools = anonymous_gb(), 0.0, [], []
    for batch in plan.epoch(0):
        begun = time.process_time()
        queries = vectors[torch.from_numpy(batch.rows)].requires_grad_()
        assert batch.pool is not None
        positives = torch.from_numpy(batch.positives)
        linear_loss(form, queries, table(batch.pool), positives, temperature=0.05).backward()
        clip_gradients(list(table.parameters()), 1.0)
        update.step()
        update.zero_grad(set_to_none=True)
        times.append(time.process_time() - begun)
        pools.append(len(batch.pool))
        peak = max(peak, anonymous_gb())
        if len(times) == steps:
            break
    picking = []
    for _ in zip(range(10), plan.epoch(1), strict=False):
        picking.append(time.process_time())
    return {
        "labels": labels,
        "pool": statistics.median(pools),
        "step_ms": 1000 * statistics.median(times),
        "pick_ms": 1000 * statistics.median(b - a for a, b in zip(picking[:-1], picking[1:], strict=True)),
        "begin_gb": begin,
        "touched_gb": touched,
        "peak_gb": peak,
    }


def main() -> None:
    """Measure each number of labels in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[25_000, 131_000, 1_300_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--optimizer", choices=["adagrad", "adamw"], default="adagrad")
    parser.add_argument("--dtype", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shared = (given.dim, given.batch_size, given.steps, given.optimizer, given.dtype)
    if given.here:
        print(json.dumps(measure(given.labels[0], *shared)))
        return
    options = [f"--{k.replace('_', '-')}={v}" for k, v in vars(given).items() if k not in ("labels", "here")]
    print("labels   pool   step ms   pick ms   GB before   GB touched   GB peak")
    for labels in given.labels:
        command = [sys.executable, __file__, "--here", "--labels", str(labels), *options]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{found['labels']:>7}  {found['pool']:>5.0f}  {found['step_ms']:>8.1f}  {found['pick_ms']:>8.1f}"
            f"  {found['begin_gb']:>10.2f}  {found['touched_gb']:>11.2f}  {found['peak_gb']:>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
