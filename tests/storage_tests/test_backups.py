"""PostgreSQL's own backups bring a study back as it was, and it goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, text
from support import searches

from optimizer.config.study_file import StudyConfig
from optimizer.phases.proposer import Proposer
from storage import jobs, programs, studies
from storage.database import connect, prepare

TABLES = ("studies", "trials", "workers", "jobs", "measurements", "failures")


@pytest.fixture
def begun(database: Engine) -> StudyConfig:
    """A study in the middle of its search: jobs that are done, that wait and that are held."""
    given = searches.make_config("kept")
    study_id = searches.create(database, given)
    proposer, worker = Proposer(database, study_id, given), searches.enlist(database, study_id)
    proposer.advance()
    for job in jobs.claim(database, study_id, worker, 3, 60)[:2]:
        searches.finish(database, worker, job)
    return given


@pytest.fixture
def backup(begun: StudyConfig, database_url: str, tmp_path: Path) -> str:
    """The file of a backup."""
    file = str(tmp_path / "backup")
    assert tool("pg_dump", database_url, "--format=custom", "--file", file) == ""
    return file


@pytest.fixture
def other(empty_url: str) -> Iterator[Engine]:
    """Another database, still empty."""
    engine = connect(empty_url)
    yield engine
    engine.dispose()


def tool(program: str, url: str, *arguments: str) -> str:
    """Run a program of PostgreSQL's on a database; return its complaints."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return programs.run(program, "--dbname", plain, *arguments, owner=None, seconds=60).stderr


def rows(engine: Engine) -> list[list[Any]]:
    with engine.connect() as connection:
        return [
            [tuple(row) for row in connection.execute(text(f"TABLE densitune.{table}"))]
            for table in TABLES
        ]


def test_a_study_goes_on_in_a_database_that_was_restored_from_a_backup(
    database: Engine, empty_url: str, other: Engine, backup: str, begun: StudyConfig
) -> None:
    assert tool("pg_restore", empty_url, backup) == ""
    assert rows(other) == rows(database)
    ended = []
    for engine in (database, other):
        study = studies.find(engine, begun.name)
        assert study is not None
        proposer, worker = Proposer(engine, study.id, begun), searches.enlist(engine, study.id)
        jobs.release(engine, [(3, 1)])
        while studies.state(engine, study.id) == "running":
            proposer.advance()
            for job in jobs.claim(engine, study.id, worker, 8, 60):
                searches.finish(engine, worker, job)
        ended.append(searches.contents(engine, study.id))
    assert ended[0] == ended[1]
    assert len(ended[0][0]) == begun.search.trials


def test_data_alone_are_restored_past_the_triggers(
    database: Engine, empty_url: str, other: Engine, backup: str
) -> None:
    """That the schema's revision is there already is all that is said."""
    prepare(other)
    alone = ("--data-only", "--schema=densitune", backup)
    assert "a job begins as one that waits" in tool("pg_restore", empty_url, *alone)
    with other.begin() as connection:
        connection.execute(text("TRUNCATE densitune.studies CASCADE"))
    said = tool("pg_restore", empty_url, "--disable-triggers", *alone)
    assert said.count("error:") == said.count('"alembic_version"') == 1
    assert rows(other) == rows(database)
