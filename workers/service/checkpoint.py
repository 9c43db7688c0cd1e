"""Checkpoints: jobs in training on disk, for whoever goes on with them.

A file is a SHA-256 and what torch has saved. It is read with `weights_only` alone, so that somebody
else's file runs no code here, and used only if it says itself that all is the same that a job's
result depends on: its name counts for nothing.
"""

import hashlib
import importlib.metadata
import io
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from optimizer.arms import Arm
from storage import durable
from storage.retry import first_line
from storage.studies import Study
from workers.scripts.script import Script
from workers.service.spool import StudyKey, key_of
from workers.training.recipe import Job, Recipe

DIGEST_BYTES = 32
FORMAT = 2
"""Of a state, for workers of before. The first held an epoch's order and its generator, which are
of no use any more; those states are read as ever."""
FIRST_WORDS = {"densities", "lr", "init", "gain", "trainable", "split"}
"""Of an arm, what the first checkpoints told."""

log = logging.getLogger("densitune.worker")


class Checkpoints:
    """The checkpoints of one study in a folder, one for each job.

    Processes and hosts may share the folder; whoever saves a job last has the say.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self._folder, self._study = folder, key_of(study)

    def save(self, job: int, subject: str, state: Mapping[str, Any]) -> None:
        """Write a job's state: tensors, and plain values around them; OSError if that fails.

        `subject` says what its use depends on beside study, job and versions.
        """
        stored = io.BytesIO()
        torch.save({"key": self._key(job, subject), "state": dict(state)}, stored)
        content = stored.getvalue()
        durable.write(self._path(job), hashlib.sha256(content).digest() + content)

    def load(self, job: int, subject: str) -> dict[str, Any] | None:
        """Return a job's state on the CPU; None, with a line in the log, if it is of no use."""
        path = self._path(job)
        try:
            found = _read(path)
            # Of tensors, this may raise.
            key = {"format": FORMAT, **found["key"]}
            known = bool(key == self._key(job, subject)) and type(found["state"]) is dict
        except FileNotFoundError:
            return None
        except Exception as error:  # what somebody else's file may bring about is anybody's guess
            log.warning("checkpoint %s is unusable, starting again: %s", path, first_line(error))
            return None
        if not known:
            log.warning("checkpoint %s is not of this job, or of another version", path)
            return None
        state: dict[str, Any] = found["state"]
        return state

    def remove(self, job: int) -> None:
        """Remove a job's checkpoint, if there is one."""
        path = self._path(job)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("checkpoint %s cannot be removed: %s", path, error.strerror)

    def _path(self, job: int) -> Path:
        return path_of(self._folder, self._study, job)

    def _key(self, job: int, subject: str) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "study": asdict(self._study),
            "job": job,
            "subject": subject,
            "torch": str(torch.__version__),
            "densitune": importlib.metadata.version("densitune"),
        }


def subject(job: Job, recipe: Recipe | Script, device: torch.device) -> str:
    """Return what a job's result depends on beside study and versions.

    The words are those of the first checkpoints, whatever has become of the classes since: by them
    a checkpoint is known.
    """
    usual = vars(Arm({}))
    arm = {
        name: value
        for name, value in vars(job.arm).items()
        if name in FIRST_WORDS or value != usual[name]
    }
    told = {"densities": arm["densities"], "seed": job.seed, "budget": job.budget}
    told |= {"bars": job.bars, **arm}
    words = ", ".join(f"{name}={value!r}" for name, value in told.items())
    return f"(Job({words}), {recipe!r}, {device.type!r})"


def path_of(folder: Path, study: StudyKey, job: int) -> Path:
    """Return where the checkpoint of a study's job is, if there is one."""
    return folder / f"{study.short}-{job:012d}.pt"


def _read(path: Path) -> dict[str, Any]:
    with durable.opened(path) as file:
        stored = file.read()
    digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum does not match")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # as torch writes it, nothing compressed
        if sum(part.file_size for part in archive.infolist()) > len(content):
            raise ValueError("it unpacks to more than it has")
    loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {"key": loaded["key"], "state": loaded["state"]}
