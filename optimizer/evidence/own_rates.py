"""Whether a finalist's differences hold when every arm is trained at a learning rate of its own.

A confirmation trains all arms at identity's rate. A density changes the size of steps, so it may
only mend a rate that does not suit it, or its control. The rates are chosen by seeds that nothing
else is judged by; what is tested are fresh seeds again, so that the choice costs no level.
docs/evidence.md has how often the answer is wrong.
"""

from collections.abc import Collection, Mapping
from typing import Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from optimizer.evidence import sequential_test
from optimizer.evidence.sequential_test import Plan
from optimizer.evidence.verdicts import Comparison, Control, Found, Part

LEVEL = 0.01
"""Chance that a difference which is none at the rates that were chosen is taken for one. It leaves
room for what an arm loses because its own rate is found by a few seeds only."""
LEAST = 7
"""Seeds with which anything can be shown at LEVEL: no chance below 2**-n is believed."""


class RateCheck(Part):
    """What identity, the winner and its strongest control reach, each at its own best rate."""

    trial: int
    """The winner's number in the search."""
    holds: bool | None
    """Whether the winner is above the others there; None if that could not be checked."""
    reason: str | None = None
    """Why not, if so."""
    control: Control | None = None
    """The strongest control beside identity; None if the verdict had none."""
    rates: dict[str, FiniteFloat] = Field(default_factory=dict)
    """By arm, `identity`, `finalist` or a control: its own rate."""
    tried: dict[str, dict[str, FiniteFloat]] = Field(default_factory=dict)
    """By arm and rate: the mean metric, of the rates at which it could be trained."""
    to_identity: Comparison | None = None
    """The winner minus identity, each at its own rate."""
    to_control: Comparison | None = None
    """The winner minus its strongest control."""
    diverged: dict[str, list[int]] = Field(default_factory=dict)
    """By arm, the seeds on which training diverged, so that the floor stands for the score."""

    @model_validator(mode="after")
    def _what_was_compared_is_there(self) -> Self:
        arms = {"identity", "finalist", *filter(None, [self.control])}
        compared = [self.to_identity, *([self.to_control] if self.control else [])]
        if self.holds is not None and (None in compared or not arms <= self.rates.keys()):
            raise ValueError(
                f"holds = {self.holds}, without rates and differences of {sorted(arms)}"
            )
        return self


def strongest(found: Found) -> Control | None:
    """Return the control that a finalist was least above; None if it was compared with none."""
    compared: dict[Control, Comparison | None] = {
        "control": found.to_control,
        "uniform": found.to_uniform,
    }
    means = {name: beside.mean for name, beside in compared.items() if beside is not None}
    return min(means, key=lambda name: means[name], default=None)


def holds(
    to_identity: Mapping[int, float],
    to_control: Mapping[int, float] | None,
    control: Control | None,
    diverged: Mapping[str, Collection[int]],
) -> bool:
    """Tell whether differences {seed: finalist minus other arm} are above zero, each at LEVEL.

    All have to be, so that the level is not spent twice (an intersection-union test). Where the
    other arm diverged its difference counts as zero at most, as in a confirmation.
    """
    compared: dict[str, Mapping[int, float] | None] = {"identity": to_identity}
    if control is not None:
        compared[control] = to_control
    return all(
        by_seed is not None and _above(by_seed, diverged.get(arm, ()))
        for arm, by_seed in compared.items()
    )


def _above(by_seed: Mapping[int, float], diverged: Collection[int]) -> bool:
    """Tell whether a mean is above zero, by the test of a confirmation with a single look."""
    seeds = sorted(by_seed)
    plan = Plan(len(seeds), len(seeds), finalists=1, level=2 * LEVEL)
    values, lost = (
        np.array([by_seed[seed] for seed in seeds]),
        np.array([seed in diverged for seed in seeds]),
    )
    return str(sequential_test.outcomes(values, plan, lost)) == "above"
