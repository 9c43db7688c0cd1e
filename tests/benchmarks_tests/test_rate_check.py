"""The simulation of the rate check: its arms find their rates, and its answers follow the truth."""

import math

import numpy as np
import pytest
import rate_check
from rate_check import RATE, TRUTHS, Truth, of_truth, own_rate

from optimizer import learning_rates


@pytest.mark.parametrize("away", [-3.0, -0.5, 0.0, 1.0, 2.4])
def test_an_arm_gets_its_best_rate_wherever_that_is_if_its_noise_is_small(away: float) -> None:
    truth = Truth("", bend=1000.0, best={"uniform": away})
    rate, tried = own_rate(np.random.default_rng(1), truth, "uniform")
    assert math.log10(rate / RATE) / learning_rates.STEP == pytest.approx(away, abs=0.02)
    assert tried == 3 + max(0, math.ceil(abs(away) - 0.5))
    assert truth.reached("uniform", rate) == pytest.approx(0, abs=0.5)


def test_it_says_yes_where_the_winner_is_better_and_hardly_ever_where_it_is_not() -> None:
    names = [(truth.name, truth.top, truth.bend) for truth in TRUTHS]
    equal, better = (
        of_truth(names.index(one), 100)
        for one in (("the others half a decade away", 0.0, 1.0), ("the winner better", 2.0, 1.0))
    )
    assert equal["yes"][24] <= 0.03
    assert better["yes"][12] >= 0.97
    assert better["jobs"][24] - better["jobs"][12] == 4 * 12
    assert 0 < equal["lost"] < 0.2
    assert rate_check.row(better)[:4] == ["the winner better", "2", "1", "normal"]


def test_after_a_better_a_large_effect_gets_its_yes_and_a_small_one_less_often() -> None:
    small, large = (rate_check.after_a_better(effect, (), 60) for effect in (0.75, 2.0))
    assert (small[:2], large[:2]) == (["0.75", "0"], ["2", "0"])
    assert float(large[3].partition("%")[0]) >= 95 > float(small[3].partition("%")[0])
    assert [int(part) for part in large[2].split(" / ")][1] <= 24
