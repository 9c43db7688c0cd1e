"""What a preset says can be had again from the file alone: layers, and numbers seed by seed."""

import copy
import importlib.metadata
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import false_positives
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.databases import temporary
from support.synthetic import configured, decided, usual

from densitune.weighted_conv import WeightedConv2d
from optimizer.arms import Arm
from optimizer.cli import main
from optimizer.config import study_file
from optimizer.config.tasks import FolderPhotographs
from optimizer.errors import StudyFailedError, UsageError
from optimizer.evidence import advice
from optimizer.presets import document, exports, reruns
from optimizer.presets.document import Preset
from storage.database import connect
from workers import verification
from workers.preparation import Bench
from workers.training import devices
from workers.training.recipe import Job

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


def tiny(folder: Path, **changes: Any) -> dict[str, Any]:
    """A study of seconds on a folder of photographs, everything that a preset has to carry set."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "task": "folder",
        "data": {"folder": str(folder), "patch": 16, "patches_per_image": 4, "crop": 32},
        "proxy": {"family": "nafnet", "width": 4, "depth": 1},
        "kernel_size": 3,
        "training": {"budget": 1, "batch_size": 8, "precision": "full"},
        "search": {"trials": 5, "seeds": 2, "seed": 3},
        "confirm": {"finalists": 1, "seeds": 6, "batch": 6, "budget": 2},
    }
    return {**raw, **changes}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 1), dtype=np.uint8)
        Image.fromarray(noise.repeat(3, axis=2)).save(folder / f"{number}.png")
    return folder


def trained(raw: dict[str, Any], postgres: str, prepared: str) -> Preset:
    """The preset of a study that was really trained, by workers on a database."""
    parsed = study_file.parse(raw, "by hand")
    devices.make_repeatable(CPU)
    with temporary(postgres, prepared) as url:
        engine = connect(url)
        found = false_positives.run(engine, parsed, false_positives.prepare(parsed))
        engine.dispose()
    return exports.compose(found, exports.chosen(found))


@pytest.fixture(scope="module", autouse=True)
def named() -> Iterator[None]:
    """Let this machine's CPU have a name, by which a preset knows it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "describe", lambda device: "this CPU")
        yield


@pytest.fixture(scope="module")
def preset(photographs: Path, postgres: str, prepared: str) -> Preset:
    return trained(tiny(photographs), postgres, prepared)


@pytest.fixture(scope="module")
def searched(photographs: Path, postgres: str, prepared: str) -> Preset:
    """A preset of the compensated initialisation, and without its confirmation."""
    found = trained(tiny(photographs, init="compensated"), postgres, prepared)
    told = {
        "confirmation": None,
        "verdict": "unconfirmed",
        "advice": advice.UNTESTED,
        "test": None,
    }
    evidence = found.evidence.model_copy(update=told)
    return document.sealed(found.model_copy(update={"evidence": evidence}))


@pytest.fixture
def verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """The command: returns exit code, what was printed, and the lines of errors."""

    def run(content: dict[str, Any], *options: str) -> tuple[int, list[str], list[str]]:
        (tmp_path / "given.json").write_text(json.dumps(content))
        command = ["densitune", "verify", str(tmp_path / "given.json"), *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main.main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out.splitlines(), told.err.splitlines()

    return run


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """An altered preset whose hash was made to fit."""
    content["provenance"]["content_sha256"] = document.content_sha256(content)
    return content


def content(preset: Preset) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(preset.text())
    return found


# The numbers of a study that was really trained


def test_a_confirmation_comes_back_to_the_last_bit(
    preset: Preset, photographs: Path, verify: Any
) -> None:
    assert isinstance(preset.task.training["lr"], float)  # calibrated
    assert preset.evidence.confirmation is not None
    code, lines, errors = verify(content(preset), "--rerun", "2", "--data", str(photographs))
    assert (code, errors) == (0, [])
    to_identity = preset.evidence.confirmation.to_identity
    assert to_identity is not None
    first = sorted(map(int, to_identity.by_seed))[:2]
    for line, seed in zip(lines[2:-1], first, strict=True):
        assert line.startswith(f"seed {seed}: ")
        assert " to identity, " in line
        assert " to its scale control, " in line
        assert line.endswith(" to its uniform mask, to the last bit as recorded")
    assert lines[-1].startswith("2 seeds reproduced to the last bit; recorded on ")


def test_a_search_comes_back_to_the_last_bit(
    searched: Preset, photographs: Path, verify: Any
) -> None:
    code, lines, errors = verify(content(searched), "--rerun", "2", "--data", str(photographs))
    assert (code, errors) == (0, [])
    assert [line.split(":")[0] for line in lines[2:-1]] == ["seed 3000", "seed 3001"]
    assert "scale control" not in "".join(lines)
    assert "2 seeds reproduced to the last bit" in lines[-1]


@pytest.mark.parametrize("other", ["to_identity", "to_control", "to_uniform"])
def test_a_number_that_was_altered_is_found(
    preset: Preset, photographs: Path, verify: Any, other: str
) -> None:
    altered = content(preset)
    by_seed = altered["evidence"]["confirmation"][other]["by_seed"]
    seed = min(by_seed, key=int)
    by_seed[seed] += 1e-12
    code, lines, errors = verify(sealed(altered), "--rerun", "1", "--data", str(photographs))
    assert (code, len(errors)) == (1, 1)
    assert lines[-1].endswith("NOT reproduced")
    assert f"1 of 1 seeds are not reproduced, the first is {seed}" in errors[0]


def test_another_learning_rate_is_found(preset: Preset, photographs: Path, verify: Any) -> None:
    altered = content(preset)
    altered["task"]["training"]["lr"] *= 1.001
    code, lines, errors = verify(sealed(altered), "--rerun", "2", "--data", str(photographs))
    assert (code, len(errors)) == (1, 1)
    assert all(line.endswith("NOT reproduced") for line in lines[2:])
    assert "2 of 2 seeds are not reproduced" in errors[0]


def test_other_data_are_refused(
    preset: Preset, photographs: Path, verify: Any, tmp_path: Path
) -> None:
    for file in photographs.iterdir():
        Image.open(file).rotate(90).save(tmp_path / file.name)
    code, _, errors = verify(content(preset), "--rerun", "1", "--data", str(tmp_path))
    assert (code, len(errors)) == (2, 1)
    assert "are not those of the preset" in errors[0]


def test_an_arm_that_diverges_ends_with_one_line(
    searched: Preset, photographs: Path, verify: Any
) -> None:
    altered = content(searched)
    altered["task"]["training"]["lr"] = 1e30
    code, _, errors = verify(sealed(altered), "--rerun", "1", "--data", str(photographs))
    assert (code, len(errors)) == (1, 1)
    assert "trained again with seed" in errors[0]
    assert "diverged" in errors[0]


# What is trained again


def of(study: Any, number: int = 6) -> Preset:
    return exports.compose(study, study.results[number])


SHOWN = of(decided())


def test_the_arms_are_those_of_the_confirmation() -> None:
    told = reruns.recorded(of(decided()), None)
    den = decided().trials[6].densities[5]
    alpha = [*den, 1.0, *reversed(den)]
    rms = math.sqrt(statistics.fmean((a * b) ** 2 for a in alpha for b in alpha))
    assert list(told.arms) == ["density", "identity", "its scale control", "its uniform mask"]
    assert all(arm.floored for arm in told.arms.values())
    arm = told.arms["density"]
    assert (arm.densities, arm.lr, arm.init, arm.gain) == ({5: den}, 0.01, "library", {})
    arm = told.arms["identity"]
    assert (arm.densities, arm.lr, arm.init, arm.gain) == ({5: (1.0, 1.0)}, 0.01, "library", {})
    arm = told.arms["its scale control"]
    assert (arm.densities, arm.lr, arm.init) == ({5: (1.0, 1.0)}, 0.01, "library")
    assert arm.gain == pytest.approx({5: rms})
    arm = told.arms["its uniform mask"]
    assert (arm.densities, arm.lr, arm.init, arm.mask) == ({5: den}, 0.01, "library", "uniform")
    assert told.budget == decided().config.confirm_budget == 8


def test_without_a_confirmation_the_search_is_repeated() -> None:
    for study in (usual(), decided()):
        told = reruns.recorded(of(study, 2), None)  # no finalist
        assert list(told.arms) == ["density", "identity"]
        assert told.budget == 4
        assert told.seeds(2) == [0, 1]


def test_precision_and_initialisation_are_those_of_the_preset() -> None:
    known = {"source": "", "floor": 1.0, "versions": {}, "precision": "bfloat16"}
    study = usual(given=configured(init="compensated"), provenance=known)
    told = reruns.recorded(of(study), None)
    assert told.precision == "bfloat16"
    assert told.arms["density"].init == "compensated"


def test_what_was_learned_and_not_confirmed_is_learned_again() -> None:
    """Its search is the trainable arm's, which started at identity."""
    known = of(usual())
    provenance = known.provenance.model_copy(update={"optuna_trial": None})
    told = reruns.recorded(known.model_copy(update={"provenance": provenance}), None)
    arm = told.arms["density"]
    assert (arm.densities, arm.trainable) == ({5: (1.0, 1.0)}, True)
    assert not told.arms["identity"].trainable
    assert not any(arm.floored for arm in told.arms.values())  # it has no density to tell then
    confirmed = of(decided()).model_copy(update={"provenance": provenance})
    arm = reruns.recorded(confirmed, None).arms["density"]
    assert (arm.densities, arm.trainable) == ({5: decided().trials[6].densities[5]}, False)


def test_more_seeds_than_were_recorded_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--rerun 5 is more than .*; take 1 to 4"):
        reruns.recorded(of(decided()), None).seeds(5)


def test_the_folder_of_the_data_is_asked_for_where_the_task_needs_one(tmp_path: Path) -> None:
    given = configured(task="folder", data={"folder": "/home/somebody/pictures"})
    own = of(usual(given=given))
    with pytest.raises(UsageError, match=r"images of one's own .*--data FOLDER"):
        reruns.recorded(own, None)
    data = reruns.recorded(own, tmp_path).config.data
    assert isinstance(data, FolderPhotographs)
    assert data.folder == tmp_path
    with pytest.raises(UsageError, match="come with scikit-image; leave it out"):
        reruns.recorded(of(usual()), tmp_path)


# How close a number has to come


def provenance(preset: Preset, devices: list[str], torch: str) -> Preset:
    known = preset.provenance.model_copy(update={"devices": devices, "versions": {"torch": torch}})
    return preset.model_copy(update={"provenance": known})


@pytest.mark.parametrize(
    ("recorded", "version", "here", "exact"),
    [
        (["Card 1"], "here", "Card 1", True),
        (["Card 1"], "other", "Card 1", False),
        (["Card 1"], "here", "Card 2", False),
        (["Card 1", "Card 2"], "here", "Card 1", False),
        (["CPU"], "here", "CPU", False),  # one of any kind
    ],
)
def test_only_the_same_kind_of_device_and_torch_must_give_the_same_bits(
    recorded: list[str], version: str, here: str, exact: bool
) -> None:
    known = importlib.metadata.version("torch") if version == "here" else "1.0"
    preset = provenance(of(decided()), recorded, known)
    told = reruns.recorded(preset, None)
    found = reruns.limits(preset, told.differences, here)
    assert found.keys() == told.differences.keys()
    for name, limit in found.items():
        spread = float(np.std(list(told.differences[name].values()), ddof=1))
        assert limit == (0 if exact else pytest.approx(reruns.TOLERANCE * spread))
        assert exact or limit > 0


@given(
    st.floats(-5, 5), st.floats(-5, 5), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1),
    st.floats(0, 1),
)  # fmt: skip
def test_a_seed_reproduces_if_every_difference_is_within_its_limit(
    a: float, b: float, off: float, off_control: float, limit: float, limit_control: float
) -> None:
    one = reruns.Rerun(
        seed=7,
        recorded={"identity": a, "its scale control": b},
        repeated={"identity": a + off, "its scale control": b + off_control},
        limits={"identity": limit, "its scale control": limit_control},
    )
    away, away_control = abs((a + off) - a), abs((b + off_control) - b)
    assert one.deviation == max(away, away_control)
    assert one.reproduces == (away <= limit and away_control <= limit_control)
    if one.reproduces:
        assert "1 seeds reproduced" in reruns.summary([one], SHOWN, "CPU")
    else:
        with pytest.raises(StudyFailedError, match="1 of 1 seeds are not reproduced"):
            reruns.summary([one], SHOWN, "CPU")


def test_an_arm_is_trained_again_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an arm may say, on which split it is measured too."""
    arm = Arm({3: (0.5,)}, 0.01, "compensated", {3: 2.0}, trainable=True, split="test")
    trained: list[Job] = []
    monkeypatch.setattr(verification, "train", lambda slots, jobs, **_: trained.extend(jobs))
    bench: Any = Bench(None, None, torch.device("cpu"))  # type: ignore[arg-type]
    verification.metrics(bench, {"density": arm}, 7, 4)
    assert trained == [Job(arm, 7, 4)]


# Layers


def test_a_layer_that_folds_inexactly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    verification.check_folding(5, [0.2, 0.8])
    fold = WeightedConv2d.fold

    def inexact(layer: WeightedConv2d) -> Any:
        plain = copy.deepcopy(fold(layer))
        plain.weight.data *= 1 + 1e-6
        return plain

    monkeypatch.setattr(WeightedConv2d, "fold", inexact)
    with pytest.raises(UsageError, match="the folded convolution differs"):
        verification.check_folding(5, [0.2, 0.8])


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave torch with as many threads as it had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
