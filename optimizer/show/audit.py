"""The audit in the report: what the proxy and a larger network say of the same densities."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from optimizer.evidence.audit import AuditArm
from optimizer.show import words
from optimizer.show.axes import BOTTOM, LEFT, RIGHT, TOP, WIDTH, figure, frame, spanning
from optimizer.show.page import table, tag
from optimizer.snapshot import Snapshot

ABOUT = (
    "Every point is a density: its mean difference to identity on the proxy, in what the search "
    "went by, and on the larger network, trained at full length with fresh seeds. Identity is "
    "where the lines cross; the winner has a rim. What was chosen for its rank in the search has "
    "part of that by luck, so the correlation is of these densities and not of such chosen at "
    "random."
)


def section(snapshot: Snapshot) -> list[Element]:
    """Return what an audit has found, as a picture and a table; nothing without one."""
    told, unit = snapshot.carried_over, snapshot.config.unit
    if told is None or not told.arms:
        return []
    ranked = [arm for arm in told.arms if arm.proxy is not None]
    heads = ["density", "what", "on the proxy", f"on the larger network, {unit}"]
    lines = [
        [
            words.densities({int(k): tuple(den) for k, den in arm.densities.items()}),
            arm.label,
            "" if arm.proxy is None else _difference(arm.proxy.mean, arm.proxy.standard_error),
            _difference(arm.full.mean, arm.full.standard_error),
        ]
        for arm in sorted(told.arms, key=lambda arm: -arm.full.mean)
    ]
    return [
        tag("h2", "On a larger network"),
        tag("figure", _points(snapshot, ranked, told.trial), tag("figcaption", ABOUT)),
        table(heads, lines, numbers=(2, 3)),
    ]


def _points(snapshot: Snapshot, arms: Sequence[AuditArm], winner: int) -> Element:
    """Return a density's difference on the larger network over that on the proxy."""
    height = 340
    pairs = [(arm, arm.proxy.mean, arm.full.mean) for arm in arms if arm.proxy is not None]
    entropy = snapshot.searched_by == "cross_entropy"
    names = (
        words.BELOW_IDENTITY if entropy else f"on the proxy, {snapshot.config.unit}",
        f"on the larger network, {snapshot.config.unit}",
    )
    x = spanning(names[0], [0.0, *(proxy for _, proxy, _ in pairs)], LEFT, WIDTH - RIGHT)
    y = spanning(names[1], [0.0, *(full for _, _, full in pairs)], height - BOTTOM, TOP)
    zero = [
        tag("line", class_="zero", x1=x.at(0), x2=x.at(0), y1=y.start, y2=y.end),
        tag("line", class_="zero", x1=x.start, x2=x.end, y1=y.at(0), y2=y.at(0)),
    ]
    points = [
        tag(
            "circle",
            tag("title", f"{arm.label}: {words.signed(proxy)}, {words.signed(full)}"),
            class_="up rim" if arm.trial == winner else "seed",
            cx=x.at(proxy), cy=y.at(full), r=5,
        )
        for arm, proxy, full in pairs
    ]  # fmt: skip
    about = "; ".join(
        f"{arm.label} {words.signed(proxy)} and {words.signed(full)}" for arm, proxy, full in pairs
    )
    title = f"difference to identity {names[1]} over that {names[0]}"
    return figure(title, about, WIDTH, height, [*frame(x, y), *zero, *points])


def _difference(mean: float, error: float | None) -> str:
    return words.signed(mean, error)
