"""Charts as SVG, written by hand: lines, bars with intervals, reliability, differences; strings in, a string out.

A chart is `WIDTH` units wide, which is about its width in pixels on a phone, so its text can be read there. It takes
its colours from the page around it, or from `alone`: series n has the class ``sN``, counted from 0 and again from 0
after `SERIES`. Series also differ in dashes and markers, for print and for eyes that tell few colours apart.

Every chart takes a name, with which the ids in it start and which must be its own in the page; a title of a few words;
and a text about what it shows, for those who do not see it. ``axes`` say what is measured across and upwards.

>>> ticks(0, 43)
[0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
>>> number(12345.0), number(0.25), number(-3.0)
('12,345', '0.25', '-3')
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape as _escape

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 44
SERIES = 6
"""Series that differ in colour; of later ones the dashes differ."""

COLOURS = """  --ink: #1b2430; --soft: #566273; --line: #d5dbe3; --up: #18794e; --down: #b3261e;
  --s0: #1f5fbf; --s1: #c2570c; --s2: #18794e; --s3: #8e44ad; --s4: #0f7f8f; --s5: #a3425f;
"""
"""Colours of charts on white, as CSS for the root of a page."""
STYLE = """.chart text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .axis, .chart .zero { stroke: var(--soft); stroke-width: 1; }
.chart .even { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; }
.l { fill: none; stroke-width: 2; }
.d1 { stroke-dasharray: 6 3; } .d2 { stroke-dasharray: 2 3; } .d3 { stroke-dasharray: 8 3 2 3; }
.l.s0 { stroke: var(--s0); } .l.s1 { stroke: var(--s1); } .l.s2 { stroke: var(--s2); }
.l.s3 { stroke: var(--s3); } .l.s4 { stroke: var(--s4); } .l.s5 { stroke: var(--s5); }
.m.s0, .b.s0 { fill: var(--s0); } .m.s1, .b.s1 { fill: var(--s1); } .m.s2, .b.s2 { fill: var(--s2); }
.m.s3, .b.s3 { fill: var(--s3); } .m.s4, .b.s4 { fill: var(--s4); } .m.s5, .b.s5 { fill: var(--s5); }
.whisker { fill: none; stroke: var(--ink); stroke-width: 1.3; }
.up .whisker { stroke: var(--up); } .down .whisker { stroke: var(--down); } .none .whisker { stroke: var(--soft); }
.up .point { fill: var(--up); } .down .point { fill: var(--down); } .none .point { fill: var(--soft); }
"""
"""How charts are drawn, as CSS."""

Points = Sequence[tuple[float, float]]
Intervals = Sequence[tuple[float, float] | None]

_BARRED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


def clean(text: str) -> str:
    """A text that can stand in a page: white space as single blanks, nothing that HTML or UTF-8 cannot hold."""
    whole = " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")
    whole = _BARRED.sub("\ufffd", whole)
    return "".join("\ufffd" if ord(c) > 0xFFFF and ord(c) & 0xFFFE == 0xFFFE else c for c in whole)


def escape(text: str) -> str:
    """A text as HTML, also between quotes."""
    return _escape(clean(text), quote=True)


def number(value: float) -> str:
    """A finite number as an axis shows it."""
    rounded = round(value, 6)
    return f"{int(rounded):,}" if rounded == int(rounded) else f"{rounded:g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, about so many steps, the first at or below ``low`` and the last at or above ``high``."""
    span = high - low
    if not span > 0:
        span = abs(high) or 1.0
        low, high = low - span / 2, high + span / 2
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next(times for times in (1, 2, 5, 10) if step * times * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def swatch(series: int) -> str:
    """The line and marker of a series, for a legend."""
    line = f'<line class="{_line(series)}" x1="1" y1="6" x2="25" y2="6"/>{_marker(series, 13, 6)}'
    return f'<svg class="swatch" width="26" height="12" viewBox="0 0 26 12" aria-hidden="true">{line}</svg>'


def alone(chart: str, names: Sequence[str] = ()) -> str:
    """A chart as an SVG file of its own, with its colours, and below it a legend of its series, if these have names."""
    height = float(re.findall(r'viewBox="0 0 \d+ ([\d.]+)"', chart)[0])
    drawn = chart.replace("<svg ", f'<svg x="0" y="0" width="{WIDTH}" height="{_round(height)}" ', 1)
    for i, name in enumerate(names):
        y = height + 4 + 18 * i
        label = f'<text x="34" y="10">{escape(name)}</text>'
        drawn += f'<g class="chart" transform="translate({LEFT} {_round(y)})">{swatch(i)}{label}</g>'
    height += 8 + 18 * len(names) if names else 0
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_round(height)}" width="{2 * WIDTH}">'
        f"<style>:root {{\n{COLOURS}}}\n{STYLE}</style>"
        f'<rect width="{WIDTH}" height="{_round(height)}" fill="#ffffff"/>{drawn}</svg>\n'
    )


def lines(name: str, title: str, about: str, axes: tuple[str, str], series: Sequence[Points]) -> str:
    """Lines through the points (x, y) of each series, each with a marker; an empty series is not drawn."""
    xs, ys = zip(*(point for points in series for point in points), strict=True)
    plot = _Plot(ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 5))
    return _chart(name, title, about, [plot.grid(axes), *_polylines(plot, series)])


def _polylines(plot: _Plot, series: Sequence[Points]) -> list[str]:
    """Each series as a line with its markers."""
    parts = []
    for i, points in enumerate(series):
        if points:
            at = [(plot.x(x), plot.y(y)) for x, y in points]
            path = " ".join(f"{_round(x)},{_round(y)}" for x, y in at)
            parts.append(f'<polyline class="{_line(i)}" points="{path}"/>')
            parts += [_marker(i, x, y) for x, y in at]
    return parts


def reliability(name: str, title: str, about: str, axes: tuple[str, str], series: Sequence[Points]) -> str:
    """Bins (predicted probability, observed share) of each series, beside the diagonal where the two are equal."""
    top = max((value for points in series for point in points for value in point), default=1.0)
    scale = [tick for tick in ticks(0.0, min(1.0, max(top, 0.05)), 5) if tick <= 1.0 + 1e-9]
    plot = _Plot(scale, scale)
    (x1, y1), (x2, y2) = ((_round(plot.x(end)), _round(plot.y(end))) for end in (scale[0], scale[-1]))
    diagonal = f'<line class="even" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
    return _chart(name, title, about, [plot.grid(axes), diagonal, *_polylines(plot, series)])


def bars(
    name: str,
    title: str,
    about: str,
    axes: tuple[str, str],
    groups: Sequence[str],
    series: Sequence[Sequence[float]],
    intervals: Sequence[Intervals] | None = None,
) -> str:
    """Bars from 0 on, side by side in groups, with intervals where there are some.

    ``groups`` are their names. A series has a height, not below 0, and perhaps an interval for each.
    """
    ends = [end for row in intervals or [] for pair in row if pair is not None for end in pair]
    up = ticks(0.0, max([*(value for row in series for value in row), *ends, 0.0]) or 1.0)
    plot = _Plot([], up)
    wide = (WIDTH - LEFT - RIGHT) / len(groups)
    each = wide * 0.8 / len(series)
    parts = [plot.grid(axes)]
    for i, row in enumerate(series):
        for j, value in enumerate(row):
            x, y = LEFT + wide * (j + 0.1) + each * i, plot.y(value)
            size = f'width="{_round(max(each * 0.9, 0.5))}" height="{_round(plot.y(0.0) - y)}"'
            label = f"<title>{escape(groups[j])}: {number(round(value, 2))}</title>"
            parts.append(f'<rect class="b s{i % SERIES}" x="{_round(x)}" y="{_round(y)}" {size}>{label}</rect>')
            pair = None if intervals is None else intervals[i][j]
            if pair is not None:
                middle = x + each * 0.45
                parts.append(_whisker(middle, plot.y(pair[0]), middle, plot.y(pair[1]), min(each * 0.2, 4.0)))
    skip = math.ceil(max(len(group) for group in groups) * 7.0 / wide)  # names that would run into each other
    for j, group in enumerate(groups):
        if j % skip == 0:
            at = _round(LEFT + wide * (j + 0.5))
            parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(group)}</text>')
    return _chart(name, title, about, parts)


def differences(name: str, title: str, about: str, axis: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Differences (name, value, low and high end of its interval), one below the other, beside a line at 0."""
    left, row_height = 86, 22
    height = TOP + row_height * len(rows) + BOTTOM
    across = ticks(min(0.0, *(row[2] for row in rows)), max(0.0, *(row[3] for row in rows)), 5)
    plot = _Plot(across, [], left=left, height=height)
    zero = _round(plot.x(0.0))
    zero_line = f'<line class="zero" x1="{zero}" y1="{TOP}" x2="{zero}" y2="{height - BOTTOM}"/>'
    parts = [plot.grid((axis, "")), zero_line]
    for i, (label, value, low, high) in enumerate(rows):
        y = TOP + row_height * (i + 0.5)
        kind = "up" if low > 0 else "down" if high < 0 else "none"
        parts.append(f'<text x="{left - 8}" y="{_round(y + 4)}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<g class="{kind}">{_whisker(plot.x(low), y, plot.x(high), y, 4.0)}')
        parts.append(f'<circle class="point" cx="{_round(plot.x(value))}" cy="{_round(y)}" r="4"/></g>')
    return _chart(name, title, about, parts, height)


class _Plot:
    """The area inside the axes: values to places, and the axes themselves; no ticks, no scale."""

    def __init__(self, across: list[float], up: list[float], left: float = LEFT, height: float = HEIGHT):
        self.across, self.up, self.left, self.bottom = across, up, left, height - BOTTOM

    def x(self, value: float) -> float:
        low, high = self.across[0], self.across[-1]
        return self.left + (WIDTH - RIGHT - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.up[0], self.up[-1]
        return self.bottom - (self.bottom - TOP) * (value - low) / (high - low)

    def grid(self, axes: tuple[str, str]) -> str:
        parts = []
        for tick in self.up:
            y = _round(self.y(tick))
            parts.append(f'<line class="grid" x1="{self.left}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>')
            at = _round(self.y(tick) + 4)
            parts.append(f'<text x="{self.left - 6}" y="{at}" text-anchor="end">{_briefly(tick)}</text>')
        for tick in self.across:
            x = _round(self.x(tick))
            if self.up:
                parts.append(f'<line class="axis" x1="{x}" y1="{self.bottom}" x2="{x}" y2="{self.bottom + 4}"/>')
            else:
                parts.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{self.bottom}"/>')
            last = tick == self.across[-1] and len(number(tick)) > 4  # which would be cut off in the middle
            at, anchor = (str(WIDTH - 1), "end") if last else (x, "middle")
            parts.append(f'<text x="{at}" y="{self.bottom + 16}" text-anchor="{anchor}">{number(tick)}</text>')
        bottom, middle = self.bottom, _round((self.left + WIDTH - RIGHT) / 2)
        parts.append(f'<line class="axis" x1="{self.left}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>')
        parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(axes[0])}</text>')
        if axes[1]:
            at = _round((TOP + bottom) / 2)
            turn = f'text-anchor="middle" transform="rotate(-90 11 {at})"'
            parts.append(f'<text x="11" y="{at}" {turn}>{escape(axes[1])}</text>')
        return "".join(parts)


def _chart(name: str, title: str, about: str, parts: list[str], height: float = HEIGHT) -> str:
    head = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(about)}</desc>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {_round(height)}" role="img" '
        f'aria-labelledby="{name}-title" aria-describedby="{name}-about">{head}{"".join(parts)}</svg>'
    )


def _line(series: int) -> str:
    return f"l s{series % SERIES} d{(series + series // SERIES) % 4}"


def _marker(series: int, x: float, y: float) -> str:
    kind, style = series % 4, f'class="m s{series % SERIES}"'
    if kind == 0:
        return f'<circle {style} cx="{_round(x)}" cy="{_round(y)}" r="3.2"/>'
    if kind == 1:
        return f'<rect {style} x="{_round(x - 3)}" y="{_round(y - 3)}" width="6" height="6"/>'
    corners = (
        [(0.0, -4.0), (4.0, 3.0), (-4.0, 3.0)] if kind == 2 else [(0.0, -4.2), (4.2, 0.0), (0.0, 4.2), (-4.2, 0.0)]
    )
    return f'<polygon {style} points="{" ".join(f"{_round(x + a)},{_round(y + b)}" for a, b in corners)}"/>'


def _whisker(x1: float, y1: float, x2: float, y2: float, half: float) -> str:
    """A line between two points of equal x or y, with a short bar across each end."""
    a, b = (half, 0.0) if x1 == x2 and y1 != y2 else (0.0, half)
    path = f"M{_round(x1)} {_round(y1)}L{_round(x2)} {_round(y2)}"
    for x, y in ((x1, y1), (x2, y2)):
        path += f"M{_round(x - a)} {_round(y - b)}L{_round(x + a)} {_round(y + b)}"
    return f'<path class="whisker" d="{path}"/>'


def _briefly(value: float) -> str:
    """A number in few characters, for the narrow place beside the vertical axis."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return number(value)


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
