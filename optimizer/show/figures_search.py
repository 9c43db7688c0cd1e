"""The search as a picture: every trial's difference to identity over its density.

Blue is above identity, red below. Nothing is said by colour alone: numbers stand in the tooltips,
in the text alternatives and in the report's tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from optimizer.show import words
from optimizer.show.axes import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    cross,
    figure,
    frame,
    spanning,
)  # fmt: skip
from optimizer.show.page import tag

FAR = 4.0
"""Values further below the lower quartile than this many times the span above it are drawn at
the edge: a training that collapsed would squeeze all others into a line."""
BAND = 1.96
"""Standard deviations of the model to either side: 95 % of a normal distribution."""


@dataclass(frozen=True)
class Mark:
    """A trial of the search."""

    name: str
    place: tuple[float, ...]
    """Its density's values."""
    value: float | None
    """Mean difference to identity; None if it was cut or failed."""
    error: float | None = None
    """Standard error of the difference."""
    confirmed: bool = False
    """Whether it was a finalist."""


@dataclass(frozen=True)
class Model:
    """What a model of the response says at places; one column of `places` for each value shown."""

    places: NDArray[np.float64]  # (places, 1 or 2)
    mean: NDArray[np.float64]  # (places,)
    spread: NDArray[np.float64]  # (places,), standard deviations


def limits(marks: Sequence[Mark]) -> tuple[float, float]:
    """Return from where to where differences are shown: zero and all but what lies far below."""
    known = [(mark.value, mark.error or 0.0) for mark in marks if mark.value is not None]
    if not known:
        return 0.0, 0.0
    high = max(0.0, *(value + error for value, error in known))
    quartile = float(np.quantile([value for value, _ in known], 0.25))
    far = quartile - FAR * (high - quartile)
    return min(0.0, *(max(value - error, far) for value, error in known if value >= far)), high


def curve(
    marks: Sequence[Mark],
    value: int,
    box: tuple[float, float],
    names: tuple[str, str],
    model: Model | None,
) -> Element:
    """Return differences over one value of the density, with the model's mean and 95 % band.

    value: which of each place's values; names: of this one and of the difference.
    """
    height = 340
    x = spanning(names[0], [*box, *(mark.place[value] for mark in marks)], LEFT, WIDTH - RIGHT)
    y = spanning(names[1], limits(marks), height - BOTTOM, TOP)
    edges = [
        tag("line", class_="box", x1=x.at(edge), x2=x.at(edge), y1=y.start, y2=y.end)
        for edge in box
    ]
    return figure(
        f"{names[1]} over {names[0]}",
        _summary(marks),
        WIDTH,
        height,
        [*frame(x, y), *edges, _zero(x, y)],
        [] if model is None else _band(x, y, model),
        (_trial(mark, x.at(mark.place[value]), y) for mark in marks),
    )


def plane(
    marks: Sequence[Mark],
    values: tuple[int, int],
    box: tuple[float, float],
    names: tuple[str, str, str],
    model: Model | None,
    side: float,
) -> Element:
    """Return trials over two values of the density, coloured by difference, over the model's mean.

    values: which of each place's values; names: of these two and of the difference.
    """
    places = [(mark.place[values[0]], mark.place[values[1]]) for mark in marks]
    x = spanning(names[0], [*box, *(place[0] for place in places)], LEFT, LEFT + side)
    y = spanning(names[1], [*box, *(place[1] for place in places)], TOP + side, TOP)
    shown = limits(marks)
    corner = {"x": x.at(box[0]), "y": y.at(box[1])}
    size = {"width": x.at(box[1]) - corner["x"], "height": y.at(box[0]) - corner["y"]}
    return figure(
        f"{names[2]} over {names[0]} and {names[1]}",
        _summary(marks),
        LEFT + side + RIGHT,
        TOP + side + BOTTOM,
        [] if model is None else _tiles(x, y, model, shown),
        [*frame(x, y), tag("rect", class_="box", **corner, **size)],
        (
            _coloured(mark, x.at(place[0]), y.at(place[1]), shown)
            for mark, place in zip(marks, places, strict=True)
        ),
    )


def _zero(x: Axis, y: Axis) -> Element:
    return tag("line", class_="zero", x1=x.start, x2=x.end, y1=y.at(0), y2=y.at(0))


def _band(x: Axis, y: Axis, model: Model) -> list[Element]:
    """Return the 95 % band and the mean of a model over one value."""
    along = [x.at(float(place)) for place in model.places[:, 0]]
    low, mean, high = (
        [y.at(float(value)) for value in model.mean + reach * model.spread]
        for reach in (-BAND, 0.0, BAND)
    )
    around = [*zip(along, high, strict=True), *reversed([*zip(along, low, strict=True)])]
    return [
        tag("polygon", class_="band", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in around)),
        tag(
            "polyline",
            class_="curve",
            points=" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(along, mean, strict=True)),
        ),
    ]


def _tiles(x: Axis, y: Axis, model: Model, shown: tuple[float, float]) -> list[Element]:
    """Return the mean of a model over a regular grid of two values, a tile for each place."""
    firsts, seconds = (np.unique(column) for column in model.places.T)
    across, down = _edges(x, firsts), _edges(y, seconds)
    return [
        tag(
            "rect",
            tag("title", f"model at [{a:.3g}, {b:.3g}]: {words.signed(mean, spread)}"),
            class_=_sign(mean),
            fill_opacity=_shade(mean, shown),
            x=across[a][0],
            y=down[b][0],
            width=across[a][1] - across[a][0],
            height=down[b][1] - down[b][0],
        )
        for (a, b), mean, spread in zip(
            model.places.tolist(), model.mean.tolist(), model.spread.tolist(), strict=True
        )
    ]


def _edges(axis: Axis, middles: NDArray[np.float64]) -> dict[float, tuple[int, int]]:
    """Return from which to which whole pixel the tile at each place reaches: no seam is left."""
    half = (middles[1] - middles[0]) / 2
    found = {}
    for middle in middles.tolist():
        low, high = sorted(round(axis.at(middle + reach)) for reach in (-half, half))
        found[middle] = (low, high)
    return found


def _sign(value: float) -> str:
    """Return the class that colours a difference; zero, as identity's own, is no side."""
    if value == 0:
        return "mean"
    return "up" if value > 0 else "down"


def _shade(value: float, shown: tuple[float, float]) -> float:
    """Return how strong a colour is: by the value's share of the most on its side of zero."""
    most = shown[1] if value > 0 else -shown[0]
    return min(0.9, 0.9 * abs(value) / most) if most else 0.0


def _trial(mark: Mark, x: float, y: Axis) -> Element:
    """Return a point with its standard error; a triangle where it lies below the figure."""
    if mark.value is None:
        return tag("g", cross(x, y.start - 8, _text(mark)), class_="trial")
    here = y.at(mark.value)
    if mark.value < y.low:
        points = f"{x - 5:.1f},{here - 9:.1f} {x + 5:.1f},{here - 9:.1f} {x:.1f},{here:.1f}"
        return _shown(mark, tag("polygon", class_="down", points=points))
    error = mark.error or 0.0
    ends = {"y1": y.at(mark.value - error), "y2": y.at(mark.value + error)}
    return _shown(
        mark,
        tag("line", class_="bar", x1=x, x2=x, **ends),
        tag("circle", class_=_sign(mark.value), cx=x, cy=here, r=4),
        *([tag("circle", class_="rim chosen", cx=x, cy=here, r=5)] if mark.confirmed else []),
    )


def _coloured(mark: Mark, x: float, y: float, shown: tuple[float, float]) -> Element:
    """Return a point whose colour is its difference."""
    if mark.value is None:
        return tag("g", cross(x, y, _text(mark)), class_="trial")
    around = {"cx": x, "cy": y, "r": 6}
    shade = _shade(mark.value, shown)
    return _shown(
        mark,
        tag("circle", class_="hole", **around),
        tag("circle", class_=_sign(mark.value), fill_opacity=shade, **around),
        tag("circle", class_="rim chosen" if mark.confirmed else "rim", **around),
    )


def _shown(mark: Mark, *parts: Element) -> Element:
    return tag("g", tag("title", _text(mark)), *parts, class_="trial")


def _text(mark: Mark) -> str:
    where = f"{mark.name} [{', '.join(f'{value:.4g}' for value in mark.place)}]"
    if mark.value is None:
        return f"{where}: no value"
    return f"{where}: {words.signed(mark.value, mark.error or None)}"


def _summary(marks: Sequence[Mark]) -> str:
    known = [mark for mark in marks if mark.value is not None]
    if not known:
        return f"{len(marks)} trials, none complete."
    best = max(known, key=lambda mark: mark.value or 0.0)
    return f"{len(known)} complete trials of {len(marks)}; the largest is {_text(best)}."
