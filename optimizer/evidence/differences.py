"""Trials as paired differences against identity, from the ledger.

Every trial of a study is trained with the same seeds, and a seed fixes everything but the density;
so each difference is taken within a seed, where it varies least.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from densitune.density import Densities
from optimizer.arms import SearchedBy
from optimizer.evidence import ranking
from storage.ledger import LedgerRow
from storage.trials import TrialRow


@dataclass(frozen=True)
class Difference:
    """A paired difference against identity."""

    mean: float
    standard_error: float | None
    """None with a single seed, which says nothing about the spread."""
    by_seed: dict[int, float]


@dataclass(frozen=True)
class TrialResult:
    """A finished trial."""

    number: int
    optuna_number: int | None
    role: str
    label: str
    densities: Densities
    values: dict[int, float]
    """The metric after the full budget, by seed."""
    difference: Difference
    entropy: Difference | None = None
    """By how much its cross-entropy is below identity's, in nats, if the search goes by that."""

    @property
    def searched(self) -> Difference:
        """Return the difference that the search goes by."""
        return self.difference if self.entropy is None else self.entropy

    @property
    def mean(self) -> float:
        """Return the metric's mean over the seeds."""
        return statistics.fmean(self.values.values())

    def document(self) -> dict[str, Any]:
        """Return the trial for programs: plain JSON values."""
        return {
            "trial": self.number,
            "role": self.role,
            "label": self.label,
            "densities": {str(k): list(den) for k, den in self.densities.items()},
            "value": self.mean,
            "by_seed": {str(seed): value for seed, value in self.values.items()},
            "difference_to_identity": self.difference.mean,
            "standard_error": self.difference.standard_error,
            "cross_entropy_below_identity": None if self.entropy is None else self.entropy.mean,
        }


def final_values(rows: Iterable[LedgerRow]) -> dict[int, dict[int, float]]:
    """Return {trial: {seed: value after the full budget}}."""
    values: dict[int, dict[int, float]] = {}
    for row in rows:
        if row.rung == row.budget:
            values.setdefault(row.trial, {})[row.seed] = row.value
    return values


def by_rung(rows: Iterable[LedgerRow], trial: int) -> dict[int, float]:
    """Return {rung: mean paired difference against identity, trial 0}: what Optuna is told.

    Rungs that no seed of identity has been measured at are left out.
    """
    values: dict[tuple[int, int], dict[int, float]] = {}
    for row in rows:
        values.setdefault((row.trial, row.rung), {})[row.seed] = row.value
    return {
        rung: paired(by_seed, identity).mean
        for (number, rung), by_seed in values.items()
        if number == trial and by_seed.keys() & (identity := values.get((0, rung), {}))
    }


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return the differences within the seeds that both have; ValueError if there are none.

    The standard error is the sample standard deviation of the differences over sqrt(n).
    """
    by_seed = {seed: values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline)}
    if not by_seed:
        raise ValueError("no seed was trained for both arms")
    differences = list(by_seed.values())
    error = None
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(statistics.fmean(differences), error, by_seed)


def interval(difference: Difference) -> tuple[float, float]:
    """Return the ends of the 95 % interval, mean ± t s / sqrt(n) (Student's t).

    Of a single seed, which says nothing about the spread, that is the whole line.
    """
    if difference.standard_error is None:
        return -math.inf, math.inf
    reach = float(stdtrit(len(difference.by_seed) - 1, 0.975)) * difference.standard_error
    return difference.mean - reach, difference.mean + reach


def results(
    trials: Sequence[TrialRow], rows: Sequence[LedgerRow], by: SearchedBy = "metric"
) -> list[TrialResult]:
    """Return the complete trials of a study in the order of their numbers.

    Empty as long as identity, trial 0, is not complete: there is nothing to compare with. Trials
    of which no seed is left that identity has, too, are passed over (`doctor` says so). `by` is
    what the study is searched by.
    """
    values = final_values(rows)
    entropies = {} if by == "metric" else final_values(ranking.searched(rows, by))
    complete = [
        trial
        for trial in trials
        if trial.state == "complete" and values.get(trial.number, {}).keys() & values.get(0, {})
    ]
    if not any(trial.number == 0 for trial in complete):
        return []
    return [
        TrialResult(
            number=trial.number,
            optuna_number=_of_search(trial.optuna_number),
            role=trial.role,
            label=trial.label,
            densities=trial.densities,
            values=values[trial.number],
            difference=paired(values[trial.number], values[0]),
            entropy=paired(entropies[trial.number], entropies[0]) if entropies else None,
        )
        for trial in complete
    ]


def _of_search(optuna_number: int | None) -> int:
    if optuna_number is None:
        raise ValueError("only trials of a search have results of this kind")
    return optuna_number


def ranked(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Return the results, the largest of what is searched by first; ties in the order of trials."""
    return sorted(results, key=lambda result: (-result.searched.mean, result.number))
