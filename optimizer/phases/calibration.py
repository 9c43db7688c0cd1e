"""The first phase: identity at a grid of learning rates, so that the baseline is no straw man.

The grid grows at the end where the best rate lies, until the best lies within.
"""

import statistics
from collections.abc import Iterable

from sqlalchemy import Connection

from densitune import density
from optimizer import learning_rates
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import baseline, differences
from storage import jobs, ledger, studies, trials
from storage.arms import Arm
from storage.ledger import LedgerRow
from storage.studies import Study
from storage.trials import TrialRow


def step(connection: Connection, study: Study, config: StudyConfig) -> bool:
    """Take the next step if there is one now: queue arms, or conclude when they have ended."""
    arms = trials.all_of(connection, study.id, "calibrate")
    if not arms:
        for number, lr in enumerate(
            learning_rates.grid(config.proxy.family, config.training.batch_size)
        ):
            _queue(connection, study, config, number, lr)
        return True
    if any(arm.waiting or arm.running for arm in arms):
        jobs.fail_lost(connection, study.id)
        return False
    found = scores(arms, ledger.read(connection, study.id, "calibrate"))
    tried = [arm.arm.lr for arm in arms if arm.arm.lr is not None]
    family, batch_size = config.proxy.family, config.training.batch_size
    further = learning_rates.beyond(family, batch_size, tried, found) if found else None
    if further is not None:
        _queue(connection, study, config, len(arms), further)
    else:
        _conclude(connection, study, config, arms, found)
    return True


def scores(arms: Iterable[TrialRow], rows: Iterable[LedgerRow]) -> dict[float, float]:
    """Return {learning rate: mean over the seeds} of the arms that could be trained."""
    values = differences.final_values(rows)
    return {
        arm.arm.lr: statistics.fmean(values[arm.number].values())
        for arm in arms
        if arm.arm.lr is not None and not (arm.waiting or arm.running or arm.failed)
    }


def _queue(
    connection: Connection, study: Study, config: StudyConfig, number: int, lr: float
) -> None:
    trials.add(
        connection,
        study.id,
        number=number,
        role="rate",
        label=f"lr {lr:g}",
        densities={k: density.identity(k) for k in config.kernel_size},
        seeds=config.seeds,
        budget=config.training.budget,
        arm=Arm(lr=lr, init=config.init),
        phase="calibrate",
    )


def _conclude(
    connection: Connection,
    study: Study,
    config: StudyConfig,
    arms: list[TrialRow],
    found: dict[float, float],
) -> None:
    for arm in arms:
        state: trials.State = "failed" if arm.failed else "complete"
        trials.finish(connection, study.id, arm.number, state, arm.error, "calibrate")
    if not found:
        reason = f"identity could not be trained at any learning rate: {arms[0].error}"
        studies.halt(connection, study.id, reason)
        return
    studies.calibrated(connection, study.id, learning_rates.best(found))
    studies.enter(connection, study.id, "search")
    failure = baseline.failure(config, baseline.floors(study, config), max(found.values()))
    if failure is not None and not study.forced:
        studies.halt(connection, study.id, failure)
