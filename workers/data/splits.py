"""Which items are trained on and which are held out for validation: the same for ever."""

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError
from workers.data.bank import Indices, Labels

SPLIT_SEED = 20_250_528
"""Fixes every train/validation split; no study seed changes it."""


def split(count: int, fraction: float) -> tuple[Indices, Indices]:
    """Return the indices, ascending, of the training and the validation items.

    max(1, round(fraction * count)) items are held out, always the same ones. UsageError if no
    training item would be left.
    """
    held_out = _held_out(count, fraction)
    if count - held_out < 1:
        raise UsageError(
            f"{count} images leave none to train on when {held_out} are held out for validation; "
            "give at least 2 images or lower the validation fraction"
        )
    order = np.argsort(random_integers(count, SPLIT_SEED), kind="stable")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def stratified_split(labels: Labels, fraction: float) -> tuple[Indices, Indices]:
    """Return a split as `split` does, in which each class keeps its share and is trained on.

    One item of every class, chosen at random, is never held out; UsageError if there are no
    others.
    """
    count = len(labels)
    random = random_integers(count, SPLIT_SEED)
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    grouped = np.lexsort((random, class_of))
    rank = np.empty(count, dtype=np.int64)  # of an item within its class, in random order
    rank[grouped] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    movable = count - len(sizes)
    held_out = min(_held_out(count, fraction), movable)
    if held_out < 1:
        raise UsageError(
            f"{count} images of {len(sizes)} classes leave nothing to validate on; "
            "give at least one class a second image"
        )
    # The highest relative ranks leave, so that every class gives about the same share.
    quantile = np.where(rank == 0, -1.0, (rank + 0.5) / sizes[class_of])
    order = np.lexsort((random, -quantile))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def random_integers(count: int, *seed: int) -> NDArray[np.uint64]:
    """Return `count` random 64-bit integers that no version of NumPy changes.

    NumPy keeps the raw stream of a bit generator for ever, but not the methods of Generator
    (NEP 19), and a split must outlive an upgrade.
    """
    return np.asarray(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count))


def _held_out(count: int, fraction: float) -> int:
    if not 0 < fraction < 1:
        raise UsageError(
            f"validation fraction {fraction} is not between 0 and 1; use for example 0.1"
        )
    return max(1, round(fraction * count))
