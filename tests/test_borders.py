"""The borders of the house: they hold, and each stops what it is there for."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("densitune", "optimizer", "workers", "storage")

HOUSE = "the house: the command line on the roof, storage in the ground"
OPTIMIZER = "every room of the optimizer has its floor"
WORKERS = "every room of the workers has its floor"
VOCABULARY = "workers see of the optimizer only its vocabulary"
LIBRARY = "densitune knows nothing of the service"
TRAINING = "training knows no database and no config format"
OPTUNA = "only phases speak to Optuna"
TORCH = "torch lives in workers and densitune"
DENSITY = "a density is plain numbers"
STORAGE = "storage knows neither torch nor optuna nor the rest of the house"


def broken(folder: Path) -> set[str]:
    """The names of the contracts that do not hold for the packages in a folder."""
    # The script `lint-imports`, of the Python that runs the tests.
    script = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert re.search(r"Contracts: \d+ kept, \d+ broken", done.stdout), done.stdout + done.stderr
    return set(re.findall(r"^(.+) BROKEN$", done.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and their contracts."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def contracts() -> list[dict[str, object]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, object]] = settings["tool"]["importlinter"]["contracts"]
    return found


def test_the_borders_hold() -> None:
    assert broken(ROOT) == set()


def test_no_import_is_exempt() -> None:
    assert not [one["name"] for one in contracts() if "ignore_imports" in one]


PLANTED = [
    ("optimizer/design.py", "import torch", {TORCH}),
    ("storage/ledger.py", "import torch", {TORCH, STORAGE}),
    ("optimizer/evidence/cautions.py", "import optuna", {OPTUNA}),
    ("optimizer/cli/look.py", "from optuna import create_study", {OPTUNA}),
    ("workers/preparation.py", "from optimizer.evidence import baseline", {VOCABULARY}),
    ("workers/training/recipe.py", "import pydantic", {TRAINING}),
    ("optimizer/arms.py", "from storage import jobs", {TRAINING}),
    ("workers/seeds.py", "from workers import training", {WORKERS}),
    ("optimizer/phases/bars.py", "from optimizer import snapshot", {HOUSE, OPTIMIZER}),
    ("optimizer/attic/__init__.py", "", {OPTIMIZER}),
    ("optimizer/attic.py", "", {OPTIMIZER}),
    ("workers/attic/__init__.py", "", {WORKERS}),
    ("densitune/density.py", "from optimizer import errors", {HOUSE, LIBRARY}),
    ("densitune/density.py", "import torch", {DENSITY}),
]


@pytest.mark.parametrize(("place", "line", "expected"), PLANTED)
def test_what_is_planted_breaks_its_border_and_no_other(
    place: str, line: str, expected: set[str], house: Path
) -> None:
    path = house / place
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        assert broken(house) == expected
    finally:
        if before is not None:
            path.write_text(before, encoding="utf-8")
        elif path.name == "__init__.py":
            shutil.rmtree(path.parent)
        else:
            path.unlink()


def test_every_border_was_seen_to_stop_something() -> None:
    assert {name for *_, names in PLANTED for name in names} == {one["name"] for one in contracts()}
