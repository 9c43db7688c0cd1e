"""Random generators by purpose, so that arms, packs and restarts share their random numbers.

A generator depends on the job's seed and on what it is for ("weights", "order", "noise", ...) and
on nothing else: not on the density, the place in a pack, or what was drawn before. Two arms with
the same seed therefore see the same initial weights, batches, augmentation and noise.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from densitune.repeatable import derive as derive  # the process of a script has it, too


def generator(
    seed: int, *purpose: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator for one purpose on a device."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))


@contextmanager
def drawing_by(seed: int) -> Iterator[None]:
    """Have all that is drawn on the CPU from global generators meanwhile drawn by a seed."""
    numpy_state, state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed a GPU's generator as well.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(state)
