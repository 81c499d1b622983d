"""Transformer encoders: a sentence-transformers model whose own modules do the arithmetic."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..errors import SettingsError
from .cleaning import Clean, clean_first, keep_cleaning
from .fast import packed
from .fast.attention import products_pay
from .fast.inference import FastBert, stamps
from .interface import Encoder, Precision, autocast
from .tokens import Tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Attention = Literal["auto", "packed", "eager", "sdpa"]
KEPT_BYTES = 50
"""Bytes of activations kept for the backward pass, for each token, layer, unit of width and byte of precision. Layers
keep half of it; the rest is what the process grew by beside it, measured over a run."""


def check_positions(config: Any, max_tokens: int | None) -> None:
    """Refuse texts of more tokens than a transformer has positions, by its configuration."""
    positions = getattr(config, "max_position_embeddings", None)
    if max_tokens is not None and positions and max_tokens > positions:
        raise SettingsError(f"max_tokens is {max_tokens}, but the encoder has {positions} positions")


class TransformerEncoder(Encoder):
    """A transformer with pooling, an optional projection and an optional L2 normalisation.

    On a CPU, ``attention="auto"`` packs texts end to end where the architecture allows it (see `packed`). Elsewhere
    texts are padded to the longest of a chunk. There eager attention is used on a CPU while gradients are on, for texts
    of up to a measured length (see `attention`), since the backward pass of scaled-dot-product attention would dominate
    a training step on short texts; in all other cases attention is scaled-dot-product.

    Args:
        model: an opened sentence-transformers model.
        pooling: ``mean`` or ``cls`` replaces the model's own pooling; None keeps it.
        projection: dimensions of a linear layer put after the pooling; None for none.
        normalize: add or remove the L2 normalisation; None keeps the model's own choice.
        dropout: dropout probability set throughout the transformer; ``own`` keeps the model's.
        attention: attention back-end.
        max_tokens: cut texts here; None for the model's own limit.
        clean: clean texts first, see `cleaning.clean_first`; None leaves them as they are.

    Attributes:
        own_dropout: highest dropout probability that the model came with.

    Raises:
        SettingsError: a tokenizer that is not a fast one, a limit beyond the model's positions, or packed attention for
            an architecture or pooling that has none.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        pooling: Literal["mean", "cls"] | None = None,
        projection: int | None = None,
        normalize: bool | None = None,
        dropout: float | Literal["own"] = 0.0,
        attention: Attention = "auto",
        max_tokens: int | None = None,
        clean: Clean | None = None,
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
        self._low = self._fast_now = False
        self._inference: Precision | None = None
        self._fast: FastBert | None = None
        self._kept_low: tuple[list[tuple[int, int]], list[Tensor]] | None = None
        kind = str(transformer.auto_model.config.model_type)
        self._own_attention = str(transformer.auto_model.config._attn_implementation)
        mode = modules[1].pooling_mode if len(modules) > 1 and isinstance(modules[1], Pooling) else "none"
        self._pooling_mode = str(mode)
        self.packable = kind in packed.PLACED and mode in packed.POOLINGS
        if attention == "packed" and not self.packable:
            raise SettingsError(
                f"packed attention is for {', '.join(packed.PLACED)} with {' or '.join(packed.POOLINGS)} pooling, "
                f"not for {kind} with {mode}; choose eager or sdpa"
            )
        if self.packable:
            packed.register()
        after_padding = packed.PLACED.get(kind)
        self._first_position = int(transformer.auto_model.embeddings.padding_idx) + 1 if after_padding else 0
        layers = [module for module in self.stages.modules() if isinstance(module, nn.Dropout)]
        self.own_dropout = max((layer.p for layer in layers), default=0.0)
        for layer in layers:
            layer.p = layer.p if dropout == "own" else dropout
        self.stages.float()
        backend = getattr(transformer.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SettingsError("the encoder has no fast tokenizer; save it with one (use_fast=True) and try again")
        self._cleans = clean is not None
        if clean is not None:
            clean_first(transformer.tokenizer, clean)
        limit = int(transformer.max_seq_length or min(512, transformer.tokenizer.model_max_length))
        check_positions(transformer.auto_model.config, max_tokens)
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

    @property
    def token_table(self) -> nn.Parameter:
        """The vectors of the tokens, (V, H)."""
        weight: nn.Parameter = self.transformer.get_input_embeddings().weight
        return weight

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors (n, D) float32 of n texts, packed or padded to the longest; texts sorted by length are faster."""
        if tokens.texts is not None:
            return self.pool(self(tokens.chunks), tokens)
        if torch.is_grad_enabled() and not (self._low or self._fast_now):
            # the weights will change, and a fused optimiser leaves no mark on what it changes
            self._fast = self._kept_low = None
        if self._packs(tokens):
            if len(tokens) == 0:
                return torch.zeros(0, self.dim, device=self.device)
            return self._packed(packed.inputs(tokens, self._first_position))
        longest = max(1, int(tokens.lengths.max(initial=1)))
        lengths = torch.from_numpy(tokens.lengths)
        mask = torch.arange(longest) < lengths[:, None]
        ids = torch.full((len(tokens), longest), self.pad, dtype=torch.int64)
        ids[mask] = torch.from_numpy(tokens.ids.astype("int64"))
        self._choose_attention(longest)
        features = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device, torch.int64)}
        with self._autocast():
            features = self.stages[0](features)
            features["token_embeddings"] = features["token_embeddings"].float()
            for stage in self.stages[1:]:
                features = stage(features)
        return features["sentence_embedding"].float()

    def each(self, parts: Sequence[Tokens]) -> list[Tensor]:
        """Vectors (n_j, D) of several lists of n_j texts, with one gradient of the token table for all of them.

        Such a gradient is as large as the table, however few tokens there are.
        """
        if not (parts and torch.is_grad_enabled() and all(len(part) and self._packs(part) for part in parts)):
            return super().each(parts)
        self._fast = self._kept_low = None  # as in forward
        inputs = [packed.inputs(part, self._first_position) for part in parts]
        ids = [kwargs.pop("input_ids")[0] for kwargs in inputs]
        vectors = self.transformer.get_input_embeddings()(torch.cat(ids).to(self.device)).split([len(x) for x in ids])
        return [self._packed({**kwargs, "inputs_embeds": x[None]}) for kwargs, x in zip(inputs, vectors, strict=True)]

    @contextlib.contextmanager
    def for_inference(self, precision: Precision, keep: bool) -> Iterator[None]:
        """Weights as inference wants them while the body runs; the arguments are those of `encode`.

        On a CPU BERT and its kin are computed by `FastBert`, in either precision; other weights are bf16 for ``bf16``.
        """
        if self._inference is not None:
            yield
            return
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        fast = self._may_pack and self.device.type == "cpu" and FastBert.fits(self.transformer, dtype)
        replaced: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        if fast and (self._fast is None or self._fast.dtype != dtype or not self._fast.current(self.transformer)):
            self._fast = FastBert(self.transformer, dtype)
        elif not fast and precision == "bf16":
            weights = zip(self.transformer.parameters(), self._low_weights(keep), strict=True)
            replaced = [(parameter, parameter.data, low) for parameter, low in weights]
        try:
            for parameter, _, low in replaced:
                parameter.data = low
            self._fast_now, self._low, self._inference = fast, bool(replaced), precision
            yield
        finally:
            self._fast_now, self._low, self._inference = False, False, None
            for parameter, exact, _ in replaced:
                parameter.data = exact
            if fast and not keep:
                self._fast = None

    def _low_weights(self, keep: bool) -> list[Tensor]:
        """The weights in bf16; those of the last call where they are kept and no weight was changed since."""
        stamp = stamps(self.transformer)
        if keep and self._kept_low is not None and self._kept_low[0] == stamp:
            return self._kept_low[1]
        self._kept_low = None
        low = [parameter.data.to(torch.bfloat16) for parameter in self.transformer.parameters()]
        if keep:
            self._kept_low = stamp, low
        return low

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, "float32" if self._low else self._inference or self.precision)

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations that a backward pass needs for one token."""
        config = self.transformer.config
        size = 2 if self.precision == "bf16" else 4
        return int(KEPT_BYTES * size * config.num_hidden_layers * config.hidden_size)

    @property
    def _may_pack(self) -> bool:
        wanted = self.attention == "packed" or (self.attention == "auto" and self.device.type == "cpu")
        return wanted and self.packable

    def _packs(self, tokens: Tokens) -> bool:
        return self._may_pack and bool(tokens.lengths.min(initial=1))

    def _packed(self, inputs: dict[str, Any]) -> Tensor:
        """Vectors of texts from what `packed.inputs` gives, or from that with the vectors of the tokens."""
        self._set_attention(packed.NAME)
        inputs = {name: x.to(self.device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        with self._autocast():
            if self._fast_now and self._fast is not None:
                hidden = self._fast(inputs["input_ids"][0], inputs["position_ids"][0], inputs["text_runs"])
            else:
                hidden = self.transformer(**inputs).last_hidden_state[0]
            features = {"sentence_embedding": packed.pool(hidden, inputs["text_runs"], self._pooling_mode)}
            for stage in self.stages[2:]:
                features = stage(features)
        return features["sentence_embedding"].float()

    def _choose_attention(self, longest: int) -> None:
        if self.attention != "auto":
            self._set_attention(self.attention)
            return
        heads, size = int(self.transformer.config.num_attention_heads), self.transformer.config.hidden_size
        slow_kernel = self.device.type == "cpu" and torch.is_grad_enabled()
        eager = slow_kernel and products_pay(longest, heads, size // heads, self.device)
        self._set_attention("eager" if eager else "sdpa")

    def _set_attention(self, wanted: str) -> None:
        config = self.transformer.config
        if config._attn_implementation != wanted:
            try:
                self.transformer.set_attn_implementation(wanted)
            except ValueError:  # the architecture offers no other back-end than its own
                self.attention = config._attn_implementation

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder; ``SentenceTransformer(folder)`` gives the same vectors."""
        from sentence_transformers import SentenceTransformer

        self._set_attention(self._own_attention)
        self.stages[0].max_seq_length = self.max_tokens  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SentenceTransformer(modules=list(self.stages), device=str(self.device))
            model.save(str(folder), create_model_card=False)
        if self._cleans:
            keep_cleaning(folder, self.stages[0].tokenizer)
