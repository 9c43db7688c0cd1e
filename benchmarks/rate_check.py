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
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from helpers.simulation import PAIRED, SEED_SPREAD, Array, Noise, draw
from numpy.random import Generator
from scipy.stats import binomtest

from optimizer import learning_rates
from optimizer.config.study_file import RATE_SEEDS
from optimizer.evidence import own_rates
from optimizer.evidence.verdicts import Control

RATE = 0.01
"""Of the study."""
SEEDS = (12, 24)
"""How many a verdict took, and so the comparison has."""
Found = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """What arms reach at which rates."""

    name: str
    bend: float = 1.0
    """SD that an arm loses half a decade from its best rate."""
    top: float = 0.0
    """SD by which the winner at its best rate is above the others at theirs."""
    best: Mapping[str, float] = field(default_factory=dict)
    """By arm, how many half decades above the study's rate its best one lies."""
    noise: Noise = "normal"
    control: bool = True
    """Whether there is one beside identity."""
    flat: bool = False
    """Whether the winner reaches the same at every rate."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the arms of the check."""
        return ("identity", "finalist", "uniform") if self.control else ("identity", "finalist")

    def reached(self, arm: str, rate: float) -> float:
        """Return what an arm reaches at a rate, SD."""
        own = arm == "finalist"
        away = math.log10(rate / RATE) / learning_rates.STEP - self.best.get(arm, 0.0)
        return self.top * own - self.bend * away**2 * (not (self.flat and own))


NOISES: tuple[Noise, ...] = ("heavy tails", "skewed", "lopsided", "lognormal")
AWAY = {"identity": 1.0, "uniform": 1.0}
TRUTHS = (
    *(Truth("all at the study's rate", bend) for bend in (0.3, 1.0, 4.0)),
    *(Truth("the others half a decade away", bend, best=AWAY) for bend in (0.3, 1.0, 4.0)),
    *(Truth("the others a quarter away", bend, best={"identity": 0.5, "uniform": 0.5})
      for bend in (0.3, 1.0, 4.0)),
    *(Truth("identity half a decade away", bend, best=AWAY, control=False)
      for bend in (0.3, 1.0, 4.0)),
    *(Truth("the same", 1.0, best=AWAY, control=False, noise=noise) for noise in NOISES),
    Truth("the same, the winner at any rate", 1.0, best=AWAY, control=False, flat=True),
    *(Truth("identity 1.25 decades away", bend, best={"identity": 2.5}, control=False)
      for bend in (0.1, 0.3, 1.0)),
    *(Truth("the winner better", 1.0, top, best=AWAY) for top in (0.5, 1.0, 1.5, 2.0)),
    *(Truth("the winner better, no control", 1.0, top, best=AWAY, control=False)
      for top in (0.5, 1.0, 1.5, 2.0)),
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


def study(rng: Generator, truth: Truth) -> tuple[dict[int, bool], float, int]:
    """Return by number of seeds whether a check says yes, the others' loss, and the rates tried.

    The loss is the larger one of what the arms beside the winner lose at their chosen rates, SD.
    """
    rates = {arm: own_rate(rng, truth, arm) for arm in truth.arms}
    shared = SEED_SPREAD * rng.standard_normal(max(SEEDS))
    values = {arm: _values(rng, truth, arm, rate, shared) for arm, (rate, _) in rates.items()}
    said = {}
    for seeds in SEEDS:
        to = {
            arm: dict(enumerate((values["finalist"] - values[arm])[:seeds].tolist()))
            for arm in truth.arms
            if arm != "finalist"
        }
        control: Control | None = "uniform" if truth.control else None
        said[seeds] = own_rates.holds(to["identity"], to.get("uniform"), control, {})
    lost = [-truth.reached(arm, rates[arm][0]) for arm in truth.arms if arm != "finalist"]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n| {' | '.join(['---'] * len(HEADER))} |")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for one in pool.map(partial(of_truth, studies=arguments.studies), range(len(TRUTHS))):
            print(f"| {' | '.join(row(one))} |", flush=True)


if __name__ == "__main__":
    main()
