"""Whether keys of a study's configuration, and its sections, fit; ValueError in one line if not."""

import re
from collections.abc import Collection, Sequence

from densitune import density
from densitune.density import Densities
from optimizer import design
from optimizer.arms import Init
from optimizer.config.networks import Proxy, ProxyShape
from optimizer.config.sections import Audit, Included, Search, Training
from optimizer.config.tasks import Data, ScriptData

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""What a study may be called: fit for files and URLs."""


def check_name(name: str) -> None:
    """Raise ValueError if no study may be called so."""
    if not re.fullmatch(NAME, name):
        raise ValueError(
            "a name has 1 to 63 of the characters A-Z a-z 0-9 . _ - and starts with a letter or "
            "digit"
        )


def check_kernel_size(k: int) -> None:
    """Raise ValueError if no study may have this kernel size: memory grows with its square."""
    if not 3 <= k <= 31 or k % 2 == 0:
        raise ValueError(
            f"kernel_size {k} is not an odd size from 3 to 31; the nearest is "
            f"{min(max(3, k - 1 + k % 2), 31)}"
        )


def check_kernel_sizes(sizes: tuple[int, ...], proxy: Proxy | None) -> None:
    """Check that a study may have these kernel sizes and its network may take so many."""
    for k in sizes:
        check_kernel_size(k)
    if not sizes or len(set(sizes)) != len(sizes):
        raise ValueError(f"kernel_size {list(sizes)} must name at least one size, each once")
    if proxy is not None:
        proxy.check_sizes(len(sizes))


def check_network(proxy: Proxy | None, data: Data, training: Training, init: Init) -> None:
    """Check that there is a network for the data, and a rate to begin with; scripts have both."""
    if isinstance(data, ScriptData):
        _check_script(proxy, training)
        return
    if proxy is None:
        raise ValueError("proxy is missing; give it family, width and depth, or network")
    proxy.check_task(data.task, data.goal)
    if init == "model" and isinstance(proxy, ProxyShape):
        raise ValueError(
            f"init: model keeps the initial weights that a network of your own has, and a "
            f"{proxy.family} has none; take library or compensated, or a network by name"
        )
    if training.lr == "none":
        raise ValueError("training.lr none is for a training script; take auto or a number")


def check_audit(
    audit: Audit, sizes: tuple[int, ...], data: Data, training: Training, init: Init
) -> None:
    """Check that the larger network is one for the data and takes the study's kernel sizes."""
    if isinstance(data, ScriptData):
        raise ValueError(
            "audit has no place beside data.entry: a script trains the network that it builds; "
            "begin a second study with the larger one and density.include"
        )
    try:
        check_kernel_sizes(sizes, audit.proxy)
        check_network(audit.proxy, data, training, init)
    except ValueError as error:
        raise ValueError(f"audit: {error}") from error


def _check_script(proxy: Proxy | None, training: Training) -> None:
    if proxy is not None:
        raise ValueError("proxy has no place beside data.entry: the script builds its network")
    for key in ("batch_size", "precision"):
        given = getattr(training, key)
        if given != Training.model_fields[key].default:
            raise ValueError(
                f"training.{key} {given} has no effect on a training script, which has its own; "
                f"leave it out"
            )
    if training.lr == "auto" and training.usual_lr is None:
        raise ValueError(
            "training.lr auto needs training.usual_lr, the rate that the script is usually trained "
            "at; or give training.lr as a number, or as none if the script has its own"
        )


def check_included(
    written: Sequence[Included], included: Sequence[Densities], sizes: Collection[int]
) -> None:
    """Check that the densities of density.include, as written and by size, are some of a study."""
    for number, values in enumerate(written):
        if isinstance(values, tuple) and len(sizes) > 1:
            raise ValueError(
                f"density.include[{number}] is {list(values)}, but the study has the kernel sizes "
                f"{list(sizes)}; write {{size: [values], ...}} with each of them"
            )
    for number, densities in enumerate(included):
        if sorted(densities) != sorted(sizes):
            raise ValueError(
                f"density.include[{number}] names the kernel sizes {sorted(densities)}; "
                f"the study has {list(sizes)}"
            )
        for k, den in densities.items():
            try:
                density.validate(den, k)
            except ValueError as error:
                raise ValueError(f"density.include[{number}]: {error}") from error


def check_search(search: Search, budget: int, anchors: int, dimensions: int) -> None:
    """Check rungs and trials against the budget, the trials that come first and the sampler."""
    if list(search.rungs) != sorted(set(search.rungs)) or any(r >= budget for r in search.rungs):
        raise ValueError(
            f"search.rungs {list(search.rungs)} must rise and stay below training.budget {budget}"
        )
    if search.trials < anchors:
        raise ValueError(
            f"search.trials {search.trials} is below {anchors}: identity, the published densities "
            f"of this kernel size and density.include are trained first"
        )
    if search.sampler == "cmaes" and dimensions < 2:
        raise ValueError(
            "search.sampler cmaes needs at least two values to search and kernel size 3 has one; "
            "take tpe, gp or auto"
        )
    if search.sampler == "grid":
        _check_grid(search.trials, anchors, dimensions)


def _check_grid(trials: int, first: int, dimensions: int) -> None:
    """Check that a grid of at least two levels is full after the first trials."""
    levels = design.grid_levels(trials - first, dimensions)
    if levels >= 2 and first + levels**dimensions == trials:
        return
    nearest = [first + n**dimensions for n in (levels, levels + 1) if n >= 2]
    raise ValueError(
        f"search.trials {trials} does not fill a grid of {dimensions} values after the first "
        f"{first} trials; take {' or '.join(map(str, nearest or [first + 2**dimensions]))}"
    )
