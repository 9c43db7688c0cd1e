"""Addresses of servers, as libpq reads them; what is wrong with one is said without its text.

Of a URL that is not well formed nobody can tell where the password ends.
"""

from typing import Any

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from sqlalchemy import URL

from storage.errors import StorageUrlError

FORM = "postgresql://user:password@host:5432/database"
DRIVER = "postgresql+psycopg2"
SCHEMES = ("postgres", "postgresql", DRIVER)
LARGEST_PORT = 65535


def parse(url: str, password: str | None = None) -> URL:
    """Return a storage URL's parts, with a password in place of its own if one is given.

    Several hosts, sockets (%2Fpath) and parameters are libpq's matter. StorageUrlError, without
    anything that may be part of a password, if the URL cannot be used.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise _unusable("the storage URL cannot be read; densitune stores in PostgreSQL")
    try:
        given: dict[str, str] = parse_dsn(f"postgresql://{rest}")
    except (ProgrammingError, ValueError):  # which may quote the password
        raise _unusable("the storage URL cannot be read") from None
    hosts, ports = given.pop("host", ""), given.pop("port", "")
    server, _, database = rest.partition("?")[0].partition("/")
    strays = any(mark in database for mark in "@:/")
    if server.count("@") > 1 or strays or not _are_ports(ports):
        # A part of the password passes for a host, a port or a database.
        raise _unusable(
            "the storage URL has no port number where one belongs, or more than one @, or one of "
            "@ : / in the database's name; write %40, %3A and %2F for them in a password or name"
        )
    parts: dict[str, Any] = {}
    if "," in hosts or "," in ports or hosts.startswith(("/", "@")):
        given |= {"host": hosts} | ({"port": ports} if ports else {})
    else:
        parts = {"host": hosts or None, "port": int(ports) if ports else None}
    return URL.create(
        DRIVER,
        username=given.pop("user", None),
        password=given.pop("password", None) if password is None else password,
        database=given.pop("dbname", None),
        query=given,
        **parts,
    )


def masked(url: str) -> str:
    """Return the URL with *** in place of the password, fit for messages and logs."""
    try:
        parsed = parse(url)
    except StorageUrlError:
        return "(unreadable URL)"
    secrets = [name for name in parsed.query if name.endswith("password")]  # sslpassword too
    parsed = parsed.update_query_dict(dict.fromkeys(secrets, "***"))
    return parsed.set(drivername="postgresql").render_as_string(hide_password=True)


def place(url: URL) -> str:
    """Return where a URL points: hosts and port, or the folder of a socket."""
    host = url.host or url.query.get("host") or "localhost"
    hosts = host if isinstance(host, str) else ", ".join(host)
    port = url.port or url.query.get("port") or 5432
    return f"socket {hosts}" if hosts.startswith("/") else f"{hosts}:{port}"


def _unusable(why: str) -> StorageUrlError:
    return StorageUrlError(f"{why}; the form is {FORM}")


def _are_ports(ports: str) -> bool:
    return all(
        not port or (port.isascii() and port.isdecimal() and len(port) <= 5
        and 0 < int(port) <= LARGEST_PORT)
        for port in ports.split(",")
    )  # fmt: skip
