"""Devices: names, refusals in one line, the places of local workers, repeatable set-up."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optimizer.errors import UsageError
from workers.training import devices

pytestmark = pytest.mark.numerical

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def see(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """Let torch report this number of GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")


def refused(name: str) -> str:
    with pytest.raises(UsageError) as caught:
        devices.resolve(name)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_auto_is_what_this_machine_has() -> None:
    assert devices.resolve("auto").type == ("cuda" if GPUS else "cpu")


@pytest.mark.parametrize(("gpus", "kind"), [(0, "cpu"), (1, "cuda"), (3, "cuda")])
def test_auto_prefers_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int, kind: str) -> None:
    see(monkeypatch, gpus)
    assert devices.resolve("auto") == torch.device(kind)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a driver that torch cannot use; no such machine was at hand."""
    see(monkeypatch, 0)
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  450.80.02")
    monkeypatch.setattr(devices, "DRIVER", version)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("visible", [None, "0", "1,0", "GPU-8e1c", "MIG-8e1c"])
def test_auto_does_not_take_the_cpu_for_a_gpu_that_torch_cannot_use(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "sees no GPU; update the driver" in refused("auto")
    assert devices.resolve("cpu") == torch.device("cpu")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_auto_takes_the_cpu_where_gpus_are_hidden(
    monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.resolve("auto") == torch.device("cpu")


@pytest.mark.usefixtures("driver")
def test_auto_takes_the_cpu_in_a_container_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert devices.resolve("auto") == torch.device("cpu")


def test_a_gpu_has_a_queue_for_every_stream_before_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    found: list[str | None] = []
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found.append(os.environ.get(name)))
    devices.resolve("auto")
    assert found == ["32"]
    monkeypatch.setenv(name, "8")  # somebody's own choice
    devices.resolve("auto")
    assert found == ["32", "8"]


@pytest.mark.parametrize("gpus", [0, 2])
def test_cpu_is_the_cpu_everywhere(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    see(monkeypatch, gpus)
    assert devices.resolve("cpu") == torch.device("cpu")


def test_gpus_are_found_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 2)
    assert devices.resolve("cuda") == torch.device("cuda")
    assert [devices.resolve(f"cuda:{n}") for n in range(2)] == [
        torch.device("cuda", 0),
        torch.device("cuda", 1),
    ]


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "CUDA", "mps", "meta", "cpu:1", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "0"],
)
@pytest.mark.parametrize("gpus", [0, 2])
def test_unknown_name_is_refused_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int
) -> None:
    see(monkeypatch, gpus)
    assert refused(name) == f"device {name!r} is unknown; take auto, cpu, cuda or cuda:N"


# torch itself takes an index modulo 256.
@pytest.mark.parametrize("index", [GPUS, GPUS + 128, GPUS + 255, 256, 300, 10**12])
def test_gpu_that_this_machine_lacks_is_refused(index: int) -> None:
    assert refused(f"cuda:{index}").startswith(f"device cuda:{index} was asked for, but torch sees")


@pytest.mark.parametrize(("gpus", "found"), [(0, "no GPU"), (1, "1 GPU"), (2, "2 GPUs")])
def test_refusal_tells_what_is_there(
    monkeypatch: pytest.MonkeyPatch, gpus: int, found: str
) -> None:
    see(monkeypatch, gpus)
    expected = f"device cuda:{gpus} was asked for, but torch sees {found} here; take cpu"
    assert refused(f"cuda:{gpus}") == expected


def test_gpu_without_a_number_needs_one_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0)
    assert refused("cuda") == "device cuda was asked for, but torch sees no GPU here; take cpu"


def test_all_gpus_are_named_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 3)
    assert devices.all_gpus() == ["cuda:0", "cuda:1", "cuda:2"]


def test_all_gpus_of_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0)
    with pytest.raises(UsageError, match=r"torch sees no GPU here; take --device cpu$"):
        devices.all_gpus()


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_worker_for_each_core_without_gpus(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    see(monkeypatch, 0)
    assert devices.spread(name, None) == ["cpu"] * CORES
    assert devices.spread(name, 3) == ["cpu"] * 3


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_workers_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    see(monkeypatch, 2)
    assert devices.spread(name, None) == ["cuda:0", "cuda:1"]
    assert devices.spread(name, 1) == ["cuda:0"]
    assert devices.spread(name, 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


def test_workers_share_the_one_gpu_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 4)
    assert devices.spread("cuda:2", None) == ["cuda:2"]
    assert devices.spread("cuda:2", 2) == ["cuda:2", "cuda:2"]
    assert devices.spread("cpu", 2) == ["cpu", "cpu"]


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "tpu"])
def test_workers_on_a_missing_device_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    see(monkeypatch, 0)
    with pytest.raises(UsageError):
        devices.spread(name, 2)


def test_devices_have_names_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 2)
    name = devices.describe(torch.device("cpu"))
    assert name == f"{devices.cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    assert devices.cpu_model() in Path("/proc/cpuinfo").read_text()
    assert devices.describe(torch.device("cuda", 1)) == "Card 1"


def settings_after(device: str) -> list[str]:
    """Return threads, cuDNN's settings and cuBLAS's of a process set up for a device, which may be
    made up, and the current device if one was chosen."""
    program = (
        "import os, torch; from workers.training.devices import make_repeatable;"
        "own = [None]; torch.cuda.set_device = own.append;"
        f"make_repeatable(torch.device({device!r})); cudnn = torch.backends.cudnn;"
        "print(torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark,"
        "os.environ.get('CUBLAS_WORKSPACE_CONFIG'), cudnn.allow_tf32,"
        "torch.backends.cuda.matmul.allow_tf32, os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS'),"
        "own[-1])"
    )
    environment = {key: os.environ[key] for key in os.environ if key[:2] != "CU"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"},
    )
    return done.stdout.split()


def test_a_cpu_worker_has_one_thread() -> None:
    assert settings_after("cpu")[0] == "1"


def test_a_gpu_worker_takes_deterministic_algorithms() -> None:
    assert settings_after("cuda")[1:4] == ["True", "False", ":4096:8"]


def test_a_gpu_worker_computes_float32_in_float32() -> None:
    assert settings_after("cuda")[4:6] == ["False", "False"]  # TF32: convolutions, products


def test_a_gpu_worker_that_is_given_its_device_has_a_queue_for_every_stream() -> None:
    assert settings_after("cuda")[6] == "32"


@pytest.mark.parametrize(("name", "own"), [("cuda:1", "cuda:1"), ("cuda", "None"), ("cpu", "None")])
def test_a_gpu_with_a_number_is_the_current_one(name: str, own: str) -> None:
    assert settings_after(name)[7] == own


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
    ids=repr,
)
def test_a_full_device_is_known_however_it_is_said(error: Exception) -> None:
    assert devices.is_out_of_memory(error)
    masked, caused = RuntimeError("CUDA error: capture invalidated"), ValueError("of no use")
    masked.__context__ = error
    caused.__cause__ = masked
    assert devices.is_out_of_memory(masked)
    assert devices.is_out_of_memory(caused)


def test_other_errors_are_not_taken_for_a_full_device() -> None:
    first, second = RuntimeError("CUDA error: device-side assert"), RuntimeError("out of range")
    first.__context__, second.__context__ = second, first  # chains may be circular
    assert not devices.is_out_of_memory(first)


# Precision


def exactness(limit: str) -> tuple[float, bool]:
    """How far a bfloat16 gradient is off with these instructions, and whether it is refused.

    Off: relative to the largest element, beyond the rounding of the result itself. The batch of 64
    is one of 16 x 16 images with 16 channels.
    """
    program = """
import torch
from workers.training import devices

cpu = torch.device("cpu")
draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
images, upstream = draw(64, 16, 16, 16).bfloat16(), draw(64, 16, 16, 16).roll(1, 0).bfloat16()
sums = []
for dtype in (torch.bfloat16, torch.float64):
    kernel = torch.zeros(16, 16, 3, 3, dtype=dtype, requires_grad=True)
    output = torch.conv2d(images.to(dtype), kernel, padding=1)
    sums += torch.autograd.grad(output, kernel, upstream.to(dtype))
off = (sums[0].double() - sums[1]).abs() - sums[1].abs() * 2**-8
print((off.max() / sums[1].abs().max()).item())
try:
    devices.check_precision("bfloat16", ["cpu"])
except devices.UsageError as error:
    print(error)
devices.check_precision(devices.precision("auto", cpu), ["cpu"])
devices.check_precision("full", ["cpu"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "ONEDNN_MAX_CPU_ISA": limit,
        },
    )
    off, *refusal = done.stdout.splitlines()
    if refusal:
        assert refusal[0].startswith(
            "training.precision bfloat16 needs a GPU or a CPU with AVX-512"
        )
        assert len(refusal) == 1
    return float(off), bool(refusal)


@pytest.mark.parametrize("limit", ["AVX2", "DEFAULT"])
def test_bfloat16_is_refused_where_its_gradients_are_not_exact(limit: str) -> None:
    off, refused = exactness(limit)
    assert refused == (off > 1e-3)
    assert refused or limit == "DEFAULT"


def test_bfloat16_on_a_gpu_needs_no_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, 1)
    monkeypatch.setattr(devices, "_adds_in_float32", lambda device: device.type == "cuda")
    devices.check_precision("bfloat16", ["auto", "cuda:0"])
    with pytest.raises(UsageError, match="adds up in bfloat16"):
        devices.check_precision("bfloat16", ["cuda:0", "cpu"])
    devices.check_precision("full", ["cpu"])
