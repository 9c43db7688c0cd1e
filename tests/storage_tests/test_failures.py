"""Failures: each is kept, and what follows depends on its kind and on nobody's name."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import optuna
import pytest
from sqlalchemy import Engine, text
from support.queued import add_trial, enter, expire_leases, lose_often, states, unruled
from support.searches import contents, create, finish, make_config
from support.waiting import wait_for

from optimizer import snapshot
from optimizer.phases import optuna_tables
from optimizer.phases.proposer import Proposer
from optimizer.show import printing, programs, terminal
from storage import failures, jobs, leases, ledger, roster, studies, trials
from storage.failures import Kind
from storage.jobs import ClaimedJob
from storage.ledger import Entry

FOR_GOOD: dict[Kind, int | None] = {
    "preempted": None,
    "lost": None,  # the queue finds that a worker vanished, or whoever started it sees it die
    "out_of_memory": None,
    "diverged": 1,
    "data": 2,
    "code": 2,
    "storage": None,
}
"""With which failure of a kind a job is failed for good, None: with none."""


def claim(database: Engine, study: studies.Study, worker: int) -> list[ClaimedJob]:
    return jobs.claim(database, study.id, worker, 10, 60)


def queue(database: Engine, study: studies.Study, jobs_queued: int = 1) -> None:
    add_trial(database, study, 0, range(jobs_queued))


def strangers(database: Engine, study: studies.Study) -> Iterator[int]:
    """Workers of which each has left when the next one comes."""
    while True:
        worker = enter(database, study)
        yield worker
        roster.retire(database, worker)


@pytest.mark.parametrize("kind", ["preempted", "out_of_memory", "diverged", "data", "code"])
def test_a_job_is_failed_for_good_as_often_as_its_policy_says(
    database: Engine, study: studies.Study, kind: Kind
) -> None:
    queue(database, study)
    limit = FOR_GOOD[kind]
    workers = strangers(database, study)
    for worker in islice(workers, limit or 12):
        [job] = claim(database, study, worker)
        assert jobs.fail(database, job.claim, "as it goes", kind)
    assert states(database) == ["waiting" if limit is None else "failed"]
    assert len(claim(database, study, next(workers))) == (limit is None)


def test_a_job_whose_losses_others_report_is_failed_with_a_reason(
    database: Engine, study: studies.Study
) -> None:
    """As doctor does for workers that are gone."""
    queue(database, study)
    for _ in range(failures.MAX_LOSSES):
        [job] = claim(database, study, enter(database, study))
        jobs.release(database, [job.claim], "lost")
    with database.connect() as connection:
        [trial] = trials.all_of(connection, study.id, "search")
    assert (trial.failed, trial.error_text) == (1, failures.POLICIES["lost"].said)
    assert trial.failure == trial.error_text is not None


def test_jobs_of_a_process_that_died_are_taken_back_at_once_with_how_it_died(
    database: Engine, study: studies.Study
) -> None:
    queue(database, study, 3)
    dead = enter(database, study, token="mine")
    mine = jobs.claim(database, study.id, dead, 2, 60)
    [other] = claim(database, study, living := enter(database, study))
    how = "its process ended by signal 11 (SIGSEGV) in training"
    assert jobs.lose(database, study.id, "another", how) == 0
    assert jobs.lose(database, study.id, "mine", how) == 2
    assert jobs.lose(database, study.id, "mine", how) == 0
    assert states(database) == ["waiting", "waiting", "running"]
    with database.connect() as connection:
        [told] = failures.counts(connection, study.id)
        assert [row.stopped_at is None for row in roster.read(connection, study.id)] == [
            False,
            True,
        ]
    assert (told.kind, told.times, told.error) == ("lost", 2, how)
    assert jobs.heartbeat(database, living, 60).held == {other.claim}
    assert {job.id for job in claim(database, study, living)} == {job.id for job in mine}


def test_a_dead_process_is_reported_although_the_clock_has_gone_back(
    database: Engine, study: studies.Study
) -> None:
    queue(database, study)
    claim(database, study, enter(database, study, token="mine"))
    with unruled(database) as connection:
        connection.execute(text("UPDATE densitune.workers SET seen_at = now() + interval '3 s'"))
    assert jobs.lose(database, study.id, "mine", "killed") == 1


def test_to_report_a_dead_process_while_its_study_is_deleted_is_no_deadlock(
    database: Engine, study: studies.Study
) -> None:
    """Whoever locks jobs and workers locks jobs first; the report waits for those, holding none."""
    queue(database, study)
    worker = enter(database, study, token="mine")
    claim(database, study, worker)
    with ThreadPoolExecutor(1) as pool, database.connect() as connection:
        connection.execute(text("SELECT FROM densitune.jobs FOR UPDATE"))
        report = pool.submit(jobs.lose, database, study.id, "mine", "killed")
        wait_for(lambda: connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))
        connection.execute(text("SELECT FROM densitune.workers FOR UPDATE NOWAIT"))
        studies.delete(connection, study.id)
        connection.commit()
        assert report.result() == 0


def test_a_job_that_kills_every_worker_is_failed_with_how_they_died(
    database: Engine, study: studies.Study
) -> None:
    queue(database, study)
    how = "its process ended by signal 6 (SIGABRT) in training"
    for token in "abcde":
        assert len(claim(database, study, enter(database, study, token=token))) == 1
        assert jobs.lose(database, study.id, token, how) == 1
    with database.connect() as connection:
        [trial] = trials.all_of(connection, study.id, "search")
    assert (trial.failed, trial.error_text) == (1, how)
    assert trial.failure == failures.POLICIES["lost"].said  # what Optuna and presets are told


def test_every_kind_has_a_policy_and_the_tables_know_it(
    database: Engine, study: studies.Study
) -> None:
    queue(database, study, len(failures.POLICIES))
    assert failures.POLICIES.keys() == FOR_GOOD.keys()
    held = claim(database, study, enter(database, study))
    for kind, job in zip(failures.POLICIES, held, strict=True):
        assert jobs.fail(database, job.claim, f"it was {kind}", kind)
    with database.connect() as connection:
        found = connection.execute(text("SELECT kind, error FROM densitune.jobs ORDER BY id")).all()
    assert [tuple(row) for row in found] == [(kind, f"it was {kind}") for kind in FOR_GOOD]


@pytest.mark.parametrize(
    ("kinds", "for_good"),
    [
        (["data", "code"], True),
        (["code", "data"], True),
        (["out_of_memory", "code"], False),
        (["preempted", "preempted", "storage", "data"], False),
        (["preempted", "diverged"], True),
    ],
)
def test_all_reasons_of_its_own_count_together_and_no_others(
    database: Engine, study: studies.Study, kinds: list[Kind], for_good: bool
) -> None:
    queue(database, study)
    for kind, worker in zip(kinds, strangers(database, study), strict=False):
        [job] = claim(database, study, worker)
        jobs.fail(database, job.claim, "", kind)
    assert states(database) == ["failed" if for_good else "waiting"]


@pytest.mark.parametrize("kind", ["code", "data", "out_of_memory"])
def test_another_worker_tries_a_job_that_failed_if_there_is_one(
    database: Engine, study: studies.Study, kind: Kind
) -> None:
    queue(database, study, 2)
    first, second = enter(database, study), enter(database, study)
    job, other = claim(database, study, first)
    jobs.fail(database, job.claim, "", kind)
    jobs.release(database, [other.claim])
    [again] = claim(database, study, first)
    assert again.id == other.id
    assert [found.id for found in claim(database, study, second)] == [job.id]


@pytest.mark.parametrize("kind", ["code", "out_of_memory"])
@pytest.mark.parametrize("gone", ["retired", "silent", "elsewhere", "never there"])
def test_a_worker_without_another_tries_its_failed_job_again(
    database: Engine, study: studies.Study, gone: str, kind: Kind
) -> None:
    queue(database, study)
    alone = enter(database, study)
    if gone == "retired":
        roster.retire(database, enter(database, study))
    elif gone == "elsewhere":
        enter(database, studies.create(database, "another study", {}, "", {}, "search")[0])
    elif gone == "silent":
        silent = enter(database, study)
        with database.begin() as connection:
            connection.execute(
                text(
                    "UPDATE densitune.workers SET seen_at = now() - interval '2 min' WHERE id = :id"
                ),
                {"id": silent},
            )
    [job] = claim(database, study, alone)
    jobs.fail(database, job.claim, "", kind)
    assert [found.id for found in claim(database, study, alone)] == [job.id]


def kept(database: Engine) -> list[tuple[int, int, int | None, str, str | None]]:
    query = text("""
        SELECT job_id, epoch, worker_id, kind, error FROM densitune.failures ORDER BY job_id, epoch
    """)
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_every_failure_is_kept_also_after_the_job_succeeded(
    database: Engine, study: studies.Study
) -> None:
    queue(database, study)
    one, two, three = (enter(database, study) for _ in range(3))
    [job] = claim(database, study, one)
    jobs.fail(database, job.claim, "no such file", "data")
    [job] = claim(database, study, two)
    jobs.release(database, [job.claim])
    [job] = claim(database, study, two)
    expire_leases(database)
    [job] = claim(database, study, three)
    result = Entry(job_id=job.id, rung=4, value=1.0, extra={}, seconds=1.0)
    ledger.record(database, three, [result], [job.id])
    assert kept(database) == [
        (job.id, 1, one, "data", "no such file"),
        (job.id, 2, two, "preempted", None),
        (job.id, 3, two, "lost", None),
    ]
    with database.connect() as connection:
        row = connection.execute(text("SELECT state, kind, error FROM densitune.jobs")).one()
    assert tuple(row) == ("done", None, None)


def test_failing_again_because_no_answer_came_changes_nothing(
    database: Engine, study: studies.Study
) -> None:
    queue(database, study)
    [job] = claim(database, study, enter(database, study))
    assert jobs.fail(database, job.claim, "once", "code")
    before = kept(database)
    assert not jobs.fail(database, job.claim, "twice", "code")
    jobs.release(database, [job.claim])
    assert kept(database) == before
    assert states(database) == ["waiting"]


def test_no_lease_runs_out_for_a_while_after_the_database_returned(
    database: Engine, study: studies.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(database, study, 2)
    worker = enter(database, study)
    claim(database, study, worker)
    lose_often(database, failures.MAX_LOSSES, seed=1)
    expire_leases(database)
    with database.connect() as connection:
        age = connection.scalar(
            text("SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float")
        )
    monkeypatch.setattr(leases, "RETURN_SECONDS", age + 60)
    assert claim(database, study, worker) == []
    with database.begin() as connection:
        assert jobs.fail_lost(connection, study.id) == 0
    monkeypatch.setattr(leases, "RETURN_SECONDS", age)
    assert [job.seed for job in claim(database, study, worker)] == [0]
    with database.begin() as connection:
        assert jobs.fail_lost(connection, study.id) == 1


def test_what_is_told_does_not_depend_on_who_failed_and_what_they_said(database: Engine) -> None:
    """Trial 3 fails everywhere, on different workers; trial 4 fails on one worker of one study."""
    found = []
    for name, order in (("one", (0, 1, 2)), ("other", (2, 1, 0))):
        given = make_config(name, trial_count=12)
        study_id = create(database, given)
        proposer = Proposer(database, study_id, given)
        workers = [roster.register(database, study_id, f"host {n}", n, "CPU", {}) for n in order]
        stumbled = name == "one"
        while studies.state(database, study_id) == "running":
            proposer.advance()
            for worker in workers:
                for job in jobs.claim(database, study_id, worker, 1, 60):
                    if job.trial == 3 or (job.trial == 4 and not stumbled):
                        stumbled = stumbled or job.trial == 4
                        jobs.fail(database, job.claim, f"file /{worker} is gone", "code")
                    else:
                        finish(database, worker, job)
        ours, rows = contents(database, study_id)
        theirs = optuna.load_study(study_name=name, storage=optuna_tables.alone(database)).trials
        assert (ours[3].state, ours[4].state) == ("failed", "complete")
        found.append(
            (
                [(trial.densities, trial.state) for trial in ours],
                rows,
                [(t.number, t.state, t.params, t.values, t.user_attrs) for t in theirs],
            )
        )
    assert found[0] == found[1]


def test_status_says_how_often_jobs_failed_in_which_way_and_where_last(database: Engine) -> None:
    given = make_config("status")
    study_id = create(database, given)
    Proposer(database, study_id, given).advance()
    worker = roster.register(database, study_id, "gpu7", 4711, "CPU", {})
    held = jobs.claim(database, study_id, worker, 3, 60)
    for job in held:
        jobs.fail(database, job.claim, f"Traceback\nOSError: no image {job.seed}", "data")
    now = snapshot.of(database, given.name)
    [count] = now.failures
    assert (count.kind, count.times, count.host) == ("data", 3, "gpu7")
    last = held[-1]
    assert terminal.failure_line(count) == (
        f"data 3 times, last at {count.failed_at:%Y-%m-%d %H:%M} UTC: search trial {last.trial} "
        f"seed {last.seed} on gpu7 pid 4711: OSError: no image {last.seed}"
    )
    shown = printing.console()
    with shown.capture() as captured:
        shown.print(terminal.status(now))
    assert "data 3 times" in captured.get()
    [entry] = programs.document(now)["failures"]
    assert entry["failed_at"] == count.failed_at.isoformat(timespec="seconds")
    assert entry["error"].endswith(f"OSError: no image {last.seed}")
    mute = replace(count, error=" \n")
    assert terminal.failure_line(mute) == terminal.failure_line(replace(count, error=None))


def test_failures_of_other_studies_are_not_counted(database: Engine, study: studies.Study) -> None:
    other, _ = studies.create(database, "another study", {}, "", {}, "search")
    queue(database, other)
    [job] = claim(database, other, enter(database, other))
    jobs.fail(database, job.claim, "", "code")
    with database.connect() as connection:
        assert failures.counts(connection, study.id) == []
        assert [count.times for count in failures.counts(connection, other.id)] == [1]
        assert [trial.waiting for trial in trials.all_of(connection, other.id, "search")] == [1]
