"""Image files as arrays of pixels, with a line for people when a file cannot be used."""

import warnings
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile

from optimizer.config.choices import Color
from optimizer.errors import UsageError
from workers.data import metadata
from workers.data.bank import Pixels

CHANNELS: dict[Color, int] = {"gray": 1, "rgb": 3}
_MODES: dict[Color, str] = {"gray": "L", "rgb": "RGB"}
_MOST_BYTES = 2**30
"""Of a PNG or JPEG, which is read as a whole: three times the pixels of the largest image."""
# Of the suffixes in `listing`. Left to itself Pillow goes by the content, and would hand PostScript
# that calls itself a .png to Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")


def decode(file: Path | BinaryIO, name: str, color: Color) -> Image.Image:
    """Decode one image completely, upright, in mode L (ITU-R 601 luma) or RGB.

    Transparency is dropped; of several frames the first counts. UsageError naming the image if it
    is broken, has more than 8 bits a channel, or is larger than Pillow's guard against
    decompression bombs (`Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # odd metadata is no reason to bother anyone
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
            content = _content(stream)
            pixels = stream if content is None else BytesIO(metadata.bare(content))
            opened = stack.enter_context(Image.open(pixels, formats=_FORMATS))
            _refuse_other_depths(opened, name)
            opened.load()
            return metadata.upright(opened, content).convert(_MODES[color])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UsageError(
            f"{name} has more than the {Image.MAX_IMAGE_PIXELS:,} pixels an image may have; "
            "shrink or remove it"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"its content is no {', '.join(_FORMATS)}" if unknown else error
        raise UsageError(
            f"{name} is not a readable image: {reason}; remove or replace it"
        ) from error


def _content(stream: BinaryIO) -> bytes | None:
    """Return all of a PNG or JPEG; None, with the stream at its start, of other kinds."""
    start = stream.read(len(metadata.PNG))
    stream.seek(0)
    if not start.startswith((metadata.PNG, metadata.JPEG)):
        return None
    content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return content


def _refuse_other_depths(opened: Image.Image, name: str) -> None:
    """Raise UsageError where Pillow would cut or clip samples to 8 bits, or mistake their sign."""
    found = None
    if opened.mode.startswith(("I", "F")):
        found = f"mode {opened.mode}"
    elif isinstance(opened, TiffImageFile):
        bits, kinds = (opened.tag_v2.get(tag, (1,)) for tag in (BITSPERSAMPLE, SAMPLEFORMAT))
        if set(kinds) - {1, 4}:
            raise UsageError(f"{name} has samples with a sign; convert them to 0 to 255")
        found = f"{max(bits)} bits" if max(bits) > 8 else None
    elif isinstance(opened, ImageFile) and opened.tile:
        match opened.tile[0].args:
            case str(layout) if opened.format == "PNG" and ";16" in layout:
                found = f"mode {layout}"
            case (_, int(most)) if opened.format == "PPM" and most > 255:
                found = f"values up to {most}"
    if found:
        raise UsageError(f"{name} has more than 8 bits a channel ({found}); convert it to 8 bits")


def pixels(image: Image.Image) -> Pixels:
    """Return an L or RGB image as uint8 (C, H, W)."""
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def read(file: Path, color: Color) -> Pixels:
    """Return an image file as uint8 (C, H, W); UsageError as `decode`."""
    return pixels(decode(file, str(file), color))
