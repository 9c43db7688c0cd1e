"""Which trials are worth confirming: the best that a model of the noisy results expects.

The largest of many noisy results owes part of its place to luck, the more so the more there are.
The model (optimizer.evidence.surrogate) pulls a trial towards what its neighbours reached, and one
without neighbours towards the mean; trials are ranked by what is left.
"""

from collections.abc import Sequence

import numpy as np

from densitune.density import Densities
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import surrogate
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.surrogate import Table

NEAR = 0.05
"""Densities that differ in no value by as much as this share of the box's width are practically the
same: confirming both would ask one question twice."""


def choose(results: Sequence[TrialResult], config: StudyConfig) -> list[int]:
    """Return the numbers of at most `config.confirm.finalists` trials, best expected first.

    `results` are the complete trials with identity among them, in any order. Identity, what is
    practically identity, and what is practically a better finalist are left out.
    """
    shown = surrogate.shown(results)
    if len(shown) < 2:
        return []
    table = Table.of(shown, config)
    expected, _ = surrogate.posterior(table, table.places)
    # Rounded, so that the last bits of linear algebra never decide; ties in the order of `shown`.
    order = [shown[at] for at in np.argsort(-np.round(expected, 9), kind="stable")]
    identity = [trial for trial in order if trial.role == "identity"]
    chosen: list[TrialResult] = []
    for trial in order:
        if len(chosen) == config.confirm.finalists:
            break
        others = (other.densities for other in identity + chosen)
        if not any(alike(trial.densities, other, config) for other in others):
            chosen.append(trial)
    return [trial.number for trial in chosen]


def alike(one: Densities, other: Densities, config: StudyConfig) -> bool:
    """Tell whether two densities of a study are practically the same."""
    apart = np.abs(surrogate.place(one, config) - surrogate.place(other, config))
    return bool(apart.max() < NEAR)
