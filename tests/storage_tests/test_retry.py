"""Trying again: for what passes by itself, ever more slowly, and not for ever."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, TimeoutError

from storage import database as storage_database
from storage import retry
from storage.errors import StorageUnreachableError, StorageUrlError

AWAY = OperationalError("", {}, Exception("gone"))


def raised(engine: Engine, *statements: str) -> BaseException:
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
    except DBAPIError as error:
        return error
    raise AssertionError("no statement failed")


def with_code(engine: Engine, code: str) -> BaseException:
    return raised(engine, f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$")


@pytest.mark.parametrize(
    "code",
    ["57P01", "57P02", "57P03", "57014", "53300", "53100", "53200", "08006", "08P01", "40001",
     "40P01", "55P03", "25006", "25P03"],
)  # fmt: skip
def test_a_server_that_is_away_or_overloaded_passes(database: Engine, code: str) -> None:
    assert retry.is_passing(with_code(database, code))


@pytest.mark.parametrize("code", ["23505", "23503", "42501", "42P01", "22003", "25001", "P0001"])
def test_what_is_wrong_with_a_statement_stays_wrong(database: Engine, code: str) -> None:
    assert not retry.is_passing(with_code(database, code))


@pytest.mark.parametrize(
    ("code", "blamed"),
    [("42501", True), ("42P01", True), ("28000", True), ("3F000", True), ("55000", True),
     ("58030", True), ("XX000", True), ("22003", False), ("22P05", False), ("23514", False),
     ("P0001", False), ("54000", False)],
)  # fmt: skip
def test_a_statement_is_not_blamed_for_what_meets_every_other_too(
    database: Engine, code: str, blamed: bool
) -> None:
    error = with_code(database, code)
    assert not retry.is_passing(error)
    assert retry.is_of_the_database(error) is blamed


def test_real_outages_pass(database: Engine, database_url: str) -> None:
    nobody = create_engine("postgresql+psycopg2://somebody@127.0.0.1:1/none")
    assert retry.is_passing(raised(nobody, "SELECT 1"))
    ended = raised(database, "SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 1")
    assert retry.is_passing(ended)
    slow = raised(database, "SET LOCAL statement_timeout = 10", "SELECT pg_sleep(9)")
    assert retry.is_passing(slow)
    other = storage_database.connect(database_url)
    with other.begin() as connection:
        connection.execute(text("LOCK densitune.jobs"))
        locked = raised(database, "SET LOCAL lock_timeout = 10", "SELECT FROM densitune.jobs")
    other.dispose()
    assert retry.is_passing(locked)


def test_a_cause_counts_and_a_full_pool_too() -> None:
    with pytest.raises(StorageUnreachableError) as refused:
        storage_database.connect("postgresql://somebody@127.0.0.1:1/none")
    assert retry.is_passing(refused.value)
    with pytest.raises(StorageInternalError) as wrapped:
        raise StorageInternalError("in Optuna") from AWAY
    assert retry.is_passing(wrapped.value)
    assert retry.is_passing(TimeoutError("QueuePool limit"))
    assert not retry.is_passing(StorageInternalError("in Optuna"))
    assert not retry.is_passing(StorageUrlError("no URL"))
    assert not retry.is_passing(ValueError("57P01"))
    assert not retry.is_passing(None)


@given(st.randoms(use_true_random=False))
def test_waits_double_up_to_a_limit_and_differ(lot: random.Random) -> None:
    pauses = retry.waits(lot.uniform)
    found = [next(pauses) for _ in range(12)]
    ceilings = [1.0, 2.0, 4.0, 8.0, 16.0] + 7 * [20.0]
    assert all(
        ceiling / 2 <= pause <= ceiling for pause, ceiling in zip(found, ceilings, strict=True)
    )


def test_workers_do_not_come_back_together() -> None:
    one, two = retry.waits(random.Random(1).uniform), retry.waits(random.Random(2).uniform)
    assert all(next(one) != next(two) for _ in range(10))


class Clock:
    """Time that passes only where somebody pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def failing(times: float, error: Exception) -> Callable[[], str]:
    left = times

    def attempt() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error
        return "there"

    return attempt


def test_the_result_of_the_first_attempt_that_succeeds_is_returned() -> None:
    clock = Clock()
    found = retry.persist(failing(5, AWAY), 3600, pause=clock.pause, clock=clock)
    assert found == "there"
    assert 15.5 <= clock.now <= 31  # halves and wholes of 1 + 2 + 4 + 8 + 16


@given(st.floats(0, 500), st.randoms(use_true_random=False))
def test_the_last_error_comes_through_before_the_limit(limit: float, lot: random.Random) -> None:
    clock = Clock()
    with pytest.raises(OperationalError) as found:
        retry.persist(
            failing(float("inf"), AWAY), limit, pause=clock.pause, clock=clock, uniform=lot.uniform
        )
    assert found.value is AWAY
    assert limit - retry.LONGEST_WAIT <= clock.now <= limit


def test_an_error_that_does_not_pass_comes_through_at_once() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="wrong"):
        retry.persist(failing(1, ValueError("wrong")), 3600, pause=clock.pause, clock=clock)
    assert clock.now == 0


def test_an_interrupted_pause_ends_it() -> None:
    asked: list[float] = []

    def interrupted(seconds: float) -> bool:
        asked.append(seconds)
        return True

    with pytest.raises(OperationalError):
        retry.persist(failing(9, AWAY), 3600, pause=interrupted)
    assert len(asked) == 1


def test_who_waits_patiently_learns_what_to_do_when_the_storage_stays_away() -> None:
    there = retry.patiently(failing(1, AWAY), 60, "start again", pause=lambda _: False)
    assert there == "there"
    with pytest.raises(ValueError, match="wrong"):
        retry.patiently(failing(1, ValueError("wrong")), 60, "start again")
    with pytest.raises(StorageUnreachableError) as found:
        retry.patiently(failing(9, AWAY), 60, "start again", pause=lambda _: True)
    reason = retry.first_line(AWAY)
    assert str(found.value) == f"PostgreSQL was away for 60 s: {reason}; start again"


def test_what_the_driver_says_is_told_and_not_what_wraps_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrapped = StorageInternalError("invalid data")
    wrapped.__cause__ = AWAY
    assert retry.persist(failing(1, wrapped), 60, pause=lambda _: False) == "there"
    with pytest.raises(StorageUnreachableError) as found:
        retry.patiently(failing(9, wrapped), 60, "start again", pause=lambda _: True)
    assert "invalid data" not in f"{caplog.text} {found.value}"


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("a\nb"), "a"), (ValueError(), "ValueError")]
)
def test_the_first_line_of_an_error_is_its_kind_where_it_says_nothing(
    error: Exception, line: str
) -> None:
    assert retry.first_line(error) == line


def test_every_wait_is_logged_in_one_line_without_the_statement(
    database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    statement = "SELECT pg_terminate_backend(pg_backend_pid()), 'a secret'"

    def attempt() -> None:
        with database.connect() as connection:
            connection.execute(text(statement))

    with pytest.raises(DBAPIError):
        retry.persist(attempt, 3600, pause=lambda _: True)
    [line] = caplog.messages
    assert "trying again in" in line
    assert len(line.splitlines()) == 1
    assert "a secret" not in line
