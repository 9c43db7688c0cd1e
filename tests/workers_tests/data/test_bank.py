import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT

from optimizer.errors import UsageError
from workers.data.bank import Arrays, Held, cached, digest, key_of
from workers.data.sources import stamps


def classified(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return Arrays(
        train=rng.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8),
        validation=rng.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8),
        train_labels=np.array([0, 1, 2, 0, 1, 2]),
        validation_labels=np.array([2, 0]),
        classes=3,
    )


def photographed() -> Arrays:
    rng = np.random.default_rng(1)
    return Arrays(
        train=rng.integers(0, 256, (1200, 1, 4, 4), dtype=np.uint8),
        validation=rng.integers(0, 256, (2, 1, 9, 9), dtype=np.uint8),
    )


def never() -> Arrays:
    raise AssertionError("built although the bank is there")


# Banks


def test_bank_returns_what_was_built(tmp_path: Path) -> None:
    arrays = classified()
    bank = cached(tmp_path, "key", "Made", lambda: arrays)
    np.testing.assert_array_equal(bank.train, arrays.train)
    np.testing.assert_array_equal(bank.validation, arrays.validation)
    assert bank.train_labels is not None
    assert bank.validation_labels is not None
    assert bank.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert bank.validation_labels.tolist() == [2, 0]
    assert bank.classes == 3
    assert bank.source == "Made: 6 training and 2 validation images"


def test_bank_without_labels_has_none(tmp_path: Path) -> None:
    bank = cached(tmp_path, "key", "Made", photographed)
    assert (bank.train_labels, bank.validation_labels, bank.classes) == (None, None, None)
    assert bank.source == "Made: 1,200 training patches and 2 validation images"


def test_bank_is_memory_mapped_and_read_only(tmp_path: Path) -> None:
    bank = cached(tmp_path, "key", "Made", classified)
    for array in (bank.train, bank.validation, bank.train_labels, bank.validation_labels):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_bank_is_built_once(tmp_path: Path) -> None:
    first = cached(tmp_path / "deep" / "cache", "key", "Made", classified)
    second = cached(tmp_path / "deep" / "cache", "key", "Made", never)
    assert first.fingerprint == second.fingerprint
    assert len(list((tmp_path / "deep" / "cache").iterdir())) == 1


def test_other_keys_are_other_banks(tmp_path: Path) -> None:
    one = cached(tmp_path, key_of(size=4), "Made", lambda: classified(1))
    two = cached(tmp_path, key_of(size=5), "Made", lambda: classified(2))
    assert one.fingerprint != two.fingerprint


def test_key_depends_on_values_and_not_on_their_order() -> None:
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1)
    assert key_of(a=1) != key_of(a=2)
    assert key_of(a=1) != key_of(b=1)
    assert key_of(a=1, b=None) == key_of(a=1)  # what was not asked for changes no key


def test_stamp_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"abc")
    os.utime(file, ns=(1, 1))
    before = stamps([file])
    os.utime(file, ns=(1, 2))
    touched = stamps([file])
    file.write_bytes(b"abcd")
    os.utime(file, ns=(1, 1))
    assert before == [(str(file.resolve()), 3, 1)]
    assert len({str(before), str(touched), str(stamps([file]))}) == 3


def test_stamp_of_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*gone\.png: No such file.*; check"):
        stamps([tmp_path / "gone.png"])


# Fingerprints


def fingerprint(cache: Path, arrays: Arrays) -> str:
    return cached(cache, "key", "Made", lambda: arrays).fingerprint


def test_fingerprint_depends_on_the_data_only(tmp_path: Path) -> None:
    arrays = classified()
    transposed = Arrays(
        train=np.asfortranarray(arrays.train),
        validation=arrays.validation[::-1][::-1],
        train_labels=np.array([0, 1, 2, 0, 1, 2]),
        validation_labels=np.array([2, 0]),
        classes=3,
    )
    one = fingerprint(tmp_path / "one", arrays)
    assert one == fingerprint(tmp_path / "two", transposed)


def test_fingerprint_never_changes(tmp_path: Path) -> None:
    # Presets carry it: it must come out the same everywhere and in later versions.
    zeros = np.zeros((1, 1, 2, 2), dtype=np.uint8)
    text = b"classes=None;train:uint8(1, 1, 2, 2)%b;validation:uint8(1, 1, 2, 2)%b"
    expected = hashlib.sha256(text % (bytes(4), bytes(4))).hexdigest()
    assert fingerprint(tmp_path, Arrays(zeros, zeros)) == expected


def test_fingerprint_tells_any_difference(tmp_path: Path) -> None:
    base = classified()
    pixel = base.train.copy()
    pixel[0, 0, 0, 0] ^= 1
    assert base.train_labels is not None
    swapped = base.train_labels[::-1].copy()
    variants = [
        base,
        Arrays(pixel, base.validation, base.train_labels, base.validation_labels, 3),
        Arrays(base.train, base.validation, swapped, base.validation_labels, 3),
        Arrays(base.train, base.validation, base.train_labels, base.validation_labels, 4),
        Arrays(
            base.train.reshape(6, 3, 2, 8),
            base.validation,
            base.train_labels,
            base.validation_labels,
            3,
        ),
        Arrays(base.train, base.validation),
    ]
    prints = {fingerprint(tmp_path / str(i), arrays) for i, arrays in enumerate(variants)}
    assert len(prints) == len(variants)


# Damage and failure


def truncate(home: Path) -> None:
    file = home / "train.npy"
    file.write_bytes(file.read_bytes()[:-1])


def scramble_header(home: Path) -> None:
    file = home / "train.npy"
    file.write_bytes(b"x" * file.stat().st_size)


def empty(home: Path) -> None:
    for file in home.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        scramble_header,
        empty,
        lambda home: (home / "meta.json").unlink(),
        lambda home: (home / "meta.json").write_text('{"sizes": {'),
        lambda home: (home / "meta.json").write_bytes(b"\xff\xfe\x00"),
        lambda home: (home / "meta.json").write_text("[]"),
        lambda home: (home / "meta.json").write_text('{"sizes": {}, "classes": null}'),
        lambda home: (home / "validation_labels.npy").unlink(),
    ],
)
def test_damaged_bank_is_rebuilt(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    whole = cached(tmp_path, "key", "Made", classified).fingerprint
    home = tmp_path / digest("key")
    damage(home)
    built = []

    def build() -> Arrays:
        built.append(1)
        return classified()

    again = cached(tmp_path, "key", "Made", build)
    assert again.fingerprint == whole
    np.testing.assert_array_equal(again.train, classified().train)
    assert built == [1]
    assert list(tmp_path.iterdir()) == [home]


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Arrays:
        raise UsageError("broken image")

    with pytest.raises(UsageError, match="broken image"):
        cached(tmp_path, "key", "Made", fail)
    assert list(tmp_path.iterdir()) == []


def test_cache_below_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write the image cache .*file/cache: .*; free"):
        cached(tmp_path / "file" / "cache", "key", "Made", never)


def test_full_disk_is_a_usage_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path; from test_bank import *\n"
        "from workers.data.bank import cached\n"
        "try: cached(Path(sys.argv[1]), 'key', 'Made', photographed)\n"
        "except UsageError as error: print(error)"
    )
    # A limit on the size of files makes the real write fail as a full disk does.
    limit = 10_000
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.stdout.startswith(f"cannot write the image cache {tmp_path}: ")
    assert done.stdout.endswith("; free space there or choose a cache folder that can be written\n")
    assert list(tmp_path.iterdir()) == []


# Processes


WORKER = """
import os, sys, time
from pathlib import Path
import numpy as np
from workers.data.bank import Arrays, cached
cache, log = map(Path, sys.argv[1:3])

def build():
    with log.open("a") as stream:
        stream.write("built\\n")
    if "die" in sys.argv:
        os.kill(os.getpid(), 9)
    time.sleep(0.1)
    images = np.arange(4 * 64 * 64, dtype=np.uint8).reshape(4, 1, 64, 64)
    return Arrays(images[:3], images[3:])

print("ready", flush=True)
sys.stdin.readline()
print(cached(cache, "key", "Made", build).fingerprint)
"""


def start(cache: Path, log: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(cache), str(log), *more],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_start_at_once_share_one_bank(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cache = tmp_path / "cache"
    workers = [start(cache, log) for _ in range(10)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    prints = [worker.communicate()[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 10
    assert len(set(prints)) == 1
    assert len(prints[0]) == 64
    assert log.read_text() == "built\n"  # the others waited for the first
    assert [entry.name for entry in cache.iterdir()] == [digest("key")]


def test_killed_build_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cache = tmp_path / "cache"
    killed = start(cache, log, "die")
    killed.communicate("go\n")
    assert killed.returncode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == 1  # its scratch folder
    cached(cache, "key", "Made", classified)
    assert [entry.name for entry in cache.iterdir()] == [digest("key")]


def test_slower_of_two_unlocked_builders_takes_the_bank_of_the_faster(tmp_path: Path) -> None:
    home = tmp_path / "cache" / digest("key")
    cached(tmp_path / "other", "key", "Made", lambda: classified(1))

    def overtaken() -> Arrays:
        shutil.copytree(tmp_path / "other" / digest("key"), home)
        return classified(2)

    bank = cached(tmp_path / "cache", "key", "Made", overtaken)
    np.testing.assert_array_equal(bank.train, classified(1).train)
    assert list((tmp_path / "cache").iterdir()) == [home]


# The test split


def held(seed: int = 7) -> Held:
    rng = np.random.default_rng(seed)
    return Held(rng.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8), np.array([0, 1, 2, 2, 1]))


def test_the_test_split_is_opened_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = np.load

    def noted(file: Path, **settings: Any) -> object:
        opened.append(Path(file).name)
        return load(file, **settings)

    monkeypatch.setattr(np, "load", noted)
    for _ in range(2):  # built, then found
        bank = cached(tmp_path, "key", "Made", classified, held)
        assert "train.npy" in opened
        assert not any(name.startswith("test") for name in opened)
    assert bank.source == "Made: 6 training, 2 validation and 5 test images"
    assert bank.test is not None
    test = bank.test()
    assert isinstance(test.images, np.memmap)
    np.testing.assert_array_equal(test.images, held().images)
    np.testing.assert_array_equal(test.labels, held().labels)
    assert {"test.npy", "test_labels.npy"} <= set(opened)


def test_photographs_of_the_test_split_have_no_labels(tmp_path: Path) -> None:
    images = held().images[:, :1]
    bank = cached(tmp_path, "key", "Made", photographed, lambda: Held(images))
    assert bank.source == "Made: 1,200 training patches, 2 validation and 5 test images"
    assert bank.test is not None
    np.testing.assert_array_equal(bank.test().images, images)
    assert bank.test().labels is None


def test_a_bank_without_a_test_split_has_none(tmp_path: Path) -> None:
    assert cached(tmp_path, "key", "Made", classified).test is None


def test_a_bank_of_an_earlier_version_is_taken_as_it_is(tmp_path: Path) -> None:
    bank = cached(tmp_path, "key", "Made", classified)
    file = tmp_path / digest("key") / "meta.json"
    meta = json.loads(file.read_text())
    del meta["test"]
    file.write_text(json.dumps(meta))
    again = cached(tmp_path, "key", "Made", never)
    assert (again.fingerprint, again.test) == (bank.fingerprint, None)


def test_the_test_split_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    bank = cached(tmp_path, "with", "Made", classified, held)
    assert bank.fingerprint == cached(tmp_path, "without", "Made", classified).fingerprint
    assert bank.test is not None
    same, labels = held(), np.array([0, 1, 2, 2, 2])
    assert bank.test().fingerprint == same.fingerprint
    others = [held(8), Held(same.images), Held(same.images, labels)]
    assert len({same.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_test_split_that_is_damaged_later_is_told(tmp_path: Path) -> None:
    bank = cached(tmp_path, "key", "Made", classified, held)
    file = tmp_path / digest("key") / "test.npy"
    assert bank.test is not None
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(UsageError, match=r"test split in .* is damaged: .*; remove that folder"):
        bank.test()
    file.unlink()
    with pytest.raises(UsageError, match=r"test split in .* is damaged: "):
        bank.test()
    assert cached(tmp_path, "key", "Made", classified, held).test is not None  # made anew
    assert bank.test().fingerprint == held().fingerprint


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 4, 4), dtype=np.uint8), None),
        (np.zeros((2, 1, 4, 4), dtype=np.float32), None),
        (np.zeros((0, 1, 4, 4), dtype=np.uint8), None),
        (np.zeros((2, 1, 4, 4), dtype=np.uint8), np.zeros(3, dtype=np.int64)),
    ],
)
def test_a_test_split_that_does_not_fit_together_is_refused(images: object, labels: object) -> None:
    with pytest.raises(ValueError, match=r"images|labels"):
        Held(images, labels)  # type: ignore[arg-type]


# Arrays


@pytest.mark.parametrize(
    "change",
    [
        {"train": np.zeros((6, 3, 4, 4), dtype=np.float32)},
        {"train": np.zeros((6, 4, 4), dtype=np.uint8)},
        {"validation": np.zeros((0, 3, 4, 4), dtype=np.uint8)},
        {"classes": None},
        {"validation_labels": None},
        {"train_labels": np.zeros(5, dtype=np.int64)},
        {"train_labels": np.zeros(6, dtype=np.int32)},
        {"train_labels": np.array([0, 1, 2, 0, 1, 3])},
        {"validation_labels": np.array([-1, 0])},
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change: dict[str, object]) -> None:
    fields = {
        name: getattr(classified(), name)
        for name in ("train", "validation", "train_labels", "validation_labels", "classes")
    }
    with pytest.raises(ValueError, match=r"images|labels"):
        Arrays(**{**fields, **change})


def test_meta_is_readable_by_people_and_programs(tmp_path: Path) -> None:
    bank = cached(tmp_path, "key", "Made", classified)
    meta = json.loads((tmp_path / digest("key") / "meta.json").read_text())
    assert meta["fingerprint"] == bank.fingerprint
    assert meta["classes"] == 3
