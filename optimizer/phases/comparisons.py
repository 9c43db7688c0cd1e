"""A finalist beside its arms: which controls it has, and what they say after whole batches.

finalist     its densities, trained as the search did
control      identity with initial weights multiplied by RMS(phi) of the finalist: its scale control
uniform      RMS(phi) at every tap instead of phi: its uniform mask
compensated  its densities at identity's initial scale; it informs and has no part in the verdict

A control is of use only where it differs from identity in what it controls (docs/evidence.md).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densitune.density import Densities
from optimizer import arms
from optimizer.arms import Arm, Init
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences, images, sequential_test
from optimizer.evidence.sequential_test import Finding, Interval, Plan
from optimizer.evidence.verdicts import (
    Comparison,
    Control,
    FinalistVerdict,
    PairedDifference,
    Verdict,
    asked,
    by_text,
)
from storage.ledger import LedgerRow
from storage.states import Role
from storage.studies import Study
from storage.trials import TrialRow

Values = Mapping[int, Mapping[int, float]]
"""The metric after the full budget, by trial and seed."""
Lost = Mapping[int, Collection[int]]
"""By trial, the seeds on which training diverged, and the floor stands for the score."""
IDENTITY = 0
"""Identity's number in a confirmation."""


@dataclass(frozen=True)
class Group:
    """A finalist and the arms that belong to it; they are there once they have been queued."""

    finalist: TrialRow
    control: TrialRow | None = None
    uniform: TrialRow | None = None
    compensated: TrialRow | None = None

    @property
    def controls(self) -> dict[Control, TrialRow]:
        """Return the controls by name."""
        known: dict[Control, TrialRow | None] = {"control": self.control, "uniform": self.uniform}
        return {name: arm for name, arm in known.items() if arm is not None}

    @property
    def arms(self) -> list[TrialRow]:
        """Return all arms of the group."""
        compensated = [] if self.compensated is None else [self.compensated]
        return [self.finalist, *self.controls.values(), *compensated]

    @property
    def dropped(self) -> bool:
        """Tell whether others were ahead at a look, and it gets no more seeds."""
        return self.finalist.state == "pruned"

    @property
    def obstacle(self) -> str | None:
        """Return why the finalist cannot be judged: an arm of the comparison failed."""
        for arm in (self.finalist, *self.controls.values()):
            if arm.failed:
                return f"{arm.label} could not be trained with every fresh seed: {arm.failure}"
        return None


def groups(trained: Sequence[TrialRow]) -> list[Group]:
    """Return the arms of a confirmation by finalist, in the order in which they were chosen."""
    of = {(arm.origin, arm.role): arm for arm in trained}
    return [
        Group(
            finalist,
            of.get((finalist.origin, "control")),
            of.get((finalist.origin, "uniform")),
            of.get((finalist.origin, "compensated")),
        )
        for finalist in trained
        if finalist.role == "finalist"
    ]


def controls(study: Study, config: StudyConfig) -> tuple[Control, ...]:
    """Return the controls that `better` asks for in a study."""
    return asked(config.init, uniform_is_identity(study))


def uniform_is_identity(study: Study) -> bool:
    """Tell whether `launch` found that a uniform mask trains as identity does in this network."""
    return bool(study.provenance.get("uniform_is_identity", False))


def beside(study: Study, config: StudyConfig, finalist: TrialRow) -> list[tuple[Role, str, Arm]]:
    """Return role, label and arm of what is trained beside a finalist once it beats identity."""
    by_role = arms_of(finalist.label, finalist.densities, study.lr, config.init)
    wanted: list[Role] = [*controls(study, config)]
    if config.confirm.compensated and config.init != "compensated":
        wanted.append("compensated")
    return [(role, *by_role[role]) for role in wanted]


def arms_of(
    label: str, densities: Densities, lr: float | None, init: Init
) -> dict[Role, tuple[str, Arm]]:
    """Return label and arm of all that may be trained beside densities of this label, by role."""
    return {
        "control": (f"scale control of {label}", arms.scale_control(densities, lr, init)),
        "uniform": (f"uniform mask of {label}", arms.uniform(densities, lr, init)),
        "compensated": (f"{label}, compensated", arms.compensated(densities, lr, init)),
    }


def judged(
    group: Group, asked: Iterable[Control], values: Values, plan: Plan, lost: Lost
) -> Finding:
    """Return what a finalist's seeds say, all of which have ended."""
    own = values[group.finalist.number]
    to_controls: dict[Control, Mapping[int, float] | None] = dict.fromkeys(asked)
    for name, arm in group.controls.items():
        if arm.jobs == group.finalist.jobs:
            to_controls[name] = differences.paired(own, values[arm.number]).by_seed
    to_identity = differences.paired(own, values[IDENTITY]).by_seed
    return sequential_test.judge(to_identity, to_controls, plan, _diverged(group, values, lost))


def diverged(rows: Iterable[LedgerRow]) -> Lost:
    """Return by trial the seeds on which training diverged, and the floor stands for the score."""
    found: dict[int, set[int]] = {}
    for row in rows:
        if row.rung == row.budget and row.extra.get("diverged"):
            found.setdefault(row.trial, set()).add(row.seed)
    return found


def _diverged(group: Group, values: Values, lost: Lost) -> dict[str, list[int]]:
    """Return by arm on which of the finalist's seeds training diverged, of arms where it did."""
    trained = {"identity": IDENTITY, **{arm.role: arm.number for arm in group.arms}}
    own = values[group.finalist.number].keys()
    found = {arm: sorted(own & set(lost.get(number, ()))) for arm, number in trained.items()}
    return {arm: seeds for arm, seeds in found.items() if seeds}


def verdict(
    group: Group, said: Verdict, finding: Finding, values: Values, lost: Lost
) -> FinalistVerdict:
    """Return a verdict as it is stored."""
    own, gone = values[group.finalist.number], _diverged(group, values, lost)

    def compared(interval: Interval, to: int) -> Comparison:
        by_seed = by_text(differences.paired(own, values[to]).by_seed)
        return Comparison(mean=interval.mean, low=interval.low, high=interval.high, by_seed=by_seed)

    to_controls = {
        name: compared(finding.to_controls[name], arm.number)
        for name, arm in group.controls.items()
        if name in finding.to_controls
    }
    return FinalistVerdict(
        **_named(group.finalist),
        verdict=said,
        reason=f"dropped after {len(own)} seeds" if said == "dropped" else None,
        to_identity=compared(finding.to_identity, IDENTITY),
        to_control=to_controls.get("control"),
        to_uniform=to_controls.get("uniform"),
        failures={arm: len(seeds) for arm, seeds in gone.items()},
        diverged=gone,
        compensated=_compensated(group.compensated, values),
        seeds_to_settle=finding.seeds_to_settle,
    )


def over_images(
    verdict: FinalistVerdict, group: Group, scores: Mapping[int, images.Scores]
) -> FinalistVerdict:
    """Return a verdict whose differences have intervals over seeds and images, where known.

    `scores` has those of validation images by trial.
    """
    own = scores.get(group.finalist.number, {})

    def told(found: Comparison | None, number: int) -> Comparison | None:
        if found is None:
            return None
        seeds, other = map(int, found.by_seed), scores.get(number, {})
        over = images.beside(found.mean, seeds, own, other)
        return found.model_copy(update={"images": over})

    numbers = {name: arm.number for name, arm in group.controls.items()}
    return verdict.model_copy(
        update={
            "to_identity": told(verdict.to_identity, IDENTITY),
            "to_control": told(verdict.to_control, numbers.get("control", IDENTITY)),
            "to_uniform": told(verdict.to_uniform, numbers.get("uniform", IDENTITY)),
        }
    )


def failed(group: Group, obstacle: str) -> FinalistVerdict:
    """Return the verdict on a finalist that cannot be judged."""
    return FinalistVerdict(**_named(group.finalist), verdict="no_evidence", reason=obstacle)


def _named(finalist: TrialRow) -> dict[str, Any]:
    assert finalist.origin is not None  # as all finalists
    densities = {str(k): list(den) for k, den in finalist.densities.items()}
    return {"trial": finalist.origin, "label": finalist.label, "densities": densities}


def _compensated(arm: TrialRow | None, values: Values) -> PairedDifference | None:
    """Return the compensated arm minus identity; None without one, or if it failed."""
    if arm is None or arm.failed:
        return None
    return PairedDifference.of(differences.paired(values[arm.number], values[IDENTITY]))
