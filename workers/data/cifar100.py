"""CIFAR-100 (Krizhevsky 2009): 32x32 colour images of 100 fine classes in 20 coarse ones.

The 50,000 images of the training split are divided into training and validation. The test split is
prepared beside them, where it is there: a partial copy may be without.
"""

import contextlib
import http.client
import pickle
import pickletools
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from optimizer.config.choices import LabelKind
from optimizer.errors import UsageError
from workers.data.bank import (
    Arrays,
    Bank,
    Held,
    Labels,
    Pixels,
    alone_in,
    cached,
    key_of,
)
from workers.data.sources import md5_of, stamps
from workers.data.splits import stratified_split

CLASSES: dict[LabelKind, int] = {"fine": 100, "coarse": 20}
_FOLDER = "cifar-100-python"
_FILES = ("train", "meta")
_MEMBER_LIMIT = 2**28  # bytes; train, the largest of the official files, has 155,249,918
_TEST = "test"
_PACKED = (_TEST, *_FILES)
_PIXELS = 3 * 32 * 32
_TRANSFER_ERRORS = (
    OSError,
    RuntimeError,  # torchvision: the checksum does not match
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)


def load(
    folder: Path,
    *,
    download: bool,
    verify: bool,
    labels: LabelKind,
    validation: float,
    cache: Path,
) -> Bank:
    """Return a bank of (N, 3, 32, 32) images, split by class.

    folder holds cifar-100-python, or is it. verify: compare with the MD5 sums of the official
    files; without it a partial copy in the same layout may be used. UsageError if the files are
    missing and not to be downloaded, or are not what they should be.
    """
    home = _find(folder) or _obtain(folder, download)
    names = [*_FILES, _TEST] if (home / _TEST).is_file() else list(_FILES)
    key = key_of(
        source="cifar100",
        files=stamps(home / name for name in names),
        labels=labels,
        validation=validation,
        verify=verify,
    )
    source = "CIFAR-100" if labels == "fine" else "CIFAR-100 with coarse labels"
    return cached(
        cache,
        key,
        source,
        partial(_prepare, home, names if verify else [], labels, validation),
        partial(_prepare_test, home, labels) if _TEST in names else None,
    )


def _find(folder: Path) -> Path | None:
    for home in (folder / _FOLDER, folder):
        if all((home / name).is_file() for name in _FILES):
            return home
    return None


def _obtain(folder: Path, download: bool) -> Path:
    """Unpack the official archive, downloading it first if it is allowed and needed."""
    # torchvision brings all of torch along; a copy that is unpacked and not verified needs neither.
    # Its CIFAR100 is asked for addresses and checksums only: it would load every pickle.
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_url

    root = folder.parent if folder.name == _FOLDER else folder
    packed = root / CIFAR100.filename
    if not download:
        if not packed.is_file():
            raise UsageError(
                f"no CIFAR-100 in {folder}: looked for {_FOLDER}/train and {_FOLDER}/meta, then "
                "for train and meta; give the folder that holds them or set download: true"
            )
        if md5_of(packed) != CIFAR100.tgz_md5:
            raise UsageError(
                f"{packed} is damaged or incomplete: its MD5 is not {CIFAR100.tgz_md5}; "
                "replace it or set download: true"
            )
    try:
        root.mkdir(parents=True, exist_ok=True)
        # torchvision prints to standard output, which belongs to the command's result.
        with alone_in(root), contextlib.redirect_stdout(sys.stderr):
            if _find(root) is None:  # otherwise another process was waited for
                # It does not download when an intact copy is there.
                download_url(CIFAR100.url, str(root), CIFAR100.filename, CIFAR100.tgz_md5)
                _unpack(packed, root)
    except _TRANSFER_ERRORS as error:
        raise UsageError(
            f"cannot get CIFAR-100 from {CIFAR100.url} into {root}: {error}; check the network and "
            f"the folder, or put {CIFAR100.filename} there yourself"
        ) from error
    return root / _FOLDER


def _unpack(packed: Path, root: Path) -> None:
    """Write the official files into root, and nothing else that the archive may hold.

    No name, link, mode or owner of the archive reaches the disk. UsageError, with nothing written,
    if a file is missing, is not plain, or is larger than any official one.
    """
    home = root / _FOLDER
    with tarfile.open(packed, "r:gz") as archive:
        members = {name: _plain_file(archive, packed, f"{_FOLDER}/{name}") for name in _PACKED}
        home.mkdir(exist_ok=True)
        for name, member in members.items():
            part = home / f".{name}.part"
            part.unlink(missing_ok=True)
            source = archive.extractfile(member)
            assert source is not None  # as it is for every plain file
            with source, part.open("xb") as target:
                shutil.copyfileobj(source, target)
            part.replace(home / name)


def _plain_file(archive: tarfile.TarFile, packed: Path, name: str) -> tarfile.TarInfo:
    try:
        member = archive.getmember(name)
    except KeyError:
        member = None
    if member is None or not member.isreg() or member.size > _MEMBER_LIMIT:
        raise UsageError(
            f"{packed} holds no plain file {name} of at most {_MEMBER_LIMIT:,} bytes; replace it "
            "by the official archive"
        )
    return member


def _prepare(home: Path, verified: list[str], labels: LabelKind, validation: float) -> Arrays:
    if verified:
        _compare_checksums(home, verified)
    images, targets = _split(home, "train", labels)
    training, held_out = stratified_split(targets, validation)
    return Arrays(
        train=images[training],
        validation=images[held_out],
        train_labels=targets[training],
        validation_labels=targets[held_out],
        classes=CLASSES[labels],
    )


def _prepare_test(home: Path, labels: LabelKind) -> Held:
    return Held(*_split(home, _TEST, labels))


def _compare_checksums(home: Path, names: list[str]) -> None:
    from torchvision.datasets import CIFAR100  # holds the official MD5 sums; late, as above

    official = dict([*CIFAR100.train_list, *CIFAR100.test_list])
    official[CIFAR100.meta["filename"]] = CIFAR100.meta["md5"]
    for name in names:
        if md5_of(home / name) != official[name]:
            raise UsageError(
                f"the MD5 of {home / name} does not match the official {official[name]}; "
                "set verify: false for a partial copy, or remove a damaged one and set "
                "download: true"
            )


def _split(home: Path, name: str, labels: LabelKind) -> tuple[Pixels, Labels]:
    meta = _unpickle(home / "meta")
    known = meta.get(f"{labels}_label_names")
    if not isinstance(known, list) or len(known) != CLASSES[labels]:
        raise _not_official(home / "meta", f"it does not name {CLASSES[labels]} {labels} labels")
    entry = _unpickle(home / name)
    array, targets = entry.get("data"), entry.get(f"{labels}_labels")
    if not isinstance(array, _PickledArray) or array.pixels.shape[1:] != (_PIXELS,):
        raise _not_official(home / name, f"its data is not rows of {_PIXELS} bytes")
    if not isinstance(targets, list) or len(targets) != len(array.pixels):
        raise _not_official(home / name, f"its {labels}_labels do not match its data")
    if not all(type(target) is int and 0 <= target < CLASSES[labels] for target in targets):
        raise _not_official(home / name, f"a label is outside 0..{CLASSES[labels] - 1}")
    return array.pixels.reshape(-1, 3, 32, 32), np.array(targets, dtype=np.int64)


def _unpickle(file: Path) -> dict[Any, Any]:
    try:
        with file.open("rb") as stream:
            _refuse_claims(stream, file.stat().st_size)
            content = _Unpickler(stream, encoding="latin1").load()
    except UsageError as error:
        raise _not_official(file, str(error)) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise _not_official(file, f"it is damaged ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise _not_official(file, "it does not hold a dictionary")
    return content


def _refuse_claims(stream: BinaryIO, size: int) -> None:
    """Read what the unpickler would do, and go back to the start.

    UsageError if it would clear memory that the file cannot fill: a place in its memo is the index
    of an array. ValueError if anything is longer than what is left of the file.
    """
    for instruction, argument, _ in pickletools.genops(stream):
        if instruction.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > size:
            raise UsageError(f"it claims more memory than its {size:,} bytes can fill")
    stream.seek(0)


def _not_official(file: Path, why: str) -> UsageError:
    return UsageError(
        f"{file} is not a file of CIFAR-100: {why}; replace it by the official one, or remove the "
        "folder and set download: true"
    )


class _PickledArray:
    """Stands in for a pickled uint8 array: NumPy's own unpickling must not meet foreign bytes."""

    pixels: Pixels = np.empty((0, 0), dtype=np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes | str]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledByte):
            raise TypeError("an array of something else than bytes")
        content = raw.encode("latin1") if isinstance(raw, str) else raw  # str: Python 2 wrote it
        self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _PickledByte:
    """Stands in for the pickled dtype uint8, the only one in the official files."""

    def __init__(self, code: str, *_: object) -> None:
        if code != "u1":
            raise TypeError(f"an array of {code}")

    def __setstate__(self, state: object) -> None:
        """Take NumPy's description of byte order and alignment, which a byte has no use for."""


def _new_array(*_: object) -> _PickledArray:
    return _PickledArray()


def _encode_latin1(text: str, _: str) -> bytes:
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, text and byte arrays, and refuses to import anything."""

    _stand_ins: ClassVar[dict[str, Callable[..., object]]] = {
        "numpy.core.multiarray._reconstruct": _new_array,
        "numpy._core.multiarray._reconstruct": _new_array,  # the name since NumPy 2
        "numpy.ndarray": _PickledArray,
        "numpy.dtype": _PickledByte,
        "_codecs.encode": _encode_latin1,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the stand-in for a name; UsageError for every other name."""
        name = f"{module_name}.{global_name}"
        if name not in self._stand_ins:
            raise UsageError(f"it asks for {name}, which no file of CIFAR-100 needs")
        return self._stand_ins[name]
