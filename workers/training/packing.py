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
from workers.training.slots import Slots

GROWTH = 1.1
"""By what factor a doubled pack must be faster, or it is not worth its memory."""
LARGEST = devices.QUEUES
"""Members beyond which no GPU is expected to gain: two would share a stream."""
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
    error: capture.CaptureError | None = None
    """What makes this process one that can no longer use the device."""


class Treadmill:
    """A pack of jobs that is trained for its speed alone; those that end begin again."""

    def __init__(self, slots: Slots, job: Job, size: int) -> None:
        self._slots, self._job = slots, job
        self._length = job.budget * steps_per_epoch(slots.task, slots.recipe)
        self._steps = 0
        self._pack = [Member(slots, job) for _ in range(size)]

    def round(self) -> int:
        """Train every member on one batch; return how many steps that was."""
        if self._steps == self._length:
            self.stop()
            self._pack = [Member(self._slots, self._job) for _ in self._pack]
            self._steps = 0
        for member in self._pack:
            member.step()
        self._steps += 1
        return len(self._pack)

    def stop(self) -> None:
        """Give the slots back."""
        for member in self._pack:
            member.leave()


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
            spoiled = error if isinstance(error, capture.CaptureError) else None
            return Calibration(size // 2, rates, full=size, error=spoiled)
        if size > 1 and rates[size] < GROWTH * rates[size // 2]:
            return Calibration(size // 2, rates, full=None)
        size *= 2
    return Calibration(size // 2, rates, full=None)


def best_size(slots: Slots) -> Calibration:
    """Find the pack size that trains the most jobs per hour; log what was measured.

    On a CPU that is one: a worker has one thread there, so a second member only takes turns with
    the first, and what was measured as a gain was other processes' doing (docs/decisions.md).
    The slots of a pack of that size stay, for the jobs to come.
    """
    largest = 1 if slots.device.type == "cpu" else LARGEST
    found = calibrate(lambda size: step_rate(slots, size), largest)
    slots.keep(found.size)
    release_memory(slots.device)
    per_job = steps_per_epoch(slots.task, slots.recipe) * max(slots.recipe.rungs)
    measured = ", ".join(
        f"{size}: {3600 * rate / per_job:.1f}" for size, rate in found.rates.items()
    )
    limit = f"; {found.full} do not fit into memory" if found.full else ""
    log.info("pack of %d; jobs/hour by size of the pack: %s%s", found.size, measured, limit)
    return found


def timed_job(recipe: Recipe) -> Job:
    """Return the job that is timed: identity, as long as a study's longest."""
    identity = arms.identity(recipe.proxy.kernel_sizes, recipe.lr, recipe.init)
    return Job(identity, seed=0, budget=max(recipe.rungs))


def step_rate(slots: Slots, size: int) -> float:
    """Return how many steps a pack of identities trains per second, all members together."""
    warm_up = capture.EAGER_STEPS + 1 if slots.device.type == "cuda" else 1
    try:
        pack = Treadmill(slots, timed_job(slots.recipe), size)
        _seconds(pack, slots.device, warm_up)
        rounds, taken = 1, _seconds(pack, slots.device, 1)
        while taken < SECONDS and warm_up + 2 * rounds <= MOST_STEPS:
            taken += _seconds(pack, slots.device, rounds)
            rounds *= 2
        pack.stop()
    except Exception:
        slots.clear()
        raise
    return size * rounds / taken


def release_memory(device: torch.device) -> None:
    """Give a device's memory back that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _seconds(pack: Treadmill, device: torch.device, rounds: int) -> float:
    """Train every member for some steps; return the seconds that took."""
    devices.synchronize(device)
    started = time.perf_counter()
    for _ in range(rounds):
        pack.round()
    devices.synchronize(device)
    return time.perf_counter() - started
