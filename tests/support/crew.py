"""A study's processes, as a cluster would run them: all are real, and connected over TCP.

`launch` without workers of its own is the proposer; workers are attached. Who ends is replaced.
"""

import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support import shell
from support.shell import Program
from support.waiting import wait_for

HERE = Path(__file__).parent

HURRIED: Program = (str(HERE / "hurried.py"),)
SKEWED: Program = (str(HERE / "skewed.py"),)

TRIALS, BUDGET, FRESH_BUDGET = 14, 4, 2
STUDY: dict[str, Any] = {
    "data": {"patch": 16, "patches_per_image": 16, "crop": 32},
    "training": {"budget": BUDGET, "batch_size": 8},
    "search": {
        "trials": TRIALS,
        "seeds": 2,
        "rungs": [1, 2],
        "keep": 0.3,
        "in_flight": 4,
        "sampler": "tpe",
    },
    "confirm": {"finalists": 1, "seeds": 2, "batch": 2, "budget": FRESH_BUDGET},
}
LONG: dict[str, Any] = {
    "training": {"budget": 300, "batch_size": 8},
    "search": {"trials": TRIALS, "rungs": list(range(30, 300, 30))},
}
"""Changes for jobs of a minute, measured every few seconds."""

PATIENCE = 900.0
"""Seconds after which what should happen does not, on a machine that is short of cores."""
INTERRUPTED, UNREACHABLE = 130, 3


def config(folder: Path, name: str, **changes: Any) -> Path:
    """Write the configuration of a small study with all phases; return its path."""
    return shell.write_config(folder, name, **{**STUDY, **changes})


def leftovers(home: Path) -> list[Path]:
    """Return what was kept for later and never fetched: spooled measurements, checkpoints."""
    kept = (home / "spool", home / "checkpoints")
    return sorted(path for folder in kept for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Member:
    """One process, and where its output goes."""

    process: subprocess.Popen[bytes]
    log: Path
    keeper: threading.Thread

    def text(self) -> str:
        """Return what it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


class Crew:
    """The processes of one study; they end with the `with` block.

    `fallen` names those that ended neither by our hand nor because there was nothing left to do.
    """

    def __init__(
        self, config: Path, url: str, home: Path, *, program: Program = shell.PLAIN, until: str = ""
    ) -> None:
        self._config, self._url, self._home, self._program = config, url, home, program
        self._until = ("--until", until) if until else ()
        self._all: list[Member] = []
        self._leaving: list[Member] = []
        self.workers: list[Member] = []
        self.fallen: list[str] = []
        self.proposer = self._propose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._all:
            member.process.kill()
            member.process.wait()
            member.keeper.join()

    def hire(
        self, count: int = 1, *, pack: int = 1, program: Program | None = None, **environment: str
    ) -> list[Member]:
        """Start workers; return them."""
        command = ("worker", self._config.stem, "--wait", "--device", "cpu", "--pack", str(pack))
        new = [self._start(program or self._program, command, environment) for _ in range(count)]
        self.workers += new
        return new

    def replace_worker(self, index: int, number: signal.Signals) -> None:
        """End a worker by a signal; another takes its place at once."""
        self.end(self.workers[index], number)
        self.hire()

    def replace_proposer(self, number: signal.Signals) -> None:
        """End the proposer by a signal; another takes its place at once."""
        self._end(self.proposer, number)
        self.proposer = self._propose()

    def end(self, worker: Member, number: signal.Signals) -> None:
        """End a worker by a signal."""
        self.workers.remove(worker)
        self._end(worker, number)

    def tend(self) -> bool:
        """Replace whoever has fallen; tell whether the study is over."""
        code = self.proposer.process.poll()
        if code:
            self._note(self.proposer)
            self.proposer = self._propose()
        for worker in [one for one in self.workers if one.process.poll()]:
            self._note(worker)
            self.workers.remove(worker)
            self.hire()
        return code == 0

    def finish(self) -> None:
        """Wait until the study is over and all processes have ended."""
        wait_for(self.tend, PATIENCE)
        for worker in self.workers:
            if worker.process.wait(PATIENCE):
                self._note(worker)
        for member in self._leaving:
            # 0: the study was over by then. -SIGTERM: Python had not got as far as a handler.
            expected = (0, INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM)
            if member.process.wait(PATIENCE) not in expected:
                self._note(member)

    def _propose(self) -> Member:
        command = ("launch", str(self._config), "--workers", "0", "--force", *self._until)
        return self._start(self._program, command, {})

    def _end(self, member: Member, number: signal.Signals) -> None:
        if member.process.poll():
            self._note(member)
        member.process.send_signal(number)
        self._leaving.append(member)

    def _note(self, member: Member) -> None:
        """Note an end that should not be; not that of a `launch` that finds no server at first."""
        lines = member.text().strip().splitlines() or ["without a word"]
        complaints = [line for line in lines if not line.endswith(": starting")]
        refused = member.process.returncode == UNREACHABLE and len(complaints) == 1
        if refused and member.log.stem.endswith("launch"):
            return
        self.fallen.append(f"{member.log}: exit code {member.process.returncode}: {lines[-1]}")

    def _start(
        self, program: Program, command: Sequence[str], environment: dict[str, str]
    ) -> Member:
        process = subprocess.Popen(
            shell.command(*command, program=program),
            cwd=self._config.parent,
            env={
                **shell.environment(self._url),
                "DENSITUNE_HOME": str(self._home),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        log = self._config.with_name(f"{self._config.stem}-{len(self._all):03d}-{command[0]}.log")
        # Through a pipe, so that a test can forbid the process to write files.
        keeper = threading.Thread(target=_keep, args=(process, log), daemon=True)
        keeper.start()
        self._all.append(Member(process, log, keeper))
        return self._all[-1]


def _keep(process: subprocess.Popen[bytes], log: Path) -> None:
    """Write to a file what a process says, until it ends."""
    assert process.stdout is not None
    with process.stdout as said, log.open("wb", buffering=0) as file:
        shutil.copyfileobj(said, file)
