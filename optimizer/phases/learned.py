"""The trainable arm: every layer learns its density by gradient, and their mean is a finalist.

It starts at identity and is trained before the confirmation with the search's seeds and budget, in
the way of the authors' second variant (workers.training.recipe). What it learned is taken as one
density for each kernel size, the plain mean over layers and seeds, clipped to the search box: that
is what the confirmation trains and what a preset can carry. It is numbered as a trial after the
search's last.
"""

from collections.abc import Sequence

import numpy as np

from densitune.density import Density
from optimizer import arms
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences
from optimizer.evidence.differences import TrialResult
from optimizer.phases.desk import Desk
from storage.ledger import LedgerRow
from storage.trials import TrialRow

NUMBER = 1
"""Of the arm, in the confirmation."""


def queue(desk: Desk) -> None:
    """Queue the arm."""
    config = desk.config
    arm = arms.trainable(config.kernel_size, desk.study.lr, config.init)
    seeds, budget = config.seeds, config.training.budget
    desk.add(NUMBER, "trainable", "trainable density", arm, seeds=seeds, budget=budget)


def result(
    config: StudyConfig,
    trained: Sequence[TrialRow],
    rows: Sequence[LedgerRow],
    identity: TrialResult,
) -> TrialResult | None:
    """Return what the arm among those of a confirmation learned, as one more trial of the search.

    Its values are those of the arm, whose layers had densities of their own; `identity` is the
    search's. None if there is no such arm, or it has not been trained with all seeds.
    """
    arm = next((arm for arm in trained if arm.role == "trainable"), None)
    if arm is None or arm.done < arm.jobs:
        return None
    own = [row for row in rows if row.trial == arm.number and row.rung == row.budget]
    values = {row.seed: row.value for row in own}
    return TrialResult(
        number=config.search.trials,
        optuna_number=None,
        role="trainable",
        label="learned",
        densities={k: _mean(own, k, config) for k in config.kernel_size},
        values=values,
        difference=differences.paired(values, identity.values),
    )


def _mean(rows: Sequence[LedgerRow], kernel_size: int, config: StudyConfig) -> Density:
    layers = [den for row in rows for den in row.extra["den"][str(kernel_size)]]
    mean = np.mean(layers, axis=0).clip(config.density.low, config.density.high)
    return tuple(mean.tolist())
