"""The spool on a full disk, of a killed worker, and with damaged files."""

import itertools
import resource
import signal
from pathlib import Path

import pytest
from helpers.cluster import Cluster
from sqlalchemy import Engine
from support import audit, crew
from support.audit import Outcome
from support.crew import HURRIED, PATIENCE, Crew
from support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LITTLE = 100
"""Bytes that a file may have on the full disk: enough to begin one, too few to finish it."""


def spooled(home: Path) -> list[Path]:
    """Return what waits for delivery, oldest first; what is still being written has no name yet."""
    files = (path for path in (home / "spool").rglob("*") if path.is_file())
    return sorted(path for path in files if path.suffix != ".part")


def ended(home: Path) -> list[list[Path]]:
    """Return, of each job whose end waits together with something before it, the files."""
    by_job = itertools.groupby(spooled(home), key=lambda path: path.name.split("-")[1])
    jobs = [list(files) for _, files in by_job]
    last = f"-{crew.FRESH_BUDGET:06d}.json"  # a calibration has the confirmation's budget
    return [files for files in jobs if len(files) > 1 and files[-1].name.endswith(last)]


def test_a_full_disk_is_named_and_loses_nothing(
    cluster: Cluster, engine: Engine, calm: Outcome, home: Path, tmp_path: Path
) -> None:
    """The limit is the kernel's on the size of a process's files, which needs no privileges."""
    with Crew(crew.config(tmp_path, "full"), cluster.url, home, until="calibrate") as cramped:
        [worker] = cramped.hire(pack=2)
        wait_for(lambda: audit.holders(engine, "full"), PATIENCE)
        hard = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (LITTLE, hard))
        cluster.stop("fast")
        wait_for(lambda: str(home / "spool") in worker.text(), PATIENCE)
        assert worker.process.poll() is None
        assert spooled(home) == []
        cluster.start()
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        cramped.finish()
    assert cramped.fallen == []
    audit.check_rows("ledger", audit.read(engine, audit.LEDGER, "full"), calm.calibrated)
    assert audit.claims(engine, "full") == {(1, 0)}, "a job was claimed again"
    assert crew.leftovers(home) == []


def test_damaged_files_are_set_aside_and_the_rest_of_a_killed_workers_spool_is_delivered(
    cluster: Cluster, engine: Engine, calm: Outcome, home: Path, tmp_path: Path
) -> None:
    path = crew.config(tmp_path, "damaged")
    with Crew(path, cluster.url, home, program=HURRIED, until="calibrate") as shaken:
        [doomed] = shaken.hire(pack=4)
        wait_for(lambda: audit.holders(engine, "damaged"), PATIENCE)
        cluster.stop("fast")
        wait_for(lambda: len(ended(home)) >= 3, PATIENCE)
        shaken.end(doomed, signal.SIGKILL)
        doomed.process.wait()
        (short, *_), (*_, altered), whole = ended(home)[:3]
        short.write_bytes(short.read_bytes()[:-20])
        altered.write_bytes(altered.read_bytes().replace(b"1", b"2"))
        cluster.start()
        [following] = shaken.hire()
        shaken.finish()
    assert shaken.fallen == []
    said = following.text()
    for damaged in (short, altered):
        assert damaged.name in said
    assert crew.leftovers(home) == []  # both were measured again, so what was aside is settled
    assert not any(path.name in said for path in whole)
    audit.check_rows("ledger", audit.read(engine, audit.LEDGER, "damaged"), calm.calibrated)
    assert {row[5] for row in audit.outcome(engine, "damaged").jobs} == {"done"}
