"""Examples that are studies go through all phases, each with a tiny budget."""

import re
import runpy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sqlalchemy import Engine
from support.checkout import ROOT

from densitune import Run, WeightedConv, load_preset
from optimizer import snapshot
from optimizer.cli import session
from optimizer.config import study_file
from optimizer.phases.proposer import Proposer
from optimizer.presets import exports
from optimizer.snapshot import Snapshot
from storage import studies
from workers import preparation
from workers.entries import VARIABLE
from workers.scripts.stage import Stage
from workers.service import loop
from workers.service.checkpoint import Checkpoints
from workers.service.shift import Shift

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
TINY = {
    "training": {"budget": 1, "lr": 0.01},
    "search": {"trials": 5, "seeds": 1, "sampler": "qmc"},
    "confirm": {"finalists": 1, "seeds": 2, "batch": 2, "budget": 1, "rates": "never"},
}
"""Identity and some densities; then the best of them and identity, twice."""


def written(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    return raw


def defined(name: str) -> dict[str, Any]:
    """What an example defines when it is imported."""
    return runpy.run_path(str(EXAMPLES / name))


def decided(
    engine: Engine, raw: dict[str, Any], folder: Path, *, force: bool = False, **changes: Any
) -> Snapshot:
    """An example's study with less to do, which a worker in this process takes to its verdict."""
    study_file.parse(raw, "as it is shipped")
    config, device = study_file.parse({**raw, **TINY, **changes}, "tiny"), torch.device("cpu")
    bank = preparation.prepare(config.data, folder)
    study = session.create(
        engine,
        config,
        bank.source,
        bank.fingerprint,
        precision="full",
        facts=lambda: preparation.facts(config, bank),
    )
    studies.go_on(engine, study.id, None, force=force)
    proposer = Proposer(engine, study.id, config)
    floors = study.provenance["floors"]
    bench = preparation.bench(config, bank, "full", device, floors)
    with Shift(engine, study, device, folder / "spool") as shift:
        loop.work(
            shift,
            bench,
            Checkpoints(folder / "checkpoints", study),
            pack=1,
            packs=folder / "packs",
            stop=threading.Event(),
            when_idle=proposer.advance,
            outage_limit=60.0,
        )
    if isinstance(bench, Stage):
        bench.close()
    return snapshot.of(engine, study.name)


@pytest.mark.parametrize(
    ("name", "layers"), [("existing_script", 2), ("sensor", 2), ("volumes", 3)]
)
def test_a_script_goes_from_its_config_to_a_verdict_and_a_preset_that_it_trains_with(
    name: str,
    layers: int,
    database: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, str(EXAMPLES))
    now = decided(database, written(f"{name}.yaml"), tmp_path)
    assert now.study.failure is None
    assert (now.study.state, now.study.phase) == ("finished", "decided")
    assert now.healthy
    assert now.verdict != "unconfirmed"
    assert now.counts["complete"] == 5
    path, _ = exports.export(now, tmp_path)

    preset = load_preset(path)
    network = defined(f"{name}.py")["network"]()
    preset.apply(network)
    assert sum(isinstance(layer, WeightedConv) for layer in network.modules()) == layers


@pytest.mark.parametrize("name", ["existing_script.py", "sensor.py", "volumes.py"])
def test_a_script_trains_by_itself_as_identity(name: str) -> None:
    """Nothing of densitune changes what a script did before."""
    example = defined(name)
    train = example.get("train") or example["main"]
    size = int(written(name.replace(".py", ".yaml"))["kernel_size"])
    values = []
    for densities in (None, {size: (1.0,) * (size // 2)}, {size: (0.3,) * (size // 2)}):
        with torch.random.fork_rng():
            run = Run(seed=3, budget=1, device="cpu", densities=densities)
            train(run)
        values.append(run.values[1])
    assert values[0] == values[1] != values[2]


def test_the_lines_that_an_existing_script_gets_are_marked_and_few() -> None:
    text = (EXAMPLES / "existing_script.py").read_text(encoding="utf-8")
    code = text.split('"""', 2)[2]
    marked = [line for line in code.splitlines() if "# densitune" in line]
    touched = [line for line in code.splitlines() if re.search(r"\b(run|densitune)\b", line)]
    assert marked == touched
    assert len(marked) == 8 <= 15
    assert "The eight lines" in text


def test_resnet18_goes_through_all_phases_on_a_folder_of_classes(
    database: Engine, tmp_path: Path
) -> None:
    random, images = np.random.default_rng(0), tmp_path / "images"
    for name, grain in (("fine", 1), ("coarse", 8)):
        (images / name).mkdir(parents=True)
        for number in range(20):
            texture = random.integers(0, 256, (16 // grain, 16 // grain, 3), dtype=np.uint8)
            whole = texture.repeat(grain, axis=0).repeat(grain, axis=1)
            Image.fromarray(whole).save(images / name / f"{number}.png")
    raw = defined("resnet18_folder.py")["config"](str(images))
    now = decided(
        database,
        raw,
        tmp_path,
        force=True,  # two steps teach so large a network nothing
        data={**raw["data"], "size": 16},
        training={"budget": 1, "batch_size": 16, "lr": 0.01, "precision": "full"},
    )
    assert (now.study.failure, now.study.phase) == (None, "decided")
    assert now.counts["complete"] == 5
    assert now.verdict != "unconfirmed"
