"""How often an audit errs: densities drawn instead of trained, whose true ranks are known.

True differences of the proxy and of the larger network are normal with a given rank correlation.
Measured ones have noise in both, of which a part may be a seed's own and shared by neighbouring
densities. The audit's own functions compute interval, ceiling and sentence.

    OMP_NUM_THREADS=1 python benchmarks/audit_errors.py --studies 1000
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from helpers.simulation import Array
from numpy.random import Generator
from scipy.stats import binomtest

from optimizer.evidence import audit

Found = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """What is so of an audit; noise is that of a single difference, in units of the true spread."""

    rank: float
    """Spearman's correlation of the true differences."""
    arms: int = 12
    """Beside identity."""
    noise: float = 0.5
    seeds: tuple[int, int] = (2, 4)
    """Of the search, and of the audit."""
    regional: float = 0.0
    """Share of the noise's variance by which a seed favours densities on one side of the box."""
    flat: bool = False
    """Whether all densities are the same on the larger network."""
    harmful: tuple[float, ...] = ()
    """By how much so many densities, of all, are below the others on both networks; their truths
    are the same there, and the spread of the others is not 1 but `plateau`."""
    plateau: float = 1.0

    @property
    def slope(self) -> float:
        """Return Pearson's correlation of normal numbers with this rank correlation (1907)."""
        return 2 * math.sin(math.pi * self.rank / 6)

    @property
    def measured(self) -> float:
        """Return the rank correlation of means over so many seeds, which the interval is of."""
        if self.flat:
            return 0.0
        variances = [1 + self.noise**2 / seeds for seeds in self.seeds]
        return 6 / math.pi * math.asin(self.slope / 2 / math.sqrt(math.prod(variances)))


RANKS = (-0.5, 0.0, 0.3, 0.5, 0.7, 0.9)
TRUTHS = (
    *(Truth(rank) for rank in RANKS),
    *(Truth(rank, noise=1.5) for rank in (0.0, 0.3, 0.7, 0.9)),
    *(Truth(rank, noise=0.2, seeds=(3, 6)) for rank in (0.0, 0.3, 0.7, 0.9)),
    *(Truth(rank, arms=24) for rank in (0.0, 0.3, 0.7, 0.9)),
    *(Truth(rank, regional=0.5) for rank in (0.3, 0.7)),
    Truth(0.0, flat=True),
    *(Truth(rank, arms=7, noise=0.2, seeds=(3, 6)) for rank in (0.0, 0.3, 0.5, 0.7)),
    *(Truth(rank, arms=8, noise=0.2, seeds=(3, 6)) for rank in (0.3, 0.5)),
    *(Truth(rank, noise=0.2, seeds=(3, 6)) for rank in (0.5, 0.6)),
    *(
        Truth(1.0, arms=arms, noise=1.0, harmful=harmful, plateau=0.3)
        for arms, harmful in ((12, (10.0, 20.0)), (24, (10.0, 20.0)), (40, (5.0, 10.0, 20.0)))
    ),
    Truth(1.0, arms=24, noise=1.0, harmful=(26.0,) * 4, plateau=0.3),  # the floors of divergence
)


def drawn(rng: Generator, truth: Truth) -> tuple[Array, Array]:
    """Return differences on the proxy and on the larger network, (arms, seeds) each."""
    one = rng.standard_normal(truth.arms)
    other = truth.slope * one + math.sqrt(1 - truth.slope**2) * rng.standard_normal(truth.arms)
    if truth.harmful:
        one = truth.plateau * one
        one[: len(truth.harmful)] = -np.array(truth.harmful)
        other = one
    measured = []
    for values, seeds in zip((one, other * (not truth.flat)), truth.seeds, strict=True):
        own = rng.standard_normal((truth.arms, seeds))
        sided = one[:, None] * rng.standard_normal(seeds)
        noise = math.sqrt(1 - truth.regional) * own + math.sqrt(truth.regional) * sided
        measured.append(values[:, None] + truth.noise * noise)
    return measured[0], measured[1]


def of_truth(number: int, studies: int) -> Found:
    """Return how often an audit says what where this is the truth, and how often it covers."""
    truth, rng = TRUTHS[number], np.random.default_rng(number)
    said, covered, ceilings = [], 0, []
    for _ in range(studies):
        found = audit.rank_correlation(*(_table(values) for values in drawn(rng, truth)))
        assert found is not None
        said.append(audit.found(found))
        covered += found.low <= truth.measured <= found.high
        ceilings.append(found.ceiling or 0.0)
    return {
        "truth": truth,
        **{finding: said.count(finding) for finding in ("carries_over", "does_not", "open")},
        "covered": covered / studies,
        "ceiling": float(np.mean(ceilings)),
        "studies": studies,
    }


def _table(values: Array) -> audit.Table:
    return {
        number: {seed: float(value) for seed, value in enumerate(row)}
        for number, row in enumerate(values, start=1)
    }


HEADER = [
    "true rank correlation", "arms", "noise, seeds", "ceiling", "carries over", "does not",
    "cannot be told", "covered",
]  # fmt: skip


def row(one: Found) -> list[str]:
    """Return a truth's line of the table."""
    truth: Truth = one["truth"]
    rank = "none: all the same there" if truth.flat else f"{truth.rank:g}"
    if truth.harmful:
        rank += f", spread {truth.plateau:g} beside {', '.join(f'-{by:g}' for by in truth.harmful)}"
    beside = ", half of it a seed's favour" if truth.regional else ""
    return [
        rank,
        str(truth.arms),
        f"{truth.noise:g}, {truth.seeds[0]} and {truth.seeds[1]}{beside}",
        f"{one['ceiling']:.2f}",
        *(_share(one[finding], one["studies"]) for finding in ("carries_over", "does_not")),
        f"{one['open'] / one['studies']:.1%}",
        "" if truth.harmful else f"{one['covered']:.1%}",  # no formula for what it should be
    ]


def _share(count: int, studies: int) -> str:
    low, high = binomtest(count, studies).proportion_ci(0.95)
    return f"{count / studies:.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n| {' | '.join(['---'] * len(HEADER))} |")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for one in pool.map(partial(of_truth, studies=arguments.studies), range(len(TRUTHS))):
            print(f"| {' | '.join(row(one))} |", flush=True)


if __name__ == "__main__":
    main()
