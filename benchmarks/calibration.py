"""How often the chain from search to verdict errs, on simulated studies whose truth is known.

A study here is drawn, not trained: a value is an effect, what all arms share at a seed, and noise
of its own. The finalists are chosen and judged by densitune's code, with its defaults.

    python benchmarks/calibration.py --studies 2000 --json calibration.json
"""

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ratios
from numpy.random import Generator
from scipy.stats import binomtest

from optimizer import config, design, evidence, finalists, results
from optimizer.config import StudyConfig
from optimizer.evidence import Finding, Plan
from optimizer.results import TrialResult

Noise = Literal["normal", "heavy tails", "skewed", "lopsided"]

SEED_SPREAD = 3.0
"""What all arms share at a seed has this many times the standard deviation of an arm's noise."""
PAIRED = math.sqrt(2)
"""Standard deviation of a paired difference: the noise of two arms, of variance 1 each."""
FEWEST, MOST = 40, 200
"""Trials of a simulated search, drawn anew for every study."""


@dataclass(frozen=True)
class Scenario:
    """Studies whose truth is known; effects in standard deviations of the paired difference."""

    name: str
    noise: Noise
    effect: float = 0.0
    """Of the first finalist against identity; `everywhere`, of all."""
    control: float = 0.0
    """Of its scale control against identity."""
    everywhere: bool = False
    searched: bool = False
    """Whether the finalists come out of a simulated search, in which nothing has an effect."""
    compensated: bool = False
    """Whether identity is the scale control."""
    extended: bool = False
    """Whether a study without `better` is continued to twice the seeds."""


NOISES: tuple[Noise, ...] = ("normal", "heavy tails", "skewed", "lopsided")
SCENARIOS = (
    *(Scenario("nothing differs", noise, searched=True) for noise in NOISES),
    Scenario("nothing differs", "normal", searched=True, compensated=True),
    Scenario("nothing differs", "normal", searched=True, extended=True),
    *(Scenario("planted, 1 SD", noise, effect=1.0) for noise in NOISES),
    *(Scenario("planted, half an SD", noise, effect=0.5) for noise in NOISES[:2]),
    *(Scenario("planted, 2 SD", noise, effect=2.0) for noise in NOISES[:1]),
    *(Scenario("scale only, 1 SD", noise, 1.0, 1.0, everywhere=True) for noise in NOISES),
    *(Scenario("scale only, 3 SD", noise, 3.0, 3.0, everywhere=True) for noise in NOISES),
    *(Scenario("harmful, 1 SD", noise, effect=-1.0, everywhere=True) for noise in NOISES[:2]),
)  # fmt: skip


def draw(rng: Generator, noise: Noise, shape: tuple[int, ...], *, plain: bool) -> np.ndarray:
    """Return an arm's noise, mean 0 and variance 1; `plain` is an arm without a density.

    Heavy tails are Student's t with 3 degrees of freedom, skewed is an exponential distribution in
    which every arm is now and then much worse, lopsided the same for densities alone.
    """
    if noise == "normal" or (noise == "lopsided" and plain):
        return rng.standard_normal(shape)
    if noise == "heavy tails":
        return rng.standard_t(3, shape) / math.sqrt(3)
    return 1 - rng.exponential(size=shape)


def search(rng: Generator, noise: Noise, given: StudyConfig) -> list[TrialResult]:
    """Return the trials of a search in which every density trains exactly as identity does."""
    count = int(rng.integers(FEWEST, MOST + 1))
    box = given.density
    points = design.sobol(count, given.dimensions, int(rng.integers(2**31)))
    densities = [design.anchors(given.kernel_size)[0].densities] + [
        {given.kernel_size[0]: tuple(point)}
        for point in (box.low + (box.high - box.low) * points).tolist()
    ]
    shared = SEED_SPREAD * rng.standard_normal(len(given.seeds))
    values = shared + draw(rng, noise, (count + 1, len(shared)), plain=False)
    by_seed = [dict(zip(given.seeds, row, strict=True)) for row in values.tolist()]
    return [
        TrialResult(
            number=number,
            optuna_number=number,
            role="identity" if number == 0 else "candidate",
            label="",
            densities=density,
            values=by_seed[number],
            difference=results.paired(by_seed[number], by_seed[0]),
        )
        for number, density in enumerate(densities)
    ]


def confirm(rng: Generator, scenario: Scenario, plan: Plan) -> list[Finding]:
    """Return the last finding of every finalist, on fresh seeds."""
    seeds = 2 * plan.seeds
    shared = SEED_SPREAD * rng.standard_normal(seeds)
    identity = shared + draw(rng, scenario.noise, (seeds,), plain=True)
    found = []
    for index in range(plan.finalists):
        planted = index == 0 or scenario.everywhere
        effect, scale = (PAIRED * planted * size for size in (scenario.effect, scenario.control))
        finalist = effect + shared + draw(rng, scenario.noise, (seeds,), plain=False)
        control = scale + shared + draw(rng, scenario.noise, (seeds,), plain=True)
        other = None if scenario.compensated else finalist - control
        finding = sequence(finalist - identity, other, plan)
        if scenario.extended and finding.verdict != "better":
            finding = sequence(finalist - identity, other, replace(plan, seeds=seeds))
        found.append(finding)
    return found


def sequence(to_identity: np.ndarray, to_control: np.ndarray | None, plan: Plan) -> Finding:
    """Return the finding of the first look that gives a verdict."""
    for look in plan.looks:
        identity = dict(enumerate(to_identity[:look].tolist()))
        control = None if to_control is None else dict(enumerate(to_control[:look].tolist()))
        finding = evidence.judge(identity, control, plan)
        if finding.verdict is not None:
            return finding
    raise AssertionError("the last look gives a verdict")


def study(scenario: Scenario, given: StudyConfig, seed: int) -> list[Finding]:
    """Return what a study finds about its finalists; scenario and seed fix it."""
    rng = np.random.default_rng([SCENARIOS.index(scenario), seed])
    count = given.confirm.finalists
    if scenario.searched:
        count = len(finalists.choose(search(rng, scenario.noise, given), given))
    return confirm(rng, scenario, Plan(given.confirm.seeds, given.confirm.batch, count))


def summary(scenario: Scenario, studies: list[list[Finding]]) -> dict[str, Any]:
    """Return the shares of what came out; of the interval and the seeds, for the first finalist."""
    first = [found[0] for found in studies]
    truth = PAIRED * scenario.effect
    verdicts = Counter(finding.verdict for finding in first)
    covered = sum(one.to_identity.low <= truth <= one.to_identity.high for one in first)
    better = sum(any(one.verdict == "better" for one in found) for found in studies)
    return {
        "scenario": scenario.name,
        "noise": scenario.noise,
        "compensated": scenario.compensated,
        "extended": scenario.extended,
        "studies": len(studies),
        "any better": better / len(studies),
        "any better, 95 % interval": list(binomtest(better, len(studies)).proportion_ci(0.95)),
        "first finalist": {
            verdict: verdicts[verdict] / len(studies)
            for verdict in ("better", "scale_only", "no_evidence", "worse")
        },
        "covered": covered / len(studies),
        "error of the mean": statistics.fmean(one.to_identity.mean for one in first) - truth,
        "seeds": statistics.fmean(one.to_identity.seeds for one in first),
    }


def rows(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the lines of the table."""
    for one in found:
        notes = [note for note in ("compensated", "extended") if one[note]]
        low, high = one["any better, 95 % interval"]
        yield [
            ", ".join([one["scenario"], one["noise"], *notes]),
            f"{one['any better']:.1%} [{low:.1%}, {high:.1%}]",
            *(f"{share:.1%}" for share in one["first finalist"].values()),
            f"{one['covered']:.1%}",
            f"{one['seeds']:.1f}",
        ]


def defaults() -> StudyConfig:
    """Return a study of two values with every setting of the confirmation at its default."""
    raw = {
        "name": "calibration",
        "task": "photos",
        "proxy": {"family": "nafnet", "width": 8, "depth": 3},
        "kernel_size": 5,
        "training": {"budget": 1},
        "search": {"trials": MOST},
    }
    return config.parse(raw, "calibration")


def main() -> None:
    arguments = _arguments()
    given = defaults()
    found = []
    for scenario in SCENARIOS:
        studies = [study(scenario, given, seed) for seed in range(arguments.studies)]
        found.append(summary(scenario, studies))
        print(*next(rows(found[-1:])), flush=True)
    header = ["", "any better", "better", "scale only", "no evidence", "worse", "covered", "seeds"]
    print(
        f"\n{arguments.studies} studies each; {given.confirm}; seeds 0 to {arguments.studies - 1}"
    )
    print(ratios.table(header, list(rows(found))))
    if arguments.json:
        report = {"confirm": given.confirm.model_dump(), "trials": [FEWEST, MOST], "found": found}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
