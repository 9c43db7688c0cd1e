"""Workers in the test's process that train tiny networks on the packaged photographs."""

import math
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import Engine

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from storage import ledger, studies, trials
from storage.ledger import LedgerRow
from storage.studies import Study
from storage.trials import TrialRow
from support.queued import set_state
from workers import preparation
from workers.preparation import Bench
from workers.service import loop
from workers.service.checkpoint import Checkpoints
from workers.service.shift import Shift


def make_config(lr: float = 1e-3, budget: int = 2) -> StudyConfig:
    return study_file.parse(
        {
            "name": "work",
            "task": "photos",
            "data": {"patch": 8, "patches_per_image": 2, "crop": 16},
            "proxy": {"family": "dncnn", "width": 4, "depth": 3},
            "kernel_size": 3,
            "training": {"budget": budget, "batch_size": 4, "lr": lr},
            "search": {"trials": 5, "rungs": [1]},
        },
        origin="test",
    )


@dataclass(frozen=True)
class Station:
    """A study, what is needed to work for it, and folders of its own."""

    study: Study
    bench: Bench
    folder: Path

    @property
    def study_id(self) -> int:
        return self.study.id

    def with_task(self, task: object) -> "Station":
        return replace(self, bench=replace(self.bench, task=task))  # type: ignore[arg-type]

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoints/*"))


def make_bench(engine: Engine, given: StudyConfig, cache: Path) -> Station:
    bank = preparation.bank(given.data, cache)
    study, _ = studies.create(engine, given.name, given.document(), bank.fingerprint, {}, "search")
    device = torch.device("cpu")
    task, recipe = (
        preparation.task(given, bank, device),
        preparation.recipe(given, bank, "full"),
    )
    folder = Path(tempfile.mkdtemp(dir=cache))
    return Station(study, Bench(task, recipe, device), folder)


def add(engine: Engine, bench: Station, densities: list[float], budget: int = 2) -> None:
    """Queue one trial with two seeds for each density."""
    with engine.begin() as connection:
        for number, value in enumerate(densities):
            trials.add(
                connection,
                bench.study_id,
                "search",
                number=number,
                optuna_number=number,
                role="candidate",
                label=str(value),
                densities={3: (value,)},
                seeds=[0, 1],
                budget=budget,
            )


def contents(engine: Engine, bench: Station) -> tuple[list[TrialRow], list[LedgerRow]]:
    with engine.connect() as connection:
        return trials.all_of(connection, bench.study_id, "search"), ledger.read(
            connection, bench.study_id, "search"
        )


def work(
    engine: Engine,
    bench: Station,
    *,
    pack: int | None = 1,
    stop: threading.Event | None = None,
    when_idle: Callable[[], None] | None = None,
    idle_exit: float = math.inf,
    outage_limit: float = 60.0,
    audit: Bench | None = None,
) -> int:
    """Work until the queue is empty, or as told."""
    with Shift(engine, bench.study, bench.bench.device, bench.folder / "spool") as shift:
        return loop.work(
            shift,
            bench.bench,
            Checkpoints(bench.folder / "checkpoints", bench.study),
            audit=audit,
            pack=pack,
            packs=bench.folder / "packs",
            stop=stop or threading.Event(),
            when_idle=when_idle or (lambda: set_state(engine, bench.study_id, "finished")),
            idle_exit=idle_exit,
            outage_limit=outage_limit,
        )


def without_time(rows: list[LedgerRow]) -> list[tuple[Any, ...]]:
    return [(row.trial, row.seed, row.rung, row.value, row.extra) for row in rows]
