"""The proposer: a role that any process may take for a moment, never a machine.

It keeps the job queue filled and brings Optuna's tables in step with the ledger. Each step happens
under a PostgreSQL advisory lock and does one thing: propose the next trial, or tell the oldest
open one. Steps are strictly ordered (trial n is proposed when exactly the first n - in_flight + 1
are told), so what is proposed does not depend on how many workers there are or who dies when.
"""

from sqlalchemy import Connection, Engine

from optimizer import results
from optimizer.config import StudyConfig
from optimizer.design import Anchor
from optimizer.study import DensityStudy
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
            if len(rows) < search.trials and len(rows) - told < search.in_flight:
                self._propose(connection, rows)
                return True
            if told == search.trials:
                studies.set_state(self._engine, self._study_id, "finished")
                return False
            if rows[told].waiting or rows[told].running:
                jobs.fail_lost(connection, self._study_id)
                return False
            self._tell(connection, rows[told])
            return True

    def _propose(self, connection: Connection, rows: list[TrialRow]) -> None:
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
        trials.add(
            connection,
            self._study_id,
            number=number,
            optuna_number=optuna_number,
            role=anchor.role,
            label=anchor.label,
            densities=densities,
            seeds=self._config.seeds,
            budget=self._config.training.budget,
        )

    def _tell(self, connection: Connection, trial: TrialRow) -> None:
        """Tell Optuna how a trial ended whose jobs are all done or failed."""
        if trial.error is not None:
            self._study.describe(trial.optuna_number, {"reason": trial.error})
            self._study.tell(trial.optuna_number, None, {})
            trials.finish(connection, self._study_id, trial.number, "failed", trial.error)
            if trial.role == "identity":
                studies.set_state(
                    self._engine,
                    self._study_id,
                    "stopped",
                    f"identity could not be trained, so nothing can be compared: {trial.error}",
                )
            return
        rows = ledger.read(connection, self._study_id)
        own = [row for row in rows if row.trial == trial.number]
        final = results.final_values(rows)
        values, baseline = final[trial.number], final[0]
        self._study.describe(
            trial.optuna_number,
            {
                "values by seed": {str(seed): value for seed, value in sorted(values.items())},
                "difference to identity": results.paired(values, baseline).mean,
            },
        )
        means = results.intermediate_means(own)
        self._study.tell(trial.optuna_number, means[self._config.training.budget], means)
        trials.finish(connection, self._study_id, trial.number, "complete")
