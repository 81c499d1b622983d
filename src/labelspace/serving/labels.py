"""Labels found by what stands in their texts."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from ..types import Labels


def folded(text: str) -> str:
    """A text in one line, without differences of case and spacing.

    Args:
        text: any.
    """
    return " ".join(text.casefold().split())


class LabelSearch:
    """The texts of all labels in one string, which is searched as a whole.

    Args:
        labels: L labels.
    """

    def __init__(self, labels: Labels):
        self.labels = labels
        lines = [folded(text) for text in labels.texts]
        self._starts = [0, *accumulate(len(line) + 1 for line in lines)]  # of the line feed before each
        self._text = "\n" + "\n".join(lines) + "\n"
        self._rows: dict[str, int] | None = None

    def __call__(self, query: str, limit: int) -> list[int]:
        """Numbers of labels: the one of that id, whole texts, beginnings, beginnings of a word, then anything.

        Args:
            query: what is looked for; nothing finds the first labels.
            limit: at most so many.
        """
        wanted = folded(query)
        if not wanted:
            return list(range(min(limit, len(self.labels))))
        if self._rows is None:
            self._rows = {name: row for row, name in enumerate(self.labels.ids)}
        own = self._rows.get(query.strip())
        found = {} if own is None else {own: None}
        for pattern in (f"\n{wanted}\n", f"\n{wanted}", f" {wanted}", wanted):
            at = self._text.find(pattern)
            while at >= 0 and len(found) < limit:
                row = bisect_right(self._starts, at) - 1
                found.setdefault(row)
                at = self._text.find(pattern, self._starts[row + 1])  # the line feed before the next label
            if len(found) >= limit:
                break
        return list(found)[:limit]
