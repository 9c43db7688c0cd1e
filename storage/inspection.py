"""What is stored, looked at for what may be wrong with it; nothing here writes."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Engine, text

from storage import leases
from storage.failures import Kind
from storage.jobs import Claim
from storage.states import Phase


@dataclass(frozen=True, kw_only=True)
class Connections:
    """The server's connections, and who may want some."""

    admitted: int  # in all, but for those that are kept for superusers
    used: int  # by everybody
    ours: int  # of those
    live_workers: int  # of all studies


@dataclass(frozen=True, kw_only=True)
class AbandonedClaims:
    """What a worker still holds that has ended, or that others may take over."""

    host: str
    pid: int
    ended: bool  # of its own accord
    silence: float  # seconds
    claims: list[Claim]


@dataclass(frozen=True, kw_only=True)
class FailedJobs:
    """Jobs of a study that failed in the same way and have not succeeded since."""

    kind: Kind
    error: str | None
    for_good: bool
    phase: Phase
    jobs: int
    trials: list[int]
    workers: str | None  # host:pid of each


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Whether a study moves."""

    live_workers: int
    open_jobs: int
    idle: float  # seconds since the last job ended, or since the study began


def connections(engine: Engine) -> Connections:
    """Count the server's connections."""
    query = text(f"""
        SELECT current_setting('max_connections')::int
                   - current_setting('superuser_reserved_connections')::int AS admitted,
               (SELECT sum(numbackends)::int FROM pg_stat_database) AS used,
               (SELECT count(*) FROM pg_stat_activity 
                WHERE application_name = current_setting('application_name')) AS ours,
               (SELECT count(*) FROM densitune.workers WHERE {leases.ALIVE}) AS live_workers
    """)
    with engine.connect() as connection:
        return Connections(**connection.execute(query, leases.arguments()).one()._mapping)


def abandoned_claims(engine: Engine, study_id: int) -> list[AbandonedClaims]:
    """Return, by worker, the jobs of workers that have ended or whose leases have run out."""
    query = text(f"""
        SELECT host, pid, stopped_at IS NOT NULL AS ended,
               extract(epoch FROM now() - seen_at)::float AS silence,
               array_agg(jobs.id ORDER BY jobs.id) AS jobs,
               array_agg(epoch ORDER BY jobs.id) AS epochs
        FROM densitune.jobs AS jobs JOIN densitune.workers AS workers ON workers.id = worker_id
        WHERE jobs.study_id = :study
          AND (state = 'running' AND stopped_at IS NOT NULL OR {leases.EXPIRED})
        GROUP BY workers.id ORDER BY workers.id
    """)
    with engine.connect() as connection:
        rows = connection.execute(query, {**leases.arguments(), "study": study_id})
        return [
            AbandonedClaims(
                host=row.host,
                pid=row.pid,
                ended=row.ended,
                silence=row.silence,
                claims=list(zip(row.jobs, row.epochs, strict=True)),
            )
            for row in rows
        ]


def failed_jobs(engine: Engine, study_id: int) -> list[FailedJobs]:
    """Return jobs that failed, for good or not, and have not succeeded since; the oldest first.

    Those that were only handed back or lost are left out, unless it was once too often.
    """
    query = text("""
        SELECT jobs.kind, jobs.error, state = 'failed' AS for_good, phase,
               count(DISTINCT jobs.id) AS jobs, array_agg(DISTINCT trial) AS trials,
               string_agg(DISTINCT format('%s:%s', host, pid), ', ') AS workers
        FROM densitune.jobs AS jobs
        LEFT JOIN densitune.failures AS failures
            ON failures.job_id = jobs.id AND failures.kind = jobs.kind
        LEFT JOIN densitune.workers AS workers ON workers.id = failures.worker_id
        WHERE jobs.study_id = :study
          AND (state = 'failed'
               OR state IN ('waiting', 'running') AND jobs.kind NOT IN ('preempted', 'lost'))
        GROUP BY jobs.kind, jobs.error, for_good, phase ORDER BY min(jobs.id)
    """)
    with engine.connect() as connection:
        rows = connection.execute(query, {"study": study_id})
        return [FailedJobs(**row._mapping) for row in rows]


def activity(engine: Engine, study_id: int) -> Activity | None:
    """Return how busy a study is, or None if it has been deleted."""
    query = text(f"""
        SELECT (SELECT count(*) FROM densitune.workers AS workers
                WHERE workers.study_id = studies.id AND {leases.ALIVE}) AS live_workers,
               count(*) FILTER (WHERE jobs.state IN ('waiting', 'running')) AS open_jobs,
               extract(epoch FROM now() - greatest(studies.created_at, max(jobs.finished_at)))
                   ::float AS idle
        FROM densitune.studies AS studies
        LEFT JOIN densitune.jobs AS jobs ON jobs.study_id = studies.id
        WHERE studies.id = :study GROUP BY studies.id
    """)
    with engine.connect() as connection:
        row = connection.execute(query, {**leases.arguments(), "study": study_id}).one_or_none()
    return None if row is None else Activity(**row._mapping)


def measurements(engine: Engine, study_id: int) -> int:
    """Return how many measurements a study has, late ones too."""
    query = text("""
        SELECT count(*) FROM densitune.measurements
        JOIN densitune.jobs AS jobs ON jobs.id = job_id WHERE study_id = :study
    """)
    with engine.connect() as connection:
        return int(connection.execute(query, {"study": study_id}).scalar_one())


def late(engine: Engine, study_id: int) -> int:
    """Return how many measurements came after their jobs had ended."""
    query = text("""
        SELECT count(*) FROM densitune.measurements
        JOIN densitune.jobs AS jobs ON jobs.id = job_id WHERE study_id = :study AND late
    """)
    with engine.connect() as connection:
        return int(connection.execute(query, {"study": study_id}).scalar_one())


def ended_jobs(engine: Engine, ids: Collection[int]) -> list[int]:
    """Return those of these jobs of which nothing more is to come, or which are not there."""
    query = text("""
        SELECT id FROM unnest(CAST(:ids AS bigint[])) AS id
        WHERE NOT EXISTS (SELECT FROM densitune.jobs AS jobs
                          WHERE jobs.id = id.id AND state IN ('waiting', 'running'))
    """)
    with engine.connect() as connection:
        return list(connection.scalars(query, {"ids": sorted(ids)}))
