"""The photographs that come inside scikit-image's wheel: a denoising source with no download.

Chosen are photographs of natural scenes and surfaces. Left out are drawings, text and binary
pictures (chessboards, color, horse, logo, page, phantom, text), pictures through a microscope,
ophthalmoscope or space telescope (cell, ihc, microaneurysms, retina, hubble_deep_field), the
motion-blurred clock, and motorcycle_right: it shows what motorcycle_left shows, and one of them
could fall into validation. Only packaged files are opened; scikit-image's own loaders may download.
"""

from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path

from optimizer.errors import UsageError
from workers.data.bank import Bank, cached, key_of
from workers.data.images import read
from workers.data.patches import PatchPlan, Photograph, cut
from workers.data.sources import stamps

COLOR = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
GRAY = (
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "moon.png",
)


def load(plan: PatchPlan, cache: Path) -> Bank:
    """Return a bank of patches: of all photographs in gray, of the colour ones only in rgb."""
    folder = Path(str(files("skimage"))) / "data"
    names = sorted(COLOR + GRAY if plan.color == "gray" else COLOR)
    paths = [folder / name for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UsageError(
            f"this scikit-image lacks the photograph {missing[0]} in {folder}; reinstall it"
        )
    photographs = [Photograph(path.name, partial(read, path, plan.color)) for path in paths]
    key = key_of(source="photos", files=stamps(paths), plan=asdict(plan))
    return cached(cache, key, "scikit-image photographs", partial(cut, photographs, plan))
