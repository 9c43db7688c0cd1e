"""The density vocabulary against sums and products written out by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densitune import density

finite = st.floats(0, 1e6, allow_nan=False)
densities = st.lists(finite, max_size=4)
# facts about the authors' published values: the init gain of each, to two digits.
GAINS = {
    (0.5,): 0.50,
    (0.7,): 0.66,
    (0.9,): 0.87,
    (1.1,): 1.14,
    (1.5,): 1.83,
    (0.2, 0.8): 0.47,
    (0.3, 1.5): 1.14,
    (0.06, 1.2, 1.6): 1.29,
    (0.25, 0.15, 0.55): 0.25,
}


def ring_value(den: list[float], place: int) -> float:
    """The value at a place of the profile: by its distance to the nearer end."""
    size = 2 * len(den) + 1
    distance_to_end = min(place, size - 1 - place)
    return 1.0 if distance_to_end == len(den) else den[distance_to_end]


@given(densities)
def test_profile_is_symmetric_and_outermost_first(den: list[float]) -> None:
    profile = density.profile(den)
    assert profile.tolist() == [ring_value(den, i) for i in range(2 * len(den) + 1)]


@given(st.lists(finite, max_size=3), st.sampled_from([1, 2, 3]))
def test_phi_is_the_product_of_the_profile_over_the_dimensions(
    den: list[float], dimensions: int
) -> None:
    size = 2 * len(den) + 1
    mask = density.phi(den, dimensions)
    assert mask.shape == (size,) * dimensions
    for place in itertools.product(range(size), repeat=dimensions):
        expected = 1.0
        for i in place:
            expected *= ring_value(den, i)
        assert mask[place] == pytest.approx(expected, rel=1e-12)


def test_edge_and_corner_of_a_3x3_kernel() -> None:
    assert density.phi([0.5]).tolist() == [[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]]


@pytest.mark.parametrize("dimensions", [0, 4])
def test_phi_is_for_one_to_three_dimensions(dimensions: int) -> None:
    with pytest.raises(ValueError, match=f"{dimensions} spatial dimensions; .* 1, 2 and 3"):
        density.phi([0.7], dimensions)


@pytest.mark.parametrize(("den", "gain"), GAINS.items())
def test_rms_is_the_known_gain_of_published_densities(den: tuple[float, ...], gain: float) -> None:
    assert round(density.rms(den), 2) == gain


@given(st.lists(st.floats(0, 100), max_size=3), st.sampled_from([1, 2, 3]))
def test_rms_is_the_root_of_the_mean_square_of_phi(den: list[float], dimensions: int) -> None:
    size = 2 * len(den) + 1
    total = 0.0
    for place in itertools.product(range(size), repeat=dimensions):
        total += math.prod(ring_value(den, i) for i in place) ** 2
    assert density.rms(den, dimensions) == pytest.approx(math.sqrt(total / size**dimensions))


@pytest.mark.parametrize("k", [1, 3, 5, 7, 31])
def test_identity_is_phi_of_ones(k: int) -> None:
    assert len(density.identity(k)) == (k - 1) // 2
    assert (density.phi(density.identity(k)) == 1).all()
    assert density.rms(density.identity(k), 3) == 1.0


@given(densities)
def test_a_valid_density_comes_back_unchanged_as_floats(den: list[float]) -> None:
    valid = density.validate(den, 2 * len(den) + 1)
    assert valid == tuple(den)
    assert all(type(value) is float for value in density.validate([1] * len(den), len(den) * 2 + 1))


@pytest.mark.parametrize(
    ("den", "k", "message"),
    [
        ([0.7], 5, r"\[0.7\] has 1 values; kernel size 5 takes 2, outermost first"),
        ([0.7, 1.0, 0.7], 3, r"has 3 values; kernel size 3 takes 1, .* without the centre"),
        ([], 3, r"\[\] has 0 values; kernel size 3 takes 1"),
        ([0.7, -0.1], 5, r"density\[1\] = -0.1 is not a finite number >= 0 \(kernel size 5\)"),
        ([math.nan, 1.0], 5, r"density\[0\] = nan is not a finite number >= 0"),
        ([math.inf], 3, r"density\[0\] = inf is not a finite number >= 0"),
        ([-math.inf], 3, r"density\[0\] = -inf is not a finite number >= 0"),
    ],
)
def test_an_invalid_density_is_refused_with_its_value(
    den: list[float], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        density.validate(den, k)


def test_zero_is_a_valid_value() -> None:
    assert density.validate([0, 0.5], 5) == (0.0, 0.5)


@given(st.integers(-50, 50).filter(lambda k: k < 1 or k % 2 == 0))
def test_a_size_without_a_centre_names_odd_neighbours(k: int) -> None:
    with pytest.raises(ValueError, match="has no centre") as caught:
        density.length(k)
    head, hint = str(caught.value).split("such as ")
    assert str(k) in head
    smaller, larger = map(int, hint.split(" or "))
    assert density.length(smaller) + 1 == density.length(larger)
    assert k < 1 or (smaller, larger) == (k - 1, k + 1)


@given(st.lists(finite, max_size=3), st.integers(0, 3), st.sampled_from([1, 2, 3]))
def test_nesting_puts_the_smaller_phi_into_the_centre_of_zeros(
    den: list[float], rings: int, dimensions: int
) -> None:
    small, size = 2 * len(den) + 1, 2 * (len(den) + rings) + 1
    mask = density.phi(density.nest(den, size), dimensions)
    assert mask.shape == (size,) * dimensions
    centre = (slice(rings, rings + small),) * dimensions
    assert (mask[centre] == density.phi(den, dimensions)).all()
    mask[centre] = 0
    assert (mask == 0).all()


def test_nesting_into_a_smaller_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel size 5 does not fit into kernel size 3"):
        density.nest([0.2, 0.8], 3)
