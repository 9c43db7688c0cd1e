"""A web page of ours on this machine: the server that shows it until Ctrl-C."""

import errno
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optimizer.cli.gate import Application
from optimizer.errors import UsageError

log = logging.getLogger("densitune.page")


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection: browsers open some that they leave idle."""

    daemon_threads = True

    def __init__(self, family: int, place: tuple[str, int]) -> None:
        self.address_family = family
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        """Bind without asking DNS for our name, as the standard library would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, *of: object) -> None:
        """Say what went wrong in one line, but nothing of browsers that have left."""
        if not isinstance(error := sys.exception(), OSError):
            log.error("a request failed: %r", error)


class _Handler(WSGIRequestHandler):
    timeout = 60  # seconds in which a request has to come

    def log_message(self, *said: object) -> None:
        """Say nothing: an address may have the token."""

    def get_stderr(self) -> "_LastLine":
        """Return where the application writes its tracebacks."""
        return _LastLine()


class _LastLine(StringIO):
    """Errors of an application, of which the last line is said."""

    def flush(self) -> None:
        lines = self.getvalue().strip().splitlines()
        self.truncate(self.seek(0))
        if lines:
            log.error("a request failed: %s", lines[-1])


@contextmanager
def listening(application: Application, host: str, port: int) -> Iterator[WSGIServer]:
    """Yield a server that listens, on any free port for 0; UsageError if it cannot listen there."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = _Server(family, (str(place[0]), port))
    except (OSError, UnicodeError) as error:
        raise UsageError(_complaint(error, host, port)) from error
    with server:
        server.set_app(application)
        yield server


def url(host: str, port: int) -> str:
    """Return the address for a browser on this machine."""
    if host in ("", "0.0.0.0", "::"):  # on all addresses
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _complaint(error: Exception, host: str, port: int) -> str:
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    if number == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another one with --port"
    if number in (errno.EACCES, errno.EPERM):
        return f"port {port} is not for this user; choose one from 1024 to 65535 with --port"
    return (
        f"--host {host} is no address of this machine ({reason}); take 127.0.0.1, or 0.0.0.0 for "
        "all its addresses"
    )
