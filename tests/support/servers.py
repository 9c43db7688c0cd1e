"""Processes that use an embedded server, and what is to be seen of the server from outside."""

import fcntl
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import psycopg2

USER = """
import os, subprocess, sys
from pathlib import Path
from storage.errors import StorageError
from storage.server import embedded_url, release

def refusal():
    try:
        embedded_url(home)
    except StorageError as error:
        return str(error)

home = Path(sys.argv[1])
print(embedded_url(home), flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class User:
    """A process that uses the server in `home`, does what it is told, and leaves in good order.

    `within` is the command that runs it: a container.
    """

    def __init__(self, home: Path, within: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*within, sys.executable, "-c", USER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def input(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, line: str) -> None:
        self.input.write(line + "\n")
        self.input.flush()
        assert self.read() == "done"

    def leave(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


Join = Callable[..., User]


def postmaster(home: Path) -> int | None:
    """The process id of a server that accepts connections, by its own account."""
    folder = home / "postgresql"
    try:
        connection = psycopg2.connect(host=str(folder), user="postgres", dbname="postgres")
    except psycopg2.OperationalError:
        return None
    connection.close()
    return int((folder / "postmaster.pid").read_text().splitlines()[0])


def in_use(home: Path) -> bool:
    with (home / "postgresql.users").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def ask(home: Path, statement: str) -> list[tuple[object, ...]]:
    """Say something to the server whose socket lies in the home."""
    connection = psycopg2.connect(host=str(home / "postgresql"), user="postgres", dbname="postgres")
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()
    finally:
        connection.close()
