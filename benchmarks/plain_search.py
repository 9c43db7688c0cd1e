"""The rival: the same search without densitune, as a careful researcher would write it.

One training at a time with all cores or the whole GPU (plain_training.py) and Optuna's
`study.optimize` with its default sampler on PostgreSQL, without pruning. The config is densitune's.

    python benchmarks/plain_search.py configs/quickstart.yaml --trials 24
    python benchmarks/plain_search.py configs/cifar100-vgg-k5.yaml --retrain 0.2,0.8 --seeds 7,8
"""

import argparse
import json
import os
import statistics
import sys
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import ratios
from helpers.plain_training import Problem, Result, prepare

from densitune import density
from densitune.density import Densities
from optimizer.errors import UsageError
from storage.errors import StorageError

if TYPE_CHECKING:
    from optimizer.config.study_file import StudyConfig

__all__ = ["Problem", "Result", "Values", "optimize", "parse_densities", "prepare"]

Values = dict[int, float]
"""The metric by seed."""


def optimize(
    config: "StudyConfig", url: str, home: Path, trials: int
) -> list[tuple[Densities, Values]]:
    """Search with Optuna's default sampler; return every density with its values by seed.

    The first trials are densitune's: identity, the published densities and those given.
    """
    import optuna

    problem = prepare(config, home)
    found: list[tuple[Densities, Values]] = []

    def objective(trial: optuna.Trial) -> float:
        box = config.density
        densities = {
            k: tuple(trial.suggest_float(name, box.low, box.high) for name in _names(k))
            for k in config.kernel_size
        }
        values = {seed: problem.train(densities, seed).value for seed in config.seeds}
        found.append((densities, values))
        return statistics.fmean(values.values())

    study = optuna.create_study(
        storage=url,
        study_name=f"plain-{config.name}-{uuid.uuid4().hex[:8]}",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=config.search.seed),
    )
    with warnings.catch_warnings():
        # Published densities may lie outside the box; they are trained all the same.
        warnings.filterwarnings("ignore", message="Fixed parameter .* out of range")
        for anchor in config.anchors:
            names = [name for k in config.kernel_size for name in _names(k)]
            given = [value for k in config.kernel_size for value in anchor.densities[k]]
            study.enqueue_trial(dict(zip(names, given, strict=True)))
        study.optimize(objective, n_trials=trials)
    print(f"best: {study.best_value:.3f} {config.unit} with {study.best_params}")
    return found


def _names(kernel_size: int) -> list[str]:
    return [f"k{kernel_size}_den{ring}" for ring in range(density.length(kernel_size))]


def parse_densities(text: str, kernel_sizes: Sequence[int]) -> Densities:
    """Return the densities of `0.2,0.8`, or of `3:0.7;5:0.2,0.8` for several kernel sizes.

    UsageError if they are not those of the study.
    """
    parts = text.split(";") if ":" in text else [f"{kernel_sizes[0]}:{text}"]
    try:
        pairs = [part.split(":", 1) for part in parts]
        given = {int(k): tuple(map(float, values.split(","))) for k, values in pairs}
        densities = {k: density.validate(den, k) for k, den in given.items()}
    except ValueError as error:
        raise UsageError(f"--retrain {text}: {error}; write 0.2,0.8 or 3:0.7;5:0.2,0.8") from error
    if sorted(densities) != sorted(kernel_sizes) or len(pairs) != len(kernel_sizes):
        raise UsageError(
            f"--retrain {text} is for the kernel sizes {[k for k, _ in pairs]}; the study has "
            f"{sorted(kernel_sizes)}, and each needs one density"
        )
    return densities


def _report(found: Sequence[tuple[Densities, Values]], config: "StudyConfig") -> str:
    """Return a table of densities, the first of which is the baseline."""
    rows = [
        [
            "  ".join(f"[{', '.join(f'{value:.4g}' for value in den)}]" for den in given.values()),
            f"{(mean := statistics.fmean(values.values())):.3f}",
            f"{mean - statistics.fmean(found[0][1].values()):+.3f}",
            " ".join(f"{value:.3f}" for value in values.values()),
        ]
        for given, values in found
    ]
    header = ["density", f"{config.metric}, {config.unit}", "minus the first", "by seed"]
    return ratios.table(header, rows)


def main() -> None:
    """Run the command line; errors end it with one line and densitune's exit codes."""
    try:
        _run(_arguments())
    except (UsageError, StorageError) as error:
        print(f"plain_search: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path, help="the study's YAML file")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--trials", type=int, help="search with this many densities")
    task.add_argument("--retrain", metavar="DENSITY", help="train one: 0.2,0.8 or 3:0.7;5:0.2,0.8")
    parser.add_argument("--seeds", help="of --retrain, as 100,101; the study's if absent")
    parser.add_argument(
        "--storage",
        default=os.environ.get("DENSITUNE_STORAGE"),
        help="URL of a PostgreSQL server; densitune's embedded one if absent",
    )
    parser.add_argument("--json", type=Path, help="write the values to this file")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> None:
    from optimizer.cli import environment
    from optimizer.config import study_file
    from storage import database, server

    config, home = study_file.load(arguments.config), environment.home()
    found: list[tuple[Densities, Values]]
    started = time.perf_counter()
    if arguments.retrain is not None:
        densities = parse_densities(arguments.retrain, config.kernel_size)
        chosen = _seeds(arguments.seeds) if arguments.seeds else config.seeds
        problem = prepare(config, home)
        found = [(densities, {seed: problem.train(densities, seed).value for seed in chosen})]
    elif arguments.trials < 1:
        raise UsageError(f"--trials {arguments.trials} is not a number from 1 up; take 24")
    else:
        url = arguments.storage or server.embedded_url(home)
        known = database.connect(url).url  # checked, and in the form that SQLAlchemy takes
        found = optimize(
            config, known.render_as_string(hide_password=False), home, arguments.trials
        )
    seconds = time.perf_counter() - started
    print(_report(found, config))
    print(f"{len(found)} densities, {seconds:.1f} s")
    if arguments.json:
        trained = [{"densities": given, "values": values} for given, values in found]
        written = {"config": config.document(), "trained": trained, "seconds": seconds}
        arguments.json.write_text(json.dumps(written, indent=1, default=str), encoding="utf-8")


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds {text} is not a list of numbers; write 100,101,102") from error


if __name__ == "__main__":
    main()
