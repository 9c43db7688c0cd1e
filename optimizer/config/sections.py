"""The sections of a study's configuration, one model each.

Unknown keys are errors. Defaults stand here and nowhere else.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from optimizer.arms import Precision
from optimizer.config.choices import Color, LabelKind
from optimizer.learning_rates import Family

Goal = Literal["classification", "denoising"]
Share = Annotated[float, Field(gt=0, lt=1)]
Values = tuple[float, ...]
# Tags are no identifiers, so that messages can tell them from keys.
Included = Annotated[
    Annotated[Values, Tag("a list")] | Annotated[dict[int, Values], Tag("a mapping")],
    Discriminator(lambda value: "a mapping" if isinstance(value, dict) else "a list"),
]


class Section(BaseModel):
    """A part of the file; unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what Python would take for 0 or 1."""
        field = cls.model_fields[str(info.field_name)]
        if field.annotation is not bool and _has_boolean(value):
            raise ValueError("a boolean has no place here, and to YAML yes, no, on, off are some")
        return value


def _has_boolean(value: Any) -> bool:
    """Tell whether a value is a boolean or a list with one; sections look into themselves."""
    if isinstance(value, list | tuple):
        return any(
            _has_boolean([*item.keys(), *item.values()] if isinstance(item, dict) else item)
            for item in value
        )
    return isinstance(value, bool)


class ClassificationData(Section):
    """What all classification data have in common."""

    goal: ClassVar[Goal] = "classification"


class DenoisingData(Section):
    """What all denoising data have in common: white Gaussian noise on patches of photographs."""

    goal: ClassVar[Goal] = "denoising"

    color: Color = "gray"
    sigma: Annotated[FiniteFloat, Field(gt=0, le=255)] = 25.0
    """Standard deviation of the noise on the 0-255 scale."""
    patch: Annotated[int, Field(ge=8, le=512)] = 40
    """Side of a training patch, pixels."""
    patches_per_image: Annotated[int, Field(gt=0, le=1_000_000)] = 64
    crop: Annotated[int, Field(ge=16, le=4096)] = 128
    """Side of the central crop that is judged of each validation image, pixels."""
    validation: Share = 0.2
    """Share of the images that is held out."""


class Cifar100Data(ClassificationData):
    """CIFAR-100; torchvision downloads it, and densitune reads it."""

    has_test: ClassVar[bool] = True

    task: Literal["cifar100"]
    folder: Path | None = None
    """Where cifar-100-python lies or goes; without it, the data folder of densitune's home."""
    download: bool = True
    verify: bool = True
    """False accepts a partial copy, whose MD5 sums differ."""
    labels: LabelKind = "fine"
    validation: Share = 0.1
    """Share of the training split that is held out; the test split is read once, after the
    verdict."""


class Div2kData(DenoisingData):
    """DIV2K's high-resolution images; the official validation images are the test split."""

    has_test: ClassVar[bool] = True

    task: Literal["div2k"]
    folder: Path | None = None
    """Where the archives lie or go; without it, the data folder of densitune's home."""
    download: bool = True
    verify: bool = True
    """False accepts an archive whose MD5 sum differs."""
    color: Color = "rgb"
    validation: Share = 0.1


class PhotosData(DenoisingData):
    """The photographs that come with scikit-image: nothing to download, but no test split."""

    has_test: ClassVar[bool] = False

    task: Literal["photos"]


class FolderPhotographs(DenoisingData):
    """A folder of the user's own images, for denoising."""

    task: Literal["folder"]
    kind: Literal["photographs"] = "photographs"
    folder: Path
    test: Path | None = None
    """Another folder of images, which are read once, after the verdict."""

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split."""
        return self.test is not None


class FolderClasses(ClassificationData):
    """A folder of the user's own images, one sub-folder per class."""

    task: Literal["folder"]
    kind: Literal["classes"]
    folder: Path
    color: Color = "rgb"
    size: Annotated[int, Field(ge=8, le=512)] = 32
    """Images are resized and cropped to size x size pixels."""
    validation: Share = 0.2
    test: Path | None = None
    """Another folder with the same sub-folders, whose images are read once, after the verdict."""

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split."""
        return self.test is not None


def _which_data(section: Any) -> str:
    """Return the tag of the data section that a mapping (or a section) belongs to."""
    values = section if isinstance(section, dict) else getattr(section, "__dict__", {})
    classes = values.get("task") == "folder" and values.get("kind") == "classes"
    return f"task {values.get('task')}{' of classes' if classes else ''}"


DATA_BY_TAG: dict[str, type[Section]] = {
    "task cifar100": Cifar100Data,
    "task div2k": Div2kData,
    "task photos": PhotosData,
    "task folder": FolderPhotographs,
    "task folder of classes": FolderClasses,
}
TASKS = tuple(
    dict.fromkeys(
        task
        for section in DATA_BY_TAG.values()
        for task in get_args(section.model_fields["task"].annotation)
    )
)
Data = Annotated[
    Annotated[Cifar100Data, Tag("task cifar100")]
    | Annotated[Div2kData, Tag("task div2k")]
    | Annotated[PhotosData, Tag("task photos")]
    | Annotated[FolderPhotographs, Tag("task folder")]
    | Annotated[FolderClasses, Tag("task folder of classes")],
    Discriminator(_which_data),
]


class ProxyShape(Section):
    """The small network that stands for the real one."""

    family: Family
    width: Annotated[int, Field(ge=1, le=1024)]
    """Channels of the first stage."""
    depth: Annotated[int, Field(ge=1, le=200)]
    """Layers (vgg, resnet, dncnn) or blocks (nafnet)."""

    @property
    def goal(self) -> Goal:
        """Return what networks of this family are for."""
        return "classification" if self.family in ("vgg", "resnet") else "denoising"

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


class Box(Section):
    """The search box, the same for every value of every density."""

    low: Annotated[FiniteFloat, Field(gt=0)] = 0.05
    high: Annotated[FiniteFloat, Field(gt=0)] = 2.0
    include: tuple[Included, ...] = ()
    """Densities to train right after the published ones, also outside the box: [0.3, 0.7], or with
    several kernel sizes {3: [0.7], 5: [0.3, 0.7]}."""

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"density.low {self.low} is not below density.high {self.high}")
        return self


class Training(Section):
    """How every proxy is trained."""

    budget: Annotated[int, Field(ge=1, le=10_000)]
    """Epochs."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    lr: Annotated[FiniteFloat, Field(gt=0)] | Literal["auto"] = "auto"
    """Peak learning rate; auto is calibrated on identity before the search (docs/method.md)."""
    precision: Literal["auto", Precision] = "auto"
    """Arithmetic of the networks. full is float32; auto takes bfloat16 where the device that
    launches the study gains by it, and the whole study keeps to that."""


class Search(Section):
    """How densities are proposed."""

    sampler: Literal["auto", "tpe", "gp", "cmaes", "qmc", "grid", "random"] = "auto"
    trials: Annotated[int, Field(ge=1, le=100_000)]
    """How many densities are trained in all, identity and the published ones included."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 2
    """How many times each density is trained; every density with the same seeds."""
    rungs: tuple[PositiveInt, ...] = ()
    """Epochs, below the budget, after which a measurement is taken as well."""
    keep: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.25
    """Share of the trials that goes on at each rung, and to further seeds; 1 cuts nothing."""
    in_flight: Annotated[int, Field(ge=1, le=1024)] = 8
    """How many trials are open at once; it bounds the number of busy workers."""
    seed: Annotated[int, Field(ge=0, lt=1_000_000)] = 0
    """Fixes proposals, initial weights, batches and noise."""


class Confirm(Section):
    """How the search's finalists are confirmed, with fresh seeds (docs/evidence.md)."""

    finalists: Annotated[int, Field(ge=1, le=10)] = 3
    """How many densities are confirmed, at most."""
    seeds: Annotated[int, Field(ge=2, le=1000)] = 24
    """With how many fresh seeds each arm is trained, at most."""
    batch: Annotated[int, Field(ge=2, le=1000)] = 6
    """Seeds between two looks at the evidence; an arm that is judged gets no more."""
    budget: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """Epochs; null is twice training.budget."""
    trainable: bool = False
    """Whether densities are also learned by gradient, and confirmed as one more finalist."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.seeds % self.batch:
            below = self.seeds // self.batch * self.batch
            raise ValueError(
                f"confirm.seeds {self.seeds} is not a multiple of confirm.batch {self.batch}; take "
                f"{f'{below} or ' if below else ''}{below + self.batch}"
            )
        return self
