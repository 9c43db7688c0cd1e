"""The job queue. All times are the database's; a job changes only in these ways:

waiting -> running   claim: a lease, and an epoch that fences earlier holders off
running -> running   claim again, once the lease has run out (counted in `losses`)
running -> waiting   release, by its holder
running -> failed    fail, by its holder; fail_lost, after too many losses
any     -> done      its last result arrives (storage.ledger), whoever holds the job
any     -> cut       a result below its bar arrives (storage.ledger), whoever holds the job

done and cut are final; a failed job leaves its state only while its trial runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, text

from storage import tables
from storage.arms import Arm, arm_of
from storage.studies import Phase

MAX_LOSSES = 5
"""How often a job may be lost (its worker vanishing) before the job itself is suspected."""

ERROR_CHARACTERS = 4000

Claim = tuple[int, int]
"""Job id and epoch: by this a holder proves that it still holds the job."""


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job to train, now."""

    id: int
    epoch: int
    phase: Phase
    trial: int
    densities: dict[int, tuple[float, ...]]  # by kernel size
    arm: Arm
    seed: int
    budget: int  # epochs
    bars: dict[int, float]  # by rung: with a lower value there, the job ends

    @property
    def claim(self) -> Claim:
        """What `heartbeat`, `release` and `fail` know this holding of the job by."""
        return self.id, self.epoch


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker learns from its heartbeat."""

    study_state: str | None  # None: the study has been deleted
    held: frozenset[Claim]


def enqueue(
    connection: Connection,
    study_id: int,
    trial: int,
    seeds: Sequence[int],
    budget: int,
    bars: Mapping[int, float] = MappingProxyType({}),
    phase: Phase = "search",
) -> None:
    """Add a waiting job of `budget` epochs for each seed.

    bars: by rung, the least value with which a job goes on from there.
    """
    job = {
        "study_id": study_id,
        "phase": phase,
        "trial": trial,
        "budget": budget,
        "bars": {str(rung): bar for rung, bar in bars.items()},
    }
    if seeds:
        connection.execute(insert(tables.jobs).values([{**job, "seed": seed} for seed in seeds]))


CLAIM = text("""
    WITH first AS (
        SELECT budget FROM densitune.jobs
        WHERE study_id = :study
          AND (state = 'waiting'
               OR state = 'running' AND lease_until < now() AND losses + 1 < :losses)
          AND EXISTS (SELECT FROM densitune.studies WHERE id = :study AND state = 'running')
        ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
    ), free AS (
        SELECT id FROM densitune.jobs
        WHERE study_id = :study
          AND (state = 'waiting'
               OR state = 'running' AND lease_until < now() AND losses + 1 < :losses)
          AND budget = (SELECT budget FROM first)
        ORDER BY id LIMIT :count FOR UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE densitune.jobs AS jobs
        SET state = 'running', worker_id = :worker, epoch = epoch + 1,
            losses = losses + (state = 'running')::int,
            lease_until = now() + make_interval(secs => :lease), started_at = now()
        FROM free WHERE jobs.id = free.id
        RETURNING jobs.id, epoch, phase, trial, seed, budget, bars
    )
    SELECT claimed.*, densities, arm FROM claimed
    JOIN densitune.trials AS trials
        ON study_id = :study AND trials.phase = claimed.phase AND number = claimed.trial
    ORDER BY claimed.id
""")


def claim(
    engine: Engine, study_id: int, worker_id: int, count: int, lease_seconds: float
) -> list[ClaimedJob]:
    """Claim up to `count` jobs of one budget, oldest first; none unless the study is running.

    No job is ever claimed twice at a time. A job whose lease has run out is free again.
    """
    arguments = {
        "study": study_id,
        "worker": worker_id,
        "count": count,
        "lease": lease_seconds,
        "losses": MAX_LOSSES,
    }
    with engine.begin() as connection:
        return [_claimed(row) for row in connection.execute(CLAIM, arguments)]


def heartbeat(engine: Engine, worker_id: int, lease_seconds: float) -> Beat:
    """Extend the worker's leases; return what it still holds and whether the study goes on."""
    extend = text("""
        UPDATE densitune.jobs SET lease_until = now() + make_interval(secs => :lease)
        WHERE id IN (SELECT id FROM densitune.jobs WHERE worker_id = :worker AND state = 'running'
                     ORDER BY id FOR UPDATE)
        RETURNING id, epoch
    """)
    greet = text("""
        UPDATE densitune.workers AS workers SET seen_at = now()
        FROM densitune.studies AS studies
        WHERE workers.id = :worker AND studies.id = workers.study_id
        RETURNING studies.state
    """)
    with engine.begin() as connection:
        rows = connection.execute(extend, {"worker": worker_id, "lease": lease_seconds}).all()
        state = connection.scalar(greet, {"worker": worker_id})
    return Beat(study_state=state, held=frozenset((row.id, row.epoch) for row in rows))


def release(engine: Engine, claims: Iterable[Claim]) -> None:
    """Hand jobs back, to be claimed by others at once; those no longer held stay as they are."""
    statement = text("""
        UPDATE densitune.jobs
        SET state = 'waiting', worker_id = NULL, lease_until = NULL, started_at = NULL
        WHERE id = :id AND epoch = :epoch AND state = 'running'
    """)
    # One statement for each, in the order in which everybody locks jobs.
    arguments = [{"id": job, "epoch": epoch} for job, epoch in sorted(claims)]
    if arguments:
        with engine.begin() as connection:
            connection.execute(statement, arguments)


def fail(engine: Engine, claim: Claim, error: str) -> bool:
    """Mark a job as failed, with the end of the error's text; False if it is no longer held."""
    statement = text("""
        UPDATE densitune.jobs
        SET state = 'failed', error = :error, lease_until = NULL, finished_at = now()
        WHERE id = :id AND epoch = :epoch AND state = 'running'
    """)
    arguments = {"id": claim[0], "epoch": claim[1], "error": _storable(error)}
    with engine.begin() as connection:
        return connection.execute(statement, arguments).rowcount == 1


def fail_lost(connection: Connection, study_id: int) -> int:
    """Give up jobs that were lost too often; return how many.

    They stay locked until the caller's transaction ends: call it just before.
    """
    statement = text("""
        UPDATE densitune.jobs
        SET state = 'failed', lease_until = NULL, finished_at = now(),
            losses = losses + 1,
            error = format('lost %s times: the process training it disappeared each time',
                           losses + 1)
        WHERE id IN (SELECT id FROM densitune.jobs
                     WHERE study_id = :study AND state = 'running'
                       AND lease_until < now() AND losses + 1 >= :losses
                     ORDER BY id FOR UPDATE SKIP LOCKED)
    """)
    return connection.execute(statement, {"study": study_id, "losses": MAX_LOSSES}).rowcount


def densities_of(stored: Mapping[str, Sequence[float]]) -> dict[int, tuple[float, ...]]:
    """Return densities by kernel size from their JSON form, which has text for keys."""
    return {int(size): tuple(float(x) for x in den) for size, den in stored.items()}


def _claimed(row: Row[Any]) -> ClaimedJob:
    bars = {int(rung): float(bar) for rung, bar in row.bars.items()}
    densities, arm = densities_of(row.densities), arm_of(row.arm)
    return ClaimedJob(**{**row._mapping, "bars": bars, "densities": densities, "arm": arm})


def _storable(error: str) -> str:
    """Return the end of a text, where a traceback says what happened, as PostgreSQL takes it."""
    return error.replace("\0", "").encode(errors="replace").decode()[-ERROR_CHARACTERS:]
