"""All times are the database's: what a worker's clock shows does not matter."""

from pathlib import Path

import pytest
from helpers.cluster import Cluster
from sqlalchemy import Engine
from support import audit, crew
from support.audit import Outcome
from support.crew import SKEWED, Crew

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_a_worker_an_hour_ahead_in_another_time_zone_changes_nothing(
    cluster: Cluster, engine: Engine, calm: Outcome, home: Path, tmp_path: Path
) -> None:
    with Crew(crew.config(tmp_path, "clocks"), cluster.url, home, until="calibrate") as mixed:
        mixed.hire(program=SKEWED, TZ="Pacific/Auckland", PGTZ="Pacific/Auckland")
        mixed.hire()
        mixed.finish()
    assert mixed.fallen == []
    audit.check_rows("ledger", audit.read(engine, audit.LEDGER, "clocks"), calm.calibrated)
    assert audit.claims(engine, "clocks") == {(1, 0)}, "a job was taken from its worker"
    assert len(audit.authors(engine, "clocks")) == 2
