"""What an audit has found: densities on the larger network beside what the search said of them.

An arm counts with all its seeds or not at all: what failed, and what lacks a measurement that
somebody deleted, is left out and named.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import audit as evidence
from optimizer.evidence import baseline, differences
from optimizer.evidence.audit import Audit, AuditArm
from optimizer.evidence.differences import Difference, TrialResult
from optimizer.evidence.verdicts import Comparison, FinalistVerdict, PairedDifference
from optimizer.phases import audit, comparisons
from storage.ledger import LedgerRow
from storage.studies import Study
from storage.trials import TrialRow


def found(
    study: Study,
    config: StudyConfig,
    winner: FinalistVerdict,
    results: Sequence[TrialResult],
    trained: Sequence[TrialRow],
    rows: Sequence[LedgerRow],
) -> Audit | None:
    """Return what the audit says; None without one, or as long as it has not ended.

    results: the complete trials of the search, identity first. trained, rows: the audit's.
    """
    ended = not any(trial.is_open for trial in trained)
    to_come = audit.to_come(study, config, winner, trained)
    if config.audit is None or not trained or not ended or to_come:
        return None
    values, lost = differences.final_values(rows), comparisons.diverged(rows)
    by_trial = {one.number: one for one in results}
    obstacles = {
        trial.number: why
        for trial in trained
        if trial.role != "rate"
        and (why := _obstacle(config, trial, by_trial, values.get(trial.number, {})))
    }
    identity = audit.first(trained, "identity")
    told: dict[str, Any] = {"trial": winner.trial, "lr": audit.rate(config, trained, rows)}
    if identity is None or identity.number in obstacles:
        why = _failed(audit.rates(trained)[0]) if identity is None else obstacles[identity.number]
        return Audit(finding="open", reason=why, **told)
    base = values[identity.number]
    whole = [one for one in trained if one.role != "rate" and one.number not in obstacles]
    paired = {trial.number: differences.paired(values[trial.number], base) for trial in whole}
    compared = [
        AuditArm(
            trial=arm.origin,
            label=arm.label,
            densities={str(k): list(den) for k, den in arm.densities.items()},
            proxy=_searched(by_trial.get(arm.origin)),
            full=PairedDifference.of(paired[arm.number]),
        )
        for arm in whole
        if arm.role in audit.DENSITIES and arm.origin is not None
    ]
    gone = {arm.label: sorted(lost.get(arm.number, ())) for arm in whole}
    told |= {
        "identity": statistics.fmean(base.values()),
        "diverged": {label: seeds for label, seeds in gone.items() if seeds},
    }
    known = Audit(
        finding="open", arms=compared, **told, **_of_the_winner(winner, whole, paired, lost)
    )
    floor = max(baseline.floors(study, config).values(), default=float("-inf"))
    reasons = [evidence.unsound(known, floor), *obstacles.values()]
    known = known.model_copy(update={"reason": "; ".join(filter(None, reasons)) or None})
    return evidence.judged(known, floor)


def _obstacle(
    config: StudyConfig,
    trial: TrialRow,
    by_trial: Mapping[int, TrialResult],
    values: Mapping[int, float],
) -> str | None:
    """Return why an arm is left out; None if it is not."""
    if trial.failed:
        return _failed(trial)
    searched = None if trial.origin is None else by_trial.get(trial.origin)
    of_search = trial.role in ("published", "candidate") or searched is not None
    known = {} if searched is None else searched.searched.by_seed
    if values.keys() != set(config.audit_seeds) or (
        of_search and known.keys() != set(config.seeds)
    ):
        return f"measurements of {trial.label} have been deleted"
    return None


def _failed(trial: TrialRow) -> str:
    if trial.role in ("identity", "rate"):
        return f"identity could not be trained on the larger network: {trial.failure}"
    return f"{trial.label} could not be trained with every seed: {trial.failure}"


def _of_the_winner(
    winner: FinalistVerdict,
    whole: Sequence[TrialRow],
    paired: Mapping[int, Difference],
    lost: comparisons.Lost,
) -> dict[str, Any]:
    """Return the winner's differences to identity and its controls on the larger network.

    A control that diverged on any seed has none.
    """
    own = {arm.role: arm.number for arm in whole if arm.origin == winner.trial}
    number = next((own[role] for role in audit.DENSITIES if role in own), None)
    if number is None:
        return {}
    mine = paired[number].by_seed
    told = {"to_identity": Comparison.of(paired[number])}
    for role in ("control", "uniform"):
        if role in own and own[role] not in lost:  # a floor is no measure of how much better
            beside = differences.paired(mine, paired[own[role]].by_seed)
            told[f"to_{role}"] = Comparison.of(beside)
    return told


def _searched(result: TrialResult | None) -> PairedDifference | None:
    """Return what the search said of a trial; None of what was no trial of it."""
    return None if result is None else PairedDifference.of(result.searched)
