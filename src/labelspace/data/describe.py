"""What a data set holds, and what training on it will take; no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.machine import available_memory, gigabytes, minilm_folder
from ..evaluation.metrics import frequency_groups, label_counts
from ..types import Corpus, Dataset

SAMPLE_TEXTS = 20_000
"""Texts whose length is measured."""


def describe(data: Dataset) -> dict[str, Any]:
    """Counts, density, lengths, label frequencies and estimated memory of a data set, as JSON-ready values."""
    counts = label_counts(data.train.targets)
    groups = frequency_groups(data.train.targets)
    report: dict[str, Any] = {"name": data.name, "options": data.options, "labels": len(data.labels)}
    for split in ("train", "valid", "test"):
        corpus: Corpus | None = getattr(data, split)
        if corpus is None:
            report[split] = None
            continue
        sizes = np.diff(corpus.targets.indptr)
        report[split] = {
            "documents": len(corpus),
            "without_labels": int((sizes == 0).sum()),
            "labels_per_document": round(float(sizes.mean()), 3) if len(sizes) else 0.0,
            "most_labels": int(sizes.max(initial=0)),
            "filter_pairs": None if corpus.filter_pairs is None else len(corpus.filter_pairs),
            "filter_file": None if corpus.filter_source is None else str(corpus.filter_source),
        }
    report["valid"]["held_out_of_train"] = len(data.valid_rows)
    seen = counts[counts > 0]
    report["label_frequency"] = {
        "documents_per_label": round(float(counts.mean()), 3) if len(counts) else 0.0,
        "median_of_seen": float(np.median(seen)) if len(seen) else 0.0,
        "head": int((groups == 0).sum()),
        "torso": int((groups == 1).sum()),
        "tail": int((groups == 2).sum()),
        "unseen_in_train": int((counts == 0).sum()),
    }
    report["token_unit"], count = _token_counter()
    texts = {"documents": data.train.texts, "labels": data.labels.texts}
    report["tokens"] = {name: _lengths(some, count) for name, some in texts.items()}
    report["training_memory_bytes"] = _training_memory(data)
    report["available_memory_bytes"] = available_memory()
    return report


def render(report: dict[str, Any]) -> str:
    """What `describe` returned, as text for a terminal."""
    options = ", ".join(f"{k} {v}" for k, v in report["options"].items() if v is not None)
    lines = [f"{report['name']} ({options})", ""]
    for split in ("train", "valid", "test"):
        part = report[split]
        if part is None:
            lines.append(f"{split:<6} none")
            continue
        note = f", {part['without_labels']} without labels" if part["without_labels"] else ""
        if split == "valid" and part.get("held_out_of_train"):
            note += ", held out of train"
        if part["filter_pairs"] is not None:
            note += f", {part['filter_pairs']} filter pairs from {Path(part['filter_file']).name}"
        lines.append(
            f"{split:<6} {part['documents']:>10,} documents, {part['labels_per_document']:.2f} labels a document "
            f"(at most {part['most_labels']}){note}"
        )
    frequency = report["label_frequency"]
    lines += [
        f"labels {report['labels']:>10,}, {frequency['documents_per_label']:.2f} training documents a label "
        f"(median of those seen {frequency['median_of_seen']:g})",
        f"       by frequency, a third of the pairs each: {frequency['head']:,} head, {frequency['torso']:,} torso, "
        f"{frequency['tail']:,} tail; {frequency['unseen_in_train']:,} in no training document",
        "",
        f"lengths in {report['token_unit']} (mean, median, 99th percentile, longest)",
    ]
    for kind, values in report["tokens"].items():
        lines.append(f"  {kind:<10} {values['mean']:.1f}  {values['median']:g}  {values['p99']:g}  {values['longest']}")
    lines += ["", "memory of training against all labels, beside the data (estimate)"]
    lines += [f"  {name:<10} {gigabytes(count)}" for name, count in report["training_memory_bytes"].items()]
    if report["available_memory_bytes"] is not None:
        lines.append(f"  available  {gigabytes(report['available_memory_bytes'])}")
    return "\n".join(lines)


def _token_counter() -> tuple[str, Callable[[list[str]], list[int]]]:
    """What lengths are counted in, and what counts them."""
    folder = minilm_folder()
    if folder is None:
        unit = "words (install labelspace[minilm] to count word pieces)"
        return unit, lambda texts: [len(text.split()) for text in texts]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [len(e.ids) for e in tokenizer.encode_batch_fast(clean, add_special_tokens=False)]

    return "word pieces of minilm", count


def _lengths(texts: Sequence[str], count: Callable[[list[str]], list[int]]) -> dict[str, float]:
    rows = np.arange(len(texts))
    if len(rows) > SAMPLE_TEXTS:
        rows = np.random.default_rng(0).choice(len(texts), SAMPLE_TEXTS, replace=False)
    lengths = np.array(count([texts[i] for i in rows.tolist()]) or [0], dtype=np.int64)
    return {
        "mean": round(float(lengths.mean()), 2),
        "median": float(np.median(lengths)),
        "p99": float(np.percentile(lengths, 99)),
        "longest": int(lengths.max()),
    }


def _training_memory(data: Dataset) -> dict[str, int]:
    """Estimates for the default batch of ``static`` and of ``minilm``, as the recipe makes them."""
    from ..training.required_memory import Shape, training_bytes
    from ..training.settings import DexmlSettings

    folder = minilm_folder()
    config = json.loads((folder / "config.json").read_text()) if folder else {}
    dim = int(config.get("hidden_size", 384))
    settings = DexmlSettings()
    words = {word for text in data.labels.texts for word in text.casefold().split()}
    table = int(config.get("vocab_size", 30_522)) + min(settings.encoding.max_words, len(words) + len(data.train) // 8)
    static = Shape(weight_bytes=4 * dim * table, dim=dim)
    transformer = Shape(
        weight_bytes=4 * 22_700_000, dim=dim, layers=int(config.get("num_hidden_layers", 6)), hidden=dim,
        heads=int(config.get("num_attention_heads", 12)), max_tokens=128,
    )  # fmt: skip
    return {
        "static": training_bytes(settings, static, len(data.labels)),
        "minilm": training_bytes(settings, transformer, len(data.labels)),
    }
