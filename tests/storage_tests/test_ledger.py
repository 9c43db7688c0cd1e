"""The ledger: nothing recorded is lost, changed or doubled."""

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from support.queued import EXPIRE, expire_leases, lose_often, unruled

from storage import inspection, jobs, ledger, roster, studies, trials
from storage.failures import MAX_LOSSES
from storage.jobs import ClaimedJob
from storage.ledger import Entry, LedgerRow


def claim(
    database: Engine, study: studies.Study, seeds: Iterable[int]
) -> tuple[int, list[ClaimedJob]]:
    """A worker that holds jobs of a new trial 0."""
    with database.begin() as connection:
        trials.add(
            connection,
            study.id,
            "search",
            number=0,
            optuna_number=0,
            role="identity",
            label="identity",
            densities={3: [1.0]},
            seeds=list(seeds),
            budget=4,
            bars={1: 50.0, 2: 50.0},
        )
    worker = roster.register(database, study.id, "host", 1, "cpu", {})
    return worker, jobs.claim(database, study.id, worker, 100, 60)


def at(job: ClaimedJob, rung: int, value: float = 1.0) -> Entry:
    return Entry(job_id=job.id, rung=rung, value=value, extra={"loss": value}, seconds=0.5)


def values(database: Engine, study: studies.Study) -> list[tuple[int, int, float]]:
    with database.connect() as connection:
        rows = ledger.read(connection, study.id, "search")
    return [(row.seed, row.rung, row.value) for row in rows]


def trials_of(database: Engine, study: studies.Study) -> list[trials.TrialRow]:
    with database.connect() as connection:
        return trials.all_of(connection, study.id, "search")


def trial(database: Engine, study: studies.Study) -> trials.TrialRow:
    return trials_of(database, study)[0]


def lose(database: Engine, study: studies.Study) -> None:
    """Let the study's running jobs be lost so often that they are given up."""
    lose_often(database, MAX_LOSSES)
    expire_leases(database)
    with database.begin() as connection:
        assert jobs.fail_lost(connection, study.id) > 0


def test_measurements_come_back_in_order(database: Engine, study: studies.Study) -> None:
    worker, [one, two] = claim(database, study, [11, 12])
    ledger.record(database, worker, [at(two, 2, 20.5), at(one, 2, 10.5)], [])
    ledger.record(database, worker, [at(two, 4, 21.5), at(one, 4, 11.5)], [one.id])
    assert values(database, study) == [(11, 2, 10.5), (11, 4, 11.5), (12, 2, 20.5), (12, 4, 21.5)]
    assert (trial(database, study).running, trial(database, study).done) == (1, 1)
    assert jobs.heartbeat(database, worker, 60).held == {two.claim}


def test_repeated_record_changes_nothing(database: Engine, study: studies.Study) -> None:
    worker, [job] = claim(database, study, [1])
    ledger.record(database, worker, [at(job, 4, 1.0)], [job.id])
    with database.connect() as connection:
        before = connection.execute(text("SELECT * FROM densitune.jobs")).all()
    ledger.record(database, worker, [at(job, 4, 2.0)], [job.id])
    assert values(database, study) == [(1, 4, 1.0)]
    with database.connect() as connection:
        assert connection.execute(text("SELECT * FROM densitune.jobs")).all() == before


def test_late_result_counts_once_and_frees_the_new_holder(
    database: Engine, study: studies.Study
) -> None:
    old, [job] = claim(database, study, [1])
    with database.begin() as connection:
        connection.execute(text(EXPIRE))
    new = roster.register(database, study.id, "host", 2, "cpu", {})
    [again] = jobs.claim(database, study.id, new, 1, 60)
    ledger.record(database, old, [at(job, 4)], [job.id])
    assert trial(database, study).done == 1
    assert jobs.heartbeat(database, new, 60).held == frozenset()
    ledger.record(database, new, [at(again, 4)], [again.id])
    assert values(database, study) == [(1, 4, 1.0)]
    with database.connect() as connection:
        done = {row.id: row.jobs_done for row in roster.read(connection, study.id)}
    assert done == {old: 1, new: 0}


def test_a_cut_job_is_over_like_a_done_one(database: Engine, study: studies.Study) -> None:
    worker, [low, high, open_] = claim(database, study, [1, 2, 3])
    ledger.record(database, worker, [at(low, 2), at(high, 4)], [high.id], cut=[low.id])
    found = trial(database, study)
    assert (found.running, found.done, found.cut, found.failed) == (1, 1, 1, 0)
    assert values(database, study) == [(1, 2, 1.0), (2, 4, 1.0)]
    assert jobs.heartbeat(database, worker, 60).held == {open_.claim}
    with database.connect() as connection:
        assert [row.jobs_done for row in roster.read(connection, study.id)] == [2]


def test_the_first_end_of_a_job_stays(database: Engine, study: studies.Study) -> None:
    worker, [low, high] = claim(database, study, [1, 2])
    ledger.record(database, worker, [at(low, 2), at(high, 4)], [high.id], cut=[low.id])
    with database.connect() as connection:
        before = connection.execute(text("SELECT * FROM densitune.jobs ORDER BY id")).all()
    ledger.record(database, worker, [], [low.id], cut=[high.id])
    with database.connect() as connection:
        after = connection.execute(text("SELECT * FROM densitune.jobs ORDER BY id")).all()
    assert after == before


def test_late_result_of_a_job_given_up_is_kept_and_changes_nothing_else(
    database: Engine, study: studies.Study
) -> None:
    """What a trial came to must not depend on whether it was told before the result arrived."""
    worker, [one, two, fine] = claim(database, study, [1, 2, 3])
    ledger.record(database, worker, [at(fine, 4)], [fine.id])
    lose(database, study)
    ledger.record(database, worker, [at(one, 4), at(two, 2)], [one.id], cut=[two.id])
    found = trial(database, study)
    assert (found.done, found.cut, found.failed) == (1, 0, 2)
    assert values(database, study) == [(3, 4, 1.0)]
    assert inspection.late(database, study.id) == 2


def test_what_a_second_holder_measures_after_the_first_one_was_cut_is_kept_apart(
    database: Engine, study: studies.Study
) -> None:
    """Their devices differ: for the one the value lies below the bar, for the other above it."""
    first, [job] = claim(database, study, [1])
    expire_leases(database)
    second = roster.register(database, study.id, "host", 2, "cpu", {})
    assert len(jobs.claim(database, study.id, second, 1, 60)) == 1
    ledger.record(database, first, [at(job, 1, 19.9)], [], cut=[job.id])
    told = values(database, study)
    ledger.record(database, second, [at(job, 1, 20.1), at(job, 2, 25.0)], [])
    ledger.record(database, second, [at(job, 2, 25.0), at(job, 4, 30.0)], [job.id])
    assert values(database, study) == told == [(1, 1, 19.9)]
    with database.connect() as connection:
        stored = connection.execute(
            text("SELECT rung, value, late FROM densitune.measurements ORDER BY rung")
        ).all()
    assert [tuple(row) for row in stored] == [(1, 19.9, False), (2, 25.0, True), (4, 30.0, True)]
    assert (trial(database, study).cut, inspection.late(database, study.id)) == (1, 2)


@pytest.mark.parametrize("state", ["done", "cut"])
def test_measurements_and_ends_of_jobs_are_recorded_together(
    database: Engine, study: studies.Study, state: str
) -> None:
    worker, [one, other] = claim(database, study, [1, 2])
    with database.begin() as connection:
        connection.execute(text(f"ALTER TABLE densitune.jobs ADD CHECK (state != '{state}')"))
    with pytest.raises(IntegrityError):
        ledger.record(database, worker, [at(one, 4), at(other, 2)], [one.id], cut=[other.id])
    assert values(database, study) == []
    assert trial(database, study).running == 2


def test_jobs_that_are_gone_do_not_keep_others_back(database: Engine, study: studies.Study) -> None:
    worker, [job] = claim(database, study, [1])
    gone = Entry(job_id=job.id + 1, rung=4, value=1.0, extra={}, seconds=1.0)
    ledger.record(database, worker, [gone, at(job, 4)], [gone.job_id, job.id])
    assert values(database, study) == [(1, 4, 1.0)]
    assert trial(database, study).done == 1


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([5e-324, -0.0]), min_size=1, max_size=4))
def test_values_come_back_to_the_last_bit(
    database: Engine, study: studies.Study, numbers: list[float]
) -> None:
    if not trials_of(database, study):
        claim(database, study, [1])
    with database.begin() as connection:
        connection.execute(text("DELETE FROM densitune.measurements"))
        job_id = connection.scalars(text("SELECT id FROM densitune.jobs")).one()
    new = [
        Entry(job_id=job_id, rung=rung, value=x, extra={"x": abs(x)}, seconds=0.1)
        for rung, x in enumerate(numbers, 1)
    ]
    ledger.record(database, 1, new, [])
    with database.connect() as connection:
        rows = ledger.read(connection, study.id, "search")
    # Adding 0.0 turns -0.0 into 0.0, as PostgreSQL does with the number as it is sent.
    assert [repr(row.value) for row in rows] == [repr(x + 0.0) for x in numbers]
    for row, x in zip(rows, numbers, strict=True):
        assert row.extra["x"] is None if not math.isfinite(x) else float(row.extra["x"]) == abs(x)


def test_diverged_side_values_are_stored_as_null(database: Engine, study: studies.Study) -> None:
    worker, [job] = claim(database, study, [1])
    extra = {"loss": math.nan, "curve": (1.5, math.inf), "inner": {"x": -math.inf, "n": 3}}
    new = Entry(job_id=job.id, rung=1, value=1.5, extra=extra, seconds=0.1)
    ledger.record(database, worker, [new], [])
    with database.connect() as connection:
        [row] = ledger.read(connection, study.id, "search")
    assert row.extra == {"loss": None, "curve": [1.5, None], "inner": {"x": None, "n": 3}}


def test_the_rate_counts_jobs_finished_within_the_window(
    database: Engine, study: studies.Study
) -> None:
    with database.connect() as connection:
        assert ledger.jobs_per_hour(connection, study.id, "search") == 0.0
    worker, held = claim(database, study, range(4))
    for job in held[:2]:
        ledger.record(database, worker, [at(job, 4)], [job.id])
    ledger.record(database, worker, [at(held[2], 2)], [], cut=[held[2].id])
    with unruled(database) as connection:
        # Started two hours ago; one job was finished long before the window, two within.
        connection.execute(
            text("UPDATE densitune.jobs SET started_at = now() - interval '2 hours'")
        )
        connection.execute(
            text(
                "UPDATE densitune.jobs SET finished_at = now() - interval '1 hour' WHERE id = :id"
            ),
            {"id": held[0].id},
        )
        found = ledger.jobs_per_hour(connection, study.id, "search")
    assert found == pytest.approx(2 * 3600 / ledger.RECENT_SECONDS)


def test_the_test_split_s_values_are_read_once_the_study_has_its_verdicts_and_images_apart(
    database: Engine, study: studies.Study
) -> None:
    with database.begin() as connection:
        trials.add(
            connection, study.id, "confirm", number=0, role="identity", label="identity",
            densities={3: [1.0]}, seeds=[5, 6], budget=4,
        )  # fmt: skip
    worker = roster.register(database, study.id, "host", 1, "cpu", {})
    extra = {"ssim": 0.5, "images": {"of": "validation"}}
    sealed = {"value": 20.0, "test": "print", "images": {"of": "test"}}
    for job in jobs.claim(database, study.id, worker, 2, 60):
        found = replace(at(job, 4), extra={**extra, "sealed": sealed} if job.seed == 5 else extra)
        ledger.record(database, worker, [found], finished=[job.id])

    def read() -> tuple[list[LedgerRow], list[LedgerRow], list[LedgerRow]]:
        with database.connect() as connection:
            return (
                ledger.read(connection, study.id, "confirm"),
                ledger.with_images(connection, study.id, [0, 7]),
                ledger.unsealed(connection, study.id, [0, 7]),
            )

    plain, images, unsealed = read()
    assert [row.extra for row in plain] == [{"ssim": 0.5}] * 2
    assert [row.extra for row in images] == [extra] * 2
    assert unsealed == []
    with database.begin() as connection:
        studies.enter(connection, study.id, "decided")
    assert read() == (plain, images, [])
    with database.begin() as connection:
        studies.decide(connection, study.id, [], "decided")
    assert read()[:2] == (plain, images)
    [row] = read()[2]
    assert (row.trial, row.seed, row.rung, row.value) == (0, 5, 4, 20.0)
    assert row.extra == sealed
    with database.begin() as connection:
        studies.enter(connection, study.id, "confirm")  # as an extension does
    assert read() == (plain, images, [])
