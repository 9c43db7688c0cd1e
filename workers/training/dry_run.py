"""Whether a network can be trained and judged on a task: tried before anything is written.

Two items go forward and backward, once as identity and once weighted, and two are judged. What is
wrong is told in one line, with what to do.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from densitune import density
from densitune.conversion import left_alone
from densitune.density import Densities
from densitune.weighted_conv import WeightedConv
from optimizer.errors import UsageError
from workers.networks import named, proxies
from workers.networks.named import Network, said
from workers.networks.proxies import Proxy
from workers.training.chance import drawing_from
from workers.training.recipe import Recipe
from workers.training.tasks import Draws, Tried

ITEMS = 2
HALF = 0.5
"""Of every value of the density that is tried: far from identity, and allowed."""
CPU = torch.device("cpu")
ASKING = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_consecutive": "unique_consecutive",
}
"""Operators whose results depend on values in number or are values, as torch and as people call
them."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
NAMED = 5
"""How many layers a line names."""


def check(task: Tried, recipe: Recipe) -> list[str]:
    """Try a recipe's network on a task that is on the CPU; return lines for people.

    UsageError if it cannot be trained or judged there, or its result would depend on more than its
    job.
    """
    network = recipe.proxy
    ones = {k: density.identity(k) for k in network.kernel_sizes}
    halves = {k: tuple(HALF for _ in den) for k, den in ones.items()}
    plain, weighted = (_built(network, recipe, densities) for densities in (ones, halves))
    layers = {
        name: layer for name, layer in weighted.named_modules() if isinstance(layer, WeightedConv)
    }
    called: set[nn.Module] = set()
    for layer in layers.values():
        layer.register_forward_hook(lambda one, *_: called.add(one))
    asking = _Asking()
    for model in (plain, weighted):
        _trained(task, recipe, model, network, asking)
    _check_layers(network, layers, called)
    _check_judging(task, weighted, network)
    lines = _lines(network, weighted, layers)
    if asking.asked:
        lines.append(
            f"in training it asks for the value of a tensor ({', '.join(sorted(asking.asked))}): "
            f"it trains on a CPU, and not on a GPU, where steps are captured"
        )
    return lines


class _Asking(TorchDispatchMode):
    """Notes what has to know a tensor's value on the host, which no captured step can."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        if name in ASKING:
            self.asked.add(ASKING[name])
        return func(*args, **(kwargs or {}))


def _built(network: Proxy | Network, recipe: Recipe, densities: Densities) -> nn.Module:
    """Return a network as a slot has it; ValueError becomes a UsageError with the same line."""
    try:
        model = proxies.build(network, densities, init=recipe.init, seed=0)
    except ValueError as error:
        raise UsageError(f"proxy {network.name}: {error}") from error
    proxies.arrange(model, network)
    if isinstance(network, Network):
        named.adapt(model, network)
    return model


def _trained(
    task: Tried, recipe: Recipe, model: nn.Module, network: Proxy | Network, asking: "_Asking"
) -> None:
    """Go forward and backward with the first items, twice from the same state to the same loss."""
    chosen = torch.arange(min(ITEMS, recipe.batch_size, len(task)))
    before = {name: value.clone() for name, value in proxies.tensors(model).items()}
    plain, losses = _plain_values(model), []
    for _ in range(2):
        draws = Draws(0, CPU, network=True)
        inputs, targets = task.batch(chosen, draws)
        for name, value in proxies.tensors(model).items():
            value.copy_(before[name])
        model.zero_grad(set_to_none=True)
        with drawing_from(draws.network, CPU), asking:
            outputs = _forward(model, inputs, network)
            task.check(outputs, targets, network.name)
            loss = _backward(task, outputs, targets, network)
        losses.append(loss.item())
    if not all(map(math.isfinite, losses)):
        raise UsageError(
            f"proxy {network.name}: its loss is {losses[0]:g} before the first step; look "
            f"at init and at the network"
        )
    if losses[0] != losses[1]:
        raise UsageError(
            f"proxy {network.name}: two passes with the same seed have the losses "
            f"{losses[0]:g} and {losses[1]:g}; whatever it draws in training has to come from "
            f"torch's global generator, and its state has to be in parameters and buffers"
        )
    changed = sorted(_plain_values(model) - plain)
    if changed:
        raise UsageError(
            f"proxy {network.name}: {changed[0][0]} changes in training to {changed[0][1]}; what "
            f"a network keeps beside its parameters and buffers stays from one job to the next and "
            f"is in no checkpoint: register it as a buffer"
        )


def _plain_values(model: nn.Module) -> set[tuple[str, str]]:
    """Return what modules keep in attributes of their own, as name and text."""
    return {
        (f"{name}.{key}".removeprefix("."), _text(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in _OF_EVERY_MODULE
    }


def _text(value: Any) -> str:
    """Return a plain value as text, those in lists and dictionaries one by one, others' type."""
    if isinstance(value, Number | str | bytes | None):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return f"{type(value).__name__} of {[_text(each) for each in value]}"
    if isinstance(value, Mapping):
        return str({str(key): _text(each) for key, each in value.items()})
    return type(value).__name__


def _forward(model: nn.Module, inputs: Tensor, network: Proxy | Network) -> Any:
    try:
        return model(inputs)
    except Exception as error:  # whatever a foreign forward does
        raise UsageError(
            f"proxy {network.name} does not take inputs of shape {tuple(inputs.shape)}: "
            f"{said(error)}; look at data (color, size, patch) and proxy.kwargs"
        ) from error


def _backward(task: Tried, outputs: Any, targets: Any, network: Proxy | Network) -> Tensor:
    try:
        loss = task.loss(outputs, targets)
        loss.backward()
    except Exception as error:
        raise UsageError(f"proxy {network.name} cannot be trained: {said(error)}") from error
    return loss.detach()


def _check_layers(
    network: Proxy | Network, layers: Mapping[str, WeightedConv], called: Collection[nn.Module]
) -> None:
    """Check that every weighted layer has a say: it is called, and a gradient comes back."""
    for why, idle in (
        ("not called", [name for name, layer in layers.items() if layer not in called]),
        ("without a gradient", [n for n, layer in layers.items() if layer.weight.grad is None]),
    ):
        if idle:
            raise UsageError(
                f"proxy {network.name}: {_some(idle)} {'is' if len(idle) == 1 else 'are'} "
                f"{why}, so that a density has no effect there; leave out what is not to be "
                f"weighted, such as proxy.layers: ['!{idle[0]}']"
            )


def _check_judging(task: Tried, model: nn.Module, network: Proxy | Network) -> None:
    """Judge twice: what is judged must not depend on chance, nor on what was judged before."""
    model.eval()
    try:
        with torch.inference_mode():
            first, second = (task.judge_few(model, ITEMS) for _ in range(2))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"proxy {network.name} cannot be judged on the validation data: {said(error)}"
        ) from error
    if repr(first) != repr(second):  # NaN is as good as any other number here
        raise UsageError(
            f"proxy {network.name}: judged twice on the same it scores {first.value:g} and "
            f"{second.value:g}, with {first.extra} and {second.extra}; in evaluation mode it must "
            f"draw nothing and keep its state"
        )


def _lines(
    network: Proxy | Network, model: nn.Module, layers: Mapping[str, WeightedConv]
) -> list[str]:
    """Return what is weighted and what is left alone."""
    counts: dict[str, int] = {}
    for layer in layers.values():
        kernel = " x ".join(map(str, layer.kernel_size))
        counts[kernel] = counts.get(kernel, 0) + 1
    told = " and ".join(f"{count} of {kernel}" for kernel, count in counts.items())
    weights = sum(parameter.numel() for parameter in model.parameters())
    code = f" ({network.code[:20]})" if isinstance(network, Network) else ""
    lines = [f"{network.name}{code}: {weights:,} weights; weighted layers: {told}"]
    others = left_alone(model, network.kernel_sizes)
    if others:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(others.items())[:NAMED])
        lines.append(f"left as they are: {len(others)} that cannot be weighted ({why})")
    return lines


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
