"""Prepared images on disk: built once, memory-mapped, fingerprinted, and split the same for ever.

Every data source ends here. A bank is a folder of .npy files and a meta.json inside the cache; it
appears by one rename, so that a process sees all of it or nothing. Shapes: N training images,
M validation images, C channels, H and W pixels.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Indices = NDArray[np.intp]

LAYOUT = 1
"""Version of the preparation code: raise it when the same source would give other arrays."""

SPLIT_SEED = 20_250_528
"""Fixes every train/validation split; no study seed changes it."""

_META = "meta.json"
_PARTS = ("train", "validation", "train_labels", "validation_labels")


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

    def __post_init__(self) -> None:
        for images, labels in (
            (self.train, self.train_labels),
            (self.validation, self.validation_labels),
        ):
            if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
                raise ValueError(f"images of {images.dtype} {images.shape} are not uint8 (N,C,H,W)")
            if (labels is None) != (self.classes is None):
                raise ValueError(f"labels and classes = {self.classes} go together")
            if labels is None or self.classes is None:
                continue
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"labels of {labels.dtype} {labels.shape} for {len(images)} images"
                )
            if labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(f"labels outside 0..{self.classes - 1}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Bank(Arrays):
    """The same arrays, memory-mapped and read-only."""

    fingerprint: str
    """SHA-256 of shapes, bytes and classes: equal data, equal fingerprint, on any machine."""
    source: str
    """One sentence for people."""


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return what identifies source files without reading them: path, bytes, mtime in ns."""
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise _unreadable(file, error) from error
        found.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return found


def md5_of(file: Path) -> str:
    """Return the MD5 of a file in hex: data sets publish it against damage, not against attack."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(
                stream, lambda: hashlib.md5(usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise _unreadable(file, error) from error


def key_of(**parts: object) -> str:
    """Return the key of a bank: the source's identity and the preparation's parameters, as JSON."""
    return json.dumps({"layout": LAYOUT, **parts}, sort_keys=True)


def digest(key: str) -> str:
    """Return the name, 32 hex digits, under which the cache keeps what belongs to a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def cached(cache: Path, key: str, source: str, build: Callable[[], Arrays]) -> Bank:
    """Open the bank of this key, building it first when it is missing or damaged.

    Any number of processes may ask at once and get the same bank. source: the data's name, which
    becomes the sentence. UsageError if the cache cannot be written; nothing is left there then.
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
        _build(home, build)
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


def _unreadable(file: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot read {file}: {error.strerror}; check the file and its permissions")


def _build(home: Path, build: Callable[[], Arrays]) -> None:
    scratch = home.with_name(f".{home.name}-{uuid.uuid4().hex}")
    try:
        with writing(home.parent):
            scratch.mkdir()  # before the work, which would be lost in a cache that is read-only
        arrays = build()
        with writing(home.parent):
            _write(scratch, arrays)
            _publish(scratch, home)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(folder: Path, arrays: Arrays) -> None:
    for name, array in _present(arrays):
        with (folder / f"{name}.npy").open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
    meta = {
        "sizes": {file.name: file.stat().st_size for file in folder.iterdir()},
        "classes": arrays.classes,
        "fingerprint": _fingerprint(arrays),
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
        trained = " patches" if meta["classes"] is None else ""
        return Bank(
            **parts,
            classes=meta["classes"],
            fingerprint=meta["fingerprint"],
            source=f"{source}: {len(parts['train']):,} training{trained} and "
            f"{len(parts['validation']):,} validation images",
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _present(arrays: Arrays) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for name in _PARTS:
        array = getattr(arrays, name)
        if array is not None:
            yield name, array


def _fingerprint(arrays: Arrays) -> str:
    sha = hashlib.sha256(f"classes={arrays.classes}".encode())
    for name, array in _present(arrays):
        sha.update(f";{name}:{array.dtype.name}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return sha.hexdigest()


def split(count: int, fraction: float) -> tuple[Indices, Indices]:
    """Return the indices, ascending, of the training and the validation items.

    max(1, round(fraction * count)) items are held out, always the same ones. UsageError if no
    training item would be left.
    """
    held_out = _held_out(count, fraction)
    if count - held_out < 1:
        raise UsageError(
            f"{count} images leave none to train on when {held_out} are held out for validation; "
            "give at least 2 images or lower the validation fraction"
        )
    order = np.argsort(random_integers(count, SPLIT_SEED), kind="stable")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def stratified_split(labels: Labels, fraction: float) -> tuple[Indices, Indices]:
    """Return a split as `split` does, in which each class keeps its share and is trained on.

    One item of every class, chosen at random, is never held out; UsageError if there are no
    others.
    """
    count = len(labels)
    random = random_integers(count, SPLIT_SEED)
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    grouped = np.lexsort((random, class_of))
    rank = np.empty(count, dtype=np.int64)  # of an item within its class, in random order
    rank[grouped] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    movable = count - len(sizes)
    held_out = min(_held_out(count, fraction), movable)
    if held_out < 1:
        raise UsageError(
            f"{count} images of {len(sizes)} classes leave nothing to validate on; "
            "give at least one class a second image"
        )
    # The highest relative ranks leave, so that every class gives about the same share.
    quantile = np.where(rank == 0, -1.0, (rank + 0.5) / sizes[class_of])
    order = np.lexsort((random, -quantile))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def random_integers(count: int, *seed: int) -> NDArray[np.uint64]:
    """Return `count` random 64-bit integers that no version of NumPy changes.

    NumPy keeps the raw stream of a bit generator for ever, but not the methods of Generator
    (NEP 19), and a split must outlive an upgrade.
    """
    return np.asarray(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count))


def _held_out(count: int, fraction: float) -> int:
    if not 0 < fraction < 1:
        raise UsageError(
            f"validation fraction {fraction} is not between 0 and 1; use for example 0.1"
        )
    return max(1, round(fraction * count))
