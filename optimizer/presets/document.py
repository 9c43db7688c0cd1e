"""Presets: the versioned JSON file that carries a density out of densitune.

`densities` and `use` are all that a layer library needs; the rest says where they come from and
what is known about them. preset.schema.json, beside this module, is the file's JSON Schema.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, field_validator

from densitune import density
from densitune.density import Densities
from optimizer.arms import SearchedBy
from optimizer.config import documents, problems
from optimizer.config.agreement import check_kernel_size, check_name
from optimizer.errors import UsageError
from optimizer.evidence.audit import Audit
from optimizer.evidence.own_rates import RateCheck
from optimizer.evidence.verdicts import Comparison, Holdout, PairedDifference, Part, PresetVerdict
from storage import durable, printable

VERSION = 1
SCHEMA: Literal["densitune/preset/1"] = "densitune/preset/1"
CONVENTION = "outermost first; centre 1 implied; phi = outer(alpha, alpha)"

KernelSize = Annotated[str, Field(pattern="^[1-9][0-9]*$")]
DensityValue = Annotated[FiniteFloat, Field(ge=0)]


class PresetTask(Part):
    """What the density was tuned on."""

    source: str
    split: Literal["validation"]
    fingerprint: str
    proxy: dict[str, JsonValue]
    kernel_size: list[int]
    init: str
    training: dict[str, str | int | float]
    metric: str
    unit: str


class Confirmation(Part):
    """What fresh seeds said: paired differences with 95 % intervals."""

    seeds: int
    """Fresh seeds of each arm of the comparisons."""
    budget: int
    """Epochs."""
    finalists: int
    """How many densities were confirmed; the test is corrected for it."""
    to_identity: Comparison | None
    """None if an arm could not be trained."""
    to_control: Comparison | None
    """Against identity with the initial weights of the density's scale. None if the verdict asks
    for no such control, or identity was not beaten."""
    to_uniform: Comparison | None = None
    """Against a mask that has RMS(phi) at every tap; None as `to_control` is."""
    uniform_is_identity: bool = False
    """Whether such a mask trains as identity does in this network: every weighted convolution feeds
    a normalisation. There are no controls then."""
    failures: dict[str, int] = Field(default_factory=dict)
    """By arm, on how many seeds training diverged, so that the floor stands for the score."""
    diverged: dict[str, list[int]] = Field(default_factory=dict)
    """Which those seeds are: what identity or a control loses there counts for nothing towards
    `better`. Presets of earlier versions do not tell them."""
    identity: FiniteFloat | None = None
    """Identity's metric, the mean over all its fresh seeds, which has to be above the floors too.
    None in presets of earlier versions."""
    compensated: PairedDifference | None
    """The density at identity's initial scale, minus identity; no part of the verdict."""
    seeds_to_settle: int | None
    """An estimate of the seeds that would settle an open question."""
    reason: str | None
    """Why the density could not be judged, if so."""
    extended_from: int | None = None
    """The seeds of the first of two confirmations, if the study was extended."""


class Evidence(Part):
    """What is known about the density, by the search and, apart from that, by what came after it.

    Of a density that was learned, what the search would say is the trainable arm's: layers that had
    densities of their own.
    """

    verdict: PresetVerdict
    advice: str = ""
    """What to do about it, in one line."""
    note: str
    confirmation: Confirmation | None = None
    own_rates: RateCheck | None = None
    """Whether that holds with each arm at a learning rate of its own; None of all but the winner,
    and where it was not checked."""
    audit: Audit | None = None
    """Whether a larger network ranks densities as the proxy did; None of all but the winner, and
    without an audit."""
    test: Holdout | None = None
    """None of all but the winner, and where there is no test split."""
    seeds: list[int]
    value: FiniteFloat
    identity: FiniteFloat
    floor: FiniteFloat
    """The metric without a deep network: the highest of `floors`."""
    floors: dict[str, FiniteFloat] = Field(default_factory=dict)
    """The metric of what needs no deep network, by name."""
    difference_to_identity: PairedDifference
    searched_by: SearchedBy = "metric"
    """What the search compared trials by; the differences here are the metric's."""
    trials_compared: int
    cautions: list[str]
    """Signs that the difference means little."""


class Provenance(Part):
    """Where the density comes from."""

    study: str
    trial: int
    label: str | None = None
    """What the trial is called: identity, v2 README, trial 12, learned."""
    optuna_trial: int | None
    """None of what was learned: it was no trial of the search."""
    config: dict[str, Any]
    versions: dict[str, str]
    devices: list[str]
    device_hours: FiniteFloat
    exported_at: str
    config_sha256: str
    ledger_sha256: str
    content_sha256: str | None = None
    """SHA-256 of all else in the file, as JSON with sorted keys; None in presets from before it."""


class Preset(Part):
    """The whole file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True
    )

    schema_: Literal["densitune/preset/1"] = Field(alias="schema")
    name: str
    densities: Annotated[
        dict[KernelSize, list[DensityValue]],
        Field(min_length=1, json_schema_extra={"additionalProperties": False}),
    ]
    convention: str
    use: str
    task: PresetTask
    evidence: Evidence
    provenance: Provenance

    @field_validator("name")
    @classmethod
    def _name_is_a_study_s(cls, name: str) -> str:
        check_name(name)
        return name

    @field_validator("densities")
    @classmethod
    def _densities_are_valid(cls, densities: dict[str, list[float]]) -> dict[str, list[float]]:
        for size, den in densities.items():
            k = documents.whole(size)
            check_kernel_size(k)
            density.validate(den, k)
        return densities

    def by_kernel_size(self) -> Densities:
        """Return the densities with numbers for sizes."""
        return {int(size): tuple(den) for size, den in self.densities.items()}

    def text(self) -> str:
        """Return the file's contents."""
        text = json.dumps(self.model_dump(by_alias=True), indent=2, ensure_ascii=False)
        return printable.json(text) + "\n"


def write(preset: Preset, folder: Path) -> Path:
    """Write NAME.json into a folder, whole or not at all, and return its path.

    UsageError if the folder cannot be written.
    """
    path = folder / f"{preset.name}.json"
    try:
        durable.write(path, preset.text().encode())
    except OSError as error:
        raise UsageError(
            f"preset {path} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    return path


def load(path: Path) -> Preset:
    """Read a preset; UsageError with one line if it is not one, or of a newer version."""
    return parse(content(path), path)


def content(path: Path) -> dict[str, Any]:
    """Read a preset's content, of a version that is known here; UsageError if it is none."""
    try:
        text = documents.read(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"preset {path} cannot be read: {reason}") from error
    try:
        found = documents.from_json(text)
    except ValueError as error:
        raise UsageError(f"preset {path} is not JSON: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    version = re.fullmatch(r"densitune/preset/([1-9][0-9]{0,8})", str(schema))
    if version is None:
        raise UsageError(f"preset {path} has schema {repr(schema)[:60]}; expected {SCHEMA}")
    if int(version[1]) > VERSION:
        raise UsageError(
            f"preset {path} has schema {schema}, but this densitune reads versions up to "
            f"{VERSION}; install a newer densitune"
        )
    return cast(dict[str, Any], found)


def parse(content: Mapping[str, Any], path: Path) -> Preset:
    """Return the preset with a content, which is a file's; UsageError if it is not valid."""
    try:
        return Preset.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"preset {path}: {problems.first(error)}") from error


def sealed(preset: Preset) -> Preset:
    """Return the preset with the hash of its content."""
    told = {"content_sha256": content_sha256(preset.model_dump(by_alias=True))}
    return preset.model_copy(update={"provenance": preset.provenance.model_copy(update=told)})


def content_sha256(content: Mapping[str, Any]) -> str:
    """Return the hash of a preset's content but for that hash itself."""
    provenance = {**content["provenance"]}
    provenance.pop("content_sha256", None)
    return sha256({**content, "provenance": provenance})


def json_schema() -> str:
    """Return the JSON Schema of a preset, as preset.schema.json holds it."""
    schema = Preset.model_json_schema(by_alias=True)
    dialect = "https://json-schema.org/draft/2020-12/schema"  # the one that pydantic writes
    return json.dumps({"$schema": dialect, "$id": SCHEMA, **schema}, indent=2) + "\n"


def sha256(value: Any) -> str:
    """Return the hash of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
