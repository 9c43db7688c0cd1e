"""A PostgreSQL of its own on a port of the loopback interface, to be loaded, stopped and broken.

densitune's embedded server listens on no network and belongs to its users; this one belongs to
whoever made it: benchmarks, and the tests in tests/chaos.
"""

import os
import secrets
import socket
from pathlib import Path
from typing import Literal

from storage import programs

Stop = Literal["fast", "immediate"]
"""fast disconnects everybody and writes a checkpoint; immediate is a crash."""

SECONDS = 60.0
"""How long the server may take to start or stop, with the recovery after a crash."""
PORTS = range(20_000, 32_000)
"""Below those that systems give to outgoing connections: ours is still free after a stop."""


class Cluster:
    """A server in a folder of its own, up from the start; only its password opens it."""

    def __init__(self, folder: Path, **settings: str | int) -> None:
        self._data, self._log = folder / "data", folder / "server.log"
        self._owner = programs.owner_of(self._data)
        self.port = _free_port()
        self._password = secrets.token_hex(16)
        self._create(folder)
        network = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
        }
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in (network | settings).items())
        self.start()

    @property
    def url(self) -> str:
        """Return the URL of its only database."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Return the process id of the server, whose children serve the connections."""
        return int((self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self._run("pg_ctl", "start", "-l", str(self._log))

    def stop(self, how: Stop) -> None:
        """Stop the server and wait until it is gone."""
        self._run("pg_ctl", "stop", "-m", how)

    def restart(self, how: Stop) -> None:
        """Stop the server and start it again."""
        self.stop(how)
        self.start()

    def _create(self, folder: Path) -> None:
        password = folder / "password"
        password.write_text(self._password, encoding="utf-8")
        if self._owner is not None:
            os.chown(folder, *self._owner)
            os.chown(password, *self._owner)
            programs.let_pass(self._owner, self._data)
        self._run(
            "initdb", "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}",
            "--encoding=UTF8", "--no-locale",
        )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        wait = ("-w", "-t", f"{SECONDS:.0f}") if program == "pg_ctl" else ()
        done = programs.run(
            program, *arguments, *wait, "-D", str(self._data),
            owner=self._owner, seconds=SECONDS + 10,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} {arguments[0]}: {done.stderr or done.stdout}")


def _free_port() -> int:
    """Return a port of the loopback interface at which nobody listens."""
    start = secrets.randbelow(len(PORTS))
    for port in (*PORTS[start:], *PORTS[:start]):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(port)
    raise RuntimeError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")
