"""The second phase: densities that Optuna proposes, trained and told strictly in order.

A step does one thing: propose the next trial, queue the other seeds of one whose first seed was
not cut, or tell the oldest open one. Trial n is proposed when exactly the first n - in_flight + 1
are told, so what is proposed and cut does not depend on how many workers there are or who dies
when.
"""

import statistics

from optimizer.arms import Arm
from optimizer.design import Anchor
from optimizer.evidence import differences, ranking
from optimizer.phases import bars
from optimizer.phases.desk import Desk
from optimizer.phases.optuna_study import DensityStudy, Outcome
from storage.trials import TrialRow


def step(desk: Desk, optuna: DensityStudy) -> bool:
    """Take the next step if there is one now."""
    trials, search = desk.trials("search"), desk.config.search
    if trials and trials[0].state == "failed":
        reason = trials[0].reason
        desk.halt(f"identity could not be trained, so nothing can be compared: {reason}")
        return False
    told = next((trial.number for trial in trials if trial.state == "running"), len(trials))
    kept = next((trial for trial in trials[told:] if trial.done == trial.jobs < search.seeds), None)
    if kept is not None:  # its first seed cleared every bar
        desk.train_on(kept, desk.config.seeds[kept.jobs :], desk.config.training.budget)
        return True
    if len(trials) < search.trials and len(trials) - told < search.in_flight:
        _propose(desk, optuna, trials, told)
        return True
    if told == search.trials:
        optuna.fail_strays(_optuna_numbers(trials))
        desk.enter("confirm")
        return True
    if desk.waits_for([trials[told]]):
        return False
    _tell(desk, optuna, trials[told])
    return True


def _propose(desk: Desk, optuna: DensityStudy, trials: list[TrialRow], told: int) -> None:
    number, config, by = len(trials), desk.config, ranking.of(desk.study)
    optuna_number, densities = optuna.ask(number, _optuna_numbers(trials))
    anchors = config.anchors
    anchor = (
        anchors[number]
        if number < len(anchors)
        else Anchor("candidate", f"trial {number}", densities)
    )
    optuna.describe(optuna_number, {"role": anchor.role, "label": anchor.label})
    least = {}
    if number >= len(anchors):
        least = bars.for_next(config, trials[:told], ranking.searched(desk.measured("search"), by))
    desk.add(
        number,
        anchor.role,
        anchor.label,
        Arm(densities, lr=desk.study.lr, init=config.init, searched_by=by),
        seeds=config.seeds[:1] if least else config.seeds,
        budget=config.training.budget,
        bars=least,
        optuna_number=optuna_number,
    )


def _tell(desk: Desk, optuna: DensityStudy, trial: TrialRow) -> None:
    """Tell Optuna how a trial ended of whose jobs none is waiting or running."""
    assert trial.optuna_number is not None  # as all trials of a search
    if trial.failed:
        optuna.describe(trial.optuna_number, {"reason": trial.failure})
        optuna.tell(trial.optuna_number, "failed", {})
        desk.close(trial)
        return
    rows, by = desk.measured("search"), ranking.of(desk.study)
    by_rung = differences.by_rung(ranking.searched(rows, by), trial.number)
    last = max(row.rung for row in rows if row.trial == trial.number)
    own = [row for row in rows if row.trial == trial.number and row.rung == last]
    mean = statistics.fmean(row.value for row in own)
    by_seed = {str(row.seed): row.value for row in own}
    known = differences.by_rung(rows, trial.number)
    beside = {} if by == "metric" else {f"{desk.config.metric} minus identity": known[last]}
    optuna.describe(trial.optuna_number, {"values by seed": by_seed, "mean": mean, **beside})
    outcome: Outcome = "pruned" if trial.cut else "complete"
    reason = f"below its bar after {last} epochs" if trial.cut else None
    optuna.tell(trial.optuna_number, outcome, by_rung)
    desk.finish(trial, outcome, reason)
    if trial.role == "identity":
        desk.check_baseline(mean)


def _optuna_numbers(trials: list[TrialRow]) -> set[int]:
    """Return the Optuna numbers that belong to trials of ours."""
    return {trial.optuna_number for trial in trials if trial.optuna_number is not None}
