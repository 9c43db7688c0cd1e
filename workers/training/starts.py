"""What jobs start from, kept on the device: densities share seeds, and so weights and orders.

A seed's initial weights take tens of milliseconds on the host, the orders of all epochs some more,
and either is the same for every density. Nothing here depends on what is kept: it is made anew if
it is not there.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from workers import seeds
from workers.networks import proxies
from workers.training import devices
from workers.training.recipe import Job, Recipe, steps_per_epoch
from workers.training.tasks import Task

MOST_BYTES = 2**28
"""What is kept at most: the weights of a hundred seeds of a small proxy, say."""

Tensors = dict[str, Tensor]


class Starts:
    """Initial weights and orders of a task's and a recipe's jobs on a device."""

    def __init__(self, task: Task, recipe: Recipe, device: torch.device) -> None:
        self._task, self._recipe, self._device = task, recipe, device
        self._kept: dict[Hashable, Tensors] = {}

    def weights(self, job: Job) -> Tensors:
        """Return the initial parameters and buffers of a job's network by name, but for densities.

        Their memory is in the order of every network in training.
        """
        arm, init = job.arm, job.arm.init or self._recipe.init
        # A density has a say in weights that are scaled by it; all others it shares.
        scaled = init == "compensated" or arm.start != "drawn"
        own = tuple(sorted(arm.densities.items())) if scaled else None
        key = ("weights", job.seed, init, arm.start, tuple(sorted(arm.gain.items())), own)

        def drawn() -> Tensors:
            proxy = self._recipe.proxy
            network = proxies.build(
                proxy, arm.densities, init=init, seed=job.seed, gain=arm.gain, start=arm.start
            )
            return {
                name: value
                for name, value in proxies.tensors(proxies.arrange(network, proxy)).items()
                if name != "phi" and not name.endswith(".phi")
            }

        return self._get(key, drawn)

    def orders(self, seed: int, budget: int) -> Tensor:
        """Return the images of every batch of `budget` epochs, indices of shape (steps, B).

        They are drawn on the CPU, as all devices share them, one epoch after another.
        """
        shape = (steps_per_epoch(self._task, self._recipe), -1)

        def drawn() -> Tensors:
            draw, count = seeds.generator(seed, "order"), len(self._task)
            size = shape[0] * min(self._recipe.batch_size, count)
            epochs = [torch.randperm(count, generator=draw)[:size] for _ in range(budget)]
            return {"orders": torch.cat([epoch.view(shape) for epoch in epochs])}

        return self._get(("orders", seed, budget), drawn)["orders"]

    def _get(self, key: Hashable, make: Callable[[], Tensors]) -> Tensors:
        """Return what is kept under a key, or make it and let the oldest go for it."""
        found = self._kept.pop(key, None)
        if found is None:
            # Complete when it returns, so that any stream may read it.
            found = {name: value.detach().to(self._device) for name, value in make().items()}
            room = MOST_BYTES - _bytes(found)
            if sum(map(_bytes, self._kept.values())) > room:
                devices.synchronize(self._device)  # others' streams may still read what goes
            while self._kept and sum(map(_bytes, self._kept.values())) > room:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = found
        return found


def _bytes(tensors: Tensors) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
