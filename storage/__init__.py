"""Remembers everything, in PostgreSQL.

server      the embedded PostgreSQL of this machine's user, shared by its processes
postmaster  one data folder's server: join, start, stop
occupancy   whether a server lives on a data folder, in whatever container
programs    PostgreSQL's programs, which come in a wheel
addresses   where a server is, from its URL
database    connections to it or to a given server, and its schema
exposure    what a connection over a network gives away, and to whom
tables      the tables
states      the closed sets that they hold: phases, roles, states
migrations  how the schema came about (Alembic)
studies     studies by name
trials      what was proposed
jobs        the queue: claim, lease, heartbeat, release
steps       the proposer's role, and transactions that hold it
leases      when a lease has run out, which workers live, and which jobs are free
failures    why jobs failed, and what follows from that
ledger      the measurements
image_scores  the score of every image in a few bytes
roster      the workers: who they are and what they did
inspection  what may be wrong with what is stored
passwords   passwords in files
roles       who may do what on a server that several share
retry       which errors pass by themselves, and trying again
durable     files that are there whole or not at all, and read with care
printable   text of unknown origin, fit to be shown
errors      what can go wrong here
"""
