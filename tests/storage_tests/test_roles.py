"""Roles: each can do all that it is for, and the database refuses everything else."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ProgrammingError
from support import shell, simulated
from support.queued import add_trial, expire_leases

from optimizer import snapshot
from optimizer.cli import working
from optimizer.phases import optuna_study, optuna_tables, upkeep
from storage import database as db
from storage import jobs, ledger, roles, roster, steps, studies
from storage.database import connect
from storage.errors import StorageError
from storage.failures import POLICIES
from storage.ledger import Entry

DENIED = "42501"


@contextmanager
def role(owner: Engine, name: str) -> Iterator[Engine]:
    """An engine of a role, for the database of its owner."""
    url = owner.url.set(username=name).render_as_string(hide_password=False)
    engine = connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def granted(database: Engine) -> Engine:
    """A database in which the roles have their rights, as its owner sees it."""
    roles.create(database)
    return database


def test_a_worker_does_all_that_workers_do(granted: Engine, study: studies.Study) -> None:
    add_trial(granted, study, 0, range(12), bars={4: 9.0})
    with role(granted, "densitune_worker") as engine:
        db.prepare(engine)
        assert studies.find(engine, study.name) == study
        gone, worker = (roster.register(engine, study.id, "h", 1, "CPU", {}) for _ in range(2))
        jobs.claim(engine, study.id, gone, 2, 60)
        expire_leases(granted)
        held = jobs.claim(engine, study.id, worker, 12, 60)
        assert len(held) == 12
        assert len(jobs.heartbeat(engine, worker, 60).held) == 12
        jobs.release(engine, [held.pop().claim])
        for kind in POLICIES:
            assert jobs.fail(engine, held.pop().claim, "so it went", kind)
        last, cut = held.pop(), held.pop()
        found = [
            Entry(job_id=job.id, rung=4, value=1.5, extra={"loss": 2.0}, seconds=1.0)
            for job in (last, cut)
        ]
        for _ in range(2):
            ledger.record(engine, worker, found, [last.id], cut=[cut.id])
        assert studies.state(engine, study.id) == "running"
        roster.retire(engine, worker)
    with granted.connect() as connection:
        assert len(ledger.read(connection, study.id, "search")) == 2
        gone_row, row = roster.read(connection, study.id)
        assert (gone_row.jobs_done, row.jobs_done, row.live) == (0, 2, False)


WORKER_MUST_NOT = [
    "UPDATE densitune.studies SET state = 'stopped'",
    "UPDATE densitune.studies SET config = '{}'",
    "INSERT INTO densitune.studies (name, config, data_fingerprint) VALUES ('x', '{}', '')",
    "DELETE FROM densitune.studies",
    "SELECT * FROM densitune.studies FOR UPDATE",
    "UPDATE densitune.trials SET densities = '{}'",
    "UPDATE densitune.trials SET reason = 'complete'",
    "INSERT INTO densitune.trials (study_id, number, role, label, densities, arm)"
    " VALUES (1, 7, 'candidate', '', '{}', '{}')",
    "DELETE FROM densitune.trials",
    "INSERT INTO densitune.jobs (study_id, trial, seed, budget) VALUES (1, 0, 9, 9)",
    "DELETE FROM densitune.jobs",
    "UPDATE densitune.jobs SET bars = '{}'",
    "UPDATE densitune.jobs SET budget = 1",
    "UPDATE densitune.jobs SET seed = -1 - seed",
    "UPDATE densitune.jobs SET trial = 0 WHERE trial = 0",
    "SELECT * FROM densitune.measurements",
    "UPDATE densitune.measurements SET value = 100",
    "DELETE FROM densitune.measurements",
    "INSERT INTO densitune.measurements (job_id, rung, value, seconds) VALUES (1, 2, 9, 1)"
    " ON CONFLICT (job_id, rung) DO UPDATE SET value = excluded.value",
    "INSERT INTO densitune.measurements (job_id, rung, value, seconds, recorded_at)"
    " VALUES (1, 1, 9, 1, '2000-01-01')",
    "TRUNCATE densitune.measurements",
    "UPDATE densitune.failures SET kind = 'code'",
    "INSERT INTO densitune.failures (job_id, epoch, kind) VALUES (1, 9, 'code')",
    "DELETE FROM densitune.failures",
    "UPDATE densitune.workers SET host = 'another'",
    "DELETE FROM densitune.workers",
    "UPDATE densitune.alembic_version SET version_num = '0001'",
    "SELECT * FROM public.trials",
    "SELECT * FROM public.trial_system_attributes",
    "INSERT INTO public.studies (study_name) VALUES ('x')",
    "DELETE FROM public.trial_values",
    "DROP TABLE densitune.measurements",
    "ALTER TABLE densitune.jobs ADD COLUMN x integer",
    "CREATE TABLE densitune.x (x integer)",
    "CREATE TABLE public.x (x integer)",
    "CREATE SCHEMA x",
    "CREATE ROLE x",
    "ALTER ROLE densitune_worker SUPERUSER",
    "SET ROLE densitune_proposer",
    "SELECT pg_read_file('/etc/passwd')",
]

READER_MUST_NOT = [
    "UPDATE densitune.jobs SET lease_until = now() WHERE state = 'running'",
    "UPDATE densitune.workers SET seen_at = now()",
    "INSERT INTO densitune.measurements (job_id, rung, value, seconds) VALUES (1, 1, 9, 1)",
    "INSERT INTO densitune.failures (job_id, epoch, kind) VALUES (1, 9, 'code')",
    "DELETE FROM densitune.studies",
    "DELETE FROM public.trial_values",
    "CREATE TABLE public.x (x integer)",
    "SET ROLE densitune_worker",
]

PROPOSER_MUST_NOT = [
    "UPDATE densitune.measurements SET value = 100",
    "DELETE FROM densitune.measurements",
    "UPDATE densitune.failures SET kind = 'code'",
    "DELETE FROM densitune.failures",
    "UPDATE densitune.jobs SET budget = 1",
    "DROP TABLE densitune.measurements",
    "ALTER TABLE densitune.jobs ADD COLUMN x integer",
    "CREATE TABLE densitune.x (x integer)",
    "UPDATE densitune.alembic_version SET version_num = '0001'",
    "CREATE ROLE x",
]


def test_what_a_role_is_not_for_is_refused(granted: Engine, study_with_results: None) -> None:
    """Each of these works for the owner, so what refuses it is the role alone."""
    for name, attempts in (
        ("densitune_worker", WORKER_MUST_NOT),
        ("densitune_reader", READER_MUST_NOT),
        ("densitune_proposer", PROPOSER_MUST_NOT),
    ):
        with role(granted, name) as engine:
            for attempt in attempts:
                with granted.connect() as connection:
                    connection.execute(text(attempt))
                    connection.rollback()
                with engine.connect() as connection:
                    with pytest.raises(ProgrammingError) as refused:
                        connection.execute(text(attempt))
                    assert getattr(refused.value.orig, "pgcode", None) == DENIED, (name, attempt)


@pytest.fixture
def study_with_results(granted: Engine) -> None:
    """A study that is through with its search, and its Optuna study."""
    given = simulated.small(training={"budget": 2, "lr": 0.003})
    study_id = simulated.create(granted, given)
    studies.go_on(granted, study_id, "search", force=True)
    simulated.go_on(granted, study_id, given, lambda job: 30.0 - job.densities[3][0] ** 2)


def test_a_proposer_launches_and_deletes(granted: Engine) -> None:
    """It makes Optuna's tables, too, and readers see them."""
    given = simulated.small()
    with role(granted, "densitune_proposer") as engine:
        db.prepare(engine)
        now = simulated.run(engine, given, lambda job: 30.0 - job.densities[3][0] ** 2)
        assert now.study.state == "finished"
        with role(granted, "densitune_reader") as reader:
            assert snapshot.of(reader, given.name).results == now.results
            assert len(studies.overview(reader)) == 1
            with reader.connect() as connection:
                assert connection.scalar(text("SELECT count(*) FROM public.trials")) == 7
        upkeep.delete(engine, now.study)
    with granted.connect() as connection:
        for table in ("densitune.measurements", "densitune.failures", "public.trials"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0


def test_tables_that_optuna_made_before_are_open_to_proposers_and_readers(
    granted: Engine, study_with_results: None
) -> None:
    given = simulated.small(name="another")
    with role(granted, "densitune_proposer") as engine:
        simulated.run(engine, given, lambda job: 30.0 - job.densities[3][0] ** 2)
    with role(granted, "densitune_reader") as reader:
        assert "another" in upkeep.names(reader)


def test_an_idle_worker_leaves_proposing_to_those_who_may(granted: Engine) -> None:
    given = simulated.small(training={"budget": 2, "lr": 0.003})
    simulated.create(granted, given)
    stored = studies.find(granted, given.name)
    assert stored is not None

    def queued() -> int:
        with granted.connect() as connection:
            return int(connection.scalar(text("SELECT count(*) FROM densitune.jobs")) or 0)

    with role(granted, "densitune_proposer") as engine:  # before `launch` has begun
        working._take_role_when_idle(engine, stored, given)()
    assert not optuna_tables.are_there(granted)
    optuna_study.create(optuna_tables.alone(granted), given, stored.id)
    with role(granted, "densitune_worker") as engine:
        working._take_role_when_idle(engine, stored, given)()
    assert queued() == 0
    with role(granted, "densitune_proposer") as engine:
        working._take_role_when_idle(engine, stored, given)()
    assert queued() > 0
    assert steps.may_propose(granted)


@pytest.mark.slow
def test_processes_of_each_role_bring_a_study_to_its_preset(
    granted: Engine, tmp_path: Path
) -> None:
    """The proposer's process trains nothing, the worker's proposes nothing, the reader's shows."""
    shell.write_config(tmp_path, "shared")
    url = {
        name: granted.url.set(username=f"densitune_{name}").render_as_string(hide_password=False)
        for name in ("proposer", "worker", "reader")
    }
    worker = shell.start(tmp_path, url["worker"], "worker", "shared", "--wait")
    launched = shell.run(
        tmp_path, url["proposer"], "launch", "shared.yaml", "--workers", "0", "--force"
    )
    assert (launched.returncode, launched.stderr) == (0, "")
    assert worker.wait(60) == 0
    shown = shell.run(tmp_path, url["reader"], "status", "shared")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "shared: finished" in shown.stdout
    examined = shell.run(tmp_path, url["reader"], "doctor")
    assert (examined.returncode, examined.stderr) == (0, "")
    refused = shell.run(tmp_path, url["worker"], "delete", "shared", "--yes")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "permission denied for table" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_creating_again_takes_back_what_was_granted_beside(granted: Engine) -> None:
    with granted.begin() as connection:
        connection.execute(text("GRANT DELETE ON densitune.measurements TO densitune_worker"))
        connection.execute(text("GRANT UPDATE (bars) ON densitune.jobs TO densitune_worker"))
    roles.create(granted)
    with role(granted, "densitune_worker") as engine, engine.connect() as connection:
        rights = "has_table_privilege('densitune.measurements', 'DELETE')"
        assert not connection.scalar(text(f"SELECT {rights}"))
        rights = "has_column_privilege('densitune.jobs', 'bars', 'UPDATE')"
        assert not connection.scalar(text(f"SELECT {rights}"))


@pytest.fixture
def owned(postgres: str, empty_url: str) -> Iterator[Engine]:
    """A database whose owner is no superuser, on a server without densitune's roles."""
    names = ", ".join(roles.ROLES)
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"DROP ROLE IF EXISTS {names}"))
        connection.execute(text("CREATE ROLE landlord LOGIN CREATEROLE"))
        connection.execute(text(f"ALTER DATABASE {make_url(empty_url).database} OWNER TO landlord"))
    engine = connect(
        make_url(empty_url).set(username="landlord").render_as_string(hide_password=False)
    )
    yield engine
    engine.dispose()
    within = create_engine(empty_url, isolation_level="AUTOCOMMIT")
    with within.connect() as connection:
        connection.execute(text(f"DROP OWNED BY {names}, landlord CASCADE"))
        connection.execute(text(f"ALTER DATABASE {make_url(empty_url).database} OWNER TO postgres"))
        connection.execute(text(f"DROP ROLE {names}, landlord"))
    within.dispose()
    server.dispose()


def test_an_owner_who_is_no_superuser_creates_and_renews_them(owned: Engine) -> None:
    db.prepare(owned)
    roles.create(owned)
    roles.set_password(owned, "densitune_worker", "secret")
    given = simulated.small()
    with role(owned, "densitune_proposer") as engine:
        simulated.run(engine, given, lambda job: 30.0 - job.densities[3][0] ** 2)
    roles.create(owned)  # with tables that are not the owner's own
    with role(owned, "densitune_reader") as reader:
        assert given.name in upkeep.names(reader)
        assert snapshot.of(reader, given.name).study.state == "finished"


def test_creating_roles_is_refused_to_whom_it_is_not_for(granted: Engine) -> None:
    with role(granted, "densitune_worker") as engine:
        with pytest.raises(StorageError, match=r"refused \(42501\)"):
            roles.create(engine)
        with pytest.raises(StorageError, match=r"refused \(42501\)"):
            roles.set_password(engine, "densitune_reader", "secret")


@pytest.fixture
def statements(database: Engine) -> Iterator[list[str]]:
    """What any engine sends to the server."""
    sent: list[str] = []

    def listen(*arguments: object) -> None:
        sent.append(str(arguments[2]))

    event.listen(Engine, "before_cursor_execute", listen)
    yield sent
    event.remove(Engine, "before_cursor_execute", listen)


def test_the_command_sets_passwords_that_the_server_never_sees(
    database: Engine,
    statements: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2 it's\n", encoding="utf-8")
    url = database.url.set(password="owner's").render_as_string(hide_password=False)
    monkeypatch.setitem(os.environ, "DENSITUNE_STORAGE", url)
    monkeypatch.setattr(sys, "argv", ["roles", "--password", "densitune_worker", str(file)])
    assert roles.main() == 0
    with database.connect() as connection:
        query = "SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256$%'"
        assert connection.scalars(text(query)).all() == ["densitune_worker"]
    shown = capsys.readouterr()
    assert "densitune_reader, densitune_worker, densitune_proposer" in shown.out
    for said in (*statements, shown.out, shown.err):
        assert "hunter2" not in said
        assert "owner's" not in said


@pytest.mark.parametrize(
    ("arguments", "url", "code", "said"),
    [
        ([], None, 2, "DENSITUNE_STORAGE names no server"),
        (["--password", "postgres", "x"], "", 2, "there is no role postgres"),
        (["--password", "densitune_worker", "/nowhere/x"], "", 2, "/nowhere/x cannot be read"),
        ([], "postgresql://me:hunter2@127.0.0.1:1/db", 3, "cannot reach PostgreSQL"),
        ([], "sqlite:///x", 2, "the form is postgresql://"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    arguments: list[str],
    url: str | None,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(os.environ, "DENSITUNE_STORAGE", raising=False)
    if url is not None:
        monkeypatch.setitem(os.environ, "DENSITUNE_STORAGE", url)
    monkeypatch.setattr(sys, "argv", ["roles", *arguments])
    try:
        found: object = roles.main()
    except SystemExit as ended:
        found = ended.code
    assert found == code
    error = capsys.readouterr().err
    assert said in error.strip().splitlines()[-1]
    assert "hunter2" not in error
    assert "Traceback" not in error
