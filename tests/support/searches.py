"""Searches without a confirmation, measured at rungs by arithmetic."""

from sqlalchemy import Engine

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.phases.proposer import Proposer
from storage import jobs, ledger, roster, studies, trials
from storage.jobs import ClaimedJob
from storage.ledger import Entry, LedgerRow
from storage.trials import TrialRow


def make_config(
    name: str, trial_count: int = 12, in_flight: int = 4, keep: float = 0.5
) -> StudyConfig:
    return study_file.parse(
        {
            "name": name,
            "task": "photos",
            "proxy": {"family": "dncnn", "width": 4, "depth": 4},
            "kernel_size": 3,
            "training": {"budget": 4},
            "search": {
                "trials": trial_count,
                "seeds": 2,
                "rungs": [1, 2],
                "keep": keep,
                "in_flight": in_flight,
                "sampler": "tpe",
            },
        },
        origin="test",
    )


def create(engine: Engine, given: StudyConfig) -> int:
    """A study that ends with its search."""
    study_id = studies.create(engine, given.name, given.document(), "fingerprint", {}, "search")[
        0
    ].id
    studies.go_on(engine, study_id, "search", force=False)
    return study_id


def value(job: ClaimedJob, rung: int) -> float:
    return 30.0 - (job.densities[3][0] - 0.6) ** 2 + 0.1 * job.seed + 0.01 * rung


def finish(engine: Engine, worker: int, job: ClaimedJob) -> None:
    """Do what a worker does: measure at rungs, up to the first value below its bar."""
    found = []
    for rung in (1, 2, 4):
        at_rung = value(job, rung)
        found.append(Entry(job_id=job.id, rung=rung, value=at_rung, extra={}, seconds=rung))
        if at_rung < job.bars.get(rung, at_rung):
            ledger.record(engine, worker, found, finished=[], cut=[job.id])
            return
    ledger.record(engine, worker, found, finished=[job.id])


def run(engine: Engine, given: StudyConfig) -> int:
    """Run a study's search to its end with one worker; return its id."""
    study_id = create(engine, given)
    proposer, worker = Proposer(engine, study_id, given), enlist(engine, study_id)
    while studies.state(engine, study_id) == "running":
        proposer.advance()
        for job in jobs.claim(engine, study_id, worker, 8, 60):
            finish(engine, worker, job)
    return study_id


def enlist(engine: Engine, study_id: int) -> int:
    return roster.register(engine, study_id, "host", 1, "CPU", {})


def contents(engine: Engine, study_id: int) -> tuple[list[TrialRow], list[LedgerRow]]:
    with engine.connect() as connection:
        return trials.all_of(connection, study_id, "search"), ledger.read(
            connection, study_id, "search"
        )
