"""How far a study is, as people are told it."""

from dataclasses import replace
from typing import Any

import pytest
from support.synthetic import BUDGET, configured, measured, snapshot, trial, usual, worker

from optimizer.phases import remaining
from optimizer.show import terminal
from optimizer.show.progress import progress, running_result, trial_counts, worker_line
from optimizer.snapshot import PhaseRows, Snapshot
from storage.ledger import LedgerRow

FRESH = configured().fresh_seeds


def confirming(seeds: int, **changes: Any) -> Snapshot:
    """Identity, a finalist 2 dB above it and its control, after some fresh seeds."""
    arms = [
        trial(n, {5: (1.0 - n / 4, 1.0)}, role=role, state="running", origin=n and 6, **counts)
        for n, (role, counts) in enumerate(
            (name, {"jobs": 12, "done": seeds, "running": 2, "waiting": 10 - seeds})
            for name in ("identity", "finalist", "control")
        )
    ]
    rows: list[LedgerRow] = []
    for number, gain in enumerate((0.0, 2.0, 1.9)):
        values = {seed: 20.0 + place + gain for place, seed in enumerate(FRESH[:seeds])}
        # What the test has not looked at yet would say something else.
        values |= dict.fromkeys(FRESH[6:seeds], 90.0 + 9 * number)
        rows += [
            replace(row, budget=2 * BUDGET, rung=2 * BUDGET)
            for row in measured(number, values)
            if row.rung == BUDGET
        ]
    return usual(**{"phase": "confirm", "confirm": PhaseRows(arms, rows), **changes})


def test_a_confirmation_shows_its_own_result_as_far_as_the_test_has_looked() -> None:
    assert running_result(confirming(5)) == "confirmation: the first look comes after 6 fresh seeds"
    for seeds in (6, 8):
        shown = running_result(confirming(seeds))
        assert shown == (
            "confirmation so far: [0.75, 1] +2.000 ± 0.000 dB to identity over 6 fresh seeds, "
            "no verdict yet"
        )
        assert shown in terminal.plain_line(confirming(seeds))


def test_every_phase_says_how_long_it_takes_at_most() -> None:
    # Three arms of 24 seeds, of which 7 are done each, at 120 an hour.
    assert worker_line(confirming(7)).endswith(
        "120 jobs/hour, 43 min 30 s left of the confirmation, if no arm ends early or is added"
    )
    rates = [
        trial(n, {5: (1.0, 1.0)}, role="rate", state="running", done=1, waiting=1) for n in range(5)
    ]
    calibrating = usual(phase="calibrate", calibrate=PhaseRows(rates, []))
    assert worker_line(calibrating).endswith("about 2 min 30 s left of the calibration")
    assert worker_line(usual(jobs_per_hour=0.0)).endswith("0 jobs/hour")


def test_what_is_left_of_a_confirmation_leaves_out_who_is_judged() -> None:
    given, now = configured(), confirming(6)
    arms = now.confirm.trials
    assert remaining.jobs("confirm", given, arms) == 3 * (36 - 6)
    judged = [arms[0], *(replace(arm, state="complete", waiting=0, running=0) for arm in arms[1:])]
    assert remaining.jobs("confirm", given, judged) == 36 - 6
    learning = trial(1, {5: (1.0, 1.0)}, role="trainable", state="running", done=1, waiting=1)
    assert remaining.jobs("confirm", given, [learning]) == 1


@pytest.mark.parametrize("phase", ["calibrate", "search", "confirm", "decided"])
def test_nothing_runs_in_a_stopped_study(phase: Any) -> None:
    now = replace(confirming(6), workers=[])
    now = replace(now, study=replace(now.study, phase=phase, state="stopped"))
    assert now.seconds_left is None
    assert worker_line(now) == (
        "stopped, nothing is trained; continue with: densitune resume a-study"
    )
    assert "1 open" in trial_counts(now)
    for said in (progress(now), trial_counts(now), terminal.plain_line(now)):
        assert "running" not in said
        assert "left" not in said


def test_a_study_that_stopped_by_itself_is_not_told_to_be_continued() -> None:
    now = usual(state="stopped", failure="Identity is weak.", workers=[worker(1)])
    assert worker_line(now) == "stopped, nothing is trained; 1 worker about to leave"
    assert worker_line(snapshot([], [], state="finished")) == "finished, nothing is trained"
