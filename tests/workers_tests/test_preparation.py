"""From a configuration to bank, task and recipe: each kind of data section and what it decides."""

import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from optimizer.config import study_file
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from workers import preparation
from workers.data.bank import Pixels
from workers.networks import proxies
from workers.networks.proxies import Proxy
from workers.training.tasks import Classification, Denoising, Draws

CPU = torch.device("cpu")
DENOISER = {"family": "dncnn", "width": 4, "depth": 3}
CLASSIFIER = {"family": "vgg", "width": 4, "depth": 3}


def study(task: str, data: dict[str, Any], proxy: dict[str, Any], **changes: Any) -> StudyConfig:
    usual = {
        "name": "test",
        "task": task,
        "data": {key: str(v) if isinstance(v, Path) else v for key, v in data.items()},
        "proxy": proxy,
        "kernel_size": 3,
        "training": {"budget": 4, "batch_size": 8},
        "search": {"trials": 50},
    }
    return study_file.parse({**usual, **changes}, origin="test")


def noise(seed: int, height: int = 24, width: int = 30) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw(folder: Path, count: int, first: int = 0) -> list[Pixels]:
    """Write images into a folder and return their pixels."""
    folder.mkdir(parents=True)
    images = [noise(first + index) for index in range(count)]
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return images


def is_part_of(patch: Pixels, images: list[Pixels]) -> bool:
    """Tell whether a patch (C, H, W) is a window of one of the images (H, W, C)."""
    inner = patch.transpose(1, 2, 0)
    height, width = inner.shape[:2]
    return any(
        np.array_equal(image[y : y + height, x : x + width], inner)
        for image in images
        for y, x in np.argwhere((image == inner[0, 0]).all(axis=2))
    )


# Denoising


def test_photographs_of_a_folder_become_a_denoising_task(tmp_path: Path) -> None:
    images = draw(tmp_path / "mine", 5)
    data = {
        "folder": tmp_path / "mine", "color": "rgb", "sigma": 40, "patch": 8,
        "patches_per_image": 6, "crop": 16, "validation": 0.4,
    }  # fmt: skip
    chosen = study("folder", data, DENOISER)
    bank = preparation.bank(chosen.data, tmp_path / "home")
    assert bank.train.shape == (3 * 6, 3, 8, 8)
    assert bank.validation.shape == (2, 3, 16, 16)
    assert bank.classes is None
    assert all(is_part_of(patch, images) for patch in bank.train[::5])
    assert all(is_part_of(crop, images) for crop in bank.validation)

    task = preparation.task(chosen, bank, CPU)
    assert isinstance(task, Denoising)
    assert len(task) == 18
    inputs, targets = task.batch(torch.arange(18).repeat(20), Draws(0, CPU))
    assert inputs.shape == (360, 3, 8, 8)
    spread = 255 * (inputs - targets).std().item()
    assert spread == pytest.approx(40, abs=5 * 40 / np.sqrt(2 * inputs.numel()))


def test_a_second_folder_of_photographs_is_the_test_split(tmp_path: Path) -> None:
    draw(tmp_path / "mine", 3)
    others = draw(tmp_path / "others", 2, first=40)
    data = {
        "folder": tmp_path / "mine", "test": tmp_path / "others", "color": "rgb", "patch": 8,
        "patches_per_image": 2, "crop": 16,
    }  # fmt: skip
    chosen = study("folder", data, DENOISER)
    bank = preparation.bank(chosen.data, tmp_path / "home")
    assert bank.test is not None
    for crop, image in zip(bank.test().images, others, strict=True):
        np.testing.assert_array_equal(crop, image[4:20, 7:23].transpose(2, 0, 1))
    judge = preparation.task(chosen, bank, CPU).test()
    assert judge(torch.nn.Identity()).extra["test"] == bank.test().fingerprint


def test_gray_is_the_usual_for_photographs(tmp_path: Path) -> None:
    draw(tmp_path / "mine", 3)
    data = {"folder": tmp_path / "mine", "patch": 8, "patches_per_image": 2, "crop": 16}
    chosen = study("folder", data, DENOISER)
    bank = preparation.bank(chosen.data, tmp_path / "home")
    assert bank.train.shape == (4, 1, 8, 8)
    assert preparation.recipe(chosen, bank, "full").proxy.channels == 1


@pytest.mark.parametrize(("color", "count", "channels"), [("gray", 11, 1), ("rgb", 5, 3)])
def test_packaged_photographs_become_a_denoising_task(
    tmp_path: Path, color: str, count: int, channels: int
) -> None:
    data = {"color": color, "patch": 16, "patches_per_image": 2, "crop": 24, "validation": 0.2}
    chosen = study("photos", data, DENOISER)
    bank = preparation.bank(chosen.data, tmp_path)
    held = round(0.2 * count)
    assert bank.train.shape == (2 * (count - held), channels, 16, 16)
    assert bank.validation.shape == (held, channels, 24, 24)
    assert isinstance(preparation.task(chosen, bank, CPU), Denoising)


def test_div2k_becomes_a_denoising_task(tmp_path: Path) -> None:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for index in range(1, 6):
            png = BytesIO()
            Image.fromarray(noise(index)).save(png, "PNG")
            archive.writestr(f"DIV2K_train_HR/{index:04}.png", png.getvalue())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "DIV2K_train_HR.zip").write_bytes(stream.getvalue())
    data = {
        "verify": False, "download": False, "patch": 8, "patches_per_image": 3, "crop": 16,
        "validation": 0.2,
    }  # fmt: skip
    chosen = study("div2k", data, DENOISER)
    bank = preparation.bank(chosen.data, tmp_path)  # in the home's own data folder
    assert bank.train.shape == (4 * 3, 3, 8, 8)
    assert bank.validation.shape == (1, 3, 16, 16)
    assert isinstance(preparation.task(chosen, bank, CPU), Denoising)


# Classification


def test_folders_of_classes_become_a_classification_task(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog", "owl")):
        draw(tmp_path / "mine" / name, 10, first=10 * label)
    data = {
        "kind": "classes", "folder": tmp_path / "mine", "color": "gray", "size": 12,
        "validation": 0.3,
    }  # fmt: skip
    chosen = study("folder", data, CLASSIFIER)
    bank = preparation.bank(chosen.data, tmp_path / "home")
    assert bank.train.shape == (21, 1, 12, 12)
    assert bank.validation.shape == (9, 1, 12, 12)
    assert bank.classes == 3
    assert bank.train_labels is not None
    assert np.bincount(bank.train_labels).tolist() == [7, 7, 7]
    task = preparation.task(chosen, bank, CPU)
    assert isinstance(task, Classification)
    assert len(task) == 21
    proxy = preparation.recipe(chosen, bank, "full").proxy
    assert (proxy.channels, proxy.classes) == (1, 3)
    draw(tmp_path / "others" / "dog", 2, first=90)
    tested = study("folder", {**data, "test": tmp_path / "others"}, CLASSIFIER)
    again = preparation.bank(tested.data, tmp_path / "home")
    assert again.test is not None
    labels = again.test().labels
    assert labels is not None
    assert labels.tolist() == [1, 1]


def cifar(home: Path, count: int = 200) -> Pixels:
    """Write a small CIFAR-100 with a test file of black images, and return the other images."""
    rng = np.random.default_rng(0)
    fine = [index % 100 for index in range(count)]
    images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    train = {"fine_labels": fine, "coarse_labels": [f // 5 for f in fine], "data": images}
    meta = {
        "fine_label_names": [f"f{index}" for index in range(100)],
        "coarse_label_names": [f"c{index}" for index in range(20)],
    }
    home.mkdir(parents=True)
    (home / "train").write_bytes(pickle.dumps(train, protocol=2))
    (home / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    black = {**train, "data": np.zeros_like(images)}
    (home / "test").write_bytes(pickle.dumps(black, protocol=2))
    return images.reshape(count, 3, 32, 32)


@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100_becomes_a_classification_task(tmp_path: Path, labels: str, classes: int) -> None:
    images = cifar(tmp_path / "given" / "cifar-100-python")
    data = {
        "folder": tmp_path / "given", "download": False, "verify": False, "labels": labels,
        "validation": 0.5,
    }  # fmt: skip
    chosen = study("cifar100", data, CLASSIFIER)
    bank = preparation.bank(chosen.data, tmp_path / "home")
    known = {image.tobytes() for image in images}
    found = [image.tobytes() for part in (bank.train, bank.validation) for image in part]
    assert (len(bank.train), len(bank.validation)) == (100, 100)
    assert set(found) == known  # the training split whole, and nothing of the test split
    assert bank.test is not None
    assert not bank.test().images.any()
    assert bank.classes == classes
    assert isinstance(preparation.task(chosen, bank, CPU), Classification)
    assert preparation.recipe(chosen, bank, "full").proxy.classes == classes


def test_cifar100_is_looked_for_in_the_home_without_a_folder(tmp_path: Path) -> None:
    cifar(tmp_path / "data" / "cifar-100-python")
    data = {"download": False, "verify": False}
    bank = preparation.bank(study("cifar100", data, CLASSIFIER).data, tmp_path)
    assert len(bank.train) + len(bank.validation) == 200


def test_a_partial_copy_is_refused_where_it_is_to_be_verified(tmp_path: Path) -> None:
    cifar(tmp_path / "data" / "cifar-100-python")
    with pytest.raises(UsageError, match="MD5"):
        preparation.bank(study("cifar100", {"download": False}, CLASSIFIER).data, tmp_path)


# What needs no network


def test_floors_of_denoising_are_the_noisy_input_and_the_linear_filter(tmp_path: Path) -> None:
    data = {"patch": 16, "patches_per_image": 4, "crop": 24, "validation": 0.3, "sigma": 40}
    chosen = study("photos", data, DENOISER)
    bank = preparation.bank(chosen.data, tmp_path)
    found = preparation.floors(chosen, bank)
    assert list(found) == ["noisy input", "linear 3 x 3 filter"]
    assert found["noisy input"] == preparation.task(chosen, bank, CPU).floor()
    # One filter for photographs removes more than half of so much noise, never nearly all.
    assert 4 < found["linear 3 x 3 filter"] - found["noisy input"] < 9
    quiet = study("photos", {**data, "sigma": 1}, DENOISER)
    noisy, filtered = preparation.floors(quiet, bank).values()
    assert abs(noisy - filtered) < 0.2


def test_floors_of_classification_are_the_commonest_class_and_the_classifier(
    tmp_path: Path,
) -> None:
    for label, level in (("dark", 0), ("grey", 90), ("light", 180)):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for index in range(10 if label == "grey" else 6):
            Image.fromarray(level + noise(index) // 4).save(tmp_path / f"mine/{label}/{index}.png")
    data = {"kind": "classes", "folder": tmp_path / "mine", "size": 12, "validation": 0.4}
    chosen = study("folder", data, CLASSIFIER)
    bank = preparation.bank(chosen.data, tmp_path / "home")
    assert bank.validation_labels is not None
    assert preparation.floors(chosen, bank) == {
        "commonest class": 100 * np.mean(bank.validation_labels == 1),
        "linear classifier": 100.0,
    }


# What all have in common


def test_a_study_knows_whether_its_proxy_normalises_every_weighted_convolution(
    tmp_path: Path,
) -> None:
    cifar(tmp_path / "cifar")
    folder = {"folder": str(tmp_path / "cifar"), "verify": False}
    classifier = study("cifar100", folder, CLASSIFIER)
    draw(tmp_path / "mine", 2)
    denoiser = study("folder", {"folder": str(tmp_path / "mine"), "patch": 8, "crop": 16}, DENOISER)
    short = study("cifar100", folder, CLASSIFIER, confirm={"budget": 4})
    for chosen, said in ((classifier, True), (denoiser, False), (short, False)):
        bank = preparation.bank(chosen.data, tmp_path / "home")
        assert preparation.uniform_is_identity(chosen, bank) == said


def test_a_second_worker_gets_the_very_same_bank(tmp_path: Path) -> None:
    draw(tmp_path / "mine", 4)
    data = {"folder": tmp_path / "mine", "patch": 8, "patches_per_image": 2, "crop": 16}
    chosen = study("folder", data, DENOISER)
    first, second = (preparation.bank(chosen.data, tmp_path / "home") for _ in range(2))
    other_home = preparation.bank(chosen.data, tmp_path / "other")
    assert first.fingerprint == second.fingerprint == other_home.fingerprint
    assert len(list((tmp_path / "home" / "cache").glob("*/meta.json"))) == 1
    wider = study("folder", {**data, "patch": 9}, DENOISER)
    assert preparation.bank(wider.data, tmp_path / "home").fingerprint != first.fingerprint


def test_missing_data_are_told_in_one_line(tmp_path: Path) -> None:
    for task, data, proxy in (
        ("folder", {"folder": tmp_path / "none"}, DENOISER),
        ("folder", {"kind": "classes", "folder": tmp_path / "none"}, CLASSIFIER),
        ("cifar100", {"download": False}, CLASSIFIER),
        ("div2k", {"download": False}, DENOISER),
    ):
        with pytest.raises(UsageError) as caught:
            preparation.bank(study(task, data, proxy).data, tmp_path / "home")
        assert "\n" not in str(caught.value)


@pytest.fixture
def colourful(tmp_path: Path) -> dict[str, Any]:
    draw(tmp_path / "mine", 3)
    return {
        "folder": tmp_path / "mine", "color": "rgb", "patch": 8, "patches_per_image": 2, "crop": 16,
    }  # fmt: skip


def test_recipe_carries_the_configuration(tmp_path: Path, colourful: dict[str, Any]) -> None:
    chosen = study(
        "folder",
        colourful,
        {"family": "nafnet", "width": 6, "depth": 5},
        kernel_size=[3, 5],
        init="compensated",
        training={"budget": 9, "batch_size": 7, "lr": 0.03},
        search={"trials": 50, "rungs": [2, 5]},
    )
    found = preparation.recipe(chosen, preparation.bank(chosen.data, tmp_path / "home"), "full")
    assert found.proxy == Proxy("nafnet", 6, 5, (3, 5), 3, None)
    assert (found.init, found.batch_size, found.lr) == ("compensated", 7, 0.03)
    assert found.rungs == (2, 5, 9)


def test_recipe_of_defaults(tmp_path: Path, colourful: dict[str, Any]) -> None:
    chosen = study("folder", colourful, DENOISER)
    found = preparation.recipe(chosen, preparation.bank(chosen.data, tmp_path / "home"), "full")
    assert (found.init, found.lr, found.rungs) == ("library", None, (4,))


def test_proxy_of_the_recipe_takes_the_images_of_the_task(
    tmp_path: Path, colourful: dict[str, Any]
) -> None:
    chosen = study("folder", colourful, DENOISER)
    bank = preparation.bank(chosen.data, tmp_path / "home")
    network = proxies.build(
        preparation.recipe(chosen, bank, "full").proxy, {3: (0.5,)}, init="library", seed=0
    )
    task = preparation.task(chosen, bank, CPU)
    with torch.no_grad():
        score = task.evaluate(network.eval())
    assert np.isfinite(score.value)
