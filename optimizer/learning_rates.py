"""Learning rates: the usual one of a family, the grid around it, and the best by a smooth fit."""

import math
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

Family = Literal["vgg", "resnet", "dncnn", "nafnet"]
Kind = Literal[Family, "classifier", "regressor"]
"""Of a network: a family of proxies; of any other network what it is for."""
CLASSIFIERS: tuple[Kind, ...] = ("vgg", "resnet", "classifier")
"""What SGD trains; all others are trained by Adam or AdamW."""

DECADES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""The grid, in powers of ten times the usual rate. Half a decade is about the width of an
optimum's flat top; short budgets and the authors' initialisation may want a rate beyond a decade,
and then the grid grows."""
STEP, REACH = 0.5, 3.0
"""By how many decades the grid grows at a time, and how far from the usual rate it goes at most."""
DIGITS = 3
"""Significant digits of a calibrated rate; what is finer is noise."""


def usual(kind: Kind, batch_size: int) -> float:
    """Return the peak learning rate that networks of a kind are usually trained with.

    Classifiers: 0.1 at batch size 128, in proportion to it (weiaicunzai/pytorch-cifar100). DnCNN
    and NAFNet: 1e-3 (cszn/DnCNN; megvii-research/NAFNet, options of SIDD-width32), which is what
    torch's Adam has for all others.
    """
    return 0.1 * batch_size / 128 if kind in CLASSIFIERS else 1e-3


def grid(middle: float) -> list[float]:
    """Return the rates that a calibration tries around the usual one, rising, in DIGITS."""
    return [_rounded(middle * 10**decades) for decades in DECADES]


def around(middle: float) -> list[float]:
    """Return the rates that an arm is tried at around that of its study, rising, rounded."""
    return [_rounded(middle * 10 ** (steps * STEP)) for steps in (-1, 0, 1)]


def beyond(middle: float, tried: Collection[float], scores: Mapping[float, float]) -> float | None:
    """Return the rate by which a grid grows: a step beyond the end where the best score lies.

    middle: of the grid, which it began around. tried: all rates so far; scores: of those that could
    be trained, by rate. None if the best is within what was tried, or at the end of REACH.
    """
    at = max(sorted(scores), key=lambda rate: scores[rate])
    direction = (at == max(tried)) - (at == min(tried))
    decades = round(math.log10(at / middle) / STEP) * STEP + direction * STEP
    return _rounded(middle * 10**decades) if direction and abs(decades) <= REACH else None


def limits(middle: float) -> tuple[float, float]:
    """Return the ends beyond which the grid around a rate does not grow."""
    return _rounded(middle * 10**-REACH), _rounded(middle * 10**REACH)


def best(scores: Mapping[float, float]) -> float:
    """Return the rate with the best score by a parabola in log(rate), rounded to DIGITS.

    scores: by rate, higher is better; rates at which training diverged are left out. The parabola
    goes through the best point and its two neighbours (of equals the lowest rate), so that its
    vertex lies between them; at an end of the scores the best point itself is taken. ValueError
    without scores.
    """
    if not scores:
        raise ValueError("no learning rate has a score")
    rates = sorted(scores)
    place = max(range(len(rates)), key=lambda n: scores[rates[n]])
    if not 0 < place < len(rates) - 1:
        return _rounded(rates[place])
    near = rates[place - 1 : place + 2]
    middle = math.log(rates[place])
    curve, slope, _ = np.polyfit(
        [math.log(rate) - middle for rate in near], [scores[rate] for rate in near], deg=2
    )
    if curve >= 0:  # three equals
        return _rounded(rates[place])
    vertex = math.exp(middle - slope / (2 * curve))
    return _rounded(min(max(vertex, near[0]), near[-1]))


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")
