"""The house itself: packages, their maps and borders."""

import ast
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer.main
from support.checkout import ROOT

from optimizer.cli import options
from optimizer.cli.main import app
from storage import states

PACKAGES = ("densitune", "optimizer", "workers", "storage")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
ROOMS = [path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py"]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_absolute() else path)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_that_of_this_checkout(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).resolve() == (ROOT / package / "__init__.py").resolve()


def test_every_folder_of_modules_is_a_package() -> None:
    assert {path.parent.relative_to(ROOT) for path in SOURCES} == set(ROOMS)


@pytest.mark.parametrize("room", [room for room in ROOMS if room.name != "densitune"], ids=named)
def test_an_init_is_a_map_and_nothing_else(room: Path) -> None:
    body = ast.parse((ROOT / room / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("room", ROOMS, ids=named)
def test_a_map_names_every_module_and_only_modules(room: Path) -> None:
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
    # An entry starts a line: names, then two spaces or the end of the line.
    entries = re.findall(r"^([a-z0-9_]+(?:, [a-z0-9_]+)*)(?:  |$)", text, re.MULTILINE)
    mapped = [name for entry in entries for name in entry.split(", ")]
    modules = [path.stem for path in (ROOT / room).glob("*.py") if "__" not in path.stem]
    modules += [path.parent.name for path in (ROOT / room).glob("*/__init__.py")]
    assert sorted(mapped) == sorted(modules)


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_module_is_small_and_so_are_its_functions(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix == ".py")


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_an_example_is_short_and_answers_a_question(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\|.*\?.*\|.*\[{path.name}\]\({path.name}\)", readme, re.MULTILINE)


def test_every_example_runs_in_the_suite() -> None:
    tests = "".join(p.read_text("utf-8") for p in (ROOT / "tests" / "examples_tests").glob("*.py"))
    assert [path.name for path in EXAMPLES if f'"{path.name}"' not in tests] == []


def choices(source: str) -> Iterator[frozenset[str]]:
    """The closed sets that a module spells out: literals of several words."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=words)):
                spelt = frozenset(
                    str(word.value) for word in words if isinstance(word, ast.Constant)
                )
                if len(spelt) > 1:  # the rest may be a set of another name
                    yield spelt


OPEN = {
    frozenset(words)
    for words in (
        ("library", "compensated"),
        ("full", "bfloat16"),
        ("auto", "full", "bfloat16"),
        ("done", "cut"),
        ("validation", "test"),
    )
}
"""Sets that are still spelt out more than once."""


def test_a_closed_set_is_spelt_out_once() -> None:
    spelt = Counter(words for path in SOURCES for words in choices(path.read_text("utf-8")))
    assert {words for words, times in spelt.items() if times > 1} <= OPEN


def test_a_study_may_stop_after_phases_that_there_are() -> None:
    [stops, _] = get_args(get_args(options.Until)[0])
    assert get_args(stops) == get_args(states.Phase)[: len(get_args(stops))]


def test_no_module_hides_one_of_the_standard_library() -> None:
    names = {path.stem for path in SOURCES if "__" not in path.stem} | {r.name for r in ROOMS}
    assert not names & sys.stdlib_module_names
    assert not names & {"utils", "base"}


@pytest.mark.parametrize(("package", "most"), [("optimizer", 12), ("workers", 10)])
def test_the_ground_plan_fits_into_a_glance(package: str, most: int) -> None:
    found = [path.name for path in (ROOT / package).iterdir() if path.name != "__pycache__"]
    assert len(found) <= most


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = typer.main.get_group(app).commands
    assert {"launch", "worker", "export"} <= commands.keys()
    for name in commands:
        assert re.search(rf"\bdensitune {name}\b|`{name}\b", readme), f"{name} is not in README.md"
