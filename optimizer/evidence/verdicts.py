"""Verdicts: what a confirmation found out about its finalists, as it is stored and exported."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

from optimizer.evidence.differences import Difference

Verdict = Literal["better", "scale_only", "no_evidence", "worse"]
"""What fresh seeds say about a finalist."""
PresetVerdict = Literal[Verdict, "unconfirmed"]
"""What a preset says: of a density that no fresh seeds were spent on as well."""

MEANING: dict[PresetVerdict, str] = {
    "better": "better than identity and than its scale control",
    "scale_only": "NOT a reason for a density: not shown to beat its scale control",
    "no_evidence": "NOT shown to help",
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


class Comparison(Part):
    """A paired difference with its 95 % interval."""

    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    by_seed: dict[str, FiniteFloat]


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
    """None also where identity is the scale control (init: compensated)."""
    compensated: PairedDifference | None = None
    """The compensated arm minus identity: what is left at identity's initial scale."""
    seeds_to_settle: int | None = None
    """An estimate of the seeds that would settle an open question."""

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


def by_text(by_seed: Mapping[int, float]) -> dict[str, float]:
    """Return values by seed as JSON has them, which has text for keys."""
    return {str(seed): value for seed, value in by_seed.items()}


def best(verdicts: Sequence[FinalistVerdict]) -> FinalistVerdict | None:
    """Return the best `better` finalist, else the one with the largest difference to identity."""

    def rank(verdict: FinalistVerdict) -> tuple[bool, float]:
        mean = float("-inf") if verdict.to_identity is None else verdict.to_identity.mean
        return verdict.verdict == "better", mean

    return max(verdicts, key=rank, default=None)
