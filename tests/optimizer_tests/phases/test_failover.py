"""Proposers die at any moment, and the next one goes on as if nothing had happened."""

import threading
import time
from collections.abc import Iterator
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
from optimizer.phases import optuna_study
from optimizer.phases.optuna_study import optuna_storage
from optimizer.phases.proposer import Proposer
from storage import jobs, ledger, studies
from storage.database import alone, connect
from storage.ledger import Entry


class DiedError(BaseException):
    """A process that is killed: nothing catches this."""


@contextmanager
def killed_at_commit(number: int) -> Iterator[None]:
    """Die instead of the n-th commit, Optuna's or ours: with all before it stored, and no more."""
    left = number

    def count(_: Connection) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise DiedError

    event.listen(Engine, "commit", count)
    try:
        yield
    finally:
        event.remove(Engine, "commit", count)


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


def told(proposer: Proposer) -> list[tuple[Any, ...]]:
    """All that Optuna holds and shows."""
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs)
        for t in proposer._optuna._study.trials
    ]


def dies(url: str, study_id: int, given: StudyConfig, commit: int) -> bool:
    """Advance a study with a proposer that dies at a commit, if it has as many."""
    engine = connect(url)
    proposer = Proposer(engine, study_id, given)
    try:
        with killed_at_commit(commit):
            proposer.advance()
    except DiedError:
        return True
    finally:
        engine.dispose()
    return False


def go_on(postgres: str, template: str, given: StudyConfig, death: int | None) -> tuple[Any, bool]:
    """Advance a copy of a study with a proposer that dies, then with one that does not."""
    with temporary(postgres, template) as url:
        engine = connect(url)
        study = studies.find(engine, given.name)
        assert study is not None
        died = death is not None and dies(url, study.id, given, death)
        with engine.connect() as connection:  # the connections of a process end with it
            connection.execute(
                text("""
                    SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'densitune'
                      AND pid != pg_backend_pid()
                """)
            )
        proposer = Proposer(engine, study.id, given)
        proposer.advance()
        found = (contents(engine, study.id), told(proposer))
        engine.dispose()
    return found, died


@pytest.mark.parametrize(
    ("sampler", "told_before"), [("random", False), ("gp", True), ("tpe", True), ("cmaes", True)]
)
def test_a_proposer_may_die_at_any_commit(
    postgres: str,
    prepared: str,
    sampler: str,
    told_before: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a trial that failed is told, unless it was before, and the sampler proposes another."""
    monkeypatch.setattr(design, "startup", lambda dimensions: 1)
    given = made(sampler, 20)
    ready = len(given.anchors) + 3
    with temporary(postgres, prepared) as url:
        engine = connect(url)
        study_id = create(engine, given)
        proposer = Proposer(engine, study_id, given)
        for _ in range(ready):
            proposer.advance()
            train(engine, study_id, fails=ready - 1)
        if told_before:
            proposer._step()
        engine.dispose()
        template = make_url(url).database
        assert template is not None
        expected, _ = go_on(postgres, template, given, None)
        (trials, _), _ = expected
        assert [trial.state for trial in trials[ready - 1 :]] == ["failed", "running"]
        death, died = 0, True
        while died:
            death += 1
            found, died = go_on(postgres, template, given, death)
            assert found == expected, f"after a death at commit {death}"
    assert death > 5


def test_trials_that_dead_proposers_left_in_optuna_are_closed_at_the_end(database: Engine) -> None:
    given = made("qmc", 8)
    study_id = create(database, given)
    proposer = Proposer(database, study_id, given)
    while len(contents(database, study_id)[0]) < 8:
        proposer.advance()
        train(database, study_id)
    # As Optuna does when the answer to its insertion is lost: it inserts once more.
    left = optuna.load_study(study_name=given.name, storage=optuna_storage(database))
    numbers = [left.ask().number for _ in range(2)]
    proposer.advance()
    ended = studies.find(database, given.name)
    assert ended is not None
    assert (ended.state, ended.phase) == ("stopped", "confirm")
    states = {number: state for number, state, *_ in told(proposer)}
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
    maker = threading.Thread(target=optuna_study.exists, args=[engine, "a study"])
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
