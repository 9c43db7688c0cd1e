"""The job queue. All times are the database's; a job changes only in these ways:

waiting -> running   claim: a lease, and a number that fences earlier holders off
running -> running   claim again, once the lease has run out (a loss, unless the holder returns)
running -> waiting   release or fail, by its holder; lose, by whoever saw its process die
running -> failed    fail, by its holder, if the policy says so; fail_lost or lose, after too many
                     losses
open    -> done      its last result arrives (storage.ledger), whoever holds the job
open    -> cut       a result below its bar arrives (storage.ledger), whoever holds the job

done, cut and failed are final. The number that fences is the column `epoch`. The database holds
writers to that by rules of its own (migration 0007), and enters a failure (storage.failures) itself
when a job is lost, handed back or failed. Each function says what becomes of it when it is called
again because its acknowledgement was lost (storage.retry).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, text

from storage import failures, leases, tables
from storage.errors import UnreadableError
from storage.failures import POLICIES, Kind
from storage.states import Phase

ERROR_CHARACTERS = 4000

Claim = tuple[int, int]
"""Job id and fencing number, one more at every claim of the job: by this a holder proves that it
still holds the job."""


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job to train, now."""

    id: int
    fence: int
    phase: Phase
    trial: int
    densities: dict[int, tuple[float, ...]]  # by kernel size
    arm: Mapping[str, Any]  # JSON: how its training differs from the study's
    seed: int
    budget: int  # epochs
    bars: dict[int, float]  # by rung: with a lower value there, the job ends

    @property
    def claim(self) -> Claim:
        """What `heartbeat`, `release` and `fail` know this holding of the job by."""
        return self.id, self.fence


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker learns from its heartbeat."""

    study_state: str | None  # None: the study has been deleted
    held: frozenset[Claim]


def enqueue(
    connection: Connection,
    study_id: int,
    phase: Phase,
    trial: int,
    seeds: Sequence[int],
    budget: int,
    bars: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """Add a waiting job of `budget` epochs for each seed.

    bars: by rung, the least value with which a job goes on from there. Part of a proposer's step,
    which is all or nothing and begins anew with what is stored.
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


CLAIM = text(f"""
    WITH first AS (
        SELECT budget, phase FROM densitune.jobs AS jobs
        WHERE study_id = :study AND {leases.FREE}
          AND (CAST(:phase AS text) IS NULL OR phase = :phase)
          AND EXISTS (SELECT FROM densitune.studies WHERE id = :study AND state = 'running')
        ORDER BY id LIMIT 1 FOR UPDATE OF jobs SKIP LOCKED
    ), free AS (
        SELECT id FROM densitune.jobs AS jobs
        WHERE study_id = :study AND {leases.FREE}
          AND (budget, phase) = (SELECT budget, phase FROM first)
        ORDER BY id LIMIT :count FOR UPDATE OF jobs SKIP LOCKED
    ), claimed AS (
        UPDATE densitune.jobs AS jobs
        SET state = 'running', worker_id = :worker, epoch = jobs.epoch + 1,
            losses = losses + (jobs.state = 'running')::int,
            kind = CASE WHEN jobs.state = 'running' THEN 'lost' ELSE kind END,
            error = CASE WHEN jobs.state = 'running' THEN NULL ELSE error END,
            lease_until = now() + make_interval(secs => :lease), started_at = now()
        FROM free WHERE jobs.id = free.id
        RETURNING jobs.id, jobs.epoch AS fence, phase, trial, seed, budget, bars
    )
    SELECT claimed.*, densities, arm FROM claimed
    JOIN densitune.trials AS trials
        ON study_id = :study AND trials.phase = claimed.phase AND number = claimed.trial
    ORDER BY claimed.id
""")


def claim(
    engine: Engine,
    study_id: int,
    worker_id: int,
    count: int,
    lease_seconds: float,
    phase: Phase | None = None,
) -> list[ClaimedJob]:
    """Claim up to `count` jobs of one phase (of this one, if given) and budget, oldest first.

    None unless the study is running.

    No job is ever claimed twice at a time. A job whose lease has run out is free again, and so is
    one that failed, but for the worker that it failed on only if there is no other.

    Again, it claims others: those of a claim that was not acknowledged are in what the heartbeat
    says the worker holds, and it has to release them.
    """
    arguments = {
        **leases.arguments(),
        "study": study_id,
        "worker": worker_id,
        "count": count,
        "lease": lease_seconds,
        "phase": phase,
    }
    with engine.begin() as connection:
        return [_claimed(row) for row in connection.execute(CLAIM, arguments)]


def heartbeat(engine: Engine, worker_id: int, lease_seconds: float) -> Beat:
    """Extend the worker's leases; return what it still holds and whether the study goes on.

    Again is harmless.
    """
    extend = text("""
        UPDATE densitune.jobs SET lease_until = now() + make_interval(secs => :lease)
        WHERE id IN (SELECT id FROM densitune.jobs WHERE worker_id = :worker AND state = 'running'
                     ORDER BY id FOR UPDATE)
        RETURNING id, epoch AS fence
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
    return Beat(study_state=state, held=frozenset((row.id, row.fence) for row in rows))


GIVE_BACK = text(f"""
    WITH held AS (
        SELECT id FROM densitune.jobs
        WHERE id = :id AND epoch = :fence AND state = 'running' FOR UPDATE
    ), earlier AS (
        SELECT count(*) AS number FROM densitune.failures AS failures
        WHERE job_id = :id AND kind = ANY(:counted) AND NOT {leases.RETURNED}
    ), ended AS (
        SELECT held.id, coalesce(number + 1 >= CAST(:limit AS integer), false) AS for_good
        FROM held, earlier
    )
    UPDATE densitune.jobs AS jobs
    SET state = CASE WHEN for_good THEN 'failed' ELSE 'waiting' END, kind = :kind,
        losses = losses + (:kind = 'lost')::int,
        error = coalesce(:error, CASE WHEN for_good THEN :said END),
        worker_id = CASE WHEN for_good THEN worker_id END, lease_until = NULL,
        started_at = CASE WHEN for_good THEN started_at END,
        finished_at = CASE WHEN for_good THEN now() END
    FROM ended WHERE jobs.id = ended.id
""")


def release(engine: Engine, claims: Iterable[Claim], kind: Kind = "preempted") -> None:
    """Hand jobs back, none of which is to blame, to be claimed by others at once.

    Those no longer held stay as they are. Again is harmless.
    """
    # One statement for each, in the order in which everybody locks jobs.
    arguments = [_given_back(claim, kind, None) for claim in sorted(claims)]
    if arguments:
        with engine.begin() as connection:
            connection.execute(GIVE_BACK, arguments)


def fail(engine: Engine, claim: Claim, error: str, kind: Kind) -> bool:
    """Note that a job failed, with the end of the error's text; False if it is no longer held.

    The policy of the kind (storage.failures) says whether it is failed for good or goes back into
    the queue. Again is harmless, and returns False.
    """
    with engine.begin() as connection:
        arguments = _given_back(claim, kind, _storable(error))
        return connection.execute(GIVE_BACK, arguments).rowcount == 1


def lose(engine: Engine, study_id: int, token: str, error: str) -> int:
    """Take back the jobs of the worker with a token, whose process has died; return how many.

    They count as lost, without waiting for their leases to run out, and the worker as ended. Again
    is harmless, and returns 0.
    """
    dead = text("""
        SELECT id FROM densitune.workers
        WHERE study_id = :study AND versions ->> 'token' = :token AND stopped_at IS NULL
    """)
    # The clock may have gone back since it was seen.
    stop = text("""
        UPDATE densitune.workers SET stopped_at = now(), seen_at = least(seen_at, now())
        WHERE id = ANY(:workers) AND stopped_at IS NULL
    """)
    held = text("""
        SELECT id, epoch FROM densitune.jobs
        WHERE worker_id = ANY(:workers) AND state = 'running' ORDER BY id FOR UPDATE
    """)
    with engine.begin() as connection:
        workers = list(connection.scalars(dead, {"study": study_id, "token": token}))
        claims = connection.execute(held, {"workers": workers}).all()
        for job, fence in claims:
            connection.execute(GIVE_BACK, _given_back((job, fence), "lost", _storable(error)))
        connection.execute(stop, {"workers": workers})  # jobs before workers, as everybody does
    return len(claims)


def fail_lost(connection: Connection, study_id: int) -> int:
    """Give up jobs that were lost too often; return how many.

    They stay locked until the caller's transaction ends: call it just before. Again is harmless.
    """
    statement = text(f"""
        WITH lost AS (
            SELECT id, {leases.LOSSES} AS times FROM densitune.jobs AS jobs
            WHERE study_id = :study AND {leases.LOST_TOO_OFTEN}
            ORDER BY id FOR UPDATE SKIP LOCKED
        )
        UPDATE densitune.jobs AS jobs
        SET state = 'failed', lease_until = NULL, finished_at = now(), losses = losses + 1,
            kind = 'lost',
            error = format('lost %s times: the process training it disappeared each time', times)
        FROM lost WHERE jobs.id = lost.id
    """)
    arguments = {**leases.arguments(), "study": study_id}
    return connection.execute(statement, arguments).rowcount


def densities_of(stored: Mapping[str, Sequence[float]]) -> dict[int, tuple[float, ...]]:
    """Return densities by kernel size from their JSON form, which has text for keys.

    UnreadableError if they are none: nothing of ours writes that, but a database's owner may.
    """
    try:
        if all(isinstance(den, list) for den in stored.values()):
            return {int(size): tuple(float(x) for x in den) for size, den in stored.items()}
    except (AttributeError, OverflowError, TypeError, ValueError):
        pass  # said below
    raise UnreadableError("a stored value cannot be read: the densities of a trial are none")


def _claimed(row: Row[Any]) -> ClaimedJob:
    bars = {int(rung): float(bar) for rung, bar in row.bars.items()}
    densities = densities_of(row.densities)
    return ClaimedJob(**{**row._mapping, "bars": bars, "densities": densities})


def _given_back(claim: Claim, kind: Kind, error: str | None) -> dict[str, Any]:
    return {
        "id": claim[0],
        "fence": claim[1],
        "kind": kind,
        "error": error,
        "limit": POLICIES[kind].limit,
        "said": POLICIES[kind].said,
        "counted": failures.counted_with(kind),
    }


def _storable(error: str) -> str:
    """Return the end of a text, where a traceback says what happened, as PostgreSQL takes it."""
    return error.replace("\0", "").encode(errors="replace").decode()[-ERROR_CHARACTERS:]
