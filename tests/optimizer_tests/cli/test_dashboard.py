"""The dashboard by real requests: who gets in, who may change anything, and where it listens."""

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import optuna_dashboard
import pytest
from sqlalchemy import Engine
from support import shell

from optimizer.cli.gate import Application, Environment, Gate, StartResponse
from optimizer.cli.serving import listening
from optimizer.errors import UsageError
from optimizer.phases import optuna_tables


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Page(NamedTuple):
    """A page that listens on 127.0.0.1."""

    port: int
    token: str

    def ask(self, method: str, path: str, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        body = b'{"study_name": "made", "directions": ["maximize"]}' if method == "POST" else None
        content = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body, {**content, **told})
        answer = connection.getresponse()
        found = Answer(answer.status, dict(answer.headers.items()), answer.read())
        connection.close()
        return found

    def cookie(self) -> str:
        """What a browser keeps once it has opened the printed address."""
        admitted = self.ask("GET", f"/?token={self.token}")
        assert (admitted.status, admitted.headers["Location"]) == (303, "/")
        kept, *attributes = admitted.headers["Set-Cookie"].split("; ")
        assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Lax"}
        return kept


@contextmanager
def page(
    application: Application, *, changes: bool = False, **named: Iterable[str]
) -> Iterator[Page]:
    gate = Gate(application, changes=changes, **named)
    with listening(gate, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Page(server.server_port, gate.token)
        server.shutdown()
        thread.join()


@pytest.fixture
def dashboards(database: Engine) -> Iterator[dict[bool, Page]]:
    """The dashboard of a database with one study, by whether changes are allowed."""
    storage = optuna_tables.alone(database)
    optuna.create_study(storage=storage, study_name="kept")
    application = optuna_dashboard.wsgi(storage)
    with ExitStack() as stack:
        yield {
            changes: stack.enter_context(page(application, changes=changes))
            for changes in (False, True)
        }


def names(shown: Page) -> list[str]:
    answer = shown.ask("GET", "/api/studies", Cookie=shown.cookie())
    assert answer.status == 200
    return [study["study_name"] for study in json.loads(answer.body)["study_summaries"]]


def test_the_printed_address_shows_the_studies(dashboards: dict[bool, Page]) -> None:
    shown = dashboards[False]
    assert names(shown) == ["kept"]
    start = shown.ask("GET", "/", Cookie=shown.cookie())
    assert (start.status, start.headers["Location"]) == (
        302,
        f"http://127.0.0.1:{shown.port}/dashboard",
    )
    for path in ("/dashboard", "/static/bundle.js", "/favicon.ico"):
        assert shown.ask("GET", path, Cookie=shown.cookie()).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "localhost.evil.example", "[::1", "", "127.0.0.1.evil"],
)
def test_a_name_that_somebody_points_here_is_refused(
    dashboards: dict[bool, Page], host: str
) -> None:
    shown = dashboards[True]
    told = {"Host": host.format(port=shown.port), "Cookie": shown.cookie()}
    for method, path in [("POST", "/api/studies"), ("GET", f"/?token={shown.token}")]:
        assert shown.ask(method, path, Origin=f"http://{told['Host']}", **told).status == 403
    assert names(shown) == ["kept"]


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:{port}", "127.0.0.1", "[::1]:{port}", "192.0.2.7:80", "box.", "Box"],
)
def test_this_machines_names_and_addresses_in_numbers_are_answered(host: str) -> None:
    with page(empty, names=["box"]) as shown:
        told = host.format(port=shown.port)
        assert shown.ask("GET", "/", Host=told, Cookie=shown.cookie()).status == 204


def test_nobody_without_the_token_sees_or_deletes_anything(dashboards: dict[bool, Page]) -> None:
    shown = dashboards[True]
    cookie = shown.cookie()
    for wrong in ("", "x=y", f"{cookie}x", cookie.replace("densitune", "other"), 'a="[]{}"; b'):
        for method, path in [
            ("GET", "/dashboard"),
            ("GET", "/api/studies"),
            ("GET", "/?token=guessed"),
            ("HEAD", "/"),
            ("DELETE", "/api/studies/1"),
            ("POST", f"/api/studies?token={shown.token}"),
        ]:
            answer = shown.ask(method, path, Cookie=wrong, Origin=f"http://127.0.0.1:{shown.port}")
            assert answer.status == 403, (wrong, method, path)
            assert shown.token.encode() not in answer.body
    assert names(shown) == ["kept"]


def test_a_cookie_among_those_of_other_pages_is_found(dashboards: dict[bool, Page]) -> None:
    shown = dashboards[False]
    jar = f'odd="[1]{{}}; a b=c;{shown.cookie()}; last'
    assert shown.ask("GET", "/api/studies", Cookie=jar).status == 200


def test_nothing_is_changed_unless_that_is_allowed(dashboards: dict[bool, Page]) -> None:
    shown = dashboards[False]
    told = {"Cookie": shown.cookie(), "Origin": f"http://127.0.0.1:{shown.port}"}
    for method in ("POST", "PUT", "DELETE", "PATCH", "BREW"):
        answer = shown.ask(method, "/api/studies", **told)
        assert answer.status == 403
        assert "--allow-changes" in json.loads(answer.body)["reason"]
    assert names(shown) == ["kept"]


def test_changes_are_taken_from_the_page_itself_only(dashboards: dict[bool, Page]) -> None:
    shown = dashboards[True]
    own, cookie = f"http://127.0.0.1:{shown.port}", shown.cookie()
    for origin in ("http://evil.example", f"http://127.0.0.1:{shown.port + 1}", "null", ""):
        assert shown.ask("POST", "/api/studies", Cookie=cookie, Origin=origin).status == 403
    assert shown.ask("POST", "/api/studies", Cookie=cookie).status == 403
    assert names(shown) == ["kept"]
    assert shown.ask("POST", "/api/studies", Cookie=cookie, Origin=own).status == 201
    assert sorted(names(shown)) == ["kept", "made"]


def test_an_address_with_the_token_leads_nowhere_else() -> None:
    with page(empty) as shown:
        for path in ("//evil.example/", "/\\evil.example", "/%0d%0aX-Evil:1"):
            answer = shown.ask("GET", f"{path}?token={shown.token}")
            assert answer.status == 303
            assert re.fullmatch(r"/([^/\\\s][^\\\s]*)?", answer.headers["Location"])
            assert "X-Evil" not in answer.headers


def test_what_is_shown_is_framed_by_nobody_and_tells_nobody_its_address() -> None:
    with page(empty) as shown:
        for cookie in (shown.cookie(), ""):
            headers = shown.ask("GET", "/", Cookie=cookie).headers
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Referrer-Policy"] == "no-referrer"


def test_an_idle_browser_blocks_nobody_and_errors_are_one_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with page(broken) as shown, socket.create_connection(("127.0.0.1", shown.port)):
        assert shown.ask("GET", "/", Cookie=shown.cookie()).status == 500
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.ERROR, "a request failed: ZeroDivisionError: division by zero")
    ]
    assert capfd.readouterr() == ("", "")


def test_an_address_where_nothing_can_listen_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host, at, said in [
            ("127.0.0.1", port, f"port {port} of 127.0.0.1 is in use"),
            ("0.0.0.0", port, f"port {port} of 0.0.0.0 is in use"),
            ("203.0.113.77", 8080, "--host 203.0.113.77 is no address of this machine"),
            ("nowhere.invalid", 8080, "--host nowhere.invalid is no address of this machine"),
            ("x" * 70, 8080, "is no address of this machine"),
        ]:
            with pytest.raises(UsageError, match=said) as raised, listening(empty, host, at):
                pass
            assert "\n" not in str(raised.value)


def test_the_command_prints_an_address_with_its_token_and_ends_by_ctrl_c(
    empty_url: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = subprocess.Popen(
        shell.command("dashboard", "--port", str(port)),
        cwd=tmp_path,
        env=shell.environment(empty_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert begun.stdout is not None
        printed = begun.stdout.readline()
        told = re.fullmatch(
            rf"http://127\.0\.0\.1:{port}/\?token=(\S{{43}})  \(Ctrl-C ends it\)\n", printed
        )
        assert told is not None
        assert names(Page(port, told[1])) == []
        second = shell.run(tmp_path, empty_url, "dashboard", "--port", str(port))
        assert second.returncode == 2
        assert second.stderr == (
            f"densitune: port {port} of 127.0.0.1 is in use; choose another one with --port\n"
        )
        os.kill(begun.pid, signal.SIGINT)
        _, errors = begun.communicate(timeout=60)
        assert (begun.returncode, errors) == (0, "")
    finally:
        begun.kill()
        begun.communicate()


def empty(environment: Environment, start: StartResponse) -> list[bytes]:
    """An application of which nothing is asked."""
    start("204 No Content", [])
    return []


def broken(environment: Environment, start: StartResponse) -> Any:
    raise ZeroDivisionError("division by zero")
