"""Whether the fast way of training ranks densities as float32 does.

Trains the same densities with the same seeds twice: as densitune does by default on the device
(bfloat16 where it is fast, captured steps on a GPU), and in float32 with every step issued by
Python. Reports the rank correlation of the densities' means and the mean difference with its
standard error over the densities, and the mean difference of each seed: all densities of a seed
start from the same weights and may go astray together, which the standard error does not know.

    python benchmarks/precision.py benchmarks/whole-study.yaml --densities 16 --seeds 3
"""

import argparse
import json
import math
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from helpers import ratios
from scipy.stats import spearmanr

from densitune.density import Densities, length
from optimizer import design
from optimizer.arms import Arm, Precision
from optimizer.cli import environment
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from workers import preparation
from workers.training import devices
from workers.training.loop import train
from workers.training.recipe import Job
from workers.training.slots import Slots


def trained(given: StudyConfig, device_name: str, job: tuple[Precision, Densities, int]) -> float:
    """Return the metric of one density and seed after the full budget."""
    precision, densities, seed = job
    device = devices.resolve(device_name)
    devices.make_repeatable(device)
    bank = preparation.bank(given.data, environment.home())
    values: list[float] = []

    def refuse(_: int, error: Exception) -> None:
        raise error

    train(
        Slots(
            preparation.task(given, bank, device),
            preparation.recipe(given, bank, precision),
            device,
            captured=precision != "full",
        ),
        [Job(Arm(densities), seed, given.training.budget)],
        on_rung=lambda _, measurement: values.append(measurement.score.value),
        on_failure=refuse,
    )
    return values[-1]


def main() -> None:
    arguments = _arguments()
    given = study_file.load(arguments.config)
    if given.training.lr == "auto":
        raise SystemExit("training.lr is auto: give the rate that a study of it has calibrated")
    device = devices.resolve(arguments.device)
    densities = [anchor.densities for anchor in given.anchors]
    for point in design.sobol(arguments.densities - len(densities), given.dimensions, seed=0):
        values = iter(
            (given.density.low + (given.density.high - given.density.low) * point).tolist()
        )
        densities.append(
            {k: tuple(next(values) for _ in range(length(k))) for k in given.kernel_size}
        )
    seeds = range(arguments.seeds)
    fast = devices.precision("auto", device)
    kinds: tuple[Precision, ...] = ("full", fast)
    jobs = [(kind, den, seed) for kind in kinds for den in densities for seed in seeds]
    environment_ = ratios.environment(device) | {"fast": fast, "seeds": arguments.seeds}
    preparation.bank(given.data, environment.home())  # once, before anybody needs it
    places = len(devices.spread(arguments.device, None))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(places, mp_context=context) as pool:
        found = list(pool.map(partial(trained, given, arguments.device), jobs))
    # In the order of the jobs: kinds, densities, seeds.
    values = np.reshape(found, (len(kinds), len(densities), len(seeds)))
    means = dict(zip(kinds, values.mean(axis=2).tolist(), strict=True))
    differences = [b - a for a, b in zip(means["full"], means[fast], strict=True)]
    by_seed = (values[1] - values[0]).mean(axis=0).tolist()
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    correlation = float(spearmanr(means["full"], means[fast]).statistic)
    rows = [
        [str(list(den.values())), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"]
        for den, a, b in zip(densities, means["full"], means[fast], strict=True)
    ]
    print(ratios.table(["density", "float32, eager", fast, "difference"], rows))
    print(f"\n{given.name}, {given.metric} in {given.unit}; {environment_}")
    print(f"Spearman {correlation:.3f}; mean difference {statistics.fmean(differences):+.4f} ± "
          f"{error:.4f} over {len(densities)} densities; by seed "
          f"{' '.join(f'{difference:+.4f}' for difference in by_seed)}")  # fmt: skip
    if arguments.json:
        report = {"environment": environment_, "study": given.document(), "spearman": correlation,
                  "difference": statistics.fmean(differences), "standard error": error,
                  "by seed": by_seed, "means": means}  # fmt: skip
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--densities", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
