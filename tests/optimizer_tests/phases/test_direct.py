"""DIRECT-L, a point at a time: scipy's own path, whoever is told what when."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import direct as scipy_direct

from optimizer.phases import direct
from optimizer.phases.direct import Point

LOW, HIGH = 0.05, 2.0


def height(point: Point) -> float:
    """Two tops, the higher one at 0.4 in every dimension."""
    at = np.array(point)
    near, far = np.exp(-4 * ((at - 0.4) ** 2).sum()), np.exp(-4 * ((at - 1.6) ** 2).sum())
    return float(near + 0.8 * far)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_told_one_by_one_it_goes_where_scipy_goes(dimensions: int) -> None:
    path: list[Point] = []

    def noted(x: NDArray[np.float64]) -> float:
        path.append(tuple(x.tolist()))
        return -height(path[-1])

    scipy_direct(noted, [(LOW, HIGH)] * dimensions, maxfun=150, vol_tol=0, len_tol=0)

    told: dict[Point, float] = {}
    while len(told) < 100:
        point = direct.next_point(LOW, HIGH, dimensions, told, ())
        assert point is not None
        told[point] = height(point)
    assert list(told) == path[:100]


@pytest.mark.parametrize("dimensions", [1, 3])
def test_with_a_window_of_open_points_it_repeats_none_and_still_finds_the_top(
    dimensions: int,
) -> None:
    told: dict[Point, float] = {(9.0,) * dimensions: -5.0}  # an anchor, which is on no path
    pending: list[Point] = []
    while len(told) < 120:
        while len(pending) < 8:
            point = direct.next_point(LOW, HIGH, dimensions, told, pending)
            assert point is not None
            assert point not in told
            assert point not in pending
            assert LOW < min(point) <= max(point) < HIGH
            pending.append(point)
        oldest = pending.pop(0)
        told[oldest] = height(oldest)
    assert max(told, key=lambda point: told[point]) == pytest.approx((0.4,) * dimensions, abs=0.05)


def test_a_box_that_cannot_be_divided_any_further_has_no_next_point() -> None:
    high = np.nextafter(1.0, 2.0)
    told: dict[Point, float] = {}
    while (point := direct.next_point(1.0, float(high), 1, told, ())) is not None:
        told[point] = 0.0
    assert len(told) <= 2
