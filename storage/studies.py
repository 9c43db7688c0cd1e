"""Studies by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Engine, Row, select, text, update
from sqlalchemy.dialects.postgresql import insert

from storage import tables
from storage.roster import GRACE_SECONDS

State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it is stored."""

    id: int
    name: str
    config: dict[str, Any]
    data_fingerprint: str
    provenance: dict[str, Any]
    state: State
    failure: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class StudyOverview:
    """A study in a list: its state, its trials by state, its workers that are alive."""

    name: str
    state: State
    created_at: datetime
    trials: int
    running: int
    complete: int
    pruned: int
    failed: int
    workers: int


def create(
    engine: Engine,
    name: str,
    config: Mapping[str, Any],
    data_fingerprint: str,
    provenance: Mapping[str, Any],
) -> tuple[Study, bool]:
    """Store a new study; return the one of this name, and whether it is the new one.

    Of several processes that create the same name at once, exactly one gets True.
    """
    new = insert(tables.studies).values(
        name=name,
        config=dict(config),
        data_fingerprint=data_fingerprint,
        provenance=dict(provenance),
    )
    with engine.begin() as connection:
        row = connection.execute(
            new.on_conflict_do_nothing().returning(tables.studies)
        ).one_or_none()
        if row is not None:
            return _study(row), True
        return _study(
            connection.execute(select(tables.studies).where(tables.studies.c.name == name)).one()
        ), False


def find(engine: Engine, name: str) -> Study | None:
    """Return the study of this name, or None."""
    with engine.connect() as connection:
        row = connection.execute(
            select(tables.studies).where(tables.studies.c.name == name)
        ).one_or_none()
    return None if row is None else _study(row)


def overview(engine: Engine) -> list[StudyOverview]:
    """Return all studies, oldest first."""
    query = text("""
        SELECT name, state, created_at, counted.*,
               (SELECT count(*) FROM densitune.workers
                WHERE study_id = studies.id AND stopped_at IS NULL
                  AND seen_at > now() - make_interval(secs => :grace)) AS workers
        FROM densitune.studies AS studies, LATERAL (
            SELECT count(*) AS trials,
                   count(*) FILTER (WHERE trials.state = 'running') AS running,
                   count(*) FILTER (WHERE trials.state = 'complete') AS complete,
                   count(*) FILTER (WHERE trials.state = 'pruned') AS pruned,
                   count(*) FILTER (WHERE trials.state = 'failed') AS failed
            FROM densitune.trials AS trials WHERE study_id = studies.id
        ) AS counted
        ORDER BY studies.id
    """)
    with engine.connect() as connection:
        rows = connection.execute(query, {"grace": GRACE_SECONDS})
        return [StudyOverview(**row._mapping) for row in rows]


def state(engine: Engine, study_id: int) -> State | None:
    """Return the study's state, or None if it has been deleted."""
    with engine.connect() as connection:
        return connection.scalar(
            select(tables.studies.c.state).where(tables.studies.c.id == study_id)
        )


def set_state(engine: Engine, study_id: int, state: State, failure: str | None = None) -> None:
    """Set the study's state, and why it cannot go on; `finished` stamps the time."""
    finished_at = text("now()") if state == "finished" else None
    with engine.begin() as connection:
        connection.execute(
            update(tables.studies)
            .where(tables.studies.c.id == study_id)
            .values(state=state, failure=failure, finished_at=finished_at)
        )


def delete(engine: Engine, study_id: int) -> None:
    """Delete the study with everything that belongs to it in these tables (not in Optuna's)."""
    with engine.begin() as connection:
        # However large it is; and the proposer may have to end its transaction first.
        connection.execute(text("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '1min'"))
        # In the order in which everybody locks jobs: no deadlock with a worker that is recording.
        connection.execute(
            text("SELECT 1 FROM densitune.jobs WHERE study_id = :study ORDER BY id FOR UPDATE"),
            {"study": study_id},
        )
        connection.execute(tables.studies.delete().where(tables.studies.c.id == study_id))


def _study(row: Row[Any]) -> Study:
    return Study(**row._mapping)
