"""A density that looks good because it shrinks the initial weights, and what densitune says of it.

DnCNN with the layer library's initialisation starts far from anything useful, and in 300 steps at a
learning rate of 3e-3 it does not recover; every density below 1 starts smaller, and so does the
scale control. The same study is run with that rate and with a calibrated one. Both are whole
studies by `densitune launch`: first as anybody would run it, then with --force if it refuses.

    python benchmarks/confound.py --train bsd-train400 --test set12 --json confound.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from helpers import ratios

from optimizer import snapshot
from optimizer.cli import environment
from optimizer.evidence import differences
from optimizer.evidence.verdicts import Control
from optimizer.phases import comparisons
from optimizer.phases.comparisons import IDENTITY
from optimizer.snapshot import Snapshot
from storage import server

CONTROLS = get_args(Control)
STUDY = Path(__file__).with_suffix(".yaml")
ROLES = ("finalist", "control", "uniform", "compensated")


def configured(lr: float | str, train: Path, test: Path | None) -> dict[str, Any]:
    """Return the study's file with a learning rate and the folders of its images."""
    raw: dict[str, Any] = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    raw["name"] = f"confound-lr-{lr}"
    raw["training"]["lr"] = lr
    raw["data"]["folder"] = str(train.resolve())
    if test is not None:
        raw["data"]["test"] = str(test.resolve())
    return raw


def run(raw: dict[str, Any], folder: Path) -> tuple[Snapshot, str | None]:
    """Run a study to its verdicts; return what it found, and why it first refused if it did."""
    path = folder / f"{raw['name']}.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    refusal = _launch(path)
    if refusal is not None:
        print(refusal, flush=True)
        if failure := _launch(path, "--force"):
            raise SystemExit(failure)
    return snapshot.of(environment.open_storage(None), raw["name"]), refusal


def _launch(path: Path, *options: str) -> str | None:
    """Launch a study; return the line with which it refuses to go on (exit code 1), if it does."""
    command = [sys.executable, "-m", "optimizer.cli", "launch", str(path), *options, "--pack", "1"]
    ended = subprocess.run(
        [*command, "--presets", str(path.parent / "presets")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if ended.returncode not in (0, 1):
        raise SystemExit(ended.stderr)
    return ended.stderr.strip() if ended.returncode else None


def explained(found: Snapshot) -> list[dict[str, Any]]:
    """Return what the arms of each finalist come to: paired differences with standard errors."""
    values = differences.final_values(found.confirm.rows)
    groups = comparisons.groups(found.confirm.trials)
    identity = values[IDENTITY]
    return [
        {
            "lr": found.lr,
            "density": list(group.finalist.densities[5]),
            "seeds": len(values[group.finalist.number]),
            "identity": statistics.fmean(identity.values()),
            "minus identity": {
                arm.role: _difference(values[arm.number], identity) for arm in group.arms
            },
            "finalist minus": {
                name: _difference(values[group.finalist.number], values[arm.number])
                for name, arm in group.controls.items()
            },
            "verdict": one.verdict,
        }
        for group, one in zip(groups, found.verdicts, strict=True)
    ]


def _difference(own: Mapping[int, float], other: Mapping[int, float]) -> list[float | None]:
    found = differences.paired(own, other)
    return [found.mean, found.standard_error]


def rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table: one for each learning rate and finalist."""
    return [
        [
            f"{one['lr']:g}",
            str(one["density"]),
            f"{one['identity']:.2f}",
            *(_text(one["minus identity"].get(role)) for role in ROLES),
            *(_text(one["finalist minus"].get(control)) for control in CONTROLS),
            str(one["seeds"]),
            one["verdict"],
        ]
        for one in found
    ]


def _text(difference: Sequence[float | None] | None) -> str:
    """Return a difference with its standard error; nothing where an arm was not trained."""
    if difference is None:
        return ""
    mean, error = difference
    return f"{mean:+.2f} ± {error:.2f}"


def main() -> None:
    arguments = _arguments()
    found = []
    with tempfile.TemporaryDirectory(prefix="confound-") as home:
        os.environ["DENSITUNE_HOME"] = home
        os.environ.pop("DENSITUNE_STORAGE", None)
        for lr in arguments.lr:
            raw = configured(lr, arguments.train, arguments.test)
            study, refusal = run(raw, Path(home))
            found += [{**one, "refused without --force": refusal} for one in explained(study)]
        server.release()
    about = ratios.environment(torch.device("cpu"))
    head = [
        "lr",
        "density",
        "identity",
        *ROLES,
        *(f"density - {name}" for name in CONTROLS),
        "seeds",
        "verdict",
    ]
    print(f"\nPSNR of identity and differences to it in dB, ± standard error; {about}")
    print(ratios.table(head, rows(found)))
    if arguments.json:
        report = {"environment": about, "study": yaml.safe_load(STUDY.read_text()), "found": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _rate(given: str) -> float | str:
    return given if given == "auto" else float(given)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--train", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--test", type=Path, help="folder of photographs for the test split")
    parser.add_argument("--lr", type=_rate, nargs="+", default=[3e-3, "auto"])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
