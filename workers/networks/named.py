"""Networks by their names: torchvision's, timm's, and those of functions of the user's own.

A network is built on the CPU by whoever wrote it. All that it draws meanwhile, from the global
generators of torch, NumPy and Python, is drawn by the seed alone; those are then as they were.
"""

import difflib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.errors import UsageError
from optimizer.learning_rates import Kind
from workers import entries
from workers.entries import Place
from workers.seeds import derive, drawing_by

LIBRARIES = ("torchvision", "timm")
PRETRAINED = ("pretrained", "weights", "checkpoint", "cache_dir", "state_dict")
"""How arguments of the libraries' functions begin that bring weights along, or say from which file
or address: torchvision's weights and weights_backbone, and of timm 1.0.31 pretrained,
pretrained_cfg, pretrained_cfg_overlay, checkpoint_path, cache_dir."""


@dataclass(frozen=True)
class Network:
    """A network by its name, and what it is made with."""

    name: str
    """`torchvision:NAME`, `timm:NAME` or `MODULE:FUNCTION`."""
    kwargs: str
    """As JSON, with sorted keys."""
    layers: tuple[str, ...]
    """Patterns of the names of layers, as `densitune.apply_densities` takes them."""
    kernel_sizes: tuple[int, ...]
    """Odd sizes of the kernels that are weighted."""
    channels: int
    """Channels of what comes in."""
    classes: int | None
    """Classes of a classifier; None for others."""
    kind: Kind
    code: str
    """Which version of the library it is, or the fingerprint of the user's code."""
    all_outputs: bool = False
    """Whether the task takes all that the network returns; otherwise it gets the first of it."""
    place: Place = field(default=Path(), compare=False, repr=False)
    """Where that code is looked for on this machine."""

    @property
    def package(self) -> str | None:
        """Return which package's network it is; None if it is the user's own."""
        source = self.name.partition(":")[0]
        return source if source in LIBRARIES else None

    @property
    def channels_last(self) -> bool:
        """Return whether its memory is channels last, in which networks are faster on a CPU.

        The libraries' take it. A network of the user's may not: `view` fails there, for example.
        """
        return self.package is not None


def code(name: str, place: Place) -> str:
    """Return which code a name stands for here: a library's version or a fingerprint.

    UsageError if it is not here.
    """
    source = name.partition(":")[0]
    if source not in LIBRARIES:
        return entries.find(name, place).fingerprint
    try:
        return f"{source} {importlib.metadata.version(source)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(
            f"proxy.network {name} needs {source}, which is not installed; "
            f"install densitune[{source}]"
        ) from error


def construct(network: Network, seed: int) -> nn.Module:
    """Return a network in training mode on the CPU, with its own initial weights of a seed.

    UsageError if it cannot be built, or cannot be trained here whatever it is given.
    """
    kwargs = json.loads(network.kwargs)
    build = _builder(network, kwargs)
    with drawing_by(derive(seed, "network")):
        try:
            model = build()
        except UsageError:
            raise
        except Exception as error:  # anything may happen in there
            raise UsageError(
                f"proxy.network {network.name} cannot be built for {network.channels} channels "
                f"and {network.classes or 'no'} classes with {kwargs}: {said(error)}"
            ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"proxy.network {network.name} returned a {type(model).__name__}, not a torch.nn.Module"
        )
    _check(network.name, model)
    return model.train()


def adapt(model: nn.Module, network: Network) -> None:
    """Have a model, in place, take inputs in its order of memory, and give what a task takes."""
    if not network.channels_last:
        model.register_forward_pre_hook(lambda _, given: tuple(map(_plainly, given)))
    if not network.all_outputs:
        model.register_forward_hook(lambda _, __, outputs: first_of(outputs))


def _plainly(inputs: Tensor) -> Tensor:
    """Return a copy in plain memory: `contiguous` leaves the strides of images of one channel."""
    return inputs.clone(memory_format=torch.contiguous_format)


def first_of(outputs: Any) -> Any:
    """Return the first of a tuple, a list or a dictionary's values, and so on until it is none."""
    while isinstance(outputs, tuple | list | Mapping) and outputs:
        outputs = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
    return outputs


def in_float32(outputs: Any) -> Any:
    """Return what a network returns with all tensors in it that are fractions in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, Mapping):
        return {name: in_float32(each) for name, each in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*map(in_float32, outputs))
    return type(outputs)(map(in_float32, outputs)) if isinstance(outputs, tuple | list) else outputs


def said(error: BaseException) -> str:
    """Return what an error says in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def _builder(network: Network, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """Return what builds a network; UsageError if there is no such network."""
    channels, classes = network.channels, network.classes
    if network.package is None:
        function = entries.load(entries.find(network.name, network.place))
        return lambda: function(channels, classes, **kwargs)
    given = next((key for key, value in kwargs.items() if value and _is_of_weights(key)), None)
    if given is not None:
        raise UsageError(
            f"proxy.kwargs.{given} asks for weights that would have to be downloaded or read, and "
            f"every seed would start with the same; leave it out, or load them in a function of "
            f"your own"
        )
    kwargs = {key: value for key, value in kwargs.items() if not _is_of_weights(key)}
    # Who denoises has an output channel for each channel, which these libraries call a class.
    outputs = classes or channels
    name = network.name.partition(":")[2]
    if network.package == "torchvision":
        return _torchvision(name, {"num_classes": outputs, **kwargs})
    return _timm(name, {"num_classes": outputs, "in_chans": channels, **kwargs})


def _is_of_weights(argument: str) -> bool:
    return argument.startswith(PRETRAINED)


def _torchvision(name: str, kwargs: dict[str, Any]) -> Callable[[], Any]:
    from torchvision import models

    if name not in models.list_models():
        raise UsageError(_unknown("torchvision", name, models.list_models()))
    function = models.get_model_builder(name)
    without = {key: None for key in inspect.signature(function).parameters if _is_of_weights(key)}
    return lambda: function(**without, **kwargs)


def _timm(name: str, kwargs: dict[str, Any]) -> Callable[[], Any]:
    import timm

    if not timm.is_model(name):
        raise UsageError(_unknown("timm", name, timm.list_models()))
    return lambda: timm.create_model(name, pretrained=False, **kwargs)


def _unknown(library: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"{library} has no network {name}" + (f"; nearest are {', '.join(close)}" * bool(close))


def _check(name: str, model: nn.Module) -> None:
    """Check that all of a network's state is in parameters and buffers that can be copied."""
    held = [*model.named_parameters(), *model.named_buffers()]
    for what, tensor in held:
        if nn.parameter.is_lazy(tensor):
            raise UsageError(
                f"proxy.network {name}: {what} has no shape yet; give lazy layers their sizes"
            )
        if tensor.device.type != "cpu":
            raise UsageError(
                f"proxy.network {name}: {what} is on {tensor.device}; build networks on the CPU, "
                f"each worker moves them to its device"
            )
    odd = next((what for what, each in model.named_parameters() if each.dtype != torch.float32), "")
    if odd:
        raise UsageError(
            f"proxy.network {name}: {odd} is no float32; training.precision says what is trained in"
        )
    for what, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UsageError(
                f"proxy.network {name}: {what or 'it'} ({type(module).__name__}) keeps state "
                f"beside its parameters and buffers, which is not kept with a job"
            )
