"""The proposer: a role that any process may take for a moment, never a machine.

It keeps the job queue filled and brings Optuna's tables in step with the ledger. Each step happens
in one transaction under a PostgreSQL advisory lock, Optuna's part of it too, and belongs to the
phase that the study is at; what it does depends on what is stored and on nothing else.
"""

from collections.abc import Mapping

from sqlalchemy import Engine

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from optimizer.evidence import ranking
from optimizer.phases import (
    audit,
    calibration,
    checks,
    confirmation,
    holdout,
    optuna_study,
    optuna_tables,
    search,
)  # fmt: skip
from optimizer.phases.desk import Desk
from optimizer.phases.optuna_study import DensityStudy
from optimizer.phases.optuna_tables import Joined
from storage import steps, studies


class Proposer:
    """What a process needs to take the role for one study.

    `creates`: whether it may create the Optuna study behind it, as `launch` and `resume` do.
    """

    def __init__(
        self, engine: Engine, study_id: int, config: StudyConfig, *, creates: bool = True
    ) -> None:
        self._engine, self._study_id, self._config = engine, study_id, config
        self._creates = creates
        self._stored: Mapping[str, object] = config.document()
        self._tables: Joined | None = None
        self._optuna: DensityStudy | None = None

    def advance(self) -> None:
        """Take every step that is possible now; none if another process holds the role."""
        while self._step():
            pass

    def _step(self) -> bool:
        try:
            return self._taken()
        except BaseException:
            self._optuna = None  # it may remember what was rolled back
            raise

    def _taken(self) -> bool:
        if self._tables is None:
            if self._creates:
                optuna_tables.make(self._engine)
            self._tables = optuna_tables.joined(self._engine)
        with (
            studies.named(self._config.name),
            steps.begun(self._engine, self._study_id) as connection,
        ):
            study = None if connection is None else studies.read(connection, self._study_id)
            if connection is None or study is None or study.state != "running":
                return False
            if study.config != self._stored:  # what a study asks for may grow while we run
                self._config = study_file.parse(study.config, f"of study {study.name}")
                self._stored = study.config
            desk = Desk(connection, study, self._config)
            match study.phase:
                case "calibrate":
                    self._behind(desk)
                    return calibration.step(desk)
                case "search":
                    behind = self._behind(desk)
                    return behind is not None and search.step(desk, behind)
                case "confirm":
                    return confirmation.step(desk, self._found(desk))
                case "check":
                    return checks.step(desk, self._found(desk))
                case "audit":
                    return audit.step(desk)
                case "decided":
                    return holdout.step(desk)

    def _found(self, desk: Desk) -> DensityStudy | None:
        """Return the Optuna study behind this one, None if there is none."""
        if self._tables is None:
            return None
        self._tables.join(desk.connection)
        if self._optuna is None or not self._optuna.is_there():
            self._optuna = optuna_study.find(
                self._tables, self._config, self._study_id, ranking.of(desk.study)
            )
        return self._optuna

    def _behind(self, desk: Desk) -> DensityStudy | None:
        """Return the Optuna study behind this one, None if it is for others to create."""
        found = self._found(desk)
        if found is not None or self._tables is None:
            return found
        if desk.trials("search"):
            raise StudyFailedError(
                f"Optuna's study {desk.study.name} has been deleted with another tool; export "
                f"and report work without it; to search on, begin anew: densitune delete "
                f"{desk.study.name}"
            )
        if self._creates:
            self._optuna = optuna_study.create(
                self._tables, self._config, self._study_id, ranking.of(desk.study)
            )
        return self._optuna
