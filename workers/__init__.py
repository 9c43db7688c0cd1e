"""Measures densities by training proxies.

seeds         random generators by purpose
entries       code of the user's own: where it lies, its fingerprint
data          images: sources, splits, banks on disk
networks      the proxies
training      jobs in training on a device
scripts       training scripts of the user's own, each in a process of its own
preparation   from a study's configuration to bank, task and recipe
service       a worker process: claims jobs, trains them, records what comes out
verification  checks of what a preset promises
"""
