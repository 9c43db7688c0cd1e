"""Studies that are trained by arithmetic: what a worker would measure is a formula."""

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import Engine

from optimizer import snapshot
from optimizer.arms import Arm, SearchedBy
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import ranking
from optimizer.phases.proposer import Proposer
from optimizer.snapshot import Snapshot
from storage import image_scores, jobs, ledger, roster, studies
from storage.jobs import ClaimedJob
from storage.ledger import Entry
from storage.states import Phase
from support.synthetic import configured

Measure = Callable[[ClaimedJob], float | tuple[float, dict[str, Any]]]
"""A job's metric after its budget, or with what is told beside it. ArithmeticError is training that
diverges, OSError data that cannot be read."""
FLOOR = 0.0
"""What training that diverges scores."""
TESTED = {"task": "folder", "data": {"folder": "photographs", "test": "others"}}
"""What makes a study one with a test split."""


def small(**changes: Any) -> StudyConfig:
    """A study of one value with seven trials and a small confirmation."""
    sections: dict[str, Any] = {
        "kernel_size": 3,
        "training": {"budget": 2},
        "search": {"trials": 7, "seeds": 2, "rungs": [], "in_flight": 4, "sampler": "qmc"},
        "confirm": {"finalists": 2, "seeds": 24, "batch": 8, "rates": "never"},
    }
    for key, value in changes.items():
        merge = isinstance(value, dict) and key in sections
        sections[key] = {**sections[key], **value} if merge else value
    return configured(**sections)


def create(
    engine: Engine,
    given: StudyConfig,
    floor: float = FLOOR,
    *,
    normalised: bool = False,
    searched_by: SearchedBy = "metric",
) -> int:
    """Store a study as `launch` would, with one floor."""
    first: Phase = "calibrate" if given.training.lr == "auto" else "search"
    provenance = {
        "source": "none",
        "floors": {"noisy input": floor},
        "uniform_is_identity": normalised,
        ranking.KEPT: searched_by,
        "versions": {},
    }
    study, _ = studies.create(engine, given.name, given.document(), "print", provenance, first)
    return study.id


def run(
    engine: Engine,
    given: StudyConfig,
    measure: Measure,
    *,
    floor: float = FLOOR,
    normalised: bool = False,
    workers: int | None = None,
) -> Snapshot:
    """Create a study and train it to its end."""
    study_id = create(engine, given, floor, normalised=normalised)
    return go_on(engine, study_id, given, measure, workers=workers)


def go_on(
    engine: Engine,
    study_id: int,
    given: StudyConfig,
    measure: Measure,
    *,
    workers: int | None = None,
) -> Snapshot:
    """Train what is left of a study until it is finished or stopped.

    All jobs of the queue are trained in order; with a number of workers, each holds one job at a
    time, and which of them is done first is drawn by lot.
    """
    proposer = Proposer(engine, study_id, given)
    worker = roster.register(engine, study_id, "host", 1, "CPU", {})
    lot, held = random.Random(workers), list[ClaimedJob]()
    while studies.state(engine, study_id) == "running":
        proposer.advance()
        held += jobs.claim(engine, study_id, worker, (workers or 1000) - len(held), 60)
        for _ in range(min(1 if workers else 1000, len(held))):
            train(engine, worker, held.pop(lot.randrange(len(held)) if workers else 0), measure)
    return snapshot.of(engine, given.name)


def train(engine: Engine, worker: int, job: ClaimedJob, measure: Measure) -> None:
    """Do what a worker does with a job, but measure at its end only.

    On both splits, `measure` is asked twice; OSError of the second leaves it out.
    """
    arm = Arm.of(job.densities, job.arm)  # an earlier version stored less of it
    first = replace(arm, split="validation") if arm.split == "both" else arm
    try:
        value, extra = _measured(job, first, measure)
    except ArithmeticError as error:
        jobs.fail(engine, job.claim, f"diverged: {error}", "diverged")
        return
    except OSError as error:
        jobs.fail(engine, job.claim, str(error), "data")
        return
    if arm.split == "both":
        with contextlib.suppress(OSError):
            tested, beside = _measured(job, replace(arm, split="test"), measure)
            extra["sealed"] = {"value": tested, **beside}
    found = Entry(job_id=job.id, rung=job.budget, value=value, extra=extra, seconds=1.0)
    ledger.record(engine, worker, [found], finished=[job.id])


def _measured(job: ClaimedJob, arm: Arm, measure: Measure) -> tuple[float, dict[str, Any]]:
    """Return the metric of one split and what is told beside it; of four images, if asked."""
    try:
        measured = measure(replace(job, arm=arm.stored()))
    except ArithmeticError:
        if not arm.floored:
            raise
        measured = FLOOR, {"diverged": True}
    value, extra = measured if isinstance(measured, tuple) else (measured, {})
    if arm.split == "test":
        extra = {"test": "print", **extra}
    if arm.per_image:
        packed = image_scores.packed([value + offset for offset in (-3.0, -1.0, 1.0, 3.0)])
        extra = {"images": packed, **extra}
    return value, {**extra}


def noise(job: ClaimedJob, spread: float) -> float:
    """What differs between seeds, the same for all arms, and a smaller part that is an arm's own.

    The spread of a paired difference is `spread`.
    """
    name = [*np.array(sum(job.densities.values(), ())).tobytes(), *job.arm["init"].encode()]
    name += job.arm["mask"].encode()
    name += np.array([*job.arm["gain"].values(), 0.0]).tobytes()
    shared = np.random.default_rng(job.seed).standard_normal()
    own = np.random.default_rng([job.seed, *name]).standard_normal()
    return float(3 * shared + spread * own / np.sqrt(2))
