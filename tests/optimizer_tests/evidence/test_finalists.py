"""The choice of finalists, and what luck can do to it."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic import configured, measured, trial

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences, finalists, surrogate
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.finalists import choose
from optimizer.evidence.surrogate import Array

SIZES = {1: 3, 2: 5, 3: 7}
LOW, HIGH = 0.05, 2.0


def studied(points: Array, values: Array) -> tuple[list[TrialResult], StudyConfig]:
    """Complete trials with identity first; points (trials, dimensions), values (trials, seeds)."""
    k = SIZES[points.shape[1]]
    points = np.vstack([np.ones(points.shape[1]), points])
    trials = [trial(number, {k: tuple(point)}) for number, point in enumerate(points.tolist())]
    rows = [
        row for number, row_of in enumerate(values.tolist())
        for row in measured(number, dict(enumerate(row_of)))
    ]  # fmt: skip
    search = {"trials": max(24, len(trials)), "seeds": values.shape[1]}
    return differences.results(trials, rows), configured(kernel_size=k, search=search)


def noisy(
    truth: Callable[[Array], float],
    count: int,
    dimensions: int,
    seeds: int,
    noise: float,
    draw: int,
) -> tuple[list[TrialResult], StudyConfig]:
    """A study of uniform points whose seeds have much in common."""
    rng = np.random.default_rng(draw)
    points = rng.uniform(LOW, HIGH, (count, dimensions))
    means = np.array([truth(point) for point in np.vstack([np.ones(dimensions), points])])
    shared = rng.normal(0, 5, seeds)
    return studied(points, means[:, None] + shared + rng.normal(0, noise, (count + 1, seeds)))


def hill(point: Array) -> float:
    return float(-2 * ((point - 0.6) ** 2 / np.arange(1, len(point) + 1)).sum())


def density(found: Sequence[TrialResult], number: int) -> Array:
    [chosen] = [one for one in found if one.number == number]
    return np.array([value for den in chosen.densities.values() for value in den])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_what_all_trials_share_at_a_seed_does_not_matter(draw: int, seeds: int) -> None:
    rng = np.random.default_rng(draw)
    points, values = rng.uniform(LOW, HIGH, (9, 2)), rng.normal(0, 1, (10, seeds))
    found, config = studied(points, values)
    shifted, _ = studied(points, values + rng.normal(0, 50, seeds))
    assert choose(found, config) == choose(shifted, config)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_the_order_of_trials_does_not_matter(draw: int, random: object) -> None:
    found, config = noisy(hill, 12, 2, 2, 0.3, draw)
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(shuffled, config) == choose(found, config)


@pytest.mark.parametrize(("dimensions", "seeds"), [(1, 2), (2, 1), (2, 2), (3, 2)])
def test_a_lucky_maximum_counts_less_than_a_good_neighbourhood(dimensions: int, seeds: int) -> None:
    """How much worse than the best trial the first finalist truly is, against the raw maximum."""
    lost, lost_raw = [], []
    for draw in range(20):
        found, config = noisy(hill, 30, dimensions, seeds, 0.5, draw)
        raw = next(one for one in differences.ranked(found) if one.number != 0)
        best = max(hill(density(found, one.number)) for one in found)
        lost.append(best - hill(density(found, choose(found, config)[0])))
        lost_raw.append(best - hill(density(found, raw.number)))
    assert np.mean(lost) < 0.7 * np.mean(lost_raw)


def test_a_lone_outlier_among_many_neighbours_is_not_believed() -> None:
    points = np.linspace(0.1, 1.9, 37)[:, None]
    values = np.array([hill(point) for point in np.vstack([[1.0], points])])
    both = values[:, None] + np.random.default_rng(0).normal(0, 0.2, (38, 2))
    both[31] = values.max() + 0.3  # alike in both seeds: by its own spread, certain
    found, config = studied(points, both)
    assert differences.ranked(found)[0].number == 31
    assert 31 not in choose(found, config)
    assert density(found, choose(found, config)[0]) == pytest.approx([0.6], abs=0.2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([1, 2, 3]))
def test_finalists_are_few_and_differ_from_each_other_and_from_identity(
    draw: int, count: int, dimensions: int
) -> None:
    found, config = noisy(hill, count, dimensions, 2, 0.3, draw)
    chosen = choose(found, config)
    assert len(chosen) == len(set(chosen)) <= config.confirm.finalists
    points = [np.ones(dimensions), *(density(found, number) for number in chosen)]
    for one, other in itertools.combinations(points, 2):
        assert np.abs(one - other).max() >= finalists.NEAR * (HIGH - LOW)
    if count > 20 and dimensions > 1:
        assert len(chosen) == config.confirm.finalists


def test_the_number_of_finalists_is_the_configs() -> None:
    found, config = noisy(hill, 40, 2, 2, 0.1, 1)
    for count in (1, 2, 7):
        confirm = config.confirm.model_copy(update={"finalists": count})
        assert len(choose(found, config.model_copy(update={"confirm": confirm}))) == count


def test_densities_outside_the_box_are_as_good_as_others() -> None:
    points = np.array([[0.3], [0.5], [0.7], [0.9], [3.0], [3.2]])
    values = np.array([0.0, 0.1, 0.2, 0.1, 0.0, 5.0, 4.9])
    found, config = studied(points, values[:, None] + np.array([[0.0, 7.0]]))
    assert choose(found, config)[:2] == [5, 6]


@pytest.mark.parametrize("seeds", [1, 2])
def test_trials_that_are_all_the_same_are_taken_in_their_order(seeds: int) -> None:
    points = np.array([[0.3], [0.5], [0.7], [1.3], [1.5]])
    found, config = studied(points, np.full((6, seeds), 20.0))
    assert choose(found, config) == [1, 2, 3]


@pytest.mark.parametrize("draw", range(4))
def test_of_two_that_are_the_same_the_earlier_is_taken(draw: int) -> None:
    rng = np.random.default_rng(draw)
    points, values = rng.uniform(LOW, HIGH, (20, 2)), rng.normal(20, 1, (21, 2))
    found, config = studied(np.vstack([points, points]), np.vstack([values, values[1:]]))
    assert max(choose(found, config)) <= 20


def test_identity_alone_and_its_doubles_leave_nothing_to_confirm() -> None:
    found, config = studied(np.array([[1.01], [0.96]]), np.array([[20.0, 21], [22, 23], [24, 25]]))
    assert choose(found, config) == choose(found[:1], config) == []


def test_a_trial_with_fewer_seeds_is_compared_over_those_it_has() -> None:
    """Its only seed was a bad one for identity, so every trial looks good there."""
    points = np.array([[0.2], [0.5], [0.8], [1.3], [1.6]])
    values = np.tile([[30.0, 20.0]], (6, 1)) + np.linspace(0, 0.01, 6)[:, None] * [1, 1.5]
    values[0, 0] -= 4.0
    values[4:, :] -= 1.0
    found, config = studied(points, values)
    known = found[4].difference.by_seed[0]
    shorter = differences.Difference(known, None, {0: known})
    found[4] = TrialResult(**{**vars(found[4]), "difference": shorter})
    assert differences.ranked(found)[0].number == 4
    assert set(choose(found, config)) == {1, 2, 3}


def test_many_trials_are_modelled_by_their_best() -> None:
    found, config = noisy(hill, 2 * surrogate.MODELLED, 1, 2, 0.3, 0)
    best = {one.number for one in differences.ranked(found)[: surrogate.MODELLED]}
    assert set(choose(found, config)) <= best
