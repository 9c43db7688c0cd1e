"""The user's own images: a folder of photographs to denoise, or one sub-folder for each class.

A second folder of the same kind may be given as the test split.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from optimizer.config.choices import Color
from optimizer.errors import UsageError
from workers.data.bank import Arrays, Bank, Held, Pixels, cached, key_of
from workers.data.images import CHANNELS, decode, image_files, pixels, read, visible
from workers.data.patches import PatchPlan, Photograph, crops, cut
from workers.data.sources import stamps
from workers.data.splits import stratified_split


def load_photographs(folder: Path, plan: PatchPlan, cache: Path, test: Path | None = None) -> Bank:
    """Return a bank of patches of the folder's photographs; sub-folders are not searched.

    Of the photographs in `test` the central crops are the test split. UsageError if a folder is
    missing or empty, both are the same, or an image is broken or too small.
    """
    files = _photographs(folder)
    held = None if test is None else _photographs(_other(test, folder))
    key = key_of(
        source="photographs",
        files=stamps(files),
        plan=asdict(plan),
        test=None if held is None else stamps(held),
    )
    return cached(
        cache,
        key,
        f"photographs in {folder}",
        lambda: cut(_readable(files, plan), plan),
        None if held is None else lambda: Held(crops(_readable(held, plan), plan)),
    )


def load_classes(
    folder: Path,
    *,
    color: Color,
    size: int,
    validation: float,
    cache: Path,
    test: Path | None = None,
) -> Bank:
    """Return a bank of size x size images, split by class.

    The sub-folders, in the order of their names, are the classes 0, 1, and so on. Of each image
    the largest central square is resized. In `test` the sub-folders have the same names; a class
    may be missing there. UsageError if a folder is missing, both are the same, there are fewer than
    two classes, a class has fewer than two images (none in `test`), `test` has other classes, or an
    image is broken.
    """
    if size < 1:
        raise UsageError(f"size = {size} must be at least 1 pixel; raise it")
    groups = _classes(folder)
    files, labels = _labelled(groups, least=2)
    held = None if test is None else _tested(_other(test, folder), groups)
    key = key_of(
        source="classes",
        files=stamps(files),
        labels=labels,
        color=color,
        size=size,
        validation=validation,
        test=None if held is None else [stamps(held[0]), held[1]],
    )

    def build() -> Arrays:
        all_labels = np.array(labels, dtype=np.int64)
        training, held_out = stratified_split(all_labels, validation)
        return Arrays(
            train=_squares([files[index] for index in training], color, size),
            validation=_squares([files[index] for index in held_out], color, size),
            train_labels=all_labels[training],
            validation_labels=all_labels[held_out],
            classes=len(groups),
        )

    return cached(
        cache,
        key,
        f"{len(groups)} classes in {folder}",
        build,
        None if held is None else partial(_test_squares, *held, color, size),
    )


def _other(test: Path, folder: Path) -> Path:
    if test.resolve() == folder.resolve():
        raise UsageError(
            f"test = {test} is the folder that is trained on; give one with images of its own"
        )
    return test


def _photographs(folder: Path) -> list[Path]:
    files = image_files(folder)
    if not files:
        raise UsageError(f"no images in {folder}; put photographs (png, jpg, tif, ...) there")
    return files


def _readable(files: Sequence[Path], plan: PatchPlan) -> list[Photograph]:
    return [Photograph(str(file), partial(read, file, plan.color)) for file in files]


def _classes(folder: Path) -> list[Path]:
    groups = [entry for entry in visible(folder) if entry.is_dir()]
    if len(groups) < 2:
        raise UsageError(
            f"{folder} has {len(groups)} class folder(s) where classification needs at least 2; "
            "give each class a sub-folder of its images"
        )
    return groups


def _labelled(groups: Sequence[Path], least: int) -> tuple[list[Path], list[int]]:
    """Return the images of class folders, and to which of the folders each belongs."""
    files: list[Path] = []
    labels: list[int] = []
    for label, group in enumerate(groups):
        members = image_files(group)
        if len(members) < least:
            raise UsageError(
                f"class {group.name} in {group.parent} has {len(members)} image(s) where at least "
                f"{least} are needed; add images or remove the sub-folder"
            )
        files += members
        labels += [label] * len(members)
    return files, labels


def _tested(test: Path, classes: Sequence[Path]) -> tuple[list[Path], list[int]]:
    """Return the images of the test folder, and their places among the classes trained on."""
    names = [group.name for group in classes]
    groups = [entry for entry in visible(test) if entry.is_dir()]
    foreign = [group.name for group in groups if group.name not in names]
    if foreign or not groups:
        found = f"class {foreign[0]}, which is not trained on" if foreign else "no class folder"
        raise UsageError(
            f"{test} has {found}; name its sub-folders as those of {classes[0].parent}"
        )
    files, places = _labelled(groups, least=1)
    return files, [names.index(groups[place].name) for place in places]


def _test_squares(files: list[Path], labels: list[int], color: Color, size: int) -> Held:
    return Held(_squares(files, color, size), np.array(labels, dtype=np.int64))


def _squares(files: list[Path], color: Color, size: int) -> Pixels:
    rows = np.empty((len(files), CHANNELS[color], size, size), dtype=np.uint8)
    for row, file in zip(rows, files, strict=True):
        image = decode(file, str(file), color)
        row[:] = pixels(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return rows
