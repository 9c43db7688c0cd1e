"""Which trials are worth confirming: the best that a model of the noisy results expects.

The largest of many noisy results owes part of its place to luck, the more so the more there are.
A Gaussian process over the search box pulls a trial towards what its neighbours reached, and one
without neighbours towards the mean; trials are ranked by what is left. It is the exact process of
Rasmussen & Williams 2006 (chapter 2), averaged over a grid of length scales and noise levels
instead of fitted: with few trials no single one of them is certain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from optimizer.config import StudyConfig
from optimizer.results import TrialResult, ranked

Array = NDArray[np.float64]

NEAR = 0.05
"""Densities that differ in no value by as much as this share of the box's width are practically the
same: confirming both would ask one question twice."""
MODELLED = 300
"""Trials the model sees at most, the best by their differences: it costs their number cubed."""
LENGTHS = np.geomspace(0.1, 4.0, 8)
"""Length scales, as shares of the box's diagonal."""
RATIOS = np.geomspace(1e-3, 1e3, 13)
"""Variances of the noise, as multiples of the signal's."""
OWN_SPREAD = 4.0
"""Seeds' worth of trust in the common spread when a trial's own is judged (a moderated variance,
Smyth 2004): the spread of two seeds may be near zero by luck."""


def choose(found: Sequence[TrialResult], config: StudyConfig) -> list[int]:
    """Return the numbers of at most `config.confirm.finalists` trials, best expected first.

    `found` are the complete trials with identity among them, in any order. Identity, what is
    practically identity, and what is practically a better finalist are left out.
    """
    shown = sorted(_modelled(found), key=lambda trial: trial.number)
    if len(shown) < 2:
        return []
    points = _points(shown, config)
    table = Table.of(shown)
    # Rounded, so that the last bits of linear algebra never decide; ties in the order of trials.
    order = np.argsort(-np.round(expected(points, table), 9), kind="stable")
    chosen = [at for at in order if shown[at].role == "identity"]
    known = len(chosen)
    for at in order:
        if len(chosen) - known == config.confirm.finalists:
            break
        if all(np.abs(points[at] - points[other]).max() >= NEAR for other in chosen):
            chosen.append(at)
    return [shown[at].number for at in chosen[known:]]


def _modelled(found: Sequence[TrialResult]) -> list[TrialResult]:
    identity = [trial for trial in found if trial.role == "identity"]
    others = ranked(trial for trial in found if trial.role != "identity")
    return identity + others[: MODELLED - len(identity)]


def _points(shown: Sequence[TrialResult], config: StudyConfig) -> Array:
    """Return the densities with the box as unit cube, shape (trials, dimensions)."""
    raw = [[v for _, den in sorted(trial.densities.items()) for v in den] for trial in shown]
    return (np.array(raw) - config.density.low) / (config.density.high - config.density.low)


@dataclass(frozen=True)
class Table:
    """Paired differences as the model sees them; arrays of shape (trials,)."""

    mean: Array
    variance: Array
    """Of the mean, up to a common factor that the model finds."""
    degrees: int
    """Degrees of freedom with which repeated seeds estimate that factor as 1; 0 without repeats."""

    @classmethod
    def of(cls, shown: Sequence[TrialResult]) -> "Table":
        """Return means and variances over the seeds, both without what all trials share.

        Every difference contains the noise of identity at its seed. With the same seeds for all
        trials that only shifts them together; the median over the trials takes it out of the
        spreads, and out of the means of trials with fewer seeds.
        """
        seeds = sorted(set().union(*(trial.difference.by_seed for trial in shown)))
        values = np.array([[t.difference.by_seed.get(s, np.nan) for s in seeds] for t in shown])
        whole = values[~np.isnan(values).any(axis=1)]
        shared = np.median(whole - whole.mean(axis=1, keepdims=True), axis=0)
        values = values - shared
        count = (~np.isnan(values)).sum(axis=1)
        mean = np.nanmean(values, axis=1)
        squares = np.nansum((values - mean[:, None]) ** 2, axis=1)
        degrees = count - 1
        common = _common_spread(squares, degrees)
        if common == 0:  # nothing is known of the noise, and all trials are trusted alike
            return cls(mean, 1 / count, 0)
        own = (OWN_SPREAD * common + squares) / (OWN_SPREAD + degrees)
        return cls(mean, own / count, int(degrees.sum()))


def _common_spread(squares: Array, degrees: NDArray[np.int_]) -> float:
    """Return the median of the trials' variances between seeds; 0 without repeated seeds.

    A sum of squares over its degrees of freedom is below the variance more often than above it;
    dividing by the median of the chi-squared distribution instead makes the median right.
    """
    repeated = degrees > 0
    medians = 2 * gammaincinv(degrees[repeated] / 2, 0.5)
    return float(np.median(squares[repeated] / medians)) if repeated.any() else 0.0


def expected(points: Array, table: Table) -> Array:
    """Return the model's mean at the trials' points, shape (trials,).

    Every pair of length scale and noise ratio counts with its marginal likelihood.
    """
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) / np.sqrt(points.shape[1])
    fits = [_fit(_matern(distances / length), table) for length in LENGTHS]
    scores = np.concatenate([score for score, _ in fits])
    means = np.concatenate([mean for _, mean in fits])
    weights = np.exp(scores - scores.max())
    mean: Array = weights @ means / weights.sum()
    return mean


def _matern(distances: Array) -> Array:
    """Return the Matern correlation with nu = 5/2 (Rasmussen & Williams 2006, eq. 4.17)."""
    scaled = np.sqrt(5) * distances
    correlation: Array = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return correlation


def _fit(correlation: Array, table: Table) -> tuple[Array, Array]:
    """Return for all ratios the log marginal likelihood, and the posterior means at the trials.

    Shapes (ratios,) and (ratios, trials). The covariance is s**2 (correlation + ratio * noise) with
    noise 1 on average. The constant mean is integrated out (Rasmussen & Williams 2006, section
    2.7) and s**2 is at its maximum. The repeated seeds' own estimate of the noise counts as well,
    with the likelihood of its chi-squared distribution.
    """
    scale = table.variance.mean()
    root = np.sqrt(table.variance / scale)
    # In the eigenvectors of correlation / (root root') the covariance is diagonal for every ratio.
    eigenvalues, vectors = np.linalg.eigh(correlation / np.outer(root, root))
    ones, values = vectors.T @ (1 / root), vectors.T @ (table.mean / root)
    ratios = RATIOS[:, None]
    variances = np.maximum(eigenvalues, 0) + ratios
    precision = (ones**2 / variances).sum(axis=1)
    level = (ones * values / variances).sum(axis=1) / precision
    residual = (values - level[:, None] * ones) / variances
    squares = (residual**2 * variances).sum(axis=1)
    degrees = len(root) - 1 + table.degrees
    signal = (squares + table.degrees * scale / RATIOS) / degrees
    scores = -0.5 * (
        degrees * np.log(np.maximum(signal, np.finfo(float).tiny))
        + np.log(variances).sum(axis=1)
        + np.log(precision)
        + table.degrees * np.log(RATIOS)
    )
    return scores, table.mean - ratios * root * (residual @ vectors.T)
