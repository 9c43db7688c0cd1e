"""Whatever is killed or restarted, a study ends, by itself, as if nothing had happened."""

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from helpers.cluster import Cluster
from sqlalchemy import Engine
from support import audit, crew
from support.audit import Outcome
from support.crew import HURRIED, PATIENCE, Crew
from support.shell import PLAIN, Program
from support.waiting import wait_for
from support.weather import Forecast, Season, events

SHOWERS = Forecast(seconds=30, workers=3, worker_every=4, proposer_every=13, restart_every=10)
HURRICANE = Forecast(seconds=600, workers=6, worker_every=3, proposer_every=20, restart_every=100)


def check(
    forecast: Forecast,
    program: Program,
    cluster: Cluster,
    engine: Engine,
    calm: Outcome,
    folder: Path,
) -> None:
    """Run studies through a season, and compare each of them with the undisturbed one."""
    season = Season(forecast, seed=5)
    for number in itertools.count():
        name = f"storm-{forecast.seconds:.0f}-{number}"
        path, home = crew.config(folder, name), folder / "home"
        with Crew(path, cluster.url, home, program=program) as shaken:
            shaken.hire(forecast.workers)
            wait_for(partial(audit.holders, engine, name), PATIENCE)
            season.blow(shaken, cluster)
            shaken.finish()
        print(f"{name}: {audit.disturbance(engine, name)}; so far {dict(season.seen)}")
        assert shaken.fallen == []
        found = audit.outcome(engine, name)
        audit.check_clean(found, crew.TRIALS)
        audit.check_equal(found, calm)
        assert crew.leftovers(home) == []
        if season.over:
            return


def test_the_hurricane_is_as_hard_as_it_was_ordered() -> None:
    """A worker every 3 s, the proposer every 20 s, 5 restarts; nothing happens at the very end."""
    counted = Counter(event for _, event in events(HURRICANE))
    assert counted == {"worker": 199, "proposer": 29, "immediate": 3, "fast": 2}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_showers_change_nothing(
    cluster: Cluster, engine: Engine, calm: Outcome, tmp_path: Path
) -> None:
    check(SHOWERS, HURRIED, cluster, engine, calm, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hurricane_of_ten_minutes_changes_nothing(
    cluster: Cluster, engine: Engine, calm: Outcome, tmp_path: Path
) -> None:
    check(HURRICANE, PLAIN, cluster, engine, calm, tmp_path)
