"""Optuna's studies come and go with densitune's, whoever is at work meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Engine, text
from support.searches import create, make_config
from support.synthetic import configured

from optimizer.cli import doctor, session
from optimizer.errors import StudyFailedError, UsageError
from optimizer.phases import optuna_tables, upkeep
from optimizer.phases.proposer import Proposer
from storage import database as db
from storage import steps, studies
from storage.studies import Study

GIVEN = make_config("name")


def launched(engine: Engine) -> tuple[Study, Proposer]:
    """The study and a proposer that has begun with it."""
    proposer = Proposer(engine, create(engine, GIVEN), GIVEN)
    proposer.advance()
    study = studies.find(engine, GIVEN.name)
    assert study is not None
    return study, proposer


def test_nothing_is_left_of_a_study_deleted_while_workers_propose(database: Engine) -> None:
    study, proposer = launched(database)
    idle = Proposer(database, study.id, GIVEN, creates=False)
    assert upkeep.names(database) == {GIVEN.name}
    upkeep.delete(database, study)
    for anybody in (idle, proposer, Proposer(database, study.id, GIVEN)):
        anybody.advance()
    assert upkeep.names(database) == set()
    assert upkeep.leftovers(database) == {}
    again, _ = launched(database)
    assert again.id != study.id


def test_a_study_is_deleted_once_nobody_is_at_a_step(database: Engine, database_url: str) -> None:
    study, _ = launched(database)
    other = db.connect(database_url)
    deleting = threading.Thread(target=upkeep.delete, args=[other, study])
    with steps.begun(database, study.id) as connection:
        assert connection is not None
        deleting.start()
        waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while deleting.is_alive() and not connection.scalar(waits):
            pass
        assert deleting.is_alive()
        assert studies.read(connection, study.id) is not None
    deleting.join()
    assert studies.find(database, GIVEN.name) is None
    other.dispose()


def test_who_may_not_create_the_optuna_study_leaves_that_to_others(database: Engine) -> None:
    idle = Proposer(database, create(database, GIVEN), GIVEN, creates=False)
    idle.advance()
    assert not optuna_tables.are_there(database)
    optuna_tables.make(database)
    idle.advance()
    assert upkeep.names(database) == set()


@pytest.mark.parametrize("marked", [True, False])
def test_what_is_left_of_a_deleted_study_is_found_and_removed(
    database: Engine, marked: bool, tmp_path: Path
) -> None:
    """Optuna studies of older versions have no number of ours; others have no metric of ours."""
    study, _ = launched(database)
    kept = configured(name="kept", training={"lr": 0.1})
    Proposer(database, create(database, kept), kept).advance()
    storage = optuna_tables.alone(database)
    optuna.create_study(storage=storage, study_name="somebody's")
    with database.begin() as connection:
        studies.delete(connection, study.id)
        if not marked:
            connection.execute(text("DELETE FROM public.study_user_attributes"))
    assert upkeep.leftovers(database) == {GIVEN.name: study.id if marked else None}
    with pytest.raises(UsageError, match="densitune doctor --fix"):
        stored(database)
    mended, failed = doctor.mend(database, tmp_path, None)
    assert (["was deleted" in one.what for one in mended], failed) == ([True], [])
    assert upkeep.names(database) == {"kept", "somebody's"}
    assert stored(database).name == GIVEN.name


def test_a_study_whose_optuna_study_is_gone_says_so(database: Engine) -> None:
    study, proposer = launched(database)
    optuna.delete_study(study_name=GIVEN.name, storage=optuna_tables.alone(database))
    for anybody in (proposer, Proposer(database, study.id, GIVEN)):
        with pytest.raises(StudyFailedError, match="deleted with another tool"):
            anybody.advance()


def stored(engine: Engine, waiting: threading.Barrier | None = None) -> Study:
    """Create the study as `launch` does."""

    def facts() -> dict[str, Any]:
        if waiting is not None:
            waiting.wait(30)
        return {"floors": {}, "uniform_is_identity": False}

    return session.create(
        engine,
        GIVEN,
        "photographs",
        "fingerprint",
        precision="full",
        facts=facts,
    )


def test_of_two_that_launch_the_same_at_once_both_run_it(
    database: Engine, database_url: str
) -> None:
    other = db.connect(database_url)
    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda engine: stored(engine, both), (database, other))
    assert one == two
    Proposer(database, one.id, GIVEN).advance()
    assert stored(other) == one
    other.dispose()
