"""Whether a larger network ranks densities as the proxy did: what an audit says.

Rows are densities, columns are seeds; both tables have differences to identity at the same seed,
and identity itself as a row of zeros. docs/evidence.md has the thresholds and how often they err.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from scipy.special import stdtrit

from optimizer.evidence import differences
from optimizer.evidence.verdicts import Comparison, PairedDifference, Part

Array = NDArray[np.float64]
Table = Mapping[int, Mapping[int, float]]
"""Differences to identity by density (its trial in the search) and seed; none is left out."""
Finding = Literal["carries_over", "ranks_only", "does_not", "open"]
"""Whether the ranking, and with it the winner, carries over to the larger network."""

SENTENCE: dict[Finding, str] = {
    "carries_over": "the proxy ranks densities as the full network does",
    "ranks_only": "the proxy ranks densities as the full network does, but its winner is behind "
    "there: tune on the network itself",
    "does_not": "the proxy does not rank densities as the full network does: tune on the network "
    "itself",
    "open": "whether the proxy ranks densities as the full network does cannot be told from these "
    "arms",
}
"""Each finding in words."""
POOR, GOOD = 0.3, 0.7
"""Rank correlations: of a proxy that says little about the full network, and of one that ranks."""
LEAST_CEILING = 0.5
"""Where seeds blur more than that, nothing is said against the proxy."""
IDENTITY = 0
"""Its trial in every search."""
LEAST_ARMS = 8
"""Identity among them; with fewer a rank correlation says too little."""
RESAMPLED = 2000
_SEED = 20_250_531


class AuditArm(Part):
    """A density of an audit: what the search said of it, and what the larger network does."""

    trial: int
    """Its number in the search."""
    label: str
    densities: dict[str, list[FiniteFloat]]
    proxy: PairedDifference | None
    """To identity in the search, in what that went by (`evidence.searched_by`); None of what was
    learned, which was no trial of it."""
    full: PairedDifference
    """To identity on the larger network, of the metric."""


class RankCorrelation(Part):
    """Spearman's, between the mean differences of the proxy and of the larger network."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    """The 95 % interval for other densities and seeds, as many of each: a percentile bootstrap."""
    ceiling: FiniteFloat | None
    """What perfect agreement would come to with the noise of these seeds: the root of the product
    of both reliabilities, of ranks within each seed: of raw differences, a few very harmful
    densities would hide how little the others differ. None where a single seed does not tell."""
    above: FiniteFloat | None = None
    """The same correlation of identity and the densities above it on the proxy alone; None of fewer
    than three. Harmful densities can make `value` large where the good ones have no order."""


class Loss(Part):
    """What the best density on the larger network has before the proxy's winner there."""

    best: int
    """Its trial in the search."""
    mean: FiniteFloat
    """Too large on average, for the best of several noisy means looks better than it is."""
    low: FiniteFloat
    high: FiniteFloat
    """The 95 % interval, which allows for that choice."""


class Audit(Part):
    """What a larger network, trained at full length with fresh seeds, says of a study."""

    trial: int
    """The winner's number in the search."""
    finding: Finding
    reason: str | None = None
    """What is missing, if something is."""
    lr: FiniteFloat | None = None
    """The learning rate of all its arms."""
    identity: FiniteFloat | None = None
    """Identity's mean metric on the larger network."""
    arms: list[AuditArm] = Field(default_factory=list)
    """All densities but identity, in the order in which they were chosen."""
    correlation: RankCorrelation | None = None
    loss: Loss | None = None
    to_identity: Comparison | None = None
    """The winner minus identity on the larger network."""
    to_control: Comparison | None = None
    to_uniform: Comparison | None = None
    diverged: dict[str, list[int]] = Field(default_factory=dict)
    """By label of the arm, the seeds on which training diverged, so that the floor stands for the
    score."""


def rank_correlation(proxy: Table, full: Table) -> RankCorrelation | None:
    """Return the rank correlation of two tables with the same densities; None of too few.

    The interval is the percentile interval of Owen's pigeonhole bootstrap (2007): densities and the
    seeds of either table are drawn anew, each by itself and with replacement, and every draw gives
    a correlation of means over its seeds. Identity counts as a density, with differences of 0.
    """
    if len(proxy) + 1 < LEAST_ARMS:
        return None
    tables = [_array(table, sorted(proxy)) for table in (proxy, full)]
    means = [table.mean(axis=1) for table in tables]
    drawn = _resampled(*tables)
    low, high = np.quantile(drawn, [0.025, 0.975])
    known = [reliability(_ranks(table.T).T) for table in tables]
    ceiling = None if None in known else float(np.sqrt(np.prod(np.array(known, dtype=float))))
    value = float(spearman(means[0][None], means[1][None])[0])
    good = means[0] >= 0
    above = float(spearman(*(mean[None, good] for mean in means))[0]) if good.sum() > 2 else None
    return RankCorrelation(
        value=value, low=float(low), high=float(high), ceiling=ceiling, above=above
    )


def spearman(one: Array, other: Array) -> Array:
    """Return Spearman's correlation within each row, (rows,); 0 where all values are equal.

    Ties share the mean of their ranks, as Kendall's textbook has it.
    """
    ranks = [_ranks(values) for values in (one, other)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    scale = np.sqrt(np.prod([(rank**2).sum(axis=1) for rank in centred], axis=0))
    found: Array = (centred[0] * centred[1]).sum(axis=1) / np.where(scale > 0, scale, 1.0)
    return found


def reliability(values: Array) -> float | None:
    """Return which share of the variance of means over seeds is not noise; None of one seed.

    values: (arms, seeds). 1 - MSE / MSA of a two-way layout without repeats, at least 0 (Hoyt 1941;
    Cronbach's alpha). What a seed adds to all arms, identity's noise too, is in neither.
    """
    arms, seeds = values.shape
    if seeds < 2:
        return None
    means = values.mean(axis=1)
    rest = values - means[:, None] - values.mean(axis=0) + values.mean()
    between = seeds * float(((means - means.mean()) ** 2).sum()) / (arms - 1)
    noise = float((rest**2).sum()) / ((arms - 1) * (seeds - 1))
    return max(0.0, 1 - noise / between) if between > 0 else 0.0


def loss(full: Table, winner: int) -> Loss | None:
    """Return by how much the best of all densities is above the winner; None of a single seed.

    With d_j the density j minus the winner at each seed, n seeds and m densities, the truth is
    above max_j(mean - t s / sqrt(n)) with Student's t at 1 - 0.025 / m, for all m at once, and
    below max_j(mean + t s / sqrt(n)) with t at 0.975: that of the truly best one has to hold alone.
    """
    own = full[winner]
    if len(own) < 2:
        return None
    beside = {trial: differences.paired(full[trial], own) for trial in full if trial != winner}
    beside[IDENTITY] = differences.paired(dict.fromkeys(own, 0.0), own)
    degrees = len(own) - 1
    sure, alone = (stdtrit(degrees, 1 - 0.025 / many) for many in (len(beside), 1))
    best = max(beside, key=lambda trial: beside[trial].mean)
    low = max(found.mean - sure * (found.standard_error or 0.0) for found in beside.values())
    high = max(found.mean + alone * (found.standard_error or 0.0) for found in beside.values())
    ahead = beside[best].mean
    return Loss(
        best=best if ahead > 0 else winner,
        mean=max(0.0, ahead),
        low=max(0.0, float(low)),
        high=max(0.0, float(high)),
    )


def found(correlation: RankCorrelation | None, *, behind: bool = False) -> Finding:
    """Return what a rank correlation says: a rule that was fixed before any audit was made.

    It carries over if a poor proxy is out of the interval and the value is that of a good one. It
    does not if a good one is out of the interval, once that is corrected for the noise of seeds:
    they pull a correlation towards zero by the factor `ceiling` (Spearman 1904). behind: whether
    the winner is shown to be below identity or another density there; the ranks alone carry over.
    """
    if correlation is None:
        return "open"
    if correlation.low > POOR and correlation.value >= GOOD:
        return "ranks_only" if behind else "carries_over"
    ceiling = correlation.ceiling or 0.0
    if ceiling >= LEAST_CEILING and correlation.high < GOOD * ceiling:
        return "does_not"
    return "open"


def unsound(told: Audit, floor: float) -> str | None:
    """Return why identity is no baseline on the larger network; None if it is.

    floor: the highest of what the metric reaches without a deep network. Where identity diverged, a
    floor stands for its score, and no difference to that is a measure of how good a density is.
    """
    if gone := told.diverged.get("identity"):
        return f"identity diverged on {len(gone)} seeds of the larger network: give audit.lr"
    if told.identity is None or told.identity > floor:
        return None
    return (
        f"identity on the larger network ({told.identity:.3f}) is not above what takes no deep "
        f"network ({floor:.3f}): it has not learnt its task"
    )


def judged(told: Audit, floor: float = -math.inf) -> Audit:
    """Return an audit with all that follows from what its arms record: `verify` compares them.

    Nothing follows where identity is no baseline there: see `unsound`.
    """
    if unsound(told, floor) is not None:
        nothing = dict.fromkeys(("correlation", "loss", "to_identity", "to_control", "to_uniform"))
        return told.model_copy(update={**nothing, "finding": "open"})
    proxy = {arm.trial: _by_seed(arm.proxy) for arm in told.arms if arm.proxy is not None}
    full = {arm.trial: _by_seed(arm.full) for arm in told.arms}
    both = {trial: by_seed for trial, by_seed in full.items() if trial in proxy}
    correlation = rank_correlation(proxy, both)
    ahead = loss(full, told.trial) if told.trial in full else None
    follows = {
        "correlation": correlation,
        "loss": ahead,
        "finding": found(correlation, behind=_behind(told.to_identity, ahead)),
    }
    return told.model_copy(update=follows)


def _behind(to_identity: Comparison | None, ahead: Loss | None) -> bool:
    """Tell whether the winner is shown to be below identity, or below another density."""
    below = to_identity is not None and to_identity.high < 0
    return below or (ahead is not None and ahead.low > 0)


def spread(ranked: Sequence[int], count: int) -> list[int]:
    """Return `count` of what is ranked, evenly over all ranks with the first and the last."""
    if count >= len(ranked) or count < 1:
        return [*ranked][: max(0, count)]
    return [ranked[round(place)] for place in np.linspace(0, len(ranked) - 1, count)]


def _by_seed(stated: PairedDifference) -> dict[int, float]:
    return {int(seed): difference for seed, difference in stated.by_seed.items()}


def _array(table: Table, order: Sequence[int]) -> Array:
    """Return differences as (arms, seeds), identity first."""
    seeds = sorted(table[order[0]])
    rows = [[table[trial][seed] for seed in seeds] for trial in order]
    return np.array([[0.0] * len(seeds), *rows])


def _resampled(proxy: Array, full: Array) -> Array:
    """Return correlations of draws with replacement, (RESAMPLED,); the same in every version."""
    raw = np.random.PCG64(_SEED)
    arms = _drawn(raw, len(proxy), len(proxy))
    means = []
    for table in (proxy, full):
        seeds = _drawn(raw, table.shape[1], table.shape[1])
        # (draws, arms): the mean over a draw's seeds of every arm, then the arms of that draw.
        over_seeds = table[:, seeds].mean(axis=2).T
        means.append(np.take_along_axis(over_seeds, arms, axis=1))
    return spearman(*means)


def _drawn(raw: np.random.PCG64, count: int, of: int) -> NDArray[np.int64]:
    """Return places (RESAMPLED, count) below `of`, from bits that no version of numpy changes."""
    bits = raw.random_raw(RESAMPLED * count) % np.uint64(of)
    return bits.astype(np.int64).reshape(RESAMPLED, count)


def _ranks(values: Array) -> Array:
    """Return ranks from 1 within each row; ties have their mean."""
    below = (values[:, :, None] > values[:, None, :]).sum(axis=2)
    equal = (values[:, :, None] == values[:, None, :]).sum(axis=2)
    ranks: Array = below + (equal + 1) / 2
    return ranks
