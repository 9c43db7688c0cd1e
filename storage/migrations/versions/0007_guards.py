"""The database itself keeps what the queue and the ledger promise, whoever writes to it.

What is there already and can be mended is mended. What else an older version let in stays where it
is, for reading to find (storage.ledger): a check that it fails holds for what is written from now
on (NOT VALID).
"""

from alembic import op

revision = "0007"
down_revision = "0006"

CONTROL = r"'[\u0001-\u001f\u007f-\u009f]'"

CHECKS = {
    "studies": {"finished": "(state = 'finished') = (finished_at IS NOT NULL)"},
    "workers": {
        "host": f"length(host) <= 255 AND host !~ {CONTROL}",
        "device": f"length(device) <= 255 AND device !~ {CONTROL}",
        "versions": "jsonb_typeof(versions) = 'object' AND octet_length(versions::text) <= 65536",
        "times": "isfinite(started_at) AND isfinite(seen_at) AND isfinite(stopped_at)",
    },
    "jobs": {
        "lease": "(state = 'running') = (lease_until IS NOT NULL)",
        "ended": "(state IN ('done', 'cut', 'failed')) = (finished_at IS NOT NULL)",
        "holder": "state <> 'waiting' OR worker_id IS NULL",
        "reason": "state <> 'failed' OR kind IS NOT NULL",
        "counts": "budget >= 1 AND epoch >= losses AND losses >= 0",
        "times": "isfinite(lease_until) AND isfinite(started_at) AND isfinite(finished_at)",
        "error": "length(error) <= 4000",
    },
    "measurements": {
        "rung": "rung >= 1",
        "value": "value >= -1e6 AND value <= 1e6",
        "seconds": "seconds >= 0 AND seconds <= 1e9",
        "extra": "jsonb_typeof(extra) = 'object' AND octet_length(extra::text) <= 262144",
    },
}

# What a row may become. Conditions alone, which cost a heartbeat next to nothing; `refuse` says
# the text behind them.
RULES = {
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
            "(NEW.state, NEW.epoch, NEW.losses, NEW.finished_at, NEW.kind, NEW.error) "
            "IS DISTINCT FROM "
            "(OLD.state, OLD.epoch, OLD.losses, OLD.finished_at, OLD.kind, OLD.error)",
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
            "NEW.losses NOT IN (OLD.losses, OLD.losses + 1)",
            "a job is lost once at a time",
        ),
        (
            "NEW.lease_until > now() + interval '1 day'",
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
    for statement in (CHECK_RESULT, NOTE_FAILURE, CHECK_MEASUREMENT):
        op.execute(statement)
    # Or a role could have its own temporary table call what runs with the owner's rights.
    op.execute("""
        REVOKE ALL ON FUNCTION densitune.check_result(), densitune.note_failure() FROM PUBLIC
    """)


def _mend() -> None:
    op.execute("""
        UPDATE densitune.jobs SET
            lease_until = CASE WHEN state = 'running' AND isfinite(lease_until)
                               THEN lease_until
                               WHEN state = 'running' THEN now() END,
            finished_at = CASE WHEN state IN ('done', 'cut', 'failed')
                               THEN coalesce(finished_at, started_at, created_at) END,
            worker_id = CASE WHEN state <> 'waiting' THEN worker_id END,
            kind = CASE WHEN state = 'failed' THEN coalesce(kind, 'code') ELSE kind END
        WHERE (state = 'running') <> (lease_until IS NOT NULL) OR NOT isfinite(lease_until)
           OR (state IN ('done', 'cut', 'failed')) <> (finished_at IS NOT NULL)
           OR state = 'waiting' AND worker_id IS NOT NULL OR state = 'failed' AND kind IS NULL;
        UPDATE densitune.studies SET
            finished_at = CASE WHEN state = 'finished' THEN coalesce(finished_at, now()) END
        WHERE (state = 'finished') <> (finished_at IS NOT NULL);
        UPDATE densitune.workers SET seen_at = now() WHERE seen_at > now();
    """)
