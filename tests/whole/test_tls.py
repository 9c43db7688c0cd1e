"""Encrypted connections, with the certificates that docker/certificates.sh makes.

PostgreSQL from the wheel is built without TLS. So a front ends TLS before it, as PgBouncer would;
where the machine has a PostgreSQL with TLS, the same holds with that.
"""

import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

import pytest
from sqlalchemy import make_url
from support.checkout import ROOT
from support.loopback import loopback

from optimizer.cli import main
from storage.database import connect
from storage.errors import StorageUnreachableError

SSL_REQUEST = struct.pack("!II", 8, 80877103)  # PostgreSQL's documentation, 54.7 Message Formats


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA and a certificate for localhost."""
    return certified(tmp_path_factory.mktemp("ours"), "localhost")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another CA of the same name."""
    return certified(tmp_path_factory.mktemp("theirs"), "localhost")


def certified(folder: Path, *hosts: str) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(
        ["bash", ROOT / "docker" / "certificates.sh", folder, *hosts],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module", params=["front", "PostgreSQL"])
def url(request: pytest.FixtureRequest, authority: Path) -> Iterator[str]:
    """The URL, on localhost, of a server that shows the certificate."""
    if request.param == "front":
        postgres = request.getfixturevalue("postgres")
        with front(postgres, authority) as place:
            yield verified(place, authority)
        return
    binaries = with_tls()
    if binaries is None:
        pytest.skip("no PostgreSQL with TLS on this machine")
    with loopback(certificates=authority, binaries=binaries) as server:
        assert make_url(server.url).query["sslmode"] == "verify-full"
        yield server.url_with_password


def with_tls() -> Path | None:
    """The folder of a PostgreSQL's programs built with OpenSSL, if there is one."""
    installed = shutil.which("initdb")
    folders = [Path(installed).resolve().parent] if installed else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for config in (folder / "pg_config" for folder in folders):
        if config.exists():
            asked = subprocess.run(
                [config, "--configure"], capture_output=True, text=True, check=True
            )
            if "openssl" in asked.stdout:
                return config.parent
    return None


def verified(url: str, authority: Path) -> str:
    query = {"sslmode": "verify-full", "sslrootcert": str(authority / "ca.crt")}
    return make_url(url).set(query=query).render_as_string(hide_password=False)


@contextmanager
def front(postgres: str, authority: Path | None) -> Iterator[str]:
    """Serve on localhost, with TLS or without, what stands behind a socket; yield the URL."""
    behind = make_url(postgres)
    context = None
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority / "server.crt", authority / "server.key")
    with Front(Path(str(behind.query["host"])) / ".s.PGSQL.5432", context) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield behind.set(
            host="localhost", port=server.server_address[1], query={}
        ).render_as_string()
        server.shutdown()


class Front(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, behind: Path, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.behind, self.context = str(behind), context


class Session(socketserver.BaseRequestHandler):
    server: Front
    request: socket.socket

    def handle(self) -> None:
        assert self.request.recv(8) == SSL_REQUEST
        if self.server.context is None:
            self.request.sendall(b"N")
            return
        self.request.sendall(b"S")
        try:
            client = self.server.context.wrap_socket(self.request, server_side=True)
        except OSError:  # the client refuses the certificate
            return
        with client, socket.socket(socket.AF_UNIX) as postgres:
            postgres.connect(self.server.behind)
            other: dict[socket.socket, socket.socket] = {client: postgres, postgres: client}
            while True:
                readable = [client] if client.pending() else select(list(other), [], [])[0]
                for end in readable:
                    content = end.recv(2**16)
                    if not content:
                        return
                    other[end].sendall(content)


def refusal(url: str) -> str:
    """The line with which a connection is refused."""
    with pytest.raises(StorageUnreachableError) as raised:
        connect(url)
    line = str(raised.value)
    assert line.startswith("cannot reach PostgreSQL at ")
    assert "\n" not in line
    return line


def changed(url: str, host: str = "localhost", **query: str) -> str:
    parsed = make_url(url).set(host=host).update_query_dict(query)
    return parsed.render_as_string(hide_password=False)


def test_right_authority_and_host_name_connect_encrypted(url: str) -> None:
    engine = connect(url)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        assert driver.info.ssl_in_use
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_certificate_of_another_authority_is_refused(url: str, stranger: Path) -> None:
    line = refusal(changed(url, sslrootcert=str(stranger / "ca.crt")))
    assert "certificate verify failed" in line


def test_certificate_for_another_host_is_refused(url: str) -> None:
    line = refusal(changed(url, host="127.0.0.1"))
    assert 'server certificate for "localhost"' in line
    assert 'does not match host name "127.0.0.1"' in line


def test_missing_authority_is_told(url: str, tmp_path: Path) -> None:
    line = refusal(changed(url, sslrootcert=str(tmp_path / "none.crt")))
    assert f'root certificate file "{tmp_path / "none.crt"}" does not exist' in line


def test_server_without_encryption_is_refused(postgres: str, authority: Path) -> None:
    with front(postgres, None) as place:
        assert "server does not support SSL, but SSL was required" in refusal(
            verified(place, authority)
        )


def test_command_line_ends_with_one_line(
    url: str, stranger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DENSITUNE_STORAGE", changed(url, sslrootcert=str(stranger / "ca.crt")))
    monkeypatch.setattr(sys, "argv", ["densitune", "list"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "certificate verify failed" in line


def test_certificate_has_all_names_and_the_authority_is_kept(
    authority: Path, tmp_path: Path
) -> None:
    shutil.copytree(authority, tmp_path, dirs_exist_ok=True)
    certified(tmp_path, "db.example.org", "localhost")
    assert (tmp_path / "ca.crt").read_bytes() == (authority / "ca.crt").read_bytes()
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", tmp_path / "server.crt"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "DNS:db.example.org, DNS:localhost" in shown


def test_keys_are_for_their_owner_only(authority: Path) -> None:
    for name in ("ca.key", "server.key"):
        assert (authority / name).stat().st_mode & 0o077 == 0
