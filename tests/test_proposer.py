"""The proposer: an exact budget, in order, whoever takes the role and however jobs come back."""

import random
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Engine

from optimizer import config, study
from optimizer.config import StudyConfig
from optimizer.proposer import Proposer
from storage import jobs, ledger, roster, studies, trials
from storage.jobs import ClaimedJob
from storage.ledger import LedgerRow, Measurement
from storage.trials import TrialRow


def make_config(name: str, trial_count: int = 12, in_flight: int = 4) -> StudyConfig:
    return config.parse(
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
                "in_flight": in_flight,
                "sampler": "tpe",
            },
        },
        origin="test",
    )


def create(engine: Engine, given: StudyConfig) -> int:
    return studies.create(engine, given.name, given.document(), "fingerprint", {})[0].id


def value(job: ClaimedJob, rung: int) -> float:
    return 30.0 - (job.densities[3][0] - 0.6) ** 2 + 0.1 * job.seed + 0.01 * rung


def finish(engine: Engine, worker: int, job: ClaimedJob) -> None:
    found = [
        Measurement(job_id=job.id, rung=rung, value=value(job, rung), extra={}, seconds=rung)
        for rung in (1, 2, 4)
    ]
    ledger.record(engine, worker, found, finished=[job.id])


def enlist(engine: Engine, study_id: int) -> int:
    return roster.register(engine, study_id, "host", 1, "CPU", {})


def contents(engine: Engine, study_id: int) -> tuple[list[TrialRow], list[LedgerRow]]:
    with engine.connect() as connection:
        return trials.all_of(connection, study_id), ledger.read(connection, study_id)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_proposed_does_not_depend_on_who_finishes_first(
    database: Engine, workers: int
) -> None:
    """Jobs come back in the queue's order in one study and shuffled in the other."""
    found = []
    for name in ("ordered", "shuffled"):
        given = make_config(name)
        study_id = create(database, given)
        proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
        shuffle = random.Random(workers)
        held: list[ClaimedJob] = []
        while studies.state(database, study_id) == "running":
            proposer.advance()
            held += jobs.claim(database, study_id, worker, workers, 60)
            if held:
                finish(
                    database,
                    worker,
                    held.pop(shuffle.randrange(len(held)) if name == "shuffled" else 0),
                )
        found.append(contents(database, study_id))
    (first_trials, first_rows), (second_trials, second_rows) = found
    assert [t.densities for t in first_trials] == [t.densities for t in second_trials]
    assert first_rows == second_rows


def test_exactly_the_trials_asked_for_are_finished_and_never_too_many_open(
    database: Engine,
) -> None:
    given = make_config("exact", trial_count=9, in_flight=3)
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    while studies.state(database, study_id) == "running":
        proposer.advance()
        now, _ = contents(database, study_id)
        assert sum(trial.state == "running" for trial in now) <= 3
        for job in jobs.claim(database, study_id, worker, 1, 60):
            finish(database, worker, job)
    proposer.advance()
    done, rows = contents(database, study_id)
    assert [trial.state for trial in done] == ["complete"] * 9
    assert len(rows) == 9 * 2 * 3
    assert studies.find(database, "exact").finished_at is not None  # type: ignore[union-attr]


def test_optuna_holds_the_means_of_the_ledger(database: Engine) -> None:
    given = make_config("projection", trial_count=6)
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    while studies.state(database, study_id) == "running":
        proposer.advance()
        for job in jobs.claim(database, study_id, worker, 8, 60):
            finish(database, worker, job)
    plain = optuna.load_study(study_name="projection", storage=study.optuna_storage(database))
    _, rows = contents(database, study_id)
    for trial in plain.trials:
        own = [row for row in rows if row.trial == trial.number]
        for rung in (1, 2, 4):
            mean = sum(row.value for row in own if row.rung == rung) / 2
            assert trial.intermediate_values[rung] == pytest.approx(mean, abs=1e-12)
        assert trial.value == trial.intermediate_values[4]
        assert trial.user_attrs["values by seed"].keys() == {"0", "1"}
    assert plain.trials[0].user_attrs["role"] == "identity"
    assert plain.trials[0].user_attrs["difference to identity"] == 0.0


def test_a_failed_job_fails_its_trial_and_nothing_else(database: Engine) -> None:
    given = make_config("failing", trial_count=7)
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    while studies.state(database, study_id) == "running":
        proposer.advance()
        for job in jobs.claim(database, study_id, worker, 1, 60):
            if job.trial == 3:
                jobs.fail(database, job.claim, "diverged: loss nan")
            else:
                finish(database, worker, job)
    done, _ = contents(database, study_id)
    assert [trial.state for trial in done].count("complete") == 6
    assert (done[3].state, done[3].reason) == ("failed", "diverged: loss nan")
    assert studies.state(database, study_id) == "finished"
    plain = optuna.load_study(study_name="failing", storage=study.optuna_storage(database))
    assert plain.trials[3].state is optuna.trial.TrialState.FAIL


def test_a_study_stops_with_the_reason_if_identity_fails(database: Engine) -> None:
    given = make_config("no-baseline", trial_count=7)
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    proposer.advance()
    for job in jobs.claim(database, study_id, worker, 2, 60):
        jobs.fail(database, job.claim, "diverged: loss nan")
    proposer.advance()
    stopped = studies.find(database, "no-baseline")
    assert stopped is not None
    assert stopped.state == "stopped"
    assert stopped.failure is not None
    assert "identity could not be trained" in stopped.failure
    assert "diverged: loss nan" in stopped.failure


def test_a_stopped_study_proposes_nothing(database: Engine) -> None:
    given = make_config("stopped")
    study_id = create(database, given)
    studies.set_state(database, study_id, "stopped")
    Proposer(database, study_id, given).advance()
    assert contents(database, study_id) == ([], [])


RIVAL = """
import sys, time
from optimizer import config
from optimizer.proposer import Proposer
from storage import database, jobs, roster, studies
from tests.test_proposer import enlist, finish, make_config
engine = database.connect(sys.argv[1])
study = studies.find(engine, "rivals")
proposer, worker = Proposer(engine, study.id, make_config("rivals")), enlist(engine, study.id)
while studies.state(engine, study.id) == "running":
    proposer.advance()
    for job in jobs.claim(engine, study.id, worker, 1, 60):
        finish(engine, worker, job)
"""


def test_processes_that_all_propose_at_once_propose_what_one_would(
    database: Engine, database_url: str
) -> None:
    alone = make_config("alone")
    alone_id = create(database, alone)
    proposer, worker = Proposer(database, alone_id, alone), enlist(database, alone_id)
    while studies.state(database, alone_id) == "running":
        proposer.advance()
        for job in jobs.claim(database, alone_id, worker, 1, 60):
            finish(database, worker, job)
    rivals_id = create(database, make_config("rivals"))
    processes = [
        subprocess.Popen([sys.executable, "-c", RIVAL, database_url], cwd=Path(__file__).parents[1])
        for _ in range(3)
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    expected, expected_rows = contents(database, alone_id)
    found, found_rows = contents(database, rivals_id)
    assert [trial.densities for trial in found] == [trial.densities for trial in expected]
    assert found_rows == expected_rows
