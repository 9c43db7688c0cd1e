"""Whether a finalist's differences hold when every arm is trained at a learning rate of its own.

A confirmation trains all arms at identity's rate. A density changes the size of steps, so it may
only mend a rate that does not suit it, or its control. The rates are chosen by seeds that nothing
else is judged by; what is tested are fresh seeds again, so that the choice costs no level.
docs/evidence.md has how often the answer is wrong.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from optimizer.evidence import sequential_test
from optimizer.evidence.sequential_test import Plan
from optimizer.evidence.verdicts import Comparison, Control, Found, Part

LEVEL = 0.01
"""Chance that a difference which is none at the rates that were chosen is taken for one. It leaves
room for what an arm loses because its own rate is found by a few seeds only."""
LEAST, MOST = 8, 24
"""Seeds of the comparison. No chance below 2**-n is believed, n being the differences that are not
zero: with eight one may be. The more seeds, the likelier a yes that rests on rates that are a
little off: with 24 an effect of one standard deviation is found in 94 % of the cases already."""


NAMES: dict[Control, str] = {"control": "its scale control", "uniform": "its uniform mask"}
"""What a finalist's controls are called in sentences."""


class RateCheck(Part):
    """What identity, the winner and its controls reach, each at its own best rate."""

    trial: int
    """The winner's number in the search."""
    holds: bool | None
    """Whether the winner is above all that it was compared with there; None if that could not be
    checked."""
    reason: str | None = None
    """Why not, if so."""
    rates: dict[str, FiniteFloat] = Field(default_factory=dict)
    """By arm, `identity`, `finalist` or a control: its own rate."""
    tried: dict[str, dict[str, FiniteFloat]] = Field(default_factory=dict)
    """By arm and rate: the mean metric, of the rates at which it could be trained."""
    to_identity: Comparison | None = None
    """The winner minus identity, each at its own rate."""
    to_controls: dict[Control, Comparison] = Field(default_factory=dict)
    """The winner minus each control that was compared: all that `better` asks for, but of a study
    that an earlier version checked."""
    control: Control | None = None
    """In presets of earlier versions, which compared one control: the one that the winner was least
    above in its confirmation."""
    to_control: Comparison | None = None
    """The winner minus that control."""
    diverged: dict[str, list[int]] = Field(default_factory=dict)
    """By arm, the seeds on which training diverged, so that the floor stands for the score."""

    @model_validator(mode="after")
    def _what_was_compared_is_there(self) -> Self:
        arms = {"identity", "finalist", *filter(None, [self.control]), *self.to_controls}
        compared = [self.to_identity, *([self.to_control] if self.control else [])]
        if self.holds is not None and (None in compared or not arms <= self.rates.keys()):
            raise ValueError(
                f"holds = {self.holds}, without rates and differences of {sorted(arms)}"
            )
        return self

    @property
    def beside(self) -> dict[Control, Comparison]:
        """Return the winner minus each control that was compared, of an earlier preset as well."""
        if self.control is None or self.to_control is None:
            return self.to_controls
        return {self.control: self.to_control}

    def lacks(self, wanted: Iterable[Control]) -> list[Control]:
        """Return which of these controls were not compared."""
        return [name for name in wanted if name not in self.beside]


def scope(found: RateCheck, wanted: Collection[Control]) -> str:
    """Return at whose own rates the winner was compared, of the controls that `better` asks for."""
    left_out = [NAMES[name] for name in found.lacks(wanted)]
    if found.holds is None or not left_out:
        return "at each arm's own rate"
    compared = " and ".join(["identity", *(NAMES[name] for name in found.beside)])
    return f"at the own rates of {compared} (not compared: {', '.join(left_out)})"


def strongest(found: Found) -> Control | None:
    """Return the control that a finalist was least above; None if it was compared with none.

    It was the only one that earlier versions checked, though another may come past at its own rate.
    """
    compared: dict[Control, Comparison | None] = {
        "control": found.to_control,
        "uniform": found.to_uniform,
    }
    means = {name: beside.mean for name, beside in compared.items() if beside is not None}
    return min(means, key=lambda name: means[name], default=None)


def holds(
    to_identity: Mapping[int, float],
    to_controls: Mapping[Control, Mapping[int, float]],
    diverged: Mapping[str, Collection[int]],
) -> bool:
    """Tell whether differences {seed: finalist minus other arm} are above zero, each at LEVEL.

    All have to be, so that the level is not spent twice (an intersection-union test). Where the
    other arm diverged its difference counts as zero at most, as in a confirmation.
    """
    compared: list[tuple[str, Mapping[int, float]]] = [
        ("identity", to_identity),
        *to_controls.items(),
    ]
    return all(_above(by_seed, diverged.get(arm, ())) for arm, by_seed in compared)


def _above(by_seed: Mapping[int, float], diverged: Collection[int]) -> bool:
    """Tell whether a mean is above zero, by the test of a confirmation with a single look."""
    seeds = sorted(by_seed)
    plan = Plan(len(seeds), len(seeds), finalists=1, level=2 * LEVEL)
    values, lost = (
        np.array([by_seed[seed] for seed in seeds]),
        np.array([seed in diverged for seed in seeds]),
    )
    return str(sequential_test.outcomes(values, plan, lost)) == "above"
