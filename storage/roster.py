"""The workers of a study: who they are, whether they live, what they have done."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, text, update

from storage import leases, tables

TOKEN = "DENSITUNE_WORKER_TOKEN"
"""The variable in which a worker finds its token: a process number comes again, and two machines
may have one name."""


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """A worker, past or present."""

    id: int
    host: str
    pid: int
    device: str
    versions: dict[str, Any]
    started_at: datetime
    seen_at: datetime
    stopped_at: datetime | None
    live: bool
    jobs_done: int  # or cut
    jobs_per_hour: float  # over the time from its start to its last sign of life


def register(
    engine: Engine,
    study_id: int,
    host: str,
    pid: int,
    device: str,
    versions: Mapping[str, Any],
    token: str | None = None,
) -> int:
    """Enter a worker that starts; return its id. IntegrityError if there is no such study.

    By the token of whoever has started it, `jobs.lose` knows it among all processes there are.
    Again, it enters another one; the first is never heard of and counts as gone after a while.
    """
    new = insert(tables.workers).values(
        study_id=study_id,
        host=_shown(host),
        pid=pid,
        device=_shown(device),
        versions=dict(versions) if token is None else {**versions, "token": token},
    )
    with engine.begin() as connection:
        worker_id: int = connection.execute(new.returning(tables.workers.c.id)).scalar_one()
        return worker_id


def _shown(name: str) -> str:
    """Return a name as the database takes it, with ? for what commands terminals."""
    return "".join(mark if mark.isprintable() else "?" for mark in name)[:255]


def retire(engine: Engine, worker_id: int) -> None:
    """Note that a worker has stopped of its own accord; again is harmless."""
    with engine.begin() as connection:
        connection.execute(
            update(tables.workers)
            .where(tables.workers.c.id == worker_id)
            .values(stopped_at=func.now(), seen_at=func.now())
        )


def read(connection: Connection, study_id: int) -> list[WorkerRow]:
    """Return the study's workers in the order in which they started."""
    query = text(f"""
        SELECT workers.id, host, pid, device, versions, workers.started_at, seen_at, stopped_at,
               {leases.ALIVE} AS live,
               count(jobs.id) AS jobs_done,
               count(jobs.id) * 3600.0::float
                   / greatest(1, extract(epoch FROM seen_at - workers.started_at)::float)
                   AS jobs_per_hour
        FROM densitune.workers AS workers
        LEFT JOIN densitune.jobs AS jobs
            ON jobs.worker_id = workers.id AND jobs.state IN ('done', 'cut')
        WHERE workers.study_id = :study
        GROUP BY workers.id
        ORDER BY workers.id
    """)
    rows = connection.execute(query, {**leases.arguments(), "study": study_id})
    return [WorkerRow(**row._mapping) for row in rows]
