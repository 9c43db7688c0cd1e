"""The house itself: packages, their maps and borders."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

ROOT = Path(__file__).parent.parent
PACKAGES = ("optimizer", "workers", "storage")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_that_of_this_checkout(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).resolve() == (ROOT / package / "__init__.py").resolve()


@pytest.mark.parametrize("package", PACKAGES)
def test_an_init_is_a_map_and_nothing_else(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_map_names_every_module_and_only_modules(package: str) -> None:
    text = importlib.import_module(package).__doc__ or ""
    # An entry starts a line: names, then two spaces or the end of the line.
    entries = re.findall(r"^([a-z0-9_]+(?:, [a-z0-9_]+)*)(?:  |$)", text, re.MULTILINE)
    mapped = [name for entry in entries for name in entry.split(", ")]
    modules = [path.stem for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]
    modules += [path.parent.name for path in (ROOT / package).glob("*/__init__.py")]
    assert sorted(mapped) == sorted(modules)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_hides_one_of_the_standard_library(package: str) -> None:
    names = {path.stem for path in (ROOT / package).rglob("*.py")} - {"__init__"}
    assert not names & sys.stdlib_module_names
    assert not names & {"utils", "base"}


def test_the_borders_hold() -> None:
    # The script `lint-imports`, of the Python that runs the tests.
    script = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout)


def test_the_readme_names_every_command() -> None:
    from optimizer.cli.main import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = typer.main.get_group(app).commands
    assert {"launch", "worker", "export"} <= commands.keys()
    for name in commands:
        assert re.search(rf"\bdensitune {name}\b|`{name}\b", readme), f"{name} is not in README.md"
