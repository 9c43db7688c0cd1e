"""The one training loop: a pack of jobs of equal shape, side by side on one device.

It knows no database and no configuration file: it takes a task, a recipe and jobs, and calls back
at rungs. What a member of a pack computes does not depend on its neighbours.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from workers import proxies
from workers.proxies import Proxy
from workers.tasks import Draws, Score, Task

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises linearly, before it falls as a cosine."""


@dataclass(frozen=True)
class Recipe:
    """How every job of a study is trained."""

    proxy: Proxy
    init: Literal["library", "compensated"]
    batch_size: int
    lr: float | None
    """Peak learning rate; None takes the family's usual one."""
    rungs: tuple[int, ...]
    """Epochs after which a job is measured; those at or beyond its budget are ignored."""


@dataclass(frozen=True)
class Job:
    """The unit of training."""

    densities: Mapping[int, Sequence[float]]
    seed: int
    budget: int
    """Epochs."""


@dataclass(frozen=True)
class Measurement:
    """A job's score at a rung."""

    rung: int
    """Epochs trained so far."""
    score: Score
    seconds: float
    """Wall time that this job's own steps and evaluations took so far."""


class DivergedError(Exception):
    """A job's weights or score are no longer finite; the same job would end so again."""


class StoppedError(Exception):
    """Training was asked to stop before its end."""


def train(
    task: Task,
    recipe: Recipe,
    jobs: Sequence[Job],
    device: torch.device,
    *,
    on_rung: Callable[[int, Measurement], None],
    on_failure: Callable[[int, DivergedError], None],
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Train jobs of equal budget together and call back with each one's index in `jobs`.

    A diverged job leaves the pack and the others go on. Errors of the device (out of memory) come
    through; StoppedError as soon as `stopping` says so, asked before every step.
    """
    members = {index: _Member(task, recipe, job, device) for index, job in enumerate(jobs)}
    budget = max(job.budget for job in jobs)
    rungs = {*(rung for rung in recipe.rungs if rung < budget), budget}
    for epoch in range(1, budget + 1):
        for _ in range(steps_per_epoch(task, recipe)):
            if stopping():
                raise StoppedError
            for member in members.values():
                member.step()
        if epoch not in rungs:
            continue
        for index, member in list(members.items()):
            try:
                on_rung(index, member.measure(epoch))
            except DivergedError as error:
                del members[index]
                on_failure(index, error)
        if not members:
            return


class _Member:
    """One job in training."""

    def __init__(self, task: Task, recipe: Recipe, job: Job, device: torch.device) -> None:
        self._task, self._job = task, job
        network = proxies.build(recipe.proxy, job.densities, init=recipe.init, seed=job.seed)
        # Channels last: 1.1x to 1.7x in fp32 on one core for DnCNN and NAFNet, k = 3 and 7
        # (torch 2.15; depthwise convolutions gain most).
        self._network = network.to(device).to(memory_format=torch.channels_last)
        peak = recipe.lr or usual_lr(recipe.proxy, recipe.batch_size)
        self._optimizer = optimizer_for(recipe.proxy, self._network, peak)
        self._draws = Draws(job.seed, device)
        self._batches = _batches(task, recipe, self._draws)
        total = job.budget * steps_per_epoch(task, recipe)
        self._rates = iter([peak * schedule(step, total) for step in range(total)])
        self._loss = torch.zeros((), device=device)
        self._seconds = 0.0

    def step(self) -> None:
        """Train on one batch."""
        started = time.perf_counter()
        self._network.train()
        inputs, targets = self._task.batch(next(self._batches), self._draws)
        rate = next(self._rates)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._task.loss(self._network(inputs), targets)
        loss.backward()
        self._optimizer.step()
        self._loss = loss.detach()
        self._seconds += time.perf_counter() - started

    def measure(self, epoch: int) -> Measurement:
        """Judge the network as it is now."""
        started = time.perf_counter()
        self._network.eval()
        with torch.inference_mode():
            score = self._task.evaluate(self._network)
        loss = self._loss.item()
        # The loss is from before the last step, and an accuracy is finite whatever the weights are.
        finite = [weights.isfinite().all() for weights in self._network.parameters()]
        sound = bool(torch.stack(finite).all())
        self._seconds += time.perf_counter() - started
        if not (sound and math.isfinite(score.value) and math.isfinite(loss)):
            raise DivergedError(
                f"diverged: loss {loss:g}, score {score.value:g} and "
                f"{'finite' if sound else 'non-finite'} weights after {epoch} epochs"
            )
        return Measurement(epoch, score, self._seconds)


def steps_per_epoch(task: Task, recipe: Recipe) -> int:
    """Return the number of batches of an epoch; a last incomplete one is left out."""
    return max(1, len(task) // recipe.batch_size)


def _batches(task: Task, recipe: Recipe, draws: Draws) -> Iterator[Tensor]:
    """Yield index batches (B,), every epoch a new permutation."""
    while True:
        order = torch.randperm(len(task), generator=draws.order)
        yield from order.split(recipe.batch_size)[: steps_per_epoch(task, recipe)]


def schedule(step: int, total: int) -> float:
    """Return the learning rate of a step as a share of its peak: linear rise, then cosine."""
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def usual_lr(proxy: Proxy, batch_size: int) -> float:
    """Return the peak learning rate that the family is usually trained with.

    Classifiers: 0.1 at batch size 128, in proportion to it (weiaicunzai/pytorch-cifar100). DnCNN
    and NAFNet: 1e-3 (cszn/DnCNN; megvii-research/NAFNet, options of SIDD-width32).
    """
    return 0.1 * batch_size / 128 if proxy.family in ("vgg", "resnet") else 1e-3


def optimizer_for(proxy: Proxy, network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return the optimiser that the family is usually trained with (sources: usual_lr)."""
    parameters = network.parameters()
    match proxy.family:
        case "vgg" | "resnet":
            return torch.optim.SGD(
                parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
            )
        case "dncnn":
            return torch.optim.Adam(parameters, lr, fused=True)
        case "nafnet":
            return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.9), weight_decay=0.0, fused=True)
