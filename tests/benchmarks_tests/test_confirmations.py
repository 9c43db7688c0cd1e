"""Confirmations on arrays: they come to what one study at a time does, and keep their level."""

from dataclasses import replace

import numpy as np
import pytest
from calibration import BEFORE, NOISES, NORMALISED
from helpers import simulation
from helpers.confirmations import Cause, Drawn, Policy, Truth, drawn, race
from helpers.simulation import Noise
from numpy.typing import NDArray
from scipy.stats import binomtest

from optimizer.evidence.sequential_test import Plan

PLAN = Plan(seeds=36, batch=6, finalists=3)
USUAL = Policy(PLAN)
BARE = Policy(PLAN, controls=NORMALISED)
STUDIES = 2000


def found(truth: Truth, policy: Policy, studies: int = STUDIES) -> tuple[Drawn, NDArray[np.str_]]:
    differences = drawn(np.random.default_rng(1), truth, studies, policy.plan.seeds)
    return differences, race(differences, truth, policy).verdicts


def share(truth: Truth, policy: Policy) -> float:
    """How often any finalist is better."""
    return float((found(truth, policy)[1] == "better").any(axis=1).mean())


def within(hits: float, limit: float) -> bool:
    """Whether a share could come from a truth within the limit more than once in a thousand."""
    return bool(binomtest(round(hits * STUDIES), STUDIES, limit, "greater").pvalue > 1e-3)


@pytest.mark.parametrize(
    "policy", [USUAL, BARE, replace(USUAL, keep=()), replace(USUAL, keep=(1,))]
)
@pytest.mark.parametrize("truth", [Truth((0.9, 0.6, 0.3)), Truth((1.5, 1.5, 1.5), "steps")])
def test_arrays_come_to_what_one_study_at_a_time_does(truth: Truth, policy: Policy) -> None:
    differences, verdicts = found(truth, policy, 60)
    for n, together in enumerate(verdicts):
        controls = {name: differences.to_controls[name][n] for name in policy.controls}
        alone = simulation.follow(differences.to_identity[n], controls, PLAN, policy.keep)
        assert [verdict for verdict, _ in alone] == together.tolist()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("cause", ["scale", "steps"])
def test_what_a_control_does_as_well_is_not_called_better(noise: Noise, cause: Cause) -> None:
    assert within(share(Truth((3, 3, 3), cause, noise), USUAL), 0.05)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("policy", [USUAL, BARE])
def test_where_nothing_differs_better_is_rare(noise: Noise, policy: Policy) -> None:
    assert within(share(Truth((0, 0, 0), noise=noise), policy), 0.05)


@pytest.mark.parametrize(
    ("cause", "verdict"), [("space", "better"), ("scale", "scale_only"), ("steps", "step_only")]
)
def test_each_cause_has_its_verdict(cause: Cause, verdict: str) -> None:
    _, verdicts = found(Truth((2, 2, 2), cause), USUAL)
    assert (verdicts == verdict).any(axis=1).mean() > 0.95


def test_these_bounds_catch_rules_without_a_uniform_mask() -> None:
    assert not within(share(Truth((3, 3, 3), "steps"), replace(USUAL, controls=("control",))), 0.05)


def test_confirmations_cost_less_than_before_and_find_as_much() -> None:
    for truth in (Truth((0, 0, 0)), Truth((1, 1, 1))):
        differences = drawn(np.random.default_rng(2), truth, STUDIES, PLAN.seeds)
        now, before = (race(differences, truth, policy) for policy in (USUAL, BEFORE))
        assert now.jobs.mean() < 0.6 * before.jobs.mean()
    assert (now.verdicts == "better").any(axis=1).mean() > 0.99
    # Identity, three finalists and two arms beside each, all six looks of six seeds but for
    # controls: what the rules before these train where all finalists go on to the end.
    assert before.jobs.max() == 24 * (1 + 3 * 3)


def test_jobs_are_those_of_the_arms_that_are_trained() -> None:
    """One finalist that is better at the second look: its controls have twelve seeds as well."""
    sure = Drawn(np.full((1, 1, 36), 2.0), {n: np.full((1, 1, 36), 2.0) for n in USUAL.controls})
    plan = Plan(36, 6, 1)
    raced = race(sure, Truth((2.0,)), replace(USUAL, plan=plan))
    assert raced.verdicts.tolist() == [["better"]]
    assert (raced.jobs.tolist(), raced.seeds.tolist()) == ([4 * 12], [[12]])
