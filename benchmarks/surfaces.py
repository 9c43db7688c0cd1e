"""Record surfaces: many densities, many seeds, every rung, each job really trained.

A sampler is then tried on what was measured, in seconds and as often as one likes (replay.py). The
design is identity, the corners of the search box and a Sobol' sequence in it. The rate is found on
identity as a study's calibration does. It needs what training needs and no more: no database, no
Optuna. Whoever ends it loses a job at most; begun again, it goes on.

    python benchmarks/surfaces.py DATA                     # all that is not yet recorded
    python benchmarks/surfaces.py DATA nafnet-k3 vgg-k5

DATA is a folder with cifar-100-python, of which a part is enough, and bsd-train400: 400 gray
photographs of 180 x 180 pixels (those that DnCNN is trained on).
"""

import argparse
import itertools
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import ratios
from helpers.surface import FOLDER, HIGH, LOW, Journal, Plan

from densitune import density
from optimizer import learning_rates
from optimizer.arms import Arm
from workers.data import cifar100, folder
from workers.data.bank import Bank
from workers.data.patches import PatchPlan
from workers.networks.proxies import Proxy
from workers.training import baselines, devices
from workers.training.loop import train
from workers.training.recipe import Job, Measurement, Recipe
from workers.training.slots import Slots
from workers.training.tasks import Classification, Denoising, Task

SEEDS = (8, 16)
"""With so many all surfaces are recorded, then again: a surface is of use half done."""
HERE = Path(__file__).resolve().parent
SIGMA = 25.0
PATCHES = PatchPlan(color="gray", size=32, per_image=1, validation=0.05, crop=96)
RATE_SEEDS = range(1000, 1004)
"""Seeds that no surface is measured with."""
APART = 10_000
"""On a null surface, the seeds of two places lie so far from each other."""
DIGITS = 7
"""What is kept of a number: all that single precision has."""

PLANS = (  # name, family, width, depth, kernel size, densities, batch size, rungs
    Plan("nafnet-k3", "nafnet", 8, 1, 3, 24, 16, (2, 4, 8)),
    Plan("vgg-k3", "vgg", 8, 3, 3, 24, 32, (2, 4, 8)),
    Plan("nafnet-k5", "nafnet", 8, 1, 5, 64, 16, (2, 4, 8)),
    Plan("dncnn-k3", "dncnn", 8, 3, 3, 24, 8, (4, 8, 16)),
    Plan("resnet-k3", "resnet", 4, 8, 3, 24, 32, (2, 4, 8)),
    Plan("null-nafnet-k3", "nafnet", 8, 1, 3, 24, 16, (2, 4, 8), null=True),
    Plan("vgg-k5", "vgg", 8, 3, 5, 64, 32, (2, 4, 8)),
    Plan("dncnn-k5", "dncnn", 8, 3, 5, 64, 8, (4, 8, 16)),
    Plan("resnet-k5", "resnet", 4, 8, 5, 64, 32, (2, 4, 8)),
    Plan("null-vgg-k3", "vgg", 8, 3, 3, 24, 32, (2, 4, 8), null=True),
    Plan("nafnet-k7", "nafnet", 8, 1, 7, 125, 16, (2, 4, 8)),
    Plan("vgg-k7", "vgg", 8, 3, 7, 125, 32, (2, 4, 8)),
)


@dataclass(frozen=True)
class Bench:
    """What a surface's jobs are trained with."""

    plan: Plan
    bank: Bank
    slots: Slots

    @classmethod
    def of(cls, plan: Plan, data: Path) -> "Bench":
        """Prepare images and recipe of a plan."""
        device = torch.device("cpu")
        devices.make_repeatable(device)
        bank = _bank(plan, data)
        task: Task = (
            Classification(bank, device) if plan.classifies else Denoising(bank, device, SIGMA)
        )
        channels = bank.train.shape[1]
        size = (plan.kernel_size,)
        proxy = Proxy(plan.family, plan.width, plan.depth, size, channels, bank.classes)
        recipe = Recipe(proxy, "library", plan.batch_size, None, plan.rungs)
        return cls(plan, bank, Slots(task, recipe, device))

    def about(self) -> dict[str, Any]:
        """Return what the surface's numbers depend on, beside the plan."""
        linear = (
            baselines.linear_classifier(self.bank)
            if self.plan.classifies
            else baselines.linear_filter(self.slots.task, self.bank, SIGMA)
        )
        return {
            "box": [LOW, HIGH],
            "sigma": None if self.plan.classifies else SIGMA,
            "fingerprint": self.bank.fingerprint,
            "images": [len(self.bank.train), len(self.bank.validation)],
            "floors": [self.slots.task.floor(), linear],
        }

    def trained(self, den: tuple[float, ...], lr: float, seed: int) -> dict[str, list[float]]:
        """Return what a job measures at every rung, and its processor time until then.

        `values` are of the metric, `searched` what a search goes by. A job that diverges has none
        from there on.
        """
        found: dict[str, list[float]] = {"values": [], "searched": [], "seconds": []}
        started = time.process_time()

        def note(_: int, measurement: Measurement) -> None:
            score = measurement.score
            entropy = score.extra.get("cross_entropy")
            searched = score.value if entropy is None else -float(entropy)
            seconds = time.process_time() - started
            for name, number in zip(found, (score.value, searched, seconds), strict=True):
                found[name].append(float(f"{number:.{DIGITS}g}"))

        job = Job(Arm({self.plan.kernel_size: den}, lr), seed, self.plan.rungs[-1])
        train(self.slots, [job], on_rung=note, on_failure=lambda *_: None)
        return found


def _bank(plan: Plan, data: Path) -> Bank:
    cache = Path(tempfile.gettempdir()) / "densitune-surfaces"  # images stay out of the repository
    if not plan.classifies:
        return folder.load_photographs(data / "bsd-train400", PATCHES, cache)
    return cifar100.load(
        data, download=False, verify=False, labels="coarse", validation=0.4, cache=cache
    )


def record(plan: Plan, data: Path, seeds: int) -> None:
    """Train every job of a surface's first so many seeds that its file does not have."""
    bench, journal = Bench.of(plan, data), Journal(FOLDER / f"{plan.name}.jsonl")
    journal.begin(
        plan, bench.about(), {"commit": _commit()} | ratios.environment(torch.device("cpu"))
    )
    plain = density.identity(plan.kernel_size)
    bench.trained(plain, learning_rates.usual(plan.family, plan.batch_size), 0)  # a process's first
    lr = best_rate(bench, journal)
    densities = plan.densities().tolist()
    for seed in range(seeds):
        for place, den in enumerate(densities):
            if journal.find(place=place, seed=seed) is not None:
                continue
            found = (
                bench.trained(plain, lr, seed + APART * place)
                if plan.null
                else bench.trained(tuple(den), lr, seed)
            )
            journal.add({"place": place, "seed": seed, "lr": lr, **found})
        print(f"{plan.name}: seed {seed + 1} of {seeds}", flush=True)


def best_rate(bench: Bench, journal: Journal) -> float:
    """Return identity's best rate by the metric, as a study's calibration finds it."""
    plan = bench.plan
    plain = density.identity(plan.kernel_size)

    def score(lr: float) -> float:
        ends = []
        for seed in RATE_SEEDS:
            line = journal.find(rate=lr, seed=seed)
            if line is None:
                line = {"rate": lr, "seed": seed, **bench.trained(plain, lr, seed)}
                journal.add(line)
            reached = line["values"]
            ends.append(reached[-1] if len(reached) == len(plan.rungs) else -np.inf)
        return statistics.fmean(ends)

    middle = learning_rates.usual(plan.family, plan.batch_size)
    tried = learning_rates.grid(middle)
    while True:
        scores = {lr: value for lr in tried if np.isfinite(value := score(lr))}
        further = learning_rates.beyond(middle, tried, scores)
        if further is None:
            return learning_rates.best(scores)
        tried.append(further)


def _commit() -> str | None:
    """Return the commit of this checkout, None if it is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def main() -> None:
    by_name = {plan.name: plan for plan in PLANS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the images")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(by_name))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a job is small, and on two cores others are at work
    names = arguments.names or list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"no surface {unknown[0]}; there are {', '.join(by_name)}")
    for seeds, name in itertools.product(SEEDS, names):
        record(by_name[name], arguments.data, seeds)


if __name__ == "__main__":
    main()
