"""Code of the user's own: found without being run, known by its fingerprint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT

from optimizer.errors import UsageError
from workers import entries

RAISES = "raise RuntimeError('nobody runs this')\n"


def project(folder: Path) -> Path:
    """A project with a training script, a package, an environment, and names of ours."""
    for path, text in {
        "mine.py": RAISES,
        "workers.py": RAISES,
        "optimizer/__init__.py": "",
        "package/__init__.py": RAISES,
        "package/inner/train.py": RAISES,
        "package/inner/__init__.py": "",
        ".hidden/secret.py": "a",
        "venv/pyvenv.cfg": "",
        "venv/lib.py": "a",
        "__pycache__/mine.py": "a",
        "notes.txt": "a",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_an_entry_is_found_without_being_run(tmp_path: Path) -> None:
    found = entries.find("mine:train", project(tmp_path))
    assert (found.file, found.folder) == (tmp_path / "mine.py", tmp_path)
    inner = entries.find("package.inner.train:main", tmp_path)
    assert (inner.file, inner.folder) == (tmp_path / "package/inner/train.py", tmp_path)
    assert inner.name == "package.inner.train:main"


def test_a_module_that_is_called_as_one_of_ours_is_the_user_s(tmp_path: Path) -> None:
    project(tmp_path)
    assert entries.find("workers:train", tmp_path).file == tmp_path / "workers.py"
    assert entries.find("optimizer:train", tmp_path).file == tmp_path / "optimizer/__init__.py"


@pytest.mark.parametrize(
    "seen", ["mine.py", "workers.py", "optimizer/__init__.py", "package/inner/train.py"]
)
def test_a_fingerprint_is_of_all_code_beside_and_below(tmp_path: Path, seen: str) -> None:
    before = entries.find("mine:train", project(tmp_path))
    (tmp_path / seen).write_text("pass\n")
    after = entries.find("mine:train", tmp_path)
    assert before.fingerprint != after.fingerprint
    with pytest.raises(UsageError, match=r"is not the study's .*--code FOLDER"):
        entries.check(after, before.fingerprint)


@pytest.mark.parametrize(
    "unseen", [".hidden/secret.py", "venv/lib.py", "__pycache__/mine.py", "notes.txt"]
)
def test_a_fingerprint_is_of_nothing_else(tmp_path: Path, unseen: str) -> None:
    before = entries.find("mine:train", project(tmp_path))
    (tmp_path / unseen).write_text("b")
    entries.check(entries.find("mine:train", tmp_path), before.fingerprint)


def test_a_fingerprint_is_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    one, other = project(tmp_path / "one"), project(tmp_path / "two")
    entry = "package.inner.train:main"
    assert entries.find(entry, one).fingerprint == entries.find(entry, other).fingerprint
    (other / "beside.py").write_text("pass\n")  # which a package may import as well
    assert entries.find(entry, one).fingerprint != entries.find(entry, other).fingerprint


def test_a_fingerprint_goes_through_links_and_stops_at_loops(tmp_path: Path) -> None:
    elsewhere, here = project(tmp_path / "elsewhere"), tmp_path / "here"
    here.mkdir()
    (here / "package").symlink_to(elsewhere / "package")
    (here / "loop").symlink_to(here)
    found = entries.find("package.inner.train:main", here)
    (elsewhere / "package/inner/train.py").write_text("pass\n")
    assert entries.find("package.inner.train:main", here).fingerprint != found.fingerprint


def test_what_only_looks_like_a_module_is_passed_over(tmp_path: Path) -> None:
    before = entries.find("mine:train", project(tmp_path))
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    entries.check(entries.find("mine:train", tmp_path), before.fingerprint)
    for entry in ("gone:train", "pipe:train"):
        with pytest.raises(UsageError, match=entry):
            entries.find(entry, tmp_path)


def test_the_name_of_a_file_is_part_of_it(tmp_path: Path) -> None:
    before = entries.find("mine:train", project(tmp_path))
    (tmp_path / "workers.py").rename(tmp_path / "helpers.py")
    assert entries.find("mine:train", tmp_path).fingerprint != before.fingerprint


def test_what_is_installed_is_found_if_it_is_named_and_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    project(installed)
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no module mine in"):
        entries.find("mine:train", entries.place())
    assert entries.place("mine") == "mine"
    before = entries.find("mine:train", "mine")
    assert before.file == installed / "mine.py"
    (installed / "workers.py").write_text("pass\n")
    entries.check(entries.find("mine:train", "mine"), before.fingerprint)
    with pytest.raises(UsageError, match="there is no module package in mine"):
        entries.find("package.inner.train:main", "mine")


@pytest.mark.parametrize(
    "entry",
    [
        "nowhere:train", "package.absent:train", "sys:exit", "subprocess:check_output",
        "torch.hub:load", "numpy:load", "optuna:create_study", "pytest:main",
        "optimizer.cli.main:main", "venv.lib:train", "__main__:train", ".hidden.secret:train",
    ],
)  # fmt: skip
def test_an_entry_that_is_not_there_is_one_line(tmp_path: Path, entry: str) -> None:
    with pytest.raises(UsageError, match=entry) as refusal:
        entries.find(entry, project(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("entry", ["workers.entries:load", "optimizer.cli.main:main"])
def test_our_own_code_is_nobody_s_entry_in_a_checkout_of_ours(entry: str) -> None:
    with pytest.raises(UsageError, match="not of the user's code"):
        entries.find(entry, ROOT)


def test_the_standard_library_is_no_code_wherever_one_stands() -> None:
    with pytest.raises(UsageError, match="not of the user's code"):
        entries.find("subprocess:run", Path(subprocess.__file__).parent)


@pytest.mark.parametrize("named", ["subprocess", "sys", "torch", "numpy", "optuna", "densitune"])
def test_a_package_that_is_not_the_user_s_is_refused_if_it_is_named(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"--code {named} is no code of yours"):
        entries.place(named)


def test_the_place_is_given_or_the_environment_s_or_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert entries.place() == tmp_path
    monkeypatch.setenv(entries.VARIABLE, str(project(tmp_path / "a")))
    assert entries.place() == tmp_path / "a"
    assert entries.place(str(tmp_path)) == tmp_path
    for absent in (str(tmp_path / "absent"), "absent"):
        with pytest.raises(UsageError, match="no folder of code"):
            entries.place(absent)


def test_a_function_from_elsewhere_is_not_called_though_the_code_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "an_inner_of_mine.py").write_text("def build():\n    return 3\n")
    (tmp_path / "an_outer_of_mine.py").write_text(
        "from functools import cache\nfrom subprocess import check_output\n"
        "from torch.hub import load\nfrom an_inner_of_mine import build\n"
        "@cache\ndef kept():\n    return 4\nclass Net: ...\n"
    )
    for name, made in (("build", 3), ("kept", 4)):
        assert entries.load(entries.find(f"an_outer_of_mine:{name}", tmp_path))() == made
    entries.load(entries.find("an_outer_of_mine:Net", tmp_path))
    for name in ("check_output", "load", "cache", "__class__"):
        with pytest.raises(UsageError, match="not of your code"):
            entries.load(entries.find(f"an_outer_of_mine:{name}", tmp_path))


def test_a_module_that_is_another_to_python_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "this", raising=False)
    (tmp_path / "this.py").write_text("def build(): ...\n")
    with pytest.raises(UsageError, match="another name"):
        entries.load(entries.find("this:build", tmp_path))
    assert "this" not in sys.modules


def test_a_function_is_imported_and_faults_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "a_network_of_mine.py").write_text("def build():\n    return 3\nother = 1\n")
    (tmp_path / "a_fault_of_mine.py").write_text("1 / 0\n")
    assert entries.load(entries.find("a_network_of_mine:build", tmp_path))() == 3
    for entry, said in {
        "a_network_of_mine:other": "no function other",
        "a_fault_of_mine:build": "ZeroDivisionError",
    }.items():
        with pytest.raises(UsageError, match=said):
            entries.load(entries.find(entry, tmp_path))
    (tmp_path / "workers.py").write_text("def build(): ...\n")
    with pytest.raises(UsageError, match="another name"):
        entries.load(entries.find("workers:build", tmp_path))
