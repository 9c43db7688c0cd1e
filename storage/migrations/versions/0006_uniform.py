"""A finalist has a uniform mask as a control."""

from alembic import op

revision = "0006"
down_revision = "0005"

SCHEMA = "densitune"
ROLES = (
    "role IN ('identity', 'published', 'candidate', 'rate', 'trainable', 'finalist', 'control', "
    "'uniform', 'compensated')"
)


def upgrade() -> None:
    """Let trials have the new role."""
    op.drop_constraint(op.f("ck_trials_role"), "trials", schema=SCHEMA, type_="check")
    op.create_check_constraint(op.f("ck_trials_role"), "trials", ROLES, schema=SCHEMA)
