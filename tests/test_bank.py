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

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import UsageError
from workers.bank import (
    Arrays,
    cached,
    digest,
    key_of,
    split,
    stamps,
    stratified_split,
)

ROOT = Path(__file__).parents[1]


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
        "from workers.bank import cached\n"
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
from workers.bank import Arrays, cached
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


# Splits


@given(st.integers(2, 500), st.floats(0.001, 0.6))
def test_split_divides_all_items_in_two(count: int, fraction: float) -> None:
    train, validation = split(count, fraction)
    assert sorted([*train, *validation]) == list(range(count))
    assert len(validation) == max(1, round(fraction * count))
    np.testing.assert_array_equal(train, np.sort(train))
    np.testing.assert_array_equal(train, split(count, fraction)[0])


def test_splits_never_change() -> None:
    # Pinned: measurements of different versions are only comparable on the same split.
    assert split(12, 0.25)[1].tolist() == [1, 6, 9]
    labels = np.array([0, 1, 2] * 4)
    assert stratified_split(labels, 0.25)[1].tolist() == [3, 5, 10]


def test_split_is_spread_over_the_items() -> None:
    _, validation = split(10_000, 0.1)
    tenths = np.bincount(validation // 1000, minlength=10)
    assert tenths.min() > 60  # 100 expected, standard deviation below 10
    assert tenths.max() < 140


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.1), (2, 0.9), (0, 0.5)])
def test_split_without_training_items_is_a_usage_error(count: int, fraction: float) -> None:
    with pytest.raises(UsageError, match=f"^{count} images leave none to train on .*; give"):
        split(count, fraction)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fraction_outside_its_range_is_a_usage_error(fraction: float) -> None:
    line = f"fraction {fraction} is not between 0 and 1; use"
    with pytest.raises(UsageError, match=line):
        split(10, fraction)
    with pytest.raises(UsageError, match=line):
        stratified_split(np.repeat(np.arange(5), 2), fraction)


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=300).filter(lambda x: len(set(x)) < len(x)),
    st.floats(0.001, 0.999),
)
def test_stratified_split_trains_on_every_class(values: list[int], fraction: float) -> None:
    labels = np.array(values, dtype=np.int64)
    train, validation = stratified_split(labels, fraction)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert set(labels[train]) == set(values)
    wanted = max(1, round(fraction * len(labels)))
    assert len(validation) == min(wanted, len(values) - len(set(values)))
    np.testing.assert_array_equal(validation, stratified_split(labels, fraction)[1])


@given(st.integers(1, 10), st.integers(1, 9), st.integers(1, 12))
def test_stratified_split_takes_the_same_share_of_equal_classes(
    tens: int, tenths: int, classes: int
) -> None:
    labels = np.repeat(np.arange(classes), 10 * tens)
    labels = labels[np.random.default_rng(tens).permutation(len(labels))]
    _, validation = stratified_split(labels, tenths / 10)
    assert np.bincount(labels[validation], minlength=classes).tolist() == [tens * tenths] * classes


def test_class_of_a_single_image_is_trained_on() -> None:
    labels = np.array([7, 0, 0, 0, 0, 9], dtype=np.int64)
    train, validation = stratified_split(labels, 0.5)
    assert {0, 7, 9} == set(labels[train].tolist())
    assert labels[validation].tolist() == [0, 0, 0]


def test_stratified_split_of_single_images_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"^3 images of 3 classes leave nothing .*; give"):
        stratified_split(np.arange(3), 0.1)


def test_meta_is_readable_by_people_and_programs(tmp_path: Path) -> None:
    bank = cached(tmp_path, "key", "Made", classified)
    meta = json.loads((tmp_path / digest("key") / "meta.json").read_text())
    assert meta["fingerprint"] == bank.fingerprint
    assert meta["classes"] == 3
