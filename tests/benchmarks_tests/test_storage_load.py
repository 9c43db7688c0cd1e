"""The arithmetic of the load benchmark, and that its simulated workers do what real ones do."""

import os
import threading
import time

import numpy as np
import pytest
import storage_load
from helpers.simulated_workers import BUDGET, RUNG, Load, Times, simulate
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from storage import trials
from storage.studies import Study


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.sampled_from([1, 50, 99, 100]))
def test_a_percentile_is_a_value_that_was_measured(values: list[float], percent: int) -> None:
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert storage_load.percentile(values, percent) == expected


def test_the_share_of_storage_is_that_of_a_workers_whole_time() -> None:
    """Two jobs of 5 s: 0.2 s for claims and 0.3 s for four records."""
    times = Times(claim=[0.05, 0.15], record=[0.1, 0.05, 0.1, 0.05])
    assert storage_load.share_of_storage(times, 5.0) == pytest.approx(0.5 / 10.5)


def test_cpu_seconds_are_those_that_the_process_counts_itself() -> None:
    before, counted = storage_load.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() < counted + 0.3:
        pass
    used = storage_load.cpu_seconds(os.getpid()) - before
    assert used == pytest.approx(time.process_time() - counted, abs=0.05)


def test_simulated_workers_train_every_job_once(
    database: Engine, database_url: str, study: Study
) -> None:
    with database.begin() as connection:
        trials.add(
            connection, study.id, "search", number=0, role="candidate", label="", densities={},
            seeds=range(9), budget=BUDGET,
        )  # fmt: skip
    load = Load(workers=3, job_seconds=0.02, seconds=1.5)
    times, _ = simulate(database_url, study.id, 3, load, threading.Barrier(1))
    assert times.errors == []
    assert len(times.record) == 2 * 9
    query = text("""
        SELECT state, epoch, array_agg(rung ORDER BY rung)
        FROM densitune.jobs JOIN densitune.measurements ON job_id = id
        GROUP BY jobs.id
    """)
    with database.connect() as connection:
        rows = [tuple(row) for row in connection.execute(query)]
    assert rows == [("done", 1, [RUNG, BUDGET])] * 9
