"""The Optuna study: what is proposed first, and that proposals depend on results alone."""

import json
import math
import warnings
from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, text

from densitune.density import Densities
from optimizer import design
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from optimizer.phases import optuna_study, optuna_tables
from optimizer.phases.optuna_study import DensityStudy, Outcome

POOR = -2.0
"""A response below this is that of a poor density."""


def make_config(
    name: str, kernel_size: int | list[int], sampler: str = "auto", trials: int = 12
) -> StudyConfig:
    return study_file.parse(
        {
            "name": name,
            "task": "photos",
            "proxy": {"family": "dncnn", "width": 4, "depth": 4},
            "kernel_size": kernel_size,
            "training": {"budget": 2},
            "search": {"sampler": sampler, "trials": trials, "in_flight": 4},
        },
        origin="test",
    )


def opened(engine: Engine, given: StudyConfig) -> DensityStudy:
    """The study behind densitune's study 1, as a proposer that has just started finds it."""
    storage = optuna_tables.alone(engine)
    found = optuna_study.find(storage, given, 1)
    return optuna_study.create(storage, given, 1) if found is None else found


def response(densities: Densities) -> float:
    """A smooth surface with its top at 0.5 for every value."""
    return -sum(math.log(value / 0.5) ** 2 for den in densities.values() for value in den)


def tell(told: DensityStudy, number: int, densities: Densities, poor: Outcome = "complete") -> None:
    """Tell a response, five times as large at the first rung."""
    value = response(densities)
    match poor if value < POOR else "complete":
        case "complete":
            told.tell(number, "complete", {1: 5 * value, 2: value})
        case "pruned":
            told.tell(number, "pruned", {1: 5 * value})
        case "failed":
            told.tell(number, "failed", {})


def run(
    given: StudyConfig, fresh: Callable[[], DensityStudy], poor: Outcome = "complete"
) -> list[Densities]:
    """Ask and tell in the proposer's order; `fresh` gives the object used for each step.

    What lies far from the top is told as `poor`.
    """
    asked: list[tuple[int, Densities]] = []
    told = 0
    while told < given.search.trials:
        if len(asked) < given.search.trials and len(asked) - told < given.search.in_flight:
            asked.append(fresh().ask(len(asked), {number for number, _ in asked}))
        else:
            number, densities = asked[told]
            tell(fresh(), number, densities, poor)
            told += 1
    return [densities for _, densities in asked]


def run_alone(engine: Engine, given: StudyConfig, poor: Outcome = "complete") -> list[Densities]:
    """Run with one proposer that is never restarted."""
    shared = opened(engine, given)
    return run(given, lambda: shared, poor)


def test_identity_and_published_densities_come_first_also_outside_the_box(
    database: Engine,
) -> None:
    given = make_config("first", 7)
    asked = run_alone(database, given)
    assert asked[:3] == [
        {7: (1.0, 1.0, 1.0)},
        {7: (0.25, 0.15, 0.55)},
        {7: (0.06, 1.2, 1.6)},
    ]
    narrow = given.model_copy(
        update={
            "name": "narrow",
            "density": given.density.model_copy(update={"low": 0.4, "high": 0.9}),
        }
    )
    asked = run_alone(database, narrow)
    assert asked[2] == {7: (0.06, 1.2, 1.6)}
    assert all(0.4 <= value <= 0.9 for proposed in asked[3:] for value in proposed[7])


@pytest.mark.parametrize(
    ("sampler", "kernel_size", "trials"),
    [
        ("auto", 3, 18),
        ("gp", 5, 20),
        ("tpe", [3, 5], 24),
        ("cmaes", 5, 24),
        ("direct", 5, 24),
        ("qmc", 5, 12),
        ("random", 5, 12),
        ("grid", 5, 4 + 9),
    ],
)
def test_proposals_do_not_depend_on_restarts(
    database: Engine, sampler: str, kernel_size: int | list[int], trials: int
) -> None:
    one = make_config("one", kernel_size, sampler, trials)
    other = make_config("other", kernel_size, sampler, trials)
    undisturbed = run_alone(database, one, "pruned")
    restarted = run(other, lambda: opened(database, other), "pruned")
    assert undisturbed == restarted
    distinct = {str(densities) for densities in undisturbed}
    assert len(distinct) == trials
    assert any(response(densities) < POOR for densities in undisturbed)


@pytest.mark.parametrize("sampler", ["gp", "tpe", "cmaes"])
def test_pruned_trials_move_what_a_model_proposes(database: Engine, sampler: str) -> None:
    """Failed trials, of which nothing is known, are what a sampler makes of those it ignores."""
    pruned, failed = (make_config(name, 5, sampler, 26) for name in ("pruned", "failed"))
    first, second = run_alone(database, pruned, "pruned"), run_alone(database, failed, "failed")
    designed = len(pruned.anchors) + design.startup(2)
    assert first[:designed] == second[:designed]
    assert first[designed:] != second[designed:]


def test_a_model_based_sampler_finds_the_top_of_a_smooth_surface(database: Engine) -> None:
    given = make_config("top", 3, trials=20)
    best = max(run_alone(database, given), key=response)
    assert abs(best[3][0] - 0.5) < 0.02


def test_telling_twice_is_harmless_and_another_result_is_refused(database: Engine) -> None:
    given = make_config("twice", 3)
    shared = opened(database, given)
    results: list[tuple[Outcome, dict[int, float]]] = [
        ("complete", {1: 2.5, 2: 0.1}),
        ("pruned", {1: 0.1}),
        ("failed", {}),
    ]
    for place, (outcome, differences) in enumerate(results):
        number, _ = shared.ask(place, set(range(place)))
        shared.tell(number, outcome, differences)
        shared.tell(number, outcome, differences)
        others: list[tuple[Outcome, dict[int, float]]] = [
            *(other for other in results if other[0] != outcome),
            (outcome, {1: 0.2}),
        ]
        for other in others:
            with pytest.raises(StudyFailedError, match="something else has written"):
                shared.tell(number, *other)


def test_the_study_is_a_normal_optuna_study(database: Engine) -> None:
    given = make_config("normal", [3, 5])
    shared = opened(database, given)
    for number in range(3):
        shared.ask(number, set(range(number)))
    shared.describe(0, {"role": "identity"})
    shared.tell(0, "complete", {1: 20.0, 2: 25.0})
    shared.tell(1, "failed", {})
    shared.tell(2, "pruned", {1: -3.0})
    plain = optuna.load_study(study_name="normal", storage=optuna_tables.alone(database))
    first, second, third = plain.trials
    assert plain.direction is optuna.study.StudyDirection.MAXIMIZE
    assert plain.metric_names == ["difference in PSNR (dB)"]
    assert first.params == {"k3_den0": 1.0, "k5_den0": 1.0, "k5_den1": 1.0}
    assert first.value == 25.0
    assert first.intermediate_values == {1: 20.0, 2: 25.0}
    assert first.user_attrs == {"role": "identity"}
    assert second.params == {"k3_den0": 0.7, "k5_den0": 0.2, "k5_den1": 0.8}
    assert second.state is TrialState.FAIL
    assert (third.state, third.value) == (TrialState.PRUNED, -3.0)
    assert third.intermediate_values == {1: -3.0}


def test_optuna_dashboard_shows_densities_values_and_intermediate_values(
    database: Engine,
) -> None:
    given = make_config("shown", 5)
    shared = opened(database, given)
    shared.ask(0, set())
    shared.tell(0, "complete", {1: 20.0, 2: 25.0})
    application = optuna_dashboard.wsgi(optuna_tables.alone(database))

    def get(path: str) -> Any:
        environ: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        body = b"".join(application(environ, lambda status, headers, error=None: None))
        return json.loads(body)

    (summary,) = get("/api/studies")["study_summaries"]
    assert summary["study_name"] == "shown"
    detail = get(f"/api/studies/{summary['study_id']}")
    (trial,) = detail["trials"]
    assert detail["objective_names"] == ["difference in PSNR (dB)"]
    assert trial["values"] == [25.0]
    assert {p["name"]: p["param_internal_value"] for p in trial["params"]} == {
        "k5_den0": 1.0,
        "k5_den1": 1.0,
    }
    assert trial["intermediate_values"] == [
        {"step": 1, "value": 20.0},
        {"step": 2, "value": 25.0},
    ]


def test_a_process_holds_at_most_two_connections(database: Engine) -> None:
    given = make_config("connections", 3)
    shared = opened(database, given)
    with database.begin() as connection:
        for number in range(3):
            shared.ask(number, set(range(number)))
        held = connection.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        )
    assert held == 2


def test_the_optuna_study_of_another_is_not_taken_for_ones_own(database: Engine) -> None:
    """Of densitune's study 1, as which the name was once used, or of nobody's."""
    given = make_config("name", 3)
    opened(database, given)
    storage = optuna_tables.alone(database)
    with pytest.raises(StudyFailedError, match="densitune doctor --fix"):
        optuna_study.find(storage, given, 2)
    plain = make_config("plain", 3)
    optuna.create_study(storage=storage, study_name="plain", direction="maximize")
    with pytest.raises(StudyFailedError, match="is not that of densitune's study"):
        optuna_study.find(storage, plain, 1)


def test_a_study_that_an_older_version_began_is_continued(database: Engine) -> None:
    """It had no attribute with a number."""
    given = make_config("older", 3)
    opened(database, given)
    with database.begin() as connection:
        connection.execute(text("DELETE FROM public.study_user_attributes"))
    storage = optuna_tables.alone(database)
    assert optuna_study.find(storage, given, 7) is not None
    assert optuna_study.owners(storage) == {"older": None}


def test_a_study_that_was_told_other_values_so_far_is_not_continued(database: Engine) -> None:
    """Earlier versions told the metric itself, which differences cannot be compared with."""
    given = make_config("older", 3)
    optuna.create_study(
        storage=optuna_tables.alone(database), study_name="older", direction="maximize"
    )
    plain = optuna.load_study(study_name="older", storage=optuna_tables.alone(database))
    with warnings.catch_warnings(action="ignore"):
        plain.set_metric_names(["PSNR (dB)"])
    with pytest.raises(
        StudyFailedError, match=r"holds PSNR \(dB\).*densitune delete older"
    ) as raised:
        opened(database, given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [0, 17])
def test_what_somebody_else_enqueued_or_began_is_failed_and_taken_for_nothing(
    database: Engine, number: int
) -> None:
    """Number 0 is an anchor, 17 the Gaussian process's."""
    given, undisturbed = make_config("foreign", 3, trials=18), make_config("alone", 3, trials=18)
    expected = run_alone(database, undisturbed)

    def meddle() -> DensityStudy:
        plain = optuna.load_study(study_name="foreign", storage=optuna_tables.alone(database))
        if len(plain.trials) == number:
            plain.enqueue_trial({"k3_den0": 0.3})
            plain.enqueue_trial({"k3_den0": 0.4})
            plain.ask().suggest_float("k3_den0", 0.05, 2.0)
        return opened(database, given)

    opened(database, given)
    assert run(given, meddle) == expected
    theirs = [trial.state for trial in opened(database, given)._study.trials[number:][:2]]
    assert theirs == [TrialState.FAIL] * 2
