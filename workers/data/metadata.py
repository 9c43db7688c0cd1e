"""What a PNG or JPEG says beside its pixels: the orientation counts, and the rest may be odd.

Cameras and programs write comments, profiles and resolutions that make Pillow refuse a picture
whose pixels are sound. So it is given the pixels without them, and the orientation is read apart.
"""

import struct
from collections.abc import Callable, Iterator
from io import BytesIO

from PIL import ExifTags, Image

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# How programs write either into a PNG as text.
_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Part = tuple[bytes, bytes]
"""The name of a chunk or the marker of a segment, and all of its bytes."""


def bare(content: bytes) -> bytes:
    """Return a PNG or JPEG without what its pixels do not depend on."""
    if content.startswith(PNG):
        return _png(content, lambda name, _: name[:1].isupper() or name == b"tRNS")
    kept = (part for marker, part in _segments(content) if not _is_metadata(marker))
    return content[:2] + b"".join(kept)


def upright(image: Image.Image, content: bytes | None) -> Image.Image:
    """Return an image as it is to be looked at, by the metadata in it or in the file's content.

    Metadata that cannot be read turn nothing.
    """
    try:
        told = image if content is None else _carrier(content)
        turn = _TURNS.get(told.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # odd metadata make Pillow raise whatever they like
        turn = None
    return image if turn is None else image.transpose(turn)


def _carrier(content: bytes) -> Image.Image:
    """Return an image that has of a file nothing but what may tell the orientation."""
    carrier = Image.new("1", (1, 1))
    if content.startswith(PNG):
        with Image.open(BytesIO(_png(content, _may_turn)), formats=["PNG"]) as opened:
            carrier.info.update(opened.info)
        return carrier
    for marker, part in _segments(content):
        payload = part[4:]
        if marker == b"\xe1" and payload.startswith(_EXIF):
            before = carrier.info.get("exif")
            carrier.info["exif"] = payload if before is None else before + payload[len(_EXIF) :]
        elif marker == b"\xe1" and payload.startswith(_XMP):
            carrier.info["xmp"] = payload[len(_XMP) :]
    return carrier


def _may_turn(name: bytes, chunk: bytes) -> bool:
    if name in (b"tEXt", b"zTXt", b"iTXt"):
        return chunk[8:].startswith(_TEXTS)
    return name == b"eXIf" or (name[:1].isupper() and name != b"IDAT")


def _png(content: bytes, keep: Callable[[bytes, bytes], bool]) -> bytes:
    return PNG + b"".join(chunk for name, chunk in _chunks(content) if keep(name, chunk))


def _chunks(content: bytes) -> Iterator[Part]:
    """Yield the chunks of a PNG; what is none, or cut off, comes last, under a critical name."""
    place = len(PNG)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        name, end = content[place + 4 : place + 8], place + 12 + length
        if end > len(content) or not name.isalpha():
            yield b"REST", content[place:]
            return
        yield name, content[place:end]
        place = end


def _segments(content: bytes) -> Iterator[Part]:
    """Yield the segments of a JPEG up to its first scan, which comes last with all after it."""
    place = 2
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker = content[place + 1 : place + 2]
        (length,) = struct.unpack_from(">H", content, place + 2)
        if marker in _WITHOUT_LENGTH or place + 2 + length > len(content):
            break
        yield marker, content[place : place + 2 + length]
        place += 2 + length
    yield b"", content[place:]


_WITHOUT_LENGTH = (b"\xff", b"\x00", b"\x01", b"\xda", *(bytes([n]) for n in range(0xD0, 0xDA)))


def _is_metadata(marker: bytes) -> bool:
    """Tell whether a segment is a comment or an application's, but not JFIF's or Adobe's."""
    return marker == b"\xfe" or (b"\xe1" <= marker <= b"\xef" and marker != b"\xee")
