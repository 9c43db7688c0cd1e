"""The course of a study: what is trained next, phase by phase.

desk           what a step has in hand, and what all phases do alike
proposer       the role that keeps the job queue filled
calibration    phase 1: the learning rate, by identity at a grid of rates
search         phase 2: densities that Optuna proposes, told in step with the ledger
confirmation   phase 3: finalists with fresh seeds, beside identity and controls
comparisons    a finalist of the confirmation beside its arms
checks         phase 4, after the verdict: what a study asks about its winner beside it
apart          the 2 x 2 of the winner's start and its steps
own_rates      the rate check: each arm at the best of rates of its own
audit          phase 5, after the verdict: densities on a larger network, at full length
carried_over   what the audit has found
holdout        after the verdict: what the test split said of identity and the winner
learned        the density that a trainable arm learns by gradient: one more finalist
remaining      how much of a phase is left
extension      a decided study goes on with more fresh seeds, once
bars           what a trial has to reach at a rung
optuna_study   the Optuna study: ask and tell
optuna_tables  where Optuna's tables come from, and in whose transaction they are written
upkeep         Optuna's studies deleted, cleared away and put in step
direct         DIRECT-L, one point at a time
samplers       which of Optuna's samplers proposes, and what it sees
"""
