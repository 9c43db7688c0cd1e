"""The four proxies that the benchmarks measure, with data of the usual shapes.

Speed does not depend on what the images show, so they are random bytes: CIFAR-100's shape for
classifiers (100 classes, 32 x 32 RGB), gray patches of 40 x 40 for denoisers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from optimizer.arms import Precision
from workers.data.bank import Bank
from workers.networks.proxies import Proxy
from workers.training import devices
from workers.training.recipe import Recipe
from workers.training.tasks import Classification, Denoising, Task

Family = Literal["vgg", "resnet", "dncnn", "nafnet"]
FAMILIES: tuple[Family, ...] = ("vgg", "resnet", "dncnn", "nafnet")
SIGMA = 25.0

_SHAPES: dict[str, tuple[int, int, int]] = {  # width, depth, batch size
    "vgg": (32, 6, 128),
    "resnet": (32, 8, 128),
    "dncnn": (32, 8, 64),
    "nafnet": (16, 5, 32),
}
_TINY: dict[str, tuple[int, int, int]] = {
    "vgg": (4, 3, 8),
    "resnet": (4, 8, 8),
    "dncnn": (4, 3, 8),
    "nafnet": (4, 3, 8),
}


@dataclass(frozen=True)
class Case:
    """A proxy with one kernel size."""

    family: Family
    kernel_size: int
    images: int = 2048
    """Of the training set."""
    epochs: int = 8
    held: int = 256
    """Validation images."""
    tiny: bool = False
    """Whether it is there to be run, not to be measured."""

    @property
    def classifies(self) -> bool:
        """Whether the images have labels."""
        return self.family in ("vgg", "resnet")

    @property
    def densities(self) -> dict[int, tuple[float, ...]]:
        """Return a density that is not identity."""
        return {self.kernel_size: (0.5,) * (self.kernel_size // 2)}

    def recipe(self, device: torch.device, precision: Precision | None = None) -> Recipe:
        """Return densitune's recipe, in the precision that `auto` takes on a device."""
        width, depth, batch_size = (_TINY if self.tiny else _SHAPES)[self.family]
        channels, classes = (3, 100) if self.classifies else (1, None)
        return Recipe(
            Proxy(self.family, width, depth, (self.kernel_size,), channels, classes),
            "library",
            batch_size,
            lr=0.01 if self.classifies else 1e-3,
            rungs=(self.epochs,),
            precision=precision or devices.precision("auto", device),
        )

    def bank(self) -> Bank:
        """Return random images, with labels for a classifier."""
        rng = np.random.default_rng(0)
        shape = (3, 32, 32) if self.classifies else (1, 40, 40)
        train = rng.integers(0, 256, (self.images, *shape), dtype=np.uint8)
        held = rng.integers(0, 256, (self.held, *shape), dtype=np.uint8)
        if not self.classifies:
            return Bank(train, held, fingerprint="", source="random")
        labels = rng.integers(0, 100, self.images), rng.integers(0, 100, self.held)
        return Bank(train, held, *labels, 100, fingerprint="", source="random")

    def task(self, device: torch.device) -> Task:
        """Return densitune's task with these images on a device."""
        if self.classifies:
            return Classification(self.bank(), device)
        return Denoising(self.bank(), device, SIGMA)
