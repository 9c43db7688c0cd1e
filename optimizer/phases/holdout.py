"""After the verdict: identity and the winner on the test split, by which nothing was chosen.

Both are trained again with the first batch of fresh seeds, as they were in the confirmation, and
measured once, at the end, on images that nobody has looked at before. What comes out changes
nothing: verdict and winner stand.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from scipy.special import stdtrit
from sqlalchemy import Connection

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences
from optimizer.evidence.verdicts import Comparison, FinalistVerdict, Holdout, best
from storage import jobs, ledger, studies, trials
from storage.ledger import LedgerRow
from storage.studies import Study
from storage.trials import TrialRow

IDENTITY, WINNER = 0, 1
"""Numbers of the two trials."""


def is_due(config: StudyConfig, verdicts: Sequence[FinalistVerdict]) -> bool:
    """Tell whether there is a test split and a finalist that could be judged."""
    winner = best(verdicts)
    return config.data.has_test and winner is not None and winner.to_identity is not None


def step(connection: Connection, study: Study, config: StudyConfig) -> bool:
    """Take the next step if there is one now: queue both trials, or end the study with them."""
    arms = trials.all_of(connection, study.id, "decided")
    if not arms:
        _queue(connection, study, config)
        return True
    if any(arm.waiting or arm.running for arm in arms):
        jobs.fail_lost(connection, study.id)
        return False
    _conclude(connection, study, arms)
    return True


def _queue(connection: Connection, study: Study, config: StudyConfig) -> None:
    confirmed = trials.all_of(connection, study.id, "confirm")
    winner = best([FinalistVerdict.model_validate(one) for one in study.verdicts or []])
    assert winner is not None  # is_due said so when the study was decided
    chosen = {
        IDENTITY: next(arm for arm in confirmed if arm.role == "identity"),
        WINNER: next(
            arm for arm in confirmed if (arm.role, arm.origin) == ("finalist", winner.trial)
        ),
    }
    for number, arm in chosen.items():
        trials.add(
            connection,
            study.id,
            number=number,
            origin=arm.origin,
            role=arm.role,
            label=arm.label,
            densities=arm.densities,
            seeds=config.fresh_seeds[: config.confirm.batch],
            budget=config.confirm_budget,
            arm=replace(arm.arm, split="test"),
            phase="decided",
        )


def _conclude(connection: Connection, study: Study, arms: Sequence[TrialRow]) -> None:
    for arm in arms:
        state: trials.State = "complete" if arm.error is None else "failed"
        trials.finish(connection, study.id, arm.number, state, arm.error, "decided")
    rows = ledger.read(connection, study.id, "decided")
    studies.finish(connection, study.id, _found(arms, rows).model_dump())


def _found(arms: Sequence[TrialRow], rows: Sequence[LedgerRow]) -> Holdout:
    origin = arms[WINNER].origin
    assert origin is not None  # as all finalists
    failed = next((arm for arm in arms if arm.error is not None), None)
    if failed is not None:
        reason = f"{failed.label} could not be measured with every seed: {failed.error}"
        return Holdout(trial=origin, reason=reason)
    prints = {row.extra["test"] for row in rows}
    if len(prints) > 1:
        reason = f"workers had different test images ({', '.join(sorted(prints))})"
        return Holdout(trial=origin, reason=reason)
    values = differences.final_values(rows)
    found = differences.paired(values[WINNER], values[IDENTITY])
    seeds = sorted(found.by_seed)
    assert found.standard_error is not None  # a batch has two seeds at least
    reach = float(stdtrit(len(seeds) - 1, 0.975)) * found.standard_error
    return Holdout(
        trial=origin,
        fingerprint=prints.pop(),
        seeds=seeds,
        value=statistics.fmean(values[WINNER].values()),
        identity=statistics.fmean(values[IDENTITY].values()),
        difference=Comparison(
            mean=found.mean,
            low=found.mean - reach,
            high=found.mean + reach,
            by_seed={str(seed): difference for seed, difference in found.by_seed.items()},
        ),
    )
