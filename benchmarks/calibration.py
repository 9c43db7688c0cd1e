"""How often the chain from search to verdict errs, on simulated studies whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py --studies 2000 --json calibration.json
    OMP_NUM_THREADS=1 python benchmarks/calibration.py --studies 10000 --confirmations
    OMP_NUM_THREADS=1 python benchmarks/calibration.py --studies 10000 --policies
    OMP_NUM_THREADS=1 python benchmarks/calibration.py --studies 10000 --plans

The first goes from a search to its verdicts. The others are confirmations alone, on arrays: what
may be the case, ways to go about it, and sizes. docs/evidence.md has the tables.
"""

import argparse
import json
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import scipy
from helpers.confirmations import Policy, Truth, drawn, race
from helpers.simulation import FEWEST, MOST, PAIRED, Judged, Noise, Scenario, study
from scipy.stats import binomtest

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.evidence.sequential_test import Plan
from optimizer.evidence.verdicts import Control, Verdict

Found = dict[str, Any]
Row = Callable[[Found], list[str]]

NOISES: tuple[Noise, ...] = get_args(Noise)
SCENARIOS = (
    *(Scenario("nothing differs", "nothing", 0.0, noise) for noise in ("normal", "lopsided")),
    Scenario("nothing differs", "nothing", 0.0, "lopsided", normalised=True),
    *(Scenario("nothing differs", "nothing", 0.0, "lopsided", normalised, extended=True)
      for normalised in (False, True)),
    *(Scenario("a region helps, 1 SD", "region", 1.0, noise) for noise in ("normal", "lopsided")),
    Scenario("a region helps, 1 SD", "region", 1.0, "normal", normalised=True),
    Scenario("a region helps, 0.5 SD", "region", 0.5, "normal"),
    *(Scenario("only scale helps, 3 SD", "scale", 3.0, noise, extended=extended)
      for noise in ("normal", "lopsided") for extended in (False, True)),
    *(Scenario("only steps help, 3 SD", "steps", 3.0, noise, extended=extended)
      for noise in ("normal", "lopsided") for extended in (False, True)),
    Scenario("every density harms, 1 SD", "everywhere", -1.0, "normal"),
)  # fmt: skip
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
PLANS = (
    *(Plan(*size, finalists=3) for size in ((12, 6), (18, 6), (24, 6), (36, 6), (48, 6))),
    *(Plan(36, batch, finalists=3) for batch in (36, 12, 3)),
    *(Plan(*size, finalists=1) for size in ((12, 6), (24, 6))),
)
"""Sizes of a confirmation that are compared."""


NORMALISED: tuple[Control, ...] = ()
"""The controls where every weighted convolution feeds a normalisation."""
BEFORE = Policy(Plan(24, 6, 3), keep=(), controls=("control",), lazy=False, sticky=False, idle=1)
"""How confirmations went before: all arms from the start, and a compensated one."""
TRUTHS = (
    *(Truth((0, 0, 0), noise=noise) for noise in NOISES),
    *(Truth((3, 3, 3), "scale", noise) for noise in NOISES),
    *(Truth((3, 3, 3), "steps", noise) for noise in NOISES),
    *(Truth((1, 1, 1), cause) for cause in ("scale", "steps")),
    *(Truth((effect,) * 3) for effect in (0.25, 0.5, 0.75, 1.0, 2.0)),
    *(Truth((1, 1, 1), noise=noise) for noise in NOISES[1:]),
    Truth((0.75, 0.5, 0.25)),
    Truth((-1, -1, -1)),
)  # fmt: skip
WITHOUT_CONTROLS = tuple(truth for truth in TRUTHS if truth.cause == "space")
POLICIES = (
    ("before", BEFORE),
    ("no compensated arm", replace(BEFORE, idle=0)),
    ("controls once identity is beaten", replace(BEFORE, idle=0, lazy=True)),
    ("what is shown stays shown", replace(BEFORE, idle=0, lazy=True, sticky=True)),
    ("halving, up to 36 seeds", Policy(Plan(36, 6, 3), controls=("control",))),
    ("a uniform mask as well", Policy(Plan(36, 6, 3))),
    ("the same, up to 24 seeds", Policy(Plan(24, 6, 3))),
    ("the same, up to 48 seeds", Policy(Plan(48, 6, 3))),
    ("normalised: no controls", Policy(Plan(36, 6, 3), controls=NORMALISED)),
)
"""From how confirmations went before to how they go, one step a row."""
COMPARED = tuple(
    Truth(effects) for effects in ((0, 0, 0), (0.5,) * 3, (1, 1, 1), (0.75, 0.5, 0.25))
)
"""What the policies are compared on."""


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
    verdicts = Counter(one.verdict for one in first)
    better = sum(_rank(one)[0] for one in best)
    return {
        "scenario": scenario.name,
        "noise": scenario.noise,
        "normalised": scenario.normalised,
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
    return one.verdict == "better", one.finding.to_identity.mean


def _error(one: Judged) -> float:
    """Return by how much the mean is too large, SD."""
    return (one.finding.to_identity.mean - one.truth) / PAIRED


def of_scenario(scenario: Scenario, studies: int) -> Found:
    """Return the summary of so many studies, seeds from 0."""
    given = defaults()
    return summary(scenario, [study(scenario, given, seed) for seed in range(studies)])


def of_plan(plan: Plan, studies: int) -> Found:
    """Return what a confirmation of this size comes to for one of its finalists, by its effect."""
    found = {}
    for effect in (0.0, 0.5, 1.0, -1.0):
        truth = Truth((effect,))
        values = drawn(np.random.default_rng(7), truth, studies, plan.seeds)
        raced = race(values, truth, Policy(plan, keep=()))
        found[f"{effect} SD"] = {
            "better": float((raced.verdicts == "better").mean()),
            "worse": float((raced.verdicts == "worse").mean()),
            "covered": float(raced.covered.mean()),
            "seeds": float(raced.seeds.mean()),
        }
    return {"finalists": plan.finalists, "seeds": plan.seeds, "batch": plan.batch, "found": found}


def of_truth(asked: tuple[Truth, tuple[Control, ...]], studies: int) -> Found:
    """Return what becomes of confirmations with all settings at their defaults."""
    truth, controls = asked
    confirm = defaults().confirm
    plan = Plan(confirm.seeds, confirm.batch, len(truth.effects))
    policy = Policy(plan, confirm.keep, controls)
    rng = np.random.default_rng([len(controls), TRUTHS.index(truth)])
    found = drawn(rng, truth, studies, plan.seeds)
    raced, before = race(found, truth, policy), race(found, truth, BEFORE)
    better = int((raced.verdicts == "better").any(axis=1).sum())
    return {
        "effects": truth.effects,
        "cause": truth.cause,
        "noise": truth.noise,
        "controls": controls,
        "studies": studies,
        "any better": better / studies,
        "any better, 95 % interval": list(binomtest(better, studies).proportion_ci(0.95)),
        "any better before": float((before.verdicts == "better").any(axis=1).mean()),
        "first": {verdict: float((raced.verdicts[:, 0] == verdict).mean()) for verdict in VERDICTS},
        "first covered": float(raced.covered[:, 0].mean()),
        "jobs": float(raced.jobs.mean()),
        "jobs before": float(before.jobs.mean()),
    }


def of_policy(asked: tuple[str, Policy], studies: int) -> Found:
    """Return what a policy says and trains, by the finalists' effects."""
    name, policy = asked
    found = {}
    for number, truth in enumerate(COMPARED):
        values = drawn(np.random.default_rng(number), truth, studies, policy.plan.seeds)
        raced = race(values, truth, policy)
        better = float((raced.verdicts == "better").any(axis=1).mean())
        found[str(truth.effects)] = {"any better": better, "jobs": float(raced.jobs.mean())}
    return {"policy": name, "studies": studies, "found": found}


def truth_row(one: Found) -> list[str]:
    """Return a truth's line of the table."""
    low, high = one["any better, 95 % interval"]
    causes = {"space": "", "scale": "only scale: ", "steps": "only steps: "}
    effects = sorted(set(one["effects"]), reverse=True)
    sizes = "nothing" if effects == [0] else ", ".join(f"{size:g}" for size in effects) + " SD"
    return [
        f"{causes[one['cause']]}{sizes}, {one['noise']}",
        f"{one['any better']:.2%} [{low:.2%}, {high:.2%}]",
        f"{one['any better before']:.2%}",
        *(f"{share:.1%}" for share in one["first"].values()),
        f"{one['first covered']:.1%}",
        f"{one['jobs']:.0f}",
        f"{one['jobs before']:.0f}",
    ]


def policy_row(one: Found) -> list[str]:
    """Return a policy's line of the table."""
    both = one["found"].values()
    return [one["policy"], *(f"{found['any better']:.2%} / {found['jobs']:.0f}" for found in both)]


def scenario_row(one: Found) -> list[str]:
    """Return a scenario's line of the table."""
    notes = [note for note in ("normalised", "extended") if one[note]]
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
        *(f"{found['better']:.1%}" for found in (whole, half)),
        f"{whole['covered']:.1%}",
        f"{harm['worse']:.1%}",
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


TRUTH_HEADER = [
    "effect, noise", "any `better` [95 %]", "before", *(f"`{verdict}`" for verdict in VERDICTS),
    "covered", "jobs", "before",
]  # fmt: skip
POLICY_HEADER = ["policy", "nothing", "0.5 SD", "1 SD", "0.75, 0.5, 0.25 SD"]


def main() -> None:
    arguments = _arguments()
    with ProcessPoolExecutor(arguments.processes) as pool:
        if arguments.plans:
            ask = partial(of_plan, studies=arguments.studies)
            found = _shown(PLAN_HEADER, plan_row, pool.map(ask, PLANS))
        elif arguments.policies:
            ask = partial(of_policy, studies=arguments.studies)
            found = _shown(POLICY_HEADER, policy_row, pool.map(ask, POLICIES))
        elif arguments.confirmations:
            asked = [(truth, get_args(Control)) for truth in TRUTHS]
            asked += [(truth, NORMALISED) for truth in WITHOUT_CONTROLS]
            ask = partial(of_truth, studies=arguments.studies)
            found = _shown(TRUTH_HEADER, truth_row, pool.map(ask, asked))
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
    parser.add_argument("--confirmations", action="store_true", help="confirmations alone")
    parser.add_argument("--policies", action="store_true", help="compare ways to confirm")
    parser.add_argument("--plans", action="store_true", help="compare sizes of a confirmation")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
