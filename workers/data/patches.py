"""Patches of photographs to train on and crops to judge on, for denoising."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.config.choices import Color
from optimizer.errors import UsageError
from workers.data.bank import Arrays, Pixels
from workers.data.images import CHANNELS
from workers.data.splits import random_integers, split

PATCH_SEED = 20_250_529
"""Fixes where patches lie; no study seed changes it."""


@dataclass(frozen=True)
class PatchPlan:
    """How photographs become training patches and validation crops."""

    color: Color
    size: int
    """Side of a training patch, pixels."""
    per_image: int
    """Training patches cut from each training image."""
    validation: float
    """Fraction of the images that is held out."""
    crop: int
    """Side of the central crop of each held-out image, pixels."""

    def __post_init__(self) -> None:
        # The names are those of a study's file, where users meet these numbers.
        for setting, value in (
            ("patch", self.size),
            ("patches_per_image", self.per_image),
            ("crop", self.crop),
        ):
            if value < 1:
                raise UsageError(f"{setting} = {value} must be at least 1; raise it")


@dataclass(frozen=True)
class Photograph:
    """A photograph that is decoded, to uint8 (C, H, W), only when it is its turn."""

    name: str
    read: Callable[[], Pixels]


def cut(photographs: Sequence[Photograph], plan: PatchPlan) -> Arrays:
    """Split by photograph, never by patch, and cut patches and crops out of one at a time.

    Returns train (photographs * per_image, C, size, size) and validation (M, C, crop, crop). Where
    a photograph's patches lie depends on its place in the sequence only. UsageError if there are
    fewer than two photographs or one is smaller than what is cut from it.
    """
    if len(photographs) < 2:
        raise UsageError(
            f"{len(photographs)} photograph(s) found where training and validation need at least "
            "2; add more"
        )
    training, held_out = split(len(photographs), plan.validation)
    train = _room(len(training) * plan.per_image, plan.size, plan)
    for row, index in enumerate(training):
        rows = train[row * plan.per_image : (row + 1) * plan.per_image]
        _random_patches(_large_enough(photographs[index], "patch", plan.size), int(index), rows)
    return Arrays(train, crops([photographs[index] for index in held_out], plan))


def crops(photographs: Sequence[Photograph], plan: PatchPlan) -> Pixels:
    """Return the central crop of every photograph, to judge on: (photographs, C, crop, crop).

    UsageError if one is smaller than that.
    """
    found = _room(len(photographs), plan.crop, plan)
    for row, photograph in zip(found, photographs, strict=True):
        image = _large_enough(photograph, "crop", plan.crop)
        top, left = ((side - plan.crop) // 2 for side in image.shape[1:])
        row[:] = image[:, top : top + plan.crop, left : left + plan.crop]
    return found


def _room(count: int, side: int, plan: PatchPlan) -> Pixels:
    shape = (count, CHANNELS[plan.color], side, side)
    try:
        return np.empty(shape, dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise UsageError(
            f"{count:,} patches of {side}x{side} need {np.prod(shape, dtype=float) / 2**30:,.0f} "
            "GiB of memory; lower patches_per_image or patch"
        ) from error


def _large_enough(photograph: Photograph, setting: str, side: int) -> Pixels:
    image = photograph.read()
    height, width = image.shape[1:]
    if min(height, width) < side:
        raise UsageError(
            f"{photograph.name} is {width}x{height} pixels, smaller than {setting} = {side}; "
            f"lower {setting} to at most {min(height, width)} or remove the image"
        )
    return image


def _random_patches(image: Pixels, index: int, rows: Pixels) -> None:
    """Fill rows, (patches, C, size, size), from uniformly random positions."""
    size = rows.shape[-1]
    height, width = image.shape[1:]
    random = random_integers(2 * len(rows), PATCH_SEED, index).reshape(-1, 2)
    for row, (y, x) in zip(rows, random, strict=True):
        top, left = int(y) % (height - size + 1), int(x) % (width - size + 1)
        row[:] = image[:, top : top + size, left : left + size]
