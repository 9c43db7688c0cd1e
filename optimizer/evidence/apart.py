"""A density's two effects apart: its start and its steps, as a 2 x 2 of arms on the same seeds.

                      identity's steps    the density's
    identity's start  identity            steps_only
    the density's     init_only           the density

It says where a difference comes from. It is no test and has no part in a verdict. Identity and the
density are those of the confirmation: that the density was its best, and that it stopped when it
was ahead, is in both main effects (benchmarks/selected.py).
"""

from collections.abc import Mapping

from pydantic import Field

from optimizer.arms import Part as Effect
from optimizer.evidence import differences
from optimizer.evidence.verdicts import Comparison, Part

BySeed = Mapping[int, float]
"""The metric of an arm."""


class Apart(Part):
    """What the winner's start and its steps do alone: paired differences with 95 % intervals."""

    trial: int
    """The winner's number in the search."""
    reason: str | None = None
    """Why an arm has no difference, if so."""
    init_only: Comparison | None = None
    """Its start alone, minus identity."""
    steps_only: Comparison | None = None
    """Its steps alone, minus identity."""
    start: Comparison | None = None
    """Main effect of its start: the mean of what it adds to identity's steps and to its own."""
    steps: Comparison | None = None
    """Main effect of its steps: the mean of what they add to identity's start and to its own."""
    interaction: Comparison | None = None
    """By how much its start adds more to its own steps than to identity's."""
    diverged: dict[str, list[int]] = Field(default_factory=dict)
    """By arm, the seeds on which training diverged, so that the floor stands for the score."""


def effects(
    identity: BySeed, density: BySeed, alone: Mapping[Effect, BySeed]
) -> dict[str, Comparison]:
    """Return the differences of `Apart` that follow from these arms, by name.

    All arms have the same seeds, two at least. With v(start, steps) an arm's metric and 1 for the
    density's: main effects are (v(1,0) - v(0,0) + v(1,1) - v(0,1)) / 2 for the start and
    (v(0,1) - v(0,0) + v(1,1) - v(1,0)) / 2 for the steps, the interaction v(1,1) - v(1,0) -
    v(0,1) + v(0,0), each within a seed (Montgomery, Design and Analysis of Experiments, chapter 6).
    """
    told: dict[str, Comparison] = {
        arm: Comparison.of(differences.paired(by_seed, identity)) for arm, by_seed in alone.items()
    }
    if len(alone) == 2:
        init, steps, zero = alone["init_only"], alone["steps_only"], dict.fromkeys(identity, 0.0)
        combined = {
            "start": {s: (init[s] - identity[s] + density[s] - steps[s]) / 2 for s in identity},
            "steps": {s: (steps[s] - identity[s] + density[s] - init[s]) / 2 for s in identity},
            "interaction": {s: density[s] - init[s] - steps[s] + identity[s] for s in identity},
        }
        for name, by_seed in combined.items():
            told[name] = Comparison.of(differences.paired(by_seed, zero))
    return told
