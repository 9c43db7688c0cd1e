"""The second phase: densities that Optuna proposes, trained and told strictly in order.

A step does one thing: propose the next trial, queue the other seeds of one whose first seed was
not cut, or tell the oldest open one. Trial n is proposed when exactly the first n - in_flight + 1
are told, so what is proposed and cut does not depend on how many workers there are or who dies
when.
"""

import statistics

from sqlalchemy import Connection

from optimizer.config.study_file import StudyConfig
from optimizer.design import Anchor
from optimizer.evidence import baseline, differences
from optimizer.phases import bars
from optimizer.phases.optuna_study import DensityStudy, Outcome
from storage import jobs, ledger, studies, trials
from storage.arms import Arm
from storage.ledger import LedgerRow
from storage.studies import Study
from storage.trials import TrialRow


class Search:
    """One study's search, within the transaction of one step."""

    def __init__(
        self, connection: Connection, study: Study, config: StudyConfig, optuna: DensityStudy
    ) -> None:
        self._connection, self._study = connection, study
        self._config, self._optuna = config, optuna

    def step(self) -> bool:
        """Take the next step if there is one now."""
        rows = trials.all_of(self._connection, self._study.id)
        if rows and rows[0].state == "failed":
            studies.halt(self._connection, self._study.id, _no_baseline(rows[0].reason))
            return False
        told = next((row.number for row in rows if row.state == "running"), len(rows))
        search = self._config.search
        kept = next((row for row in rows[told:] if row.done == row.jobs < search.seeds), None)
        if kept is not None:
            self._train_on(kept)
            return True
        if len(rows) < search.trials and len(rows) - told < search.in_flight:
            self._propose(rows, told)
            return True
        if told == search.trials:
            self._optuna.close(_known(rows))
            studies.enter(self._connection, self._study.id, "confirm")
            return True
        if rows[told].waiting or rows[told].running:
            jobs.fail_lost(self._connection, self._study.id)
            return False
        self._tell(rows[told])
        return True

    def _propose(self, rows: list[TrialRow], told: int) -> None:
        number = len(rows)
        optuna_number, densities = self._optuna.ask(number, _known(rows))
        anchors = self._config.anchors
        anchor = (
            anchors[number]
            if number < len(anchors)
            else Anchor("candidate", f"trial {number}", densities)
        )
        self._optuna.describe(optuna_number, {"role": anchor.role, "label": anchor.label})
        measured = ledger.read(self._connection, self._study.id)
        least = bars.bars(self._config, rows[:told], measured) if number >= len(anchors) else {}
        trials.add(
            self._connection,
            self._study.id,
            number=number,
            optuna_number=optuna_number,
            role=anchor.role,
            label=anchor.label,
            densities=densities,
            seeds=self._config.seeds[:1] if least else self._config.seeds,
            budget=self._config.training.budget,
            bars=least,
            arm=Arm(lr=self._study.lr, init=self._config.init),
        )

    def _train_on(self, trial: TrialRow) -> None:
        """Queue the other seeds of a trial whose first one cleared every bar."""
        seeds, budget = self._config.seeds[trial.jobs :], self._config.training.budget
        jobs.enqueue(self._connection, self._study.id, trial.number, seeds, budget)

    def _tell(self, trial: TrialRow) -> None:
        """Tell Optuna how a trial ended of whose jobs none is waiting or running."""
        assert trial.optuna_number is not None  # as all trials of a search
        if trial.error is not None:
            self._optuna.describe(trial.optuna_number, {"reason": trial.failure})
            self._optuna.tell(trial.optuna_number, "failed", {})
            trials.finish(self._connection, self._study.id, trial.number, "failed", trial.error)
            return
        rows = ledger.read(self._connection, self._study.id)
        by_rung = differences.differences(rows, trial.number)
        last = max(by_rung)
        own = [row for row in rows if row.trial == trial.number and row.rung == last]
        self._optuna.describe(
            trial.optuna_number,
            {
                "values by seed": {str(row.seed): row.value for row in own},
                "mean": statistics.fmean(row.value for row in own),
            },
        )
        outcome: Outcome = "pruned" if trial.cut else "complete"
        reason = f"below its bar after {last} epochs" if trial.cut else None
        self._optuna.tell(trial.optuna_number, outcome, by_rung)
        trials.finish(self._connection, self._study.id, trial.number, outcome, reason)
        if trial.role == "identity":
            self._check_baseline(own)

    def _check_baseline(self, identity: list[LedgerRow]) -> None:
        """Stop the study if identity is no healthy baseline, unless its user wants it so."""
        score = statistics.fmean(row.value for row in identity)
        floors = baseline.floors(self._study, self._config)
        failure = baseline.failure(self._config, floors, score)
        if failure is not None and not self._study.forced:
            studies.halt(self._connection, self._study.id, failure)


def _known(rows: list[TrialRow]) -> set[int]:
    """Return the Optuna numbers that belong to trials of ours."""
    return {row.optuna_number for row in rows if row.optuna_number is not None}


def _no_baseline(reason: str | None) -> str:
    return f"identity could not be trained, so nothing can be compared: {reason}"
