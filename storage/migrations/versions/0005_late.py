"""Measurements that arrived after their job had ended are kept apart."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Mark those that are there already: their jobs had been cut or given up before."""
    op.add_column(
        "measurements",
        sa.Column("late", sa.Boolean, nullable=False, server_default=sa.text("false")),
        schema="densitune",
    )
    op.execute("""
        UPDATE densitune.measurements SET late = true FROM densitune.jobs
        WHERE jobs.id = job_id AND state IN ('cut', 'failed') AND recorded_at > finished_at
    """)
