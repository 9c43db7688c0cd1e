"""Intervals over seeds and images: against variances that are known."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from optimizer.evidence import images
from storage import image_scores
from storage.ledger import LedgerRow

STUDIES = 1500


def layout(
    rng: np.random.Generator, n: int, m: int, seed: float, image: float, both: float
) -> NDArray[np.float64]:
    """Differences whose mean over all seeds and images there could be is zero."""
    return (
        seed * rng.standard_normal((n, 1))
        + image * rng.standard_normal((1, m))
        + both * rng.standard_normal((n, m))
    )


@pytest.mark.parametrize(
    ("n", "m", "seed", "image", "both"),
    [
        (6, 20, 1.0, 1.0, 1.0),  # as much from seeds as from images
        (6, 80, 0.0, 1.0, 1.0),  # nothing but images: over seeds alone 0.64 hold the truth
        (12, 80, 1.0, 3.0, 0.0),
        (12, 80, 0.3, 3.0, 3.0),
        (36, 200, 1.0, 0.0, 10.0),  # no image is special
        (36, 200, 1.0, 4.0, 10.0),
    ],
)
def test_95_of_100_intervals_hold_the_truth_of_all_seeds_and_images(
    n: int, m: int, seed: float, image: float, both: float
) -> None:
    rng = np.random.default_rng(14)
    held = 0
    for _ in range(STUDIES):
        found = layout(rng, n, m, seed, image, both)
        held += abs(found.mean()) <= images.half_width(found)
    exactly = scipy.stats.binom(STUDIES, 0.95)
    assert exactly.ppf(1e-4) <= held <= STUDIES * 0.985


def test_the_variance_is_that_of_the_means_of_new_seeds_and_images() -> None:
    """Its square root against the spread of means; the width's quantile divided out."""
    rng, n, m = np.random.default_rng(1), 20, 30
    parts = 0.7, 1.3, 2.0
    means, variances = [], []
    for _ in range(STUDIES):
        found = layout(rng, n, m, *parts)
        means.append(found.mean())
        rows, columns = found.mean(axis=1), found.mean(axis=0)
        rest = found - rows[:, None] - columns[None] + found.mean()
        both = (rest**2).sum() / ((n - 1) * (m - 1))
        variances.append(rows.var(ddof=1) / n + columns.var(ddof=1) / m - both / (n * m))
    seed, image, both = (part**2 for part in parts)
    truth = seed / n + image / m + both / (n * m)
    assert np.mean(variances) == pytest.approx(truth, rel=0.05)
    assert np.var(means) == pytest.approx(truth, rel=0.15)


def test_it_is_never_narrower_than_over_seeds_alone_and_the_same_where_images_agree() -> None:
    rng = np.random.default_rng(2)
    for image in (0.0, 0.1, 1.0, 10.0):
        for _ in range(200):
            found = layout(rng, 6, 40, 1.0, image, 1.0)
            alone = scipy.stats.ttest_1samp(found.mean(axis=1), 0).confidence_interval(0.95)
            assert images.half_width(found) >= (alone.high - alone.low) / 2 * (1 - 1e-12)
    same = layout(rng, 6, 40, 1.0, 0.0, 0.0)
    alone = scipy.stats.ttest_1samp(same.mean(axis=1), 0).confidence_interval(0.95)
    assert images.half_width(same) == pytest.approx((alone.high - alone.low) / 2)


@given(
    npst.arrays(
        np.float64,
        st.tuples(st.integers(2, 4), st.integers(2, 5)),
        elements=st.floats(-100, 100).map(lambda value: round(value, 1)),
    )
)
@example(np.array([[1.3, -0.6, 1.2], [-0.1, 0.4, 1.0]]))
@example(np.array([[1.0, -1.01], [-1.0, 1.005]]))
def test_it_is_finite_and_no_wider_than_the_fewer_of_seeds_and_images_allow(
    found: NDArray[np.float64],
) -> None:
    """At most Student's t of so many degrees of freedom times both parts of the variance."""
    n, m = found.shape
    parts = found.mean(axis=1).var(ddof=1) / n + found.mean(axis=0).var(ddof=1) / m
    most = float(scipy.stats.t.ppf(0.975, min(n, m) - 1)) * parts**0.5
    assert 0 <= images.half_width(found) <= most * (1 + 1e-9)


def test_two_seeds_that_agree_on_every_image_leave_the_images() -> None:
    """Without a difference between seeds it is Student's interval over the images."""
    each = np.random.default_rng(3).standard_normal(25)
    alone = scipy.stats.ttest_1samp(each, 0).confidence_interval(0.95)
    found = images.half_width(np.stack([each, each]))
    assert found == pytest.approx((alone.high - alone.low) / 2)


def row(trial: int, seed: int, **extra: object) -> LedgerRow:
    return LedgerRow(
        trial=trial, seed=seed, budget=2, rung=2, value=1.0, extra=extra, seconds=1.0
    )  # fmt: skip


def test_scores_that_are_missing_or_none_are_left_out_and_then_there_is_no_interval() -> None:
    packed = image_scores.packed([1.0, 2.0, 4.0])
    rows = [row(0, 5, images=packed), row(0, 6, images=None), row(1, 5), row(1, 6, images=packed)]
    found = images.by_trial(rows)
    assert {n: list(by_seed) for n, by_seed in found.items()} == {0: [5], 1: [6]}
    assert found[0][5] == pytest.approx([1.0, 2.0, 4.0], abs=1e-4)
    every = {5: [1.0, 2.0], 6: [2.0, 2.0]}
    assert images.beside(0.0, [5, 6], every, every) is not None
    assert images.beside(0.0, [5], every, every) is None
    assert images.beside(0.0, [5, 6, 7], every, every) is None
    assert images.beside(0.0, [5, 6], every, {5: [1.0, 2.0]}) is None
    assert images.beside(0.0, [5, 6], every, {}) is None
    assert images.beside(0.0, [5, 6], every, {5: [1.0], 6: [1.0]}) is None
    assert images.beside(0.0, [5, 6], {5: [1.0], 6: [1.0]}, {5: [1.0], 6: [1.0]}) is None


def test_other_seeds_of_either_arm_do_not_count() -> None:
    rng = np.random.default_rng(4)
    one, other = ({seed: [*rng.standard_normal(9)] for seed in range(4)} for _ in range(2))
    found = images.beside(0.5, [1, 2], one, other)
    assert found is not None
    differences = np.array([one[n] for n in (1, 2)]) - np.array([other[n] for n in (1, 2)])
    reach = images.half_width(differences)
    assert (found.count, found.low, found.high) == (9, 0.5 - reach, 0.5 + reach)
