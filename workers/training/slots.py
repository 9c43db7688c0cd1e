"""Slots: a network and all that a step of it touches, used by one job after another.

On a GPU a job's set-up and the capture of its step take as long as its training up to the first
rung. So a slot stays: the next job of its shape writes its weights, density, rates and orders where
the last one's were, and goes on with the step that is captured.
"""

import logging
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from workers.networks import depthwise, named, pointwise, proxies, turned
from workers.networks.named import Network
from workers.training import capture, chance
from workers.training.recipe import (
    Job,
    Recipe,
    density_rates,
    peak_lr,
    rates,
    steps_per_epoch,
    tuners,
)
from workers.training.starts import Starts
from workers.training.tasks import Draws, Task

log = logging.getLogger("densitune.worker")

Shape = tuple[frozenset[int], bool, int]
"""What a captured step depends on of a job: weighted kernel sizes, whether they learn, budget."""


def shape_of(job: Job) -> Shape:
    """Return what a job has in common with those that can use its slot."""
    return frozenset(job.arm.densities), job.arm.trainable, job.budget


class Slot:
    """A place for jobs of one shape; only what `begin` writes tells one job from another.

    Batches, rates and positions are tensors on the device, so that a step asks nothing of the
    host and waits for nothing.
    """

    def __init__(
        self, task: Task, recipe: Recipe, job: Job, starts: Starts, lanes: capture.Lanes
    ) -> None:
        self._task, self._recipe, self._starts = task, recipe, starts
        self._device = lanes.device
        self.shape = shape_of(job)
        self.lane = lanes.give(self)
        with self.lane():
            network = proxies.empty(recipe.proxy, job.arm.densities, trainable=job.arm.trainable)
            self.network = proxies.arrange(network, recipe.proxy).to(self._device)
            suit(self.network, self._device)
            by_name = recipe.proxy if isinstance(recipe.proxy, Network) else None
            if by_name is not None:
                named.adapt(self.network, by_name)
            steps = job.budget * steps_per_epoch(task, recipe)
            self._tuners = tuners(recipe, self.network, steps, trainable=job.arm.trainable)
            self._draws = Draws(job.seed, self._device, network=by_name is not None)
            shape = steps, min(recipe.batch_size, len(task))
            self._orders = torch.zeros(shape, dtype=torch.int64, device=self._device)
            self._count = torch.zeros(1, dtype=torch.int64, device=self._device)  # of all steps
            self.loss = torch.zeros((), device=self._device)
            """Of the last step, before its change of the weights."""
        self._repeated = capture.Repeated(
            captured=lanes.captured, generators=list(self._draws.generators.values())
        )

    @torch.no_grad()
    def begin(self, job: Job) -> None:
        """Write what a job of this shape starts with; nothing of the last one is left."""
        steps = len(self._orders)
        peak = peak_lr(self._recipe, job)
        schedules = [rates(peak, steps), density_rates(steps, steps // job.budget)]
        weights = self._starts.weights(job)
        with self.lane():
            _copy(proxies.tensors(self.network), weights)
            proxies.set_densities(self.network, job.arm.densities, job.arm.mask)
            for tuner, schedule in zip(self._tuners, schedules, strict=False):
                tuner.begin(schedule)
            self._count.zero_()
        self.draw(job.seed)

    def draw(self, seed: int) -> None:
        """Start the random numbers of a seed: orders, augmentation, noise."""
        orders = self._starts.orders(seed, self.shape[2])
        self._draws.start(seed)
        with self.lane():
            self._orders.copy_(orders)

    def step(self) -> None:
        """Train on one batch, or queue that on a GPU."""
        with self.lane():
            # Given anew each time: a slot that holds its own method outlives its last use.
            self._repeated(self._train_on_a_batch)

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on but for its number; the tensors are those in use."""
        self.lane.wait()
        return {
            "network": proxies.tensors(self.network),
            "optimizers": [tuner.optimizer.state_dict()["state"] for tuner in self._tuners],
            "generators": {name: draw.get_state() for name, draw in self._draws.generators.items()},
        }

    def resume(self, state: dict[str, Any], steps: int) -> None:
        """Take over the state of another slot with the same job after so many steps."""
        with self.lane():
            held = proxies.tensors(self.network)
            for name, value in state["network"].items():
                held[name].copy_(value)
            for tuner, own in zip(self._tuners, state["optimizers"], strict=True):
                tuner.resume(own)
            for name, draw in self._draws.generators.items():
                draw.set_state(state["generators"][name])
            self._count.fill_(steps)

    def _train_on_a_batch(self) -> None:
        """Do one step; a GPU captures it, so nothing here may depend on a tensor's value."""
        chosen = self._orders.index_select(0, self._count).squeeze(0)
        for tuner in self._tuners:
            tuner.set_rate(self._count)
        inputs, targets = self._task.batch(chosen, self._draws)
        for tuner in self._tuners:
            tuner.optimizer.zero_grad(set_to_none=True)
        with chance.drawing_from(self._draws.network, self._device):
            loss = self._task.loss(self._outputs(inputs), targets)
            loss.backward()
        for tuner in self._tuners:
            tuner.optimizer.step()
        self.loss.copy_(loss.detach())
        self._count += 1

    def _outputs(self, inputs: Tensor) -> Any:
        low = self._recipe.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            outputs = self.network(inputs)
        return named.in_float32(outputs)


class Slots:
    """Where the jobs of a task and a recipe are trained on a device, each in a slot.

    `captured` says whether steps are captured where they can be. There are never more slots than
    were in use at once: one that is free goes when another shape needs its place.
    """

    def __init__(
        self, task: Task, recipe: Recipe, device: torch.device, *, captured: bool = True
    ) -> None:
        self.task, self.recipe, self.device = task, recipe, device
        self._starts = Starts(task, recipe, device)
        self._lanes = capture.Lanes(device, captured=captured)
        self._free: list[Slot] = []

    def take(self, job: Job) -> Slot:
        """Return a slot in which a job is about to begin."""
        shape = shape_of(job)
        found = next((slot for slot in self._free if slot.shape == shape), None)
        if found is not None:
            self._free.remove(found)
        else:
            del self._free[:1]
            found = Slot(self.task, self.recipe, job, self._starts, self._lanes)
        found.begin(job)
        return found

    def give(self, slot: Slot) -> None:
        """Take back a slot whose job has ended."""
        slot.lane.wait()
        self._free.append(slot)

    def keep(self, count: int) -> None:
        """Let go of free slots but for so many."""
        del self._free[count:]

    def clear(self) -> None:
        """Forget all that is kept: free slots, weights and orders."""
        self.keep(0)
        self._starts = Starts(self.task, self.recipe, self.device)


def suit(network: nn.Module, device: torch.device) -> None:
    """Give, in place, a network the forms of its layers that are fast and exact on a device."""
    if device.type == "cpu":
        depthwise.speed_up(network)
        pointwise.make_exact(network)
        return
    turned.speed_up(network)
    pixel_norm = _pixel_norm()
    if pixel_norm is not None:
        pixel_norm.speed_up(network, device)


@cache
def _pixel_norm() -> ModuleType | None:
    """Return the module of Triton's kernels; None, and a line of the log, if there is no Triton."""
    try:
        from workers.networks import pixel_norm
    except ImportError as error:
        log.warning("layer normalisation stays torch's, and slower: %s", error)
        return None
    return pixel_norm


def _copy(targets: dict[str, Tensor], sources: dict[str, Tensor]) -> None:
    """Copy tensors by name, all of a type with one call."""
    for dtype in {source.dtype for source in sources.values()}:
        names = [name for name, source in sources.items() if source.dtype == dtype]
        torch._foreach_copy_([targets[n] for n in names], [sources[n] for n in names])
