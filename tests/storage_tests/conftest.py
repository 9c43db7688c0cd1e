"""Homes of embedded servers, and processes that use them."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.servers import Join, User, postmaster


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path that other test runs leave alone."""
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A home with a data folder, for making one takes most of a start's time."""
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        first = User(Path(name))
        first.read()
        first.leave()
        yield Path(name)


@pytest.fixture
def home(made: Path) -> Iterator[Path]:
    assert postmaster(made) is None
    yield made
    last = User(made)  # stops the server that a failed test leaves behind
    last.read()
    last.leave()


@pytest.fixture
def join() -> Iterator[Join]:
    """Start a user of the server in a home; killed at the end if it is still there."""
    users: list[User] = []

    def start(home: Path, within: Sequence[str] = ()) -> User:
        users.append(User(home, within))
        return users[-1]

    yield start
    for user in users:
        if user.process.poll() is None:
            user.kill()
