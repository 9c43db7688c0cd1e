"""The test split: read once, after the verdict, for identity and the winner; it changes nothing."""

import json
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from sqlalchemy import Engine, text
from support.queued import set_state
from support.simulated import TESTED, create, go_on, noise, run, small

from optimizer.phases import holdout
from optimizer.phases.proposer import Proposer
from optimizer.presets import exports
from optimizer.presets.document import Preset
from optimizer.show import overview, programs, report, terminal, words
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


def sealed(engine: Engine, now: Snapshot) -> dict[int, dict[int, float]]:
    """What stands in the ledger of the test split, by trial and seed, read past the seal."""
    found: dict[int, dict[int, float]] = {}
    with engine.connect() as connection:
        for trial, seed, value in connection.execute(
            text(
                "SELECT trial, seed, (extra -> 'sealed' ->> 'value')::float "
                "FROM densitune.measurements JOIN densitune.jobs ON jobs.id = job_id "
                "WHERE study_id = :study AND extra ? 'sealed'"
            ),
            {"study": now.study.id},
        ):
            found.setdefault(trial, {})[seed] = value
    return found


def test_the_jobs_of_the_confirmation_measure_it_for_identity_and_finalists_alone(
    database: Engine,
) -> None:
    given = small(training={"lr": "auto"}, **TESTED)
    now = run(database, given, helps)
    assert (now.study.state, now.study.phase) == ("finished", "decided")
    assert (now.decided.trials, now.decided.rows) == ([], [])
    for phase, known in now.phases.items():
        for trial in known.trials:
            both = phase == "confirm" and trial.role in ("identity", "finalist")
            assert trial.arm["split"] == ("both" if both else "validation")
    compared = [arm for arm in now.confirm.trials if arm.arm["split"] == "both"]
    assert len(compared) == 1 + given.confirm.finalists
    found = sealed(database, now)
    assert {n: len(by_seed) for n, by_seed in found.items()} == {
        arm.number: arm.jobs for arm in compared
    }


def shown(engine: Engine, name: str) -> str:
    """All that people and programs are shown of a study, and all other tables of the database."""
    now = of(engine, name)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(terminal.panel(now), terminal.status(now), terminal.final_table(now))
        console.print(terminal.plain_line(now), overview.table(overview.read(engine)))
        if now.study.phase == "decided":
            console.print(arms_table(now))
    preset = exports.compose(now, exports.chosen(now))
    told = [captured.get(), json.dumps(programs.document(now)), report.render(now), preset.text()]
    with engine.connect() as connection:
        for (table,) in connection.execute(
            text(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname IN ('public', 'densitune') AND tablename <> 'measurements'"
            )
        ).all():
            told += map(str, connection.scalars(text(f"SELECT rows::text FROM {table} AS rows")))
    return "\n".join(told)


def test_nothing_shows_what_the_test_split_says_before_the_verdict(database: Engine) -> None:
    """Whatever is looked at, between any two jobs; Optuna's tables too."""
    looks = []

    def measure(job: ClaimedJob) -> float:
        if job.arm["split"] == "test":
            return 7777 + helps(job) / 100
        if job.phase == "confirm" and job.seed % 8 == 7:
            assert "7777." not in shown(database, "a-study")
            looks.append(job.trial)
        return helps(job)

    given = small(**TESTED)
    study_id = create(database, given)
    studies.go_on(database, study_id, "confirm", force=False)
    stopped = go_on(database, study_id, given, measure)
    assert (stopped.study.state, stopped.study.phase) == ("stopped", "decided")
    assert len(looks) > 2
    assert "7777." not in shown(database, "a-study")
    assert words.about_test_split(stopped) == "test split: measured and not read yet"
    studies.go_on(database, study_id, None, force=False)
    now = go_on(database, study_id, given, measure)
    assert now.study.state == "finished"
    assert shown(database, "a-study").count("7777.") > 4


def test_the_difference_is_that_of_a_paired_t_interval_over_all_seeds(database: Engine) -> None:
    now = run(database, small(**TESTED), helps)
    found, values = now.holdout, sealed(database, now)
    assert found is not None
    assert found.difference is not None
    assert now.winner is not None
    assert now.winner.to_identity is not None
    assert (found.trial, found.reason, found.fingerprint) == (now.winner.trial, None, "print")
    [number] = [
        arm.number
        for arm in now.confirm.trials
        if (arm.role, arm.origin) == ("finalist", now.winner.trial)
    ]
    identity, winner = (np.array([values[n][seed] for seed in found.seeds]) for n in (0, number))
    assert [*map(str, found.seeds)] == [*now.winner.to_identity.by_seed]
    assert found.value == pytest.approx(winner.mean())
    assert found.identity == pytest.approx(identity.mean())
    difference = found.difference
    assert list(difference.by_seed.values()) == pytest.approx(list(winner - identity))
    assert difference.mean == pytest.approx((winner - identity).mean())
    expected = scipy.stats.ttest_rel(winner, identity).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx(tuple(expected))
    assert difference.images is not None
    assert difference.images.count == 4


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


@pytest.mark.parametrize("missing", ["identity", "winner"])
def test_a_worker_without_the_test_split_leaves_a_reason_and_the_verdict(
    database: Engine, missing: str
) -> None:
    def measure(job: ClaimedJob) -> float:
        gone = (job.densities == {3: (1.0,)}) == (missing == "identity")
        if job.arm["split"] == "test" and gone and job.seed % 8 == 3:
            raise OSError("no photograph")
        return helps(job)

    now = run(database, small(**TESTED), measure)
    assert (now.study.state, now.verdict) == ("finished", "better")
    assert now.holdout is not None
    assert now.holdout.difference is None
    assert words.about_test_split(now) == f"test split: {holdout.MISSING}"


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"test": "other"}, "workers had different test images (other, print)"),
        ({"test": None}, "a worker did not say on which test images it had measured"),
        ({"test": 7}, "a worker did not say on which test images it had measured"),
        ({"test": ["print"]}, "a worker did not say on which test images it had measured"),
    ],
)
def test_measurements_on_other_or_unknown_images_are_not_compared(
    database: Engine, beside: dict[str, Any], reason: str
) -> None:
    """Nothing of ours forgets to say it, but whoever has a worker's rights may."""

    def measure(job: ClaimedJob) -> float | tuple[float, dict[str, Any]]:
        if job.arm["split"] == "test" and job.densities == {3: (1.0,)}:
            return helps(job), beside
        return helps(job)

    now = run(database, small(**TESTED), measure)
    assert (now.study.state, now.verdict) == ("finished", "better")
    assert now.holdout is not None
    assert (now.holdout.difference, now.holdout.reason) == (None, reason)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        *((written, holdout.MISSING) for written in (
            '"what"', "[]", "{}", '{"value": null}', '{"value": "1"}', '{"value": 1e7}',
            '{"value": -1e300}', '{"value": {"value": 1}}',
        )),
        ('{"value": 20}', "a worker did not say on which test images it had measured"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_left_out(database: Engine, written: str, reason: str) -> None:
    """By somebody with a worker's rights; the study ends with its verdict."""
    given = small(**TESTED)
    study_id = create(database, given)
    studies.go_on(database, study_id, "confirm", force=False)
    go_on(database, study_id, given, helps)
    with database.begin() as connection:
        changed = connection.execute(
            text("UPDATE densitune.measurements SET extra = extra || jsonb_build_object('sealed', "
                 "CAST(:written AS jsonb)) WHERE job_id = (SELECT id FROM densitune.jobs "
                 "WHERE study_id = :study AND phase = 'confirm' AND trial = 0 LIMIT 1)"),
            {"written": written, "study": study_id},
        )  # fmt: skip
        assert changed.rowcount == 1
    studies.go_on(database, study_id, None, force=False)
    now = go_on(database, study_id, given, helps)
    assert (now.study.state, now.verdict) == ("finished", "better")
    assert now.holdout is not None
    assert now.holdout.reason == reason


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


def test_the_words_say_what_came_out(database: Engine) -> None:
    given = small(**TESTED)
    study_id = create(database, given)
    studies.go_on(database, study_id, "confirm", force=False)
    stopped = go_on(database, study_id, given, helps)
    assert (stopped.study.state, stopped.study.phase) == ("stopped", "decided")
    studies.go_on(database, study_id, None, force=False)
    now = go_on(database, study_id, given, helps)
    found = now.holdout
    assert found is not None
    assert found.difference is not None
    line = words.about_test_split(now)
    assert line is not None
    assert line.startswith(f"test split: {found.difference.mean:+.3f} dB [")
    assert line.endswith(f"({found.value:.3f} against {found.identity:.3f}, 16 seeds)")
    console = Console(width=200)
    with console.capture() as shown:
        console.print(arms_table(now))
    assert line in " ".join(shown.get().split())
    document = json.loads(json.dumps(programs.document(now), allow_nan=False))
    assert document["test"]["difference"]["mean"] == found.difference.mean
    assert document["phases"]["decided"]["queued"] == 0


def test_the_winners_preset_has_the_test_split_and_no_other(database: Engine) -> None:
    now = run(database, small(**TESTED), helps)
    preset = exports.compose(now, exports.chosen(now))
    assert preset.evidence.test == now.holdout is not None
    assert Preset.model_validate(json.loads(preset.text())) == preset
    other = next(one for one in now.verdicts if one.trial != now.holdout.trial)
    assert exports.compose(now, exports.chosen(now, other.trial)).evidence.test is None
    assert "others" not in preset.text()  # where the images lay
