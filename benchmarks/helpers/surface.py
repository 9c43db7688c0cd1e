"""Surfaces: what a dense design of densities really measured, seed by seed and rung by rung.

A file has a line of JSON for whatever was found out: what the surface is about (the first line),
where it was recorded from there on, and each job. So a recording goes on wherever it ended.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer import design

FOLDER = Path(__file__).resolve().parents[1] / "surfaces"
"""Where the recorded ones are kept."""
LOW, HIGH = 0.05, 2.0
"""The search box, that of configs/quickstart.yaml."""

Family = Literal["vgg", "resnet", "dncnn", "nafnet"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What a surface is measured with; sizes are for 1 to 3 s of a CPU core a job."""

    name: str
    family: Family
    width: int
    depth: int
    kernel_size: int
    points: int
    """Densities of the design, identity among them."""
    batch_size: int
    rungs: tuple[int, ...]
    """Epochs after which a job is measured; the last one is its budget."""
    null: bool = False
    """Whether identity with other seeds is trained at every place of the design."""

    @property
    def dimensions(self) -> int:
        """Return how many numbers a density has."""
        return self.kernel_size // 2

    @property
    def classifies(self) -> bool:
        """Whether the images have labels."""
        return self.family in ("vgg", "resnet")

    def densities(self) -> Floats:
        """Return the design, (points, dimensions): identity, the box's corners, Sobol' points.

        With the corners no density in the box lies outside of what is measured.
        """
        axes = np.meshgrid(*[[LOW, HIGH]] * self.dimensions, indexing="ij")
        corners = np.stack(axes, axis=-1).reshape(-1, self.dimensions)
        rest = design.sobol(self.points - 1 - len(corners), self.dimensions, seed=0)
        return np.vstack([np.ones((1, self.dimensions)), corners, LOW + (HIGH - LOW) * rest])


@dataclass(frozen=True)
class Surface:
    """A recorded surface: densities x seeds x rungs."""

    plan: Plan
    densities: Floats
    """(densities, dimensions); identity first."""
    values: Floats
    """What a search goes by, higher is better; NaN from where a job diverged.

    (densities, seeds, rungs): the metric, or of classifiers minus the mean cross-entropy.
    """
    seconds: Floats
    """The same shape: processor time of the job up to that rung."""


def load(path: Path) -> Surface:
    """Read a recording, so far as all its densities have been trained with a seed.

    ValueError if that is so with none.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    about = lines[0]["plan"]
    plan = Plan(**{**about, "rungs": tuple(about["rungs"])})
    jobs = {(line["seed"], line["place"]): line for line in lines if "place" in line}
    seeds: list[int] = []
    while all((len(seeds), place) in jobs for place in range(plan.points)):
        seeds.append(len(seeds))
    if not seeds:
        raise ValueError(f"{path} has not all densities of a single seed yet; record on")

    def column(name: str) -> Floats:
        found = np.full((plan.points, len(seeds), len(plan.rungs)), np.nan)
        for seed in seeds:
            for place in range(plan.points):
                reached = jobs[seed, place][name]
                found[place, seed, : len(reached)] = reached
        return found

    return Surface(plan, plan.densities(), column("searched"), column("seconds"))


class Journal:
    """The file of a surface while it is recorded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[dict[str, Any]] = []
        if path.exists():
            text = path.read_text(encoding="utf-8")
            # A recording that was killed may have left half a line.
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            self._lines = [json.loads(line) for line in whole.splitlines()]

    def begin(self, plan: Plan, about: dict[str, Any], environment: dict[str, Any]) -> None:
        """Note what is recorded and, if it is not where it was so far, where from here on.

        ValueError if the file is about something else.
        """
        # As JSON gives it back: tuples are lists there.
        about = json.loads(json.dumps({"plan": asdict(plan), **about}))
        if not self._lines:
            self.add(about)
        elif self._lines[0] != about:
            raise ValueError(f"{self._path} is about something else; move it away")
        places = [line["environment"] for line in self._lines if "environment" in line]
        if not places or places[-1] != environment:
            self.add({"environment": environment})

    def add(self, line: dict[str, Any]) -> None:
        """Write a line."""
        self._lines.append(line)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as journal:
            print(json.dumps(line), file=journal)

    def find(self, **wanted: object) -> dict[str, Any] | None:
        """Return the line that has these values, None if there is none."""
        return next((line for line in self._lines if wanted.items() <= line.items()), None)
