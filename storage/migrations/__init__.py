"""How the schema came about: Alembic revisions, applied by `storage.database.prepare`.

env       runs the revisions on the connection that is held open
versions  the revisions
"""
