"""Commands with the embedded server: they keep to their own, and start it again when it is lost."""

import os
import pwd
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import shell
from support.checkout import ROOT
from support.servers import ask, postmaster
from support.waiting import wait_for

from optimizer.cli import environment
from optimizer.errors import UsageError

FOREIGN = {
    "PGAPPNAME": "other",
    "PGCHANNELBINDING": "require",
    "PGCLIENTENCODING": "SQL_ASCII",
    "PGCONNECT_TIMEOUT": "nonsense",
    "PGDATABASE": "other",
    "PGDATA": "/nowhere",
    "PGDATESTYLE": "German",
    "PGGSSENCMODE": "require",
    "PGHOST": "127.0.0.1",
    "PGLOADBALANCEHOSTS": "nonsense",
    "PGOPTIONS": "-c search_path=other",
    "PGPASSFILE": "/nowhere",
    "PGPASSWORD": "secret",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGSERVICE": "other",
    "PGSERVICEFILE": "/nowhere",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/nowhere",
    "PGSYSCONFDIR": "/nowhere",
    "PGTARGETSESSIONATTRS": "standby",
    "PGTZ": "Asia/Tokyo",
    "PGUSER": "other",
}
"""What libpq reads for somebody else's server; each alone can break or divert a connection."""


def start(home: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    own = {"DENSITUNE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        shell.command(*arguments),
        cwd=home.parent,
        env={**os.environ, **own, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(home: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    process = start(home, *arguments, **variables)
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that is not there yet; its path is short."""
    with tempfile.TemporaryDirectory(prefix="dt-") as name:
        yield Path(name) / "home"


def test_variables_for_other_servers_do_not_reach_the_embedded_one(home: Path) -> None:
    expected = run(home, "list")
    assert expected[0] == 0
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        port = str(other.getsockname()[1])
        diverted = {"PGHOSTADDR": "127.0.0.1", "PGPORT": port, **FOREIGN}
        assert run(home, "list", **diverted) == expected
        with pytest.raises(BlockingIOError):  # nobody came
            other.accept()


@pytest.mark.slow
def test_a_copy_lists_and_deletes_its_own_studies_while_a_study_runs(home: Path) -> None:
    config = shell.write_config(home.parent, "kept")
    # Without a worker it runs for as long as it takes to look at it.
    launch = start(home, "launch", str(config), "--workers", "0", "--force")
    try:
        wait_for(lambda: postmaster(home) and "kept" in run(home, "list")[1])
        server = postmaster(home)
        copied = home.with_name("copy")
        subprocess.run(["cp", "-a", home, copied], check=True)
        assert run(copied, "delete", "kept", "--yes")[0] == 0
        assert "kept" not in run(copied, "list")[1]
        assert postmaster(copied) is None
        assert postmaster(home) == server
        # A server that is killed under a command is started again by the command itself.
        assert server is not None
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: postmaster(home) not in (None, server), 60)
        query = "SELECT count(*) FROM densitune.studies WHERE name = 'kept'"
        assert ask(home, query) == [(1,)]
        code, told = run(home, "worker", "kept")
        assert code == 0, told
        said, _ = launch.communicate(timeout=240)
        assert launch.returncode == 0, said
    finally:
        launch.kill()
        launch.wait()
    assert postmaster(home) is None


@pytest.mark.parametrize("variable", ["DENSITUNE_HOME", "XDG_DATA_HOME"])
def test_a_home_of_nobody_is_one_line(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DENSITUNE_HOME")
    monkeypatch.setenv(variable, "~ghost/x")
    with pytest.raises(UsageError, match=r"~ghost/x cannot be found: .*--storage") as raised:
        environment.home()
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without a name")
def test_a_user_without_name_and_home_is_told_what_to_do(home: Path) -> None:
    nobody = 54321
    with pytest.raises(KeyError):
        pwd.getpwuid(nobody)
    home.mkdir()
    os.chown(home, nobody, nobody)
    home.parent.chmod(0o755)
    script = (
        "import os; from pathlib import Path; from storage.errors import StorageError\n"
        "from storage.server import embedded_url\n"
        f"os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})\n"
        f"try: embedded_url(Path({str(home)!r}))\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run(
        [*shell.command()[:1], "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "user does not exist; mend that, or name a server with --storage" in done.stdout
    assert done.stdout.count("\n") == 1
