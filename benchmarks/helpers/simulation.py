"""Studies that are drawn instead of trained, from search to verdict, with a truth that is known.

A value is an effect, what all arms share at a seed, and noise of its own. Densities are cut, chosen
and judged by densitune's code; only Optuna's sampler is replaced by a quick stand-in. Effects are
in standard deviations of a paired difference (SD) until `effects` puts them in the metric's unit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from optimizer import design
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import finalists as choice
from optimizer.evidence import race, sequential_test
from optimizer.evidence.differences import Difference, TrialResult
from optimizer.evidence.sequential_test import Finding, Plan
from optimizer.evidence.verdicts import Control, Verdict
from optimizer.phases import bars

Array = NDArray[np.float64]
Noise = Literal["normal", "heavy tails", "skewed", "lopsided", "lognormal", "failures"]
Shape = Literal["nothing", "everywhere", "region", "scale", "steps"]

PAIRED = math.sqrt(2)
"""Standard deviation of a paired difference: the noise of two arms, of variance 1 each."""
SEED_SPREAD = 3.0
"""What all arms share at a seed has this many times the standard deviation of an arm's noise."""
REGIONAL = 0.5
"""Share of the noise's variance that neighbouring densities of a search have in common."""
ROUGH = 3.0
"""Standard deviation of that common part's wave numbers, per unit of a density's values."""
EARLY = 0.7
"""Correlation of an arm's noise at the rung with that at the end."""
FEWEST, MOST = 40, 200
"""Trials of a simulated search, drawn anew for every study."""
RADIUS, EDGE = 0.5, 0.2
"""Of a region with an effect, and of the normal curve by which the effect falls off around it."""
RARE, FLOOR = 0.04, -10.0
"""Chance of a failure, and its score in standard deviations of the noise of what does not fail."""
NEARBY = 0.2
"""Standard deviation with which proposals lie around the best trial so far."""


@dataclass(frozen=True)
class Scenario:
    """Studies of one kind."""

    name: str
    shape: Shape
    size: float
    """The largest effect against identity, SD; below zero it does harm."""
    noise: Noise
    normalised: bool = False
    """Whether identity is the only control."""
    extended: bool = False
    """Whether a finalist that is not `better` goes on with twice the seeds."""


@dataclass(frozen=True)
class Judged:
    """A finalist's true effect against identity, what is said of it and what was found last."""

    truth: float
    verdict: Verdict
    finding: Finding

    @property
    def covered(self) -> bool:
        """Whether the interval against identity has the truth in it."""
        return self.finding.to_identity.low <= self.truth <= self.finding.to_identity.high


def study(scenario: Scenario, given: StudyConfig, seed: int) -> list[Judged]:
    """Return what a study finds about its finalists; scenario and seed fix it."""
    rng = np.random.default_rng([*scenario.name.encode(), *scenario.noise.encode(), seed])
    search = Search(rng, scenario, given)
    truths = [float(search.truths[n]) for n in choice.choose(search.results(), given)]
    plan = Plan(given.confirm.seeds, given.confirm.batch, len(truths))
    return confirm(rng, scenario, truths, plan, given.confirm.keep)


def draw(rng: Generator, noise: Noise, shape: tuple[int, ...], *, plain: bool) -> Array:
    """Return an arm's noise, mean 0 and variance 1; `plain` is an arm without a density.

    Heavy tails are Student's t with 3 degrees of freedom, skewed is an exponential distribution in
    which every arm is now and then much worse, lopsided the same for densities alone; lognormal is
    much longer to that side, and with failures one seed in 25 scores a floor far below the others.
    """
    if noise == "lognormal":
        values = 1 - np.exp(rng.standard_normal(shape) - 0.5)  # mean 0
        return values / math.sqrt(math.e - 1)
    if noise == "failures":
        values = np.where(rng.random(shape) < RARE, FLOOR, rng.standard_normal(shape))
        return _standardised(values)
    if noise == "normal" or (noise == "lopsided" and plain):
        return rng.standard_normal(shape)
    if noise == "heavy tails":
        return rng.standard_t(3, shape) / math.sqrt(3)
    return 1 - rng.exponential(size=shape)


def failed(noise: Noise, values: Array) -> NDArray[np.bool_]:
    """Return which of an arm's noise are failures: the values of `draw` that score the floor."""
    if noise != "failures":
        return np.zeros(values.shape, bool)
    return np.asarray(values <= _standardised(np.array(FLOOR)))


def _standardised(values: Array) -> Array:
    """Return noise with failures in it, shifted and scaled to mean 0 and variance 1."""
    return (values - RARE * FLOOR) / math.sqrt(1 - RARE + RARE * (1 - RARE) * FLOOR**2)


def effects(scenario: Scenario, centre: Array, densities: Array) -> Array:
    """Return the true effects of densities (n, values) against identity, in the metric's unit."""
    share = np.full(len(densities), float(scenario.shape == "everywhere"))
    if scenario.shape == "region":
        beyond = np.maximum(0, np.linalg.norm(densities - centre, axis=1) - RADIUS)
        share = np.exp(-((beyond / EDGE) ** 2) / 2)
    if scenario.shape in (
        "scale",
        "steps",
    ):  # in two dimensions RMS(phi) is the mean square of alpha
        squares = (1 + 2 * (densities**2).sum(axis=1)) / (1 + 2 * densities.shape[1])
        share = np.clip(2 * (1 - squares), -1, 1)
    return PAIRED * scenario.size * np.where((densities == 1).all(axis=1), 0, share)


class Search:
    """A search of one kernel size: densities, and their values after the budget with every seed.

    After anchors and Sobol' points, proposals are by turns near the best trial so far and anywhere.
    A trial below its bar (optimizer.phases.bars), of which there is one before the budget, is cut.
    """

    def __init__(self, rng: Generator, scenario: Scenario, given: StudyConfig) -> None:
        self._rng, self._scenario, self._given = rng, scenario, given
        seeds, values, box = len(given.seeds), given.dimensions, given.density
        self._centre = rng.uniform(box.low, box.high, values)
        self._shared = SEED_SPREAD * rng.standard_normal(seeds)
        self._waves = rng.normal(0, ROUGH, (values, seeds))
        self._phases = rng.uniform(0, 2 * math.pi, seeds)
        self.densities, self.truths = np.empty((0, values)), np.empty(0)
        self.values, self._early = np.empty((0, seeds)), np.empty(0)
        self._reached, self._complete = np.empty(0, bool), np.empty(0, bool)

        anchors = [den for anchor in given.anchors for den in anchor.densities.values()]
        self._train(np.array(anchors), cut=False)
        sobol = design.sobol(design.startup(values), values, int(rng.integers(2**31)))
        self._train(box.low + (box.high - box.low) * sobol)
        trials = rng.integers(FEWEST, MOST + 1)
        while len(self.densities) < trials:
            self._train(self._proposed(given.search.in_flight))

    def results(self) -> list[TrialResult]:
        """Return the complete trials, identity first."""
        seeds, k = self._given.seeds, self._given.kernel_size[0]
        differences = self.values - self.values[0]
        errors = differences.std(axis=1, ddof=1) / math.sqrt(len(seeds))
        found = []
        for n in np.flatnonzero(self._complete).tolist():
            by_seed = dict(zip(seeds, self.values[n].tolist(), strict=True))
            paired = dict(zip(seeds, differences[n].tolist(), strict=True))
            difference = Difference(float(differences[n].mean()), float(errors[n]), paired)
            densities = {k: tuple(self.densities[n].tolist())}
            role = "candidate" if n else "identity"
            found.append(TrialResult(n, n, role, "", densities, by_seed, difference))
        return found

    def _proposed(self, count: int) -> Array:
        """Return densities, by turns near the best of those trained to the end and anywhere."""
        box, firsts = self._given.density, np.where(self._reached, self.values[:, 0], -np.inf)
        new = self._rng.uniform(box.low, box.high, (count, self._given.dimensions))
        near = self.densities[firsts.argmax()] + self._rng.normal(0, NEARBY, new[::2].shape)
        new[::2] = near.clip(box.low, box.high)
        return new

    def _train(self, new: Array, *, cut: bool = True) -> None:
        """Measure densities, which are in flight at once, and take them in."""
        truths = effects(self._scenario, self._centre, new)
        noise, early = self._noise(new)
        values = truths[:, None] + self._shared + noise
        early += truths + self._shared[0]
        reached = early >= self._bar(self._early, cut)
        complete = reached & (values[:, 0] >= self._bar(self.values[self._reached, 0], cut))
        self.densities = np.concatenate([self.densities, new])
        self.truths = np.concatenate([self.truths, truths])
        self.values = np.concatenate([self.values, values])
        self._early = np.concatenate([self._early, early])
        self._reached = np.concatenate([self._reached, reached])
        self._complete = np.concatenate([self._complete, complete])

    def _noise(self, new: Array) -> tuple[Array, Array]:
        """Return noise after the budget (n, seeds), and of the first seed at the rung (n,)."""
        own = draw(self._rng, self._scenario.noise, (len(new), len(self._shared)), plain=False)
        regional = math.sqrt(2) * np.cos(new @ self._waves + self._phases)
        noise = math.sqrt(REGIONAL) * regional + math.sqrt(1 - REGIONAL) * own
        other = draw(self._rng, self._scenario.noise, (len(new),), plain=False)
        return noise, EARLY * noise[:, 0] + math.sqrt(1 - EARLY**2) * other

    def _bar(self, told: Array, cut: bool) -> float:
        if not cut or len(told) < bars.LEAST:
            return -math.inf
        at = (1 - self._given.search.keep) * (len(told) - 1)
        return float(np.interp(at, np.arange(len(told)), np.sort(told)))  # np.quantile, but quick


def confirm(
    rng: Generator, scenario: Scenario, truths: Sequence[float], plan: Plan, keep: Sequence[int]
) -> list[Judged]:
    """Return the last finding on every finalist, on fresh seeds; truths in the metric's unit."""
    seeds = 2 * plan.seeds if scenario.extended else plan.seeds
    effects, shape = np.array(truths)[:, None], (len(truths), seeds)
    shared = SEED_SPREAD * rng.standard_normal(seeds)
    plain = draw(rng, scenario.noise, (seeds,), plain=True)
    identity = shared + plain
    diverged = {"identity": np.broadcast_to(failed(scenario.noise, plain), shape)}
    finalists = effects + shared + draw(rng, scenario.noise, shape, plain=False)
    control = effects * (scenario.shape == "scale")
    uniform = effects * (scenario.shape in ("scale", "steps"))
    others: dict[Control, Array] = {}
    if not scenario.normalised:
        effects_of: dict[Control, Array] = {"control": control, "uniform": uniform}
        for name, effect in effects_of.items():
            own = draw(rng, scenario.noise, shape, plain=True)
            others[name] = finalists - effect - shared - own
            diverged[name] = failed(scenario.noise, own)
    judged = follow(finalists - identity, others, plan, keep, diverged=diverged)
    if scenario.extended:
        more, first = replace(plan, seeds=seeds), judged
        settled = {n: one for n, one in enumerate(first) if one[0] in ("better", "dropped")}
        known = [finding.to_identity.seeds for _, finding in first]
        judged = follow(finalists - identity, others, more, keep, settled, known, diverged=diverged)
    return [Judged(truth, *one) for truth, one in zip(truths, judged, strict=True)]


def follow(
    to_identity: Array,
    to_controls: Mapping[Control, Array],
    plan: Plan,
    keep: Sequence[int],
    settled: Mapping[int, tuple[Verdict, Finding]] = MappingProxyType({}),
    known: Sequence[int] = (),
    *,
    diverged: Mapping[str, NDArray[np.bool_]] = MappingProxyType({}),
) -> list[tuple[Verdict, Finding]]:
    """Return verdict and last finding of each finalist, as optimizer.phases.confirmation would.

    Differences, and by arm where it diverged, are (finalists, seeds). In an extended study some
    finalists are settled, and the others begin with the seeds that are known.
    """
    said, above = dict(settled), set[int]()
    for looks, size in enumerate(plan.looks, start=1):
        undecided = {}
        for n in range(len(to_identity)):
            if n in said or (known and size < known[n]):
                continue
            own = dict(enumerate(to_identity[n, :size].tolist()))
            others = {name: dict(enumerate(of[n, :size])) for name, of in to_controls.items()}
            trained = others if n in above else dict.fromkeys(others)
            lost = {arm: np.flatnonzero(of[n, :size]).tolist() for arm, of in diverged.items()}
            finding = sequential_test.judge(own, trained, plan, lost)
            if finding.verdict is None:
                undecided[n] = finding, sequential_test.judge(own, others, plan, lost)
            else:
                said[n] = finding.verdict, finding
        means = {n: finding.to_identity.mean for n, (finding, _) in undecided.items()}
        on = race.going_on(means, looks, keep)
        for n, (before, after) in undecided.items():
            if n not in on:
                said[n] = "dropped", before
            elif after.verdict is not None:
                said[n] = after.verdict, after
            above |= {n} if after.above_identity else set()
    return [said[n] for n in range(len(to_identity))]
