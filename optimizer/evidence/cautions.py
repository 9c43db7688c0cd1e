"""What a reader has to know before believing a table: signs that differences mean little.

Neither sign proves anything, and their absence proves nothing either; docs/method.md has an example
in which both showed.
"""

from collections.abc import Collection, Iterable, Mapping

from optimizer import learning_rates
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import baseline, differences
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.verdicts import (
    Control,
    FinalistVerdict,
    Found,
    Holdout,
    PresetVerdict,
)
from optimizer.evidence.verdicts import best as best_of

EDGE = 0.02
"""Share of the search box's width within which a value counts as lying on its edge."""

UNMASKED = (
    "An earlier version said `better`, which trained no uniform mask: whether spatial structure "
    "has a part in it is not known (docs/evidence.md)."
)
UNCOUNTED = (
    "An earlier version said `better`, which took seeds on which another arm diverged for evidence "
    "in favour of the density (docs/evidence.md)."
)


def signs(
    config: StudyConfig,
    results: list[TrialResult],
    floors: Mapping[str, float],
    calibration: Mapping[float, float],
    extended_from: int | None = None,
    verdicts: Iterable[FinalistVerdict] = (),
    *,
    confirmed: float | None = None,
    wanted: Collection[Control] = (),
    tested: Holdout | None = None,
) -> list[str]:
    """Return one line for each sign; none without results.

    floors: the metric of what needs no deep network, by name. calibration: identity's score by
    learning rate, empty where the rate was given. extended_from: the seeds of the first of two
    confirmations. confirmed: identity's score with fresh seeds. wanted: the controls that `better`
    asks for. tested: what the test split said.
    """
    if not results:
        return []
    identity, best = results[0], differences.ranked(results)[0]
    lines = []
    complaint = baseline.complaint(config, floors, identity.mean, confirmed)
    if complaint is not None:
        lines.append(complaint)
    middle = config.usual_lr
    low, high = (None, None) if middle is None else learning_rates.limits(middle)
    best_rate = max(calibration, key=lambda rate: calibration[rate], default=None)
    if best_rate is not None and best_rate in (low, high):
        lines.append(
            f"Identity's best learning rate {best_rate:g} lies at the edge of the grid "
            f"[{low:g}, {high:g}]: the best one may lie beyond it. Give training.lr."
        )
    if best.role == "candidate" and _on_edge(config, best):
        lines.append(
            f"The largest difference lies on the edge of the search box "
            f"[{config.density.low:g}, {config.density.high:g}]: often a sign that only the scale "
            f"of the initial weights matters."
        )
    if extended_from is not None:
        lines.append(
            f"Confirmed with {extended_from} seeds, then extended to {config.confirm.seeds}: who "
            f"looks twice is wrong twice as often (docs/evidence.md)."
        )
    told = [*verdicts]
    if (other := _other_images(best_of(told), tested)) is not None:
        lines.append(other)
    found = [left_open(one.verdict, one, wanted) for one in told]
    return lines + [line for line in (UNMASKED, UNCOUNTED) if line in found]


def left_open(verdict: PresetVerdict, found: Found, wanted: Collection[Control]) -> str | None:
    """Return what a `better` of an earlier version leaves open; None if nothing.

    wanted: the controls that `better` asks for. A uniform mask may never have been trained; and
    where another arm diverged, an earlier version did not keep on which seeds.
    """
    if verdict != "better":
        return None
    if "uniform" in wanted and found.to_uniform is None:
        return UNMASKED
    unknown = found.failures.keys() - found.diverged.keys()
    return UNCOUNTED if unknown & {"identity", *wanted} else None


def _other_images(winner: FinalistVerdict | None, tested: Holdout | None) -> str | None:
    """Return that a `better` may come to nothing on other images, by its interval over these.

    By the test split's where there is one: by the validation images the winner was chosen.
    """
    if winner is None or winner.verdict != "better" or winner.to_identity is None:
        return None
    where, over = "validation", winner.to_identity.images
    if tested is not None and tested.trial == winner.trial and tested.difference is not None:
        where, over = "test", tested.difference.images
    if over is None or over.low > 0:
        return None
    return (
        f"The winner's 95 % interval over seeds and {over.count} {where} images, [{over.low:+.3f}, "
        f"{over.high:+.3f}], holds zero: on other images of this kind it may be no better "
        "(docs/evidence.md)."
    )


def _on_edge(config: StudyConfig, result: TrialResult) -> bool:
    low, high = config.density.low, config.density.high
    margin = EDGE * (high - low)
    return any(
        value < low + margin or value > high - margin
        for den in result.densities.values()
        for value in den
    )
