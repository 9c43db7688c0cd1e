"""The trainable arm: trained before the finalists, one more of them, and handed over as such."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sqlalchemy import Engine
from support.simulated import TESTED, noise, run, small

from optimizer.config.study_file import StudyConfig
from optimizer.phases import comparisons
from optimizer.presets import exports
from optimizer.presets.document import Preset
from optimizer.show.confirmation_table import arms_table
from optimizer.snapshot import Snapshot
from storage.jobs import ClaimedJob

Layers = list[list[float]]


def helps(job: ClaimedJob) -> float:
    """A density near 0.3 helps, which no trial of the search has."""
    value = 1.0 if job.arm["mask"] == "uniform" else job.densities[3][0]
    return 30 - 4 * (value - 0.3) ** 2 + noise(job, 0.3)


def learning(*layers: Layers) -> Callable[[ClaimedJob], tuple[float, dict[str, Any]]]:
    """What is measured where seed n learns `layers[n]`."""

    def measure(job: ClaimedJob) -> tuple[float, dict[str, Any]]:
        return helps(job), {"den": {"3": layers[job.seed]}} if job.arm["trainable"] else {}

    return measure


def asked(**changes: Any) -> StudyConfig:
    confirm = {"trainable": True, **changes.pop("confirm", {})}
    return small(confirm=confirm, search={"sampler": "grid", "trials": 7}, **changes)


def finalists(now: Snapshot) -> list[tuple[str, tuple[float, ...]]]:
    groups = comparisons.groups(now.confirm.trials)
    return [(group.finalist.label, group.finalist.densities[3]) for group in groups]


def test_the_arm_starts_at_identity_with_the_searchs_seeds_and_budget(database: Engine) -> None:
    given = asked(training={"lr": "auto"})
    seen: list[ClaimedJob] = []
    measure = learning([[0.3]], [[0.3]])

    def noted(job: ClaimedJob) -> tuple[float, dict[str, Any]]:
        seen.append(job)
        return measure(job)

    now = run(database, given, noted)
    first = [job for job in seen if job.phase == "confirm"][:2]
    assert all(job.arm["trainable"] for job in first)
    assert [job.seed for job in first] == list(given.seeds)
    assert {job.budget for job in first} == {given.training.budget}
    assert {tuple(job.densities.items()) for job in first} == {((3, (1.0,)),)}
    assert not any(job.arm["trainable"] for job in seen if job not in first)
    [arm] = [arm for arm in now.confirm.trials if arm.role == "trainable"]
    assert (arm.state, arm.arm["lr"], arm.arm["init"]) == ("complete", now.study.lr, "library")
    assert now.confirm.trials[0].role == "identity"


def test_what_was_learned_is_the_mean_over_layers_and_seeds(database: Engine) -> None:
    layers = [[0.2], [0.31], [0.45]], [[0.25], [0.3], [0.4]]
    now = run(database, asked(), learning(*layers))
    assert now.learned is not None
    assert now.learned.densities[3] == pytest.approx((np.mean(layers),))
    label, learned = finalists(now)[-1]
    assert (label, learned) == ("learned", now.learned.densities[3])
    identity = now.results[0].values
    own = {row.seed: row.value for row in now.confirm.rows if row.trial == 1}
    assert now.learned.values == own
    expected = {seed: own[seed] - identity[seed] for seed in now.config.seeds}
    assert now.learned.difference.by_seed == pytest.approx(expected)


def test_every_value_is_a_mean_of_its_own(database: Engine) -> None:
    given = small(
        kernel_size=[3, 5],
        proxy={"family": "dncnn", "width": 8, "depth": 4},
        search={"trials": 20},
        confirm={"trainable": True},
    )

    def measure(job: ClaimedJob) -> tuple[float, dict[str, Any]]:
        den = {"3": [[0.3], [0.5]], "5": [[0.2, 1.0], [0.4, 1.4 + job.seed]]}
        return 30 + noise(job, 0.3), {"den": den} if job.arm["trainable"] else {}

    now = run(database, given, measure)
    assert now.learned is not None
    assert now.learned.densities == {
        3: pytest.approx((0.4,)),
        5: pytest.approx((0.3, 1.45)),
    }


@pytest.mark.parametrize(("values", "inside"), [((-0.5, 0.1), 0.05), ((3.0, 2.5), 2.0)])
def test_what_was_learned_stays_in_the_search_box(
    database: Engine, values: tuple[float, float], inside: float
) -> None:
    now = run(database, asked(), learning([[values[0]]], [[values[1]]]))
    assert now.learned is not None
    assert now.learned.densities == {3: (inside,)}


def test_what_is_practically_a_finalist_or_identity_is_not_confirmed_again(
    database: Engine,
) -> None:
    chosen = finalists(run(database, small(name="before", search={"sampler": "grid"}), helps))
    [(_, (first,)), *_] = chosen
    for number, value in enumerate([1.0, first]):
        name = f"near-{number}"
        now = run(database, asked(name=name), learning([[value + 0.02]], [[value + 0.04]]))
        assert finalists(now) == chosen
        assert [arm.state for arm in now.confirm.trials if arm.role == "trainable"] == ["complete"]
        assert f"[{value + 0.03:.4g}] was learned: practically identity or a finalist" in shown(now)


def shown(now: Snapshot) -> str:
    console = Console(width=250)
    with console.capture() as captured:
        console.print(arms_table(now))
    return captured.get()


@pytest.mark.parametrize("told", [{}, {"den": {"3": [[0.3, 0.4]]}}, {"den": [[0.3]]}])
def test_an_arm_whose_worker_does_not_tell_its_densities_is_failed_with_a_reason(
    database: Engine, told: dict[str, Any]
) -> None:
    """Nothing of ours writes that, but whoever has a worker's rights may."""

    def measure(job: ClaimedJob) -> tuple[float, dict[str, Any]]:
        right = {"den": {"3": [[0.3]]}} if job.seed else told
        return helps(job), right if job.arm["trainable"] else {}

    now = run(database, asked(confirm={"seeds": 8}), measure)
    assert (now.study.state, now.learned) == ("finished", None)
    [arm] = [arm for arm in now.confirm.trials if arm.role == "trainable"]
    assert (arm.state, arm.reason) == ("failed", "a worker did not tell what was learned")


def test_an_arm_that_diverges_leaves_the_others_as_they_are(database: Engine) -> None:
    def measure(job: ClaimedJob) -> float:
        if job.arm["trainable"] and job.seed == 1:
            raise ArithmeticError("loss nan")
        return helps(job)

    now = run(database, asked(), measure)
    calm = run(database, small(name="calm", search={"sampler": "grid"}), helps)
    assert now.study.verdicts == calm.study.verdicts
    [arm] = [arm for arm in now.confirm.trials if arm.role == "trainable"]
    assert (arm.state, arm.reason) == ("failed", "diverged: loss nan")
    assert now.learned is None


def test_the_test_is_corrected_for_one_finalist_more(database: Engine) -> None:
    now = run(database, asked(), learning([[0.3]], [[0.3]]))
    assert len(now.verdicts) == 3 == len(comparisons.groups(now.confirm.trials))
    preset = exports.compose(now, exports.chosen(now))
    assert preset.evidence.confirmation is not None
    assert preset.evidence.confirmation.finalists == 3


def test_a_study_that_does_not_ask_has_no_such_arm(database: Engine) -> None:
    now = run(database, small(), helps)
    assert {arm.role for arm in now.confirm.trials} == {
        "identity", "finalist", "control", "uniform",
    }  # fmt: skip
    assert now.learned is None


def test_a_density_that_was_learned_and_won_is_handed_over(database: Engine) -> None:
    now = run(database, asked(**TESTED), learning([[0.3]], [[0.3]]))
    assert now.winner is not None
    assert (now.winner.label, now.winner.verdict) == ("learned", "better")
    assert now.holdout is not None
    assert now.holdout.trial == now.winner.trial == now.config.search.trials
    preset = exports.compose(now, exports.chosen(now))
    assert preset.densities == {"3": [pytest.approx(0.3)]}
    found = preset.provenance
    assert (found.trial, found.label, found.optuna_trial) == (7, "learned", None)
    assert (preset.evidence.verdict, preset.evidence.test) == ("better", now.holdout)
    assert Preset.model_validate(json.loads(preset.text())) == preset
    searched = exports.compose(now, exports.chosen(now, trial=1)).provenance
    assert (searched.label, searched.optuna_trial) == ("v2 README", 1)
