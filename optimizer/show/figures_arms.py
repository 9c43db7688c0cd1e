"""Densities, confirmation and calibration as pictures."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np

from densitune import density
from densitune.density import Density
from optimizer.evidence.verdicts import OverImages
from optimizer.show import words
from optimizer.show.axes import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    across,
    cross,
    figure,
    frame,
    spanning,
)  # fmt: skip
from optimizer.show.page import tag

NAMES, ROW = 270, 28
"""Pixels of the names beside intervals, and of a row of them."""
NUMBERED = 9
"""Largest kernel whose phi has room for numbers."""


Scores = Mapping[float, Mapping[int, float]]
"""Identity's metric by learning rate and seed."""


@dataclass(frozen=True)
class Row:
    """Paired differences of two arms by seed."""

    name: str
    by_seed: Mapping[str, float]
    interval: tuple[float, float] | None = None
    """Of the mean over seeds, where one is stated."""
    images: OverImages | None = None
    """That over seeds and images."""

    @property
    def mean(self) -> float:
        """Return the mean difference."""
        return statistics.fmean(self.by_seed.values())


def mask(kernel_size: int, den: Density) -> Element:
    """Return phi as a heat map: blue above 1, red below, the colour of the page at 1."""
    values = density.phi(den)
    most = float(np.abs(values - 1).max()) or 1.0
    cell = 44 if kernel_size <= NUMBERED else 14
    cells = []
    for (row, column), value in np.ndenumerate(values):
        corner = {
            "x": 1 + column * cell,
            "y": 1 + row * cell,
            "width": cell - 1,
            "height": cell - 1,
        }
        middle = {"x": 1 + (column + 0.5) * cell, "y": 5 + (row + 0.5) * cell}
        shade = 0.75 * float(abs(value - 1)) / most
        sign = "up" if value > 1 else "down"
        cells.append(
            tag(
                "g",
                tag("title", f"row {row + 1}, column {column + 1}: {value:.4g}"),
                tag("rect", class_=sign, fill_opacity=shade, stroke="none", **corner),
                [tag("text", f"{value:.2f}", text_anchor="middle", **middle)]
                if kernel_size <= NUMBERED
                else [],
            )
        )
    about = "; ".join(", ".join(f"{value:.4g}" for value in row) for row in values)
    side = kernel_size * cell + 2
    return figure(f"phi of kernel size {kernel_size}", about, side, side, cells)


def intervals(groups: Sequence[tuple[str, Sequence[Row]]], name: str) -> Element:
    """Return paired differences by seed with their intervals: groups of rows, each with a title."""
    rows = [row for _, group in groups for row in group]
    height = TOP + ROW * (len(rows) + len(groups)) + BOTTOM
    ends = [end for row in rows for end in (*row.by_seed.values(), *_ends(row))]
    x = spanning(name, [0.0, *ends], NAMES, WIDTH - RIGHT)
    bottom = float(height - BOTTOM)
    parts = across(x, bottom, TOP)
    parts.append(tag("line", class_="zero", x1=x.at(0), x2=x.at(0), y1=bottom, y2=TOP))
    middle = TOP - ROW / 2
    for title, group in groups:
        middle += ROW
        parts.append(tag("text", title, class_="name", x=4, y=middle + 4))
        for row in group:
            middle += ROW
            parts += _row(row, x, middle)
    about = ". ".join(f"{title}: {'; '.join(map(_text, group))}" for title, group in groups)
    return figure(f"{name}, seed by seed", about, WIDTH, height, parts)


def rates(scores: Scores, chosen: float | None, name: str) -> Element:
    """Return the metric {rate: {seed: value}} over the learning rate; the chosen one is marked."""
    height = 300
    known = {rate: by_seed for rate, by_seed in scores.items() if by_seed}
    every = [value for by_seed in known.values() for value in by_seed.values()]
    marked = [chosen] if chosen else []
    x = spanning("learning rate", [*scores, *marked], LEFT, WIDTH - RIGHT, log=True)
    y = spanning(name, every or [0.0], height - BOTTOM, TOP)
    means = {rate: statistics.fmean(by_seed.values()) for rate, by_seed in known.items()}
    path = " ".join(f"{x.at(rate):.1f},{y.at(mean):.1f}" for rate, mean in sorted(means.items()))
    points = [
        tag(
            "circle",
            tag("title", f"rate {rate:g}, seed {seed}: {value:.3f}"),
            class_="seed", cx=x.at(rate), cy=y.at(value), r=4,
        )
        for rate, by_seed in known.items()
        for seed, value in by_seed.items()
    ]  # fmt: skip
    lost = [
        cross(x.at(rate), y.start - 8, f"rate {rate:g}: no value") for rate in scores.keys() - known
    ]
    line = [
        tag("line", class_="zero", x1=x.at(rate), x2=x.at(rate), y1=y.start, y2=y.end)
        for rate in marked
    ]
    about = "; ".join(f"{rate:g}: {mean:.3f}" for rate, mean in sorted(means.items()))
    return figure(
        f"{name} of identity over the learning rate",
        f"Means over seeds: {about}." + (f" Chosen: {chosen:g}." if chosen else ""),
        WIDTH,
        height,
        [*frame(x, y), *line, tag("polyline", class_="curve", points=path), *points, *lost],
    )


def _row(row: Row, x: Axis, y: float) -> list[Element]:
    parts = [tag("text", row.name, class_="soft", x=20, y=y + 4)]
    parts += [
        tag(
            "circle",
            tag("title", f"{row.name}, seed {seed}: {words.signed(value)}"),
            class_="seed", cx=x.at(value), cy=y, r=4,
        )
        for seed, value in row.by_seed.items()
    ]  # fmt: skip
    if row.images is not None:
        low, high = x.at(row.images.low), x.at(row.images.high)
        parts.append(tag("line", class_="bar", x1=low, x2=high, y1=y, y2=y))
    if row.interval:
        low, high = (x.at(end) for end in row.interval)
        parts.append(tag("line", class_="interval", x1=low, x2=high, y1=y, y2=y))
    parts.append(
        tag("circle", tag("title", _text(row)), class_="mean", cx=x.at(row.mean), cy=y, r=4.5)
    )
    return parts


def _ends(row: Row) -> tuple[float, ...]:
    """Return the ends of all intervals of a row."""
    over = () if row.images is None else (row.images.low, row.images.high)
    return (*(row.interval or ()), *over)


def _text(row: Row) -> str:
    text = f"{row.name} {words.signed(row.mean)}"
    return f"{text} ({words.interval(*row.interval)})" if row.interval else text
