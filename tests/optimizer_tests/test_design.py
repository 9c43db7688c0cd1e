"""Anchors and designs: what is trained first, and points known in advance."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer import design

# The authors' published densities, written down again from their READMEs and examples.
PUBLISHED: dict[int, dict[str, tuple[float, ...]]] = {
    3: {
        "v2 README": (0.7,),
        "v1 README": (0.5,),
        "v1 README, low complexity": (1.5,),
        "v2 learning_2D.py": (0.75,),
    },
    5: {"v2 README": (0.2, 0.8), "v1 README": (0.3, 1.5), "v2 learning_2D.py": (1.5, 0.75)},
    7: {"v2 README": (0.25, 0.15, 0.55), "v1 README": (0.06, 1.2, 1.6)},
}
seeds = st.integers(0, 999_999)


@pytest.mark.parametrize("k", [3, 5, 7])
def test_identity_comes_first_then_every_published_density(k: int) -> None:
    identity, *published = design.anchors([k])
    assert identity == design.Anchor("identity", "identity", {k: (1.0,) * ((k - 1) // 2)})
    assert {anchor.label: anchor.densities for anchor in published} == {
        source: {k: den} for source, den in PUBLISHED[k].items()
    }
    assert {anchor.role for anchor in published} == {"published"}


def test_a_size_without_published_densities_has_identity_alone() -> None:
    assert design.anchors([9]) == [design.Anchor("identity", "identity", {9: (1.0,) * 4})]


@pytest.mark.parametrize("sizes", [*itertools.combinations([3, 5, 7, 9], 2), (7, 3, 5), (3, 5, 9)])
def test_several_sizes_have_one_anchor_per_source(sizes: tuple[int, ...]) -> None:
    identity, *published = design.anchors(sizes)
    assert identity.densities == {k: (1.0,) * ((k - 1) // 2) for k in sizes}
    sources = {source for k in sizes for source in PUBLISHED.get(k, {})}
    assert sorted(anchor.label for anchor in published) == sorted(sources)
    for anchor in published:
        for k in sizes:
            silent = (1.0,) * ((k - 1) // 2)
            assert anchor.densities[k] == PUBLISHED.get(k, {}).get(anchor.label, silent)
        assert list(anchor.densities) == list(sizes)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 6), seeds)
def test_a_longer_sobol_sequence_begins_with_the_shorter(
    one: int, other: int, dimensions: int, seed: int
) -> None:
    shorter, longer = sorted((one, other))
    points = design.sobol(longer, dimensions, seed)
    assert points.shape == (longer, dimensions)
    assert (points >= 0).all()
    assert (points < 1).all()
    assert (points[:shorter] == design.sobol(shorter, dimensions, seed)).all()


@given(st.integers(0, 5), st.integers(1, 6), seeds)
def test_a_power_of_two_of_sobol_points_fills_every_interval_once(
    exponent: int, dimensions: int, seed: int
) -> None:
    count = 2**exponent
    intervals = np.floor(design.sobol(count, dimensions, seed) * count).astype(int)
    for axis in range(dimensions):
        assert sorted(intervals[:, axis]) == list(range(count))


def test_sobol_points_are_more_even_than_random_ones() -> None:
    def unevenness(points: np.ndarray) -> float:
        # The star discrepancy: the largest error of the share of points in a box at the origin.
        corners = list(itertools.product(np.linspace(0.05, 1, 20), repeat=2))
        return max(abs(float((points < c).all(axis=1).mean() - np.prod(c))) for c in corners)

    random = np.random.default_rng(0)
    for seed in range(5):
        assert unevenness(design.sobol(64, 2, seed)) < unevenness(random.random((64, 2)))


def test_the_seed_fixes_the_sobol_sequence() -> None:
    starts = [tuple(design.sobol(4, 2, seed).ravel()) for seed in range(20)]
    assert len(set(starts)) == 20
    assert starts == [tuple(design.sobol(4, 2, seed).ravel()) for seed in range(20)]


@given(st.integers(1, 200), st.integers(1, 5))
def test_a_grid_is_the_largest_full_factorial_that_fits(count: int, dimensions: int) -> None:
    points = design.grid(count, dimensions)
    levels = design.grid_levels(count, dimensions)
    assert levels**dimensions == len(points) <= count < (levels + 1) ** dimensions
    values = np.unique(points)
    assert len(values) == levels
    assert {tuple(p) for p in points} == set(itertools.product(values, repeat=dimensions))
    if levels > 1:
        assert (values[0], values[-1]) == (0.0, 1.0)
        assert np.allclose(np.diff(values), 1 / (levels - 1))
    else:
        assert points.tolist() == [[0.5] * dimensions]


def test_every_trial_has_a_proposal_seed_of_its_own() -> None:
    found = {design.proposal_seed(seed, number) for seed in range(20) for number in range(200)}
    assert len(found) == 4000
    assert 0 <= min(found) <= max(found) < 2**32


def test_more_dimensions_start_with_more_points() -> None:
    assert [design.startup(dimensions) for dimensions in (1, 2, 3)] == [8, 12, 16]
