"""DIRECT-L, the method of weighted convolution's authors, asked for one point at a time.

The algorithm is scipy's (Gablonsky & Kelley 2001, locally biased). It wants to call a function and
wait. So it is run anew for every point, on the values that are known, up to the first one that is
not: a deterministic algorithm comes to the same points again.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import direct

Point = tuple[float, ...]

SLACK = 1000
"""Evaluations that it may make beyond twice those known; scipy makes room for all of them."""


class UnknownError(Exception):
    """The algorithm has come to a point that nobody has evaluated."""

    def __init__(self, point: Point) -> None:
        super().__init__(point)
        self.point = point


def next_point(
    low: float,
    high: float,
    dimensions: int,
    told: Mapping[Point, float],
    pending: Collection[Point],
) -> Point | None:
    """Return where the algorithm wants to know a function's value next, to find its maximum.

    It searches the cube [low, high]**dimensions. `told` has the values that are known, by point.
    Those of
    `pending` points are not. They are taken for the worst, so that what is near them is not divided
    further on their account. None if the cube's parts have become too
    small to be divided in floating-point numbers.
    """
    worst = min(told.values(), default=0.0)
    known = dict.fromkeys(pending, worst) | dict(told)

    def negated(x: NDArray[np.float64]) -> float:
        point = tuple(float(value) for value in x)
        if point not in known:
            raise UnknownError(point)
        return -known[point]

    try:
        direct(
            negated,
            [(low, high)] * dimensions,
            maxfun=2 * len(known) + SLACK,
            maxiter=2 * len(known) + SLACK,
            locally_biased=True,
            vol_tol=0.0,
            len_tol=0.0,
        )
    except UnknownError as unknown:
        return unknown.point
    return None
