"""Everything there is to show of a study at one moment, read in one go."""

from dataclasses import dataclass, field
from statistics import fmean
from typing import get_args

from sqlalchemy import Engine

from optimizer.arms import Precision, SearchedBy
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from optimizer.evidence import advice, baseline, cautions, differences, ranking, verdicts
from optimizer.evidence.apart import Apart
from optimizer.evidence.audit import Audit
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import Control, FinalistVerdict, Holdout, PresetVerdict
from optimizer.phases import (
    apart,
    audit,
    calibration,
    carried_over,
    checks,
    comparisons,
    extension,
    learned,
    own_rates,
    remaining,
)  # fmt: skip
from storage import failures, ledger, roster, studies, trials
from storage.failures import FailureCount
from storage.ledger import LedgerRow
from storage.roster import WorkerRow
from storage.states import JobState, Phase
from storage.studies import Study
from storage.trials import TrialRow


@dataclass(frozen=True)
class PhaseRows:
    """What a phase has trained so far."""

    trials: list[TrialRow] = field(default_factory=list)
    rows: list[LedgerRow] = field(default_factory=list)

    @property
    def jobs(self) -> dict[str, int]:
        """Return the number of jobs queued so far and by state."""
        states = get_args(JobState)
        counted = {state: sum(getattr(one, state) for one in self.trials) for state in states}
        return {"queued": sum(trial.jobs for trial in self.trials), **counted}


@dataclass(frozen=True)
class Snapshot:
    """A study as it is now; `trials`, `rows` and `results` are the search's."""

    study: Study
    config: StudyConfig
    trials: list[TrialRow]
    rows: list[LedgerRow]
    results: list[TrialResult]
    workers: list[WorkerRow]
    jobs_per_hour: float
    calibrate: PhaseRows = field(default_factory=PhaseRows)
    confirm: PhaseRows = field(default_factory=PhaseRows)
    check: PhaseRows = field(default_factory=PhaseRows)
    audit: PhaseRows = field(default_factory=PhaseRows)
    decided: PhaseRows = field(default_factory=PhaseRows)
    failures: list[FailureCount] = field(default_factory=list)

    @property
    def phases(self) -> dict[Phase, PhaseRows]:
        """Return what each phase has trained."""
        return {
            "calibrate": self.calibrate,
            "search": PhaseRows(self.trials, self.rows),
            "confirm": self.confirm,
            "check": self.check,
            "audit": self.audit,
            "decided": self.decided,
        }

    @property
    def calibration(self) -> dict[float, float]:
        """Return identity's mean score by learning rate, of the rates that are done."""
        return calibration.scores(self.calibrate.trials, self.calibrate.rows)

    @property
    def lr(self) -> float | None:
        """Return the learning rate: calibrated or given; None if it is yet to be calibrated.

        Also None for a script that has its own, and for a study from before calibration, which took
        the family's usual rate.
        """
        lr = self.config.training.lr
        return self.study.lr if isinstance(lr, str) else lr

    @property
    def verdicts(self) -> list[FinalistVerdict]:
        """Return the verdicts on the finalists; none before the study is decided."""
        return verdicts.of_study(self.study.verdicts)

    @property
    def winner(self) -> FinalistVerdict | None:
        """Return the finalist that is exported, `better` or not; None if there is none."""
        return verdicts.best(self.verdicts)

    @property
    def verdict(self) -> PresetVerdict:
        """Return the verdict on what is exported."""
        return "unconfirmed" if self.winner is None else self.winner.verdict

    @property
    def advice(self) -> str:
        """Return what to do, by what is known so far."""
        config, decided = self.config, self.study.verdicts is not None
        if self.results and not self.healthy:
            return advice.UNHEALTHY
        known = self.own_rates, self.carried_over
        return advice.of_study(self.winner, config, self.controls, *known, decided=decided)

    @property
    def own_rates(self) -> RateCheck | None:
        """Return what the rate check says of the winner; None if there was none or it goes on."""
        winner, trained = self.winner, self.check
        if winner is None:
            return None
        return own_rates.found(self.study, self.config, winner, trained.trials, trained.rows)

    @property
    def apart(self) -> Apart | None:
        """Return what the winner's start and steps do alone; None if not asked or not known yet."""
        winner, trained, before = self.winner, self.check, self.confirm
        if winner is None:
            return None
        known = trained.trials, trained.rows
        return apart.found(self.config, winner, *known, (before.trials, before.rows))

    @property
    def carried_over(self) -> Audit | None:
        """Return what the audit says; None if there was none or it goes on."""
        if (winner := self.winner) is None:
            return None
        rows = self.audit.trials, self.audit.rows
        return carried_over.found(self.study, self.config, winner, self.results, *rows)

    @property
    def complaint(self) -> str | None:
        """Return what is wrong with identity as a baseline; None if nothing."""
        known = self.results[0].mean, self.confirmed_identity
        return baseline.complaint(self.config, self.floors, *known)

    @property
    def healthy(self) -> bool:
        """Return whether identity is a baseline that it means something to be better than."""
        return self.complaint is None

    @property
    def confirmed_identity(self) -> float | None:
        """Return identity's mean over its fresh seeds; None before the study is decided."""
        values = differences.final_values(self.confirm.rows).get(comparisons.IDENTITY)
        return None if self.study.verdicts is None or not values else fmean(values.values())

    @property
    def searched_by(self) -> SearchedBy:
        """Return what the search compares trials by."""
        return ranking.of(self.study)

    @property
    def controls(self) -> tuple[Control, ...]:
        """Return the controls that `better` asks for."""
        return comparisons.controls(self.study, self.config)

    @property
    def uniform_is_identity(self) -> bool:
        """Return whether a uniform mask trains as identity does in the study's network."""
        return comparisons.uniform_is_identity(self.study)

    @property
    def holdout(self) -> Holdout | None:
        """Return what the test split said about the winner; None if it was not read (yet)."""
        return verdicts.of_test_split(self.study.holdout)

    @property
    def learned(self) -> TrialResult | None:
        """Return what a trainable arm learned, as one more trial; None without one."""
        if not self.results:
            return None
        trained, rows = self.confirm.trials, self.confirm.rows
        return learned.result(self.config, trained, rows, self.results[0])

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of trials that are complete, running, pruned, failed, asked for."""
        states = [trial.state for trial in self.trials]
        return {
            "complete": states.count("complete"),
            "running": states.count("running"),
            "pruned": states.count("pruned"),
            "failed": states.count("failed"),
            "asked for": self.config.search.trials,
        }

    @property
    def ended(self) -> int:
        """Return the number of trials of which nothing more is to come."""
        return sum(trial.state != "running" for trial in self.trials)

    @property
    def best(self) -> TrialResult | None:
        """Return the trial with the largest difference to identity; identity itself may be it."""
        return next(iter(differences.ranked(self.results)), None)

    @property
    def floors(self) -> dict[str, float]:
        """Return the metric of what needs no deep network, by name."""
        return baseline.floors(self.study, self.config)

    @property
    def cautions(self) -> list[str]:
        """Return signs that the differences mean little."""
        before = extension.seeds_before(self.study)
        return cautions.signs(
            self.config, self.results, self.floors, self.calibration, before, self.verdicts,
            confirmed=self.confirmed_identity, wanted=self.controls, tested=self.holdout,
        )  # fmt: skip

    @property
    def live_workers(self) -> list[WorkerRow]:
        """Return the workers that were heard of lately."""
        return [worker for worker in self.workers if worker.live]

    @property
    def seconds_left(self) -> float | None:
        """Return how long the jobs that are left of the phase take at its present rate.

        At most so long: trials may yet be cut. None if unknown, and unless the study runs.
        """
        if self.study.state != "running" or not self.jobs_per_hour:
            return None
        phase = self.study.phase
        trained, winner = self.phases[phase].trials, self.winner
        left = remaining.jobs(phase, self.config, trained)
        if phase in ("check", "audit") and winner is not None:
            of = checks if phase == "check" else audit
            left = of.left(self.study, self.config, winner, trained)
        return 3600 * left / self.jobs_per_hour


def find(engine: Engine, name: str) -> tuple[Study, StudyConfig]:
    """Return a study and its configuration; UsageError if there is none of this name."""
    study = stored(engine, name)
    return study, study_file.parse(study.config, origin=f"of study {name}")


def stored(engine: Engine, name: str) -> Study:
    """Return a study, whatever its configuration; UsageError if there is none of this name."""
    study = studies.find(engine, name)
    if study is None:
        names = ", ".join(other.name for other in studies.overview(engine)) or "none"
        raise UsageError(f"there is no study {name} here; there are: {names}")
    return study


def precision(study: Study) -> Precision:
    """Return the arithmetic of a study; before there was a choice it was `full`."""
    kept: Precision = study.provenance.get("precision", "full")
    return kept


def of(engine: Engine, name: str) -> Snapshot:
    """Read a snapshot of the study of this name; UsageError if there is none."""
    return take(engine, *find(engine, name))


def take(engine: Engine, study: Study, config: StudyConfig) -> Snapshot:
    """Read a snapshot of a study; UnreadableError if it holds what Python cannot."""
    with studies.named(study.name), engine.connect() as connection:
        verdicts.of_study(study.verdicts)  # if they cannot be read, that is said with the name
        verdicts.of_test_split(study.holdout)
        phases = {
            name: PhaseRows(
                trials.all_of(connection, study.id, name), ledger.read(connection, study.id, name)
            )
            for name in get_args(Phase)
        }
        searched = phases.pop("search")
        return Snapshot(
            study=study,
            config=config,
            trials=searched.trials,
            rows=searched.rows,
            results=differences.results(searched.trials, searched.rows, ranking.of(study)),
            workers=roster.read(connection, study.id),
            jobs_per_hour=ledger.jobs_per_hour(connection, study.id, study.phase),
            failures=failures.counts(connection, study.id),
            **phases,
        )
