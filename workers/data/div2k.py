"""DIV2K (Agustsson & Timofte 2017): 800 photographs of about 2040x1356 pixels, for denoising.

They are read straight out of the official archive; nothing is unpacked. Validation images are held
out of those 800; the 100 official validation images, another archive, are the test split (the
official test images were never published).
"""

import http.client
import os
import re
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError

from optimizer.config.choices import Color
from optimizer.errors import UsageError
from workers.data.bank import Arrays, Bank, Held, Pixels, alone_in, cached, digest, key_of, writing
from workers.data.images import decode, pixels, read
from workers.data.listing import image_files
from workers.data.patches import PatchPlan, Photograph, crops, cut
from workers.data.sources import md5_of, stamps

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all (0 if the server does not say)."""


@dataclass(frozen=True)
class Archive:
    """A file to download, and the MD5 that its publisher gives."""

    name: str
    url: str
    md5: str
    folder: str
    """Where the images lie in it."""
    images: int


# https://data.vision.ee.ethz.ch/cvl/DIV2K/, with the MD5 sums published there: of 3,530,603,713
# bytes, and of about an eighth of that.
TRAINING = Archive(
    name="DIV2K_train_HR.zip",
    url="http://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
    md5="bdc2d9338d4e574fe81bf7d158758658",
    folder="DIV2K_train_HR",
    images=800,
)
TEST = Archive(
    name="DIV2K_valid_HR.zip",
    url="http://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",
    md5="9fcdda83005c5e5997799b69f955ff88",
    folder="DIV2K_valid_HR",
    images=100,
)

_FILE = re.compile(r"\d{4}\.png")
_MEMBER_LIMIT = 64 * 2**20  # bytes; the largest image is a tenth of it, a bomb is far above
_CHUNK = 2**20  # bytes
_PATIENCE = 60  # seconds without a byte


def load(
    folder: Path,
    *,
    download: bool,
    verify: bool,
    plan: PatchPlan,
    cache: Path,
    progress: Progress | None = None,
    training: Archive = TRAINING,
    test: Archive = TEST,
) -> Bank:
    """Return a bank of patches.

    folder holds DIV2K_train_HR.zip or, unpacked, DIV2K_train_HR/0001.png and so on, and likewise
    DIV2K_valid_HR; without that there is no test split. verify: an archive must have the official
    MD5 (remembered in the cache, 3.5 GB take seconds to read), an unpacked folder all images;
    without it a smaller set in the same layout may be used. UsageError if the training images are
    missing and not to be downloaded, or images are not what they should be.
    """

    def found(archive: Archive) -> _Images | None:
        place = _place(folder, archive, download, progress)
        return None if place is None else _checked(place, archive, verify, cache)

    trained, held = found(training), found(test)
    if trained is None:
        raise UsageError(
            f"no DIV2K in {folder}: looked for {training.name} and {training.folder}/; give the "
            f"folder that holds one of them, or set download: true to get {training.url}"
        )
    key = key_of(
        source="div2k",
        files=stamps(trained.files),
        plan=asdict(plan),
        test=None if held is None else stamps(held.files),
    )
    return cached(
        cache,
        key,
        "DIV2K",
        partial(_cut, trained, plan),
        None if held is None else partial(_crop, held, plan),
    )


@dataclass(frozen=True)
class _Images:
    """Where the images of an archive lie: in the archive itself, or unpacked."""

    archive: Archive
    files: list[Path]
    packed: bool

    @contextmanager
    def opened(self, color: Color) -> Iterator[list[Photograph]]:
        """Let the block read the photographs, in the order of their names."""
        if self.packed:
            with _opened(self.files[0]) as archive:
                yield _packed_photographs(archive, self.archive.folder, color)
        else:
            yield [Photograph(str(file), partial(read, file, color)) for file in self.files]


def _place(
    folder: Path, archive: Archive, download: bool, progress: Progress | None
) -> Path | None:
    """Return the archive, or else the unpacked folder; None if it may not be downloaded."""
    packed, unpacked = folder / archive.name, folder / archive.folder
    if not os.path.isfile(packed):  # which never raises
        if os.path.isdir(unpacked):
            return unpacked
        if not download:
            return None
        fetch(archive, folder, progress)
    return packed


def _checked(place: Path, archive: Archive, verify: bool, cache: Path) -> _Images:
    if place.is_dir():
        return _Images(archive, _unpacked(place, archive, verify), packed=False)
    if verify:
        _compare_checksum(place, archive, cache)
    return _Images(archive, [place], packed=True)


def _cut(images: _Images, plan: PatchPlan) -> Arrays:
    with images.opened(plan.color) as photographs:
        return cut(photographs, plan)


def _crop(images: _Images, plan: PatchPlan) -> Held:
    with images.opened(plan.color) as photographs:
        return Held(crops(photographs, plan))


def fetch(archive: Archive, folder: Path, progress: Progress | None = None) -> None:
    """Download an archive into the folder, where it appears when its checksum has matched.

    A transfer that was cut off goes on where it stopped. UsageError if it fails.
    """
    target = folder / archive.name
    part = folder / f"{archive.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            if target.is_file():  # another process was waited for
                return
            _transfer(archive.url, part, progress)
            if (md5 := md5_of(part)) != archive.md5:
                part.unlink()
                raise UsageError(
                    f"the download of {archive.url} has MD5 {md5} instead of {archive.md5} and was "
                    "discarded; run again"
                )
            part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise UsageError(
            f"cannot download {archive.url} into {folder}: {error}; check the network and the free "
            "space, then run again to go on"
        ) from error


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except HTTPError as error:
        if not done or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        return  # nothing comes after these bytes: they are the whole file, or not of it at all
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        total = done + int(response.headers.get("Content-Length", -done))
        with open(part, "ab" if done else "wb", opener=_unlinked) as stream:
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            stream.flush()
            os.fsync(stream.fileno())
    if done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _unlinked(path: str, flags: int) -> int:
    """Open a file that is no link: the folder may be shared, and the name can be guessed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _compare_checksum(packed: Path, archive: Archive, cache: Path) -> None:
    mark = cache / f"{digest(key_of(files=stamps([packed]), md5=archive.md5))}.verified"
    if mark.exists():
        return
    if (md5 := md5_of(packed)) != archive.md5:
        raise UsageError(
            f"{packed} has MD5 {md5} instead of the official {archive.md5}; remove it and set "
            "download: true, or set verify: false for a smaller archive in the same layout"
        )
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _unpacked(folder: Path, archive: Archive, verify: bool) -> list[Path]:
    files = [file for file in image_files(folder) if _FILE.fullmatch(file.name)]
    if not files:
        raise UsageError(f"no images 0001.png, 0002.png, ... in {folder}; remove or fill it")
    if verify and len(files) != archive.images:
        raise UsageError(
            f"{folder} has {len(files)} of the {archive.images} images; complete it, or set "
            "verify: false to use it as it is"
        )
    return files


def _opened(packed: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(packed)
    except Exception as error:  # a damaged archive can raise anything
        raise _damaged(packed, error) from error


def _packed_photographs(archive: zipfile.ZipFile, folder: str, color: Color) -> list[Photograph]:
    packed = Path(str(archive.filename))
    member_of = re.compile(rf"{folder}/{_FILE.pattern}")
    members = sorted({name for name in archive.namelist() if member_of.fullmatch(name)})
    if not members:
        raise UsageError(
            f"no {folder}/0001.png and so on in {packed}; replace it by the official archive"
        )
    return [
        Photograph(f"{packed.name}/{member}", partial(_read_member, archive, member, color))
        for member in members
    ]


def _read_member(archive: zipfile.ZipFile, member: str, color: Color) -> Pixels:
    packed = Path(str(archive.filename))
    size = archive.getinfo(member).file_size
    if size > _MEMBER_LIMIT:
        raise UsageError(
            f"{member} in {packed} unpacks to {size:,} bytes, more than the {_MEMBER_LIMIT:,} an "
            "image may have; replace the archive by the official one"
        )
    try:
        content = archive.read(member)  # never more than `size`, and its CRC is compared
    except Exception as error:  # a damaged or encrypted member can raise anything
        raise _damaged(packed, error) from error
    return pixels(decode(BytesIO(content), f"{member} in {packed}", color))


def _damaged(packed: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{packed} is damaged: {error}; remove it and set download: true, or replace it"
    )
