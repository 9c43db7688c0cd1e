"""What a network has to beat before its differences mean anything: the best that is linear.

Both are least squares in closed form: no random numbers, no steps, nothing to tune. Shapes: N
images, C channels, H x W pixels, F features of an image.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workers.data.bank import Bank, Indices, Pixels
from workers.data.splits import random_integers
from workers.training.tasks import Task

SIDE = 16
"""Images are averaged to at most SIDE x SIDE pixels for the classifier, which has to be solved in
seconds: finer pixels of photographs add little that is linear in them."""
IMAGES = 50_000
"""Training images of the classifier at most: three tables of 150 MB with three channels."""
PATCHES = 1_024
"""Training patches of the filter at most: a million pixels for the usual side of 40, and the
filter has 81 weights at most."""
PENALTIES = 10.0 ** np.arange(-5, 1)
"""Ridge penalties that are tried, as shares of the largest eigenvalue: from next to none to one
that leaves only what most pixels have in common."""
_SAMPLE_SEED = 20_250_530
"""Fixes which images and patches are taken where there are more."""

Array = NDArray[np.float32]


def linear_classifier(bank: Bank) -> float:
    """Return the top-1 accuracy in % that a linear classifier of pixels has on validation images.

    Ridge regression on the classes' indicators (Hastie, Tibshirani & Friedman 2009, section 4.2),
    the largest output wins. ValueError if the bank has no labels.
    """
    if bank.train_labels is None or bank.validation_labels is None or bank.classes is None:
        raise ValueError(f"the bank of {bank.source} has no labels")
    chosen = _sample(len(bank.train), IMAGES)
    images, validation = _features(bank.train[chosen]), _features(bank.validation)
    centre = images.mean(axis=0)
    indicators = np.eye(bank.classes, dtype=np.float32)[bank.train_labels[chosen]]
    shares = indicators.mean(axis=0)
    weights = ridge(images - centre, indicators - shares)
    guessed = ((validation - centre) @ weights + shares).argmax(axis=1)
    return 100.0 * float(np.mean(guessed == bank.validation_labels))


def ridge(inputs: Array, targets: Array) -> Array:
    """Return the weights (F, K) with which centred inputs (N, F) predict centred targets (N, K).

    Of PENALTIES the one with the least squared error on targets left out one at a time, in closed
    form: e / (1 - h) with h an input's leverage (Allen 1974), that of the intercept 1/N included.
    """
    values, axes = np.linalg.eigh(inputs.T @ inputs)
    turned = inputs @ axes
    aimed = turned.T @ targets
    leverages = np.square(turned)

    def left_out(penalty: float) -> float:
        kept = 1 / (values + penalty)
        errors = targets - turned @ (kept[:, None] * aimed)
        rest = 1 - 1 / len(inputs) - leverages @ kept
        return float(np.square(errors / np.maximum(rest, 1e-6)[:, None]).sum())

    largest = max(float(values[-1]), 1e-6)  # of images that are all alike, it is zero
    penalty = min(largest * PENALTIES, key=left_out)
    weights: Array = axes @ (aimed / (values + penalty)[:, None])
    return weights


def linear_filter(task: Task, bank: Bank, sigma: float) -> float:
    """Return the PSNR in dB that the best linear 3 x 3 filter has on the task's validation images.

    Noise of standard deviation sigma/255; images are reflected at their edges.
    """
    channels = bank.train.shape[1]
    network = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)
    patches = bank.train[_sample(len(bank.train), PATCHES)]
    with torch.no_grad():
        network.weight.copy_(best_filter(patches, sigma))
        return task.evaluate(network).value


def best_filter(patches: Pixels, sigma: float) -> Tensor:
    """Return the weights (C, C, 3, 3) that restore patches (N, C, H, W) from white noise best.

    Least squares over all noise there could be, so that none is drawn: for neighbourhoods p and
    noise n of variance v, E[(p + n)(p + n)^T] = E[p p^T] + v I and E[(p + n) c] = E[p c], and the
    clean centre c is a part of p (Wiener 1949, for a finite filter).
    """
    channels = patches.shape[1]
    moments = torch.zeros(9 * channels, 9 * channels, dtype=torch.float64)
    for patch in patches:
        clean = torch.tensor(patch, dtype=torch.float64)[None] / 255
        neighbourhoods = F.unfold(clean, 3)[0]  # (9 C, pixels), those inside
        moments += neighbourhoods @ neighbourhoods.T / neighbourhoods.shape[1]
    moments /= len(patches)
    noise = (sigma / 255) ** 2 * torch.eye(9 * channels, dtype=torch.float64)
    centres = moments[:, 4::9]
    weights: Tensor = torch.linalg.solve(moments + noise, centres)
    return weights.T.reshape(channels, channels, 3, 3)


def _features(images: Pixels) -> Array:
    """Return images as rows (N, F) of averaged pixels in [0, 1]."""
    side = min(SIDE, *images.shape[2:])
    parts = [
        F.adaptive_avg_pool2d(torch.tensor(part).float() / 255, side).flatten(1)
        for part in np.array_split(images, range(1_000, len(images), 1_000))
    ]
    features: Array = torch.cat(parts).numpy()
    return features


def _sample(count: int, most: int) -> Indices:
    """Return at most so many of the indices 0 to count - 1, ascending, always the same ones."""
    order = np.argsort(random_integers(count, _SAMPLE_SEED), kind="stable")
    return np.sort(order[:most])
