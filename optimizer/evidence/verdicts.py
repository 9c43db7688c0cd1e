"""Verdicts: what a confirmation found out about its finalists, as it is stored and exported."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, field_validator

from optimizer.arms import Init
from optimizer.evidence.differences import Difference, interval
from storage.errors import UnreadableError

Verdict = Literal["better", "scale_only", "step_only", "no_evidence", "worse", "dropped"]
"""What fresh seeds say about a finalist."""
Control = Literal["control", "uniform"]
"""What a finalist is compared with beside identity: its scale control and its uniform mask."""
PresetVerdict = Literal[Verdict, "unconfirmed"]
"""What a preset says: of a density that no fresh seeds were spent on as well."""

MEANING: dict[PresetVerdict, str] = {
    "better": "better than identity and than its controls, at identity's rate",
    "scale_only": "NOT a reason for a density: not shown to beat its scale control",
    "step_only": "NOT a reason for a density: not shown to beat its uniform mask",
    "no_evidence": "NOT shown to help",
    "dropped": "NOT shown to help: others were ahead",
    "worse": "NOT to be used: worse than identity",
    "unconfirmed": "NOT confirmed",
}
"""Each verdict in words for a line."""


class Part(BaseModel):
    """A part of a document; within its version, unknown keys and other types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PairedDifference(Part):
    """The metric minus that of another arm, within each seed."""

    mean: FiniteFloat
    standard_error: FiniteFloat | None
    by_seed: dict[str, FiniteFloat]

    @classmethod
    def of(cls, difference: Difference) -> "PairedDifference":
        """Return a difference as it is stored."""
        by_seed = by_text(difference.by_seed)
        return cls(mean=difference.mean, standard_error=difference.standard_error, by_seed=by_seed)


class OverImages(Part):
    """The 95 % interval of a paired difference over seeds and images: for other images as well.

    Of a density that was not chosen by these images: of a winner, those of the test split.
    """

    count: int
    """Of images."""
    low: FiniteFloat
    high: FiniteFloat


class Comparison(Part):
    """A paired difference with its 95 % interval over seeds: for other seeds, on these images."""

    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    by_seed: dict[str, FiniteFloat]
    images: OverImages | None = None
    """None where the scores of single images are not stored: in studies of earlier versions, of
    very many images, and in checks after the verdict."""

    @classmethod
    def of(cls, difference: Difference) -> "Comparison":
        """Return a difference over two seeds or more with its interval over seeds."""
        low, high = interval(difference)
        by_seed = by_text(difference.by_seed)
        return cls(mean=difference.mean, low=low, high=high, by_seed=by_seed)


class Found(Protocol):
    """What fresh seeds found about a finalist, as a study and as a preset have it."""

    @property
    def to_identity(self) -> Comparison | None:
        """Return the difference to identity."""

    @property
    def to_control(self) -> Comparison | None:
        """Return that to the scale control."""

    @property
    def to_uniform(self) -> Comparison | None:
        """Return that to the uniform mask."""

    @property
    def failures(self) -> dict[str, int]:
        """Return by arm on how many seeds it diverged."""

    @property
    def diverged(self) -> dict[str, list[int]]:
        """Return by arm on which."""


class FinalistVerdict(Part):
    """What is known about one finalist."""

    trial: int
    """Its number in the search; what a trainable arm learned comes after the search's last."""
    label: str
    densities: dict[str, list[FiniteFloat]]
    verdict: Verdict
    reason: str | None = None
    """Why it could not be judged, if so."""
    to_identity: Comparison | None = None
    to_control: Comparison | None = None
    """To the scale control. None where `better` does not ask for it (docs/evidence.md), and where
    identity was not beaten: it is not trained then."""
    to_uniform: Comparison | None = None
    """To the uniform mask; None as `to_control` is."""
    failures: dict[str, int] = {}
    """By arm, on how many seeds training diverged, so that the floor stands for the score."""
    diverged: dict[str, list[int]] = {}
    """Which those seeds are. None of an earlier version, which counted them in favour of the
    finalist where another arm had diverged."""
    compensated: PairedDifference | None = None
    """The compensated arm minus identity: what is left at identity's initial scale."""
    seeds_to_settle: int | None = None
    """An estimate of the seeds that would settle an open question; none where it leans below
    zero."""

    @field_validator("densities")
    @classmethod
    def _by_size(cls, densities: dict[str, list[float]]) -> dict[str, list[float]]:
        if not all(size.isdecimal() for size in densities):
            raise ValueError(f"kernel sizes {list(densities)} are no numbers")
        return densities

    def by_kernel_size(self) -> dict[int, tuple[float, ...]]:
        """Return the densities as the other modules have them."""
        return {int(size): tuple(den) for size, den in self.densities.items()}


class Holdout(Part):
    """What identity and the winner reach on the test split, read once, after the verdict."""

    trial: int
    """The winner's number in the search."""
    reason: str | None = None
    """Why there is no difference, if so; there is nothing else then."""
    fingerprint: str | None = None
    """SHA-256 of the test images, and of their labels where there are any."""
    seeds: list[int] = []
    """The seeds with which both were trained."""
    value: FiniteFloat | None = None
    identity: FiniteFloat | None = None
    difference: Comparison | None = None
    """The winner minus identity."""
    larger: "Holdout | None" = None
    """The same on the larger network of an audit, of its seeds."""


def of_study(stored: Sequence[object] | None) -> list[FinalistVerdict]:
    """Return a study's verdicts as the database has them; UnreadableError if one is none.

    Nothing of ours writes that, but the owner of a database may.
    """
    try:
        return [FinalistVerdict.model_validate(one) for one in stored or ()]
    except (TypeError, ValidationError) as error:
        raise UnreadableError("a stored value cannot be read: a verdict is none") from error


def of_test_split(stored: object) -> Holdout | None:
    """Return what a study keeps of its test split; UnreadableError if that is none."""
    try:
        return None if stored is None else Holdout.model_validate(stored)
    except ValidationError as error:
        raise UnreadableError("a stored value cannot be read: a test result is none") from error


def asked(init: Init | str, uniform_is_identity: bool) -> tuple[Control, ...]:
    """Return the controls that `better` asks for.

    Where every weighted convolution feeds a normalisation, a uniform mask trains as identity does,
    and a scale control is identity at another rate: neither is of use. A finalist that starts at
    identity's scale has identity as its scale control.
    """
    if init == "compensated":
        return ("uniform",)
    return () if uniform_is_identity else ("control", "uniform")


def by_text(by_seed: Mapping[int, float]) -> dict[str, float]:
    """Return values by seed as JSON has them, which has text for keys."""
    return {str(seed): value for seed, value in by_seed.items()}


def best(verdicts: Sequence[FinalistVerdict]) -> FinalistVerdict | None:
    """Return the best `better` finalist, else the one with the largest difference to identity.

    What was dropped comes last: the others were ahead of it then.
    """

    def rank(verdict: FinalistVerdict) -> tuple[bool, bool, float]:
        mean = float("-inf") if verdict.to_identity is None else verdict.to_identity.mean
        return verdict.verdict == "better", verdict.verdict != "dropped", mean

    return max(verdicts, key=rank, default=None)
