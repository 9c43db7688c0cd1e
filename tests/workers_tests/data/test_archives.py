"""Data of strangers: archives, pickles and pictures that want more than to be read."""

import ast
import hashlib
import io
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.checkout import ROOT
from torchvision.datasets import CIFAR100

from optimizer.config import strict_yaml
from optimizer.errors import UsageError
from workers.data import cifar100, div2k
from workers.data.images import read
from workers.data.patches import PatchPlan

HOME = "cifar-100-python"
PLAN = PatchPlan(color="rgb", size=8, per_image=1, validation=0.5, crop=8)


def entries(count: int = 4) -> dict[str, object]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, "fine_labels": [0] * count, "coarse_labels": [1] * count}


def names() -> dict[str, list[str]]:
    return {
        "fine_label_names": [f"f{label}" for label in range(100)],
        "coarse_label_names": [f"c{label}" for label in range(20)],
    }


CONTENT = {
    "train": pickle.dumps(entries(), protocol=2),
    "test": pickle.dumps(entries(2), protocol=2),
    "meta": pickle.dumps(names(), protocol=2),
}


def tree(folder: Path) -> dict[str, int]:
    """All that lies below a folder, with type and mode."""
    return {str(path.relative_to(folder)): path.lstat().st_mode for path in folder.rglob("*")}


# Archives of CIFAR-100, with the right checksum


def plain(name: str, content: bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def unpack(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Have an archive of these members unpacked in a folder and a bank made of it."""
    folder.mkdir(exist_ok=True)
    packed = folder / CIFAR100.filename
    with tarfile.open(packed, "w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR100, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
        cifar100.load(
            folder,
            download=False,
            verify=False,
            labels="fine",
            validation=0.5,
            cache=folder.parent / "cache",
        )


def official(**changed: tuple[tarfile.TarInfo, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [changed.get(name) or plain(f"{HOME}/{name}", raw) for name, raw in CONTENT.items()]


def test_only_the_official_files_leave_an_archive(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    hostile = [
        plain("../outside", b"x"),
        plain(str(outside), b"x"),
        plain(f"{HOME}/../../outside", b"x"),
        plain(f"{HOME}/extra", b"x"),
        special(f"{HOME}/up", tarfile.SYMTYPE, "../.."),
        plain(f"{HOME}/up/outside", b"x"),
        special(f"{HOME}/hard", tarfile.LNKTYPE, "/etc/passwd"),
        special(f"{HOME}/device", tarfile.CHRTYPE),
        special(f"{HOME}/pipe", tarfile.FIFOTYPE),
    ]
    unpack(tmp_path / "data", *hostile, *official())
    assert set(tree(tmp_path / "data")) == {
        CIFAR100.filename,
        HOME,
        *(f"{HOME}/{name}" for name in CONTENT),
    }
    assert not outside.exists()
    for name, content in CONTENT.items():
        assert (tmp_path / "data" / HOME / name).read_bytes() == content


def test_modes_of_an_archive_are_not_taken_over(tmp_path: Path) -> None:
    raw = CONTENT["train"]
    unpack(tmp_path / "data", *official(train=plain(f"{HOME}/train", raw, mode=0o6777)))
    mode = (tmp_path / "data" / HOME / "train").stat().st_mode
    assert mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR | stat.S_IWOTH) == 0


def test_links_that_lie_where_the_files_go_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    home = tmp_path / "data" / HOME
    home.mkdir(parents=True)
    (home / "test").symlink_to(victim)
    (home / ".test.part").symlink_to(victim)
    unpack(tmp_path / "data", *official())
    assert victim.read_text() == "precious"
    assert (home / "test").read_bytes() == CONTENT["test"]


def bomb() -> tuple[tarfile.TarInfo, bytes]:
    """A file of zeros that is small in the archive and larger than any official one."""
    return plain(f"{HOME}/train", bytes(2**28 + 1))


@pytest.mark.parametrize(
    "train",
    [
        lambda: special(f"{HOME}/train", tarfile.SYMTYPE, "/etc/passwd"),
        lambda: special(f"{HOME}/train", tarfile.LNKTYPE, f"{HOME}/meta"),
        lambda: special(f"{HOME}/train", tarfile.CHRTYPE),
        lambda: special(f"{HOME}/train", tarfile.FIFOTYPE),
        lambda: special(f"{HOME}/train", tarfile.DIRTYPE),
        lambda: plain("train", b"elsewhere"),
        bomb,
    ],
    ids=["symlink", "hard link", "device", "pipe", "folder", "missing", "bomb"],
)
def test_official_name_that_is_no_plain_file_is_refused_before_anything_is_written(
    tmp_path: Path, train: Callable[[], tuple[tarfile.TarInfo, bytes]]
) -> None:
    with pytest.raises(UsageError) as caught:
        unpack(tmp_path / "data", *official(train=train()))
    line = str(caught.value)
    assert f"holds no plain file {HOME}/train of at most 268,435,456 bytes; replace it" in line
    assert "\n" not in line
    assert set(tree(tmp_path / "data")) == {CIFAR100.filename}


# Pickles


def load_pickle(folder: Path, raw: bytes) -> str | None:
    """Read CIFAR-100 with these bytes for `train`; return the line of the refusal, if it is one."""
    home = folder / HOME
    home.mkdir(parents=True, exist_ok=True)
    (home / "meta").write_bytes(CONTENT["meta"])
    (home / "train").write_bytes(raw)
    try:
        cifar100._split(home, "train", "fine")
    except UsageError as refused:
        return str(refused)
    return None


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",  # BINBYTES8 of four exabytes
        b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N.",  # a frame of four exabytes
        b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b".",  # a bytearray of 16 GiB
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pelsewhere\n.",  # PERSID
        b"cnumpy.core.multiarray\n_reconstruct\n}b.",  # BUILD on a function
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        b"(" * 100_000 + b"l" * 100_000 + b".",
    ],
)
def test_pickle_that_asks_for_too_much_is_refused_with_one_line(raw: bytes, tmp_path: Path) -> None:
    line = load_pickle(tmp_path, raw)
    assert line is not None
    assert "is not a file of CIFAR-100" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "raw",
    [
        b"Nr\xff\xff\xff\xff.",  # a place in the memo that takes 64 GiB
        b"Np9999999999\n.",  # the same in text
    ],
)
def test_pickle_that_claims_memory_is_refused_before_it_is_loaded(
    raw: bytes, tmp_path: Path
) -> None:
    line = load_pickle(tmp_path, raw)
    assert line is not None
    assert f"it claims more memory than its {len(raw)} bytes can fill" in line


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 300), st.binary(max_size=4), st.integers(0, 4)),
        min_size=1,
        max_size=4,
    )
)
def test_altered_pickle_is_read_or_refused(
    edits: list[tuple[int, bytes, int]], tmp_path: Path
) -> None:
    raw = bytearray(CONTENT["train"])
    for place, put, taken in edits:
        raw[place : place + taken] = put
    line = load_pickle(tmp_path, bytes(raw))
    assert line is None or "is not a file of CIFAR-100" in line


# Archives of DIV2K


def png(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def zipped(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for index in (1, 2):
            archive.writestr(f"DIV2K_train_HR/{index:04}.png", png(index))
    return stream.getvalue()


def load_zip(folder: Path, raw: bytes) -> str | None:
    """Read DIV2K with these bytes for the archive; return the line of the refusal, if it is one."""
    folder.mkdir(exist_ok=True)
    packed = folder / div2k.TRAINING.name
    packed.write_bytes(raw)
    try:
        div2k._cut(div2k._Images(div2k.TRAINING, [packed], packed=True), PLAN)
    except UsageError as refused:
        return str(refused)
    return None


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
    edits=st.lists(
        st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=2)), min_size=1, max_size=4
    ),
)
def test_altered_archive_is_read_or_refused(
    method: int, edits: list[tuple[int, bytes]], tmp_path: Path
) -> None:
    raw = bytearray(zipped(method))
    for place, put in edits:
        start = place % len(raw)
        raw[start : start + len(put)] = put
    before = set(tree(tmp_path))
    line = load_zip(tmp_path / "data", bytes(raw))
    assert line is None or "\n" not in line
    assert set(tree(tmp_path)) - before <= {"data", f"data/{div2k.TRAINING.name}"}


def test_member_that_understates_its_size_is_refused(tmp_path: Path) -> None:
    """A bomb that claims to be small: 100 MB of zeros where the directory says 100 bytes."""
    unpacked = 100_000_007
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("DIV2K_train_HR/0001.png", bytes(unpacked))
        archive.writestr("DIV2K_train_HR/0002.png", png(2))
    size = unpacked.to_bytes(4, "little")
    raw = stream.getvalue()
    assert raw.count(size) == 2
    line = load_zip(tmp_path / "data", raw.replace(size, (100).to_bytes(4, "little")))
    assert line is not None
    assert "is damaged: Bad CRC-32" in line


def test_member_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(7))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("DIV2K_train_HR/0001.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(tmp_path / "secret.png"))
        archive.writestr("DIV2K_train_HR/0002.png", png(2))
    line = load_zip(tmp_path / "data", stream.getvalue())
    assert line is not None
    assert "is not a readable image" in line


# Pictures

POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
"""


def test_postscript_in_disguise_does_not_reach_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # not looked for yet
    picture = tmp_path / "picture.png"
    picture.write_bytes(POSTSCRIPT)
    with pytest.raises(UsageError, match="is not a readable image: its content is no PNG"):
        read(picture, "rgb")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_usual_pictures_are_read(tmp_path: Path, kind: str) -> None:
    picture = tmp_path / "picture.png"  # the content counts, not the name
    Image.new("RGB", (9, 5), (10, 20, 30)).save(picture, kind)
    assert read(picture, "rgb").shape == (3, 5, 9)


# The code itself


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def option(call: ast.Call, name: str) -> object:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    value = given.get(name)
    return value.value if isinstance(value, ast.Constant) else None


SOURCES = sorted(
    path
    for package in ("optimizer", "workers", "storage")
    for path in (ROOT / package).rglob("*.py")
)
UNSAFE = ("extractall", "unpack_archive", "read_pickle", "eval", "exec")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_loads_a_pickle_or_unpacks_an_archive_as_it_comes(path: Path) -> None:
    for call in calls(path):
        name = ast.unparse(call.func)
        if name.endswith(".eval") and not call.args:  # that of a torch module
            continue
        assert name.rpartition(".")[2] not in UNSAFE, name
        assert not name.startswith(("pickle.load", "marshal.", "shelve.", "dill.", "joblib.")), name
        if name == "torch.load":
            assert option(call, "weights_only") is True
        if name == "np.load":
            assert option(call, "allow_pickle") is False


def test_unpicklers_decide_on_every_name_and_yaml_makes_plain_values() -> None:
    assert cifar100._Unpickler.find_class is not pickle.Unpickler.find_class
    assert issubclass(strict_yaml.StrictLoader, yaml.SafeLoader)
    classes = [
        ast.unparse(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases)
    ]
    assert classes
    assert all("def find_class" in text for text in classes)
