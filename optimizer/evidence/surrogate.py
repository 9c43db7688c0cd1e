"""A model of the response over the search box, learnt from its noisy trials.

It is the exact Gaussian process of Rasmussen & Williams 2006 (chapter 2), averaged over a grid of
length scales and noise levels instead of fitted: with few trials no single one of them is certain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from densitune.density import Densities
from optimizer.config.study_file import StudyConfig
from optimizer.evidence.differences import TrialResult, ranked

Array = NDArray[np.float64]

MODELLED = 300
"""Trials the model sees at most, the best by their differences: it costs their number cubed."""
LENGTHS = np.geomspace(0.1, 4.0, 8)
"""Length scales, as shares of the box's diagonal."""
RATIOS = np.geomspace(1e-3, 1e3, 13)
"""Variances of the noise, as multiples of the signal's."""
OWN_SPREAD = 4.0
"""Seeds' worth of trust in the common spread when a trial's own is judged (a moderated variance,
Smyth 2004): the spread of two seeds may be near zero by luck."""


def shown(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Return the trials that the model sees: identity, then the best others, best first."""
    best = ranked(results)
    identity = [trial for trial in best if trial.role == "identity"]
    others = [trial for trial in best if trial.role != "identity"]
    return identity + others[: MODELLED - len(identity)]


def place(densities: Densities, config: StudyConfig) -> Array:
    """Return where densities lie with the search box as unit cube, (dimensions,)."""
    raw = np.array([value for _, den in sorted(densities.items()) for value in den])
    return (raw - config.density.low) / (config.density.high - config.density.low)


@dataclass(frozen=True)
class Table:
    """Trials as the model sees them, a row each."""

    places: Array  # (trials, dimensions)
    mean: Array
    """Paired difference, (trials,)."""
    variance: Array
    """Of the mean, up to a common factor that the model finds, (trials,)."""
    degrees: int
    """Degrees of freedom with which repeated seeds estimate that factor as 1; 0 without repeats."""

    @classmethod
    def of(cls, trials: Sequence[TrialResult], config: StudyConfig) -> "Table":
        """Return means and variances over the seeds, both without what all trials share.

        Every difference contains the noise of identity at its seed. With the same seeds for all
        trials that only shifts them together; the median over the trials takes it out of the
        spreads, and out of the means of trials with fewer seeds.
        """
        places = np.array([place(trial.densities, config) for trial in trials])
        seeds = sorted(set().union(*(trial.searched.by_seed for trial in trials)))
        values = np.array([[t.searched.by_seed.get(s, np.nan) for s in seeds] for t in trials])
        whole = values[~np.isnan(values).any(axis=1)]
        shared = np.median(whole - whole.mean(axis=1, keepdims=True), axis=0)
        values = values - shared
        count = (~np.isnan(values)).sum(axis=1)
        mean = np.nanmean(values, axis=1)
        squares = np.nansum((values - mean[:, None]) ** 2, axis=1)
        degrees = count - 1
        common = _common_spread(squares, degrees)
        if common == 0:  # nothing is known of the noise, and all trials are trusted alike
            return cls(places, mean, 1 / count, 0)
        own = (OWN_SPREAD * common + squares) / (OWN_SPREAD + degrees)
        return cls(places, mean, own / count, int(degrees.sum()))


def _common_spread(squares: Array, degrees: NDArray[np.int_]) -> float:
    """Return the median of the trials' variances between seeds; 0 without repeated seeds.

    A sum of squares over its degrees of freedom is below the variance more often than above it;
    dividing by the median of the chi-squared distribution instead makes the median right.
    """
    repeated = degrees > 0
    medians = 2 * gammaincinv(degrees[repeated] / 2, 0.5)
    return float(np.median(squares[repeated] / medians)) if repeated.any() else 0.0


def posterior(table: Table, places: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of the response at places, both (places,).

    Every pair of length scale and noise ratio counts with its marginal likelihood. The variance
    is that within the pairs and that between them.
    """
    fits = [fit(table, places, length) for length in LENGTHS]
    scores, means, variances = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    mean: Array = weights @ means
    spread: Array = np.sqrt((weights @ (variances + means**2) - mean**2).clip(min=0))
    return mean, spread


def fit(table: Table, places: Array, length: float) -> tuple[Array, Array, Array]:
    """Return log marginal likelihoods (ratios,), means and variances (ratios, places).

    The covariance is s**2 (correlation + ratio * noise) with noise 1 on average. The constant mean
    is integrated out (Rasmussen & Williams 2006, section 2.7; its part of the variance is that of
    equation 2.42) and s**2 is at its maximum. The repeated seeds' own estimate of the noise counts
    as well, with the likelihood of its chi-squared distribution.
    """
    scale = table.variance.mean()
    root = np.sqrt(table.variance / scale)
    # In the eigenvectors of correlation / (root root') the covariance is diagonal for every ratio.
    near = _correlation(table.places, table.places, length) / np.outer(root, root)
    values, axes = np.linalg.eigh(near)
    cross = _correlation(places, table.places, length) / root @ axes  # (places, trials)
    ones, aims = axes.T @ (1 / root), axes.T @ (table.mean / root)
    ratios = RATIOS[:, None]
    noisy = values.clip(min=0) + ratios  # (ratios, trials)
    precision = (ones**2 / noisy).sum(axis=1)
    level = (ones * aims / noisy).sum(axis=1) / precision
    residual = (aims - level[:, None] * ones) / noisy
    degrees = len(root) - 1 + table.degrees
    squares = (residual**2 * noisy).sum(axis=1) + table.degrees * scale / RATIOS
    signal = np.maximum(squares / degrees, np.finfo(float).tiny)
    scores = -0.5 * (
        degrees * np.log(signal)
        + np.log(noisy).sum(axis=1)
        + np.log(precision)
        + table.degrees * np.log(RATIOS)
    )
    unseen = 1 - (1 / noisy) @ (cross**2).T
    unseen += (1 - (ones / noisy) @ cross.T) ** 2 / precision[:, None]
    means = level[:, None] + residual @ cross.T
    return scores, means, signal[:, None] * unseen.clip(min=0)


def _correlation(some: Array, others: Array, length: float) -> Array:
    """Return Matern correlations with nu = 5/2 (Rasmussen & Williams 2006, eq. 4.17).

    Shape (some, others); distances are shares of the cube's diagonal.
    """
    apart = np.linalg.norm(some[:, None] - others[None], axis=2) / np.sqrt(some.shape[1])
    scaled = np.sqrt(5) * apart / length
    correlation: Array = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return correlation
