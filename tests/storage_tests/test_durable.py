"""Files that others share a folder with: whole for every reader, and nothing else is touched."""

import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from support.synthetic import decided

from optimizer.errors import UsageError
from optimizer.presets import document, exports
from optimizer.show import report
from storage import durable


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("untouched")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def planted(kind: str, path: Path, victim: Path) -> None:
    """Put what is no regular file at a path."""
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(victim.with_name("not there"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    else:
        path.mkdir()


KINDS = ["link", "dangling", "pipe", "socket", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_neither_written_through_nor_replaced(
    kind: str, folder: Path, victim: Path
) -> None:
    path = folder / "ours"
    planted(kind, path, victim)
    before = path.lstat()
    with pytest.raises(OSError, match="no regular file is there"):
        durable.write(path, b"ours")
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert victim.read_text() == "untouched"
    assert [file.name for file in folder.iterdir()] == ["ours"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_read_nor_waited_for(kind: str, folder: Path, victim: Path) -> None:
    planted(kind, folder / "ours", victim)
    for writable in (False, True):
        with (
            pytest.raises(OSError, match=f"{folder / 'ours'}"),
            durable.opened(folder / "ours", writable=writable),
        ):
            pass
    assert not durable.is_regular(folder / "ours")


def test_a_link_at_the_name_of_the_unfinished_file_is_not_followed(
    folder: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    (folder / "guessed.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        durable.write(folder / "ours", b"ours")
    assert victim.read_text() == "untouched"
    assert not (folder / "ours").exists()


def test_the_name_of_an_unfinished_file_cannot_be_guessed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, create = list[str](), durable.create

    def seeing(path: Path) -> BinaryIO:
        seen.append(path.name)
        return create(path)

    monkeypatch.setattr(durable, "create", seeing)
    for _ in range(3):
        durable.write(folder / "ours", b"ours")
    assert len(set(seen)) == 3
    assert all(len(name.removesuffix(".part")) == 32 for name in seen)
    assert (folder / "ours").read_bytes() == b"ours"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((folder / "ours").stat().st_mode) == 0o666 & ~umask


def never_torn(write: Callable[[int], object], path: Path) -> None:
    """Have two write what differs in every byte while a third reads; it reads one or the other."""
    contents = []
    for number in (0, 1):
        write(number)
        contents.append(path.read_bytes())
    assert contents[0] != contents[1]
    done, failed = threading.Event(), list[BaseException]()

    def go_on(number: int) -> None:
        try:
            while not done.is_set():
                write(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    seen, reads, until = set[int](), 0, time.monotonic() + 60
    while reads < 2_000 or (len(seen) < 2 and time.monotonic() < until):  # one may wait for a core
        seen.add(contents.index(path.read_bytes()))
        reads += 1
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert seen == {0, 1}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_preset_is_never_torn(folder: Path) -> None:
    study = decided()
    presets = [exports.compose(study, study.results[number]) for number in (6, 9)]
    never_torn(lambda number: document.write(presets[number], folder), folder / "a-study.json")


def test_a_report_is_never_torn(folder: Path) -> None:
    texts = ["0" * 300_000, "1" * 200_000]
    never_torn(lambda number: report.write(texts[number], folder / "r.html"), folder / "r.html")


def test_presets_and_reports_that_meet_a_link_end_with_one_line(folder: Path, victim: Path) -> None:
    study = decided()
    for name in ("a-study.json", "r.html"):
        (folder / name).symlink_to(victim)
    with pytest.raises(UsageError, match="no regular file is there") as one:
        document.write(exports.compose(study, study.results[6]), folder)
    with pytest.raises(UsageError, match="no regular file is there") as other:
        report.write("<html>", folder / "r.html")
    assert "\n" not in f"{one.value}{other.value}"
    assert victim.read_text() == "untouched"
