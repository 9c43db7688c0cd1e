"""The desk: what every phase does with trials and jobs in the same way."""

import pytest
from sqlalchemy import Connection, Engine
from support.queued import enter, expire_leases
from support.synthetic import configured

from optimizer.arms import Arm, identity
from optimizer.phases.desk import Desk
from storage import failures, jobs, roster, studies
from storage.states import Phase
from storage.studies import Study


def desk_at(connection: Connection, study: Study, phase: Phase) -> Desk:
    studies.enter(connection, study.id, phase)
    now = studies.read(connection, study.id)
    assert now is not None
    return Desk(connection, now, configured())


@pytest.mark.parametrize("phase", ["calibrate", "search", "confirm", "decided"])
def test_a_trial_and_its_further_seeds_are_queued_in_the_phase_that_the_study_is_at(
    database: Engine, study: Study, phase: Phase
) -> None:
    with database.begin() as connection:
        desk = desk_at(connection, study, phase)
        desk.add(0, "identity", "identity", identity([5], None), seeds=[1], budget=2)
        [trial] = desk.trials(phase)
        desk.train_on(trial, [2, 3], budget=2)
        assert [found.jobs for found in desk.trials(phase)] == [3]
        desk.close(trial)
        assert [found.state for found in desk.trials(phase)] == ["complete"]
    worker = roster.register(database, study.id, "host", 1, "cpu", {})
    claimed = jobs.claim(database, study.id, worker, 9, 60)
    assert {job.phase for job in claimed} == {phase}


def test_who_waits_gives_up_the_jobs_that_were_lost_too_often(
    database: Engine, study: Study
) -> None:
    with database.begin() as connection:
        desk = desk_at(connection, study, "confirm")
        desk.add(0, "finalist", "", Arm({5: (0.5, 0.5)}, 0.1), seeds=[1], budget=2)
        assert desk.waits_for(desk.trials("confirm"))
    for pid in range(failures.MAX_LOSSES + 1):
        assert jobs.claim(database, study.id, enter(database, study, pid), 1, 60)
        expire_leases(database)
    with database.begin() as connection:
        desk = desk_at(connection, study, "confirm")
        jobs_lost = desk.trials("confirm")
        assert desk.waits_for(jobs_lost)
        [trial] = desk.trials("confirm")
        assert (trial.failed, trial.failure) == (1, failures.POLICIES["lost"].said)
        assert not desk.waits_for([trial])
        desk.close(trial)
        [closed] = desk.trials("confirm")
        assert (closed.state, closed.reason) == ("failed", trial.error_text)
