"""How often the chain from search to verdict errs, on simulated studies whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py --studies 2000 --json calibration.json
    OMP_NUM_THREADS=1 python benchmarks/calibration.py --studies 2000 --plans

The first prints the table of docs/evidence.md, the second compares sizes of a confirmation.
"""

import argparse
import json
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from helpers.simulation import FEWEST, MOST, PAIRED, Judged, Noise, Scenario, confirm, study
from scipy.stats import binomtest

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.evidence.sequential_test import Plan
from optimizer.evidence.verdicts import Verdict

Found = dict[str, Any]
Row = Callable[[Found], list[str]]

NOISES: tuple[Noise, ...] = ("normal", "heavy tails", "skewed", "lopsided")
SCENARIOS = (
    *(Scenario("nothing differs", "nothing", 0.0, noise) for noise in NOISES),
    Scenario("nothing differs", "nothing", 0.0, "normal", compensated=True),
    Scenario("nothing differs", "nothing", 0.0, "lopsided", compensated=True),
    Scenario("nothing differs", "nothing", 0.0, "normal", extended=True),
    *(Scenario("every density helps, 1 SD", "everywhere", 1.0, noise) for noise in NOISES),
    *(Scenario("a region helps, 1 SD", "region", 1.0, noise) for noise in NOISES),
    *(Scenario("a region helps, 0.5 SD", "region", 0.5, noise) for noise in NOISES[:2]),
    Scenario("a region helps, 2 SD", "region", 2.0, "normal"),
    *(Scenario("only scale helps, 1 SD", "scale", 1.0, noise) for noise in NOISES),
    *(Scenario("only scale helps, 3 SD", "scale", 3.0, noise) for noise in NOISES),
    *(Scenario("only scale helps, 3 SD", "scale", 3.0, noise, extended=True)
      for noise in ("normal", "lopsided")),
    *(Scenario("every density harms, 1 SD", "everywhere", -1.0, noise) for noise in NOISES[:2]),
)  # fmt: skip
VERDICTS: tuple[Verdict, ...] = ("better", "scale_only", "no_evidence", "worse")
PLANS = (
    *(Plan(*size, finalists=3) for size in ((12, 6), (18, 6), (24, 6), (36, 6))),
    *(Plan(24, batch, finalists=3) for batch in (24, 12, 3)),
    *(Plan(*size, finalists=1) for size in ((12, 6), (24, 6))),
)
"""Sizes of a confirmation that are compared."""


def defaults() -> StudyConfig:
    """Return a study of two values with every setting of the confirmation at its default."""
    raw = {
        "name": "calibration",
        "task": "photos",
        "proxy": {"family": "nafnet", "width": 8, "depth": 3},
        "kernel_size": 5,
        "training": {"budget": 2},
        "search": {"trials": MOST, "rungs": [1]},
    }
    return study_file.parse(raw, "calibration")


def summary(scenario: Scenario, studies: Sequence[Sequence[Judged]]) -> Found:
    """Return the shares of what came out; `first` is the first finalist, `best` the preset's.

    That is the `better` finalist with the largest mean difference; without one, of all finalists.
    """
    first = [found[0] for found in studies]
    best = [max(found, key=_rank) for found in studies]
    verdicts = Counter(one.finding.verdict for one in first)
    better = sum(_rank(one)[0] for one in best)
    return {
        "scenario": scenario.name,
        "noise": scenario.noise,
        "compensated": scenario.compensated,
        "extended": scenario.extended,
        "studies": len(studies),
        "any better": better / len(studies),
        "any better, 95 % interval": list(binomtest(better, len(studies)).proportion_ci(0.95)),
        "first": {verdict: verdicts[verdict] / len(studies) for verdict in VERDICTS},
        "first covered": statistics.fmean(one.covered for one in first),
        "best covered": statistics.fmean(one.covered for one in best),
        "first error": statistics.fmean(_error(one) for one in first),
        "best error": statistics.fmean(_error(one) for one in best),
        "seeds": statistics.fmean(one.finding.to_identity.seeds for one in first),
    }


def _rank(one: Judged) -> tuple[bool, float]:
    return one.finding.verdict == "better", one.finding.to_identity.mean


def _error(one: Judged) -> float:
    """Return by how much the mean is too large, SD."""
    return (one.finding.to_identity.mean - one.truth) / PAIRED


def of_scenario(scenario: Scenario, studies: int) -> Found:
    """Return the summary of so many studies, seeds from 0."""
    given = defaults()
    return summary(scenario, [study(scenario, given, seed) for seed in range(studies)])


def of_plan(plan: Plan, studies: int) -> Found:
    """Return what a confirmation of this size comes to for one of its finalists, without a search.

    Summaries by the finalist's effect, SD.
    """
    found = {}
    for effect in (0.0, 0.5, 1.0, -1.0):
        kind = Scenario(f"{effect} SD", "everywhere", effect, "normal")
        drawn = [
            confirm(np.random.default_rng([seed, 7]), kind, [PAIRED * effect], plan)
            for seed in range(studies)
        ]
        found[kind.name] = summary(kind, drawn)
    return {"finalists": plan.finalists, "seeds": plan.seeds, "batch": plan.batch, "found": found}


def scenario_row(one: Found) -> list[str]:
    """Return a scenario's line of the table."""
    notes = [note for note in ("compensated", "extended") if one[note]]
    low, high = one["any better, 95 % interval"]
    return [
        ", ".join([one["scenario"], one["noise"], *notes]),
        f"{one['any better']:.1%} [{low:.1%}, {high:.1%}]",
        *(f"{share:.1%}" for share in one["first"].values()),
        f"{one['first covered']:.1%}",
        f"{one['best covered']:.1%}",
        f"{one['seeds']:.1f}",
    ]


def plan_row(one: Found) -> list[str]:
    """Return a size's line of the table."""
    none, half, whole, harm = one["found"].values()
    return [
        *(str(one[key]) for key in ("finalists", "seeds", "batch")),
        *(f"{found['first']['better']:.1%}" for found in (whole, half)),
        f"{whole['first covered']:.1%}",
        f"{harm['first']['worse']:.1%}",
        *(f"{found['seeds']:.1f}" for found in (none, whole, harm)),
    ]


HEADER = [
    "truth, noise", "any `better` [95 %]", *(f"`{verdict}`" for verdict in VERDICTS),
    "covered", "best covered", "seeds",
]  # fmt: skip
PLAN_HEADER = [
    "finalists", "seeds", "batch", "better at 1 SD", "at 0.5 SD",
    "covered at 1 SD", "worse at -1 SD", "seeds at 0", "at 1 SD", "at -1 SD",
]  # fmt: skip


def main() -> None:
    arguments = _arguments()
    with ProcessPoolExecutor(arguments.processes) as pool:
        if arguments.plans:
            ask = partial(of_plan, studies=arguments.studies)
            found = _shown(PLAN_HEADER, plan_row, pool.map(ask, PLANS))
        else:
            ask = partial(of_scenario, studies=arguments.studies)
            found = _shown(HEADER, scenario_row, pool.map(ask, SCENARIOS))
    about = {
        "studies": arguments.studies,
        "confirm": defaults().confirm.model_dump(),
        "trials": [FEWEST, MOST],
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }
    print(f"\n{about}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "found": found}, indent=2) + "\n")


def _shown(header: list[str], row: Row, found: Iterable[Found]) -> list[Found]:
    """Return what is found, and print it as a Markdown table line by line."""
    kept = []
    for line in (header, ["---", *["---:"] * (len(header) - 1)]):
        print(f"| {' | '.join(line)} |")
    for one in found:
        kept.append(one)
        print(f"| {' | '.join(row(one))} |", flush=True)
    return kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--plans", action="store_true", help="compare sizes of a confirmation")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
