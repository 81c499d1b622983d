"""Transformer encoders: a sentence-transformers model whose own modules do the arithmetic."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..data.tokens import Tokens
from ..errors import SettingsError
from .interface import Encoder, autocast

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Attention = Literal["auto", "eager", "sdpa"]
EAGER_UP_TO = 128
"""Longest text, in tokens, for which eager attention is chosen when training on a CPU."""


class TransformerEncoder(Encoder):
    """A transformer with pooling, an optional projection and an optional L2 normalisation.

    On a CPU the backward pass of scaled-dot-product attention dominates a training step on short texts, so with
    ``attention="auto"`` eager attention is used there while gradients are on, for texts of up to 128 tokens (its
    memory grows with the square of the length), and scaled-dot-product attention everywhere else.

    Args:
        model: an opened sentence-transformers model.
        pooling: ``mean`` or ``cls`` replaces the model's own pooling; None keeps it.
        projection: dimensions of a linear layer put after the pooling; None for none.
        normalize: add or remove the L2 normalisation; None keeps the model's own choice.
        dropout: dropout probability set throughout the transformer.
        attention: attention back-end.
        max_tokens: cut texts here; None for the model's own limit.

    Raises:
        SettingsError: a tokenizer that is not a fast one, or a limit beyond the model's positions.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        pooling: Literal["mean", "cls"] | None = None,
        projection: int | None = None,
        normalize: bool | None = None,
        dropout: float = 0.0,
        attention: Attention = "auto",
        max_tokens: int | None = None,
    ):
        super().__init__()
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

        modules = list(model.children())
        transformer = modules[0]
        if not hasattr(transformer, "auto_model"):
            raise SettingsError(f"the encoder's first module is {type(transformer).__name__}, not a transformer")
        hidden = int(transformer.auto_model.config.hidden_size)
        if pooling is not None:
            modules = [m for m in modules if not isinstance(m, Pooling)]
            modules.insert(1, Pooling(hidden, pooling_mode=pooling))
        if projection is not None:
            width = model.get_embedding_dimension() if pooling is None else hidden
            dense = Dense(int(width or hidden), projection, bias=False, activation_function=nn.Identity())
            place = next((i for i, m in enumerate(modules) if isinstance(m, Normalize)), len(modules))
            modules.insert(place, dense)
        if normalize is not None:
            modules = [m for m in modules if not isinstance(m, Normalize)]
            if normalize:
                modules.append(Normalize())
        self.stages = nn.ModuleList(modules)
        self.attention: Attention = attention
        for module in self.stages.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        self.stages.float()
        backend = getattr(transformer.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SettingsError("the encoder has no fast tokenizer; save it with one (use_fast=True) and try again")
        limit = int(transformer.max_seq_length or min(512, transformer.tokenizer.model_max_length))
        positions = getattr(transformer.auto_model.config, "max_position_embeddings", None)
        if max_tokens is not None and positions and max_tokens > positions:
            raise SettingsError(f"max_tokens is {max_tokens}, but the encoder has {positions} positions")
        self.tokenizer = type(backend).from_str(backend.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.max_tokens = max_tokens or limit
        self.normalize = isinstance(modules[-1], Normalize)
        self.special_tokens = True
        self.pad = int(transformer.tokenizer.pad_token_id or 0)
        with torch.no_grad():
            self.dim = int(self(self.tokenize(["a"])).shape[1])

    @property
    def transformer(self) -> Any:
        """The transformers model itself."""
        return self.stages[0].auto_model

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors of the texts, padded to the longest of them.

        Args:
            tokens: n texts.

        Returns:
            (n, D) float32.
        """
        if tokens.texts is not None:
            return self.pool(self(tokens.chunks), tokens)
        device = self.device
        longest = max(1, int(tokens.lengths.max(initial=1)))
        lengths = torch.from_numpy(tokens.lengths)
        mask = torch.arange(longest) < lengths[:, None]
        ids = torch.full((len(tokens), longest), self.pad, dtype=torch.int64)
        ids[mask] = torch.from_numpy(tokens.ids.astype("int64"))
        self._choose_attention(longest)
        features = {"input_ids": ids.to(device), "attention_mask": mask.to(device, torch.int64)}
        with autocast(device, self.precision):
            for stage in self.stages:
                features = stage(features)
        return features["sentence_embedding"].float()

    def _choose_attention(self, longest: int) -> None:
        wanted = self.attention
        if wanted == "auto":
            eager = self.device.type == "cpu" and torch.is_grad_enabled() and longest <= EAGER_UP_TO
            wanted = "eager" if eager else "sdpa"
        config = self.transformer.config
        if config._attn_implementation != wanted:
            try:
                self.transformer.set_attn_implementation(wanted)
            except ValueError:  # the architecture offers no other back-end than its own
                self.attention = config._attn_implementation

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder; ``SentenceTransformer(folder)`` gives the same vectors.

        Args:
            folder: an existing, empty folder.
        """
        from sentence_transformers import SentenceTransformer

        self.stages[0].max_seq_length = self.max_tokens  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SentenceTransformer(modules=list(self.stages), device=str(self.device))
            model.save(str(folder), create_model_card=False)
