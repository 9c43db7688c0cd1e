"""The 2 x 2 on request: the winner's start and its steps, each trained alone.

With the seeds, the rate and the budget that the winner was confirmed with, so that the other two
arms, identity and the winner, are those of the confirmation (optimizer.evidence.apart).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from optimizer import arms
from optimizer.arms import Arm, Part
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import apart, differences
from optimizer.evidence.apart import Apart
from optimizer.evidence.verdicts import FinalistVerdict
from optimizer.phases import comparisons
from optimizer.phases.desk import Desk
from storage.ledger import LedgerRow
from storage.trials import TrialRow


def wanted(config: StudyConfig, winner: FinalistVerdict) -> bool:
    """Tell whether a study asks for arms that have a part of this winner's effects."""
    return bool(config.confirm.arms) and winner.to_identity is not None


def queue(desk: Desk, winner: FinalistVerdict, trained: Sequence[TrialRow]) -> bool:
    """Queue the seeds that these arms lack; tell whether there were any."""
    config, there = desk.config, _own(winner, trained)
    seeds = config.fresh_seeds[: _count(winner)]
    number, queued = len(trained), False
    for part in config.confirm.arms:
        known = there.get(part)
        if known is None:
            label, arm = _arm(config, winner, part, desk.study.lr)
            desk.add(
                number, part, label, replace(arm, floored=True),
                seeds=seeds, budget=config.confirm_budget, origin=winner.trial,
            )  # fmt: skip
            number, queued = number + 1, True
        elif known.jobs < len(seeds) and not known.failed:
            desk.train_on(known, seeds[known.jobs :], config.confirm_budget)
            queued = True
    return queued


def found(
    config: StudyConfig,
    winner: FinalistVerdict,
    trained: Sequence[TrialRow],
    rows: Sequence[LedgerRow],
    confirmed: tuple[Sequence[TrialRow], Sequence[LedgerRow]],
) -> Apart | None:
    """Return what the arms say; None without them, or as long as they have not ended.

    confirmed: the confirmation's trials and measurements.
    """
    there, seeds = _own(winner, trained), config.fresh_seeds[: _count(winner)]
    ended = all(arm.jobs >= len(seeds) and not arm.is_open for arm in there.values())
    if not there or not ended or not set(config.confirm.arms) <= there.keys():
        return None
    reasons = [
        f"{arm.label} could not be trained with every seed: {arm.failure}"
        for arm in there.values()
        if arm.failed
    ]
    values, before = differences.final_values(rows), differences.final_values(confirmed[1])
    own = next(
        trial.number
        for trial in confirmed[0]
        if (trial.role, trial.origin) == ("finalist", winner.trial)
    )
    alone = {
        part: {seed: values[arm.number][seed] for seed in seeds}
        for part, arm in there.items()
        if not arm.failed
    }
    lost = comparisons.diverged(rows)
    gone: dict[str, list[int]] = {
        arm: winner.diverged.get(arm, []) for arm in ("identity", "finalist")
    }
    gone |= {part: sorted(lost.get(arm.number, ())) for part, arm in there.items()}
    identity, density = (
        {seed: before[number][seed] for seed in seeds} for number in (comparisons.IDENTITY, own)
    )
    return Apart(
        trial=winner.trial,
        reason="; ".join(reasons) or None,
        diverged={arm: which for arm, which in gone.items() if which},
        **apart.effects(identity, density, alone),
    )


def to_come(config: StudyConfig, winner: FinalistVerdict, trained: Sequence[TrialRow]) -> int:
    """Return how many jobs these arms are still to get."""
    there, count = _own(winner, trained), _count(winner)
    queued = (there[part].jobs if part in there else 0 for part in config.confirm.arms)
    return sum(count - jobs for jobs in queued)


def _arm(
    config: StudyConfig, winner: FinalistVerdict, part: Part, lr: float | None
) -> tuple[str, Arm]:
    densities = winner.by_kernel_size()
    if part == "init_only":
        return f"start of {winner.label} alone", arms.init_only(densities, lr, config.init)
    return f"steps of {winner.label} alone", arms.steps_only(densities, lr, config.init)


def _own(winner: FinalistVerdict, trained: Iterable[TrialRow]) -> dict[Part, TrialRow]:
    """Return the arms that belong to this winner."""
    found: dict[Part, TrialRow] = {}
    for trial in trained:
        if trial.origin == winner.trial and trial.role in ("init_only", "steps_only"):
            found[trial.role] = trial
    return found


def _count(winner: FinalistVerdict) -> int:
    return 0 if winner.to_identity is None else len(winner.to_identity.by_seed)
