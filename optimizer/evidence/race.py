"""Which finalists of a confirmation get more seeds: fewer after each look, and the best of them.

A confirmation that trains all finalists to the end spends most of its jobs on those that are not
the best. The level is shared by all of them whoever is dropped, so dropping one can lose a `better`
and never make one (docs/evidence.md has what it saves and costs).
"""

from collections.abc import Mapping, Sequence


def going_on(means: Mapping[int, float], looks: int, keep: Sequence[int]) -> list[int]:
    """Return which of the undecided finalists go on, the best first.

    means: by finalist, the mean difference to identity so far. looks: how many there have been.
    keep: how many finalists go on after the first look, the second and so on; the last number is
    also that of all later looks, and without any all go on. Ties go to the first.
    """
    ranked = sorted(means, key=lambda finalist: -means[finalist])
    return ranked[: keep[min(looks, len(keep)) - 1]] if keep else ranked
