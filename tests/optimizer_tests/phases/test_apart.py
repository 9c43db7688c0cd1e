"""The 2 x 2: where a winner's difference comes from, its start or its steps; checks on request."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from support.simulated import create, go_on, noise, run, small

from optimizer.cli import session
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from optimizer.evidence import apart
from optimizer.phases import checks, comparisons, remaining
from optimizer.presets import document, exports, recheck
from optimizer.show import programs, report, words
from optimizer.show.confirmation_table import arms_table
from optimizer.snapshot import Snapshot
from storage import studies
from storage.jobs import ClaimedJob

SPREAD = 0.1
LR = 0.01
START, STEPS, BOTH = 0.4, -0.1, 1.5


def structured(job: ClaimedJob) -> float:
    """Density 0.6 helps: by its start, less its steps, and most by both together."""
    a: float = job.densities[3][0]
    lost = math.log10((job.arm["lr"] or LR) / LR) ** 2
    value: float = 30 - lost + noise(job, SPREAD)
    if a == 1 or job.arm["mask"] == "uniform":
        return value
    start, steps = job.arm["start"] != "over_phi", job.arm["mask"] == "density"
    value += START * start + STEPS * steps + BOTH * float(start and steps)
    return value - 0.2 * abs(a - 0.6)


def asked(arms: list[str], rates: str = "never", **changes: Any) -> StudyConfig:
    confirm = {"finalists": 1, "seeds": 12, "batch": 6, "rates": rates, "arms": arms}
    return small(confirm={**confirm, **changes})


TWO = ["init_only", "steps_only"]


def test_main_effects_and_interaction_are_those_that_were_planted(
    database: Engine, tmp_path: Path
) -> None:
    now = run(database, asked(TWO), structured)
    assert (now.study.state, now.study.phase, now.verdict) == ("finished", "decided", "better")
    told, winner = now.apart, now.winner
    assert told is not None
    assert winner is not None
    assert winner.to_identity is not None
    assert [trial.role for trial in now.check.trials] == TWO
    assert all(trial.arm["floored"] for trial in now.check.trials)
    assert {trial.arm["lr"] for trial in now.check.trials} == {now.study.lr}
    truth = {
        "init_only": START, "steps_only": STEPS, "start": START + BOTH / 2,
        "steps": STEPS + BOTH / 2, "interaction": BOTH,
    }  # fmt: skip
    for name, effect in truth.items():
        found = getattr(told, name)
        assert found.by_seed.keys() == winner.to_identity.by_seed.keys()
        assert found.mean == pytest.approx(effect, abs=0.2), name
        assert found.low < found.mean < found.high
    said = words.about_apart(now)
    assert said is not None
    assert said in " ".join(str(arms_table(now).caption).split("\n"))
    assert "main effect of the start" in report.render(now)
    documented = json.loads(json.dumps(programs.document(now), allow_nan=False))
    assert documented["apart"] == told.model_dump()
    path, _ = exports.export(now, tmp_path)
    recheck.check(document.load(path), document.content(path))


@given(st.lists(st.tuples(*[st.floats(-10, 10)] * 4), min_size=2, max_size=8))
def test_effects_add_up_to_the_densitys_difference(values: list[tuple[float, ...]]) -> None:
    identity, init, steps, density = (dict(enumerate(arm)) for arm in zip(*values, strict=True))
    found = apart.effects(identity, density, {"init_only": init, "steps_only": steps})
    both = np.mean([density[s] - identity[s] for s in identity])
    assert found["start"].mean + found["steps"].mean == pytest.approx(both, abs=1e-9)
    added = found["init_only"].mean + found["steps_only"].mean + found["interaction"].mean
    assert added == pytest.approx(both, abs=1e-9)
    assert apart.effects(identity, density, {"init_only": init}).keys() == {"init_only"}


def test_the_seeds_on_which_any_of_the_four_diverged_are_told(database: Engine) -> None:
    """Identity's and the winner's are the confirmation's."""

    def measure(job: ClaimedJob) -> float:
        own = job.densities[3][0] != 1 and job.arm["mask"] == "density"
        unlucky = {"confirm": (1, 2)[own and job.arm["start"] == "drawn"], "check": 3}
        plain = job.densities[3][0] == 1 and not job.arm["gain"]
        if job.seed % 1000 == unlucky.get(job.phase) and (plain or own):
            raise ArithmeticError("loss nan")
        return structured(job)

    now = run(database, asked(TWO, seeds=18), measure)
    assert now.winner is not None
    assert now.apart is not None
    diverged = {arm: [seed % 1000 for seed in which] for arm, which in now.apart.diverged.items()}
    assert diverged == {"identity": [1], "finalist": [2], "steps_only": [3]}
    said = words.about_apart(now) or ""
    assert "identity diverged on 1 seeds; the density diverged on 1 seeds; steps_only" in said


@pytest.mark.parametrize("part", TWO)
def test_one_of_them_may_be_had_alone_and_one_that_fails_leaves_the_other(
    database: Engine, part: str
) -> None:
    alone = run(database, asked([part]), structured).apart
    assert alone is not None
    assert getattr(alone, part) is not None
    assert (alone.start, alone.interaction, alone.reason) == (None, None, None)

    def failing(job: ClaimedJob) -> float:
        if job.phase == "check" and (job.arm["mask"] == "ones") == (part == "init_only"):
            raise OSError("unreadable")
        return structured(job)

    broken = run(database, asked(TWO).model_copy(update={"name": "broken"}), failing)
    told = broken.apart
    assert (broken.study.state, broken.verdict) == ("finished", "better")
    assert told is not None
    assert told.reason is not None
    assert "alone could not be trained with every seed" in told.reason
    assert (getattr(told, part), told.start) == (None, None)
    assert told.init_only or told.steps_only


def test_both_checks_are_made_in_one_phase(database: Engine) -> None:
    now = run(database, asked(TWO, "always"), structured)
    assert now.apart is not None
    assert now.own_rates is not None
    roles = [trial.role for trial in now.check.trials]
    assert roles.count("rate") == 12
    compared = {"identity", "finalist", "control", "uniform"}
    assert set(roles) - {"rate"} == {*TWO, *compared}
    assert [trial.number for trial in now.check.trials] == list(range(len(roles)))


def launch(engine: Engine, config: StudyConfig) -> Snapshot:
    study = session.create(engine, config, "none", "print", "full", dict)
    studies.go_on(engine, study.id, None, force=False)
    return go_on(engine, study.id, config, structured)


def test_a_finished_study_gets_checks_when_its_config_asks_for_them_and_keeps_its_verdicts(
    database: Engine,
) -> None:
    before = run(database, asked([]), structured)
    assert (before.check.trials, before.own_rates, before.apart) == ([], None, None)
    after = launch(database, asked(TWO, "auto"))
    assert (after.study.state, after.study.phase) == ("finished", "decided")
    assert after.study.verdicts == before.study.verdicts
    assert after.confirm.rows == before.confirm.rows
    assert after.own_rates is not None
    assert after.apart is not None
    again = launch(database, asked(TWO, "auto"))
    assert again.check.rows == after.check.rows


def test_a_finished_study_of_an_earlier_version_gets_the_rate_check_only_if_that_is_written(
    database: Engine,
) -> None:
    given = asked([], "auto")
    stored = given.document()
    del stored["confirm"]["rates"], stored["confirm"]["arms"]
    study_id = create(database, given)
    with database.begin() as connection:
        studies._set(connection, study_id, config=stored)
    go_on(database, study_id, given, structured)
    silent = small(confirm={"finalists": 1, "seeds": 12, "batch": 6})
    unwritten = silent.confirm.model_copy()
    object.__setattr__(unwritten, "rates", "auto")
    unwritten.model_fields_set.discard("rates")
    same = launch(database, silent.model_copy(update={"confirm": unwritten}))
    assert same.check.trials == []
    assert "rates" not in same.study.config["confirm"]
    assert launch(database, given).own_rates is not None


def test_a_study_that_is_not_finished_gets_no_other_checks(database: Engine) -> None:
    study_id = create(database, asked([]))
    studies.stop(database, study_id)
    with pytest.raises(UsageError, match=r"is stopped, and only the winner of a finished one"):
        session.create(database, asked(TWO), "none", "print", "full", dict)


def test_what_is_left_of_the_checks_is_what_they_are_still_to_queue(database: Engine) -> None:
    now = run(database, asked(TWO, "always"), structured)
    assert remaining.jobs("check", now.config, now.check.trials) == 0
    winner = now.winner
    assert winner is not None
    assert checks.left(now.study, now.config, winner, now.check.trials) == 0
    assert winner.to_identity is not None
    seeds = len(winner.to_identity.by_seed)
    assert checks.left(now.study, now.config, winner, []) == 2 * seeds + 12 * 3 + 4 * seeds


def test_an_extended_study_checks_its_winner_beside_the_controls_that_it_lacks(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first check stands; what a new control lacks is trained with as many seeds.

    An earlier version compared with identity alone where that had not been beaten.
    """

    def weakly(job: ClaimedJob) -> float:
        helped = 0.5 * (job.densities[3][0] < 0.9 and job.arm["mask"] == "density")
        return 30 + helped - 8 * math.log10((job.arm["lr"] or LR) / LR) ** 2 + noise(job, 1.0)

    def given(seeds: int) -> StudyConfig:
        return asked([], "always", seeds=seeds, batch=8)

    with monkeypatch.context() as earlier:
        earlier.setattr(comparisons, "controls", lambda *_: ())
        before = run(database, given(8), weakly)
    first = before.own_rates
    assert before.verdict == "no_evidence"
    assert first is not None
    assert first.to_controls == {}
    assert "(not compared: its scale control, its uniform mask)" in str(
        words.about_own_rates(before)
    )
    study = session.create(database, given(96), "none", "print", "full", dict)
    studies.go_on(database, study.id, None, force=False)
    after = go_on(database, study.id, given(96), weakly)
    told = after.own_rates
    assert after.study.state == "finished"
    assert after.winner is not None
    assert after.winner.trial == first.trial
    assert told is not None
    assert told.to_identity == first.to_identity
    assert first.to_identity is not None
    assert set(told.to_controls) == {"control", "uniform"}
    for compared in told.to_controls.values():
        assert compared.by_seed.keys() == first.to_identity.by_seed.keys()
    known = {(row.trial, row.seed, row.value) for row in before.check.rows}
    assert known < {(row.trial, row.seed, row.value) for row in after.check.rows}


def test_an_extended_study_of_an_earlier_version_is_not_checked_by_a_default(
    database: Engine,
) -> None:
    config = asked([], "auto", seeds=8, batch=8)
    stored = config.document()
    del stored["confirm"]["rates"], stored["confirm"]["arms"]
    study_id = create(database, config)
    with database.begin() as connection:
        studies._set(connection, study_id, config=stored)

    def nothing(job: ClaimedJob) -> float:
        return 30 + noise(job, 1.0)

    go_on(database, study_id, config, nothing)
    more = config.confirm.model_copy(update={"seeds": 16})
    more.model_fields_set.difference_update({"rates", "arms"})
    longer = config.model_copy(update={"confirm": more})
    study = session.create(database, longer, "none", "print", "full", dict)
    assert study.config["confirm"]["seeds"] == 16
    assert not {"rates", "arms"} & study.config["confirm"].keys()
