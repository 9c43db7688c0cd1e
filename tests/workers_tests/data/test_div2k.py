import hashlib
import http.server
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optimizer.errors import UsageError
from workers.data.bank import Bank
from workers.data.div2k import TEST, TRAINING, Archive, Progress, fetch, load
from workers.data.patches import PatchPlan
from workers.data.splits import split

PLAN = PatchPlan(color="rgb", size=8, per_image=3, validation=0.2, crop=16)


def photograph(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(index).integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)


def png(index: int) -> bytes:
    stream = BytesIO()
    Image.fromarray(photograph(index)).save(stream, "PNG")
    return stream.getvalue()


def pack(members: dict[str, bytes]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def official(count: int = 10) -> dict[str, bytes]:
    return {f"DIV2K_train_HR/{index:04}.png": png(index) for index in range(1, count + 1)}


def official_test(count: int = 3) -> dict[str, bytes]:
    return {
        f"DIV2K_valid_HR/{800 + index:04}.png": png(20 + index) for index in range(1, count + 1)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / TRAINING.name).write_bytes(pack(official()))
    return tmp_path / "data"


def prepare(
    folder: Path,
    cache: Path,
    *,
    verify: bool = False,
    download: bool = False,
    plan: PatchPlan = PLAN,
    training: Archive = TRAINING,
    test: Archive = TEST,
    progress: Progress | None = None,
) -> Bank:
    return load(
        folder,
        download=download,
        verify=verify,
        plan=plan,
        cache=cache,
        progress=progress,
        training=training,
        test=test,
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


def test_crops_are_the_centres_of_the_held_out_images(folder: Path, tmp_path: Path) -> None:
    bank = prepare(folder, tmp_path / "cache")
    _, held_out = split(10, 0.2)
    for crop, index in zip(bank.validation, held_out, strict=True):
        image = photograph(int(index) + 1)
        top = (len(image) - 16) // 2
        np.testing.assert_array_equal(crop, image[top : top + 16, 7:23].transpose(2, 0, 1))
    assert bank.train.shape == (8 * 3, 3, 8, 8)
    assert bank.source == "DIV2K: 24 training patches and 2 validation images"


def test_unpacked_folder_gives_the_same_bank(folder: Path, tmp_path: Path) -> None:
    packed = prepare(folder, tmp_path / "one")
    other = tmp_path / "other"
    with zipfile.ZipFile(folder / TRAINING.name) as archive:
        archive.extractall(other)
    (other / "DIV2K_train_HR" / "thumbnail.png").write_bytes(png(1))
    assert prepare(other, tmp_path / "two").fingerprint == packed.fingerprint


def test_only_official_names_are_read_and_nothing_is_unpacked(folder: Path, tmp_path: Path) -> None:
    plain = prepare(folder, tmp_path / "one")
    hostile = {
        "../0001.png": png(50),
        "/etc/0002.png": png(51),
        "DIV2K_train_HR/../../0003.png": png(52),
        "DIV2K_train_HR/x/0004.png": png(53),
        "DIV2K_train_HR/00005.png": png(54),
        "DIV2K_train_HR/0006.png\n": png(54),
        "__MACOSX/DIV2K_train_HR/0001.png": b"",
    }
    before = sorted(tmp_path.rglob("*.png"))
    # in another order, too
    members = hostile | dict(reversed(official().items()))
    (folder / TRAINING.name).write_bytes(pack(members))
    assert prepare(folder, tmp_path / "two").fingerprint == plain.fingerprint
    assert sorted(tmp_path.rglob("*.png")) == before == []


# The test split


def test_the_official_validation_images_are_the_test_split_and_change_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    without = prepare(folder, tmp_path / "cache")
    assert without.test is None
    (folder / TEST.name).write_bytes(pack(official_test()))
    bank = prepare(folder, tmp_path / "cache")
    assert bank.test is not None
    assert bank.test().labels is None
    for crop, index in zip(bank.test().images, (21, 22, 23), strict=True):
        image = photograph(index)
        top = (len(image) - 16) // 2
        np.testing.assert_array_equal(crop, image[top : top + 16, 7:23].transpose(2, 0, 1))
    assert bank.fingerprint == without.fingerprint
    assert bank.source == "DIV2K: 24 training patches, 2 validation and 3 test images"
    with zipfile.ZipFile(folder / TEST.name) as archive:
        archive.extractall(folder)
    (folder / TEST.name).unlink()
    unpacked = prepare(folder, tmp_path / "cache")
    assert unpacked.test is not None
    assert unpacked.test().fingerprint == bank.test().fingerprint


def test_the_test_split_is_verified_as_well(folder: Path, tmp_path: Path) -> None:
    raw = (folder / TRAINING.name).read_bytes()
    made = replace(TRAINING, md5=hashlib.md5(raw).hexdigest())
    tested = pack(official_test())
    (folder / TEST.name).write_bytes(tested)
    with pytest.raises(UsageError, match=f"instead of the official {TEST.md5}"):
        prepare(folder, tmp_path / "cache", verify=True, training=made)
    known = replace(TEST, md5=hashlib.md5(tested).hexdigest())
    assert prepare(folder, tmp_path / "cache", verify=True, training=made, test=known).test
    (folder / TEST.name).unlink()
    (folder / TEST.folder).mkdir()
    (folder / TEST.folder / "0801.png").write_bytes(png(1))
    with pytest.raises(UsageError, match=r"DIV2K_valid_HR has 1 of the 100 images; complete it"):
        prepare(folder, tmp_path / "cache", verify=True, training=made)


def test_a_test_image_smaller_than_the_crop_is_told(folder: Path, tmp_path: Path) -> None:
    small = BytesIO()
    Image.fromarray(photograph(1)[:10]).save(small, "PNG")
    (folder / TEST.name).write_bytes(pack({"DIV2K_valid_HR/0801.png": small.getvalue()}))
    line = refused(folder, tmp_path / "cache")
    assert line.startswith("DIV2K_valid_HR.zip/DIV2K_valid_HR/0801.png is 30x10 pixels, smaller ")


# Which is taken


def test_archive_goes_before_the_unpacked_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "DIV2K_train_HR").mkdir()
    assert len(prepare(folder, tmp_path / "cache").validation) == 2


def test_second_start_does_not_read_the_archive_again(folder: Path, tmp_path: Path) -> None:
    raw = (folder / TRAINING.name).read_bytes()
    made = replace(TRAINING, url="http://127.0.0.1:9/", md5=hashlib.md5(raw).hexdigest())
    first = prepare(folder, tmp_path / "cache", verify=True, training=made)
    stat = (folder / TRAINING.name).stat()
    (folder / TRAINING.name).write_bytes(bytes(len(raw)))  # same size, same time: not looked into
    os.utime(folder / TRAINING.name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = prepare(folder, tmp_path / "cache", verify=True, training=made)
    assert second.fingerprint == first.fingerprint


def test_changed_archive_is_verified_again(folder: Path, tmp_path: Path) -> None:
    raw = (folder / TRAINING.name).read_bytes()
    made = replace(TRAINING, url="http://127.0.0.1:9/", md5=hashlib.md5(raw).hexdigest())
    prepare(folder, tmp_path / "cache", verify=True, training=made)
    (folder / TRAINING.name).write_bytes(raw + b"more")
    with pytest.raises(UsageError, match=f"instead of the official {made.md5}"):
        prepare(folder, tmp_path / "cache", verify=True, training=made)


# What is refused


def test_missing_images_are_told_with_the_places_looked_at(tmp_path: Path) -> None:
    line = refused(tmp_path, tmp_path / "cache")
    assert line.startswith(f"no DIV2K in {tmp_path}: looked for DIV2K_train_HR.zip and ")
    assert "set download: true to get http://data.vision.ee.ethz.ch/" in line


def test_smaller_archive_does_not_verify(folder: Path, tmp_path: Path) -> None:
    line = refused(folder, tmp_path / "cache", verify=True)
    assert "instead of the official bdc2d9338d4e574fe81bf7d158758658" in line
    assert "set verify: false" in line


def test_incomplete_unpacked_folder_does_not_verify(tmp_path: Path) -> None:
    (tmp_path / "DIV2K_train_HR").mkdir()
    for name, content in official(3).items():
        (tmp_path / name).write_bytes(content)
    line = refused(tmp_path, tmp_path / "cache", verify=True)
    assert line.startswith(f"{tmp_path / 'DIV2K_train_HR'} has 3 of the 800 images; ")
    assert "set verify: false" in line


def test_empty_unpacked_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "DIV2K_train_HR").mkdir()
    assert "no images 0001.png, 0002.png, ... in" in refused(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_archive_is_told(folder: Path, tmp_path: Path, keep: int) -> None:
    packed = folder / TRAINING.name
    packed.write_bytes(packed.read_bytes()[:keep])
    line = refused(folder, tmp_path / "cache")
    assert line.startswith(f"{packed} is damaged: ")
    assert "remove it and set download: true" in line


def test_flipped_byte_in_a_member_is_told(folder: Path, tmp_path: Path) -> None:
    packed = folder / TRAINING.name
    raw = bytearray(packed.read_bytes())
    raw[500] ^= 0xFF
    packed.write_bytes(raw)
    assert refused(folder, tmp_path / "cache").startswith(f"{packed} is damaged: ")


def test_broken_image_in_a_sound_archive_is_told(folder: Path, tmp_path: Path) -> None:
    broken = official() | {"DIV2K_train_HR/0004.png": png(4)[:500]}
    (folder / TRAINING.name).write_bytes(pack(broken))
    line = refused(folder, tmp_path / "cache")
    assert line.startswith(f"DIV2K_train_HR/0004.png in {folder / TRAINING.name} is not a readable")


def test_zip_bomb_is_told_before_it_is_unpacked(folder: Path, tmp_path: Path) -> None:
    bomb = official(2) | {"DIV2K_train_HR/0001.png": bytes(64 * 2**20 + 1)}
    (folder / TRAINING.name).write_bytes(pack(bomb))
    line = refused(folder, tmp_path / "cache")
    assert line.startswith("DIV2K_train_HR/0001.png in ")
    assert "unpacks to 67,108,865 bytes, more than the 67,108,864 an image may have" in line


def test_archive_of_something_else_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / TRAINING.name).write_bytes(pack({"readme.txt": b"hello"}))
    assert "no DIV2K_train_HR/0001.png and so on in" in refused(folder, tmp_path / "cache")


def test_image_smaller_than_the_crop_is_told(folder: Path, tmp_path: Path) -> None:
    plan = PatchPlan(color="rgb", size=8, per_image=3, validation=0.2, crop=100)
    line = refused(folder, tmp_path / "cache", plan=plan)
    assert re.match(
        r"DIV2K_train_HR\.zip/DIV2K_train_HR/\d{4}\.png is 30x\d\d pixels, smaller than "
        r"crop = 100; lower crop to at most \d\d",
        line,
    )


# Download


class Site(http.server.ThreadingHTTPServer):
    """Serves one file on 127.0.0.1, optionally in pieces, and keeps the Range headers it got."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cut_after: int | None = None
        self.ranges_allowed = True
        self.ranges: list[str | None] = []

    def archive(self, content: bytes | None = None) -> Archive:
        """Return the archive's address with the checksum of this content."""
        md5 = hashlib.md5(self.content if content is None else content).hexdigest()
        return replace(TRAINING, url=f"http://127.0.0.1:{self.server_address[1]}/a.zip", md5=md5)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        content = self.server.content
        if not content:
            self.send_error(404)
            return
        first = 0
        if wanted and self.server.ranges_allowed:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : self.server.cut_after])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[Site]:
    with Site(content) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(pack(official())) as server:
        yield server


def test_download_gives_the_bank(site: Site, folder: Path, tmp_path: Path) -> None:
    expected = prepare(folder, tmp_path / "one")
    new = tmp_path / "new" / "data"
    seen: list[tuple[int, int]] = []
    with serving(pack(official_test())) as other:
        address = other.archive()
        bank = prepare(
            new,
            tmp_path / "two",
            verify=True,
            download=True,
            training=site.archive(),
            test=replace(TEST, url=address.url, md5=address.md5),
            progress=lambda done, total: seen.append((done, total)),
        )
    assert bank.fingerprint == expected.fingerprint
    assert bank.test is not None
    assert len(bank.test().images) == 3
    assert {(len(content), len(content)) for content in (site.content, other.content)} <= set(seen)
    assert {file.name for file in new.iterdir()} == {TRAINING.name, TEST.name}


def test_cut_off_transfer_is_told_and_resumed(site: Site, tmp_path: Path) -> None:
    site.cut_after = 3000
    with pytest.raises(UsageError) as caught:
        fetch(site.archive(), tmp_path)
    assert f"ended after 3,000 of {len(site.content):,} bytes" in str(caught.value)
    assert str(caught.value).endswith("then run again to go on")
    assert [file.name for file in tmp_path.iterdir()] == [f"{TRAINING.name}.part"]
    site.cut_after = None
    seen: list[tuple[int, int]] = []
    fetch(site.archive(), tmp_path, lambda done, total: seen.append((done, total)))
    assert site.ranges == [None, "bytes=3000-"]
    assert seen == [(len(site.content), len(site.content))]
    assert (tmp_path / TRAINING.name).read_bytes() == site.content
    assert [file.name for file in tmp_path.iterdir()] == [TRAINING.name]


def test_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.ranges_allowed = False
    (tmp_path / f"{TRAINING.name}.part").write_bytes(site.content[:777])
    fetch(site.archive(), tmp_path)
    assert (tmp_path / TRAINING.name).read_bytes() == site.content


def test_complete_part_is_taken(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{TRAINING.name}.part").write_bytes(site.content)
    fetch(site.archive(), tmp_path)
    assert (tmp_path / TRAINING.name).read_bytes() == site.content


def test_wrong_checksum_is_told_and_discarded(site: Site, tmp_path: Path) -> None:
    wanted = site.archive(b"other content")
    with pytest.raises(UsageError) as caught:
        fetch(wanted, tmp_path)
    assert f"has MD5 {site.archive().md5} instead of {wanted.md5} and was discarded" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_part_of_another_file_is_discarded(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{TRAINING.name}.part").write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="discarded; run again"):
        fetch(site.archive(), tmp_path)
    fetch(site.archive(), tmp_path)
    assert (tmp_path / TRAINING.name).read_bytes() == site.content


def test_archive_that_another_process_fetched_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / TRAINING.name).write_bytes(b"fetched")
    fetch(site.archive(), tmp_path)
    assert site.ranges == []


def test_processes_that_download_at_once_transfer_once(site: Site, tmp_path: Path) -> None:
    archive = site.archive()
    threads = [threading.Thread(target=fetch, args=(archive, tmp_path)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.ranges == [None]
    assert (tmp_path / TRAINING.name).read_bytes() == site.content


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.zip", "http://nobody.invalid/a.zip"])
def test_network_that_is_down_is_told(tmp_path: Path, url: str, site: Site) -> None:
    there = replace(TRAINING, url=url, md5="0" * 32)
    line = refused(tmp_path, tmp_path / "cache", download=True, training=there)
    assert line.startswith(f"cannot download {url} into {tmp_path}: ")
    assert "check the network and the free space" in line


def test_missing_page_is_told(site: Site, tmp_path: Path) -> None:
    site.content = b""
    with pytest.raises(UsageError, match=r"^cannot download .*: HTTP Error 404: Not Found; check"):
        fetch(site.archive(), tmp_path)
    assert list(tmp_path.iterdir()) == []
