"""Where the jobs of a training script are trained: one after another, in a process of its own.

It has the callbacks of workers.training.loop. What a script does to its process costs it one job:
after a failure the next job gets a new process.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optimizer.errors import StudyFailedError, UsageError
from workers import entries
from workers.entries import Entry
from workers.scripts.course import Course
from workers.scripts.process import Process, ScriptError
from workers.scripts.script import Script
from workers.training import devices
from workers.training.loop import StoppedError
from workers.training.member import DivergedError, State
from workers.training.recipe import Job, Measurement

LOOK_SECONDS = 0.1
"""Between two looks at whether to stop, while a script says nothing."""
EVERY_SECONDS = 2.0
"""Between two checkpoints of a job, at least: a preemption loses no more than that and an epoch."""
AFTER_SECONDS = 60.0
"""How long a script may go on when its job has ended; what it does then is of no consequence."""
GROWTH = 2**29
"""Bytes by which a process may have grown since its first job; then a new one takes its place."""

log = logging.getLogger("densitune.worker")


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Whom a stage tells of its jobs, by number, and asks: as workers.training.loop.train does."""

    on_rung: Callable[[int, Measurement], None]
    on_failure: Callable[[int, Exception], None]
    refill: Callable[[], Sequence[Job]] = tuple
    stopping: Callable[[], bool] = lambda: False
    leaving: Callable[[], Collection[int]] = tuple
    restore: Callable[[int], State | None] = lambda number: None
    save: Callable[[int, State], None] = lambda number, state: None


class Stage:
    """A script on a device; `close` it in the end."""

    def __init__(
        self, script: Script, entry: Entry, device: torch.device, *, every: float = EVERY_SECONDS
    ) -> None:
        self.recipe, self.device = script, device
        self._entry, self._every = entry, every
        self._process: Process | None = None
        self._starved: list[Job] = []  # for which memory was too small once
        self.treated: tuple[int, str] | None = None
        """How many convolutions the last job has treated, and which of their sizes it has not."""
        self.first_epoch: int | None = None
        """The epoch that the last job began with, if the script has told."""
        self.saved = 0
        """How many checkpoints have been made since `train` was called."""

    def train(self, jobs: Sequence[Job], **callbacks: Any) -> None:
        """Train jobs in turn and call back with each one's number in the order of arrival.

        The callbacks are those of workers.training.loop.train. `on_failure` hears of every failure:
        DivergedError, MemoryError (of a job for the first time), OSError of data, ScriptError of
        all others. When training is to stop, the job that is trained is saved, and StoppedError
        raised; StudyFailedError if a new process would run other code than the last one did.
        """
        asked, numbers = Callbacks(**callbacks), itertools.count()
        waiting: deque[tuple[int, Job]] = deque()
        self.saved = 0
        joining = jobs
        while waiting or joining:
            waiting.extend((next(numbers), job) for job in joining)
            if asked.stopping():
                raise StoppedError
            number, job = waiting.popleft()
            if number not in asked.leaving():
                self._train(number, job, asked)
            joining = asked.refill()

    @property
    def has_checkpoint(self) -> bool:
        """Whether the job in training could be gone on with."""
        return self._process is not None and self._process.has_checkpoint

    def call(self, function: str) -> float | str:
        """Return what a function of the user's own returns; ScriptError if it fails."""
        process = self._ready()
        answer: float | str | None = None
        try:
            process.begin({"call": function})
            for message in self._heard(process):
                if "failed" in message:
                    raise ScriptError(message["error"])
                answer = message.get("answer", answer)
        except ScriptError:
            self.close()
            raise
        assert answer is not None  # or it has failed
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _train(self, number: int, job: Job, asked: Callbacks) -> None:
        """Train a job to its end, whatever that is; only StoppedError comes through."""
        course = Course(self.recipe, job)
        self.treated, self.first_epoch = None, None
        try:
            process = self._ready()
            state = asked.restore(number)
            resume = b"" if state is None else course.resume(state)
            process.put(resume)
            process.begin(self.recipe.told(job, every=self._every, resume=len(resume)))
            for message in self._heard(process):
                if "failed" in message:
                    raise _raised(message["failed"], message["error"])
                if "applied" in message:
                    self.treated = message["applied"], message["left"]
                if "epoch" in message and self.first_epoch is None:
                    self.first_epoch = message["epoch"]
                if "saved" in message:
                    process.keep(message["file"], message["size"])
                    self.saved += 1
                if "unsaved" in message:
                    log.warning("a checkpoint could not be written: %s", message["unsaved"])
                if "report" in message:
                    self._reported(number, course, message, asked)
                    process.tell({"go": course.is_open or message["report"] == job.budget})
                if asked.stopping():
                    process.end()
                    if course.is_open and process.has_checkpoint:
                        asked.save(number, course.state(process.checkpoint()))
                    raise StoppedError
                if course.is_open and number in asked.leaving():
                    self.close()
                    return
                if course.seconds_after > AFTER_SECONDS:
                    raise ScriptError(f"it has gone on for {AFTER_SECONDS:g} s")
            if course.is_open:
                raise ScriptError("its process was done with a job that had not ended")
        except (StoppedError, StudyFailedError):
            self.close()
            raise
        except Exception as error:
            failure = self._failure(job, error)
            if course.is_open:
                asked.on_failure(number, failure)
            else:  # by its last report; what came after that is of no consequence
                log.warning("a script failed after its last report: %s", failure)

    def _reported(
        self, number: int, course: Course, report: Mapping[str, Any], asked: Callbacks
    ) -> None:
        """Tell what a report comes to, of a job that has not ended."""
        if not course.is_open:
            return
        try:
            measurement = course.measured(report)
        except DivergedError as error:
            course.end()
            asked.on_failure(number, error)
            return
        if measurement is not None:
            if measurement.ending is not None:
                course.end()
            asked.on_rung(number, measurement)

    def _ready(self) -> Process:
        """Return the process, a new one if there is none; StudyFailedError if its code changed."""
        if self._process is None:
            try:
                found = entries.find(self._entry.name, self._entry.place)
                entries.check(found, self._entry.fingerprint)
            except UsageError as error:  # edited since this worker began
                raise StudyFailedError(f"{error}; the worker leaves") from error
            self._process = Process(self._entry, self.device)
        return self._process

    def _heard(self, process: Process) -> Iterator[dict[str, Any]]:
        """Yield what a process says until it is free, and nothing ({}) now and then.

        ScriptError if it is silent for too long, or gone.
        """
        since = time.monotonic()
        while True:
            message = process.hear(LOOK_SECONDS)
            if message is not None:
                since = time.monotonic()
                if "memory" in message:
                    self._rest(process, message["memory"], message["behind"])
                    return
            elif time.monotonic() - since > self.recipe.patience:
                raise ScriptError(
                    f"the script was silent for {self.recipe.patience:g} s, as long as "
                    f"data.patience allows"
                )
            yield message or {}

    def _rest(self, process: Process, memory: int, left: str) -> None:
        """Keep a process for the next job, unless it is not to be, or is not what it was."""
        process.keep(0, 0)
        process.memory = memory if process.memory is None else process.memory
        grown = memory - process.memory
        if grown > GROWTH:
            log.warning("the script holds %d MiB more than at first: a new process", grown >> 20)
        if left and self.recipe.warm:
            log.warning("the script leaves behind %s: a new process", left)
        if grown > GROWTH or left or not self.recipe.warm:
            self.close()

    def _failure(self, job: Job, error: Exception) -> Exception:
        """End the process after a failure; return what the failure is."""
        process = self._process
        self.close()
        if process is None:
            return error
        for line in process.printed:
            log.warning("| %s", "".join(sign if sign.isprintable() else " " for sign in line))
        full = isinstance(error, MemoryError) or process.killed
        if not full:
            return error
        said = f"{error} (memory is full)" if process.killed else str(error)
        if job in self._starved:  # it is this job that needs more than others, wherever it is
            return ScriptError(f"{said}, twice")
        self._starved.append(job)
        return MemoryError(said)


def _raised(kind: str, said: str) -> Exception:
    """Return what a script has raised, by the kind that its process tells and what it says."""
    if kind == "memory" or any(words in said for words in devices.FULL):
        return MemoryError(said)
    return OSError(said) if kind == "data" else ScriptError(said)
