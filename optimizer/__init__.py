"""Proposes densities and judges them.

density      what a density is: profile, phi, RMS, validation, the published values
sections     the sections of the configuration, one model each
config       a study's YAML file, validated
problems     what is wrong with a file, in one line
design       the trials that need no sampler: identity, published densities, Sobol', grid
study        the Optuna study: ask and tell
samplers     which of Optuna's samplers proposes, and what it sees
rungs        what a trial has to reach at a rung
proposer     the role that keeps the job queue filled and Optuna's tables in step with the ledger
results      trials as paired differences against identity
cautions     signs that differences mean little
snapshot     all there is to show of a study at one moment
presets      the exported JSON file
session      a study from creation to end, for the process that launches it
fleet        local worker processes
environment  home folder and storage
display      what is shown on a terminal
run_commands, study_commands
             what the commands do; here all parts meet
options      what several commands take
cli          the command line: which commands there are, how errors end them
errors       what ends a command with one line
"""
