"""How the schema came about: Alembic revisions, applied by `storage.database.prepare`."""
