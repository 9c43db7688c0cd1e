"""What is looked at for faults: claims that nobody keeps, failures, and whether a study moves."""

from sqlalchemy import Engine
from support.queued import add_trial, enter, expire_leases, states

from storage import database as storage_database
from storage import inspection, jobs, roster
from storage.inspection import AbandonedClaims, FailedJobs
from storage.studies import Study


def test_claims_of_the_gone_can_be_released_as_they_are_told(
    database: Engine, study: Study
) -> None:
    add_trial(database, study, 0, [1, 2, 3])
    ended, silent, busy = (enter(database, study, pid) for pid in (1, 2, 3))
    first = jobs.claim(database, study.id, ended, 1, 60)
    second = jobs.claim(database, study.id, silent, 1, 60)
    jobs.claim(database, study.id, busy, 1, 60)
    expire_leases(database)
    jobs.heartbeat(database, busy, 60)
    roster.retire(database, ended)
    abandoned = inspection.abandoned_claims(database, study.id)
    assert [(one.pid, one.ended, one.claims) for one in abandoned] == [
        (1, True, [job.claim for job in first]),
        (2, False, [job.claim for job in second]),
    ]
    assert all(isinstance(one, AbandonedClaims) and one.silence >= 0 for one in abandoned)
    for one in abandoned:
        jobs.release(database, one.claims, "lost")
    assert sorted(states(database)) == ["running", "waiting", "waiting"]
    assert inspection.abandoned_claims(database, study.id) == []


def test_failures_of_a_kind_are_told_together(database: Engine, study: Study) -> None:
    add_trial(database, study, 0, [1, 2])
    worker = enter(database, study)
    held = jobs.claim(database, study.id, worker, 2, 60)
    for job in held:
        jobs.fail(database, job.claim, "no image", "data")
    assert inspection.failed_jobs(database, study.id) == [
        FailedJobs(
            kind="data",
            error="no image",
            for_good=False,
            phase="search",
            jobs=2,
            trials=[0],
            workers="host:1",
        )
    ]


def test_a_study_that_is_gone_does_nothing(database: Engine, study: Study) -> None:
    add_trial(database, study, 0, [1])
    enter(database, study)
    now = inspection.activity(database, study.id)
    assert now is not None
    assert (now.live_workers, now.open_jobs) == (1, 1)
    assert inspection.activity(database, study.id + 1) is None


def test_ended_jobs_are_those_that_are_not_open(database: Engine, study: Study) -> None:
    add_trial(database, study, 0, [1, 2])
    [job] = jobs.claim(database, study.id, enter(database, study), 1, 60)
    other = job.id + 1
    assert inspection.ended_jobs(database, [other, job.id, 99]) == [99]
    assert inspection.ended_jobs(database, []) == []
    jobs.fail(database, job.claim, "diverged", "diverged")
    assert inspection.ended_jobs(database, [other, job.id, 99]) == [job.id, 99]


def test_connections_are_counted(database: Engine, study: Study) -> None:
    enter(database, study)
    now = inspection.connections(database)
    assert now.live_workers == 1
    assert 1 <= now.ours <= now.used <= now.admitted


def test_the_schema_of_an_empty_database_is_none(empty_url: str, database: Engine) -> None:
    engine = storage_database.connect(empty_url)
    assert storage_database.schema(engine).revision is None
    engine.dispose()
    prepared = storage_database.schema(database)
    assert prepared.revision == prepared.newest
    assert prepared.newest in prepared.known
