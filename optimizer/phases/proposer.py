"""The proposer: a role that any process may take for a moment, never a machine.

It keeps the job queue filled and brings Optuna's tables in step with the ledger. Each step happens
in one transaction under a PostgreSQL advisory lock and belongs to the phase that the study is at;
what it does depends on what is stored and on nothing else.
"""

from sqlalchemy import Engine

from optimizer.config.study_file import StudyConfig
from optimizer.phases import calibration, confirmation, holdout, search
from optimizer.phases.desk import Desk
from optimizer.phases.optuna_study import DensityStudy
from storage import database, studies


class Proposer:
    """What a process needs to take the role for one study."""

    def __init__(self, engine: Engine, study_id: int, config: StudyConfig) -> None:
        self._engine, self._study_id, self._config = engine, study_id, config
        self._optuna = DensityStudy(engine, config)

    def advance(self) -> None:
        """Take every step that is possible now; none if another process holds the role."""
        while self._step():
            pass

    def _step(self) -> bool:
        with database.proposer_lock(self._engine, self._study_id) as connection:
            study = None if connection is None else studies.read(connection, self._study_id)
            if connection is None or study is None or study.state != "running":
                return False
            desk = Desk(connection, study, self._config)
            match study.phase:
                case "calibrate":
                    return calibration.step(desk)
                case "search":
                    return search.step(desk, self._optuna)
                case "confirm":
                    return confirmation.step(desk, self._optuna)
                case "decided":
                    return holdout.step(desk)
