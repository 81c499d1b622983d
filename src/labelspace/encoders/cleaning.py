"""Texts cleaned before they are tokenised, as published code does it; the cleaning is a part of the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

Clean = Literal["letters", "clean_str"]

KEPT: dict[Clean, str] = {"letters": "a-z0-9.", "clean_str": "a-z0-9(),!?'`"}
"""What stays of a text in lower case; what lies between becomes a blank."""
APART = ("n't", "'s", "'ve", "'re", "'d", "'ll"), (",", "!", "(", ")", "?")
"""What ``clean_str`` puts a blank before, and what it puts blanks around (Kim, 2014)."""


def clean_first(tokenizer: Any, clean: Clean) -> None:
    """Let a transformers tokenizer clean texts before anything else.

    Args:
        tokenizer: a fast one; it is changed.
        clean: ``letters`` keeps a to z, digits and the full stop, in lower case (DEXML's notebook, for Wikipedia);
            ``clean_str`` also keeps some signs of punctuation, and puts blanks around them.
    """
    from tokenizers import Regex, normalizers

    backend = tokenizer.backend_tokenizer
    rules = [normalizers.Lowercase(), normalizers.Replace(Regex(f"[^{KEPT[clean]}]+"), " ")]
    if clean == "clean_str":
        rules += [normalizers.Replace(ending, f" {ending}") for ending in APART[0]]
        rules += [normalizers.Replace(sign, f" {sign} ") for sign in APART[1]]
    rules += [normalizers.Replace(Regex(" +"), " "), normalizers.Strip()]
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*rules, *own])


def keep_cleaning(folder: Path, tokenizer: Any) -> None:
    """Let the saved tokenizer be opened as it is: of one with a class of its own only the vocabulary would be read.

    Args:
        folder: where it was saved.
        tokenizer: that was saved.
    """
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": list(tokenizer.model_input_names)}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
