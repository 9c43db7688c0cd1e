"""Remembers everything, in PostgreSQL.

server      the embedded PostgreSQL of this machine's user
database    connections to it or to a given server, and its schema
tables      the tables
migrations  how the schema came about (Alembic)
studies     studies by name
trials      what was proposed
jobs        the queue: claim, lease, heartbeat, release
ledger      the measurements, and who measured
errors      what can go wrong here
"""
