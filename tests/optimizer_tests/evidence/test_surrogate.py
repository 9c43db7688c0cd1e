"""The model of the response against direct matrix formulas."""

import itertools
import math

import numpy as np
import pytest
from support.synthetic import configured, measured, trial, usual

from optimizer.evidence import differences, surrogate
from optimizer.evidence.surrogate import Array, Table


def reference(table: Table, places: Array) -> tuple[Array, Array]:
    """The model written down directly: inverses, determinants, one pair of settings at a time."""
    size, scale = len(table.places), table.variance.mean()
    ones, noise = np.ones(size), np.diag(table.variance / scale)
    scores, means, variances = [], [], []
    for length, ratio in itertools.product(surrogate.LENGTHS, surrogate.RATIOS):
        covariance = matern(table.places, table.places, length) + ratio * noise
        cross = matern(places, table.places, length)
        inverse = np.linalg.inv(covariance)
        certain = ones @ inverse @ ones
        level = ones @ inverse @ table.mean / certain
        rest = table.mean - level
        degrees = size - 1 + table.degrees
        signal = (rest @ inverse @ rest + table.degrees * scale / ratio) / degrees
        missing = 1 - cross @ inverse @ ones
        unseen = 1 - np.diag(cross @ inverse @ cross.T) + missing**2 / certain
        means.append(level + cross @ inverse @ rest)
        variances.append(signal * unseen)
        scores.append(
            -0.5 * ((size - 1) * math.log(signal) + np.linalg.slogdet(covariance)[1])
            - 0.5 * math.log(certain)
            - 0.5 * table.degrees * math.log(ratio * signal)
        )
    weights = np.exp(np.array(scores) - max(scores))[:, None] / np.exp(scores - max(scores)).sum()
    mean = (weights * means).sum(axis=0)
    return mean, np.sqrt((weights * (variances + (means - mean) ** 2)).sum(axis=0))


def matern(some: Array, others: Array, length: float) -> Array:
    found = np.empty((len(some), len(others)))
    for i, j in itertools.product(range(len(some)), range(len(others))):
        r = math.dist(some[i], others[j]) / math.sqrt(some.shape[1]) / length
        found[i, j] = (1 + math.sqrt(5) * r + 5 * r**2 / 3) * math.exp(-math.sqrt(5) * r)
    return found


@pytest.mark.parametrize(("size", "dimensions", "degrees"), [(4, 1, 0), (12, 2, 12), (20, 3, 60)])
def test_the_model_is_the_gaussian_process_of_the_formulas(
    size: int, dimensions: int, degrees: int
) -> None:
    rng = np.random.default_rng(size)
    trials, elsewhere = rng.uniform(-0.2, 1.2, (2, size, dimensions))
    table = Table(trials, rng.normal(3, 2, size), rng.uniform(0.05, 2.0, size), degrees)
    for places in (trials, elsewhere):
        mean, spread = surrogate.posterior(table, places)
        expected, band = reference(table, places)
        assert mean == pytest.approx(expected, abs=1e-8)
        assert spread == pytest.approx(band, rel=1e-5)


def test_the_box_is_the_unit_cube_and_kernel_sizes_come_in_order() -> None:
    given = configured(kernel_size=[5, 3], proxy={"depth": 9}, density={"low": 0.5, "high": 2.5})
    densities = {5: (1.0, 2.5), 3: (0.5,)}
    assert surrogate.place(densities, given) == pytest.approx([0.0, 0.25, 1.0])


def test_means_are_the_differences_up_to_what_all_trials_share() -> None:
    study = usual()
    shown = surrogate.shown(study.results)
    table = Table.of(shown, study.config)
    shown_as = [result.difference.mean for result in shown]
    assert shown_as[1:] == sorted(shown_as[1:], reverse=True)
    assert table.mean - table.mean[0] == pytest.approx(shown_as)
    assert table.degrees == len(study.results)


def test_two_seeds_that_agree_by_luck_are_not_believed() -> None:
    trials = [trial(n, {3: (1 - n / 20,)}) for n in range(8)]
    apart = [0.0, 1e-9, 0.9, 1.1, 1.0, -1.0, -0.9, -1.1]
    rows = [row for n in range(8) for row in measured(n, {0: 20.0, 1: 24.0 + apart[n]})]
    table = Table.of(differences.results(trials, rows), configured(kernel_size=3))
    assert table.variance[1] > 0.3 * np.median(table.variance)


def test_a_trial_with_fewer_seeds_is_not_credited_with_a_bad_one_of_identity() -> None:
    trials = [trial(n, {3: (1 - n / 20,)}) for n in range(8)]
    rows = [row for n in range(1, 7) for row in measured(n, {0: 20.0, 1: 24.0})]
    rows += [*measured(0, {0: 16.0, 1: 24.0}), *measured(7, {0: 20.0})]
    table = Table.of(differences.results(trials, rows), configured(kernel_size=3))
    assert table.mean == pytest.approx([0, *[2.0] * 7])
