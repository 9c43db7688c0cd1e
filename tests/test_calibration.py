"""The simulated studies of benchmarks/calibration.py, few of them: errors stay within their level.

A share is refused if it could come from a truth beyond the limit only once in a thousand times, so
these tests hold by far if the full table (docs/evidence.md) does.
"""

from itertools import pairwise
from typing import Any

import calibration
import numpy as np
import pytest
from calibration import NOISES, Noise
from scipy.stats import binomtest, kurtosis, skew

STUDIES = 150
GIVEN = calibration.defaults()


@pytest.fixture(autouse=True)
def small_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FEWEST", 12)
    monkeypatch.setattr(calibration, "MOST", 30)


def found(name: str, noise: Noise, **flags: bool) -> dict[str, Any]:
    """What the studies of one scenario of the full table come to."""
    [scenario] = [
        one for one in calibration.SCENARIOS
        if (one.name, one.noise) == (name, noise)
        and (one.extended, one.compensated)
        == (flags.get("extended", False), flags.get("compensated", False))
    ]  # fmt: skip
    studies = [calibration.study(scenario, GIVEN, seed) for seed in range(STUDIES)]
    return calibration.summary(scenario, studies)


def at_most(share: float, limit: float) -> bool:
    return binomtest(round(share * STUDIES), STUDIES, limit, "greater").pvalue > 1e-3


def at_least(share: float, limit: float) -> bool:
    return binomtest(round(share * STUDIES), STUDIES, limit, "less").pvalue > 1e-3


@pytest.mark.parametrize("noise", NOISES)
def test_where_nothing_differs_better_is_rare(noise: Noise) -> None:
    one = found("nothing differs", noise)
    assert at_most(one["any better"], 0.05)
    assert at_least(one["covered"], 0.93)


@pytest.mark.parametrize("flag", ["compensated", "extended"])
def test_better_stays_rare_without_a_control_and_when_a_study_is_extended(flag: str) -> None:
    assert at_most(found("nothing differs", "normal", **{flag: True})["any better"], 0.05)


@pytest.mark.parametrize("noise", NOISES)
def test_a_planted_effect_is_found_and_its_size_covered(noise: Noise) -> None:
    one = found("planted, 1 SD", noise)
    assert at_least(one["first finalist"]["better"], 0.9)
    assert at_least(one["covered"], 0.93)
    assert at_most(one["covered"], 0.97)
    assert abs(one["error of the mean"]) < 0.15


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("size", ["1 SD", "3 SD"])
def test_an_effect_of_scale_is_not_called_better(noise: Noise, size: str) -> None:
    one = found(f"scale only, {size}", noise)
    verdicts = one["first finalist"]
    assert at_most(one["any better"], 0.05)
    assert at_least(verdicts["scale_only"] + verdicts["no_evidence"], 0.98)


@pytest.mark.parametrize("noise", NOISES[:2])
def test_a_harmful_density_is_never_better(noise: Noise) -> None:
    assert found("harmful, 1 SD", noise)["any better"] == 0


def test_large_effects_stop_early() -> None:
    seeds = [found(name, "normal")["seeds"] for name in ("planted, 2 SD", "planted, 1 SD")]
    assert seeds[0] < seeds[1] < GIVEN.confirm.seeds


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("plain", [True, False])
def test_the_noise_is_what_it_says(noise: Noise, plain: bool) -> None:
    values = calibration.draw(np.random.default_rng(0), noise, (200_000,), plain=plain)
    assert abs(values.mean()) < 0.01
    assert values.var() == pytest.approx(1, rel=0.1)
    lopsided = noise == "skewed" or (noise == "lopsided" and not plain)
    assert (skew(values) < -1) == lopsided
    assert (kurtosis(values) > 2) == (noise == "heavy tails" or lopsided)


def test_a_study_is_fixed_by_its_scenario_and_seed() -> None:
    first, other = calibration.SCENARIOS[:2]
    drawn = ((first, 3), (first, 3), (first, 4), (other, 3))
    studies = [calibration.study(one, GIVEN, seed) for one, seed in drawn]
    assert studies[0] == studies[1]
    assert all(one != another for one, another in pairwise(studies[1:]))
