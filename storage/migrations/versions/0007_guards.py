"""The database itself keeps what the queue and the ledger promise, whoever writes to it.

What rows that change hold already is mended: PostgreSQL checks a row anew with every change, so
that one bad value would keep its job from ending and its worker from beating. Measurements never
change. What an older version let in among them stays, for reading to find: a check that it fails
holds for what is written from now on (NOT VALID).
"""

from alembic import op

revision = "0007"
down_revision = "0006"

CONTROL = r"'[\u0001-\u001f\u007f-\u009f]'"


def _json(column: str, most_bytes: int) -> str:
    return f"""
        jsonb_typeof({column}) = 'object' AND octet_length({column}::text) <= {most_bytes}
        AND NOT jsonb_path_exists({column}, 'strict $.**{{51}}')
        AND NOT jsonb_path_exists({column}, 'strict $.** ? (@ > 1.8e308 || @ < -1.8e308)')
    """


def _within(*columns: str) -> str:
    return " AND ".join(f"{c} BETWEEN '2000-01-01 UTC' AND '9999-01-01 UTC'" for c in columns)


CHECKS = {
    "studies": {"finished": "(state = 'finished') = (finished_at IS NOT NULL)"},
    "workers": {
        "host": f"length(host) <= 255 AND host !~ {CONTROL}",
        "device": f"length(device) <= 255 AND device !~ {CONTROL}",
        "versions": _json("versions", 65536),
        "times": _within("started_at", "seen_at", "stopped_at"),
    },
    "jobs": {
        "lease": "(state = 'running') = (lease_until IS NOT NULL)",
        "ended": "(state IN ('done', 'cut', 'failed')) = (finished_at IS NOT NULL)",
        "holder": "state <> 'waiting' OR worker_id IS NULL",
        "reason": "state <> 'failed' OR kind IS NOT NULL",
        "counts": "epoch >= losses AND losses >= 0",
        "times": _within("lease_until", "started_at", "finished_at"),
        "error": "length(error) <= 4000",
    },
    "measurements": {
        "rung": "rung >= 1",
        "value": "value >= -1e6 AND value <= 1e6",
        "seconds": "seconds >= 0 AND seconds <= 1e9",
        "extra": _json("extra", 262144),
    },
}

# What a row may become. Conditions alone, which cost a heartbeat next to nothing; `refuse` says
# the text behind them.
RULES = {
    "studies": [
        (
            "OLD.state = 'finished' AND NEW.state <> 'finished' AND NEW.phase <> 'confirm'",
            "a finished study goes on with its confirmation or not at all",
        ),
    ],
    "workers": [
        (
            "NEW.seen_at > now() OR NEW.stopped_at > now()",
            "a worker is not seen in the future",
        ),
    ],
    "trials": [
        (
            "OLD.phase = 'search' AND OLD.state <> 'running' AND NEW.state <> OLD.state",
            "a trial of a search that has ended stays as it ended",
        ),
    ],
    "jobs": [
        (
            "OLD.state IN ('done', 'cut', 'failed') AND "
            "((NEW.state, NEW.epoch, NEW.losses, NEW.started_at, NEW.finished_at, NEW.kind, "
            "NEW.error) IS DISTINCT FROM "
            "(OLD.state, OLD.epoch, OLD.losses, OLD.started_at, OLD.finished_at, OLD.kind, "
            "OLD.error) OR NEW.worker_id IS DISTINCT FROM OLD.worker_id "
            "AND NEW.worker_id IS NOT NULL)",  # NULL: the study is deleted, its workers first
            "a job that has ended stays as it ended",
        ),
        (
            "OLD.state = 'waiting' AND NEW.state = 'failed'",
            "a job that nobody holds does not fail",
        ),
        (
            "NEW.epoch <> OLD.epoch AND NOT (NEW.epoch = OLD.epoch + 1 AND NEW.state = 'running' "
            "AND (OLD.state = 'waiting' OR OLD.state = 'running' AND OLD.lease_until < now()))",
            "an epoch rises by one, at a claim of a job that waits or whose lease has run out",
        ),
        (
            "NEW.epoch = OLD.epoch AND NEW.state = 'running' AND "
            "(OLD.state = 'waiting' OR NEW.worker_id <> OLD.worker_id)",
            "a claim raises the epoch",
        ),
        (
            "NEW.losses <> OLD.losses AND NOT (NEW.losses = OLD.losses + 1 "
            "AND OLD.state = 'running' AND (NEW.epoch = OLD.epoch + 1 "
            "OR NEW.state IN ('waiting', 'failed') AND NEW.kind IS NOT DISTINCT FROM 'lost'))",
            "a job is lost when another takes it over or its holder is reported gone",
        ),
        (
            "NEW.lease_until > now() + interval '1 day' "
            "AND NEW.lease_until IS DISTINCT FROM OLD.lease_until",  # the clock may go back
            "a lease lasts a day at most",
        ),
    ],
}

REFUSE = """
    CREATE FUNCTION densitune.refuse() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME;
    END $$
"""

BEGIN_WAITING = """
    CREATE TRIGGER begin_waiting BEFORE INSERT ON densitune.jobs FOR EACH ROW
        WHEN ((NEW.state, NEW.epoch, NEW.losses) IS DISTINCT FROM ('waiting', 0, 0)
              OR NEW.budget < 1)
        EXECUTE FUNCTION densitune.refuse(
            'a job begins as one that waits, was never held and has a budget')
"""

# Whoever ends a job need not be allowed to read measurements, nor to write failures. What a job is
# cut by may be another value than the ledger's: a rung's first measurement stays, and on another
# kind of device a later one may fall below the bar.
CHECK_RESULT = """
    CREATE FUNCTION densitune.check_result() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF NEW.state = 'done' AND NOT EXISTS (
            SELECT FROM densitune.measurements
            WHERE job_id = NEW.id AND rung = NEW.budget AND NOT late
        ) THEN
            RAISE EXCEPTION 'a job is done when it has been measured at its budget'
                USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME;
        ELSIF NEW.state = 'cut' AND NOT EXISTS (
            SELECT FROM densitune.measurements
            WHERE job_id = NEW.id AND NOT late AND NEW.bars ? rung::text
        ) THEN
            RAISE EXCEPTION 'a job is cut at a rung with a bar, when it has been measured there'
                USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME;
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER check_result BEFORE UPDATE ON densitune.jobs FOR EACH ROW
        WHEN (NEW.state IN ('done', 'cut') AND NEW.state <> OLD.state)
        EXECUTE FUNCTION densitune.check_result()
"""

NOTE_FAILURE = """
    CREATE FUNCTION densitune.note_failure() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        INSERT INTO densitune.failures (job_id, epoch, worker_id, kind, error)
            VALUES (OLD.id, OLD.epoch, OLD.worker_id, NEW.kind, NEW.error)
            ON CONFLICT DO NOTHING; -- what an older version may have let in blocks nobody
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_failure AFTER UPDATE ON densitune.jobs FOR EACH ROW
        WHEN (OLD.state = 'running'
              AND (NEW.state IN ('waiting', 'failed') OR NEW.epoch <> OLD.epoch))
        EXECUTE FUNCTION densitune.note_failure()
"""

CHECK_MEASUREMENT = """
    CREATE FUNCTION densitune.check_measurement() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        job record;
    BEGIN
        SELECT state, budget INTO job FROM densitune.jobs WHERE id = NEW.job_id FOR UPDATE;
        IF NEW.rung > job.budget THEN
            RAISE EXCEPTION 'a job is measured up to its budget of % epochs, not at %',
                job.budget, NEW.rung USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME;
        END IF;
        NEW.late := job.state IN ('done', 'cut', 'failed');
        RETURN NEW;
    END $$;
    CREATE TRIGGER check_measurement BEFORE INSERT ON densitune.measurements FOR EACH ROW
        EXECUTE FUNCTION densitune.check_measurement()
"""


def upgrade() -> None:
    """Mend what follows from the rest of a row, then add checks and rules."""
    _mend()
    for table, checks in CHECKS.items():
        for name, condition in checks.items():
            op.execute(f"""
                ALTER TABLE densitune.{table}
                    ADD CONSTRAINT ck_{table}_{name} CHECK ({condition}) NOT VALID;
                DO $$ BEGIN
                    ALTER TABLE densitune.{table} VALIDATE CONSTRAINT ck_{table}_{name};
                EXCEPTION WHEN check_violation THEN NULL;
                END $$
            """)
    op.execute(REFUSE)
    for table, rules in RULES.items():
        for number, (condition, text) in enumerate(rules, 1):
            op.execute(
                f"CREATE TRIGGER rule_{number} BEFORE UPDATE ON densitune.{table} FOR EACH ROW "
                f"WHEN ({condition}) EXECUTE FUNCTION densitune.refuse('{text}')"
            )
    for statement in (BEGIN_WAITING, CHECK_RESULT, NOTE_FAILURE, CHECK_MEASUREMENT):
        op.execute(statement)
    # Or a role could have its own temporary table call what runs with the owner's rights.
    op.execute("""
        REVOKE ALL ON FUNCTION densitune.check_result(), densitune.note_failure() FROM PUBLIC
    """)


def _mend() -> None:
    """Change what a row of a table that changes holds to what its checks and rules allow."""
    ended, lived = "state IN ('done', 'cut', 'failed')", "state <> 'waiting'"
    op.execute(f"""
        UPDATE densitune.jobs SET
            lease_until = CASE WHEN state = 'running' THEN CASE
                WHEN lease_until BETWEEN '2000-01-01 UTC' AND now() + interval '1 day'
                THEN lease_until ELSE now() END END,
            started_at = {_clamped("started_at")},
            finished_at = CASE WHEN {ended}
                THEN {_clamped("coalesce(finished_at, started_at, created_at)")} END,
            worker_id = CASE WHEN {lived} THEN worker_id END,
            kind = CASE WHEN state = 'failed' THEN coalesce(kind, 'code') ELSE kind END,
            error = right(error, 4000),
            epoch = greatest(epoch, ({lived})::int),
            -- one that is held may be lost once more before its next claim
            losses = greatest(0, least(losses, greatest(epoch, ({lived})::int)
                                               - (state = 'running')::int))
        WHERE NOT (({") AND (".join(CHECKS["jobs"].values())})) IS TRUE
           OR lease_until > now() + interval '1 day' OR state = 'running' AND losses >= epoch;
        UPDATE densitune.studies SET
            finished_at = CASE WHEN state = 'finished' THEN coalesce(finished_at, now()) END
        WHERE (state = 'finished') <> (finished_at IS NOT NULL);
        UPDATE densitune.workers SET
            host = left(regexp_replace(host, {CONTROL}, '?', 'g'), 255),
            device = left(regexp_replace(device, {CONTROL}, '?', 'g'), 255),
            versions = CASE WHEN {CHECKS["workers"]["versions"]} THEN versions ELSE '{{}}' END,
            started_at = {_clamped("started_at")},
            seen_at = {_clamped("seen_at")},
            stopped_at = {_clamped("stopped_at")}
        WHERE NOT (({") AND (".join(CHECKS["workers"].values())})) IS TRUE
           OR seen_at > now() OR stopped_at > now();
    """)


def _clamped(moment: str) -> str:
    """Return a time of the past, or NULL."""
    within = f"least(greatest({moment}, '2000-01-01 UTC'), now())"
    return f"CASE WHEN {moment} IS NOT NULL THEN {within} END"
