"""Foreign files given to commands: one line and exit code 2, and what was passed over is said."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from optimizer.cli import data, main
from optimizer.config import study_file

STUDY = {
    "name": "foreign",
    "task": "folder",
    "data": {"folder": "album", "patch": 16, "patches_per_image": 2, "crop": 32},
    "proxy": {"family": "dncnn", "width": 4, "depth": 3},
    "kernel_size": 3,
    "training": {"budget": 1, "lr": 0.01, "batch_size": 4},
    "search": {"trials": 6, "seeds": 1},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of its own and four images, with nothing else in sight."""
    monkeypatch.setenv("DENSITUNE_HOME", str(tmp_path / "home"))
    (tmp_path / "album").mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "album" / f"{index}.png")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """The one line with which a command refuses a file."""
    monkeypatch.setattr("sys.argv", ["densitune", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) < 1_500
    return line


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "9" * 5_000, "a: &a [*a]", "name: 010", 'name: "a\\0b"', "\ufeff", "a: \0"],
)
@pytest.mark.parametrize("command", ["launch", "verify"])
def test_a_foreign_document_ends_a_command_with_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str,
) -> None:
    path = folder / "foreign"
    path.write_text(text, encoding="utf-8")
    assert str(path) in ended(monkeypatch, capsys, command, path)


def test_a_deep_image_ends_a_launch_with_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    head = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x0f\xff" * 120 for _ in range(40)))
    parts = chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    (folder / "album" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    line = ended(monkeypatch, capsys, "launch", folder / "study.yaml")
    assert "9.png has more than 8 bits a channel (mode RGB;16B); convert it to 8 bits" in line
    assert not (folder / "home" / "postgresql").exists()


def test_what_was_passed_over_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "album" / "a.gif").touch()
    (folder / "album" / "gone.png").symlink_to("nowhere")
    data.prepare(study_file.load(folder / "study.yaml"))
    assert capsys.readouterr().out.splitlines() == [
        f"photographs in {folder / 'album'}: 4 images taken; passed over: dangling links "
        "(1: gone.png), files of other kinds (1: 1 .gif)"
    ]
