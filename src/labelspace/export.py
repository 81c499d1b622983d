"""What a model is made of, for other tools: encoder folder, ONNX graph, keys, model card; each whole or not at all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import __version__
from .base.files import atomic_file, atomic_folder
from .encoders import Encoder, StaticEncoder, TransformerEncoder
from .encoders.tokens import tokenize
from .errors import LabelspaceError, MissingExtraError, SettingsError
from .model.model import Model
from .training.config import flat
from .training.label_heads import TwoHeads

logger = logging.getLogger(__name__)

Kind = Literal["sentence-transformers", "onnx", "keys", "card"]
TableFormat = Literal["jsonl", "parquet"]
RECORD, FORMAT = "export.json", "labelspace export"
"""In every folder that is written here: what it is, and what was checked."""
MIN_COSINE = 1 - 1e-4
"""What is exported gives vectors whose cosines to the model's are at least this; else nothing is written."""
MAX_LENGTH_DIFFERENCE = 1e-3
"""Of these vectors, as a share."""
CHECKED_TEXTS = 256
"""Texts of the model that an export is tried on."""
BLOCK = 8192
"""Keys written at a time."""


def export(
    model: Model,
    to: Kind,
    out: str | Path,
    *,
    texts: Sequence[str] | None = None,
    table: TableFormat = "jsonl",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a part of a model for other tools.

    * ``sentence-transformers``: a folder that `SentenceTransformer` opens without code of labelspace, and a model card.
    * ``onnx``: a folder with ``model.onnx`` and ``tokenizer.json``. The graph takes ``input_ids`` and
      ``attention_mask``, (batch, length) int64 of any size, and gives ``sentence_embedding``, (batch, D) float32: query
      vectors, pooled and scaled, through UniDEC's heads where there are any.
    * ``keys``: a folder with ``label_keys.npy`` (L, D), ``labels.*`` (id, text) and, where documents vote,
      ``document_keys.npy`` (N, D) and ``documents.*`` (id, text, label ids); float32, rows of both in one order.
    * ``card``: a README in Markdown with what the manifest tells.

    The first two are tried on texts before they are put in place.

    Args:
        model: what to export; it stays as it is.
        to: one of the four.
        out: the folder, or for ``card`` the file.
        texts: texts to try the export on; None for texts of the model's labels and documents.
        table: of ``keys``: ``jsonl`` or ``parquet``.
        overwrite: replace an earlier export at that place.

    Returns:
        What ``export.json`` holds: among others the number of texts tried, and the smallest cosine.

    Raises:
        SettingsError: an unknown kind, or a place that is taken.
        MissingExtraError: ``onnx`` or ``parquet`` without their packages.
        LabelspaceError: the export does not give the model's vectors, so nothing was written.
    """
    if to not in get_args(Kind):
        raise SettingsError(f"unknown kind {to!r} of export; choose one of: {', '.join(get_args(Kind))}")
    if table not in get_args(TableFormat):
        raise SettingsError(f"unknown table format {table!r}; choose one of: {', '.join(get_args(TableFormat))}")
    out = Path(out).expanduser()
    _require_free(out, to, overwrite)
    record = {"format": FORMAT, "to": to, "labelspace_version": __version__, "dimensions": model.memory.label_keys.dim}
    if to == "card":
        with atomic_file(out) as part:
            part.write_text(card(model), encoding="utf-8")
        return record
    if to in ("sentence-transformers", "onnx") and len(model.towers) > 1:
        raise SettingsError(
            f"the model was joined from {len(model.towers)} models, and {to} takes one encoder; export the models that "
            "it was made of, or train with --companion none"
        )
    if to in ("sentence-transformers", "onnx") and model.encoder.long_documents != "head":
        logger.warning(
            "the model reads long texts by %r, which %s cannot do: texts beyond %d tokens will be cut at their head",
            model.encoder.long_documents, to, model.encoder.max_tokens,
        )  # fmt: skip
    if model.memory.reranks:
        logger.warning(
            "the model's linear classifier on words is not exported, so what is built on %s ranks without it", to
        )
    tried = list(texts) if texts is not None else _own_texts(model)
    if not tried:
        raise SettingsError("there are no texts to try the export on")
    with atomic_folder(out) as folder:
        if to == "keys":
            record |= _write_keys(model, folder, table)
        elif to == "onnx":
            record |= _write_onnx(model, folder, tried)
        else:
            record |= _write_encoder(model, folder, tried)
        (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def _require_free(out: Path, to: Kind, overwrite: bool) -> None:
    """Refuse a place that holds anything but an earlier export, and that too where it is not to be replaced."""
    if to == "card" and out.suffix.lower() != ".md":
        raise SettingsError(f"a card is a file of Markdown, so its name must end in .md, and {out} does not")
    if not out.exists() or (to != "card" and out.is_dir() and not any(out.iterdir())):
        return
    if to != "card" and not _is_export(out):
        raise SettingsError(f"{out} exists and is no export of labelspace; choose another place")
    if not overwrite:
        other = "name" if to == "card" else "place"
        raise SettingsError(f"{out} exists; add --overwrite to replace it, or choose another {other}")


def _is_export(folder: Path) -> bool:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


# Parity


def _own_texts(model: Model) -> list[str]:
    """Texts of labels and documents, evenly over all."""
    keys = model.memory.document_keys
    places = keys.present()
    documents = list(keys.texts(places[_evenly(len(places), CHECKED_TEXTS // 2)]))
    labels = [model.labels.texts[i] for i in _evenly(len(model.labels), CHECKED_TEXTS - len(documents))]
    return [text for text in [*labels, *documents] if text.strip()] or ["a"]


def _evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of the numbers below count, evenly apart; the first and the last are among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _require_parity(
    what: str, vectors: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], texts: Sequence[str]
) -> dict[str, Any]:
    """Refuse vectors that point elsewhere or are longer or shorter; two zero vectors are alike."""
    if vectors.shape != expected.shape:
        raise LabelspaceError(f"{what} gives vectors {vectors.shape}, the model {expected.shape}; nothing was written")
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    lengths_a, lengths_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    products = lengths_a * lengths_b
    cosines = np.where(products > 0, (a * b).sum(axis=1) / np.where(products > 0, products, 1), 0.0)
    cosines[(lengths_a == 0) & (lengths_b == 0)] = 1.0
    off = np.abs(lengths_a - lengths_b) > MAX_LENGTH_DIFFERENCE * lengths_b
    worst = int(np.argmin(cosines))
    if not cosines[worst] >= MIN_COSINE or off.any():  # not a number fails too
        worst = worst if not cosines[worst] >= MIN_COSINE else int(np.argmax(off))
        raise LabelspaceError(
            f"{what} does not give the vectors of the model: cosine {cosines[worst]:.6f} and length "
            f"{lengths_a[worst]:.4f} instead of {lengths_b[worst]:.4f} for the text {texts[worst][:60]!r}; "
            "nothing was written"
        )
    return {"checked_texts": len(texts), "smallest_cosine": float(min(cosines[worst], 1.0))}


def _plain_vectors(model: Model, texts: Sequence[str], heads: bool) -> npt.NDArray[np.float32]:
    """The model's float32 vectors of texts that are cut at their head."""
    encoder = model.encoder
    tokens = tokenize(encoder.tokenizer, texts, dataclasses.replace(encoder.limit, long_documents="head", max_chunks=1))
    vectors = encoder.encode(tokens, precision="float32")
    if heads and model.heads is not None:
        return model.heads.queries(torch.from_numpy(vectors).to(encoder.device)).cpu().numpy()
    return vectors


# sentence-transformers


def _write_encoder(model: Model, folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    if model.heads is not None:
        logger.warning(
            "the two heads of this model cannot be part of a sentence-transformers folder, so it holds the encoder "
            "before them; --to onnx has them inside"
        )
    model.encoder.save(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
        vectors = opened.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
    checked = _require_parity("the folder", vectors, _plain_vectors(model, texts, heads=False), texts)
    (folder / "README.md").write_text(card(model, "sentence-transformers"), encoding="utf-8")
    return {**checked, "dimensions": model.encoder.dim, "max_tokens": model.encoder.max_tokens}


# ONNX


class _Graph(nn.Module):
    """Tokens as a padded matrix -> query vectors."""

    def __init__(self, encoder: Encoder, heads: TwoHeads | None):
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if isinstance(self.encoder, StaticEncoder):
            mask = attention_mask.to(torch.float32)[:, :, None]
            sums = (nn.functional.embedding(input_ids, self.encoder.table) * mask).sum(dim=1)
            vectors = sums / mask.sum(dim=1).clamp(min=1.0)
            if self.encoder.normalize:
                vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp(min=1e-12)
        else:
            assert isinstance(self.encoder, TransformerEncoder)
            features: dict[str, Tensor] = {"input_ids": input_ids, "attention_mask": attention_mask}
            for stage in self.encoder.stages:
                features = stage(features)
            vectors = features["sentence_embedding"]
        return vectors if self.heads is None else self.heads.queries(vectors)


def _write_onnx(model: Model, folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError("the export to ONNX", package, "onnx") from None
    import onnxruntime

    encoder = model.encoder
    if not isinstance(encoder, StaticEncoder | TransformerEncoder):
        raise LabelspaceError(f"an encoder of the kind {type(encoder).__name__} cannot be exported to ONNX")
    expected = _plain_vectors(model, texts, heads=True)
    _trace(model, folder / "model.onnx")
    pad = encoder.pad if isinstance(encoder, TransformerEncoder) else 0
    tokenizer = type(encoder.tokenizer).from_str(encoder.tokenizer.to_str())
    tokenizer.enable_truncation(encoder.max_tokens)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    # one text, then some, then more: sizes that the graph was not traced with
    bounds = sorted({0, 1, *range(min(8, len(texts)), len(texts), 32), len(texts)})
    parts = []
    for start, end in itertools.pairwise(bounds):
        encodings = tokenizer.encode_batch(list(texts[start:end]), add_special_tokens=encoder.special_tokens)
        feed = {
            "input_ids": np.array([e.ids for e in encodings], dtype=np.int64).reshape(end - start, -1),
            "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64).reshape(end - start, -1),
        }
        parts.append(session.run(["sentence_embedding"], feed)[0])
    checked = _require_parity("the ONNX graph", np.concatenate(parts), expected, texts)
    (folder / "README.md").write_text(card(model, "onnx"), encoding="utf-8")
    return {
        **checked,
        "inputs": ["input_ids", "attention_mask"],
        "output": "sentence_embedding",
        "max_tokens": encoder.max_tokens,
        "special_tokens": encoder.special_tokens,
        "heads": model.heads is not None,
    }


def _trace(model: Model, file: Path) -> None:
    """Write the graph of encoder and heads, on the CPU in float32."""
    encoder = model.encoder
    place = encoder.device
    graph = _Graph(encoder, model.heads).eval()
    if isinstance(encoder, TransformerEncoder):
        own_attention = encoder.transformer.config._attn_implementation
        encoder._set_attention("eager")
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    ids = torch.ones((3, 5), dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in ("torch.onnx", "onnxscript")]
    try:
        graph.to("cpu")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for each, _ in levels:
                each.setLevel(logging.ERROR)
            program: Any = torch.onnx.export(
                graph, (ids, mask), dynamo=True, verbose=False,
                input_names=["input_ids", "attention_mask"], output_names=["sentence_embedding"],
                dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            )  # fmt: skip
            program.save(str(file))
    except Exception as error:  # of many types: the architecture has something that cannot be traced
        reason = " ".join(str(error).split())[:300]
        raise LabelspaceError(f"this encoder cannot be traced for ONNX ({reason}); nothing was written") from error
    finally:
        for each, level in levels:
            each.setLevel(level)
        graph.to(place)
        if isinstance(encoder, TransformerEncoder):
            encoder._set_attention(own_attention)


# Keys


def _write_keys(model: Model, folder: Path, table: TableFormat) -> dict[str, Any]:
    memory, labels = model.memory, model.labels
    matrix = memory.keys.detach()
    _write_vectors(folder / "label_keys.npy", len(matrix), matrix.shape[1], lambda start, end: matrix[start:end])
    rows = ({"id": name, "text": text} for name, text in zip(labels.ids, labels.texts, strict=True))
    _write_table(rows, folder / f"labels.{table}", table)
    keys = memory.document_keys
    places = keys.present()
    if len(places):
        file = folder / "document_keys.npy"
        _write_vectors(file, len(places), keys.dim, lambda start, end: keys.vectors(places[start:end]))
        _write_table(_documents(model, places), folder / f"documents.{table}", table)
    return {"labels": len(labels), "documents": memory.n_documents, "scoring": memory.voting.scoring}


def _documents(model: Model, places: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    keys = model.memory.document_keys
    ids, texts = keys.ids(places), keys.texts(places)
    for start in range(0, len(places), BLOCK):
        counts, numbers, _ = model.memory.votes_of(places[start : start + BLOCK], "raw")
        for row, own in enumerate(np.split(numbers, np.cumsum(counts)[:-1]), start):
            yield {"id": ids[row], "text": texts[row], "labels": [model.labels.ids[i] for i in own.tolist()]}


def _write_vectors(file: Path, rows: int, dim: int, block: Callable[[int, int], Tensor]) -> None:
    """Write vectors as float32, a block at a time, since all at once might not fit into memory."""
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, BLOCK):
        out[start : start + BLOCK] = block(start, start + BLOCK).float().cpu().numpy()
    out.flush()


def _write_table(rows: Iterable[dict[str, Any]], file: Path, table: TableFormat) -> None:
    if table == "jsonl":
        with file.open("w", encoding="utf-8") as stream:
            for row in rows:
                line = json.dumps(row, ensure_ascii=False)
                try:
                    stream.write(line + "\n")
                except UnicodeEncodeError:  # half of a surrogate pair
                    stream.write(json.dumps(row) + "\n")
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("writing a Parquet file", "pyarrow", "parquet") from None
    fields = [("id", pa.string()), ("text", pa.string())]
    if file.name.startswith("documents"):
        fields.append(("labels", pa.list_(pa.string())))
    schema = pa.schema(fields)
    whole = ({**row, "text": row["text"].encode("utf-8", "replace").decode()} for row in rows)
    with pq.ParquetWriter(file, schema) as writer:
        while block := list(itertools.islice(whole, BLOCK)):
            writer.write_table(pa.Table.from_pylist(block, schema))


# Card


def card(model: Model, kind: str = "model") -> str:
    """A model card in Markdown, of facts that the model's record holds and no others.

    Args:
        model: what to describe.
        kind: ``model``, ``sentence-transformers`` or ``onnx``: which use is shown.
    """
    info, memory = model.info, model.memory
    data, config = info.get("data", {}), flat(info.get("config", {}))
    options, metrics = data.get("options", {}), info.get("metrics", {}).get("validation", {})
    name = str(data.get("name") or "labels")
    reranked = len(memory.linear) if memory.linear is not None and memory.reranks else 0
    front = ["---", "library_name: " + ("sentence-transformers" if kind == "sentence-transformers" else "labelspace")]
    if options.get("language"):
        front += ["language:", f"- {options['language']}"]
    task = "text-classification" if kind == "model" else "feature-extraction"
    front += ["tags:", "- extreme-classification", "- multi-label", f"pipeline_tag: {task}", "---", ""]
    facts = [
        ("recipe", info.get("recipe")),
        ("encoder", config.get("encoder")),
        ("dimensions", memory.label_keys.dim if kind != "sentence-transformers" else model.encoder.dim),
        ("longest text", f"{model.encoder.max_tokens} tokens, {model.encoder.long_documents} of a longer one"),
        ("labels", f"{len(model.labels):,}"),
        ("documents that vote", f"{memory.n_documents:,}" if memory.n_documents else None),
        ("reranked by words", f"{reranked:,} labels, by a linear classifier" if reranked else None),
        ("training documents", f"{data['documents']:,}" if "documents" in data else None),
        ("data", name if data.get("name") else None),
        ("data fingerprint", data.get("fingerprint")),
        ("language of the labels", options.get("language")),
        ("probabilities", None if model.calibration is None else model.calibration.name),
    ]
    lines = [*front, f"# {name}: labels for texts", "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in facts if value not in (None, "")]
    if metrics:
        lines += ["", "## Metrics", "", "On held-out validation documents, in percent:", "", "| metric | value |"]
        lines += ["| --- | --- |", *(f"| {_cell(key)} | {value:.2f} |" for key, value in metrics.items())]
    settings = {key: value for key, value in config.items() if value is not None}
    if settings:
        lines += ["", "## Settings", "", "| setting | value |", "| --- | --- |"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in settings.items()]
    lines += ["", "## Use", "", *_use(kind, model), "", f"Written by labelspace {__version__}.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _use(kind: str, model: Model) -> list[str]:
    """The code that a card shows."""
    if kind == "sentence-transformers":
        code = ["from sentence_transformers import SentenceTransformer", "", 'model = SentenceTransformer("FOLDER")']
        code += ['vectors = model.encode(["a text"])']
    elif kind == "onnx":
        special = "" if model.encoder.special_tokens else ", add_special_tokens=False"
        code = [
            "import numpy as np, onnxruntime, tokenizers",
            "",
            'tokenizer = tokenizers.Tokenizer.from_file("FOLDER/tokenizer.json")',
            'session = onnxruntime.InferenceSession("FOLDER/model.onnx")',
            f'found = tokenizer.encode_batch(["a text", "another one"]{special})',
            'feed = {"input_ids": np.array([e.ids for e in found]),',
            '        "attention_mask": np.array([e.attention_mask for e in found])}',
            'vectors = session.run(["sentence_embedding"], feed)[0]',
        ]
    else:
        code = ["import labelspace as ls", "", 'model = ls.Model.load("FOLDER")']
        code += ['print(model.predict(["a text"], k=5).named(0))']
    return ["```python", *code, "```"]
