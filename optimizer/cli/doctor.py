"""densitune doctor: finds what can go wrong, on this machine and in the database, and mends it.

Part of the command line, as the modules of its commands are: here the workers' spool, the storage
and the study meet.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from optimizer.cli import doctor_checks, environment
from optimizer.cli.doctor_checks import Finding
from optimizer.errors import UsageError
from storage import database, retry, server, studies
from storage.studies import Study
from workers.service import spool
from workers.service.spool import Spool

LEAST_FREE = 2**30
"""Bytes on the disk of the home folder below which doctor complains."""
ABANDONED_SECONDS = 3600.0
"""Age at which a file that was never given its name counts as left behind."""


def open_storage(url: str | None) -> Engine:
    """Connect to the server at a URL, or to the embedded one; the schema stays as it is."""
    if url is None:
        return database.connect(server.embedded_url(environment.home()))
    return database.connect(environment._with_password(url))


def embedded(home: Path) -> Iterator[Finding]:
    """Tell whether the embedded server was killed; to be asked before anybody starts it again."""
    lock = home / "postgresql" / "postmaster.pid"
    try:
        pid = int(lock.read_text().splitlines()[0])
        os.kill(pid, 0)
    except (FileNotFoundError, PermissionError):  # no lock file; somebody else's live process
        return
    except (ProcessLookupError, ValueError, IndexError):  # gone, or cut off by a crash
        yield Finding(
            where=str(lock.parent),
            what="the embedded PostgreSQL was not shut down",
            remedy="it was started again and has recovered",
            note=True,
        )


def examine(engine: Engine, home: Path, name: str | None) -> list[Finding]:
    """Return what is wrong with a study, or with all, with the database and on this machine.

    UsageError if there is no study of this name. In a database of another schema nothing else is
    looked at.
    """
    found = [*_disk(home), *_abandoned(home)]
    schema = list(doctor_checks.schema(engine))
    if schema:
        return found + schema
    chosen = _chosen(engine, name)
    found += doctor_checks.connections(engine)
    for study in chosen:
        found += doctor_checks.of_study(engine, study)
        found += _checkpoints(engine, home / "checkpoints", study)
    return found + list(_spooled(engine, home / "spool", name))


def mend(engine: Engine, home: Path, name: str | None) -> tuple[list[Finding], list[str]]:
    """Do what can be done; return what was mended, and a line for each attempt that failed."""
    mended, failed = list[Finding](), list[str]()
    for _ in range(2):  # the second time for what a mended schema brings to light
        failed.clear()
        for finding in examine(engine, home, name):
            if finding.fix is None:
                continue
            try:
                finding.fix()
            except Exception as error:  # it must not keep the others from being mended
                reason = retry.first_line(error)
                failed.append(f"{finding.where}: {finding.what}: {reason}")
            else:
                mended.append(finding)
    return mended, failed


def lines(found: list[Finding], mended: list[Finding], failed: list[str]) -> list[str]:
    """Return what doctor says to people: one line for each finding."""
    return [
        *(f"mended: {finding.where}: {finding.what}" for finding in mended),
        *(f"not mended: {line}" for line in failed),
        *(f"{'note' if finding.note else 'found'}: {finding.line}" for finding in found),
    ] or ["nothing is wrong"]


def document(found: list[Finding], mended: list[Finding], failed: list[str]) -> dict[str, Any]:
    """Return the same for programs: plain JSON values."""
    return {
        "found": [_plain(finding) for finding in found],
        "mended": [_plain(finding) for finding in mended],
        "not mended": failed,
    }


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "where": finding.where,
        "what": finding.what,
        "remedy": finding.remedy,
        "fixable": finding.fix is not None,
        "note": finding.note,
    }


def _chosen(engine: Engine, name: str | None) -> list[Study]:
    names = [one.name for one in studies.overview(engine)]
    if name is not None and name not in names:
        raise UsageError(f"there is no study {name} here; there are: {', '.join(names) or 'none'}")
    found = [studies.find(engine, one) for one in names if name in (None, one)]
    return [study for study in found if study is not None]  # None: deleted just now


def _disk(home: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(home).free if home.exists() else LEAST_FREE
    if free < LEAST_FREE:
        yield Finding(
            where=str(home),
            what=f"only {free / 2**20:.0f} MiB are free on its disk",
            remedy="free some space, or set DENSITUNE_HOME to another disk",
        )


def _abandoned(home: Path) -> Iterator[Finding]:
    """Find files that a killed process left half-written."""
    for folder in (home / "spool", home / "checkpoints"):
        for path in sorted(folder.glob("*.part")):
            with suppress(FileNotFoundError):  # finished just now
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    yield Finding(
                        where=str(path),
                        what="a process was killed while it wrote this file, which is of no use",
                        remedy="--fix removes it",
                        fix=partial(path.unlink, missing_ok=True),
                    )


def _checkpoints(engine: Engine, folder: Path, study: Study) -> Iterator[Finding]:
    """Find checkpoints of jobs that have ended: somebody else has finished them."""
    files = {
        int(path.stem.partition("-")[2]): path
        for path in folder.glob(f"{spool.key_of(study).short}-*.pt")
    }
    ended = text("""
        SELECT id FROM unnest(CAST(:ids AS bigint[])) AS id
        WHERE NOT EXISTS (SELECT FROM densitune.jobs AS jobs
                          WHERE jobs.id = id.id AND state IN ('waiting', 'running'))
    """)
    with engine.connect() as connection:
        useless = [files[job] for job in connection.scalars(ended, {"ids": sorted(files)})]
    if useless:
        size = sum(path.stat().st_size for path in useless)
        yield Finding(
            where=str(folder),
            what=f"{len(useless)} checkpoints ({size / 2**20:.1f} MiB) of jobs of study "
            f"{study.name} that have ended",
            remedy="--fix removes them",
            fix=partial(_remove, useless),
        )


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def _spooled(engine: Engine, folder: Path, name: str | None) -> Iterator[Finding]:
    """Find measurements that wait on this machine for a worker to deliver them."""
    try:
        waiting, damaged = spool.survey(folder)
    except OSError as error:
        yield Finding(
            where=str(error.filename),
            what=f"a measurement waits here and cannot be read: {error.strerror}",
            remedy="make it readable for you, or run doctor as the user of the workers",
        )
        return
    for key, count in waiting.items():
        if name not in (None, key.name):
            continue
        study = studies.find(engine, key.name)
        ours = study is not None and spool.key_of(study) == key
        yield Finding(
            where=str(folder),
            what=f"{count} measurements of study {key.name} ({key.created_at}) wait here"
            if ours
            else f"{count} measurements of a study {key.name} ({key.created_at}) that is not in "
            "this database wait here",
            remedy="--fix delivers them"
            if ours
            else f"name its database with --storage, or, if it was deleted, remove {key.short}-*",
            fix=partial(Spool(folder, study).deliver, engine) if study and ours else None,
        )
    for path in damaged:
        yield Finding(
            where=str(path),
            what="this measurement was damaged and is not delivered; its job is trained again",
            remedy="remove the file when you have looked at it",
        )
