"""Weighted models in the tools that a model goes through: exporters, the compiler, several GPUs."""

import copy
import io
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.distributed as dist
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densitune import apply_densities, fold_all

RANKS = 2


class Network(nn.Module):
    """Every kind of convolution that is weighted: usual, strided, grouped, depthwise, 5 x 5."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
            nn.GELU(),
            nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 4)."""
        found: Tensor = self.body(images).mean((2, 3))
        return found


def weighted(*, trainable: bool = False, dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    network = Network().to(dtype)
    apply_densities(network, {3: (0.4,), 5: (0.2, 0.7)}, init="library", trainable=trainable)
    return network


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("trainable", [False, True])
def test_torch_export_computes_the_same(trainable: bool) -> None:
    network = weighted(trainable=trainable).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (images(),), dynamic_shapes=({0: batch},))
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    for count in (1, 2, 5):
        torch.testing.assert_close(loaded(images(count)), network(images(count)))


@pytest.mark.parametrize("trainable", [False, True])
def test_compiled_training_is_the_training(trainable: bool) -> None:
    """With the gradient compiled as well (AOT autograd), in float64."""
    network = weighted(trainable=trainable, dtype=torch.float64)
    compiled_network = copy.deepcopy(network)
    run = torch.compile(compiled_network, backend="aot_eager", fullgraph=True)
    for step, one in ((network, network), (run, compiled_network)):
        train(step, one, images(dtype=torch.float64), steps=3)
    torch.testing.assert_close(compiled_network.state_dict(), network.state_dict())


@pytest.mark.parametrize("folded", [False, True])
def test_onnx_computes_the_same(folded: bool, tmp_path: Path) -> None:
    network = weighted().eval()
    expected = network(images())
    if folded:
        fold_all(network)
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (images(),), path, dynamo=True, verbose=False)
    exported = onnx.load(path)
    [found] = ReferenceEvaluator(exported).run(
        None, {exported.graph.input[0].name: images().numpy()}
    )
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [False, True])
def test_weights_go_from_one_weighted_model_to_another(trainable: bool, tmp_path: Path) -> None:
    """A file has weights and densities; the other model was converted with others."""
    network, other = weighted(trainable=trainable), Network()
    train(network, network, images(), steps=2)
    apply_densities(other, {3: (0.9,), 5: (1.0, 1.0)}, trainable=trainable)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    assert other.eval()(images()).equal(network.eval()(images()))


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Each on half of the batch: gradients are means over both. Batch norm judges, and stays."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    for trainable in (False, True):
        alone = frozen(weighted(trainable=trainable, dtype=torch.float64))
        train(alone, alone, images(4, torch.float64), steps=3)
        for rank in range(RANKS):
            found = torch.load(tmp_path / f"{trainable}-{rank}.pt", weights_only=True)
            torch.testing.assert_close(found, dict(alone.state_dict()))


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    for trainable in (False, True):
        network = frozen(weighted(trainable=trainable, dtype=torch.float64))
        parallel = DistributedDataParallel(network)
        train(parallel, network, images(4, torch.float64)[rank::RANKS], steps=3)
        torch.save(dict(network.state_dict()), folder / f"{trainable}-{rank}.pt")
    dist.destroy_process_group()


def frozen(network: Network) -> Network:
    """Return a network whose batch norm uses what it has seen before: nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def train(
    run: Callable[[Tensor], Tensor], network: nn.Module, batch: Tensor, *, steps: int
) -> None:
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        run(batch).square().mean().backward()
        optimizer.step()
