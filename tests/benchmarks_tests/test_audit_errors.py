"""The simulation of an audit: its densities have the ranks that they are said to have."""

import audit_errors
import numpy as np
import pytest
from audit_errors import TRUTHS, Truth, drawn, of_truth
from scipy.stats import spearmanr


@pytest.mark.parametrize("rank", [-0.5, 0.0, 0.9])
def test_what_is_drawn_has_the_rank_correlation_that_it_is_said_to_have(rank: float) -> None:
    truth = Truth(rank, arms=4000, noise=1.0)
    proxy, full = drawn(np.random.default_rng(1), truth)
    found = spearmanr(proxy.mean(axis=1), full.mean(axis=1)).statistic
    assert found == pytest.approx(truth.measured, abs=0.04)
    assert abs(truth.measured) < abs(rank) or rank == 0
    plain = Truth(rank, arms=4000, noise=0.0)
    one, other = (values[:, 0] for values in drawn(np.random.default_rng(1), plain))
    assert spearmanr(one, other).statistic == pytest.approx(rank, abs=0.04)


def test_it_counts_what_an_audit_says_of_a_truth() -> None:
    found = of_truth(TRUTHS.index(Truth(0.9, noise=0.2, seeds=(3, 6))), 20)
    assert found["carries_over"] + found["does_not"] + found["open"] == 20
    assert found["does_not"] == 0
    assert found["covered"] >= 0.8
    assert audit_errors.row(found)[:3] == ["0.9", "12", "0.2, 3 and 6"]
