"""What a study says of its training script, and what a job is told."""

import difflib
import symtable
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import decode_source
from typing import Any

from optimizer.arms import Init
from optimizer.errors import UsageError
from workers import entries
from workers.entries import Entry, Place
from workers.training.recipe import Job
from workers.training.scores import Score


@dataclass(frozen=True)
class Script:
    """A training script as all workers of a study have it; where it lies is an entry's business."""

    name: str
    """module:function."""
    fingerprint: str
    init: Init
    lr: float | None
    """Peak learning rate where an arm has none of its own; None leaves it to the script."""
    rungs: tuple[int, ...]
    """Epochs after which a job is measured; those at or beyond its budget are ignored."""
    is_lower_better: bool
    floor: float
    """What a training that diverges scores, if it scores; higher is better."""
    warm: bool
    """Whether a process trains one job after another."""
    patience: float
    """Seconds that a script may be silent."""

    def score(self, reported: float, extra: dict[str, Any]) -> Score:
        """Return what was reported with higher as better: what is minimized is negated here."""
        return Score(-reported if self.is_lower_better else reported, extra)

    def told_apart(self, score: Score) -> Score:
        """Return a score of the test split with what tells its images from others'."""
        return replace(score, extra={**score.extra, "test": self.fingerprint})

    def rungs_of(self, job: Job) -> tuple[int, ...]:
        """Return the epochs after which a job is measured, its budget last."""
        if job.arm.split == "test":
            return (job.budget,)
        return (*(rung for rung in self.rungs if rung < job.budget), job.budget)

    def told(self, job: Job, *, every: float, resume: int) -> dict[str, Any]:
        """Return a job as its process is told.

        every: seconds between two checkpoints, at least. resume: bytes of the one to go on from.
        """
        arm = job.arm
        return {
            "seed": job.seed,
            "lr": arm.lr or self.lr,
            "budget": job.budget,
            "rungs": self.rungs_of(job),
            "densities": _by_text(arm.densities),
            "gain": _by_text(arm.gain),
            "mask": arm.mask,
            "start": arm.start,
            "init": arm.init or self.init,
            "trainable": arm.trainable,
            "test": arm.split == "both",
            "every": every,
            "resume": resume,
        }


def find_script(name: str, place: Place) -> Entry:
    """Find a script, `module:function`, in a place, without running anything.

    UsageError if it is not there, is not Python, or cannot have such a function: what a module
    binds at its top is seen in its text.
    """
    entry = entries.find(name, place)
    try:
        source = decode_source(entry.file.read_bytes())
        symbols = symtable.symtable(source, str(entry.file), "exec").get_symbols()
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{name}: {entry.file} cannot be read as Python: {error}") from error
    names = {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}
    if not names & {entry.function, "__getattr__"} and "import *" not in source:
        close = ", ".join(difflib.get_close_matches(entry.function, names)) or "none"
        raise UsageError(f"{name}: {entry.file} has no function {entry.function}; nearest: {close}")
    return entry


def _by_text(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(size): value for size, value in values.items()}
