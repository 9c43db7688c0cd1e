"""Choices of a study's file that training knows as well: plain words, no models."""

from typing import Literal

Goal = Literal["classification", "denoising", "own"]
"""What a task asks of a network; `own` is by a loss and a metric of the user's."""
Color = Literal["gray", "rgb"]
Direction = Literal["maximize", "minimize"]
LabelKind = Literal["fine", "coarse"]
"""CIFAR-100's 100 classes, or the 20 groups of them."""
