"""Runs the revisions on the connection that `storage.database.prepare` holds open."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="alembic_version",
    # Optuna keeps an alembic_version of its own in `public` of the same database.
    version_table_schema="densitune",
)
with context.begin_transaction():
    context.run_migrations()
