"""Data sets from files: texts, truth and label space, a held-out part for choices, and texts to predict."""

from .edits import read_documents, read_ids, read_labels
from .loading import fingerprint, load, require_texts
from .split import hold_out
from .texts import TextSource, read_texts

__all__ = [
    "TextSource", "fingerprint", "hold_out", "load", "read_documents", "read_ids", "read_labels", "read_texts",
    "require_texts",
]  # fmt: skip
