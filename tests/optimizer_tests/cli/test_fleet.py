"""The worker as a command: its terms, and what a real process does when it is told to leave."""

import functools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from support.checkout import ROOT
from support.stations import make_config
from support.waiting import wait_for

from optimizer.cli import environment, fleet, main, options, working
from optimizer.cli.terms import Terms
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from storage import studies, trials
from workers import preparation


@pytest.mark.parametrize(
    ("given", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1.5m", 90), ("0s", 0)]
)
def test_a_duration_has_a_unit(given: str, seconds: float) -> None:
    assert options._duration(given) == seconds


@pytest.mark.parametrize("given", ["", "10", "m", "-1s", "1d", "1h30m", "1e3s", "inf", "٣s"])
def test_what_is_no_duration_is_refused_in_one_line(given: str) -> None:
    with pytest.raises(UsageError, match="is no duration; take a number with s, m or h") as caught:
        options._duration(given)
    assert len(str(caught.value).splitlines()) == 1


def make_study(engine: Engine, budget: int, seeds: Sequence[int] = (0,)) -> StudyConfig:
    """A study with a waiting job for each seed."""
    given = make_config(budget=budget)
    bank = preparation.bank(given.data, environment.home())
    study, _ = studies.create(engine, given.name, given.document(), bank.fingerprint, {}, "search")
    with engine.begin() as connection:
        trials.add(
            connection, study.id, "search", number=0, optuna_number=0, role="candidate", label="",
            densities={3: (0.5,)}, seeds=seeds, budget=budget,
        )  # fmt: skip
    return given


@pytest.mark.parametrize(
    "terms",
    [
        Terms(None, Path("/shared/folder"), 600.0, 90.0),
        Terms(4, Path("/home of somebody/checkpoints"), math.inf, 3600.0),
    ],
)
def test_workers_of_a_fleet_are_told_the_terms(
    database: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    terms: Terms,
) -> None:  # fmt: skip
    started: list[list[str]] = []

    class Recorded:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

        def poll(self) -> int:
            return 0

        def wait(self, timeout: float | None = None) -> int:
            return 0

    given = make_study(database, budget=2)
    monkeypatch.setattr(subprocess, "Popen", Recorded)
    told = {"pack": terms.pack, "storage": None, "logs": tmp_path, "options": terms.options()}
    with fleet.Fleet(given.name, ["cpu", "cpu"], **told):  # type: ignore[arg-type]
        pass
    assert len(started) == 2
    reached: list[Terms] = []
    monkeypatch.setattr(working, "work", lambda *given: reached.append(given[-1]))
    monkeypatch.setenv("DENSITUNE_STORAGE", database_url)
    for command in started:
        place = command.index("worker")
        main.app(command[place:], standalone_mode=False)
    assert reached == [terms, terms]


def test_unless_told_a_worker_waits_for_ever_for_jobs_and_an_hour_for_the_storage(
    database: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = make_study(database, budget=2)
    reached: list[Terms] = []
    monkeypatch.setattr(working, "work", lambda *given: reached.append(given[-1]))
    monkeypatch.setenv("DENSITUNE_STORAGE", database_url)
    main.app(["worker", given.name, "--device", "cpu"], standalone_mode=False)
    assert reached == [Terms(None, environment.home() / "checkpoints", math.inf, 3600.0)]


@pytest.mark.slow
def test_a_process_that_is_told_to_leave_saves_what_the_next_one_goes_on_from(
    database: Engine, database_url: str, tmp_path: Path
) -> None:
    given = make_study(database, budget=2000)
    shared = tmp_path / "shared"

    def start(log: Path) -> subprocess.Popen[bytes]:
        command = ["-m", "optimizer.cli", "worker", given.name, "--pack", "1"]
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *command, "--checkpoints", str(shared)],
                env={**os.environ, "DENSITUNE_STORAGE": database_url, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=output,
            )

    def states() -> list[tuple[Any, ...]]:
        with database.connect() as connection:
            query = text("SELECT state, kind FROM densitune.jobs")
            return [tuple(row) for row in connection.execute(query)]

    def is_said(log: Path, sign: bytes) -> bool:
        return sign in log.read_bytes()

    for turn, sign in (("first", b" after 1 of "), ("second", b"goes on from its checkpoint")):
        log = tmp_path / turn
        process = start(log)
        try:
            wait_for(lambda: states()[0][0] == "running")
            wait_for(functools.partial(is_said, log, sign))
            process.send_signal(signal.SIGUSR1)
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert states() == [("waiting", "preempted")]
        assert [path.suffix for path in shared.iterdir()] == [".pt"]
    said = (tmp_path / "second").read_text()
    assert "SIGUSR1: leaving within 25 s" in said
    assert " after 1 of " not in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_worker_that_waits_for_the_server_leaves_when_it_is_told_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "optimizer.cli", "worker", "later", "--wait"],
            env={
                **os.environ,
                "DENSITUNE_STORAGE": "postgresql://nobody@127.0.0.1:1/nothing",
                "PYTHONPATH": str(ROOT),
            },
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: b"storage is away, trying again" in log.read_bytes())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    finally:
        process.kill()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_worker_that_a_signal_ends_is_told_of_with_its_jobs(
    database: Engine, database_url: str, tmp_path: Path
) -> None:
    study = make_study(database, budget=2000, seeds=[0, 1])

    def rows(query: str) -> list[tuple[Any, ...]]:
        with database.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "optimizer.cli", "worker", study.name, "--workers", "2"],
            env={**os.environ, "DENSITUNE_STORAGE": database_url, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    holder = """
        SELECT pid FROM densitune.workers AS workers
        JOIN densitune.jobs AS jobs ON worker_id = workers.id WHERE state = 'running'
    """
    try:
        wait_for(lambda: len(rows(holder)) == 2)
        (first,), _ = rows(holder)
        os.kill(first, signal.SIGSEGV)
        wait_for(lambda: bool(rows("SELECT FROM densitune.failures")))
        wait_for(lambda: len(rows(holder)) == 1)  # at once: the lease would last for a minute
        assert (first,) not in rows(holder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
    told = rows("SELECT kind, error FROM densitune.failures ORDER BY failed_at LIMIT 1")
    assert told == [("lost", "its process ended by signal 11 (SIGSEGV) in training")]
    logs = (environment.home() / "logs").glob(f"{study.name}.{process.pid}-*.log")
    assert any("Fatal Python error: Segmentation fault" in path.read_text() for path in logs)
