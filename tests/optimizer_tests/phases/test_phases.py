"""From phase to phase: calibration, a healthy baseline, stops in between, and what resumes."""

import math
import re

import pytest
from sqlalchemy import Engine
from support.simulated import create, go_on, noise, run, small

from optimizer import learning_rates
from storage import jobs, roster, studies
from storage.jobs import ClaimedJob
from storage.states import Phase

GRID = learning_rates.grid(learning_rates.usual("nafnet", 128))


def best_at_2e3(job: ClaimedJob) -> float:
    """Training does best at a rate between two of the grid."""
    rate = job.arm["lr"] or 1e-3
    return 30 - 5 * (math.log10(rate / 2e-3)) ** 2 + noise(job, 0.01)


def automatic(**changes: object) -> dict[str, object]:
    return {"training": {"lr": "auto"}, **changes}


def test_identity_is_trained_at_every_rate_with_the_searchs_seeds_and_the_confirmations_budget(
    database: Engine,
) -> None:
    given = small(**automatic())
    now = run(database, given, best_at_2e3)
    assert [arm.role for arm in now.calibrate.trials] == ["rate"] * 5
    assert [arm.arm["lr"] for arm in now.calibrate.trials] == GRID
    assert all(arm.densities == {3: (1.0,)} for arm in now.calibrate.trials)
    assert all(arm.state == "complete" for arm in now.calibrate.trials)
    measured = [(row.trial, row.seed, row.budget) for row in now.calibrate.rows]
    assert measured == [(n, seed, given.confirm_budget) for n in range(5) for seed in given.seeds]


def test_search_and_confirmation_train_at_the_calibrated_rate(database: Engine) -> None:
    now = run(database, small(**automatic()), best_at_2e3)
    assert now.study.lr == pytest.approx(2e-3, rel=0.05)
    assert now.lr == now.study.lr
    assert {trial.arm["lr"] for trial in now.trials} == {now.study.lr}
    assert {arm.arm["lr"] for arm in now.confirm.trials} == {now.study.lr}


def test_a_given_rate_is_not_calibrated(database: Engine) -> None:
    now = run(database, small(), best_at_2e3)
    assert now.calibrate.trials == []
    assert (now.study.lr, now.lr) == (None, 0.01)
    assert {trial.arm["lr"] for trial in now.trials} == {None}  # the recipe's


def test_a_rate_that_failed_without_diverging_ends_the_calibration(database: Engine) -> None:
    """The best one could not be read: the next best would be a straw man's."""

    def measure(job: ClaimedJob) -> float:
        if job.phase == "calibrate" and job.arm["lr"] == GRID[2]:
            raise OSError("unreadable")
        return best_at_2e3(job)

    now = run(database, small(**automatic()), measure)
    assert (now.study.state, now.study.phase, now.study.lr) == ("stopped", "calibrate", None)
    assert re.fullmatch(
        f"identity could not be trained at lr {GRID[2]:g}, .*: .*unreadable; mend that and begin "
        "anew, or give training.lr",
        now.study.failure or "",
    )


def test_rates_at_which_training_diverges_are_left_out(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float:
        if (job.arm["lr"] or 0) > 2e-3 and job.seed % 2:
            raise ArithmeticError("loss nan")
        return best_at_2e3(job)

    now = run(database, small(**automatic()), measure)
    assert [arm.state for arm in now.calibrate.trials] == ["complete"] * 3 + ["failed"] * 2
    assert now.study.lr == GRID[2]
    assert now.study.phase == "decided"


DOWN = [3.16e-5, 1e-5, 3.16e-6, 1e-6]


@pytest.mark.parametrize(
    ("peak", "more", "lr"),
    [(0.05, [0.0316, 0.1], 0.05), (2e-6, DOWN, 2e-6), (1e-9, DOWN, 1e-6)],
)
def test_the_grid_grows_until_the_best_rate_lies_within_it_or_at_its_limit(
    database: Engine, peak: float, more: list[float], lr: float
) -> None:
    def measure(job: ClaimedJob) -> float:
        rate = job.arm["lr"] or 1e-3
        return 30 - 5 * (math.log10(rate / peak)) ** 2 + noise(job, 0.01)

    now = run(database, small(**automatic()), measure, floor=-1e6)
    assert [arm.arm["lr"] for arm in now.calibrate.trials] == pytest.approx(GRID + more)
    assert now.study.lr == pytest.approx(lr, rel=0.1)


def test_the_grid_does_not_grow_where_training_diverges(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float:
        if (job.arm["lr"] or 0) > 0.02:
            raise ArithmeticError("loss nan")
        return 30 + math.log10(job.arm["lr"] or 1e-3) + noise(job, 0.01)

    now = run(database, small(**automatic()), measure)
    assert [arm.state for arm in now.calibrate.trials] == ["complete"] * 5 + ["failed"]
    assert now.study.lr == GRID[-1]


def test_a_study_whose_identity_diverges_at_every_rate_stops_with_the_reason(
    database: Engine,
) -> None:
    def measure(job: ClaimedJob) -> float:
        raise ArithmeticError("loss nan")

    given = small(**automatic())
    now = run(database, given, measure)
    assert (now.study.state, now.study.phase, now.trials) == ("stopped", "calibrate", [])
    assert "at any learning rate: diverged: loss nan" in (now.study.failure or "")
    studies.go_on(database, now.study.id, None, force=True)
    again = go_on(database, now.study.id, given, measure)
    assert (again.study.state, again.study.failure) == ("stopped", now.study.failure)


@pytest.mark.parametrize("lr", ["auto", 0.002])
def test_an_unhealthy_baseline_stops_the_study_until_it_is_forced(
    database: Engine, lr: str | float
) -> None:
    given = small(training={"lr": lr})
    now = run(database, given, best_at_2e3, floor=50.0)
    assert (now.study.state, now.study.phase) == ("stopped", "search")
    failure = now.study.failure or ""
    assert "is not above the noisy input (50.000 dB)" in failure
    assert "densitune resume a-study --force" in failure
    assert len(now.trials) == (0 if lr == "auto" else given.search.in_flight)
    studies.go_on(database, now.study.id, None, force=True)
    forced = go_on(database, now.study.id, given, best_at_2e3)
    assert (forced.study.state, forced.study.phase) == ("finished", "decided")
    assert forced.study.forced
    assert forced.study.failure is None
    calm = run(database, small(name="calm", training={"lr": lr}), best_at_2e3)
    assert forced.rows == calm.rows
    assert forced.study.verdicts == calm.study.verdicts


def test_a_healthy_baseline_is_above_every_floor(database: Engine) -> None:
    assert run(database, small(), best_at_2e3, floor=20.0).study.phase == "decided"


def test_force_does_not_help_an_identity_that_cannot_be_trained(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.trial == 0:
            raise ArithmeticError("loss nan")
        return 30.0

    given = small()
    now = run(database, given, measure)
    assert "identity could not be trained" in (now.study.failure or "")
    studies.go_on(database, now.study.id, None, force=True)
    again = go_on(database, now.study.id, given, measure)
    assert (again.study.state, again.study.failure) == ("stopped", now.study.failure)


@pytest.mark.parametrize(("until", "following"), [("calibrate", "search"), ("search", "confirm")])
def test_a_study_stops_after_the_phase_asked_for_and_goes_on_later(
    database: Engine, until: Phase, following: Phase
) -> None:
    calm = run(database, small(name="calm", **automatic()), best_at_2e3)
    given = small(name="parts", **automatic())
    study_id = create(database, given)
    studies.go_on(database, study_id, until, force=False)
    now = go_on(database, study_id, given, best_at_2e3)
    assert (now.study.state, now.study.phase, now.study.failure) == ("stopped", following, None)
    assert now.phases[following].trials == []
    assert studies.is_over(now.study, until)
    studies.go_on(database, study_id, None, force=False)
    ended = go_on(database, study_id, given, best_at_2e3)
    assert ended.study.verdicts == calm.study.verdicts
    assert (ended.rows, ended.confirm.rows) == (calm.rows, calm.confirm.rows)


def test_a_finished_study_stays_finished(database: Engine) -> None:
    now = run(database, small(), best_at_2e3)
    studies.go_on(database, now.study.id, "search", force=False)
    assert studies.state(database, now.study.id) == "finished"


def test_a_job_tells_its_phase_and_arm(database: Engine) -> None:
    given = small(**automatic())
    study_id = create(database, given)
    studies.go_on(database, study_id, "search", force=False)
    seen: list[ClaimedJob] = []

    def measure(job: ClaimedJob) -> float:
        seen.append(job)
        return best_at_2e3(job)

    go_on(database, study_id, given, measure)
    assert [job.phase for job in seen[:10]] == ["calibrate"] * 10
    assert [job.arm["lr"] for job in seen[:10:2]] == GRID
    assert {job.phase for job in seen[10:]} == {"search"}
    assert len({job.arm["lr"] for job in seen[10:]}) == 1


def test_phases_may_use_the_same_numbers_and_seeds(database: Engine) -> None:
    """Calibration and search both have a trial 0 with the same seeds and budget."""
    now = run(database, small(confirm={"budget": 2}, **automatic()), best_at_2e3)
    first = {(row.trial, row.seed, row.budget) for row in now.calibrate.rows}
    assert first & {(row.trial, row.seed, row.budget) for row in now.rows}
    worker = roster.register(database, now.study.id, "host", 1, "CPU", {})
    assert jobs.claim(database, now.study.id, worker, 1, 60) == []
