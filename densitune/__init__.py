"""Weighted convolutions with a tuned density, for any project: needs torch and numpy only.

density        what a density is: profile, phi, RMS, validation, the published values; plain numbers
weighted_conv  the operator: weighted convolutions, folding
conversion     whole models: weight the convolutions that a density is for, or scale them
preset         what a study exports, read and applied to a model
treatment      what an arm of a study does to a model
choices        the words for that
run            one training of a script of the user's own
link           whom a run tells how it goes
repeatable     random numbers and settings by which it gives the same result again
settings       what a job may leave behind in a process, put back
child          the process that a study's worker runs it in
study          studies launched, followed and read, through the command `densitune`

The names of all stand here as well. Each is loaded when it is asked for, so that a program which
only reckons with densities does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densitune.conversion import apply_densities, left_alone, scale_initial_weights
    from densitune.density import (
        PUBLISHED,
        Densities,
        Density,
        Published,
        identity,
        length,
        nest,
        phi,
        profile,
        rms,
        validate,
    )
    from densitune.preset import Preset, load_preset
    from densitune.run import Run
    from densitune.study import Study, StudyError
    from densitune.weighted_conv import (
        PlainConv,
        WeightedConv,
        WeightedConv1d,
        WeightedConv2d,
        WeightedConv3d,
        fold_all,
    )

__all__ = [
    "PUBLISHED",
    "Densities",
    "Density",
    "PlainConv",
    "Preset",
    "Published",
    "Run",
    "Study",
    "StudyError",
    "WeightedConv",
    "WeightedConv1d",
    "WeightedConv2d",
    "WeightedConv3d",
    "apply_densities",
    "fold_all",
    "identity",
    "left_alone",
    "length",
    "load_preset",
    "nest",
    "phi",
    "profile",
    "rms",
    "scale_initial_weights",
    "validate",
]

_MODULES = ("density", "study", "weighted_conv", "conversion", "preset", "run")
"""In this order: the first two load no torch."""

if not TYPE_CHECKING:  # to type checkers it would say that any name exists

    def __getattr__(name: str) -> Any:
        """Return a public name from the module that has it."""
        if name in __all__:
            for module in _MODULES:
                defined = vars(import_module(f"densitune.{module}"))
                if name in defined:
                    return defined[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
