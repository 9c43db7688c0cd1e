"""densitune as somebody else's project sees it, and what it shows."""

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from support.checkout import ROOT

import densitune
from densitune import conversion, density, preset, study, weighted_conv
from densitune import run as runs

MODULES = (density, study, weighted_conv, conversion, preset, runs)


def run(program: str, *options: str, folder: Path) -> str:
    """What a program prints that is run in a folder, as with `python -m` from there."""
    done = subprocess.run(
        [sys.executable, *options, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What it shows


def test_all_public_names_of_its_modules_can_be_seen() -> None:
    defined = {
        name
        for module in MODULES
        for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
        for name in names_of(node)
        if not name.startswith("_")
    }
    assert set(densitune.__all__) == defined
    assert dir(densitune) == sorted(defined)
    for name in defined:
        home = next(module for module in MODULES if hasattr(module, name))
        assert getattr(densitune, name) is getattr(home, name)


def names_of(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(densitune.__file__).read_text(encoding="utf-8"))
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("densitune.")
        for alias in node.names
    ]
    assert sorted(imported) == sorted(densitune.__all__)


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'densitune' has no attribute 'den'$"):
        densitune.den  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from densitune import den  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize(
    "program",
    [
        "import densitune; dir(densitune)",
        "from densitune.density import phi",
        "from densitune import PUBLISHED, density, identity",
        "from densitune import Study, StudyError",
    ],
)
def test_what_needs_numbers_alone_does_not_load_torch(program: str) -> None:
    run(f"{program}\nimport sys; assert 'torch' not in sys.modules", folder=ROOT)


# In a project of somebody else


PROGRAM = """
import json, sys
from densitune import apply_densities, fold_all, WeightedConv2d

import torch
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 5))
apply_densities(model, {3: (0.7,), 5: (0.2, 0.8)})
assert all(type(layer) is WeightedConv2d for layer in model)
image = torch.randn(1, 3, 16, 16)
weighted = model(image)
assert torch.equal(fold_all(model)(image), weighted)
assert all(type(layer) is nn.Conv2d for layer in model)

loaded = {name.partition(".")[0] for name in sys.modules}
import optimizer, storage, workers
assert (optimizer.MINE, workers.MINE, storage.MINE) == (1, 2, 3)
print(json.dumps([sys.modules["densitune"].__file__, sorted(loaded)]))
"""

BARE = """
import json, sys
import numpy, torch
torch.nn.Conv2d(3, 4, 3)(torch.randn(1, 3, 16, 16))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that has an `optimizer`, a `workers` and a `storage` of its own."""
    folder = tmp_path / "project"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer" / "__init__.py").write_text("MINE = 1\n")
    (folder / "workers.py").write_text("MINE = 2\n")
    (folder / "storage.py").write_text("MINE = 3\n")
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("densitune", "optimizer", "workers", "storage"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(built)]
    done = subprocess.run(
        [*pip, *options, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = built.glob("densitune-*.whl")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(built / "installed")
    return built / "installed"


def packages_loaded(output: str) -> tuple[Path, set[str]]:
    """Where densitune was, and the packages that its use loaded beside the standard library's."""
    place, loaded = json.loads(output)
    return Path(place), set(loaded) - sys.stdlib_module_names - {"densitune"}


def test_an_editable_install_serves_a_project_with_names_like_ours(project: Path) -> None:
    place, loaded = packages_loaded(run(PROGRAM, folder=project))
    assert place == ROOT / "densitune" / "__init__.py"
    assert not loaded - set(json.loads(run(BARE, folder=project)))
    assert {"numpy", "torch"} <= loaded
    assert not loaded & {"optimizer", "workers", "storage", "optuna", "sqlalchemy", "pydantic"}


def test_a_wheel_serves_a_project_with_names_like_ours(project: Path, wheel: Path) -> None:
    # Isolated and without `site`, which would find the editable install; dependencies come last.
    installed = {str(Path(str(package.__file__)).parents[1]) for package in (numpy, torch)}
    paths = [str(project), str(wheel), *sorted(installed)]
    head = f"import sys; sys.path[:0] = {paths[:2]!r}; sys.path += {paths[2:]!r}\n"
    place, loaded = packages_loaded(run(head + PROGRAM, "-I", "-S", folder=project))
    assert place == wheel / "densitune" / "__init__.py"
    assert not loaded - set(json.loads(run(head + BARE, "-I", "-S", folder=project)))
    assert {"numpy", "torch"} <= loaded
    assert not loaded & {"optimizer", "workers", "storage", "optuna", "sqlalchemy", "pydantic"}


def test_a_wheel_has_every_package_and_what_they_read(wheel: Path) -> None:
    ours = [
        path.relative_to(ROOT)
        for package in ("densitune", "optimizer", "workers", "storage")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert [str(path) for path in ours if not (wheel / path).is_file()] == []
    (entries,) = wheel.glob("densitune-*.dist-info/entry_points.txt")
    assert "densitune = optimizer.cli.main:main" in entries.read_text()
