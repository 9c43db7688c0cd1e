"""Presets: the versioned JSON file that carries a density out of densitune.

`densities` and `use` are all that a layer library needs; the rest says where they come from and
what is known about them. preset.schema.json, beside this module, is the file's JSON Schema.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from optimizer import density, problems
from optimizer.density import Densities
from optimizer.errors import UsageError
from optimizer.results import TrialResult
from optimizer.snapshot import Snapshot, precision
from storage.ledger import LedgerRow
from storage.studies import Study

VERSION = 1
SCHEMA: Literal["densitune/preset/1"] = "densitune/preset/1"
CONVENTION = "outermost first; centre 1 implied; phi = outer(alpha, alpha)"
UNCONFIRMED = (
    "Chosen by a search on validation data and not confirmed: the best of many noisy results looks "
    "better than it is, and a density also changes the scale of the initial weights. Compare it "
    "with identity on fresh seeds before relying on it."
)


KernelSize = Annotated[str, Field(pattern="^[1-9][0-9]*$")]
DensityValue = Annotated[FiniteFloat, Field(ge=0)]


class Part(BaseModel):
    """A part of the file; within a schema version, unknown keys and other types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PairedDifference(Part):
    """The metric minus identity's, within each seed."""

    mean: FiniteFloat
    standard_error: FiniteFloat | None
    by_seed: dict[str, FiniteFloat]


class PresetTask(Part):
    """What the density was tuned on."""

    source: str
    split: Literal["validation"]
    fingerprint: str
    proxy: dict[str, str | int]
    kernel_size: list[int]
    init: str
    training: dict[str, str | int | float]
    metric: str
    unit: str


class Evidence(Part):
    """What is known about the density."""

    verdict: Literal["better", "scale_only", "no_evidence", "worse", "unconfirmed"]
    note: str
    seeds: list[int]
    value: FiniteFloat
    identity: FiniteFloat
    floor: FiniteFloat
    """The metric without any training."""
    difference_to_identity: PairedDifference
    trials_compared: int
    cautions: list[str]
    """Signs that the difference means little."""


class Provenance(Part):
    """Where the density comes from."""

    study: str
    trial: int
    optuna_trial: int
    config: dict[str, Any]
    versions: dict[str, str]
    devices: list[str]
    device_hours: FiniteFloat
    exported_at: str
    config_sha256: str
    ledger_sha256: str


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

    @field_validator("densities")
    @classmethod
    def _densities_are_valid(cls, given: dict[str, list[float]]) -> dict[str, list[float]]:
        for size, den in given.items():
            density.validate(den, int(size))
        return given

    def by_kernel_size(self) -> Densities:
        """Return the densities as workers.weighted_conv.apply_densities takes them."""
        return {int(size): tuple(den) for size, den in self.densities.items()}

    def text(self) -> str:
        """Return the file's contents."""
        return json.dumps(self.model_dump(by_alias=True), indent=2, ensure_ascii=False) + "\n"


def compose(snapshot: Snapshot, chosen: TrialResult) -> Preset:
    """Return the preset of one trial of a study."""
    config, study = snapshot.config, snapshot.study
    document = config.document()
    document["data"].pop("folder", None)
    identity = snapshot.results[0]
    return Preset(
        schema=SCHEMA,
        name=config.name,
        densities={str(k): list(den) for k, den in chosen.densities.items()},
        convention=CONVENTION,
        use="; ".join(_use(k, list(den)) for k, den in chosen.densities.items()),
        task=PresetTask(
            source=_source(study),
            split="validation",
            fingerprint=study.data_fingerprint,
            proxy=document["proxy"],
            kernel_size=list(config.kernel_size),
            init=config.init,
            training={**document["training"], "precision": precision(study)},
            metric=config.metric,
            unit=config.unit,
        ),
        evidence=Evidence(
            verdict="unconfirmed",
            note=UNCONFIRMED,
            seeds=sorted(chosen.values),
            value=chosen.mean,
            identity=identity.mean,
            floor=snapshot.floor,
            difference_to_identity=PairedDifference(
                mean=chosen.difference.mean,
                standard_error=chosen.difference.standard_error,
                by_seed={str(seed): d for seed, d in chosen.difference.by_seed.items()},
            ),
            trials_compared=snapshot.counts["complete"] + snapshot.counts["pruned"],
            cautions=snapshot.cautions,
        ),
        provenance=Provenance(
            study=config.name,
            trial=chosen.number,
            optuna_trial=chosen.optuna_number,
            config=document,
            versions=study.provenance["versions"],
            devices=sorted({worker.device for worker in snapshot.workers}),
            device_hours=round(_seconds(snapshot.rows) / 3600, 4),
            exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
            config_sha256=_sha256(document),
            ledger_sha256=_sha256([[r.trial, r.seed, r.rung, r.value] for r in snapshot.rows]),
        ),
    )


def export(snapshot: Snapshot, folder: Path, trial: int | None = None) -> Path:
    """Write the preset of a trial, or of the one with the largest difference; return its path.

    UsageError if there is no such result yet, or the folder cannot be written.
    """
    chosen = snapshot.best
    if trial is not None:
        chosen = next((result for result in snapshot.results if result.number == trial), None)
    if chosen is None:
        which = "no trial" if trial is None else f"no result of trial {trial}"
        raise UsageError(
            f"study {snapshot.study.name} has {which} to export yet; "
            f"look at: densitune status {snapshot.study.name}"
        )
    return write(compose(snapshot, chosen), folder)


def write(preset: Preset, folder: Path) -> Path:
    """Write NAME.json into a folder, whole or not at all, and return its path.

    UsageError if the folder cannot be written.
    """
    path = folder / f"{preset.name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".json.part")
        unfinished.write_text(preset.text(), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise UsageError(
            f"preset {path} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    return path


def load(path: Path) -> Preset:
    """Read a preset; UsageError with one line if it is not one, or of a newer version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"preset {path} cannot be read: {reason}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"preset {path} is not JSON: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    version = re.fullmatch(r"densitune/preset/([1-9][0-9]*)", str(schema))
    if version is None:
        raise UsageError(f"preset {path} has schema {schema!r}; expected {SCHEMA}")
    if int(version[1]) > VERSION:
        raise UsageError(
            f"preset {path} has schema {schema}, but this densitune reads versions up to "
            f"{VERSION}; install a newer densitune"
        )
    try:
        return Preset.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"preset {path}: {problems.first(error)}") from error


def check_hash(preset: Preset) -> None:
    """Check that the config in a preset is the one that was exported; UsageError if not."""
    if _sha256(preset.provenance.config) != preset.provenance.config_sha256:
        raise UsageError(
            f"preset {preset.name}: provenance.config does not have the hash "
            f"{preset.provenance.config_sha256[:12]} that was exported with it; it was altered"
        )


def json_schema() -> str:
    """Return the JSON Schema of a preset, as preset.schema.json holds it."""
    schema = Preset.model_json_schema(by_alias=True)
    dialect = "https://json-schema.org/draft/2020-12/schema"  # the one that pydantic writes
    return json.dumps({"$schema": dialect, "$id": SCHEMA, **schema}, indent=2) + "\n"


def _source(study: Study) -> str:
    """Return what the data are; where they lay on somebody's machine is nobody's business."""
    source: str = study.provenance["source"]
    folder = study.config["data"].get("folder")
    return source if folder is None else source.replace(folder, Path(folder).name)


def _use(kernel_size: int, den: list[float]) -> str:
    return f"wConv2d(in_channels, out_channels, kernel_size={kernel_size}, den={den})"


def _seconds(rows: Sequence[LedgerRow]) -> float:
    """Return the training time of all jobs: the time at each job's last rung."""
    last: dict[tuple[int, int], float] = {}
    for row in rows:
        key = (row.trial, row.seed)
        last[key] = max(row.seconds, last.get(key, 0.0))
    return sum(last.values())


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
