"""A study's configuration: YAML, validated once, unknown keys refused with the nearest name.

One file describes one study completely (configs/ has examples). The validated form is stored with
the study, so that a worker needs nothing but the study's name.
"""

import os
import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError, field_validator, model_validator

from densitune import density
from densitune.density import Densities
from optimizer import design
from optimizer.arms import Init
from optimizer.config import problems
from optimizer.config.sections import (
    DATA_BY_TAG,
    TASKS,
    Box,
    Confirm,
    Data,
    ProxyShape,
    Search,
    Section,
    Training,
)
from optimizer.config.strict_yaml import OneValuePerKey
from optimizer.errors import UsageError

FRESH = 1_000_000_000
"""The first seed of confirmations: above all that a search can take, 1000 * search.seed and on."""
# The sections as the locations of pydantic's errors name them.
_SECTIONS: dict[str, type[Section]] = {
    "proxy": ProxyShape,
    "density": Box,
    "training": Training,
    "search": Search,
    "confirm": Confirm,
    **DATA_BY_TAG,
}


class StudyConfig(Section):
    """One study."""

    name: str
    data: Data
    proxy: ProxyShape
    kernel_size: tuple[int, ...]
    density: Box = Box()
    init: Init = "library"
    training: Training
    search: Search
    confirm: Confirm = Confirm()

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, raw: Any) -> Any:
        """Put the task beside its data, and a single kernel size into a list."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        data = {} if raw.get("data") is None else raw["data"]
        task = raw.pop("task", None)
        if isinstance(data, dict) and task is not None:
            if data.get("task", task) != task:
                raise ValueError(f"task = {task!r}, but data.task = {data['task']!r}; give one")
            data = {**data, "task": task}
        raw["data"] = data
        if not isinstance(raw.get("kernel_size", []), list | tuple):
            raw["kernel_size"] = [raw["kernel_size"]]
        return raw

    @field_validator("data", mode="before")
    @classmethod
    def _task_is_known(cls, data: Any) -> Any:
        if not isinstance(data, dict | Section):
            raise ValueError("input should be a mapping of keys to values")
        if isinstance(data, dict) and data.get("task") not in TASKS:
            task = data.get("task")
            fault = "task is missing" if task is None else f"task = {task!r} is unknown"
            raise ValueError(f"{fault}; take one of {', '.join(TASKS)}")
        return data

    @field_validator("name")
    @classmethod
    def _name_fits_files_and_urls(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise ValueError(
                "a name has 1 to 63 of the characters A-Z a-z 0-9 . _ - and starts with a letter "
                "or digit"
            )
        return name

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        _check_kernel_sizes(self.kernel_size, self.proxy)
        _check_included(self)
        if self.proxy.goal != self.data.goal:
            raise ValueError(
                f"proxy.family {self.proxy.family} is for {self.proxy.goal}, but task "
                f"{self.data.task} is {self.data.goal}; take "
                f"{'vgg or resnet' if self.data.goal == 'classification' else 'dncnn or nafnet'}"
            )
        _check_search(self)
        return self

    @property
    def included(self) -> list[Densities]:
        """Return the densities that the user wants trained in any case."""
        return [
            {self.kernel_size[0]: values} if isinstance(values, tuple) else dict(values)
            for values in self.density.include
        ]

    @property
    def anchors(self) -> list[design.Anchor]:
        """Return the trials that come before any proposal."""
        return [
            *design.anchors(self.kernel_size),
            *(
                design.Anchor("candidate", f"given {number}", densities)
                for number, densities in enumerate(self.included, start=1)
            ),
        ]

    @property
    def dimensions(self) -> int:
        """Return how many numbers are searched."""
        return sum(density.length(k) for k in self.kernel_size)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Return the epochs after which every job is measured, the budget last."""
        return (*self.search.rungs, self.training.budget)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds with which the search trains every density."""
        first = 1000 * self.search.seed
        return tuple(range(first, first + self.search.seeds))

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Return the seeds of the confirmation, which no search has seen."""
        first = FRESH + 1000 * self.search.seed
        return tuple(range(first, first + self.confirm.seeds))

    @property
    def confirm_budget(self) -> int:
        """Return the epochs of the confirmation."""
        return self.confirm.budget or 2 * self.training.budget

    @property
    def metric(self) -> str:
        """Return the name of the value that is maximised."""
        return "top-1 accuracy" if self.data.goal == "classification" else "PSNR"

    @property
    def unit(self) -> str:
        """Return the metric's unit."""
        return "%" if self.data.goal == "classification" else "dB"

    @property
    def floor_name(self) -> str:
        """Return what scores the floor: the metric without any training."""
        return "commonest class" if self.data.goal == "classification" else "noisy input"

    def document(self) -> dict[str, Any]:
        """Return the form that is stored and compared: plain JSON values."""
        return self.model_dump(mode="json")


def _check_kernel_sizes(sizes: tuple[int, ...], proxy: ProxyShape) -> None:
    for k in sizes:
        if not 3 <= k <= 31 or k % 2 == 0:
            raise ValueError(
                f"kernel_size {k} is not an odd size from 3 to 31; the nearest is "
                f"{min(max(3, k - 1 + k % 2), 31)}"
            )
    if not sizes or len(set(sizes)) != len(sizes):
        raise ValueError(f"kernel_size {list(sizes)} must name at least one size, each once")
    if len(sizes) > proxy.stages:
        raise ValueError(
            f"kernel_size names {len(sizes)} sizes, but a {proxy.family} of depth {proxy.depth} "
            f"has {proxy.stages} stages to take them; name at most {proxy.stages}"
        )


def _check_included(config: StudyConfig) -> None:
    sizes = list(config.kernel_size)
    for number, values in enumerate(config.density.include):
        if isinstance(values, tuple) and len(sizes) > 1:
            raise ValueError(
                f"density.include[{number}] is {list(values)}, but the study has the kernel sizes "
                f"{sizes}; write {{size: [values], ...}} with each of them"
            )
    for number, densities in enumerate(config.included):
        if sorted(densities) != sorted(sizes):
            raise ValueError(
                f"density.include[{number}] names the kernel sizes {sorted(densities)}; "
                f"the study has {sizes}"
            )
        for k, den in densities.items():
            try:
                density.validate(den, k)
            except ValueError as error:
                raise ValueError(f"density.include[{number}]: {error}") from error


def _check_search(config: StudyConfig) -> None:
    search, budget = config.search, config.training.budget
    if list(search.rungs) != sorted(set(search.rungs)) or any(r >= budget for r in search.rungs):
        raise ValueError(
            f"search.rungs {list(search.rungs)} must rise and stay below training.budget {budget}"
        )
    first = len(config.anchors)
    if search.trials < first:
        raise ValueError(
            f"search.trials {search.trials} is below {first}: identity, the published densities of "
            f"this kernel size and density.include are trained first"
        )
    if search.sampler == "cmaes" and config.dimensions < 2:
        raise ValueError(
            "search.sampler cmaes needs at least two values to search and kernel size 3 has one; "
            "take tpe, gp or auto"
        )
    if search.sampler == "grid":
        _check_grid(search.trials, first, config.dimensions)


def _check_grid(trials: int, first: int, dimensions: int) -> None:
    """Check that a grid of at least two levels is full after the first trials."""
    levels = design.grid_levels(trials - first, dimensions)
    if levels >= 2 and first + levels**dimensions == trials:
        return
    nearest = [first + n**dimensions for n in (levels, levels + 1) if n >= 2]
    raise ValueError(
        f"search.trials {trials} does not fill a grid of {dimensions} values after the first "
        f"{first} trials; take {' or '.join(map(str, nearest or [first + 2**dimensions]))}"
    )


def load(path: Path) -> StudyConfig:
    """Read a study from a YAML file; relative folders in it are relative to the file.

    UsageError with one line if the file is not readable, not YAML, or not a valid study.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), OneValuePerKey)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"config {path} cannot be read: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates and numbers that are none
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UsageError(
            f"config {path} is not a mapping of keys to values; configs/quickstart.yaml is an "
            f"example"
        )
    config = parse(raw, origin=str(path))
    absolute = {
        key: (path.parent / os.path.expanduser(folder)).resolve()
        for key in ("folder", "test")
        if (folder := getattr(config.data, key, None))
    }
    return config.model_copy(update={"data": config.data.model_copy(update=absolute)})


def parse(raw: dict[str, Any], origin: str) -> StudyConfig:
    """Validate a mapping; UsageError with one line that names the origin and the first problem."""
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"config {origin}: {problems.first(error, _keys())}") from error


def _keys() -> dict[str, list[str]]:
    """Return the keys of every section, those of the whole file under ""."""
    whole = {"": ["task", *StudyConfig.model_fields]}
    return whole | {name: list(section.model_fields) for name, section in _SECTIONS.items()}
