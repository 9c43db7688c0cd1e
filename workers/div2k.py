"""DIV2K (Agustsson & Timofte 2017): 800 photographs of about 2040x1356 pixels, for denoising.

They are read straight out of the official archive; nothing is unpacked. The official validation
images are another archive, which is not used here: some training images are held out instead.
"""

import http.client
import os
import re
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError

from optimizer.errors import UsageError
from workers.bank import (
    Arrays,
    Bank,
    Pixels,
    alone_in,
    cached,
    digest,
    key_of,
    md5_of,
    stamps,
    writing,
)
from workers.images import Color, decode, image_files, pixels, read
from workers.patches import PatchPlan, Photograph, cut

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all (0 if the server does not say)."""


@dataclass(frozen=True)
class Archive:
    """A file to download, and the MD5 that its publisher gives."""

    name: str
    url: str
    md5: str


# https://data.vision.ee.ethz.ch/cvl/DIV2K/; MD5 of the 3,530,603,713 bytes published there.
TRAINING = Archive(
    name="DIV2K_train_HR.zip",
    url="http://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
    md5="bdc2d9338d4e574fe81bf7d158758658",
)

_FOLDER = "DIV2K_train_HR"
_IMAGES = 800
_FILE = re.compile(r"\d{4}\.png")
_MEMBER = re.compile(rf"{_FOLDER}/\d{{4}}\.png")
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
    archive: Archive = TRAINING,
) -> Bank:
    """Return a bank of patches.

    folder holds DIV2K_train_HR.zip or, unpacked, DIV2K_train_HR/0001.png and so on. verify: the
    archive must have the official MD5 (remembered in the cache, 3.5 GB take seconds to read), the
    unpacked folder all 800 images; without it a smaller set in the same layout may be used.
    UsageError if the images are missing and not to be downloaded, or are not what they should be.
    """
    packed = folder / archive.name
    unpacked = folder / _FOLDER
    if not packed.is_file():
        if unpacked.is_dir():
            return _load_unpacked(unpacked, verify, plan, cache)
        if not download:
            raise UsageError(
                f"no DIV2K in {folder}: looked for {archive.name} and {_FOLDER}/; give the folder "
                f"that holds one of them, or set download: true to get {archive.url}"
            )
        fetch(archive, folder, progress)
    if verify:
        _compare_checksum(packed, archive, cache)
    key = key_of(source="div2k", files=stamps([packed]), plan=asdict(plan))
    return cached(cache, key, "DIV2K", partial(_cut_packed, packed, plan))


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
        with part.open("ab" if done else "wb") as stream:
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            stream.flush()
            os.fsync(stream.fileno())
    if done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


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


def _load_unpacked(folder: Path, verify: bool, plan: PatchPlan, cache: Path) -> Bank:
    files = [file for file in image_files(folder) if _FILE.fullmatch(file.name)]
    if not files:
        raise UsageError(f"no images 0001.png, 0002.png, ... in {folder}; remove or fill it")
    if verify and len(files) != _IMAGES:
        raise UsageError(
            f"{folder} has {len(files)} of the {_IMAGES} images; complete it, or set verify: false "
            "to use it as it is"
        )
    photographs = [Photograph(str(file), partial(read, file, plan.color)) for file in files]
    key = key_of(source="div2k", files=stamps(files), plan=asdict(plan))
    return cached(cache, key, "DIV2K", partial(cut, photographs, plan))


def _cut_packed(packed: Path, plan: PatchPlan) -> Arrays:
    try:
        archive = zipfile.ZipFile(packed)
    except Exception as error:  # a damaged archive can raise anything
        raise _damaged(packed, error) from error
    with archive:
        members = sorted({name for name in archive.namelist() if _MEMBER.fullmatch(name)})
        if not members:
            raise UsageError(
                f"no {_FOLDER}/0001.png and so on in {packed}; replace it by the official archive"
            )
        photographs = [
            Photograph(
                f"{packed.name}/{member}", partial(_read_member, archive, member, plan.color)
            )
            for member in members
        ]
        return cut(photographs, plan)


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
