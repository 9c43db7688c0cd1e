"""The rate check: the winner, identity and the controls, each at a rate of its own.

Each arm is tried at three rates around the study's, half a decade apart, with seeds of their own;
its grid grows as a calibration's does. Then each is trained at its own best rate, with as many
fresh seeds as the winner's verdict took, within limits (optimizer.evidence.own_rates has them and
the test). Whatever the verdict, all controls are trained that `better` asks for.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer import arms, learning_rates
from optimizer.arms import Arm
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences, own_rates
from optimizer.evidence.differences import Difference
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import Comparison, Control, FinalistVerdict
from optimizer.phases import comparisons
from optimizer.phases.desk import Desk
from storage.ledger import LedgerRow
from storage.states import Role
from storage.studies import Study
from storage.trials import TrialRow

NAMES: dict[Role, str] = {
    "identity": "identity",
    "finalist": "density",
    "control": "scale control",
    "uniform": "uniform mask",
}
"""What the arms are called in labels."""


@dataclass(frozen=True)
class Contender:
    """An arm of the check: what it was tried at, and its training at its own rate."""

    role: Role
    arm: Arm
    """But for its rate."""
    tried: Sequence[TrialRow]
    final: TrialRow | None

    @property
    def rates(self) -> dict[float, TrialRow]:
        """Return what was tried, by rate."""
        found = {Arm.of(trial.densities, trial.arm).lr: trial for trial in self.tried}
        return {rate: trial for rate, trial in found.items() if rate is not None}

    @property
    def is_open(self) -> bool:
        """Tell whether results are still to come."""
        final = [] if self.final is None else [self.final]
        return any(trial.is_open for trial in (*self.tried, *final))

    @property
    def obstacle(self) -> str | None:
        """Return why the check cannot be made: a failure that says nothing about a rate."""
        name = NAMES[self.role]
        if self.final is not None and self.final.failed:
            return f"{name} could not be trained with every fresh seed: {self.final.failure}"
        for rate, trial in self.rates.items():
            if trial.kind not in (None, "diverged"):
                return f"{name} could not be trained at the rate {rate:g}: {trial.failure}"
        if self.tried and all(trial.failed for trial in self.tried):
            return f"{name} could not be trained at any rate: {self.tried[0].failure}"
        return None

    def scores(self, values: Mapping[int, Mapping[int, float]]) -> dict[float, float]:
        """Return {rate: mean over the seeds} of the rates at which no training failed."""
        return {
            rate: statistics.fmean(values[trial.number].values())
            for rate, trial in self.rates.items()
            if not (trial.is_open or trial.failed)
        }


def wanted(study: Study, config: StudyConfig, winner: FinalistVerdict) -> bool:
    """Tell whether a study asks for the check of this winner.

    A study of a version that knew no such check does not, whatever the default is today, and
    neither does one of a script that has a rate of its own.
    """
    if winner.to_identity is None or "rates" not in study.config.get("confirm", {}):
        return False
    if config.training.lr == "none":
        return False
    asked = config.confirm.rates
    return asked == "always" or (asked == "auto" and winner.verdict == "better")


def middle(study: Study, config: StudyConfig) -> float:
    """Return the rate of the study, around which all arms are tried."""
    given = config.training.lr
    found = (study.lr or config.usual_lr) if isinstance(given, str) else given
    assert found is not None  # or the check is not wanted
    return found


def contenders(
    study: Study, config: StudyConfig, winner: FinalistVerdict, trained: Sequence[TrialRow]
) -> list[Contender]:
    """Return the arms of the check: identity, the winner, the controls that `better` asks for."""
    densities = winner.by_kernel_size()
    controls: dict[Control, Arm] = {
        "control": arms.scale_control(densities, None, config.init),
        "uniform": arms.uniform(densities, None, config.init),
    }
    by_role: dict[Role, Arm] = {
        "identity": arms.identity(config.kernel_size, None, config.init),
        "finalist": Arm(densities, None, config.init),
        **{name: controls[name] for name in comparisons.controls(study, config)},
    }
    own = [trial for trial in trained if trial.origin == winner.trial]
    return [
        Contender(
            role,
            arm,
            [trial for trial in own if trial.role == "rate" and _bare(trial) == arm],
            next((trial for trial in own if trial.role == role), None),
        )
        for role, arm in by_role.items()
    ]


def queue(desk: Desk, winner: FinalistVerdict, trained: Sequence[TrialRow]) -> bool:
    """Queue what the check lacks, when all that it has so far has ended; tell whether anything."""
    compared = contenders(desk.study, desk.config, winner, trained)
    if any(one.obstacle for one in compared):
        return False
    scores = [one.scores(differences.final_values(desk.measured("check"))) for one in compared]
    centre, number = middle(desk.study, desk.config), len(trained)
    first, budget = number, desk.config.confirm_budget
    for one, known in zip(compared, scores, strict=True):
        for rate in _further(one, known, centre):
            label = f"{NAMES[one.role]} of {winner.label} at {rate:g}"
            desk.add(
                number, "rate", label, replace(one.arm, lr=rate),
                seeds=desk.config.rate_seeds, budget=budget, origin=winner.trial,
            )  # fmt: skip
            number += 1
    if number > first or not all(scores):
        return number > first
    seeds = desk.config.own_rate_seeds(_count(compared, winner))
    for one, known in zip(compared, scores, strict=True):
        if one.final is None:
            own = replace(one.arm, lr=learning_rates.best(known), floored=True)
            label = f"{NAMES[one.role]} of {winner.label} at its own rate"
            desk.add(number, one.role, label, own, seeds=seeds, budget=budget, origin=winner.trial)
            number += 1
    return number > first


def found(
    study: Study,
    config: StudyConfig,
    winner: FinalistVerdict,
    trained: Sequence[TrialRow],
    rows: Sequence[LedgerRow],
) -> RateCheck | None:
    """Return what the check says of this winner; None as long as it has not ended, or without.

    Of a decided study by the arms that were tried: earlier versions took one control, or none.
    """
    compared = [
        one
        for one in contenders(study, config, winner, trained)
        if one.tried or study.phase != "decided"
    ]
    open_still = any(one.is_open or not one.tried for one in compared)
    if open_still or not {"identity", "finalist"} <= {one.role for one in compared}:
        return None
    values = differences.final_values(rows)
    scores = {one.role: one.scores(values) for one in compared}
    told: dict[str, Any] = {
        "trial": winner.trial,
        "tried": {
            role: {f"{rate:g}": score for rate, score in sorted(known.items())}
            for role, known in scores.items()
        },
    }
    reasons = [one.obstacle for one in compared if one.obstacle is not None]
    finals = {one.role: one.final for one in compared if one.final is not None}
    if len(finals) == len(compared):
        told["rates"] = {one.role: learning_rates.best(scores[one.role]) for one in compared}
    if reasons:
        return RateCheck(holds=None, reason=reasons[0], **told)
    if len(finals) < len(compared):
        return None
    lost = comparisons.diverged(rows)
    gone: dict[str, list[int]] = {
        role: sorted(lost.get(final.number, ())) for role, final in finals.items()
    }
    to = {
        role: differences.paired(values[finals["finalist"].number], values[final.number])
        for role, final in finals.items()
        if role != "finalist"
    }
    beside: dict[Control, Difference] = {
        name: to[name] for name in comparisons.controls(study, config) if name in to
    }
    by_seed = {name: difference.by_seed for name, difference in beside.items()}
    return RateCheck(
        holds=own_rates.holds(to["identity"].by_seed, by_seed, gone),
        to_identity=Comparison.of(to["identity"]),
        to_controls={name: Comparison.of(difference) for name, difference in beside.items()},
        diverged={role: seeds for role, seeds in gone.items() if seeds},
        **told,
    )


def to_come(
    study: Study, config: StudyConfig, winner: FinalistVerdict, trained: Sequence[TrialRow]
) -> int:
    """Return how many jobs the check is still to queue, if no grid grows any more."""
    compared = contenders(study, config, winner, trained)
    if any(one.obstacle for one in compared):
        return 0
    rates = sum(len(_further(one, {}, middle(study, config))) for one in compared if not one.tried)
    finals = sum(one.final is None for one in compared)
    return rates * len(config.rate_seeds) + finals * _count(compared, winner)


def _further(one: Contender, scores: Mapping[float, float], centre: float) -> list[float]:
    """Return the rates that an arm is to be tried at next."""
    if not one.tried:
        return learning_rates.around(centre)
    if one.final is not None or not scores:
        return []
    rate = learning_rates.beyond(centre, one.rates, scores)
    return [] if rate is None else [rate]


def _count(compared: Sequence[Contender], winner: FinalistVerdict) -> int:
    """Return the seeds of the comparison: what it began with, or by those that the verdict took."""
    begun = next((one.final for one in compared if one.final is not None), None)
    if begun is not None:
        return begun.jobs
    assert winner.to_identity is not None  # or it is not checked
    return min(max(own_rates.LEAST, len(winner.to_identity.by_seed)), own_rates.MOST)


def _bare(trial: TrialRow) -> Arm:
    return replace(Arm.of(trial.densities, trial.arm), lr=None)
