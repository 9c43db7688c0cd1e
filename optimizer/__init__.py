"""Proposes densities and judges them.

density      what a density is: profile, phi, RMS, validation, the published values
sections     the sections of the configuration, one model each
config       a study's YAML file, validated
strict_yaml  YAML in which no key is given twice
problems     what is wrong with a file, in one line
design       the trials that need no sampler: identity, published densities, Sobol', grid
study        the Optuna study: ask and tell
samplers     which of Optuna's samplers proposes, and what it sees
rungs        what a trial has to reach at a rung
proposer     the role that keeps the job queue filled, phase by phase
calibration  phase 1: the learning rate, by identity at a grid of rates
search       phase 2: densities that Optuna proposes, told in step with the ledger
confirmation
             phase 3: finalists with fresh seeds, beside identity and scale controls
learned      the density that a trainable arm learns by gradient: one more finalist
holdout      after the verdict: identity and the winner on the test split
reruns       recorded jobs of a preset, trained again and compared
extension    a decided study goes on with more fresh seeds, once
rates        learning rates: the usual one, the grid, the best by a smooth fit
health       whether identity is a healthy baseline
results      trials as paired differences against identity
surrogate    a model of the response over the search box, learnt from noisy trials
finalists    which trials are worth confirming, by a model of the noisy results
evidence     what fresh seeds say about a finalist: a paired, sequential test
verdicts     what a confirmation found out, as it is stored and exported
cautions     signs that differences mean little
snapshot     all there is to show of a study at one moment
presets      the exported JSON file
exports      from a study to its preset
session      a study from creation to end, for the process that launches it
fleet        local worker processes
environment  home folder and storage
display      what is shown on a terminal
confirmation_table
             the table of a confirmation
report       all that a study found as one HTML file
report_page, report_axes
             its page, and what its figures have in common
report_search, report_model, report_response
             the search in the report: the response that a model expects, in figures
report_arms  densities, confirmation and calibration in the report
doctor, doctor_checks
             what can go wrong with a study, found, said and mended
run_commands, study_commands
             what the commands do; here all parts meet
options      what several commands take
cli          the command line: which commands there are, how errors end them
errors       what ends a command with one line
"""
