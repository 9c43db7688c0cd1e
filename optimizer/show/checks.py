"""The checks of the winner in the report: each arm at its own rate, and start and steps apart."""

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from optimizer.evidence.verdicts import Comparison
from optimizer.show import words
from optimizer.show.figures_arms import Row, intervals
from optimizer.show.page import table, tag
from optimizer.snapshot import Snapshot

ABOUT = (
    "Both change no verdict. At its own rate every arm is trained with seeds of their own. A "
    "density changes where training starts and how large its steps are: the main effect of either "
    "is its mean over both values of the other, the interaction by how much the start adds more to "
    "the density's steps than to identity's. They are no test, and inherit that the winner was the "
    "best of several and that its study stopped there: start and steps look a little too large."
)


def section(snapshot: Snapshot) -> list[Element]:
    """Return what the checks have found, in pictures and tables; nothing without them."""
    groups = [
        (title, rows)
        for title, compared in (
            ("each arm at its own rate", _at_own_rates(snapshot)),
            ("start and steps apart", _apart(snapshot)),
        )
        if (rows := _rows(compared))
    ]
    rates = _rates(snapshot)
    if not groups and not rates:
        return []
    parts = [tag("h2", "Checks of the winner")]
    if groups:
        name = f"difference in {snapshot.config.metric}, {snapshot.config.unit}"
        heads = ["of", "difference", f"mean, {snapshot.config.unit}", "95 % interval", "seeds"]
        cells = [
            [title, row.name, words.signed(row.mean), _ends(row), str(len(row.by_seed))]
            for title, rows in groups
            for row in rows
        ]
        figure = tag("figure", intervals(groups, name), tag("figcaption", ABOUT))
        parts += [figure, table(heads, cells, numbers=(2, 3, 4))]
    return [*parts, *rates]


def _at_own_rates(snapshot: Snapshot) -> Mapping[str, Comparison | None]:
    told = snapshot.own_rates
    if told is None:
        return {}
    return {
        "density minus identity": told.to_identity,
        **{
            f"density minus {words.ARMS[name].removeprefix('its ')}": compared
            for name, compared in told.beside.items()
        },
    }


def _apart(snapshot: Snapshot) -> Mapping[str, Comparison | None]:
    told = snapshot.apart
    if told is None:
        return {}
    return {
        "start alone minus identity": told.init_only,
        "steps alone minus identity": told.steps_only,
        "main effect of the start": told.start,
        "main effect of the steps": told.steps,
        "interaction": told.interaction,
    }


def _rates(snapshot: Snapshot) -> list[Element]:
    """Return what each arm reached at the rates that it was tried at."""
    told = snapshot.own_rates
    if told is None:
        return []
    lines = [
        [words.ARMS[arm], rate, f"{score:.3f}"]
        for arm, scores in told.tried.items()
        for rate, score in scores.items()
    ]
    own = ", ".join(f"{words.ARMS[arm]} {rate:g}" for arm, rate in told.rates.items()) or "none"
    heads = ["arm", "learning rate", f"{snapshot.config.metric}, {snapshot.config.unit}"]
    about = f"What each arm reached on the seeds by which its rate is chosen. Chosen: {own}."
    return [tag("p", about, class_="soft"), table(heads, lines, numbers=(1, 2))]


def _rows(compared: Mapping[str, Comparison | None]) -> list[Row]:
    return [
        Row(name, one.by_seed, (one.low, one.high))
        for name, one in compared.items()
        if one is not None
    ]


def _ends(row: Row) -> str:
    return "" if row.interval is None else words.interval(*row.interval)
