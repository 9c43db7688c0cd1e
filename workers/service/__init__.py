"""A worker process, from its first claim to its last record.

loop        claim, train, look for more
pack        claimed jobs in training, and what becomes of each
shift       a worker's dealings with a storage that may go away
heartbeat   the thread that keeps a worker's leases
notice      signals that end a worker, and how long it may take
packs       the best sizes of packs, as measured before
checkpoint  jobs in training on disk, for whoever goes on with them
spool       measurements that wait on disk for the database
spooled     its files, taken by one process at a time or set aside
"""
