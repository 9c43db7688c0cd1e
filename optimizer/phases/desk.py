"""The desk: what a phase has in hand for one step, and what all phases do alike.

A step is one transaction that looks at what is stored and at nothing else. Trials are queued and
closed in the phase that the study is at; those of any phase may be read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sqlalchemy import Connection

from optimizer.arms import Arm
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from optimizer.evidence import baseline
from storage import jobs, ledger, studies, trials
from storage.ledger import LedgerRow
from storage.states import Phase, Role, TrialState
from storage.studies import Study
from storage.trials import TrialRow


@dataclass(frozen=True)
class Desk:
    """One study at one moment: as the transaction of a step sees it, with its config."""

    connection: Connection
    study: Study
    config: StudyConfig

    def trials(self, phase: Phase) -> list[TrialRow]:
        """Return the trials of a phase by number."""
        return trials.all_of(self.connection, self.study.id, phase)

    def measured(self, phase: Phase) -> list[LedgerRow]:
        """Return the measurements of a phase by trial, seed, budget and rung.

        StudyFailedError if some with which jobs have ended are gone.
        """
        if lacking := ledger.lacking(self.connection, self.study.id, phase):
            raise StudyFailedError(
                f"study {self.study.name} cannot go on: jobs that have ended and whose "
                f"measurements have been deleted: {lacking}; restore the database from a backup, "
                f"or begin anew: densitune delete {self.study.name}"
            )
        return ledger.read(self.connection, self.study.id, phase)

    def unsealed(self, trials: Iterable[int], phase: Phase) -> list[LedgerRow]:
        """Return what the test split said of trials of a phase; nothing before a verdict."""
        return ledger.unsealed(self.connection, self.study.id, [*trials], phase)

    def scored(self, trials: Iterable[int]) -> list[LedgerRow]:
        """Return the last measurements of trials of a confirmation, with the scores of images."""
        return ledger.with_images(self.connection, self.study.id, [*trials])

    def add(
        self,
        number: int,
        role: Role,
        label: str,
        arm: Arm,
        *,
        seeds: Sequence[int],
        budget: int,
        bars: Mapping[int, float] = MappingProxyType({}),
        optuna_number: int | None = None,
        origin: int | None = None,
    ) -> None:
        """Add a trial of this arm, and queue a job of `budget` epochs for each seed."""
        trials.add(
            self.connection,
            self.study.id,
            self.study.phase,
            number=number,
            role=role,
            label=label,
            densities=arm.densities,
            seeds=seeds,
            budget=budget,
            bars=bars,
            arm=arm.stored(),
            optuna_number=optuna_number,
            origin=origin,
        )

    def train_on(self, trial: TrialRow, seeds: Sequence[int], budget: int) -> None:
        """Queue further seeds of a trial."""
        jobs.enqueue(self.connection, self.study.id, self.study.phase, trial.number, seeds, budget)

    def waits_for(self, awaited: Iterable[TrialRow]) -> bool:
        """Tell whether results of these trials are still to come; give up jobs lost too often."""
        if not any(trial.is_open for trial in awaited):
            return False
        jobs.fail_lost(self.connection, self.study.id)
        return True

    def close(self, trial: TrialRow) -> None:
        """Note that a trial of which nothing more is to come is complete, or failed and why."""
        if trial.failed:
            self.finish(trial, "failed", trial.error_text)
        else:
            self.finish(trial, "complete")

    def finish(self, trial: TrialRow, state: TrialState, reason: str | None = None) -> None:
        """Set what became of a trial, and why."""
        trials.finish(self.connection, self.study.id, self.study.phase, trial.number, state, reason)

    def halt(self, failure: str) -> None:
        """Stop the study, which cannot go on, and say why."""
        studies.halt(self.connection, self.study.id, failure)

    def enter(self, phase: Phase) -> None:
        """Begin the next phase."""
        studies.enter(self.connection, self.study.id, phase)

    def check_baseline(self, identity: float) -> None:
        """Stop the study if identity's score is no healthy baseline, unless it is forced."""
        failure = baseline.failure(self.study, self.config, identity)
        if failure is not None and not self.study.forced:
            self.halt(failure)
