"""Confirmation: fresh seeds, the right arms, verdicts that follow the truth, whoever trains."""

import contextlib
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from support.simulated import FLOOR, TESTED, Measure, create, go_on, noise, run, small, train
from support.synthetic import configured

from optimizer.arms import Arm
from optimizer.config.study_file import FRESH, StudyConfig
from optimizer.errors import EvidenceError
from optimizer.phases import comparisons, upkeep
from optimizer.phases.proposer import Proposer
from optimizer.presets import exports, recheck, reruns
from optimizer.snapshot import Snapshot
from storage import jobs, roster, studies
from storage.jobs import ClaimedJob

SPREAD = 0.3


def distance(job: ClaimedJob) -> float:
    """How far a density is from the best one; identity is at 1."""
    return abs(job.densities[3][0] - 0.6) / 0.4


def helps(job: ClaimedJob) -> float:
    """A density near 0.6 helps, whatever the scale of the initial weights."""
    lost = 1.0 if job.arm["mask"] == "uniform" else distance(job) ** 2
    return 30 - lost + noise(job, SPREAD)


def rms(job: ClaimedJob) -> float:
    """RMS(phi) of a job's density."""
    phi = np.outer([a := job.densities[3][0], 1, a], [a, 1, a])
    return float(np.sqrt((phi**2).mean()))


def scales(job: ClaimedJob) -> float:
    """Nothing but the scale of the initial weights counts, and 0.6's is the best."""
    scale: float = job.arm["gain"].get("3", 1.0)
    if job.arm["init"] == "library":
        scale *= rms(job)
    return 30 - 4 * (scale - (2 * 0.36 + 1) / 3) ** 2 + noise(job, SPREAD)


def steps(job: ClaimedJob) -> float:
    """Nothing but the size of the steps counts, and 0.6's is the best."""
    return 30 - 4 * (rms(job) - (2 * 0.36 + 1) / 3) ** 2 + noise(job, SPREAD)


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
        (steps, {"step_only", "no_evidence"}),
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


def test_arms_are_identity_finalists_and_what_is_beside_those_above_identity(
    database: Engine,
) -> None:
    given = small(training={"lr": "auto"}, confirm={"compensated": True, "keep": []})
    now = run(database, given, helps)
    assert {one.verdict for one in now.verdicts} == {"better"}
    identity = now.confirm.trials[0]
    assert (identity.role, identity.densities, identity.origin) == ("identity", {3: (1.0,)}, None)
    assert all(arm.arm["lr"] == now.study.lr is not None for arm in now.confirm.trials)
    assert all(arm.arm["floored"] for arm in now.confirm.trials)
    searched = {trial.number: trial for trial in now.trials}
    groups = comparisons.groups(now.confirm.trials)
    assert {len(group.arms) for group in groups} == {4}
    assert sum(len(group.arms) for group in groups) + 1 == len(now.confirm.trials)
    for group in groups:
        origin = searched[group.finalist.origin or 0]
        assert group.finalist.densities == origin.densities
        assert (group.finalist.arm["init"], group.finalist.arm["gain"]) == ("library", {})
        assert {arm.origin for arm in group.arms} == {group.finalist.origin}
        control, uniform, compensated = group.control, group.uniform, group.compensated
        assert control is not None
        assert uniform is not None
        assert compensated is not None
        assert compensated.densities == uniform.densities == origin.densities
        assert (compensated.arm["init"], compensated.arm["gain"]) == ("compensated", {})
        assert (uniform.arm["mask"], control.arm["mask"]) == ("uniform", "density")
        phi = np.outer([a := origin.densities[3][0], 1, a], [a, 1, a])
        assert control.densities == {3: (1.0,)}
        assert control.arm["gain"] == pytest.approx({"3": np.sqrt((phi**2).mean())})
    assert {row.budget for row in now.confirm.rows} == {2 * given.training.budget}


@pytest.mark.parametrize("init", ["library", "compensated"])
def test_a_rerun_trains_the_very_arms_that_were_confirmed(database: Engine, init: str) -> None:
    now = run(database, small(init=init), helps)
    preset = exports.compose(now, exports.chosen(now))
    told = reruns.recorded(preset, None)
    group = next(
        group
        for group in comparisons.groups(now.confirm.trials)
        if group.finalist.origin == preset.provenance.trial
    )
    compared = {
        "density": group.finalist,
        "identity": now.confirm.trials[0],
        "its scale control": group.control,
        "its uniform mask": group.uniform,
    }
    # A preset names the rate that a study leaves to its recipe; what is measured beside the metric
    # is not compared.
    assert told.arms == {
        name: replace(Arm.of(arm.densities, arm.arm), lr=now.lr, per_image=False)
        for name, arm in compared.items()
        if arm is not None
    }


@pytest.mark.parametrize(
    ("changes", "normalised", "expected"),
    [
        ({}, False, {"control", "uniform"}),
        ({"init": "compensated"}, False, {"uniform"}),
        ({}, True, set()),
        ({"init": "compensated"}, True, {"uniform"}),  # identity at another rate (docs/evidence.md)
    ],
)
def test_better_asks_for_the_controls_that_differ_from_identity(
    database: Engine, changes: dict[str, Any], normalised: bool, expected: set[str]
) -> None:
    now = run(database, small(**changes), helps, normalised=normalised)
    better = next(one for one in now.verdicts if one.verdict == "better")
    given = {"control": better.to_control, "uniform": better.to_uniform}
    assert {name for name, found in given.items() if found is not None} == expected
    roles = {arm.role for arm in now.confirm.trials}
    assert roles == {"identity", "finalist", *expected}
    assert now.uniform_is_identity == normalised


def test_controls_have_the_seeds_of_finalists_above_identity_and_nobody_else_has_any(
    database: Engine,
) -> None:
    now = run(database, small(confirm={"finalists": 4, "keep": []}), split)
    values, groups = values_of(now), comparisons.groups(now.confirm.trials)
    assert {one.verdict for one in now.verdicts} >= {"better", "no_evidence"}
    for one, group in zip(now.verdicts, groups, strict=True):
        seeds = values[group.finalist.number].keys()
        assert all(values[arm.number].keys() == seeds for arm in group.arms)
        assert (len(group.arms) == 3) == (one.verdict in ("better", "scale_only", "step_only"))


def test_after_a_look_the_best_go_on_and_the_others_are_dropped(database: Engine) -> None:
    given = small(confirm={"finalists": 4, "keep": [2, 1], "seeds": 32})
    now = run(database, given, alike)
    values, by_verdict = values_of(now), {one.trial: one for one in now.verdicts}
    groups = comparisons.groups(now.confirm.trials)
    seeds = sorted(len(values[group.finalist.number]) for group in groups)
    assert seeds[:3] == [8, 8, 16]
    assert seeds[3] > 16
    for group in groups:
        own, one = values[group.finalist.number], by_verdict[group.finalist.origin or 0]
        if len(own) == seeds[3]:
            assert (one.verdict, one.reason) == ("better", None)
            continue
        assert (one.verdict, one.reason) == ("dropped", f"dropped after {len(own)} seeds")
        assert (group.finalist.state, group.arms) == ("pruned", [group.finalist])
        # Whoever went on was ahead then.
        ahead = [
            statistics.fmean(list(values[other.finalist.number].values())[: len(own)])
            for other in groups
            if len(values[other.finalist.number]) > len(own)
        ]
        assert min(ahead) > statistics.fmean(own.values())
    assert now.winner is not None
    assert now.winner.verdict == "better"


def alike(job: ClaimedJob) -> float:
    """Fresh seeds find that all densities help by the same, not shown before 16 seeds."""
    if job.phase != "confirm":
        return helps(job)
    plain = job.densities[3] == (1.0,) or job.arm["mask"] == "uniform"
    return 30 + (0 if plain else 0.9 * SPREAD) + noise(job, SPREAD)


def test_stored_differences_are_those_of_the_ledger(database: Engine) -> None:
    now = run(database, small(confirm={"compensated": True}), helps)
    values = values_of(now)
    for one, group in zip(now.verdicts, comparisons.groups(now.confirm.trials), strict=True):
        own = values[group.finalist.number]
        compared = [(one.to_identity, own, values[0])]
        if one.verdict == "better":
            assert group.control is not None
            assert group.uniform is not None
            compared += [
                (one.to_control, own, values[group.control.number]),
                (one.to_uniform, own, values[group.uniform.number]),
            ]
            assert one.compensated is not None
            assert one.to_identity is not None
            assert one.compensated.by_seed.keys() == one.to_identity.by_seed.keys()
        for found, mine, against in compared:
            expected = {str(seed): mine[seed] - against[seed] for seed in own}
            assert found is not None
            assert found.by_seed == pytest.approx(expected, abs=1e-12)
            assert found.mean == pytest.approx(statistics.fmean(expected.values()))


def split(job: ClaimedJob) -> float:
    """Fresh seeds confirm by far what the search found below 0.65, and hardly what is above."""
    if job.phase != "confirm":
        return helps(job)
    [a] = job.densities[3]
    plain = a == 1 or job.arm["mask"] == "uniform"
    effect = 0.0 if plain else 5.0 if a < 0.65 else 0.3
    return 30 + effect * SPREAD + noise(job, SPREAD)


def test_what_is_judged_gets_no_more_seeds_and_identity_goes_on(database: Engine) -> None:
    given = small(confirm={"finalists": 4, "seeds": 24, "batch": 8, "keep": []})
    now = run(database, given, split)
    seeds = {arm.number: sorted(values_of(now)[arm.number]) for arm in now.confirm.trials}
    assert all(len(mine) % 8 == 0 for mine in seeds.values())
    assert all(mine == list(given.fresh_seeds[: len(mine)]) for mine in seeds.values())
    groups = comparisons.groups(now.confirm.trials)
    by_group = [{len(seeds[arm.number]) for arm in group.arms} for group in groups]
    assert all(len(sizes) == 1 for sizes in by_group)
    sizes = [size for found in by_group for size in found]
    assert min(sizes) < max(sizes) == len(seeds[0])


def outcome(now: Snapshot) -> tuple[Any, ...]:
    """All that a study comes to: ledger, verdicts, and its preset but for the time and its hash."""
    preset = exports.compose(now, exports.chosen(now))
    provenance = preset.provenance.model_copy(update={"exported_at": "", "content_sha256": ""})
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
    upkeep.delete(engine, now.study)


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


def failing(role: str, error: Exception, seeds: range) -> Measure:
    """What `helps` measures, but that an arm of the first finalist fails with some seeds."""

    def measure(job: ClaimedJob) -> float:
        own = {"identity": job.trial == 0, "finalist": job.trial == 1}
        own["control"] = bool(job.arm["gain"])
        own["uniform"] = job.arm["mask"] == "uniform"
        own["compensated"] = job.arm["init"] == "compensated"
        if job.phase == "confirm" and own[role] and job.seed - FRESH in seeds:
            raise error
        return helps(job)

    return measure


@pytest.mark.parametrize("role", ["finalist", "control", "uniform", "compensated"])
def test_an_arm_whose_data_fail_ends_its_comparison_only(database: Engine, role: str) -> None:
    given = small(confirm={"compensated": True, "finalists": 1})
    now = run(database, given, failing(role, OSError("unreadable"), range(3, 4)))
    [one] = now.verdicts
    if role == "compensated":
        assert (one.verdict, one.reason, one.compensated) == ("better", None, None)
    else:
        assert (one.verdict, one.to_identity) == ("no_evidence", None)
        assert one.reason is not None
        assert "could not be trained with every fresh seed: its data could" in one.reason
    assert [arm.state for arm in now.confirm.trials].count("failed") == 1


@pytest.mark.parametrize("role", ["identity", "finalist", "control", "uniform", "compensated"])
def test_an_arm_that_diverges_scores_the_floor_and_keeps_its_seed(
    database: Engine, role: str
) -> None:
    given = small(confirm={"compensated": True, "finalists": 1, "keep": []})
    now = run(database, given, failing(role, ArithmeticError("loss nan"), range(3, 4)))
    [one], values = now.verdicts, values_of(now)
    assert one.to_identity is not None
    assert one.reason is None
    assert (one.failures, one.diverged) == ({role: 1}, {role: [FRESH + 3]})
    diverged = [
        arm.role for arm in now.confirm.trials if values[arm.number].get(FRESH + 3) == FLOOR
    ]
    assert diverged == [role]
    assert all(arm.state == "complete" for arm in now.confirm.trials)
    # A finalist that failed has one difference far from the others, and so shows nothing; what
    # another arm lost counts as zero, beside differences that suffice.
    assert one.verdict == ("no_evidence" if role == "finalist" else "better")


@pytest.mark.parametrize("role", ["identity", "control", "uniform"])
@pytest.mark.parametrize("many", [7, 9, 16, 24])
def test_no_finalist_is_better_by_what_another_arm_failed_at(
    database: Engine, role: str, many: int
) -> None:
    """It is as good where the other arm does not fail, by the same differences at every seed."""

    def equal(job: ClaimedJob) -> float:
        if job.phase != "confirm":
            return helps(job)
        own = {"identity": job.trial == 0, "control": bool(job.arm["gain"])}
        own["uniform"] = job.arm["mask"] == "uniform"
        if own[role] and job.seed - FRESH in range(many):
            raise ArithmeticError("loss nan")
        as_good = own[role] or job.trial == 1
        return 30 + noise(job, SPREAD) - (0 if as_good else 4)

    now = run(database, small(confirm={"finalists": 1, "keep": []}), equal)
    [one] = now.verdicts
    assert one.verdict not in ("better", "worse")


def test_a_study_whose_identity_diverges_on_every_fresh_seed_is_not_healthy(
    database: Engine, tmp_path: Path
) -> None:
    lost = failing("identity", ArithmeticError("loss nan"), range(100))
    vgg = {"task": "cifar100", "proxy": {"family": "vgg", "width": 8, "depth": 3}}
    now = run(database, small(confirm={"finalists": 1}, **vgg), lost, normalised=True)
    assert [one.verdict for one in now.verdicts] == ["no_evidence"]
    assert now.confirmed_identity == FLOOR
    assert not now.healthy
    assert "Identity with fresh seeds (0.000 %) is not above the noisy input" in now.cautions[0]
    _, preset = exports.export(now, tmp_path)
    assert preset.evidence.note.startswith("NOT TO BE RELIED ON")
    recheck.check(preset, json.loads(preset.text()))
    with pytest.raises(EvidenceError, match="Identity with fresh seeds"):
        exports.export(now, tmp_path, require_better=True)


def test_a_study_whose_identity_fails_with_fresh_seeds_stops_and_says_so(
    database: Engine,
) -> None:
    now = run(database, small(), failing("identity", OSError("unreadable"), range(1)))
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
