"""What fresh seeds say about one finalist: a paired, sequential test and its verdict.

A finalist is compared with identity and with its scale control on the same seeds, in batches: after
each batch, a look. Every look has its own share of the level, and the shares of all looks, both
directions and all finalists add up to it; so the level holds whatever the looks have in common
(Bonferroni's inequality). docs/evidence.md has the reasons and the simulations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from optimizer.evidence.verdicts import Verdict

Outcome = Literal["above", "below", "sinking", "futile", "open"]

SPENDING = 3.0
"""The level spent after the share t of the seeds is t**3 (Kim & DeMets 1987): little on the first
looks, where a wrong decision would be cheapest to make."""
HOPELESS = 0.005
"""Chance of ever getting above zero, at the effect seen so far, below which that question is given
up (stochastic curtailment: Lan, Simon & Halperin 1982)."""
POWER = 0.9
"""Chance with which the seeds that `seeds_to_settle` names would settle a question."""
MOST_SEEDS = 1000
"""What would take more than this is not worth a number."""


@dataclass(frozen=True)
class Plan:
    """The size of a confirmation, fixed before its first seed is trained."""

    seeds: int
    """Most seeds of every arm."""
    batch: int
    """Seeds between two looks, at least two."""
    finalists: int
    level: float = 0.05
    """Chance that any finalist of a study in which nothing differs is called better or worse."""

    @property
    def looks(self) -> list[int]:
        """Return the numbers of seeds after which a finalist is judged."""
        return [*range(self.batch, self.seeds, self.batch), self.seeds]

    @property
    def one_sided(self) -> float:
        """Return one direction's part of the level for one finalist."""
        return self.level / (2 * self.finalists)

    def share(self, seeds: int) -> float:
        """Return the part of `one_sided` that belongs to the look after this many seeds."""
        before = max((look for look in self.looks if look < seeds), default=0)
        spent, spent_before = ((n / self.seeds) ** SPENDING for n in (seeds, before))
        return self.one_sided * float(spent - spent_before)


@dataclass(frozen=True)
class Interval:
    """A mean paired difference with its 95 % interval (Student's t), in the metric's unit."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Finding:
    """What is known about a finalist."""

    verdict: Verdict | None
    """None: undecided, the next batch has to be trained."""
    to_identity: Interval
    to_control: Interval | None
    """None where identity is the scale control."""
    seeds_to_settle: int | None
    """About how many seeds the questions still open would take, if what was seen is the truth; None
    where none is open or it is more than a thousand."""


def judge(
    to_identity: Mapping[int, float], to_control: Mapping[int, float] | None, plan: Plan
) -> Finding:
    """Return what the paired differences {seed: finalist minus other arm} say at this look.

    `to_control` is None where the initial scale is compensated: identity is the scale control then.
    After `plan.seeds` seeds there is always a verdict. ValueError if the number of seeds is not one
    of `plan.looks`, if the two have different seeds, or if a difference is not finite.
    """
    _check(to_identity, to_control, plan)
    differences = [to_identity] if to_control is None else [to_identity, to_control]
    samples = [_Sample.of(list(by_seed.values())) for by_seed in differences]
    outcomes = [_outcome(sample, plan) for sample in samples]
    return Finding(
        verdict=_verdict(outcomes[0], outcomes[-1]),
        to_identity=_interval(samples[0]),
        to_control=None if to_control is None else _interval(samples[1]),
        seeds_to_settle=_seeds_to_settle(samples, outcomes, plan),
    )


def _check(
    to_identity: Mapping[int, float], to_control: Mapping[int, float] | None, plan: Plan
) -> None:
    if len(to_identity) not in plan.looks:
        raise ValueError(
            f"{len(to_identity)} seeds are not a look of this plan; judge after one of {plan.looks}"
        )
    if to_control is not None and to_control.keys() != to_identity.keys():
        raise ValueError("identity and the scale control are compared on different seeds")
    for by_seed in (to_identity, to_control or {}):
        for seed, difference in by_seed.items():
            if not math.isfinite(difference):
                raise ValueError(f"the difference of seed {seed} is {difference}, not a number")


@dataclass(frozen=True)
class _Sample:
    """Paired differences of one comparison."""

    mean: float
    spread: float
    """Sample standard deviation."""
    size: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Sample":
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))

    @property
    def error(self) -> float:
        return self.spread / math.sqrt(self.size)

    def chance(self) -> float:
        """Return the one-sided p-value of a mean above zero: Student's t."""
        if self.spread == 0:
            return 0.5 if self.mean == 0 else float(self.mean < 0)
        return float(stdtr(self.size - 1, -self.mean / self.error))


def _outcome(sample: _Sample, plan: Plan) -> Outcome:
    """Return whether the mean is shown to be above or below zero, or may still be.

    Open is what may still turn out above zero. What is past hope of that is sinking if it is more
    likely than not to turn out below zero, futile if not.

    No chance below 2**-n is believed: it is the least that the signs of n differences can give
    (the sign test), and what Student's t says beyond it rests on tails nobody has seen.
    """
    above, share, least = sample.chance(), plan.share(sample.size), 0.5**sample.size
    if max(above, least) <= share:
        return "above"
    if max(1 - above, least) <= share:
        return "below"
    if sample.size == plan.seeds:
        return "futile"
    done = sample.size / plan.seeds
    # With z the normal quantile of the p-value, the score at the end is normal with mean
    # z / sqrt(done) and variance 1 - done, if the effect is what it seems to be now.
    trend, limit = -ndtri(above) / math.sqrt(done), -ndtri(plan.share(plan.seeds))
    if trend >= limit + ndtri(HOPELESS) * math.sqrt(1 - done):
        return "open"
    return "sinking" if -trend >= limit else "futile"


def _verdict(identity: Outcome, control: Outcome) -> Verdict | None:
    """Return the verdict; None as long as another batch can change it."""
    if identity == "below":
        return "worse"
    if identity == control == "above":
        return "better"
    if identity == "above":
        return None if control == "open" else "scale_only"
    return "no_evidence" if identity == "futile" else None


def _interval(sample: _Sample) -> Interval:
    """Return the 95 % interval of a single mean, mean ± t s / sqrt(n)."""
    reach = float(stdtrit(sample.size - 1, 0.975)) * sample.error
    return Interval(sample.mean, sample.mean - reach, sample.mean + reach, sample.size)


def _seeds_to_settle(
    samples: Sequence[_Sample], outcomes: Sequence[Outcome], plan: Plan
) -> int | None:
    """Return n = ((z_a + z_power) s / m)**2 + z_a**2 / 2 of the hardest open question.

    The usual size of a one-sided t test (Guenther 1981), without the small price of the looks; at
    least so many that 2**-n is below the level.
    """
    unsettled = [
        sample
        for sample, outcome in zip(samples, outcomes, strict=True)
        if outcome not in ("above", "below")
    ]
    if not unsettled:
        return None
    limit, power = -ndtri(plan.one_sided), ndtri(POWER)
    seeds = math.ceil(-math.log2(plan.one_sided))
    for sample in unsettled:
        if abs(sample.mean) * math.sqrt(MOST_SEEDS) <= (limit + power) * sample.spread:
            return None
        effect = abs(sample.mean) / sample.spread if sample.spread else math.inf
        seeds = max(seeds, math.ceil(((limit + power) / effect) ** 2 + limit**2 / 2))
    return seeds
