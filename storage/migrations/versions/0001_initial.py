"""The first schema: studies, trials, workers, jobs, measurements."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

SCHEMA = "densitune"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the five tables; the schema itself is there already, for the version table."""
    _create_studies()
    _create_trials()
    _create_workers()
    _create_jobs()
    _create_measurements()


def _create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True)),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("config", JSONB, nullable=False),
        sa.Column("data_fingerprint", sa.Text, nullable=False),
        sa.Column("provenance", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'running'")),
        sa.Column("failure", sa.Text),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("finished_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("name", name="uq_studies"),
        sa.CheckConstraint(
            "state IN ('running', 'stopped', 'finished')", name=op.f("ck_studies_state")
        ),
        schema=SCHEMA,
    )


def _create_trials() -> None:
    op.create_table(
        "trials",
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("optuna_number", sa.Integer, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("densities", JSONB, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'running'")),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("study_id", "number", name="pk_trials"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["densitune.studies.id"], ondelete="CASCADE", name="fk_trials_studies"
        ),
        sa.UniqueConstraint("study_id", "optuna_number", name="uq_trials"),
        sa.CheckConstraint(
            "role IN ('identity', 'published', 'candidate')", name=op.f("ck_trials_role")
        ),
        sa.CheckConstraint(
            "state IN ('running', 'complete', 'failed')", name=op.f("ck_trials_state")
        ),
        schema=SCHEMA,
    )


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True)),
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("versions", JSONB, nullable=False),
        sa.Column("started_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("seen_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("stopped_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["densitune.studies.id"], ondelete="CASCADE", name="fk_workers_studies"
        ),
        schema=SCHEMA,
    )
    op.create_index("ix_workers_study", "workers", ["study_id"], schema=SCHEMA)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True)),
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("budget", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'waiting'")),
        sa.Column("worker_id", sa.BigInteger),
        sa.Column("epoch", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("losses", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("lease_until", TIME),
        sa.Column("error", sa.Text),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(
            ["study_id", "trial"],
            ["densitune.trials.study_id", "densitune.trials.number"],
            ondelete="CASCADE",
            name="fk_jobs_trials",
        ),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["densitune.workers.id"], ondelete="SET NULL", name="fk_jobs_workers"
        ),
        sa.UniqueConstraint("study_id", "trial", "seed", "budget", name="uq_jobs"),
        sa.CheckConstraint(
            "state IN ('waiting', 'running', 'done', 'failed')", name=op.f("ck_jobs_state")
        ),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["study_id", "id"],
        schema=SCHEMA,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_index("ix_jobs_worker", "jobs", ["worker_id"], schema=SCHEMA)


def _create_measurements() -> None:
    op.create_table(
        "measurements",
        sa.Column("job_id", sa.BigInteger, nullable=False),
        sa.Column("rung", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("extra", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("worker_id", sa.BigInteger),
        sa.Column("recorded_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("job_id", "rung", name="pk_measurements"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["densitune.jobs.id"], ondelete="CASCADE", name="fk_measurements_jobs"
        ),
        schema=SCHEMA,
    )
