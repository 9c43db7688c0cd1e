"""Failures: why a job came back without a result, and what follows from that.

Every kind has one policy, here and in docs/robustness.md. Nobody's fault puts a job back into the
queue as often as it takes; what may be the job's own fault is tried once more, by another worker if
there is one. Which worker failed a job changes neither what is measured nor what is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from sqlalchemy import Connection, text

MAX_LOSSES = 5
"""How often a job may be lost before the job itself is suspected. A loss counts only if its holder
was not heard of afterwards (storage.leases)."""

Kind = Literal["preempted", "lost", "out_of_memory", "diverged", "data", "code", "storage"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What follows from failures of a kind."""

    limit: int | None
    """The failure with which the job is failed for good; None if there is none."""
    own: bool
    """Whether it may be the job's own fault; all such failures count together."""
    elsewhere: bool = False
    """Whether another worker tries next, if there is one."""
    said: str | None = None
    """Why a job with that many was failed, the same whoever failed it."""


POLICIES: Mapping[Kind, Policy] = MappingProxyType(
    {
        # The worker was told to end, or hands back what it cannot go on with.
        "preempted": Policy(limit=None, own=False),
        # The worker vanished: its lease ran out. A job that always ends so may be what kills them.
        "lost": Policy(limit=MAX_LOSSES, own=False, said="its workers vanished each time"),
        # Memory is a matter of the device, for all jobs of a study need about the same.
        "out_of_memory": Policy(limit=None, own=False, elsewhere=True),
        # The seed fixes the result, so it would come out the same.
        "diverged": Policy(limit=1, own=True, said="training diverged"),
        "data": Policy(limit=2, own=True, elsewhere=True, said="its data could not be read, twice"),
        "code": Policy(limit=2, own=True, elsewhere=True, said="training failed, twice"),
        # The results could not be delivered, which says nothing about the job.
        "storage": Policy(limit=None, own=False),
    }
)


def counted_with(kind: Kind) -> list[Kind]:
    """Return the kinds whose failures count towards the limit of `kind`."""
    if not POLICIES[kind].own:
        return [kind]
    return [other for other, policy in POLICIES.items() if policy.own]


@dataclass(frozen=True, kw_only=True)
class FailureCount:
    """How often a study's jobs failed in a way, and the last time that happened."""

    kind: Kind
    times: int
    phase: str
    trial: int
    seed: int
    error: str | None
    host: str | None  # None if the worker is not known any more
    pid: int | None
    failed_at: datetime


def counts(connection: Connection, study_id: int) -> list[FailureCount]:
    """Return the failures of a study by kind, also those of jobs that came to their end later."""
    query = text("""
        SELECT DISTINCT ON (failures.kind)
               failures.kind, count(*) OVER (PARTITION BY failures.kind) AS times,
               phase, trial, seed, failures.error, host, pid, failed_at
        FROM densitune.failures AS failures
        JOIN densitune.jobs AS jobs ON jobs.id = job_id
        LEFT JOIN densitune.workers AS workers ON workers.id = failures.worker_id
        WHERE jobs.study_id = :study
        ORDER BY failures.kind, failed_at DESC, job_id DESC, failures.epoch DESC
    """)
    return [FailureCount(**row._mapping) for row in connection.execute(query, {"study": study_id})]
