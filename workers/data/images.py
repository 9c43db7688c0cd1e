"""Image files as arrays of pixels, with a line for people when a file cannot be used."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from optimizer.config.choices import Color
from optimizer.errors import UsageError
from workers.data.bank import Pixels

CHANNELS: dict[Color, int] = {"gray": 1, "rgb": 3}
_MODES: dict[Color, str] = {"gray": "L", "rgb": "RGB"}
_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
)
# Of the suffixes above. Left to itself Pillow goes by the content, and would hand PostScript that
# calls itself a .png to Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")


def image_files(folder: Path) -> list[Path]:
    """Return the folder's image files in the order of their names, hidden ones left out."""
    return [file for file in visible(folder) if file.suffix.lower() in _SUFFIXES and file.is_file()]


def visible(folder: Path) -> list[Path]:
    """Return the folder's entries in the order of their names, hidden ones left out.

    UsageError if it is missing or cannot be read.
    """
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(
            f"cannot read the image folder {folder}: {error.strerror}; give an existing folder"
        ) from error
    return sorted(entries, key=lambda entry: entry.name)


def decode(file: Path | BinaryIO, name: str, color: Color) -> Image.Image:
    """Decode one image completely, upright, in mode L (ITU-R 601 luma) or RGB.

    Transparency is dropped; of several frames the first counts. UsageError naming the image if it
    is broken, has more than 8 bits a channel, or is larger than Pillow's guard against
    decompression bombs (`Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to bother anyone
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as opened:
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                mode = upright.mode
                converted = upright.convert(_MODES[color])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UsageError(
            f"{name} has more than the {Image.MAX_IMAGE_PIXELS:,} pixels an image may have; "
            "shrink or remove it"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        raise UsageError(
            f"{name} is not a readable image: {error}; remove or replace it"
        ) from error
    if mode.startswith(("I", "F")):  # Pillow would clip these to 255
        raise UsageError(
            f"{name} has more than 8 bits a channel (mode {mode}); convert it to 8 bits"
        )
    return converted


def pixels(image: Image.Image) -> Pixels:
    """Return an L or RGB image as uint8 (C, H, W)."""
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def read(file: Path, color: Color) -> Pixels:
    """Return an image file as uint8 (C, H, W); UsageError as `decode`."""
    return pixels(decode(file, str(file), color))
