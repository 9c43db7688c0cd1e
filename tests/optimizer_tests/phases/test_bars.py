"""Bars against a quantile worked out by hand, and who counts for them."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic import BUDGET, RUNG, configured, measured, trial

from optimizer.config.study_file import StudyConfig
from optimizer.phases import bars
from storage.ledger import LedgerRow
from storage.trials import TrialRow

numbers = st.floats(-1e3, 1e3)


def keeping(share: float, **search: object) -> StudyConfig:
    return configured(search={"keep": share, **search})


def told(values: Sequence[float]) -> tuple[list[TrialRow], list[LedgerRow]]:
    """Complete trials whose first seed reached these values at the rung, the second far others."""
    rows = [
        row
        for number, value in enumerate(values)
        for row in measured(number, {0: value + (BUDGET - RUNG), 1: 5000.0 + number})
    ]
    return [trial(number, {5: (0.5, 0.5)}) for number in range(len(values))], rows


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, between neighbours in proportion."""
    ordered = sorted(values)
    place = Fraction(len(values) - 1) * Fraction(share)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + float(place - low) * (ordered[high] - ordered[low])


@given(st.lists(numbers, min_size=bars.LEAST, max_size=30), st.floats(0.01, 0.99))
def test_a_bar_is_the_quantile_above_which_the_share_to_keep_lies(
    values: list[float], keep: float
) -> None:
    found = bars.for_next(keeping(keep), *told(values))
    expected = quantile(values, 1 - keep)
    assert found == pytest.approx({RUNG: expected, BUDGET: expected + (BUDGET - RUNG)}, abs=1e-6)


def test_a_single_seed_has_no_bar_at_its_end() -> None:
    values = [20.0 + n for n in range(20)]
    assert bars.for_next(keeping(0.4, seeds=1), *told(values)).keys() == {RUNG}


@given(st.lists(numbers, min_size=bars.LEAST, max_size=30, unique=True))
def test_a_smaller_share_has_a_higher_bar(values: list[float]) -> None:
    by_keep = [bars.for_next(keeping(keep), *told(values))[RUNG] for keep in (0.8, 0.4, 0.1)]
    assert by_keep == sorted(by_keep)


def test_too_few_values_set_no_bar() -> None:
    values = [20.0 + n for n in range(bars.LEAST)]
    assert bars.for_next(keeping(0.4), *told(values[:-1])) == {}
    assert bars.for_next(keeping(0.4), *told(values)) != {}


def test_keeping_all_or_having_no_rungs_cuts_nothing() -> None:
    values = [20.0 + n for n in range(20)]
    assert bars.for_next(keeping(1), *told(values)) == {}
    assert bars.for_next(keeping(0.4, rungs=[]), *told(values)) == {}


def test_each_rung_has_the_bar_of_those_that_reached_it() -> None:
    given = configured(search={"keep": 0.5, "rungs": [2, 3]}, training={"budget": 4})
    trials, rows = told([float(n) for n in range(11)])
    later = [
        LedgerRow(trial=n, seed=0, budget=4, rung=3, value=100.0 + n, extra={}, seconds=1.0)
        for n in range(6, 11)
    ]
    assert bars.for_next(given, trials, [*rows, *later]) == {2: 5.0, 3: 108.0, 4: 7.0}


def test_only_trials_that_were_told_and_did_not_fail_count() -> None:
    trials, rows = told([float(n) for n in range(9)])
    outside = [
        trial(9, {5: (0.5, 0.5)}, state="running"),
        trial(10, {5: (0.5, 0.5)}, state="failed"),
    ]
    pruned = trial(8, {5: (0.5, 0.5)}, state="pruned")
    rows += [row for number in (9, 10, 11) for row in measured(number, {0: 900.0, 1: 900.0})]
    assert bars.for_next(keeping(0.5), [*trials[:8], pruned, *outside], rows) == {
        RUNG: 4.0,
        BUDGET: 4.0 + (BUDGET - RUNG),
    }
