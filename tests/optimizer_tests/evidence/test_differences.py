"""Paired differences against a reference in numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic import BUDGET, RUNG, measured, trial, usual

from optimizer.evidence import differences

numbers = st.floats(-1e3, 1e3)
pairs = st.dictionaries(st.integers(0, 9999), st.tuples(numbers, numbers), min_size=2, max_size=20)


@given(pairs)
def test_a_paired_difference_is_the_mean_over_seeds_with_its_standard_error(
    by_seed: dict[int, tuple[float, float]],
) -> None:
    values = {seed: value for seed, (value, _) in by_seed.items()}
    baseline = {seed: value for seed, (_, value) in by_seed.items()}
    found = differences.paired(values, baseline)
    reference = np.array([value - base for value, base in by_seed.values()])
    assert found.mean == pytest.approx(reference.mean(), abs=1e-9)
    expected = reference.std(ddof=1) / np.sqrt(len(reference))
    assert found.standard_error == pytest.approx(expected, abs=1e-9)
    assert found.by_seed == {seed: value - base for seed, (value, base) in by_seed.items()}
    assert list(found.by_seed) == sorted(by_seed)


def test_a_constant_offset_between_seeds_does_not_enter_the_standard_error() -> None:
    found = differences.paired({0: 10.5, 1: 90.5, 2: 50.5}, {0: 10.0, 1: 90.0, 2: 50.0})
    assert (found.mean, found.standard_error) == (0.5, 0.0)


def test_one_seed_has_no_standard_error() -> None:
    assert differences.paired({3: 2.0}, {3: 1.5}) == differences.Difference(0.5, None, {3: 0.5})


def test_only_common_seeds_are_compared() -> None:
    found = differences.paired({1: 5.0, 2: 7.0, 3: 100.0}, {0: -100.0, 1: 4.0, 2: 4.0})
    assert found.by_seed == {1: 1.0, 2: 3.0}
    with pytest.raises(ValueError, match="no seed"):
        differences.paired({1: 5.0}, {2: 5.0})


def test_the_final_value_is_that_of_the_full_budget() -> None:
    rows = measured(0, {0: 20.0, 1: 22.0}) + measured(4, {1: 25.0})
    assert differences.final_values(rows) == {0: {0: 20.0, 1: 22.0}, 4: {1: 25.0}}


def test_what_is_told_are_differences_at_every_rung_over_the_seeds_that_both_have() -> None:
    identity = measured(0, {0: 20.0, 1: 22.0, 2: 90.0})
    other = [*measured(3, {0: 20.5, 1: 23.0}), *measured(4, {0: 99.0})]
    reached = [row for row in measured(5, {1: 25.0}) if row.rung == RUNG]
    rows = [*identity, *other, *reached]
    assert differences.by_rung(rows, 0) == {RUNG: 0.0, BUDGET: 0.0}
    assert differences.by_rung(rows, 3) == {RUNG: 0.75, BUDGET: 0.75}
    assert differences.by_rung(rows, 5) == {RUNG: 3.0}


def test_a_rung_at_which_identity_shares_no_seed_is_left_out() -> None:
    """A worker recorded identity's last rung alone, or another seed's."""
    identity = [row for row in measured(0, {0: 20.0, 1: 22.0}) if row.rung == BUDGET]
    other = [*measured(3, {0: 20.5}), *measured(4, {7: 99.0})]
    rows = [*identity, *other]
    assert differences.by_rung(rows, 3) == {BUDGET: 0.5}
    assert differences.by_rung(rows, 4) == {}


def test_nothing_is_compared_before_identity_is_complete() -> None:
    rows = measured(0, {0: 20.0}) + measured(1, {0: 21.0})
    later = trial(1, {5: (0.2, 0.8)})
    for state in ("running", "failed"):
        assert differences.results([trial(0, {5: (1.0, 1.0)}, state=state), later], rows) == []
    assert differences.results([], []) == []
    assert len(differences.results([trial(0, {5: (1.0, 1.0)}), later], rows)) == 2


def test_results_are_the_complete_trials_in_order() -> None:
    found = usual().results  # trial 10 failed, 11 is running
    assert [result.number for result in found] == list(range(10))
    assert [result.optuna_number for result in found] == list(range(100, 110))
    for result in found:
        low, high = 24.0 + 0.11 * result.number, 25.0 + 0.13 * (result.number % 7)
        assert result.values == {0: low, 1: high}
        assert result.mean == pytest.approx((low + high) / 2)
        assert result.difference.mean == pytest.approx(result.mean - 24.5)
    assert found[0].difference == differences.Difference(0.0, 0.0, {0: 0.0, 1: 0.0})


def test_ranking_puts_the_largest_difference_first_and_ties_in_order() -> None:
    finals = {0: 20.0, 1: 21.0, 2: 23.0, 3: 21.0, 4: 19.0, 5: 23.0}
    trials = [trial(number, {5: (0.1, 0.1)}) for number in finals]
    rows = [row for number, value in finals.items() for row in measured(number, {0: value})]
    found = differences.results(trials, rows)
    assert [result.number for result in differences.ranked(found)] == [2, 5, 1, 3, 0, 4]
    assert differences.ranked(reversed(found)) == differences.ranked(found)
