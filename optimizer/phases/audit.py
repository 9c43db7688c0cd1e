"""The audit: densities of the search on a larger network, at full length, with fresh seeds.

The rate of all its arms is given or calibrated on identity of that network first. Then identity,
the winner with its controls, the search's best, the published densities and others from the whole
range of what the search saw are trained at once (optimizer.evidence.audit says what comes of it).
Its jobs are claimed like all others; workers have a recipe of their own for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from densitune.density import Densities
from optimizer import arms, learning_rates
from optimizer.arms import Arm
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import audit, differences, ranking
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.verdicts import (
    FinalistVerdict,
    asked,
    best,
    of_study,
)
from optimizer.phases import calibration, comparisons
from optimizer.phases.desk import Desk
from storage.ledger import LedgerRow
from storage.states import Role
from storage.studies import Study
from storage.trials import TrialRow

NORMALISED = "audit_uniform_is_identity"
"""Under what a study's provenance has whether a uniform mask trains as identity does in the larger
network, long as that is trained."""
DENSITIES: tuple[Role, ...] = ("finalist", "published", "candidate")
"""Roles of the arms whose ranks are compared."""


@dataclass(frozen=True)
class Chosen:
    """A density of the audit, before it is trained."""

    trial: int
    role: Role
    label: str
    densities: Densities


def wanted(config: StudyConfig, winner: FinalistVerdict | None) -> bool:
    """Tell whether there is anything to audit once a study has this winner."""
    return config.audit is not None and winner is not None


def step(desk: Desk) -> bool:
    """Take the next step if there is one now: queue rates, queue the arms, or end the phase."""
    winner = best(of_study(desk.study.verdicts))
    trained = desk.trials("audit")
    if desk.waits_for(trained):
        return False
    if winner is not None and desk.config.audit is not None and _queued(desk, winner, trained):
        return True
    for trial in trained:
        if trial.state == "running":
            desk.close(trial)
    desk.enter("decided")
    return True


def choose(
    config: StudyConfig, winner: FinalistVerdict, results: Sequence[TrialResult]
) -> list[Chosen]:
    """Return the densities of an audit, `audit.arms` at most, each once.

    results: the complete trials of the search. First the winner, the search's best and the
    published densities, half of all at most; the rest are spread evenly over the ranks, by what the
    search went by, of all others that it trained to the end, with the first and the last of them.
    """
    assert config.audit is not None  # our caller's case
    ranked = [one for one in differences.ranked(results) if one.role != "identity"]
    published = [one for one in ranked if one.role == "published"]
    own = Chosen(winner.trial, "finalist", winner.label, winner.by_kernel_size())
    known = {one.number: one for one in [*ranked[:1], *published] if one.number != winner.trial}
    kept = [*known.values()][: config.audit.arms // 2 - 1]
    left_out = {winner.trial, *(one.number for one in kept)}
    rest = [one for one in ranked if one.number not in left_out]
    places = audit.spread(range(len(rest)), config.audit.arms - 1 - len(kept))
    return [own, *map(_chosen, [*kept, *(rest[place] for place in places)])]


def rate(
    config: StudyConfig, trained: Sequence[TrialRow], rows: Sequence[LedgerRow]
) -> float | None:
    """Return the rate of all arms; None as long as it is not calibrated, or if none trains."""
    assert config.audit is not None  # our caller's case
    if config.audit.lr != "auto":
        return config.audit.lr
    scores = calibration.scores(rates(trained), rows)
    if not scores or _further_rates(config, trained, rows):
        return None
    return learning_rates.best(scores)


def to_come(
    study: Study, config: StudyConfig, winner: FinalistVerdict, trained: Sequence[TrialRow]
) -> int:
    """Return how many jobs the audit is still to queue, if its grid of rates does not grow."""
    if config.audit is None or (trained and _stuck(trained)):
        return 0
    seeds, jobs = len(config.audit_seeds), 0
    if config.audit.lr == "auto" and not trained:
        jobs += len(_further_rates(config, trained, [])) * len(config.audit_rate_seeds)
    if first(trained, "identity") is None:
        return jobs + seeds * (1 + config.audit.arms + len(_controls(study, config)))
    return jobs + seeds * len(_lacking(study, config, winner, trained))


def left(
    study: Study, config: StudyConfig, winner: FinalistVerdict, trained: Sequence[TrialRow]
) -> int:
    """Return how many jobs of the phase are left, given its trials so far."""
    queued = sum(trial.waiting + trial.running for trial in trained)
    return queued + to_come(study, config, winner, trained)


def _queued(desk: Desk, winner: FinalistVerdict, trained: Sequence[TrialRow]) -> bool:
    """Queue what the audit lacks, when all that it has so far has ended; tell whether anything."""
    config, rows, number = desk.config, desk.measured("audit"), len(trained)
    assert config.audit is not None  # our caller's case
    if config.audit.lr == "auto" and (further := _further_rates(config, trained, rows)):
        for further_rate in further:
            arm = arms.identity(config.kernel_size, further_rate, config.init)
            desk.add(
                number, "rate", f"lr {further_rate:g}", arm,
                seeds=config.audit_rate_seeds, budget=config.audit.budget,
            )  # fmt: skip
            number += 1
        return True
    lr = rate(config, trained, rows)
    if lr is None:
        return False
    new: list[tuple[Role, str, Arm, int | None]] = []
    if first(trained, "identity") is None:
        by = ranking.of(desk.study)
        results = differences.results(desk.trials("search"), desk.measured("search"), by)
        plain = arms.identity(config.kernel_size, lr, config.init)
        new.append(("identity", "identity", plain, None))
        new += [(one.role, one.label, Arm(one.densities, lr, config.init), one.trial)
                for one in choose(config, winner, results)]  # fmt: skip
        new += _beside(desk.study, config, winner, lr, _controls(desk.study, config))
    else:  # an extended study may have another winner
        lacking = _lacking(desk.study, config, winner, trained)
        new += _beside(desk.study, config, winner, lr, lacking)
    for role, label, arm, origin in new:
        if config.data.has_test and role in ("identity", "finalist"):
            arm = replace(arm, split="both")  # sealed until the verdict, as in a confirmation
        desk.add(
            number, role, label, replace(arm, floored=True),
            seeds=config.audit_seeds, budget=config.audit.budget, origin=origin,
        )  # fmt: skip
        number += 1
    return bool(new)


def _beside(
    study: Study, config: StudyConfig, winner: FinalistVerdict, lr: float, roles: Sequence[Role]
) -> list[tuple[Role, str, Arm, int | None]]:
    """Return the winner's arms of these roles."""
    densities = winner.by_kernel_size()
    of = comparisons.arms_of(winner.label, densities, lr, config.init)
    of["finalist"] = winner.label, Arm(densities, lr, config.init)
    return [(role, *of[role], winner.trial) for role in roles]


def _lacking(
    study: Study, config: StudyConfig, winner: FinalistVerdict, trained: Sequence[TrialRow]
) -> list[Role]:
    """Return the roles in which a winner has no arm yet."""
    own = {trial.role for trial in trained if trial.origin == winner.trial}
    density: list[Role] = [] if own & set(DENSITIES) else ["finalist"]
    return density + [role for role in _controls(study, config) if role not in own]


def _controls(study: Study, config: StudyConfig) -> list[Role]:
    return [*asked(config.init, bool(study.provenance.get(NORMALISED, False)))]


def _further_rates(
    config: StudyConfig, trained: Sequence[TrialRow], rows: Sequence[LedgerRow]
) -> list[float]:
    """Return the rates that identity of the larger network is to be tried at next."""
    middle, tried = config.audited.usual_lr, rates(trained)
    assert middle is not None  # only a script has none, and there is none beside an audit
    if not tried:
        return learning_rates.grid(middle)
    scores = calibration.scores(tried, rows)
    known = [lr for trial in tried if (lr := calibration.rate(trial)) is not None]
    further = learning_rates.beyond(middle, known, scores) if scores else None
    return [] if further is None else [further]


def _chosen(result: TrialResult) -> Chosen:
    role: Role = "published" if result.role == "published" else "candidate"
    return Chosen(result.number, role, result.label, result.densities)


def rates(trained: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the trials of identity by which the rate is calibrated."""
    return [trial for trial in trained if trial.role == "rate"]


def first(trained: Sequence[TrialRow], role: Role) -> TrialRow | None:
    """Return the first trial of a role; None as long as there is none."""
    return next((trial for trial in trained if trial.role == role), None)


def _stuck(trained: Sequence[TrialRow]) -> bool:
    """Tell whether identity could be trained at no rate, so that nothing more is to come."""
    return all(trial.role == "rate" and trial.failed for trial in trained)
