"""The borders of the house: they hold, and each stops what it is there for."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.checkout import ROOT

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
    ("workers/scripts/process.py", "from storage import jobs", {TRAINING}),
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


def test_who_lives_and_whose_lease_has_run_out_is_said_once() -> None:
    storage = [path.read_text(encoding="utf-8") for path in (ROOT / "storage").glob("*.py")]
    for condition in (r"\bseen_at\s*[<>]", r"\bgreatest\(lease_until\b"):
        assert sum(len(re.findall(condition, text)) for text in storage) == 1, condition


def sql_of(source: str) -> set[str]:
    """What in a module speaks to the database by itself, or has the means to.

    The types of a connection may be named, and errors be caught; what is asked is storage's.
    """
    harmless = {"sqlalchemy": {"Connection", "Engine"}}
    libraries = {"sqlalchemy", "alembic", "psycopg2"}
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {a.name for a in names if a.name.partition(".")[0] in libraries}
            case ast.ImportFrom(module="sqlalchemy.exc"):
                pass
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in libraries:
                    found |= {a.name for a in names} - harmless.get(module, set())
            case ast.Call(
                func=ast.Attribute(
                    attr="execute" | "scalar" | "scalars" | "exec_driver_sql" as called
                )
            ):
                found.add(called)
    return found


OUTSIDE = [
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if package != "storage"
]


@pytest.mark.parametrize("path", OUTSIDE, ids=str)
def test_sql_stands_in_storage_only(path: Path) -> None:
    assert sql_of((ROOT / path).read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("from sqlalchemy import Engine, text", {"text"}),
        ("import sqlalchemy as sa", {"sqlalchemy"}),
        ("from sqlalchemy.orm import Session", {"Session"}),
        ("def f():\n    import psycopg2", {"psycopg2"}),
        ("connection.execute('SELECT 1')", {"execute"}),
        ("connection.exec_driver_sql('SELECT 1')", {"exec_driver_sql"}),
        ("from sqlalchemy import Connection, Engine", set()),
        ("from sqlalchemy.exc import DBAPIError", set()),
        ("from optimizer.show.page import text", set()),
    ],
)
def test_planted_sql_is_found(planted: str, found: set[str]) -> None:
    assert sql_of(planted) == found


def unsealing(path: Path, source: str) -> set[str]:
    """Functions of a module that read what the test split said, or call what does.

    It stands beside other measurements, so that a query has to leave it out by name.
    """
    found = set()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        about = ast.get_docstring(function, clean=False)
        for node in ast.walk(function):
            match node:
                case ast.Constant(value=str(told)) if path.parts[0] == "storage" and told != about:
                    everything = re.search(r"measurements\.\*|SELECT \*", told)
                    asked = re.search(r"\bextra\b.", told) and "- 'sealed'" not in told
                    if asked or everything:
                        found.add(f"{path}: {function.name}")
                case ast.Attribute(value=ast.Name(id="tables"), attr="measurements"):
                    found.add(f"{path}: {function.name}")
                case ast.Attribute(attr="unsealed"):
                    found.add(f"{path}: {function.name}")
    return found


def test_the_test_split_is_unsealed_by_one_function_for_one_purpose() -> None:
    """That it gives nothing before the verdict is tested beside it."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "migrations" not in path.parts:
                here = path.relative_to(ROOT)
                found |= unsealing(here, path.read_text(encoding="utf-8"))
    assert found == {
        "storage/ledger.py: record",  # writes
        "storage/ledger.py: unsealed",
        "optimizer/phases/desk.py: unsealed",
        "optimizer/phases/holdout.py: _unsealed",
    }


@pytest.mark.parametrize(
    "planted",
    [
        "text('SELECT extra FROM densitune.measurements')",
        "text(\"SELECT value, extra -> 'sealed' AS said FROM densitune.measurements\")",
        "text('SELECT measurements.* FROM densitune.measurements AS measurements')",
        "select(tables.measurements)",
        "ledger.unsealed(connection, 1, [0])",
    ],
)
def test_planted_unsealing_is_found(planted: str) -> None:
    path = Path("storage/inspection.py")
    assert unsealing(path, f"def peep():\n    return {planted}") == {f"{path}: peep"}
