"""From a study's configuration to what jobs are trained with: a bank, a task and a recipe."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from densitune import density
from optimizer.arms import Precision
from optimizer.config import tasks
from optimizer.config.networks import NamedNetwork
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from workers import entries
from workers.data import cifar100, div2k, folder, given, photos
from workers.data.bank import Bank
from workers.data.given import Given
from workers.data.patches import PatchPlan
from workers.entries import Entry
from workers.networks import named, proxies, scale_free
from workers.networks.named import Network
from workers.networks.proxies import Proxy
from workers.scripts.contract import Contract
from workers.scripts.floor import floor_of
from workers.scripts.script import Script, find_script
from workers.scripts.stage import Stage
from workers.training import baselines, dry_run
from workers.training.own import Own
from workers.training.recipe import Recipe, steps_per_epoch
from workers.training.tasks import Classification, Denoising, Task, Tried

Progress = Callable[[int, int], None]
Prepared = Bank | Given
"""The data of a study: images that are prepared, or what the user's function returned."""


@dataclass(frozen=True)
class Bench:
    """What jobs are trained with: a study's task and recipe on a device."""

    task: Task
    recipe: Recipe
    device: torch.device


def bank(data: tasks.Data, home: Path, progress: Progress | None = None) -> Bank:
    """Return the prepared images of a task, downloading and decoding what is not there yet.

    `progress` is called with the bytes done and the bytes in all of a download. UsageError if the
    data are missing or damaged.
    """
    cache, datasets = home / "cache", home / "data"
    match data:
        case tasks.Cifar100Data():
            return cifar100.load(
                data.folder or datasets,
                download=data.download,
                verify=data.verify,
                labels=data.labels,
                validation=data.validation,
                cache=cache,
            )
        case tasks.Div2kData():
            return div2k.load(
                data.folder or datasets,
                download=data.download,
                verify=data.verify,
                plan=_plan(data),
                cache=cache,
                progress=progress,
            )
        case tasks.PhotosData():
            return photos.load(_plan(data), cache)
        case tasks.FolderPhotographs():
            return folder.load_photographs(data.folder, _plan(data), cache, data.test)
        case tasks.FolderClasses():
            return folder.load_classes(
                data.folder,
                color=data.color,
                size=data.size,
                validation=data.validation,
                cache=cache,
                test=data.test,
            )
        case tasks.ScriptData() | tasks.GivenData():
            raise UsageError(f"task {data.task} has no images of ours")


def prepare(data: tasks.Data, home: Path, progress: Progress | None = None) -> Prepared | Entry:
    """Return the data of a task: images, as `bank` does, or what a function of the user's returns.

    Of a training script, where its code is. UsageError also if the user's code is not found, or
    fails.
    """
    if isinstance(data, tasks.ScriptData):
        return find_script(data.entry, entries.place())
    return _given(data) if isinstance(data, tasks.GivenData) else bank(data, home, progress)


def bench(
    config: StudyConfig,
    prepared: Prepared | Entry,
    precision: Precision,
    device: torch.device,
    floors: Mapping[str, float],
) -> Bench | Stage:
    """Return what jobs are trained with on a device; `floors` are those that the study keeps."""
    if isinstance(prepared, Entry):
        return Stage(_script(config, prepared, max(floors.values(), default=0.0)), prepared, device)
    return Bench(task(config, prepared, device), recipe(config, prepared, precision), device)


def _given(data: tasks.GivenData) -> Given:
    function = entries.load(entries.find(data.load, entries.place()))
    return given.load(data.load, function, data.kwargs, data.classes, has_test=data.test)


def task(config: StudyConfig, prepared: Prepared, device: torch.device) -> Tried:
    """Return the study's task with its data on a device."""
    if isinstance(prepared, Given):
        assert isinstance(config.data, tasks.GivenData)
        sign = -1.0 if config.data.direction == "minimize" else 1.0
        return Own(prepared, device, sign=sign, floor=config.data.floor)
    if isinstance(config.data, tasks.DenoisingData):
        return Denoising(prepared, device, config.data.sigma)
    return Classification(prepared, device)


def facts(config: StudyConfig, prepared: Prepared | Entry) -> dict[str, Any]:
    """Return what a study keeps of its data and network from the beginning, as JSON.

    Of a script's network nothing is known. UsageError if a script's floor cannot be computed.
    """
    if isinstance(prepared, Entry):
        floor = script_floor(config, prepared, torch.device("cpu"))
        return {"floors": {config.floor_name: floor}, "uniform_is_identity": False}
    trained = task(config, prepared, torch.device("cpu"))
    return {
        "code": code(config),
        "floors": floors(config, prepared),
        "uniform_is_identity": uniform_is_identity(config, prepared),
        "steps_per_epoch": steps_per_epoch(trained, recipe(config, prepared, "full")),
    }


def code(config: StudyConfig) -> dict[str, str]:
    """Return which code the study's names stand for here: versions of libraries, fingerprints.

    UsageError if some is not here.
    """
    proxy, place = config.proxy, entries.place()
    names = [proxy.network] if isinstance(proxy, NamedNetwork) else []
    if isinstance(config.data, tasks.GivenData):
        names.append(config.data.load)
    return {name: named.code(name, place) for name in names}


def floors(config: StudyConfig, prepared: Prepared) -> dict[str, float]:
    """Return the study's metric without any network, by the name of what reaches it.

    The first is the one without any training at all; the other is the best that is linear.
    """
    chosen = task(config, prepared, torch.device("cpu"))
    scores = {config.floor_name: chosen.floor()}
    if isinstance(prepared, Given):
        return scores
    if isinstance(config.data, tasks.DenoisingData):
        sigma = config.data.sigma
        scores["linear 3 x 3 filter"] = baselines.linear_filter(chosen, prepared, sigma)
    else:
        scores["linear classifier"] = baselines.linear_classifier(prepared)
    return scores


def contract(
    config: StudyConfig, entry: Entry, device: torch.device, *, epochs: int, seconds: float
) -> Contract:
    """Return the checks of a script, each with so many epochs at most, all in so many seconds."""
    script = _script(config, entry, 0.0)
    script = replace(script, patience=min(script.patience, seconds))
    return Contract(
        Stage(script, entry, device, every=0.0),
        config.kernel_size,
        script.lr or config.usual_lr,
        seed=config.seeds[0],
        budget=min(epochs, config.confirm_budget),
        seconds=seconds,
    )


def script_floor(config: StudyConfig, entry: Entry, device: torch.device) -> float:
    """Return the floor of a script, given or computed by it; higher is better.

    UsageError if its function fails or returns no number within the bounds of a metric.
    """
    assert isinstance(config.data, tasks.ScriptData)  # our caller's case
    return floor_of(_script(config, entry, 0.0), entry, device, config.data.floor)


def _script(config: StudyConfig, entry: Entry, floor: float) -> Script:
    data, lr = config.data, config.training.lr
    assert isinstance(data, tasks.ScriptData)  # our callers' case
    return Script(
        name=entry.name,
        fingerprint=entry.fingerprint,
        init=config.init,
        lr=None if isinstance(lr, str) else lr,
        rungs=config.rungs,
        is_lower_better=data.direction == "minimize",
        floor=floor,
        warm=data.warm,
        patience=data.patience,
    )


def recipe(config: StudyConfig, prepared: Prepared, precision: Precision) -> Recipe:
    """Return how the study's jobs are trained; `precision` is decided when the study is made."""
    lr = config.training.lr
    return Recipe(
        proxy=_network(config, prepared),
        init=config.init,
        batch_size=config.training.batch_size,
        lr=None if isinstance(lr, str) else lr,
        rungs=config.rungs,
        precision=precision,
    )


def _network(config: StudyConfig, prepared: Prepared) -> Proxy | Network:
    proxy, channels, classes = config.proxy, prepared.channels, prepared.classes
    assert proxy is not None  # what has no proxy is trained by its own script
    if isinstance(proxy, NamedNetwork):
        place = entries.place()
        return Network(
            name=proxy.network,
            kwargs=json.dumps(proxy.kwargs, sort_keys=True),
            layers=proxy.layers,
            kernel_sizes=config.kernel_size,
            channels=channels,
            classes=classes,
            kind=proxy.kind(classes=classes is not None),
            code=named.code(proxy.network, place),
            all_outputs=isinstance(prepared, Given),
            place=place,
        )
    return Proxy(proxy.family, proxy.width, proxy.depth, config.kernel_size, channels, classes)


def try_network(config: StudyConfig, prepared: Prepared | Entry) -> list[str]:
    """Try a network on data where either is the user's; return lines for people.

    UsageError if it cannot be trained there. A script's is not known.
    """
    if isinstance(prepared, Entry):
        return []
    if not isinstance(config.proxy, NamedNetwork) and not isinstance(prepared, Given):
        return []  # families are known to fit the data of today's tasks
    tried = recipe(config, prepared, "full")
    return dry_run.check(task(config, prepared, torch.device("cpu")), tried)


def uniform_is_identity(config: StudyConfig, prepared: Prepared) -> bool:
    """Tell whether a uniform mask is as good as identity in the study's confirmation.

    So it is if all is normalised, and trained for long enough.
    """
    proxy = recipe(config, prepared, "full").proxy
    epoch_steps = max(1, len(prepared.train) // config.training.batch_size)
    if config.confirm_budget * epoch_steps < scale_free.STEPS:
        return False
    densities = {k: density.identity(k) for k in proxy.kernel_sizes}
    network = proxies.build(proxy, densities, init="library", seed=0)
    return scale_free.uniform_is_identity(network)


def _plan(data: tasks.DenoisingData) -> PatchPlan:
    return PatchPlan(
        color=data.color,
        size=data.patch,
        per_image=data.patches_per_image,
        validation=data.validation,
        crop=data.crop,
    )
