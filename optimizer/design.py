"""The trials that come before any sampler: anchors, and designs that need no results.

Anchors are identity and the authors' published densities; they are trained first in every study,
also where they lie outside the search box. Designs are points known in advance by their index.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densitune import density
from densitune.density import Densities
from storage.states import Role


@dataclass(frozen=True)
class Anchor:
    """A density that every study of these kernel sizes trains."""

    role: Role
    label: str
    densities: Densities


def anchors(kernel_sizes: Sequence[int]) -> list[Anchor]:
    """Return identity, then the published densities grouped by source.

    With several kernel sizes, what one source gives for each of them is one anchor; a size that
    the source does not name stays identity.
    """
    plain = {k: density.identity(k) for k in kernel_sizes}
    by_source: dict[str, Densities] = {}
    for k in kernel_sizes:
        for published in density.PUBLISHED.get(k, ()):
            by_source.setdefault(published.source, dict(plain))[k] = published.den
    return [
        Anchor("identity", "identity", plain),
        *(Anchor("published", source, densities) for source, densities in by_source.items()),
    ]


def sobol(count: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    """Return a scrambled Sobol' sequence in the unit cube, shape (count, dimensions).

    Seed and dimensions fix the sequence; a larger count only makes it longer.
    """
    from scipy.stats import qmc  # here: half of a command's start if every command imported it

    exponent = max(0, (count - 1).bit_length())
    points: NDArray[np.float64] = qmc.Sobol(dimensions, rng=seed).random_base2(exponent)
    return points[:count]


def grid(count: int, dimensions: int) -> NDArray[np.float64]:
    """Return the largest full grid of at most `count` points in the unit cube, ends included.

    Every dimension has the same number of levels, so the grid may have fewer points than asked.
    """
    levels = grid_levels(count, dimensions)
    axis = np.linspace(0.0, 1.0, levels) if levels > 1 else np.array([0.5])
    return np.array(list(itertools.product(axis, repeat=dimensions)))


def grid_levels(count: int, dimensions: int) -> int:
    """Return the number of levels per dimension of the largest full grid of `count` points."""
    levels = 1
    while (levels + 1) ** dimensions <= count:
        levels += 1
    return levels


def startup(dimensions: int) -> int:
    """Return how many Sobol' points precede a model-based sampler.

    Enough to fit a surface with a curvature per dimension; samplers start at random otherwise.
    """
    return 4 * (dimensions + 1)


def proposal_seed(seed: int, number: int) -> int:
    """Return the seed of the sampler that proposes trial `number`, below 2**32."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
