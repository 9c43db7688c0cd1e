import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.checkout import ROOT

from optimizer.errors import UsageError
from workers.data import photos
from workers.data.bank import Pixels
from workers.data.folder import load_classes, load_photographs
from workers.data.images import read
from workers.data.listing import image_files
from workers.data.patches import PatchPlan, Photograph, crops, cut
from workers.data.splits import split

REAL = Path(os.environ.get("DENSITUNE_REAL_DATA", ROOT.parent / "shared" / "data"))
PLAN = PatchPlan(color="gray", size=8, per_image=5, validation=0.25, crop=16)


def noise(seed: int, height: int = 20, width: int = 30) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(file: Path, pixels: Pixels, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


def refusal(call: Callable[[], object], cache: Path) -> str:
    """Return the line of the UsageError, having made sure that the cache has stayed empty."""
    with pytest.raises(UsageError) as caught:
        call()
    assert not cache.exists() or list(cache.iterdir()) == []
    line = str(caught.value)
    assert "\n" not in line
    return line


# Images


def test_pixels_are_channels_of_rows(tmp_path: Path) -> None:
    pixels = noise(1, 5, 7)
    file = write(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read(file, "rgb"), pixels.transpose(2, 0, 1))


def test_gray_is_the_luma_of_itu_r_601(tmp_path: Path) -> None:
    pixels = noise(2)
    gray = read(write(tmp_path / "a.png", pixels), "gray")
    np.testing.assert_allclose(gray[0], pixels @ [0.299, 0.587, 0.114], atol=0.51)
    assert gray.shape == (1, 20, 30)


def test_gray_image_in_rgb_has_equal_channels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", noise(3)[..., 0])
    np.testing.assert_array_equal(read(file, "rgb"), np.repeat(read(file, "gray"), 3, axis=0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_8_bit_mode_of_png_is_read(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise(4)).convert(mode)
    options: dict[str, Any] = {"transparency": bytes(range(256))} if mode == "P" else {}
    image.save(tmp_path / "a.png", **options)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(tmp_path / "a.png", "rgb"), expected)


def test_orientation_of_a_camera_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees to view
    file = write(tmp_path / "a.png", noise(5), exif=exif)
    turned = np.rot90(noise(5), k=-1)
    np.testing.assert_array_equal(read(file, "rgb"), turned.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.6])
def test_truncated_image_is_told(tmp_path: Path, suffix: str, keep: float) -> None:
    file = write(tmp_path / f"a.{suffix}", noise(6, 64, 64))
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    line = refusal(lambda: read(file, "rgb"), tmp_path / "cache")
    assert line.startswith(f"{file} is not a readable image: ")
    assert line.endswith("; remove or replace it")


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=150)
def test_garbage_never_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, position: int
) -> None:
    file = write(tmp_path_factory.getbasetemp() / "garbage" / "a.png", noise(7, 8, 8))
    raw = bytearray(file.read_bytes())
    raw[position : position + len(garbage)] = garbage
    file.write_bytes(raw)
    try:
        assert read(file, "rgb").shape[0] == 3
    except UsageError as error:
        assert str(file) in str(error)  # noqa: PT017 (either outcome is right)


def test_decompression_bomb_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.png", noise(8))
    for limit in (599, 299):  # Pillow warns above its limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        line = refusal(lambda: read(file, "rgb"), tmp_path / "cache")
        assert (
            line
            == f"{file} has more than the {limit} pixels an image may have; shrink or remove it"
        )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert read(file, "rgb").shape == (3, 20, 30)


def test_16_bit_image_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(file)
    for color in ("gray", "rgb"):
        line = refusal(lambda color=color: read(file, color), tmp_path / "cache")  # type: ignore[misc]
        assert line == f"{file} has more than 8 bits a channel (mode I;16); convert it to 8 bits"


def test_image_files_are_the_visible_images_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c.tiff", ".hidden.png", "notes.txt", "Z.webp", "10.pgm"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = [file.name for file in image_files(tmp_path)]
    assert names == ["10.pgm", "Z.webp", "a.jpeg", "b.PNG", "c.tiff"]


# Patches


def numbered(count: int, height: int = 20, width: int = 30) -> list[Photograph]:
    """Return photographs in which all pixels of number i have the value i."""
    return [
        Photograph(f"photo {i}", lambda i=i: np.full((1, height, width), i, dtype=np.uint8))  # type: ignore[misc]
        for i in range(count)
    ]


def test_no_photograph_is_in_both_parts() -> None:
    arrays = cut(numbered(40), PLAN)
    training, held_out = split(40, 0.25)
    assert np.unique(arrays.train).tolist() == training.tolist()
    assert np.unique(arrays.validation).tolist() == held_out.tolist()
    assert arrays.train.shape == (30 * 5, 1, 8, 8)
    assert arrays.validation.shape == (10, 1, 16, 16)
    assert np.bincount(arrays.train[:, 0, 0, 0])[training].tolist() == [5] * 30


@given(size=st.integers(1, 20), height=st.integers(20, 40), width=st.integers(20, 40))
@settings(max_examples=40)
def test_patches_are_contiguous_pieces(size: int, height: int, width: int) -> None:
    # A pixel's value tells its row in channel 0 and its column in channel 1.
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, rows])
    plan = PatchPlan(color="rgb", size=size, per_image=4, validation=0.3, crop=20)
    arrays = cut([Photograph("a", lambda: image)] * 3, plan)
    steps = np.arange(size)
    for patch in arrays.train:
        np.testing.assert_array_equal(patch[0], (patch[0, 0, 0] + steps)[:, None] + 0 * steps)
        np.testing.assert_array_equal(patch[1], (patch[1, 0, 0] + steps)[None] + 0 * steps[:, None])
        assert patch[0].max() < height
        assert patch[1].max() < width
    assert arrays.validation[0, 0, 0, 0] == (height - 20) // 2
    assert arrays.validation[0, 1, 0, 0] == (width - 20) // 2


def test_patches_come_from_everywhere() -> None:
    rows, columns = np.mgrid[:11, :13].astype(np.uint8)
    photographs = [Photograph("a", lambda: np.stack([rows, columns, rows]))] * 2
    plan = PatchPlan(color="rgb", size=8, per_image=2000, validation=0.5, crop=8)
    corners = cut(photographs, plan).train[:, :2, 0, 0]
    found, counts = np.unique(corners, axis=0, return_counts=True)
    assert found.tolist() == [[y, x] for y in range(4) for x in range(6)]
    assert counts.min() > 45  # 83 expected, standard deviation 9
    assert counts.max() < 125


def test_crops_are_the_centres_of_all_photographs() -> None:
    rows, columns = np.mgrid[:21, :30].astype(np.uint8)
    photographs = [
        Photograph("a", lambda: rows[None]),
        Photograph("b", lambda: columns[None, :16]),
    ]
    found = crops(photographs, PLAN)
    assert found.shape == (2, 1, 16, 16)
    np.testing.assert_array_equal(found[0, 0], rows[2:18, 7:23])
    np.testing.assert_array_equal(found[1, 0], columns[:16, 7:23])


def test_patches_never_move() -> None:
    # Pinned: measurements of different versions are only comparable on the same patches.
    rows, columns = np.mgrid[:100, :200].astype(np.uint8)
    photographs = [Photograph("a", lambda: np.stack([rows, columns, rows]))] * 3
    plan = PatchPlan(color="rgb", size=8, per_image=2, validation=0.3, crop=8)
    assert cut(photographs, plan).train[:, :2, 0, 0].tolist() == [
        [28, 166],
        [37, 133],
        [89, 17],
        [17, 189],
    ]


def test_images_are_decoded_once_and_one_at_a_time() -> None:
    alive = 0
    most = 0
    reads: list[str] = []

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.base is None

    def decode(name: str) -> Pixels:
        nonlocal alive, most
        reads.append(name)
        alive += 1
        most = max(most, alive)
        return np.ndarray.__new__(Counted, (1, 20, 30), dtype=np.uint8)

    names = [f"{i}" for i in range(12)]
    cut([Photograph(name, lambda name=name: decode(name)) for name in names], PLAN)  # type: ignore[misc]
    assert sorted(reads) == sorted(names)
    assert most <= 2


@pytest.mark.parametrize(
    ("field", "setting"),
    [("size", "patch"), ("per_image", "patches_per_image"), ("crop", "crop")],
)
def test_plan_without_pixels_is_told(field: str, setting: str) -> None:
    with pytest.raises(UsageError, match=f"^{setting} = 0 must be at least 1; raise it"):
        replace(PLAN, **{field: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "setting"), [("size", "patch"), ("crop", "crop")])
def test_image_that_is_too_small_is_told(field: str, setting: str) -> None:
    plan = replace(PLAN, **{field: 21})  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        cut(numbered(4), plan)
    line = str(caught.value)
    assert "is 30x20 pixels, smaller than" in line
    assert f"{setting} = 21; lower {setting} to at most 20 or remove the image" in line


def test_one_photograph_is_not_enough() -> None:
    with pytest.raises(UsageError, match=r"^1 photograph\(s\) found .* at least 2; add more"):
        cut(numbered(1), PLAN)


def test_plan_that_no_memory_can_hold_is_told() -> None:
    plan = replace(PLAN, per_image=10**15)
    with pytest.raises(UsageError, match=r"GiB of memory; lower patches_per_image or patch"):
        cut(numbered(4), plan)


# Packaged photographs


@pytest.mark.parametrize(("color", "count"), [("gray", 11), ("rgb", 5)])
def test_packaged_photographs_need_no_download(
    tmp_path: Path, color: Literal["gray", "rgb"], count: int
) -> None:
    plan = PatchPlan(color=color, size=64, per_image=3, validation=0.2, crop=256)
    bank = photos.load(plan, tmp_path)
    held_out = max(1, round(0.2 * count))
    channels = {"gray": 1, "rgb": 3}[color]
    assert bank.train.shape == (3 * (count - held_out), channels, 64, 64)
    assert bank.validation.shape == (held_out, channels, 256, 256)
    assert bank.source.startswith("scikit-image photographs: ")


def test_colour_photographs_have_colour() -> None:
    folder = Path(str(files("skimage"))) / "data"
    for names, mode in ((photos.COLOR, "RGB"), (photos.GRAY, "L")):
        for name in names:
            with Image.open(folder / name) as image:
                assert image.mode == mode, name


# Folders of photographs


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for index in range(8):
        write(tmp_path / "album" / f"{index}.png", noise(index))
    return tmp_path / "album"


def test_fingerprint_does_not_depend_on_the_order_of_the_file_system(
    album: Path, tmp_path: Path
) -> None:
    names = [file.name for file in album.iterdir()]
    random.Random(0).shuffle(names)
    for name in names:
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(album / name, tmp_path / "copy" / name)
    one = load_photographs(album, PLAN, tmp_path / "one")
    two = load_photographs(tmp_path / "copy", PLAN, tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert one.source == f"photographs in {album}: 30 training patches and 2 validation images"


def test_plan_and_files_decide_on_the_bank(album: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_photographs(album, PLAN, cache).fingerprint
    assert load_photographs(album, PLAN, cache).fingerprint == first
    assert len(list(cache.iterdir())) == 1
    assert load_photographs(album, replace(PLAN, per_image=6), cache).fingerprint != first
    write(album / "3.png", noise(99))
    assert load_photographs(album, PLAN, cache).fingerprint != first
    assert len(list(cache.iterdir())) == 3


def test_photographs_of_another_folder_are_the_test_split(album: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    without = load_photographs(album, PLAN, cache)
    assert without.test is None
    for index in range(3):
        write(tmp_path / "others" / f"{index}.png", noise(50 + index))
    bank = load_photographs(album, PLAN, cache, tmp_path / "others")
    assert bank.test is not None
    expected = [
        read(tmp_path / "others" / f"{index}.png", "gray")[:, 2:18, 7:23] for index in range(3)
    ]
    np.testing.assert_array_equal(bank.test().images, expected)
    assert bank.test().labels is None
    assert bank.fingerprint == without.fingerprint
    assert bank.source.endswith(": 30 training patches, 2 validation and 3 test images")
    write(tmp_path / "others" / "1.png", noise(60))
    changed = load_photographs(album, PLAN, cache, tmp_path / "others")
    assert changed.test is not None
    assert changed.test().fingerprint != bank.test().fingerprint


def test_a_test_folder_without_use_is_told(album: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "empty").mkdir()
    line = refusal(lambda: load_photographs(album, PLAN, cache, tmp_path / "empty"), cache)
    assert line.startswith(f"no images in {tmp_path / 'empty'}; ")
    (tmp_path / "link").symlink_to(album)
    for same in (album, tmp_path / "link"):
        line = refusal(lambda same=same: load_photographs(album, PLAN, cache, same), cache)  # type: ignore[misc]
        assert line.startswith(f"test = {same} is the folder that is trained on; give one with ")
    write(tmp_path / "small" / "0.png", noise(1, height=10))
    line = refusal(lambda: load_photographs(album, PLAN, cache, tmp_path / "small"), cache)
    assert "0.png is 30x10 pixels, smaller than crop = 16" in line


def test_folder_without_images_is_told(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "empty").mkdir()
    line = refusal(lambda: load_photographs(tmp_path / "empty", PLAN, cache), cache)
    assert line == f"no images in {tmp_path / 'empty'}; put photographs (png, jpg, tif, ...) there"


def test_missing_folder_is_told(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    gone = tmp_path / "gone"
    expected = (
        f"cannot read the image folder {gone}: No such file or directory; give an existing folder"
    )
    assert refusal(lambda: load_photographs(gone, PLAN, cache), cache) == expected
    assert refusal(lambda: classes(gone, cache), cache) == expected
    file = write(tmp_path / "file.png", noise(1))
    line = refusal(lambda: load_photographs(file, PLAN, cache), cache)
    assert line == f"cannot read the image folder {file}: Not a directory; give an existing folder"


def test_broken_photograph_is_told(album: Path, tmp_path: Path) -> None:
    (album / "5.png").write_bytes(b"not a picture")
    cache = tmp_path / "cache"
    line = refusal(lambda: load_photographs(album, PLAN, cache), cache)
    assert line.startswith(f"{album / '5.png'} is not a readable image: ")


@pytest.mark.skipif(
    not (REAL / "kodak24").is_dir(),
    reason=f"no Kodak photographs in {REAL}; name their folder in DENSITUNE_REAL_DATA",
)
def test_real_photographs_are_cut(tmp_path: Path) -> None:
    plan = PatchPlan(color="rgb", size=64, per_image=8, validation=0.1, crop=256)
    bank = load_photographs(REAL / "kodak24", plan, tmp_path)
    assert bank.train.shape == (22 * 8, 3, 64, 64)
    names = sorted(file.name for file in (REAL / "kodak24").glob("*.png"))
    _, held_out = split(24, 0.1)
    for crop, index in zip(bank.validation, held_out, strict=True):
        with Image.open(REAL / "kodak24" / names[index]) as image:
            left, top = (image.width - 256) // 2, (image.height - 256) // 2
            expected = image.convert("RGB").crop((left, top, left + 256, top + 256))
        np.testing.assert_array_equal(crop, np.asarray(expected).transpose(2, 0, 1))


# Folders of classes


@pytest.fixture
def herbarium(tmp_path: Path) -> Path:
    for label, name in enumerate(["ash", "birch", "cedar"]):
        for index in range(4):
            flat = np.full((12, 30, 3), 10 * label + index, dtype=np.uint8)
            write(tmp_path / "herbarium" / name / f"{index}.png", flat)
    (tmp_path / "herbarium" / ".cache").mkdir()
    (tmp_path / "herbarium" / "readme.txt").touch()
    return tmp_path / "herbarium"


def classes(folder: Path, cache: Path, size: int = 6, test: Path | None = None) -> Any:
    return load_classes(folder, color="rgb", size=size, validation=0.25, cache=cache, test=test)


def test_sub_folders_in_the_order_of_their_names_are_the_classes(
    herbarium: Path, tmp_path: Path
) -> None:
    bank = classes(herbarium, tmp_path / "cache")
    assert bank.classes == 3
    assert bank.train.shape == (9, 3, 6, 6)
    assert bank.validation.shape == (3, 3, 6, 6)
    np.testing.assert_array_equal(bank.train[:, 0, 0, 0] // 10, bank.train_labels)
    np.testing.assert_array_equal(bank.validation[:, 0, 0, 0] // 10, bank.validation_labels)
    assert np.bincount(bank.train_labels).tolist() == [3, 3, 3]
    assert bank.source == f"3 classes in {herbarium}: 9 training and 3 validation images"


def flat(folder: Path, **levels: list[int]) -> Path:
    """Classes of images that are all of one level."""
    for name, values in levels.items():
        for index, level in enumerate(values):
            image = np.full((12, 30, 3), level, dtype=np.uint8)
            write(folder / name / f"{index}.png", image)
    return folder


def test_classes_of_the_test_folder_are_those_of_the_same_names(
    herbarium: Path, tmp_path: Path
) -> None:
    without = classes(herbarium, tmp_path / "cache")
    others = flat(tmp_path / "others", cedar=[200, 201], ash=[202])  # of birch there is none
    bank = classes(herbarium, tmp_path / "cache", test=others)
    test = bank.test()
    assert test.images.shape == (3, 3, 6, 6)
    assert test.images[:, 0, 0, 0].tolist() == [202, 200, 201]
    assert test.labels.tolist() == [0, 2, 2]
    assert bank.fingerprint == without.fingerprint
    assert without.test is None


def test_a_test_folder_with_other_classes_is_told(herbarium: Path, tmp_path: Path) -> None:
    cache, others = tmp_path / "cache", tmp_path / "others"
    others.mkdir()
    line = refusal(lambda: classes(herbarium, cache, test=others), cache)
    assert line == f"{others} has no class folder; name its sub-folders as those of {herbarium}"
    flat(others, ash=[1], dogwood=[2])
    line = refusal(lambda: classes(herbarium, cache, test=others), cache)
    assert line.startswith(f"{others} has class dogwood, which is not trained on; name its ")
    shutil.rmtree(others / "dogwood")
    (others / "ash" / "0.png").unlink()
    line = refusal(lambda: classes(herbarium, cache, test=others), cache)
    assert line.startswith(f"class ash in {others} has 0 image(s) where at least 1 are needed")
    line = refusal(lambda: classes(herbarium, cache, test=herbarium), cache)
    assert "is the folder that is trained on" in line


def test_central_square_of_an_image_is_taken(herbarium: Path, tmp_path: Path) -> None:
    square = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    framed = np.zeros((12, 30, 3), dtype=np.uint8)
    framed[:, 9:21] = square
    for file in herbarium.rglob("*.png"):
        write(file, framed)
    bank = classes(herbarium, tmp_path / "cache", size=12)
    np.testing.assert_array_equal(bank.train[0], square.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [5, 24])
def test_images_are_resized_without_changing_their_mean(
    herbarium: Path, tmp_path: Path, size: int
) -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 20, dtype=np.uint8)[:, None, None], (12, 12, 3))
    for file in herbarium.rglob("*.png"):
        write(file, np.ascontiguousarray(ramp))
    bank = classes(herbarium, tmp_path / "cache", size=size)
    assert bank.train.shape[2:] == (size, size)
    assert abs(bank.train.mean() - ramp.mean()) < 2


def test_one_class_is_told(tmp_path: Path) -> None:
    write(tmp_path / "one" / "only" / "a.png", noise(1))
    cache = tmp_path / "cache"
    line = refusal(lambda: classes(tmp_path / "one", cache), cache)
    assert line.startswith(f"{tmp_path / 'one'} has 1 class folder(s) ")
    assert line.endswith("give each class a sub-folder of its images")


@pytest.mark.parametrize("left", [0, 1])
def test_class_with_fewer_than_two_images_is_told(
    herbarium: Path, tmp_path: Path, left: int
) -> None:
    for index in range(left, 4):
        (herbarium / "birch" / f"{index}.png").unlink()
    cache = tmp_path / "cache"
    line = refusal(lambda: classes(herbarium, cache), cache)
    assert line.startswith(f"class birch in {herbarium} has {left} image(s) where at least 2 ")
    assert line.endswith("add images or remove the sub-folder")


def test_broken_image_of_a_class_is_told(herbarium: Path, tmp_path: Path) -> None:
    (herbarium / "cedar" / "2.png").write_bytes(b"")
    cache = tmp_path / "cache"
    line = refusal(lambda: classes(herbarium, cache), cache)
    assert line.startswith(f"{herbarium / 'cedar' / '2.png'} is not a readable image: ")


def test_size_without_pixels_is_told(herbarium: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    line = refusal(lambda: classes(herbarium, cache, size=0), cache)
    assert line == "size = 0 must be at least 1 pixel; raise it"
