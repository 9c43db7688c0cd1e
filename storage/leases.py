"""Leases: when one has run out, which workers live, and which jobs a worker may therefore claim.

Conditions on densitune.jobs and densitune.workers, as SQL that reads the parameters of
`arguments`. The clock is the database's, so a worker's own does not matter.
"""

from typing import Any

from storage.failures import MAX_LOSSES, POLICIES

RETURN_SECONDS = 60.0
"""For so long after the server has started no lease runs out: workers could not renew theirs while
it was away, and have the time of a lease to come back."""

SILENCE_SECONDS = 90.0
"""How long a worker may be silent before it counts as gone."""

EXPIRED = """(
    state = 'running'
    AND greatest(lease_until, pg_postmaster_start_time() + make_interval(secs => :return)) < now()
)"""

ALIVE = "(stopped_at IS NULL AND seen_at > now() - make_interval(secs => :silence))"

# Of a failure: its job was taken for lost, and its holder was heard of after that, so it lived. A
# machine that was suspended is no reason to suspect its jobs.
RETURNED = """(
    failures.kind = 'lost' AND EXISTS (
        SELECT FROM densitune.workers AS holders
        WHERE holders.id = failures.worker_id AND failures.failed_at < holders.seen_at)
)"""

LOSSES = f"""(
    SELECT count(*) FROM densitune.failures AS failures
    WHERE failures.job_id = jobs.id AND failures.kind = 'lost' AND NOT {RETURNED}
)"""

LOST_TOO_OFTEN = f"({EXPIRED} AND {LOSSES} >= :losses)"

# A job that failed here is passed over as long as any other worker lives.
FREE = f"""(
    (state = 'waiting' OR {EXPIRED} AND {LOSSES} < :losses)
    AND NOT (
        EXISTS (
            SELECT FROM densitune.failures AS failures
            WHERE failures.job_id = jobs.id AND failures.worker_id = :worker
              AND failures.kind = ANY(:elsewhere))
        AND EXISTS (
            SELECT FROM densitune.workers AS others
            WHERE others.study_id = jobs.study_id AND others.id != :worker AND {ALIVE}))
)"""


def arguments() -> dict[str, Any]:
    """Return the parameters that do not depend on who asks; FREE takes `worker` as well."""
    return {
        "return": RETURN_SECONDS,
        "losses": MAX_LOSSES,
        "silence": SILENCE_SECONDS,
        "elsewhere": [kind for kind, policy in POLICIES.items() if policy.elsewhere],
    }
