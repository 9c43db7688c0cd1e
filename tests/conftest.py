"""One embedded PostgreSQL for the whole session; an empty database of its own for each test."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine
from support.databases import administer, temporary, within

from storage import leases, studies
from storage.database import connect, prepare
from storage.server import embedded_url, release

# Before anything reads them, and for every process that a test starts: no test touches the
# user's own data. Short, for the path of a socket has to fit into 103 bytes.
_home = tempfile.TemporaryDirectory(prefix="dt-")
os.environ["DENSITUNE_HOME"] = _home.name
os.environ.pop("DENSITUNE_STORAGE", None)

# Threads that wait for each other by spinning take most of the CPU time where as many processes
# test as there are cores. numpy's matrices here are small and need one thread; torch keeps its
# own, which sleep. Both are read once, when a test file imports numpy and torch.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

# A shell that runs the tests in the background ignores SIGINT, and every process would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup ignores this one


# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of the session's server, of which tests use databases of their own."""
    url = embedded_url(Path(_home.name))
    administer(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    yield url
    release()


@pytest.fixture(scope="session")
def prepared(postgres: str) -> str:
    """The name of a prepared database that is only ever copied."""
    administer(postgres, "CREATE DATABASE prepared")
    engine = connect(within(postgres, "prepared"))
    prepare(engine)
    engine.dispose()
    return "prepared"


@pytest.fixture(autouse=True)
def _leases_may_end_soon_after_the_servers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's server has just started, and would keep every lease for a minute."""
    monkeypatch.setattr(leases, "RETURN_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _interrupts_are_heard_again() -> Iterator[None]:
    """The command line ignores SIGINT once it ends, and so would whatever is started after it."""
    earlier = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture
def empty_url(postgres: str) -> Iterator[str]:
    """The URL of a database without any schema."""
    with temporary(postgres, "template1") as url:
        yield url


@pytest.fixture
def database(postgres: str, prepared: str) -> Iterator[Engine]:
    """An engine on a prepared database."""
    with temporary(postgres, prepared) as url:
        engine = connect(url)
        yield engine
        engine.dispose()


@pytest.fixture
def database_url(database: Engine) -> str:
    """The URL of the test's prepared database, for processes of their own."""
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def study(database: Engine) -> studies.Study:
    """A running study without trials."""
    return studies.create(database, "a study", {"task": "photos"}, "fingerprint", {}, "search")[0]
