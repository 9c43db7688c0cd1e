"""Connections, their errors, the schema and its migrations."""

import re
import subprocess
import sys
import threading
import traceback
from typing import Any, get_args
from urllib.parse import quote

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine, event, make_url, text
from sqlalchemy.exc import IntegrityError
from support.databases import administer, within
from support.queued import set_state

from optimizer.arms import Arm
from optimizer.phases import optuna_tables
from storage import jobs, ledger, retry, roster, steps, studies, tables, trials
from storage.addresses import masked
from storage.database import (
    connect,
    prepare,
    translated,
)
from storage.errors import StorageError, StorageUnreachableError, StorageUrlError
from storage.failures import Kind
from storage.states import JobState, Phase, Role, StudyState, TrialState


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_all_spellings_of_postgresql_connect(empty_url: str, scheme: str) -> None:
    url = make_url(empty_url).set(drivername=scheme).render_as_string(hide_password=False)
    engine = connect(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///study.db",
        "mysql://me:hunter2@host/db",
        "postgresql://me:hunter2@host:port/db",
        "hunter2",
        "postgresql://me:hunter2@127.0.0.1:1/db?colour=blue",
        "postgresql://me:at@hunter2@127.0.0.1:1/db",
        "postgresql://me:p@s:hunter2@127.0.0.1:1/db",
        "postgresql://me:12/hunter2@127.0.0.1:1/db",
        "postgresql://me@127.0.0.1:hunter2/db",
        "postgresql://me@127.0.0.1:0x10/db",
        "postgresql://me@127.0.0.1:99999/db",
        "postgresql://me:hunter2%@127.0.0.1:1/db",
        "postgresql://me:hunter2@[127.0.0.1:1/db",
        "postgres://host://me:hunter2/db",
        "postgresql://me:hunter2@127.0.0.1:1/db?sslmode=verify_full",
        "postgresql://me:hunter2@127.0.0.1:1/db?connect_timeout=soon",
    ],
)
def test_unusable_url_says_the_form_and_no_password(url: str) -> None:
    for password in (None, "hunter2 again"):
        with pytest.raises(StorageUrlError, match="the form is postgresql://") as raised:
            connect(url, password=password)
        assert not retry.is_passing(raised.value)  # nobody waits for it to get better
    assert raised.value.exit_code == 2
    shown = "".join(traceback.format_exception(raised.value))
    assert "hunter2" not in "".join(
        line for line in shown.splitlines() if "connect(url" not in line
    )
    assert "\n" not in str(raised.value)


def test_unreachable_server_is_named_without_the_password() -> None:
    with pytest.raises(StorageUnreachableError, match=r"127\.0\.0\.1:1: Connection refused") as e:
        connect("postgresql://me:hunter2@127.0.0.1:1/db")
    assert e.value.exit_code == 3
    assert "hunter2" not in str(e.value)
    assert "\n" not in str(e.value)


def test_unknown_database_and_user_are_one_line(postgres: str) -> None:
    url = make_url(postgres)
    for wrong, reason in [
        (url.set(database="nowhere"), 'database "nowhere" does not exist'),
        (url.set(username="nobody"), 'role "nobody" does not exist'),
    ]:
        with pytest.raises(StorageUnreachableError, match=reason) as raised:
            connect(wrong.render_as_string(hide_password=False))
        assert "\n" not in str(raised.value)


def test_masked_hides_the_password_wherever_it_stands() -> None:
    assert masked("postgresql://me:hunter2@host/db") == "postgresql://me:***@host/db"
    assert "hunter2" not in masked("postgresql://me@host/db?password=hunter2")
    assert "hunter2" not in masked("postgresql://me@host/db?sslpassword=hunter2")
    assert "hunter2" not in masked("postgresql://me:hunter2@host:port/db")


def test_lost_connection_becomes_a_storage_error(database: Engine) -> None:
    with (
        pytest.raises(StorageUnreachableError, match=r"cannot reach PostgreSQL at socket /"),
        translated(database),
        database.connect() as connection,
    ):
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with database.connect() as connection:  # the pool notices and connects anew
        assert connection.scalar(text("SELECT 1")) == 1


def test_refused_statement_is_not_called_unreachable(database: Engine) -> None:
    with pytest.raises(StorageError, match=r"refused \(22012\): division by zero") as raised:  # noqa: SIM117
        with translated(database), database.connect() as connection:
            connection.execute(text("SELECT 1 / 0"))
    assert not isinstance(raised.value, StorageUnreachableError)


def test_nothing_waits_for_ever_and_the_clock_is_utc(database: Engine) -> None:
    with database.connect() as connection:
        show = {
            name: connection.scalar(text(f"SHOW {name}"))
            for name in (
                "timezone",
                "lock_timeout",
                "statement_timeout",
                "idle_in_transaction_session_timeout",
            )
        }
    assert list(show.values()) == ["UTC", "5s", "30s", "2min"]


def test_process_keeps_to_two_connections(database: Engine) -> None:
    seen = []

    def query() -> None:
        with database.connect() as connection:
            connection.execute(text("SELECT pg_sleep(0.05)"))
            count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            seen.append(connection.scalar(text(count)))

    threads = [threading.Thread(target=query) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert max(seen) <= 2


def test_a_user_named_like_our_schema_keeps_optunas_tables_apart(
    database: Engine,
) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE ROLE densitune SUPERUSER LOGIN"))
    engine = connect(database.url.set(username="densitune").render_as_string(hide_password=False))
    optuna_tables.alone(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('public.trial_params')")) is not None
        assert connection.scalar(text("SELECT to_regclass('densitune.trial_params')")) is None
    engine.dispose()
    with database.begin() as connection:
        connection.execute(text("DROP OWNED BY densitune; DROP ROLE densitune"))


PREPARE = """
import multiprocessing, sys
from storage.addresses import masked
from storage.database import connect, prepare

def run(start):
    start.wait()
    prepare(connect(sys.argv[1]))

context = multiprocessing.get_context("fork")
start = context.Barrier(10)
processes = [context.Process(target=run, args=[start]) for _ in range(10)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(sum(process.exitcode != 0 for process in processes))
"""


def test_ten_processes_prepare_an_empty_database_at_once(empty_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, empty_url], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    engine = connect(empty_url)
    assert studies.overview(engine) == []
    engine.dispose()


def test_migrations_make_exactly_the_tables(database: Engine) -> None:
    def ours(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "schema" or name == tables.SCHEMA

    with database.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": ours,
                "version_table_schema": tables.SCHEMA,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, tables.metadata) == []


def constraints(connection: Connection) -> dict[str, str]:
    """What is demanded of rows, by name; checks hold for what is written from now on."""
    rows = connection.execute(
        text("""
            SELECT conname, pg_get_constraintdef(pg_constraint.oid)
            FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
            WHERE connamespace = 'densitune'::regnamespace AND contype != 'n'
              AND relname != 'alembic_version'
        """)
    )
    return {name: rule.removesuffix(" NOT VALID") for name, rule in rows}


def test_checks_are_those_of_the_tables(database: Engine, empty_url: str) -> None:
    made = connect(empty_url)
    with made.begin() as connection:
        connection.execute(text("CREATE SCHEMA densitune"))
        tables.metadata.create_all(connection)
        expected = constraints(connection)
    made.dispose()
    with database.connect() as connection:
        assert constraints(connection) == expected


def test_an_older_database_with_data_is_brought_up_to_date(empty_url: str) -> None:
    engine = connect(empty_url)
    migrations = Config()
    migrations.set_main_option("script_location", "storage:migrations")
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA densitune"))
        migrations.attributes["connection"] = connection
        command.upgrade(migrations, "0001")
        connection.execute(
            text("""
                INSERT INTO densitune.studies (name, config, data_fingerprint)
                    VALUES ('old', '{"task": "photos", "init": "compensated"}', 'f');
                INSERT INTO densitune.trials
                    (study_id, number, optuna_number, role, label, densities, state)
                    VALUES (1, 0, 0, 'identity', 'identity', '{"3": [1.0]}', 'complete'),
                           (1, 1, 1, 'candidate', 'trial 1', '{"3": [0.5]}', 'running');
                INSERT INTO densitune.jobs (study_id, trial, seed, budget, state, error)
                    VALUES (1, 0, 7, 4, 'done', NULL), (1, 1, 7, 4, 'waiting', NULL),
                           (1, 0, 8, 4, 'failed', 'it went wrong');
                INSERT INTO densitune.measurements (job_id, rung, value, seconds)
                    VALUES (1, 4, 30.5, 2.0);
            """)
        )
    prepare(engine)
    study = studies.find(engine, "old")
    assert study is not None
    assert study.config == {"task": "photos", "init": "compensated"}
    worker = roster.register(engine, study.id, "host", 1, "cpu", {})
    [job] = jobs.claim(engine, study.id, worker, 5, 60)
    assert (job.trial, job.bars, job.phase) == (1, {}, "search")
    as_its_config_says = Arm(job.densities, init="compensated")
    assert Arm.of(job.densities, job.arm) == as_its_config_says
    assert (study.phase, study.lr, study.verdicts, study.forced) == ("search", None, None, False)
    assert study.holdout is None
    with engine.begin() as connection:
        connection.execute(text("""UPDATE densitune.jobs SET bars = '{"2": 9}' WHERE id = 2"""))
    low = ledger.Entry(job_id=job.id, rung=2, value=8.0, extra={}, seconds=1.0)
    ledger.record(engine, worker, [low], [], cut=[job.id])  # what the old schema did not allow
    with engine.begin() as connection:
        trials.finish(connection, study.id, "search", 1, "pruned")
        first, second = trials.all_of(connection, study.id, "search")
        assert (first.state, second.state) == ("complete", "pruned")
        assert (first.failed, first.kind, first.error_text) == (1, "code", "it went wrong")
        assert [row.value for row in ledger.read(connection, study.id, "search")] == [30.5, 8.0]
    engine.dispose()


OLDER = """
    INSERT INTO densitune.studies (name, config, data_fingerprint) VALUES ('old', '{}', 'f');
    INSERT INTO densitune.trials (study_id, number, optuna_number, role, label, densities, arm)
        VALUES (1, 0, 0, 'identity', 'identity', '{"3": [1.0]}', '{}');
    INSERT INTO densitune.workers (study_id, host, pid, device, versions, seen_at, stopped_at)
        VALUES (1, E'h\\x1b', 1, repeat('c', 300), '{}', 'infinity', NULL),
               (1, 'h', 2, 'cpu', ('{"a": ' || repeat('9', 5000) || '}')::jsonb, now(), NULL),
               (1, 'h', 3, 'cpu', '[]', '0044-03-15 BC', '9000-01-01'),
               (1, 'h', 4, 'cpu', '{"torch": "2"}', '2020-02-02', '2020-02-03');
    INSERT INTO densitune.jobs (study_id, trial, seed, budget, state, worker_id, epoch, losses,
                                lease_until, started_at, finished_at, kind, error)
        VALUES (1, 0, 1, 4, 'waiting', 1, 1, 9, 'infinity', NULL, now(), 'code', repeat('x', 5000)),
               (1, 0, 2, 4, 'running', 1, 2, 2, '9000-01-01', '0044-03-15 BC', NULL, NULL, NULL),
               (1, 0, 3, 4, 'running', 1, 0, 0, NULL, '-infinity', NULL, NULL, NULL),
               (1, 0, 4, 4, 'done', 2, 1, 5, NULL, now(), 'infinity', NULL, NULL),
               (1, 0, 5, 4, 'failed', 3, 1, 0, NULL, '2020-02-02', NULL, NULL, repeat('y', 5000)),
               (1, 0, 6, 4, 'failed', 4, 1, 1, NULL, '2020-02-02', '2020-02-02', 'code', 'kept'),
               (1, 0, 7, 0, 'done', 4, 1, 0, NULL, '2020-02-02', '2020-02-02', NULL, NULL);
    INSERT INTO densitune.measurements (job_id, rung, value, seconds)
        VALUES (4, 4, 1, 1), (4, 9, 1, 1), (2, 1, 'NaN', 1);
"""
"""What the checks of before did not keep out: `0006`, whoever wrote it."""


def test_rows_of_an_older_database_that_no_check_would_let_change_are_mended(
    empty_url: str,
) -> None:
    """PostgreSQL checks a row with every change of it, so its job and worker would be stuck."""
    engine = connect(empty_url)
    migrations = Config()
    migrations.set_main_option("script_location", "storage:migrations")
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA densitune"))
        migrations.attributes["connection"] = connection
        command.upgrade(migrations, "0006")
        connection.exec_driver_sql(OLDER)
    prepare(engine)
    with engine.begin() as connection:
        query = "SELECT conname FROM pg_constraint WHERE NOT convalidated"
        assert list(connection.scalars(text(query))) == ["ck_measurements_value"]
        query = "SELECT worker_id, epoch, losses, kind, length(error) FROM densitune.jobs"
        assert connection.execute(text(f"{query} ORDER BY id")).all() == [
            (None, 1, 1, "code", 4000),
            (1, 2, 1, None, None),
            (1, 1, 0, None, None),
            (2, 1, 1, None, None),
            (3, 1, 0, "code", 4000),
            (4, 1, 1, "code", 4),
            (4, 1, 0, None, None),
        ]
        kept = connection.execute(text("SELECT versions FROM densitune.workers ORDER BY id"))
        assert list(kept.scalars()) == [{}, {}, {}, {"torch": "2"}]
        assert [row.host for row in roster.read(connection, 1)] == ["h?", "h", "h", "h"]
    for worker in (1, 2, 3, 4):
        jobs.heartbeat(engine, worker, 60)
        roster.retire(engine, worker)
    jobs.release(engine, [(2, 2), (3, 1)], "lost")
    new = roster.register(engine, 1, "host", 1, "cpu", {})
    assert [job.id for job in jobs.claim(engine, 1, new, 9, 60)] == [1, 2, 3]
    with engine.begin() as connection:
        studies.delete(connection, 1)
    engine.dispose()


def test_the_database_takes_the_words_of_the_closed_sets_and_no_others(database: Engine) -> None:
    sets = {
        "ck_studies_state": StudyState, "ck_studies_phase": Phase, "ck_trials_phase": Phase,
        "ck_trials_role": Role, "ck_trials_state": TrialState, "ck_jobs_state": JobState,
        "ck_jobs_kind": Kind, "ck_failures_kind": Kind,
    }  # fmt: skip
    query = text("""
        SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE contype = 'c' AND connamespace = 'densitune'::regnamespace
    """)
    with database.connect() as connection:
        found = {name: re.findall("'([a-z_]+)'", rule) for name, rule in connection.execute(query)}
    assert {name: found[name] for name in sets} == {
        name: list(get_args(words)) for name, words in sets.items()
    }


def test_preparing_again_costs_one_query(database: Engine) -> None:
    statements = []
    event.listen(
        database, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    prepare(database)
    assert len(statements) == 1


def test_newer_schema_is_refused(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE densitune.alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"revision 9999, .*\(up to \d+\).*update densitune"):
        prepare(database)


@pytest.mark.parametrize("optuna_first", [True, False])
def test_optuna_lives_beside_in_the_same_database(empty_url: str, optuna_first: bool) -> None:
    engine = connect(empty_url)
    if optuna_first:
        RDBStorage(empty_url)
    prepare(engine)
    storage = RDBStorage(empty_url)
    with engine.connect() as connection:
        schemas = connection.scalars(
            text(
                "SELECT table_schema FROM information_schema.tables "
                "WHERE table_name = 'alembic_version' ORDER BY 1"
            )
        )
        assert list(schemas) == ["densitune", "public"]
    studies.create(engine, "a", {}, "", {}, "search")
    storage.engine.dispose()
    engine.dispose()


def test_unknown_state_is_refused(study: studies.Study, database: Engine) -> None:
    with pytest.raises(IntegrityError, match="ck_studies_state"):
        set_state(database, study.id, "asleep")  # type: ignore[arg-type]


def test_only_one_holds_the_proposers_role(database: Engine, database_url: str) -> None:
    other = connect(database_url)
    with steps.begun(database, 1) as mine:
        assert mine is not None
        with steps.begun(other, 1) as taken, steps.begun(other, 2) as another_study:
            assert taken is None
            assert another_study is not None
    with steps.begun(other, 1) as free:
        assert free is not None
    other.dispose()


def test_proposers_transaction_is_all_or_nothing(study: studies.Study, database: Engine) -> None:
    def rename_and_divide(by: int) -> None:
        with steps.begun(database, study.id) as connection:
            assert connection is not None
            connection.execute(text("UPDATE densitune.studies SET name = 'renamed'"))
            assert 1 // by

    with pytest.raises(ZeroDivisionError):
        rename_and_divide(0)
    assert studies.find(database, study.name) == study
    rename_and_divide(1)
    assert studies.find(database, "renamed") is not None


def test_a_password_takes_the_place_of_the_urls_own(database: Engine) -> None:
    url = database.url.set(password="wrong").render_as_string(hide_password=False)
    engine = connect(url, password="p@ss:word/%41")
    assert engine.url.password == "p@ss:word/%41"
    assert "p@ss" not in str(engine.url)
    engine.dispose()


def test_what_the_url_says_of_a_connection_is_obeyed(database: Engine) -> None:
    url = database.url.update_query_dict(
        {
            "connect_timeout": "30",
            "application_name": "somebody's",
            "options": "-c work_mem=5MB -c statement_timeout=7s",
        }
    )
    engine = connect(
        url.render_as_string(hide_password=False)
        .replace("+", "%20")
        .replace("%20psycopg2", "+psycopg2")
    )
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.info.dsn_parameters["connect_timeout"] == "30"
        shown = [
            connection.scalar(text(f"SHOW {name}"))
            for name in ("application_name", "work_mem", "statement_timeout", "lock_timeout")
        ]
    assert shown == ["somebody's", "5MB", "7s", "5s"]
    engine.dispose()


def test_sockets_and_several_hosts_are_written_as_libpq_takes_them(database: Engine) -> None:
    folder = quote(str(database.url.query["host"]), safe="")
    port, name = database.url.query.get("port") or database.url.port, database.url.database
    for place in (f"{folder}:{port}", f"127.0.0.1:1,{folder}:{port}"):
        engine = connect(f"postgresql://postgres@{place}/{name}")
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT current_database()")) == name
        assert optuna_tables.alone(engine).engine.pool is engine.pool  # which reads the URL again
        engine.dispose()
    with pytest.raises(StorageUnreachableError, match=r"127\.0\.0\.1,localhost:1,2: "):
        connect("postgresql://me:hunter2@127.0.0.1:1,localhost:2/db")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_is_not_utf8_is_refused_at_the_first_contact(
    postgres: str, encoding: str
) -> None:
    name = f"narrow_{encoding.lower()}"
    administer(
        postgres,
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
    )
    with pytest.raises(StorageError, match=f"encoding {encoding}.*ENCODING 'UTF8'") as raised:
        connect(within(postgres, name))
    assert "\n" not in str(raised.value)
    administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")
