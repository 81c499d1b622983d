"""What a word is, and which texts are equal, in every script."""

from __future__ import annotations

import unicodedata

import regex

WORD = r"\p{L}\p{M}\p{N}\u200c\u200d"
r"""Signs that a word is made of: letters, the marks above, below and around them, numbers, and the two joiners.

Python's ``\w`` holds no marks, so that words of Indic scripts, of pointed Hebrew and Arabic, and of any text in
Unicode's form NFD would fall to pieces.
"""
UNSEEN = regex.compile("[\u200b\u2060\ufeff\u00ad]")
"""Zero-width space, word joiner, byte order mark and soft hyphen; joiners of Persian and Indic scripts do count."""
_GAPS = regex.compile(f"[^{WORD}]+")
_FIRST_WORDS = 16


def composed(text: str) -> str:
    """A text in Unicode's form NFC, in which texts are compared and their words are counted."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def form(name: str) -> str:
    """A label's name as names are compared: in form NFC, without signs that are not seen."""
    return name if name.isascii() else composed(UNSEEN.sub("", name))


def plain_words(text: str) -> str:
    """A text without case, punctuation and extra white space; texts where this is equal are held out together."""
    return " ".join(_GAPS.split(composed(text))).strip().casefold()


def first_words(text: str) -> str:
    """The beginning of `plain_words`, which is found faster."""
    words = _GAPS.split(composed(text), maxsplit=_FIRST_WORDS + 1)
    start = not words[0]
    return " ".join(words[start : start + _FIRST_WORDS]).strip().casefold()
