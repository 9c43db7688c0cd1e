"""The training engine alone against plain_search.py: job-steps per second, no rungs, no database.

Both sides train the same proxies at the same batch size on the same machine, in turns:
plain_search.py in one process with all cores (or the GPU), densitune as its workers would: one
process with one thread per core, or one process with a pack of the size that `auto` finds on a GPU.
Each round runs A B B A, so that a drifting machine favours neither; the ratio is taken within a
round.

    python benchmarks/throughput.py                        # all proxies: a quarter of an hour
    python benchmarks/throughput.py --family vgg --k 5 --rounds 2
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from helpers import ratios
from helpers.cases import FAMILIES, SIGMA, Case
from helpers.plain_training import Problem

from optimizer.arms import Arm
from workers.training import capture, devices, packing
from workers.training.member import Member
from workers.training.recipe import Job

LOADER_WORKERS = (0, 1, 2)
"""Processes of plain_search.py's DataLoader; each number is tried before a case."""
Step = Callable[[], int]
"""Does some training and returns how many job-steps that was."""


class Crew:
    """Processes that train when they are told to, all at once."""

    def __init__(self, make: Callable[[Case, torch.device], Step], device: str, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection[Any, Any]] = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            arguments = (theirs, make, device)
            # Not a daemon: plain_search.py's loader has processes of its own.
            context.Process(target=_serve, args=arguments).start()
            self._ends.append(ours)

    def load(self, case: Case) -> None:
        """Get ready for a case, warm-up included."""
        self._ask(case)

    def rate(self, seconds: float) -> float:
        """Return the job-steps per second of all processes together."""
        return float(sum(self._ask(seconds)))

    def _ask(self, what: Case | float) -> list[Any]:
        for end in self._ends:
            end.send(what)
        return [end.recv() for end in self._ends]

    def dismiss(self) -> None:
        """Let the processes end."""
        for end in self._ends:
            end.send(None)


def _serve(end: "Connection[Any, Any]", make: Any, name: str) -> None:
    """Do as a crew is told: get ready for a case, train for some seconds, or end."""
    device = torch.device(name)
    step: Step = int
    while (what := end.recv()) is not None:
        if isinstance(what, Case):
            step = make(what, device)
            step()
            end.send(None)
            continue
        devices.synchronize(device)
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < what:
            steps += step()
        devices.synchronize(device)
        end.send(steps / (time.perf_counter() - started))


def plain_step(case: Case, device: torch.device) -> Step:
    """Return plain_search.py's training loop, one batch at a time, with as many loader processes
    as are fastest here."""
    found = [_plain_loop(case, device, workers) for workers in LOADER_WORKERS]
    rates = [_rate(step, seconds=2.0) for step in found]
    return found[rates.index(max(rates))]


def _plain_loop(case: Case, device: torch.device, loader_workers: int) -> Step:
    sigma = None if case.classifies else SIGMA
    recipe = case.recipe(device)
    problem = Problem(case.bank(), recipe, sigma, loader_workers=loader_workers, device=device)
    network = problem._network(case.densities, seed=0)
    training = problem._steps(network, seed=0, total=packing.MOST_STEPS)

    def step() -> int:
        next(training)
        return 1

    return step


def _rate(step: Step, seconds: float) -> float:
    """Return the job-steps per second of the second of two runs."""
    for _ in range(2):
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            steps += step()
    return steps / (time.perf_counter() - started)


def densitune_step(case: Case, device: torch.device) -> Step:
    """Return densitune's: a round of the pack that a worker would train on the device."""
    devices.make_repeatable(device)
    task, recipe = case.task(device), case.recipe(device)
    size = packing.best_size(task, recipe, device)
    job = Job(
        Arm(case.densities), seed=0, budget=packing.MOST_STEPS // (case.images // recipe.batch_size)
    )
    pack = [Member(task, recipe, job, device) for _ in range(size)]
    for _ in range(capture.EAGER_STEPS):
        for member in pack:
            member.step()

    def step() -> int:
        for member in pack:
            member.step()
        return len(pack)

    return step


def main() -> None:
    arguments = _arguments()
    device = devices.resolve(arguments.device)
    workers = len(devices.spread(arguments.device, None)) if device.type == "cpu" else 1
    rival = Crew(plain_step, str(device), 1)
    engine = Crew(densitune_step, str(device), workers)
    rows, found = [], []
    for family in arguments.family:
        for k in arguments.k:
            case = Case(family, k)
            rival.load(case)
            engine.load(case)
            rates = _measure(rival, engine, arguments.rounds, arguments.seconds)
            within = [ours / theirs for theirs, ours in rates]
            theirs, ours, ratio = (
                statistics.median(values) for values in (*zip(*rates, strict=True), within)
            )
            found.append(
                {"family": family, "k": k, "plain": theirs, "densitune": ours, "ratio": ratio,
                 "lowest": min(within), "highest": max(within), "n": len(within)}
            )  # fmt: skip
            spread = f"{min(within):.2f} to {max(within):.2f}"
            rows.append([f"{family} k={k}", f"{theirs:.2f}", f"{ours:.2f}", f"{ratio:.2f}", spread])
            print("  ".join(rows[-1]), flush=True)
    rival.dismiss()
    engine.dismiss()
    about = ratios.environment(device) | {"workers": workers, "rounds": arguments.rounds}
    del about["threads"]  # plain_search.py has torch's default, a worker has one
    print(f"\n{about}\n")
    header = ["proxy", "plain steps/s", "densitune", "ratio", "lowest to highest"]
    print(ratios.table(header, rows))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": about, "rows": found}, indent=1) + "\n"
        )


def _measure(rival: Crew, engine: Crew, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Return job-steps per second of the rival and of the engine in each round."""
    found = []
    for number in range(rounds):
        order = (
            (rival, engine, engine, rival) if number % 2 == 0 else (engine, rival, rival, engine)
        )
        rates: dict[Crew, list[float]] = {rival: [], engine: []}
        for crew in order:
            rates[crew].append(crew.rate(seconds))
        found.append((statistics.fmean(rates[rival]), statistics.fmean(rates[engine])))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--k", nargs="+", type=int, default=[3, 5, 7])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of a round's four runs")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
