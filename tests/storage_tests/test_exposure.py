"""Who is shown a password, and who is told of listeners: real servers and a false one."""

import logging
import os
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from support.loopback import Loopback, loopback

from optimizer.cli import main
from storage import exposure
from storage.database import connect
from storage.errors import StorageUnreachableError

# PostgreSQL's documentation, 54.7 Message Formats: requests, and what a server asks for.
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
CLEAR_TEXT, MD5 = struct.pack("!I", 3), struct.pack("!I4s", 5, b"salt")


class FalseServer(socketserver.ThreadingTCPServer):
    """Asks whoever connects for a password, in a way of its choice, and keeps what it is told."""

    daemon_threads = True

    def __init__(self, asks: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.asks, self.heard = asks, list[bytes]()


class Talk(socketserver.BaseRequestHandler):
    server: FalseServer
    request: socket.socket

    def handle(self) -> None:
        while True:
            length, code = struct.unpack("!II", self.request.recv(8, socket.MSG_WAITALL))
            if code not in (SSL_REQUEST, GSS_REQUEST):
                break
            self.request.sendall(b"N")
        self.request.recv(length - 8, socket.MSG_WAITALL)
        self.request.sendall(b"R" + struct.pack("!I", 4 + len(self.server.asks)) + self.server.asks)
        self.server.heard.append(self.request.recv(1024))


@contextmanager
def false_server(asks: bytes) -> Iterator[FalseServer]:
    with FalseServer(asks) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def genuine() -> Iterator[Loopback]:
    """A server of PostgreSQL's that asks by SCRAM."""
    with loopback() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_variables_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("asks", [CLEAR_TEXT, MD5], ids=["clear text", "md5"])
@pytest.mark.parametrize("where", ["URL", "query", "PGPASSWORD", "PGPASSFILE"])
def test_a_password_is_not_shown_to_a_server_that_asks_for_it(
    where: str, asks: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with false_server(asks) as server:
        url = make_url(f"postgresql://me@127.0.0.1:{server.server_address[1]}/db")
        if where == "URL":
            url = url.set(password="hunter2")
        elif where == "query":
            url = url.update_query_dict({"password": "hunter2"})
        elif where == "PGPASSWORD":
            monkeypatch.setenv("PGPASSWORD", "hunter2")
        else:
            (tmp_path / "pgpass").write_text("*:*:*:*:hunter2\n")
            (tmp_path / "pgpass").chmod(0o600)
            monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
        with pytest.raises(StorageUnreachableError, match="it was sent no password") as raised:
            connect(url.render_as_string(hide_password=False))
    assert server.heard == [b""]
    assert "\n" not in str(raised.value)


def test_a_user_may_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, variable in (("?require_auth=password", ""), ("", "password")):
        monkeypatch.setenv("PGREQUIREAUTH", variable)
        with false_server(CLEAR_TEXT) as server:
            port = server.server_address[1]
            with pytest.raises(StorageUnreachableError):
                connect(f"postgresql://me:hunter2@127.0.0.1:{port}/db{allowed}")
        assert b"hunter2" in server.heard[0]


def test_the_command_line_keeps_the_password_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    with false_server(CLEAR_TEXT) as server:
        port = server.server_address[1]
        monkeypatch.setenv("DENSITUNE_STORAGE", f"postgresql://me@127.0.0.1:{port}/db")
        monkeypatch.setenv("DENSITUNE_STORAGE_PASSWORD_FILE", str(tmp_path / "password"))
        monkeypatch.setattr(sys, "argv", ["densitune", "list"])
        with pytest.raises(SystemExit) as end:
            main.main()
    assert end.value.code == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "require_auth" in line
    assert server.heard == [b""]


def test_a_server_that_asks_by_scram_gets_its_proof(
    genuine: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    engine = connect(genuine.url_with_password)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
    assert caplog.messages == []  # nobody is between us and localhost


def test_a_network_without_verified_encryption_is_told_once(
    genuine: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(genuine.url_with_password).set(host="0.0.0.0")  # this machine, by its network
    with caplog.at_level(logging.WARNING, "densitune.storage"):
        for mode, lines in (("prefer", 1), ("disable", 0)):
            caplog.clear()
            told = url.update_query_dict({"sslmode": mode}).render_as_string(hide_password=False)
            engine = connect(told)
            for _ in range(3):
                with engine.begin() as connection:
                    connection.execute(text("SELECT 1"))
            engine.dispose()
            assert len(caplog.messages) == lines, mode
            assert all("sslmode=verify-full" in line for line in caplog.messages)
            assert all(genuine.password not in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("url", "environment", "asked"),
    [
        ("postgresql://me:pw@db/x", {}, exposure.PROVEN),
        ("postgresql://me@db/x", {}, exposure.KEPT),  # perhaps by a certificate, or ~/.pgpass
        ("postgresql://me:pw@/x?host=/run/postgresql", {}, None),
        ("postgresql://me:pw@%2Frun%2Fpostgresql/x", {}, None),
        ("postgresql://me:pw@/x?host=/run/postgresql,db", {}, exposure.PROVEN),
        ("postgresql://me:pw@/x?host=/run/postgresql&host=db:5433", {}, exposure.PROVEN),
        ("postgresql://me:pw@/x?host=/run&hostaddr=192.0.2.9", {}, exposure.PROVEN),
        ("postgresql:///x", {}, None),
        ("postgresql:///x", {"PGHOST": "db"}, exposure.KEPT),
        ("postgresql:///x", {"PGHOST": "db", "PGPASSWORD": "pw"}, exposure.PROVEN),
        ("postgresql:///x?service=main", {}, exposure.KEPT),
        ("postgresql:///x", {"PGSERVICE": "main"}, exposure.KEPT),
        ("postgresql://me:pw@db/x?require_auth=md5", {}, None),
        ("postgresql://me:pw@db/x", {"PGREQUIREAUTH": "gss"}, None),
    ],
)
def test_what_is_asked_of_a_server_follows_from_its_address_and_the_password(
    url: str, environment: Mapping[str, str], asked: str | None
) -> None:
    told = exposure.requirement(make_url(url), environment)
    assert told.get("require_auth") == asked


@pytest.mark.parametrize(
    ("host", "parameters", "warned"),
    [
        ("db", {"sslmode": "prefer"}, True),
        ("db", {"sslmode": "require"}, True),
        ("db", {"sslmode": "verify-ca"}, True),
        ("db", {"sslmode": "verify-full"}, False),
        ("db", {"sslmode": "disable"}, False),
        ("db", {"sslmode": "prefer", "hostaddr": "127.0.0.1"}, False),
        ("localhost", {"sslmode": "prefer", "hostaddr": "192.0.2.9"}, True),
        ("::1", {"sslmode": "prefer"}, False),
        ("/run/postgresql", {"sslmode": "prefer"}, False),
    ],
)
def test_who_may_be_in_between_is_told(
    host: str, parameters: Mapping[str, str], *, warned: bool
) -> None:
    assert (exposure.complaint(host, parameters) is not None) == warned
