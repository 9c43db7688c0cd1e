"""Networks by name, as a study has them: those of support.networks, of torchvision and of timm."""

from dataclasses import replace
from typing import Any

from support.checkout import ROOT
from workers.networks.named import Network


def network(name: str, kwargs: str = "{}", **changes: Any) -> Network:
    usual = Network(
        name=name if ":" in name else f"support.networks:{name}",
        kwargs=kwargs,
        layers=(),
        kernel_sizes=(3,),
        channels=1,
        classes=4,
        kind="classifier",
        code="",
        place=ROOT / "tests",
    )
    return replace(usual, **changes)
