"""Odd image files: read right, whatever lies beside their pixels, or refused with one line."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from optimizer.errors import UsageError
from workers.data import images, metadata
from workers.data.bank import Pixels
from workers.data.folder import load_classes, load_photographs
from workers.data.images import read
from workers.data.patches import PatchPlan

PLAN = PatchPlan(color="gray", size=8, per_image=2, validation=0.25, crop=16)


def noise(seed: int, height: int = 20, width: int = 30) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples: Any, kind: int, *more: bytes) -> bytes:
    """A PNG of (H, W, channels) samples of 8 or 16 bits, with chunks before its pixels."""
    height, width, _ = samples.shape
    depth = 8 * samples.dtype.itemsize
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    rows = b"".join(
        b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples
    )
    parts = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return metadata.PNG + b"".join(parts)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


# Depth


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_a_png_of_16_bits_is_told(tmp_path: Path, kind: int, channels: int, color: Any) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(np.full((4, 5, channels), 4095, dtype=np.uint16), kind))
    line = refusal(lambda: read(file, color))
    assert line.startswith(f"{file} has more than 8 bits a channel (mode ")
    assert line.endswith("); convert it to 8 bits")


@pytest.mark.parametrize(
    ("head", "samples", "told"),
    [
        (b"P6 5 4 65535\n", np.full(60, 4095, ">u2"), "values up to 65535"),
        (b"P6 5 4 4095\n", np.full(60, 4095, ">u2"), "values up to 4095"),
        (b"P5 5 4 4095\n", np.full(20, 4095, ">u2"), "mode I"),
        (b"Pf 5 4 -1.0\n", np.full(20, 0.5, "<f4"), "mode F"),
    ],
)
def test_a_deep_portable_map_is_told(tmp_path: Path, head: bytes, samples: Any, told: str) -> None:
    file = tmp_path / "a.ppm"
    file.write_bytes(head + samples.tobytes())
    assert f"more than 8 bits a channel ({told}); convert" in refusal(lambda: read(file, "rgb"))


def test_a_portable_map_of_few_levels_is_stretched(tmp_path: Path) -> None:
    file = tmp_path / "a.ppm"
    file.write_bytes(b"P6 2 1 3\n" + bytes([0, 1, 2, 3, 3, 0]))
    assert read(file, "rgb")[:, 0, 0].tolist() == [0, 85, 170]
    assert read(file, "rgb")[:, 0, 1].tolist() == [255, 255, 0]


def tiff(samples: Any, photometric: int, sign: int = 1) -> bytes:
    """An uncompressed TIFF of (H, W, channels) samples."""
    height, width, channels = samples.shape
    bits = [8 * samples.dtype.itemsize] * channels
    raw: bytes = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258] = width, height, tuple(bits)
    tags[259], tags[262], tags[277] = 1, photometric, channels
    tags[273] = 0  # of the pixels behind the directory
    tags[278], tags[279], tags[339] = height, len(raw), (sign,) * channels
    if channels == 4 and photometric == 2:
        tags[338] = (2,)
    return b"II*\0\x08\0\0\0" + bytes(tags.tobytes(8)) + raw


@pytest.mark.parametrize(
    ("dtype", "channels", "photometric", "sign", "told"),
    [
        ("u2", 1, 1, 1, "(mode I;16)"),
        ("u2", 3, 2, 1, "(16 bits)"),
        ("u2", 4, 2, 1, "(16 bits)"),
        ("u2", 4, 5, 1, "(16 bits)"),
        ("f4", 1, 1, 3, "(mode F)"),
        ("u4", 1, 1, 1, "(mode I)"),
        ("i1", 1, 1, 2, "has samples with a sign; convert them to 0 to 255"),
        ("i2", 1, 1, 2, "(mode I)"),
        ("f4", 3, 2, 3, "is not a readable image"),  # Pillow has no such mode
    ],
)
def test_a_tiff_of_other_samples_is_told(
    tmp_path: Path, dtype: str, channels: int, photometric: int, sign: int, told: str
) -> None:
    file = tmp_path / "a.tif"
    file.write_bytes(tiff(np.full((4, 5, channels), 100, dtype=dtype), photometric, sign))
    assert told in refusal(lambda: read(file, "rgb"))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_8_bit_mode_of_tiff_is_read(
    tmp_path: Path, mode: str, compression: str | None
) -> None:
    image = Image.fromarray(noise(1)).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", "rgb"), expected)


def test_own_tiffs_of_8_bits_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    file.write_bytes(tiff(noise(2), 2))
    np.testing.assert_array_equal(read(file, "rgb"), noise(2).transpose(2, 0, 1))


def test_a_bitmap_of_16_bits_a_pixel_has_no_more_than_8_a_channel(tmp_path: Path) -> None:
    file = tmp_path / "a.bmp"
    pixels = struct.pack("<4H", 0b0_11111_00000_00000, 0b0_00000_11111_00000, 0b11111, 0)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 16, 0, len(pixels), 0, 0, 0, 0)
    file.write_bytes(struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54) + head + pixels)
    found = read(file, "rgb")[:, 0].T
    assert found.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_mode_of_jpeg_is_read(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "a.jfif"
    Image.fromarray(noise(3)).convert(mode).save(file, format="JPEG", quality=95)
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(file, "rgb"), expected)


# Metadata

RESOLUTIONS = {
    "a signed rational of nothing": (10, struct.pack("<ii", -1, 0)),
    "a rational of nothing": (5, struct.pack("<II", 1, 0)),
    "a text": (2, b"seven\0\0\0"),
    "an unknown type": (99, b"12345678"),
    "nothing": (5, b""),
}


def exif(kind: int, resolution: bytes, orientation: int = 6) -> bytes:
    """EXIF with an orientation and a horizontal resolution of any type, as other programs do."""
    count = 0 if not resolution else (8 if kind == 2 else 1)
    entries = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    entries += struct.pack("<HHII", 0x011A, kind, count, 8 + 2 + 3 * 12 + 4)
    entries += struct.pack("<HHII", 0x0128, 3, 1, 2)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3) + entries + bytes(4) + resolution


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def jpeg(tmp_path: Path, *segments: bytes, density: bool = False) -> tuple[Path, Pixels]:
    """A JPEG with segments after its start, without JFIF's density or with it; and its pixels."""
    file = tmp_path / "a.jpg"
    Image.fromarray(noise(5)).save(file, quality=95)
    plain = read(file, "rgb")
    content = file.read_bytes()
    rest = content[2:] if density else content[20:]
    file.write_bytes(content[:2] + b"".join(segments) + rest)
    return file, plain


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("name", RESOLUTIONS)
def test_a_jpeg_with_an_odd_resolution_is_read_and_turned(
    tmp_path: Path, name: str, density: bool
) -> None:
    told = segment(0xE1, exif(*RESOLUTIONS[name]))
    file, plain = jpeg(tmp_path, told, density=density)
    np.testing.assert_array_equal(read(file, "rgb"), np.rot90(plain, k=-1, axes=(1, 2)))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(tmp_path: Path, orientation: int) -> None:
    file, _ = jpeg(tmp_path, segment(0xE1, exif(5, struct.pack("<II", 72, 1), orientation)))
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(file, "rgb"), expected)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def test_an_orientation_in_xmp_counts(tmp_path: Path) -> None:
    file, plain = jpeg(tmp_path, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))
    np.testing.assert_array_equal(read(file, "rgb"), np.rot90(plain, k=-1, axes=(1, 2)))


@pytest.mark.parametrize(
    "odd",
    [
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0garbage that is no directory"),
        segment(0xE1, b""),
        segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        segment(0xE2, b"ICC_PROFILE\0\x02\x01" + bytes(900)),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x01x"),
        segment(0xFE, b"\xff\xd8\xff\xd9" * 100),
    ],
)
def test_odd_segments_of_a_jpeg_change_nothing(tmp_path: Path, odd: bytes) -> None:
    file, plain = jpeg(tmp_path, odd)
    np.testing.assert_array_equal(read(file, "rgb"), plain)


ODD_CHUNKS = {
    "two megabytes of text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
    "two megabytes of other text": chunk(
        b"iTXt", b"Comment\0\x01\0\0\0" + zlib.compress(b"x" * 2**21)
    ),
    "two megabytes of a profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**21))),
    "a profile that is none": chunk(b"iCCP", b"icc\0\0garbage"),
    "a resolution that is cut off": chunk(b"pHYs", b"\0\0"),
    "a gamma of nothing": chunk(b"gAMA", b""),
    "chromaticities that are cut off": chunk(b"cHRM", b"\0"),
    "a wrong checksum": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0",
    "an animation of nothing": chunk(b"acTL", b"\0"),
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_odd_chunks_of_a_png_change_nothing_and_it_is_turned(tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.png"
    told = chunk(b"eXIf", exif(5, struct.pack("<II", 72, 1))[6:])
    file.write_bytes(png(noise(6), 2, ODD_CHUNKS[name], told))
    turned = np.rot90(noise(6), k=-1).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(file, "rgb"), turned)


def test_an_orientation_in_a_text_of_a_png_counts(tmp_path: Path) -> None:
    raw = exif(5, struct.pack("<II", 72, 1))
    legacy = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    turned = np.rot90(noise(6), k=-1).transpose(2, 0, 1)
    for told in (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(legacy)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ):
        file = tmp_path / "a.png"
        file.write_bytes(png(noise(6), 2, told))
        np.testing.assert_array_equal(read(file, "rgb"), turned)


def test_a_profile_changes_no_pixel(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a picture")
    Image.fromarray(noise(7)).save(tmp_path / "a.png", icc_profile=profile, pnginfo=text)
    np.testing.assert_array_equal(read(tmp_path / "a.png", "rgb"), noise(7).transpose(2, 0, 1))


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(seed)) for seed in (8, 9)]
    for default in (False, True):
        frames[0].save(
            tmp_path / "a.png", save_all=True, append_images=frames[1:], default_image=default
        )
        with Image.open(tmp_path / "a.png") as image:
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(read(tmp_path / "a.png", "rgb"), expected)


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_no_metadata_make_a_sound_picture_unreadable(
    tmp_path_factory: pytest.TempPathFactory, odd: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "metadata"
    folder.mkdir(exist_ok=True)
    file, plain = jpeg(folder, segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + odd))
    assert sorted(read(file, "rgb").shape) == sorted(plain.shape)
    file = folder / "b.png"
    for name in (b"eXIf", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA", b"fcTL"):
        file.write_bytes(png(noise(6), 2, chunk(name, odd)))
        assert sorted(read(file, "rgb").shape) == [3, 20, 30]


@given(st.binary(max_size=200))
def test_nothing_of_a_file_is_lost_but_metadata(odd: bytes) -> None:
    for start in (metadata.PNG, metadata.JPEG):
        kept = metadata.bare(start + odd)
        assert kept.startswith(start[:2])
        assert len(kept) <= len(start + odd)


@pytest.mark.parametrize("content", [b"", b"GIF89a", metadata.PNG, metadata.JPEG, b"%!PS-Adobe"])
def test_what_is_no_image_is_told_by_its_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(content)
    line = refusal(lambda: read(file, "rgb"))
    assert line.startswith(f"{file} is not a readable image: ")
    assert "0x" not in line


def test_a_png_of_endless_content_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_MOST_BYTES", 1000)
    file = tmp_path / "a.png"
    file.write_bytes(png(noise(1), 2, chunk(b"tEXt", bytes(1000))))
    assert "it has more than 1,000 bytes" in refusal(lambda: read(file, "rgb"))


# Folders


def write(file: Path, seed: int = 0, kind: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(file, format=kind)
    return file


def test_what_was_taken_and_passed_over_is_one_line(tmp_path: Path) -> None:
    album = tmp_path / "album"
    for index in range(4):
        write(album / f"{index}.png", index)
    for index in range(3):
        write(album / f"{index}.jfif", index, "JPEG")
    for name in ("a.gif", "b.gif", "c.HEIC", "notes"):
        (album / name).touch()
    (album / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    write(album / ".trash.png")
    (album / ".DS_Store").touch()
    os.mkfifo(album / "pipe.png")
    write(album / "more" / "deep" / "1.png")
    write(album / ".cache" / "2.png")
    bank = load_photographs(album, PLAN, tmp_path / "cache")
    assert bank.taken == (
        f"photographs in {album}: 7 images taken; passed over: hidden images (1: .trash.png), "
        "dangling links (1: gone.jpg), entries that are no plain files (1: pipe.png), "
        "files of other kinds (4: 2 .gif, 1 .heic, 1 without a suffix), images in sub-folders (1)",
    )
    again = load_photographs(album, PLAN, tmp_path / "cache")
    assert (again.taken, again.fingerprint) == (bank.taken, bank.fingerprint)


def test_the_files_of_class_folders_are_counted_too(tmp_path: Path) -> None:
    flowers, others = tmp_path / "flowers", tmp_path / "others"
    for name in ("ash", "birch"):
        for index in range(3):
            write(flowers / name / f"{index}.png", index)
        write(others / name / "0.png")
    write(flowers / "loose.png")
    (flowers / "cedar").symlink_to(tmp_path / "nowhere")
    write(flowers / "ash" / "deeper" / "1.png")
    (others / "birch" / "1.gif").touch()
    bank = load_classes(
        flowers, color="rgb", size=8, validation=0.3, cache=tmp_path / "cache", test=others
    )
    assert bank.taken == (
        f"2 classes in {flowers}: 6 images taken; passed over: dangling links (1: cedar), "
        "images beside the sub-folders (1: loose.png), images in sub-folders (1)",
        f"test images in {others}: 2 images taken; passed over: files of other kinds (1: 1 .gif)",
    )


def test_a_folder_in_order_is_told_without_more(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / "album" / f"{index}.png", index)
    bank = load_photographs(tmp_path / "album", PLAN, tmp_path / "cache")
    assert bank.taken == (f"photographs in {tmp_path / 'album'}: 4 images taken",)


def test_without_an_image_what_was_passed_over_is_told(tmp_path: Path) -> None:
    album = tmp_path / "album"
    write(album / "deep" / "1.png")
    line = refusal(lambda: load_photographs(album, PLAN, tmp_path / "cache"))
    assert line == (
        f"no images in {album} (passed over: images in sub-folders (1)); "
        "put photographs (png, jpg, tif, ...) there"
    )


@pytest.mark.parametrize("kind", ["tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_other_kinds_are_turned_too(tmp_path: Path, kind: str, orientation: int) -> None:
    file = tmp_path / f"a.{kind}"
    told = Image.Exif()
    told[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(noise(4)).save(file, exif=told, **options)
    turned = Image.fromarray(noise(4))
    if orientation in metadata._TURNS:
        turned = turned.transpose(metadata._TURNS[orientation])
    np.testing.assert_array_equal(read(file, "rgb"), np.asarray(turned).transpose(2, 0, 1))


@given(st.binary(max_size=60))
@settings(max_examples=50)
def test_no_metadata_make_a_sound_webp_unreadable(
    tmp_path_factory: pytest.TempPathFactory, odd: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "odd.webp"
    Image.fromarray(noise(4)).save(file, lossless=True, exif=b"Exif\0\0" + odd, xmp=odd)
    assert sorted(read(file, "rgb").shape) == [3, 20, 30]
