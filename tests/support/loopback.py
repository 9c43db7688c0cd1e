"""A PostgreSQL server with a network address and a password: docker/slurm/postgres.sh, run here."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from storage import programs
from support.checkout import ROOT

RECIPE = ROOT / "docker" / "slurm" / "postgres.sh"


@dataclass(frozen=True)
class Loopback:
    """A server on localhost."""

    folder: Path
    url: str  # without the password
    password_file: Path
    environment: dict[str, str]
    owner: programs.Account | None

    def start(self) -> str:
        """Start it again and return what the recipe prints."""
        return _run("start", self.folder, self.environment, self.owner)

    @property
    def password(self) -> str:
        return self.password_file.read_text()

    @property
    def url_with_password(self) -> str:
        parsed = make_url(self.url).set(password=self.password)
        return parsed.render_as_string(hide_password=False)


@contextmanager
def loopback(
    *, password: str | None = None, certificates: Path | None = None, binaries: Path | None = None
) -> Iterator[Loopback]:
    """Start a server in a new folder, and stop it.

    password: None for one that the recipe makes. certificates: the folder that
    docker/certificates.sh has filled. binaries: None for those of the wheel.
    """
    with tempfile.TemporaryDirectory(prefix="dt-") as name:  # short, for the socket's path
        folder, shared = Path(name) / "server", Path(name) / "shared"
        folder.mkdir()
        shared.mkdir()
        if password is not None:
            (shared / "password").write_text(password)
        if certificates is not None:
            shutil.copytree(certificates, folder, dirs_exist_ok=True)
        owner = _owner(Path(name))
        environment = _environment(shared, binaries, owner)
        printed = _run("start", folder, environment, owner)
        try:
            told = dict(re.findall(r"^export (\w+)='(.*)'$", printed, re.MULTILINE))
            yield Loopback(
                folder,
                told["DENSITUNE_STORAGE"],
                Path(told["DENSITUNE_STORAGE_PASSWORD_FILE"]),
                environment,
                owner,
            )
        finally:
            _run("stop", folder, environment, owner)


def _owner(home: Path) -> programs.Account | None:
    """Return who has to run the server if we are root, having given `home` to that user."""
    owner = programs.owner_of(home / "postgresql")
    if owner is not None:
        for path in (home, *home.rglob("*")):
            os.chown(path, *owner)
        programs.let_pass(owner, ROOT / "storage")
    return owner


def runs_python(owner: programs.Account | None) -> bool:
    """Tell whether a user may execute the Python of the tests: not if it lies in a closed home."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import storage.programs"],
            env={"PYTHONPATH": str(ROOT)},
            cwd="/",
            capture_output=True,
            user=owner[0] if owner else None,
            group=owner[1] if owner else None,
            extra_groups=[] if owner else None,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _environment(
    shared: Path, binaries: Path | None, owner: programs.Account | None
) -> dict[str, str]:
    if binaries is None and not runs_python(owner):
        binaries = programs._folder()  # what the recipe would ask that Python for
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    chosen = {} if binaries is None else {"PG_BIN": str(binaries)}
    return {
        "PATH": os.environ["PATH"],
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "HOST": "localhost",
        "PORT": port,
        "SHARED": str(shared),
        **chosen,
    }


def _run(
    action: str, folder: Path, environment: dict[str, str], owner: programs.Account | None
) -> str:
    done = subprocess.run(
        ["bash", str(RECIPE), action, str(folder)],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        user=owner[0] if owner else None,
        group=owner[1] if owner else None,
        extra_groups=[] if owner else None,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
