"""A/A with real training: complete studies in which every arm trains identity.

phi is ignored: a job trains identity whatever its density, gain and initial scale are. With common
random numbers alone all arms would then be equal to the last bit. So what an arm draws while it
trains (order of images, augmentation, noise) is fixed by its name as well as by the seed; initial
weights stay the seed's, as in every study. All else is densitune's own: PostgreSQL, proposer,
worker, training loop, finalists, confirmation with its defaults, verdicts.

    python benchmarks/false_positives.py --studies 20 --processes 2 --json false-positives.json
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from helpers import ratios
from sqlalchemy import Engine

from optimizer import arms, snapshot
from optimizer.cli import environment, session
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.evidence.verdicts import Comparison, FinalistVerdict
from optimizer.phases import optuna_tables
from optimizer.phases.proposer import Proposer
from optimizer.snapshot import Snapshot
from storage import server
from workers import preparation, seeds
from workers.data.bank import Bank
from workers.preparation import Bench
from workers.service.checkpoint import Checkpoints
from workers.service.loop import work
from workers.service.shift import Shift
from workers.training import devices, loop, member
from workers.training.recipe import Job
from workers.training.slots import Slots

MOST_BETTER = 1
"""Of 20 studies. In each the chance is at most 2.5 % (docs/evidence.md)."""
CPU = torch.device("cpu")
ASKED = ("split", "per_image", "floored", "searched_by")
"""What of an arm is not how it trains."""


class Blind(member.Member):
    """A member that trains identity whatever its arm is, and draws from the arm's name as well."""

    def __init__(self, slots: Slots, job: Job) -> None:
        asked = {name: getattr(job.arm, name) for name in ASKED}
        blind = replace(arms.identity(job.arm.densities, job.arm.lr), **asked)
        super().__init__(slots, replace(job, arm=blind))
        self._slot.draw(seeds.derive(job.seed, "arm", name_of(job)))


def name_of(job: Job) -> str:
    """Return what tells a job's arm from the others of its phase."""
    arm = job.arm
    sizes = sorted(arm.densities)
    return repr(
        [(k, tuple(arm.densities[k]), arm.gain.get(k)) for k in sizes]
        + [arm.init, arm.mask, arm.start]
    )


def configured(number: int, **changes: Any) -> StudyConfig:
    """Return the config of one study; its seeds are those of no other."""
    raw: dict[str, Any] = {
        "name": f"aa-{number}",
        "task": "photos",
        "data": {"patch": 16, "patches_per_image": 16, "crop": 48},
        "proxy": {"family": "nafnet", "width": 8, "depth": 1},
        "kernel_size": 3,
        "training": {"budget": 1, "batch_size": 16, "precision": "full"},
        "search": {"trials": 7, "seeds": 2, "seed": number},
    }
    return study_file.parse({**raw, **changes}, f"of A/A study {number}")


def prepare(given: StudyConfig) -> Bank:
    """Return the data, which are the same for all studies."""
    return preparation.bank(given.data, environment.home())


def run(engine: Engine, given: StudyConfig, bank: Bank) -> Snapshot:
    """Run a study to its verdicts in this process.

    The floor is nothing: identity is compared with itself, however little these networks learn.
    """
    facts = preparation.facts(given, bank) | {"floors": {given.floor_name: 0.0}}
    created = session.create(
        engine,
        given,
        bank.source,
        bank.fingerprint,
        "full",
        facts=lambda: facts,
    )
    recipe = preparation.recipe(given, bank, "full")
    bench = Bench(preparation.task(given, bank, CPU), recipe, CPU)
    proposer = Proposer(engine, created.id, given)
    home = environment.home()
    with Shift(engine, created, CPU, home / "spool") as shift:
        work(
            shift,
            bench,
            Checkpoints(home / "checkpoints", created),
            pack=1,
            packs=home / "packs",
            stop=threading.Event(),
            when_idle=proposer.advance,
            outage_limit=0.0,
        )
    return snapshot.of(engine, given.name)


@dataclass(frozen=True)
class Found:
    """What a study came to."""

    number: int
    verdicts: list[FinalistVerdict]
    jobs: int
    seconds_per_job: float
    seconds: float

    @property
    def better(self) -> int:
        """Return how many finalists are called better."""
        return sum(one.verdict == "better" for one in self.verdicts)

    @property
    def comparisons(self) -> list[Comparison]:
        """Return all differences that were judged; the truth of each is zero."""
        every = [(one.to_identity, one.to_control, one.to_uniform) for one in self.verdicts]
        return [one for differences in every for one in differences if one is not None]


def study(number: int) -> Found:
    """Run one study against the storage of this process's environment."""
    train_as(Blind)
    return came_to(configured(number), number)


def train_as(kind: type[member.Member]) -> None:
    """Have all jobs of this process trained by members of another kind."""
    loop.Member = kind  # type: ignore[attr-defined]


@contextmanager
def own_storage(prefix: str) -> Iterator[None]:
    """Give this process and those that it starts an embedded server of their own, with its data."""
    with tempfile.TemporaryDirectory(prefix=prefix) as home:
        os.environ["DENSITUNE_HOME"] = home
        os.environ.pop("DENSITUNE_STORAGE", None)
        engine = environment.open_storage(None)  # the server stays as long as somebody uses it
        optuna_tables.make(engine)  # once
        engine.dispose()
        prepare(configured(0))
        yield
        server.release()


def came_to(given: StudyConfig, number: int) -> Found:
    """Run a study against the storage of this process's environment; return what it came to."""
    started = time.perf_counter()
    devices.make_repeatable(CPU)
    engine = environment.open_storage(None)
    ended = run(engine, given, prepare(given))
    engine.dispose()
    trained = [
        row.seconds
        for phase in ended.phases.values()
        for row in phase.rows
        if row.rung == row.budget
    ]
    return Found(
        number=number,
        verdicts=ended.verdicts,
        jobs=len(trained),
        seconds_per_job=statistics.fmean(trained),
        seconds=time.perf_counter() - started,
    )


def row(found: Found, unit: str) -> list[str]:
    """Return a study's line of the table."""
    means = [one.mean for one in found.comparisons]
    return [
        str(found.number),
        ", ".join(one.verdict for one in found.verdicts),
        ", ".join(str(len(one.to_identity.by_seed)) for one in found.verdicts if one.to_identity),
        f"{min(means):+.3f} to {max(means):+.3f} {unit}",
        str(found.jobs),
        f"{found.seconds:.0f}",
    ]


def covered(found: list[Found]) -> float:
    """Return the share of the 95 % intervals that hold the truth, which is zero."""
    held = [one.low <= 0 <= one.high for study in found for one in study.comparisons]
    return statistics.fmean(held)


def main() -> int:
    """Run all studies; return 1 if more are better than chance allows."""
    arguments = _arguments()
    devices.make_repeatable(CPU)  # what every study's process does
    numbers = range(1, arguments.studies + 1)
    given = configured(0)
    with (
        own_storage("aa-"),
        multiprocessing.get_context("spawn").Pool(arguments.processes) as pool,
    ):
        found = []
        for one in pool.imap(study, numbers):
            found.append(one)
            print(*row(one, given.unit), flush=True)
    better = sum(one.better > 0 for one in found)
    about = ratios.environment(CPU)
    head = ["study", "verdicts", "seeds", "differences", "jobs", "seconds"]
    print(f"\n{given.proxy}; {given.training}; {given.confirm}; {about}")
    print(ratios.table(head, [row(one, given.unit) for one in found]))
    print(
        f"better in {better} of {len(found)} studies with {sum(len(f.verdicts) for f in found)} "
        f"finalists; {covered(found):.1%} of the 95 % intervals hold zero; "
        f"{statistics.fmean(one.seconds_per_job for one in found):.3f} s a job"
    )
    if arguments.json:
        report = {
            "environment": about,
            "config": given.document(),
            "studies": len(found),
            "better": better,
            "intervals that hold zero": covered(found),
            "found": [
                {
                    "study": one.number,
                    "jobs": one.jobs,
                    "seconds": one.seconds,
                    "seconds per job": one.seconds_per_job,
                    "verdicts": [verdict.model_dump() for verdict in one.verdicts],
                }
                for one in found
            ],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(better > MOST_BETTER)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
