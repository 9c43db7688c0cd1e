"""How many jobs to train together on a device: measured when a worker starts, never assumed."""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from optimizer import arms
from workers.training import capture, devices
from workers.training.member import Member
from workers.training.recipe import Job, Recipe, steps_per_epoch
from workers.training.tasks import Task

GROWTH = 1.1
"""By what factor a doubled pack must be faster, or it is not worth its memory."""
LARGEST = 64
"""Members beyond which no GPU is expected to gain."""
SECONDS = 0.5
"""How long each size is timed, at least."""
MOST_STEPS = 20_000
"""Steps of a member that is only timed, at most."""

log = logging.getLogger("densitune.packing")


@dataclass(frozen=True)
class Calibration:
    """The best pack, and what was measured."""

    size: int
    rates: dict[int, float]
    """By pack size: steps of all members together per second."""
    full: int | None
    """The size that did not fit into memory, if one did not."""


def calibrate(rate: Callable[[int], float], largest: int = LARGEST) -> Calibration:
    """Double the pack while it gets GROWTH times faster and fits into memory.

    `rate` returns the steps per second of a pack of a size, or raises what the device raises when
    its memory is full. That error comes through if not even one job fits.
    """
    rates: dict[int, float] = {}
    size = 1
    while size <= largest:
        try:
            rates[size] = rate(size)
        except Exception as error:
            if size == 1 or not devices.is_out_of_memory(error):
                raise
            return Calibration(size // 2, rates, full=size)
        if size > 1 and rates[size] < GROWTH * rates[size // 2]:
            return Calibration(size // 2, rates, full=None)
        size *= 2
    return Calibration(size // 2, rates, full=None)


def best_size(task: Task, recipe: Recipe, device: torch.device) -> int:
    """Return the pack size that trains the most jobs per hour on a device; log what was found.

    On a CPU that is one: a worker has one thread there, so a second member only takes turns with
    the first, and what was measured as a gain was other processes' doing (docs/decisions.md).
    """
    largest = 1 if device.type == "cpu" else LARGEST
    found = calibrate(lambda size: step_rate(task, recipe, device, size), largest)
    per_job = steps_per_epoch(task, recipe) * max(recipe.rungs)
    measured = ", ".join(
        f"{size}: {3600 * rate / per_job:.1f}" for size, rate in found.rates.items()
    )
    limit = f"; {found.full} do not fit into memory" if found.full else ""
    log.info("pack of %d; jobs/hour by size of the pack: %s%s", found.size, measured, limit)
    return found.size


def step_rate(task: Task, recipe: Recipe, device: torch.device, size: int) -> float:
    """Return how many steps a pack of identities trains per second, all members together."""
    job = Job(
        arms.identity(recipe.proxy.kernel_sizes, recipe.lr),
        seed=0,
        budget=MOST_STEPS // steps_per_epoch(task, recipe) + 1,
    )
    warm_up = capture.EAGER_STEPS + 1 if device.type == "cuda" else 1
    pack: list[Member] = []
    try:
        pack.extend(Member(task, recipe, job, device) for _ in range(size))
        _steps(pack, device, warm_up)
        rounds, taken = 1, _steps(pack, device, 1)
        while taken < SECONDS and warm_up + 2 * rounds <= MOST_STEPS:
            taken += _steps(pack, device, rounds)
            rounds *= 2
        return size * rounds / taken
    finally:
        pack.clear()
        release_memory(device)


def release_memory(device: torch.device) -> None:
    """Give a device's memory back that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _steps(pack: list[Member], device: torch.device, rounds: int) -> float:
    """Train every member for some steps; return the seconds that took."""
    devices.synchronize(device)
    started = time.perf_counter()
    for _ in range(rounds):
        for member in pack:
            member.step()
    devices.synchronize(device)
    return time.perf_counter() - started
