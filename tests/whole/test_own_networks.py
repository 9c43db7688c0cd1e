"""A network and data of the user's own, by their names, from config to preset in real processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine, text
from support.shell import Here, query, run

from optimizer.presets import document

pytestmark = pytest.mark.slow

CODE = '''
import torch
from torch import nn


def load(noise):
    """Four kinds of waves of one dimension."""
    def items(count):
        labels = torch.arange(count) % 4
        waves = torch.sin(torch.arange(32) * (0.2 + 0.3 * labels[:, None]))[:, None]
        return waves + noise * torch.rand(waves.shape), labels

    return {"train": items(256), "validation": items(64), "test": items(64)}


def build(channels, classes, width):
    return nn.Sequential(
        nn.Conv1d(channels, width, 5, padding=2), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv1d(width, width, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(2),
        nn.Flatten(), nn.Linear(2 * width, classes),
    )
'''
STUDY: dict[str, Any] = {
    "name": "waves",
    "task": "python",
    "data": {
        "load": "sensor.waves:load",
        "kwargs": {"noise": 0.2},
        "classes": 4,
        "floor": 25,
        "test": True,
    },
    "proxy": {"network": "sensor.waves:build", "kwargs": {"width": 8}, "layers": "!3"},
    "kernel_size": 5,
    "init": "model",
    "training": {"budget": 2, "batch_size": 16},
    "search": {"trials": 6, "seeds": 1, "sampler": "qmc"},
    "confirm": {
        "finalists": 1, "seeds": 2, "batch": 2, "budget": 2, "trainable": True,
        "compensated": True, "rates": "never", "arms": ["init_only", "steps_only"],
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a package of the user's and a study of it."""
    (tmp_path / "sensor").mkdir()
    (tmp_path / "sensor" / "waves.py").write_text(CODE)
    (tmp_path / "waves.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def test_a_network_and_data_of_ones_own_go_through_all_phases(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    launched = run(folder, database_url, "launch", "waves.yaml", "--workers", "1")
    assert launched.returncode == 0, launched.stderr
    assert "weighted layers: 1 of 5" in launched.stdout
    preset = document.load(folder / "presets" / "waves.json")
    assert preset.task.init == "model"
    assert preset.task.proxy["network"] == "sensor.waves:build"
    assert preset.evidence.test is not None
    assert len(preset.provenance.versions["sensor.waves:load"]) == 64
    rows = query(database, "SELECT DISTINCT phase, role, arm ->> 'init' FROM densitune.trials")
    assert {"calibrate", "search", "confirm", "check"} == {phase for phase, *_ in rows}
    assert {"trainable", "identity", "finalist", "init_only", "steps_only", "rate"} <= {
        role for _, role, _ in rows
    }
    assert {init for *_, init in rows} == {"model"}

    again = run(folder, database_url, "verify", "presets/waves.json", "--rerun", "1")
    assert again.returncode == 0, again.stderr
    assert "to the last bit" in again.stdout
    report = here.run(folder, database_url, "report", "waves")
    assert report.returncode == 0, report.stderr

    _check_that_nobody_else_chooses_code(folder, database, database_url, here)

    (folder / "sensor" / "waves.py").write_text(CODE.replace("0.3 *", "0.4 *"))
    code, line = here.refused(folder, database_url, "resume", "waves")
    assert code == 2
    assert "sensor.waves:build is " in line
    assert "results could not be compared" in line


def _check_that_nobody_else_chooses_code(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    """Alter what a study and its preset say of code, as whoever may write them can."""
    stored = query(database, "SELECT config FROM densitune.studies")[0][0]
    path = folder / "presets" / "waves.json"
    harm = {"args": f"touch {folder / 'harmed'}", "shell": True}
    for load, said in (
        ("subprocess:check_output", "there is no module subprocess in"),
        ("sensor.waves:torch", "has kept no fingerprint of it"),
    ):
        config = {**stored, "data": {**stored["data"], "load": load, "kwargs": harm}}
        _store(database, config)
        code, line = here.refused(folder, database_url, "resume", "waves")
        assert (code, said in line) == (2, True), line
        preset = json.loads(path.read_text())
        known = preset["provenance"]
        known["config"]["data"] = config["data"]
        del known["versions"]["sensor.waves:load"]
        known["config_sha256"] = document.sha256(known["config"])
        known["content_sha256"] = document.content_sha256(preset)
        (folder / "altered.json").write_text(json.dumps(preset))
        code, line = here.refused(folder, database_url, "verify", "altered.json", "--rerun", "1")
        assert code == 2, line
        assert said in line or "has no fingerprint of it" in line
    worker = run(folder, database_url, "worker", "waves", "--device", "cpu")
    assert (worker.returncode, said in worker.stderr) == (2, True), worker.stderr
    assert not (folder / "harmed").exists()
    _store(database, stored)


def _store(database: Engine, config: dict[str, Any]) -> None:
    with database.begin() as connection:
        connection.execute(
            text("UPDATE densitune.studies SET config = :config"), {"config": json.dumps(config)}
        )


def test_what_cannot_be_trained_is_refused_and_nothing_is_written(
    folder: Path, database: Engine, database_url: str, here: Here
) -> None:
    (folder / "sensor").rename(folder / "gadget")  # what is imported stays so in this process
    wanted = yaml.safe_dump({**STUDY, "kernel_size": 7}).replace("sensor.", "gadget.")
    (folder / "waves.yaml").write_text(wanted)
    code, line = here.refused(folder, database_url, "launch", "waves.yaml")
    assert code == 2
    assert "no convolution has kernel size 7; sizes in this model that can be weighted: 5" in line
    assert query(database, "SELECT count(*) FROM densitune.studies") == [(0,)]
