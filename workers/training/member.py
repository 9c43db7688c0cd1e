"""A member of a pack: one job in training, whatever its neighbours are."""

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workers.networks import depthwise, pointwise, proxies
from workers.training import capture, devices
from workers.training.recipe import Ending, Job, Measurement, Recipe, steps_per_epoch, tuners
from workers.training.tasks import Draws, Task

State = dict[str, Any]
"""All that the rest of a training depends on: tensors, and dictionaries of plain values."""


class DivergedError(Exception):
    """A job's weights or score are no longer finite; the same job would end so again."""


class Member:
    """One job in training on a device.

    Batches, rates and positions are tensors on the device, so that a step asks nothing of the
    host and waits for nothing; only a measurement does.
    """

    def __init__(self, task: Task, recipe: Recipe, job: Job, device: torch.device) -> None:
        self._task, self._recipe, self._job, self._device = task, recipe, job, device
        self._epoch_steps = steps_per_epoch(task, recipe)
        self._steps = 0
        self.seconds = 0.0
        """The member's share of the time that training takes, kept by the loop."""
        # Before training, and before the member's own stream: if it cannot be read, no job waits.
        split = job.arm.split
        self._judge = task.test() if split == "test" else task.evaluate
        self._judge_sealed = task.test() if split == "both" else None
        self._lane = capture.Lane(device)
        with self._lane():
            network = proxies.build(
                recipe.proxy,
                job.arm.densities,
                init=job.arm.init or recipe.init,
                seed=job.seed,
                gain=job.arm.gain,
                trainable=job.arm.trainable,
                mask=job.arm.mask,
                start=job.arm.start,
            )
            # Channels last: 1.1x to 1.7x in fp32 on one core (docs/performance.md).
            self._network = network.to(device).to(memory_format=torch.channels_last)
            if device.type == "cpu":
                depthwise.speed_up(self._network)
                pointwise.make_exact(self._network)
            self._tuners = tuners(task, recipe, job, self._network)
            self._draws = Draws(job.seed, device)
            self._order = torch.zeros(
                (self._epoch_steps, min(recipe.batch_size, len(task))),
                dtype=torch.int64,
                device=device,
            )
            self._row = torch.zeros(1, dtype=torch.int64, device=device)  # of the order
            self._count = torch.zeros(1, dtype=torch.int64, device=device)  # of all steps
            self._loss = torch.zeros((), device=device)
        self._repeated = capture.Repeated(device, [self._draws.augmentation, self._draws.noise])

    @property
    def rung(self) -> int | None:
        """Return the epochs trained so far if a measurement is due after them."""
        epoch, rest = divmod(self._steps, self._epoch_steps)
        if rest or not epoch:
            return None
        if epoch == self._job.budget:
            return epoch
        return epoch if epoch in self._recipe.rungs and self._job.arm.split != "test" else None

    def state(self) -> State:
        """Return the state between two steps; its tensors are those in use."""
        devices.synchronize(self._device)
        return {
            "steps": self._steps,
            "seconds": self.seconds,
            "network": dict(self._network.state_dict()),
            "optimizers": [tuner.optimizer.state_dict()["state"] for tuner in self._tuners],
            "generators": {name: draw.get_state() for name, draw in vars(self._draws).items()},
            "order": self._order,
        }

    def resume(self, state: State) -> None:
        """Go on, before the first step here, from the state of another member of the same job.

        The steps that follow compute the bits that the other's would have (on the same device).
        """
        self._steps, self.seconds = state["steps"], state["seconds"]
        with self._lane():
            self._network.load_state_dict(state["network"])
            for tuner, own in zip(self._tuners, state["optimizers"], strict=True):
                tuner.resume(own)
            for name, draw in vars(self._draws).items():
                draw.set_state(state["generators"][name])
            self._order.copy_(state["order"])
            self._row.fill_(self._steps % self._epoch_steps)
            self._count.fill_(self._steps)

    def step(self) -> None:
        """Train on one batch, or queue that on a GPU."""
        with self._lane():
            if self._steps % self._epoch_steps == 0:
                self._begin_epoch()
            # Given anew each time: a member that holds its own method outlives its last use.
            self._repeated(self._train_on_a_batch)
        self._steps += 1

    def measure(self) -> Measurement:
        """Judge the network as it is now, in float32.

        If it is no longer finite: DivergedError, or if the job is to score the floor then, that
        score, and the job ends.
        """
        started = time.perf_counter()
        arm, epoch = self._job.arm, self._steps // self._epoch_steps
        self._network.eval()
        with self._lane(), torch.inference_mode():
            score = self._judge(self._network)
            loss = self._loss.item()
            # The loss is from before the last step, and an accuracy is finite whatever the
            # weights are.
            finite = [weights.isfinite().all() for weights in self._network.parameters()]
            sound = bool(torch.stack(finite).all())
            diverged = not (sound and score.is_finite and math.isfinite(loss))
            judged = self._network
            if diverged and arm.floored:
                judged, epoch = self._task.untrained(), self._job.budget
                score = self._judge(judged)
            ending = self._ending(epoch, score.value)
            done = ending == "done"
            sealed = self._judge_sealed(judged) if self._judge_sealed and done else None
        self.seconds += time.perf_counter() - started
        if diverged and not arm.floored:
            raise DivergedError(
                f"diverged: loss {loss:g}, score {score.value:g} and "
                f"{'finite' if sound else 'non-finite'} weights after {epoch} epochs"
            )
        beside: dict[str, Any] = {"diverged": True} if diverged else {}
        if arm.trainable and not diverged:
            beside["den"] = proxies.learned(self._network)
        score = replace(score, extra={**score.extra, **beside})
        if not (arm.per_image and done):
            score, sealed = replace(score, images=()), sealed and replace(sealed, images=())
        return Measurement(epoch, score, self.seconds, ending, sealed)

    def _ending(self, epoch: int, score: float) -> Ending | None:
        if score < self._job.bars.get(epoch, -math.inf):
            return "cut"
        return "done" if epoch == self._job.budget else None

    def _begin_epoch(self) -> None:
        """Draw the order of the next epoch's images, on the CPU as all devices share it."""
        self._network.train()
        order = torch.randperm(len(self._task), generator=self._draws.order)
        self._order.copy_(order[: self._order.numel()].view_as(self._order))
        self._row.zero_()

    def _train_on_a_batch(self) -> None:
        """Do one step; a GPU captures it, so nothing here may depend on a tensor's value."""
        chosen = self._order.index_select(0, self._row).squeeze(0)
        for tuner in self._tuners:
            tuner.set_rate(self._count)
        inputs, targets = self._task.batch(chosen, self._draws)
        loss = self._task.loss(self._outputs(inputs), targets)
        for tuner in self._tuners:
            tuner.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for tuner in self._tuners:
            tuner.optimizer.step()
        self._loss.copy_(loss.detach())
        self._row += 1
        self._count += 1

    def _outputs(self, inputs: Tensor) -> Tensor:
        low = self._recipe.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            outputs: Tensor = self._network(inputs)
        return outputs.float()
