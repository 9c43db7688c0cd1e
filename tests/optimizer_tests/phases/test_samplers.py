"""What samplers are shown of pruned trials, and that Optuna's own tables do not change by it."""

import os
import pickle
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from optimizer.errors import UsageError
from optimizer.phases import samplers

RUNG, BUDGET = 2, 8
numbers = st.integers(-800, 800).map(lambda eighths: eighths / 8)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=15)


def study(complete: list[tuple[float, float]], pruned: list[float]) -> Study:
    """Complete trials by their values at the rung and in the end, then pruned ones, then others."""
    made = optuna.create_study(direction="maximize")
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
    outcomes = [(TrialState.COMPLETE, {RUNG: early, BUDGET: late}) for early, late in complete]
    outcomes += [(TrialState.PRUNED, {RUNG: early}) for early in pruned]
    for place, (state, differences) in enumerate(outcomes):
        made.add_trial(
            create_trial(
                state=state,
                value=differences[max(differences)],
                params={"x": place / len(outcomes)},
                distributions=space,
                intermediate_values=differences,
            )
        )
    made.add_trial(create_trial(state=TrialState.FAIL))
    made.ask()
    return made


def shown(made: Study) -> Study:
    return samplers._Estimated(made)


@settings(deadline=None)
@given(pairs, st.lists(numbers, max_size=10))
def test_pruned_trials_are_shown_complete_in_their_order_and_within_what_was_reached(
    complete: list[tuple[float, float]], pruned: list[float]
) -> None:
    made = study(complete, pruned)
    states = [trial.state for trial in shown(made).trials]
    assert states == [
        *[TrialState.COMPLETE] * (len(complete) + len(pruned)),
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    values = [trial.values[0] for trial in shown(made).get_trials(states=[TrialState.COMPLETE])]
    late = [value for _, value in complete]
    assert values[: len(complete)] == late
    estimates = values[len(complete) :]
    assert all(min(late) <= estimate <= max(late) for estimate in estimates)
    in_order = [estimate for _, estimate in sorted(zip(pruned, estimates, strict=True))]
    assert in_order == pytest.approx(sorted(in_order), abs=1e-9)


def test_an_estimate_is_what_a_trial_of_the_same_rank_came_to() -> None:
    """Early differences are ten times the late ones, and rank alike."""
    complete = [(-50.0, -5.0), (0.0, 0.0), (20.0, 2.0), (40.0, 4.0)]
    trials = shown(study(complete, [-500.0, -50.0, -25.0, 30.0, 500.0])).trials
    assert [trial.value for trial in trials[4:9]] == pytest.approx([-5.0, -5.0, -2.5, 3.0, 4.0])


def test_optunas_tables_stay_as_they_are() -> None:
    made = study([(0.0, 0.0), (3.0, 1.0)], [-7.0])
    before = made.trials
    assert shown(made)._get_trials(deepcopy=False) != before  # as samplers read them
    assert made.trials == before
    assert (before[2].state, before[2].value) == (TrialState.PRUNED, -7.0)


def test_without_complete_trials_at_its_rung_a_pruned_trial_stays_pruned() -> None:
    made = study([], [1.0])
    assert shown(made).trials == made.trials


def evolved(trials: int) -> Study:
    """A study that CMA-ES has searched, with generations of four."""
    made = optuna.create_study(direction="maximize")
    box = FloatDistribution(0.0, 1.0)
    space: dict[str, BaseDistribution] = {"x": box, "y": box}
    for number in range(trials):
        made.sampler = samplers._EvolutionStrategy(seed=number, popsize=4)
        trial = made.ask(space)
        made.tell(trial, -((trial.params["x"] - 0.3) ** 2) - trial.params["y"])
    return made


def test_state_of_cmaes_is_restored_as_optuna_would() -> None:
    made = evolved(20)
    complete = made.get_trials(states=[TrialState.COMPLETE])
    ours = samplers._EvolutionStrategy(seed=0, popsize=4)._restore_optimizer(complete)
    optunas = optuna.samplers.CmaEsSampler(seed=0, popsize=4)._restore_optimizer(complete)
    assert ours is not None
    assert optunas is not None
    assert ours.generation > 1
    assert pickle.dumps(ours) == pickle.dumps(optunas)


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_state_of_cmaes_that_would_run_code_is_refused(tmp_path: Path) -> None:
    made = evolved(8)
    mark = tmp_path / "mark"
    last = made.trials[-1]
    attributes = {"cma:optimizer:0": pickle.dumps(Malice(mark)).hex()}
    made.add_trial(
        create_trial(
            value=0.0,
            params=last.params,
            distributions=last.distributions,
            system_attrs=attributes,
        )
    )
    made.sampler = samplers._EvolutionStrategy(seed=9, popsize=4)
    with pytest.raises(UsageError, match=r"asks for posix\.system: somebody has altered"):
        made.ask(last.distributions)
    assert not mark.exists()
