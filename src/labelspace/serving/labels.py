"""Labels found by what stands in their texts."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from ..types import Labels


def folded(text: str) -> str:
    """A text in one line, without differences of case and spacing."""
    return " ".join(text.casefold().split())


class LabelSearch:
    """The texts of all labels in one string: a search of it costs no loop over labels."""

    def __init__(self, labels: Labels):
        self.labels = labels
        lines = [folded(text) for text in labels.texts]
        self._starts = [0, *accumulate(len(line) + 1 for line in lines)]  # of the line feed before each
        self._text = "\n" + "\n".join(lines) + "\n"
        self._rows: dict[str, int] | None = None

    def __call__(self, query: str, limit: int) -> list[int]:
        """Numbers of labels: the one of that id, whole texts, beginnings, beginnings of a word, then anything.

        An empty query finds the first labels.
        """
        pattern = folded(query)
        if not pattern:
            return list(range(min(limit, len(self.labels))))
        if self._rows is None:
            self._rows = {name: row for row, name in enumerate(self.labels.ids)}
        own = self._rows.get(query.strip())
        rows = {} if own is None else {own: None}  # a set that keeps the order
        for part in (f"\n{pattern}\n", f"\n{pattern}", f" {pattern}", pattern):
            at = self._text.find(part) if len(rows) < limit else -1
            while at >= 0 and len(rows) < limit:
                row = bisect_right(self._starts, at) - 1
                rows.setdefault(row)
                at = self._text.find(part, self._starts[row + 1])  # the line feed before the next label
        return list(rows)[:limit]
