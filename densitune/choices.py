"""What an arm of a study does to a model, in words: plain ones, for those who know no torch."""

from typing import Literal

Mask = Literal["density", "uniform", "ones"]
"""What multiplies the kernel: phi itself, RMS(phi) at every tap, or nothing."""
Start = Literal["drawn", "times_phi", "over_phi"]
"""Initial weights as they are drawn, multiplied by phi, or divided by it."""
Init = Literal["library", "model", "compensated"]
"""As the layer library draws initial weights, as the network itself does, or as the library does
and divided by RMS(phi) after that."""
