"""Replay searches on recorded surfaces: any sampler, without training, in seconds.

What a search would have measured is read off a surface (surfaces.py). The steps, bars, proposals
and the choice of a finalist are the product's own; workers, the queue and the clock are simulated.
Every replication has seeds and proposals of its own.

    python benchmarks/replay.py nafnet-k3 nafnet-k5 --samplers auto random --replications 200
    python benchmarks/replay.py --held-out nafnet-k5

Regret is how far the density that would be confirmed next lies below the best one of the surface,
in standard deviations over the seeds of the best one's difference to identity (SD). The truth is
what a model expects of all recorded seeds, the search's own among them.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
from helpers import ratios
from helpers.simulated_desk import SimulatedDesk, World, expected, searched, study
from helpers.surface import FOLDER, HIGH, LOW, Floats, Surface, load

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences, finalists

SAMPLERS = ("auto", "gp", "tpe", "cmaes", "direct", "qmc", "random")
BUDGETS = (10, 20, 40, 80)
"""Device time at which regret is told, in jobs of the full length."""
CORRECT = 0.25
"""A regret below this, in SD, counts as a correct selection."""
FEWEST = 4
"""Surfaces with fewer seeds are no use: two of them are what a search sees."""
RESAMPLES = 2000
Point = tuple[float, ...]


@dataclass(frozen=True)
class Replication:
    """One search: regret (SD) by device-seconds; it holds until the next."""

    spent: list[float]
    regret: list[float]
    clock: float
    """Simulated seconds that the search took."""
    seconds: float
    """Real seconds that the replay took."""

    def at(self, budget: float, before: float) -> float:
        """Return the regret when so many device-seconds are spent; `before` anything is known."""
        known = [
            regret for spent, regret in zip(self.spent, self.regret, strict=True) if spent <= budget
        ]
        return known[-1] if known else before


def configured(world: World, sampler: str, seed: int, seeds: int, in_flight: int) -> StudyConfig:
    """Return a study of the surface, with today's advice for its rungs."""
    plan = world.surface.plan
    # Classifiers say nothing about their end before half of it (docs/method.md).
    rungs = [r for r in plan.rungs[:-1] if 2 * r >= plan.rungs[-1] or not plan.classifies]
    return study(plan, sampler=sampler, seed=seed, seeds=seeds, rungs=rungs, in_flight=in_flight)


def replicate(world: World, config: StudyConfig, workers: int, budget: float) -> Replication:
    """Search until so many device-seconds are spent; the config's seed fixes what happens."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.perf_counter()
    recorded = world.surface.values.shape[1]
    order = np.random.default_rng(config.search.seed).permutation(recorded).tolist()
    desk = SimulatedDesk.of(world, config, dict(zip(config.seeds, order, strict=False)))
    found = Replication([], [], 0.0, 0.0)
    known, clock = 0, 0.0
    for moment in searched(desk, workers):
        clock = moment.clock
        complete = sum(trial.state == "complete" for trial in desk.kept)
        if complete > known:
            known = complete
            found.spent.append(moment.spent)
            found.regret.append((world.best - world.effect(recommended(desk))) / world.spread)
        if moment.spent >= budget:
            break
    return replace(found, clock=clock, seconds=time.perf_counter() - started)


def recommended(desk: SimulatedDesk) -> Point:
    """Return the density that would be confirmed first; identity if there is none."""
    trials = desk.trials("search")
    results = differences.results(trials, desk.measured("search"))
    one = desk.config.confirm.model_copy(update={"finalists": 1})
    chosen = finalists.choose(results, desk.config.model_copy(update={"confirm": one}))
    (den,) = trials[chosen[0] if chosen else 0].densities.values()
    return den


def interval(values: Floats) -> tuple[float, float]:
    """Return the 95 % interval of the mean, a percentile bootstrap of fixed seed."""
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def held_out(world: World) -> dict[str, float]:
    """Return how well the truth foretells densities that are taken out of it, in SD.

    The corners of the box stay, so that there is nothing to extrapolate. `error` is the root mean
    square over the better half of the others, `luck` what of it their own seeds explain: the
    standard error of a density's mean. `span` is the standard deviation of their means.
    """
    surface, ends = world.surface, world.surface.values[:, :, -1]
    means = np.nanmean(ends, axis=1)
    others = np.arange(1 + 2**surface.plan.dimensions, surface.plan.points)
    better = others[np.argsort(-means[others])][: len(others) // 2]
    errors = []
    for place in better.tolist():
        rest = np.delete(np.arange(surface.plan.points), place)
        parts = (surface.densities[rest], surface.values[rest], surface.seconds[rest])
        at = (surface.densities[[place]] - LOW) / (HIGH - LOW)
        (foretold,) = expected(Surface(surface.plan, *parts), -1, at)
        errors.append(foretold - means[place])
    own = (ends - np.nanmean(ends[better], axis=0))[better]
    luck = np.nanstd(own, axis=1, ddof=1) / math.sqrt(own.shape[1])
    figures = {
        "error": np.sqrt(np.mean(np.square(errors))),
        "luck": np.sqrt(np.mean(np.square(luck))),
        "span": np.std(means[better]),
    }
    return {name: float(figure) / world.spread for name, figure in figures.items()}


def told(name: str, world: World, arguments: argparse.Namespace) -> dict[str, object]:
    """Replay the samplers on a surface, print a table of them and return it as JSON."""
    job = float(np.nanmedian(world.surface.seconds[:, :, -1]))
    before = world.best / world.spread  # identity's regret
    rows, kept = [], {}
    for sampler in arguments.samplers:
        if sampler == "cmaes" and world.surface.plan.dimensions < 2:
            continue
        runs = [
            replicate(
                world,
                configured(world, sampler, seed, arguments.seeds, arguments.in_flight),
                arguments.workers,
                max(BUDGETS) * job,
            )
            for seed in range(arguments.replications)
        ]
        cells, points = [], {}
        for budget in BUDGETS:
            regrets = np.array([run.at(budget * job, before) for run in runs])
            low, high = interval(regrets)
            right = float((regrets < CORRECT).mean())
            cells.append(f"{regrets.mean():.2f} [{low:.2f}, {high:.2f}] {100 * right:3.0f} %")
            points[budget] = {"regret": regrets.mean(), "low": low, "high": high, "correct": right}
        took = statistics.median(run.seconds for run in runs)
        rows.append([sampler, *cells, f"{took:.1f} s"])
        kept[sampler] = points
    seeds = world.surface.values.shape[1]
    print(
        f"\n{name}: {seeds} seeds, {arguments.replications} replications, a job {job:.2f} s, "
        f"best {world.best:+.3f}, SD {world.spread:.3f}, identity's regret {before:.2f} SD"
    )
    print(ratios.table(["sampler", *[f"{b} jobs" for b in BUDGETS], "a replay"], rows), flush=True)
    return {
        "surface": name,
        "seeds": seeds,
        "replications": arguments.replications,
        "job_seconds": job,
        "samplers": kept,
    }


def main() -> None:
    arguments = _arguments()
    results = []
    for name in arguments.names or sorted(path.stem for path in arguments.folder.glob("*.jsonl")):
        try:
            surface = load(arguments.folder / f"{name}.jsonl")
        except (OSError, ValueError) as error:
            print(f"{name}: passed over: {error}", file=sys.stderr)
            continue
        if surface.values.shape[1] < FEWEST:
            print(f"{name}: passed over: fewer than {FEWEST} seeds so far", file=sys.stderr)
            continue
        world = World(surface)
        if arguments.held_out:
            figures = ", ".join(f"{key} {value:.2f}" for key, value in held_out(world).items())
            print(f"{name}: {figures} (SD)")
            continue
        results.append(told(name, world, arguments))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="SURFACE", help="all, if none is given")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the recordings are")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--replications", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4, help="simulated ones")
    parser.add_argument("--seeds", type=int, default=2, help="search.seeds")
    parser.add_argument("--in-flight", type=int, default=8, help="search.in_flight")
    parser.add_argument("--held-out", action="store_true", help="how good the interpolation is")
    parser.add_argument("--out", type=Path, help="a file for the figures, JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
