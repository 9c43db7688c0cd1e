"""Bars: what a trial has to reach at a rung to be trained on.

They are computed once, when a trial is proposed, from the trials that have been told by then. So
they depend, like the proposal itself, on results in the order of trials and on nothing else.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from optimizer.config.study_file import StudyConfig
from storage.ledger import LedgerRow
from storage.trials import TrialRow

LEAST = 5
"""With fewer values no bar is set: a quantile of so few is one or two trials' luck (Optuna's
pruners start after five trials as well)."""


def for_next(
    config: StudyConfig, told: Iterable[TrialRow], rows: Sequence[LedgerRow]
) -> dict[int, float]:
    """Return the next trial's {rung: least value of the first seed with which it goes on}.

    With several seeds the budget is a rung too: to go on from there is to be trained with the
    others. A bar is the (1 - search.keep)-quantile, linearly interpolated, of what the trials told
    so far reached there with that seed. Failed trials do not count: what they reached may still
    change.
    """
    if config.search.keep == 1 or not config.search.rungs:
        return {}
    barred = config.rungs if len(config.seeds) > 1 else config.search.rungs
    counted = {trial.number for trial in told if trial.state in ("complete", "pruned")}
    reached: dict[int, list[float]] = {}
    for row in rows:
        if row.trial in counted and row.seed == config.seeds[0]:
            reached.setdefault(row.rung, []).append(row.value)
    return {
        rung: float(np.quantile(reached[rung], 1 - config.search.keep))
        for rung in barred
        if len(reached.get(rung, ())) >= LEAST
    }
