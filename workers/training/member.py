"""A member of a pack: one job in training, whatever its neighbours are."""

import math
import time
from dataclasses import replace
from typing import Any

import torch

from densitune import treatment
from optimizer.errors import UsageError
from workers.training.recipe import Ending, Job, Measurement, steps_per_epoch
from workers.training.scores import Judge, Score
from workers.training.slots import Slots
from workers.training.tasks import Task

State = dict[str, Any]
"""All that the rest of a training depends on: tensors, and dictionaries of plain values."""


class DivergedError(Exception):
    """A job's weights or score are no longer finite; the same job would end so again."""


class Member:
    """One job in training, in a slot of a device until it leaves."""

    def __init__(self, slots: Slots, job: Job) -> None:
        self._slots, self._job = slots, job
        self._epoch_steps = steps_per_epoch(slots.task, slots.recipe)
        self._steps = 0
        self.seconds = 0.0
        """The member's share of the time that training takes, kept by the loop."""
        # Before anything is trained: if it cannot be read, no job waits.
        split, task = job.arm.split, slots.task
        self._judge = task.test() if split == "test" else task.evaluate
        self._judge_sealed = _beside(task) if split == "both" else None
        self._slot = slots.take(job)

    @property
    def rung(self) -> int | None:
        """Return the epochs trained so far if a measurement is due after them."""
        epoch, rest = divmod(self._steps, self._epoch_steps)
        if rest or not epoch:
            return None
        if epoch == self._job.budget:
            return epoch
        rungs = self._slots.recipe.rungs
        return epoch if epoch in rungs and self._job.arm.split != "test" else None

    def state(self) -> State:
        """Return the state between two steps; its tensors are those in use."""
        return {"steps": self._steps, "seconds": self.seconds, **self._slot.state()}

    def resume(self, state: State) -> None:
        """Go on, before the first step here, from the state of another member of the same job.

        The steps that follow compute the bits that the other's would have (on the same device).
        """
        self._steps, self.seconds = state["steps"], state["seconds"]
        self._slot.resume(state, self._steps)

    def step(self) -> None:
        """Train on one batch, or queue that on a GPU."""
        self._slot.step()
        self._steps += 1

    def wait(self) -> None:
        """Wait until the steps that are queued are done."""
        self._slot.lane.wait()

    def leave(self) -> None:
        """Make room for another member, after the last use of this one."""
        self._slots.give(self._slot)

    def measure(self) -> Measurement:
        """Judge the network as it is now, in float32.

        If it is no longer finite: DivergedError, or if the job is to score the floor then, that
        score, and the job ends. The device judges one member at a time, in memory that all share.
        """
        started = time.perf_counter()
        self.wait()
        arm, epoch = self._job.arm, self._steps // self._epoch_steps
        network = self._slot.network.eval()
        with torch.inference_mode():
            score = self._judge(network)
            loss = self._slot.loss.item()
            # The loss is from before the last step, and an accuracy is finite whatever the
            # weights are.
            weights = torch.cat([weight.flatten() for weight in network.parameters()])
            sound = bool(weights.isfinite().all())
            diverged = not (sound and score.is_finite and math.isfinite(loss))
            judged = network
            if diverged and arm.floored:
                judged, epoch = self._slots.task.untrained(), self._job.budget
                score = self._judge(judged)
            ending = self._ending(epoch, score)
            done = ending == "done"
            sealed = self._judge_sealed(judged) if self._judge_sealed and done else None
        network.train()
        self.seconds += time.perf_counter() - started
        if diverged and not arm.floored:
            raise DivergedError(
                f"diverged: loss {loss:g}, score {score.value:g} and "
                f"{'finite' if sound else 'non-finite'} weights after {epoch} epochs"
            )
        beside: dict[str, Any] = {"diverged": True} if diverged else {}
        if arm.trainable and not diverged:
            beside["den"] = treatment.learned(network)
        score = replace(score, extra={**score.extra, **beside})
        if not (arm.per_image and done):
            score, sealed = replace(score, images=()), sealed and replace(sealed, images=())
        return Measurement(epoch, score, self.seconds, ending, sealed)

    def _ending(self, epoch: int, score: Score) -> Ending | None:
        by_entropy = self._job.arm.searched_by == "cross_entropy"
        reached = -score.extra["cross_entropy"] if by_entropy else score.value
        if reached < self._job.bars.get(epoch, -math.inf):
            return "cut"
        return "done" if epoch == self._job.budget else None


def _beside(task: Task) -> Judge | None:
    """Return what judges on the test split, None without one: no verdict waits for that."""
    try:
        return task.test()
    except UsageError:
        return None
