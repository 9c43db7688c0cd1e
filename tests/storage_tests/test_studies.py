"""Studies by name, and their workers."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from storage import roster, studies, trials
from storage.database import connect
from storage.states import TrialState
from storage.studies import StudyOverview


def test_study_comes_back_as_it_was_stored(database: Engine) -> None:
    config = {"name": "a", "density": {"low": 0.05}, "kernel_size": [3, 5]}
    study, created = studies.create(database, "a", config, "sha", {"torch": "2.11"}, "search")
    assert created
    assert (study.config, study.data_fingerprint) == (config, "sha")
    assert (study.provenance, study.state, study.failure) == ({"torch": "2.11"}, "running", None)
    assert study.created_at.tzinfo is not None
    assert studies.find(database, "a") == study
    assert studies.find(database, "b") is None


def test_name_is_created_once(database: Engine, database_url: str) -> None:
    engines = [connect(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda e: studies.create(e, "a", {"by": id(e)}, "", {}, "search"), engines)
        )
    assert sorted(created for _, created in results) == [False, False, False, True]
    assert len({study.id for study, _ in results}) == 1
    for engine in engines:
        engine.dispose()


def test_state_changes_are_seen(database: Engine, study: studies.Study) -> None:
    with database.begin() as connection:
        studies.halt(connection, study.id, "identity is at chance level")
    found = studies.find(database, study.name)
    assert found is not None
    assert (found.state, found.failure) == ("stopped", "identity is at chance level")
    assert found.finished_at is None
    studies.go_on(database, study.id, None, force=False)
    with database.begin() as connection:
        studies.finish(connection, study.id)
    found = studies.find(database, study.name)
    assert found is not None
    assert (found.state, found.failure) == ("finished", None)
    assert found.finished_at is not None


def test_only_a_running_study_can_be_stopped(database: Engine, study: studies.Study) -> None:
    """Its last step may commit between a look at its state and the stop."""
    assert studies.stop(database, study.id)
    assert not studies.stop(database, study.id)
    studies.go_on(database, study.id, None, force=False)
    with database.begin() as connection:
        studies.finish(connection, study.id)
    assert not studies.stop(database, study.id)
    assert studies.state(database, study.id) == "finished"
    with pytest.raises(IntegrityError, match="a finished study goes on with its confirmation"):
        unfinish(database)
    studies.reopen(database, study.id, study.config, {})
    assert studies.state(database, study.id) == "stopped"


def unfinish(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(
            text("UPDATE densitune.studies SET state = 'running', finished_at = NULL")
        )


def test_trials_of_a_study_are_unique(database: Engine, study: studies.Study) -> None:
    def add(number: int, optuna_number: int) -> None:
        with database.begin() as connection:
            trials.add(
                connection,
                study.id,
                "search",
                number=number,
                optuna_number=optuna_number,
                role="published",
                label="",
                densities={},
                seeds=[1],
                budget=1,
            )

    add(0, 5)
    add(1, 6)
    for number, optuna_number in [(0, 7), (2, 5)]:
        with pytest.raises(IntegrityError):
            add(number, optuna_number)
    with database.connect() as connection:
        assert [trial.number for trial in trials.all_of(connection, study.id, "search")] == [0, 1]


def test_overview_counts_trials_and_live_workers(database: Engine, study: studies.Study) -> None:
    other, _ = studies.create(database, "empty", {}, "", {}, "search")
    with database.begin() as connection:
        states: list[TrialState] = ["running", "complete", "complete", "pruned", "failed"]
        for number, state in enumerate(states):
            trials.add(
                connection,
                study.id,
                "search",
                number=number,
                optuna_number=number,
                role="candidate",
                label="",
                densities={3: [1]},
                seeds=[1, 2],
                budget=1,
            )
            trials.finish(connection, study.id, "search", number, state)
    live, silent, retired = (
        roster.register(database, study.id, "host", pid, "cpu", {}) for pid in range(3)
    )
    roster.retire(database, retired)
    with database.begin() as connection:
        connection.execute(
            text("UPDATE densitune.workers SET seen_at = now() - interval '1 day' WHERE id = :id"),
            {"id": silent},
        )
        workers = roster.read(connection, study.id)
    assert [(row.id, row.live) for row in workers] == [
        (live, True),
        (silent, False),
        (retired, False),
    ]
    assert studies.overview(database) == [
        StudyOverview(
            name=study.name,
            state="running",
            phase="search",
            failure=None,
            created_at=study.created_at,
            verdicts=None,
            asked_for=None,
            trials=5,
            running=1,
            complete=2,
            pruned=1,
            failed=1,
            workers=1,
        ),
        StudyOverview(
            name="empty",
            state="running",
            phase="search",
            failure=None,
            created_at=other.created_at,
            verdicts=None,
            asked_for=None,
            trials=0,
            running=0,
            complete=0,
            pruned=0,
            failed=0,
            workers=0,
        ),
    ]


def test_deleting_leaves_other_studies_alone(database: Engine, study: studies.Study) -> None:
    kept, _ = studies.create(database, "kept", {}, "", {}, "search")
    with database.begin() as connection:
        for owner in (study, kept):
            trials.add(
                connection,
                owner.id,
                "search",
                number=0,
                optuna_number=0,
                role="identity",
                label="",
                densities={3: [1.0]},
                seeds=[1],
                budget=1,
            )
    roster.register(database, study.id, "host", 1, "cpu", {})
    with database.begin() as connection:
        studies.delete(connection, study.id)
    assert studies.find(database, study.name) is None
    with database.connect() as connection:
        left = connection.execute(text("SELECT study_id, state FROM densitune.jobs")).all()
    assert left == [(kept.id, "waiting")]


def test_worker_of_no_study_cannot_register(database: Engine, study: studies.Study) -> None:
    with pytest.raises(IntegrityError):
        roster.register(database, study.id + 1, "host", 1, "cpu", {})
