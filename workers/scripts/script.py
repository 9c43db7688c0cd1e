"""What a study says of its training script, and what a job is told."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from optimizer.arms import Init
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


def _by_text(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(size): value for size, value in values.items()}
