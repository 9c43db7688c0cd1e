"""Creating a study: what is stored for good, and what counts as another study."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg2.errors import DeadlockDetected
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from support.queued import set_state
from support.synthetic import configured
from support.waiting import wait_for

from optimizer import snapshot
from optimizer.cli import look, session
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from optimizer.phases import upkeep
from storage import retry, studies
from storage.studies import Study


def create(database: Engine, given: StudyConfig, precision: str = "bfloat16") -> Study:
    return session.create(
        database,
        given,
        "photographs",
        "fingerprint",
        precision,
        facts=lambda: {
            "floors": {"noisy input": 20.25, "linear 3 x 3 filter": 25.5},
            "uniform_is_identity": True,
        },
    )


def older(given: StudyConfig, **sections: list[str]) -> dict[str, Any]:
    """The document of a study from before these keys existed."""
    document = given.document()
    for section, keys in sections.items():
        for key in keys:
            del document[section][key]
    return document


def test_a_new_study_keeps_its_precision_whoever_comes_later(database: Engine) -> None:
    created = create(database, configured())
    assert created.provenance["floors"] == {"noisy input": 20.25, "linear 3 x 3 filter": 25.5}
    assert created.provenance["uniform_is_identity"] is True
    assert snapshot.precision(created) == "bfloat16"
    assert create(database, configured(), precision="full") == created


def test_a_study_from_before_a_key_existed_is_the_one_with_its_default(database: Engine) -> None:
    given = configured()
    document = older(given, search=["keep"], training=["precision"])
    del document["confirm"]
    old, _ = studies.create(
        database, given.name, document, "fingerprint", {"source": "", "floor": 1}, "search"
    )
    assert create(database, given) == old
    assert snapshot.precision(old) == "full"
    now = snapshot.of(database, given.name)
    assert now.config == given
    assert (now.floors, now.study.phase, now.lr) == ({"noisy input": 1.0}, "search", 0.01)


def test_a_study_begins_with_a_calibration_unless_its_learning_rate_is_given(
    database: Engine,
) -> None:
    assert create(database, configured()).phase == "search"
    automatic = configured(name="automatic", training={"lr": "auto"})
    assert create(database, automatic).phase == "calibrate"


def test_another_config_under_the_same_name_is_refused(database: Engine) -> None:
    create(database, configured())
    for change, words in (
        ({"search": {"keep": 0.5}}, "search.keep: 0.25 -> 0.5"),
        ({"training": {"precision": "full"}}, "training.precision: auto -> full"),
    ):
        with pytest.raises(UsageError) as caught:
            create(database, configured(**change))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_only_a_study_that_cannot_go_on_is_begun_again(database: Engine) -> None:
    given = configured()
    session.clear(database, given.name)  # nothing to clear
    study = create(database, given)
    for state in ("running", "stopped", "finished"):
        set_state(database, study.id, state)
        with pytest.raises(UsageError, match=f"is {state} and can go on.*densitune delete"):
            session.clear(database, given.name)
    set_state(database, study.id, "stopped", "Identity is weak.")
    session.clear(database, given.name)
    assert studies.find(database, given.name) is None
    longer = configured(training={"budget": 40})
    assert create(database, longer).config["training"]["budget"] == 40


def test_a_stop_that_meets_the_last_step_says_that_the_study_is_finished(
    database: Engine, database_url: str
) -> None:
    """The step commits after the stop has looked, and before it writes."""
    study = create(database, configured())
    with ThreadPoolExecutor(1) as pool, database.connect() as connection:
        studies.finish(connection, study.id)
        stopping = pool.submit(look.stop, study.name, database_url)
        wait_for(lambda: connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))
        connection.commit()
        with pytest.raises(UsageError, match="is finished; only a running study can be stopped"):
            stopping.result()
    assert studies.state(database, study.id) == "finished"


def test_a_deletion_that_a_lock_keeps_from_its_end_is_tried_again(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends one of two that wait for each other, and it may be the deletion."""
    study = create(database, configured())
    with database.begin() as connection:
        studies.finish(connection, study.id)
    attempts, delete = list[str](), upkeep.delete

    def deadlocked(engine: Engine, study: Study) -> None:
        found = studies.state(engine, study.id)
        attempts.append(str(found))
        if len(attempts) == 1:
            raise OperationalError("", {}, DeadlockDetected())
        delete(engine, study)

    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(upkeep, "delete", deadlocked)
    session.delete(database, study)
    assert attempts == ["finished", "finished"]
    assert studies.find(database, study.name) is None
