"""Checks of what a preset promises: exact folding, equal training, and its jobs' numbers again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from densitune.weighted_conv import WeightedConv2d
from optimizer.arms import Arm, Precision
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError, UsageError
from workers import entries, preparation
from workers.entries import Entry
from workers.preparation import Bench
from workers.scripts.stage import Stage
from workers.seeds import generator
from workers.training import devices, equivalence
from workers.training.loop import train
from workers.training.recipe import Job, Measurement
from workers.training.slots import Slots

EQUAL = 1e-10
"""Largest deviation of trainings in float64 that are the same but for rounding."""


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


def check_equivalence(kernel_size: int, den: Sequence[float]) -> None:
    """Check that a density trains as a plain convolution with another start and other steps.

    UsageError if it does not: a density changes nothing else.
    """
    for rule in get_args(equivalence.Rule):
        difference = equivalence.deviation(kernel_size, tuple(den), rule)
        if not difference <= EQUAL:
            raise UsageError(
                f"density {list(den)} of kernel size {kernel_size}: {equivalence.STEPS} steps of "
                f"{rule} differ from a plain convolution's by {difference:.1g} of the largest "
                f"weight; expected at most {EQUAL:g}"
            )


def prepare(
    config: StudyConfig,
    home: Path,
    *,
    fingerprint: str,
    precision: Precision,
    device: str,
    versions: Mapping[str, str],
    floors: Mapping[str, float],
) -> Bench | Stage:
    """Prepare the data of a config on a device, or its script, to train recorded jobs again.

    UsageError if they do not have the fingerprint, the device not the precision, or the network's
    code is not the one among the recorded versions. `floors` are those that were recorded.
    """
    chosen = devices.resolve(device)
    for name, code in preparation.code(config).items():
        if name not in versions:
            raise UsageError(
                f"the preset names {name} and has no fingerprint of it in provenance.versions; it "
                f"was altered, do not train it"
            )
        if versions[name] != code:
            raise UsageError(
                f"{name} is {code[:20]} here, and {versions[name][:20]} in the preset; its jobs "
                f"cannot be trained again"
            )
    devices.check_precision(precision, [device])
    bank = preparation.prepare(config.data, home)
    if isinstance(bank, Entry):
        entries.check(bank, fingerprint)
    elif bank.fingerprint != fingerprint:
        raise UsageError(
            f"the data here ({bank.source}, fingerprint {bank.fingerprint[:12]}) are not those "
            f"of the preset (fingerprint {fingerprint[:12]}); its jobs cannot be trained again"
            + (
                ""
                if config.data.task in ("photos", "python")
                else "; name another folder with --data"
            )
        )
    devices.make_repeatable(chosen)
    return preparation.bench(config, bank, precision, chosen, floors)


def metrics(
    bench: Bench | Stage, arms: Mapping[str, Arm], seed: int, budget: int
) -> dict[str, float]:
    """Train arms with one seed and return the metric of each after `budget` epochs, by name.

    StudyFailedError if one diverges, or its script fails.
    """
    names = list(arms)
    values: dict[str, float] = {}

    def record(number: int, measurement: Measurement) -> None:
        values[names[number]] = measurement.score.value  # the last one is after the budget

    def fail(number: int, error: Exception) -> None:
        raise StudyFailedError(f"{names[number]}, trained again with seed {seed}, {error}")

    jobs = [Job(arm, seed, budget) for arm in arms.values()]
    if isinstance(bench, Stage):
        bench.train(jobs, on_rung=record, on_failure=fail)
    else:
        slots = Slots(bench.task, bench.recipe, bench.device)
        train(slots, jobs, on_rung=record, on_failure=fail)
    return values
