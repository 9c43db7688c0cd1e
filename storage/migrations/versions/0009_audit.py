"""Studies have a phase `audit`: densities on a larger network, by a recipe of its own."""

from alembic import op

revision = "0009"
down_revision = "0008"

SCHEMA = "densitune"
PHASES = "phase IN ('calibrate', 'search', 'confirm', 'check', 'audit', 'decided')"


def upgrade() -> None:
    """Let studies and trials have the new phase, and a finished study come back to it."""
    for table in ("studies", "trials"):
        constraint = op.f(f"ck_{table}_phase")
        op.drop_constraint(constraint, table, schema=SCHEMA, type_="check")
        op.create_check_constraint(constraint, table, PHASES, schema=SCHEMA)
    op.execute("""
        DROP TRIGGER rule_1 ON densitune.studies;
        CREATE TRIGGER rule_1 BEFORE UPDATE ON densitune.studies FOR EACH ROW
            WHEN (OLD.state = 'finished' AND NEW.state <> 'finished'
                  AND NEW.phase NOT IN ('confirm', 'check', 'audit'))
            EXECUTE FUNCTION densitune.refuse(
                'a finished study goes on with its confirmation, checks, an audit or not at all')
    """)
