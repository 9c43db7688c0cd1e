"""How sure a difference is for other images, not for other seeds alone.

The score of image j with seed i, of one arm minus another, is taken as mu + a_i + b_j + e_ij: what
a seed, an image and the two together add, all at random. The mean over all has the variance

    s_a^2 / n + s_b^2 / m + s_e^2 / (n m)

for n seeds and m images: a two-way layout with one value a cell (Scheffe 1959, The Analysis of
Variance, chapter 7). The seeds' means alone, whose variance is s_a^2 + s_e^2 / m, know nothing of
the second part.

It is for a density that was fixed before these images were seen. The winner was chosen by the
validation images, so that there its interval holds the truth less often: docs/evidence.md.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from optimizer.evidence.verdicts import OverImages
from storage import image_scores
from storage.ledger import LedgerRow

Scores = Mapping[int, list[float]]
"""Of all images in their order, by seed."""


def by_trial(rows: Iterable[LedgerRow]) -> dict[int, dict[int, list[float]]]:
    """Return the scores of images by trial and seed, where they are stored and can be read."""
    found: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        try:
            scores = image_scores.unpacked(row.extra["images"])
        except (KeyError, TypeError, ValueError):
            continue  # too many to be stored, or an older worker's
        found.setdefault(row.trial, {})[row.seed] = scores
    return found


def beside(mean: float, seeds: Iterable[int], one: Scores, other: Scores) -> OverImages | None:
    """Return the interval over seeds and images around the mean of one arm minus another.

    None unless both have the scores of the same number of images, two or more, with each of these
    seeds, two or more.
    """
    wanted = sorted(seeds)
    arms = [[arm.get(seed) for seed in wanted] for arm in (one, other)]
    told = [[scores for scores in arm if scores is not None] for arm in arms]
    counts = {len(scores) for arm in told for scores in arm}
    if len(wanted) < 2 or min(map(len, told)) < len(wanted) or len(counts) > 1 or min(counts) < 2:
        return None
    first, second = (np.array(arm) for arm in told)
    reach = half_width(first - second)
    return OverImages(count=counts.pop(), low=mean - reach, high=mean + reach)


def half_width(differences: NDArray[np.float64]) -> float:
    """Return half the width of the 95 % interval of the mean of differences (seeds, images).

    Components of variance are from the mean squares, that of images zero at least; the degrees of
    freedom are Satterthwaite's (1946, Biometrics Bulletin 2), and min(n, m) - 1 at least: a mean
    square is subtracted, so that without a bound they may be as near zero as you like, and the
    interval infinite. Never narrower than the interval over seeds alone.
    """
    n, m = differences.shape
    by_seed = differences.mean(axis=1, keepdims=True)
    by_image = differences.mean(axis=0, keepdims=True)
    rest = differences - by_seed - by_image + differences.mean()
    seeds, images = by_seed.var(ddof=1) / n, by_image.var(ddof=1) / m
    both = float((rest**2).sum()) / ((n - 1) * (m - 1)) / (n * m)
    alone = float(stdtrit(n - 1, 0.975)) * math.sqrt(seeds)
    if images <= both:
        return alone
    variance = seeds + images - both
    freedom = variance**2 / (
        seeds**2 / (n - 1) + images**2 / (m - 1) + both**2 / ((n - 1) * (m - 1))
    )
    freedom = max(freedom, min(n, m) - 1)
    return max(alone, float(stdtrit(freedom, 0.975)) * math.sqrt(variance))
