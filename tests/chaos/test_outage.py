"""PostgreSQL goes away in the middle of training, and nothing that was trained is trained again."""

import re
import time
from pathlib import Path

import pytest
from helpers.cluster import Cluster
from sqlalchemy import Engine
from support import audit, crew
from support.audit import Outcome, Rows
from support.crew import PATIENCE, Crew
from support.waiting import wait_for

MEASURED = re.compile(r"(\w+): trial (\d+) seed (\d+): \S+ after (\d+) of")
DELIVERY_SECONDS = 30.0

Key = tuple[str, int, int, int]
"""Phase, trial, seed and rung of a measurement."""


def check(
    cluster: Cluster, engine: Engine, path: Path, home: Path, expected: Rows, seconds: float
) -> None:
    """Calibrate with two workers, without PostgreSQL for some seconds, in which a third starts."""
    name = path.stem
    with Crew(path, cluster.url, home, until="calibrate") as cut_off:
        cut_off.hire(2, pack=4)
        wait_for(lambda: len(audit.holders(engine, name)) == 2, PATIENCE)
        known = delivered(engine, name)
        cluster.stop("immediate")
        [late] = cut_off.hire(pack=4)
        time.sleep(seconds)
        wait_for(lambda: "storage is away" in late.text(), PATIENCE)
        trained = measured(cut_off)
        assert trained - known, "nothing was measured meanwhile"
        cluster.start()
        wait_for(lambda: trained <= delivered(engine, name), DELIVERY_SECONDS)
        cut_off.finish()
    assert cut_off.fallen == []
    audit.check_rows("ledger", audit.read(engine, audit.LEDGER, name), expected)
    assert audit.claims(engine, name) == {(1, 0)}, "a job was claimed again"
    assert crew.leftovers(home) == []


def measured(cut_off: Crew) -> set[Key]:
    """Return what the workers say they have measured."""
    said = (match for worker in cut_off.workers for match in MEASURED.findall(worker.text()))
    return {(phase, int(trial), int(seed), int(rung)) for phase, trial, seed, rung in said}


def delivered(engine: Engine, name: str) -> set[Key]:
    """Return what the ledger holds."""
    rows = audit.read(engine, audit.LEDGER, name)
    return {(phase, trial, seed, rung) for phase, trial, seed, _, rung, *_ in rows}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_training_goes_on_without_postgresql_and_is_delivered(
    cluster: Cluster, engine: Engine, calm: Outcome, home: Path, tmp_path: Path
) -> None:
    path = crew.config(tmp_path, "outage")
    check(cluster, engine, path, home, calm.calibrated, seconds=15)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_three_minutes_without_postgresql_cost_no_training(
    cluster: Cluster, engine: Engine, home: Path, tmp_path: Path
) -> None:
    """Four at a time, jobs of a minute are begun before and end after."""
    undisturbed = crew.config(tmp_path, "long-calm", **crew.LONG)
    with Crew(undisturbed, cluster.url, home, until="calibrate") as calm:
        calm.hire(2)
        calm.finish()
    expected = audit.read(engine, audit.LEDGER, "long-calm")
    path = crew.config(tmp_path, "long-outage", **crew.LONG)
    check(cluster, engine, path, home, expected, seconds=180)
