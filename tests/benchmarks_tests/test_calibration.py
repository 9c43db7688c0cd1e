"""The simulated studies of benchmarks/calibration.py, few of them: errors stay within their level.

A share is refused if it could come from a truth beyond the limit only once in a thousand times, so
these tests hold by far if the full table (docs/evidence.md) does.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import calibration
import numpy as np
import pytest
from calibration import NOISES
from helpers import simulation
from helpers.simulation import Judged, Noise, Scenario
from scipy.stats import binomtest, kurtosis, skew

from optimizer.config.study_file import StudyConfig
from optimizer.evidence.sequential_test import Plan

STUDIES = 150
GIVEN = calibration.defaults()
WHOLE = GIVEN.model_copy(update={"confirm": GIVEN.confirm.model_copy(update={"keep": ()})})
"""No finalist is dropped, so that what is said of the first one does not depend on the others."""
NOTHING = Scenario("nothing differs", "nothing", 0.0, "normal")
REGION = Scenario("a region helps", "region", 1.0, "normal")
SCALE = Scenario("only scale helps", "scale", 3.0, "normal")
HARM = Scenario("every density harms", "everywhere", -1.0, "normal")
PLANTED = Scenario("every density helps", "everywhere", 1.0, "normal")


@pytest.fixture(autouse=True)
def small_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "FEWEST", 20)
    monkeypatch.setattr(simulation, "MOST", 60)


def studies(
    scenario: Scenario, count: int = STUDIES, given: StudyConfig = GIVEN
) -> list[list[Judged]]:
    return [simulation.study(scenario, given, seed) for seed in range(count)]


def verdicts(found: list[list[Judged]]) -> list[set[str | None]]:
    return [{one.verdict for one in study} for study in found]


def better(found: list[list[Judged]]) -> list[bool]:
    """Whether any finalist of a study is called better."""
    return ["better" in of_study for of_study in verdicts(found)]


def at_most(hits: list[bool], limit: float) -> bool:
    return bool(binomtest(sum(hits), len(hits), limit, "greater").pvalue > 1e-3)


def at_least(hits: list[bool], limit: float) -> bool:
    return bool(binomtest(sum(hits), len(hits), limit, "less").pvalue > 1e-3)


@pytest.mark.parametrize("noise", NOISES)
def test_where_nothing_differs_better_is_rare(noise: Noise) -> None:
    found = studies(replace(NOTHING, noise=noise))
    assert at_most(better(found), 0.05)
    assert at_least([study[0].covered for study in found], 0.95)


@pytest.mark.parametrize("flag", ["normalised", "extended"])
def test_better_stays_rare_without_a_control_and_when_a_study_is_extended(flag: str) -> None:
    changed: dict[str, Any] = {flag: True}
    assert at_most(better(studies(replace(NOTHING, **changed))), 0.05)


@pytest.mark.parametrize("noise", NOISES)
def test_a_planted_effect_is_found_and_its_size_covered(noise: Noise) -> None:
    assert at_least(better(studies(replace(PLANTED, noise=noise))), 0.9)
    found = studies(replace(PLANTED, noise=noise), given=WHOLE)
    assert at_least([study[0].verdict == "better" for study in found], 0.9)
    assert at_least([study[0].covered for study in found], 0.95)


@pytest.mark.parametrize("noise", NOISES)
def test_an_effect_of_scale_is_not_called_better(noise: Noise) -> None:
    found = studies(replace(SCALE, noise=noise))
    assert at_most(better(found), 0.05)
    expected = {"scale_only", "no_evidence", "dropped"}
    assert at_least([of <= expected for of in verdicts(found)], 0.98)


@pytest.mark.parametrize("noise", NOISES[:2])
def test_a_harmful_density_is_called_worse_and_never_better(noise: Noise) -> None:
    assert not any(better(studies(replace(HARM, noise=noise))))
    found = studies(replace(HARM, noise=noise), given=WHOLE)
    assert not any(better(found))
    assert at_least([study[0].verdict == "worse" for study in found], 0.85)


def test_these_bounds_catch_a_judge_without_a_scale_control() -> None:
    assert not at_most(better(studies(replace(SCALE, normalised=True))), 0.05)


def test_these_bounds_catch_a_judge_who_spends_the_level_at_every_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Plan, "share", lambda *_: 0.05)
    assert not at_most(better(studies(replace(NOTHING, normalised=True))), 0.05)


def test_intervals_cover_neither_more_nor_less_than_they_say() -> None:
    """Confirmations alone, many of them: 95 % is neither 93 nor 97."""
    plan, covered = Plan(GIVEN.confirm.seeds, GIVEN.confirm.batch, 1), []
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        [judged] = simulation.confirm(rng, REGION, [simulation.PAIRED], plan, ())
        covered.append(judged.covered)
    assert 0.93 < np.mean(covered) < 0.97


def test_a_search_cuts_most_trials_at_the_rung_or_after_the_first_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulation, "FEWEST", 200)
    monkeypatch.setattr(simulation, "MOST", 200)
    found = [simulation.Search(np.random.default_rng(seed), NOTHING, GIVEN) for seed in range(20)]
    assert (
        0.15 < np.mean([len(search.results()) / len(search.densities) for search in found]) < 0.22
    )


def test_a_search_finds_where_it_helps() -> None:
    first = [study[0].truth for study in studies(REGION, 30)]
    assert np.mean(first) > 0.8 * simulation.PAIRED


def test_an_extension_begins_with_the_seeds_that_are_known() -> None:
    values, plan = np.tile([-1.0, 1.0], 12), Plan(24, 6, 3)
    found = [simulation.follow(values[None], {}, plan, (), known=known) for known in ((), (12,))]
    assert [finding.to_identity.seeds for [(_, finding)] in found] == [6, 12]


def test_large_effects_stop_early() -> None:
    seeds = [
        np.mean([study[0].finding.to_identity.seeds for study in studies(scenario, 40)])
        for scenario in (replace(REGION, size=2.0), REGION)
    ]
    assert seeds[0] < seeds[1] < GIVEN.confirm.seeds


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("plain", [True, False])
def test_the_noise_is_what_it_says(noise: Noise, plain: bool) -> None:
    values = simulation.draw(np.random.default_rng(0), noise, (200_000,), plain=plain)
    assert abs(values.mean()) < 0.01
    assert values.var() == pytest.approx(1, rel=0.1)
    everywhere = noise in ("skewed", "lognormal", "failures")
    lopsided = everywhere or (noise == "lopsided" and not plain)
    assert (skew(values) < -1) == lopsided
    assert (kurtosis(values) > 2) == (noise == "heavy tails" or lopsided)


@pytest.mark.parametrize("scenario", [NOTHING, PLANTED, REGION, SCALE, HARM])
def test_identity_has_no_effect_and_no_effect_is_larger_than_said(scenario: Scenario) -> None:
    densities = np.random.default_rng(0).uniform(0.05, 2.0, (500, 2))
    centre = np.array([0.5, 0.5])
    found = simulation.effects(scenario, centre, np.vstack([np.ones(2), centre, densities]))
    size = scenario.size * simulation.PAIRED
    assert found[0] == 0
    assert np.abs(found).max() == pytest.approx(abs(size))
    assert found[1] == pytest.approx(size)


def test_a_study_is_fixed_by_its_scenario_and_seed() -> None:
    other = replace(NOTHING, noise="skewed")
    drawn = ((NOTHING, 3), (NOTHING, 3), (NOTHING, 4), (other, 3))
    found = [simulation.study(one, GIVEN, seed) for one, seed in drawn]
    assert found[0] == found[1]
    assert all(one != another for one, another in pairwise(found[1:]))


def test_the_table_has_every_scenario_once() -> None:
    assert len(set(calibration.SCENARIOS)) == len(calibration.SCENARIOS)
    one = calibration.summary(REGION, studies(REGION, 4))
    assert len(calibration.scenario_row(one)) == len(calibration.HEADER)
    assert sum(one["first"].values()) == 1
    plan = calibration.of_plan(Plan(4, 4, finalists=2), studies=3)
    assert len(calibration.plan_row(plan)) == len(calibration.PLAN_HEADER)
