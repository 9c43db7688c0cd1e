"""Studies have a phase after the verdict, `check`: arms at their own rates; start, steps apart."""

from alembic import op

revision = "0008"
down_revision = "0007"

SCHEMA = "densitune"
PHASES = "phase IN ('calibrate', 'search', 'confirm', 'check', 'decided')"
ROLES = (
    "role IN ('identity', 'published', 'candidate', 'rate', 'trainable', 'finalist', 'control', "
    "'uniform', 'compensated', 'init_only', 'steps_only')"
)


def upgrade() -> None:
    """Let studies and trials have the new phase and roles, and a finished study come back to it."""
    for table, name, condition in (
        ("studies", "phase", PHASES),
        ("trials", "phase", PHASES),
        ("trials", "role", ROLES),
    ):
        constraint = op.f(f"ck_{table}_{name}")
        op.drop_constraint(constraint, table, schema=SCHEMA, type_="check")
        op.create_check_constraint(constraint, table, condition, schema=SCHEMA)
    op.execute("""
        DROP TRIGGER rule_1 ON densitune.studies;
        CREATE TRIGGER rule_1 BEFORE UPDATE ON densitune.studies FOR EACH ROW
            WHEN (OLD.state = 'finished' AND NEW.state <> 'finished'
                  AND NEW.phase NOT IN ('confirm', 'check'))
            EXECUTE FUNCTION densitune.refuse(
                'a finished study goes on with its confirmation, with checks or not at all')
    """)
