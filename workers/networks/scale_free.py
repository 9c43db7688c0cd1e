"""Whether the scale of a network's weighted convolutions matters: not where each is normalised.

A normalisation subtracts the mean and divides by the deviation of what it gets, so that a factor c
on a convolution before it is lost, but for the normalisation's epsilon, which then acts as
epsilon / c². The loss is then the same function of the raw weights whatever c is, and so are its
gradients: a uniform mask trains as identity does under every optimiser (van Laarhoven 2017, arXiv
1706.05350, for the invariance). Only the running statistics of batch normalisation, by which
networks are judged, begin elsewhere; with torch's momentum of 0.1 STEPS forget that.
"""

from collections import Counter
from collections.abc import Iterable

from torch import fx, nn

from densitune.weighted_conv import WeightedConv

STEPS = 100
"""Of training, after which 0.9^100 = 3e-5 is left of initial running statistics."""
PER_CHANNEL = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
"""They subtract a mean for each channel, so that a convolution's bias is lost as well."""
MOMENTUM, EPSILON = 0.1, 1e-5
"""Torch's own: with a smaller momentum more is left after STEPS, and a larger epsilon is not
negligible. A network by name may have either."""
OVER_CHANNELS = (nn.GroupNorm, nn.LayerNorm)
"""A bias before them stays, and with it the scale of what it is added to."""


def uniform_is_identity(network: nn.Module) -> bool:
    """Tell whether every weighted convolution of a network in training feeds normalisations alone.

    Read from a trace of the forward pass. False where that leaves a doubt: a forward that cannot
    be traced, hooks, weights that are used elsewhere, normalisations that are frozen or shared. So
    it is for a network without weighted convolutions.
    """
    weighted = {
        name: module for name, module in network.named_modules() if isinstance(module, WeightedConv)
    }
    graph = _trace(network)
    if graph is None or _hidden(network, weighted.values()):
        return False
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    if not weighted or any(calls[name] == 0 for name in weighted):
        return False

    def loses_scale(user: fx.Node, biased: bool) -> bool:
        if user.op != "call_module" or calls[str(user.target)] != 1:
            return False
        module = network.get_submodule(str(user.target))
        kinds = PER_CHANNEL if biased else (*PER_CHANNEL, *OVER_CHANNELS)
        return type(module) in kinds and module.training and _is_usual(module)

    for node in graph.nodes:
        name = str(node.target)
        if node.op == "get_attr" and name.rpartition(".")[0] in weighted:
            return False  # a weight in other hands
        if node.op == "call_module" and name in weighted:
            biased = weighted[name].bias is not None
            if not node.users or not all(loses_scale(user, biased) for user in node.users):
                return False
    return True


def _is_usual(module: nn.Module) -> bool:
    """Tell whether a normalisation forgets in STEPS, and its epsilon is negligible."""
    if not isinstance(eps := getattr(module, "eps", None), float) or eps > EPSILON:
        return False
    if not getattr(module, "track_running_stats", False):
        return True
    momentum = getattr(module, "momentum", None)
    return isinstance(momentum, float) and momentum >= MOMENTUM


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WeightedConv) or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> fx.Graph | None:
    try:
        return _Tracer().trace(network)
    except Exception:  # whatever a foreign forward does with what is no tensor
        return None


def _hidden(network: nn.Module, weighted: Iterable[WeightedConv]) -> bool:
    """Tell whether something may see a convolution's output or weight that no trace shows."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        return True
    owners = Counter(
        id(parameter)
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
    )
    return any(owners[id(module.weight)] != 1 for module in weighted)
