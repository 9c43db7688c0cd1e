"""What the benchmarks share; the scripts that one runs lie beside this folder.

cases               the proxies that are measured, and their data
ratios              two ways to do one thing, timed side by side
plain_training      training without densitune's tricks
cluster             a PostgreSQL to be loaded, stopped and broken
simulated_workers   workers that sleep instead of training
simulation          studies that are drawn instead of trained
confirmations       their confirmations, thousands at once
simulated_desk      a search without a database, its jobs read off a surface
surface             what a dense design of densities measured
device_sections     what device_check.py finds out about a device, in order
device_plan         what its sections share: where they measure, cases, jobs and their bits
device_correctness  the sections that may be wrong
device_speeds       the sections on speed
"""
