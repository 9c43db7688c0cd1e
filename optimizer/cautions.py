"""What a reader has to know before believing a table: signs that differences mean little.

Neither sign proves anything, and their absence proves nothing either; docs/method.md has an example
in which both showed.
"""

from optimizer import results
from optimizer.config import StudyConfig
from optimizer.results import TrialResult

EDGE = 0.02
"""Share of the search box's width within which a value counts as lying on its edge."""


def cautions(config: StudyConfig, found: list[TrialResult], floor: float) -> list[str]:
    """Return one line for each sign; none without results."""
    if not found:
        return []
    identity, best = found[0], results.ranked(found)[0]
    lines = []
    if identity.mean <= floor:
        lines.append(
            f"Identity ({identity.mean:.3f} {config.unit}) is not above the {config.floor_name} "
            f"({floor:.3f} {config.unit}): the proxy has not learnt its task, and differences to "
            f"it mean little. Train longer or with another learning rate."
        )
    if best.role == "candidate" and _on_edge(config, best):
        lines.append(
            f"The largest difference lies on the edge of the search box "
            f"[{config.density.low:g}, {config.density.high:g}]: often a sign that only the scale "
            f"of the initial weights matters."
        )
    return lines


def _on_edge(config: StudyConfig, result: TrialResult) -> bool:
    low, high = config.density.low, config.density.high
    margin = EDGE * (high - low)
    return any(
        value < low + margin or value > high - margin
        for den in result.densities.values()
        for value in den
    )
