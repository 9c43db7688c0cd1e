"""What is trained and how: recipe, job and measurement, and the schedules behind them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor, nn

from optimizer import learning_rates
from optimizer.arms import Arm, Init, Precision
from workers.networks import proxies
from workers.networks.named import Network
from workers.networks.proxies import Proxy
from workers.training.scores import Score
from workers.training.tasks import Task

Ending = Literal["done", "cut"]
"""Of a job: its budget is used up, or its score was below a bar."""

Kind = Callable[[nn.Module, Tensor], torch.optim.Optimizer]
"""Of an optimiser: made for a network and a learning rate."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises linearly, before it falls as a cosine."""
DENSITY_LR, DENSITY_DECAY = 1e-2, 1e-2
"""Peak learning rate and weight decay of trainable densities. The authors of weighted convolution
give them an AdamW of their own with these (README of weightedConvolution2.0)."""
PERIOD, LONGER = 10, 2
"""The authors' cosine of that rate starts again after 10 epochs, then 20, then 40 and so on."""


@dataclass(frozen=True)
class Recipe:
    """How the jobs of a study are trained, where they do not say otherwise."""

    proxy: Proxy | Network
    init: Init
    batch_size: int
    lr: float | None
    """Peak learning rate; None takes the usual one of its kind."""
    rungs: tuple[int, ...]
    """Epochs after which a job is measured; those at or beyond its budget are ignored."""
    precision: Precision = "full"


@dataclass(frozen=True)
class Job:
    """The unit of training."""

    arm: Arm
    seed: int
    budget: int
    """Epochs."""
    bars: Mapping[int, float] = field(default_factory=dict)
    """By rung: the least score with which the job goes on."""


@dataclass(frozen=True)
class Measurement:
    """A job's score at a rung."""

    rung: int
    """Epochs trained so far."""
    score: Score
    seconds: float
    """The job's share of the time that training has taken so far."""
    ending: Ending | None
    """Whether the job ends here, and how."""
    sealed: Score | None = None
    """That on the test split, of a job that ends and is measured on both."""


@dataclass(frozen=True)
class Tuner:
    """An optimiser, its learning rate, a tensor that is changed in place, and the rate's values."""

    optimizer: torch.optim.Optimizer
    lr: Tensor
    rates: Tensor
    """Of every step, shape (steps,)."""

    def set_rate(self, step: Tensor) -> None:
        """Take the rate of a step, a tensor of shape (1,), so that the host is not asked."""
        self.lr.copy_(self.rates.index_select(0, step).squeeze(0))

    def begin(self, rates: Tensor) -> None:
        """Start another training in place, with its rates.

        Zeros are what the optimisers start with: SGD takes its first gradient for its momentum,
        which is what a momentum of zero comes to.
        """
        self.rates.copy_(rates, non_blocking=True)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def resume(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Take over the state of another job's optimiser, with the rate of this one."""
        if self.optimizer.state and state:
            held = self.optimizer.state_dict()["state"]
            for number, values in state.items():
                for name, value in values.items():
                    held[number][name].copy_(value)
            return
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr  # the optimiser has taken a copy, which no step changes


def tuners(recipe: Recipe, network: nn.Module, steps: int, *, trainable: bool) -> list[Tuner]:
    """Return what trains a network where it lies: its weights and, if they are, its densities.

    Their rates, of `steps` steps, are zero until a training begins.
    """
    device = next(network.parameters()).device
    kinds: list[Kind] = [partial(optimizer_for, recipe.proxy)]
    kinds += [density_optimizer] if trainable else []
    found = []
    for kind in kinds:
        lr = torch.zeros((), device=device)
        found.append(Tuner(kind(network, lr), lr, torch.zeros(steps, device=device)))
    return found


def steps_per_epoch(task: Task, recipe: Recipe) -> int:
    """Return the number of batches of an epoch; a last incomplete one is left out."""
    return max(1, len(task) // recipe.batch_size)


def peak_lr(recipe: Recipe, job: Job) -> float:
    """Return a job's peak learning rate: its arm's, the recipe's, or the family's usual one."""
    return job.arm.lr or recipe.lr or usual_lr(recipe.proxy, recipe.batch_size)


@lru_cache(maxsize=64)
def rates(peak: float, steps: int) -> Tensor:
    """Return the learning rate of every step of a training of `steps` steps, shape (steps,)."""
    return torch.tensor([peak * schedule(step, steps) for step in range(steps)])


def schedule(step: int, total: int) -> float:
    """Return the learning rate of a step as a share of its peak: linear rise, then cosine."""
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def usual_lr(proxy: Proxy | Network, batch_size: int) -> float:
    """Return the peak learning rate that a network of its kind is usually trained with."""
    return learning_rates.usual(proxy.kind, batch_size)


def optimizer_for(proxy: Proxy | Network, network: nn.Module, lr: Tensor) -> torch.optim.Optimizer:
    """Return what a network of its kind is usually trained with (see optimizer.learning_rates).

    It holds all parameters but densities. `lr` is a tensor without dimensions on the network's
    device. Training changes it in place, so that a step needs nothing from the host.
    """
    densities = {id(den) for _, den in proxies.trainable_densities(network)}
    parameters = [each for each in network.parameters() if id(each) not in densities]
    match proxy.kind:
        case "vgg" | "resnet" | "classifier":
            return torch.optim.SGD(
                parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
            )
        case "dncnn" | "regressor":
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


def density_optimizer(network: nn.Module, lr: Tensor) -> torch.optim.Optimizer:
    """Return the optimiser of a network's trainable densities, whatever that of its weights is."""
    return torch.optim.AdamW(
        [den for _, den in proxies.trainable_densities(network)],
        lr,
        weight_decay=DENSITY_DECAY,
        fused=True,
        capturable=lr.is_cuda,
    )


@lru_cache(maxsize=64)
def density_rates(steps: int, epoch_steps: int) -> Tensor:
    """Return the learning rate of trainable densities for every step, shape (steps,)."""
    return torch.tensor([DENSITY_LR * restarting(step // epoch_steps) for step in range(steps)])


def restarting(epoch: int) -> float:
    """Return an epoch's rate as a share of its peak: a cosine with warm restarts.

    Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5.
    """
    period = PERIOD
    while epoch >= period:
        epoch, period = epoch - period, LONGER * period
    return 0.5 * (1 + math.cos(math.pi * epoch / period))
