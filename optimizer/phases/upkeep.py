"""What is done to Optuna's studies out of turn: they are deleted, cleared away and put in step.

Each of it under the proposer's role, as its steps are, and in one transaction with our tables.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from optimizer.evidence import ranking
from optimizer.phases import optuna_study, optuna_tables
from optimizer.phases.optuna_study import DensityStudy, Outcome
from storage import steps, studies, trials
from storage.studies import Study


def names(engine: Engine) -> set[str]:
    """Return the names of all Optuna studies, densitune's or not."""
    tables = optuna_tables.joined(engine)
    if tables is None:
        return set()
    with engine.connect() as connection:
        tables.join(connection)
        return optuna_study.names(tables)


def leftovers(engine: Engine) -> dict[str, int | None]:
    """Return Optuna studies of densitune's whose own study is gone: by name, the number of that.

    An older densitune left one if a study was deleted while an idle worker proposed for it.
    """
    tables = optuna_tables.joined(engine)
    if tables is None:
        return {}
    with steps.one_moment(engine) as connection:
        tables.join(connection)
        stored = studies.numbers(connection)
        return {
            name: owner
            for name, owner in optuna_study.owners(tables).items()
            if name not in stored or owner not in (None, stored[name])
        }


def clear(engine: Engine, name: str, owner: int | None) -> None:
    """Delete such an Optuna study, unless a study of ours has come to stand before it."""
    tables = optuna_tables.joined(engine)
    if tables is None:
        return
    with steps.awaited(engine, owner or 0) as connection:
        tables.join(connection)
        gone = owner if owner is not None else studies.numbers(connection).get(name)
        if gone is None or studies.read(connection, gone) is None:
            _delete(tables, name, owner)


def delete(engine: Engine, study: Study) -> None:
    """Delete a study with everything that belongs to it, once nobody is at a step of it."""
    tables = optuna_tables.joined(engine)
    with steps.awaited(engine, study.id) as connection:
        if tables is not None:
            tables.join(connection)
            _delete(tables, study.name, study.id)
        studies.delete(connection, study.id)


def tell(
    engine: Engine,
    study_id: int,
    config: StudyConfig,
    optuna_number: int,
    outcome: Outcome,
    differences: Mapping[int, float],
) -> None:
    """Tell Optuna of a trial that has ended."""
    with _behind(engine, study_id, config) as (_, behind):
        behind.tell(optuna_number, outcome, differences)


def fail_strays(engine: Engine, study_id: int, config: StudyConfig) -> None:
    """Fail what runs or waits in an Optuna study and is none of our trials."""
    with _behind(engine, study_id, config) as (connection, behind):
        behind.fail_strays(trials.optuna_numbers(connection, study_id))


@contextmanager
def _behind(
    engine: Engine, study_id: int, config: StudyConfig
) -> Iterator[tuple[Connection, DensityStudy]]:
    tables = optuna_tables.joined(engine)
    with steps.awaited(engine, study_id) as connection:
        found = None
        if tables is not None:
            tables.join(connection)
            study = studies.read(connection, study_id)
            by = "metric" if study is None else ranking.of(study)
            found = optuna_study.find(tables, config, study_id, by)
        if found is None:
            raise StudyFailedError(f"there is no Optuna study {config.name}")
        yield connection, found


def _delete(tables: optuna_tables.Joined, name: str, owner: int | None) -> None:
    owners = optuna_study.owners(tables)
    if name in owners and owners[name] in (None, owner):
        optuna_study.delete(tables, name)
