"""The process that a training script runs in: `python -m densitune.child`, started by a worker.

It has this package and the user's code on its path and nothing of the service. It hears and tells
lines of JSON on a socket; the worker's side, which says what they mean, is workers.scripts.process.
"""

import gc
import importlib
import json
import os
import resource
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from densitune import repeatable, settings
from densitune.link import Ended, Link
from densitune.run import Run
from densitune.treatment import Treatment

SERVICE = ("optimizer", "workers", "storage")
"""Packages of the service: a project may have some of these names."""
MOST_WORDS = 2000
"""Characters of an error that are told."""
SHARE = 0.01
"""Of the time of a job, for checkpoints, at most: large ones are made less often."""


class Apart:
    """A finder that sees those names everywhere but in the folder that this package is in."""

    def __init__(self) -> None:
        self._house = Path(__file__).resolve().parent.parent

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is; ModuleNotFoundError if only the service has it."""
        if name not in SERVICE:
            return None
        others = [place for place in sys.path if Path(place or ".").resolve() != self._house]
        found = PathFinder.find_spec(name, others)
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found


class Channel:
    """Lines of JSON, to and from the worker, one job at a time.

    Nobody else speaks for a job: what an earlier one has left running is told that it has ended,
    and in a process that a script has forked the socket is closed. Without anybody at the other
    end, this process ends.
    """

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.set_inheritable(False)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._turn = threading.Lock()
        self._job: int | None = None
        os.register_at_fork(after_in_child=self.close)

    def next(self) -> dict[str, Any]:
        """Return the next job."""
        job = self._hear()
        self._job = job["job"]
        return job

    def tell(self, job: int, **message: Any) -> None:
        """Send a message of a job; Ended if that is over."""
        with self._turn:
            self._send(job, message)

    def ask(self, job: int, **message: Any) -> dict[str, Any]:
        """Send a message of a job and return the answer; Ended if that is over."""
        with self._turn:
            self._send(job, message)
            return self._hear()

    def end(self, job: int, **message: Any) -> None:
        """Send the last message of a job."""
        with self._turn:
            self._send(job, message)
            self._job = None

    def close(self) -> None:
        """Let go of the socket, whoever reads from it still."""
        if self._socket.fileno() >= 0:
            os.close(self._socket.detach())

    def serves(self, job: int) -> bool:
        """Tell whether a job is the one that is spoken of, in this process."""
        return job == self._job and self._socket.fileno() >= 0

    def _send(self, job: int, message: dict[str, Any]) -> None:
        if job != self._job:
            raise Ended
        try:
            self._socket.sendall(json.dumps({"job": job, **message}).encode() + b"\n")
        except OSError:
            os._exit(1)

    def _hear(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError:
            os._exit(1)
        if not line:
            os._exit(0)
        heard: dict[str, Any] = json.loads(line)
        return heard


class ToWorker(Link):
    """Tells the worker how a run goes."""

    def __init__(self, channel: Channel, job: dict[str, Any], files: Sequence[int]) -> None:
        self._channel, self._files, self._job = channel, files, job["job"]
        self.rungs, self.wants_test = job["rungs"], job["test"]
        self._every: float = job["every"]
        self._next = time.monotonic() + self._every
        self._asked = self._next
        self._resumed, self._turn = job["resume"], 0

    def applied(self, count: int, left_alone: Mapping[str, str]) -> None:
        """Tell what an arm has done to a model, at some length at most."""
        left = ", ".join(f"{name or 'the model'} ({why})" for name, why in left_alone.items())
        self._channel.tell(self._job, applied=count, left=left[:MOST_WORDS])

    def begins(self, epoch: int) -> None:
        """Tell that an epoch begins: a sign of life."""
        self._channel.tell(self._job, epoch=epoch)

    def report(self, epoch: int, value: float, test: float | None, learned: Any) -> bool:
        """Tell a value; return whether the worker wants more."""
        answer = self._channel.ask(self._job, report=epoch, value=value, test=test, den=learned)
        return bool(answer["go"])

    def wants_checkpoint(self) -> bool:
        """Return whether it is time for the next one."""
        self._asked = time.monotonic()
        return bool(self._asked >= self._next)

    def save(self, epoch: int, parts: Sequence[bytes]) -> None:
        """Write a checkpoint into the file that does not have the last one, and say so.

        Where it cannot be written, the last one stays, and the job goes on.
        """
        if not self._channel.serves(self._job):
            return
        try:
            with os.fdopen(os.dup(self._files[self._turn]), "r+b") as file:
                file.seek(0)
                file.truncate()
                for part in parts:
                    file.write(part)
        except OSError as error:
            self._channel.tell(self._job, unsaved=str(error)[:MOST_WORDS])
        else:
            size = sum(map(len, parts))
            self._channel.tell(self._job, saved=epoch, file=self._turn, size=size)
            self._turn = 1 - self._turn
        now = time.monotonic()
        self._next = now + max(self._every, (now - self._asked) / SHARE if self._every else 0.0)

    def saved(self) -> bytes | None:
        """Return the checkpoint that the worker has put into the first file."""
        if not self._resumed:
            return None
        with os.fdopen(os.dup(self._files[0]), "rb") as file:
            file.seek(0)
            content = file.read(self._resumed)
        self._turn = 1
        return content


def main() -> None:
    """Train jobs one after another, as the worker says, until it is gone."""
    told = json.loads(sys.argv[1])
    channel, device = Channel(told["socket"]), torch.device(told["device"])
    home = os.getcwd()
    sys.argv[:] = [told["module"]]
    sys.path.insert(0, told["folder"])
    sys.meta_path.insert(0, Apart())
    for file in told["files"]:
        os.set_inheritable(file, False)
    repeatable.set_up(device)
    usual: settings.Usual | None = None
    while True:
        job = channel.next()
        number, entry = job["job"], job.get("call") or f"{told['module']}:{told['function']}"
        os.chdir(home)
        try:
            if usual is None:
                repeatable.seed(0)  # what is drawn at import depends on no job
            function = _function(entry)
            usual = usual or settings.Usual(device)
            if "call" in job:
                channel.tell(number, answer=function())
            else:
                _train(function, channel, job, told["files"], device)
        except BaseException as error:
            if not isinstance(error, SystemExit):  # what a parser of arguments has said is the end
                traceback.print_exc()
            channel.tell(number, failed=_kind(error), error=_said(error, told["folder"]))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        left = ", ".join(usual.put_back()) if usual else ""
        channel.end(number, memory=_memory(device), behind=left[:MOST_WORDS])


def _train(
    function: Callable[..., Any],
    channel: Channel,
    job: dict[str, Any],
    files: Sequence[int],
    device: torch.device,
) -> None:
    """Train one job; whatever the script raises comes through."""
    repeatable.seed(job["seed"])
    arm = Treatment(
        {int(size): tuple(den) for size, den in job["densities"].items()},
        {int(size): gain for size, gain in job["gain"].items()},
        job["mask"],
        job["start"],
        job["init"],
        job["trainable"],
    )
    link = ToWorker(channel, job, files)
    run = Run.of_study(job["seed"], job["lr"], job["budget"], device, arm, link)
    gc.freeze()  # what has been imported stays, and need not be looked through after each job
    try:
        function(run)
    except Ended:
        return
    if job["budget"] not in run.values:
        raise RuntimeError(
            f"the script ended without run.report({job['budget']}, value) after the last epoch"
        )


def _function(entry: str) -> Callable[..., Any]:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _kind(error: BaseException) -> str:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    return "data" if isinstance(error, OSError) else "code"


def _said(error: BaseException, folder: str) -> str:
    """Return an error in one line, with the last place in the user's code that led to it."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_WORDS]
    if isinstance(error, SystemExit):
        said += "; a script has no command line here, so arguments that it parses need defaults"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    return said + (f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else "")


def _memory(device: torch.device) -> int:
    """Return the bytes that this process holds, on the host and on its device."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = pages * resource.getpagesize()
    return held + (torch.cuda.memory_allocated(device) if device.type == "cuda" else 0)


if __name__ == "__main__":
    main()
