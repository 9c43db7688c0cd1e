"""The best sizes of packs, on disk: measuring one takes a GPU ten seconds at every worker's start.

A file is for one device, torch, recipe and number of images. What cannot be read is measured again.
"""

import hashlib
import importlib.metadata
import json
import logging
from pathlib import Path

import torch

from storage import durable
from workers.training import devices
from workers.training.packing import LARGEST
from workers.training.slots import Slots

log = logging.getLogger("densitune.worker")


class PackSizes:
    """Sizes that were measured on this machine, in a folder that processes may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, slots: Slots) -> int | None:
        """Return the size for what is trained here, None if it has to be measured."""
        try:
            with durable.opened(self._path(slots)) as file:
                size = json.load(file)["size"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return size if type(size) is int and 1 <= size <= LARGEST else None

    def note(self, slots: Slots, size: int) -> None:
        """Keep a size for later workers; a folder that cannot be written to is told in the log."""
        content = json.dumps({"size": size, **_subject(slots)}, indent=1).encode()
        try:
            durable.write(self._path(slots), content)
        except OSError as error:
            log.warning("the size of the pack is not kept: %s", error)

    def _path(self, slots: Slots) -> Path:
        subject = json.dumps(_subject(slots)).encode()
        return self._folder / f"{hashlib.sha256(subject).hexdigest()[:32]}.json"


def _subject(slots: Slots) -> dict[str, str | int]:
    return {
        "device": devices.describe(slots.device),
        "torch": str(torch.__version__),
        "densitune": importlib.metadata.version("densitune"),
        "recipe": repr(slots.recipe),
        "images": len(slots.task),
    }
