"""Studies have phases, and trials and jobs belong to one: calibrate, search, confirm, decided."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"

SCHEMA = "densitune"
PHASES = "phase IN ('calibrate', 'search', 'confirm', 'decided')"
ROLES = (
    "role IN ('identity', 'published', 'candidate', 'rate', 'trainable', 'finalist', 'control', "
    "'compensated')"
)


def upgrade() -> None:
    """Give what is there the phase `search`: nothing in it was calibrated or confirmed."""
    _studies()
    # Keys change, and jobs refer to trials by theirs.
    op.drop_constraint("fk_jobs_trials", "jobs", schema=SCHEMA, type_="foreignkey")
    op.drop_constraint("pk_trials", "trials", schema=SCHEMA, type_="primary")
    op.drop_constraint("uq_jobs", "jobs", schema=SCHEMA, type_="unique")
    for table in ("trials", "jobs"):
        op.add_column(table, _phase(), schema=SCHEMA)
    _trials()
    op.create_unique_constraint(
        "uq_jobs", "jobs", ["study_id", "phase", "trial", "seed", "budget"], schema=SCHEMA
    )
    op.create_foreign_key(
        "fk_jobs_trials",
        "jobs",
        "trials",
        ["study_id", "phase", "trial"],
        ["study_id", "phase", "number"],
        ondelete="CASCADE",
        source_schema=SCHEMA,
        referent_schema=SCHEMA,
    )


def _studies() -> None:
    for column in (
        _phase(),
        sa.Column("until", sa.Text),
        sa.Column("forced", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("lr", sa.Double),
        sa.Column("verdicts", JSONB),
        sa.Column("holdout", JSONB),
    ):
        op.add_column("studies", column, schema=SCHEMA)
    op.create_check_constraint(op.f("ck_studies_phase"), "studies", PHASES, schema=SCHEMA)


def _trials() -> None:
    op.create_primary_key("pk_trials", "trials", ["study_id", "phase", "number"], schema=SCHEMA)
    op.create_check_constraint(op.f("ck_trials_phase"), "trials", PHASES, schema=SCHEMA)
    op.alter_column("trials", "optuna_number", nullable=True, schema=SCHEMA)
    op.drop_constraint(op.f("ck_trials_role"), "trials", schema=SCHEMA, type_="check")
    op.create_check_constraint(op.f("ck_trials_role"), "trials", ROLES, schema=SCHEMA)
    op.add_column("trials", sa.Column("origin", sa.Integer), schema=SCHEMA)
    op.add_column("trials", sa.Column("arm", JSONB), schema=SCHEMA)
    op.execute("""
        UPDATE densitune.trials SET arm = jsonb_build_object(
            'lr', NULL, 'init', coalesce(config->>'init', 'library'), 'gain', '{}'::jsonb,
            'trainable', false, 'split', 'validation')
        FROM densitune.studies WHERE studies.id = trials.study_id
    """)
    op.alter_column("trials", "arm", nullable=False, schema=SCHEMA)


def _phase() -> sa.Column[str]:
    return sa.Column("phase", sa.Text, nullable=False, server_default=sa.text("'search'"))
