"""Proposers die at any moment, and the next one goes on as if nothing had happened."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine, event, make_url, text
from support.databases import temporary
from support.searches import contents, create, enlist, make_config

from optimizer import design
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.phases import optuna_tables
from optimizer.phases.proposer import Proposer
from storage import jobs, ledger, retry, studies
from storage.database import alone, connect
from storage.ledger import Entry


def made(sampler: str, trial_count: int) -> StudyConfig:
    """A study of two values per density, of which one trial is open at a time."""
    plain = make_config("failover", keep=1).document()
    search = {**plain["search"], "sampler": sampler, "in_flight": 1, "trials": trial_count}
    return study_file.parse(
        {**plain, "kernel_size": 5, "search": {**search, "seeds": 1, "rungs": []}}, origin="test"
    )


def train(engine: Engine, study_id: int, fails: int = -1) -> None:
    """Train all that is queued; one trial fails."""
    worker = enlist(engine, study_id)
    for job in jobs.claim(engine, study_id, worker, 100, 60):
        if job.trial == fails:
            jobs.fail(engine, job.claim, "loss nan", "diverged")
            continue
        outer, inner = job.densities[5]
        value = 30 - (outer - 0.4) ** 2 - (inner - 0.9) ** 2 + 0.01 * job.seed
        found = Entry(job_id=job.id, rung=4, value=value, extra={}, seconds=1.0)
        ledger.record(engine, worker, [found], finished=[job.id])


def told(engine: Engine, name: str) -> list[tuple[Any, ...]]:
    """All that Optuna holds and shows."""
    plain = optuna.load_study(study_name=name, storage=optuna_tables.alone(engine))
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs)
        for t in plain.trials
    ]


OPTUNA_CALLS = sorted(
    name for name in optuna.storages.BaseStorage.__abstractmethods__ if not name.startswith("_")
)
OPTUNA_WRITES = [name for name in OPTUNA_CALLS if not name.startswith("get_")]


@contextmanager
def struck_at_call(number: int, names: list[str], strike: Callable[[], None]) -> Iterator[set[str]]:
    """Strike before the n-th of these calls of Optuna's storage or of our commits; yield which."""
    calls, struck = 0, set[str]()

    def count(name: str) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            struck.add(name)
            strike()

    def wrapped(name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            count(name)
            return real(*arguments, **named)

        return call

    def commit(_: Connection) -> None:
        count("commit")

    event.listen(Engine, "commit", commit)
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name in names:
                real = getattr(optuna.storages._CachedStorage, name)
                patched.setattr(optuna.storages._CachedStorage, name, wrapped(name, real))
            yield struck
    finally:
        event.remove(Engine, "commit", commit)


def end_the_locks_connection(engine: Engine) -> None:
    with engine.connect() as connection:
        ended = connection.scalars(
            text("""
                SELECT pg_terminate_backend(pid, 10000) FROM pg_locks
                JOIN pg_database ON pg_database.oid = database
                WHERE datname = current_database() AND locktype = 'advisory' AND granted
            """)
        ).all()
    assert len(ended) <= 1  # none while nobody is at a step


def advanced(
    postgres: str, template: str, given: StudyConfig, call: int, names: list[str]
) -> tuple[Any, set[str]]:
    """Return what a copy of a study comes to if its proposer loses its lock at a call, and which.

    Another one takes every step then, and the first goes on as if it still had the role.
    """
    with temporary(postgres, template) as url:
        engine, rival = connect(url), connect(url)
        study = studies.find(engine, given.name)
        assert study is not None
        proposer, other = (Proposer(each, study.id, given) for each in (engine, rival))

        def strike() -> None:
            end_the_locks_connection(rival)
            other.advance()

        with struck_at_call(call, names, strike) as struck:
            retry.persist(proposer.advance, 60, pause=lambda seconds: None)
        found = contents(rival, study.id), told(rival, given.name)
        engine.dispose()
        rival.dispose()
    return found, struck


def check_every_call(
    postgres: str, prepared: str, given: StudyConfig, names: list[str]
) -> set[str]:
    """Strike at each call in turn, while a trial that failed is told and the next one proposed.

    Return at which calls it was.
    """
    ready = len(given.anchors) + 3
    with temporary(postgres, prepared) as url:
        engine = connect(url)
        study_id = create(engine, given)
        proposer = Proposer(engine, study_id, given)
        for _ in range(ready):
            proposer.advance()
            train(engine, study_id, fails=ready - 1)
        engine.dispose()
        template = make_url(url).database
        assert template is not None
        expected, _ = advanced(postgres, template, given, 0, names)
        (trials, _), _ = expected
        assert [trial.state for trial in trials[ready - 1 :]] == ["failed", "running"]
        seen, struck, call = set[str](), {""}, 0
        while struck:
            call += 1
            found, struck = advanced(postgres, template, given, call, names)
            assert found == expected, f"after call {call}, {struck}"
            seen |= struck
    return seen


@pytest.mark.parametrize("sampler", ["gp", "tpe", "qmc"])
def test_who_loses_its_lock_has_written_nothing(
    postgres: str, prepared: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(design, "startup", lambda dimensions: 1)
    seen = check_every_call(postgres, prepared, made(sampler, 20), OPTUNA_WRITES)
    assert {"create_new_trial", "set_trial_param", "set_trial_state_values", "commit"} <= seen


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sampler", ["gp", "tpe", "qmc", "cmaes", "direct", "random"])
def test_who_loses_its_lock_at_any_call_has_written_nothing(
    postgres: str, prepared: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At those that read, too."""
    monkeypatch.setattr(design, "startup", lambda dimensions: 1)
    assert "get_all_trials" in check_every_call(postgres, prepared, made(sampler, 20), OPTUNA_CALLS)


def test_trials_that_dead_proposers_left_in_optuna_are_closed_at_the_end(database: Engine) -> None:
    given = made("qmc", 8)
    study_id = create(database, given)
    proposer = Proposer(database, study_id, given)
    while len(contents(database, study_id)[0]) < 8:
        proposer.advance()
        train(database, study_id)
    # As Optuna does when the answer to its insertion is lost: it inserts once more.
    left = optuna.load_study(study_name=given.name, storage=optuna_tables.alone(database))
    numbers = [left.ask().number for _ in range(2)]
    proposer.advance()
    ended = studies.find(database, given.name)
    assert ended is not None
    assert (ended.state, ended.phase) == ("stopped", "confirm")
    states = {number: state for number, state, *_ in told(database, given.name)}
    assert [states.pop(number) for number in numbers] == [TrialState.FAIL] * 2
    assert list(states.values()) == [TrialState.COMPLETE] * 8
    assert [trial.state for trial in contents(database, study_id)[0]] == ["complete"] * 8


def test_optunas_tables_are_made_by_one_process_at_a_time(
    database: Engine, database_url: str
) -> None:
    def scalar(query: str) -> Any:
        with database.connect() as connection:
            return connection.scalar(text(query))

    engine = connect(database_url)
    maker = threading.Thread(target=optuna_tables.make, args=[engine])
    with alone(database, "optuna"):
        maker.start()
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while maker.is_alive() and not scalar(waits):
            time.sleep(0.01)
        assert maker.is_alive()
        assert scalar("SELECT to_regclass('public.trials')") is None
    maker.join()
    assert scalar("SELECT to_regclass('public.trials')") is not None
    engine.dispose()
