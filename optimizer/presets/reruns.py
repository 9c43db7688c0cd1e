"""Whether a preset's numbers come back when some of its jobs are trained again.

Everything is taken from the preset alone: task, proxy, training, precision, learning rate, seeds,
densities. What it recorded are paired differences by seed, so the density is trained again beside
each arm that it was compared with.
"""

import importlib.metadata
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer import arms
from optimizer.arms import Arm, Precision
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError, UsageError
from optimizer.presets.document import Preset

DENSITY, IDENTITY = "density", "identity"
CONTROL, UNIFORM = "its scale control", "its uniform mask"
UNNAMED = "CPU"
"""What presets of earlier versions call any CPU: two of them may round differently."""

TOLERANCE = 1.0
"""Allowed deviation on another kind of device, in standard deviations of the recorded differences
between seeds. Another rounding must not move a seed as far as another seed would. AVX2 instead of
AVX-512 moved PSNR by at most 0.001 of them, in bfloat16 by 0.03, and top-1 accuracy by 0.5, which
was one image (torch 2.15, some 100 steps, 2 to 5 seeds). Longer trainings amplify rounding more."""

Differences = Mapping[str, Mapping[int, float]]
"""The density minus the arm of this name, by seed."""


@dataclass(frozen=True)
class Recorded:
    """What a preset recorded of its confirmation (of its search, if it has none)."""

    config: StudyConfig
    precision: Precision
    budget: int
    """Epochs."""
    arms: Mapping[str, Arm]
    """The density itself and, by name, all that it was compared with."""
    differences: Differences

    def seeds(self, count: int) -> list[int]:
        """Return the first seeds that were recorded; UsageError if there are not so many."""
        seeds = sorted(self.differences[IDENTITY])
        if count > len(seeds):
            raise UsageError(
                f"--rerun {count} is more than what preset {self.config.name} recorded; take 1 to "
                f"{len(seeds)}"
            )
        return seeds[:count]


@dataclass(frozen=True)
class Rerun:
    """What became of one seed."""

    seed: int
    recorded: Mapping[str, float]
    repeated: Mapping[str, float]
    limits: Mapping[str, float]
    """By how much the differences may deviate, by the name of the arm they are to."""

    @property
    def deviation(self) -> float:
        """Return the largest deviation of a difference from what was recorded."""
        return max(abs(self.repeated[name] - self.recorded[name]) for name in self.recorded)

    @property
    def reproduces(self) -> bool:
        """Tell whether every difference is within its limit."""
        return all(
            abs(self.repeated[name] - self.recorded[name]) <= self.limits[name]
            for name in self.recorded
        )

    def line(self, unit: str) -> str:
        """Return the differences for people, and how they compare."""
        told = ", ".join(f"{value:+.4f} {unit} to {name}" for name, value in self.repeated.items())
        if not self.deviation:
            return f"seed {self.seed}: {told}, to the last bit as recorded"
        recorded = ", ".join(f"{value:+.4f}" for value in self.recorded.values())
        verdict = "within tolerance" if self.reproduces else "NOT reproduced"
        return f"seed {self.seed}: {told}; recorded {recorded}: {verdict}"


def recorded(preset: Preset, data: Path | None) -> Recorded:
    """Return what a preset recorded, with its data in a folder (None: where densitune keeps them).

    UsageError if the task needs a folder and there is none, or takes none and there is one.
    """
    config = _config(preset, data)
    confirmation = preset.evidence.confirmation
    confirmed = None if confirmation is None else confirmation.to_identity
    if confirmation is None or confirmed is None:  # or an arm could not be trained
        budget = config.training.budget
        differences = {IDENTITY: preset.evidence.difference_to_identity.by_seed}
    else:
        budget = confirmation.budget
        differences = {IDENTITY: confirmed.by_seed}
        if confirmation.to_control is not None:
            differences[CONTROL] = confirmation.to_control.by_seed
        if confirmation.to_uniform is not None:
            differences[UNIFORM] = confirmation.to_uniform.by_seed
    _check_numbers(preset, config, differences)
    trained = _arms(preset, config, confirmed=confirmed is not None)
    return Recorded(
        config=config,
        precision="bfloat16" if preset.task.training.get("precision") == "bfloat16" else "full",
        budget=budget,
        arms={name: trained[name] for name in (DENSITY, *differences)},
        differences={
            name: {int(seed): difference for seed, difference in by_seed.items()}
            for name, by_seed in differences.items()
        },
    )


def limits(preset: Preset, differences: Differences, device: str) -> dict[str, float]:
    """Return by how much differences may deviate when they are trained on a device: see TOLERANCE.

    Nothing where the preset was recorded on the very same kind of device with the same torch.
    """
    provenance = preset.provenance
    same = device != UNNAMED and provenance.devices == [device]
    if same and provenance.versions.get("torch") == importlib.metadata.version("torch"):
        return dict.fromkeys(differences, 0.0)
    return {
        name: TOLERANCE * statistics.stdev(by_seed.values()) if len(by_seed) > 1 else 0.0
        for name, by_seed in differences.items()
    }


def compare(
    told: Recorded, seed: int, metrics: Mapping[str, float], limits: Mapping[str, float]
) -> Rerun:
    """Return how the metrics of all arms, trained again with a seed, compare to what was told."""
    return Rerun(
        seed=seed,
        recorded={name: by_seed[seed] for name, by_seed in told.differences.items()},
        repeated={name: metrics[DENSITY] - metrics[name] for name in told.differences},
        limits=limits,
    )


def summary(reruns: Sequence[Rerun], preset: Preset, device: str) -> str:
    """Return what the seeds come to, as one line; StudyFailedError if not all reproduce."""
    unit, largest = preset.task.unit, max(rerun.deviation for rerun in reruns)
    limits = ", ".join(f"{limit:.4g} {unit} to {name}" for name, limit in reruns[0].limits.items())
    where = f"recorded on {', '.join(preset.provenance.devices)}, trained again on {device}"
    lost = [rerun for rerun in reruns if not rerun.reproduces]
    if lost:
        raise StudyFailedError(
            f"preset {preset.name}: {len(lost)} of {len(reruns)} seeds are not reproduced, the "
            f"first is {lost[0].seed}; largest deviation {largest:.4g} {unit}, allowed {limits}; "
            f"{where}"
        )
    if not largest:
        return f"{len(reruns)} seeds reproduced to the last bit; {where}"
    return (
        f"{len(reruns)} seeds reproduced; largest deviation {largest:.4g} {unit}, "
        f"allowed {limits}; {where}"
    )


def _config(preset: Preset, data: Path | None) -> StudyConfig:
    document = preset.provenance.config
    given = document.get("data")
    section: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    if section.get("task") == "folder" and data is None:
        raise UsageError(
            f"preset {preset.name} was recorded with images of one's own ({preset.task.source}), "
            f"and a preset does not tell where they lie; name their folder: --data FOLDER"
        )
    if section.get("task") in ("photos", "python") and data is not None:
        source = "come with scikit-image"
        if section["task"] == "python":
            source = "are returned by code, whose folder --code names"
        raise UsageError(
            f"--data {data} has no use: the data of preset {preset.name} {source}; leave it out"
        )
    if "entry" in section and data is not None:
        raise UsageError(
            f"--data {data} has no use: the script of preset {preset.name} has its own data; name "
            f"the folder of its code with --code FOLDER"
        )
    if data is not None:
        section["folder"] = str(data.resolve())
    return study_file.parse({**document, "data": section}, origin=f"in preset {preset.name}")


def _check_numbers(
    preset: Preset, config: StudyConfig, differences: Mapping[str, Mapping[str, float]]
) -> None:
    """Raise UsageError if what a preset says of densities and seeds does not fit together."""
    seeds = list(differences[IDENTITY])
    if not all(re.fullmatch("[0-9]{1,10}", seed) for seed in seeds) or any(
        by_seed.keys() != set(seeds) for by_seed in differences.values()
    ):
        raise UsageError(
            f"preset {preset.name}: by_seed is not by the same seeds, whole numbers of at most 10 "
            "digits, in all comparisons; it was altered, export it again"
        )
    sizes = sorted(preset.by_kernel_size())
    if sizes != sorted(config.kernel_size):
        raise UsageError(
            f"preset {preset.name}: densities of kernel sizes {sizes}, but provenance.config has "
            f"{sorted(config.kernel_size)}; it was altered, export it again"
        )


def _arms(preset: Preset, config: StudyConfig, *, confirmed: bool) -> dict[str, Arm]:
    """Return the density and all arms that a difference may be to, as a study trains them."""
    densities, rate = preset.by_kernel_size(), preset.task.training.get("lr", "auto")
    lr = None if isinstance(rate, str) else float(rate)
    own = Arm(densities, lr, config.init)
    plain = arms.identity(densities, lr, config.init)
    control = arms.scale_control(densities, lr, config.init)
    uniform = arms.uniform(densities, lr, config.init)
    if preset.provenance.optuna_trial is None and not confirmed:  # learned: what was trained then
        own = arms.trainable(densities, lr, config.init)
    by_name = {DENSITY: own, IDENTITY: plain, CONTROL: control, UNIFORM: uniform}
    return {name: replace(arm, floored=confirmed) for name, arm in by_name.items()}
