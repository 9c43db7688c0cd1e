"""The command line as a shell uses it: processes of their own (or none, where
that is not the point), and what they left in a database."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine, text

from optimizer.cli import main
from support.checkout import ROOT


def write_config(folder: Path, name: str, **changes: object) -> Path:
    content: dict[str, object] = {
        "name": name,
        "task": "photos",
        "data": {"patch": 16, "patches_per_image": 8, "crop": 32},
        "proxy": {"family": "nafnet", "width": 4, "depth": 1},
        "kernel_size": 3,
        "training": {"budget": 2, "batch_size": 8, "lr": 0.003},
        "search": {"trials": 7, "seeds": 2, "rungs": [1], "sampler": "qmc"},
        "confirm": {"finalists": 1, "seeds": 2, "batch": 2, "budget": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


Program = tuple[str, ...]
PLAIN: Program = ("-m", "optimizer.cli")


def command(*arguments: str, program: Program = PLAIN) -> list[str]:
    return [sys.executable, *program, *arguments]


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "DENSITUNE_STORAGE": url, "PYTHONPATH": str(ROOT)}


def run(
    folder: Path, url: str, *arguments: str, answer: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(url),
        input=answer,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def start(folder: Path, url: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("wb") as log:
        return subprocess.Popen(
            command(*arguments), cwd=folder, env=environment(url), stdout=log, stderr=log
        )


class Here:
    """The command line in this process, for what neither trains nor is about processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def run(
        self, folder: Path, url: str, *arguments: str, answer: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Do what the function `run` does, without a process."""
        command = ["densitune", *arguments]
        handled = {number: signal.getsignal(number) for number in HANDLED}
        with self._monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("DENSITUNE_STORAGE", url)
            patch.setattr(sys, "argv", command)
            patch.setattr(sys, "stdin", io.StringIO(answer))
            with pytest.raises(SystemExit) as end:
                main.main()
        for number, handler in handled.items():
            signal.signal(number, handler)
        said = self._capsys.readouterr()
        return subprocess.CompletedProcess(command, int(end.value.code or 0), said.out, said.err)

    def refused(self, folder: Path, url: str, *arguments: str) -> tuple[int, str]:
        """Return exit code and what was printed to standard error."""
        ended = self.run(folder, url, *arguments)
        return ended.returncode, ended.stderr.strip()


def query(engine: Engine, statement: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that the command line handles, and would handle for ever in a process that goes on."""

LEDGER = """
    SELECT phase, trial, seed, rung, value, extra FROM densitune.measurements
    JOIN densitune.jobs ON jobs.id = job_id ORDER BY phase, trial, seed, rung
"""
