"""Studies that an earlier version began: they go on under a rule that says what it is, or end.

That version knew no uniform mask: its arms, config and provenance lack what came with it. It
calibrated with half of the confirmation's budget, and trained controls from the first batch on.
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine, text
from support.simulated import TESTED, create, go_on, noise, run, small

from optimizer import snapshot
from optimizer.cli import session
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import EvidenceError, UsageError
from optimizer.evidence import advice, cautions, finalists
from optimizer.phases import holdout
from optimizer.phases.proposer import Proposer
from optimizer.presets import exports, recheck
from optimizer.presets.document import Preset, sealed
from optimizer.show import measurements, programs, words
from optimizer.show.confirmation_table import arms_table
from optimizer.snapshot import Snapshot
from storage import studies, trials
from storage.jobs import ClaimedJob
from storage.states import Role


def helps(job: ClaimedJob) -> float:
    """A density near 0.6 helps, whatever the scale of the initial weights."""
    distance = 1.0 if job.arm["mask"] == "uniform" else abs(job.densities[3][0] - 0.6) / 0.4
    return 30 - distance**2 + noise(job, 0.3)


def aged(engine: Engine, study_id: int) -> None:
    """Take from a study's rows what the earlier version did not store."""
    with engine.begin() as connection:
        for statement in (
            "UPDATE densitune.trials SET arm = arm - '{mask,start,per_image,floored}'::text[] "
            "WHERE study_id = :study",
            "UPDATE densitune.studies SET provenance = provenance - 'uniform_is_identity', "
            "config = config #- '{confirm,keep}' #- '{confirm,compensated}' WHERE id = :study",
        ):
            connection.execute(text(statement), {"study": study_id})


def stopped_before(engine: Engine, given: StudyConfig) -> int:
    """A study that ended its search, and is to be confirmed."""
    study_id = create(engine, given)
    studies.go_on(engine, study_id, "search", force=False)
    assert go_on(engine, study_id, given, helps).study.phase == "confirm"
    aged(engine, study_id)
    return study_id


def begin_confirmation(engine: Engine, study_id: int, given: StudyConfig) -> None:
    """Queue the first batch as the earlier version did: identity, finalists, and all beside."""
    now = snapshot.of(engine, given.name)
    plain: dict[str, Any] = {"lr": 0.01, "init": "library", "gain": {}, "trainable": False}
    built: list[tuple[Role, str, Any, dict[str, Any], int | None]] = [
        ("identity", "identity", {3: (1.0,)}, plain, None)
    ]
    for origin in finalists.choose(now.results, given):
        found, label = now.trials[origin].densities, now.trials[origin].label
        gain = {"3": ((2 * found[3][0] ** 2 + 1) / 3)}
        built += [
            ("finalist", label, found, plain, origin),
            ("control", f"scale control of {label}", {3: (1.0,)}, {**plain, "gain": gain}, origin),
            ("compensated", f"{label}, compensated", found, {**plain, "init": "compensated"},
             origin),
        ]  # fmt: skip
    with engine.begin() as connection:
        for number, (role, label, densities, arm, of) in enumerate(built):
            trials.add(
                connection, study_id, "confirm", number=number, role=role, label=label,
                densities=densities, seeds=given.fresh_seeds[: given.confirm.batch],
                budget=given.confirm_budget, arm={**arm, "split": "validation"}, origin=of,
            )  # fmt: skip


def test_a_calibration_ends_with_the_budget_that_it_began_with(database: Engine) -> None:
    given = small(training={"lr": "auto"})

    def grows(job: ClaimedJob) -> float:
        return helps(job) + 10 * float(job.arm["lr"] or 0)

    study_id = create(database, given)
    Proposer(database, study_id, given).advance()
    with database.begin() as connection:
        begun = connection.execute(
            text("UPDATE densitune.jobs SET budget = :budget WHERE study_id = :study"),
            {"budget": given.training.budget, "study": study_id},
        ).rowcount
    aged(database, study_id)
    now = go_on(database, study_id, given, grows)
    assert now.study.state == "finished"
    assert len(now.calibrate.rows) > begun  # the grid grew
    assert {row.budget for row in now.calibrate.rows} == {given.training.budget}
    new = run(database, small(name="new", training={"lr": "auto"}), grows)
    assert {row.budget for row in new.calibrate.rows} == {given.confirm_budget}


def test_a_confirmation_goes_on_with_its_arms_and_adds_the_uniform_mask(database: Engine) -> None:
    given = small()
    study_id = stopped_before(database, given)
    begin_confirmation(database, study_id, given)
    studies.go_on(database, study_id, None, force=False)
    now = go_on(database, study_id, given, helps)
    assert now.study.state == "finished"
    assert now.winner is not None
    assert now.winner.verdict == "better"
    assert now.winner.to_control is not None
    assert now.winner.to_uniform is not None
    assert now.winner.compensated is not None
    assert now.winner.to_identity is not None
    assert now.winner.to_uniform.by_seed.keys() == now.winner.to_identity.by_seed.keys()
    assert cautions.UNMASKED not in now.cautions
    shown(now)


def shown(now: Snapshot) -> str:
    """What the terminal, a preset and JSON say, without an error."""
    json.dumps(programs.document(now), allow_nan=False)
    preset = exports.compose(now, exports.chosen(now))
    assert Preset.model_validate(json.loads(preset.text())) == preset
    console = Console(width=200)
    with console.capture() as captured:
        console.print(arms_table(now))
    return captured.get()


def ended(engine: Engine, given: StudyConfig) -> Snapshot:
    """A study as the earlier version decided it: better without a uniform mask."""
    study_id = run(engine, given, helps).study.id
    aged(engine, study_id)
    with engine.begin() as connection:
        of = "WHERE study_id = :study AND phase = 'confirm'"
        numbers = f"SELECT number FROM densitune.trials {of} AND role = 'uniform'"
        for statement in (
            "DELETE FROM densitune.measurements WHERE job_id IN (SELECT id FROM densitune.jobs "
            f"{of} AND trial IN ({numbers}))",
            f"DELETE FROM densitune.jobs {of} AND trial IN ({numbers})",
            f"DELETE FROM densitune.trials {of} AND role = 'uniform'",
            "UPDATE densitune.studies SET verdicts = (SELECT jsonb_agg(one - "
            "'{to_uniform,failures}'::text[]) FROM jsonb_array_elements(verdicts) AS one) "
            "WHERE id = :study",
        ):
            connection.execute(text(statement), {"study": study_id})
    return snapshot.of(engine, given.name)


def test_a_decided_study_is_shown_with_what_its_better_leaves_open(
    database: Engine, tmp_path: Path
) -> None:
    now = ended(database, small())
    assert now.verdict == "better"
    assert cautions.UNMASKED in now.cautions
    assert "scale control" in shown(now)
    preset = exports.compose(now, exports.chosen(now))
    assert cautions.UNMASKED in preset.evidence.cautions
    assert now.advice == preset.evidence.advice == advice.EARLIER
    assert cautions.UNMASKED in preset.evidence.note
    assert "smaller steps" not in preset.evidence.note
    recheck.check(preset, json.loads(preset.text()))
    with pytest.raises(EvidenceError, match="trained no uniform mask"):
        exports.export(now, tmp_path, require_better=True)
    told = preset.evidence.model_copy(update={"cautions": []})
    silent = sealed(preset.model_copy(update={"evidence": told}))
    with pytest.raises(UsageError, match="cautions do not say what is so: An earlier version"):
        recheck.check(silent, json.loads(silent.text()))


def test_a_better_that_counted_failures_of_other_arms_is_marked_too(
    database: Engine, tmp_path: Path
) -> None:
    """An earlier version kept how many seeds there were, and not which."""
    study_id = run(database, small(), helps).study.id
    with database.begin() as connection:
        connection.execute(
            text(
                "UPDATE densitune.studies SET verdicts = (SELECT jsonb_agg((one - 'diverged') || "
                """'{"failures": {"control": 2}}') FROM jsonb_array_elements(verdicts) AS one) """
                "WHERE id = :study"
            ),
            {"study": study_id},
        )
    now = snapshot.of(database, "a-study")
    assert now.verdict == "better"
    assert cautions.UNCOUNTED in now.cautions
    preset = exports.compose(now, exports.chosen(now))
    recheck.check(preset, json.loads(preset.text()))
    assert words.preset_verdict(preset).endswith(
        "by the rules of an earlier version (see its note)"
    )
    assert preset.evidence.advice == advice.EARLIER
    with pytest.raises(EvidenceError, match="took seeds on which another arm diverged"):
        exports.export(now, tmp_path, require_better=True)


def test_a_decided_study_is_extended_only_if_more_seeds_are_written(database: Engine) -> None:
    given = small(confirm={"finalists": 2, "seeds": 6, "batch": 6, "keep": []})

    def weakly(job: ClaimedJob) -> float:
        return 30 + noise(job, 1.0)

    study_id = run(database, given, weakly).study.id
    aged(database, study_id)
    document = given.document()
    unwritten = {**document["confirm"]}
    del unwritten["seeds"]
    asked = study_file.parse({**document, "confirm": unwritten}, "test")
    assert asked.confirm.seeds > 6
    with pytest.raises(UsageError, match="densitune resume a-study"):
        session.create(database, asked, "none", "print", "full", dict)
    more = small(confirm={"finalists": 2, "seeds": 12, "batch": 6})
    assert session.create(database, more, "none", "print", "full", dict).phase == "confirm"
    studies.go_on(database, study_id, None, force=False)
    now = go_on(database, study_id, more, weakly)
    assert (now.study.state, now.config.confirm.seeds) == ("finished", 12)
    shown(now)


def confirmed_before(engine: Engine, given: StudyConfig) -> int:
    """A study with a test split whose confirmation an earlier version began."""
    study_id = stopped_before(engine, given)
    begin_confirmation(engine, study_id, given)
    studies.go_on(engine, study_id, None, force=False)
    return study_id


def test_a_confirmation_that_did_not_measure_on_the_test_split_ends_with_that_reason(
    database: Engine,
) -> None:
    given = small(**TESTED)
    now = go_on(database, confirmed_before(database, given), given, helps)
    assert (now.study.state, now.verdict) == ("finished", "better")
    assert now.decided.trials == []
    assert now.holdout is not None
    assert (now.holdout.reason, now.holdout.difference) == (holdout.EARLIER, None)
    assert words.about_test_split(now) == f"test split: {holdout.EARLIER}"
    assert now.winner is not None
    assert now.winner.to_identity is not None
    assert now.winner.to_identity.images is None
    assert holdout.EARLIER in " ".join(shown(now).split())


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_queued_for_the_test_split_is_trained_and_read(
    database: Engine, broken: bool
) -> None:
    """An earlier version trained both again, with the first batch of seeds; here it stopped."""
    given = small(**TESTED)
    study_id = confirmed_before(database, given)
    studies.go_on(database, study_id, "confirm", force=False)
    now = go_on(database, study_id, given, helps)
    assert (now.study.phase, now.winner is not None) == ("decided", True)
    chosen = [now.confirm.trials[0]] + [
        arm for arm in now.confirm.trials
        if (arm.role, arm.origin) == ("finalist", now.winner and now.winner.trial)
    ]  # fmt: skip
    with database.begin() as connection:
        for number, arm in enumerate(chosen):
            trials.add(
                connection, study_id, "decided", number=number, role=arm.role, label=arm.label,
                densities=arm.densities, seeds=given.fresh_seeds[: given.confirm.batch],
                budget=given.confirm_budget, arm={**arm.arm, "split": "test"}, origin=arm.origin,
            )  # fmt: skip
    studies.go_on(database, study_id, None, force=False)

    def measure(job: ClaimedJob) -> float:
        if broken and job.trial == 1:
            raise ArithmeticError("loss nan")
        return helps(job)

    now = go_on(database, study_id, given, measure)
    found = now.holdout
    assert found is not None
    assert now.study.state == "finished"
    assert now.decided.jobs["done"] == (8 if broken else 16)
    given_out = measurements.read(database, given.name).rows
    assert {row["phase"] for row in given_out} == {"search", "confirm"}
    if broken:
        reason = "could not be measured with every seed: training diverged"
        assert found.reason == f"{chosen[1].label} {reason}"
        return
    assert found.difference is not None
    assert found.seeds == [*given.fresh_seeds[: given.confirm.batch]]
    assert found.value == pytest.approx(
        fmean(row.value for row in now.decided.rows if row.trial == 1)
    )
    shown(now)
