"""The rate check: whether a winner's differences hold with every arm at a rate of its own."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sqlalchemy import Engine
from support.simulated import Measure, create, go_on, noise, run, small
from support.synthetic import configured

from optimizer import snapshot
from optimizer.arms import Arm
from optimizer.config.study_file import FRESH, StudyConfig
from optimizer.errors import EvidenceError, UsageError
from optimizer.evidence import own_rates
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import Comparison
from optimizer.phases import optuna_tables
from optimizer.presets import document, exports, recheck, recheck_rates
from optimizer.show import programs, report, words
from optimizer.show.confirmation_table import arms_table
from optimizer.show.progress import progress, worker_line
from optimizer.snapshot import Snapshot
from storage import studies
from storage.jobs import ClaimedJob

SPREAD = 0.05
LR = 0.01


def asked(rates: str | None = "auto", **changes: Any) -> StudyConfig:
    confirm = {"finalists": 1, "seeds": 12, "batch": 6, "rates": rates, **changes}
    return small(training={"budget": 2, "lr": LR}, confirm=confirm)


def decades(job: ClaimedJob) -> float:
    """How far a job's rate is from the study's."""
    return math.log10((job.arm["lr"] or LR) / LR)


def wanting(best: dict[str, float], top: dict[str, float]) -> Callable[[ClaimedJob], float]:
    """Every arm wants a rate of its own, so many decades from the study's, and reaches its top."""

    def measure(job: ClaimedJob) -> float:
        a = job.densities[3][0]
        arm = "control" if job.arm["gain"] else "uniform" if job.arm["mask"] == "uniform" else ""
        arm = arm or ("identity" if a == 1 else "finalist")
        worse = 0.2 * abs(a - 0.6) * (arm == "finalist")
        lost = 8 * (decades(job) - best.get(arm, 0.0)) ** 2
        return 30 + top.get(arm, 0.0) - lost - worse + noise(job, SPREAD)

    return measure


SPATIAL = wanting({}, {"finalist": 1.0})
"""The density is better at any rate."""
OF_RATES = wanting({"identity": -0.5, "control": -0.5, "uniform": -0.5}, {})
"""The density only suits the study's rate, which is half a decade too high for the others."""


def checked(now: Snapshot) -> own_rates.RateCheck:
    assert now.own_rates is not None
    return now.own_rates


@pytest.mark.parametrize(("measure", "holds"), [(SPATIAL, True), (OF_RATES, False)])
def test_a_better_holds_at_each_arms_own_rate_only_if_it_is_no_matter_of_rates(
    database: Engine, tmp_path: Path, measure: Measure, holds: bool
) -> None:
    now = run(database, asked(), measure)
    assert (now.study.state, now.study.phase, now.verdict) == ("finished", "decided", "better")
    told = checked(now)
    assert told.holds is holds
    winner = now.winner
    assert winner is not None
    assert winner.to_identity is not None
    assert told.to_identity is not None
    assert list(told.to_controls) == ["control", "uniform"]
    said = words.about_own_rates(now)
    assert said is not None
    assert said.startswith(f"holds at each arm's own rate: {'yes' if holds else 'no'} (")
    assert said in " ".join(str(arms_table(now).caption).split("\n"))
    shown = report.render(now).replace("&#x27;", "'")
    assert said[1:] in shown
    assert ("A density helps here." in shown) is holds
    [own] = [trial.arm["lr"] for trial in now.check.trials if trial.role == "finalist"]
    if holds:
        assert f"at the learning rate {own:g}, its own best" in now.advice
    else:
        assert now.advice.startswith(f"Use the plain convolution at the rate {LR / 10**0.5:.3g}")
    told_optuna = optuna.load_study(study_name="a-study", storage=optuna_tables.alone(database))
    assert told_optuna.user_attrs["advice"] == now.advice
    path, preset = exports.export(now, tmp_path)
    assert preset.evidence.own_rates == told
    recheck.check(document.load(path), document.content(path))
    assert programs.document(now)["own_rates"]["holds"] is holds
    if holds:
        assert exports.export(now, tmp_path, require_better=True)[1] == preset
    else:
        with pytest.raises(EvidenceError, match="not shown to hold"):
            exports.export(now, tmp_path, require_better=True)
    stated = f"at each arm's own rate it {'holds' if holds else 'is not shown to hold'}"
    assert words.preset_verdict(preset).endswith(stated)


def test_it_trains_three_rates_on_seeds_of_their_own_and_then_one_on_as_many_as_the_verdict_took(
    database: Engine,
) -> None:
    given = asked()
    now = run(database, given, SPATIAL)
    winner, told = now.winner, checked(now)
    assert winner is not None
    assert winner.to_identity is not None
    tried = [trial for trial in now.check.trials if trial.role == "rate"]
    finals = [trial for trial in now.check.trials if trial.role != "rate"]
    assert len(tried) == 12
    rates = sorted({Arm.of(trial.densities, trial.arm).lr or 0.0 for trial in tried})
    assert rates == pytest.approx([LR / 10**0.5, LR, LR * 10**0.5], rel=0.01)
    assert [final.role for final in finals] == ["identity", "finalist", "control", "uniform"]
    assert all(final.arm["floored"] for final in finals)
    assert not any(trial.arm["floored"] for trial in tried)
    assert {trial.origin for trial in now.check.trials} == {winner.trial}
    seeds: dict[int, set[int]] = {}
    for row in now.check.rows:
        assert row.budget == given.confirm_budget
        seeds.setdefault(row.trial, set()).add(row.seed)
    assert {frozenset(seeds[trial.number]) for trial in tried} == {frozenset(given.rate_seeds)}
    count = len(winner.to_identity.by_seed)
    assert {frozenset(seeds[final.number]) for final in finals} == {
        frozenset(given.own_rate_seeds(count))
    }
    for final in finals:
        assert final.arm["lr"] == told.rates[final.role]


def test_identity_is_compared_alone_where_better_asks_for_no_control(database: Engine) -> None:
    now = run(database, asked(), SPATIAL, normalised=True)
    assert (checked(now).to_controls, checked(now).holds) == ({}, True)
    assert {trial.role for trial in now.check.trials} == {"rate", "identity", "finalist"}
    assert "holds at each arm's own rate: yes" in (words.about_own_rates(now) or "")


def test_a_control_that_is_weak_at_identitys_rate_and_the_winners_equal_at_its_own_is_compared(
    database: Engine,
) -> None:
    """The scale control comes closest in the confirmation, and says nothing about the mask."""
    told_apart = wanting({"uniform": 0.5}, {"finalist": 1.0, "control": 0.2, "uniform": 1.0})
    now = run(database, asked(), told_apart)
    assert now.verdict == "better"
    assert now.winner is not None
    assert own_rates.strongest(now.winner) == "control"
    told = checked(now)
    assert told.to_controls["control"].low > 0.5
    assert told.to_controls["uniform"].low < 0
    assert told.holds is False


def test_on_request_the_controls_are_compared_even_if_identity_was_not_beaten(
    database: Engine,
) -> None:
    """Six seeds and three finalists show nothing; the scale control is as good as the winner."""
    given = asked("always", seeds=6, finalists=3)
    now = run(database, given, wanting({}, {"finalist": 1.0, "control": 1.0}))
    assert (now.verdict, now.confirm.trials[-1].role) == ("no_evidence", "finalist")
    told = checked(now)
    assert set(told.to_controls) == {"control", "uniform"}
    assert told.to_identity is not None
    assert told.to_identity.low > 0
    assert told.holds is False
    said = words.about_own_rates(now) or ""
    assert said.startswith("above the others at each arm's own rate, which changes no verdict: no")
    preset = exports.compose(now, exports.chosen(now))
    assert "own rate" not in words.preset_verdict(preset)
    recheck.check(preset, preset.model_dump(by_alias=True))


def test_a_better_beside_the_winner_is_not_taken_for_checked(
    database: Engine, tmp_path: Path
) -> None:
    now = run(database, asked(finalists=2, keep=[]), SPATIAL)
    assert [one.verdict for one in now.verdicts] == ["better", "better"]
    assert now.winner is not None
    [other] = {one.trial for one in now.verdicts} - {now.winner.trial}
    assert exports.export(now, tmp_path, other)[1].evidence.own_rates is None
    with pytest.raises(EvidenceError, match=f"trial {other} is better, and .* was not checked"):
        exports.export(now, tmp_path, other, require_better=True)


@pytest.mark.parametrize(("seeds", "count"), [(6, 8), (30, 24)])
def test_the_seeds_of_the_comparison_are_8_to_24(database: Engine, seeds: int, count: int) -> None:
    given = asked("always", seeds=seeds, batch=seeds)
    told = checked(run(database, given, SPATIAL))
    assert told.to_identity is not None
    assert [*told.to_identity.by_seed] == [str(seed) for seed in given.own_rate_seeds(count)]


def test_a_check_of_one_control_says_what_it_compared(database: Engine, tmp_path: Path) -> None:
    """An earlier version took the strongest control alone, and its presets have it so."""
    best = {"finalist": 1.0, "uniform": 0.3}
    now = run(database, asked(), wanting({}, best))
    plain = Arm.of({3: (1.0,)}, {}).densities
    kept = [
        trial for trial in now.check.trials
        if trial.role != "control" and not (trial.arm["gain"] and trial.densities == plain)
    ]  # fmt: skip
    old = replace(now, check=replace(now.check, trials=kept))
    told = checked(old)
    assert (list(told.to_controls), told.holds) == (["uniform"], True)
    where = "at the own rates of identity and its uniform mask (not compared: its scale control)"
    assert (words.about_own_rates(old) or "").startswith(f"holds {where}: yes (identity at ")
    report.render(old)
    path, preset = exports.export(old, tmp_path, require_better=True)
    assert "Not compared there: its scale control." in preset.evidence.note
    recheck.check(document.load(path), document.content(path))
    stored = told.model_copy(
        update={"to_controls": {}, "control": "uniform", "to_control": told.to_controls["uniform"]}
    )
    evidence = preset.evidence.model_copy(update={"own_rates": stored})
    before = document.sealed(preset.model_copy(update={"evidence": evidence}))
    recheck.check(before, before.model_dump(by_alias=True))
    assert words.preset_verdict(before).endswith(f"{where} it holds")


def named(given: StudyConfig, name: str) -> StudyConfig:
    return given.model_copy(update={"name": name})


def test_a_grid_grows_until_the_best_rate_lies_within(database: Engine) -> None:
    far = wanting({"uniform": 1.2}, {"finalist": 1.0, "control": -3, "uniform": 11})
    now = run(database, asked(), far)
    told = checked(now)
    assert math.log10(told.rates["uniform"] / LR) == pytest.approx(1.2, abs=0.1)
    assert len(told.tried["uniform"]) == 5
    assert len(told.tried["identity"]) == len(told.tried["finalist"]) == 3


@pytest.mark.parametrize(
    ("rates", "measure", "trained"),
    [("never", SPATIAL, False), ("always", wanting({}, {"finalist": -1.0}), True),
     ("auto", wanting({}, {"finalist": -1.0}), False)],
)  # fmt: skip
def test_it_is_made_after_a_better_or_on_request_and_changes_no_verdict(
    database: Engine, rates: str, measure: Measure, trained: bool
) -> None:
    now = run(database, asked(rates), measure)
    assert (now.study.state, now.study.phase) == ("finished", "decided")
    assert bool(now.check.trials) is trained is (now.own_rates is not None)
    if rates == "never":
        assert words.about_own_rates(now) == "holds at each arm's own rate: not checked"
        assert "with the learning rate of the standard convolution" in now.advice
    else:
        assert now.verdict != "better"
        assert (words.about_own_rates(now) is None) is not trained
    if trained:
        assert checked(now).holds is False
        told = words.about_own_rates(now) or ""
        assert (
            "which changes no verdict: no (identity at 0.01, the density at 0.01, its scale" in told
        )


def test_a_study_of_a_version_without_the_check_goes_on_without_it(database: Engine) -> None:
    given = asked()
    stored = given.document()
    del stored["confirm"]["rates"]
    old = given.model_copy()
    study_id = create(database, old)
    with database.begin() as connection:
        studies._set(connection, study_id, config=stored)
    now = go_on(database, study_id, given, SPATIAL)
    assert (now.study.state, now.study.phase, now.verdict) == ("finished", "decided", "better")
    assert now.check.trials == []


@pytest.mark.parametrize("broken", ["rates", "finals"])
def test_what_could_not_be_trained_is_said_and_the_verdict_stands(
    database: Engine, broken: str, tmp_path: Path
) -> None:
    def failing(job: ClaimedJob) -> float:
        final = job.seed >= 3 * FRESH
        if job.phase == "check" and job.arm["mask"] == "uniform" and final == (broken == "finals"):
            raise OSError("unreadable")
        return wanting({}, {"finalist": 1.0, "uniform": 0.3})(job)

    now = run(database, asked(), failing)
    assert (now.study.state, now.verdict) == ("finished", "better")
    told = checked(now)
    assert (told.holds, told.to_identity) == (None, None)
    assert told.reason is not None
    assert "uniform mask could not be trained" in told.reason
    assert "not checked: " in (words.about_own_rates(now) or "")
    with pytest.raises(EvidenceError, match="could not be checked: uniform mask could not be"):
        exports.export(now, tmp_path, require_better=True)
    path, _ = exports.export(now, tmp_path)
    recheck.check(document.load(path), document.content(path))


def test_a_rate_whose_training_failed_without_diverging_is_not_left_out(database: Engine) -> None:
    """Identity's own rate is the one that could not be read: without it, it seems to be beaten."""

    def failing(job: ClaimedJob) -> float:
        plain = job.densities == {3: (1.0,)} and not job.arm["gain"]
        if job.phase == "check" and plain and decades(job) < -0.2:
            raise OSError("unreadable")
        return wanting({"identity": -0.5}, {"finalist": 1.0, "identity": 1.0})(job)

    now = run(database, asked(), failing)
    assert (now.study.phase, now.verdict) == ("decided", "better")
    told = checked(now)
    assert told.holds is None
    assert told.reason == (
        "identity could not be trained at the rate 0.00316: its data could not be read, twice"
    )
    assert {trial.role for trial in now.check.trials} == {"rate"}
    assert "Use it, with the learning rate of the standard convolution" in now.advice


def test_rates_at_which_training_diverges_are_left_out_and_later_divergences_score_the_floor(
    database: Engine,
) -> None:
    def measure(job: ClaimedJob) -> float:
        high = decades(job) > 0.2
        unlucky = job.seed == 3 * FRESH + 1 and job.arm["mask"] == "uniform"
        if job.phase == "check" and (high or unlucky):
            raise ArithmeticError
        return wanting({}, {"finalist": 1.0, "uniform": 0.3})(job)

    told = checked(run(database, asked(), measure))
    assert {arm: len(rates) for arm, rates in told.tried.items()} == {
        "identity": 2, "finalist": 2, "control": 2, "uniform": 2,
    }  # fmt: skip
    assert told.diverged == {"uniform": [3 * FRESH + 1]}
    assert told.to_controls["uniform"].by_seed[str(3 * FRESH + 1)] > 20
    assert told.holds is True


def test_who_trains_and_in_which_order_makes_no_difference(database: Engine) -> None:
    one = run(database, asked(), SPATIAL)
    many = run(database, named(asked(), "many"), SPATIAL, workers=3)
    assert checked(one) == checked(many)
    strip = [(row.trial, row.seed, row.value) for row in one.check.rows]
    assert strip == [(row.trial, row.seed, row.value) for row in many.check.rows]


def test_while_it_goes_on_the_verdict_is_shown_with_how_far_it_is(database: Engine) -> None:
    given = asked()

    class StopError(Exception):
        pass

    def until(job: ClaimedJob) -> float:
        if job.seed >= 3 * FRESH:
            raise StopError
        return SPATIAL(job)

    study_id = create(database, given)
    with pytest.raises(StopError):
        go_on(database, study_id, given, until)
    now = snapshot.of(database, given.name)
    assert (now.study.phase, now.verdict, now.own_rates) == ("check", "better", None)
    assert "being checked, 36/84 jobs done" in (words.about_own_rates(now) or "")
    assert progress(now).startswith("checking the winner: 36/84 jobs done")
    assert now.seconds_left == pytest.approx(3600 * 48 / now.jobs_per_hour)
    assert "left of the check" in worker_line(now)
    arms_table(now)
    report.render(now)
    json.dumps(programs.document(now), allow_nan=False)


@given(
    values=st.lists(st.floats(-3, 3), min_size=2, max_size=30),
    shift=st.floats(0, 2),
)
def test_it_holds_by_students_t_at_one_percent_and_never_by_fewer_than_seven_that_differ(
    values: list[float], shift: float
) -> None:
    by_seed = {seed: value + shift for seed, value in enumerate(values)}
    found = own_rates.holds(by_seed, {}, {})
    spread = np.std(list(by_seed.values()))
    if sum(value != 0 for value in by_seed.values()) < 7:
        assert not found
    elif spread > 1e-6:
        p = stats.ttest_1samp(list(by_seed.values()), 0, alternative="greater").pvalue
        signs = 0.5 ** sum(value != 0 for value in by_seed.values())
        if abs(p - 0.01) > 1e-9:
            assert found == (max(p, signs) <= 0.01)
    twice = own_rates.holds(
        by_seed, {"uniform": {seed: -value for seed, value in by_seed.items()}}, {}
    )
    assert not twice  # both have to be above
    assert own_rates.holds(by_seed, {"control": by_seed, "uniform": by_seed}, {}) == found


@given(st.integers(0, 999_999), st.integers(0, 999_999))
def test_its_seeds_are_nobody_elses(mine: int, other: int) -> None:
    one, two = (configured(search={"seed": seed}, confirm={"seeds": 1000, "batch": 500})
                for seed in (mine, other))  # fmt: skip
    sets = [one.seeds, one.fresh_seeds, one.rate_seeds, one.own_rate_seeds(1000)]
    assert len({seed for seeds in sets for seed in seeds}) == sum(map(len, sets))
    if mine != other:
        others = {*two.seeds, *two.fresh_seeds, *two.rate_seeds, *two.own_rate_seeds(1000)}
        assert not others & {*one.rate_seeds, *one.own_rate_seeds(1000)}


@pytest.mark.parametrize("odd", ["rate", "-1", "nan", "inf", "1e400"])
@pytest.mark.parametrize("score", [20.0, 1e308])
def test_rates_and_scores_that_are_none_are_refused_and_not_raised_about(
    odd: str, score: float
) -> None:
    compared = Comparison(mean=0.0, low=0.0, high=0.0, by_seed={"3000000000": 0.0})
    arms = ("identity", "finalist")
    told = RateCheck(
        trial=1, holds=False, rates=dict.fromkeys(arms, 0.01), to_identity=compared,
        tried={arm: {odd: score, "0.01": 20.0, "0.03": score} for arm in arms},
    )  # fmt: skip
    assert len(list(recheck_rates._of_the_rates(told, set(arms)))) == 2


ALTERATIONS: dict[str, Any] = {
    "has no difference to a control": {"to_controls": {}},
    "the control control, which is not the strongest": {"control": "control"},
    "which is not its best": {
        "rates": dict.fromkeys(["identity", "finalist", "control", "uniform"], 0.2)
    },
    "say True": {"holds": False},
    "of trial 3": {"trial": 3},
}


@pytest.mark.parametrize("said", list(ALTERATIONS))
def test_a_preset_whose_check_does_not_follow_from_its_numbers_is_refused(
    database: Engine, said: str
) -> None:
    now = run(database, asked(), SPATIAL)
    preset = exports.compose(now, exports.chosen(now))
    altered = checked(now).model_copy(update=ALTERATIONS[said])
    evidence = preset.evidence.model_copy(update={"own_rates": altered})
    forged = document.sealed(preset.model_copy(update={"evidence": evidence}))
    with pytest.raises(UsageError, match=said):
        recheck.check(forged, forged.model_dump(by_alias=True))
