"""Optuna's samplers: which one proposes a trial, and what it is shown of the trials before.

TPE knows what to do with pruned trials. The Gaussian process and CMA-ES ignore them, and would
propose the same poor region again; they and DIRECT are shown an estimate. Optuna's tables stay as
they are.
"""

import copy
import io
import pickle
import zlib
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from cmaes import CMA
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from optimizer import design
from optimizer.config.sections import Search
from optimizer.errors import UsageError

# A Gaussian process costs about n^3 per proposal: 0.15 s of CPU at 100 trials and 2.4 s at 1,000
# (Optuna 5.0, two cores), so auto hands over to TPE here.
GP_TRIALS = 300


def for_trial(search: Search, number: int) -> BaseSampler:
    """Return a sampler whose random numbers depend on the trial's number alone.

    Samplers are not stored in the database; a fresh one for every proposal makes a restarted
    proposer continue as if nothing had happened.
    """
    seed = design.proposal_seed(search.seed, number)
    match search.sampler:
        case "gp":
            return _gaussian_process(seed)
        case "tpe":
            return _tree_parzen(seed)
        case "auto":
            return _gaussian_process(seed) if number < GP_TRIALS else _tree_parzen(seed)
        case "cmaes":
            # CMA-ES uses popsize results per generation, so one must fill the window.
            return _EvolutionStrategy(
                seed=seed,
                popsize=max(4, search.in_flight),
                independent_sampler=_Random(seed),
                warn_independent_sampling=False,
            )
        case "random" | "qmc" | "grid" | "direct":  # those of the last have no point left
            return _Random(seed)


def shown(study: Study) -> list[FrozenTrial]:
    """Return a study's trials, pruned ones as complete with an estimate for their value."""
    return _Estimated(study).get_trials(deepcopy=False)


def _gaussian_process(seed: int) -> BaseSampler:
    return _GaussianProcess(seed=seed, independent_sampler=_Random(seed), n_startup_trials=1)


def _tree_parzen(seed: int) -> BaseSampler:
    sampler = TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
    sampler._random_sampler = _Random(seed)  # what it samples with before anything is known
    return sampler


class _Random(RandomSampler):
    """Draws each parameter with a generator of its own, so that none shifts the others."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._seed = seed

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        seed = design.proposal_seed(self._seed, zlib.crc32(param_name.encode()))
        own = RandomSampler(seed)
        return own.sample_independent(study, trial, param_name, param_distribution)


class _GaussianProcess(GPSampler):
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # What it keeps away from are other trials.
        return super().sample_relative(_Estimated(study, trial.number), trial, search_space)


class _EvolutionStrategy(CmaEsSampler):
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(_Estimated(study), trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> CMA | None:
        """Return the state that Optuna stored last, as a pickle in the database."""
        for trial in reversed(completed_trials):
            parts = {
                key: part
                for key, part in trial.system_attrs.items()
                if key.startswith(self._attr_key_optimizer)
            }
            if parts:
                raw = bytes.fromhex(self._concat_optimizer_attrs(parts))
                state = _StateUnpickler(io.BytesIO(raw)).load()
                return state if isinstance(state, CMA) else None
        return None


class _StateUnpickler(pickle.Unpickler):
    """Makes CMA-ES's state and nothing else: who may write to the database runs no code here."""

    _allowed = frozenset(
        (
            ("cmaes._cma", "CMA"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
        )
    )

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return one of the few things that the state is made of; UsageError for others."""
        if (module_name, global_name) not in self._allowed:
            raise UsageError(
                f"CMA-ES's state in the database asks for {module_name}.{global_name}: somebody "
                "has altered Optuna's tables; delete the study"
            )
        return super().find_class(module_name, global_name)


class _Estimated(Study):
    """A view of a study without one of its trials, in which pruned ones are complete.

    Their values are estimates. Optuna's Hyperband looks at a part of a study in the same way
    (pruners/_hyperband.py).
    """

    def __init__(self, study: Study, hidden: int | None = None) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self._hidden = hidden

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        everything = super()._get_trials(deepcopy, use_cache=use_cache)
        trials = [trial for trial in everything if trial.number != self._hidden]
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        shown = [
            _completed(trial, complete) if trial.state is TrialState.PRUNED else trial
            for trial in trials
        ]
        return [trial for trial in shown if states is None or trial.state in states]


def _completed(pruned: FrozenTrial, complete: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return a pruned trial as a complete one.

    Its value is what a complete trial of the same rank at the rung of the cut came to in the end:
    differences at an early rung are on another scale, often a much larger one. It lies between the
    worst and the best complete trial.
    """
    rung = pruned.last_step
    known = [trial for trial in complete if rung in trial.intermediate_values]
    if rung is None or not known:
        return pruned
    there = sorted(trial.intermediate_values[rung] for trial in known)
    in_the_end = sorted(trial.values[0] for trial in known)
    shown = copy.copy(pruned)
    shown.state = TrialState.COMPLETE
    shown.value = float(np.interp(pruned.intermediate_values[rung], there, in_the_end))
    return shown
