"""The audit: densities on a larger network after the verdict, through the same queue."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text
from support.databases import temporary
from support.simulated import create, go_on, noise, run, small

from optimizer import snapshot
from optimizer.cli import session
from optimizer.config import study_file
from optimizer.config.study_file import FRESH, StudyConfig
from optimizer.errors import UsageError
from optimizer.evidence import advice, differences
from optimizer.evidence import audit as said
from optimizer.evidence.audit import Audit
from optimizer.evidence.verdicts import PairedDifference
from optimizer.phases import audit, extension
from optimizer.phases.proposer import Proposer
from optimizer.presets import document, exports, recheck
from optimizer.show import programs, report, words
from optimizer.show.confirmation_table import arms_table
from optimizer.snapshot import Snapshot
from storage import jobs, roster, studies
from storage.database import connect
from storage.jobs import ClaimedJob

LARGER = {"family": "nafnet", "width": 16, "depth": 5}
BEST = 0.6
RATE = 0.001


def audited(name: str = "a-study", **changes: Any) -> StudyConfig:
    section = {"proxy": LARGER, "budget": 8, "seeds": 3, "arms": 8, "lr": 0.02, **changes}
    confirm = {"finalists": 1, "seeds": 12, "batch": 6}
    search = {"trials": 12}
    return small(name=name, confirm=confirm, search=search, audit=section)


def plain() -> StudyConfig:
    return audited().model_copy(update={"audit": None})


def trained(job: ClaimedJob, best: float) -> float:
    """What a network reaches for which this density is the best."""
    value = 30 - abs(job.densities[3][0] - best) + noise(job, 0.05)
    return float(value - 0.3 * (job.arm["mask"] == "uniform"))


def same(job: ClaimedJob) -> float:
    """The larger network wants what the proxy wants, with larger effects."""
    scale = 3.0 if job.phase == "audit" else 1.0
    return 30 + scale * (trained(job, BEST) - 30)


def reverse(job: ClaimedJob) -> float:
    return trained(job, BEST) if job.phase != "audit" else 60 - trained(job, BEST)


@pytest.fixture(scope="module")
def audited_preset(postgres: str, prepared: str) -> Iterator[document.Preset]:
    with temporary(postgres, prepared) as url:
        engine = connect(url)
        now = run(engine, audited(), same)
        yield exports.compose(now, exports.chosen(now))
        engine.dispose()


def result(now: Snapshot) -> Audit:
    assert (now.study.state, now.study.phase) == ("finished", "decided")
    found = now.carried_over
    assert found is not None
    return found


def test_an_audit_trains_identity_winner_best_published_and_spread_ones_with_seeds_of_its_own(
    database: Engine,
) -> None:
    now = run(database, audited(), same)
    found, config, winner = result(now), now.config, now.winner
    assert winner is not None
    assert config.audit is not None
    roles = [trial.role for trial in now.audit.trials]
    assert roles[:2] == ["identity", "finalist"]
    assert {"published", "candidate", "control", "uniform"} <= set(roles)
    assert len(found.arms) == config.audit.arms
    ranked = [one.number for one in differences.ranked(now.results)]
    assert {ranked[0], ranked[-1]} <= {arm.trial for arm in found.arms} | {0}
    seen = {row.seed for phase in now.phases.values() for row in phase.rows}
    assert {row.seed for row in now.audit.rows} == set(config.audit_seeds)
    assert sum(seed >= 4 * FRESH for seed in seen) == config.audit.seeds
    assert {row.budget for row in now.audit.rows} == {8}
    assert {trial.arm["lr"] for trial in now.audit.trials} == {0.02}
    assert all(trial.arm["floored"] for trial in now.audit.trials)


def test_what_it_says_is_computed_from_both_networks_paired_differences(database: Engine) -> None:
    now = run(database, audited(), same)
    found, winner = result(now), now.winner
    assert winner is not None
    assert found.finding == "carries_over"
    assert found.trial == winner.trial
    by_trial = {one.number: one for one in now.results}
    for arm in found.arms:
        assert arm.proxy is not None
        assert arm.proxy.mean == by_trial[arm.trial].difference.mean
    assert found.to_identity is not None
    own = next(arm for arm in found.arms if arm.trial == winner.trial)
    assert found.to_identity.by_seed == own.full.by_seed
    assert found.to_uniform is not None
    assert found.to_uniform.mean == pytest.approx(0.9, abs=0.3)
    assert found.loss is not None
    assert found.loss.low == 0
    other = run(database, audited("other"), reverse)
    assert result(other).finding == "does_not"
    assert (now.verdict, now.advice[:6], other.verdict) == ("better", "Use it", "better")
    assert other.advice == advice.LARGER
    assert other.study.verdicts == now.study.verdicts


def test_preset_report_and_status_say_it_and_verify_computes_it_anew(
    database: Engine, tmp_path: Path
) -> None:
    now = run(database, audited(), same)
    found = result(now)
    path, _ = exports.export(now, tmp_path)
    preset, content = document.load(path), document.content(path)
    assert preset.evidence.audit == found
    recheck.check(preset, content)
    told = words.about_audit(now)
    assert told is not None
    assert told.startswith("audit: the proxy ranks densities as the full network does; rank corr")
    assert told in " ".join(str(arms_table(now).caption).split("\n"))
    assert "On a larger network" in report.render(now)
    assert said.SENTENCE["carries_over"] in report.render(now)
    documented = json.loads(json.dumps(programs.document(now), allow_nan=False))
    assert documented["audit"] == found.model_dump()
    other = next(one.number for one in now.results if one.number not in (0, found.trial))
    _, plainer = exports.export(now, tmp_path, other)
    assert plainer.evidence.audit is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"finding": "does_not"}, "audit says does_not, and its arms carries_over"),
        ({"correlation": None}, "audit.correlation is None, and its arms say"),
        ({"loss": None}, "audit.loss is None"),
        ({"trial": 999}, "audit is of trial 999, the preset of"),
        ({"to_identity": None}, "audit.to_identity is not the difference of the winner"),
        ({"lr": 99.0}, "audit has the rate 99.0, and its config asks for"),
        ({"diverged": {"somebody": [7]}}, "audit.diverged names seeds that are not the config's"),
        ({"arms": []}, "audit has no arm of the winner"),
    ],
)
def test_a_preset_whose_audit_does_not_follow_from_its_arms_is_refused(
    audited_preset: document.Preset, change: dict[str, Any], complaint: str
) -> None:
    evidence = audited_preset.evidence
    assert evidence.audit is not None
    forged = document.sealed(
        audited_preset.model_copy(
            update={
                "evidence": evidence.model_copy(
                    update={"audit": evidence.audit.model_copy(update=change)}
                )
            }
        )
    )
    with pytest.raises(UsageError, match=re.escape(complaint)):
        recheck.check(forged, forged.model_dump(by_alias=True))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"densities": {"3": [9.9]}}, "as the winner's density, and the preset another"),
        ({"proxy": None, "trial": 0}, "audit has arms that are no trials of the search"),
        (
            {"proxy": PairedDifference(mean=55.0, standard_error=1.0, by_seed={"0": 55.0})},
            "audit.proxy of the winner is 55.0",
        ),
    ],
)
def test_a_preset_whose_audit_is_of_another_winner_is_refused(
    audited_preset: document.Preset, change: dict[str, Any], complaint: str
) -> None:
    evidence = audited_preset.evidence
    assert evidence.audit is not None
    number = audited_preset.provenance.trial
    arms = [
        arm.model_copy(update=change if arm.trial == number else {}) for arm in evidence.audit.arms
    ]
    altered = evidence.model_copy(
        update={"audit": evidence.audit.model_copy(update={"arms": arms})}
    )
    forged = document.sealed(audited_preset.model_copy(update={"evidence": altered}))
    with pytest.raises(UsageError, match=re.escape(complaint)):
        recheck.check(forged, forged.model_dump(by_alias=True))


def test_its_rate_is_calibrated_on_identity_of_the_larger_network(database: Engine) -> None:
    def at_a_rate(job: ClaimedJob) -> float:
        away = np.log10((job.arm["lr"] or RATE) / 0.004) if job.phase == "audit" else 0.0
        return same(job) - float(away**2)

    now = run(database, audited(lr="auto"), at_a_rate)
    found = result(now)
    assert found.lr == pytest.approx(0.004, rel=0.2)
    tried = [trial for trial in now.audit.trials if trial.role == "rate"]
    assert len(tried) == 5
    assert all(set(trial.densities[3]) == {1.0} for trial in tried)
    seeds = {row.seed for row in now.audit.rows if row.trial in {one.number for one in tried}}
    assert seeds == set(now.config.audit_rate_seeds)
    assert not seeds & set(now.config.audit_seeds)


def ask(engine: Engine, config: StudyConfig) -> int:
    facts = {audit.NORMALISED: True, "floors": {"other": 9.0}}
    study = session.create(engine, config, "none", "print", "full", lambda: facts)
    studies.go_on(engine, study.id, None, force=False)
    return study.id


def test_a_decided_study_is_audited_once_and_keeps_its_verdicts(database: Engine) -> None:
    before = run(database, plain(), same)
    assert before.carried_over is None
    assert before.study.state == "finished"
    study_id = ask(database, audited())
    now = go_on(database, study_id, audited(), same)
    assert result(now).finding == "carries_over"
    assert now.study.verdicts == before.study.verdicts
    assert now.confirm.rows == before.confirm.rows
    assert now.floors == before.floors  # of what was computed anew, only what an audit needs
    assert {"control", "uniform"}.isdisjoint(trial.role for trial in now.audit.trials)
    again = go_on(database, ask(database, audited()), audited(), same)
    assert again.audit.rows == now.audit.rows
    with pytest.raises(UsageError, match=r"another config \(audit.seeds: 3 -> 4\)"):
        ask(database, audited(seeds=4))


def test_a_study_that_is_not_decided_is_not_audited_yet(database: Engine) -> None:
    create(database, plain())
    with pytest.raises(UsageError, match=r"a finished one can get .* an audit"):
        ask(database, audited())


def test_a_process_that_began_before_the_audit_was_asked_for_does_not_end_it(
    database: Engine,
) -> None:
    run(database, plain(), same)
    study_id = ask(database, audited())
    Proposer(database, study_id, plain(), creates=False).advance()
    study = studies.find(database, plain().name)
    assert study is not None
    assert (study.state, study.phase) == ("running", "audit")


@pytest.mark.parametrize("later", [False, True])
def test_the_larger_networks_test_split_is_sealed_until_the_audit_has_ended(
    database: Engine, tmp_path: Path, later: bool
) -> None:
    section = {"task": "folder", "folder": "photographs", "test": "others"}
    given = study_file.parse({**audited().document(), "data": section}, "by hand")
    before = given.model_copy(update={"audit": None}) if later else given

    def measured(job: ClaimedJob) -> float:
        tested = job.arm["split"] == "test"
        gained = tested and job.phase == "audit" and job.densities[3][0] != 1
        return same(job) + 0.5 * float(gained)

    now = run(database, before, measured)
    if later:
        assert now.holdout is not None
        assert now.holdout.larger is None
        now = go_on(database, ask(database, given), given, measured)
    found = result(now)
    split = {trial.arm["split"] for trial in now.audit.trials if trial.role == "finalist"}
    assert split == {"both"}
    tested = now.holdout
    assert tested is not None
    assert tested.larger is not None
    assert tested.larger.seeds == list(given.audit_seeds)
    assert tested.larger.difference is not None
    assert found.to_identity is not None
    gained = tested.larger.difference.mean - found.to_identity.mean
    assert gained == pytest.approx(0.5, abs=1e-9)
    assert "on the larger network +" in (words.about_test_split(now) or "")
    path, preset = exports.export(now, tmp_path)
    recheck.check(document.load(path), document.content(path))
    assert preset.evidence.test == tested


def test_jobs_of_an_audit_are_never_claimed_beside_others(database: Engine) -> None:
    run(database, plain(), same)
    study_id = ask(database, audited())
    Proposer(database, study_id, audited()).advance()
    worker = roster.register(database, study_id, "host", 1, "CPU", {})
    assert jobs.claim(database, study_id, worker, 100, 60, "confirm") == []
    claimed = jobs.claim(database, study_id, worker, 2, 60, "audit")
    assert {job.phase for job in claimed} == {"audit"}
    assert len(jobs.claim(database, study_id, worker, 2, 60)) == 2


def test_arms_that_fail_are_left_out_and_named_and_without_identity_nothing_is_said(
    database: Engine,
) -> None:
    def failing(job: ClaimedJob) -> float:
        if job.phase == "audit" and job.densities[3][0] < 0.3:
            raise OSError("unreadable")
        if job.phase == "audit" and job.densities[3][0] > 1.5:
            raise ArithmeticError
        return same(job)

    now = run(database, audited(), failing)
    found = result(now)
    assert found.reason is not None
    assert "could not be trained with every seed" in found.reason
    assert all(arm.densities["3"][0] >= 0.3 for arm in found.arms)
    gone = [arm.label for arm in found.arms if arm.densities["3"][0] > 1.5]
    assert set(found.diverged) == set(gone) != set()

    def without_identity(job: ClaimedJob) -> float:
        if job.phase == "audit" and job.densities[3][0] == 1:
            raise OSError("unreadable")
        return same(job)

    for name, lr in (("given", 0.02), ("calibrated", "auto")):
        now = run(database, audited(name, lr=lr), without_identity)
        found = result(now)
        assert (found.finding, found.arms, found.correlation) == ("open", [], None)
        assert "identity could not be trained on the larger network" in (found.reason or "")


def test_what_is_left_is_what_it_is_still_to_queue(database: Engine) -> None:
    config = audited()
    now = run(database, config, same)
    winner = now.winner
    assert winner is not None
    assert audit.left(now.study, config, winner, now.audit.trials) == 0
    queued = sum(trial.jobs for trial in now.audit.trials)
    assert audit.left(now.study, config, winner, []) == queued
    longer = config.model_copy(
        update={"audit": config.audit and config.audit.model_copy(update={"lr": "auto"})}
    )
    assert audit.left(now.study, longer, winner, []) == queued + 5 * 3


def test_an_extended_study_audits_what_its_new_winner_lacks(database: Engine) -> None:
    now = run(database, audited(), same)
    winner = now.winner
    assert winner is not None
    other = next(
        one for one in now.results if one.role == "candidate" and one.number != winner.trial
    )
    another = winner.model_copy(
        update={"trial": other.number, "label": other.label,
                "densities": {str(k): list(den) for k, den in other.densities.items()}}
    )  # fmt: skip
    lacking = audit._lacking(now.study, now.config, another, now.audit.trials)
    audited_already = other.number in {trial.origin for trial in now.audit.trials}
    assert lacking == [*([] if audited_already else ["finalist"]), "control", "uniform"]
    assert audit.to_come(now.study, now.config, another, now.audit.trials) == 3 * len(lacking)


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_identity_that_diverges_there_says_nothing_in_favour_of_the_winner(
    database: Engine, tmp_path: Path, seeds: int
) -> None:
    config = audited()

    def diverging(job: ClaimedJob) -> float:
        lost = job.phase == "audit" and job.seed in config.audit_seeds[:seeds]
        if lost and job.densities[3][0] == 1 and job.arm["mask"] != "uniform":
            raise ArithmeticError
        return same(job)

    now = run(database, config, diverging)
    found = result(now)
    assert found.diverged["identity"] == list(config.audit_seeds[:seeds])
    assert (found.finding, found.correlation, found.loss) == ("open", None, None)
    assert found.to_identity is found.to_control is found.to_uniform is None
    assert f"identity diverged on {seeds} seeds of the larger network" in (found.reason or "")
    path, _ = exports.export(now, tmp_path)
    recheck.check(document.load(path), document.content(path))


def test_an_identity_below_the_floors_there_is_no_baseline(database: Engine) -> None:
    def unlearnt(job: ClaimedJob) -> float:
        return same(job) - 40 * (job.phase == "audit")

    found = result(run(database, audited(), unlearnt))
    assert (found.finding, found.to_identity) == ("open", None)
    assert "not above what takes no deep network (0.000)" in (found.reason or "")


def test_a_control_that_diverges_there_is_no_measure_of_the_winner(database: Engine) -> None:
    def diverging(job: ClaimedJob) -> float:
        if job.phase == "audit" and job.arm["mask"] == "uniform":
            raise ArithmeticError
        return same(job)

    found = result(run(database, audited(), diverging))
    assert found.to_uniform is None
    assert found.to_control is not None
    assert any(label.startswith("uniform mask") for label in found.diverged)


@pytest.mark.parametrize("phase", ["audit", "search"])
def test_an_arm_of_which_a_measurement_was_deleted_is_left_out_and_named(
    database: Engine, tmp_path: Path, phase: str
) -> None:
    now = run(database, audited(), same)
    gone = next(arm for arm in result(now).arms if arm.trial != result(now).trial)
    lost = next(trial for trial in now.audit.trials if trial.origin == gone.trial)
    number = lost.number if phase == "audit" else gone.trial
    with database.begin() as connection:
        connection.execute(
            text(
                "DELETE FROM densitune.measurements WHERE job_id = (SELECT min(id) FROM "
                "densitune.jobs WHERE phase = :phase AND trial = :trial)"
            ),
            {"phase": phase, "trial": number},
        )
    left = snapshot.of(database, now.study.name)
    found = result(left)
    assert [arm for arm in result(now).arms if arm != gone] == found.arms
    assert f"measurements of {gone.label} have been deleted" in (found.reason or "")
    path, _ = exports.export(left, tmp_path)
    recheck.check(document.load(path), document.content(path))
    assert gone.label in report.render(left)


def test_a_process_that_began_before_does_what_is_asked_for_since(database: Engine) -> None:
    run(database, plain(), same)
    both = audited().document()
    both["confirm"]["arms"] = ["init_only"]
    study_id = ask(database, study_file.parse(both, "by hand"))
    study = studies.find(database, plain().name)
    assert study is not None
    assert study.phase == "check"
    now = go_on(database, study_id, plain(), same)
    assert result(now).finding == "carries_over"


def test_of_two_audits_that_are_asked_for_at_once_one_is_refused(database: Engine) -> None:
    run(database, plain(), same)
    study = studies.find(database, plain().name)
    assert study is not None
    stored = study_file.parse(study.config, "of the study")
    first = extension.check(database, study, stored, audited(), dict)
    assert extension.check(database, study, stored, audited(), dict) == first
    with pytest.raises(UsageError, match=r"at the same moment \(audit.budget: 8 -> 99\)"):
        extension.check(database, study, stored, audited(budget=99), dict)
