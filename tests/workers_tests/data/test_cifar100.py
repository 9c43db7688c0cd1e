import functools
import hashlib
import http.server
import os
import pickle
import struct
import tarfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from support.checkout import ROOT
from torchvision.datasets import CIFAR100

from optimizer.errors import UsageError
from workers.data.bank import Bank
from workers.data.cifar100 import load
from workers.data.splits import stratified_split

REAL = Path(os.environ.get("DENSITUNE_REAL_DATA", ROOT.parent / "shared" / "data"))

needs_real_files = pytest.mark.skipif(
    not (REAL / "cifar-100-python").is_dir(),
    reason=f"no genuine CIFAR-100 files in {REAL}; name their folder in DENSITUNE_REAL_DATA",
)


def entries(count: int = 200) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    fine = [index % 100 for index in range(count)]
    return {
        "filenames": [f"{index}.png" for index in range(count)],
        "batch_label": "training batch 1 of 1",
        "fine_labels": fine,
        "coarse_labels": [label // 5 for label in fine],
        "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
    }


def names() -> dict[str, list[str]]:
    return {
        "fine_label_names": [f"fine {index}" for index in range(100)],
        "coarse_label_names": [f"coarse {index}" for index in range(20)],
    }


def write(home: Path, train: object, meta: object) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for name, content in (("train", train), ("meta", meta)):
        raw = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
        (home / name).write_bytes(raw)


def write_test(folder: Path, content: object) -> None:
    raw = pickle.dumps(content, protocol=2)
    (folder / "cifar-100-python" / "test").write_bytes(raw)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "cifar-100-python", entries(), names())
    return tmp_path / "data"


def prepare(
    folder: Path,
    cache: Path,
    labels: Literal["fine", "coarse"] = "fine",
    download: bool = False,
    verify: bool = False,
) -> Bank:
    return load(
        folder, download=download, verify=verify, labels=labels, validation=0.2, cache=cache
    )


def refused(folder: Path, cache: Path, **settings: Any) -> str:
    """Return the line of the UsageError, having made sure that the cache has stayed empty."""
    with pytest.raises(UsageError) as caught:
        prepare(folder, cache, **settings)
    assert not cache.exists() or list(cache.iterdir()) == []
    line = str(caught.value)
    assert "\n" not in line
    return line


# What is read


@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_images_keep_their_pixels_and_labels(
    folder: Path, tmp_path: Path, labels: Literal["fine", "coarse"], classes: int
) -> None:
    bank = prepare(folder, tmp_path / "cache", labels)
    source = entries()
    expected = {
        image.tobytes(): label
        for image, label in zip(source["data"], source[f"{labels}_labels"], strict=True)
    }
    assert bank.train_labels is not None
    assert bank.validation_labels is not None
    found = {
        image.tobytes(): int(label)
        for images, targets in (
            (bank.train, bank.train_labels),
            (bank.validation, bank.validation_labels),
        )
        for image, label in zip(images, targets, strict=True)
    }
    assert found == expected
    assert bank.train.shape == (160, 3, 32, 32)
    assert bank.validation.shape == (40, 3, 32, 32)
    assert bank.classes == classes
    assert set(bank.train_labels.tolist()) == set(range(classes))


def test_source_tells_labels_and_counts(folder: Path, tmp_path: Path) -> None:
    fine = prepare(folder, tmp_path, "fine").source
    coarse = prepare(folder, tmp_path, "coarse").source
    assert fine == "CIFAR-100: 160 training and 40 validation images"
    assert coarse == "CIFAR-100 with coarse labels: 160 training and 40 validation images"


def test_channels_are_planes_of_rows(folder: Path, tmp_path: Path) -> None:
    source = entries(2)
    source["fine_labels"] = source["coarse_labels"] = [0, 0]
    source["data"][:] = np.arange(3072) % 251
    write(folder / "cifar-100-python", source, names())
    image = prepare(folder, tmp_path / "cache").train[0]
    assert image[2, 5, 7] == (2 * 1024 + 5 * 32 + 7) % 251


def test_folder_may_be_the_one_that_holds_the_files(folder: Path, tmp_path: Path) -> None:
    outer = prepare(folder, tmp_path / "one")
    inner = prepare(folder / "cifar-100-python", tmp_path / "two")
    assert outer.fingerprint == inner.fingerprint


def test_test_split_is_not_needed(folder: Path, tmp_path: Path) -> None:
    assert sorted(file.name for file in (folder / "cifar-100-python").iterdir()) == [
        "meta",
        "train",
    ]
    assert len(prepare(folder, tmp_path / "cache").train) == 160


@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_the_test_file_is_the_test_split_and_changes_nothing_else(
    folder: Path, tmp_path: Path, labels: Literal["fine", "coarse"]
) -> None:
    without = prepare(folder, tmp_path / "cache", labels)
    assert without.test is None
    source = entries(7)
    source["data"] = source["data"][::-1].copy()
    write_test(folder, source)
    bank = prepare(folder, tmp_path / "cache", labels)
    assert bank.test is not None
    np.testing.assert_array_equal(bank.test().images, source["data"].reshape(-1, 3, 32, 32))
    held = bank.test().labels
    assert held is not None
    assert held.tolist() == source[f"{labels}_labels"]
    assert bank.fingerprint == without.fingerprint
    assert bank.source.endswith(": 160 training, 40 validation and 7 test images")


def test_a_broken_test_file_is_told(folder: Path, tmp_path: Path) -> None:
    file = folder / "cifar-100-python" / "test"
    file.write_bytes(b"\xff")
    line = refused(folder, tmp_path / "cache")
    assert line.startswith(f"{file} is not a file of CIFAR-100: it is damaged (")


def test_classes_may_be_missing_or_single_in_a_partial_copy(folder: Path, tmp_path: Path) -> None:
    source = entries(7)
    source["fine_labels"] = [3, 3, 3, 3, 3, 98, 99]
    source["coarse_labels"] = [0, 0, 0, 0, 0, 19, 19]
    write(folder / "cifar-100-python", source, names())
    bank = prepare(folder, tmp_path / "cache")
    assert bank.classes == 100
    assert bank.train_labels is not None
    assert set(bank.train_labels.tolist()) == {3, 98, 99}


def test_files_of_python_2_are_read(folder: Path, tmp_path: Path) -> None:
    """The official files were pickled by Python 2, with arrays as 8-bit strings."""
    source = entries(200)

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def numbers(values: list[int]) -> bytes:
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"

    minus_one = b"J\xff\xff\xff\xff"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        + b"(K\x01K\xc8M\x00\x0c\x86"  # state: version 1, shape (200, 3072)
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        + (b"(K\x03U\x01|NNN" + minus_one + minus_one + b"K\x00tb")
        + b"\x89"
        + text(source["data"].tobytes())
        + b"tb"
    )
    raw = (
        b"\x80\x02}("
        + (text(b"fine_labels") + numbers(source["fine_labels"]))
        + (text(b"coarse_labels") + numbers(source["coarse_labels"]))
        + (text(b"data") + array)
        + b"u."
    )
    with warnings.catch_warnings(action="ignore"):  # as NumPy itself understands these bytes
        np.testing.assert_array_equal(pickle.loads(raw, encoding="latin1")["data"], source["data"])
    plain = prepare(folder, tmp_path / "plain")
    write(folder / "cifar-100-python", raw, names())
    assert prepare(folder, tmp_path / "old").fingerprint == plain.fingerprint


@needs_real_files
@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_genuine_files_are_read(
    tmp_path: Path, labels: Literal["fine", "coarse"], classes: int
) -> None:
    bank = load(REAL, download=False, verify=False, labels=labels, validation=0.1, cache=tmp_path)
    with (REAL / "cifar-100-python" / "train").open("rb") as stream:
        genuine = pickle.load(stream, encoding="latin1")
    targets = np.array(genuine[f"{labels}_labels"])
    training, held_out = stratified_split(targets, 0.1)
    images = genuine["data"].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(bank.train, images[training])
    np.testing.assert_array_equal(bank.validation, images[held_out])
    np.testing.assert_array_equal(bank.train_labels, targets[training])
    np.testing.assert_array_equal(bank.validation_labels, targets[held_out])
    assert bank.classes == classes
    assert len(training) == 1005
    with (REAL / "cifar-100-python" / "test").open("rb") as stream:
        genuine = pickle.load(stream, encoding="latin1")
    assert bank.test is not None
    np.testing.assert_array_equal(bank.test().images, genuine["data"].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(bank.test().labels, genuine[f"{labels}_labels"])


@needs_real_files
def test_genuine_partial_files_do_not_verify(tmp_path: Path) -> None:
    line = refused(REAL, tmp_path, verify=True)
    assert (
        "cifar-100-python/train does not match the official 16019d7e3df5f24257cddd939b257f8d"
        in line
    )
    assert "set verify: false" in line


# What is refused


def test_missing_files_are_told_with_the_places_looked_at(tmp_path: Path) -> None:
    line = refused(tmp_path / "none", tmp_path / "cache")
    assert line.startswith(f"no CIFAR-100 in {tmp_path / 'none'}: ")
    assert "cifar-100-python/train and cifar-100-python/meta" in line
    assert "set download: true" in line
    assert not (tmp_path / "none").exists()


def test_half_a_copy_is_told_as_missing(folder: Path, tmp_path: Path) -> None:
    (folder / "cifar-100-python" / "meta").unlink()
    assert refused(folder, tmp_path / "cache").startswith("no CIFAR-100 in ")


def test_partial_copy_does_not_verify(folder: Path, tmp_path: Path) -> None:
    for download in (False, True):
        line = refused(folder, tmp_path / "cache", verify=True, download=download)
        assert line.startswith("the MD5 of ")
        assert "set verify: false for a partial copy" in line


def test_damaged_archive_is_told(tmp_path: Path) -> None:
    packed = tmp_path / "cifar-100-python.tar.gz"
    packed.write_bytes(b"\x1f\x8b\x08 cut off")
    line = refused(tmp_path, tmp_path / "cache")
    assert line.startswith(f"{packed} is damaged or incomplete: its MD5 is not eb9058c3a382ffc7")
    assert line.endswith("replace it or set download: true")


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["train", "meta", "test"])
def test_pickle_that_would_run_code_is_refused_by_name(
    folder: Path, tmp_path: Path, name: str
) -> None:
    mark = tmp_path / "mark"
    (folder / "cifar-100-python" / name).write_bytes(pickle.dumps(Malice(mark), protocol=2))
    line = refused(folder, tmp_path / "cache")
    assert line.startswith(f"{folder / 'cifar-100-python' / name} is not a file of CIFAR-100: ")
    assert f"it asks for {os.system.__module__}.system, which no file of CIFAR-100 needs" in line
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("builtins", "eval"), ("numpy", "load"), ("numpy.core.multiarray", "fromfile")],
)
def test_other_names_of_allowed_modules_are_refused(
    folder: Path, tmp_path: Path, name: str, content: str
) -> None:
    raw = f"c{name}\n{content}\n.".encode()
    (folder / "cifar-100-python" / "train").write_bytes(raw)
    assert f"it asks for {name}.{content}" in refused(folder, tmp_path / "cache")


@pytest.mark.parametrize("keep", [0, 1, 100, 100_000])
def test_truncated_file_is_told(folder: Path, tmp_path: Path, keep: int) -> None:
    file = folder / "cifar-100-python" / "train"
    file.write_bytes(file.read_bytes()[:keep])
    line = refused(folder, tmp_path / "cache")
    assert line.startswith(f"{file} is not a file of CIFAR-100: it is damaged (")
    assert line.endswith("set download: true")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"data": np.zeros((200, 100), np.uint8)}, "its data is not rows of 3072 bytes"),
        ({"data": np.zeros((200, 3072), np.float32)}, "it is damaged (an array of f4)"),
        ({"data": [1, 2]}, "its data is not rows of 3072 bytes"),
        ({"fine_labels": [0] * 199}, "its fine_labels do not match its data"),
        ({"fine_labels": "0" * 200}, "its fine_labels do not match its data"),
        ({"fine_labels": [100] * 200}, "a label is outside 0..99"),
        ({"fine_labels": [-1] * 200}, "a label is outside 0..99"),
        ({"fine_labels": ["a"] * 200}, "a label is outside 0..99"),
    ],
)
def test_wrong_shapes_are_told(
    folder: Path, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    write(folder / "cifar-100-python", entries() | change, names())
    assert why in refused(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("train", "meta", "why"),
    [
        ([1], names(), "it does not hold a dictionary"),
        ({}, names(), "its data is not rows of 3072 bytes"),
        (entries(), {}, "it does not name 100 fine labels"),
        (entries(), {"fine_label_names": ["one"]}, "it does not name 100 fine labels"),
    ],
)
def test_wrong_contents_are_told(
    folder: Path, tmp_path: Path, train: object, meta: object, why: str
) -> None:
    write(folder / "cifar-100-python", train, meta)
    assert why in refused(folder, tmp_path / "cache")


# Verification and download, with a tiny data set in the place of the official one


def md5(raw: bytes) -> str:
    return hashlib.md5(raw).hexdigest()


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a tiny data set and tell torchvision its address and checksums; return the archive."""
    site = tmp_path / "site"
    home = site / "cifar-100-python"
    write(home, entries(), names())
    (home / "test").write_bytes(pickle.dumps(entries(5), protocol=2))
    packed = site / "cifar-100-python.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(home, "cifar-100-python")
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/cifar-100-python.tar.gz"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        sums = {name: md5((home / name).read_bytes()) for name in ("train", "test", "meta")}
        monkeypatch.setattr(CIFAR100, "url", url)
        monkeypatch.setattr(CIFAR100, "tgz_md5", md5(packed.read_bytes()))
        monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
        monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
        monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
        yield packed
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("inner", ["", "cifar-100-python"])
def test_download_gives_a_verified_bank_and_keeps_standard_output_clean(
    official: Path, tmp_path: Path, inner: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "data"
    bank = prepare(folder / inner, tmp_path / "cache", verify=True, download=True)
    assert len(bank.train) == 160
    assert (folder / "cifar-100-python" / "train").is_file()
    assert capfd.readouterr().out == ""


def test_archive_that_is_there_is_unpacked_without_download(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/nothing")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / official.name).write_bytes(official.read_bytes())
    assert len(prepare(folder, tmp_path / "cache", verify=True).train) == 160


def test_damaged_archive_is_downloaded_again(official: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / official.name).write_bytes(official.read_bytes()[:1000])
    bank = prepare(folder, tmp_path / "cache", verify=True, download=True)
    assert len(bank.train) == 160


def test_verification_does_not_change_the_bank(official: Path, tmp_path: Path) -> None:
    prints = {
        prepare(official.parent, tmp_path / "cache", verify=v).fingerprint for v in (False, True)
    }
    assert len(prints) == 1


def test_a_test_file_that_is_not_the_official_one_does_not_verify(
    official: Path, tmp_path: Path
) -> None:
    folder = official.parent
    bank = prepare(folder, tmp_path / "one", verify=True)
    assert bank.test is not None
    assert len(bank.test().images) == 5
    write_test(folder, entries(6))
    line = refused(folder, tmp_path / "two", verify=True)
    assert line.startswith(f"the MD5 of {folder / 'cifar-100-python' / 'test'} does not match")


def test_bank_of_an_unverified_copy_is_not_taken_for_a_verified_one(
    folder: Path, tmp_path: Path
) -> None:
    prepare(folder, tmp_path / "cache")
    with pytest.raises(UsageError, match="does not match the official"):
        prepare(folder, tmp_path / "cache", verify=True)


def test_wrong_download_is_told(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR100, "tgz_md5", "0" * 32)
    line = refused(tmp_path / "data", tmp_path / "cache", download=True)
    assert line.startswith(f"cannot get CIFAR-100 from {CIFAR100.url} into {tmp_path / 'data'}: ")


def test_network_that_is_down_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/nobody-listens.tar.gz")
    line = refused(tmp_path / "data", tmp_path / "cache", download=True)
    assert line.startswith("cannot get CIFAR-100 from http://127.0.0.1:9/nobody")
    assert "Connection refused" in line
    assert "check the network" in line
