"""Confirmation: fresh seeds, the right arms, verdicts that follow the truth, whoever trains."""

import contextlib
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from support.simulated import TESTED, create, go_on, noise, run, small, train
from support.synthetic import configured

from optimizer.arms import Arm
from optimizer.config.study_file import StudyConfig
from optimizer.phases import confirmation, optuna_study
from optimizer.phases.proposer import Proposer
from optimizer.presets import exports, reruns
from optimizer.snapshot import Snapshot
from storage import jobs, roster, studies
from storage.jobs import ClaimedJob

SPREAD = 0.3


def distance(job: ClaimedJob) -> float:
    """How far a density is from the best one; identity is at 1."""
    return abs(job.densities[3][0] - 0.6) / 0.4


def helps(job: ClaimedJob) -> float:
    """A density near 0.6 helps, whatever the scale of the initial weights."""
    return 30 - distance(job) ** 2 + noise(job, SPREAD)


def scales(job: ClaimedJob) -> float:
    """Nothing but the scale of the initial weights counts, and 0.6's is the best."""
    a = job.densities[3][0]
    scale: float = job.arm["gain"].get("3", 1.0)
    if job.arm["init"] == "library":
        scale *= (2 * a**2 + 1) / 3
    return 30 - 4 * (scale - (2 * 0.36 + 1) / 3) ** 2 + noise(job, SPREAD)


def harms(job: ClaimedJob) -> float:
    """Identity is the best there is by far."""
    return 30 - 8 * abs(job.densities[3][0] - 1) + noise(job, SPREAD)


def equals(job: ClaimedJob) -> float:
    """The density does nothing at all."""
    return 30 + noise(job, SPREAD)


MOST_SEARCH_SEEDS = 100


@given(st.integers(0, 999_999), st.integers(0, 999_999), st.integers(2, 1000))
def test_no_search_has_the_seeds_of_any_confirmation(mine: int, other: int, seeds: int) -> None:
    confirm = {"seeds": seeds, "batch": seeds}
    fresh = configured(search={"seed": mine}, confirm=confirm).fresh_seeds
    searched = configured(search={"seed": other, "seeds": MOST_SEARCH_SEEDS}).seeds
    assert len(set(fresh)) == seeds
    assert not set(fresh) & set(searched)
    if mine != other:
        again = configured(search={"seed": other}, confirm=confirm).fresh_seeds
        assert not set(fresh) & set(again)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (helps, {"better"}),
        (scales, {"scale_only", "no_evidence"}),
        (harms, {"worse", "no_evidence"}),  # past hope may come before it is shown to be worse
        (equals, {"no_evidence"}),
    ],
)
def test_the_verdict_follows_the_truth(database: Engine, measure: Any, expected: set[str]) -> None:
    now = run(database, small(confirm={"finalists": 1}), measure)
    assert (now.study.state, now.study.phase) == ("finished", "decided")
    assert {one.verdict for one in now.verdicts} <= expected
    assert now.verdicts
    assert now.verdict == now.verdicts[0].verdict


def values_of(now: Snapshot) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    for row in now.confirm.rows:
        if row.rung == row.budget:
            found.setdefault(row.trial, {})[row.seed] = row.value
    return found


def test_arms_are_identity_finalists_scale_controls_and_compensated_ones(
    database: Engine,
) -> None:
    given = small(training={"lr": "auto"})
    now = run(database, given, helps)
    identity, *others = now.confirm.trials
    assert (identity.role, identity.densities, identity.origin) == ("identity", {3: (1.0,)}, None)
    assert [arm.role for arm in others] == 2 * ["finalist", "control", "compensated"]
    assert all(arm.arm["lr"] == now.study.lr is not None for arm in now.confirm.trials)
    searched = {trial.number: trial for trial in now.trials}
    for finalist, control, compensated in (others[:3], others[3:]):
        origin = searched[finalist.origin or 0]
        assert finalist.densities == compensated.densities == origin.densities
        assert (finalist.arm["init"], finalist.arm["gain"]) == ("library", {})
        assert (compensated.arm["init"], compensated.arm["gain"]) == ("compensated", {})
        [a] = finalist.densities[3]
        phi = np.outer([a, 1, a], [a, 1, a])
        assert control.densities == {3: (1.0,)}
        assert control.arm["gain"] == pytest.approx({"3": np.sqrt((phi**2).mean())})
        assert {control.origin, compensated.origin} == {finalist.origin}
    assert {row.budget for row in now.confirm.rows} == {2 * given.training.budget}


@pytest.mark.parametrize("init", ["library", "compensated"])
def test_a_rerun_trains_the_very_arms_that_were_confirmed(database: Engine, init: str) -> None:
    now = run(database, small(init=init), helps)
    preset = exports.compose(now, exports.chosen(now))
    told = reruns.recorded(preset, None)
    group = next(
        group
        for group in confirmation.groups(now.confirm.trials)
        if group.finalist.origin == preset.provenance.trial
    )
    compared = {
        "density": group.finalist,
        "identity": now.confirm.trials[0],
        "its scale control": group.control,
    }
    # A preset names the rate that a study leaves to its recipe.
    assert told.arms == {
        name: replace(Arm.of(arm.densities, arm.arm), lr=now.lr)
        for name, arm in compared.items()
        if arm is not None
    }


def test_a_density_that_starts_at_identitys_scale_needs_no_control(database: Engine) -> None:
    now = run(database, small(init="compensated"), helps)
    assert [arm.role for arm in now.confirm.trials] == ["identity", "finalist", "finalist"]
    assert now.verdicts[0].verdict == "better"
    assert now.verdicts[0].to_control is None


def test_stored_differences_are_those_of_the_ledger(database: Engine) -> None:
    now = run(database, small(), helps)
    values = values_of(now)
    for one, group in zip(now.verdicts, confirmation.groups(now.confirm.trials), strict=True):
        assert group.control is not None
        assert group.compensated is not None
        own = values[group.finalist.number]
        for found, mine, against in (
            (one.to_identity, own, values[0]),
            (one.to_control, own, values[group.control.number]),
            (one.compensated, values[group.compensated.number], values[0]),
        ):
            expected = {str(seed): mine[seed] - against[seed] for seed in own}
            assert found is not None
            assert found.by_seed == pytest.approx(expected, abs=1e-12)
            assert found.mean == pytest.approx(statistics.fmean(expected.values()))


def split(job: ClaimedJob) -> float:
    """Fresh seeds confirm by far what the search found below 0.65, and hardly what is above."""
    if job.phase != "confirm":
        return helps(job)
    [a] = job.densities[3]
    effect = 0.0 if a == 1 else 5.0 if a < 0.65 else 0.3
    return 30 + effect * SPREAD + noise(job, SPREAD)


def test_what_is_judged_gets_no_more_seeds_and_identity_goes_on(database: Engine) -> None:
    given = small(confirm={"finalists": 4, "seeds": 24, "batch": 8})
    now = run(database, given, split)
    seeds = {arm.number: sorted(values_of(now)[arm.number]) for arm in now.confirm.trials}
    assert all(len(mine) % 8 == 0 for mine in seeds.values())
    assert all(mine == list(given.fresh_seeds[: len(mine)]) for mine in seeds.values())
    groups = confirmation.groups(now.confirm.trials)
    by_group = [{len(seeds[arm.number]) for arm in group.arms} for group in groups]
    assert all(len(sizes) == 1 for sizes in by_group)
    sizes = [size for found in by_group for size in found]
    assert min(sizes) < max(sizes) == len(seeds[0])


def outcome(now: Snapshot) -> tuple[Any, ...]:
    """All that a study comes to: ledger, verdicts, and its preset but for the time."""
    preset = exports.compose(now, exports.chosen(now))
    provenance = preset.provenance.model_copy(update={"exported_at": ""})
    return (
        preset.model_copy(update={"provenance": provenance}).text(),
        now.study.state,
        now.study.lr,
        now.study.verdicts,
        [(trial.number, trial.densities, trial.state, trial.arm) for trial in now.trials],
        [(arm.number, arm.origin, arm.state, arm.arm, arm.jobs) for arm in now.confirm.trials],
        now.calibrate.rows,
        now.rows,
        now.confirm.rows,
        now.study.holdout,
        [(arm.number, arm.origin, arm.state, arm.arm, arm.jobs) for arm in now.decided.trials],
        now.decided.rows,
    )


def thorough() -> StudyConfig:
    """A study with every step that there is."""
    return small(training={"lr": "auto"}, confirm={"trainable": True}, **TESTED)


def learning(job: ClaimedJob) -> tuple[float, dict[str, Any]]:
    """What `split` measures; layers learn something between 0.3 and 0.4."""
    return split(job), {"den": {"3": [[0.3 + job.seed / 100], [0.4]]}} if job.arm[
        "trainable"
    ] else {}


def test_verdicts_and_ledger_do_not_depend_on_who_finishes_first(database: Engine) -> None:
    found = []
    for workers in (1, 3, 17):
        now = run(database, thorough(), learning, workers=workers)
        found.append(outcome(now))
        assert now.verdicts
        assert now.holdout is not None
        assert now.learned is not None
        delete(database, now)
    assert found[0] == found[1] == found[2]


def delete(engine: Engine, now: Snapshot) -> None:
    optuna_study.delete(engine, now.study.name)
    studies.delete(engine, now.study.id)


class KilledError(Exception):
    """The process is gone."""


def test_a_proposer_that_dies_at_every_step_changes_nothing(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is first killed just before its commit, then done by another proposer."""
    given = thorough()
    calm = run(database, given, learning)
    undisturbed = outcome(calm)
    delete(database, calm)
    study_id = create(database, given)
    worker = roster.register(database, study_id, "host", 1, "CPU", {})
    deaths = []

    def killed(*_: Any) -> None:
        at = studies.find(database, given.name)
        deaths.append(at and at.phase)
        raise KilledError

    def step() -> bool:
        with monkeypatch.context() as patched:
            for module, name in (
                (studies, "enter"),
                (studies, "decide"),
                (studies, "finish"),
                (jobs, "enqueue"),
            ):
                real = getattr(module, name)
                patched.setattr(module, name, lambda *a, f=real, **k: killed(f(*a, **k)))
            with contextlib.suppress(KilledError):
                Proposer(database, study_id, given)._step()
        return Proposer(database, study_id, given)._step()

    while studies.state(database, study_id) == "running":
        while step():
            pass
        for job in jobs.claim(database, study_id, worker, 1000, 60):
            train(database, worker, job, learning)
    now = go_on(database, study_id, given, learning)
    assert outcome(now) == undisturbed
    assert set(deaths) == {"calibrate", "search", "confirm", "decided"}


@pytest.mark.parametrize("role", ["finalist", "control", "compensated"])
def test_an_arm_that_cannot_be_trained_ends_its_comparison_only(
    database: Engine, role: str
) -> None:
    def measure(job: ClaimedJob) -> float:
        # The arms of the first finalist are numbered 1, 2, 3.
        failing = ["finalist", "control", "compensated"].index(role) + 1
        if job.phase == "confirm" and job.trial == failing:
            raise ArithmeticError("loss nan")
        return helps(job)

    now = run(database, small(), measure)
    first, second = now.verdicts
    assert second.verdict == "better"
    if role == "compensated":
        assert (first.verdict, first.reason, first.compensated) == ("better", None, None)
    else:
        assert (first.verdict, first.to_identity) == ("no_evidence", None)
        assert first.reason is not None
        assert "could not be trained with every fresh seed: training diverged" in first.reason
    assert [arm.state for arm in now.confirm.trials].count("failed") == 1


def test_a_study_whose_identity_fails_with_fresh_seeds_stops_and_says_so(
    database: Engine,
) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.phase == "confirm" and job.trial == 0:
            raise ArithmeticError("loss nan")
        return helps(job)

    now = run(database, small(), measure)
    assert (now.study.state, now.study.phase) == ("stopped", "confirm")
    assert "identity could not be trained with every fresh seed" in (now.study.failure or "")


def test_without_finalists_a_study_is_decided_without_verdicts(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.densities != {3: (1.0,)}:
            raise ArithmeticError("loss nan")
        return 30.0

    now = run(database, small(), measure)
    assert (now.study.state, now.study.phase, now.study.verdicts) == ("finished", "decided", [])
    assert now.confirm.trials == []
    assert now.verdict == "unconfirmed"


def test_open_jobs_are_never_judged(database: Engine) -> None:
    """Jobs that are lost for good end as failed; until then nothing is decided."""
    given = small()
    study_id = create(database, given)
    studies.go_on(database, study_id, "search", force=False)
    go_on(database, study_id, given, helps)
    studies.go_on(database, study_id, None, force=False)
    proposer = Proposer(database, study_id, given)
    proposer.advance()
    worker = roster.register(database, study_id, "host", 1, "CPU", {})
    held = jobs.claim(database, study_id, worker, 1000, 60)
    assert {job.phase for job in held} == {"confirm"}
    proposer.advance()
    with database.begin() as connection:
        count = connection.scalar(text("SELECT count(*) FROM densitune.jobs WHERE phase='confirm'"))
    assert count == len(held)
