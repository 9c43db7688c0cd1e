"""The search: an exact budget, in order, whoever takes the role and however jobs come back."""

import os
import random
import subprocess
import sys

import numpy as np
import optuna
import pytest
from sqlalchemy import Engine, text
from support import simulated
from support.checkout import ROOT
from support.queued import set_state, unruled
from support.searches import contents, create, enlist, finish, make_config, run, value

from optimizer.cli import doctor_checks
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from optimizer.phases import optuna_tables
from optimizer.phases.proposer import Proposer
from storage import jobs, ledger, studies
from storage.jobs import ClaimedJob
from storage.ledger import Entry


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
    assert [t.state for t in first_trials] == [t.state for t in second_trials]
    assert {t.state for t in first_trials} == {"complete", "pruned"}


def test_exactly_the_trials_asked_for_are_finished_and_never_too_many_open(
    database: Engine,
) -> None:
    given = make_config("exact", trial_count=9, in_flight=3, keep=1)
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
    ended = studies.find(database, "exact")
    assert ended is not None
    assert (ended.state, ended.phase) == ("stopped", "confirm")


def test_optuna_holds_the_differences_of_the_ledger(database: Engine) -> None:
    given = make_config("projection", trial_count=16)
    found, rows = contents(database, run(database, given))
    plain = optuna.load_study(study_name="projection", storage=optuna_tables.alone(database))
    at = {(row.trial, row.seed, row.rung): row.value for row in rows}
    for ours, theirs in zip(found, plain.trials, strict=True):
        assert theirs.state.name.lower() == ours.state
        seeds = ["0", "1"] if ours.state == "complete" else ["0"]
        assert list(theirs.user_attrs["values by seed"]) == seeds
        for rung, told in theirs.intermediate_values.items():
            differences = [
                at[ours.number, int(seed), rung] - at[0, int(seed), rung] for seed in seeds
            ]
            assert told == pytest.approx(sum(differences) / len(seeds), abs=1e-12)
        last = max(theirs.intermediate_values)
        assert theirs.value == theirs.intermediate_values[last]
        values = [at[ours.number, int(seed), last] for seed in seeds]
        assert list(theirs.user_attrs["values by seed"].values()) == values
        assert theirs.user_attrs["mean"] == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert plain.trials[0].user_attrs["role"] == "identity"
    assert set(plain.trials[0].intermediate_values.values()) == {0.0}


def test_trials_below_the_quantile_of_those_told_before_are_cut_after_one_seed(
    database: Engine,
) -> None:
    """Bars, cuts and jobs worked out anew from the whole ledger."""
    given = make_config("cut", trial_count=24, keep=0.4)
    found, rows = contents(database, run(database, given))
    first = {(row.trial, row.rung): row.value for row in rows if row.seed == 0}
    anchors = len(given.anchors)
    for trial in found:
        told = range(max(0, trial.number - 3)) if trial.number >= anchors else range(0)
        reached = []
        for rung in (1, 2, 4):
            reached.append(rung)
            before = [first[number, rung] for number in told if (number, rung) in first]
            if len(before) >= 5 and first[trial.number, rung] < np.quantile(before, 0.6):
                assert (trial.state, trial.jobs, trial.cut) == ("pruned", 1, 1)
                assert trial.reason == f"below its bar after {rung} epochs"
                break
        else:
            assert (trial.state, trial.jobs, trial.done) == ("complete", 2, 2)
        seeds = (0, 1) if trial.state == "complete" else (0,)
        assert [(r.seed, r.rung) for r in rows if r.trial == trial.number] == [
            (seed, rung) for seed in seeds for rung in reached
        ]
    assert [trial.state for trial in found].count("pruned") >= 6


def test_what_others_are_compared_with_is_never_cut(database: Engine) -> None:
    """Anchors, those of the user too, however far from the top at 0.6 they lie."""
    given = study_file.parse(
        {
            **make_config("anchors", 12, in_flight=1).document(),
            "density": {"include": [[0.6], [0.1], [1.9], [2.5]]},
        },
        origin="test",
    )
    found, _ = contents(database, run(database, given))
    assert [trial.state for trial in found[: len(given.anchors)]] == ["complete"] * 9
    assert "pruned" in [trial.state for trial in found]


def advance_to_bars(
    database: Engine, given: StudyConfig
) -> tuple[int, Proposer, int, list[ClaimedJob]]:
    """Run until all open trials have bars; return study, proposer, worker and their jobs."""
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    while True:
        proposer.advance()
        held = jobs.claim(database, study_id, worker, 100, 60)
        if all(job.bars for job in held):
            return study_id, proposer, worker, held
        for job in held:
            finish(database, worker, job)


def reach_the_end(database: Engine, worker: int, job: ClaimedJob) -> None:
    """Record what clears every bar."""
    found = [
        Entry(job_id=job.id, rung=rung, value=40.0, extra={}, seconds=1.0) for rung in (1, 2, 4)
    ]
    ledger.record(database, worker, found, finished=[job.id])


def test_other_seeds_follow_at_once_although_older_trials_run(database: Engine) -> None:
    study_id, proposer, worker, held = advance_to_bars(database, make_config("at-once", 30))
    assert len(held) == 4
    assert all(job.seed == 0 and sorted(job.bars) == [1, 2, 4] for job in held)
    reach_the_end(database, worker, held[-1])
    proposer.advance()
    [follower] = jobs.claim(database, study_id, worker, 100, 60)
    assert (follower.trial, follower.seed, follower.bars) == (held[-1].trial, 1, {})
    assert (follower.densities, follower.budget) == (held[-1].densities, 4)
    now, _ = contents(database, study_id)
    assert [trial.state for trial in now[-4:]] == ["running"] * 4
    proposer.advance()
    assert jobs.claim(database, study_id, worker, 100, 60) == []


def test_a_first_seed_that_fails_fails_its_trial_before_the_others(database: Engine) -> None:
    study_id, proposer, _, held = advance_to_bars(database, make_config("first-fails", 30))
    jobs.fail(database, held[0].claim, "diverged: loss nan", "diverged")
    proposer.advance()
    now, _ = contents(database, study_id)
    failed = now[held[0].trial]
    assert (failed.state, failed.reason, failed.jobs) == ("failed", "diverged: loss nan", 1)


def test_a_failed_job_fails_its_trial_and_nothing_else(database: Engine) -> None:
    given = make_config("failing", trial_count=7, keep=1)
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    while studies.state(database, study_id) == "running":
        proposer.advance()
        for job in jobs.claim(database, study_id, worker, 1, 60):
            if job.trial == 3:
                jobs.fail(database, job.claim, "diverged: loss nan", "diverged")
            else:
                finish(database, worker, job)
    done, _ = contents(database, study_id)
    assert [trial.state for trial in done].count("complete") == 6
    assert (done[3].state, done[3].reason) == ("failed", "diverged: loss nan")
    assert studies.state(database, study_id) == "stopped"
    plain = optuna.load_study(study_name="failing", storage=optuna_tables.alone(database))
    assert plain.trials[3].state is optuna.trial.TrialState.FAIL


def test_a_study_stops_with_the_reason_if_identity_fails(database: Engine) -> None:
    given = make_config("no-baseline", trial_count=7)
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    proposer.advance()
    for job in jobs.claim(database, study_id, worker, 2, 60):
        jobs.fail(database, job.claim, "diverged: loss nan", "diverged")
    proposer.advance()
    stopped = studies.find(database, "no-baseline")
    assert stopped is not None
    assert stopped.state == "stopped"
    assert stopped.failure is not None
    assert "identity could not be trained" in stopped.failure
    assert "diverged: loss nan" in stopped.failure


def test_a_search_goes_on_although_a_worker_left_out_rungs_of_identity(database: Engine) -> None:
    """Nothing of ours does so, but whoever has a worker's rights may."""
    given = make_config("gaps", trial_count=12)
    study_id = create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    while studies.state(database, study_id) == "running":
        proposer.advance()
        for job in jobs.claim(database, study_id, worker, 8, 60):
            if job.trial:
                finish(database, worker, job)
            else:
                last = Entry(job_id=job.id, rung=4, value=value(job, 4), extra={}, seconds=1)
                ledger.record(database, worker, [last], [job.id])
    found, _ = contents(database, study_id)
    assert {trial.state for trial in found} == {"complete", "pruned"}
    plain = optuna.load_study(study_name="gaps", storage=optuna_tables.alone(database))
    assert [trial.state.name.lower() for trial in plain.trials] == [row.state for row in found]
    assert all(set(trial.intermediate_values) <= {4} for trial in plain.trials)
    [study] = [study for study in [studies.find(database, "gaps")] if study is not None]
    assert [one.what for one in doctor_checks.of_study(database, study) if not one.note] == []


@pytest.mark.parametrize("phase", ["search", "confirm"])
def test_a_study_whose_measurements_were_deleted_says_so(database: Engine, phase: str) -> None:
    """Their owner may do so, if Python cannot read them."""
    given = simulated.small()
    study_id = simulated.create(database, given)
    proposer, worker = Proposer(database, study_id, given), enlist(database, study_id)
    claimed = list[ClaimedJob]()
    while not claimed or claimed[0].phase != phase:
        proposer.advance()
        claimed = jobs.claim(database, study_id, worker, 100, 60)
        for job in claimed:
            simulated.train(database, worker, job, lambda job: job.densities[3][0])
    with unruled(database) as connection:
        connection.execute(
            text("DELETE FROM densitune.measurements WHERE job_id = :id"), {"id": claimed[0].id}
        )
    with pytest.raises(StudyFailedError, match="measurements have been deleted: 1; restore"):
        proposer.advance()


def test_a_stopped_study_proposes_nothing(database: Engine) -> None:
    given = make_config("stopped")
    study_id = create(database, given)
    set_state(database, study_id, "stopped")
    Proposer(database, study_id, given).advance()
    assert contents(database, study_id) == ([], [])


RIVAL = """
import sys, time
from optimizer.cli import doctor_checks
from optimizer.config import study_file
from optimizer.phases.proposer import Proposer
from storage import database, jobs, roster, studies
from support.searches import enlist, finish, make_config
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
    alone_id = run(database, make_config("alone"))
    rivals_id = create(database, make_config("rivals"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, database_url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        )
        for _ in range(3)
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    expected, expected_rows = contents(database, alone_id)
    found, found_rows = contents(database, rivals_id)
    assert [trial.densities for trial in found] == [trial.densities for trial in expected]
    assert found_rows == expected_rows
