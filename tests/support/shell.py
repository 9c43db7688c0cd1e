"""The command line as a shell uses it: processes of their own, and what they left in a database."""

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml
from sqlalchemy import Engine, text

from support.checkout import ROOT


def write_config(folder: Path, name: str, **changes: object) -> Path:
    content: dict[str, object] = {
        "name": name,
        "task": "photos",
        "data": {"patch": 16, "patches_per_image": 8, "crop": 32},
        "proxy": {"family": "nafnet", "width": 4, "depth": 1},
        "kernel_size": 3,
        "training": {"budget": 2, "batch_size": 8, "lr": 0.003},
        "search": {"trials": 7, "seeds": 2, "rungs": [1], "sampler": "qmc"},
        "confirm": {"finalists": 1, "seeds": 2, "batch": 2, "budget": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "optimizer.cli", *arguments]


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "DENSITUNE_STORAGE": url, "PYTHONPATH": str(ROOT)}


def run(
    folder: Path, url: str, *arguments: str, answer: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(url),
        input=answer,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def start(folder: Path, url: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("wb") as log:
        return subprocess.Popen(
            command(*arguments), cwd=folder, env=environment(url), stdout=log, stderr=log
        )


def query(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


LEDGER = """
    SELECT phase, trial, seed, rung, value, extra FROM densitune.measurements
    JOIN densitune.jobs ON jobs.id = job_id ORDER BY phase, trial, seed, rung
"""
