"""The density vocabulary: plain numbers, shared by every part.

A density `den` of kernel size k is a tuple of (k-1)/2 numbers, outermost first; the centre 1 is
implied. alpha = [*den, 1, *reversed(den)] and phi is the outer product of alpha over the spatial
dimensions (Cammarasana & Patanè 2025, arXiv 2505.24527 and 2505.24558; as coded in the authors'
repository weightedConvolution2.0, wConv.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Density = tuple[float, ...]
Densities = dict[int, Density]
"""One density for each kernel size."""


@dataclass(frozen=True)
class Published:
    """A density that the authors of weighted convolution published, and where."""

    den: Density
    source: str


# Values of facts that anyone can look up: READMEs and examples of the authors' two repositories.
PUBLISHED: Mapping[int, tuple[Published, ...]] = {
    3: (
        Published((0.7,), "v2 README"),
        Published((0.5,), "v1 README"),
        Published((1.5,), "v1 README, low complexity"),
        Published((0.75,), "v2 learning_2D.py"),
    ),
    5: (
        Published((0.2, 0.8), "v2 README"),
        Published((0.3, 1.5), "v1 README"),
        Published((1.5, 0.75), "v2 learning_2D.py"),
    ),
    7: (
        Published((0.25, 0.15, 0.55), "v2 README"),
        Published((0.06, 1.2, 1.6), "v1 README"),
    ),
}


def length(kernel_size: int) -> int:
    """Return how many numbers a density of this kernel size has; ValueError if it is not odd."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        smaller = max(1, kernel_size - 1)
        raise ValueError(
            f"kernel size {kernel_size} has no centre; use an odd size such as "
            f"{smaller} or {smaller + 2}"
        )
    return (kernel_size - 1) // 2


def validate(den: Sequence[float], kernel_size: int) -> Density:
    """Return the density as a tuple of floats.

    ValueError if it has the wrong length or a number that is negative, NaN or infinite. Zero is
    allowed: `[0, a]` at k=5 computes `[a]` at k=3.
    """
    expected = length(kernel_size)
    if len(den) != expected:
        raise ValueError(
            f"density {list(den)} has {len(den)} values; kernel size {kernel_size} "
            f"takes {expected}, outermost first, without the centre"
        )
    for ring, value in enumerate(den):
        if not _is_valid(value):
            raise ValueError(
                f"density[{ring}] = {str(value)[:60]} is not a finite number >= 0 "
                f"(kernel size {kernel_size})"
            )
    return tuple(float(value) for value in den)


def _is_valid(value: float) -> bool:
    """Tell whether this is a density's value; yes and no are none, nor is what no float holds."""
    try:
        return not isinstance(value, bool) and math.isfinite(value) and value >= 0
    except OverflowError:
        return False


def identity(kernel_size: int) -> Density:
    """Return the density of the standard convolution: all ones."""
    return (1.0,) * length(kernel_size)


def profile(den: Sequence[float]) -> NDArray[np.float64]:
    """Return alpha = [*den, 1, *reversed(den)], float64 of length 2 * len(den) + 1."""
    return np.array([*den, 1.0, *reversed(den)], dtype=np.float64)


def phi(den: Sequence[float], dimensions: int = 2) -> NDArray[np.float64]:
    """Return the kernel mask, the outer product of alpha over 1, 2 or 3 spatial dimensions."""
    if dimensions not in (1, 2, 3):
        raise ValueError(f"{dimensions} spatial dimensions; phi is defined for 1, 2 and 3")
    alpha = mask = profile(den)
    for _ in range(dimensions - 1):
        mask = np.multiply.outer(mask, alpha)
    return mask


def rms(den: Sequence[float], dimensions: int = 2) -> float:
    """Return the root mean square of phi: by how much it scales the initial weights.

    The mean over an outer product is the product of the means, so this is RMS(alpha)^dimensions;
    infinity where that is beyond double precision.
    """
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(profile(den) ** 2)) ** dimensions)


def nest(den: Sequence[float], kernel_size: int) -> Density:
    """Return the density of a larger kernel that computes the same as `den` does at its own size.

    Rings outside the smaller kernel get zero; ValueError if kernel_size is the smaller one.
    """
    missing = length(kernel_size) - len(den)
    if missing < 0:
        raise ValueError(
            f"a density of kernel size {2 * len(den) + 1} does not fit into kernel size "
            f"{kernel_size}; give a size of at least {2 * len(den) + 1}"
        )
    return (0.0,) * missing + tuple(float(value) for value in den)
