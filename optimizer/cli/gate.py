"""Who may see and change what a web page of ours shows: a WSGI application before another one.

A browser carries requests from any page that is open in it, and every user of the machine reaches
its ports. So a request has to be addressed to this machine, not to a name that somebody else has
pointed here (DNS rebinding); it has to come from a browser that was given the token that stands in
the printed address; and what changes something has to be allowed, and to come from our own page.
"""

import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

Environment = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]
Application = Callable[[Environment, StartResponse], Iterable[bytes]]

READING = ("GET", "HEAD", "OPTIONS")
HEADERS: Headers = [
    ("Referrer-Policy", "no-referrer"),  # an address may have the token
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


class Gate:
    """Lets requests through to an application, with the headers above, or answers 403.

    names: how this machine may be called in an address, beside localhost and addresses in numbers,
    which nobody can point elsewhere.
    """

    def __init__(
        self, application: Application, *, names: Iterable[str] = (), changes: bool
    ) -> None:
        self.token = secrets.token_urlsafe(32)
        self._application, self._changes = application, changes
        self._names = {"localhost", *(name.lower() for name in names)}
        self._cookie = (
            f"densitune-{secrets.token_hex(4)}"  # several pages of one machine share jars
        )

    def __call__(self, environment: Environment, start: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        if (refusal := self._refusal_of_place(environment)) is not None:
            return _refuse(environment, start, refusal)
        given = parse_qs(environment.get("QUERY_STRING", "")).get("token", [""])[0]
        if environment["REQUEST_METHOD"] == "GET" and self._is_token(given):
            return self._admit(environment, start)
        if (refusal := self._refusal_of_visitor(environment)) is not None:
            return _refuse(environment, start, refusal)

        def start_guarded(status: str, headers: Headers, *error: Any) -> Any:
            return start(status, [*headers, *HEADERS], *error)

        return self._application(environment, start_guarded)

    def _admit(self, environment: Environment, start: StartResponse) -> Iterable[bytes]:
        """Give a browser the token to keep, and send it on to the address without it."""
        path = "/" + quote(environment.get("PATH_INFO", "").lstrip("/\\"))  # // is another host
        kept = f"{self._cookie}={self.token}; Path=/; HttpOnly; SameSite=Lax"
        start("303 See Other", [("Location", path), ("Set-Cookie", kept), *HEADERS])
        return []

    def _refusal_of_place(self, environment: Environment) -> str | None:
        name = _name(environment.get("HTTP_HOST", ""))
        if name in self._names or _is_address(name):
            return None
        answers = ", ".join(sorted(self._names))
        return f"this page is not at that address; it answers to {answers} and IP addresses"

    def _refusal_of_visitor(self, environment: Environment) -> str | None:
        cookies = environment.get("HTTP_COOKIE", "").split(";")  # others' may be of any form
        if not any(
            name.strip() == self._cookie and self._is_token(value.strip())
            for name, _, value in (cookie.partition("=") for cookie in cookies)
        ):
            return "open the address that densitune dashboard has printed, with its token"
        if environment["REQUEST_METHOD"] in READING:
            return None
        if not self._changes:
            return "nothing can be changed here; to allow it: densitune dashboard --allow-changes"
        origin = urlsplit(environment.get("HTTP_ORIGIN", ""))
        if origin.netloc.lower() != environment["HTTP_HOST"].lower():
            return "changes are taken from this page itself only (header Origin)"
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


def own_names() -> set[str]:
    """Return what this machine calls itself."""
    return {socket.gethostname(), socket.getfqdn()}


def _refuse(environment: Environment, start: StartResponse, reason: str) -> Iterable[bytes]:
    """Answer 403: to a program in JSON, as optuna-dashboard shows it, to a person in text."""
    kind, body = "text/plain", f"densitune: {reason}\n"
    if environment.get("PATH_INFO", "").startswith("/api/"):
        kind, body = "application/json", json.dumps({"reason": reason})
    content = body.encode()
    length = ("Content-Length", str(len(content)))
    start("403 Forbidden", [("Content-Type", f"{kind}; charset=utf-8"), length, *HEADERS])
    return [content]


def _name(host: str) -> str:
    """Return the name in a Host header, without port and brackets; empty if there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
