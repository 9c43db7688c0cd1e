"""Failures have kinds, and each is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

SCHEMA = "densitune"
KINDS = "kind IN ('preempted', 'lost', 'out_of_memory', 'diverged', 'data', 'code', 'storage')"


def upgrade() -> None:
    """Give the jobs that failed before the kind that says least."""
    op.add_column("jobs", sa.Column("kind", sa.Text), schema=SCHEMA)
    op.execute("UPDATE densitune.jobs SET kind = 'code' WHERE state = 'failed'")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", KINDS, schema=SCHEMA)
    op.create_table(
        "failures",
        sa.Column("job_id", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("worker_id", sa.BigInteger),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column(
            "failed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
        ),
        sa.PrimaryKeyConstraint("job_id", "epoch", name="pk_failures"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["densitune.jobs.id"], ondelete="CASCADE", name="fk_failures_jobs"
        ),
        sa.CheckConstraint(KINDS, name=op.f("ck_failures_kind")),
        schema=SCHEMA,
    )
    op.create_index("ix_failures_worker", "failures", ["worker_id"], schema=SCHEMA)
