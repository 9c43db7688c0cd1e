"""What is trained and how: recipe, job and measurement, and the schedules behind them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from optimizer import rates as learning_rates
from workers.proxies import Proxy
from workers.tasks import Score, Task

Precision = Literal["full", "bfloat16"]

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises linearly, before it falls as a cosine."""


@dataclass(frozen=True)
class Recipe:
    """How the jobs of a study are trained, where they do not say otherwise."""

    proxy: Proxy
    init: Literal["library", "compensated"]
    batch_size: int
    lr: float | None
    """Peak learning rate; None takes the family's usual one."""
    rungs: tuple[int, ...]
    """Epochs after which a job is measured; those at or beyond its budget are ignored."""
    precision: Precision = "full"
    """Of the network in training; weights, loss and every measurement are float32 in any case."""


@dataclass(frozen=True)
class Job:
    """The unit of training."""

    densities: Mapping[int, Sequence[float]]
    seed: int
    budget: int
    """Epochs."""
    bars: Mapping[int, float] = field(default_factory=dict)
    """By rung: the least score with which the job goes on."""
    lr: float | None = None
    """Peak learning rate; None takes the recipe's."""
    init: Literal["library", "compensated"] | None = None
    """None takes the recipe's."""
    gain: Mapping[int, float] = field(default_factory=dict)
    """By kernel size: a factor of the initial weights (workers.proxies.build)."""


@dataclass(frozen=True)
class Measurement:
    """A job's score at a rung."""

    rung: int
    """Epochs trained so far."""
    score: Score
    seconds: float
    """The job's share of the time that training has taken so far."""
    ending: Literal["done", "cut"] | None
    """Whether the job ends here: the score is below its bar, or its budget is used up."""


def steps_per_epoch(task: Task, recipe: Recipe) -> int:
    """Return the number of batches of an epoch; a last incomplete one is left out."""
    return max(1, len(task) // recipe.batch_size)


def peak_lr(recipe: Recipe, job: Job) -> float:
    """Return the peak learning rate of a job: its own, the recipe's, or the family's usual one."""
    return job.lr or recipe.lr or usual_lr(recipe.proxy, recipe.batch_size)


def rates(peak: float, steps: int) -> Tensor:
    """Return the learning rate of every step of a training of `steps` steps, shape (steps,)."""
    return torch.tensor([peak * schedule(step, steps) for step in range(steps)])


def schedule(step: int, total: int) -> float:
    """Return the learning rate of a step as a share of its peak: linear rise, then cosine."""
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def usual_lr(proxy: Proxy, batch_size: int) -> float:
    """Return the peak learning rate that a proxy's family is usually trained with."""
    return learning_rates.usual(proxy.family, batch_size)


def optimizer_for(proxy: Proxy, network: nn.Module, lr: Tensor) -> torch.optim.Optimizer:
    """Return the optimiser that the family is usually trained with (see optimizer.rates).

    `lr` is a tensor without dimensions on the network's device. Training changes it in place, so
    that a step needs nothing from the host.
    """
    parameters = network.parameters()
    match proxy.family:
        case "vgg" | "resnet":
            return torch.optim.SGD(
                parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
            )
        case "dncnn":
            return torch.optim.Adam(parameters, lr, fused=True, capturable=lr.is_cuda)
        case "nafnet":
            return torch.optim.AdamW(
                parameters,
                lr,
                betas=(0.9, 0.9),
                weight_decay=0.0,
                fused=True,
                capturable=lr.is_cuda,
            )
