"""Numbers that a preset records, held against the seeds that they are made of."""

import math
from collections.abc import Iterator, Mapping

from optimizer.evidence import differences
from optimizer.evidence.differences import Difference
from optimizer.evidence.verdicts import Comparison, PairedDifference


def of_a_difference(name: str, stated: PairedDifference) -> Iterator[str]:
    """Yield what of a difference does not follow from its seeds."""
    found = _difference(stated.by_seed)
    if not alike(stated.mean, found.mean):
        yield f"{name} has the mean {stated.mean:.6g}, its seeds {found.mean:.6g}"
    if not alike(stated.standard_error, found.standard_error):
        yield f"{name} has another standard error than its seeds"


def of_an_interval(name: str, stated: Comparison | None) -> Iterator[str]:
    """Yield what of a mean and its interval does not."""
    if stated is None:
        return
    found = _difference(stated.by_seed)
    low, high = differences.interval(found)
    if not all(map(alike, (stated.mean, stated.low, stated.high), (found.mean, low, high))):
        yield (
            f"{name} is {stated.mean:.6g}, {stated.low:.6g} to {stated.high:.6g}, and its seeds "
            f"say {found.mean:.6g}, {low:.6g} to {high:.6g}"
        )
    if (over := stated.images) is not None and not alike(over.low + over.high, 2 * stated.mean):
        yield f"{name} has an interval over images that is not around its mean"


def _difference(by_seed: Mapping[str, float]) -> Difference:
    found = by_number(by_seed)
    return differences.paired(found, dict.fromkeys(found, 0.0))


def by_number(by_seed: Mapping[str, float]) -> dict[int, float]:
    """Return values with numbers for seeds, which are checked before."""
    return {int(seed): difference for seed, difference in by_seed.items()}


def alike(one: float | None, other: float | None) -> bool:
    """Tell whether two numbers differ by rounding at most."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
