"""Which files of a folder are images, and what is passed over there, for people to see."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from optimizer.errors import UsageError

_SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
_NAMED = 3
"""How many of the files that were passed over are named."""
_MOST_BELOW = 10_000
"""How many files of a sub-folder are looked at."""
_OTHER, _UNIMPORTANT = "of other kinds", "hidden"


def image_files(folder: Path) -> list[Path]:
    """Return the folder's image files in the order of their names, hidden ones left out."""
    return [file for file in visible(folder) if _is_image(file) and os.path.isfile(file)]


def visible(folder: Path) -> list[Path]:
    """Return the folder's entries in the order of their names, hidden ones left out.

    UsageError if it is missing or cannot be read.
    """
    return [entry for entry in _entries(folder) if not entry.name.startswith(".")]


def told(what: str, taken: int, folders: Iterable[Path], parent: Path | None = None) -> str:
    """Return how many images were taken from folders, and what was passed over there and why.

    parent: holds the folders, and no images of its own are taken.
    """
    line = f"{what}: {taken:,} images taken"
    passed = passed_over(folders, parent)
    return f"{line}; passed over: {passed}" if passed else line


def passed_over(folders: Iterable[Path], parent: Path | None = None) -> str:
    """Return what is not taken of folders, and of their parent, as one line; empty if all is."""
    found: dict[str, list[str]] = defaultdict(list)
    kinds, below = Counter[str](), 0
    for entry in () if parent is None else _entries(parent):
        if not os.path.isdir(entry):
            found[_why_not(entry) or "images beside the sub-folders"].append(entry.name)
    for folder in folders:
        for entry in _entries(folder):
            if os.path.isdir(entry):
                below += _images_below(entry)
            elif why := _why_not(entry):
                found[why].append(entry.name)
    for name in found.pop(_OTHER, ()):
        kinds[Path(name).suffix.lower() or "without a suffix"] += 1
    found.pop(_UNIMPORTANT, None)
    parts = [f"{why} ({len(names):,}: {_some(names)})" for why, names in found.items()]
    if kinds:
        some = _some([f"{count:,} {kind}" for kind, count in kinds.most_common()])
        parts.append(f"files of other kinds ({kinds.total():,}: {some})")
    if below:
        more = " or more" if below >= _MOST_BELOW else ""
        parts.append(f"images in sub-folders ({below:,}{more})")
    return ", ".join(parts)


def _why_not(entry: Path) -> str | None:
    """Return why an entry that is no folder is not taken, None if it is."""
    hidden = entry.name.startswith(".")
    if os.path.islink(entry) and not os.path.exists(entry):
        return "dangling links"
    if not _is_image(entry):
        return _UNIMPORTANT if hidden else _OTHER
    if not os.path.isfile(entry):
        return "entries that are no plain files"
    return "hidden images" if hidden else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(
            f"cannot read the image folder {folder}: {error.strerror}; give an existing folder"
        ) from error


def _is_image(entry: Path) -> bool:
    return entry.suffix.lower() in _SUFFIXES


def _images_below(folder: Path) -> int:
    """Return how many images a folder that is not hidden and its own have, up to a bound."""
    if folder.name.startswith("."):
        return 0
    names = (name for _, _, names in os.walk(folder) for name in names)
    return sum(_is_image(Path(name)) for name in islice(names, _MOST_BELOW))


def _some(names: list[str]) -> str:
    """Return the first of several names."""
    more = len(names) - _NAMED
    shown = (name if name.isprintable() else ascii(name) for name in names[:_NAMED])
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
