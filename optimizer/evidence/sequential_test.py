"""What fresh seeds say about one finalist: a paired, sequential test and its verdict.

A finalist is compared with identity and with its controls on the same seeds, in batches: after
each batch, a look. Every look has its own share of the level, and the shares of all looks, both
directions and all finalists add up to it; so the level holds whatever the looks have in common
(Bonferroni's inequality). What a look has shown stays shown. docs/evidence.md has the reasons and
the simulations, which go by the same functions on arrays.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from optimizer.evidence.verdicts import Control, Verdict

Array = NDArray[np.float64]
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
    """None: undecided, more seeds have to be trained (or those of controls, see above_identity)."""
    above_identity: bool
    """Whether it is shown to be: only then is anything read from its controls."""
    to_identity: Interval
    to_controls: Mapping[Control, Interval]
    """By control, of those that were trained."""
    seeds_to_settle: int | None
    """About how many seeds the questions still open would take, if what was seen is the truth; None
    where none is open, where one of them leans below zero, or it is more than a thousand."""


def judge(
    to_identity: Mapping[int, float],
    to_controls: Mapping[Control, Mapping[int, float] | None],
    plan: Plan,
    diverged: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> Finding:
    """Return what the paired differences {seed: finalist minus other arm} say at this look.

    Seeds are taken in rising order, that of their batches. `to_controls` names the controls that
    `better` asks for (docs/evidence.md), with None for one that is not trained yet. As long as
    identity is not shown to be beaten, nothing depends on them. `diverged` names by arm, `identity`
    or a control, the seeds on which a floor stands for its score: see `outcomes`. After
    `plan.seeds` seeds of all arms there is always a verdict. ValueError if the number of seeds is
    not one of `plan.looks`, if the arms have different seeds, or if a difference is not finite.
    """
    trained = {name: found for name, found in to_controls.items() if found is not None}
    _check(to_identity, trained, plan)
    identity = _in_order(to_identity)
    controls = {name: _in_order(found) for name, found in trained.items()}
    lost = {
        arm: np.array([seed in diverged.get(arm, ()) for seed in sorted(to_identity)])
        for arm in ("identity", *controls)
    }
    own = cast(Outcome, outcomes(identity, plan, lost["identity"]).item())
    others: dict[Control, Outcome] = {
        name: cast(Outcome, outcomes(controls[name], plan, lost[name]).item())
        if name in controls
        else "open"
        for name in to_controls
    }
    unsettled = [
        counted(values, lost[arm])
        for arm, values, outcome in [
            ("identity", identity, own),
            *((name, controls[name], others[name]) for name in controls),
        ]
        if outcome not in ("above", "below")
    ]
    return Finding(
        verdict=_verdict(own, others),
        above_identity=own == "above",
        to_identity=_interval(identity),
        to_controls={name: _interval(values) for name, values in controls.items()},
        seeds_to_settle=_seeds_to_settle(unsettled, plan),
    )


def outcomes(
    differences: Array, plan: Plan, diverged: NDArray[np.bool_] | None = None
) -> NDArray[np.str_]:
    """Return whether means are shown to be above or below zero, or may still be: `Outcome`s.

    `differences` are (..., seeds), and the seeds so far are one of `plan.looks`. `diverged` tells
    of the same shape where the other arm did, by default nowhere: what it lost there counts for
    nothing towards above, and towards below as it was measured. The first look that showed
    something decides. Open is what may still turn out above zero. What is past hope of that is
    sinking if it is more likely than not to turn out below zero, futile if not.
    """
    lost = np.zeros(differences.shape, bool) if diverged is None else diverged
    found = at_look(differences, plan, lost)
    for look in reversed([look for look in plan.looks if look < differences.shape[-1]]):
        earlier = at_look(differences[..., :look], plan, lost[..., :look])
        found = np.where(np.isin(earlier, ("above", "below")), earlier, found)
    return found


def counted(differences: Array, diverged: NDArray[np.bool_]) -> Array:
    """Return differences as they count towards `above`: zero at most where the other arm diverged.

    A failure is no measure of how much better the finalist is. Counted as it is, a control that
    often fails is beaten by whatever fails less, for all such differences are alike.
    """
    return np.where(diverged, np.minimum(differences, 0.0), differences)


def at_look(differences: Array, plan: Plan, diverged: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Return what the last of the looks alone says.

    No chance below 2**-n is believed: it is the least that the signs of n differences other than
    zero can give (the sign test), and what Student's t says beyond it rests on tails nobody has
    seen.
    """
    size, share = differences.shape[-1], plan.share(differences.shape[-1])
    towards = counted(differences, diverged)
    above, below = _chance(towards), 1 - _chance(differences)
    shown = [
        np.maximum(chance, 0.5 ** np.count_nonzero(of, axis=-1)) <= share
        for chance, of in ((above, towards), (below, differences))
    ]
    if size == plan.seeds:
        return np.select(shown, ["above", "below"], "futile")
    done = size / plan.seeds
    # With z the normal quantile of the p-value, the score at the end is normal with mean
    # z / sqrt(done) and variance 1 - done, if the effect is what it seems to be now.
    limit = -ndtri(plan.share(plan.seeds))
    rising, falling = (-ndtri(chance) / math.sqrt(done) for chance in (above, below))
    hope = rising >= limit + ndtri(HOPELESS) * math.sqrt(1 - done)
    return np.select(
        [*shown, hope, falling >= limit], ["above", "below", "open", "sinking"], "futile"
    )


def _chance(differences: Array) -> Array:
    """Return the one-sided p-values of means above zero: Student's t."""
    size = differences.shape[-1]
    mean, spread = differences.mean(axis=-1), differences.std(axis=-1, ddof=1)
    flat = np.select([mean > 0, mean < 0], [0.0, 1.0], 0.5)  # all differences are the same
    error = np.where(spread == 0, 1.0, spread) / math.sqrt(size)
    chance: Array = np.where(spread == 0, flat, stdtr(size - 1, -mean / error))
    return chance


def _verdict(identity: Outcome, controls: Mapping[Control, Outcome]) -> Verdict | None:
    """Return the verdict; None as long as more seeds can change it."""
    if identity == "below":
        return "worse"
    if identity != "above":
        return "no_evidence" if identity == "futile" else None
    if all(outcome == "above" for outcome in controls.values()):
        return "better"
    scale = controls.get("control", "above")
    if scale not in ("above", "open"):
        return "scale_only"
    return None if "open" in controls.values() else "step_only"


def _check(
    to_identity: Mapping[int, float], to_controls: Mapping[Control, Mapping[int, float]], plan: Plan
) -> None:
    if len(to_identity) not in plan.looks:
        raise ValueError(
            f"{len(to_identity)} seeds are not a look of this plan; judge after one of {plan.looks}"
        )
    if any(found.keys() != to_identity.keys() for found in to_controls.values()):
        raise ValueError("identity and the controls are compared on different seeds")
    for by_seed in (to_identity, *to_controls.values()):
        for seed, difference in by_seed.items():
            if not math.isfinite(difference):
                raise ValueError(f"the difference of seed {seed} is {difference}, not a number")


def _in_order(by_seed: Mapping[int, float]) -> Array:
    return np.array([by_seed[seed] for seed in sorted(by_seed)])


def _interval(values: Array) -> Interval:
    """Return the 95 % interval of a single mean, mean ± t s / sqrt(n)."""
    size, mean = len(values), float(values.mean())
    half = reach(size) * float(values.std(ddof=1)) / math.sqrt(size)
    return Interval(mean, mean - half, mean + half, size)


def reach(size: int) -> float:
    """Return how far a 95 % interval of a mean of so many values reaches, in standard errors."""
    return float(stdtrit(size - 1, 0.975))


def _seeds_to_settle(unsettled: Sequence[Array], plan: Plan) -> int | None:
    """Return n = ((z_a + z_power) s / m)**2 + z_a**2 / 2 of the hardest open question.

    The usual size of a one-sided t test (Guenther 1981), without the small price of the looks; at
    least so many that 2**-n is below the level. A question that leans below zero has none: more
    seeds would more likely show the opposite.
    """
    if not unsettled:
        return None
    limit, power = -ndtri(plan.one_sided), ndtri(POWER)
    seeds = math.ceil(-math.log2(plan.one_sided))
    for values in unsettled:
        mean, spread = float(values.mean()), float(values.std(ddof=1))
        if mean * math.sqrt(MOST_SEEDS) <= (limit + power) * spread:
            return None
        effect = mean / spread if spread else math.inf
        seeds = max(seeds, math.ceil(((limit + power) / effect) ** 2 + limit**2 / 2))
    return seeds
