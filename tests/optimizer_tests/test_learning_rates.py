"""Learning rates: the grid around the usual one, and the best by a smooth fit."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer import learning_rates

GRID = learning_rates.grid(learning_rates.usual("nafnet", 16))


def test_the_grid_is_a_decade_to_either_side_of_the_usual_rate() -> None:
    assert pytest.approx([1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2]) == GRID
    assert learning_rates.grid(learning_rates.usual("vgg", 512))[2] == pytest.approx(0.4)
    steps = [b / a for a, b in itertools.pairwise(GRID)]
    assert steps == pytest.approx([math.sqrt(10)] * 4, rel=1e-2)


@given(peak=st.floats(-7, 1))
def test_the_grid_grows_until_the_best_lies_within_or_at_a_limit(peak: float) -> None:
    def scores() -> dict[float, float]:
        return {rate: -((math.log10(rate) - peak) ** 2) for rate in tried}

    tried = list(GRID)
    low, high = learning_rates.limits(1e-3)
    while (further := learning_rates.beyond(1e-3, tried, scores())) is not None:
        end = max(tried) if further > max(tried) else min(tried)
        assert abs(math.log10(further / end)) == pytest.approx(0.5, abs=0.003)
        tried.append(further)
    best = max(tried, key=scores().__getitem__)
    assert min(tried) < best < max(tried) or best in (low, high)
    assert low <= min(tried) <= max(tried) <= high
    assert (low, high) == pytest.approx((1e-6, 1.0))


def test_the_grid_does_not_grow_beyond_rates_that_diverged() -> None:
    assert learning_rates.beyond(1e-3, GRID, {GRID[2]: 20.0, GRID[3]: 24.0}) is None
    assert learning_rates.beyond(1e-3, GRID, {GRID[0]: 20.0}) == pytest.approx(3.16e-5)


@given(peak=st.floats(-3.4, -2.6), curve=st.floats(0.1, 10), top=st.floats(0, 100))
def test_the_top_of_a_parabola_is_found_between_the_points(
    peak: float, curve: float, top: float
) -> None:
    scores = {rate: top - curve * (math.log10(rate) - peak) ** 2 for rate in GRID}
    assert math.log10(learning_rates.best(scores)) == pytest.approx(peak, abs=0.003)


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5), st.randoms())
def test_the_best_rate_lies_beside_the_best_point_whatever_the_order(
    scores: list[float], shuffle: random.Random
) -> None:
    pairs = list(zip(GRID, scores, strict=True))
    found = learning_rates.best(dict(pairs))
    place = scores.index(max(scores))
    assert GRID[max(0, place - 1)] <= found <= GRID[min(4, place + 1)]
    if place in (0, 4):
        assert found == GRID[place]
    shuffle.shuffle(pairs)
    assert learning_rates.best(dict(pairs)) == found


def test_rates_that_diverged_are_left_out() -> None:
    assert learning_rates.best({GRID[2]: 20.0, GRID[3]: 24.0}) == GRID[3]
    assert learning_rates.best({GRID[1]: 20.0}) == GRID[1]
    without_the_middle = {GRID[0]: 20.0, GRID[1]: 24.0, GRID[3]: 20.0}
    assert GRID[0] < learning_rates.best(without_the_middle) < GRID[3]
    with pytest.raises(ValueError, match="no learning rate has a score"):
        learning_rates.best({})


def test_equals_give_the_lowest_rate() -> None:
    assert learning_rates.best(dict.fromkeys(GRID, 7.0)) == GRID[0]
