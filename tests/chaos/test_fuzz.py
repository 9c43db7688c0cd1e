"""Documents from anywhere, damaged at random: none raises what no command turns into a line.

`make fuzz` draws for FUZZ_SECONDS (600) in all; a failure is printed with its bytes.
"""

import hashlib
import io
import logging
import os
import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.checkout import ROOT
from support.synthetic import usual

from optimizer.config import study_file
from optimizer.errors import UsageError
from optimizer.presets import document, exports, recheck
from storage import addresses, passwords
from storage.errors import StorageUrlError
from storage.ledger import Entry
from workers.data import cifar100, images
from workers.service import checkpoint, spool
from workers.service.spool import DamagedError, Delivery, StudyKey

pytestmark = pytest.mark.long

SECONDS = float(os.environ.get("FUZZ_SECONDS", "600")) / 7
"""For each kind of document."""

NASTY = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\x1b[2J", b"[" * 3000, b"{" * 3000, b'{"a":' * 3000,
    b"9" * 5000, b"1e999", b"-0", b"NaN", b"Infinity", b"010", b"1:30", b"null", b"&a *a",
    b"<<: *a", b"!!python/object:os.system", b'"\\u0000"', b'"\\ud800"', b"\xef\xbb\xbf",
    b"\xff\xff\xff\xff", b"%", b"%00", b"@", b":", b"/", b"?", b",", b"#", b"[", b"]",
]  # fmt: skip


class TrainedAnewError(Exception):
    """A checkpoint was of no use."""


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of some documents with a few pieces removed, doubled, altered or put in."""
    found = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(found)))
        end = min(len(found), place + draw(st.integers(0, 40)))
        found[place:end] = draw(
            st.sampled_from(NASTY)
            | st.binary(max_size=8)
            | st.just(bytes(found[place:end]) * 2)
            | st.just(b"")
        )
    return bytes(found)


def fuzz(whole: list[bytes], read: Callable[[bytes], object], *allowed: type[Exception]) -> None:
    """Read damaged documents until the time is over; nothing but what is allowed may come out."""
    end, count, refused = time.monotonic() + SECONDS, 0, 0

    @settings(
        max_examples=1000,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(whole))
    def some(content: bytes) -> None:
        nonlocal count, refused
        if time.monotonic() > end:
            return
        count += 1
        try:
            read(content)
        except allowed as error:
            refused += 1
            said = str(error)
        else:
            said = ""
        assert "\n" not in said

    while time.monotonic() < end:
        some()
    print(f"{count} documents, {refused} refused")
    assert 0 < refused < count


def through(file: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def written(content: bytes) -> object:
        file.write_bytes(content)
        return read(file)

    return written


def test_studies(tmp_path: Path) -> None:
    whole = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    fuzz(whole, through(tmp_path / "study.yaml", study_file.load), UsageError)


def test_presets(tmp_path: Path) -> None:
    def checked(file: Path) -> None:
        content = document.content(file)
        recheck.check(document.parse(content, file), content)

    path, _ = exports.export(usual(), tmp_path)
    fuzz([path.read_bytes()], through(tmp_path / "preset.json", checked), UsageError)


def test_spooled_measurements() -> None:
    key = StudyKey("a study", 3, "2026-01-02T03:04:05.000006+00:00")
    entry = Entry(job_id=7, rung=2, value=27.25, extra={"loss": 0.5, "n": [1, 2]}, seconds=1.5)
    whole = spool._encoded(key, Delivery(worker_id=5, fence=1, entry=entry, ending="done"))
    fuzz([whole], spool._decoded, DamagedError)


def test_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged before the checksum was made: it protects from accidents only."""
    caplog.set_level(logging.CRITICAL, "densitune.worker")
    kept = checkpoint.Checkpoints(tmp_path, usual().study)
    kept.save(7, "x", {"step": 3, "weight": torch.arange(6.0)})
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()[checkpoint.DIGEST_BYTES :]

    def loaded(content: bytes) -> None:
        file.write_bytes(hashlib.sha256(content).digest() + content)
        if kept.load(7, "x") is None:
            raise TrainedAnewError

    fuzz([whole], loaded, TrainedAnewError)


def test_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    whole = []
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        whole.append(stream.getvalue())

    def decoded(content: bytes) -> None:
        images.pixels(images.decode(io.BytesIO(content), "x", "rgb"))

    fuzz(whole, decoded, UsageError)


def test_pickles_of_data_sets(tmp_path: Path) -> None:
    content = {b"fine_labels": [1, 2], b"coarse_labels": [0, 1], b"data": b"\1\2\3"}
    whole = [pickle.dumps(content, protocol) for protocol in range(2, 6)]
    fuzz(whole, through(tmp_path / "train", cifar100._unpickle), UsageError)


def test_addresses_and_passwords(tmp_path: Path) -> None:
    """A password is never shown while it stands behind a colon, where passwords stand."""
    whole = [
        b"postgresql://me:s3cretword@host:5432/db?sslmode=require",
        b"postgresql://me:s3cretword@%2Fvar%2Frun/db?options=-c%20work_mem%3D5MB",
        b"postgres://me:s3cretword@a:1,b:2/db?connect_timeout=3",
    ]

    def read(content: bytes) -> None:
        url = content.decode(errors="replace")
        shown = addresses.masked(url)
        try:
            addresses.place(addresses.parse(url, password="another"))
            addresses.place(addresses.parse(url))
        except StorageUrlError as error:
            shown += "".join(traceback.format_exception(error))
            raise
        finally:
            if url.count("s3cretword") == url.count(":s3cretword") == 1:
                assert "s3cretword" not in shown
        (tmp_path / "password").write_bytes(content)
        passwords.read(str(tmp_path / "password"), "the file")

    fuzz(whole, read, StorageUrlError)
