"""The test split: read once, after the verdict, for identity and the winner; it changes nothing."""

import json
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from sqlalchemy import Engine
from support.queued import set_state
from support.simulated import TESTED, create, go_on, noise, run, small

from optimizer.phases.proposer import Proposer
from optimizer.presets import exports
from optimizer.presets.document import Preset
from optimizer.show import programs, words
from optimizer.show.confirmation_table import arms_table
from optimizer.snapshot import Snapshot, of
from storage import studies
from storage.jobs import ClaimedJob

SPREAD = 0.3


def helps(job: ClaimedJob) -> float:
    """A density near 0.6 helps by its shape; test images are harder than the others."""
    distance = 1.0 if job.arm["mask"] == "uniform" else abs(job.densities[3][0] - 0.6) / 0.4
    level = 27 if job.arm["split"] == "test" else 30
    return level - distance**2 + noise(job, SPREAD)


def by_arm(now: Snapshot) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    for row in now.decided.rows:
        found.setdefault(row.trial, {})[row.seed] = row.value
    return found


def test_identity_and_the_winner_are_trained_again_as_they_were_confirmed(
    database: Engine,
) -> None:
    given = small(training={"lr": "auto"}, **TESTED)
    now = run(database, given, helps)
    assert (now.study.state, now.study.phase) == ("finished", "decided")
    assert now.winner is not None
    identity, winner = now.decided.trials
    confirmed = {arm.origin: arm for arm in now.confirm.trials if arm.role == "finalist"}
    assert (identity.role, identity.densities) == ("identity", {3: (1.0,)})
    assert winner.densities == confirmed[now.winner.trial].densities
    assert winner.origin == now.winner.trial
    for arm, before in ((identity, now.confirm.trials[0]), (winner, confirmed[winner.origin])):
        assert before.arm["split"] == "validation"
        assert arm.arm["split"] == "test"
        assert (arm.arm["lr"], arm.arm["init"], arm.arm["gain"]) == (now.study.lr, "library", {})
        assert arm.state == "complete"
    seeds = list(given.fresh_seeds[: given.confirm.batch])
    measured = [(row.trial, row.seed, row.budget, row.rung) for row in now.decided.rows]
    budget = given.confirm_budget
    assert measured == [(n, seed, budget, budget) for n in (0, 1) for seed in seeds]


def test_nobody_reads_the_test_split_before_the_verdict(database: Engine) -> None:
    seen: list[tuple[str, str]] = []

    def measure(job: ClaimedJob) -> float:
        seen.append((job.phase, job.arm["split"]))
        if job.arm["split"] == "test":
            found = studies.find(database, "a-study")
            assert found is not None
            assert found.verdicts
        return helps(job)

    run(database, small(training={"lr": "auto"}, **TESTED), measure)
    assert set(seen) == {
        ("calibrate", "validation"),
        ("search", "validation"),
        ("confirm", "validation"),
        ("decided", "test"),
    }


def test_the_difference_is_that_of_a_paired_t_interval(database: Engine) -> None:
    now = run(database, small(**TESTED), helps)
    found, values = now.holdout, by_arm(now)
    assert found is not None
    assert found.difference is not None
    assert now.winner is not None
    assert (found.trial, found.reason, found.fingerprint) == (now.winner.trial, None, "print")
    identity, winner = (np.array([values[n][seed] for seed in found.seeds]) for n in (0, 1))
    assert len(found.seeds) == now.config.confirm.batch
    assert found.value == pytest.approx(winner.mean())
    assert found.identity == pytest.approx(identity.mean())
    difference = found.difference
    assert list(difference.by_seed.values()) == pytest.approx(list(winner - identity))
    assert difference.mean == pytest.approx((winner - identity).mean())
    expected = scipy.stats.ttest_rel(winner, identity).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx(tuple(expected))


def test_what_the_test_split_says_changes_neither_verdict_nor_winner(database: Engine) -> None:
    def worse_there(job: ClaimedJob) -> float:
        if job.arm["split"] == "test":
            return 20.0 + abs(job.densities[3][0] - 0.6) + noise(job, SPREAD) / 100
        return helps(job)

    told = run(database, small(name="told", **TESTED), helps)
    now = run(database, small(name="worse", **TESTED), worse_there)
    assert now.holdout is not None
    assert now.holdout.difference is not None
    assert now.holdout.difference.high < 0
    assert now.study.verdicts == told.study.verdicts
    assert now.verdict == "better"
    assert exports.chosen(now).number == exports.chosen(told).number


def test_a_study_without_a_test_split_ends_with_its_verdict(database: Engine) -> None:
    now = run(database, small(), helps)
    assert (now.study.state, now.study.phase) == ("finished", "decided")
    assert now.verdict == "better"
    assert (now.decided.trials, now.study.holdout) == ([], None)
    assert words.about_test_split(now) == "no test split"


def test_without_a_finalist_the_test_split_is_not_read(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.densities != {3: (1.0,)}:
            raise ArithmeticError("loss nan")
        return 30.0

    now = run(database, small(**TESTED), measure)
    assert (now.study.state, now.study.verdicts) == ("finished", [])
    assert (now.decided.trials, words.about_test_split(now)) == ([], None)


def test_a_finalist_that_could_not_be_judged_is_not_measured_either(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.phase == "confirm" and job.trial != 0:
            raise OSError("no photograph")
        return helps(job)

    now = run(database, small(**TESTED), measure)
    assert (now.study.state, now.decided.trials, now.study.holdout) == ("finished", [], None)
    assert words.about_test_split(now) == "test split: not read, for no finalist could be judged"


@pytest.mark.parametrize("failing", [0, 1])
def test_an_arm_that_cannot_be_measured_leaves_a_reason_and_the_verdict(
    database: Engine, failing: int
) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.phase == "decided" and (job.trial, job.seed % 2) == (failing, 0):
            raise OSError("no photograph")
        return helps(job)

    now = run(database, small(**TESTED), measure)
    assert (now.study.state, now.verdict) == ("finished", "better")
    assert now.holdout is not None
    assert now.holdout.difference is None
    name = now.decided.trials[failing].label
    reason = f"{name} could not be measured with every seed: its data could not be read, twice"
    assert now.holdout.reason == reason
    assert words.about_test_split(now) == f"test split: {reason}"
    assert [arm.state for arm in now.decided.trials].count("failed") == 1


def test_measurements_on_different_images_are_not_compared(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float | tuple[float, dict[str, Any]]:
        if job.phase == "decided" and job.trial == 1:
            return helps(job), {"test": "other"}
        return helps(job)

    now = run(database, small(**TESTED), measure)
    assert now.holdout is not None
    assert now.holdout.difference is None
    assert now.holdout.reason == "workers had different test images (other, print)"


@pytest.mark.parametrize("said", [None, 7, ["print"]])
def test_a_measurement_that_does_not_say_its_images_is_not_compared(
    database: Engine, said: Any
) -> None:
    """Nothing of ours writes that, but whoever has a worker's rights may."""

    def measure(job: ClaimedJob) -> float | tuple[float, dict[str, Any]]:
        return (helps(job), {"test": said}) if job.phase == "decided" else helps(job)

    now = run(database, small(**TESTED), measure)
    assert (now.study.state, now.verdict) == ("finished", "better")
    assert now.holdout is not None
    assert now.holdout.difference is None
    assert now.holdout.reason == "a worker did not say on which test images it had measured"


@pytest.mark.parametrize("sections", [{}, TESTED])
def test_a_study_that_an_older_version_stopped_at_its_end_ends_as_it_did(
    database: Engine, sections: dict[str, Any]
) -> None:
    now = run(database, small(**sections), helps)
    set_state(database, now.study.id, "stopped")
    studies.go_on(database, now.study.id, None, force=False)
    Proposer(database, now.study.id, now.config).advance()
    again = of(database, now.study.name)
    assert (again.study.state, again.holdout) == ("finished", now.holdout)
    assert again.decided.trials == now.decided.trials


def test_the_words_say_how_far_it_is_and_what_came_out(database: Engine) -> None:
    given = small(**TESTED)
    study_id = create(database, given)
    studies.go_on(database, study_id, "confirm", force=False)
    stopped = go_on(database, study_id, given, helps)
    assert (stopped.study.state, stopped.study.phase) == ("stopped", "decided")
    studies.go_on(database, study_id, None, force=False)
    Proposer(database, study_id, given).advance()
    assert words.about_test_split(of(database, given.name)) == "test split: 0/16 jobs done"
    now = go_on(database, study_id, given, helps)
    found = now.holdout
    assert found is not None
    assert found.difference is not None
    line = words.about_test_split(now)
    assert line is not None
    assert line.startswith(f"test split: {found.difference.mean:+.3f} dB [")
    assert line.endswith(f"({found.value:.3f} against {found.identity:.3f}, 8 seeds)")
    console = Console(width=200)
    with console.capture() as shown:
        console.print(arms_table(now))
    assert line in " ".join(shown.get().split())
    document = json.loads(json.dumps(programs.document(now), allow_nan=False))
    assert document["test"]["difference"]["mean"] == found.difference.mean
    assert document["phases"]["decided"]["done"] == 16


def test_the_winners_preset_has_the_test_split_and_no_other(database: Engine) -> None:
    now = run(database, small(**TESTED), helps)
    preset = exports.compose(now, exports.chosen(now))
    assert preset.evidence.test == now.holdout is not None
    assert Preset.model_validate(json.loads(preset.text())) == preset
    other = next(one for one in now.verdicts if one.trial != now.holdout.trial)
    assert exports.compose(now, exports.chosen(now, other.trial)).evidence.test is None
    assert "others" not in preset.text()  # where the images lay
