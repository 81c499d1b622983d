"""The settings of votes that are tried, and how they are shown."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError
from .voting import LINEAR, Voting

LABEL_TEMPERATURES = (0.04, 0.07, 0.1, 0.15, 0.25, 0.4)
"""Of label keys, where they have a softmax of their own."""
FIELDS = {
    "search": "search", "depth": "depths", "label_depth": "label_depths", "document_depth": "document_depths",
    "temperature": "temperatures", "votes": "votes", "weight": "weights",
    "softmax": "softmax", "label_temperature": "label_temperatures",
}  # fmt: skip
"""Settings of `Voting`, and the fields of `Grid` that hold their values."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is tried; a field with one value is fixed.

    Args:
        search: ways to search.
        depths: of a joint search.
        label_depths: of a two-sided search.
        document_depths: of a two-sided search.
        temperatures: of the softmax.
        votes: raw and normalized.
        softmax: together and apart. Apart is tried in two-sided searches, with the greatest label depth and the two
            greatest document depths.
        label_temperatures: None tries that of the documents, and of a softmax apart LABEL_TEMPERATURES.
        weights: of the documents' votes, rising.
    """

    search: Sequence[str] = ("joint", "two-sided")
    depths: Sequence[int] = (20, 50, 100, 200)
    label_depths: Sequence[int] = (20, 50, 100, 200)
    document_depths: Sequence[int] = (20, 50, 100, 200)
    temperatures: Sequence[float] = (0.02, 0.04, 0.05, 0.07, 0.1, 0.15)
    votes: Sequence[str] = ("raw", "normalized")
    softmax: Sequence[str] = ("together", "apart")
    label_temperatures: Sequence[float] | None = None
    weights: Sequence[float] = tuple(i / 50 for i in range(51))

    @classmethod
    def fixed(cls, **settings: Any) -> Grid:
        """The grid with some settings of `Voting` fixed, by name; None leaves a setting to be tried.

        A depth says how is searched: ``depth`` goes with a joint search, the other two with a two-sided one.

        Raises:
            SettingsError: a value out of bounds, or depths of another search.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        try:
            Voting(**given)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        for name in ("depth", "label_depth", "document_depth"):
            search = "joint" if name == "depth" else "two-sided"
            if name in given and given.setdefault("search", search) != search:
                raise SettingsError(
                    f"{name} {given[name]} goes with a {search} search alone, and a {given['search']} one is asked "
                    "for; leave one of the two out"
                )
        if given.get("softmax") == "apart" and given.setdefault("search", "two-sided") == "joint":
            raise SettingsError("a softmax apart goes with a two-sided search alone; leave one of the two settings out")
        return cls(**{FIELDS[name]: (value,) for name, value in given.items()})

    def settled(self, voting: Voting) -> Voting:
        """How keys vote when nothing can be tried: fixed settings hold, and all others stay."""
        values: dict[str, Sequence[Any] | None] = {name: getattr(self, field) for name, field in FIELDS.items()}
        return dataclasses.replace(voting, **{name: x[0] for name, x in values.items() if x and len(x) == 1})

    def ways(self, labels: int, documents: int) -> list[Voting]:
        """Every setting but the weight, which is a half, for so many label keys and document keys."""
        label_depths, document_depths = _useful(self.label_depths, labels), _useful(self.document_depths, documents)
        sides: list[dict[str, Any]] = []
        if "joint" in self.search:
            sides += [{"search": "joint", "depth": b} for b in _useful(self.depths, labels + documents)]
        if "two-sided" in self.search:
            depths = itertools.product(label_depths, document_depths)
            sides += [{"search": "two-sided", "label_depth": a, "document_depth": c} for a, c in depths]
        ways: list[dict[str, Any]] = []
        if "together" in self.softmax:
            ways += [{"softmax": "together", "label_temperature": t, **side}
                     for t in self.label_temperatures or (None,) for side in sides]  # fmt: skip
        if "apart" in self.softmax and "two-sided" in self.search:
            sides = [{"label_depth": label_depths[-1], "document_depth": c} for c in document_depths[-2:]]
            ways += [{"softmax": "apart", "search": "two-sided", "label_temperature": t, **side}
                     for t in self.label_temperatures or LABEL_TEMPERATURES for side in sides]  # fmt: skip
        return [
            Voting(weight=0.5, temperature=tau, votes=votes, **way)  # type: ignore[arg-type]
            for votes in self.votes
            for tau in self.temperatures
            for way in ways
        ]


JOINING = Grid(
    search=("two-sided",),
    label_depths=(200,),
    document_depths=(100,),
    temperatures=(0.04, 0.06, 0.09),
    votes=("raw",),
    softmax=("apart",),
    label_temperatures=(0.05, 0.08, 0.12, 0.18, 0.27),
)
"""Settings in which the shares of joined towers are compared."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares of a tower beside those before it that are tried."""


def _useful(depths: Sequence[int], most: int) -> list[int]:
    """Depths up to the first one that takes everything."""
    ordered = sorted(set(depths))
    return [b for i, b in enumerate(ordered) if i == 0 or ordered[i - 1] < most]


def relevant(voting: Voting) -> dict[str, Any]:
    """The settings that matter for this way to search."""
    unused = ("label_depth", "document_depth") if voting.search == "joint" else ("depth",)
    unused = (*unused, *LINEAR, "scoring")
    return {
        name: value for name, value in dataclasses.asdict(voting).items() if name not in unused and value is not None
    }


def flags(settings: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def described(voting: Voting) -> str:
    """How keys vote, as the flags of ``tune`` that would fix it."""
    return "similarity" if voting.scoring == "similarity" else flags(relevant(voting))
