"""The section `data` of a study's configuration: one model for each task.

Unknown keys are errors. Defaults, units and descriptions stand here and nowhere else.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, FiniteFloat, JsonValue, Tag, field_validator

from optimizer.config.choices import Color, Direction, Goal, LabelKind
from optimizer.config.section import Section, Unit, check_plain

ENTRY = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""How a function of the user's own is written: module:function."""
Value = Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)]
"""Of a metric: what lies further from zero is not kept (storage.ledger)."""
Share = Annotated[float, Field(gt=0, lt=1), Unit("share of images")]


class ClassificationData(Section):
    """What all classification data have in common."""

    goal: ClassVar[Goal] = "classification"
    metric: ClassVar[str] = "top-1 accuracy"
    unit: ClassVar[str] = "%"
    direction: ClassVar[Direction] = "maximize"
    floor_name: ClassVar[str] = "commonest class"
    """What scores the floor: the metric without any training."""


class DenoisingData(Section):
    """What all denoising data have in common: white Gaussian noise on patches of photographs."""

    goal: ClassVar[Goal] = "denoising"
    metric: ClassVar[str] = "PSNR"
    unit: ClassVar[str] = "dB"
    direction: ClassVar[Direction] = "maximize"
    floor_name: ClassVar[str] = "noisy input"

    color: Color = "gray"
    """What images are turned into."""
    sigma: Annotated[FiniteFloat, Field(gt=0, le=255), Unit("grey levels")] = 25.0
    """Standard deviation of the noise; white is 255."""
    patch: Annotated[int, Field(ge=8, le=512), Unit("pixels")] = 40
    """Side of a training patch."""
    patches_per_image: Annotated[int, Field(gt=0, le=1_000_000), Unit("patches")] = 64
    """How many patches are cut from each training image; an epoch has all of them once."""
    crop: Annotated[int, Field(ge=16, le=4096), Unit("pixels")] = 128
    """Side of the central crop that is judged of each validation image."""
    validation: Share = 0.2
    """What is held out of the images to measure on."""


class Cifar100Data(ClassificationData):
    """CIFAR-100; torchvision downloads it, and densitune reads it."""

    has_test: ClassVar[bool] = True

    task: Literal["cifar100"]
    """CIFAR-100."""
    folder: Path | None = None
    """Where cifar-100-python lies or goes; null is the data folder of densitune's home."""
    download: bool = True
    """Whether CIFAR-100 (170 MB) is downloaded if it is not there."""
    verify: bool = True
    """Whether MD5 sums have to be right; false accepts a partial copy."""
    labels: LabelKind = "fine"
    """CIFAR-100's 100 classes, or the 20 groups of them."""
    validation: Share = 0.1
    """What is held out of the training split to measure on; the test split is read once,
    after the verdict."""


class Div2kData(DenoisingData):
    """DIV2K's high-resolution images; the official validation images are the test split."""

    has_test: ClassVar[bool] = True

    task: Literal["div2k"]
    """DIV2K."""
    folder: Path | None = None
    """Where the archives lie or go; null is the data folder of densitune's home."""
    download: bool = True
    """Whether the archives (3.5 GB) are downloaded if they are not there."""
    verify: bool = True
    """Whether MD5 sums have to be right; false accepts an archive with another one."""
    color: Color = "rgb"
    """What images are turned into."""
    validation: Share = 0.1
    """What is held out of the training images to measure on; the official validation images
    are the test split, which is read once, after the verdict."""


class PhotosData(DenoisingData):
    """The photographs that come with scikit-image: nothing to download, but no test split."""

    has_test: ClassVar[bool] = False

    task: Literal["photos"]
    """The photographs that come with scikit-image."""


class FolderPhotographs(DenoisingData):
    """A folder of the user's own images, for denoising."""

    task: Literal["folder"]
    """Your own images."""
    kind: Literal["photographs"] = "photographs"
    """What they are for: photographs are denoised."""
    folder: Path
    """The folder that has the images, relative to the file of the study."""
    test: Path | None = None
    """Another folder of images, which are read once, after the verdict."""

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split."""
        return self.test is not None


class FolderClasses(ClassificationData):
    """A folder of the user's own images, one sub-folder per class."""

    task: Literal["folder"]
    """Your own images."""
    kind: Literal["classes"]
    """What they are for: classes are told apart."""
    folder: Path
    """The folder that has a sub-folder of images for each class, relative to the file of the
    study."""
    color: Color = "rgb"
    """What images are turned into."""
    size: Annotated[int, Field(ge=8, le=512), Unit("pixels")] = 32
    """Side of the squares that images are resized and cropped to."""
    validation: Share = 0.2
    """What is held out of the images of each class to measure on."""
    test: Path | None = None
    """Another folder with the same sub-folders, whose images are read once, after the verdict."""

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split."""
        return self.test is not None


class ScriptData(Section):
    """A training script of the user's own: any data, any network, any loop."""

    goal: ClassVar[Goal] = "own"
    floor_name: ClassVar[str] = "floor of the script"

    task: Literal["python"]
    """A training script of your own."""
    entry: Annotated[str, Field(pattern=ENTRY)]
    """The function that trains, as module:function; workers find it by `--code`, by DENSITUNE_CODE
    or in the current folder."""
    metric: Annotated[str, Field(min_length=1, max_length=40)]
    """What the script reports."""
    unit: Annotated[str, Field(min_length=1, max_length=20)]
    """Its unit, as tables show it."""
    direction: Direction = "maximize"
    """Which way is better. What is minimized is negated wherever it is stored or shown."""
    floor: Annotated[Value | Annotated[str, Field(pattern=ENTRY)], Unit("the metric's")]
    """What needs no network, which identity has to beat: a number, or a function without arguments
    as module:function. A training that diverges while densities are confirmed scores this."""
    test: bool = False
    """Whether the script also reports on a test split, which is read once, after the verdict."""
    warm: bool = True
    """Whether a process trains one job after another; false starts a new one for each."""
    patience: Annotated[FiniteFloat, Field(gt=0, le=1_000_000), Unit("seconds")] = 3600.0
    """How long a script may be silent before it counts as hanging: without a report, an epoch that
    begins or a checkpoint."""

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split."""
        return self.test


class GivenData(Section):
    """Tensors of the user's own, which densitune's own loop trains on."""

    goal: ClassVar[Goal] = "own"
    floor_name: ClassVar[str] = "floor given"

    task: Literal["python"]
    """Data of your own."""
    load: Annotated[str, Field(pattern=ENTRY)]
    """The function that returns them, as module:function, found as a training script is: a mapping
    with `train`, `validation` and, if there are, `test`, `loss` and `metric` (docs/method.md)."""
    kwargs: dict[str, JsonValue] = Field(default={})
    """What the function is called with."""
    classes: Annotated[Annotated[int, Field(ge=2, le=1_000_000)] | None, Unit("classes")] = None
    """How many classes the targets have; null if they are no classes."""
    metric: Annotated[str, Field(min_length=1, max_length=40)] = "top-1 accuracy"
    """What the metric is called; without a function `metric` it is this one."""
    unit: Annotated[str, Field(max_length=20)] = "%"
    """Its unit."""
    direction: Direction = "maximize"
    """Which way is better. What is minimized is negated wherever it is stored or shown."""
    floor: Annotated[Value, Unit("the metric's")]
    """What needs no network, which identity has to beat. A training that diverges while densities
    are confirmed scores this."""
    test: bool = False
    """Whether there is a test split as well, which is read once, after the verdict."""

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split."""
        return self.test

    @field_validator("kwargs")
    @classmethod
    def _can_be_stored(cls, kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        check_plain(kwargs, "data.kwargs")
        return kwargs


def _which_data(section: Any) -> str:
    """Return the tag of the data section that a mapping (or a section) belongs to."""
    values = section if isinstance(section, dict) else getattr(section, "__dict__", {})
    classes = values.get("task") == "folder" and values.get("kind") == "classes"
    own = {True: " data", False: " script"}["load" in values]
    kind = own if values.get("task") == "python" else ""
    return f"task {values.get('task')}{' of classes' if classes else kind}"


# Tags are no identifiers, so that messages can tell them from keys.
DATA_BY_TAG: dict[str, type[Section]] = {
    "task cifar100": Cifar100Data,
    "task div2k": Div2kData,
    "task photos": PhotosData,
    "task folder": FolderPhotographs,
    "task folder of classes": FolderClasses,
    "task python script": ScriptData,
    "task python data": GivenData,
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
    | Annotated[FolderClasses, Tag("task folder of classes")]
    | Annotated[ScriptData, Tag("task python script")]
    | Annotated[GivenData, Tag("task python data")],
    Discriminator(_which_data),
]
