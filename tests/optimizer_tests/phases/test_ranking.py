"""What a search goes by: for classifiers the cross-entropy, while verdicts go by top-1 accuracy."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine, text
from support.databases import temporary
from support.simulated import create, go_on, noise, run, small

from optimizer.cli import session
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import ranking
from optimizer.phases import optuna_study, optuna_tables
from optimizer.presets import exports
from optimizer.show import programs, report, terminal, words
from optimizer.show.confirmation_table import arms_table
from optimizer.snapshot import Snapshot
from storage import studies
from storage.database import connect
from storage.errors import UnreadableError
from storage.jobs import ClaimedJob


def classes(**changes: Any) -> StudyConfig:
    """A small study of a classifier."""
    proxy = {"family": "vgg", "width": 8, "depth": 6}
    return small(task="cifar100", proxy=proxy, **changes)


def measure(job: ClaimedJob) -> tuple[float, dict[str, Any]]:
    """By top-1 accuracy large densities are ahead in the search, by cross-entropy those at 0.6."""
    (den,) = job.densities[3]
    distance = 1.0 if job.arm["mask"] == "uniform" else abs(den - 0.6) / 0.4
    if job.phase == "search":
        return 40 + den + noise(job, 0.01), {"cross_entropy": 2 + distance**2}
    return 40 - distance**2 + noise(job, 0.3), {"cross_entropy": 2 + distance**2}


@pytest.fixture(scope="module")
def engine(postgres: str, prepared: str) -> Iterator[Engine]:
    with temporary(postgres, prepared) as url:
        connected = connect(url)
        yield connected
        connected.dispose()


@pytest.fixture(scope="module")
def searched(engine: Engine) -> Snapshot:
    given = classes()
    study_id = create(engine, given, searched_by="cross_entropy", normalised=True)
    return go_on(engine, study_id, given, measure)


def test_finalists_are_those_of_the_lowest_cross_entropy_and_verdicts_the_metric_s(
    database: Engine, searched: Snapshot
) -> None:
    known = {trial.number: abs(trial.densities[3][0] - 0.6) for trial in searched.trials}
    nearest = min(known, key=lambda number: known[number])
    assert {one.trial for one in searched.verdicts} >= {nearest}
    assert searched.best is not None
    assert searched.best.number == nearest
    assert searched.winner is not None
    assert searched.winner.verdict == "better"
    assert searched.winner.to_identity is not None
    assert searched.winner.to_identity.mean == pytest.approx(1, abs=0.5)  # points of accuracy
    plain = run(database, classes(name="plain"), measure)
    assert plain.best is not None
    assert plain.best.densities[3] == max(trial.densities[3] for trial in plain.trials)


def test_optuna_is_told_what_the_search_goes_by_with_the_metric_beside_it(
    engine: Engine, searched: Snapshot
) -> None:
    tables = optuna_tables.joined(engine)
    assert tables is not None
    with engine.begin() as connection:
        tables.join(connection)
        behind = optuna_study.find(tables, searched.config, searched.study.id, "cross_entropy")
        assert behind is not None
        told = behind.told()
        beside = connection.scalars(
            text("SELECT value_json FROM public.trial_user_attributes "
                 "WHERE key = 'top-1 accuracy minus identity'")
        ).all()  # fmt: skip
        named = connection.scalar(
            text("SELECT value_json FROM public.study_system_attributes "
                 "WHERE key = 'study:metric_names'")
        )  # fmt: skip
    assert json.loads(named) == ["difference in negated cross-entropy (nats)"]
    by_number = {result.optuna_number: result for result in searched.results}
    assert len(beside) == len(by_number) == len(told)
    for number, (_, value) in told.items():
        result = by_number[number]
        distance = abs(result.densities[3][0] - 0.6) / 0.4
        assert value == pytest.approx(1 - distance**2)
        assert result.searched.mean == value


def test_tables_say_which_is_which(searched: Snapshot) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(terminal.final_table(searched), arms_table(searched))
    shown = " ".join(captured.get().split())
    assert words.BELOW_IDENTITY in shown
    assert shown.count(words.BY_ENTROPY) == 2
    html = report.render(searched)
    assert words.BY_ENTROPY in html
    assert "cross-entropy below identity" in html
    document = json.loads(json.dumps(programs.document(searched), allow_nan=False))
    assert document["searched_by"] == "cross_entropy"
    first = document["results"][0]
    assert first["cross_entropy_below_identity"] == searched.results[first["trial"]].searched.mean
    preset = exports.compose(searched, exports.chosen(searched))
    assert preset.evidence.searched_by == "cross_entropy"
    found = preset.evidence.difference_to_identity.mean
    assert found == searched.results[preset.provenance.trial].difference.mean


def test_bars_are_of_what_the_search_goes_by(database: Engine) -> None:
    search = {"trials": 12, "rungs": [1], "keep": 0.5, "in_flight": 1}
    given = classes(name="barred", search=search, training={"budget": 2})
    study_id = create(database, given, searched_by="cross_entropy")
    studies.go_on(database, study_id, "search", force=False)
    now = go_on(database, study_id, given, measure)
    with database.connect() as connection:
        bars = connection.scalars(
            text("SELECT bars FROM densitune.jobs WHERE study_id = :study AND bars <> '{}'"),
            {"study": now.study.id},
        ).all()
    assert bars
    assert all(-10 < bar < 0 for by_rung in bars for bar in by_rung.values())
    assert {trial.arm["searched_by"] for trial in now.trials} == {"cross_entropy"}


def test_a_new_study_of_a_classifier_is_searched_by_cross_entropy_and_an_older_one_is_not(
    database: Engine,
) -> None:
    for given, by in ((classes(), "cross_entropy"), (small(name="denoised"), "metric")):
        study = session.create(database, given, "none", "print", "full", dict)
        assert ranking.of(study) == by
    older = run(database, classes(name="older"), measure)
    with database.begin() as connection:
        connection.execute(
            text("UPDATE densitune.studies SET provenance = provenance - 'searched_by'")
        )
    found = studies.find(database, older.study.name)
    assert found is not None
    assert ranking.of(found) == "metric"


def test_a_measurement_without_a_cross_entropy_is_named(searched: Snapshot) -> None:
    """Nothing of ours writes it, but whoever has a worker's rights may."""
    with pytest.raises(UnreadableError, match=r"trial 3 .* seed 1 after 2 epochs has no cross-en"):
        ranking.searched(
            [
                row if (row.trial, row.seed) != (3, 1) else replace(row, extra={})
                for row in searched.rows
            ],
            "cross_entropy",
        )
