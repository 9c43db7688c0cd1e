"""Jobs may be cut at rungs: bars, and the states that follow from them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

SCHEMA = "densitune"
STATES = {
    "jobs": "state IN ('waiting', 'running', 'done', 'cut', 'failed')",
    "trials": "state IN ('running', 'complete', 'pruned', 'failed')",
}


def upgrade() -> None:
    """Add the bars, none for the jobs that are there, and let `cut` and `pruned` in."""
    bars = sa.Column("bars", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb"))
    op.add_column("jobs", bars, schema=SCHEMA)
    for table, states in STATES.items():
        name = op.f(f"ck_{table}_state")
        op.drop_constraint(name, table, schema=SCHEMA, type_="check")
        op.create_check_constraint(name, table, states, schema=SCHEMA)
