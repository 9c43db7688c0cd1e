"""The proposer: a role that any process may take for a moment, never a machine.

It keeps the job queue filled and brings Optuna's tables in step with the ledger. Each step happens
under a PostgreSQL advisory lock and does one thing: propose the next trial, queue the other seeds
of one whose first seed was not cut, or tell the oldest open one. Trials are proposed and told
strictly in order (trial n is proposed when exactly the first n - in_flight + 1 are told), so what
is proposed and cut does not depend on how many workers there are or who dies when.
"""

import statistics

from sqlalchemy import Connection, Engine

from optimizer import results, rungs
from optimizer.config import StudyConfig
from optimizer.design import Anchor
from optimizer.study import DensityStudy, Outcome
from storage import database, jobs, ledger, studies, trials
from storage.trials import TrialRow


class Proposer:
    """What a process needs to take the role for one study."""

    def __init__(self, engine: Engine, study_id: int, config: StudyConfig) -> None:
        self._engine, self._study_id, self._config = engine, study_id, config
        self._study = DensityStudy(engine, config)

    def advance(self) -> None:
        """Take every step that is possible now; none if another process holds the role."""
        while self._step():
            pass

    def _step(self) -> bool:
        with database.proposer_lock(self._engine, self._study_id) as connection:
            if connection is None or studies.state(self._engine, self._study_id) != "running":
                return False
            rows = trials.all_of(connection, self._study_id)
            told = next((row.number for row in rows if row.state == "running"), len(rows))
            search = self._config.search
            kept = next((row for row in rows[told:] if row.done == row.jobs < search.seeds), None)
            if kept is not None:
                self._train_on(connection, kept)
                return True
            if len(rows) < search.trials and len(rows) - told < search.in_flight:
                self._propose(connection, rows, told)
                return True
            if told == search.trials:
                studies.set_state(self._engine, self._study_id, "finished")
                return False
            if rows[told].waiting or rows[told].running:
                jobs.fail_lost(connection, self._study_id)
                return False
            self._tell(connection, rows[told])
            return True

    def _propose(self, connection: Connection, rows: list[TrialRow], told: int) -> None:
        number = len(rows)
        known = {row.optuna_number for row in rows}
        optuna_number, densities = self._study.ask(number, known)
        anchors = self._config.anchors
        anchor = (
            anchors[number]
            if number < len(anchors)
            else Anchor("candidate", f"trial {number}", densities)
        )
        self._study.describe(optuna_number, {"role": anchor.role, "label": anchor.label})
        measured = ledger.read(connection, self._study_id)
        bars = rungs.bars(self._config, rows[:told], measured) if number >= len(anchors) else {}
        trials.add(
            connection,
            self._study_id,
            number=number,
            optuna_number=optuna_number,
            role=anchor.role,
            label=anchor.label,
            densities=densities,
            seeds=self._config.seeds[:1] if bars else self._config.seeds,
            budget=self._config.training.budget,
            bars=bars,
        )

    def _train_on(self, connection: Connection, trial: TrialRow) -> None:
        """Queue the other seeds of a trial whose first one cleared every bar."""
        seeds, budget = self._config.seeds[trial.jobs :], self._config.training.budget
        jobs.enqueue(connection, self._study_id, trial.number, seeds, budget)

    def _tell(self, connection: Connection, trial: TrialRow) -> None:
        """Tell Optuna how a trial ended of whose jobs none is waiting or running."""
        if trial.error is not None:
            self._fail(connection, trial, trial.error)
            return
        rows = ledger.read(connection, self._study_id)
        differences = results.differences(rows, trial.number)
        last = max(differences)
        own = [row for row in rows if row.trial == trial.number and row.rung == last]
        self._study.describe(
            trial.optuna_number,
            {
                "values by seed": {str(row.seed): row.value for row in own},
                "mean": statistics.fmean(row.value for row in own),
            },
        )
        outcome: Outcome = "pruned" if trial.cut else "complete"
        reason = f"below its bar after {last} epochs" if trial.cut else None
        self._study.tell(trial.optuna_number, outcome, differences)
        trials.finish(connection, self._study_id, trial.number, outcome, reason)

    def _fail(self, connection: Connection, trial: TrialRow, error: str) -> None:
        self._study.describe(trial.optuna_number, {"reason": error})
        self._study.tell(trial.optuna_number, "failed", {})
        trials.finish(connection, self._study_id, trial.number, "failed", error)
        if trial.role == "identity":
            studies.set_state(
                self._engine,
                self._study_id,
                "stopped",
                f"identity could not be trained, so nothing can be compared: {error}",
            )
