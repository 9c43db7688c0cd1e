"""Local workers: one process per device, each a `densitune worker` of its own."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from storage import durable
from storage.roster import TOKEN

KILL_SECONDS = 30.0
"""From telling workers to leave until they are killed; workers.service.notice takes 25."""
LOOK_SECONDS = 1.0
"""Between two looks at what has become of the processes."""


@dataclass(frozen=True)
class Death:
    """The end of a worker's process by a signal."""

    token: str
    """By which the storage knows the worker."""
    number: int

    def __str__(self) -> str:
        try:
            name = f" ({signal.Signals(self.number).name})"
        except ValueError:  # a real-time signal
            name = ""
        return f"its process ended by signal {self.number}{name}"


@dataclass(frozen=True)
class _Worker:
    """A worker's process, the file that its output goes to, and its token."""

    process: subprocess.Popen[bytes]
    log: Path
    token: str

    @property
    def code(self) -> int:
        """Return the exit code: a negative signal, 0 as long as the process runs."""
        return self.process.poll() or 0

    @property
    def last_words(self) -> str:
        """Return how the process ended with an error."""
        if self.code < 0:
            return str(Death(self.token, -self.code))
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "a worker ended without a word"


class Fleet:
    """Worker processes that live as long as the `with` block.

    The storage's URL goes through the environment, because a command line is visible to everybody
    on the machine. Output goes to one log file per worker. `options` are further ones of the
    command.
    """

    def __init__(
        self,
        study: str,
        devices: Sequence[str],
        *,
        pack: int | None,
        storage: str | None,
        logs: Path,
        options: Sequence[str] = (),
    ) -> None:
        self._study, self._devices = study, devices
        self._options = ["--pack", str(pack or "auto"), *options]
        self._environment = dict(os.environ)
        if storage is not None:
            self._environment["DENSITUNE_STORAGE"] = storage
        self._logs = logs
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        if self._devices:
            self._logs.mkdir(parents=True, exist_ok=True)
        for number, device in enumerate(self._devices, start=1):
            path = self._logs / f"{self._study}.{os.getpid()}-{number}.log"
            token = secrets.token_hex(8)
            path.unlink(missing_ok=True)  # of an earlier process with our number
            with durable.create(path) as log:
                self._workers.append(_Worker(self._start(device, token, log), path, token))
        return self

    def __exit__(self, *error: object) -> None:
        processes = [worker.process for worker in self._workers]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def devices(self) -> Sequence[str]:
        """The device of each worker that the fleet has, running or not."""
        return self._devices

    def running(self) -> int:
        """Return how many of the processes run."""
        return sum(worker.process.poll() is None for worker in self._workers)

    def complaints(self) -> list[str]:
        """Return how every worker that ended with an error did, and its log file."""
        failed = [worker for worker in self._workers if worker.code]
        return [f"{worker.last_words} (log: {worker.log})" for worker in failed]

    def deaths(self) -> list[Death]:
        """Return the processes that a signal has ended, all of them each time."""
        return [Death(worker.token, -worker.code) for worker in self._workers if worker.code < 0]

    def wait(self, look: Callable[[], None]) -> int:
        """Wait until all have ended, calling `look` now and then; return the worst exit code.

        A process that a signal has ended counts as a shell counts it: 128 and the signal.
        """
        while self.running():
            time.sleep(LOOK_SECONDS)
            look()
        codes = [worker.code for worker in self._workers]
        return max((128 - code if code < 0 else code for code in codes), default=0)

    def _start(self, device: str, token: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        # Without -P an `optimizer` of others in the working directory would come before ours.
        command = [sys.executable, "-P", "-m", "optimizer.cli", "worker", self._study]
        return subprocess.Popen(
            [*command, "--device", device, *self._options],
            env={**self._environment, TOKEN: token},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to the foreground's process group; the workers are told by us, once.
            start_new_session=True,
        )
