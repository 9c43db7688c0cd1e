"""Proposes densities and judges them.

design          the trials that need no sampler: identity, published densities, Sobol', grid
arms            what is trained beside what: identity, scale control, compensated, trainable
learning_rates  the usual one, the grid, the best by a smooth fit
errors          what ends a command with one line
config          a study's YAML file, validated
evidence        what measurements say: differences, finalists, verdicts
phases          what is trained next: calibration, search, confirmation, test split
snapshot        all there is to show of a study at one moment
presets         the exported JSON file, and its recorded jobs trained again
show            what people read: terminal, tables, report
cli             the command line; here all parts meet
"""
