"""The first contact with a GPU: whether everything is right on it, and how fast, in one short run.

Sections run one after the other, each in a process of its own with a time limit. results.json is
written anew after each, so that a run that is cut short leaves what it has found. At most 450 s on
an H100 or H200; needs torch, torchvision, numpy and scipy only. Where densitune itself is not
installed, PYTHONPATH has to name the repository's root.

    python benchmarks/device_check.py --out device-check
    python benchmarks/device_check.py --quick --device cpu    # only whether it runs, in a minute
    python benchmarks/device_check.py --study                 # and a real launch for two minutes
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from helpers import ratios
from helpers.device_plan import Plan
from helpers.device_sections import SECTIONS

from workers.training import devices, packing

ROOT = Path(__file__).resolve().parents[1]
STUDY_SECONDS = 120.0
INTERRUPTED = 130
"""With which `launch` ends after Ctrl-C."""
WIDTH = 90
"""Of the figures in the table, in characters; all of them are printed before, as they come."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections; return 1 if one is wrong, failed or took too long."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _end)  # or it would leave a section behind
    # A process that has used CUDA cannot fork, so this one only names the device.
    plan = Plan(torch.device(options.device), options.quick)
    chosen = options.section or list(SECTIONS)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in chosen:
        results[name] = run(name, plan)
        _write(options.out, results)
        print(*_row(name, results[name], None), sep="  ", flush=True)
    if options.study:
        results["study"] = study(options.device)
        _write(options.out, results)
    print()
    print(
        ratios.table(
            ["section", "seconds", "is", "figures"], [_row(*one) for one in results.items()]
        )
    )
    return int(any(_state(result) != "right" for result in results.values()))


def run(name: str, plan: Plan) -> dict[str, Any]:
    """Run a section in a process of its own; return its figures, or how it ended without any."""
    context = multiprocessing.get_context("fork")  # torch is loaded once, and takes seconds
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_section, args=(name, plan, theirs))
    # Where only its running counts, the machine may be as slow as it likes.
    limit, started = SECTIONS[name][1] * (4 if plan.quick else 1), time.perf_counter()
    process.start()
    theirs.close()
    figures = {"error": f"not done after {limit:.0f} s"}
    try:
        if ours.poll(limit):
            figures = ours.recv()
            process.join(5)
    except EOFError:
        process.join()
        figures = {"error": f"its process ended with code {process.exitcode}"}
    finally:
        _kill(process)
        process.join()
    return {"seconds": round(time.perf_counter() - started, 1), **figures}


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _kill(process: ForkProcess) -> None:
    """Kill a section with all that it started: what is left would take part in the next section."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _section(name: str, plan: Plan, end: "Connection[Any, Any]") -> None:
    os.setpgid(0, 0)
    devices.make_repeatable(plan.device)
    if plan.quick:
        packing.SECONDS = 0.01
    try:
        end.send(SECTIONS[name][0](plan))
    except Exception as error:
        end.send({"error": f"{type(error).__name__}: {error}"})
        raise


def study(device: str) -> dict[str, Any]:
    """Launch the quickstart on the device for two minutes; return how far it came."""
    command = [sys.executable, "-m", "optimizer.cli"]
    with tempfile.TemporaryDirectory(prefix="device-check-", ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "DENSITUNE_HOME": home}
        environment.pop("DENSITUNE_STORAGE", None)
        launch = [*command, "launch", "configs/quickstart.yaml", "--device", device]
        started = time.perf_counter()
        # A group of its own, so that whoever ends this one has it ended once, and wholly.
        process = subprocess.Popen(launch, cwd=ROOT, env=environment, start_new_session=True)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(STUDY_SECONDS)
        finally:
            _interrupt(process)
        taken = time.perf_counter() - started
        status = subprocess.run(
            [*command, "status", "quickstart", "--json"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        logs = [path.read_text(errors="replace") for path in Path(home).glob("logs/*.log")]
    figures: dict[str, Any] = {"seconds": round(taken, 1), "logs": logs}
    if status.returncode:
        return {**figures, "error": status.stderr.strip()[-300:]}
    found = json.loads(status.stdout)
    figures |= {"status": found, "wrong": [found["failure"]] if found["failure"] else []}
    # Jobs that were handed back when it was ended have no error.
    figures["wrong"] += [failure["error"] for failure in found["failures"] if failure["error"]]
    if process.returncode not in (0, INTERRUPTED):
        figures["wrong"].append(f"launch ended with code {process.returncode}")
    if not any(jobs.get("done") for jobs in found["phases"].values()):
        figures["wrong"].append("no job was done")
    return figures


def _interrupt(process: "subprocess.Popen[bytes]") -> None:
    """End a launch as Ctrl-C does; kill what has not ended a minute later."""
    process.send_signal(signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write(folder: Path, results: dict[str, Any]) -> None:
    part = folder / "results.json.part"
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "results.json")


def _state(result: dict[str, Any]) -> str:
    if "error" in result:
        return "FAILED"
    return "WRONG" if result.get("wrong") else "right"


def _row(name: str, result: dict[str, Any], width: int | None = WIDTH) -> list[str]:
    told = {key: value for key, value in result.items() if key not in ("seconds", "logs")}
    return [name, f"{result['seconds']:.1f}", _state(result), json.dumps(told)[:width]]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks: only whether it runs")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, help="all, unless some are named")
    parser.add_argument("--study", action="store_true", help="launch a real study for two minutes")
    parser.add_argument("--out", type=Path, default=Path("device-check"), help="of results.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
