"""Databases of a server that live as long as a test."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, make_url, text


@contextmanager
def temporary(postgres: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    administer(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield within(postgres, name)
    administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def within(postgres: str, database: str) -> str:
    return make_url(postgres).set(database=database).render_as_string(hide_password=False)


def administer(postgres: str, *statements: str) -> None:
    engine = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()
