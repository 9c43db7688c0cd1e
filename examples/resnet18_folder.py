"""torchvision's resnet18, as wide as it is, on a folder that has a sub-folder of images per class.

Run: python resnet18_folder.py FOLDER; a GPU is well used here. Run again, it continues.
"""

import sys
from typing import Any

from densitune import Study


def config(folder: str) -> dict[str, Any]:
    """Return what would stand in the study's YAML file; docs/config.md has every key."""
    return {
        "name": "resnet18-folder",
        "task": "folder",
        "data": {"kind": "classes", "folder": folder, "size": 64},
        "proxy": {"network": "torchvision:resnet18"},  # or timm:..., or a function of your own
        "kernel_size": 3,  # its 3 x 3 convolutions; the 7 x 7 one and the 1 x 1 ones stay plain
        "training": {"budget": 10, "batch_size": 64, "lr": "auto"},
        "search": {"trials": 40, "seeds": 2},
        "confirm": {"finalists": 2, "seeds": 12, "batch": 6, "budget": 20},
    }


if __name__ == "__main__":
    study = Study.launch(config(sys.argv[1]))
    study.wait()
    print(study.preset.advice)
