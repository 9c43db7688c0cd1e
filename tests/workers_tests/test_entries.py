"""Code of the user's own: found without being run, known by its fingerprint."""

import sys
from pathlib import Path

import pytest

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


def test_a_package_s_fingerprint_is_the_package_s_wherever_it_lies(tmp_path: Path) -> None:
    one, other = project(tmp_path / "one"), project(tmp_path / "two")
    (other / "mine.py").write_text("pass\n")
    entry = "package.inner.train:main"
    assert entries.find(entry, one).fingerprint == entries.find(entry, other).fingerprint
    (other / "package/helper.py").write_text("pass\n")
    assert entries.find(entry, one).fingerprint != entries.find(entry, other).fingerprint


def test_the_name_of_a_file_is_part_of_it(tmp_path: Path) -> None:
    before = entries.find("mine:train", project(tmp_path))
    (tmp_path / "workers.py").rename(tmp_path / "helpers.py")
    assert entries.find("mine:train", tmp_path).fingerprint != before.fingerprint


def test_what_is_installed_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages"
    project(installed)
    monkeypatch.syspath_prepend(str(installed))
    before = entries.find("mine:train", tmp_path)
    assert before.file == installed / "mine.py"
    (installed / "workers.py").write_text("pass\n")
    entries.check(entries.find("mine:train", tmp_path), before.fingerprint)


@pytest.mark.parametrize("entry", ["nowhere:train", "package.absent:train", "sys:exit"])
def test_an_entry_that_is_not_there_is_one_line(tmp_path: Path, entry: str) -> None:
    with pytest.raises(UsageError, match=entry):
        entries.find(entry, project(tmp_path))


def test_the_folder_is_given_or_the_environment_s_or_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert entries.folder(None) == tmp_path
    monkeypatch.setenv(entries.VARIABLE, str(project(tmp_path / "a")))
    assert entries.folder(None) == tmp_path / "a"
    assert entries.folder(tmp_path) == tmp_path
    with pytest.raises(UsageError, match="no folder of code"):
        entries.folder(tmp_path / "absent")


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
