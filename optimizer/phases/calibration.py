"""The first phase: identity at a grid of learning rates, so that the baseline is no straw man.

The grid grows at the end where the best rate lies, until the best lies within. It is trained with
the confirmation's budget, for the best rate moves with it. A grid that an earlier version began
with another budget is finished with that one.
"""

import statistics
from collections.abc import Iterable
from dataclasses import replace

from optimizer import arms, learning_rates
from optimizer.arms import Arm
from optimizer.evidence import differences
from optimizer.phases.desk import Desk
from storage import studies
from storage.ledger import LedgerRow
from storage.trials import TrialRow


def step(desk: Desk) -> bool:
    """Take the next step if there is one now: queue rates, or conclude when they have ended."""
    middle = desk.config.usual_lr
    assert middle is not None  # or the config is refused
    trials = desk.trials("calibrate")
    if not trials:
        for number, first in enumerate(learning_rates.grid(middle)):
            _queue(desk, number, first, desk.config.confirm_budget)
        return True
    if desk.waits_for(trials):
        return False
    broken = next((one for one in trials if one.kind not in (None, "diverged")), None)
    if broken is not None:
        desk.halt(
            f"identity could not be trained at {broken.label}, and that it could not says nothing "
            f"about this rate: {broken.error_text}; mend that and begin anew, or give training.lr"
        )
        return False
    rows = desk.measured("calibrate")
    by_rate = scores(trials, rows)
    tried = [lr for trial in trials if (lr := rate(trial)) is not None]
    further = learning_rates.beyond(middle, tried, by_rate) if by_rate else None
    if further is not None:
        _queue(desk, len(trials), further, rows[0].budget)
    else:
        _conclude(desk, trials, by_rate)
    return True


def scores(trials: Iterable[TrialRow], rows: Iterable[LedgerRow]) -> dict[float, float]:
    """Return {learning rate: mean over the seeds} of the trials that could be trained."""
    values = differences.final_values(rows)
    return {
        lr: statistics.fmean(values[trial.number].values())
        for trial in trials
        if (lr := rate(trial)) is not None and not (trial.is_open or trial.failed)
    }


def rate(trial: TrialRow) -> float | None:
    """Return the learning rate of a trial, None if it takes the recipe's."""
    return Arm.of(trial.densities, trial.arm).lr


def _queue(desk: Desk, number: int, lr: float, budget: int) -> None:
    config = desk.config
    arm = replace(arms.identity(config.kernel_size, lr), init=config.init)
    desk.add(number, "rate", f"lr {lr:g}", arm, seeds=config.seeds, budget=budget)


def _conclude(desk: Desk, trials: list[TrialRow], by_rate: dict[float, float]) -> None:
    for trial in trials:
        desk.close(trial)
    if not by_rate:
        error = trials[0].error_text
        desk.halt(f"identity could not be trained at any learning rate: {error}")
        return
    studies.calibrated(desk.connection, desk.study.id, learning_rates.best(by_rate))
    desk.enter("search")
    desk.check_baseline(max(by_rate.values()))
