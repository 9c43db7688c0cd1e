"""The trainable arm: every layer learns its density by gradient, and their mean is a finalist.

It starts at identity and is trained before the confirmation with the search's seeds and budget, in
the way of the authors' second variant (workers.training.recipe). What it learned is taken as one
density for each kernel size, the plain mean over layers and seeds, clipped to the search box: that
is what the confirmation trains and what a preset can carry. It is numbered as a trial after the
search's last.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat, TypeAdapter

from densitune import density
from densitune.density import Densities, Density
from optimizer import arms
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences
from optimizer.evidence.differences import TrialResult
from optimizer.phases.desk import Desk
from storage.ledger import LedgerRow
from storage.trials import TrialRow

NUMBER = 1
"""Of the arm, in the confirmation."""

_Layers = Annotated[list[list[FiniteFloat]], Field(min_length=1)]
_TOLD = TypeAdapter(dict[str, _Layers])  # by kernel size


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
    search's. None if there is no such arm, it has not been trained with all seeds, or a worker did
    not tell its densities.
    """
    arm = next((arm for arm in trained if arm.role == "trainable"), None)
    learned = None if arm is None or arm.done < arm.jobs else densities(config, arm, rows)
    if arm is None or learned is None:
        return None
    own = _own(arm, rows)
    values = {row.seed: row.value for row in own}
    return TrialResult(
        number=config.search.trials,
        optuna_number=None,
        role="trainable",
        label="learned",
        densities=learned,
        values=values,
        difference=differences.paired(values, identity.values),
    )


def densities(config: StudyConfig, arm: TrialRow, rows: Iterable[LedgerRow]) -> Densities | None:
    """Return the mean density by kernel size; None if a worker told none, or of another length."""
    try:
        told = [_TOLD.validate_python(row.extra.get("den")) for row in _own(arm, rows)]
        return {k: _mean([den for one in told for den in one[str(k)]], k, config)
                for k in config.kernel_size}  # fmt: skip
    except (KeyError, ValueError):
        return None


def _own(arm: TrialRow, rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    return [row for row in rows if row.trial == arm.number and row.rung == row.budget]


def _mean(layers: Sequence[Sequence[float]], kernel_size: int, config: StudyConfig) -> Density:
    """Return the mean of layers' densities; ValueError if they are not of the size's length."""
    shaped = np.array(layers).reshape(-1, density.length(kernel_size))
    if len(shaped) != len(layers):
        raise ValueError(f"not densities of kernel size {kernel_size}")
    mean = np.mean(shaped, axis=0).clip(config.density.low, config.density.high)
    return tuple(mean.tolist())
