"""The ledger: every measurement that was ever made, append-only, one per job and rung.

A job's seed fixes its result, so that it does not matter who measured, or how often. What arrives
after a job has ended is kept apart, marked as late (by the database, migration 0007): by then bars,
proposals and verdicts may have gone by what was there.

What the test split said is sealed: it stands in the ledger from a job's end on, and `unsealed`
alone reads it, of a study that has its verdicts. All else here leaves it in the database.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.dialects.postgresql import insert

from storage import tables
from storage.errors import UnreadableError
from storage.jobs import densities_of
from storage.states import Phase, Role

RECENT_SECONDS = 1800.0
"""The window over which the current rate of finished jobs is taken."""
MOST_VALUE, MOST_SECONDS = 1e6, 1e9
"""What the schema lets in (migration 0007); older ones let in NaN, too."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A measurement as it is entered: a job's result at a rung."""

    job_id: int
    rung: int  # epochs trained so far
    value: float
    extra: Mapping[str, Any]  # JSON; numbers that are not finite are stored as null
    seconds: float  # of training so far


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A measurement as it is read, with the job that it belongs to."""

    trial: int
    seed: int
    budget: int
    rung: int
    value: float
    extra: dict[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured(LedgerRow):
    """A measurement with all that it is of, and who made it."""

    phase: Phase
    role: Role
    label: str
    origin: int | None  # number of the search's trial that a trial of a confirmation belongs to
    densities: dict[int, tuple[float, ...]]  # by kernel size
    arm: dict[str, Any]  # JSON: how its training differs from the study's
    worker: int | None  # its id
    host: str | None
    device: str | None


def record(
    engine: Engine,
    worker_id: int,
    entries: Sequence[Entry],
    finished: Sequence[int],
    cut: Sequence[int] = (),
) -> None:
    """Store measurements and mark jobs as done (`finished`) or as cut, all or nothing.

    What is there already stays as it is, so again is harmless. A job ends whoever holds it; what
    comes for one that has ended before is late. Jobs of a deleted study are ignored.
    """
    lock = text("SELECT id FROM densitune.jobs WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
    end = text("""
        UPDATE densitune.jobs
        SET state = :state, finished_at = now(), lease_until = NULL, kind = NULL, error = NULL,
            worker_id = (SELECT id FROM densitune.workers WHERE id = :worker)
        WHERE id = ANY(:ids) AND state IN ('waiting', 'running')
    """)
    ids = sorted({*(new.job_id for new in entries), *finished, *cut})
    with engine.begin() as connection:
        existing = set(connection.scalars(lock, {"ids": ids}))
        rows = [_row(new, worker_id) for new in entries if new.job_id in existing]
        if rows:
            connection.execute(insert(tables.measurements).values(rows).on_conflict_do_nothing())
        for state, ended in (("done", finished), ("cut", cut)):
            arguments = {"ids": list(ended), "state": state, "worker": worker_id}
            connection.execute(end, arguments)


def read(connection: Connection, study_id: int, phase: Phase) -> list[LedgerRow]:
    """Return the measurements of a study's phase by trial, seed, budget and rung, but late ones.

    Without the scores of images and what the test split said. UnreadableError if one is none: an
    older schema let it in.
    """
    query = text("""
        SELECT trial, seed, budget, rung, value, seconds, CASE WHEN jsonb_typeof(extra) = 'object'
                   THEN extra - 'images' - 'sealed' ELSE extra END AS extra
        FROM densitune.measurements AS measurements
        JOIN densitune.jobs AS jobs ON jobs.id = job_id
        WHERE study_id = :study AND phase = :phase AND NOT late
        ORDER BY trial, seed, budget, rung
    """)
    rows = connection.execute(query, {"study": study_id, "phase": phase})
    return [_readable(row) for row in rows]


def everything(connection: Connection, study_id: int) -> list[Measured]:
    """Return a study's measurements of all phases by trial, seed, budget and rung, as `read` does.

    What the test split said is not among them, before a verdict and after it: neither what is
    sealed nor jobs on the test split alone, which earlier versions queued after a verdict.
    """
    query = text("""
        SELECT jobs.phase, jobs.trial, role, label, origin, densities, arm, seed, budget, rung,
               value, seconds, measurements.worker_id AS worker, host, device,
               CASE WHEN jsonb_typeof(extra) = 'object'
                   THEN extra - 'images' - 'sealed' ELSE extra END AS extra
        FROM densitune.measurements AS measurements
        JOIN densitune.jobs AS jobs ON jobs.id = job_id
        JOIN densitune.trials AS trials ON trials.study_id = jobs.study_id
            AND trials.phase = jobs.phase AND trials.number = jobs.trial
        LEFT JOIN densitune.workers AS workers ON workers.id = measurements.worker_id
        WHERE jobs.study_id = :study AND NOT late AND arm ->> 'split' IS DISTINCT FROM 'test'
        ORDER BY jobs.trial, seed, budget, rung
    """)
    rows = connection.execute(query, {"study": study_id})
    return [Measured(**{**_checked(row), "densities": densities_of(row.densities)}) for row in rows]


def lacking(connection: Connection, study_id: int, phase: Phase) -> int:
    """Return how many jobs of a phase have ended with measurements that are not there (any more).

    The schema lets no job end so (migration 0007); an older one did, and its owner may delete them.
    """
    query = text("""
        SELECT count(*) FROM densitune.jobs AS jobs
        WHERE study_id = :study AND phase = :phase AND state IN ('done', 'cut') AND NOT EXISTS (
            SELECT FROM densitune.measurements WHERE job_id = jobs.id AND NOT late
            AND (rung = jobs.budget OR state = 'cut'))
    """)
    return int(connection.scalar(query, {"study": study_id, "phase": phase}) or 0)


def with_images(connection: Connection, study_id: int, trials: Collection[int]) -> list[LedgerRow]:
    """Return the last measurements of these trials of a confirmation by trial and seed, but late.

    `extra` has the scores of the validation images where they were stored (storage.image_scores).
    """
    told = "CASE WHEN jsonb_typeof(extra) = 'object' THEN extra - 'sealed' ELSE extra END"
    return [_readable(row) for row in _last(connection, study_id, trials, told)]


def unsealed(
    connection: Connection, study_id: int, trials: Collection[int], phase: Phase = "confirm"
) -> list[LedgerRow]:
    """Return what the test split said of these trials of a phase, by trial and seed.

    Nothing before the study has its verdicts. `value` and `extra` are the test split's here; what
    has none, or none that can be read, is left out.
    """
    decided = text("""
        SELECT phase = 'decided' AND verdicts IS NOT NULL FROM densitune.studies WHERE id = :study
    """)
    if not connection.scalar(decided, {"study": study_id}):
        return []
    return [
        replace(_readable(row), value=float(row.extra["value"]))
        for row in _last(connection, study_id, trials, "extra -> 'sealed'", phase)
        if isinstance(row.extra, dict) and _is_value(row.extra.get("value"))
    ]


def jobs_per_hour(connection: Connection, study_id: int, phase: Phase) -> float:
    """Return the rate at which jobs of a phase were done or cut within the last RECENT_SECONDS.

    A phase younger than that is measured from when its first job started.
    """
    rate = text("""
        SELECT count(*) FILTER (WHERE state IN ('done', 'cut')
                                AND finished_at > now() - make_interval(secs => :window)) * 3600.0
               / greatest(1, least(:window, extract(epoch FROM now() - min(started_at))))
        FROM densitune.jobs WHERE study_id = :study AND phase = :phase
    """)
    arguments = {"study": study_id, "phase": phase, "window": RECENT_SECONDS}
    return float(connection.scalar(rate, arguments) or 0)


def _readable(row: Row[Any]) -> LedgerRow:
    return LedgerRow(**_checked(row))


def _checked(row: Row[Any]) -> dict[str, Any]:
    within = abs(row.value) <= MOST_VALUE and 0 <= row.seconds <= MOST_SECONDS  # not so of NaN
    if within and isinstance(row.extra, dict):
        return dict(row._mapping)
    raise UnreadableError(
        f"a stored value cannot be read: what trial {row.trial} is said to have reached with seed "
        f"{row.seed} after {row.rung} epochs is no measurement"
    )


def _last(
    connection: Connection,
    study_id: int,
    trials: Collection[int],
    beside: str,
    phase: Phase = "confirm",
) -> Sequence[Row[Any]]:
    """Return what jobs of a phase measured after their budgets, with what is beside it."""
    query = text(f"""
        SELECT trial, seed, budget, rung, value, seconds, {beside} AS extra
        FROM densitune.measurements AS measurements
        JOIN densitune.jobs AS jobs ON jobs.id = job_id
        WHERE study_id = :study AND phase = :phase AND trial = ANY(:trials) AND rung = budget
            AND NOT late
        ORDER BY trial, seed
    """)
    return connection.execute(
        query, {"study": study_id, "trials": list(trials), "phase": phase}
    ).all()


def _is_value(told: object) -> bool:
    """Tell whether this is a metric: nothing of ours writes else, but a worker's role may."""
    return isinstance(told, int | float) and abs(told) <= MOST_VALUE


def _row(new: Entry, worker_id: int) -> dict[str, Any]:
    return {
        "job_id": new.job_id,
        "rung": new.rung,
        "value": new.value,
        "extra": _finite(new.extra),
        "seconds": new.seconds,
        "worker_id": worker_id,
    }


def _finite(value: Any) -> Any:
    """Return a JSON value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
