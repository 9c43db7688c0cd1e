"""Presets: what a study exports, read and applied to a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from densitune import conversion
from densitune.conversion import _Init, _WeightedInit
from densitune.density import Densities

_SCHEMA = "densitune/preset/1"
_MOST_BYTES = 2**20
_INIT: Mapping[str, _WeightedInit] = {
    "library": "library",
    "model": "keep",
    "compensated": "compensated",
}
"""What draws weights here as a study with this `init` draws them."""


@dataclass(frozen=True)
class Preset:
    """What a study found, and how it trained."""

    densities: Densities
    """By kernel size."""
    init: _WeightedInit
    """How the study drew the initial weights of weighted convolutions: `keep` if it left that to
    the network."""
    verdict: str
    """What is known of the density: `better`, `scale_only`, ... (docs/evidence.md)."""
    advice: str
    """What to do about it, in one line; empty in presets of early versions."""
    document: Mapping[str, Any] = field(repr=False)
    """The whole file."""

    def apply(
        self,
        model: nn.Module,
        *,
        init: _WeightedInit | None = None,
        trainable: bool = False,
        layers: str | Sequence[str] = (),
    ) -> nn.Module:
        """Weight, in place, the convolutions of the preset's sizes, as `apply_densities` does.

        Initial weights are drawn as the study drew them, unless `init` says otherwise: `keep` for a
        model that is trained already. layers: patterns of the names of those that are weighted.
        """
        return conversion.apply_densities(
            model, self.densities, trainable=trainable, init=init or self.init, layers=layers
        )

    def scale_initial_weights(self, model: nn.Module, *, init: _Init | None = None) -> nn.Module:
        """Give plain convolutions of the preset's sizes, in place, the density's start alone.

        As `scale_initial_weights` of this package does; once, before training. Weights are drawn
        first as the study's identity drew them, unless `init` says otherwise. ValueError for a
        preset whose density starts at the scale of a plain convolution (`init: compensated`).
        """
        if self.init == "compensated":
            raise ValueError(
                "the study has init: compensated, so its density starts at the scale of the plain "
                "convolution: there is nothing to multiply; draw the weights of the plain one as "
                "they are"
            )
        init = init or ("keep" if self.init == "keep" else "library")
        return conversion.scale_initial_weights(model, self.densities, init=init)


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; ValueError if it names a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it gives a key twice")
    return found


def load_preset(path: str | PathLike[str]) -> Preset:
    """Read a preset; ValueError if the file is none, OSError if it cannot be read.

    Only what is used here is checked; `densitune verify` checks the whole file.
    """
    with Path(path).open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES} bytes: no preset")
    try:
        document = json.loads(content, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no preset: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
        raise ValueError(f"{path} is no preset of schema {_SCHEMA}; export one with densitune")
    try:
        densities = conversion._by_size(document["densities"])
        if not densities:
            raise ValueError("it has no densities")
        init, evidence = document["task"]["init"], document["evidence"]
        if init not in _INIT:
            raise ValueError(f"init is {init!r}, not {', '.join(_INIT)}")
        verdict, advice = evidence["verdict"], evidence.get("advice", "")
        if not isinstance(verdict, str) or not isinstance(advice, str):
            raise ValueError(f"verdict {verdict!r} and advice {advice!r} are not both texts")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged preset: {error}") from None
    return Preset(densities, _INIT[init], verdict, advice, document)
