"""After the verdict: checks of the winner that a study asks for, and that change no verdict.

Each queues what it lacks as soon as what it has queued has ended; when none lacks anything, the
study goes on. What a check has found is read from the ledger whenever it is asked for.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import advice
from optimizer.evidence.verdicts import FinalistVerdict, best, of_study
from optimizer.phases import apart, audit, comparisons, own_rates
from optimizer.phases.desk import Desk
from storage.states import Phase
from storage.studies import Study
from storage.trials import TrialRow

if TYPE_CHECKING:  # listing studies must not wait for Optuna
    from optimizer.phases.optuna_study import DensityStudy


def next_phase(study: Study, config: StudyConfig, winner: FinalistVerdict | None) -> Phase:
    """Return the phase that follows a confirmation with this winner."""
    if due(study, config, winner):
        return "check"
    return "audit" if audit.wanted(config, winner) else "decided"


def due(study: Study, config: StudyConfig, winner: FinalistVerdict | None) -> bool:
    """Tell whether there is anything to check once a study has this winner."""
    if winner is None:
        return False
    return own_rates.wanted(study, config, winner) or apart.wanted(config, winner)


def left(
    study: Study, config: StudyConfig, winner: FinalistVerdict, trained: Sequence[TrialRow]
) -> int:
    """Return how many jobs of the phase are left, given its trials so far."""
    jobs = sum(trial.waiting + trial.running for trial in trained)
    if own_rates.wanted(study, config, winner):
        jobs += own_rates.to_come(study, config, winner, trained)
    if apart.wanted(config, winner):
        jobs += apart.to_come(config, winner, trained)
    return jobs


def step(desk: Desk, optuna: "DensityStudy | None") -> bool:
    """Take the next step if there is one now: queue what a check lacks, or end the phase.

    Optuna's study, if it is still there, is told what to do now.
    """
    winner, trained = best(of_study(desk.study.verdicts)), desk.trials("check")
    if desk.waits_for(trained):
        return False
    if winner is not None and _queued(desk, winner):
        return True
    for trial in trained:
        if trial.state == "running":
            desk.close(trial)
    if winner is not None and optuna is not None:
        found = own_rates.found(desk.study, desk.config, winner, trained, desk.measured("check"))
        wanted = comparisons.controls(desk.study, desk.config)
        told = advice.of_study(winner, desk.config, wanted, decided=True, rates=found)
        optuna.conclude({"advice": told, "verdict": winner.verdict})
    desk.enter("audit" if audit.wanted(desk.config, winner) else "decided")
    return True


def _queued(desk: Desk, winner: FinalistVerdict) -> bool:
    """Tell whether a check lacked something, which is queued now."""
    queued = False
    if apart.wanted(desk.config, winner):
        queued = apart.queue(desk, winner, desk.trials("check"))
    if own_rates.wanted(desk.study, desk.config, winner):
        queued |= own_rates.queue(desk, winner, desk.trials("check"))
    return queued
