"""The queue: every job is held by one worker at a time, and none is lost."""

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from support.queued import add_trial, enter, expire_leases, set_state, states

from storage import jobs, ledger, roster, studies, trials
from storage.failures import MAX_LOSSES
from storage.jobs import Beat
from storage.ledger import Entry
from storage.states import StudyState

CLAIM_ALL = """
import json, multiprocessing, sys
from storage import jobs, roster
from storage.database import connect

url, study, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def run(start, results):
    engine = connect(url)
    worker = roster.register(engine, study, "host", 1, "cpu", {})
    start.wait()
    mine = []
    while pack := jobs.claim(engine, study, worker, 3, 60):
        mine += [job.id for job in pack]
    results.put(mine)

context = multiprocessing.get_context("fork")
start, results = context.Barrier(processes), context.Queue()
for _ in range(processes):
    context.Process(target=run, args=[start, results]).start()
print(json.dumps([results.get() for _ in range(processes)]))
"""


@pytest.mark.parametrize("processes", [2, 8])
def test_each_job_is_claimed_exactly_once(
    database: Engine, database_url: str, study: studies.Study, processes: int
) -> None:
    for number in range(40):
        add_trial(database, study, number, range(5))
    command = [sys.executable, "-c", CLAIM_ALL, database_url, str(study.id), str(processes)]
    claimed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert sorted(job for mine in claimed for job in mine) == list(range(1, 201))
    assert sum(bool(mine) for mine in claimed) > 1


def test_claim_tells_all_that_training_needs(database: Engine, study: studies.Study) -> None:
    add_trial(database, study, 3, [2**40, 7], budget=9)
    [job, _] = jobs.claim(database, study.id, enter(database, study), 5, 60)
    assert (job.trial, job.seed, job.budget, job.fence) == (3, 2**40, 9, 1)
    assert job.densities == {3: (0.7,), 5: (0.2, 0.8)}
    assert (job.bars, job.phase, job.arm) == ({}, "search", {})


bars = st.dictionaries(
    st.integers(1, 10_000), st.floats(allow_nan=False, allow_infinity=False), max_size=5
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bars)
def test_bars_come_back_to_the_last_bit(
    database: Engine, study: studies.Study, bars: dict[int, float]
) -> None:
    with database.begin() as connection:
        connection.execute(text("DELETE FROM densitune.trials"))
    add_trial(database, study, 0, [])
    with database.begin() as connection:
        jobs.enqueue(connection, study.id, "search", 0, [1], 4, bars)
    [job] = jobs.claim(database, study.id, enter(database, study), 1, 60)
    # Adding 0.0 turns -0.0 into 0.0, as PostgreSQL's JSON does.
    assert {rung: repr(bar) for rung, bar in job.bars.items()} == {
        rung: repr(bar + 0.0) for rung, bar in bars.items()
    }


def test_pack_has_one_budget_and_the_oldest_come_first(
    database: Engine, study: studies.Study
) -> None:
    worker = enter(database, study)
    add_trial(database, study, 0, [0, 1], budget=4)
    add_trial(database, study, 1, [0], budget=8)
    add_trial(database, study, 2, [0, 1], budget=4)
    packs = []
    while pack := jobs.claim(database, study.id, worker, 3, 60):
        packs.append([(job.trial, job.seed) for job in pack])
    assert packs == [[(0, 0), (0, 1), (2, 0)], [(1, 0)], [(2, 1)]]


@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_nothing_is_claimed_unless_the_study_runs(
    database: Engine, study: studies.Study, state: StudyState
) -> None:
    worker = enter(database, study)
    add_trial(database, study, 0, [0])
    set_state(database, study.id, state)
    assert jobs.claim(database, study.id, worker, 1, 60) == []
    assert jobs.heartbeat(database, worker, 60).study_state == state
    set_state(database, study.id, "running")
    assert len(jobs.claim(database, study.id, worker, 1, 60)) == 1


def test_claims_stay_within_the_study(database: Engine, study: studies.Study) -> None:
    other, _ = studies.create(database, "other", {}, "", {}, "search")
    add_trial(database, study, 0, [0])
    assert jobs.claim(database, other.id, enter(database, other), 1, 60) == []


def test_expired_lease_is_claimed_anew_and_fences_the_old_holder_off(
    database: Engine, study: studies.Study
) -> None:
    old, new = enter(database, study), enter(database, study)
    add_trial(database, study, 0, [0])
    [before] = jobs.claim(database, study.id, old, 1, 60)
    assert jobs.claim(database, study.id, new, 1, 60) == []
    expire_leases(database)
    [after] = jobs.claim(database, study.id, new, 1, 60)
    assert after.id == before.id
    assert after.fence > before.fence
    assert jobs.heartbeat(database, old, 60) == Beat(study_state="running", held=frozenset())
    assert jobs.heartbeat(database, new, 60).held == {after.claim}
    assert not jobs.fail(database, before.claim, "too late", "diverged")
    jobs.release(database, [before.claim])
    assert states(database) == ["running"]


def test_heartbeat_saves_even_an_expired_lease(database: Engine, study: studies.Study) -> None:
    slow, other = enter(database, study), enter(database, study)
    add_trial(database, study, 0, [0])
    [job] = jobs.claim(database, study.id, slow, 1, 60)
    expire_leases(database)
    assert jobs.heartbeat(database, slow, 60).held == {job.claim}
    assert jobs.claim(database, study.id, other, 1, 60) == []


def test_released_job_is_free_at_once_and_not_counted_as_lost(
    database: Engine, study: studies.Study
) -> None:
    worker = enter(database, study)
    add_trial(database, study, 0, [0])
    epochs = []
    for _ in range(2 * MAX_LOSSES):
        [job] = jobs.claim(database, study.id, worker, 1, 60)
        epochs.append(job.fence)
        jobs.release(database, [job.claim])
    assert epochs == sorted(set(epochs))
    with database.begin() as connection:
        assert jobs.fail_lost(connection, study.id) == 0
    assert states(database) == ["waiting"]


def test_job_lost_too_often_fails(database: Engine, study: studies.Study) -> None:
    worker = enter(database, study)
    add_trial(database, study, 0, [0])
    for _ in range(MAX_LOSSES + 1):
        assert len(jobs.claim(database, study.id, worker, 1, 60)) == 1
        with database.begin() as connection:
            assert jobs.fail_lost(connection, study.id) == 0
        expire_leases(database)
    assert jobs.claim(database, study.id, worker, 1, 60) == []
    with database.begin() as connection:
        assert jobs.fail_lost(connection, study.id) == 1
        [trial] = trials.all_of(connection, study.id, "search")
    assert trial.failed == 1
    assert trial.error_text is not None
    assert trial.error_text.startswith(f"lost {MAX_LOSSES} times")


def test_a_suspended_machine_loses_no_job_however_often(
    database: Engine, study: studies.Study
) -> None:
    """All leases have run out when it wakes, and who wakes first takes the others' jobs."""
    first, second = enter(database, study, 1), enter(database, study, 2)
    add_trial(database, study, 0, [0])
    for early, late in [(first, second), (second, first)] * MAX_LOSSES:
        expire_leases(database)
        with database.begin() as connection:
            assert jobs.fail_lost(connection, study.id) == 0
        assert len(jobs.claim(database, study.id, early, 1, 60)) == 1
        assert jobs.heartbeat(database, late, 60).held == frozenset()
    assert states(database) == ["running"]


def test_who_is_never_heard_of_again_has_lost_its_job(
    database: Engine, study: studies.Study
) -> None:
    """It counts when the next holder's lease runs out too. Who comes back does not count."""
    add_trial(database, study, 0, [0])

    def take() -> int:
        """Claim the job for a new worker whose lease runs out."""
        worker = enter(database, study)
        assert len(jobs.claim(database, study.id, worker, 1, 60)) == 1
        expire_leases(database)
        return worker

    for _ in range(MAX_LOSSES):
        returning, other = take(), take()
        jobs.heartbeat(database, returning, 60)
        jobs.release(database, jobs.heartbeat(database, other, 60).held)
        take()
    take()
    assert jobs.claim(database, study.id, enter(database, study), 1, 60) == []
    with database.begin() as connection:
        assert jobs.fail_lost(connection, study.id) == 1


def test_failure_keeps_the_end_of_any_text(database: Engine, study: studies.Study) -> None:
    worker = enter(database, study)
    add_trial(database, study, 0, [0, 1])
    [job, other] = jobs.claim(database, study.id, worker, 2, 60)
    assert jobs.fail(database, job.claim, "x" * 10_000 + "\0\ud800 it ended", "diverged")
    assert jobs.heartbeat(database, worker, 60).held == {other.claim}
    with database.connect() as connection:
        [trial] = trials.all_of(connection, study.id, "search")
    assert (trial.waiting, trial.running, trial.done, trial.failed) == (0, 1, 0, 1)
    assert trial.error_text is not None
    assert trial.error_text.endswith("it ended")
    assert len(trial.error_text) <= jobs.ERROR_CHARACTERS


def test_deleted_study_ends_its_workers_gently(database: Engine, study: studies.Study) -> None:
    worker = enter(database, study)
    add_trial(database, study, 0, [0])
    [job] = jobs.claim(database, study.id, worker, 1, 60)
    with database.begin() as connection:
        studies.delete(connection, study.id)
    assert studies.state(database, study.id) is None
    assert jobs.heartbeat(database, worker, 60) == Beat(study_state=None, held=frozenset())
    assert jobs.claim(database, study.id, worker, 1, 60) == []
    assert not jobs.fail(database, job.claim, "gone", "diverged")
    jobs.release(database, [job.claim])
    result = Entry(job_id=job.id, rung=4, value=1.0, extra={}, seconds=1.0)
    ledger.record(database, worker, [result], [job.id])
    roster.retire(database, worker)
    with database.connect() as connection:
        for table in ("trials", "jobs", "measurements", "workers"):
            assert connection.scalar(text(f"SELECT count(*) FROM densitune.{table}")) == 0


densities = st.dictionaries(
    st.sampled_from([3, 5, 7]), st.lists(st.floats(min_value=0, allow_infinity=False)), min_size=1
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(densities)
def test_densities_come_back_to_the_last_bit(
    database: Engine, study: studies.Study, densities: dict[int, list[float]]
) -> None:
    expected = {size: tuple(float(x) for x in den) for size, den in densities.items()}
    connection = database.connect()
    trials.add(
        connection,
        study.id,
        "search",
        number=0,
        optuna_number=0,
        role="candidate",
        label="",
        densities=densities,
        seeds=[],
        budget=1,
    )
    [trial] = trials.all_of(connection, study.id, "search")
    connection.close()  # rolls back
    assert trial.densities == expected
