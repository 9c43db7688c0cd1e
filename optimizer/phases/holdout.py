"""After the verdict: identity and the winner on the test split, by which nothing was chosen.

Both are trained again with the first batch of fresh seeds, as they were in the confirmation, and
measured once, at the end, on images that nobody has looked at before. What comes out changes
nothing: verdict and winner stand.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from optimizer.arms import Arm
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences
from optimizer.evidence.verdicts import Comparison, FinalistVerdict, Holdout, best, by_text
from optimizer.phases.desk import Desk
from storage import studies
from storage.ledger import LedgerRow
from storage.trials import TrialRow

IDENTITY, WINNER = 0, 1
"""Numbers of the two trials."""


def due(config: StudyConfig, verdicts: Sequence[FinalistVerdict]) -> FinalistVerdict | None:
    """Return the winner, if there is a test split and it could be judged."""
    winner = best(verdicts)
    judged = winner is not None and winner.to_identity is not None
    return winner if judged and config.data.has_test else None


def step(desk: Desk) -> bool:
    """Take the next step if there is one now: queue both trials, or end the study.

    It also ends one that has nothing to be read: an older version may have stopped it at its end.
    """
    pair = desk.trials("decided")
    if not pair:
        verdicts = [FinalistVerdict.model_validate(stored) for stored in desk.study.verdicts or []]
        winner = due(desk.config, verdicts)
        if winner is None:
            studies.finish(desk.connection, desk.study.id)
        else:
            _queue(desk, winner)
        return True
    if desk.waits_for(pair):
        return False
    for trial in pair:
        desk.close(trial)
    said = _said(pair, desk.measured("decided"))
    studies.finish(desk.connection, desk.study.id, said.model_dump())
    return True


def _queue(desk: Desk, winner: FinalistVerdict) -> None:
    confirmed, config = desk.trials("confirm"), desk.config
    chosen = {
        IDENTITY: next(trial for trial in confirmed if trial.role == "identity"),
        WINNER: next(
            trial for trial in confirmed if (trial.role, trial.origin) == ("finalist", winner.trial)
        ),
    }
    for number, trial in chosen.items():
        desk.add(
            number,
            trial.role,
            trial.label,
            replace(Arm.of(trial.densities, trial.arm), split="test"),
            seeds=config.fresh_seeds[: config.confirm.batch],
            budget=config.confirm_budget,
            origin=trial.origin,
        )


def _said(pair: Sequence[TrialRow], rows: Sequence[LedgerRow]) -> Holdout:
    """Return what the test split says, or why it says nothing."""
    origin = pair[WINNER].origin
    assert origin is not None  # as all finalists
    failed = next((trial for trial in pair if trial.failed), None)
    if failed is not None:
        reason = f"{failed.label} could not be measured with every seed: {failed.failure}"
        return Holdout(trial=origin, reason=reason)
    told = [row.extra.get("test") for row in rows]
    prints = {fingerprint for fingerprint in told if isinstance(fingerprint, str)}
    if not all(isinstance(fingerprint, str) for fingerprint in told):
        reason = "a worker did not say on which test images it had measured"
        return Holdout(trial=origin, reason=reason)
    if len(prints) > 1:
        reason = f"workers had different test images ({', '.join(sorted(prints))})"
        return Holdout(trial=origin, reason=reason)
    values = differences.final_values(rows)
    paired = differences.paired(values[WINNER], values[IDENTITY])
    seeds = sorted(paired.by_seed)
    low, high = differences.interval(paired)  # a batch has two seeds at least
    return Holdout(
        trial=origin,
        fingerprint=prints.pop(),
        seeds=seeds,
        value=statistics.fmean(values[WINNER].values()),
        identity=statistics.fmean(values[IDENTITY].values()),
        difference=Comparison(
            mean=paired.mean,
            low=low,
            high=high,
            by_seed=by_text(paired.by_seed),
        ),
    )
