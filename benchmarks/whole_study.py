"""A whole study: `densitune launch` against plain_search.py training every density in full.

Both run as processes of their own with fresh databases and fresh caches, one after the other, and
everything counts until the best density is known: start, data, floors, proposals, training,
measurements, storage, the model that chooses finalists. Then plain_search.py retrains the best
density of either side with fresh seeds, so that both are judged by the same code.

    python benchmarks/whole_study.py configs/quickstart.yaml --fresh 8
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import plain_search
from helpers import ratios
from sqlalchemy import text

from densitune.density import Densities
from optimizer import snapshot
from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import finalists
from storage import database, server

FIRST_FRESH_SEED = 500_000
"""Beyond what any study's own seeds are in the usual range of search.seed."""


def main() -> None:
    arguments = _arguments()
    given = study_file.load(arguments.config)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "densitune"), Path(folder, "plain")
        seconds, ours = _densitune(arguments.config, given, first)
        outside = _outside_training(first, given.name)
        plain_seconds, theirs = _plain(arguments.config, given, second)
        fresh = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + arguments.fresh)
        problem = plain_search.prepare(given, second)
        ours_again, theirs_again = (
            [problem.train(densities, seed).value for seed in fresh] for densities in (ours, theirs)
        )
    differences = [a - b for a, b in zip(ours_again, theirs_again, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    about = ratios.environment(problem.device)
    print(f"\n{given.name}: {given.search.trials} densities, {given.search.seeds} seeds; {about}")
    rows = [
        ["densitune", f"{seconds:.1f}", str(ours), f"{statistics.fmean(ours_again):.4f}"],
        ["plain", f"{plain_seconds:.1f}", str(theirs), f"{statistics.fmean(theirs_again):.4f}"],
    ]
    print(ratios.table(["", "seconds", "best density", f"{given.metric}, fresh seeds"], rows))
    print(f"densitune's workers spent {outside:.1%} of their time outside training")
    print(f"plain takes {plain_seconds / seconds:.2f}x as long")
    print(
        f"densitune's best, retrained, minus plain's: {statistics.fmean(differences):+.4f} ± "
        f"{error:.4f} {given.unit} (n = {len(differences)}, paired)"
    )
    if arguments.json:
        report = {
            "environment": about, "study": given.document(), "ratio": plain_seconds / seconds,
            "seconds": {"densitune": seconds, "plain": plain_seconds},
            "best": {"densitune": ours, "plain": theirs},
            "retrained": {"densitune": ours_again, "plain": theirs_again},
            "outside training": outside,
            "difference": statistics.fmean(differences), "standard error": error,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


OUTSIDE = text("""
    WITH ended AS (
        SELECT worker_id, started_at, finished_at,
               (SELECT max(seconds) FROM densitune.measurements WHERE job_id = jobs.id) AS trained,
               lead(started_at) OVER (PARTITION BY worker_id ORDER BY started_at) AS next
        FROM densitune.jobs AS jobs
        WHERE study_id = (SELECT id FROM densitune.studies WHERE name = :name)
          AND phase = 'search'
    )
    SELECT 1 - sum(trained) / sum(extract(epoch FROM coalesce(next, finished_at) - started_at))
    FROM ended
""")
"""The share of the workers' time, from their first job's claim to their last one's end, that their
jobs' steps and measurements did not take: claims, records, building networks, waiting for jobs."""


def _outside_training(home: Path, name: str) -> float:
    with database.connect(server.embedded_url(home)).connect() as connection:
        return float(connection.scalar(OUTSIDE, {"name": name}) or 0.0)


def _densitune(path: Path, given: StudyConfig, home: Path) -> tuple[float, Densities]:
    """Return the wall time of densitune's search and its first finalist."""
    # Forced: what is timed is the search, whether or not so short a training is above the floors.
    command = [sys.executable, "-m", "optimizer.cli", "launch", str(path), "--until", "search"]
    seconds = _timed([*command, "--force"], home)
    started = time.perf_counter()
    engine = database.connect(server.embedded_url(home))
    found = snapshot.of(engine, given.name).results
    best = finalists.choose(found, given)[0]
    densities = next(trial.densities for trial in found if trial.number == best)
    return seconds + time.perf_counter() - started, densities


def _plain(path: Path, given: StudyConfig, home: Path) -> tuple[float, Densities]:
    """Return the wall time of plain_search.py's search and the density with the best mean."""
    home.mkdir()
    report = home / "plain-search.json"
    script = str(Path(__file__).with_name("plain_search.py"))
    trials = ["--trials", str(given.search.trials), "--json", str(report)]
    seconds = _timed([sys.executable, script, str(path), *trials], home)
    trained = json.loads(report.read_text())["trained"]
    best = max(trained, key=lambda one: statistics.fmean(one["values"].values()))
    return seconds, {int(k): tuple(den) for k, den in best["densities"].items()}


def _timed(command: list[str], home: Path) -> float:
    environment = {
        **os.environ, "DENSITUNE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    environment.pop("DENSITUNE_STORAGE", None)
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - started


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--fresh", type=int, default=8, help="seeds of the retraining")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
