"""The response that the finalists' Gaussian process expects, over the whole search box."""

import math

import numpy as np
from numpy.typing import NDArray

from optimizer import finalists
from optimizer.config import StudyConfig
from optimizer.finalists import Table
from optimizer.report_response import Model
from optimizer.snapshot import Snapshot

Array = NDArray[np.float64]

FEWEST = 5
"""Complete trials below which a model would say more about itself than about them."""
STEPS = {1: 97, 2: 24}
"""Places along each value, by the number of values."""


def of(snapshot: Snapshot) -> Model | None:
    """Return the response's model over one value or two; None for more, or with few trials."""
    config = snapshot.config
    if config.dimensions not in STEPS or len(snapshot.results) < FEWEST:
        return None
    shown = sorted(finalists._modelled(snapshot.results), key=lambda trial: trial.number)
    table = Table.of(shown)
    cube = places(config)
    mean, spread = posterior(finalists._points(shown, config), table, cube)
    box = config.density
    # The table is without what all trials share; with it, identity is at zero, as it is drawn.
    return Model(box.low + cube * (box.high - box.low), mean - table.mean[0], spread)


def places(config: StudyConfig) -> Array:
    """Return a regular grid in the unit cube, (places, dimensions): middles of tiles for two."""
    steps = STEPS[config.dimensions]
    if config.dimensions == 1:
        return np.linspace(0, 1, steps)[:, None]
    middles = (np.arange(steps) + 0.5) / steps
    return np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(-1, 2)


def posterior(points: Array, table: Table, cube: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of the response at places, both (places,).

    The process and the weights of its average are those of `finalists.expected`. The variance at a
    place has the part that the unknown constant mean adds (Rasmussen & Williams 2006, equation
    2.42), and that between the members of the average.
    """
    fits = [_fit(points, table, cube, length) for length in finalists.LENGTHS]
    scores, means, variances = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    mean: Array = weights @ means
    spread: Array = np.sqrt((weights @ (variances + means**2) - mean**2).clip(min=0))
    return mean, spread


def _fit(points: Array, table: Table, cube: Array, length: float) -> tuple[Array, Array, Array]:
    """Return log marginal likelihoods (ratios,), means and variances (ratios, places)."""
    scale = table.variance.mean()
    root = np.sqrt(table.variance / scale)
    near = finalists._matern(_distances(points, points) / length) / np.outer(root, root)
    values, axes = np.linalg.eigh(near)
    cross = finalists._matern(_distances(cube, points) / length) / root @ axes  # (places, trials)
    ones, aims = axes.T @ (1 / root), axes.T @ (table.mean / root)
    ratios = finalists.RATIOS[:, None]
    noisy = values.clip(min=0) + ratios  # (ratios, trials)
    precision = (ones**2 / noisy).sum(axis=1)
    level = (ones * aims / noisy).sum(axis=1) / precision
    residual = (aims - level[:, None] * ones) / noisy
    degrees = len(points) - 1 + table.degrees
    squares = (residual**2 * noisy).sum(axis=1) + table.degrees * scale / ratios[:, 0]
    signal = np.maximum(squares / degrees, np.finfo(float).tiny)
    scores = -0.5 * (
        degrees * np.log(signal)
        + np.log(noisy).sum(axis=1)
        + np.log(precision)
        + table.degrees * np.log(ratios[:, 0])
    )
    unseen = 1 - (1 / noisy) @ (cross**2).T
    unseen += (1 - (ones / noisy) @ cross.T) ** 2 / precision[:, None]
    means = level[:, None] + residual @ cross.T
    return scores, means, signal[:, None] * unseen.clip(min=0)


def _distances(some: Array, others: Array) -> Array:
    """Return distances as shares of the cube's diagonal, (some, others)."""
    apart: Array = np.linalg.norm(some[:, None] - others[None], axis=2)
    return apart / math.sqrt(some.shape[1])
