"""The report's figures have this in common: an SVG that speaks, and axes from numbers to pixels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element

from optimizer.show.page import tag

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 64, 16, 30, 44
"""Pixels of a figure and its margins."""
TICKS = 4
"""At least about so many marks on an axis, and never three times as many."""


@dataclass(frozen=True)
class Axis:
    """One direction of a figure: numbers from `low` to `high` lie at `start` to `end` pixels."""

    label: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a number; what lies beyond an end of the axis is put there."""
        low, high, here = (self._scaled(v) for v in (self.low, self.high, value))
        share = min(max((here - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round numbers to mark: steps of 1, 2 or 5; 1 and 3 of a decade on log axes."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [factor * 10.0**decade for decade in decades for factor in (1, 3)]
            return [value for value in marks if self.low <= value <= self.high]
        rough = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = max(factor * power for factor in (1, 2, 5) if factor * power <= rough * 1.001)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value


def spanning(
    label: str, values: Iterable[float], start: float, end: float, *, log: bool = False
) -> Axis:
    """Return an axis that holds all the values, with a twentieth of their span to spare."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    if log:
        factor = max((high / low) ** 0.05, 1.05)
        return Axis(label, low / factor, high * factor, start, end, log=True)
    spare = (high - low) / 20 or max(abs(high) / 20, 1e-3)
    return Axis(label, low - spare, high + spare, start, end)


def frame(x: Axis, y: Axis) -> list[Element]:
    """Return the grid lines, numbers and names of two axes; y runs upwards."""
    parts = across(x, y.start, y.end)
    for value in y.ticks():
        here = y.at(value)
        text = _text(value, y.ticks())
        parts.append(tag("line", class_="grid", x1=x.start, x2=x.end, y1=here, y2=here))
        parts.append(tag("text", text, class_="soft", x=x.start - 6, y=here + 4, text_anchor="end"))
    parts.append(tag("text", y.label, class_="soft", x=4, y=y.end - 10))
    return parts


def across(x: Axis, bottom: float, top: float) -> list[Element]:
    """Return the grid lines from bottom to top, numbers and the name of an axis across."""
    parts = []
    for value in x.ticks():
        here = x.at(value)
        parts.append(tag("line", class_="grid", x1=here, x2=here, y1=bottom, y2=top))
        text = _text(value, x.ticks())
        parts.append(tag("text", text, class_="soft", x=here, y=bottom + 16, text_anchor="middle"))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", x.label, class_="soft", x=middle, y=bottom + 34, text_anchor="middle"))
    return parts


def figure(
    title: str, about: str, width: float, height: float, *inside: Iterable[Element]
) -> Element:
    """Return an SVG that reads as an image with a title and a text alternative."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", about),
        *inside,
        role="img",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=int(width),
        height=int(height),
    )


def cross(x: float, y: float, text: str) -> Element:
    """Return the mark of what has no value."""
    path = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
    return tag("path", tag("title", text), class_="lost", d=path)


def _text(value: float, beside: Sequence[float]) -> str:
    """Return a mark's number with as many digits as its axis needs."""
    step = min((b - a for a, b in pairwise(beside)), default=1.0)
    if step < 1e-4 or abs(value) >= 1e5:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}"
