"""The search in the report: its figures, what lies on the plateau, and all trials as a table."""

import math
import statistics
from collections.abc import Iterable
from itertools import combinations
from xml.etree.ElementTree import Element

from densitune import density
from optimizer.evidence import differences
from optimizer.evidence.differences import TrialResult
from optimizer.show import response_model, words
from optimizer.show.figures_search import Mark, Model, curve, limits, plane
from optimizer.show.page import table, tag
from optimizer.snapshot import Snapshot

PANELS = 6
"""Values of a density up to which every pair of them gets a panel; beyond, every single one."""
LARGE, SMALL = 460.0, 300.0
"""Sides of the only panel and of one among others, pixels."""


def section(snapshot: Snapshot) -> list[Element]:
    """Return the section on the search; nothing before identity is complete."""
    if not snapshot.results:
        return []
    model = response_model.of(snapshot)
    level = plateau(snapshot.results)
    names = ", ".join(words.densities(result.densities) for result in level)
    few = "1 density is" if len(level) == 1 else f"{len(level)} densities are"
    return [
        tag("h2", "Search"),
        tag("figure", _panels(snapshot, model), tag("figcaption", _legend(snapshot, model))),
        tag("p", f"{few} within one standard error of the largest difference: {names}."),
        tag("details", tag("summary", "All trials as a table"), _trials(snapshot)),
    ]


def plateau(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Return the trials within one standard error of the largest difference, largest first.

    The standard errors are pooled over the trials, as sqrt(mean of squares): that of a single
    trial with two seeds is often near zero by luck. With single seeds only the best is known.
    """
    ranked = differences.ranked(results)
    squares = [
        result.searched.standard_error**2
        for result in ranked
        if result.searched.standard_error is not None and result.role != "identity"
    ]
    error = math.sqrt(statistics.fmean(squares)) if squares else 0.0
    return [r for r in ranked if r.searched.mean >= ranked[0].searched.mean - error]


def _panels(snapshot: Snapshot, model: Model | None) -> Element:
    """Return one panel for each pair of values, or for each value if there is one or are many."""
    config = snapshot.config
    box = (config.density.low, config.density.high)
    marks, names = _marks(snapshot), _names(snapshot)
    difference = f"{config.metric} minus identity, {config.unit}"
    if snapshot.searched_by == "cross_entropy":
        difference = words.BELOW_IDENTITY
    if _paired(snapshot):
        side = LARGE if len(names) == 2 else SMALL
        panels = [
            plane(marks, (a, b), box, (names[a], names[b], difference), model, side)
            for a, b in combinations(range(len(names)), 2)
        ]
    else:
        panels = [
            curve(marks, value, box, (name, difference), model) for value, name in enumerate(names)
        ]
    return tag("div", panels, class_="row")


def _paired(snapshot: Snapshot) -> bool:
    return 2 <= snapshot.config.dimensions <= PANELS


def _marks(snapshot: Snapshot) -> list[Mark]:
    """Return the trials of which nothing more is to come."""
    known = {result.number: result.searched for result in snapshot.results}
    confirmed = {one.trial for one in snapshot.verdicts}
    return [
        Mark(
            name=trial.label,
            place=tuple(value for _, den in sorted(trial.densities.items()) for value in den),
            value=known[trial.number].mean if trial.number in known else None,
            error=known[trial.number].standard_error if trial.number in known else None,
            confirmed=trial.number in confirmed,
        )
        for trial in snapshot.trials
        if trial.state != "running"
    ]


def _names(snapshot: Snapshot) -> list[str]:
    """Return what a density's values are called, in the order of `_marks`."""
    sizes = sorted(snapshot.config.kernel_size)
    if sizes == [3]:
        return ["density"]
    names = []
    for size in sizes:
        which = f"k={size}, " if len(sizes) > 1 else ""
        names += [f"{which}den[{ring}]" for ring in range(density.length(size))]
    names[0] += " (outermost)"
    return names


def _legend(snapshot: Snapshot, model: Model | None) -> str:
    lines = ["Blue is above identity, red below; dashes are the box that was searched."]
    if _paired(snapshot):
        low, high = limits(_marks(snapshot))
        unit = "nats" if snapshot.searched_by == "cross_entropy" else snapshot.config.unit
        ends = [f"{words.signed(end)} {unit}" for end in (low, high) if end]
        lines.append(f"The strongest colours are at {' and '.join(ends) or f'0 {unit}'}.")
    else:
        lines.append("Bars are standard errors; a triangle at the bottom lies below the figure.")
    if any(trial.state in ("pruned", "failed") for trial in snapshot.trials):
        lines.append("A cross was cut at a rung or failed.")
    if snapshot.searched_by == "cross_entropy":
        lines.append(words.BY_ENTROPY)
    if snapshot.verdicts:
        lines.append("Thick rings went on to the confirmation.")
    if model is not None:
        shown = "background" if _paired(snapshot) else "line, with its 95 % band,"
        lines.append(f"The {shown} is what a Gaussian process expects after all trials.")
    return " ".join(lines)


def _trials(snapshot: Snapshot) -> Element:
    config = snapshot.config
    ranked = differences.ranked(snapshot.results)
    by_entropy = [words.BELOW_IDENTITY] if snapshot.searched_by == "cross_entropy" else []
    rows = [
        [r.label, words.densities(r.densities), f"{r.mean:.3f}", words.to_identity(r)]
        + [words.below_identity(r) for _ in by_entropy]
        for r in ranked
    ]
    rows += [
        [
            trial.label,
            words.densities(trial.densities),
            "",
            trial.failure or trial.reason or "cut at a rung",
            *("" for _ in by_entropy),
        ]
        for trial in snapshot.trials
        if trial.state in ("pruned", "failed")
    ]
    heads = ["trial", "density", f"{config.metric}, {config.unit}", "minus identity", *by_entropy]
    return table(heads, rows, numbers=(2, 3, 4))
