"""doctor: what is wrong is found and said in one line, what can be mended is, and nothing else."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, text
from support import simulated
from support.queued import EXPIRE, set_state, unruled
from typer.testing import CliRunner

from optimizer.cli import doctor, main
from optimizer.cli.doctor_checks import Diagnosis
from optimizer.errors import UsageError
from optimizer.phases import optuna_tables
from optimizer.phases.proposer import Proposer
from storage import database as storage_database
from storage import jobs, leases, ledger, roster, studies, trials
from storage.jobs import ClaimedJob
from storage.ledger import Entry
from storage.studies import Study
from workers.service import spool
from workers.service.checkpoint import path_of
from workers.service.spool import Delivery, Spool

NAME = simulated.small().name


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DENSITUNE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def searched(database: Engine) -> Study:
    """A study whose search has ended, and which has been stopped then."""
    return search(database, lambda job: job.densities[3][0] + job.seed)


class Open(NamedTuple):
    """A study with jobs that a worker holds."""

    study: Study
    worker: int
    jobs: list[ClaimedJob]


@pytest.fixture
def opened(database: Engine) -> Open:
    """One that has proposed nothing to Optuna yet."""
    study_id = simulated.create(database, simulated.small())
    with database.begin() as connection:
        trials.add(
            connection,
            study_id,
            "calibrate",
            number=0,
            role="rate",
            label="lr 0.01",
            densities={3: [1.0]},
            seeds=[1, 2, 3],
            budget=2,
        )
    return claimed(database)


@pytest.fixture
def proposed(database: Engine) -> Open:
    """One whose first trials have been proposed."""
    given = simulated.small(training={"budget": 2, "lr": 0.01})
    study_id = simulated.create(database, given)
    Proposer(database, study_id, given).advance()
    return claimed(database)


def search(database: Engine, measure: simulated.Measure) -> Study:
    """Search among the five densities that every study begins with."""
    given = simulated.small(training={"budget": 2, "lr": 0.01}, search={"trials": 5, "seeds": 1})
    study_id = simulated.create(database, given)
    studies.go_on(database, study_id, "search", force=True)
    simulated.go_on(database, study_id, given, measure)
    return found(database)


def claimed(database: Engine) -> Open:
    study = found(database)
    worker = roster.register(database, study.id, "host", 11, "CPU", {})
    return Open(study, worker, jobs.claim(database, study.id, worker, 99, 60))


def found(database: Engine) -> Study:
    study = studies.find(database, NAME)
    assert study is not None
    return study


def change(database: Engine, statement: str, **values: Any) -> None:
    with unruled(database) as connection:
        connection.execute(text(statement), values)


def ask(database: Engine, query: str) -> list[tuple[Any, ...]]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def wrong(database: Engine, home: Path, name: str | None = None) -> list[Diagnosis]:
    return [finding for finding in doctor.examine(database, home, name) if not finding.note]


def mended(database: Engine, home: Path) -> str:
    """Mend the one thing that is wrong; return its line."""
    [before] = wrong(database, home)
    assert "--fix" in before.remedy
    [done], failed = doctor.mend(database, home, None)
    assert (done.where, failed) == (before.where, [])
    assert wrong(database, home) == []
    return done.line


def beyond_repair(database: Engine, home: Path) -> str:
    """Try to mend the one thing that is wrong and cannot be mended; return its line."""
    [before] = wrong(database, home)
    assert "--fix" not in before.remedy
    assert doctor.mend(database, home, None) == ([], [])
    [after] = wrong(database, home)
    assert after.where == before.where
    return after.line


def delivery(job: ClaimedJob, worker: int) -> Delivery:
    made = Entry(job_id=job.id, rung=2, value=1.0, extra={}, seconds=1.0)
    return Delivery(worker_id=worker, fence=job.fence, entry=made, ending="done")


def test_a_study_in_order_has_no_findings(database: Engine, searched: Study, home: Path) -> None:
    assert doctor.examine(database, home, None) == []


def test_a_study_at_work_has_no_findings(database: Engine, proposed: Open, home: Path) -> None:
    assert doctor.examine(database, home, NAME) == []


def test_examining_changes_nothing(database: Engine, proposed: Open, home: Path) -> None:
    roster.retire(database, proposed.worker)
    tables = ("densitune.jobs", "densitune.trials", "densitune.workers", "public.trials")
    before = [ask(database, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables]
    assert wrong(database, home)
    after = [ask(database, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables]
    assert after == before


def test_jobs_of_a_worker_that_ended_go_back(database: Engine, opened: Open, home: Path) -> None:
    roster.retire(database, opened.worker)
    assert "worker host:11 has ended and still holds 3 jobs" in mended(database, home)
    assert ask(database, "SELECT DISTINCT state FROM densitune.jobs") == [("waiting",)]


def test_jobs_whose_leases_ran_out_go_back(
    database: Engine, opened: Open, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(database, EXPIRE)
    monkeypatch.setattr(leases, "RETURN_SECONDS", 1e9)  # the database came back just now
    assert wrong(database, home) == []
    monkeypatch.setattr(leases, "RETURN_SECONDS", 0.0)
    line = mended(database, home)
    assert "worker host:11 has not been heard of for " in line
    assert " s and still holds 3 jobs" in line


def test_a_job_that_was_claimed_again_meanwhile_stays_with_its_new_holder(
    database: Engine, opened: Open, home: Path
) -> None:
    roster.retire(database, opened.worker)
    [finding] = wrong(database, home)
    assert finding.fix is not None
    finding.fix()
    other = roster.register(database, opened.study.id, "host", 12, "CPU", {})
    again = jobs.claim(database, opened.study.id, other, 3, 60)
    finding.fix()
    assert jobs.heartbeat(database, other, 60).held == {job.claim for job in again}


def test_failed_jobs_are_reported_with_kind_text_and_worker(
    database: Engine, opened: Open, home: Path
) -> None:
    first, second, third = opened.jobs
    jobs.fail(database, first.claim, "KeyError: 'norm'\nof the network", "code")
    jobs.fail(database, second.claim, "training diverged", "diverged")
    again = roster.register(database, opened.study.id, "other", 12, "CPU", {})
    [taken] = jobs.claim(database, opened.study.id, again, 1, 60)
    assert taken.id == first.id
    notes = [finding.line for finding in doctor.examine(database, home, None) if finding.note]
    assert len(notes) == 2
    jobs.fail(database, taken.claim, "KeyError: 'norm'\nof the network", "code")
    line = beyond_repair(database, home)
    assert "1 job failed for good (code; calibrate, trial 0; worker host:11, other:12)" in line
    assert "KeyError: 'norm' of the network" in line
    [note] = [finding for finding in doctor.examine(database, home, None) if finding.note]
    assert "diverged" in note.line
    assert third.claim in jobs.heartbeat(database, opened.worker, 60).held


def test_an_honest_stop_is_a_note(database: Engine, opened: Open, home: Path) -> None:
    """Whether somebody stopped the study or its baseline did: a check by cron is not to fail."""
    for failure, said in (
        ("Identity is weak.", "it cannot go on: Identity is weak."),
        (None, "it is stopped, phase search is next or has begun; to go on: densitune resume"),
    ):
        set_state(database, opened.study.id, "stopped", failure)
        [note] = doctor.examine(database, home, None)
        assert note.note
        assert said in note.line


def test_a_trial_that_optuna_was_not_told_is_told(
    database: Engine, searched: Study, home: Path
) -> None:
    untold = """
        UPDATE public.trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 3
    """
    values = """
        SELECT number, state::text, value FROM public.trials
        JOIN public.trial_values USING (trial_id) ORDER BY number
    """
    before = ask(database, values)
    change(database, untold)
    change(
        database,
        "DELETE FROM public.trial_values USING public.trials AS trials "
        "WHERE trials.trial_id = trial_values.trial_id AND number = 3",
    )
    assert "trial 3 is complete, but Optuna was not told" in mended(database, home)
    assert ask(database, values) == before
    assert len(before) == 5


def test_a_value_that_is_not_the_ledgers_is_reported(
    database: Engine, searched: Study, home: Path
) -> None:
    change(database, "UPDATE public.trial_values SET value = value + 1 WHERE trial_id = 4")
    assert "another tool has written to its study" in beyond_repair(database, home)


def test_a_failed_trial_is_in_step(database: Engine, home: Path) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.trial == 4:
            raise ArithmeticError("not a number")
        return job.densities[3][0]

    search(database, measure)
    states = "SELECT state FROM densitune.trials WHERE number = 4"
    assert ask(database, states) == [("failed",)]
    assert wrong(database, home) == []


def test_lost_measurements_are_reported(database: Engine, searched: Study, home: Path) -> None:
    change(
        database,
        "DELETE FROM densitune.measurements USING densitune.jobs WHERE jobs.id = job_id "
        "AND trial = 3",
    )
    assert "measurements that trial 3 was told with have been deleted" in beyond_repair(
        database, home
    )


def test_a_lost_identity_is_reported_for_every_trial(
    database: Engine, searched: Study, home: Path
) -> None:
    change(
        database,
        "DELETE FROM densitune.measurements USING densitune.jobs WHERE jobs.id = job_id "
        "AND trial = 0",
    )
    assert len(wrong(database, home)) == 5


def test_a_deleted_optuna_study_is_reported(database: Engine, searched: Study, home: Path) -> None:
    optuna.delete_study(study_name=NAME, storage=optuna_tables.alone(database))
    assert "has been deleted with another tool" in beyond_repair(database, home)


def test_a_zombie_trial_is_failed_once_the_search_is_over(
    database: Engine, searched: Study, home: Path
) -> None:
    optuna.load_study(study_name=NAME, storage=optuna_tables.alone(database)).ask()
    assert "Optuna's trials [5] are not densitune's" in mended(database, home)
    assert ask(database, "SELECT state::text FROM public.trials WHERE number = 5") == [("FAIL",)]


def test_a_trial_of_another_tool_is_failed_during_the_search(
    database: Engine, proposed: Open, home: Path
) -> None:
    optuna.load_study(study_name=NAME, storage=optuna_tables.alone(database)).ask()
    assert "Optuna's trials [4] are not densitune's" in mended(database, home)
    assert wrong(database, home) == []


def test_a_step_that_nobody_takes_is_taken(database: Engine, proposed: Open, home: Path) -> None:
    for job in proposed.jobs:
        simulated.train(database, proposed.worker, job, lambda job: job.densities[3][0])
    assert wrong(database, home) == []
    change(database, "UPDATE densitune.jobs SET finished_at = now() - interval '5 min'")
    change(database, "UPDATE densitune.studies SET created_at = now() - interval '1 h'")
    assert "all its jobs ended 5 min " in mended(database, home)
    assert ask(database, "SELECT count(*) > 0 FROM densitune.jobs WHERE state = 'waiting'") == [
        (True,)
    ]


def test_a_running_study_without_workers_is_reported(
    database: Engine, opened: Open, home: Path
) -> None:
    change(database, "UPDATE densitune.workers SET seen_at = now() - interval '1 h'")
    assert wrong(database, home) == []  # it may have been created just now
    change(database, "UPDATE densitune.studies SET created_at = now() - interval '1 h'")
    assert f"no worker is alive; start some: densitune resume {NAME}" in beyond_repair(
        database, home
    )


def test_too_few_connections_are_counted(database: Engine, opened: Open, home: Path) -> None:
    more = """
        INSERT INTO densitune.workers (study_id, host, pid, device, versions)
        SELECT :study, 'host', number, 'CPU', '{}' FROM generate_series(1, :count) AS number
    """
    [(most,)] = ask(database, "SHOW max_connections")
    change(database, more, study=opened.study.id, count=int(most) // 4)
    assert wrong(database, home) == []
    change(database, more, study=opened.study.id, count=int(most) // 4)
    assert "too few; raise max_connections by" in beyond_repair(database, home)


def test_an_older_schema_is_brought_up_to_date(empty_url: str, home: Path) -> None:
    engine = storage_database.connect(empty_url)
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA densitune"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    assert "its schema is of revision 0002" in mended(engine, home)
    studies.create(engine, "new", {}, "fingerprint", {}, "search")
    engine.dispose()


def test_a_newer_schema_is_left_alone(database: Engine, home: Path) -> None:
    change(database, "UPDATE densitune.alembic_version SET version_num = '9999'")
    assert "revision 9999" in beyond_repair(database, home)


def test_an_empty_database_is_nothing_wrong(empty_url: str, home: Path) -> None:
    engine = create_engine(empty_url)
    [finding] = doctor.examine(engine, home, None)
    engine.dispose()
    assert finding.note


def test_what_waits_in_the_spool_is_delivered(database: Engine, opened: Open, home: Path) -> None:
    for job in opened.jobs:
        Spool(home / "spool", opened.study).put(delivery(job, opened.worker))
    assert f"3 measurements of study {NAME}" in mended(database, home)
    done = "SELECT count(*) FROM densitune.jobs WHERE state = 'done'"
    assert ask(database, done) == [(3,)]


def test_what_waits_for_another_database_is_left_alone(
    database: Engine, opened: Open, home: Path
) -> None:
    other = replace(opened.study, created_at=opened.study.created_at - timedelta(days=1))
    Spool(home / "spool", other).put(delivery(opened.jobs[0], opened.worker))
    assert "that is not in this database" in beyond_repair(database, home)
    assert spool.survey(home / "spool") == ({spool.key_of(other): 1}, [])


def test_a_damaged_measurement_is_named(database: Engine, opened: Open, home: Path) -> None:
    queue = Spool(home / "spool", opened.study)
    queue.put(delivery(opened.jobs[0], opened.worker))
    [path] = queue.pending()
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in beyond_repair(database, home)


def test_measurements_of_no_use_are_counted_by_what_they_are(
    database: Engine, opened: Open, home: Path
) -> None:
    """A line for each kind, however many there are and whatever is in them."""
    queue = Spool(home / "spool", opened.study)
    for job in opened.jobs:
        queue.put(delivery(job, opened.worker))
    first, second, third = queue.pending()
    first.write_text("[" * 100_000)
    second.write_text("9" * 5_000)
    third.rename(third.with_suffix(".json.refused"))
    damaged, refused = (finding.line for finding in wrong(database, home))
    assert f"{first} and 1 more: 2 measurements that were damaged are not delivered" in damaged
    assert "1 measurements that the database refused are not delivered" in refused


def test_files_of_other_names_among_the_checkpoints_are_nobodys(
    database: Engine, opened: Open, home: Path
) -> None:
    (home / "checkpoints").mkdir()
    for job in ("x", "9" * 30, "-1", ""):
        (home / "checkpoints" / f"{spool.key_of(opened.study).short}-{job}.pt").touch()
    assert wrong(database, home) == []


def test_checkpoints_of_ended_jobs_are_removed_and_others_stay(
    database: Engine, opened: Open, home: Path
) -> None:
    ended, open_, _ = opened.jobs
    ledger.record(database, opened.worker, [delivery(ended, 1).entry], [ended.id])
    key = spool.key_of(opened.study)
    elsewhere = replace(key, created_at="2020-01-01T00:00:00+00:00")
    folder = home / "checkpoints"
    folder.mkdir()
    keys = [(key, ended.id), (key, 10**9), (key, open_.id), (elsewhere, ended.id)]
    files = [path_of(folder, *one) for one in keys]
    for file in files:
        file.write_bytes(bytes(2**20))
    assert "2 checkpoints (2.0 MiB) of jobs of study" in mended(database, home)
    assert [file.exists() for file in files] == [False, False, True, True]


def test_half_written_files_are_removed_an_hour_later(
    database: Engine, opened: Open, home: Path
) -> None:
    (home / "spool").mkdir()
    path = home / "spool" / "x.1.part"
    path.write_bytes(b"{")
    assert wrong(database, home) == []
    earlier = time.time() - 2 * 3600
    os.utime(path, (earlier, earlier))
    assert str(path) in mended(database, home)
    assert not path.exists()


def test_a_disk_that_is_nearly_full_is_reported(
    database: Engine, opened: Open, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(home)._replace(free=100 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert f"{home}: only 100 MiB are free" in beyond_repair(database, home)


@pytest.mark.parametrize(
    ("content", "killed"),
    [
        (None, False),
        (lambda: f"{os.getpid()}\n", True),  # another process has the number by now
        (lambda: f"{_ended_process()}\n", True),
        (lambda: "", True),
    ],
)
def test_a_killed_embedded_server_is_noticed(
    home: Path, content: Callable[[], str] | None, killed: bool
) -> None:
    (home / "postgresql").mkdir()
    if content is not None:
        (home / "postgresql" / "postmaster.pid").write_text(content())
    assert [finding.note for finding in doctor.embedded(home)] == [True] * killed


def _ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_fix_that_fails_keeps_no_other_from_its_work(
    database: Engine, opened: Open, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster.retire(database, opened.worker)
    (home / "spool").mkdir()
    path = home / "spool" / "x.1.part"
    path.mkdir()
    os.utime(path, (0, 0))
    done, failed = doctor.mend(database, home, None)
    assert ["has ended" in finding.what for finding in done] == [True]
    [line] = failed
    assert str(path) in line


def test_one_study_is_examined_without_the_others(
    database: Engine, opened: Open, home: Path
) -> None:
    roster.retire(database, opened.worker)
    studies.create(database, "other", {"task": "photos"}, "fingerprint", {}, "search")
    lines = [finding.line for finding in wrong(database, home, NAME)]
    assert len(lines) == 1
    assert any("study other: " in finding.line for finding in wrong(database, home))


def run(url: str, *arguments: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(main.app, ["doctor", *arguments], env={"DENSITUNE_STORAGE": url})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout.splitlines()


def test_the_command_says_one_line_each_and_ends_with_1_until_all_is_mended(
    database: Engine, database_url: str, opened: Open, home: Path
) -> None:
    assert run(database_url) == (0, ["nothing is wrong"])
    roster.retire(database, opened.worker)
    code, [line] = run(database_url, NAME)
    assert (code, line.startswith(f"found: study {NAME}: worker host:11")) == (1, True)
    code, output = run(database_url, "--json")
    [entry] = json.loads("\n".join(output))["found"]
    assert (code, entry["fixable"], entry["note"]) == (1, True, False)
    code, [line] = run(database_url, "--fix")
    assert (code, line.startswith(f"mended: study {NAME}: worker host:11")) == (0, True)
    assert run(database_url, "--fix") == (0, ["nothing is wrong"])


def test_an_unknown_study_is_refused(database: Engine, database_url: str, home: Path) -> None:
    with pytest.raises(UsageError, match="there is no study nothing here; there are: none"):
        run(database_url, "nothing")
