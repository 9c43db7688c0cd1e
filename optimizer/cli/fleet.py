"""Local workers: one process per device, each a `densitune worker` of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

GRACE_SECONDS = 30.0
"""How long workers may take to leave before they are killed; workers.service.notice takes 25."""


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
        self._workers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> Self:
        if self._devices:
            self._logs.mkdir(parents=True, exist_ok=True)
        for number, device in enumerate(self._devices, start=1):
            path = self._logs / f"{self._study}.{os.getpid()}-{number}.log"
            with path.open("wb") as log:
                self._workers.append((self._start(device, log), path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, _ in self._workers:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process, _ in self._workers:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def size(self) -> int:
        """Return the number of workers that the fleet has, running or not."""
        return len(self._devices)

    def running(self) -> int:
        """Return how many of the processes run."""
        return sum(process.poll() is None for process, _ in self._workers)

    def complaints(self) -> list[str]:
        """Return the last line and the log file of every worker that ended with an error."""
        return [
            f"{_last_line(path)} (log: {path})" for process, path in self._workers if process.poll()
        ]

    def wait(self) -> int:
        """Wait until all have ended; return the worst exit code."""
        return max((process.wait() for process, _ in self._workers), default=0)

    def _start(self, device: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "optimizer.cli", "worker", self._study]
        return subprocess.Popen(
            [*command, "--device", device, *self._options],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to the foreground's process group; the workers are told by us, once.
            start_new_session=True,
        )


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "a worker ended without a word"
