"""The user's own images: a folder of photographs to denoise, or one sub-folder for each class."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from optimizer.errors import UsageError
from workers.bank import Arrays, Bank, Pixels, cached, key_of, stamps, stratified_split
from workers.images import CHANNELS, Color, decode, image_files, pixels, read, visible
from workers.patches import PatchPlan, Photograph, cut


def load_photographs(folder: Path, plan: PatchPlan, cache: Path) -> Bank:
    """Return a bank of patches of the folder's photographs; sub-folders are not searched.

    UsageError if the folder is missing or empty, or an image broken or too small.
    """
    files = image_files(folder)
    if not files:
        raise UsageError(f"no images in {folder}; put photographs (png, jpg, tif, ...) there")
    photographs = [Photograph(str(file), partial(read, file, plan.color)) for file in files]
    key = key_of(source="photographs", files=stamps(files), plan=asdict(plan))
    return cached(cache, key, f"photographs in {folder}", partial(cut, photographs, plan))


def load_classes(folder: Path, *, color: Color, size: int, validation: float, cache: Path) -> Bank:
    """Return a bank of size x size images, split by class.

    The sub-folders, in the order of their names, are the classes 0, 1, and so on. Of each image
    the largest central square is resized. UsageError if the folder is missing, has
    fewer than two classes, a class has fewer than two images, or an image is broken.
    """
    if size < 1:
        raise UsageError(f"size = {size} must be at least 1 pixel; raise it")
    files, labels = _labelled(folder)
    classes = labels[-1] + 1
    key = key_of(
        source="classes",
        files=stamps(files),
        labels=labels,
        color=color,
        size=size,
        validation=validation,
    )

    def build() -> Arrays:
        all_labels = np.array(labels, dtype=np.int64)
        training, held_out = stratified_split(all_labels, validation)
        return Arrays(
            train=_squares([files[index] for index in training], color, size),
            validation=_squares([files[index] for index in held_out], color, size),
            train_labels=all_labels[training],
            validation_labels=all_labels[held_out],
            classes=classes,
        )

    return cached(cache, key, f"{classes} classes in {folder}", build)


def _labelled(folder: Path) -> tuple[list[Path], list[int]]:
    groups = [entry for entry in visible(folder) if entry.is_dir()]
    if len(groups) < 2:
        raise UsageError(
            f"{folder} has {len(groups)} class folder(s) where classification needs at least 2; "
            "give each class a sub-folder of its images"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, group in enumerate(groups):
        members = image_files(group)
        if len(members) < 2:
            raise UsageError(
                f"class {group.name} in {folder} has {len(members)} image(s) where at least 2 are "
                "needed; add images or remove the sub-folder"
            )
        files += members
        labels += [label] * len(members)
    return files, labels


def _squares(files: list[Path], color: Color, size: int) -> Pixels:
    rows = np.empty((len(files), CHANNELS[color], size, size), dtype=np.uint8)
    for row, file in zip(rows, files, strict=True):
        image = decode(file, str(file), color)
        row[:] = pixels(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return rows
