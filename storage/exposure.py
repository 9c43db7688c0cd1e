"""What a connection over a network gives away, and to whom.

A password is shown only to a server that asks by SCRAM, which neither learns it nor can do without
knowing it. Encryption is the user's to ask for; where it is missing, one line says so.
"""

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import unquote

from sqlalchemy import URL

PROVEN = "scram-sha-256"
"""Asked of a server that is given a password: it proves that it knows it (RFC 5802)."""
KEPT = "!password,!md5"
"""Asked of the others: whatever password libpq finds, in ~/.pgpass say, is not sent, nor a hash of
it that can be guessed from. A server may let us in without one, by certificate or ticket."""


def requirement(url: URL, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the connection parameter that says how a server may ask for a password.

    Nothing for a socket, and where the URL or PGREQUIREAUTH says it.
    """
    if (
        "require_auth" in url.query
        or environment.get("PGREQUIREAUTH")
        or not _is_remote(url, environment)
    ):
        return {}
    told = url.password or url.query.get("password") or environment.get("PGPASSWORD")
    return {"require_auth": PROVEN if told else KEPT}


def complaint(host: str, parameters: Mapping[str, str]) -> str | None:
    """Return what somebody in between could do, by what libpq connected with; None if nothing.

    Nobody is between two processes of a machine. Who writes sslmode=disable has decided.
    """
    mode = parameters.get("sslmode", "prefer")
    address = parameters.get("hostaddr") or host
    if mode in ("verify-full", "disable") or not address or _is_local(address):
        return None
    return (
        f"somebody in between could read or alter what goes to PostgreSQL at {address}: sslmode is "
        f"{mode}; write sslmode=verify-full into its URL (docs/cluster.md), or sslmode=disable if "
        "nobody can be there"
    )


def _is_remote(url: URL, environment: Mapping[str, str]) -> bool:
    """Tell whether a connection may go by a network; what a service file says is not known."""
    query = {name: environment.get(f"PG{name.upper()}", "") for name in ("service", "hostaddr")}
    query |= {name: _text(value) for name, value in url.query.items()}
    if query["service"] or query["hostaddr"]:
        return True
    hosts = query.get("host") or unquote(url.host or "") or environment.get("PGHOST", "")
    return any(host and not _is_socket(host) for host in hosts.split(","))


def _text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ",".join(value)


def _is_socket(host: str) -> bool:
    return host.startswith(("/", "@"))


def _is_local(host: str) -> bool:
    if _is_socket(host) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
