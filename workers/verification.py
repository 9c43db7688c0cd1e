"""Checks of what a preset promises: its layers fold exactly, its jobs give their numbers again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from densitune.density import Densities
from densitune.weighted_conv import WeightedConv2d
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError, UsageError
from storage.arms import Arm
from workers import preparation
from workers.seeds import generator
from workers.training import devices
from workers.training.loop import train
from workers.training.member import DivergedError
from workers.training.recipe import Job, Measurement, Precision, Recipe
from workers.training.tasks import Task


def check_folding(kernel_size: int, den: Sequence[float]) -> None:
    """Check that a weighted layer and its folded plain convolution give the same bits.

    UsageError if they do not. The layer has 4 channels in and out, the image 16 x 16 pixels.
    """
    layer = WeightedConv2d(4, 4, kernel_size, den, padding=kernel_size // 2)
    image = torch.randn(1, 4, 16, 16, generator=generator(0, "folding"))
    with torch.inference_mode():
        difference = (layer(image) - layer.fold()(image)).abs().max().item()
    if difference != 0:
        raise UsageError(
            f"density {list(den)} of kernel size {kernel_size}: the folded convolution differs "
            f"from the weighted one by {difference:g}; expected 0"
        )


@dataclass(frozen=True)
class Bench:
    """What recorded jobs are trained again with: a task and a recipe on a device."""

    task: Task
    recipe: Recipe
    device: torch.device

    @classmethod
    def prepare(
        cls,
        given: StudyConfig,
        home: Path,
        *,
        fingerprint: str,
        precision: Precision,
        device: str,
    ) -> Self:
        """Prepare the data of a config.

        UsageError if they do not have the fingerprint, or the device not the precision.
        """
        chosen = devices.resolve(device)
        devices.check_precision(precision, [device])
        bank = preparation.bank(given.data, home)
        if bank.fingerprint != fingerprint:
            raise UsageError(
                f"the data here ({bank.source}, fingerprint {bank.fingerprint[:12]}) are not those "
                f"of the preset (fingerprint {fingerprint[:12]}); its jobs cannot be trained again"
            )
        devices.make_repeatable(chosen)
        task = preparation.task(given, bank, chosen)
        return cls(task, preparation.recipe(given, bank, precision), chosen)

    @property
    def kind(self) -> str:
        """Return the device as presets name it."""
        return devices.describe(self.device)

    def metrics(
        self, arms: Mapping[str, tuple[Densities, Arm]], seed: int, budget: int
    ) -> dict[str, float]:
        """Train arms with one seed and return the metric of each after `budget` epochs, by name.

        StudyFailedError if one diverges.
        """
        names = list(arms)
        found: dict[str, float] = {}

        def record(number: int, measurement: Measurement) -> None:
            found[names[number]] = measurement.score.value  # the last one is after the budget

        def fail(number: int, error: DivergedError) -> None:
            raise StudyFailedError(f"{names[number]}, trained again with seed {seed}, {error}")

        jobs = [
            Job(
                densities,
                seed,
                budget,
                lr=arm.lr,
                init=arm.init,
                gain=arm.gain,
                trainable=arm.trainable,
            )
            for densities, arm in arms.values()
        ]
        train(self.task, self.recipe, jobs, self.device, on_rung=record, on_failure=fail)
        return found
