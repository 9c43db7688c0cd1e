"""densitune doctor: finds what can go wrong, on this machine and in the database, and mends it.

Part of the command line, as the modules of its commands are: here the workers' spool, the storage
and the study meet.
"""

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from optimizer import snapshot
from optimizer.cli import doctor_checks
from optimizer.cli.doctor_checks import Diagnosis
from storage import inspection, server, studies
from storage.retry import first_line
from storage.studies import Study
from workers.service import spool
from workers.service.spool import Spool

LEAST_FREE = 2**30
"""Bytes on the disk of the home folder below which doctor complains."""
ABANDONED_SECONDS = 3600.0
"""Age at which a file that was never given its name counts as left behind."""


def embedded(home: Path) -> Iterator[Diagnosis]:
    """Tell whether the embedded server was killed; to be asked before anybody starts it again."""
    if server.was_killed(home):
        yield Diagnosis(
            where=str(server.data_folder(home)),
            what="the embedded PostgreSQL was not shut down",
            remedy="it was started again and has recovered",
            note=True,
        )


def examine(engine: Engine, home: Path, name: str | None) -> list[Diagnosis]:
    """Return what is wrong with a study, or with all, with the database and on this machine.

    UsageError if there is no study of this name. In a database of another schema nothing else is
    looked at.
    """
    diagnoses = [*_disk(home), *_abandoned(home)]
    schema = list(doctor_checks.schema(engine))
    if schema:
        return diagnoses + schema
    chosen = _chosen(engine, name)
    diagnoses += doctor_checks.connections(engine)
    diagnoses += doctor_checks.leftovers(engine)
    for study in chosen:
        diagnoses += doctor_checks.of_study(engine, study)
        diagnoses += _checkpoints(engine, home / "checkpoints", study)
    return diagnoses + list(_spooled(engine, home / "spool", name))


def mend(engine: Engine, home: Path, name: str | None) -> tuple[list[Diagnosis], list[str]]:
    """Do what can be done; return what was mended, and a line for each attempt that failed."""
    mended, failed = list[Diagnosis](), list[str]()
    for _ in range(2):  # the second time for what a mended schema brings to light
        failed.clear()
        for diagnosis in examine(engine, home, name):
            if diagnosis.fix is None:
                continue
            try:
                diagnosis.fix()
            except Exception as error:  # it must not keep the others from being mended
                failed.append(f"{diagnosis.where}: {diagnosis.what}: {first_line(error)}")
            else:
                mended.append(diagnosis)
    return mended, failed


def to_lines(diagnoses: list[Diagnosis], mended: list[Diagnosis], failed: list[str]) -> list[str]:
    """Return what doctor says to people: one line for each diagnosis."""
    return [
        *(f"mended: {diagnosis.where}: {diagnosis.what}" for diagnosis in mended),
        *(f"not mended: {line}" for line in failed),
        *(f"{'note' if one.note else 'found'}: {one.line}" for one in diagnoses),
    ] or ["nothing is wrong"]


def to_document(
    diagnoses: list[Diagnosis], mended: list[Diagnosis], failed: list[str]
) -> dict[str, Any]:
    """Return the same for programs: plain JSON values."""
    return {
        "found": [_plain(diagnosis) for diagnosis in diagnoses],
        "mended": [_plain(diagnosis) for diagnosis in mended],
        "not mended": failed,
    }


def _plain(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "where": diagnosis.where,
        "what": diagnosis.what,
        "remedy": diagnosis.remedy,
        "fixable": diagnosis.fix is not None,
        "note": diagnosis.note,
    }


def _chosen(engine: Engine, name: str | None) -> list[Study]:
    if name is not None:
        return [snapshot.stored(engine, name)]
    listed = [studies.find(engine, study.name) for study in studies.overview(engine)]
    return [study for study in listed if study is not None]  # None: deleted just now


def _disk(home: Path) -> Iterator[Diagnosis]:
    free = shutil.disk_usage(home).free if home.exists() else LEAST_FREE
    if free < LEAST_FREE:
        yield Diagnosis(
            where=str(home),
            what=f"only {free / 2**20:.0f} MiB are free on its disk",
            remedy="free some space, or set DENSITUNE_HOME to another disk",
        )


def _abandoned(home: Path) -> Iterator[Diagnosis]:
    """Find files that a killed process left half-written."""
    for folder in (home / "spool", home / "checkpoints"):
        for path in sorted(folder.glob("*.part")):
            with suppress(FileNotFoundError):  # finished just now
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    yield Diagnosis(
                        where=str(path),
                        what="a process was killed while it wrote this file, which is of no use",
                        remedy="--fix removes it",
                        fix=partial(path.unlink, missing_ok=True),
                    )


def _checkpoints(engine: Engine, folder: Path, study: Study) -> Iterator[Diagnosis]:
    """Find checkpoints of jobs that have ended: somebody else has finished them."""
    files = {
        int(job): path
        for path in folder.glob(f"{spool.key_of(study).short}-*.pt")
        if re.fullmatch("[0-9]{12,18}", job := path.stem.partition("-")[2])
    }
    useless = [files[job] for job in inspection.ended_jobs(engine, files)]
    if useless:
        size = sum(path.stat().st_size for path in useless)
        yield Diagnosis(
            where=str(folder),
            what=f"{len(useless)} checkpoints ({size / 2**20:.1f} MiB) of jobs of study "
            f"{study.name} that have ended",
            remedy="--fix removes them",
            fix=partial(_remove, useless),
        )


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def _spooled(engine: Engine, folder: Path, name: str | None) -> Iterator[Diagnosis]:
    """Find measurements that wait on this machine for a worker to deliver them."""
    try:
        waiting, aside = spool.survey(folder)
    except OSError as error:
        yield Diagnosis(
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
        yield Diagnosis(
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
    for refused in (False, True):
        if paths := [path for path in aside if (path.suffix == ".refused") is refused]:
            yield Diagnosis(
                where=str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else ""),
                what=f"{len(paths)} measurements "
                f"{'that the database refused' if refused else 'that were damaged'} "
                "are not delivered; their jobs are trained again",
                remedy="the workers' logs say why; remove what you have looked at",
            )
