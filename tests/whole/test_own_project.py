"""A project of a user's own, whose files have the names of ours, from `check` to a preset."""

import difflib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.shell import Here, command, environment, query
from support.waiting import wait_for

SAFE = ("-P", "-m", "optimizer.cli")  # as the command `densitune`: nothing of the folder it is in
MODELS = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv1d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv1d(8, 8, 5, padding=2), nn.ReLU(),
        nn.Conv1d(8, 1, 1),
    )
"""
OPTIMIZER = """
import torch


def of(model, rate):
    return torch.optim.Adam(model.parameters(), rate)
"""
WORKERS = """
import torch


def signals(count, seed):
    draw = torch.Generator().manual_seed(seed)
    phase, pitch = torch.rand(2, count, 1, 1, generator=draw)
    clean = torch.sin(torch.arange(64) * (0.1 + 0.4 * pitch) + 6 * phase)
    return clean, clean + 0.5 * torch.randn(clean.shape, generator=draw)
"""
SHARED = """EPOCHS, RATE, SEED = 8, 0.01, 0


def error(model, clean, noisy):
    with torch.no_grad():
        return float(((model(noisy) - clean) ** 2).mean())


def train_one_epoch(model, tuner, clean, noisy):
    for batch in torch.randperm(len(clean)).split(16):
        loss = ((model(noisy[batch]) - clean[batch]) ** 2).mean()
        tuner.zero_grad()
        loss.backward()
        tuner.step()
"""
BEFORE = (
    """
import sys

import torch

from models import build
from optimizer import of
from workers import signals

"""
    + SHARED
    + """

def main():
    torch.manual_seed(SEED)
    clean, noisy = signals(64, 1)
    held, held_noisy = signals(32, 2)
    model = build()
    tuner = of(model, RATE)
    for epoch in range(EPOCHS):
        train_one_epoch(model, tuner, clean, noisy)
        print(epoch, error(model, held, held_noisy))
    torch.save(model.state_dict(), sys.argv[1])


if __name__ == "__main__":
    main()
"""
)
AFTER = (
    """
import sys

import densitune
import torch

from models import build
from optimizer import of
from workers import signals

"""
    + SHARED
    + """

def train(run):
    torch.manual_seed(run.seed)
    clean, noisy = signals(64, 1)
    held, held_noisy = signals(32, 2)
    model = run.apply(build())
    tuner = of(model, run.lr)
    if state := run.resume():
        model.load_state_dict(state["model"])
        tuner.load_state_dict(state["tuner"])
    for epoch in run.epochs():
        train_one_epoch(model, tuner, clean, noisy)
        run.checkpoint({"model": model.state_dict(), "tuner": tuner.state_dict()})
        run.report(epoch, error(model, held, held_noisy))
    return model


if __name__ == "__main__":
    model = train(densitune.Run(seed=SEED, lr=RATE, budget=EPOCHS))
    torch.save(model.state_dict(), sys.argv[1])
"""
)
STUDY = """
name: own
task: python
data:
  entry: "my_training:train"
  metric: error
  unit: volts²
  direction: minimize
  floor: 0.25
kernel_size: 5
training: {budget: 4, lr: auto, usual_lr: 0.01}
search: {trials: 6, seeds: 2, rungs: [2], sampler: qmc}
confirm: {finalists: 1, seeds: 4, batch: 4, budget: 4, rates: never}
"""


def project(folder: Path) -> None:
    (folder / "optimizer").mkdir()
    for path, text in {
        "models.py": MODELS,
        "optimizer/__init__.py": OPTIMIZER,
        "workers.py": WORKERS,
        "storage.py": "raise RuntimeError('nobody needs this')\n",
        "my_training.py": AFTER,
        "study.yaml": STUDY,
    }.items():
        (folder / path).write_text(text, encoding="utf-8")


def test_a_script_of_forty_lines_takes_fifteen_more_at_most() -> None:
    before, after = BEFORE.strip().splitlines(), AFTER.strip().splitlines()
    changes = list(difflib.ndiff(before, after))
    assert sum(line.startswith("+ ") and line != "+ " for line in changes) <= 15
    assert 40 <= len(after) <= 60


@pytest.mark.slow
def test_a_project_goes_from_check_to_a_preset_though_a_worker_is_killed(
    tmp_path: Path, database: Engine, database_url: str, here: Here
) -> None:
    project(tmp_path)
    checked = subprocess.run(
        command("check", "study.yaml", program=SAFE),
        cwd=tmp_path,
        env=environment(database_url),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout
    assert "DOES NOT HOLD" not in checked.stdout
    assert "a resumed run gives what an undisturbed one gives" in checked.stdout

    launched = subprocess.Popen(
        command("launch", "study.yaml", "--workers", "2", program=SAFE),
        cwd=tmp_path,
        env=environment(database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    busy = "SELECT pid FROM densitune.jobs JOIN densitune.workers ON workers.id = worker_id"
    running = f"{busy} WHERE jobs.state = 'running' AND phase = 'search'"
    wait_for(lambda: launched.poll() is not None or query(database, running))
    killed = query(database, running)[0][0]
    os.kill(killed, signal.SIGKILL)
    said, _ = launched.communicate(timeout=120)
    assert launched.returncode == 0, said
    assert "a local worker is gone: its process ended by signal 9 (SIGKILL)" in said
    preset = json.loads((tmp_path / "presets" / "own.json").read_text(encoding="utf-8"))
    assert preset["task"]["metric"] == "negated error"
    assert preset["task"]["source"] == "code my_training:train"
    [(fingerprint,)] = query(database, "SELECT data_fingerprint FROM densitune.studies")
    assert preset["task"]["fingerprint"] == fingerprint
    assert preset["evidence"]["confirmation"] is not None
    assert preset["densities"].keys() == {"5"}
    verified = subprocess.run(
        command("verify", "presets/own.json", "--rerun", "1", program=SAFE),
        cwd=tmp_path,
        env=environment(database_url),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 seeds reproduced to the last bit" in verified.stdout, verified.stderr
    (tmp_path / "models.py").write_text(f"{MODELS}# another\n", encoding="utf-8")
    code, refusal = here.refused(tmp_path, database_url, "resume", "own")
    assert code == 2
    assert refusal.startswith("densitune: the files of the code here (code my_training:train, ")
    assert refusal.endswith("with --code FOLDER, or begin a study of another name")
    states = dict(query(database, "SELECT state, count(*) FROM densitune.jobs GROUP BY state"))
    assert states.keys() <= {"done", "cut"}
