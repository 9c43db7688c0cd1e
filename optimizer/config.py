"""A study's configuration: YAML, validated once, unknown keys refused with the nearest name.

One file describes one study completely (configs/ has examples). The validated form is stored with
the study, so that a worker needs nothing but the study's name.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from optimizer import density, design
from optimizer.density import Densities
from optimizer.errors import UsageError
from optimizer.sections import (
    Box,
    Cifar100Data,
    Data,
    Div2kData,
    FolderClasses,
    FolderPhotographs,
    PhotosData,
    Proxy,
    Search,
    Section,
    Training,
)

TASKS = ("cifar100", "div2k", "photos", "folder")
# How pydantic's error locations name the sections, for finding the keys that are known there.
_SECTIONS: dict[str, type[Section]] = {
    "proxy": Proxy,
    "density": Box,
    "training": Training,
    "search": Search,
    "cifar100": Cifar100Data,
    "div2k": Div2kData,
    "photos": PhotosData,
    "folder": FolderPhotographs,
    "folder-classes": FolderClasses,
}


class StudyConfig(Section):
    """One study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    data: Data
    proxy: Proxy
    kernel_size: tuple[int, ...]
    density: Box = Box()
    init: Literal["library", "compensated"] = "library"
    training: Training
    search: Search

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, raw: Any) -> Any:
        """Put the task beside its data, and a single kernel size into a list."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        data = raw.get("data")
        if "task" in raw and (data is None or isinstance(data, dict)):
            raw["data"] = {**(data or {}), "task": raw.pop("task")}
        if isinstance(raw.get("kernel_size"), int):
            raw["kernel_size"] = [raw["kernel_size"]]
        return raw

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
            {self.kernel_size[0]: given} if isinstance(given, tuple) else dict(given)
            for given in self.density.include
        ]

    @property
    def anchors(self) -> list[design.Anchor]:
        """Return the trials that come before any proposal."""
        return [
            *design.anchors(self.kernel_size),
            *(
                design.Anchor("candidate", f"given {number}", given)
                for number, given in enumerate(self.included, start=1)
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
        """Return the seeds with which every density is trained."""
        first = 1000 * self.search.seed
        return tuple(range(first, first + self.search.seeds))

    @property
    def metric(self) -> str:
        """Return the name of the value that is maximised."""
        return "top-1 accuracy" if self.data.goal == "classification" else "PSNR"

    @property
    def unit(self) -> str:
        """Return the metric's unit."""
        return "%" if self.data.goal == "classification" else "dB"

    def document(self) -> dict[str, Any]:
        """Return the form that is stored and compared: plain JSON values."""
        return self.model_dump(mode="json")


def _check_kernel_sizes(sizes: tuple[int, ...], proxy: Proxy) -> None:
    for k in sizes:
        density.length(k)
        if not 3 <= k <= 31:
            raise ValueError(f"kernel_size {k} is outside 3 to 31; a smaller one has no density")
    if not sizes or len(set(sizes)) != len(sizes):
        raise ValueError(f"kernel_size {list(sizes)} must name at least one size, each once")
    if len(sizes) > proxy.stages:
        raise ValueError(
            f"kernel_size names {len(sizes)} sizes, but a {proxy.family} of depth {proxy.depth} "
            f"has {proxy.stages} stages to take them; name at most {proxy.stages}"
        )


def _check_included(config: StudyConfig) -> None:
    sizes = list(config.kernel_size)
    for number, given in enumerate(config.density.include, start=1):
        if isinstance(given, tuple) and len(sizes) > 1:
            raise ValueError(
                f"density.include {number} is {list(given)}, but the study has the kernel sizes "
                f"{sizes}; write {{size: [values], ...}} with each of them"
            )
    for number, densities in enumerate(config.included, start=1):
        if sorted(densities) != sorted(sizes):
            raise ValueError(
                f"density.include {number} names the kernel sizes {sorted(densities)}; "
                f"the study has {sizes}"
            )
        for k, den in densities.items():
            density.validate(den, k)


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
        levels = design.grid_levels(search.trials - first, config.dimensions)
        exact = first + levels**config.dimensions
        if levels < 2 or exact != search.trials:
            larger = first + max(2, levels + 1) ** config.dimensions
            raise ValueError(
                f"search.trials {search.trials} does not fill a grid of {config.dimensions} values "
                f"after the first {first} trials; take "
                + (f"{exact} or {larger}" if levels >= 2 else f"{larger}")
            )


def load(path: Path) -> StudyConfig:
    """Read a study from a YAML file; relative folders in it are relative to the file.

    UsageError with one line if the file is not readable, not YAML, or not a valid study.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"config {path} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"config {path} holds no keys; configs/quickstart.yaml is an example")
    config = parse(raw, origin=str(path))
    folder = getattr(config.data, "folder", None)
    if folder is None:
        return config
    absolute = (path.parent / Path(folder).expanduser()).resolve()
    return config.model_copy(update={"data": config.data.model_copy(update={"folder": absolute})})


def parse(raw: dict[str, Any], origin: str) -> StudyConfig:
    """Validate a mapping; UsageError with one line that names the origin and the first problem."""
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"config {origin}: {_first_problem(error)}") from error


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return what differs between two documents, one `key: stored -> given` each.

    Where the data lie and how they were fetched does not count: their fingerprint decides.
    """
    ignored = {"data.folder", "data.download", "data.verify"}
    old, new = _flat(stored), _flat(given)
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if key not in ignored and old.get(key) != new.get(key)
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _first_problem(error: ValidationError) -> str:
    details = error.errors(include_url=False)
    # An unknown key explains a missing one, so it comes first.
    problem = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = [str(part) for part in problem["loc"]]
    if path[0:1] == ["data"] and len(path) > 1 and path[1] in _SECTIONS:
        del path[1]  # the tag of the union, which no file contains
    where, value = ".".join(path), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key {where}{_nearest(problem['loc'])}"
        case "missing":
            return f"{where} is missing"
        case "union_tag_invalid" | "union_tag_not_found":
            task = value.get("task") if isinstance(value, dict) else value
            return f"task = {task!r} is unknown; take one of {', '.join(TASKS)}"
        case "value_error":
            message = str(problem["ctx"]["error"])
            return f"{where}: {message}" if where else message
        case _:
            return f"{where} = {value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest(location: tuple[int | str, ...]) -> str:
    """Return a hint with the key that the unknown one was probably meant to be."""
    owner = StudyConfig if len(location) == 1 else _SECTIONS[str(location[-2])]
    known = ["task", *owner.model_fields] if owner is StudyConfig else [*owner.model_fields]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
