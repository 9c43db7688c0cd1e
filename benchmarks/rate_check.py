"""How often the rate check says yes: studies drawn instead of trained, with a truth that is known.

Every arm has a best rate and loses from there with the square of the distance in log(rate). The
check's own functions grow the grids, choose the rates and judge the fresh seeds. Effects are in
standard deviations of a paired difference (SD), distances in half decades, which is how far the
rates of a grid lie apart.

    OMP_NUM_THREADS=1 python benchmarks/rate_check.py --studies 10000
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import numpy as np
from helpers import confirmations
from helpers.confirmations import Policy
from helpers.simulation import PAIRED, SEED_SPREAD, Array, Noise, draw
from numpy.random import Generator
from scipy.stats import binomtest

from optimizer import learning_rates
from optimizer.config.sections import Confirm
from optimizer.config.study_file import RATE_SEEDS
from optimizer.evidence import own_rates
from optimizer.evidence.sequential_test import Plan
from optimizer.evidence.verdicts import Control

RATE = 0.01
"""Of the study."""
SEEDS = (12, 24, 36)
"""How many the comparison has. The check takes as many as the verdict did, but at most
own_rates.MOST: the last number shows what more would do."""
Found = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """What arms reach at which rates."""

    name: str
    bend: float = 1.0
    """SD that an arm loses half a decade from its best rate."""
    top: float = 0.0
    """SD by which the winner at its best rate, which reaches 0, is above the others at theirs."""
    below: Mapping[str, float] = field(default_factory=dict)
    """The same of arms of which it is another."""
    best: Mapping[str, float] = field(default_factory=dict)
    """By arm, how many half decades above the study's rate its best one lies."""
    noise: Noise = "normal"
    controls: tuple[Control, ...] = get_args(Control)
    flat: bool = False
    """Whether the winner reaches the same at every rate."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the arms of the check."""
        return ("identity", "finalist", *self.controls)

    def reached(self, arm: str, rate: float) -> float:
        """Return what an arm reaches at a rate, SD."""
        own = arm == "finalist"
        away = math.log10(rate / RATE) / learning_rates.STEP - self.best.get(arm, 0.0)
        lost = self.bend * away**2 * (not (self.flat and own))
        return -lost if own else -self.below.get(arm, self.top) - lost


NOISES: tuple[Noise, ...] = ("heavy tails", "skewed", "lopsided", "lognormal")
AWAY = dict.fromkeys(("identity", "control", "uniform"), 1.0)
ONE_CLOSE = {"identity": 1.5, "control": 1.2, "uniform": 0.0}
"""One control is as good as the winner; the other one comes closest at the study's rate."""
ALONE: dict[str, Any] = {"controls": ()}
TRUTHS = (
    *(Truth("all at the study's rate", bend) for bend in (0.3, 1.0, 4.0)),
    *(Truth("the others half a decade away", bend, best=AWAY) for bend in (0.3, 1.0, 4.0)),
    *(Truth("one control so, half a decade away", bend, below=ONE_CLOSE, best={"uniform": 1.0})
      for bend in (0.3, 1.0, 4.0)),
    *(Truth("one control so, a decade away", bend, below=ONE_CLOSE, best={"uniform": 2.0})
      for bend in (0.3, 1.0, 4.0)),
    Truth("identity at the study's rate", 0.3, **ALONE),
    *(Truth("identity half a decade away", bend, best=AWAY, **ALONE)
      for bend in (0.2, 0.3, 1.0, 4.0)),
    *(Truth("the same", 1.0, best=AWAY, noise=noise, **ALONE) for noise in NOISES),
    Truth("the same", 0.3, best=AWAY, noise="lopsided", **ALONE),
    Truth("the same, the winner at any rate", 1.0, best=AWAY, flat=True, **ALONE),
    *(Truth("identity a decade away", bend, best={"identity": 2.0}, **ALONE)
      for bend in (0.1, 0.3, 1.0)),
    *(Truth("identity a decade below", bend, best={"identity": -2.0}, **ALONE)
      for bend in (0.1, 0.3)),
    *(Truth("identity 1.25 decades away", bend, best={"identity": 2.5}, **ALONE)
      for bend in (0.1, 0.3)),
    *(Truth("the winner better", 1.0, top, best=AWAY) for top in (0.5, 0.75, 1.0, 1.5, 2.0)),
    *(Truth("the winner better, no control", 1.0, top, best=AWAY, **ALONE)
      for top in (0.5, 0.75, 1.0, 1.5, 2.0)),
)  # fmt: skip


def own_rate(rng: Generator, truth: Truth, arm: str) -> tuple[float, int]:
    """Return the rate that the check chooses for an arm, and how many it tried."""
    shared = SEED_SPREAD * rng.standard_normal(RATE_SEEDS)
    scores: dict[float, float] = {}
    new = learning_rates.around(RATE)
    while new:
        scores |= {rate: float((_values(rng, truth, arm, rate, shared)).mean()) for rate in new}
        further = learning_rates.beyond(RATE, scores, scores)
        new = [] if further is None else [further]
    return learning_rates.best(scores), len(scores)


def study(
    rng: Generator, truth: Truth, counts: Sequence[int] = SEEDS
) -> tuple[dict[int, bool], float, int]:
    """Return by number of seeds whether a check says yes, the others' loss, and the rates tried.

    The loss is the larger one of what the arms beside the winner lose at their chosen rates, SD.
    """
    rates = {arm: own_rate(rng, truth, arm) for arm in truth.arms}
    shared = SEED_SPREAD * rng.standard_normal(max(counts))
    values = {arm: _values(rng, truth, arm, rate, shared) for arm, (rate, _) in rates.items()}
    said = {}
    for seeds in counts:
        to = {
            arm: dict(enumerate((values["finalist"] - values[arm])[:seeds].tolist()))
            for arm in truth.arms
            if arm != "finalist"
        }
        beside = {name: to[name] for name in truth.controls}
        said[seeds] = own_rates.holds(to["identity"], beside, {})
    lost = [
        -truth.below.get(arm, truth.top) - truth.reached(arm, rates[arm][0])
        for arm in truth.arms
        if arm != "finalist"
    ]
    return said, max(lost), sum(tried for _, tried in rates.values())


def _values(rng: Generator, truth: Truth, arm: str, rate: float, shared: Array) -> Array:
    own = draw(rng, truth.noise, shared.shape, plain=arm == "identity")
    return PAIRED * truth.reached(arm, rate) + shared + own


def of_truth(number: int, studies: int) -> Found:
    """Return how often checks say yes where this is the truth."""
    truth, rng = TRUTHS[number], np.random.default_rng(number)
    found = [study(rng, truth) for _ in range(studies)]
    yes = {seeds: sum(said[seeds] for said, _, _ in found) for seeds in SEEDS}
    tried = statistics.fmean(tried for _, _, tried in found)
    return {
        "truth": truth,
        "yes": {seeds: count / studies for seeds, count in yes.items()},
        "interval": {s: binomtest(count, studies).proportion_ci(0.95) for s, count in yes.items()},
        "lost": statistics.fmean(lost for _, lost, _ in found),
        "jobs": {seeds: RATE_SEEDS * tried + len(truth.arms) * seeds for seeds in SEEDS},
    }


def after_a_better(effect: float, controls: tuple[Control, ...], studies: int) -> list[str]:
    """Return how often a `better` gets its yes, by as many seeds as its verdict took, as a line.

    All three finalists of a confirmation have the effect, at the study's rate and at any other.
    """
    rng, given = np.random.default_rng([round(100 * effect), len(controls)]), Confirm()
    finalists = confirmations.Truth((effect,) * 3)
    policy = Policy(Plan(given.seeds, given.batch, 3), given.keep, controls)
    drawn = confirmations.drawn(rng, finalists, studies, given.seeds)
    raced = confirmations.race(drawn, finalists, policy)
    took = raced.seeds[raced.verdicts == "better"]
    counts = np.clip(took, own_rates.LEAST, own_rates.MOST).tolist()
    truth = Truth("", top=effect, controls=controls)
    yes = sum(study(rng, truth, [count])[0][count] for count in counts)
    low, high = binomtest(yes, len(counts)).proportion_ci(0.95)
    share = f"{yes / len(counts):.1%} [{low:.1%}, {high:.1%}]"
    seeds = f"{took.mean():.0f} / {statistics.fmean(counts):.0f}"
    return [f"{effect:g}", str(len(controls)), seeds, share]


def row(one: Found) -> list[str]:
    """Return a truth's line of the table."""
    truth: Truth = one["truth"]
    return [
        truth.name,
        f"{truth.top:g}",
        f"{truth.bend:g}",
        truth.noise,
        *(
            f"{one['yes'][seeds]:.2%} [{low:.2%}, {high:.2%}]"
            for seeds, (low, high) in one["interval"].items()
        ),
        f"{one['lost']:.2f}",
        " / ".join(f"{jobs:.0f}" for jobs in one["jobs"].values()),
    ]


HEADER = [
    "best rates", "effect, SD", "bend, SD", "noise", *(f"yes, {seeds} seeds" for seeds in SEEDS),
    "lost, SD", "jobs",
]  # fmt: skip

AFTER = ["effect, SD", "controls", "seeds of the verdict / of the check", "yes after a better"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n| {' | '.join(['---'] * len(HEADER))} |")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for one in pool.map(partial(of_truth, studies=arguments.studies), range(len(TRUTHS))):
            print(f"| {' | '.join(row(one))} |", flush=True)
    print(f"\n| {' | '.join(AFTER)} |\n| {' | '.join(['---'] * len(AFTER))} |")
    for effect in (0.5, 0.75, 1.0, 1.5):
        for controls in (get_args(Control), ()):
            line = after_a_better(effect, controls, arguments.studies // 2)
            print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
