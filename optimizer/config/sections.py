"""The sections of a study's configuration, one model each.

Those of the data are in `tasks`, those of the network in `networks`.

Unknown keys are errors. Defaults, units and descriptions stand here and nowhere else.
"""

from typing import Annotated, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    FiniteFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from optimizer.arms import Part, Precision
from optimizer.config.networks import Proxy
from optimizer.config.section import Section, Unit

Values = tuple[float, ...]
# Tags are no identifiers, so that messages can tell them from keys.
Included = Annotated[
    Annotated[Values, Tag("a list")] | Annotated[dict[int, Values], Tag("a mapping")],
    Discriminator(lambda value: "a mapping" if isinstance(value, dict) else "a list"),
]


class Box(Section):
    """The search box, the same for every value of every density."""

    low: Annotated[FiniteFloat, Field(gt=0), Unit("times the centre")] = 0.05
    """The least value that the search tries."""
    high: Annotated[FiniteFloat, Field(gt=0), Unit("times the centre")] = 2.0
    """The largest value that the search tries."""
    include: tuple[Included, ...] = ()
    """Densities to train right after the published ones, also outside the box: `[0.3, 0.7]`, or
    with several kernel sizes `{3: [0.7], 5: [0.3, 0.7]}`."""

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"density.low {self.low} is not below density.high {self.high}")
        return self


class Training(Section):
    """How every proxy is trained."""

    budget: Annotated[int, Field(ge=1, le=10_000), Unit("epochs")]
    """How long each job of the calibration and of the search is trained, if it is not cut."""
    batch_size: Annotated[int, Field(ge=1, le=65_536), Unit("images")] = 128
    """Images (of a classifier) or patches (of a denoiser) in a step."""
    lr: Annotated[
        Annotated[FiniteFloat, Field(gt=0)] | Literal["auto", "none"], Unit("per step")
    ] = "auto"
    """Peak of the learning rate; auto is calibrated on identity before the search, and none leaves
    it to a script."""
    usual_lr: Annotated[Annotated[FiniteFloat, Field(gt=0)] | None, Unit("per step")] = None
    """The middle of the rates that auto tries; null is what the proxy's family is usually trained
    with."""
    precision: Literal["auto", Precision] = "auto"
    """Arithmetic of the networks. full is float32; auto takes bfloat16 where the device that
    launches the study gains by it, and the whole study keeps to that."""


class Search(Section):
    """How densities are proposed."""

    sampler: Literal["auto", "tpe", "gp", "cmaes", "direct", "qmc", "grid", "random"] = "auto"
    """What proposes densities (docs/method.md has a table)."""
    trials: Annotated[int, Field(ge=1, le=100_000), Unit("trials")]
    """How many densities are trained in all, identity and the published ones included."""
    seeds: Annotated[int, Field(ge=1, le=100), Unit("seeds")] = 2
    """How many times each density is trained; every density with the same seeds."""
    rungs: Annotated[tuple[PositiveInt, ...], Unit("epochs")] = ()
    """After how many, below the budget, a job is measured as well, and its trial perhaps cut; of
    classifiers, what is seen before half the budget says next to nothing about the end."""
    keep: Annotated[FiniteFloat, Field(gt=0, le=1), Unit("share of trials")] = 0.25
    """What goes on at each rung, and to further seeds; 1 cuts nothing."""
    in_flight: Annotated[int, Field(ge=1, le=1024), Unit("trials")] = 8
    """How many are open at once; it bounds the number of busy workers."""
    seed: Annotated[int, Field(ge=0, lt=1_000_000), Unit("any number")] = 0
    """Fixes proposals, initial weights, batches and noise."""


class Confirm(Section):
    """How the search's finalists are confirmed, with fresh seeds (docs/evidence.md)."""

    finalists: Annotated[int, Field(ge=1, le=10), Unit("densities")] = 3
    """How many densities are confirmed, at most."""
    seeds: Annotated[int, Field(ge=2, le=1000), Unit("seeds")] = 36
    """With how many fresh seeds each arm is trained, at most."""
    batch: Annotated[int, Field(ge=2, le=1000), Unit("seeds")] = 6
    """Between two looks at the evidence; an arm that is judged gets no more."""
    keep: Annotated[tuple[PositiveInt, ...], Unit("finalists")] = (2, 1)
    """How many of the undecided go on after the first look, the second and so on, the best by
    their differences so far; the last number holds for all later looks, and `[]` drops none."""
    budget: Annotated[Annotated[int, Field(gt=0, le=1_000_000)] | None, Unit("epochs")] = None
    """How long each job is trained; null is twice training.budget."""
    trainable: bool = False
    """Whether densities are also learned by gradient, and confirmed as one more finalist."""
    compensated: bool = False
    """Whether a finalist that is above identity is also trained from identity's initial scale; it
    informs and has no part in the verdict."""
    rates: Literal["auto", "always", "never"] = "auto"
    """Whether identity, the winner and its controls are trained once more, each at the best of
    rates of its own; auto does so after a `better`. The verdict does not depend on it."""
    arms: tuple[Part, ...] = ()
    """Which of the winner's two effects are trained alone after the verdict: `init_only` is a plain
    convolution that starts at phi times its weights, `steps_only` a weighted one that starts at
    weights divided by phi. With both, the report has main effects and interaction."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.seeds % self.batch:
            below = self.seeds // self.batch * self.batch
            raise ValueError(
                f"confirm.seeds {self.seeds} is not a multiple of confirm.batch {self.batch}; take "
                f"{f'{below} or ' if below else ''}{below + self.batch}"
            )
        return self

    @field_validator("arms")
    @classmethod
    def _each_once(cls, arms: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(arms)) < len(arms):
            raise ValueError(f"{list(arms)} names an arm twice; take {sorted(set(arms))}")
        return arms

    @field_validator("keep")
    @classmethod
    def _never_more(cls, keep: tuple[int, ...]) -> tuple[int, ...]:
        if list(keep) != sorted(keep, reverse=True):
            raise ValueError(
                f"{list(keep)} rises; what was dropped does not come back, so take "
                f"{sorted(keep, reverse=True)}"
            )
        return keep


class Audit(Section):
    """Whether it carries over: a larger network that is trained after the verdict."""

    proxy: Proxy
    """The larger network: of a family, or any by its name."""
    budget: Annotated[int, Field(ge=1, le=1_000_000), Unit("epochs")]
    """How long each of its jobs is trained: full length."""
    lr: Annotated[Annotated[FiniteFloat, Field(gt=0)] | Literal["auto"], Unit("per step")] = "auto"
    """Peak of its learning rate, for all arms; auto is calibrated on identity of this network."""
    seeds: Annotated[int, Field(ge=2, le=100), Unit("seeds")] = 4
    """With how many fresh seeds each arm is trained."""
    arms: Annotated[int, Field(ge=8, le=100), Unit("densities")] = 12
    """How many densities are trained beside identity: the winner, the search's best, the published
    ones, and others from the whole range of what the search saw."""
