"""What `densitune check` says of scripts that keep the contract, and of those that do not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from workers import entries
from workers.scripts.contract import Contract, Finding
from workers.scripts.script import Script
from workers.scripts.stage import Stage

pytestmark = pytest.mark.slow

SCRIPT = """
import torch, densitune

kept = []

def train(run):
    torch.manual_seed(MANUAL)
    kept.append(0)
    model = torch.nn.Conv2d(1, 1, 3)
    if APPLIED:
        run.apply(model)
    else:
        run.apply(torch.nn.Conv2d(1, 1, 3))
    tuner = torch.optim.SGD(model.parameters(), run.lr)
    rates = torch.optim.lr_scheduler.StepLR(tuner, 1)
    if RESUMED and (state := run.resume()):
        model.load_state_dict(state["model"])
        if SCHEDULED:
            rates.load_state_dict(state["rates"])
            tuner.param_groups[0]["lr"] = rates.get_last_lr()[0]
    for epoch in run.epochs():
        images = torch.randn(4, 1, 8, 8)
        loss = (model(images) - images[:, :, 1:-1, 1:-1]).square().mean()
        tuner.zero_grad()
        loss.backward()
        tuner.step()
        rates.step()
        if RESUMED is not None:
            run.checkpoint({"model": model.state_dict(), "rates": rates.state_dict()})
        run.report(epoch, loss.item() + LEFT * len(kept))
"""


def said(folder: Path, **settings: Any) -> dict[bool | None, list[str]]:
    usual = {"MANUAL": "run.seed", "APPLIED": True, "RESUMED": True, "LEFT": 0, "SCHEDULED": True}
    lines = [f"{name} = {value}" for name, value in {**usual, **settings}.items()]
    manual = str({**usual, **settings}["MANUAL"])
    text = SCRIPT.replace("MANUAL", manual)
    (folder / "mine.py").write_text("\n".join(lines[1:]) + text)
    found = entries.find("mine:train", folder)
    script = Script(
        name=found.name, fingerprint=found.fingerprint, init="model", lr=0.1, rungs=(),
        is_lower_better=True, floor=-9.0, warm=True, patience=60.0,
    )  # fmt: skip
    stage = Stage(script, found, torch.device("cpu"), every=0.0)
    contract = Contract(stage, (3,), 0.1, seed=0, budget=3, seconds=120.0)
    told: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    findings: list[Finding] = list(contract.findings())
    for finding in findings:
        told[finding.holds].append(finding.line)
    return told


def test_a_script_that_keeps_the_contract_holds_in_every_line(tmp_path: Path) -> None:
    told = said(tmp_path)
    assert told[False] == told[None] == []
    assert len(told[True]) == 9


def test_a_state_that_lacks_what_matters_later_is_found(tmp_path: Path) -> None:
    told = said(tmp_path, SCHEDULED=False)
    assert [line.partition(":")[0] for line in told[False]] == ["a resumed run gives other numbers"]


def test_a_seed_that_is_ignored_and_a_state_that_is_not_used_are_found(tmp_path: Path) -> None:
    told = said(tmp_path, MANUAL="7", RESUMED=False)
    assert [line.partition(":")[0] for line in told[False]] == [
        "it does not hold that another seed gives other numbers (run.seed is used)",
        "a preempted run is trained from epoch 1 again",
    ]


def test_what_one_job_leaves_for_the_next_is_found(tmp_path: Path) -> None:
    told = said(tmp_path, LEFT=1, RESUMED=None)
    assert "they leave something behind in their process; set data.warm: false" in told[False][0]
    assert told[None] == [
        "nothing is saved (run.checkpoint), so a preempted job starts again from epoch 1"
    ]


def test_a_density_that_reaches_no_training_is_found(tmp_path: Path) -> None:
    told = said(tmp_path, APPLIED=False)
    [line] = told[False]
    assert line.startswith("it does not hold that a density of 0.5 changes the result")
    assert len(told[None]) == 2  # nor do the controls
