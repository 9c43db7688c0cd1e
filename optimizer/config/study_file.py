"""A study's configuration: YAML, validated once, unknown keys refused with the nearest name.

One file describes one study completely (configs/ has examples). The validated form is stored with
the study, so that a worker needs nothing but the study's name.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import ValidationError, field_validator, model_validator

from densitune import density
from densitune.density import Densities
from optimizer import design, learning_rates
from optimizer.arms import Init
from optimizer.config import agreement, documents, problems, strict_yaml
from optimizer.config.networks import PROXY_BY_TAG, Proxy
from optimizer.config.section import Section, Unit
from optimizer.config.sections import Audit, Box, Confirm, Search, Training
from optimizer.config.tasks import DATA_BY_TAG, TASKS, Data, GivenData
from optimizer.errors import UsageError
from optimizer.learning_rates import Kind

FRESH = 1_000_000_000
"""The first seed of confirmations: above all that a search can take, 1000 * search.seed and on.
Those of the rate check come after two and three times as many, an audit's after four and five."""
RATE_SEEDS = 3
"""With how many seeds the rate check tries each rate of an arm (docs/evidence.md)."""
SECTIONS: dict[str, type[Section]] = {
    **PROXY_BY_TAG,
    "density": Box,
    "training": Training,
    "search": Search,
    "confirm": Confirm,
    "audit": Audit,
    **DATA_BY_TAG,
}
"""Sections by name, as the locations of pydantic's errors have it."""


class StudyConfig(Section):
    """One study."""

    name: str
    """What the study is called in commands and in the database: 1 to 63 of `A-Z a-z 0-9 . _ -`."""
    data: Data
    """What is trained on."""
    proxy: Proxy | None = None
    """The network: of a family, or any by its name; a training script has its own."""
    kernel_size: Annotated[tuple[int, ...], Unit("pixels")]
    """Odd, from 3 to 31: the side of every kernel larger than 1; or a list, which the proxy's
    stages take in turn. Of a network by name, the sizes of the kernels that are weighted."""
    density: Box = Box()
    """Where densities are searched."""
    init: Init = "library"
    """How initial weights are drawn: as the authors' layer does, as a network by name does itself
    (model), or compensated, as the layer does but at identity's scale. A training script's is
    model unless it is given."""
    training: Training
    """The recipe."""
    search: Search
    """How many densities are tried, and how."""
    confirm: Confirm = Confirm()
    """How finalists are confirmed."""
    audit: Audit | None = None
    """Whether the ranking is checked on a larger network, and on which."""

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
        if isinstance(data, dict) and "entry" in data:
            raw.setdefault("init", "model")  # a script's network is whatever the script makes of it
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
        agreement.check_name(name)
        return name

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        agreement.check_kernel_sizes(self.kernel_size, self.proxy)
        agreement.check_included(self.density.include, self.included, self.kernel_size)
        agreement.check_network(self.proxy, self.data, self.training, self.init)
        if self.audit is not None:
            agreement.check_audit(self.audit, self.kernel_size, self.data, self.training, self.init)
        agreement.check_search(
            self.search, self.training.budget, len(self.anchors), self.dimensions
        )
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
    def rate_seeds(self) -> tuple[int, ...]:
        """Return the seeds by which the rate check chooses a rate for each arm."""
        first = 2 * FRESH + 1000 * self.search.seed
        return tuple(range(first, first + RATE_SEEDS))

    def own_rate_seeds(self, count: int) -> tuple[int, ...]:
        """Return so many seeds, 1000 at most, with which it compares arms at their own rates."""
        first = 3 * FRESH + 1000 * self.search.seed
        return tuple(range(first, first + count))

    @property
    def audit_seeds(self) -> tuple[int, ...]:
        """Return the seeds of the audit's arms; none without an audit."""
        first = 4 * FRESH + 1000 * self.search.seed
        return tuple(range(first, first + (0 if self.audit is None else self.audit.seeds)))

    @property
    def audit_rate_seeds(self) -> tuple[int, ...]:
        """Return the seeds by which the audit's learning rate is calibrated on identity."""
        first = 5 * FRESH + 1000 * self.search.seed
        return tuple(range(first, first + min(RATE_SEEDS, len(self.audit_seeds))))

    @property
    def audited(self) -> Self:
        """Return the study that would train the audit's network as the audit does."""
        if self.audit is None:
            raise ValueError("a study without an audit has no larger network")
        length = {"budget": self.audit.budget}
        return self.model_copy(
            update={
                "proxy": self.audit.proxy,
                "training": self.training.model_copy(
                    update={**length, "lr": self.audit.lr, "usual_lr": None}
                ),
                "search": self.search.model_copy(update={"rungs": ()}),
                "confirm": self.confirm.model_copy(update=length),
            }
        )

    @property
    def confirm_budget(self) -> int:
        """Return the epochs of the confirmation."""
        return self.confirm.budget or 2 * self.training.budget

    @property
    def metric(self) -> str:
        """Return the name of the value that is maximised."""
        lower = self.data.direction == "minimize"
        return f"negated {self.data.metric}" if lower else self.data.metric

    @property
    def unit(self) -> str:
        """Return the metric's unit."""
        return self.data.unit

    @property
    def floor_name(self) -> str:
        """Return what scores the floor: the metric without any training."""
        return self.data.floor_name

    @property
    def kind(self) -> Kind | None:
        """Return what the network is trained as; None of a script's."""
        if self.proxy is None:
            return None
        classes = isinstance(self.data, GivenData) and self.data.classes is not None
        return self.proxy.kind(classes=classes or self.data.goal == "classification")

    @property
    def usual_lr(self) -> float | None:
        """Return the peak learning rate around which others are tried; None if nobody knows one."""
        if self.training.usual_lr is not None or self.kind is None:
            return self.training.usual_lr
        return learning_rates.usual(self.kind, self.training.batch_size)

    def document(self) -> dict[str, Any]:
        """Return the form that is stored and compared: plain JSON values."""
        return self.model_dump(mode="json")


def load(path: Path) -> StudyConfig:
    """Read a study from a YAML file, or `-` for standard input.

    Relative folders in it are relative to the file, or else to the working directory.

    UsageError with one line if the file is not readable, not YAML, or not a valid study.
    """
    config = parse(_mapping(path), origin=str(path))
    absolute = {
        key: Path(os.path.realpath(path.parent / os.path.expanduser(folder)))
        for key in ("folder", "test")
        if isinstance(folder := getattr(config.data, key, None), Path)
    }
    return config.model_copy(update={"data": config.data.model_copy(update=absolute)})


def with_audit(config: StudyConfig, path: Path) -> StudyConfig:
    """Return a study's config with the section `audit` of a YAML file; the rest of it may be there.

    UsageError as `load` has it.
    """
    audit = _mapping(path).get("audit")
    if audit is None:
        raise UsageError(f"config {path} has no section audit (docs/config.md has its keys)")
    return parse({**config.document(), "audit": audit}, origin=str(path))


def _mapping(path: Path) -> dict[str, Any]:
    """Return what a YAML file says by key; UsageError if it is not readable or not that."""
    try:
        text = documents.read(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"config {path} cannot be read: {reason}") from error
    try:
        raw = strict_yaml.load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UsageError(
            f"config {path} is not a mapping of keys to values; configs/quickstart.yaml is an "
            f"example"
        )
    return raw


def parse(raw: dict[str, Any], origin: str) -> StudyConfig:
    """Validate a mapping; UsageError with one line that names the origin and the first problem."""
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"config {origin}: {problems.first(error, _keys())}") from error


def _keys() -> dict[str, list[str]]:
    """Return the keys of every section, those of the whole file under ""."""
    whole = {"": ["task", *StudyConfig.model_fields]}
    return whole | {name: list(section.model_fields) for name, section in SECTIONS.items()}
