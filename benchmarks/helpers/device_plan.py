"""What the sections of device_check.py share: where they measure, cases, jobs and their bits."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from helpers.cases import FAMILIES, Case, Family
from optimizer.arms import Arm, Precision
from workers.training import devices
from workers.training.loop import train
from workers.training.recipe import Job
from workers.training.scores import Score
from workers.training.slots import Slots
from workers.training.tasks import Task

Figures = dict[str, Any]


PRECISIONS: tuple[Precision, ...] = ("full", "bfloat16")


@dataclass(frozen=True)
class Plan:
    """Where it is measured, and whether only to see that it can be."""

    device: torch.device
    quick: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one for which all of this is made."""
        return self.device.type == "cuda"

    @property
    def families(self) -> Sequence[Family]:
        """The families that have to be right; the tests have all of them on a CPU."""
        return FAMILIES[::3] if self.quick else FAMILIES

    def case(self, family: Family, k: int = 3, images: int = 1_024, **changes: Any) -> Case:
        """Return a case of the given size, a tiny one if that will do."""
        if self.quick:
            return Case(family, k, images=32, epochs=2, held=16, tiny=True)
        return Case(family, k, images=images, **changes)


@dataclass
class Judged:
    """A task that notes every bit of the networks that it judges."""

    inner: Task
    networks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def evaluate(self, network: nn.Module) -> Score:
        values = [value.cpu().numpy().tobytes() for value in network.state_dict().values()]
        self.networks.append(hashlib.sha256(b"".join(values)).hexdigest()[:16])
        return self.inner.evaluate(network)


def slots_of(
    plan: Plan, case: Case, precision: Precision | None = None, *, captured: bool = True
) -> Slots:
    """Return slots whose task notes what is judged."""
    recipe = case.recipe(plan.device, precision)
    task: Any = Judged(case.task(plan.device))
    return Slots(task, recipe, plan.device, captured=captured)


def outcome(slots: Slots, *jobs: Job, **others: Any) -> dict[int, list[Any]]:
    """Train jobs; return by number what each measured, with the bits of its network."""
    task: Any = slots.task
    found: dict[int, list[Any]] = {number: [] for number in range(len(jobs))}

    def note(number: int, measurement: Any) -> None:
        told = (measurement.rung, measurement.score.value, measurement.ending, task.networks[-1])
        found.setdefault(number, []).append(told)

    def fail(number: int, error: Exception) -> None:
        found.setdefault(number, []).append(str(error).split(" after ")[-1])

    train(slots, jobs, on_rung=note, on_failure=fail, **others)
    return found


def job_of(case: Case, value: float, seed: int = 0, **others: Any) -> Job:
    k = case.kernel_size
    bars = others.pop("bars", {})
    return Job(Arm({k: (value,) * (k // 2)}, **others), seed, case.epochs, bars)


def seconds_of(plan: Plan, run: Callable[[], object], least: float = 0.3) -> float:
    """Return the seconds of a call, many of them in a row."""
    least = 0.01 if plan.quick else least
    run()
    calls, taken = 1, 0.0
    while taken < least:
        calls *= 2
        devices.synchronize(plan.device)
        started = time.perf_counter()
        for _ in range(calls):
            run()
        devices.synchronize(plan.device)
        taken = time.perf_counter() - started
    return taken / calls


def profiled(plan: Plan, run: Callable[[], object], calls: int) -> Any:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if plan.on_gpu else [])]
    with profile(activities=activities) as found:
        for _ in range(calls):
            run()
        devices.synchronize(plan.device)
    return found
