"""A Docker engine with Compose: the one that runs here, or one made of Debian's packages."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.checkout import ROOT
from support.waiting import wait_for

HERE = ROOT / "tests" / "elsewhere"
BASE, POSTGRES = "python:3.12-slim-trixie", "postgres:18"
"""The images that are pulled, or that others stand for."""


@dataclass(frozen=True)
class Engine:
    """How to reach an engine.

    context: the folder that it sees under the same path. own: it is ours, without images of its
    own to pull and without a network of its own to build in.
    """

    context: Path
    enter: tuple[str, ...]
    own: bool

    def run(self, *arguments: str, folder: Path | None = None, seconds: float = 600) -> str:
        """Run `docker` in a folder of the context; return what it printed."""
        done = self.ask(*arguments, folder=folder, seconds=seconds)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-4000:]}"
        return done.stdout

    def ask(
        self, *arguments: str, folder: Path | None = None, seconds: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker`, which may fail."""
        return subprocess.run(
            [*self.enter, "env", f"--chdir={folder or self.context}", "docker", *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def inspect(self, container: str) -> dict[str, Any]:
        [found] = json.loads(self.run("inspect", container))
        return dict(found)


@contextmanager
def engine() -> Iterator[Engine]:
    """Reach the engine that runs here; without one make it, and end it."""
    # Not /tmp: an image takes gigabytes, and that may be memory.
    folder = Path(tempfile.mkdtemp(prefix="densitune-", dir="/var/tmp"))
    try:
        at_hand = Engine(folder, (), own=False)
        if shutil.which("docker") and _answers(at_hand):
            yield at_hand
        else:
            with _made(folder) as made:
                yield made
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def _answers(found: Engine) -> bool:
    asked = (found.ask("info"), found.ask("compose", "version"))
    return all(answer.returncode == 0 for answer in asked)


@contextmanager
def _made(folder: Path) -> Iterator[Engine]:
    with (folder / "engine.log").open("wb") as log:
        daemon = subprocess.Popen([HERE / "engine.sh", folder], stdout=log, stderr=log)
    enter = ("nsenter", f"--target={daemon.pid}", "--mount", "--root")
    made = Engine(folder / "context", enter, own=True)

    def ready() -> bool:
        said = (folder / "engine.log").read_text(errors="replace")
        assert daemon.poll() is None, said[-2000:]
        return "API listen on" in said and _answers(made)

    try:
        wait_for(ready, 600)
        with (folder / "base.tar").open("rb") as base:
            subprocess.run([*enter, "docker", "import", "-", BASE], stdin=base, check=True)
        shutil.copytree(HERE / "postgres", made.context / "postgres")
        made.run("build", "--network=host", f"--tag={POSTGRES}", "postgres")
        yield made
    finally:
        daemon.terminate()
        daemon.wait(120)
