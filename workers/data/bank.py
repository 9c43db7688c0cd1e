"""Prepared images on disk: built once, memory-mapped and fingerprinted.

Every data source ends here. A bank is a folder of .npy files and a meta.json inside the cache; it
appears by one rename, so that a process sees all of it or nothing. A test split, where there is
one, lies beside the rest and is opened by who asks for it. Shapes: N training images, M images to
judge on, C channels, H and W pixels.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Indices = NDArray[np.intp]

LAYOUT = 1
"""Version of the preparation code: raise it when the same source would give other arrays."""

_META = "meta.json"
_PARTS = ("train", "validation", "train_labels", "validation_labels")
_TEST_PARTS = ("test", "test_labels")


@dataclass(frozen=True, eq=False)
class Arrays:
    """Training and validation images, with labels 0..classes-1 where the task has classes.

    train: (N, C, H, W); validation: (M, C, H', W'); labels: (N,) and (M,). ValueError if they do
    not fit together.
    """

    train: Pixels
    validation: Pixels
    train_labels: Labels | None = None
    validation_labels: Labels | None = None
    classes: int | None = None

    @property
    def channels(self) -> int:
        """Return the channels of the images."""
        return int(self.train.shape[1])

    def __post_init__(self) -> None:
        for images, labels in (
            (self.train, self.train_labels),
            (self.validation, self.validation_labels),
        ):
            _check(images, labels)
            if (labels is None) != (self.classes is None):
                raise ValueError(f"labels and classes = {self.classes} go together")
            if labels is None or self.classes is None:
                continue
            if labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(f"labels outside 0..{self.classes - 1}")


@dataclass(frozen=True, eq=False)
class Held:
    """A test split: images (M, C, H, W), with labels (M,) where the task has classes.

    ValueError if they do not fit together.
    """

    images: Pixels
    labels: Labels | None = None

    def __post_init__(self) -> None:
        _check(self.images, self.labels)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of shapes and bytes: equal data, equal fingerprint, anywhere."""
        return _sha256("test", self.parts())

    def parts(self) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Yield what there is, with its name on disk."""
        yield "test", self.images
        if self.labels is not None:
            yield "test_labels", self.labels


@dataclass(frozen=True, eq=False, kw_only=True)
class Bank(Arrays):
    """The same arrays, memory-mapped and read-only."""

    fingerprint: str
    """SHA-256 of shapes, bytes and classes: equal data, equal fingerprint, on any machine. The test
    split has one of its own."""
    source: str
    """One sentence for people."""
    taken: tuple[str, ...] = ()
    """Lines for people: how many images of which folder, and what was passed over there."""
    test: Callable[[], Held] | None = None
    """Opens the test split, where there is one. It is read once, after the verdict."""


def key_of(**parts: object) -> str:
    """Return the key of a bank: the source's identity and the preparation's parameters, as JSON.

    Parts that are None are left out.
    """
    given = {name: part for name, part in parts.items() if part is not None}
    return json.dumps({"layout": LAYOUT, **given}, sort_keys=True)


def digest(key: str) -> str:
    """Return the name, 32 hex digits, under which the cache keeps what belongs to a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def cached(
    cache: Path,
    key: str,
    source: str,
    build: Callable[[], Arrays],
    build_test: Callable[[], Held] | None = None,
) -> Bank:
    """Open the bank of this key, building it first when it is missing or damaged.

    Any number of processes may ask at once and get the same bank. source: the data's name, which
    becomes the sentence. build_test is called after build. UsageError if the cache cannot be
    written; nothing is left there then.
    """
    home = cache / digest(key)
    if bank := _open(home, source):
        return bank
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with alone_in(cache) as alone:
        if bank := _open(home, source):
            return bank
        if alone:  # so these belong to nobody: a process was killed while it built
            for leftover in cache.glob(f".{home.name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        _build(home, build, build_test)
        bank = _open(home, source)
    if bank is None:
        raise UsageError(
            f"the bank {home} vanished while it was opened; stop what cleans {cache} and run again"
        )
    return bank


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Let one process at a time into the block; yield False where the file system has no locks.

    The lock is on the folder itself, leaves no file behind, and ends with the process. It saves
    work; what must not go wrong without it is done by renaming.
    """
    with contextlib.ExitStack() as stack:
        alone = False
        with contextlib.suppress(OSError):  # network file systems may refuse
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        yield alone


@contextlib.contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Turn an OSError of the block into the line that says the cache cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write the image cache {cache}: {error.strerror or error}; "
            "free space there or choose a cache folder that can be written"
        ) from error


def _build(home: Path, build: Callable[[], Arrays], build_test: Callable[[], Held] | None) -> None:
    scratch = home.with_name(f".{home.name}-{uuid.uuid4().hex}")
    try:
        with writing(home.parent):
            scratch.mkdir()  # before the work, which would be lost in a cache that is read-only
        arrays, test = build(), build_test() if build_test else None
        with writing(home.parent):
            _write(scratch, arrays, test)
            _publish(scratch, home)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(folder: Path, arrays: Arrays, test: Held | None) -> None:
    for name, array in (*_present(arrays), *(test.parts() if test else ())):
        with (folder / f"{name}.npy").open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
    meta = {
        "sizes": {file.name: file.stat().st_size for file in folder.iterdir()},
        "classes": arrays.classes,
        "fingerprint": _sha256(f"classes={arrays.classes}", _present(arrays)),
        "test": len(test.images) if test else 0,
    }
    (folder / _META).write_text(json.dumps(meta, indent=1))


def _publish(scratch: Path, home: Path) -> None:
    try:
        scratch.rename(home)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if _open(home, "") is None:  # damaged; otherwise another process was faster, and equal
            damaged = scratch.with_name(f"{scratch.name}-damaged")
            home.rename(damaged)
            scratch.rename(home)
            shutil.rmtree(damaged, ignore_errors=True)


def _open(home: Path, source: str) -> Bank | None:
    """Return the bank in this folder, or None if it is missing or visibly damaged."""
    try:
        meta = json.loads((home / _META).read_text())
        sizes = meta["sizes"]
        if any((home / name).stat().st_size != size for name, size in sizes.items()):
            return None
        parts = {
            name: np.load(home / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in _PARTS
            if f"{name}.npy" in sizes
        }
        count = meta.get("test", 0)  # banks of earlier versions have none
        return Bank(
            **parts,
            classes=meta["classes"],
            fingerprint=meta["fingerprint"],
            source=f"{source}: {_counts(parts, meta['classes'], count)}",
            test=partial(_open_test, home) if count else None,
        )
    except Exception:  # a damaged bank can raise anything
        return None


def _present(arrays: Arrays) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for name in _PARTS:
        array = getattr(arrays, name)
        if array is not None:
            yield name, array


def _counts(parts: Mapping[str, Pixels], classes: int | None, test: int) -> str:
    """Return for people how many images there are of each kind."""
    trained = f"{len(parts['train']):,} training{' patches' if classes is None else ''}"
    validation = f"{len(parts['validation']):,} validation"
    if test:
        return f"{trained}, {validation} and {test:,} test images"
    return f"{trained} and {validation} images"


def _open_test(home: Path) -> Held:
    """Return the test split of the bank in this folder; UsageError if it is damaged or gone."""
    try:
        parts = [
            np.load(home / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in _TEST_PARTS
            if (home / f"{name}.npy").exists()
        ]
        return Held(*parts)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise UsageError(
            f"the test split in {home} is damaged: {error}; remove that folder, and it is made anew"
        ) from error


def _check(images: Pixels, labels: Labels | None) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise ValueError(f"images of {images.dtype} {images.shape} are not uint8 (N,C,H,W)")
    if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
        raise ValueError(f"labels of {labels.dtype} {labels.shape} for {len(images)} images")


def _sha256(head: str, parts: Iterable[tuple[str, NDArray[np.generic]]]) -> str:
    sha = hashlib.sha256(head.encode())
    for name, array in parts:
        sha.update(f";{name}:{array.dtype.name}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return sha.hexdigest()
