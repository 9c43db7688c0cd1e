"""After the verdict: identity and the winner on the test split, by which nothing was chosen.

The confirmation's own jobs have measured both on it, beside the validation images. What they found
was sealed, and is read here, once, when the verdicts stand. Whatever it is, it changes nothing.
"""

import statistics
from collections.abc import Sequence

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences, images
from optimizer.evidence.verdicts import (
    Comparison,
    FinalistVerdict,
    Holdout,
    best,
    by_text,
    of_study,
    of_test_split,
)
from optimizer.phases import comparisons
from optimizer.phases.desk import Desk
from storage import studies
from storage.ledger import LedgerRow
from storage.states import Phase
from storage.trials import TrialRow

EARLIER = "an earlier version began the confirmation, and its jobs were not measured there"
MISSING = "not all workers had one, or reached a finite score on it"
"""Why a study has no result on the test split."""


def due(config: StudyConfig, verdicts: Sequence[FinalistVerdict]) -> FinalistVerdict | None:
    """Return the winner, if there is a test split and it could be judged."""
    winner = best(verdicts)
    judged = winner is not None and winner.to_identity is not None
    return winner if judged and config.data.has_test else None


def step(desk: Desk) -> bool:
    """Take the next step if there is one now: read what the test split said, and end the study.

    It also ends one that has nothing to be read: an older version may have stopped it at its end.
    What that had queued to be measured on the test split, with jobs of their own, is waited for.
    """
    verdicts = of_study(desk.study.verdicts)
    winner, pair = due(desk.config, verdicts), desk.trials("decided")
    known = of_test_split(desk.study.holdout)
    if known is not None or winner is None:
        larger = None if winner is None else _of_the_audit(desk, winner)
        more = None
        if known is not None and larger is not None:
            more = known.model_copy(update={"larger": larger}).model_dump()
        studies.finish(desk.connection, desk.study.id, more)
        return True
    if desk.waits_for(pair):
        return False
    for trial in pair:
        desk.close(trial)
    if pair:
        said = _said(winner, pair, desk.measured("decided"))
    else:
        said = _of_the_confirmation(desk, winner)
    told = said.model_copy(update={"larger": _of_the_audit(desk, winner)})
    studies.finish(desk.connection, desk.study.id, told.model_dump())
    return True


def _of_the_audit(desk: Desk, winner: FinalistVerdict) -> Holdout | None:
    """Return what the audit's own jobs measured on the test split; None if there is nothing.

    A later winner, which the audit had trained before as one of many, was not measured there.
    """
    pair, rows = _unsealed(desk, winner, "audit")
    whole = len(pair) == 2 and len(rows) == 2 * len(desk.config.audit_seeds)
    if whole and comparisons.diverged(desk.measured("audit")).get(pair[0].number):
        return Holdout(trial=winner.trial, reason="identity diverged on the larger network")
    return _said(winner, pair, rows) if whole else None


def _of_the_confirmation(desk: Desk, winner: FinalistVerdict) -> Holdout:
    """Return what the confirmation's own jobs measured on the test split."""
    assert winner.to_identity is not None  # as of all that are due
    seeds = {int(seed) for seed in winner.to_identity.by_seed}
    pair, rows = _unsealed(desk, winner, "confirm")
    known = [row for row in rows if row.seed in seeds]
    if len(known) < 2 * len(seeds):
        asked = all(trial.arm.get("split") == "both" for trial in pair)
        return Holdout(trial=winner.trial, reason=MISSING if asked else EARLIER)
    return _said(winner, pair, known)


def _unsealed(
    desk: Desk, winner: FinalistVerdict, phase: Phase
) -> tuple[list[TrialRow], list[LedgerRow]]:
    """Return identity's trial and the winner's in a phase, and what the test split said of them."""
    pair = [
        trial
        for trial in desk.trials(phase)
        if trial.role == "identity" or (trial.role, trial.origin) == ("finalist", winner.trial)
    ]
    return pair, desk.unsealed((trial.number for trial in pair), phase)


def _said(winner: FinalistVerdict, pair: Sequence[TrialRow], rows: Sequence[LedgerRow]) -> Holdout:
    """Return what the test split says of identity and the winner, or why it says nothing."""
    failed = next((trial for trial in pair if trial.failed), None)
    if failed is not None:
        reason = f"{failed.label} could not be measured with every seed: {failed.failure}"
        return Holdout(trial=winner.trial, reason=reason)
    told = [row.extra.get("test") for row in rows]
    prints = {fingerprint for fingerprint in told if isinstance(fingerprint, str)}
    if not all(isinstance(fingerprint, str) for fingerprint in told):
        reason = "a worker did not say on which test images it had measured"
        return Holdout(trial=winner.trial, reason=reason)
    if len(prints) > 1:
        reason = f"workers had different test images ({', '.join(sorted(prints))})"
        return Holdout(trial=winner.trial, reason=reason)
    by_arm, scores = differences.final_values(rows), images.by_trial(rows)
    identity, own = (by_arm[trial.number] for trial in pair)
    each_identity, each_own = (scores.get(trial.number, {}) for trial in pair)
    paired = differences.paired(own, identity)
    low, high = differences.interval(paired)  # a batch has two seeds at least
    return Holdout(
        trial=winner.trial,
        fingerprint=prints.pop(),
        seeds=sorted(paired.by_seed),
        value=statistics.fmean(own.values()),
        identity=statistics.fmean(identity.values()),
        difference=Comparison(
            mean=paired.mean,
            low=low,
            high=high,
            by_seed=by_text(paired.by_seed),
            images=images.beside(paired.mean, paired.by_seed, each_own, each_identity),
        ),
    )
