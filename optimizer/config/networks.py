"""The section `proxy` of a study's configuration: a network of a known family, or any by its name.

Unknown keys are errors. Defaults, units and descriptions stand here and nowhere else.
"""

import re
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from optimizer.config.choices import Goal
from optimizer.config.section import Section, Unit, check_plain
from optimizer.learning_rates import Family, Kind

SHAPES: dict[str, tuple[str, ...]] = {
    "torchvision": ("num_classes",),
    "timm": ("num_classes", "in_chans"),
}
"""Libraries whose networks are known by their names alone, and what they call what data decide. Of
all others a function is named."""
OURS = ("densitune", "optimizer", "storage", "workers")
"""What a network's package cannot be called, for it is imported beside ours."""
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_][\w./-]*", re.ASCII)


class ProxyShape(Section):
    """The small network that stands for the real one, of a known family."""

    family: Family
    """The kind of network: vgg and resnet classify, dncnn and nafnet denoise."""
    width: Annotated[int, Field(ge=1, le=1024), Unit("channels")]
    """How wide the first stage is."""
    depth: Annotated[int, Field(ge=1, le=200), Unit("layers or blocks")]
    """Layers of a vgg or dncnn (at least 3) or a resnet (6n + 2: 8, 14, 20), blocks of a nafnet."""

    def kind(self, classes: bool) -> Kind:
        """Return what the network is trained as, whatever the task."""
        return self.family

    def check_task(self, task: str, goal: Goal) -> None:
        """Raise ValueError if a network of this family is not for a task."""
        own: Goal = "classification" if self.family in ("vgg", "resnet") else "denoising"
        if goal not in (own, "own"):
            raise ValueError(
                f"proxy.family {self.family} is for {own}, but task {task} is {goal}; take "
                f"{'vgg or resnet' if goal == 'classification' else 'dncnn or nafnet'}, or a "
                f"network by name"
            )

    def check_sizes(self, count: int) -> None:
        """Raise ValueError if there are not as many stages to take kernel sizes in turn."""
        if count > self.stages:
            raise ValueError(
                f"kernel_size names {count} sizes, but a {self.family} of depth {self.depth} "
                f"has {self.stages} stages to take them; name at most {self.stages}"
            )

    @property
    def stages(self) -> int:
        """Return the number of stages, which take a list of kernel sizes in turn."""
        match self.family:
            case "vgg" | "resnet":
                return 3
            case "dncnn":
                return self.depth
            case "nafnet":
                return min(4, (self.depth - 1) // 2) + 1

    @model_validator(mode="after")
    def _depth_fits_the_family(self) -> Self:
        if self.family in ("vgg", "dncnn") and self.depth < 3:
            raise ValueError(
                f"proxy.depth {self.depth} is too small; a {self.family} has at least 3"
            )
        if self.family == "resnet" and (self.depth < 8 or self.depth % 6 != 2):
            raise ValueError(f"proxy.depth {self.depth} is not 6n + 2; a resnet has 8, 14, 20, ...")
        return self


class NamedNetwork(Section):
    """Any network, by its name: torchvision's, timm's or that of a function of your own."""

    network: str
    """`torchvision:NAME`, `timm:NAME`, or `PACKAGE.MODULE:FUNCTION` of your own code, where
    `FUNCTION(channels, classes, **kwargs)` returns the network (`classes` is null if there are
    none)."""
    kwargs: dict[str, JsonValue] = Field(default={})
    """What the network is made with beside channels and classes."""
    layers: tuple[str, ...] = ()
    """Which convolutions of the study's kernel sizes are weighted: patterns of their names such as
    `layer[34].*`; one with `!` before it leaves what it fits as it is. Without any, all are."""

    def kind(self, classes: bool) -> Kind:
        """Return what the network is trained as: what it is for."""
        return "classifier" if classes else "regressor"

    def check_task(self, task: str, goal: Goal) -> None:
        """Do nothing: whether a network fits the data is seen when it is tried on them."""

    def check_sizes(self, count: int) -> None:
        """Do nothing: which kernel sizes a network has is seen when it is built."""

    @field_validator("network")
    @classmethod
    def _can_be_imported(cls, network: str) -> str:
        if not NAME.fullmatch(network):
            raise ValueError(
                "a network is torchvision:NAME, timm:NAME or PACKAGE.MODULE:FUNCTION, such as "
                "torchvision:resnet18"
            )
        top = network.partition(":")[0].partition(".")[0]
        if top in OURS:
            raise ValueError(
                f"{top} is a package of densitune's own, and yours of that name would not be "
                f"found; rename it, or train by a script (data.entry), which has a process to "
                f"itself"
            )
        return network

    @field_validator("kwargs")
    @classmethod
    def _can_be_stored(cls, kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        check_plain(kwargs, "proxy.kwargs")
        return kwargs

    @model_validator(mode="after")
    def _shapes_are_the_datas(self) -> Self:
        library = self.network.partition(":")[0]
        for name in SHAPES.get(library, ("channels", "classes")):
            if name in self.kwargs:
                raise ValueError(f"proxy.kwargs.{name} follows from the data; leave it out")
        return self

    @field_validator("layers", mode="before")
    @classmethod
    def _one_or_more(cls, layers: Any) -> Any:
        return (layers,) if isinstance(layers, str) else layers

    @field_validator("layers")
    @classmethod
    def _fit_something(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        if not all(pattern.removeprefix("!") for pattern in layers):
            raise ValueError("an empty pattern fits nothing")
        return layers


def _which_proxy(section: Any) -> str:
    """Return the tag of the section that a mapping (or a section) belongs to."""
    values = section if isinstance(section, dict) else getattr(section, "__dict__", {})
    return "by name" if "network" in values else "of a family"


# Tags are no identifiers, so that messages can tell them from keys.
PROXY_BY_TAG: dict[str, type[Section]] = {"of a family": ProxyShape, "by name": NamedNetwork}
Proxy = Annotated[
    Annotated[ProxyShape, Tag("of a family")] | Annotated[NamedNetwork, Tag("by name")],
    Discriminator(_which_proxy),
]
