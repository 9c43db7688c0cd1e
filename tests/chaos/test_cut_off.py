"""Connections ended and processes suspended: the study ends as if nothing had happened."""

import itertools
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from helpers.cluster import Cluster
from sqlalchemy import Engine, text
from support import audit, crew
from support.audit import Outcome
from support.crew import HURRIED, PATIENCE, Crew, Member
from support.waiting import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

SECONDS, EVERY = 60.0, 0.5
"""How long, and how often, all connections are ended."""
PAUSE = 8.0
"""Seconds for which a process is suspended: more than a lease of `support.hurried`."""
NAPS = 5
"""How often a machine is suspended: as often as a job may be lost."""


def end_all_connections(engine: Engine) -> int:
    """End what is connected to the database, but for the test itself; return how many."""
    with engine.connect() as connection:
        query = """
            SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend'
              AND pid != pg_backend_pid()
        """
        return int(connection.scalar(text(query)) or 0)


def suspend(members: Sequence[Member], seconds: float) -> None:
    """Stop processes, as Ctrl-Z or a closed lid does, and let them go on together."""
    for member in members:
        member.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    for member in members:
        member.process.send_signal(signal.SIGCONT)


def storm(shaken: Crew, engine: Engine, seconds: float, pauses: list[int]) -> tuple[int, float]:
    """End all connections again and again, and suspend each process once, one after the other.

    `pauses` are those that are still to come: 0 is the proposer, n the n-th worker. Return how many
    connections were ended, and what is left of the time.
    """
    ended, begin, asleep = 0, time.monotonic(), None
    while (now := time.monotonic() - begin) < seconds and not shaken.tend():
        ended += end_all_connections(engine)
        if asleep is not None and now > asleep[1]:
            asleep[0].process.send_signal(signal.SIGCONT)
            asleep = None
        elif asleep is None and pauses and now > PAUSE / 2:
            number = pauses.pop()
            member = shaken.workers[number - 1] if number else shaken.proposer
            member.process.send_signal(signal.SIGSTOP)
            asleep = member, now + PAUSE
        time.sleep(EVERY)
    if asleep is not None:
        asleep[0].process.send_signal(signal.SIGCONT)
    return ended, max(0.0, seconds - (time.monotonic() - begin))


def test_connections_that_end_twice_a_second_and_suspended_processes_change_nothing(
    cluster: Cluster, engine: Engine, calm: Outcome, home: Path, tmp_path: Path
) -> None:
    left, pauses = SECONDS, [2, 1, 0]
    for number in itertools.count():
        name = f"cut-off-{number}"
        path = crew.config(tmp_path, name)
        with Crew(path, cluster.url, home, program=HURRIED) as shaken:
            shaken.hire(2)
            wait_for(partial(audit.holders, engine, name), PATIENCE)
            ended, left = storm(shaken, engine, left, pauses)
            shaken.finish()
        print(f"{name}: {ended} connections ended, {audit.disturbance(engine, name)}")
        assert shaken.fallen == []
        found = audit.outcome(engine, name)
        audit.check_clean(found, crew.TRIALS)
        audit.check_equal(found, calm)
        if not left:
            break
    assert pauses == []


def test_a_machine_that_is_suspended_five_times_fails_no_job(
    cluster: Cluster, engine: Engine, calm: Outcome, home: Path, tmp_path: Path
) -> None:
    """All processes at once; PostgreSQL, somewhere else, sees every lease run out."""
    with Crew(crew.config(tmp_path, "asleep"), cluster.url, home, program=HURRIED) as dozing:
        dozing.hire(2)
        for _ in range(NAPS):
            wait_for(lambda: audit.holders(engine, "asleep"), PATIENCE)
            suspend([dozing.proposer, *dozing.workers], PAUSE)
        dozing.finish()
    print(f"asleep: {audit.disturbance(engine, 'asleep')}")
    assert dozing.fallen == []
    found = audit.outcome(engine, "asleep")
    audit.check_clean(found, crew.TRIALS)
    audit.check_equal(found, calm)
