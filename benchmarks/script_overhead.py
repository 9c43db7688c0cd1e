"""What the process of a training script adds to a job, beside what the script itself takes.

    python benchmarks/script_overhead.py --seconds 10 --jobs 7

The script keeps busy for a time of its own choice, with real steps of a network of a million
weights, and writes down how long it was outside of densitune's calls. What is left of the job's
time, as the worker measures it, is the process's: its start (the first job alone), messages,
reports, a checkpoint every two seconds. Target: 3 % of a job of 10 s, once warm.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from helpers.ratios import environment

from optimizer import arms
from workers import entries
from workers.scripts.script import Script
from workers.scripts.stage import Stage
from workers.training.recipe import Job

EPOCHS = 10
SCRIPT = """
import pathlib, time
import torch, densitune

def train(run):
    spent, since = 0.0, time.perf_counter()
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 64, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(64, 192, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(192, 512, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(512, 1, 1))
    spent += time.perf_counter() - since
    model = run.apply(model)
    since = time.perf_counter()
    tuner, images = torch.optim.Adam(model.parameters(), 1e-3), torch.randn(2, 1, 16, 16)
    spent += time.perf_counter() - since
    for epoch in run.epochs():
        since = time.perf_counter()
        while time.perf_counter() - since < SECONDS / run.budget:
            loss = (model(images) - images).square().mean()
            tuner.zero_grad()
            loss.backward()
            tuner.step()
        value = loss.item()
        spent += time.perf_counter() - since
        run.checkpoint({"model": model.state_dict(), "tuner": tuner.state_dict()})
        run.report(epoch, value)
    pathlib.Path(__file__).with_name("spent").write_text(str(spent))
"""


def measure(seconds: float, jobs: int) -> list[tuple[float, float]]:
    """Return (worker's time, script's own time) of every job in seconds; the first one is cold."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "busy.py").write_text(f"SECONDS = {seconds}\n{SCRIPT}")
        entry = entries.find("busy:train", folder)
        script = Script(
            name=entry.name, fingerprint=entry.fingerprint, init="model", lr=None,
            rungs=tuple(range(1, EPOCHS)), is_lower_better=True, floor=0.0, warm=True,
            patience=600.0,
        )  # fmt: skip
        stage, told = Stage(script, entry, torch.device("cpu")), []
        job = Job(arms.identity([3], None, "model"), 0, EPOCHS)

        def fail(number: int, error: Exception) -> None:
            raise SystemExit(f"the script failed: {error}")

        try:
            for _ in range(jobs):
                began = time.perf_counter()
                stage.train([job], on_rung=lambda number, made: None, on_failure=fail)
                told.append((time.perf_counter() - began, float((folder / "spent").read_text())))
        finally:
            stage.close()
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="that a job keeps busy")
    parser.add_argument("--jobs", type=int, default=7, help="beside the first, cold one")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    given = parser.parse_args()
    cold, *warm = measure(given.seconds, given.jobs + 1)
    added = sorted(worker - own for worker, own in warm)
    shares = sorted((worker - own) / own for worker, own in warm)
    found = {
        "environment": environment(torch.device("cpu")),
        "jobs": given.jobs,
        "seconds": given.seconds,
        "cold": cold[0] - cold[1],
        "warm": {"median": statistics.median(added), "lowest": added[0], "highest": added[-1]},
        "share": {"median": statistics.median(shares), "highest": shares[-1]},
    }
    if given.json:
        json.dump(found, sys.stdout, indent=2)
        return
    print(f"{given.jobs} warm jobs of {given.seconds:g} s, {EPOCHS} epochs with a report each")
    print(f"added to the first, cold one: {found['cold']:.2f} s")
    print(
        f"added once warm: {1000 * statistics.median(added):.0f} ms "
        f"({1000 * added[0]:.0f} to {1000 * added[-1]:.0f}), "
        f"{statistics.median(shares):.2%} of the job ({shares[0]:.2%} to {shares[-1]:.2%})"
    )


if __name__ == "__main__":
    main()
