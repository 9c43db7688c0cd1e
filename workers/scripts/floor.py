"""The floor of a training script: what its metric comes to without any training."""

import torch

from optimizer.errors import UsageError
from workers import entries
from workers.entries import Entry
from workers.scripts.process import ScriptError
from workers.scripts.script import Script
from workers.scripts.stage import Stage
from workers.training.scores import MOST


def floor_of(script: Script, entry: Entry, device: torch.device, given: float | str) -> float:
    """Return the floor, a number or what `module:function` of the script's code returns.

    Higher is better, whatever the script's metric. UsageError if the function is not there, fails,
    or returns no number within the bounds of a metric.
    """
    if isinstance(given, str):
        given = _computed(script, entry, device, given)
    return script.score(given, {}).value


def _computed(script: Script, entry: Entry, device: torch.device, function: str) -> float:
    entries.find(function, entry.place)  # its fingerprint is the entry's
    stage = Stage(script, entry, device)
    try:
        told = stage.call(function)
    except ScriptError as error:
        raise UsageError(f"data.floor {function} failed: {error}") from error
    finally:
        stage.close()
    if isinstance(told, str) or not abs(told) <= MOST:
        raise UsageError(f"data.floor {function} returned {told!r}; it lies within +-{MOST:,.0f}")
    return told
