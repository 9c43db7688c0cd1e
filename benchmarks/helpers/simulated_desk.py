"""A study's search without a database: its trials in memory, its jobs read off a surface.

The steps are those of optimizer.phases.search, and the proposals those of Optuna's study behind it,
here in Optuna's own memory. What is simulated is the rest: the queue, and workers that take as long
for a job as its recording took.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from optuna.storages import InMemoryStorage
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import KDTree
from sqlalchemy import Connection

from helpers.surface import HIGH, LOW, Floats, Plan, Surface
from optimizer.arms import Arm
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences, surrogate
from optimizer.evidence.differences import TrialResult
from optimizer.phases import optuna_study, search
from optimizer.phases.desk import Desk
from storage.ledger import LedgerRow
from storage.states import Phase, Role, TrialState
from storage.studies import Study
from storage.trials import TrialRow

NODES = {1: 513, 2: 65, 3: 21}
"""By dimensions: points along each side of the box at which the truth is computed. Between them it
is interpolated linearly, to be looked up quickly."""


def study(plan: Plan, **search: Any) -> StudyConfig:
    """Return a study of a surface's kernel size, box and budget."""
    return study_file.parse(
        {
            "name": plan.name,
            "task": "photos",
            "proxy": {"family": "nafnet", "width": 1, "depth": 1},
            "kernel_size": plan.kernel_size,
            "density": {"low": LOW, "high": HIGH},
            "training": {"budget": plan.rungs[-1]},
            "search": {"trials": 1000, **search},
        },
        origin="replay",
    )


class World:
    """A surface between the densities that were trained, too.

    The truth at a rung is what a Gaussian process (optimizer.evidence.surrogate) expects there from
    all seeds: the mean over them has luck of its own, and the best of many means is a lucky one. A
    job's value is the truth plus what the nearest density that was trained was above its own truth
    with this seed. So a density that was trained repeats its record, and there is as much noise
    between densities as at them. Outside of the box all is as at its nearest point.
    """

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        self._tree = KDTree(surface.densities)
        self._seconds = np.nanmedian(surface.seconds, axis=(0, 1))
        axes = [np.linspace(0, 1, NODES[surface.plan.dimensions])] * surface.plan.dimensions
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        flat = nodes.reshape(-1, surface.plan.dimensions)
        truths = [expected(surface, rung, flat) for rung in range(len(surface.plan.rungs))]
        self._truth = RegularGridInterpolator(
            axes, np.stack(truths, axis=-1).reshape(*nodes.shape[:-1], -1)
        )
        self._deviation = surface.values - self._at(surface.densities)[:, None]
        identity = self._at(np.ones((1, surface.plan.dimensions)))[0, -1]
        self._identity = float(identity)
        self.best = float(truths[-1].max() - identity)
        """The largest true difference to identity."""

    def _at(self, densities: Floats) -> Floats:
        found: Floats = self._truth((np.clip(densities, LOW, HIGH) - LOW) / (HIGH - LOW))
        return found

    def run(self, den: Sequence[float], seed: int) -> tuple[Floats, Floats]:
        """Return value and seconds at every rung of one job; values are NaN once it diverged.

        The seconds are the median over the recording, which others had a part in slowing down.
        """
        nearest = int(self._tree.query(np.clip(den, LOW, HIGH))[1])
        return self._at(np.array([den]))[0] + self._deviation[nearest, seed], self._seconds

    def effect(self, den: Sequence[float]) -> float:
        """Return a density's true difference to identity after the budget."""
        return float(self._at(np.array([den]))[0, -1]) - self._identity

    @property
    def spread(self) -> float:
        """Return the SD over the seeds of the best trained density's difference to identity."""
        ends = self.surface.values[:, :, -1]
        best = int(np.argmax(self._at(self.surface.densities)[:, -1]))
        return float(np.nanstd(ends[best] - ends[0], ddof=1))


def expected(surface: Surface, rung: int, places: Floats) -> Floats:
    """Return what is expected of a surface at places of the unit cube, (places,).

    Differences to identity, and identity's mean added to them. ValueError if all have diverged.
    """
    config, k = study(surface.plan), surface.plan.kernel_size
    values = surface.values[:, :, rung]
    trials = []
    for number, (den, row) in enumerate(zip(surface.densities.tolist(), values, strict=True)):
        known = np.flatnonzero(~np.isnan(row) & ~np.isnan(values[0])).tolist()
        if known:
            both = {seed: dict(enumerate(of.tolist())) for seed, of in enumerate((row, values[0]))}
            own, plain = ({seed: each[seed] for seed in known} for each in both.values())
            role = "candidate" if number else "identity"
            paired = differences.paired(own, plain)
            trials.append(TrialResult(number, None, role, "", {k: tuple(den)}, own, paired))
    mean, _ = surrogate.posterior(surrogate.Table.of(trials, config), places)
    return mean + float(np.nanmean(values[0]))


@dataclass
class _Job:
    trial: int
    seed: int
    bars: Mapping[int, float]
    state: str = "waiting"


@dataclass
class _Trial:
    number: int
    role: Role
    label: str
    arm: Arm
    optuna_number: int | None
    jobs: list[_Job]
    state: TrialState = "running"
    rows: list[LedgerRow] = field(default_factory=list)

    def row(self) -> TrialRow:
        states = [job.state for job in self.jobs]
        return TrialRow(
            number=self.number,
            optuna_number=self.optuna_number,
            origin=None,
            role=self.role,
            label=self.label,
            densities=dict(self.arm.densities),
            arm={},
            state=self.state,
            reason=None,
            jobs=len(states),
            waiting=states.count("waiting"),
            running=states.count("running"),
            done=states.count("done"),
            cut=states.count("cut"),
            failed=states.count("failed"),
            error_text="loss nan" if "failed" in states else None,
            kind="diverged" if "failed" in states else None,
        )


@dataclass(frozen=True)
class SimulatedDesk(Desk):
    """A desk whose study lives in memory, as long as this object does."""

    world: World
    recorded: Mapping[int, int]
    """By seed of the study: the seed of the surface that stands for it."""
    kept: list[_Trial] = field(default_factory=list)
    waiting: list[_Job] = field(default_factory=list)
    left_for: list[str] = field(default_factory=list)
    """The phase after the search, or why it could not go on; empty while it runs."""

    @classmethod
    def of(cls, world: World, config: StudyConfig, recorded: Mapping[int, int]) -> "SimulatedDesk":
        """Return the desk of a study that is about to search."""
        study = Study(
            id=1,
            name=config.name,
            config={},
            data_fingerprint="",
            provenance={},
            state="running",
            failure=None,
            created_at=datetime.now(UTC),
            finished_at=None,
            phase="search",
            until=None,
            forced=True,  # whether a surface's identity is healthy is not this study's to say
            lr=1.0,
            verdicts=None,
        )
        return cls(cast(Connection, None), study, config, world, recorded)

    def trials(self, phase: Phase) -> list[TrialRow]:
        """Return the trials by number."""
        return [trial.row() for trial in self.kept]

    def measured(self, phase: Phase) -> list[LedgerRow]:
        """Return the measurements so far."""
        return [row for trial in self.kept for row in trial.rows]

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
        """Add a trial and queue its jobs."""
        jobs = [_Job(number, seed, bars) for seed in seeds]
        self.kept.append(_Trial(number, role, label, arm, optuna_number, jobs))
        self.waiting.extend(jobs)

    def train_on(self, trial: TrialRow, seeds: Sequence[int], budget: int) -> None:
        """Queue further seeds of a trial."""
        jobs = [_Job(trial.number, seed, {}) for seed in seeds]
        self.kept[trial.number].jobs.extend(jobs)
        self.waiting.extend(jobs)

    def waits_for(self, awaited: Iterable[TrialRow]) -> bool:
        """Tell whether results of these trials are still to come."""
        return any(trial.is_open for trial in awaited)

    def finish(self, trial: TrialRow, state: TrialState, reason: str | None = None) -> None:
        """Set what became of a trial."""
        self.kept[trial.number].state = state

    def halt(self, failure: str) -> None:
        """End the search."""
        self.left_for.append(failure)

    def enter(self, phase: Phase) -> None:
        """End the search."""
        self.left_for.append(phase)

    def train(self, job: _Job) -> "_Run":
        """Return what a job will have measured, how it ends and how long it takes."""
        job.state = "running"
        (den,) = self.kept[job.trial].arm.densities.values()
        values, seconds = self.world.run(den, self.recorded[job.seed])
        rows: list[LedgerRow] = []
        for rung, value, spent in zip(self.world.surface.plan.rungs, values, seconds, strict=True):
            if np.isnan(value):
                return _Run(rows, "failed", float(spent))
            if rung not in self.config.rungs:
                continue
            rows.append(
                LedgerRow(
                    trial=job.trial,
                    seed=job.seed,
                    budget=self.config.training.budget,
                    rung=rung,
                    value=float(value),
                    extra={},
                    seconds=float(spent),
                )
            )
            if value < job.bars.get(rung, -np.inf):
                return _Run(rows, "cut", float(spent))
        return _Run(rows, "done", float(spent))

    def deliver(self, job: _Job, run: "_Run") -> None:
        """Take in a job's measurements and its end."""
        job.state = run.ending
        self.kept[job.trial].rows.extend(run.rows)


@dataclass(frozen=True)
class _Run:
    rows: list[LedgerRow]
    ending: str
    seconds: float


@dataclass(frozen=True)
class Moment:
    """When a job had ended and all steps that were due then were taken."""

    clock: float
    """Simulated seconds since the search began."""
    spent: float
    """Device-seconds of all jobs that have ended."""
    jobs: int


def searched(desk: SimulatedDesk, workers: int) -> Iterator[Moment]:
    """Run a search with so many simulated workers; yield after every job.

    A worker that is free takes the oldest waiting job. A job's measurements are there when it ends:
    no step looks at those of a job in training.
    """
    study = optuna_study.create(InMemoryStorage(), desk.config, 1)
    training: list[tuple[float, int, _Job, _Run]] = []
    clock, spent = 0.0, 0.0
    begun, ended = itertools.count(), 0
    while True:
        while not desk.left_for and search.step(desk, study):
            pass
        while desk.waiting and len(training) < workers:
            job = desk.waiting.pop(0)
            run = desk.train(job)
            heapq.heappush(training, (clock + run.seconds, next(begun), job, run))
        if desk.left_for or not training:
            return
        clock, _, job, run = heapq.heappop(training)
        desk.deliver(job, run)
        spent, ended = spent + run.seconds, ended + 1
        yield Moment(clock, spent, ended)
