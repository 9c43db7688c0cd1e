"""The schema holds everybody to what the queue and the ledger promise, whoever writes."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from support.queued import add_trial, enter, expire_leases, lose_often, states, unruled

from storage import failures, jobs, ledger, roles, studies
from storage.database import connect
from storage.jobs import ClaimedJob
from storage.ledger import Entry


@pytest.fixture
def worker(database: Engine) -> Iterator[Engine]:
    """The worker's role."""
    roles.create(database)
    url = database.url.set(username="densitune_worker").render_as_string(hide_password=False)
    engine = connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def held(database: Engine, study: studies.Study) -> list[ClaimedJob]:
    """Two jobs that a worker holds; a third waits, a fourth is done and a fifth was cut."""
    add_trial(database, study, 0, range(5), bars={2: 50.0})
    own = enter(database, study)
    four = jobs.claim(database, study.id, own, 5, 60)
    jobs.release(database, [four.pop(2).claim])
    done, cut = four[2:]
    ledger.record(
        database,
        own,
        [at(done.id, 2, 60.0), at(done.id, 4, 70.0), at(cut.id, 2, 40.0)],
        [done.id],
        [cut.id],
    )
    assert states(database) == ["running", "running", "waiting", "done", "cut"]
    return four[:2]


def at(job: int, rung: int, value: float) -> Entry:
    return Entry(job_id=job, rung=rung, value=value, extra={}, seconds=1.0)


MEASURE = "INSERT INTO densitune.measurements (job_id, rung, value, extra, seconds) VALUES "
ENTER = "INSERT INTO densitune.workers (study_id, host, pid, device, versions) VALUES "
END = "UPDATE densitune.jobs SET finished_at = now(), lease_until = NULL, "

REFUSED = [
    # Numbers and texts that no worker of ours writes.
    MEASURE + "(1, 2, 'NaN', '{}', 1)",
    MEASURE + "(1, 2, 'Infinity', '{}', 1)",
    MEASURE + "(1, 2, 1e308, '{}', 1)",
    MEASURE + "(1, 2, 1, '{}', 'NaN')",
    MEASURE + "(1, 2, 1, '{}', -1)",
    MEASURE + "(1, 0, 1, '{}', 1)",
    MEASURE + "(1, 5, 1, '{}', 1)",  # beyond the budget
    MEASURE + "(1, 2, 1, '[]', 1)",
    MEASURE + "(1, 2, 1, to_jsonb(repeat('x', 300000)), 1)",
    MEASURE + "(1, 2, 1, jsonb_build_object('x', repeat('x', 300000)), 1)",
    # JSON that Python does not read: a number of too many digits, nesting beyond its stack.
    MEASURE + """(1, 2, 1, ('{"a": ' || repeat('9', 5000) || '}')::jsonb, 1)""",
    MEASURE + """(1, 2, 1, ('{"a": [-1e400]}')::jsonb, 1)""",
    MEASURE + """(1, 2, 1, (repeat('{"a": ', 3000) || '1' || repeat('}', 3000))::jsonb, 1)""",
    MEASURE + """(1, 2, 1, (repeat('{"a": [', 26) || repeat(']}', 26))::jsonb, 1)""",
    ENTER + """(1, 'a', 1, 'cpu', ('{"a": ' || repeat('9', 5000) || '}')::jsonb)""",
    ENTER + """(1, 'a', 1, 'cpu', (repeat('{"a": ', 3000) || '1' || repeat('}', 3000))::jsonb)""",
    ENTER + "(1, E'a\\x1b]0;x\\x07', 1, 'cpu', '{}')",
    ENTER + "(1, 'a', 1, E'c\\u009bpu', '{}')",
    ENTER + "(1, repeat('a', 256), 1, 'cpu', '{}')",
    ENTER + "(1, 'a', 1, 'cpu', '[]')",
    "UPDATE densitune.workers SET seen_at = 'infinity'",
    "UPDATE densitune.workers SET seen_at = '0044-03-15 BC'",  # Python has no such years
    "UPDATE densitune.workers SET stopped_at = '1999-12-31'",
    "UPDATE densitune.jobs SET lease_until = '10000-01-01' WHERE id = 1",
    "UPDATE densitune.jobs SET started_at = '0044-03-15 BC' WHERE id = 1",
    "UPDATE densitune.jobs SET state = 'failed', kind = 'code', lease_until = NULL, "
    "finished_at = '0044-03-15 BC' WHERE id = 1",
    "UPDATE densitune.workers SET seen_at = now() + interval '1 min'",
    "UPDATE densitune.workers SET stopped_at = now() + interval '1 min'",
    "UPDATE densitune.jobs SET lease_until = 'infinity' WHERE id = 1",
    "UPDATE densitune.jobs SET lease_until = now() + interval '2 days' WHERE id = 1",
    "UPDATE densitune.jobs SET started_at = '-infinity' WHERE id = 1",
    "UPDATE densitune.jobs SET error = repeat('x', 4001) WHERE id = 1",
    # What a job may not become.
    END + "state = 'done' WHERE id = 1",
    END + "state = 'cut' WHERE id = 1",
    "UPDATE densitune.jobs SET state = 'failed', kind = 'code', finished_at = now() WHERE id = 3",
    END + "state = 'failed' WHERE id = 1",
    "UPDATE densitune.jobs SET state = 'running' WHERE id = 3",
    "UPDATE densitune.jobs SET state = 'running', lease_until = now() WHERE id = 3",
    "UPDATE densitune.jobs SET state = 'waiting' WHERE id = 1",
    "UPDATE densitune.jobs SET state = 'waiting', lease_until = NULL WHERE id = 1",  # and a worker
    "UPDATE densitune.jobs SET state = 'waiting', finished_at = NULL WHERE id = 4",
    "UPDATE densitune.jobs SET state = 'failed', kind = 'code' WHERE id = 4",
    "UPDATE densitune.jobs SET state = 'done' WHERE id = 5",
    "UPDATE densitune.jobs SET kind = 'code' WHERE id = 4",
    "UPDATE densitune.jobs SET started_at = now() WHERE id = 4",
    "UPDATE densitune.jobs SET worker_id = 2 WHERE id = 4",
    # What a number may not become.
    "UPDATE densitune.jobs SET epoch = 2147483647 WHERE id = 1",
    "UPDATE densitune.jobs SET epoch = 2147483647 WHERE id = 3",
    "UPDATE densitune.jobs SET epoch = epoch + 1 WHERE id = 3",
    "UPDATE densitune.jobs SET epoch = epoch + 1 WHERE id = 1",  # its lease has not run out
    "UPDATE densitune.jobs SET epoch = 0 WHERE id = 1",
    "UPDATE densitune.jobs SET worker_id = 2 WHERE id = 1",
    "UPDATE densitune.jobs SET losses = 5, epoch = epoch + 1 WHERE id = 1",
    "UPDATE densitune.jobs SET losses = 1, epoch = 0 WHERE id = 1",
    "UPDATE densitune.jobs SET losses = losses + 1 WHERE id = 1",  # nobody has lost it
    "UPDATE densitune.jobs SET losses = losses + 1 WHERE id = 3",
    "UPDATE densitune.jobs SET state = 'running', worker_id = 2, epoch = epoch + 1, "
    "losses = losses + 1, lease_until = now() WHERE id = 3",
    "UPDATE densitune.jobs SET state = 'waiting', worker_id = NULL, lease_until = NULL, "
    "losses = losses + 1, kind = 'code' WHERE id = 1",
    "UPDATE densitune.jobs SET state = 'waiting', worker_id = NULL, lease_until = NULL, "
    "losses = losses + 1 WHERE id = 1",
]

QUEUE = "INSERT INTO densitune.jobs (study_id, trial, seed, budget, state, epoch, losses"
REFUSED_TO_PROPOSERS = [
    QUEUE + ", finished_at) VALUES (1, 0, 9, 4, 'done', 0, 0, now())",
    QUEUE + ", finished_at) VALUES (1, 0, 9, 4, 'cut', 0, 0, now())",
    QUEUE + ", finished_at, kind) VALUES (1, 0, 9, 4, 'failed', 0, 0, now(), 'code')",
    QUEUE + ", lease_until) VALUES (1, 0, 9, 4, 'running', 1, 0, now() + interval '9 years')",
    QUEUE + ", lease_until) VALUES (1, 0, 9, 4, 'waiting', 0, 0, now())",
    QUEUE + ") VALUES (1, 0, 9, 4, 'waiting', 2147483647, 0)",
    QUEUE + ") VALUES (1, 0, 9, 4, 'waiting', 1, 1)",
    QUEUE + ") VALUES (1, 0, 9, 0, 'waiting', 0, 0)",
]


def test_what_no_worker_of_ours_writes_is_refused(
    database: Engine, study: studies.Study, held: list[ClaimedJob], worker: Engine
) -> None:
    enter(database, study, 2)
    for attempt in REFUSED:
        for engine in (worker, database):
            assert refused(engine, attempt) == "23514", attempt


def test_a_job_begins_in_the_queue(database: Engine, held: list[ClaimedJob]) -> None:
    for attempt in REFUSED_TO_PROPOSERS:
        assert refused(database, attempt) == "23514", attempt


def refused(engine: Engine, attempt: str) -> str | None:
    """PostgreSQL's code for why a statement is refused."""
    with engine.connect() as connection, pytest.raises(IntegrityError) as raised:
        connection.exec_driver_sql(attempt)
    return getattr(raised.value.orig, "pgcode", None)


def test_numbers_and_levels_of_every_measurement_of_ours_are_taken(
    database: Engine, study: studies.Study, held: list[ClaimedJob], worker: Engine
) -> None:
    """The largest double, the least one, and the levels that a spooled file may have."""
    deep: Any = 1.0
    for _ in range(49):
        deep = [deep]
    extra = {"most": 1.7976931348623157e308, "least": 5e-324, "deep": deep, "text": "9" * 5000}
    entry = Entry(job_id=held[0].id, rung=2, value=60.0, extra=extra, seconds=1.0)
    ledger.record(worker, 1, [entry], [])
    with database.connect() as connection:
        [row] = [row for row in ledger.read(connection, study.id, "search") if row.seed == 0]
    assert {**row.extra, "most": float(row.extra["most"])} == extra  # jsonb writes it out


def test_every_way_to_be_lost_counts(
    database: Engine, study: studies.Study, held: list[ClaimedJob], worker: Engine
) -> None:
    one, two = held
    jobs.release(worker, [one.claim], "lost")
    expire_leases(database)
    jobs.claim(worker, study.id, enter(database, study), 5, 60)
    with database.connect() as connection:
        query = "SELECT losses FROM densitune.jobs WHERE id IN (1, 2) ORDER BY id"
        assert list(connection.scalars(text(query))) == [1, 1]
    lose_often(database, failures.MAX_LOSSES - 1, seed=two.seed)
    expire_leases(database)
    with worker.begin() as connection:
        assert jobs.fail_lost(connection, study.id) == 1


def test_a_study_is_deleted_with_its_ended_jobs_and_their_workers(
    database: Engine, study: studies.Study, held: list[ClaimedJob]
) -> None:
    """PostgreSQL strikes out the workers of jobs first. The clock may have gone back by days."""
    with unruled(database) as connection:
        connection.execute(
            text("UPDATE densitune.jobs SET lease_until = lease_until + interval '3 days'")
        )
    with database.begin() as connection:
        connection.execute(text("DELETE FROM densitune.workers"))
        query = "SELECT count(worker_id) FROM densitune.jobs"
        assert connection.scalar(text(query)) == 0
        studies.delete(connection, study.id)


def test_a_worker_cannot_block_claims_with_failures_of_the_future(
    database: Engine, study: studies.Study, held: list[ClaimedJob], worker: Engine
) -> None:
    attempt = "INSERT INTO densitune.failures (job_id, epoch, kind) VALUES (1, 2, 'code')"
    with worker.connect() as connection, pytest.raises(ProgrammingError, match="permission"):
        connection.execute(text(attempt))
    with unruled(database) as connection:  # it was allowed once
        for epoch in (1, 2, 3):
            connection.execute(
                text("INSERT INTO densitune.failures (job_id, epoch, kind) VALUES (1, :e, 'code')"),
                {"e": epoch},
            )
    first = held[0]
    assert jobs.fail(worker, first.claim, "went wrong", "storage")
    expire_leases(database)
    taken = {job.id for job in jobs.claim(worker, study.id, enter(database, study), 5, 60)}
    assert taken == {1, 2, 3}


def test_every_holding_that_ends_without_a_result_is_a_failure(
    database: Engine, study: studies.Study, held: list[ClaimedJob], worker: Engine
) -> None:
    """The database enters it: which worker held the job, for the how manieth time, and why not."""
    one, two = held
    jobs.fail(worker, one.claim, "went wrong", "storage")
    expire_leases(database)
    other = enter(database, study)
    jobs.claim(worker, study.id, other, 5, 60)
    with database.connect() as connection:
        query = "SELECT job_id, epoch, worker_id, kind, error FROM densitune.failures ORDER BY 1, 2"
        found = [tuple(row) for row in connection.execute(text(query))]
        assert {row.kind for row in failures.counts(connection, study.id)} == {
            "storage",
            "lost",
            "preempted",
        }
    assert found == [
        (one.id, 1, 1, "storage", "went wrong"),
        (two.id, 1, 1, "lost", None),
        (3, 1, 1, "preempted", None),
    ]


def test_a_worker_cannot_pass_off_what_is_late_as_in_time(
    database: Engine, study: studies.Study, held: list[ClaimedJob], worker: Engine
) -> None:
    with worker.begin() as connection:
        connection.exec_driver_sql(MEASURE + "(5, 4, 99, '{}', 1)")
    with worker.connect() as connection, pytest.raises(ProgrammingError, match="permission"):
        connection.exec_driver_sql(
            "INSERT INTO densitune.measurements (job_id, rung, value, seconds, late) "
            "VALUES (5, 3, 99, 1, false)"
        )
    with database.connect() as connection:
        rows = ledger.read(connection, study.id, "search")
    assert [(row.seed, row.rung) for row in rows] == [(3, 2), (3, 4), (4, 2)]


def test_a_trial_that_has_ended_stays_as_it_ended(
    database: Engine, study: studies.Study, held: list[ClaimedJob]
) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE densitune.trials SET state = 'complete'"))
        connection.execute(text("UPDATE densitune.trials SET reason = 'said again'"))
    with (
        database.connect() as connection,
        pytest.raises(IntegrityError, match="stays as it ended"),
    ):
        connection.execute(text("UPDATE densitune.trials SET state = 'failed'"))


@pytest.mark.parametrize("function", ["note_failure", "check_result"])
def test_a_worker_has_no_table_of_its_own_call_what_runs_with_the_owners_rights(
    held: list[ClaimedJob], worker: Engine, function: str
) -> None:
    with worker.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE own (id int)"))
        with pytest.raises(ProgrammingError, match="permission denied for function"):
            connection.exec_driver_sql(
                "CREATE TRIGGER t AFTER UPDATE ON own FOR EACH ROW "
                f"EXECUTE FUNCTION densitune.{function}()"
            )


@pytest.mark.parametrize("name", ["refuse", "check_result", "note_failure", "check_measurement"])
def test_functions_of_triggers_look_up_no_name_that_others_may_take(
    database: Engine, name: str
) -> None:
    query = "SELECT proconfig FROM pg_proc WHERE oid = CAST(:name AS regproc)"
    with database.connect() as connection:
        found = connection.scalar(text(query), {"name": f"densitune.{name}"})
    assert found == ["search_path=pg_catalog, pg_temp"]
