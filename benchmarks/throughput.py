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
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Self

import torch
from helpers import ratios
from helpers.cases import FAMILIES, SIGMA, Case
from helpers.plain_training import Problem

from optimizer.arms import Arm
from workers.training import capture, devices, packing
from workers.training.slots import Slots

LOADER_WORKERS = {"cpu": (0, 1, 2), "cuda": (2, 8, 15)}
"""Processes of plain_search.py's DataLoader by kind of device; each number is tried before a case.
One that this machine has no core for is left out."""
IMAGES = {"cpu": 2_048, "cuda": 45_000}
"""Of the training set: CIFAR-100's for a GPU, where a loader's new epochs would count."""
READY_SECONDS = 600.0
"""How long a process of a crew may take to get ready, or to come back from a run."""
Step = Callable[[], int]
"""Does some training and returns how many job-steps that was."""


class Crew:
    """Processes that train when they are told to, all at once, within a `with` block."""

    def __init__(self, make: Callable[[Case, torch.device], Step], device: str, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection[Any, Any]] = []
        self._processes: list[SpawnProcess] = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            # Not a daemon: plain_search.py's loader has processes of its own.
            process = context.Process(target=_serve, args=(theirs, make, device))
            process.start()
            theirs.close()  # or nobody would notice that the process has ended
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for end in self._ends:
            end.close()  # which tells the process to end
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()

    def load(self, case: Case) -> None:
        """Get ready for a case, warm-up included."""
        self._ask(case)

    def rate(self, seconds: float) -> float:
        """Return the job-steps per second of all processes together."""
        return float(sum(self._ask(seconds)))

    def _ask(self, what: Case | float) -> list[Any]:
        """Return every process's answer; SystemExit if one has ended or does not answer."""
        try:
            for end in self._ends:
                end.send(what)
            if not all(end.poll(READY_SECONDS) for end in self._ends):
                raise SystemExit(f"a process has not answered for {READY_SECONDS:.0f} s: {what}")
            return [end.recv() for end in self._ends]
        except (EOFError, OSError):
            raise SystemExit(f"a process has died, its error is above: {what}") from None


def _serve(end: "Connection[Any, Any]", make: Any, name: str) -> None:
    """Do as a crew is told: get ready for a case or train for some seconds, until it hangs up."""
    device = torch.device(name)
    step: Step = int
    while True:
        try:
            what = end.recv()
        except EOFError:  # it hung up
            return
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


def loader_workers(device: torch.device) -> list[int]:
    """Return the numbers of loader processes that are tried on a device of this machine."""
    cores = os.cpu_count() or 1
    return [count for count in LOADER_WORKERS[device.type] if count <= max(2, cores - 1)]


def plain_step(case: Case, device: torch.device, seconds: float = 2.0) -> Step:
    """Return plain_search.py's training loop, one batch at a time, with as many loader processes
    as are fastest here in two runs of so many seconds each."""
    problem = plain_problem(case, device)
    rates = {
        workers: _rate(plain_loop(problem, case, workers), seconds)
        for workers in loader_workers(device)
    }
    return plain_loop(problem, case, max(rates, key=lambda count: rates[count]))


def plain_problem(case: Case, device: torch.device) -> Problem:
    """Return plain_search.py's problem, whose data take seconds to prepare."""
    return Problem(
        case.bank(), case.recipe(device), None if case.classifies else SIGMA, device=device
    )


def plain_loop(problem: Problem, case: Case, loader_workers: int) -> Step:
    """Return plain_search.py's training loop with so many loader processes, which have started."""
    problem.loader_workers = loader_workers
    network = problem._network(case.densities, seed=0)
    training = problem._steps(network, seed=0, total=packing.MOST_STEPS)
    next(training)

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
    slots = Slots(case.task(device), case.recipe(device), device)
    size = packing.best_size(slots).size
    job = replace(packing.timed_job(slots.recipe), arm=Arm(case.densities))
    pack = packing.Treadmill(slots, job, size)
    for _ in range(capture.EAGER_STEPS + 1):
        pack.round()
    return pack.round


def main() -> None:
    arguments = _arguments()
    device = devices.resolve(arguments.device)
    workers = len(devices.spread(arguments.device, None)) if device.type == "cpu" else 1
    images = arguments.images or IMAGES[device.type]
    rows, found = [], []
    with (
        Crew(plain_step, str(device), 1) as rival,
        Crew(densitune_step, str(device), workers) as engine,
    ):
        for family, k in itertools.product(arguments.family, arguments.k):
            case = Case(family, k, images=images)
            rival.load(case)
            engine.load(case)
            rates = measure(rival, engine, arguments.rounds, arguments.seconds)
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
    about = ratios.environment(device) | {"workers": workers, "rounds": arguments.rounds}
    about |= {"images": images}
    del about["threads"]  # plain_search.py has torch's default, a worker has one
    print(f"\n{about}\n")
    header = ["proxy", "plain steps/s", "densitune", "ratio", "lowest to highest"]
    print(ratios.table(header, rows))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": about, "rows": found}, indent=1) + "\n"
        )


def measure(rival: Crew, engine: Crew, rounds: int, seconds: float) -> list[tuple[float, float]]:
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
    parser.add_argument("--images", type=int, help="of the training set")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
