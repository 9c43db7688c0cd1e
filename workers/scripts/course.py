"""A job of a training script: what its reports come to, and its checkpoint."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from workers.scripts.process import ScriptError
from workers.scripts.script import Script
from workers.training import scores
from workers.training.member import DivergedError, State
from workers.training.recipe import Ending, Job, Measurement
from workers.training.scores import Score


class Course:
    """One job in training, in the terms of its study."""

    def __init__(self, script: Script, job: Job) -> None:
        self._script, self.job = script, job
        self._began, self._before = time.monotonic(), 0.0
        self._ended = math.inf

    @property
    def is_open(self) -> bool:
        """Whether the job has not ended."""
        return self._ended == math.inf

    def end(self) -> None:
        """Note that the job ends now."""
        self._ended = time.monotonic()

    @property
    def seconds_after(self) -> float:
        """How long ago it has ended; negative if it has not."""
        return time.monotonic() - self._ended

    def state(self, checkpoint: bytes) -> State:
        """Return what somebody else can go on from."""
        content = torch.frombuffer(bytearray(checkpoint), dtype=torch.uint8)
        return {"script": content, "seconds": self._seconds}

    def resume(self, state: State) -> bytes:
        """Go on from a state of another course of the job; return its checkpoint."""
        self._before = state["seconds"]
        return bytes(state["script"].numpy())

    def measured(self, report: Mapping[str, Any]) -> Measurement | None:
        """Return the measurement that a report makes; None if none is due after this epoch.

        If it is not finite, or worse than any value that is kept: DivergedError, or, of a job that
        is to score the floor then, that measurement, with which it ends. ScriptError if it is
        better than any. What the test split said changes nothing, whatever it is.
        """
        script, job, epoch = self._script, self.job, report["report"]
        learned = {} if report["den"] is None else {"den": report["den"]}
        score = script.score(report["value"], learned)
        said = f"reported {report['value']:g} after {epoch} epochs"
        if not _is_finite(report) or score.value < -scores.MOST:
            if not job.arm.floored:
                raise DivergedError(f"diverged: {said}")
            score, epoch = Score(script.floor, {"diverged": True}), job.budget
            sealed = script.told_apart(Score(script.floor, {})) if job.arm.split == "both" else None
            return Measurement(epoch, score, self._seconds, "done", sealed)
        if score.value > scores.MOST:
            raise ScriptError(
                f"{said}; a metric lies between -1,000,000 and 1,000,000: report it in another unit"
            )
        if epoch not in script.rungs_of(job):
            return None
        ending = self._ending(epoch, score)
        sealed = None
        if report["test"] is not None and ending == "done":
            sealed = script.told_apart(script.score(report["test"], {}))
        return Measurement(epoch, score, self._seconds, ending, sealed)

    def _ending(self, epoch: int, score: Score) -> Ending | None:
        if score.value < self.job.bars.get(epoch, -math.inf):
            return "cut"
        return "done" if epoch == self.job.budget else None

    @property
    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began


def _is_finite(report: Mapping[str, Any]) -> bool:
    """Tell whether value and learned densities of a report are finite."""
    layers = [layer for told in (report["den"] or {}).values() for layer in told]
    learned = [number for den in layers for number in den]
    return all(map(math.isfinite, (report["value"], *learned)))
