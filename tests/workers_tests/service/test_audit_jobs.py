"""An audit's jobs on a worker: another network, the same queue, process and data."""

from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.stations import Station, add, make_bench, make_config, work

from optimizer.arms import Arm
from optimizer.cli import networks
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from storage import ledger, trials
from workers import preparation, verification
from workers.preparation import Bench

BUDGET = 3


def audited() -> StudyConfig:
    larger = {"proxy": {"family": "dncnn", "width": 6, "depth": 4}, "budget": BUDGET, "lr": 0.002}
    return study_file.parse({**make_config().document(), "audit": larger}, origin="test")


def benches(given: StudyConfig, cache: Path) -> tuple[Bench, Bench]:
    bank = preparation.bank(given.data, cache)
    own, larger = networks.benches(given, bank, "full", "cpu", {})
    assert isinstance(own, Bench)
    assert larger is not None
    assert larger.task is own.task  # the data are on the device once
    return own, larger


def queue(engine: Engine, station: Station, number: int, value: float) -> None:
    with engine.begin() as connection:
        trials.add(
            connection, station.study_id, "audit", number=number, role="candidate",
            label=str(value), densities={3: (value,)}, seeds=[0, 1], budget=BUDGET,
        )  # fmt: skip


@pytest.mark.parametrize("pack", [1, 4])
def test_jobs_of_an_audit_are_trained_by_its_own_recipe_beside_the_studys_in_one_worker(
    database: Engine, cache: Path, pack: int
) -> None:
    given = audited()
    own, larger = benches(given, cache)
    station = make_bench(database, given, cache)
    add(database, station, [0.5])
    queue(database, station, 0, 0.5)
    queue(database, station, 1, 0.8)
    assert work(database, station, pack=pack, audit=larger) == 6
    with database.connect() as connection:
        searched = ledger.read(connection, station.study_id, "search")
        trained = ledger.read(connection, station.study_id, "audit")
    assert {row.rung for row in trained} == {BUDGET}
    for rows, bench, budget, value in ((searched, own, 2, 0.5), (trained, larger, BUDGET, 0.8)):
        [found] = [
            row.value
            for row in rows
            if (row.seed, row.rung) == (1, budget) and (row.trial == 1 or rows is searched)
        ]
        again = verification.metrics(bench, {"one": Arm({3: (value,)})}, 1, budget)
        assert found == again["one"]


def test_a_worker_that_began_before_the_audit_leaves_and_its_jobs_wait(
    database: Engine, cache: Path
) -> None:
    station = make_bench(database, make_config(), cache)
    queue(database, station, 0, 0.5)
    with pytest.raises(StudyFailedError, match="began before an audit was asked for"):
        work(database, station)
    with database.connect() as connection:
        [trial] = trials.all_of(connection, station.study_id, "audit")
    assert (trial.waiting, trial.failed) == (2, 0)
